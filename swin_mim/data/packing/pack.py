"""Packs the images of any source into shards that train fast and are an ordinary data set: see `packed`.

The result is a function of the source and the settings: neither the number of workers nor an interruption changes a
byte. Rows have the order of the source.
"""

import io
import json
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, features
from torch.utils.data import Dataset
from tqdm import tqdm

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.options import USUAL, DecodeOptions
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.labels import labels_of_folder
from swin_mim.data.loading.workers import load_batches
from swin_mim.data.packing.orphans import end_with
from swin_mim.data.packing.rasters import Row, raster_row
from swin_mim.data.packing.writer import STAGING, ShardFile, check_apart, locked
from swin_mim.data.sampling import Place
from swin_mim.data.sources.base import FileSource, Source
from swin_mim.data.sources.folder import FolderSource
from swin_mim.data.sources.multichannel import RasterSource
from swin_mim.data.sources.open import as_rasters, open_files
from swin_mim.data.sources.packed import (
    BROKEN,
    IMAGE,
    MANIFEST,
    SHARDS,
    Packed,
    check_sizes,
    load_shards,
    read_packed,
    text_if_nan,
)
from swin_mim.data.sources.stacks import StackSource
from swin_mim.data.sources.tables import Table
from swin_mim.errors import UserError
from swin_mim.files import replace_text, writing

Format = Literal["jpeg", "raw", "npy"]

_TASK = 8  # images that a worker packs at a time
_VALUES = np.arange(256, dtype=np.int64)
_MEDIA = ("Image", "Audio", "Video", "Pdf", "Nifti", "Mesh")  # columns of files, which would be copied as they are


@dataclass(frozen=True)
class PackOptions:
    """How images are packed."""

    size: int = 256
    """Max pixels of the shorter side; 0 leaves the size as it is. The aspect is kept. 256 is practically lossless for
    SimMIM up to an image size of about 190: crops cover 67 to 100 % of an image's area, so that the shorter side of the
    smallest one is 209 pixels of a 4:3 photograph. Only in the worst case, of a square image, it has 181. Larger images
    want a larger size: 1.42 times theirs never enlarges."""
    format: Format = "jpeg"
    """"jpeg", or "raw" for uncompressed pixels, as BMP: of the containers that the `datasets` library shows, the one
    that is read fastest (256 x 341 pixels: 93 us; TIFF 262, PNG 1018; JPEG at 95 takes 320)."""
    quality: int = 95
    """JPEG quality. What was a JPEG is compressed a second time, at 95 with values off by 1 of 255 on average."""
    shard_mib: int = 256
    """A shard is closed when its images have this many MiB."""
    decoding: DecodeOptions = USUAL
    """How the images are decoded; of other channels than RGB the limit of pixels counts alone."""
    workers: int = 4
    """Processes that encode; 0: this one does."""
    progress: bool = False
    """Show a bar with images/s and the time that is left."""


