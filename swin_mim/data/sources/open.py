"""Opens a source: a folder of files, or a table of the `datasets` library, local or on the Hub."""

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from swin_mim.data.decoding.kinds import IMAGE_SUFFIXES, RASTER_SUFFIXES
from swin_mim.data.decoding.multichannel import listed
from swin_mim.data.decoding.options import USUAL, DecodeOptions
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.sources.base import FileSource, Source
from swin_mim.data.sources.folder import TABLE_SUFFIXES, FolderSource, files_below
from swin_mim.data.sources.multichannel import RasterSource, check_bands
from swin_mim.data.sources.packed import IMAGE, MANIFEST, load_packed, read_packed, text_if_nan
from swin_mim.data.sources.stacks import StackSource, check_pattern, group
from swin_mim.data.sources.tables import Table
from swin_mim.errors import UserError


def open_source(
    spec: str,
    *,
    config: str | None = None,
    split: str = "train",
    column: str | None = None,
    bands: ChannelSpec | None = None,
    stack: str | None = None,
    decoding: DecodeOptions = USUAL,
) -> Source:
    """Open a folder of images, a folder of parquet or arrow files, or a data set on the Hugging Face Hub.

    A folder that holds image files at any depth is just these images: class folders and metadata files mean
    nothing. `config`, `split` and `column` belong to tables, and a folder of tables is read like a Hub repository;
    without a column it is the only one of images. What swin-mim prepare packed is a table too, read where it lies.

    Args:
        bands: the images are of any channels: `image` returns a `Raster`. Folders may hold .npy and .npz files too.
        stack: in a folder, every channel is a file of its own: the pattern of their relative paths, with {image}, which
            may hold slashes, and {channel}, as "{image}_{channel}.tif". A missing file is a `BrokenImage`.

    Raises:
        UserError: nothing there, no images in it, no such split or column, other channels than `bands` says.
    """
    opened = open_files(spec, config=config, split=split, column=column, bands=bands, stack=stack)
    images = opened_images(opened, spec, column, bands)
    if isinstance(images, FileSource):
        images.decoding = decoding
    return images


def open_files(
    spec: str,
    *,
    config: str | None = None,
    split: str = "train",
    column: str | None = None,
    bands: ChannelSpec | None = None,
    stack: str | None = None,
) -> FolderSource | StackSource | Table:
    """As `open_source`, but a table comes with all its columns, and `as_rasters` makes rasters of what there is."""
    folder = Path(os.path.expanduser(spec))
    _check_options(spec, folder, bands, stack)
    if spec and folder.is_dir():
        if stack is not None and bands is not None and not (folder / MANIFEST).exists():
            return _open_stack(folder, config, split, column, bands, stack)
        return _open_folder(folder, config, split, column, IMAGE_SUFFIXES if bands is None else RASTER_SUFFIXES)
    if not spec or folder.exists() or spec.startswith((".", "~", "/")) or spec.count("/") > 1:
        found = "is a file" if spec and folder.exists() else "does not exist"
        raise UserError(
            f"data.source {spec!r} {found}: give a folder of images or the name of a Hub data set (user/name)"
        )
    return _open_hub(spec, config, split)


def opened_images(
    opened: FolderSource | StackSource | Table, spec: str, column: str | None, bands: ChannelSpec | None
) -> Source:
    """The images of what `open_files` opened. Raises `UserError` as `open_source`."""
    if bands is not None:
        return as_rasters(opened, spec, column, bands)
    assert not isinstance(opened, StackSource)
    return opened.images(column) if isinstance(opened, Table) else opened


def as_rasters(
    opened: FolderSource | StackSource | Table, spec: str, column: str | None, bands: ChannelSpec
) -> RasterSource:
    """What `open_files` opened, as images of any channels. Raises `UserError` as `open_source`."""
    packed = read_packed(Path(os.path.expanduser(spec))) if isinstance(opened, Table) and spec else None
    if packed is not None and packed.rasters is not None:
        column = column or IMAGE
    files = opened.images(column) if isinstance(opened, Table) else opened
    names = None
    if packed is not None and packed.rasters is not None:
        # packing has seen to what marks the gaps, and says which pixels are valid itself
        names, bands = tuple(packed.rasters["channels"]), replace(bands, nodata=None, mask=None)
    source = RasterSource(files, bands, names)
    check_bands(source, spec)
    return source


def _check_options(spec: str, folder: Path, bands: ChannelSpec | None, stack: str | None) -> None:
    if stack is not None and bands is None:
        raise UserError(f"data.stack {stack!r} makes images of one file for each channel: name these in data.channels")
    packed = read_packed(folder) if spec and (folder / MANIFEST).is_file() else None
    if packed is None or packed.rasters is None:
        if stack is not None and (packed is not None or not folder.is_dir()):
            raise UserError(
                f"data.stack {stack!r} belongs to a folder of files, and data.source {spec!r} is none: leave it out"
            )
        return
    names = packed.rasters["channels"]
    if bands is None:
        raise UserError(
            f"data.source {spec!r} holds packed images of {len(names)} channels ({listed(names)}): name those to be "
            "read in data.channels"
        )
    was = packed.settings
    asked = {"nodata": text_if_nan(bands.nodata), "mask_channel": bands.mask, "stack": stack}
    for key, value in asked.items():
        if value is not None and value != was[key]:
            raise UserError(
                f"data.{key} {value!r} cannot be used on data.source {spec!r}, which was packed with {key} "
                f"{was[key]}: leave it out, what is packed says itself which pixels are valid"
            )


