"""Images with labels: from class folders, a table of file names, a column of a table, or the embedded maps.

A class is its number in training and its name everywhere else.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.blue_marble.labels import open_tiles_with_labels
from swin_mim.data.decoding.channel_reader import numbers
from swin_mim.data.decoding.multichannel import listed
from swin_mim.data.label_columns import LABEL_COLUMNS, classes_of, classes_of_files
from swin_mim.data.label_columns import NoLabels as NoLabels  # part of what this module offers
from swin_mim.data.sampling import HELDOUT_EPOCH, epoch_order
from swin_mim.data.sources.base import Source, Subset
from swin_mim.data.sources.exclude import part_without_excluded
from swin_mim.data.sources.folder import FolderSource
from swin_mim.data.sources.listed import is_table_file, list_files, tables_beside
from swin_mim.data.sources.listing import counts_text, warn_once
from swin_mim.data.sources.open import SourceOptions, check_no_table, kept_of, open_any, opened_images
from swin_mim.data.sources.stacks import StackSource
from swin_mim.data.sources.tables import Table, columns_text
from swin_mim.errors import UserError
from swin_mim.files import sha256

SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test"}

_LABEL_TYPES = ("string", "large_string", "int", "uint", "bool")  # beginnings of pyarrow's names
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled:
    """Images, and the class or the classes of each."""

    images: Source
    names: tuple[str, ...]
    """Names of the classes, in the order of their numbers."""
    targets: np.ndarray
    """int64 (n,), or where an image has any number of labels bool (n, classes)."""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def multi_label(self) -> bool:
        return self.targets.ndim == 2

    @property
    def fingerprint(self) -> str:
        """Changes with the images, the names and the labels."""
        return sha256([self.images.fingerprint.encode(), repr(self.names).encode(), self.targets.tobytes()])

    def counts(self) -> np.ndarray:
        """int64 (classes,): the images of each class."""
        if self.multi_label:
            return self.targets.sum(axis=0)
        return np.bincount(self.targets, minlength=len(self.names))

    def take(self, indices: np.ndarray) -> "Labelled":
        """Some of the images, in the given order; the classes stay."""
        return Labelled(Subset(self.images, indices), self.names, self.targets[indices])


class LabelOptions(SourceOptions, total=False):
    """How images with labels are opened. What is left out has its default."""

    labels: str | None
    """A table of the names of files below the source, and of their labels; None: what lies beside the images says."""
    label_column: str | Sequence[str] | None
    """The column of labels of a table; None: the only one of classes, or with a usual name. Of a table of file names
    also several columns of 0 and 1, each a class."""
    multi_label: bool
    """Images have any number of labels: the column holds lists, or texts with | ; or , between the labels."""
    other_split: str | None
    """Where a table of file names has no split "train": rows that are left out, because they are for evaluation."""


def open_labelled(spec: str, *, exclude: str | None = None, **options: Unpack[LabelOptions]) -> Labelled:
    """Open a folder of class folders or with a table of labels, such a table, a table of images, or blue_marble.

    The first folder on the path of an image, below the source, is its class, unless a table of file names and labels
    lies at the top and there are no class folders, or options ask for it. In a table the labels are classes of the
    `datasets` library, texts, or whole numbers. Other options as in `open_source`.

    Args:
        exclude: a file of names of images that are left out, as `kept_indices` takes it.

    Raises:
        UserError: an image without a label, a class folder without an image, or a table that does not fit the files;
            `NoLabels`: nothing says the labels.
    """
    given = options.get("label_column")
    columns = (given,) if isinstance(given, str) else tuple(given or ())
    if spec == "blue_marble":
        return part_without_excluded(_of_tiles(columns, options), exclude)
    labels = options.get("labels")
    if is_table_file(spec):
        if labels is not None:
            raise UserError(
                f"data.source {spec!r} is a table of files, and data.labels {labels!r} another: data.source is the "
                "folder of the images then"
            )
        spec, labels = os.path.dirname(spec) or ".", spec
    opened = open_any(spec, options)
    if isinstance(opened, Table):
        if labels is not None or len(columns) > 1:
            setting = f"data.labels {labels!r}" if labels is not None else "a data.label_column of several"
            raise UserError(f"{setting} goes with image files, and data.source {spec!r} is a table of images")
        images = opened_images(opened, spec, options)
        multi_label = options.get("multi_label", False)
        found = _of_table(opened, images, *columns[:1] or (None,), multi_label=multi_label)
        return part_without_excluded(found, exclude)
    if labels is None:
        labels = _table_beside(opened.paths, spec, options)
    if labels is not None:
        images, table = opened_images(opened, spec, options), Path(os.path.expanduser(labels))
        return part_without_excluded(_of_files(table, images, opened.paths, spec, columns, options), exclude)
    check_no_table(spec, options)
    multi_label = options.get("multi_label", False)
    if multi_label or columns:
        setting = "data.multi_label" if multi_label else f"data.label_column {' '.join(columns)!r}"
        text = f"{setting} belongs to tables, and data.source {spec!r} is a folder of images: "
        text += "leave it out, or name a table of its files with data.labels"
        raise UserError(text) if columns else NoLabels(text)
    if isinstance(opened, FolderSource):
        _check_class_folders(opened, spec)
    kept = kept_of(opened, spec, None, exclude)
    paths = opened.paths if kept is None else [opened.paths[index] for index in kept]
    return _of_folder(opened_images(opened, spec, options, kept), paths, spec)


def _of_tiles(columns: Sequence[str], options: LabelOptions) -> Labelled:
    """The tiles of blue_marble."""
    if any(options.get(name) for name in ("multi_label", "config", "column", "labels")):
        raise UserError("data.multi_label, data.config and data.column belong to tables: blue_marble has none of them")
    if (bands := options.get("bands")) is not None:
        wanted = listed(bands.channels or numbers(bands.count))
        raise UserError(f"blue_marble is RGB, and images of other channels are wanted ({wanted}): name another source")
    return Labelled(*open_tiles_with_labels(options.get("split", "train"), " ".join(columns) or "coast"))


def _table_beside(paths: Sequence[str], spec: str, options: LabelOptions) -> str | None:
    """The table of labels at the top of a folder of images; None: there is none, or class folders say the labels."""
    split = options.get("split", "train")
    found = tables_beside(Path(os.path.expanduser(spec)), split)
    asked = any(options.get(name) for name in ("label_column", "multi_label", "column")) or split != "train"
    tops = {path.split("/", 1)[0] for path in paths if "/" in path}
    loose = any("/" not in path for path in paths)
    if found and not asked and not loose and len(tops) > 1 and not _are_splits(tops):
        _log.warning(
            "data.source %r: the folders at its top are the classes; for the labels of %s name it as data.labels",
            spec,
            found[0].name,
        )
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"data.source {spec!r} has several tables, {names}: name that of the labels with data.labels")
    return str(found[0]) if found else None


def _of_files(
    table: Path, images: Source, paths: Sequence[str], spec: str, columns: Sequence[str], options: LabelOptions
) -> Labelled:
    """Images that a table of file names gives labels to."""
    if options.get("config") is not None:
        raise UserError(f"data.config {options.get('config')!r} belongs to data sets, and {str(table)!r} is a file")
    named = list_files(
        table,
        Path(os.path.expanduser(spec)),
        paths,
        column=options.get("column"),
        split=options.get("split", "train"),
        other_split=options.get("other_split"),
    )
    files, classes = classes_of_files(named, columns or None, multi_label=options.get("multi_label", False))
    return Labelled(images if len(files) == len(images) else Subset(images, files), *classes)


def _check_class_folders(source: FolderSource, spec: str) -> None:
    """Raise a UserError for a class of which nothing can be read; an empty folder is told in the log."""
    for name, counts in source.without_images.items():
        if counts:
            raise UserError(
                f"data.source {spec!r}: class {name!r} has {counted(sum(counts.values()), 'file')}, and none is an "
                f"image that can be read: {counts_text(counts)}. Convert them, or move the folder elsewhere"
            )
    if empty := [name for name, counts in source.without_images.items() if not counts]:
        warn_once(f"data.source {spec!r}: empty folders are no classes: {_some(empty)}")


def _are_splits(names: Iterable[str]) -> bool:
    return {name.lower() for name in names} <= SPLIT_FOLDERS


def check_classes(labelled: Labelled, spec: str) -> None:
    """Raise a UserError for images to train on that are all of one class; `spec` is what they were opened by."""
    present = [name for name, count in zip(labelled.names, labelled.counts(), strict=True) if count]
    if len(present) < 2 - labelled.multi_label:
        raise UserError(f"data.source {spec!r} has images of one class only, {present[0]!r}: nothing to tell apart")


def labels_of_folder(source: FolderSource | StackSource) -> Labelled | None:
    """The classes that folders say, of a folder which need not have any; None: it has none, or only one."""
    try:
        labelled = _of_folder(source, source.paths, "")
    except UserError:
        return None
    return labelled if len(labelled.names) > 1 else None


def split_labelled(labelled: Labelled, count: int, seed: int) -> tuple[Labelled, Labelled]:
    """(training, held out): about `count` images, 0 for a tenth and never more, of each class its share.

    How many of a class is decided by the numbers of images of all, which ones by (seed, class, number of its images).
    Every class keeps an image to train on; images with several labels are drawn together, whatever these are.
    """
    members = _members(labelled)
    held = []
    for number, wanted in enumerate(_shares([len(each) for each in members], count or len(labelled))):
        order = epoch_order(len(members[number]), seed, HELDOUT_EPOCH - 1 - number)
        held.append(members[number][order[:wanted]])
    out = np.zeros(len(labelled), dtype=bool)
    out[np.concatenate(held)] = True
    return labelled.take(np.flatnonzero(~out)), labelled.take(np.flatnonzero(out))


def labels_per_class(labelled: Labelled, count: int, seed: int) -> Labelled:
    """`count` images of each class, chosen by (seed, class, number of its images): a larger count has them too.

    A class that has fewer gives all that it has, with a warning.
    """
    assert not labelled.multi_label, "an image of several classes belongs to no single one"
    chosen, short = [], []
    for number, members in enumerate(_members(labelled)):
        order = epoch_order(len(members), seed, number)
        chosen.append(members[order[:count]])
        if len(members) < count:
            short.append(f"{labelled.names[number]} {len(members)}")
    if short:
        _log.warning("%s per class: some classes have fewer images: %s", counted(count, "label"), _some(short))
    return labelled.take(np.sort(np.concatenate(chosen)))


def class_weights(labelled: Labelled) -> np.ndarray:
    """float32 (classes,): the inverse of each class's share of the images, so that their mean over the images is 1.

    A class without images has 0: label smoothing would make it all of the loss.
    """
    counts = labelled.counts()
    weights = len(labelled) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0).astype(np.float32)


def with_classes(labelled: Labelled, names: Sequence[str]) -> Labelled:
    """The same images with the class numbers of `names`, which a model was or will be trained for.

    Raises:
        UserError: there is a class that is none of them.
    """
    unknown = [
        name for name, count in zip(labelled.names, labelled.counts(), strict=True) if name not in names and count
    ]
    if unknown:
        raise UserError(
            f"the images to evaluate on have classes that the model does not know: {_some(unknown)}; "
            f"it knows {_some(names)}"
        )
    number = {name: index for index, name in enumerate(names)}
    if labelled.multi_label:
        targets = np.zeros((len(labelled), len(names)), dtype=bool)
        for index, name in enumerate(labelled.names):
            if name in number:
                targets[:, number[name]] = labelled.targets[:, index]
    else:
        targets = np.array([number.get(name, -1) for name in labelled.names], dtype=np.int64)[labelled.targets]
    return Labelled(labelled.images, tuple(names), targets)


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """How many of each class are held out: in sum `count` or a tenth of all, but of none all (largest remainders)."""
    total = min(count, sum(sizes) // 10)
    exact = [total * size / max(sum(sizes), 1) for size in sizes]
    shares = [int(each) for each in exact]
    missing = total - sum(shares)
    spare = [k for k, size in enumerate(sizes) if size > shares[k] + 1]
    for number in sorted(spare, key=lambda k: (shares[k] - exact[k], k))[:missing]:
        shares[number] += 1
    return shares


def _members(labelled: Labelled) -> list[np.ndarray]:
    """The indices of the images of each class; of images with several, all together."""
    if labelled.multi_label:
        return [np.arange(len(labelled))]
    return [np.flatnonzero(labelled.targets == number) for number in range(len(labelled.names))]


def _of_folder(images: Source, paths: Sequence[str], spec: str) -> Labelled:
    # a file name may hold any bytes, a class's name only text
    paths = [os.fsencode(path).decode(errors="backslashreplace") for path in paths]
    tops = [path.split("/", 1) for path in paths]
    loose = next((path for path, parts in zip(paths, tops, strict=True) if len(parts) == 1), None)
    if loose is not None:
        raise NoLabels(
            f"data.source {spec!r} has images outside of class folders, such as {loose}: "
            "it needs one folder for each class, or a table of file names and labels (data.labels)"
        )
    names = tuple(sorted({parts[0] for parts in tops}))
    if _are_splits(names):
        raise UserError(
            f"data.source {spec!r} holds {', '.join(names)}: these are splits, not classes: "
            f"use --data.source {spec.rstrip('/')}/{names[0]} and --data.validation for another one"
        )
    number = {name: index for index, name in enumerate(names)}
    return Labelled(images, names, np.array([number[parts[0]] for parts in tops], dtype=np.int64))


def _of_table(table: Table, images: Source, label_column: str | None, *, multi_label: bool) -> Labelled:
    import datasets

    label_column = _label_column(table, label_column)
    kind = table.dataset.features[label_column]
    inner = getattr(kind, "feature", kind)
    if not isinstance(inner, datasets.ClassLabel | datasets.Value) or not inner.dtype.startswith(_LABEL_TYPES):
        raise UserError(
            f"data.label_column {label_column!r} of data.source {table.name!r} holds no classes, texts or "
            f"whole numbers: its columns are {columns_text(table.dataset.features)}"
        )
    values = table.dataset.with_format(None).select_columns([label_column])[label_column]
    rows = [list(value) if isinstance(value, list) else [value] for value in values]
    where = f"data.label_column {label_column!r} of data.source {table.name!r}"
    if any(isinstance(value, list) for value in values) != multi_label:
        held, wanted = ("lists", "off") if not multi_label else ("single labels", "on")
        raise UserError(f"{where} holds {held}, and data.multi_label is {wanted}: change one of them")
    # the datasets library marks a class that is not told by -1; in a column of numbers it is one like the others
    unknown = (None, -1) if isinstance(inner, datasets.ClassLabel) else (None,)
    missing = sum(any(value in unknown for value in row) for row in rows)
    if missing:
        raise UserError(
            f"{where} has {counted(missing, 'row')} without a label: choose another data.split, or filter them out"
        )
    known = getattr(inner, "names", None)
    return Labelled(images, *classes_of(rows, known, where, multi_label=multi_label))


def _label_column(table: Table, wanted: str | None) -> str:
    """The column of labels: the given one, else the only one by type, else the only one by name."""
    import datasets

    features: Mapping[str, Any] = table.dataset.features
    if wanted is not None:
        if wanted not in features:
            raise UserError(
                f"data.label_column {wanted!r} is not in data.source {table.name!r}: "
                f"its columns are {columns_text(features)}"
            )
        return wanted
    typed = [name for name, kind in features.items() if isinstance(getattr(kind, "feature", kind), datasets.ClassLabel)]
    named = [name for name in features if name.lower() in LABEL_COLUMNS]
    for choice in (typed, named):
        if len(choice) == 1:
            return choice[0]
    raise NoLabels(
        f"data.source {table.name!r} has no evident column of labels: set data.label_column, "
        f"its columns are {columns_text(features)}"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
