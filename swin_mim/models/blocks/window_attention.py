"""Shifted-window attention on tokens in raster order (Swin, arXiv 2103.14030, section 3.2).

One function with several backends. Padding, cyclic shift and partition into windows happen in here: the kernels do
them by index arithmetic. The legend of dimension letters is in `swin.py`; besides, n is the number of windows of an
image and t = window_h x window_w the tokens of one window.
"""

import logging
import math
import os
from functools import cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from swin_mim.errors import UserError
from swin_mim.kernels import chunked_attention, graph_windows
from swin_mim.kernels.cosine import cosine
from swin_mim.kernels.native import attention as native_attention
from swin_mim.kernels.window_geometry import Pair, padded, relative_position_index, shift_mask, window_geometry
from swin_mim.kernels.window_plan import MOST_CHANNELS, MOST_TOKENS, WHOLE

Backend = Literal["auto", "reference", "sdpa", "chunked", "native", "triton"]

TENSOR_CORES = (8, 0)
"""Compute capability from which on Triton multiplies by tensor cores. Before it, on a T4 or V100, the kernels compile
to plain arithmetic that spills its registers."""

_LOG = logging.getLogger(__name__)


def window_attention(
    qkv: Tensor,
    table: Tensor,
    *,
    window: Pair,
    table_window: Pair,
    shift: Pair = (0, 0),
    fill: Tensor | None = None,
    scale: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Attention within (shifted) windows.

    Args:
        qkv: (B, h, w, 3, heads, d) queries, keys and values in raster order. In one tensor, because so is their
            gradient: three would have to be put together again.
        table: ((2 table_h - 1)(2 table_w - 1), heads) bias by relative position, added to the scaled scores.
        window: tokens (h, w) of a window. A grid that it does not divide is padded at the bottom and right.
        table_window: the window that the table was made for, at least as large; of a larger one the centre is used.
        shift: cyclic shift (h, w) of the windows, less than the window.
        fill: (3, heads, d), what q, k and v are at padded positions: the bias of the projection, because padding
            comes before it. None: zeros.
        scale: fp32 or fp64 (heads, 1): scores are cosines times this, as in Swin V2. None: products over sqrt(d).
        backend: as in `resolve_backend`.

    Returns:
        (B, h, w, heads, d), of qkv's dtype.
    """
    chosen = resolve_backend(backend, qkv.device, window[0] * window[1], qkv.shape[-1], qkv.dtype)
    if chosen == "native":
        return native_attention.window_attention(qkv, table, fill, scale, window, table_window, shift)
    if scale is not None:
        scale = scale * math.sqrt(qkv.shape[-1])  # by which all of them divide
        qkv, fill = cosine(qkv, scale), None if fill is None else cosine(fill, scale)
    if chosen == "triton":
        from swin_mim.kernels import triton_attention

        return triton_attention.window_attention(qkv, table, fill, window, table_window, shift)
    if chosen == "chunked":
        return chunked_attention.window_attention(qkv, table, fill, window, table_window, shift)
    height, width = qkv.shape[1:3]
    size = padded((height, width), window)
    q, k, v = _to_windows(_shift(_pad(qkv, size, fill), shift), window).unbind(2)  # (B, n, heads, t, d)
    bias = table[relative_position_index(window, table_window, table.device)].permute(2, 0, 1)
    if any(shift):
        bias = bias + shift_mask(size, window, shift, bias)[:, None]  # (n, heads, t, t)
    out = (_sdpa if chosen == "sdpa" else _reference)(q, k, v, bias)
    out = _shift(_from_windows(out, size, window), (-shift[0], -shift[1]))
    return out[:, :height, :width]


def grid_attention(
    qkv: Tensor,
    table: Tensor,
    *,
    window: Pair,
    shifted: bool,
    fill: Tensor | None,
    scale: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Attention within the windows that the grid of qkv gets (`window_geometry`), shifted by half of one or not.

    While a graph is made for a file, it is one of operations that every runtime has, for grids of any size, whatever
    the backend: kernels of ours are no part of a graph, and a graph cannot choose windows by looking at a grid.

    Args:
        window: of the table.
        qkv, table, fill, scale, backend: as in `window_attention`.
    """
    if graph_windows.is_exporting():
        return graph_windows.window_attention(qkv, table, window=window, shifted=shifted, fill=fill, scale=scale)
    chosen, shift = window_geometry((qkv.shape[1], qkv.shape[2]), window, shifted)
    return window_attention(
        qkv, table, window=chosen, table_window=window, shift=shift, fill=fill, scale=scale, backend=backend
    )


def resolve_backend(
    backend: Backend, device: torch.device, tokens: int = 1, channels: int = 1, dtype: torch.dtype = torch.float32
) -> Backend:
    """What runs on a device, for windows of so many tokens and heads of so many channels.

    reference   plain tensor operations, on any device
    sdpa        torch's fused attention, with the one kernel that takes a trainable bias on that device
    chunked     a few windows at a time, for CPUs
    native      compiled C++ for CPUs, in fp32 and bf16
    triton      one kernel for everything, for CUDA devices
    auto        native on a CPU in fp32 and bf16, if it can be compiled there and gives what chunked gives, and
                otherwise chunked with a warning; chunked too for other dtypes. On CUDA triton, if it gives there what
                the reference gives, and otherwise sdpa with a warning; sdpa too for what the kernel is not written
                for, and on GPUs older than `TENSOR_CORES`. reference on other devices.

    Raises:
        UserError: no such backend, one of another device, or native where it cannot be compiled or not in this dtype.
    """
    if backend not in get_args(Backend):
        raise UserError(f"attention is {backend!r}: expected one of {', '.join(get_args(Backend))}")
    only_on = {"chunked": "cpu", "native": "cpu", "triton": "cuda"}.get(backend, device.type)
    interpreted = backend == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if only_on != device.type and not interpreted:
        raise UserError(f"attention {backend} runs on {only_on} only, and this is {device.type}: use auto")
    if backend == "native" and (reason := _native_fails(dtype)):
        raise UserError(f"attention native cannot be used here: {reason}. Take chunked")
    if backend != "auto":
        return backend
    fits = tokens <= MOST_TOKENS and channels <= MOST_CHANNELS and dtype != torch.float64
    if device.type == "cuda" and not fits:
        return "sdpa"
    return _automatic(device, dtype, tokens > WHOLE)


def _automatic(device: torch.device, dtype: torch.dtype, wide: bool) -> Backend:
    if device.type == "cpu":
        return _on_cpu() if dtype in native_attention.TOLERANCES else "chunked"
    if device.type != "cuda":
        return "reference"
    # a device without a number is one with a number by another name
    return _found_out(
        torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index), dtype, wide
    )


