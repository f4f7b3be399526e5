"""The compiled backend against the chunked one in float64, which tests/models compares with one token by token."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from swin_mim.kernels.native import attention
from swin_mim.models.blocks.window_attention import window_attention

CASES = [  # grid, window, window of the table, shift
    ((8, 8), (4, 4), (4, 4), (0, 0)),
    ((8, 8), (4, 4), (4, 4), (2, 2)),
    ((9, 7), (4, 4), (4, 4), (2, 2)),
    ((6, 10), (3, 5), (3, 5), (1, 2)),
    ((5, 12), (5, 4), (7, 4), (0, 2)),
    ((3, 3), (3, 3), (4, 5), (0, 0)),
    ((13, 5), (6, 2), (6, 2), (3, 1)),
    ((12, 6), (6, 6), (6, 6), (3, 0)),
    ((14, 14), (7, 7), (7, 7), (3, 3)),
    ((13, 24), (12, 12), (12, 12), (6, 6)),
    ((17, 13), (17, 13), (20, 14), (0, 0)),
]
GEOMETRY = {"window": (4, 4), "table_window": (5, 4), "shift": (2, 1)}


pytestmark = pytest.mark.usefixtures("compiled")


def inputs(grid=(10, 7), table_window=(5, 4), heads=2, d=8, batch=3, dtype=torch.float32):
    entries = math.prod(2 * side - 1 for side in table_window)
    qkv = torch.randn(batch, *grid, 3, heads, d, dtype=dtype, requires_grad=True)
    table = torch.randn(entries, heads, requires_grad=True)
    return qkv, table, torch.randn(3, heads, d, requires_grad=True)


def results(leaves, geometry=GEOMETRY, backend="native"):
    """Output and gradients."""
    qkv, table, fill = leaves
    out = window_attention(qkv, table, fill=fill, **geometry, backend=backend)
    weights = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view_as(out).to(out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), [x for x in leaves if x is not None])]


def exact(leaves, geometry=GEOMETRY):
    doubles = [None if x is None else x.detach().double().requires_grad_() for x in leaves]
    return results(doubles, geometry, "chunked")


def assert_near(ours, expected, tolerance=2e-6):
    for ours_, expected_ in zip(ours, expected, strict=True):
        assert_close(ours_.double(), expected_, atol=tolerance * max(1, expected_.abs().max().item()), rtol=0)


@pytest.mark.parametrize(("heads", "d"), [(2, 8), (3, 7), (3, 32), (5, 20), (9, 64)])
@pytest.mark.parametrize(("grid", "window", "table_window", "shift"), CASES)
def test_equals_the_chunked_one_in_float64(grid, window, table_window, shift, heads, d):
    leaves = inputs(grid, table_window, heads, d)
    geometry = {"window": window, "table_window": table_window, "shift": shift}
    assert_near(results(leaves, geometry), exact(leaves, geometry))


def test_without_a_fill_padding_is_zero():
    qkv, table, _ = inputs()
    assert_near(results((qkv, table, None)), exact((qkv, table, None)))


def test_bf16_is_near_float64():
    leaves = inputs(dtype=torch.bfloat16)
    ours = results(leaves)
    assert [x.dtype for x in ours] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    assert_near(ours, exact([leaves[0], leaves[1], leaves[2].bfloat16()]), 0.02)


def test_large_and_small_scores():
    """One key takes all, others are too small for fp32: no overflow, and as exact as scores of some thousands are."""
    qkv, table, fill = inputs()
    leaves = ((40 * qkv).detach().requires_grad_(), table, fill)
    assert_near(results(leaves), exact(leaves), 1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(value):
    """A run looks for it in loss and gradients, and leaves such a step out."""
    for which in range(3):
        leaves = inputs(dtype=torch.float32)
        with torch.no_grad():
            leaves[0][0, 0, 0, which, 0, 0] = value
        out, *gradients = results(leaves)
        assert not out[0].isfinite().all()
        assert out[1:].isfinite().all()
        assert not gradients[0].isfinite().all()


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_the_same_threads_give_the_same_bits(number, threads):
    leaves = inputs(heads=5)
    expected = exact(leaves)
    threads(number)
    first, second = results(leaves), results(leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert_near(first, expected)


def test_more_threads_than_work(threads):
    leaves = inputs(grid=(4, 4), heads=1, batch=1)
    threads(16)
    assert_near(results(leaves), exact(leaves))


def test_no_images():
    for gradient, leaf in zip(results(inputs(batch=0))[1:], inputs(batch=0), strict=True):
        assert gradient.shape == leaf.shape
        assert not gradient.any()


def test_strides_do_not_matter():
    qkv, table, fill = inputs()
    apart = torch.randn(4, 10, 7, 3, 2, 9)[:3, ..., :8].copy_(qkv).detach().requires_grad_()
    spread = table.detach().t().contiguous().t().requires_grad_()
    for one, other in zip(results((apart, spread, fill)), results((qkv, table, fill)), strict=True):
        assert torch.equal(one, other)


def test_backward_twice():
    leaves = inputs()
    out = window_attention(leaves[0], leaves[1], fill=leaves[2], **GEOMETRY, backend="native")
    first, second = (torch.autograd.grad(out.square().sum(), leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_dtype_is_refused():
    qkv, table, fill = inputs(dtype=torch.float64)
    with pytest.raises(TypeError, match=r"qkv is torch\.float64: the compiled attention takes torch\.float32, "):
        attention.window_attention(qkv, table, fill, None, (4, 4), (5, 4), (2, 1))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_operators_are_well_formed():
    qkv, table, fill = inputs(batch=2)
    for optional in ((fill, torch.rand(2, 1, requires_grad=True)), (None, None)):
        torch.library.opcheck(attention._forward, (qkv, table, *optional, [4, 4], [5, 4], [2, 1]))


def test_operations_are_counted():
    qkv, table, fill = inputs(batch=5, grid=(10, 7), heads=2, d=8)
    with FlopCounterMode(display=False) as counter:
        window_attention(qkv, table, fill=fill, **GEOMETRY, backend="native").sum().backward()
    product = 2 * 5 * 6 * 2 * 16 * 16 * 8  # padded to 6 windows
    assert counter.get_total_flops() == 7 * product


def test_the_trial_does_not_see_the_mode_of_its_caller():
    state = torch.get_rng_state()
    for mode in (FakeTensorMode(), torch.inference_mode(), torch.device("meta"), torch.autocast("cpu")):
        with mode:
            assert attention.failure_reason.__wrapped__() == ""
    with FlopCounterMode(display=False) as counter:
        attention.failure_reason.__wrapped__()
    assert counter.get_total_flops() == 0
    assert torch.equal(state, torch.get_rng_state()), "nothing that a run draws from is used up"


def test_the_trial_finds_what_is_wrong(monkeypatch):
    backward = attention._backward
    monkeypatch.setattr(attention, "_backward", lambda *args: [x * 1.001 for x in backward(*args)])
    reason = attention.failure_reason.__wrapped__()
    assert reason == "in torch.float32 its gradient of qkv is off by 1.0e-03 of the largest value"


@pytest.mark.parametrize(("grid", "window", "table_window", "shift"), CASES[1:5])
def test_by_cosines_it_equals_the_chunked_one_in_float64(grid, window, table_window, shift):
    """Of Swin V2: queries and keys of unit length, the scale's gradient too."""
    scale = torch.tensor([[0.5], [10.0], [99.0]], requires_grad=True)
    leaves = [*inputs(grid, table_window, 3, 20), scale]
    geometry = {"window": window, "table_window": table_window, "shift": shift}
    found = []
    for given, backend in ((leaves, "native"), ([x.detach().double().requires_grad_() for x in leaves], "chunked")):
        qkv, table, fill, of_heads = given
        out = window_attention(qkv, table, fill=fill, scale=of_heads, **geometry, backend=backend)
        weights = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view_as(out).to(out.dtype)
        found.append([out, *torch.autograd.grad((out * weights).sum(), given)])
    assert_near(*found, tolerance=1e-5)
