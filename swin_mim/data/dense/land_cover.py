"""Land cover of Blue Marble: a class for each pixel, water or one of Koeppen's five climates.

Tiles are 64 x 64 pixels (4.3 degrees) with two classes at least and some land. The longitudes of "train" are those of
`blue_marble`'s training tiles. Each of its held-out blocks is cut in two: the western halves are "validation", the
eastern ones "test"; no tile crosses a border.

Water is what has no climate: of the pixels of these tiles 3 % have one and lie in the sea, 1 % in a lake, as the zones
reach out beyond the coasts and cover lakes (against the shorelines of `islands.py`).
"""

import numpy as np

from swin_mim.data.blue_marble.labels import CLIMATES, LAST_ZONES, SIDE
from swin_mim.data.blue_marble.tiles import (
    BLOCK_PIXELS,
    TileSource,
    block_starts,
    climate_zones,
    sums_over,
    sums_within,
    tile_rows,
    training_columns,
)
from swin_mim.data.dense.masks import Masks
from swin_mim.errors import UserError

CLASSES = ("water", *CLIMATES)
STEP, TEST_STEP = 32, 64
"""Pixels from one tile to the next: training tiles overlap each other, those to evaluate on do not."""
MIN_PART = 0.05
"""Min part of a tile that is not of its most frequent class."""
MIN_LAND = 0.2
"""Min part of a tile that is land."""


class LandCover(Masks):
    """Classes of the pixels of tiles."""

    def __init__(self, tiles: TileSource, corners: np.ndarray) -> None:
        """`corners`, int64 (n, 2), are the top and left pixels of the tiles."""
        self._tiles, self._corners = tiles, corners
        self.fingerprint = tiles.fingerprint

    def __len__(self) -> int:
        return len(self._corners)

    def name(self, index: int) -> str:
        return self._tiles.name(index)

    def read(self, index: int) -> np.ndarray:
        top, left = self._corners[index]
        return land_cover(climate_zones()[top : top + SIDE, left : left + SIDE])


def land_cover(zones: np.ndarray) -> np.ndarray:
    """Climate zones, of which 32 is water -> classes, uint8 of the same shape."""
    return ((np.searchsorted(LAST_ZONES, zones) + 1) % len(CLASSES)).astype(np.uint8)


def open_land_cover(split: str) -> tuple[TileSource, LandCover]:
    """(tiles, classes of their pixels), in a fixed order.

    Raises:
        UserError: another split than train, validation or test, or a package is not installed.
    """
    if split not in ("train", "validation", "test"):
        raise UserError(f"blue_marble with masks has the splits train, validation and test, not {split!r}")
    step = STEP if split == "train" else TEST_STEP
    corners = np.stack(np.meshgrid(tile_rows(step, SIDE), _columns(split), indexing="ij"), axis=-1).reshape(-1, 2)
    cover = land_cover(climate_zones())
    parts = [sums_within(corners, SIDE, sums_over(cover == number)) / SIDE**2 for number in range(len(CLASSES))]
    shares = np.stack(parts, axis=1)
    corners = corners[(shares.max(axis=1) <= 1 - MIN_PART) & (1 - shares[:, 0] >= MIN_LAND)]
    tiles = TileSource(f"{split}, land cover", corners, side=SIDE)
    return tiles, LandCover(tiles, corners)


def _columns(split: str) -> np.ndarray:
    """int64: the left pixels of tiles."""
    if split == "train":
        return training_columns(STEP, SIDE)
    half = BLOCK_PIXELS // 2
    offsets = np.arange(0, half - SIDE + 1, TEST_STEP) + (half if split == "test" else 0)
    return (block_starts()[:, None] + offsets).ravel()
