"""Window attention for a CPU: a few windows at a time, so that all that lies between input and output stays in a cache.

Registered operators, so that torch.compile keeps them whole. The legend of dimension letters is in `models/swin.py`;
besides, n is the number of windows of an image, m that of a chunk, and t the tokens of one. A row is d numbers: one
head of one token.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from swin_mim.kernels.cpu_attention import complete, scratch
from swin_mim.kernels.window_geometry import Pair, padded, relative_position_index, shift_mask, window_order

CHUNK = 12 << 20
"""Bytes of the rows and scores of a chunk: what the caches of a few cores hold."""


def window_attention(
    qkv: Tensor, table: Tensor, fill: Tensor | None, window: Pair, table_window: Pair, shift: Pair
) -> Tensor:
    """Attention within (shifted) windows.

    Args:
        qkv: (B, h, w, 3, heads, d).
        table: ((2 table_window_h - 1)(2 table_window_w - 1), heads), bias by relative position.
        fill: (3, heads, d), what q, k and v are at padded positions; None: zeros.
        window, table_window, shift: tokens (h, w).

    Returns:
        (B, h, w, heads, d) of qkv's dtype. Products are of that dtype too, scores and softmax fp32, or fp64 with it.
        Nothing else is kept for the backward pass: to keep the probabilities was measured to be no faster than to
        compute them again.
    """
    return _forward(qkv, table, fill, window, table_window, shift)


@torch.library.custom_op("swin_mim::chunked_attention", mutates_args=(), device_types="cpu")
def _forward(
    qkv: Tensor,
    table: Tensor,
    fill: Tensor | None,
    window: Sequence[int],
    table_window: Sequence[int],
    shift: Sequence[int],
) -> Tensor:
    layout = _Layout.of(qkv, window, shift)
    biases = _biases(qkv, table, window, table_window, shift)
    out = qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])
    for images in layout.images(len(qkv)):
        part = qkv[images]
        results = scratch("results", (len(part), *layout.shape), qkv.dtype)
        for windows in layout.slices:
            q, k, v = layout.gather(part, fill, windows)
            probabilities = _probabilities(q, k, layout.bias_of(windows, biases)).to(qkv.dtype)
            _product(probabilities, v, 1.0, results[:, windows])
        layout.scatter(results[None], out[images])
    return out


@torch.library.custom_op("swin_mim::chunked_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    gradient: Tensor,
    qkv: Tensor,
    table: Tensor,
    fill: Tensor | None,
    window: Sequence[int],
    table_window: Sequence[int],
    shift: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, table and fill, of their dtypes; the last is (3, heads, d) without a fill too."""
    layout = _Layout.of(qkv, window, shift)
    biases = _biases(qkv, table, window, table_window, shift)
    scale = qkv.shape[-1] ** -0.5
    to_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    to_bias = torch.zeros_like(biases[0])  # (heads, t, t)
    to_fill = biases.new_zeros(3, *qkv.shape[4:])
    for images in layout.images(len(qkv)):
        part, upstream = qkv[images], gradient[images].unsqueeze(3)
        results = scratch("results", (3, len(part), *layout.shape), qkv.dtype)
        for windows in layout.slices:
            q, k, v = layout.gather(part, fill, windows)
            (to_out,) = layout.gather(upstream, None, windows)
            probabilities = _probabilities(q, k, layout.bias_of(windows, biases))
            to_q, to_k, to_v = results[:, :, windows]
            _product(probabilities.to(qkv.dtype).mT, to_out, 1.0, to_v)
            to_scores = _product(to_out, v.mT, 1.0, scratch("scores", probabilities.shape, qkv.dtype))
            to_scores = to_scores.to(biases.dtype)
            torch._softmax_backward_data(to_scores, probabilities, -1, biases.dtype, grad_input=to_scores)
            to_bias += to_scores.sum(dim=(0, 1))
            to_scores = to_scores.to(qkv.dtype)
            _product(to_scores, k, scale, to_q)
            _product(to_scores.mT, q, scale, to_k)
        layout.scatter(results, to_qkv[images])
        window_index, token = layout.padding
        to_fill += results[:, :, window_index, :, token].sum(dim=(0, 2))
    index = relative_position_index((window[0], window[1]), (table_window[0], table_window[1]))
    to_table = biases.new_zeros(table.shape).index_add_(0, index.flatten(), to_bias.flatten(1).t())
    return to_qkv, to_table.to(table.dtype), to_fill.to(qkv.dtype if fill is None else fill.dtype)


complete("chunked_attention", _forward, _backward)


