"""Opens images with masks: folders of files, a JSON file of COCO's, two columns of a table, or the embedded maps."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.decoding.options import USUAL, DecodeOptions
from swin_mim.data.dense.class_counts import numbers_in
from swin_mim.data.dense.coco import is_coco_file
from swin_mim.data.dense.coco_masks import MaskRules, Uncovered, open_coco_masks
from swin_mim.data.dense.land_cover import CLASSES, open_land_cover
from swin_mim.data.dense.limits import IMAGE_FOLDERS, MASK_FOLDERS, MAX_CLASSES, MAX_NUMBER
from swin_mim.data.dense.masks import ClassNumbers, FileMasks, Masks
from swin_mim.data.dense.pairs import Pairs, PairSource
from swin_mim.data.sources.base import Source, Subset
from swin_mim.data.sources.exclude import part_without_excluded
from swin_mim.data.sources.folder import printable
from swin_mim.data.sources.listing import list_images, warn_left_out
from swin_mim.data.sources.open import SourceOptions, check_no_table, files_of, kept_of, open_any, opened_images
from swin_mim.data.sources.stacks import StackSource
from swin_mim.data.sources.tables import Table, columns_text
from swin_mim.errors import UserError

MASK_COLUMNS = ("mask", "annotation", "label", "labels", "segmentation", "semantic_segmentation", "segmentation_mask")
"""Names that mark the column of masks where there are several of images."""


_log = logging.getLogger(__name__)


class NoMasks(UserError):
    """Nothing says what the pixels of the images are."""


@dataclass(frozen=True)
class Classes:
    """What the settings say of the classes."""

    names: str | None = None
    """A file with the name of a class in each line."""
    count: int | None = None
    """How many there are; None: as many as the names, or as the masks have."""
    first: int = 0
    ignore: int = 255
    known: tuple[str, ...] | None = None
    """Those of a model, by which data that name their classes are numbered; None: they are as these say."""


class PairOptions(SourceOptions, total=False):
    """How images with masks are opened. What is left out has its default."""

    masks: str | None
    """The folder of the masks, or a JSON file of COCO's; None: a folder beside that of the images."""
    panoptic_folder: str | None
    """The folder of the PNGs of such a file of panoptic segmentation; None: the one of its name beside it."""
    uncovered: Uncovered
    """What pixels are that such a file says nothing of."""
    mask_column: str | None
    """The column of the masks in a table; None: the only one besides that of the images, or with a usual name."""
    counts: Path | None
    """A file in which the counts of the class numbers are kept."""


def open_pairs(spec: str, classes: Classes, *, exclude: str | None = None, **options: Unpack[PairOptions]) -> Pairs:
    """Open images with their masks.

    A mask is the file of the same relative path as its image, but for the suffix. A folder that holds images/ and
    masks/ (or annotations/ or labels/) is these two. Masks are read when they are needed, but where nobody says how
    many classes there are, all of them are read once. Of a JSON file of COCO's the images are those that it lists.

    Args:
        exclude: a file of names of images that are left out with their masks, as `kept_indices` takes it.

    Raises:
        UserError: an image without a mask or a mask without an image; no masks (`NoMasks`); as `open_source`.
    """
    if spec == "blue_marble":
        return part_without_excluded(_of_land(classes, options), exclude)
    if is_coco_file(options.get("masks") or ""):
        return part_without_excluded(_of_coco(spec, classes, options), exclude)
    if options.get("panoptic_folder") is not None:
        raise UserError("data.panoptic_folder goes with data.masks FILE.json, a file of COCO's panoptic segmentation")
    images, masks = _opened(spec, options, exclude)
    named = None if classes.names is None else read_names(Path(os.path.expanduser(classes.names)))
    count = classes.count if named is None else len(named)
    if classes.count is not None and classes.count != count:
        raise UserError(f"data.num_classes is {classes.count} and {classes.names} names {count}: they must be the same")
    if count is None:
        count = _found(masks, classes, options.get("counts"))
    return _pairs(images, masks, count, named, classes)


def open_unlabelled(
    spec: str, names: Sequence[str], classes: Classes, *, exclude: str | None = None, **options: Unpack[SourceOptions]
) -> Pairs:
    """Open images without masks, or without a look at them, to be predicted. Raises `UserError` as `open_source`."""
    folder = Path(os.path.expanduser(spec))
    inside = next((name for name in IMAGE_FOLDERS if (folder / name).is_dir() and _mask_folder(folder)), None)
    opened = open_any(spec if inside is None else str(folder / inside), options)
    kept = kept_of(opened, spec, options.get("column"), exclude)
    return _pairs(opened_images(opened, spec, options, kept), None, len(names), tuple(names), classes)