def pack(
    spec: str,
    folder: Path,
    *,
    config: str | None = None,
    split: str = "train",
    column: str | None = None,
    bands: ChannelSpec | None = None,
    stack: str | None = None,
    options: PackOptions = PackOptions(),
) -> Packed:
    """Pack a source into a folder, or finish what an interrupted call has begun; what is complete is left as it is.

    Images are decoded by the rules of `decode_image`, made smaller if they are larger than `options.size`, and encoded
    anew. Class folders become a column `label` of classes; a table keeps its other columns, but for those of files. An
    image that cannot be read is left out and listed in broken_images.jsonl.

    Afterwards `open_source(str(folder))`, which is `--data.source`, reads the shards by memory map, and
    `datasets.load_dataset(str(folder))` has them as an ordinary data set.

    Args:
        spec, config, split, column: as in `open_source`.
        bands, stack: images are of any channels, as in `open_source`. They become .npy files (H, W, C) of the type and
            in the units of their own, made smaller as `smaller_raster` does, without regard to quality and format.
            Which pixels are valid is packed with them: nothing need be said of it to read the result.

    Raises:
        UserError: nothing to pack, a folder that holds something else, or that was begun from another source or with
            other settings; with the code `CANNOT_WRITE`: the disk is full, what is whole stays.
        KeyboardInterrupt: whole shards stay, and the same call goes on behind them.
    """
    origin = {"source": spec, "config": config, "split": split, "column": column}
    settings = {name: getattr(options, name) for name in ("size", "format", "quality", "shard_mib")}
    settings |= {"max_pixels": options.decoding.max_pixels, "color_profile": options.decoding.color_profile}
    if bands is not None:
        bands = replace(bands, max_pixels=options.decoding.max_pixels)
        settings |= {"format": "npy", "color_profile": None} | _bands_settings(bands, stack)
    opened = open_files(spec, config=config, split=split, column=column, bands=bands, stack=stack)
    check_apart(Path(os.path.expanduser(spec)), folder)
    source = opened.images(column) if isinstance(opened, Table) else opened
    if isinstance(source, FileSource):
        source.decoding = options.decoding
    rasters = None if bands is None else as_rasters(opened, spec, column, bands)
    begun = Packed(
        source=origin | {"images": len(source), "fingerprint": source.fingerprint},
        settings=settings if settings["format"] == "jpeg" else settings | {"quality": None},
        made_with=_versions(rasters is not None),
        rasters=None if rasters is None else {"channels": list(rasters.channels), "dtypes": {}, "statistics": None},
    )
    with writing(folder):
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    with locked(folder):
        packed = _continued(folder, begun)
        if packed.complete:
            return packed
        job = _Job(folder, packed, source, *_columns(opened, source, rasters is not None))
        unit: dict[str, Any] = {"unit": " images", "dynamic_ncols": True, "disable": not options.progress}
        with tqdm(total=len(source), initial=packed.read, **unit) as bar:
            job.run(_Encoder(source, rasters, settings), options.workers, bar)
        return job.finish()


def _versions(rasters: bool) -> dict[str, str]:
    """Versions of what makes the bytes."""
    if rasters:
        return {"numpy": np.__version__, "torch": str(torch.__version__)}
    return {"pillow": Image.__version__, "libjpeg": str(features.version("libjpeg_turbo"))}


def _bands_settings(bands: ChannelSpec, stack: str | None) -> dict[str, Any]:
    return {
        "in_channels": bands.count,
        "channels": None if bands.channels is None else list(bands.channels),
        "nodata": text_if_nan(bands.nodata),
        "mask_channel": bands.mask,
        "stack": stack,
    }


class _Encoder(Dataset[Row]):
    """The pure function index -> packed image, in the form that a `DataLoader` asks for."""

    def __init__(self, source: Source, rasters: RasterSource | None, settings: dict[str, Any]) -> None:
        """`rasters` are the images of `source` as such, if they are."""
        self._source, self._rasters, self._settings = source, rasters, settings
        self._main = os.getpid()

    def __getitem__(self, place: Place) -> Row:
        end_with(self._main)
        try:
            if self._rasters is None:
                return self._rgb(place.image)
            return raster_row(self._rasters, place.image, self._settings["size"], self._source.path(place.image))
        except BrokenImage as error:
            return Row(b"", None, str(error))

    def _rgb(self, index: int) -> Row:
        image = shrunk(self._source.image(index), self._settings["size"])
        buffer = io.BytesIO()
        if self._settings["format"] == "raw":
            image.save(buffer, "BMP")
        else:
            image.save(buffer, "JPEG", quality=self._settings["quality"])
        histogram = np.array(image.histogram(), dtype=np.int64).reshape(3, 256)
        return Row(
            buffer.getvalue(),
            self._source.path(index),
            pixels=image.width * image.height,
            sums=tuple((histogram @ _VALUES).tolist()),
            squares=tuple((histogram @ _VALUES**2).tolist()),
        )


