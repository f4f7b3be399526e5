"""The batched window attention against one that visits every window and token by itself, in float64."""

import math

import pytest
import torch
from torch.testing import assert_close

from swin_mim import Swin, SwinConfig
from swin_mim.errors import UserError
from swin_mim.kernels.native import attention as native_attention
from swin_mim.kernels.window_geometry import relative_position_index, window_geometry
from swin_mim.models.blocks import triton_trial
from swin_mim.models.blocks import window_attention as module
from swin_mim.models.blocks.window_attention import resolve_backend, window_attention
from swin_mim.models.swin import attention_text

CASES = [  # grid, window, window of the table, shift
    ((8, 8), (4, 4), (4, 4), (0, 0)),
    ((8, 8), (4, 4), (4, 4), (2, 2)),
    ((9, 7), (4, 4), (4, 4), (2, 2)),
    ((6, 10), (3, 5), (3, 5), (1, 2)),
    ((5, 12), (5, 4), (7, 4), (0, 2)),
    ((3, 3), (3, 3), (4, 5), (0, 0)),
    ((7, 7), (4, 4), (4, 4), (0, 0)),
    ((13, 5), (6, 2), (6, 2), (3, 1)),
]


def inputs(grid, table_window, heads=2, d=4, batch=2, dtype=torch.float64):
    qkv = torch.randn(batch, *grid, 3, heads, d, dtype=dtype, requires_grad=True)
    table = torch.randn(math.prod(2 * side - 1 for side in table_window), heads, dtype=dtype, requires_grad=True)
    fill = torch.randn(3, heads, d, dtype=dtype, requires_grad=True)
    return qkv, table, fill


def token_by_token(qkv, table, fill, window, table_window, shift):
    """Pads, then for each query collects the keys of its shifted window by coordinates."""
    _, h, w, _, heads, d = qkv.shape
    bias = table[relative_position_index(window, table_window)].permute(2, 0, 1)
    size = [math.ceil(g / s) * s for g, s in zip((h, w), window, strict=True)]
    padded = []
    for x, f in zip(qkv.unbind(3), fill, strict=True):
        canvas = f.expand(x.shape[0], *size, heads, d).clone()
        canvas[:, :h, :w] = x
        padded.append(canvas)
    q, k, v = padded
    cells = [
        [(y, x) for y in range(top, top + window[0]) for x in range(left, left + window[1])]
        for top in range(0, size[0], window[0])
        for left in range(0, size[1], window[1])
    ]
    out = torch.zeros_like(q)
    for cell in cells:  # in shifted coordinates, which may run over the border: (y + shift) mod size
        raw = [(y + shift[0], x + shift[1]) for y, x in cell]
        home = [(y % size[0], x % size[1]) for y, x in raw]
        side = [(y >= size[0], x >= size[1]) for y, x in raw]  # which side of the border a token came from
        for i, (y, x) in enumerate(home):
            scores = torch.stack(
                [
                    (q[:, y, x] * k[:, a, b]).sum(-1) * d**-0.5 + bias[:, i, j] - 100.0 * (side[i] != side[j])
                    for j, (a, b) in enumerate(home)
                ]
            )  # (t, B, heads)
            values = torch.stack([v[:, a, b] for a, b in home])  # (t, B, heads, d)
            out[:, y, x] = (scores.softmax(0)[..., None] * values).sum(0)
    return out[:, :h, :w]


