"""What patches, windows and stages make of an image size. For `swin-mim doctor`."""

from dataclasses import dataclass, replace

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.errors import UserError
from swin_mim.masking import masked_units
from swin_mim.training.config.pretrain import ModelConfig, PretrainConfig
from swin_mim.training.config.pretrain_checks import swin_config

Pair = tuple[int, int]

WINDOWS = range(4, 17)
"""Sides of windows that are tried."""

_FURTHEST = 4  # times the wished size


@dataclass(frozen=True)
class Stage:
    """One stage; sizes are (rows, columns) of cells."""

    grid: Pair
    channels: int
    heads: int
    depth: int
    window: Pair
    windows: int
    shift: Pair
    """Shift of every second block; (0, 0) where one window covers the grid."""
    padded: Pair
    """The grid that whole windows cover."""
    padding: float
    """Share of the cells that attention computes on and that are padding."""
    halving_pads: bool
    """The grid is odd, and gets a row or a column before the next stage halves it."""


@dataclass(frozen=True)
class Geometry:
    image_size: Pair
    patch: int
    unit: int
    units: int
    masked_units: int
    stages: tuple[Stage, ...]
    windows: tuple[int, ...]
    """Sides of square windows that tile every stage of this size."""

    @property
    def pads(self) -> bool:
        return any(stage.padding or stage.halving_pads for stage in self.stages)


def geometry_of(config: PretrainConfig) -> Geometry:
    """Geometry of a config that passed its checks."""
    swin, unit = swin_config(config.model), config.mask.unit
    height, width = as_pair(swin.image_size)
    return Geometry(
        image_size=(height, width),
        patch=swin.patch_size,
        unit=unit,
        units=(height // unit) * (width // unit),
        masked_units=masked_units(swin.stage_grid(0), unit // swin.patch_size, config.mask.ratio),
        stages=tuple(_stage(swin, number) for number in range(swin.num_stages)),
        windows=tuple(window for window in WINDOWS if _tiles(config.model, window)),
    )


def _stage(swin: SwinConfig, number: int) -> Stage:
    (h, w), window, more = swin.stage_grid(number), swin.stage_window(number), swin.stage_padding(number)
    padded = h + more[0], w + more[1]
    shift = [side // 2 if cells > side else 0 for cells, side in zip((h, w), window, strict=True)]
    return Stage(
        grid=(h, w),
        channels=swin.stage_dim(number),
        heads=swin.num_heads[number],
        depth=swin.depths[number],
        window=window,
        windows=(padded[0] // window[0]) * (padded[1] // window[1]),
        shift=(shift[0], shift[1]),
        padded=padded,
        padding=1 - h * w / (padded[0] * padded[1]),
        halving_pads=number + 1 < swin.num_stages and bool(h % 2 or w % 2),
    )


def near_sizes(config: PretrainConfig) -> tuple[Pair | None, Pair | None]:
    """The next smaller and the next larger image size in which no stage pads, side by side; also of a config that did
    not pass its checks. None if none is in reach."""
    sides = config.model.image_size
    if len(sides) not in (1, 2) or min(sides) <= 0 or config.mask.unit <= 0:
        return None, None
    return _neighbour(config, -1), _neighbour(config, 1)


def _neighbour(config: PretrainConfig, direction: int) -> Pair | None:
    height, width = (_neighbouring_side(config.model, config.mask.unit, direction, axis) for axis in (0, 1))
    return None if height is None or width is None else (height, width)


def _neighbouring_side(model: ModelConfig, unit: int, direction: int, axis: int) -> int | None:
    wished = as_pair(model.image_size)[axis]
    side = (wished // unit + 1 if direction > 0 else (wished - 1) // unit) * unit
    while unit <= side <= _FURTHEST * wished:
        try:
            swin = swin_config(replace(model, image_size=(side,)))
        except UserError:
            return None
        if not any(_pads(swin, number, axis) for number in range(swin.num_stages)):
            return side
        side += direction * unit
    return None


def _pads(swin: SwinConfig, number: int, axis: int) -> bool:
    odd = number + 1 < swin.num_stages and swin.stage_grid(number)[axis] % 2
    return bool(swin.stage_padding(number)[axis] or odd)


def _tiles(model: ModelConfig, window: int) -> bool:
    swin = swin_config(replace(model, window_size=(window,)))
    return not any(any(swin.stage_padding(number)) for number in range(swin.num_stages))
