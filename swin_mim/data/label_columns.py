"""Classes from columns of labels: texts, numbers, lists, texts of several labels, and columns of 0 and 1."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.sources.listed import NAME_COLUMNS, ListedFiles
from swin_mim.data.sources.listing import warn_once
from swin_mim.errors import UserError

LABEL_COLUMNS = ("label", "labels", "class", "target", "category")
"""Names that mark the label column of a table where its type does not."""
SEPARATORS = ("|", ";", ",")
"""What stands between the labels of a text; the first that occurs is taken."""

_TRUE, _FALSE, _OFF = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no"), ("-1", "-1.0")


class NoLabels(UserError):
    """There are images, and nothing that says their classes."""


Classes = tuple[tuple[str, ...], np.ndarray]
"""Names of the classes, and targets: int64 (n,), or of images with several labels bool (n, classes)."""


def classes_of(rows: Sequence[Sequence[Any]], known: Sequence[str] | None, where: str, *, multi_label: bool) -> Classes:
    """Number the classes by their order.

    Args:
        rows: the labels of each image: texts, numbers, or places in `known`; just one without `multi_label`.
        known: names of the classes, where the labels are their places; None: the labels that occur.
        where: the column, for messages.

    Raises:
        UserError: there is no label at all.
    """
    present = sorted({value for row in rows for value in row})
    if not present:
        raise UserError(f"{where} has no label in any row")
    names = tuple(known) if known else tuple(map(str, present))
    number = {value: index for index, value in enumerate(range(len(names)) if known else present)}
    if not multi_label:
        return names, np.array([number[row[0]] for row in rows], dtype=np.int64)
    targets = np.zeros((len(rows), len(names)), dtype=bool)
    for index, row in enumerate(rows):
        targets[index, [number[value] for value in row]] = True
    return names, targets


def classes_of_files(
    listed: ListedFiles, label_columns: Sequence[str] | None, *, multi_label: bool
) -> tuple[np.ndarray, Classes]:
    """(int64 places of the files that have a row, ascending; their classes).

    Args:
        label_columns: one column of labels, or several of 0 and 1, each a class; None: the one that is evident, with
            `multi_label` also all others than that of the names, if they are of 0 and 1.

    Raises:
        UserError: rows without a label, rows of one file that differ, values that are no labels; `NoLabels`: no column
            is evident.
    """
    chosen = _chosen(listed, label_columns, multi_label=multi_label)
    where = f"data.label_column {' '.join(chosen)!r} of the table {str(listed.table)!r}"
    cells = [listed.columns[name] for name in chosen]
    row_of: dict[int, int] = {}
    for row, file in enumerate(listed.files.tolist()):
        first = row_of.setdefault(file, row) if file >= 0 else row
        if first != row and any(column[first] != column[row] for column in cells):
            name = listed.columns[listed.column][row]
            labels = " and ".join(repr(column[at]) for column in cells for at in (first, row))
            raise UserError(f"{where} says two things of {name!r}, {labels}: leave one of the rows")
    files = np.array(sorted(row_of), dtype=np.int64)
    values = [[column[row_of[file]] for file in files.tolist()] for column in cells]
    try:
        if len(chosen) > 1:
            return files, _of_indicators(chosen, values, multi_label=multi_label)
        rows = _lists(values[0], where) if multi_label else [[value] for value in _singles(values[0])]
        return files, classes_of(rows, None, where, multi_label=multi_label)
    except _Unfit as error:
        raise UserError(f"{where} {error}") from None


class _Unfit(Exception):
    """Values that are no labels: the end of a sentence."""


def _chosen(listed: ListedFiles, given: Sequence[str] | None, *, multi_label: bool) -> list[str]:
    columns, text = listed.columns, ", ".join(listed.columns)
    if given:
        if unknown := [name for name in given if name not in columns]:
            raise UserError(
                f"data.label_column {unknown[0]!r} is not in the table {str(listed.table)!r}: its columns are {text}"
            )
        return list(given)
    taken = (listed.column, listed.split_column)
    others = [name for name in columns if name not in taken and not re.fullmatch(r"column \d+|Unnamed: \d+", name)]
    named = [name for name in others if name.lower() in LABEL_COLUMNS]
    plain = [name for name in others if name.lower() not in NAME_COLUMNS]
    for choice in (named, plain):
        if len(choice) == 1:
            return choice
    if multi_label and not named and plain and all(_is_indicator(columns[name]) for name in plain):
        return plain
    raise NoLabels(
        f"the table {str(listed.table)!r} has no evident column of labels: set data.label_column, its "
        f"columns are {text}"
    )


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _check_none_missing(values: Sequence[Any]) -> None:
    if missing := sum(map(_is_missing, values)):
        raise _Unfit(f"has {counted(missing, 'row')} without a label: filter them out")


def _singles(values: Sequence[Any]) -> list[Any]:
    """One label for each image; texts of whole numbers become numbers, so that 10 comes after 9."""
    if any(isinstance(value, list) for value in values):
        raise _Unfit("holds lists, and data.multi_label is off: change one of them")
    _check_none_missing(values)
    if all(isinstance(value, bool) for value in values):
        return list(map(str, values))
    if wrong := next((value for value in values if type(value) not in (str, int, float, bool)), None):
        raise _Unfit(f"holds no texts or whole numbers, but {type(wrong).__name__}")
    texts = [value if isinstance(value, str) else repr(value) for value in values]
    if all(re.fullmatch(r"-?(0|[1-9]\d{0,17})(\.0+)?", text) for text in set(texts)):
        return [int(text.partition(".")[0]) for text in texts]
    if all(re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", text, re.IGNORECASE) and "." in text for text in set(texts)):
        raise _Unfit(f"holds decimal numbers such as {texts[0]}: classes are texts or whole numbers")
    return texts


def _lists(values: Sequence[Any], where: str) -> list[list[Any]]:
    """Any number of labels for each image: lists, or texts that are split."""
    if any(isinstance(value, list) for value in values):
        if missing := sum(not isinstance(value, list) or any(map(_is_missing, value)) for value in values):
            raise _Unfit(f"has {counted(missing, 'row')} without a list of labels: filter them out")
        if any(type(label) not in (str, int) for value in values for label in value):
            raise _Unfit("holds lists of something else than texts or whole numbers")
        kinds = {type(label) for value in values for label in value}
        return [list(value) for value in values] if len(kinds) < 2 else [list(map(str, value)) for value in values]
    if all(type(value) in (int, bool) for value in values):
        raise _Unfit("holds single labels, and data.multi_label is on: change one of them")
    texts = ["" if _is_missing(value) else str(value) for value in values]
    separator = next((mark for mark in SEPARATORS if any(mark in text for text in texts)), None)
    how = (
        f"texts are split at {separator!r}"
        if separator
        else f"each text is one label, as none has a {' '.join(SEPARATORS)}"
    )
    empty = sum(not text for text in texts)
    none = f"; {empty:,} of {counted(len(texts), 'image')} {'has' if empty == 1 else 'have'} no label" if empty else ""
    warn_once(f"{where}: {how}{none}")
    parts = [text.split(separator) if separator else [text] for text in texts]
    return [[label for label in map(str.strip, part) if label] for part in parts]


def _mark(value: Any) -> str:
    return str(value).strip().lower()


def _is_indicator(values: Sequence[Any]) -> bool:
    marks = {_mark(value) for value in values}
    return marks <= {*_TRUE, *_FALSE} or marks <= {*_TRUE, *_OFF}


def _of_indicators(names: Sequence[str], columns: Sequence[Sequence[Any]], *, multi_label: bool) -> Classes:
    """Classes of columns that say of each class whether an image has it: 1 and 0, or 1 and -1."""
    for name, values in zip(names, columns, strict=True):
        _check_none_missing(values)
        if not _is_indicator(values):
            raise _Unfit(f"are several columns, and {name!r} holds others than 0 and 1 (or -1 and 1): name one column")
    targets = np.array([[_mark(value) in _TRUE for value in values] for values in columns], dtype=bool).T
    if multi_label:
        return tuple(names), np.ascontiguousarray(targets)
    counts = targets.sum(axis=1)
    if (counts != 1).any():
        raise _Unfit(
            f"are several columns of which not one is 1 in {counted(int((counts != 1).sum()), 'row')}: for images with "
            "any number of labels set data.multi_label"
        )
    return tuple(names), targets.argmax(axis=1).astype(np.int64)