def shrunk(image: Image.Image, size: int) -> Image.Image:
    """An image whose shorter side is `size` pixels, or the image itself if it is not larger, or `size` is 0."""
    short = min(image.size)
    if not size or short <= size:
        return image
    width, height = (size if side == short else round(side * size / short) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)  # antialiased: Pillow's filter grows with the scale


class _Job:
    """A packing that is under way: what is on disk, and the shard that is being written."""

    def __init__(self, folder: Path, packed: Packed, source: Source, columns: Any, schema: Any) -> None:
        """`columns` besides the image are a `datasets.Dataset` in the format "arrow", or None; `schema` is of all."""
        self._folder, self._packed, self._source = folder, packed, source
        self._columns, self._schema = columns, schema
        self._broken = _read_broken(folder, packed)
        self._shard: ShardFile | None = None

    def run(self, encoder: _Encoder, workers: int, bar: Any) -> None:
        """Pack what is left, and commit shard by shard."""
        first, total = self._packed.read, len(self._source)
        tasks = (
            [Place(index, index) for index in range(start, min(start + _TASK, total))]
            for start in range(first, total, _TASK)
        )
        index = first
        try:
            with closing(load_batches(encoder, tasks, list, workers=workers, batch_bytes=0)) as done:
                for rows in done:
                    for row in rows:
                        self._add(index, row)
                        index += 1
                    bar.update(len(rows))
            self._commit(total)
        finally:
            if self._shard:
                self._shard.discard()

    def finish(self) -> Packed:
        """Write the statistics, which tell that it is complete."""
        if not self._packed.images:
            raise UserError(
                f"none of the {len(self._source)} images of {self._packed.source['source']!r} can be read, the first: "
                f"{self._broken[0]['name']}: {self._broken[0]['reason']}"
            )
        rows = Table(str(self._folder), load_shards(self._folder, self._packed.shards), [])
        self._packed = self._packed.finished(rows.images(IMAGE).fingerprint)
        with writing(self._folder):
            replace_text(self._folder / MANIFEST, self._packed.text(), durable=True)
        return self._packed

    def _add(self, index: int, row: Row) -> None:
        packed = self._packed
        if row.reason:
            self._broken.append({"name": self._source.name(index), "reason": row.reason})
            return
        if self._shard is None:
            with writing(self._folder):
                self._shard = ShardFile(self._folder / STAGING, self._schema, self._columns)
        with writing(self._folder):
            self._shard.add(index, row.content, row.path)
        if row.statistics is not None:
            self._packed = packed.with_raster(row.statistics, row.dtype)
        else:
            self._packed = _with_rgb(packed, row)
        if self._shard.content >= packed.settings["shard_mib"] * 2**20:
            self._commit(index + 1)

    def _commit(self, read: int) -> None:
        """Make the shard part of the result, and all images before `read` dealt with."""
        shards = self._packed.shards
        with writing(self._folder):
            if self._shard:
                shards += (self._shard.close(self._folder, f"{SHARDS}/train-{len(shards):05d}.arrow"),)
                self._shard = None
            if self._broken:
                lines = "".join(json.dumps(entry) + "\n" for entry in self._broken)
                replace_text(self._folder / BROKEN, lines, durable=True)
            self._packed = replace(self._packed, shards=shards, read=read, broken=len(self._broken))
            replace_text(self._folder / MANIFEST, self._packed.text(), durable=True)


def _with_rgb(packed: Packed, row: Row) -> Packed:
    """With one image more."""
    return replace(
        packed,
        pixels=packed.pixels + row.pixels,
        sums=tuple(a + b for a, b in zip(packed.sums, row.sums, strict=True)),
        squares=tuple(a + b for a, b in zip(packed.squares, row.squares, strict=True)),
    )


