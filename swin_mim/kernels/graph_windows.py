"""Windows for graphs that are written to files: of a grid whose size is known only when the graph runs.

A graph holds one branch of everything, so nothing here asks how large a grid is: sizes go into index arithmetic on
tensors, and one gather by index does padding, cyclic shift and partition. The sizes are numbers, symbols of
torch.export or tensors of a trace: they are added, multiplied and floor-divided, and never compared with each other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from swin_mim.kernels.cosine import cosine
from swin_mim.kernels.window_geometry import MASKED_SCORE, Pair, relative_position_index


def is_exporting() -> bool:
    """Whether what is computed now becomes a graph in a file: under torch.export (also for ONNX) or torch.jit.trace."""
    if torch.compiler.is_exporting():
        return True
    # while torch.compile compiles, the second question would break its graph in two
    return not torch.compiler.is_compiling() and torch.jit.is_tracing()


_SHARED: ContextVar[dict[tuple[str, ...], "_Windows"] | None] = ContextVar("_SHARED", default=None)


@contextmanager
def shared_windows() -> Iterator[None]:
    """Cut every grid up once in this block, in which one forward is to be exported: a smaller graph, sooner made."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


class _Windows(NamedTuple):
    """A grid cut into windows, (shifted) or not."""

    number: int
    order: Tensor
    """int64 (n t,): for each place of each window its row in what `_padded` gives."""
    back: Tensor
    """int64 (h w,): the place of each token in that order."""
    mask: Tensor
    """float (n, 1, 1 or t, t): what is added to the scores."""


