"""Whether the fused kernel is right on a device: tried out there, before `auto` picks it."""

from importlib.util import find_spec

import torch
from torch import Tensor

from swin_mim.kernels.window_geometry import Pair
from swin_mim.models.window_attention import Backend, window_attention

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Of the largest value, against float64."""
WINDOWS: tuple[Pair, ...] = ((6, 6), (12, 12))
"""Each of them takes kernels of its own."""
NAMES = ("output", "gradient of qkv", "gradient of the bias table", "gradient of the padding")


def failure_reason(device: torch.device) -> str:
    """Why not to use the kernel on a device; empty if all is well. Whatever mode the caller is in does not matter."""
    if find_spec("triton") is None:
        return "triton is not installed"
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for window in WINDOWS:
            for dtype in TOLERANCES:
                found = _difference(device, window, dtype)
                if found:
                    return f"with windows of {window[0]} x {window[1]} tokens in {dtype} {found}"
    return ""


def _difference(device: torch.device, window: Pair, dtype: torch.dtype) -> str:
    """One forward and backward pass, padded and shifted."""
    generator = torch.Generator(device).manual_seed(0)
    entries = (2 * window[0] - 1) * (2 * window[1] - 1)
    shapes = (
        (1, window[0] + 3, window[1] + 1, 3, 2, 32),
        (entries, 2),
        (3, 2, 32),
        (1, window[0] + 3, window[1] + 1, 2, 32),
    )
    qkv, table, fill, upstream = (torch.randn(shape, device=device, generator=generator).to(dtype) for shape in shapes)
    exact = [x.double() for x in (qkv, table, fill, upstream)]
    try:
        ours = _results("triton", window, qkv, table, fill, upstream)
    except Exception as error:  # a compiler's complaint can be anything
        return f"it fails: {type(error).__name__}: {error}"
    for name, got, expected in zip(NAMES, ours, _results("reference", window, *exact), strict=True):
        off = ((got.double() - expected).abs().max() / expected.abs().max()).item()
        if not off <= TOLERANCES[dtype]:
            return f"its {name} is off by {off:.1e} of the largest value"
    return ""


def _results(
    backend: Backend, window: Pair, qkv: Tensor, table: Tensor, fill: Tensor, upstream: Tensor
) -> tuple[Tensor, ...]:
    leaves = [x.requires_grad_() for x in (qkv, table, fill)]
    shift = (window[0] // 2, window[1] // 2)
    out = window_attention(qkv, table, window=window, table_window=window, shift=shift, fill=fill, backend=backend)
    return (out, *torch.autograd.grad(out, leaves, upstream))
