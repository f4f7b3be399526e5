"""The CPU's linear layer and MLP against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from swin_mim.kernels import chunked_mlp, product
from swin_mim.kernels.product import CHUNK, Norm, linear
from swin_mim.models.blocks.mlp import Mlp


@pytest.fixture(params=["Zen 5", "Zen 4", "MKL's"])
def engine(request, monkeypatch):
    """The way of each kind of processor, whatever this one is; and no shape is too small."""
    onednn, cheap = request.param != "MKL's", request.param == "Zen 5"
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    for module in (product, chunked_mlp):
        monkeypatch.setattr(module, "onednn_is_faster", lambda: onednn)
        monkeypatch.setattr(module, "multiplies_cheaply", lambda: cheap)
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


@pytest.mark.parametrize("dim", [8, chunked_mlp.AGAIN + 8], ids=["narrow", "wide"])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.usefixtures("engine")
def test_mlp_and_its_gradients(dim, normed):
    tokens, hidden = 1500, 512
    leaves = leaves_of((1, tokens, dim), (dim,), (dim,), (hidden, dim), (hidden,), (dim, hidden), (dim,))
    x, scale, offset, *weights = leaves
    norm, used = Norm(scale, offset, 1e-5) if normed else None, [x, *([scale, offset] if normed else []), *weights]
    ours = gradients(chunked_mlp.mlp(x, norm, *weights), used)
    x, scale, offset, w1, b1, w2, b2 = exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y = F.linear(F.gelu(F.linear(F.layer_norm(x, (dim,), scale, offset) if normed else x, w1, b1)), w2, b2)
    assert_all_close(ours, gradients(y, exact if normed else [exact[0], *exact[3:]]))


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


@pytest.mark.parametrize(
    ("capability", "vendor", "family", "onednn", "cheap"),
    [
        ("AVX512", "AuthenticAMD", 26, True, True),
        ("AVX512", "AuthenticAMD", 25, True, False),
        ("AVX512", "GenuineIntel", 6, False, False),
        ("AVX2", "AuthenticAMD", 23, False, False),
    ],
)
def test_what_decides_is_the_processor(capability, vendor, family, onednn, cheap, monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 26\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(product, "_CPU_INFO", info)
    assert product.onednn_is_faster.__wrapped__() == onednn
    monkeypatch.setattr(product, "onednn_is_faster", lambda: onednn)
    assert product.multiplies_cheaply.__wrapped__() == cheap


@pytest.mark.parametrize("fast", [True, False], ids=["onednn", "mkl"])
def test_which_mlps_are_chunked(fast, monkeypatch):
    monkeypatch.setattr(chunked_mlp, "onednn_is_faster", lambda: fast)
    wide, narrow = torch.empty(1536, 384), torch.empty(384, 96)
    many, few = torch.empty(2, 160, 160, 96), torch.empty(2, 8, 8, 96)  # hidden layers of 79 MB and 200 kB
    assert chunked_mlp.pays(many, narrow)
    assert chunked_mlp.pays(few, narrow) == fast, "with MKL's products only what a cache does not hold"
    assert chunked_mlp.pays(torch.empty(2, 160, 160, 384), wide) == fast, "with MKL's products only narrow ones"
    assert not chunked_mlp.pays(few[:, :1, :1], narrow), "too small"
    assert not chunked_mlp.pays(many.double(), narrow.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not chunked_mlp.pays(many, narrow)
    with torch.no_grad():
        assert chunked_mlp.pays(many, narrow) == fast


class Asked(Exception):
    pass


def test_the_module_takes_chunks_where_they_pay_and_nothing_is_in_between(monkeypatch):
    def asked(*_):
        raise Asked

    monkeypatch.setattr(chunked_mlp, "pays", lambda *_: True)
    monkeypatch.setattr(chunked_mlp, "mlp", asked)
    x, norm = torch.randn(1, 4, 4, 8), torch.nn.LayerNorm(8)
    with pytest.raises(Asked):
        Mlp(8, 16, 0.0)(x, norm)
    with pytest.raises(Asked):
        Mlp(8, 16, 0.0)(x)
    with pytest.raises(Asked):
        Mlp(8, 16, 0.1).eval()(x, norm)
    assert Mlp(8, 16, 0.1)(x, norm).shape == x.shape, "dropout would be left out"
    for name in ("fc1", "fc2"):
        hooked, replaced = Mlp(8, 16, 0.0), Mlp(8, 16, 0.0)
        getattr(hooked, name).register_forward_hook(lambda *_: None)
        hooked(x, norm)
        setattr(replaced, name, torch.nn.Sequential(getattr(replaced, name)))
        replaced(x, norm)


@pytest.mark.parametrize(
    ("onednn", "cheap", "dim", "kept"),
    [
        (True, True, 8, False),
        (True, True, chunked_mlp.AGAIN + 8, True),
        (True, False, 8, True),
        (False, False, 96, False),
        (False, False, 104, True),
    ],
)
def test_what_is_kept_for_the_backward_pass(onednn, cheap, dim, kept, monkeypatch):
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(chunked_mlp, "onednn_is_faster", lambda: onednn)
    monkeypatch.setattr(chunked_mlp, "multiplies_cheaply", lambda: cheap)
    x, norm = torch.randn(1, 900, dim), Norm(torch.ones(dim), torch.zeros(dim), 1e-5)
    weights = (torch.randn(768, dim, requires_grad=True), torch.zeros(768), torch.randn(dim, 768), torch.zeros(dim))
    hidden = 4 * 900 * 768

    def packed():
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            chunked_mlp.mlp(x, norm, *weights)
        return sum(
            tensor.nbytes for tensor in saved if tensor.dim() == 2 and tensor.shape[1] == 768 and len(tensor) != dim
        )

    assert packed() == hidden * kept
    with torch.no_grad():
        assert packed() == 0


@pytest.mark.usefixtures("engine")
def test_operations_are_counted():
    x, weight = torch.randn(6, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        product._Linear.apply(x, weight, None, None, None, 0.0).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 6 * 5 * 3
