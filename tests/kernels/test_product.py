"""The CPU's linear layer and MLP against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from swin_mim.kernels import chunked_mlp, product
from swin_mim.kernels.product import CHUNK, Norm, linear


@pytest.fixture(params=[True, False], ids=["onednn", "mkl"])
def engine(request, monkeypatch):
    """Either way, whatever processor this is; and no shape is too small."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(product, "onednn_is_faster", lambda: request.param)
    monkeypatch.setattr(product, "WORTH", 0)


def gradients(out, leaves):
    weights = torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


def assert_all_close(ours, expected):
    """Within the rounding of fp32 sums, against float64."""
    for a, b in zip(ours, expected, strict=True):
        assert_close(a.double(), b, atol=1e-5 * b.abs().max().item(), rtol=0)


def leaves_of(*shapes):
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("tokens", "inside", "outside"), [(1, 5, 3), (CHUNK + 7, 8, 24), (2 * CHUNK, 24, 8)])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.usefixtures("engine")
def test_linear_and_its_gradients(tokens, inside, outside, normed):
    leaves = leaves_of((2, tokens, inside), (outside, inside), (outside,), (inside,), (inside,))
    norm = Norm(leaves[3], leaves[4], 1e-5) if normed else None
    used = leaves if normed else leaves[:3]
    ours = gradients(product._Linear.apply(*leaves[:3], *(norm or (None, None, 0.0))), used)
    x, weight, bias, scale, offset = exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y = F.layer_norm(x, (inside,), scale, offset) if normed else x
    assert_all_close(ours, gradients(F.linear(y, weight, bias), exact[: len(used)]))


@pytest.mark.parametrize("dim", [8, chunked_mlp.AGAIN + 8], ids=["hidden layer again", "hidden layer kept"])
@pytest.mark.usefixtures("engine")
def test_mlp_and_its_gradients(dim):
    tokens, hidden = 1500, 512
    leaves = leaves_of((1, tokens, dim), (dim,), (dim,), (hidden, dim), (hidden,), (dim, hidden), (dim,))
    x, scale, offset, *weights = leaves
    ours = gradients(chunked_mlp.mlp(x, Norm(scale, offset, 1e-5), *weights), leaves)
    x, scale, offset, w1, b1, w2, b2 = exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y = F.linear(F.gelu(F.linear(F.layer_norm(x, (dim,), scale, offset), w1, b1)), w2, b2)
    assert_all_close(ours, gradients(y, exact))


def test_only_what_needs_a_gradient_gets_one():
    x, weight, bias = leaves_of((4, 5), (3, 5), (3,))
    (only,) = torch.autograd.grad(product._Linear.apply(x, weight, bias, None, None, 0.0).sum(), [bias])
    assert torch.equal(only, torch.full((3,), 4.0))
    assert product._Linear.apply(x.detach(), weight.detach(), bias, None, None, 0.0).requires_grad


def test_where_torchs_own_is_used(monkeypatch):
    monkeypatch.setattr(product, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(product._Linear, "apply", lambda *_: "ours")
    x, weight = torch.randn(64, 256), torch.randn(256, 256)
    assert linear(x, weight) == "ours"
    assert linear(x[:8], weight) != "ours", "too small"
    assert linear(x.double(), weight.double()) != "ours"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    compiled = torch.compile(lambda x: linear(x, weight) * 1, backend="eager", fullgraph=True)
    assert compiled(x).shape == (64, 256)


def test_what_decides_is_the_processor(monkeypatch):
    for capability, info, expected in [
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),
        ("AVX2", "AuthenticAMD", False),
    ]:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=capability: found)
        monkeypatch.setattr(product.Path, "read_text", lambda _, found=info: found)
        product.onednn_is_faster.cache_clear()
        assert product.onednn_is_faster() == (expected and torch.backends.mkldnn.is_available())
    product.onednn_is_faster.cache_clear()