def with_gradients(out, leaves, weights):
    return [out, *torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("backend", ["reference", "sdpa", "chunked"])
@pytest.mark.parametrize(("grid", "window", "table_window", "shift"), CASES)
def test_equals_token_by_token(grid, window, table_window, shift, backend):
    leaves = inputs(grid, table_window)
    qkv, table, fill = leaves
    geometry = {"window": window, "table_window": table_window, "shift": shift}
    out = window_attention(qkv, table, fill=fill, **geometry, backend=backend)
    expected = token_by_token(qkv, table, fill, **geometry)
    weights = torch.randn_like(out)
    # fp32 softmax inside a float64 test of the reference backend
    atol = 1e-5 if backend == "reference" else 1e-12
    for ours, theirs in zip(
        with_gradients(out, leaves, weights), with_gradients(expected, leaves, weights), strict=True
    ):
        assert_close(ours, theirs, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("grid", "window", "shifted", "expected"),
    [
        ((8, 8), (4, 4), True, ((4, 4), (2, 2))),
        ((8, 8), (4, 4), False, ((4, 4), (0, 0))),
        ((4, 8), (4, 4), True, ((4, 4), (0, 2))),
        ((3, 9), (7, 7), True, ((3, 7), (0, 3))),
        ((14, 14), (7, 7), True, ((7, 7), (3, 3))),
    ],
)
def test_geometry_is_decided_per_dimension(grid, window, shifted, expected):
    assert window_geometry(grid, window, shifted) == expected


@pytest.mark.parametrize("backend", ["reference", "sdpa", "chunked"])
def test_rolled_neighbours_do_not_see_each_other(backend):
    """With a shift, a token in the last row must not depend on the first row."""
    qkv, table, _ = inputs((8, 8), (4, 4))
    out = window_attention(qkv, table, window=(4, 4), table_window=(4, 4), shift=(2, 2), backend=backend)
    (gradient,) = torch.autograd.grad(out[:, -1].sum(), qkv)
    assert gradient[:, 0, :, 2].abs().max() < 1e-30
    assert gradient[:, -1, :, 2].abs().min() > 0


@pytest.mark.parametrize(("backend", "device"), [("chunked", "cuda"), ("native", "cuda"), ("triton", "cpu")])
def test_a_backend_of_another_device_is_refused(backend, device, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match=f"attention {backend} runs on .* only, and this is {device}: use auto"):
        resolve_backend(backend, torch.device(device))


def test_auto_takes_the_kernel_for_what_it_is_written_for(monkeypatch):
    cuda = torch.device("cuda:0")
    assert resolve_backend("auto", torch.device("meta")) == "reference"
    monkeypatch.setattr(module, "_found_out", lambda device, dtype, wide: "triton")
    assert resolve_backend("auto", cuda, 256, 64) == "triton"
    assert resolve_backend("auto", cuda, 289, 32) == "sdpa"
    assert resolve_backend("auto", cuda, 49, 96) == "sdpa"
    assert resolve_backend("auto", cuda, 49, 32, torch.float64) == "sdpa"
    config = SwinConfig(128, embed_dim=32, depths=(1, 1), num_heads=(1, 2), window_size=(20, 16))
    assert attention_text(Swin(config), cuda) == "sdpa, triton", "the second stage has a grid of 16 x 16"


@pytest.mark.parametrize(("reason", "chosen"), [("", "native"), ("there is no C++ compiler", "chunked")])
def test_a_cpu_gets_the_compiled_kernel_or_is_told_why_not(reason, chosen, monkeypatch, caplog):
    monkeypatch.setattr(native_attention, "failure_reason", lambda: reason)
    monkeypatch.setattr(module, "_on_cpu", module._on_cpu.__wrapped__)  # not its cache, which outlives the test
    for dtype in (torch.float32, torch.bfloat16):
        assert resolve_backend("auto", torch.device("cpu"), dtype=dtype) == chosen
    text = f"attention: the compiled kernel is not used, but the slower chunked: {reason}"
    assert caplog.messages == ([text] * 2 if reason else [])
    assert resolve_backend("auto", torch.device("cpu"), dtype=torch.float64) == "chunked"
    assert resolve_backend("chunked", torch.device("cpu")) == "chunked"


def test_the_compiled_kernel_is_refused_where_it_cannot_be(monkeypatch):
    monkeypatch.setattr(native_attention, "failure_reason", lambda: "there is no C++ compiler")
    with pytest.raises(
        UserError, match=r"attention native cannot be used here: there is no C\+\+ compiler. Take chunked"
    ):
        resolve_backend("native", torch.device("cpu"))
    with pytest.raises(UserError, match=r"it computes in .*, not in torch\.float64\. Take chunked"):
        resolve_backend("native", torch.device("cpu"), dtype=torch.float64)


def test_a_run_tries_its_own_dtype_and_windows_alone(monkeypatch):
    tried = []
    monkeypatch.setattr(module, "_found_out", lambda device, *case: tried.append(case) or "triton")
    config = SwinConfig(48, embed_dim=32, depths=(1, 1), num_heads=(1, 2), window_size=12)
    attention_text(Swin(config), torch.device("cuda:0"), torch.bfloat16)
    assert tried == [(torch.bfloat16, True), (torch.bfloat16, False)], "the second stage has a grid of 6 x 6"


@pytest.mark.parametrize(
    ("capability", "hip", "chosen"),
    [((7, 0), None, "sdpa"), ((7, 5), None, "sdpa"), ((8, 0), None, "triton"), ((7, 5), "6.4", "triton")],
)
def test_a_gpu_without_tensor_cores_for_triton_gets_sdpa_untried(capability, hip, chosen, monkeypatch):
    tried = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(triton_trial, "failure_reason", lambda *args, **options: tried.append(args) or "")
    found_out = module._found_out.__wrapped__  # not its cache, which outlives the test
    assert found_out(torch.device("cuda:0"), torch.bfloat16, False) == chosen
    assert len(tried) == (chosen == "triton")


@pytest.mark.parametrize(
    ("reason", "chosen"), [("", "triton"), ("it fails: RuntimeError: Failed to find C compiler", "sdpa")]
)
def test_the_trial_is_announced_and_its_failure_said(reason, chosen, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(triton_trial, "failure_reason", lambda *args, **options: reason)
    with caplog.at_level("INFO", module.__name__):
        assert module._found_out.__wrapped__(torch.device("cuda:0"), torch.bfloat16, True) == chosen
    first, *rest = caplog.messages
    assert first.startswith("attention: compiling and trying the fused kernel for windows of more than 64 tokens")
    assert rest == ([f"attention: the fused kernel is not used, but the slower sdpa: {reason}"] if reason else [])


@pytest.mark.parametrize(
    ("device", "hip", "kernels"),
    [
        ("cpu", None, ["MATH"]),
        ("cuda", None, ["EFFICIENT_ATTENTION"]),
        ("cuda", "6.4", ["EFFICIENT_ATTENTION", "MATH"]),
    ],
)
def test_sdpa_has_a_kernel_to_fall_back_on_where_rocm_lacks_the_fused_one(device, hip, kernels, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    assert [kernel.name for kernel in module._sdpa_kernels(torch.device(device))] == kernels


def test_one_device_by_two_names_is_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(module, "_found_out", lambda device, *case: tried.append(device) or "triton")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for name in ("cuda", "cuda:0"):
        assert resolve_backend("auto", torch.device(name)) == "triton"
    assert tried == [torch.device("cuda:0")] * 2
