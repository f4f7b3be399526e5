"""Opens a source: a folder of files, or a table of the `datasets` library, local or on the Hub."""

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.decoding.kinds import IMAGE_SUFFIXES, RASTER_SUFFIXES
from swin_mim.data.decoding.multichannel import listed
from swin_mim.data.decoding.options import USUAL, DecodeOptions
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.columns import holds_images
from swin_mim.data.sources.exclude import kept_indices
from swin_mim.data.sources.folder import TABLE_SUFFIXES, FolderSource, printable
from swin_mim.data.sources.listed import files_outside, is_table_file, list_files
from swin_mim.data.sources.listing import TABLE_FILES, Listing, counts_text, list_images, warn_left_out
from swin_mim.data.sources.multichannel import RasterSource, check_bands
from swin_mim.data.sources.packed import IMAGE, MANIFEST, Packed, load_packed, read_packed, text_if_nan
from swin_mim.data.sources.reachable import check_reachable, files_in_cache
from swin_mim.data.sources.stacks import StackSource, check_pattern, group
from swin_mim.data.sources.tables import Table
from swin_mim.errors import UserError


class SourceOptions(TypedDict, total=False):
    """How a source is opened. What is left out has its default."""

    config: str | None
    """Configuration of a table."""
    split: str
    """Split of a table; "train" by default."""
    column: str | None
    """Column of a table that holds the images; None: the only one."""
    bands: ChannelSpec | None
    """Images are of any channels: `image` returns a `Raster`. Folders may hold .npy and .npz files too."""
    stack: str | None
    """In a folder, every channel is a file of its own: the pattern of their relative paths, with {image}, which may
    hold slashes, and {channel}, as "{image}_{channel}.tif". A missing file is a `BrokenImage`."""
    decoding: DecodeOptions
    """How files are decoded."""


def open_source(spec: str, *, exclude: str | None = None, **options: Unpack[SourceOptions]) -> Source:
    """Open a folder of images, a folder of parquet or arrow files, or a data set on the Hugging Face Hub.

    A folder that holds image files at any depth is just these images: class folders and metadata files mean
    nothing. What is no image in it is told in the log, by suffix. `config`, `split` and `column` belong to tables, and
    a folder of tables is read like a Hub repository. What swin-mim prepare packed is a table too, read where it lies.

    Args:
        exclude: a file of names that are left out, as `without_excluded` takes it.

    Raises:
        UserError: nothing there, no images in it, no such split or column, other channels than `bands` says, or images
            of a kind whose package is not installed; as `without_excluded`.
    """
    opened = open_files(spec, **options)
    return opened_images(opened, spec, options, kept_of(opened, spec, options.get("column"), exclude))


def open_files(spec: str, **options: Unpack[SourceOptions]) -> FolderSource | StackSource | Table:
    """As `open_source`, but a table comes with all its columns, and `as_rasters` makes rasters of what there is."""
    opened = open_any(spec, options)
    if not isinstance(opened, Table) and not is_table_file(spec):
        check_no_table(spec, options)
    return opened


def open_any(spec: str, options: SourceOptions) -> FolderSource | StackSource | Table:
    """As `open_files`, but a folder of images may come with options of a table, for one that lies beside them."""
    folder = Path(os.path.expanduser(spec))
    bands, stack = options.get("bands"), options.get("stack")
    _check_options(spec, folder, bands, stack)
    if spec and folder.is_dir():
        if stack is not None and bands is not None and not (folder / MANIFEST).exists():
            return _open_stack(folder, bands, stack, options.get("decoding", USUAL))
        return _open_folder(folder, options)
    if is_table_file(spec):
        if not folder.is_file():
            raise UserError(f"data.source {spec!r} does not exist or is no file: give a table, or a folder of images")
        return _open_listed(folder, options)
    if not spec or folder.exists() or spec.startswith((".", "~", "/")) or spec.count("/") > 1 or _is_file_name(spec):
        found = "is a file" if spec and folder.exists() else "does not exist"
        raise UserError(
            f"data.source {spec!r} {found}: give a folder of images or the name of a Hub data set (user/name)"
        )
    return _open_hub(spec, options)


def _is_file_name(spec: str) -> bool:
    return spec.lower().endswith(RASTER_SUFFIXES)