def _open_stack(
    folder: Path, config: str | None, split: str, column: str | None, bands: ChannelSpec, stack: str
) -> StackSource:
    check_pattern(stack)
    _check_no_table(folder, config, split, column)
    files = files_below(folder, RASTER_SUFFIXES)
    if not files:
        raise UserError(f"data.source {str(folder)!r} holds no {' '.join(RASTER_SUFFIXES)} files at any depth")
    found, names = group([path for path, _ in files], stack, bands, str(folder))
    taken = sorted(index for channels in found.values() for index in channels.values())
    place = {index: number for number, index in enumerate(taken)}
    images = {
        image: {channel: place[index] for channel, index in channels.items()} for image, channels in found.items()
    }
    return StackSource(FolderSource(folder, [files[index] for index in taken]), stack, images, names)


def _check_no_table(folder: Path, config: str | None, split: str, column: str | None) -> None:
    if config is not None or split != "train" or column is not None:
        raise UserError(
            f"data.source {str(folder)!r} is a folder of images, which has no data.config {config!r}, "
            f"data.split {split!r} or data.column {column!r}: leave them out, or name a folder inside it"
        )


def _open_folder(
    folder: Path, config: str | None, split: str, column: str | None, suffixes: tuple[str, ...]
) -> FolderSource | Table:
    if (folder / MANIFEST).exists():
        return _open_table(str(folder), [], lambda: _load_packed(folder, config, split))
    if files := files_below(folder, suffixes):
        _check_no_table(folder, config, split, column)
        tables = [path for path, _ in files_below(folder, TABLE_SUFFIXES) if not path.endswith("metadata.parquet")]
        if tables:
            raise UserError(
                f"data.source {str(folder)!r} holds {len(files)} images and {len(tables)} tables such as {tables[0]}: "
                "name the folder inside it that holds only what you mean"
            )
        return FolderSource(folder, files)
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return _open_table(str(folder), [folder], lambda: _load_from_disk(folder, config, split))
    if not files_below(folder, TABLE_SUFFIXES):
        arrays = suffixes == IMAGE_SUFFIXES and files_below(folder, RASTER_SUFFIXES)
        found = f", but {arrays[0][0]}: name the channels of such images in data.channels" if arrays else ""
        raise UserError(
            f"data.source {str(folder)!r} holds no {' '.join(suffixes + TABLE_SUFFIXES)} files at any depth"
            f"{found or ': give a folder of images'}"
        )
    return _open_table(str(folder), [folder], lambda: _load_files(folder, config, split))


def _open_hub(spec: str, config: str | None, split: str) -> Table:
    import datasets

    # rows of a Hub repository of image files name these files, where the client has put them
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(datasets.config.HF_CACHE_HOME) / "hub")
    roots = [hub / f"datasets--{spec.replace('/', '--')}", Path(datasets.config.HF_DATASETS_CACHE) / "downloads"]
    return _open_table(spec, roots, lambda: datasets.load_dataset(spec, config, split=split))


def _load_from_disk(folder: Path, config: str | None, split: str) -> Any:
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "train"): loaded}
    if config is not None or split not in splits:
        raise ValueError(f"no config {config!r}, split {split!r}: it has no configs, and splits {', '.join(splits)}")
    return splits[split]


def _load_packed(folder: Path, config: str | None, split: str) -> Any:
    if config is not None or split != "train":
        raise ValueError(f"no config {config!r}, split {split!r}: packed images have no configs, and one split, train")
    return load_packed(folder)


def _load_files(folder: Path, config: str | None, split: str) -> Any:
    import datasets

    where = str(folder.resolve())
    if where != glob.escape(where):
        raise ValueError("the datasets library reads the characters * ? [ of a folder's name as a pattern: rename it")
    return datasets.load_dataset(where, config, split=split)


def _open_table(spec: str, roots: Sequence[Path], load: Callable[[], Any]) -> Table:
    try:
        dataset = load()
    except Exception as error:  # whatever a builder, a file system or the network raises
        reason = " ".join(str(error).split()).rstrip(".")
        here = "" if Path(spec).exists() else " (there is no such folder here; it was taken for a data set of the Hub)"
        raise UserError(
            f"data.source {spec!r} cannot be loaded: {type(error).__name__}: {reason}{here}: check that the folder or "
            "the Hub data set exists and can be reached, and data.config and data.split"
        ) from error
    if not len(dataset):
        raise UserError(f"data.source {spec!r} has no rows: choose another data.split")
    return Table(spec, dataset, roots)