def read_names(path: Path) -> tuple[str, ...]:
    """Names of classes, one a line.

    Raises:
        UserError: the file cannot be read, a name is there twice, or there is none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"data.class_names {str(path)!r} cannot be read: {reason}") from None
    names = tuple(line for line in lines if line)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not names:
        found = "holds no name" if not names else f"has {twice!r} twice"
        raise UserError(f"data.class_names {str(path)!r} {found}: give each class a line of its own")
    return names


def _pairs(images: Source, masks: Masks | None, count: int, names: Sequence[str] | None, classes: Classes) -> Pairs:
    if not 1 <= count <= MAX_CLASSES:
        raise UserError(f"there are {count} classes, and there may be 1 to {MAX_CLASSES}: set data.num_classes")
    if classes.first <= classes.ignore < classes.first + count:
        raise UserError(
            f"data.ignore_index {classes.ignore} is the number of one of {counted(count, 'class', 'classes')}: give "
            f"another one, such as {MAX_NUMBER}"
        )
    numbers = ClassNumbers(count, classes.first, classes.ignore)
    named = tuple(names or (f"class_{number + classes.first}" for number in range(count)))
    return Pairs(PairSource(images, masks, numbers), np.arange(len(images)), named, numbers)


def _found(masks: Masks, classes: Classes, cache: Path | None) -> int:
    """How many classes the masks have, by the largest number in them."""
    numbers = [number for number in numbers_in(masks, cache) if number >= classes.first and number != classes.ignore]
    if not numbers:
        raise UserError(
            f"the masks label no pixel: all numbers in them are {classes.ignore} (data.ignore_index) or below "
            f"{classes.first} (data.first_class)"
        )
    if (count := max(numbers) - classes.first + 1) > MAX_CLASSES:
        raise UserError(
            f"the masks have the class number {max(numbers)}, of more than {MAX_CLASSES} classes: numbers of instances "
            "are none of classes; set data.ignore_index if it is no class"
        )
    return count


def _of_land(classes: Classes, options: PairOptions) -> Pairs:
    given = ("masks", "mask_column", "panoptic_folder", "config", "column", "bands", "stack")
    if (other := next((name for name in given if options.get(name) is not None), None)) is not None:
        setting = "channels" if other == "bands" else other
        raise UserError(f"data.{setting} belongs to files and tables: blue_marble has its own images and masks")
    if classes != Classes():
        raise UserError(
            "data.class_names, data.num_classes, data.first_class and data.ignore_index belong to other data: "
            f"blue_marble has the classes {', '.join(CLASSES)}"
        )
    images, masks = open_land_cover(options.get("split", "train"))
    return _pairs(images, masks, len(CLASSES), CLASSES, classes)


def _of_coco(spec: str, classes: Classes, options: PairOptions) -> Pairs:
    file = str(options.get("masks"))
    decoding = options.get("decoding", USUAL)
    rules = MaskRules(options.get("uncovered", "auto"), options.get("panoptic_folder"), classes.known, decoding)
    coco = open_coco_masks(file, rules)
    opened = open_any(spec, options)
    if isinstance(opened, Table):
        raise UserError(f"data.masks {file!r} goes with image files, and data.source {spec!r} is a table")
    check_no_table(spec, options)
    places = {path: place for place, path in enumerate(opened.paths)}
    if missing := [path for path in coco.paths if path not in places]:
        more = f", nor are {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(
            f"{file}: the image {printable(missing[0])} is not in data.source {spec!r}{more}: give the folder that the "
            "names are relative to"
        )
    if twice := len(coco.paths) - len(set(coco.paths)):
        raise UserError(
            f"{file}: {counted(twice, 'image')} of it {'is' if twice == 1 else 'are'} listed twice, by its file_name"
        )
    if unlisted := len(places) - len(coco.paths):
        _log.info("left out: %s of %s that %s does not list", counted(unlisted, "image"), spec, file)
    images = Subset(opened_images(opened, spec, options), [places[path] for path in coco.paths])
    return _pairs(images, coco.masks, len(coco.names), coco.names, Classes(ignore=coco.ignore))


def _opened(spec: str, options: PairOptions, exclude: str | None) -> tuple[Source, Masks]:
    masks, folder = options.get("masks"), Path(os.path.expanduser(spec))
    if masks is None and spec and (beside := _mask_folder(folder)) is not None:
        inside = next((name for name in IMAGE_FOLDERS if (folder / name).is_dir()), None)
        if inside is not None:
            spec, masks = str(folder / inside), str(folder / beside)
    opened = open_any(spec, options)
    kept = kept_of(opened, spec, options.get("column"), exclude)
    images = opened_images(opened, spec, options, kept)
    if isinstance(opened, Table):
        if masks is not None:
            raise UserError(f"data.masks {masks!r} goes with image files, and data.source {spec!r} is a table")
        return images, _column(opened, spec, options, kept)
    check_no_table(spec, options)
    if options.get("mask_column") is not None:
        raise UserError(
            f"data.mask_column {options.get('mask_column')!r} belongs to tables, and data.source {spec!r} is a folder "
            "of images: name the folder of masks as data.masks"
        )
    if masks is None:
        raise NoMasks(
            f"data.source {spec!r} has no masks: name their folder as data.masks, or put images/ and masks/ into one"
        )
    decoding, stacked = options.get("decoding", USUAL), isinstance(opened, StackSource)
    return images, _files(opened.paths, spec, masks, kept, decoding, stacked=stacked)


def _mask_folder(folder: Path) -> str | None:
    return next((name for name in MASK_FOLDERS if (folder / name).is_dir()), None)


def _files(
    paths: Sequence[str], spec: str, masks: str, kept: np.ndarray | None, decoding: DecodeOptions, *, stacked: bool
) -> Masks:
    """The masks of a folder in the order of the images, of which `kept` are not left out; None: all."""
    folder = Path(os.path.expanduser(masks))
    if not folder.is_dir():
        raise UserError(f"data.masks {masks!r} is no folder: give the folder of the masks of data.source {spec!r}")
    listing = list_images(folder, rgb=False)
    files = listing.source(folder)
    files.decoding = decoding
    warn_left_out(files, masks)
    found = _by_stem(files.paths, f"data.masks {masks!r}")
    used = paths if kept is None else [paths[index] for index in kept]
    stems = dict.fromkeys(used, 0) if stacked else _by_stem(used, f"data.source {spec!r}")
    # the mask of an image that is left out is left out with it
    every = stems if kept is None else {path if stacked else os.path.splitext(path)[0]: 0 for path in paths}
    _check_all(stems, found, f"data.source {spec!r}: image", f"no mask in {masks!r}")
    _check_all(found, every, f"data.masks {masks!r}: mask", f"no image in {spec!r}")
    return FileMasks(files, np.array([found[stem] for stem in stems], dtype=np.int64))


def _by_stem(paths: Iterable[str], where: str) -> dict[str, int]:
    """Indices of files by their paths without suffixes, in order."""
    found: dict[str, int] = {}
    for index, path in enumerate(paths):
        stem = os.path.splitext(path)[0]
        if stem in found:
            raise UserError(f"{where} has several files of the name {printable(stem)}: remove all but one")
        found[stem] = index
    return found


def _check_all(stems: Mapping[str, Any], others: Mapping[str, Any], what: str, lacks: str) -> None:
    if missing := [stem for stem in stems if stem not in others]:
        more = f", nor have {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(
            f"{what} {printable(missing[0])} has {lacks}{more}: each image needs a mask of the same name, and each "
            "mask its image"
        )


def _column(table: Table, spec: str, options: PairOptions, kept: np.ndarray | None) -> Masks:
    import datasets

    features, given = table.dataset.features, options.get("mask_column")
    taken = getattr(files_of(table, spec, options.get("column")), "column", None)
    if given is None:
        others = [name for name, kind in features.items() if isinstance(kind, datasets.Image) and name != taken]
        named = [name for name in others if name.lower() in MASK_COLUMNS]
        choice = others if len(others) == 1 else named
        if len(choice) != 1:
            kind = NoMasks if not others else UserError
            raise kind(
                f"data.source {table.name!r} has no evident column of masks besides {taken!r}: set data.mask_column, "
                f"its columns are {columns_text(features)}"
            )
        given = choice[0]
    masks = table.images(given)
    return FileMasks(masks, np.arange(len(masks)) if kept is None else kept)
