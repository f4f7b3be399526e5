"""Shifted-window attention on tokens in raster order (Swin, arXiv 2103.14030, section 3.2).

Padding, cyclic shift and partition into windows happen in here, so that a fused kernel can replace them by index
arithmetic. The legend of dimension letters is in `swin.py`; besides, n is the number of windows of an image and
t = window_h x window_w the tokens of one window.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from swin_mim.errors import UserError

Backend = Literal["auto", "reference", "sdpa"]
Pair = tuple[int, int]

MASKED_SCORE = -100.0
"""Added to the score of two tokens that are neighbours only through the cyclic shift, as the official code does."""


def window_geometry(grid: Pair, window: Pair, shifted: bool) -> tuple[Pair, Pair]:
    """The window and the shift that a grid really gets, each per dimension.

    grid <= window: one window over the whole grid, no shift. Otherwise the configured window, shifted by half.
    """
    sides = [(g, 0) if g <= w else (w, w // 2 if shifted else 0) for g, w in zip(grid, window, strict=True)]
    (window_h, shift_h), (window_w, shift_w) = sides
    return (window_h, window_w), (shift_h, shift_w)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    window: Pair,
    shift: Pair = (0, 0),
    fill: Sequence[Tensor] | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Attention within (shifted) windows.

    Args:
        q, k, v: (B, h, w, heads, d) in raster order; any strides.
        bias: (heads, t, t) relative position bias, added to the scaled scores.
        window: tokens (h, w) of a window. A grid that it does not divide is padded at the bottom and right.
        shift: cyclic shift (h, w) of the windows, less than the window.
        fill: what q, k and v are at padded positions, each (heads, d): the bias of the projection, because padding
            comes before it. None: zeros.
        backend: "reference" is plain tensor operations. "sdpa" is torch's fused attention, with the one kernel that
            takes a trainable bias on that device. "auto" is sdpa on CUDA and reference elsewhere.

    Returns:
        (B, h, w, heads, d), of q's dtype.
    """
    height, width = q.shape[1:3]
    size = (_round_up(height, window[0]), _round_up(width, window[1]))
    fills = fill or (None, None, None)
    q, k, v = (
        _to_windows(_shift(_pad(x, size, f), shift), window) for x, f in zip((q, k, v), fills, strict=True)
    )  # (B, n, heads, t, d)
    if any(shift):
        bias = bias + shift_mask(size, window, shift, bias)[:, None]  # (n, heads, t, t)
    attend = _sdpa if resolve_backend(backend, q.device) == "sdpa" else _reference
    out = attend(q, k, v, bias)
    out = _shift(_from_windows(out, size, window), (-shift[0], -shift[1]))
    return out[:, :height, :width]


def resolve_backend(backend: Backend, device: torch.device) -> Literal["reference", "sdpa"]:
    """What "auto" means on a device."""
    if backend not in get_args(Backend):
        raise UserError(f"attention is {backend!r}: expected one of {', '.join(get_args(Backend))}")
    if backend != "auto":
        return backend
    return "sdpa" if device.type == "cuda" else "reference"


def shift_mask(size: Pair, window: Pair, shift: Pair, like: Tensor) -> Tensor:
    """(n, t, t), of `like`'s dtype and device: 0 where two tokens of a shifted window lie side by side in the image.

    The cyclic shift brings the first rows and columns to the end, where they share windows with the last ones.
    """
    region_h, region_w = (
        (torch.arange(length, device=like.device) >= length - w).long()
        + (torch.arange(length, device=like.device) >= length - s).long()
        for length, w, s in zip(size, window, shift, strict=True)
    )
    region = 3 * region_h[:, None] + region_w[None, :]  # (h, w)
    region = _to_windows(region[None, :, :, None, None], window).flatten(0, 1).flatten(1)  # (n, t)
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros_like(apart, dtype=like.dtype).masked_fill_(apart, MASKED_SCORE)


def _reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """q, k, v (B, n, heads, t, d), bias (heads, t, t) or (n, heads, t, t) -> (B, n, heads, t, d)."""
    scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).to(bias.dtype)
    scores += bias
    return scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """As `_reference`. The bias is written out for every window: fused kernels have one batch axis."""
    batch, windows = q.shape[:2]
    # cuDNN and flash refuse a bias that needs a gradient, and cuDNN has returned NaN with one: never let torch choose.
    kernel = SDPBackend.EFFICIENT_ATTENTION if q.is_cuda else SDPBackend.MATH
    bias = bias.to(q.dtype).expand(batch, windows, *bias.shape[-3:])
    with sdpa_kernel(kernel):
        out = F.scaled_dot_product_attention(
            q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=bias.flatten(0, 1)
        )
    return out.unflatten(0, (batch, windows))


def _round_up(length: int, multiple: int) -> int:
    return math.ceil(length / multiple) * multiple


def _pad(x: Tensor, size: Pair, fill: Tensor | None) -> Tensor:
    """(B, h, w, heads, d) -> (B, H, W, heads, d), new rows and columns holding `fill`."""
    bottom, right = size[0] - x.shape[1], size[1] - x.shape[2]
    if not bottom and not right:
        return x
    if fill is None:
        return F.pad(x, (0, 0, 0, 0, 0, right, 0, bottom))
    fill = fill.to(x.dtype)
    x = torch.cat([x, fill.expand(*x.shape[:2], right, *fill.shape)], dim=2)
    return torch.cat([x, fill.expand(x.shape[0], bottom, x.shape[2], *fill.shape)], dim=1)


def _shift(x: Tensor, shift: Pair) -> Tensor:
    """Roll (B, h, w, ...) up and left by `shift`."""
    return torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2)) if any(shift) else x


def _to_windows(x: Tensor, window: Pair) -> Tensor:
    """(B, h, w, heads, d) -> (B, n, heads, t, d)."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))  # (B, nh, wh, nw, ww, heads, d)
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(1, 2)


def _from_windows(x: Tensor, size: Pair, window: Pair) -> Tensor:
    """(B, n, heads, t, d) -> (B, h, w, heads, d)."""
    x = x.unflatten(3, window).unflatten(1, (size[0] // window[0], size[1] // window[1]))  # (B,nh,nw,heads,wh,ww,d)
    return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)
