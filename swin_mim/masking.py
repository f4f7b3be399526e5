"""SimMIM block masks; all masks come from here.

A mask is bool (B, h, w) on the token grid, True = masked (arXiv 2111.09886, section 3.2).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from swin_mim.architecture import SwinConfig
from swin_mim.errors import UserError

_WORD = (1 << 64) - 1
_ROUNDING = 1e-9  # 0.7 x 10 is 7.000000000000001 in floating point: still 7 units


def block_mask(
    batch: int,
    grid: tuple[int, int],
    unit: int,
    ratio: float,
    *,
    seed: int,
    start: int = 0,
    device: torch.device | str = "cpu",
    valid: Tensor | None = None,
) -> Tensor:
    """Mask the same number of randomly chosen square units in every image, or the same share of those that hold pixels.

    Image i's mask is a function of (seed, start + i) and its valid pixels alone: of no global state, batch size,
    process or device.

    Args:
        batch: number of images B.
        grid: tokens (h, w) of one image.
        unit: side, in tokens, of the square that is masked as one.
        ratio: share of units to mask, 0 <= ratio <= 1; exactly ceil(units x ratio) are masked.
        seed: any integer.
        start: position of the first image in the stream of all images.
        device: where the mask is drawn.
        valid: bool (B, H, W) on that device, of any resolution that the units divide, as of pixels: True = there. Units
            where nothing is are never masked, and of the others of an image exactly ceil(others x ratio). None: all.

    Returns:
        bool (B, h, w), True = masked.

    Raises:
        UserError: the unit does not divide the grid, or the ratio is not a share.
    """
    units = _units(grid, unit)
    count, masked = math.prod(units), masked_units(grid, unit, ratio)
    keys = _random_keys(batch, count, seed=seed, start=start, device=device)
    if valid is None:
        chosen = keys.argsort(dim=1, stable=True)[:, :masked]
        mask = torch.zeros(batch, count, dtype=torch.bool, device=device).scatter_(1, chosen, True)
    else:
        mask = _masked_of(keys, _by_unit(valid, units), ratio)
    return pixel_mask(mask.view(batch, *units), unit)  # a unit of tokens, as a token is one of pixels


@dataclass(frozen=True)
class BlockMasks:
    """Block masks of one geometry: a function of seed, position and valid pixels.

    Args:
        grid: tokens (h, w) of one image.
        unit: side, in tokens, of the square that is masked as one.
        ratio: share of units to mask.
        cells: the most cells of the encoder's last stage in which an image is masked.
    """

    grid: tuple[int, int]
    unit: int
    ratio: float
    cells: int

    @classmethod
    def of(cls, config: SwinConfig, *, unit: int, ratio: float) -> "BlockMasks":
        """Masks for the images of an encoder; `unit` is in pixels, a multiple of the patch size."""
        grid, tokens = config.stage_grid(0), unit // config.patch_size
        return cls(grid, tokens, ratio, masked_cells(grid, tokens, ratio, config.stride // config.patch_size))

    def draw(
        self, batch: int, *, seed: int, start: int, device: torch.device | str, valid: Tensor | None = None
    ) -> Tensor:
        """Draw the masks of the images at positions start, start + 1, ...: bool (B, h, w), see `block_mask`."""
        return block_mask(batch, self.grid, self.unit, self.ratio, seed=seed, start=start, device=device, valid=valid)


def pixel_mask(mask: Tensor, patch: int) -> Tensor:
    """bool (B, h, w) on the token grid -> bool (B, h * patch, w * patch) on the pixels."""
    return mask.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)


def masked_units(grid: tuple[int, int], unit: int, ratio: float) -> int:
    """How many units of an image `block_mask` masks."""
    if not 0 <= ratio <= 1:
        raise UserError(f"mask ratio {ratio} must be between 0 and 1")
    return math.ceil(math.prod(_units(grid, unit)) * ratio - _ROUNDING)


def masked_cells(grid: tuple[int, int], unit: int, ratio: float, cell: int) -> int:
    """The most cells of an image, squares of cell x cell tokens, in which `block_mask` masks anything."""
    cells = math.ceil(grid[0] / cell) * math.ceil(grid[1] / cell)
    each = (unit // cell) ** 2 if unit % cell == 0 else 1 if cell % unit == 0 else cells
    return min(cells, each * masked_units(grid, unit, ratio))


def _by_unit(valid: Tensor, units: tuple[int, int]) -> Tensor:
    """bool (B, H, W) -> (B, units): where anything is."""
    height, width = valid.shape[1:]
    assert (height % units[0], width % units[1]) == (0, 0), f"{height}x{width} in {units} units"
    parts = valid.view(len(valid), units[0], height // units[0], units[1], width // units[1])
    return parts.any(4).any(2).flatten(1)


def _masked_of(keys: Tensor, usable: Tensor, ratio: float) -> Tensor:
    """Choose the share `ratio` of the usable units of each image, by smallest key: int64 and bool (B, n) -> bool."""
    last = torch.iinfo(keys.dtype).max
    order = torch.where(usable, keys, last).argsort(dim=1, stable=True)
    count = _masked_counts(keys.shape[1], ratio, keys.device)[usable.sum(1, keepdim=True)]
    first = torch.arange(keys.shape[1], device=keys.device) < count  # (B, n): which ranks are masked
    return torch.zeros_like(usable).scatter_(1, order, first) & usable


@lru_cache(maxsize=8)
def _masked_counts(most: int, ratio: float, device: torch.device) -> Tensor:
    """int64 (most + 1,): how many of each number of units are masked. Counted in Python, as `masked_units` does."""
    return torch.tensor([math.ceil(units * ratio - _ROUNDING) for units in range(most + 1)], device=device)


def _units(grid: tuple[int, int], unit: int) -> tuple[int, int]:
    height, width = grid
    if unit < 1 or height % unit or width % unit or not height or not width:
        raise UserError(f"mask unit of {unit} tokens does not divide the token grid {height}x{width}")
    return height // unit, width // unit


def _random_keys(batch: int, count: int, *, seed: int, start: int, device: torch.device | str) -> Tensor:
    """int64 (batch, count), each a hash of (seed, position, unit).

    A counter-based generator in integer arithmetic, because torch's generators draw other numbers on another
    device and for another batch size.
    """
    positions = torch.arange(start, start + batch, dtype=torch.int64, device=device)
    units = torch.arange(1, count + 1, dtype=torch.int64, device=device)
    stream = _mix(positions ^ _signed(_mix_python(seed & _WORD)))  # (B,)
    return _mix(stream[:, None] + units * _signed(0x9E3779B97F4A7C15))


def _mix(z: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on int64, which wraps like uint64."""
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def _mix_python(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)


def _shift_right(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)  # torch shifts the sign in; a hash needs zeros


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
