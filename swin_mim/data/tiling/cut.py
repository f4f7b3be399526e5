"""Cuts scenes of any size into tiles: image files that every source of a folder reads. See `cut`."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from swin_mim.counts import counted
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.loading.workers import load_batches
from swin_mim.data.packing.writer import check_apart, locked
from swin_mim.data.sampling import Place
from swin_mim.data.scenes.find import SceneFiles, find_scenes
from swin_mim.data.scenes.open import open_scene, read_in_parts
from swin_mim.data.tiling.blocks import BlockCutter, Done, blocks
from swin_mim.data.tiling.manifest import MANIFEST, SceneTiles, Tiles, check_same, read_tiles
from swin_mim.data.tiling.options import TileOptions
from swin_mim.errors import UserError
from swin_mim.files import writing

_SAVE = 10.0  # seconds between two manifests


def cut(
    spec: str,
    folder: Path,
    *,
    bands: ChannelSpec | None = None,
    stack: str | None = None,
    options: TileOptions,
) -> Tiles:
    """Cut the scenes below a folder, or one file, into tiles, or finish what an interrupted call has begun.

    A tile is called as its scene, with the row and the column of its first pixel. The last tiles of a side are moved
    inwards, so that all are of one size; a scene that is not larger than a tile stays as it is. Pictures of 8-bit RGB
    or grey become PNG, or JPEG if `options` say so; everything else TIFF of the same type and channels, with names,
    nodata, mask and georeference. Tiles with too few pixels that are there, or of a single value, are left out; so are
    scenes that cannot be read, of which no tile is kept.

    Args:
        bands, stack: every channel is a file of its own, as in `open_source`; a tile holds all of `bands`.

    Raises:
        UserError: no scenes, none that gives a tile, or a folder that holds something else or was begun with other
            settings; with the code `CANNOT_WRITE`: the disk is full, whole tiles stay.
        KeyboardInterrupt: whole tiles stay, and the same call goes on behind them.
    """
    if not 0 <= options.overlap < options.tile:
        raise UserError(f"overlap {options.overlap} must be at least 0 and less than the tile's {options.tile} pixels")
    scenes, fingerprint = find_scenes(spec, bands, stack)
    check_apart(Path(os.path.expanduser(spec)), folder)
    begun = Tiles(
        source={"source": spec, "stack": stack, "scenes": len(scenes), "fingerprint": fingerprint},
        settings={
            name: getattr(options, name)
            for name in ("tile", "overlap", "min_valid", "format", "quality", "nodata", "mask_channel", "max_pixels")
        }
        | {"channels": None if bands is None else list(bands.channels or ())},
    )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        tiles = _continued(folder, begun)
        if not tiles.complete:
            _Job(folder, scenes, tiles, options).run()
    if not tiles.tiles:
        raise UserError(_nothing(tiles, spec))
    return tiles


def _continued(folder: Path, begun: Tiles) -> Tiles:
    """What is on disk already of the cutting that begins as `begun`. Raises `UserError` for something else."""
    there = read_tiles(folder)
    if there is not None:
        check_same(folder, there, begun)
        return there
    if found := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        raise UserError(f"{folder} holds {found[0]} and no {MANIFEST}: name an empty or a new folder")
    with writing(folder):
        begun.write(folder)
    return begun


def _nothing(tiles: Tiles, spec: str) -> str:
    if tiles.broken and not tiles.scenes:
        name, reason = next(iter(tiles.broken.items()))
        return f"no scene of {spec!r} can be read, the first of {len(tiles.broken)}: {name}: {reason}"
    missing, constant = (
        counted(sum(getattr(scene, name) for scene in tiles.scenes.values()), "tile")
        for name in ("missing", "constant")
    )
    share = f"--min-valid {tiles.settings['min_valid']}"
    are = "is" if constant == "1 tile" else "are"
    return (
        f"no tile of {spec!r} has enough in it: {missing} with less than {share} of their pixels, "
        f"and {constant} {are} of a single value"
    )


class _Job:
    """A cutting that is under way."""

    def __init__(self, folder: Path, scenes: Sequence[SceneFiles], tiles: Tiles, options: TileOptions) -> None:
        self._folder, self._scenes, self._tiles, self._options = folder, scenes, tiles, options
        self._left = [index for index, scene in enumerate(scenes) if scene.name not in tiles.scenes | tiles.broken]
        self._parts: dict[int, int] = {}  # how many a scene is cut in
        self._saved = time.monotonic()

    def run(self) -> None:
        """Cut what is left."""
        cutter = BlockCutter(self._folder, self._scenes, self._options)
        places, workers = self._places(), self._options.workers
        total = sum(self._scenes[index].bytes for index in self._left)
        unit: dict[str, Any] = {"unit": "B", "unit_scale": True, "dynamic_ncols": True}
        unit["disable"] = not self._options.progress
        try:
            with (
                closing(load_batches(cutter, places, list, workers=workers, batch_bytes=0)) as done,
                tqdm(total=total, **unit) as bar,
            ):
                for index in self._left:
                    self._finish(index, done, bar)
            self._tiles.complete = True
        finally:
            with writing(self._folder):
                self._tiles.write(self._folder)

    def _places(self) -> Iterator[list[Place]]:
        """Scene by scene and part by part; a part is the position."""
        for index in self._left:
            self._parts[index] = self._count_parts(self._scenes[index])
            for part in range(self._parts[index]):
                yield [Place(part, index)]

    def _count_parts(self, files: SceneFiles) -> int:
        try:
            if not read_in_parts(files):
                return 1
            with closing(open_scene(files, max_pixels=self._options.max_pixels)) as scene:
                return len(blocks(scene, self._options))
        except BrokenImage:
            return 1  # whoever cuts it finds out why

    def _finish(self, index: int, done: Iterator[list[Done]], bar: Any) -> None:
        """Take all parts of a scene."""
        scene, sums, reason = self._scenes[index], SceneTiles(), ""
        part, parts = 0, 1
        while part < parts:
            (result,) = next(done)
            parts = self._parts[index]
            if result.failure is not None:
                with writing(self._folder):
                    raise OSError(*result.failure)
            reason = reason or result.reason
            sums.add(result.tiles)
            part += 1
            bar.update(scene.bytes * part // parts - scene.bytes * (part - 1) // parts)
            bar.set_postfix_str(counted(self._tiles.tiles + sums.tiles, "tile"), refresh=False)
        if reason:
            _remove_tiles(self._folder, scene.stem)
            self._tiles.broken[scene.name] = reason
        else:
            self._tiles.scenes[scene.name] = sums
        if time.monotonic() - self._saved > _SAVE:
            with writing(self._folder):
                self._tiles.write(self._folder)
            self._saved = time.monotonic()


def _remove_tiles(folder: Path, stem: str) -> None:
    """Remove what is there of a scene that turned out to be broken."""
    start = folder / stem
    named = re.compile(re.escape(start.name) + r"_\d{5,}_\d{5,}(\.[^.]+)?")
    if start.parent.is_dir():
        for path in start.parent.iterdir():
            if named.fullmatch(path.name):
                path.unlink()