def kept_of(opened: Source | Table, spec: str, column: str | None, exclude: str | None) -> np.ndarray | None:
    """Indices of the images of what `open_files` opened that a list does not name; None: there is no list.

    Raises:
        UserError: as `kept_indices`.
    """
    return None if exclude is None else kept_indices(files_of(opened, spec, column), exclude)


def opened_images(
    opened: FolderSource | StackSource | Table, spec: str, options: SourceOptions, kept: np.ndarray | None = None
) -> Source:
    """The images of what `open_files` opened, or those of some indices. Raises `UserError` as `open_source`."""
    column, bands = options.get("column"), options.get("bands")
    if bands is not None:
        return as_rasters(opened, spec, column, bands, kept)
    assert not isinstance(opened, StackSource)
    files = files_of(opened, spec, column)
    return files if kept is None else files.without(kept)


def as_rasters(
    opened: Source | Table, spec: str, column: str | None, bands: ChannelSpec, kept: np.ndarray | None = None
) -> RasterSource:
    """What `open_files` opened, or its images of some indices, as images of any channels.

    Raises:
        UserError: as `open_source`.
    """
    files = files_of(opened, spec, column)
    if kept is not None:  # before the channels of the first image are looked at, as that one may be left out for them
        files = files.without(kept)
    packed, names = _packed_as(opened, spec), None
    if packed is not None and packed.rasters is not None:
        # packing has seen to what marks the gaps, and says which pixels are valid itself
        names, bands = tuple(packed.rasters["channels"]), replace(bands, nodata=None, mask=None)
    source = RasterSource(files, bands, names)
    check_bands(source, spec)
    return source


def _packed_as(opened: Source | Table, spec: str) -> Packed | None:
    return read_packed(Path(os.path.expanduser(spec))) if isinstance(opened, Table) and spec else None


def files_of(opened: Source | Table, spec: str, column: str | None) -> Source:
    """All images of what `open_files` opened, as files. Raises `UserError` as `open_source`."""
    if not isinstance(opened, Table):
        return opened
    packed = _packed_as(opened, spec)
    rasters = packed is not None and packed.rasters is not None
    return opened.images(column or IMAGE if rasters else column)


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
            f"data.source {spec!r} holds packed images of {counted(len(names), 'channel')} ({listed(names)}): name "
            "those to be read in data.channels"
        )
    was = packed.settings
    asked = {"nodata": text_if_nan(bands.nodata), "mask_channel": bands.mask, "stack": stack}
    for key, value in asked.items():
        if value is not None and value != was[key]:
            raise UserError(
                f"data.{key} {value!r} cannot be used on data.source {spec!r}, which was packed with {key} "
                f"{was[key]}: leave it out, what is packed says itself which pixels are valid"
            )


def _open_stack(folder: Path, bands: ChannelSpec, stack: str, decoding: DecodeOptions) -> StackSource:
    check_pattern(stack)
    listing = list_images(folder, rgb=False)
    files = listing.source(folder)
    if not files.paths:
        raise _no_images(folder, listing, RASTER_SUFFIXES)
    warn_left_out(files, str(folder))
    found, names = group(files.paths, stack, bands, str(folder))
    taken = sorted(index for channels in found.values() for index in channels.values())
    place = {index: number for number, index in enumerate(taken)}
    images = {
        image: {channel: place[index] for channel, index in channels.items()} for image, channels in found.items()
    }
    sizes = list(files.inventory())
    parts = FolderSource(folder, [(files.paths[index], sizes[index][1]) for index in taken])
    parts.decoding = decoding
    return StackSource(parts, stack, images, names)


def check_no_table(spec: str, options: SourceOptions) -> None:
    """Raise a UserError for options of tables, as `spec` is a folder of images."""
    config, split, column = options.get("config"), options.get("split", "train"), options.get("column")
    if config is not None or split != "train" or column is not None:
        raise UserError(
            f"data.source {spec!r} is a folder of images, which has no data.config {config!r}, "
            f"data.split {split!r} or data.column {column!r}: leave them out, or name a folder inside it"
        )