def _columns(opened: FolderSource | StackSource | Table, source: Source, rasters: bool) -> tuple[Any, Any]:
    """(the columns besides that of the images, in the format "arrow", or None; the schema of all)."""
    import datasets

    kinds: dict[str, Any] = {IMAGE: datasets.Image()}
    if rasters:  # which that library cannot show
        kinds[IMAGE] = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    columns = None
    if isinstance(opened, Table):
        kept = _columns_to_keep(opened.dataset.features, getattr(source, "column", None))
        if kept:
            columns = opened.dataset.select_columns(kept).with_format("arrow")
            kinds |= {name: opened.dataset.features[name] for name in kept}
    elif isinstance(opened, FolderSource) and (labelled := labels_of_folder(opened)):
        kinds["label"] = datasets.ClassLabel(names=list(labelled.names))
        chosen = datasets.Features({"label": kinds["label"]})
        columns = datasets.Dataset.from_dict({"label": labelled.targets}, features=chosen).with_format("arrow")
    return columns, datasets.Features(kinds).arrow_schema


def _columns_to_keep(features: Mapping[str, Any], images: str | None) -> list[str]:
    """All but that of the images, one that has the name it gets, and those of files."""
    return [
        name
        for name, kind in features.items()
        if name not in (images, IMAGE) and type(kind).__name__ not in _MEDIA and not _holds_bytes(kind)
    ]


def _holds_bytes(kind: Any) -> bool:
    """Whether a column is one of files by another name: the images themselves, where they are not typed as such."""
    return getattr(kind, "dtype", "") in ("binary", "large_binary") or (isinstance(kind, dict) and "bytes" in kind)


def _continued(folder: Path, begun: Packed) -> Packed:
    """What is on disk already of the packing that begins as `begun`.

    Raises:
        UserError: it is something else, or of other settings or another source.
    """
    there = read_packed(folder)
    if there is None:
        # what ends in .tmp was being written
        known = (SHARDS, BROKEN)
        found = sorted(path.name for path in folder.iterdir() if path.name not in known and path.suffix != ".tmp")
        # a shard without a manifest is left of a packing that was killed within its first commit
        found += sorted(path.name for path in (folder / SHARDS).iterdir() if path.name != "train-00000.arrow")
        if found:
            raise UserError(f"{folder} holds {found[0]} and no {MANIFEST}: name an empty or a new folder")
        return begun
    if (change := _difference(_settings(there, begun), begun.settings)) is not None:
        raise UserError(
            f"{folder} was packed with {change}: give the same arguments to go on, or name another folder to start anew"
        )
    if there.source["fingerprint"] != begun.source["fingerprint"]:
        raise UserError(
            f"{folder} was packed from other images than {begun.source['source']!r} holds now, "
            f"{there.source['images']} then and {begun.source['images']} now: name another folder to pack these"
        )
    if not there.complete and (change := _difference(there.made_with, begun.made_with)) is not None:
        raise UserError(
            f"{folder} was begun with {change}, which may encode differently: name another folder to start anew"
        )
    try:
        check_sizes(folder, there.shards)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error
    return there


def _settings(there: Packed, begun: Packed) -> dict[str, Any]:
    """The settings of a packing that was begun, also of one that is older than some of them.

    What is complete stays valid as it is; what goes on may not mix: then profiles were ignored.
    """
    profile = None if there.rasters is not None else "ignore"
    older = {"max_pixels": USUAL.max_pixels, "color_profile": profile}
    if there.complete:
        older["color_profile"] = begun.settings["color_profile"]
    return older | there.settings


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """ "size 256, not 288"."""
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return ", ".join(f"{key} {before.get(key)}, not {now.get(key)}" for key in changed) or None


def _read_broken(folder: Path, packed: Packed) -> list[dict[str, str]]:
    """The broken images that the manifest counts. The file may list more, of a commit that did not come to its end."""
    if not packed.broken:
        return []
    try:
        lines = (folder / BROKEN).read_text().splitlines()[: packed.broken]
        entries = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / BROKEN} cannot be read ({error}): pack again into a new folder") from error
    if len(entries) < packed.broken:
        raise UserError(f"{folder / BROKEN} has lost lines: pack again into a new folder")
    return entries