def _native_fails(dtype: torch.dtype) -> str:
    """Why native is not to be used in a dtype of qkv; empty if it is."""
    if dtype not in native_attention.TOLERANCES:
        return f"it computes in {' and '.join(map(str, native_attention.TOLERANCES))}, not in {dtype}"
    return native_attention.failure_reason()


# as torch.compiler.assume_constant_result would do, if it did not import all of dynamo for it, 80 MB and a second
_automatic._dynamo_marked_constant = True  # type: ignore[attr-defined]
_native_fails._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _on_cpu() -> Backend:
    reason = native_attention.failure_reason()
    if reason:
        _LOG.warning("attention: the compiled kernel is not used, but the slower chunked: %s", reason)
    return "chunked" if reason else "native"


@cache
def _found_out(device: torch.device, dtype: torch.dtype, wide: bool) -> Backend:
    """For a CUDA device, a dtype of qkv, and windows of up to `WHOLE` tokens or wide ones: what differs is compiled."""
    if not torch.version.hip and torch.cuda.get_device_capability(device) < TENSOR_CORES:
        return "sdpa"
    from swin_mim.models.blocks import triton_trial

    size = f"more than {WHOLE}" if wide else f"up to {WHOLE}"
    _LOG.info("attention: compiling and trying the fused kernel for windows of %s tokens in %s", size, dtype)
    failure_reason = triton_trial.failure_reason(device, window_attention, dtype, wide=wide)
    if failure_reason:
        _LOG.warning("attention: the fused kernel is not used, but the slower sdpa: %s", failure_reason)
    return "sdpa" if failure_reason else "triton"


def _reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """q, k, v (B, n, heads, t, d), bias (heads, t, t) or (n, heads, t, t) -> (B, n, heads, t, d)."""
    scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).to(bias.dtype)
    scores += bias
    return scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """As `_reference`. The bias is written out for every window: fused kernels have one batch axis."""
    batch, windows = q.shape[:2]
    bias = bias.to(q.dtype).expand(batch, windows, *bias.shape[-3:])
    with sdpa_kernel(_sdpa_kernels(q.device)):
        out = F.scaled_dot_product_attention(
            q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=bias.flatten(0, 1)
        )
    return out.unflatten(0, (batch, windows))


def _sdpa_kernels(device: torch.device) -> list[SDPBackend]:
    # cuDNN and flash refuse a bias that needs a gradient, and cuDNN has returned NaN with one: never let torch choose.
    if device.type != "cuda":
        return [SDPBackend.MATH]
    # not every GPU that ROCm drives has the first one
    return [SDPBackend.EFFICIENT_ATTENTION, *([SDPBackend.MATH] if torch.version.hip else [])]


def _pad(x: Tensor, size: Pair, fill: Tensor | None) -> Tensor:
    """(B, h, w, 3, heads, d) -> (B, H, W, 3, heads, d), new rows and columns holding `fill`."""
    bottom, right = size[0] - x.shape[1], size[1] - x.shape[2]
    if not bottom and not right:
        return x
    if fill is None:
        return F.pad(x, (0, 0, 0, 0, 0, 0, 0, right, 0, bottom))
    fill = fill.to(x.dtype)
    x = torch.cat([x, fill.expand(*x.shape[:2], right, *fill.shape)], dim=2)
    return torch.cat([x, fill.expand(x.shape[0], bottom, x.shape[2], *fill.shape)], dim=1)


def _shift(x: Tensor, shift: Pair) -> Tensor:
    """Roll (B, h, w, ...) up and left by `shift`."""
    return torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2)) if any(shift) else x


def _to_windows(x: Tensor, window: Pair) -> Tensor:
    """(B, h, w, 3, heads, d) -> (B, n, 3, heads, t, d)."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))  # (B, nh, wh, nw, ww, 3, heads, d)
    return x.permute(0, 1, 3, 5, 6, 2, 4, 7).flatten(5, 6).flatten(1, 2)


def _from_windows(x: Tensor, size: Pair, window: Pair) -> Tensor:
    """(B, n, heads, t, d) -> (B, h, w, heads, d)."""
    x = x.unflatten(3, window).unflatten(1, (size[0] // window[0], size[1] // window[1]))  # (B,nh,nw,heads,wh,ww,d)
    return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)