def _open_folder(folder: Path, options: SourceOptions) -> FolderSource | Table:
    config, split = options.get("config"), options.get("split", "train")
    decoding = options.get("decoding", USUAL)
    if (folder / MANIFEST).exists():
        return _open_table(str(folder), [], lambda: _load_packed(folder, config, split), decoding)
    rgb = options.get("bands") is None
    listing = list_images(folder, rgb=rgb)
    tables = [path for path in listing.others if path.lower().endswith(TABLE_SUFFIXES)]
    with_images = [path for path in tables if holds_images(folder / path)]
    if listing.named:
        # the table of the images of a folder, as the datasets library writes it
        if foreign := [path for path in with_images if not path.endswith("metadata.parquet")]:
            images = counted(len(listing.named), "image")
            others = "the table" if len(foreign) == 1 else f"{len(foreign)} tables of images such as"
            raise UserError(
                f"data.source {str(folder)!r} holds {images} and {others} {printable(foreign[0])}, which has images "
                "too: name the folder inside it that holds only what you mean"
            )
    elif (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return _open_table(str(folder), [folder], lambda: _load_from_disk(folder, config, split), decoding)
    elif with_images:
        return _open_table(str(folder), [folder], lambda: _load_files(folder, config, split), decoding)
    source = listing.source(folder)
    if not source.paths:
        raise _no_images(folder, listing, IMAGE_SUFFIXES if rgb else RASTER_SUFFIXES)
    source.decoding = decoding
    warn_left_out(source, str(folder))
    return source


def _open_listed(table: Path, options: SourceOptions) -> FolderSource:
    """The images that a table names, of the folder in which it lies."""
    if options.get("config") is not None:
        raise UserError(f"data.config {options.get('config')!r} belongs to data sets, and {str(table)!r} is a file")
    listing = list_images(table.parent, rgb=options.get("bands") is None)
    files = sorted(listing.named + listing.recognised)
    paths = [path for path, _ in files]
    if not paths:
        raise _no_images(table.parent, listing, IMAGE_SUFFIXES)
    found = list_files(table, table.parent, paths, column=options.get("column"), split=options.get("split", "train"))
    source = FolderSource(table.parent, [files[place] for place in sorted({*found.files[found.files >= 0].tolist()})])
    source.decoding = options.get("decoding", USUAL)
    return source


def _no_images(folder: Path, listing: Listing, suffixes: tuple[str, ...]) -> UserError:
    """Why a folder cannot be opened in which nothing is an image, with the way out."""
    where, others = f"data.source {str(folder)!r} holds", listing.others
    none = f"{where} no {' '.join(suffixes + TABLE_SUFFIXES)} files at any depth"
    arrays = [path for path in others if suffixes == IMAGE_SUFFIXES and path.lower().endswith(RASTER_SUFFIXES)]
    tars = [path for path in others if ".tar" in os.path.basename(path).lower() or path.lower().endswith(".tgz")]
    tables = [path for path in others if path.lower().endswith(TABLE_FILES)]
    if arrays:
        return UserError(f"{none}, but {printable(arrays[0])}: name the channels of such images in data.channels")
    if tars:
        count = "a tar file" if len(tars) == 1 else f"{len(tars)} tar files"
        return UserError(
            f"{where} no images, but {count} such as {printable(tars[0])}: pretraining reads tar files with "
            "--data.streaming, for everything else unpack them"
        )
    if tables:
        outside = files_outside(folder / tables[0], folder)
        return UserError(
            f"{where} no images, and {printable(tables[0])} has none in it. "
            + (outside or "If it names files elsewhere, give their folder as data.source")
            + "; or make a data set of both with the datasets library and save_to_disk"
        )
    found = f": of its files, {counts_text(listing.left_out())}, none is one" if others else ""
    return UserError(f"{none}{found}: give a folder of images")


def _open_hub(spec: str, options: SourceOptions) -> Table:
    import datasets

    check_reachable(spec)
    config, split = options.get("config"), options.get("split", "train")
    # rows of a Hub repository of image files name these files, where the client has put them
    roots = [files_in_cache(spec), Path(datasets.config.HF_DATASETS_CACHE) / "downloads"]
    load = partial(datasets.load_dataset, spec, config, split=split)
    return _open_table(spec, roots, load, options.get("decoding", USUAL))


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


def _open_table(spec: str, roots: Sequence[Path], load: Callable[[], Any], decoding: DecodeOptions) -> Table:
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
    return Table(spec, dataset, roots, decoding)