class _Layout(NamedTuple):
    """How a batch is cut up: several images at a time, or one and that in several slices of its windows."""

    together: int
    """Images at a time."""
    slices: list[slice]
    """Slices of the windows of an image; more than one only with one image at a time."""
    shape: tuple[int, int, int, int]
    """n, heads, t, d."""
    geometry: tuple[Pair, Pair, Pair]
    """Grid, window and shift."""

    @staticmethod
    def of(qkv: Tensor, window: Sequence[int], shift: Sequence[int]) -> "_Layout":
        geometry = (qkv.shape[1], qkv.shape[2]), (window[0], window[1]), (shift[0], shift[1])
        heads, d = qkv.shape[4:]
        n, t = _places(*geometry).shape
        each = 4 * t * heads * (8 * d + 4 * t)  # bytes of a window's rows, in and out, and of its scores
        m = max(1, min(n, CHUNK // each))
        slices = [slice(first, first + m) for first in range(0, n, m)]
        return _Layout(max(1, CHUNK // (each * n)), slices, (n, heads, t, d), geometry)

    def images(self, batch: int) -> list[slice]:
        return [slice(first, first + self.together) for first in range(0, batch, self.together)]

    @property
    def padding(self) -> tuple[Tensor, Tensor]:
        """Window and token of every place outside the grid."""
        return _padding(*self.geometry)

    def bias_of(self, windows: slice, biases: Tensor) -> Tensor:
        """(kinds, heads, t, t) -> (m, heads, t, t), or (1, heads, t, t) if there is but one kind."""
        return biases if len(biases) == 1 else biases[_kinds(*self.geometry[:2])[windows]]

    def gather(self, x: Tensor, fill: Tensor | None, windows: slice) -> Tensor:
        """(b, h, w, k, heads, d) in raster order -> (k, b, m, heads, t, d)."""
        b, _, _, k, heads, d = x.shape
        index = _in_raster(*self.geometry, b, k, heads)[:, :, windows]
        rows = scratch(f"rows {k}", (*index.shape, d), x.dtype)
        torch.index_select(x.reshape(-1, d), 0, index.flatten(), out=rows.view(-1, d))
        window, token = self.padding
        if len(window):
            here = (window >= windows.start) & (window < windows.stop)
            value = rows.new_zeros(()) if fill is None else fill[:, None].to(x.dtype)  # (3, 1, heads, d)
            rows[:, :, window[here] - windows.start, :, token[here]] = value
        return rows

    def scatter(self, rows: Tensor, out: Tensor) -> None:
        """(k, b, n, heads, t, d) -> into (b, h, w, k, heads, d), in raster order; padding is left out."""
        k, b, _, heads, _, d = rows.shape
        index = _in_windows(*self.geometry, b, k, heads)
        torch.index_select(rows.view(-1, d), 0, index, out=out.view(-1, d))


def _biases(
    qkv: Tensor, table: Tensor, window: Sequence[int], table_window: Sequence[int], shift: Sequence[int]
) -> Tensor:
    """(kinds, heads, t, t): bias and mask of each kind of window, as `_kinds` counts them; one kind without shift."""
    sides, table_sides = (window[0], window[1]), (table_window[0], table_window[1])
    table = table.to(torch.float64 if qkv.dtype == torch.float64 else torch.float32)
    bias = table[relative_position_index(sides, table_sides)].permute(2, 0, 1).contiguous()
    if not any(shift):
        return bias[None]
    return bias + shift_mask((2 * sides[0], 2 * sides[1]), sides, (shift[0], shift[1]), bias)[:, None]


def _probabilities(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """q, k (b, m, heads, t, d), bias (m or 1, heads, t, t) -> (b, m, heads, t, t), of bias's dtype."""
    shape = (*q.shape[:-1], q.shape[-2])
    scores = _product(q, k.mT, q.shape[-1] ** -0.5, scratch("scores", shape, q.dtype))
    scores = scores.to(bias.dtype).add_(bias)
    return torch.softmax(scores, dim=-1, out=scratch("probabilities", shape, bias.dtype))


def _product(a: Tensor, b: Tensor, factor: float, out: Tensor) -> Tensor:
    """factor a @ b, (b, m, heads, ., .)."""
    flat = out.flatten(0, 2)
    torch.baddbmm(flat, a.flatten(0, 2), b.flatten(0, 2), beta=0, alpha=factor, out=flat)
    return out


# Where rows lie. All of it depends on few numbers, and is asked for in every forward.

_places = lru_cache(maxsize=32)(window_order)


@lru_cache(maxsize=32)
def _padding(grid: Pair, window: Pair, shift: Pair) -> tuple[Tensor, Tensor]:
    missing_window, missing_token = (_places(grid, window, shift) < 0).nonzero(as_tuple=True)
    return missing_window, missing_token


@lru_cache(maxsize=32)
def _kinds(grid: Pair, window: Pair) -> Tensor:
    """int64 (n,): 2 for windows of the last row + 1 for those of the last column. Only these need a mask."""
    down, right = (size // side for size, side in zip(padded(grid, window), window, strict=True))
    last_row, last_column = torch.arange(down) == down - 1, torch.arange(right) == right - 1
    return (2 * last_row[:, None] + last_column).flatten()


@lru_cache(maxsize=32)
def _in_raster(grid: Pair, window: Pair, shift: Pair, b: int, k: int, heads: int) -> Tensor:
    """int64 (k, b, n, heads, t): which row of (b, h, w, k, heads, d) it is; any for padding."""
    places = _places(grid, window, shift).clamp(min=0)[:, None]  # (n, 1, t)
    image = torch.arange(b)[:, None, None, None] * (grid[0] * grid[1])
    inner = torch.arange(k)[:, None, None, None, None] * heads + torch.arange(heads)[:, None]
    return (image + places) * (k * heads) + inner


@lru_cache(maxsize=32)
def _in_windows(grid: Pair, window: Pair, shift: Pair, b: int, k: int, heads: int) -> Tensor:
    """int64 (b h w k heads,): which row of (k, b, n, heads, t, d) it is."""
    places = _places(grid, window, shift)
    n, t = places.shape
    rows = torch.arange(k * b * n * heads * t).view(k, b, n, heads, t)
    index = torch.empty(b, grid[0] * grid[1], k, heads, dtype=torch.long)
    present = places >= 0
    index[:, places[present]] = rows.permute(1, 2, 4, 0, 3)[:, present]
    return index.flatten()
