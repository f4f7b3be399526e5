"""The work of a process that cuts: some rows of tiles of a scene, read window by window."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.multichannel import find_channel, valid_pixels
from swin_mim.data.packing.orphans import end_with
from swin_mim.data.sampling import Place
from swin_mim.data.scenes.find import SceneFiles
from swin_mim.data.scenes.open import open_scene, refusals
from swin_mim.data.scenes.scene import Scene, Window
from swin_mim.data.tiling.grid import starts, tile_name
from swin_mim.data.tiling.manifest import SceneTiles
from swin_mim.data.tiling.options import TileOptions
from swin_mim.data.tiling.tile_files import tile_content, tile_suffix
from swin_mim.files import replacing

_WINDOW = 2**27
"""Bytes of the pixels that are read at a time, if not a single tile has more."""
_ROWS = 4
"""Rows of tiles, and of the strips or tiles of a file, in a block at least: those at its edges are decoded twice."""


class Done(NamedTuple):
    """What became of a block."""

    tiles: SceneTiles
    reason: str = ""
    """Not empty: the scene is broken."""
    failure: tuple[int, str] | None = None
    """(number, text) of the error of a disk that did not take a tile."""


def blocks(scene: Scene, options: TileOptions) -> list[range]:
    """Rows of tiles, by number, that are cut together."""
    rows = len(starts(scene.size[0], options.tile, options.overlap))
    step = max(_ROWS, -(-_ROWS * scene.chunk[0] // (options.tile - options.overlap)))
    return [range(first, min(first + step, rows)) for first in range(0, rows, step)]


class BlockCutter(Dataset[Done]):
    """The function place -> block, in the form that a `DataLoader` asks for: `image` is the scene, `position` the part.

    Tiles that are there already are left as they are.
    """

    def __init__(self, folder: Path, scenes: Sequence[SceneFiles], options: TileOptions) -> None:
        self._folder, self._scenes, self._options = folder, scenes, options
        self._main = os.getpid()

    def __getitem__(self, place: Place) -> Done:
        end_with(self._main)
        files, options, counts = self._scenes[place.image], self._options, SceneTiles()
        try:
            with closing(open_scene(files, nodata=options.nodata, max_pixels=options.max_pixels)) as scene:
                cutting = _Cutting(self._folder, files, scene, options, counts)
                for row in blocks(scene, options)[place.position]:
                    cutting.cut_row(row)
        except BrokenImage as error:
            return Done(counts, reason=str(error))
        except OSError as error:
            return Done(counts, failure=(error.errno or 0, error.strerror or str(error)))
        return Done(counts)


class _Cutting:
    """A scene of which rows of tiles are cut."""

    def __init__(self, folder: Path, files: SceneFiles, scene: Scene, options: TileOptions, counts: SceneTiles) -> None:
        """`counts` is added to."""
        self._folder, self._files, self._scene, self._options, self._counts = folder, files, scene, options, counts
        self._height, self._width = (min(options.tile, side) for side in scene.size)
        counts.whole = max(scene.size) <= options.tile
        channel, path = files.files[0]
        # arrays have to become images, or else a folder of pictures would leave them out
        self._copied = path if counts.whole and channel is None and options.nodata is None else None
        if self._copied and path.suffix.lower() in (".npy", ".npz"):
            self._copied = None
        counts.suffix = path.suffix if self._copied else tile_suffix(scene, options.format)

    def cut_row(self, row: int) -> None:
        """Cut the tiles of a row. Raises `BrokenImage`, and `OSError` for a disk that does not take a tile."""
        scene, options = self._scene, self._options
        top = starts(scene.size[0], options.tile, options.overlap)[row]
        for group in _groups(scene, options):
            if all(self._target(top, left).exists() for left in group):
                self._counts.tiles += len(group)
                continue
            window = Window(top, group[0], top + self._height, group[-1] + self._width)
            with refusals():
                values = scene.read(window)
                mask = None if scene.mask is None else scene.mask(window)
            for left in group:
                columns = slice(left - window.left, left - window.left + self._width)
                place = Window(top, left, top + self._height, left + self._width)
                tile = np.ascontiguousarray(values[:, columns])
                self._cut_tile(place, tile, None if mask is None else mask[:, columns])

    def _target(self, top: int, left: int) -> Path:
        return self._folder / (tile_name(self._files.stem, top, left, self._scene.size) + self._counts.suffix)

    def _cut_tile(self, window: Window, values: np.ndarray, mask: np.ndarray | None) -> None:
        scene, options = self._scene, self._options
        with refusals():
            valid = _valid(scene, values, mask, options.mask_channel)
            share = 1.0 if valid is None else float(valid.mean())
            if share == 0 or share < options.min_valid:
                self._counts.missing += 1
                return
            if _is_constant(values, valid, scene.alpha):
                self._counts.constant += 1
                return
        self._counts.tiles += 1
        target = self._target(window.top, window.left)
        if target.exists():
            return
        with refusals():
            if self._copied:
                content = self._copied.read_bytes()
            else:
                content = tile_content(scene, window, values, mask, options.format, options.quality)
        target.parent.mkdir(parents=True, exist_ok=True)
        # the same name whoever writes it: what is left of a process that was killed is written over
        with replacing(target, temporary=target.with_name(f".{target.name}.tmp")) as temporary:
            temporary.write_bytes(content)


def _groups(scene: Scene, options: TileOptions) -> Iterator[list[int]]:
    """Where the tiles of a row begin, in groups that are read together."""
    columns = starts(scene.size[1], options.tile, options.overlap)
    column = min(options.tile, scene.size[0]) * scene.pixel_bytes  # bytes of one of pixels
    count = max(1, (_WINDOW // column - options.overlap) // (options.tile - options.overlap))
    return (columns[first : first + count] for first in range(0, len(columns), count))


def _valid(scene: Scene, values: np.ndarray, mask: np.ndarray | None, mask_channel: str | None) -> np.ndarray | None:
    """bool (h, w): where a pixel is there; None: everywhere."""
    of_mask = None if mask_channel is None else find_channel(scene.channels, mask_channel)
    measured = set(range(values.shape[2] - scene.alpha)) - {of_mask}
    parts = [valid_pixels(values[:, :, sorted(measured)], scene.nodata), mask]
    if scene.alpha:
        parts.append(values[:, :, -1] != 0)
    if of_mask is not None:
        channel = values[:, :, of_mask]
        parts.append((channel != 0) & (channel == channel))
    there = [part for part in parts if part is not None]
    return np.logical_and.reduce(there) if there else None


def _is_constant(values: np.ndarray, valid: np.ndarray | None, alpha: bool) -> bool:
    """Whether all pixels that are there have the same colours."""
    colours = values[:, :, :-1] if alpha else values
    first = colours[0, 0] if valid is None else colours[np.unravel_index(int(valid.argmax()), valid.shape)]
    different = (colours != first).any(axis=2)
    return not (different if valid is None else different & valid).any()
