"""Which token lies where: windows, their cyclic shift, and the relative positions in them (arXiv 2103.14030, 3.2)."""

import math

import torch
from torch import Tensor

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


def padded(grid: Pair, window: Pair) -> Pair:
    """The grid, rounded up to whole windows."""
    height, width = (math.ceil(g / w) * w for g, w in zip(grid, window, strict=True))
    return height, width


def window_order(grid: Pair, window: Pair, shift: Pair) -> Tensor:
    """int64 (n, t): for the tokens of each window the place in the raster, y * grid_w + x; -1 where it is padding."""
    size = padded(grid, window)
    y, x = ((torch.arange(length) + s) % length for length, s in zip(size, shift, strict=True))
    place = torch.where((y < grid[0])[:, None] & (x < grid[1]), y[:, None] * grid[1] + x, -1)
    return _by_window(place, window)


def shift_mask(size: Pair, window: Pair, shift: Pair, like: Tensor) -> Tensor:
    """(n, t, t), of `like`'s dtype and device: 0 where two tokens of a shifted window lie side by side in the image.

    The cyclic shift brings the first rows and columns to the end, where they share windows with the last ones.
    """
    region_h, region_w = (
        (torch.arange(length, device=like.device) >= length - w).long()
        + (torch.arange(length, device=like.device) >= length - s).long()
        for length, w, s in zip(size, window, shift, strict=True)
    )
    region = _by_window(3 * region_h[:, None] + region_w, window)
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros_like(apart, dtype=like.dtype).masked_fill_(apart, MASKED_SCORE)


def relative_position_index(window: Pair, table_window: Pair, device: torch.device | None = None) -> Tensor:
    """int64 (t, t): for each pair of tokens of a window, the row of a bias table made for `table_window`."""
    down, right = (torch.arange(side, device=device) for side in window)
    offset_h = down[:, None] - down[None, :] + table_window[0] - 1  # (window_h, window_h)
    offset_w = right[:, None] - right[None, :] + table_window[1] - 1  # (window_w, window_w)
    index = offset_h[:, None, :, None] * (2 * table_window[1] - 1) + offset_w[None, :, None, :]
    return index.reshape(window[0] * window[1], window[0] * window[1])


def relative_coordinates(window: Pair, measure: Pair) -> Tensor:
    """fp32 (2h - 1, 2w - 1, 2) on the CPU: the relative positions of a window, down and right, as the network of Swin
    V2's position bias sees them (arXiv 2111.09883, 3.3): sign(x) log2(1 + |8x|) / log2(8), x being 1 at the far end.

    Args:
        measure: the window at whose far end x is 1, by side; 0: this window.
    """
    sides = (
        torch.arange(1 - side, side, dtype=torch.float32, device="cpu") / max((measured or side) - 1, 1)
        for side, measured in zip(window, measure, strict=True)
    )
    x = 8 * torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1)
    return x.sign() * torch.log2(x.abs() + 1) / math.log2(8)


def _by_window(x: Tensor, window: Pair) -> Tensor:
    """(h, w) -> (n, t)."""
    x = x.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0]))  # (nh, wh, nw, ww)
    return x.transpose(1, 2).flatten(2).flatten(0, 1)
