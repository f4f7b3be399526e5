"""The compiled kernels where a program has other defaults than torch: they write fp32 to the memory of a CPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from swin_mim.kernels.native import attention, gelu
from swin_mim.models.blocks.mlp import Mlp
from swin_mim.models.blocks.window_attention import window_attention

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(params=[torch.bfloat16, torch.float64])
def other_default(request):
    before = torch.get_default_dtype()
    yield lambda: torch.set_default_dtype(request.param)
    torch.set_default_dtype(before)


@pytest.mark.parametrize("kernel", [attention, gelu])
def test_the_trial_does_not_depend_on_the_default(kernel, other_default):
    other_default()
    assert kernel.failure_reason.__wrapped__() == ""


def test_gradients_do_not_depend_on_the_default(other_default):
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((3, 10, 7, 3, 2, 8), (63, 2), (3, 2, 8))]
    upstream = torch.randn(3, 10, 7, 16)

    def gradients():
        qkv, table, fill = leaves
        geometry = {"window": (4, 4), "table_window": (5, 4), "shift": (2, 1)}
        out = window_attention(qkv, table, fill=fill, **geometry, backend="native")
        return torch.autograd.grad(out, leaves, upstream.view_as(out))

    before = gradients()
    other_default()
    for ours, expected in zip(gradients(), before, strict=True):
        assert torch.equal(ours, expected)


@pytest.fixture
def taken(monkeypatch):
    """An MLP of any size takes the compiled GELU."""
    for threshold in ("WORTH", "CACHE"):
        monkeypatch.setattr(f"swin_mim.kernels.chunked_mlp.{threshold}", 0)
    return Mlp(8, 32, 0.0)


def test_without_memory_nothing_is_computed(taken):
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert taken(torch.empty(2, 4, 4, 8)).shape == (2, 4, 4, 8)


def test_memory_is_that_of_a_cpu_whatever_the_default_is(taken, monkeypatch):
    monkeypatch.setattr("swin_mim.kernels.cpu_attention._buffers", type("Empty", (), {})())
    x = torch.randn(2, 4, 4, 8)
    expected = taken(x)
    monkeypatch.setattr("swin_mim.kernels.cpu_attention._buffers", type("Empty", (), {})())
    with torch.device("meta"):
        assert torch.equal(taken(x), expected)
