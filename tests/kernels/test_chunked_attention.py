"""What is special about the chunked backend: how it cuts a batch up. What it computes: tests/models."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from swin_mim.kernels import chunked_attention
from swin_mim.models.blocks.window_attention import window_attention

GEOMETRY = {"window": (4, 4), "table_window": (5, 4), "shift": (2, 1)}


def inputs(batch=5, grid=(10, 7), heads=2, d=8, dtype=torch.float64):
    qkv = torch.randn(batch, *grid, 3, heads, d, dtype=dtype, requires_grad=True)
    table = torch.randn(63, heads, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    return qkv, table, torch.randn(3, heads, d, dtype=dtype, requires_grad=True)


def both(inputs, backend="chunked"):
    """Output and gradients."""
    qkv, table, fill = inputs
    out = window_attention(qkv, table, fill=fill, **GEOMETRY, backend=backend)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize("windows", [1, 4, 6, 12, 18, 1000])
def test_how_a_batch_is_cut_up_changes_nothing(windows, monkeypatch):
    """6 windows an image: slices of one image, whole images with a rest, all at once."""
    leaves = inputs()
    expected = both(leaves)
    each = 4 * 16 * 2 * (8 * 8 + 4 * 16)
    monkeypatch.setattr(chunked_attention, "CHUNK", windows * each)
    for ours, whole in zip(both(leaves), expected, strict=True):
        assert_close(ours, whole, atol=1e-12, rtol=0)


def test_bf16_is_near_float64():
    leaves = inputs(dtype=torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    for ours, expected in zip(both(leaves), both(exact), strict=True):
        assert ours.dtype in (torch.bfloat16, torch.float32)
        assert_close(ours.double(), expected, atol=0.02 * expected.abs().max().item(), rtol=0)


def test_two_runs_give_the_same_bits():
    leaves = inputs(dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(both(leaves), both(leaves), strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_operators_are_well_formed():
    qkv, table, fill = inputs(batch=2)
    for fill_or_none in (fill, None):
        arguments = (qkv, table, fill_or_none, [4, 4], [5, 4], [2, 1])
        torch.library.opcheck(chunked_attention._forward, arguments)


def test_inside_a_compiled_graph():
    leaves = inputs(dtype=torch.float32)
    forward = torch.compile(
        lambda q, t, f: window_attention(q, t, fill=f, **GEOMETRY), fullgraph=True, backend="aot_eager"
    )
    out = forward(*leaves)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    compiled = [out, *torch.autograd.grad((out * weights).sum(), leaves)]
    for ours, expected in zip(compiled, both(leaves), strict=True):
        assert_close(ours, expected)


def test_operations_are_counted():
    qkv, table, fill = inputs(batch=5, grid=(10, 7), heads=2, d=8)
    with FlopCounterMode(display=False) as counter:
        window_attention(qkv, table, fill=fill, **GEOMETRY, backend="chunked").sum().backward()
    product = 2 * 5 * 6 * 2 * 16 * 16 * 8  # padded to 6 windows
    assert counter.get_total_flops() == 7 * product
