"""Compares the fused kernel with the reference on a device, before `auto` picks it."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from swin_mim.kernels.window_geometry import Pair

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference from float64, relative to the largest value."""
ONE_TILE, WIDE = (6, 6), (12, 12)
"""Windows (h, w) of up to `WHOLE` tokens, and of more: each takes kernels of its own, which compile for a minute."""
NAMES = ("output", "gradient of qkv", "gradient of the bias table", "gradient of the padding")


def failure_reason(
    device: torch.device, attention: Callable[..., Tensor], dtype: torch.dtype, *, wide: bool = False
) -> str:
    """Say why not to use the kernel on a device; empty if all is well, whatever mode the caller is in.

    Args:
        attention: `window_attention`, with the backends "triton" and "reference".
        dtype: of qkv; fp32, bf16 or fp16.
        wide: of windows of more than `WHOLE` tokens.
    """
    if find_spec("triton") is None:
        return "triton is not installed"
    window = WIDE if wide else ONE_TILE
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        found = _difference(device, attention, window, dtype)
    return f"with windows of {window[0]} x {window[1]} tokens in {dtype} {found}" if found else ""


def _difference(device: torch.device, attention: Callable[..., Tensor], window: Pair, dtype: torch.dtype) -> str:
    """Compare one forward and backward pass, padded and shifted."""
    generator = torch.Generator(device).manual_seed(0)
    entries = (2 * window[0] - 1) * (2 * window[1] - 1)
    shapes = (
        (1, window[0] + 3, window[1] + 1, 3, 2, 32),
        (entries, 2),
        (3, 2, 32),
        (1, window[0] + 3, window[1] + 1, 2, 32),
    )
    qkv, table, fill, upstream = (torch.randn(shape, device=device, generator=generator).to(dtype) for shape in shapes)
    inputs = (qkv, table, fill)
    try:
        ours = _results(attention, "triton", window, inputs, upstream)
    except Exception as error:  # a compiler's complaint can be anything
        return f"it fails: {type(error).__name__}: {error}"
    exact = _results(attention, "reference", window, tuple(x.double() for x in inputs), upstream.double())
    for name, got, expected in zip(NAMES, ours, exact, strict=True):
        off = ((got.double() - expected).abs().max() / expected.abs().max()).item()
        if not off <= TOLERANCES[dtype]:
            return f"its {name} is off by {off:.1e} of the largest value"
    return ""


def _results(
    attention: Callable[..., Tensor], backend: str, window: Pair, inputs: tuple[Tensor, ...], upstream: Tensor
) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    qkv, table, fill = leaves
    shift = (window[0] // 2, window[1] // 2)
    out = attention(qkv, table, window=window, table_window=window, shift=shift, fill=fill, backend=backend)
    return (out, *torch.autograd.grad(out, leaves, upstream))