class _Side(NamedTuple):
    """One dimension of a grid, cut into windows as by `window_geometry` and `padded`.

    A grid no larger than the window is one window of its own size there. Here it is a whole window, whose keys beyond
    the grid nobody sees: relative positions, and with them the bias, are the same.
    """

    length: int
    window: int
    number: int
    """Windows."""
    shift: int
    place: Tensor
    """int64 (number, window): where in the grid a place of a window comes from; from `length` on it is padding."""
    region: Tensor
    """int64 (number, window): 0, 1 or 2, different for what only the cyclic shift made neighbours."""

    @classmethod
    def of(cls, length: int, window: int, shifted: bool, device: torch.device) -> "_Side":
        count = _symbol((length + window - 1) // window)
        several = 1 - 1 // count  # 0 for one window, else 1
        shift, size = (window // 2 if shifted else 0) * several, count * window
        rolled = torch.arange(count, device=device)[:, None] * window + torch.arange(window, device=device)
        place = rolled + shift
        place = place - (place >= size).long() * size
        region = (rolled >= size - window).long() + (rolled >= size - shift).long()
        return cls(length, window, count, shift, place, region)

    def inside(self) -> Tensor:
        """bool (number, window): whether a place is in the grid."""
        return self.place < self.length

    def seen(self) -> Tensor:
        """bool (number, window): whether keys are seen: all of them, but the padding of a lone window."""
        return self.place < self.length + (1 - 1 // self.number) * self.number * self.window

    def back(self) -> tuple[Tensor, Tensor]:
        """int64 (length,) twice: the window of each row of the grid, and its place in there."""
        rolled = torch.arange(self.length, device=self.place.device) - self.shift
        rolled = rolled + (rolled < 0).long() * (self.number * self.window)
        number = rolled // self.window
        return number, rolled - number * self.window


def window_attention(
    qkv: Tensor,
    table: Tensor,
    *,
    window: Pair,
    shifted: bool,
    fill: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Attention within (shifted) windows of any grid.

    Args:
        qkv: (B, h, w, 3, heads, d).
        table: ((2 window_h - 1)(2 window_w - 1), heads).
        window: tokens (h, w) that the table was made for; what a grid really gets is `window_geometry`'s choice.
        shifted: by half a window.
        fill, scale: as of `models.blocks.window_attention.window_attention`.

    Returns:
        (B, h, w, heads, d).
    """
    batch, height, width, _, heads, channels = qkv.shape
    if scale is not None:
        scale = scale * channels**0.5  # by which all of them divide
        qkv, fill = cosine(qkv, scale), None if fill is None else cosine(fill, scale)
    windows, tokens = _windows((height, width), window, shifted, qkv), window[0] * window[1]
    x = _padded(qkv.flatten(3), None if fill is None else fill.flatten()).index_select(1, windows.order)
    q, k, v = x.reshape(batch, windows.number, tokens, 3, heads, channels).permute(3, 0, 1, 4, 2, 5).unbind(0)
    bias = table[relative_position_index(window, window, table.device).flatten()]
    bias = bias.reshape(tokens, tokens, heads).permute(2, 0, 1)
    scores = (q * channels**-0.5) @ k.transpose(-2, -1) + bias + windows.mask
    x = scores.softmax(dim=-1) @ v  # (B, n, heads, t, d)
    x = x.permute(0, 1, 3, 2, 4).reshape(batch, windows.number * tokens, heads * channels)
    return x.index_select(1, windows.back).reshape(batch, height, width, heads, channels)


def by_fours(x: Tensor) -> Tensor:
    """(B, h, w, D) -> (B, ceil(h/2), ceil(w/2), 4D), as `models.blocks.v1.by_fours`."""
    batch, height, width, channels = x.shape
    rows, columns = (_Side.of(length, 2, False, x.device) for length in (height, width))
    order = _order(rows, columns).reshape(-1, 2, 2).transpose(1, 2)  # down before right
    x = _padded(x, None).index_select(1, order.flatten())
    return x.reshape(batch, rows.number, columns.number, 4 * channels)


def _windows(grid: Pair, window: Pair, shifted: bool, like: Tensor) -> _Windows:
    """The windows of a grid; the mask is of `like`'s dtype, and all of its device."""
    known, key = _SHARED.get(), (*map(str, (*grid, *window, shifted)),)
    if torch.jit.is_tracing():  # whose sizes are tensors, and no names of themselves
        known = None
    if known is not None and key in known:
        return known[key]
    rows, columns = (_Side.of(length, side, shifted, like.device) for length, side in zip(grid, window, strict=True))
    order, back = _order(rows, columns).flatten(), _back(rows, columns).flatten()
    windows = _Windows(rows.number * columns.number, order, back, _mask(rows, columns, shifted, like.dtype))
    if known is not None:
        known[key] = windows
    return windows


def _symbol(size: int) -> int:
    """The same number; for torch.export a symbol of its own, as formulas of formulas of symbols take it minutes."""
    if not isinstance(size, torch.SymInt):
        return size
    symbol = torch.scalar_tensor(size, dtype=torch.int64).item()
    torch._check(symbol >= 1)
    return symbol


def _padded(x: Tensor, fill: Tensor | None) -> Tensor:
    """(B, h, w, D), (D,) -> (B, 1 + hw, D): first what stands for padding, zeros without `fill`."""
    x = x.flatten(1, 2)
    first = torch.zeros_like(x[:, :1])
    if fill is not None:
        first = first + fill.to(x.dtype)
    return torch.cat([first, x], dim=1)


def _order(rows: _Side, columns: _Side) -> Tensor:
    """int64 (nh, nw, window_h, window_w): for each place of a window its row in what `_padded` gives."""
    place = 1 + rows.place[:, None, :, None] * columns.length + columns.place[None, :, None, :]
    return place * (rows.inside()[:, None, :, None] & columns.inside()[None, :, None, :]).long()


def _back(rows: _Side, columns: _Side) -> Tensor:
    """int64 (h, w): the place of each token in the order of the windows."""
    (down, y), (right, x) = rows.back(), columns.back()
    number = down[:, None] * columns.number + right
    return (number * rows.window + y[:, None]) * columns.window + x


def _mask(rows: _Side, columns: _Side, shifted: bool, dtype: torch.dtype) -> Tensor:
    """(n, 1, 1 or t, t): what is added to the scores."""
    tokens = rows.window * columns.window
    seen = (rows.seen()[:, None, :, None] & columns.seen()[None, :, None, :]).reshape(-1, 1, 1, tokens)
    mask = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, float("-inf"))
    if not shifted:
        return mask
    region = (3 * rows.region[:, None, :, None] + columns.region[None, :, None, :]).reshape(-1, 1, tokens)
    apart = region[..., :, None] != region[..., None, :]
    return mask + torch.zeros_like(apart, dtype=dtype).masked_fill(apart, MASKED_SCORE)
