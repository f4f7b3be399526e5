"""The compiled GELU against float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from swin_mim.kernels.native import gelu as module
from swin_mim.kernels.native.gelu import gelu, gelu_backward
from swin_mim.kernels.native.library import Unavailable

pytestmark = pytest.mark.usefixtures("compiled")


def exact(x, upstream):
    x = x.double().requires_grad_()
    out = F.gelu(x)
    (gradient,) = torch.autograd.grad(out, x, upstream.double())
    return out.detach(), gradient, gradient.sum(0)


def test_is_as_exact_as_fp32(threads):
    x = torch.linspace(-12, 12, 240_001)[:, None]
    out, gradient, _ = exact(x, torch.ones_like(x))
    assert ((gelu(x) - out).abs() <= 3e-7 * x.abs()).all()
    assert_close(gelu_backward(x, torch.ones_like(x))[1].double(), gradient, atol=3e-7, rtol=0)


@pytest.mark.parametrize("columns", [1, 5, 16, 40])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_every_shape(rows, columns):
    x, upstream = 3 * torch.randn(rows, columns), torch.randn(rows, columns)
    expected = exact(x, upstream)
    assert_close(gelu(x).double(), expected[0], atol=1e-6, rtol=0)
    for ours, other in zip(gelu_backward(x, upstream), expected, strict=True):
        assert_close(ours.double(), other, atol=1e-6 * math.sqrt(rows) * 10, rtol=0)


def test_no_tokens():
    empty = torch.empty(0, 5)
    assert gelu(empty).shape == (0, 5)
    assert not gelu_backward(empty, empty.clone())[2].any()


def test_ends():
    x = torch.tensor([[-1e30, -90.0, -0.0, 0.0, 1e-40, 90.0, 1e30]])
    out, gradient, _ = gelu_backward(x, torch.ones_like(x))
    assert out.tolist() == F.gelu(x).tolist()
    assert gradient.tolist() == [[0, 0, 0.5, 0.5, 0.5, 1, 1]]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(value):
    """A run looks for it in loss and gradients, and leaves such a step out."""
    x = torch.ones(2, 20)
    x[0, 3] = value
    (out, gradient, sums), upstream = gelu_backward(x, torch.ones_like(x)), torch.ones_like(x)
    assert not out[0, 3].isfinite()
    assert not gradient[0, 3].isfinite()
    assert not sums[3].isfinite()
    assert sums.isfinite().sum() == 19
    upstream[1, 2] = value
    assert not gelu_backward(torch.ones_like(x), upstream)[1][1, 2].isfinite()


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_the_same_threads_give_the_same_bits(number, threads):
    x, upstream = torch.randn(5, 33), torch.randn(5, 33)
    threads(number)
    first = [each.clone() for each in gelu_backward(x, upstream.clone())]
    assert all(map(torch.equal, first, gelu_backward(x, upstream.clone())))
    assert torch.equal(first[0], gelu(x))


def test_without_a_compiler_torchs_own_is_taken_and_said(monkeypatch, caplog):
    def missing():
        raise Unavailable("there is no C++ compiler")

    monkeypatch.setattr(module, "library", missing)
    monkeypatch.setattr(module, "failure_reason", module.failure_reason.__wrapped__)
    monkeypatch.setattr(module, "_compiled", module._compiled.__wrapped__)
    x, upstream = torch.randn(3, 4), torch.randn(3, 4)
    for ours, other in zip(gelu_backward(x, upstream), exact(x, upstream), strict=True):
        assert_close(ours.double(), other, atol=1e-6, rtol=0)
    assert caplog.messages == ["GELU: the compiled one is not used, but torch's slower one: there is no C++ compiler"]


def test_a_library_that_computes_something_else_is_not_used(monkeypatch):
    def wrong(name, x, out, gradient, sums):
        out.fill_(1)

    monkeypatch.setattr(module, "_run", wrong)
    assert module.failure_reason.__wrapped__().startswith("its output is off by")
