"""The files below a folder that the rows of a table name, as in a CSV file of file names and labels."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.sources.columns import Columns, holds_images, read_columns
from swin_mim.data.sources.folder import printable
from swin_mim.data.sources.listing import TABLE_FILES, warn_once
from swin_mim.errors import UserError

NAME_COLUMNS = (
    *("file_name", "filename", "file", "file_path", "filepath", "path", "image_path", "img_path", "image", "img"),
    *("image_name", "img_name", "image_file", "image_id", "img_id", "image_index", "name", "id", "key", "uid"),
)
"""Usual names of a column of file names, in lower case and with _ for spaces: the first that fits is taken."""
SPLIT_COLUMNS = ("split", "partition", "subset", "fold", "set")
"""Names of a column that says which part of a data set a row belongs to."""

_SAMPLE = 200  # rows by which the column of file names is found


@dataclass(frozen=True)
class ListedFiles:
    """A table of file names, and the files that its rows mean."""

    table: Path
    columns: Columns
    column: str
    """The column of file names."""
    split_column: str | None
    files: np.ndarray
    """int64 (rows,): place of the file among the paths that the table was matched with; -1: there is none, or the row
    belongs to another split."""


def is_table_file(spec: str) -> bool:
    """Whether a source is called like a file that can name files."""
    return spec.lower().endswith(TABLE_FILES) and not os.path.isdir(os.path.expanduser(spec))


def tables_beside(folder: Path, split: str) -> list[Path]:
    """Tables at the top of a folder of images which may be of their labels: the most likely one, or all alike."""
    found = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(TABLE_FILES) and path.is_file()]
    found = [path for path in found if path.name[0] != "."]
    for stem in ("metadata", split.lower(), "labels"):
        if chosen := [path for path in found if path.stem.lower() == stem]:
            found = chosen
            break
    return [path for path in found if path.suffix.lower() not in (".parquet", ".arrow") or not holds_images(path)]


def list_files(
    table: Path,
    root: Path,
    paths: Sequence[str],
    *,
    column: str | None = None,
    split: str = "train",
    other_split: str | None = None,
) -> ListedFiles:
    """Read a table and find the files that its rows name. What has no counterpart is told in the log.

    A name is relative to `root`, or else to the folder of the table; it may lack its suffix, or its folders if no
    other file is called so. Case counts only where it has to.

    Args:
        paths: of the files below `root`: nothing else is ever opened.
        column: that of the names; None: the one that fits.
        split: rows to take, if the table has a column of splits.
        other_split: where `split` is "train" and the table has no such rows, take all others than these.

    Raises:
        UserError: the table cannot be read, or most of its rows and files do not fit.
    """
    columns = read_columns(table)
    lookup = _Lookup(paths, os.path.realpath(root), os.path.realpath(table.parent))
    name = _name_column(table, columns, lookup, column)
    files = np.array([lookup(cell) for cell in columns[name]], dtype=np.int64)
    _check_matches(table, root, paths, columns[name], files)
    split_column = next((key for key in columns if _plain(key) in SPLIT_COLUMNS and key != name), None)
    files[~_rows_of_split(table, columns, split_column, split, other_split)] = -1
    if not (files >= 0).any():
        raise UserError(f"the table {str(table)!r} names no file of data.split {split!r} below {str(root)!r}")
    return ListedFiles(table, columns, name, split_column, files)


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _folded(path: str) -> str:
    return path.lower() if path.isascii() else unicodedata.normalize("NFC", path).casefold()


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


class _Lookup:
    """Finds a file by what a table calls it."""

    _KEYS: tuple[Callable[[str], str], ...] = (
        _folded,
        lambda path: _stem(_folded(path)),
        lambda path: posixpath.basename(_folded(path)),
        lambda path: _stem(posixpath.basename(_folded(path))),
    )

    def __init__(self, paths: Sequence[str], root: str, folder: str) -> None:
        """`root` and `folder` (that of the table) are real paths."""
        self._paths, self._root, self._folder = paths, root, folder
        self._exact = {path: place for place, path in enumerate(paths)}
        self._places: list[dict[str, int]] = []

    def __call__(self, cell: Any) -> int:
        """Place of the file; -1: there is none, or there are several."""
        text = self.text(cell)
        if (place := self._exact.get(text)) is not None:
            return place
        names = [name for name in self.relative(text) if not name.startswith("../")]
        for name in names:
            if (place := self._exact.get(name)) is not None:
                return place
        for level in range(len(self._KEYS)):
            for name in names:
                if level > 1 and "/" in name:
                    continue
                if (place := self._level(level).get(_folded(name))) is not None:
                    return place
        return -1

    @staticmethod
    def text(cell: Any) -> str:
        return cell.replace("\\", "/") if isinstance(cell, str) else str(cell) if type(cell) is int else ""

    def relative(self, text: str) -> list[str]:
        """Paths below the root, or with .. in front, that a cell may mean; none of addresses."""
        if not text or "\0" in text or re.match(r"[a-z]:/|[a-z0-9]+://", text, re.IGNORECASE):
            return []
        if text.startswith("/"):
            return [posixpath.relpath(posixpath.normpath(text), self._root)]
        names = [posixpath.normpath(text)]
        if self._folder != self._root:
            names.append(posixpath.relpath(posixpath.join(self._folder, text), self._root))
        return names

    def _level(self, level: int) -> dict[str, int]:
        while len(self._places) <= level:
            places: dict[str, int] = {}
            key = self._KEYS[len(self._places)]
            for place, path in enumerate(self._paths):
                name = key(path)
                places[name] = -1 if name in places else place  # of several none is meant
            self._places.append(places)
        return self._places[level]


def _name_column(table: Path, columns: Columns, lookup: _Lookup, given: str | None) -> str:
    """The column of file names: the given one, else a usual one, else the one that fits best."""
    if given is not None:
        if given not in columns:
            raise UserError(f"data.column {given!r} is not in the table {str(table)!r}: it has {', '.join(columns)}")
        return given
    count = len(next(iter(columns.values())))
    rows = np.linspace(0, count - 1, min(_SAMPLE, count)).astype(int).tolist()

    def share(name: str) -> float:
        return sum(lookup(columns[name][row]) >= 0 for row in rows) / len(rows)

    usual = sorted(
        (name for name in columns if _plain(name) in NAME_COLUMNS), key=lambda n: NAME_COLUMNS.index(_plain(n))
    )
    if (fits := next((name for name in usual if share(name) >= 0.5), None)) is not None:
        return fits
    best = max(columns, key=share)
    return best if share(best) or not usual else usual[0]


def _check_matches(table: Path, root: Path, paths: Sequence[str], cells: Sequence[Any], files: np.ndarray) -> None:
    """Tell what has no counterpart. Raises a UserError if that is nearly everything."""
    missing = np.flatnonzero(files < 0)
    found = np.zeros(len(paths), dtype=bool)
    found[files[files >= 0]] = True
    bare = np.flatnonzero(~found)
    if len(missing) == len(files) or (2 * len(missing) > len(files) and len(bare)):
        raise UserError(_mismatch(table, root, cells[int(missing[0])], paths[int(bare[0])], len(missing), len(files)))
    told = []
    if len(missing):
        verb = "names" if len(missing) == 1 else "name"
        told.append(
            f"{len(missing):,} of {counted(len(files), 'row')} {verb} no file below {str(root)!r}, the first: "
            f"{cells[int(missing[0])]!r}"
        )
    if len(bare):
        has = "has no row and is" if len(bare) == 1 else "have no row and are"
        told.append(
            f"{len(bare):,} of {counted(len(paths), 'image file')} {has} left out, the first: "
            f"{printable(paths[int(bare[0])])}"
        )
    if told:
        warn_once(f"the table {str(table)!r}: {'; '.join(told)}")


def _mismatch(table: Path, root: Path, cell: Any, path: str, missing: int, rows: int) -> str:
    """Why rows and files do not fit, with the way out."""
    text = (
        f"{missing:,} of {counted(rows, 'row')} of the table {str(table)!r} name no image file below {str(root)!r}: a "
        f"row says {cell!r}, and a file is {printable(path)!r}"
    )
    if outside := _way_outside(table, root, cell):
        return f"{text}. {outside}"
    return (
        f"{text}. Names are relative to data.source or to the table: name their column with data.column, or their "
        "folder with data.source and the table with data.labels"
    )


def files_outside(table: Path, root: Path) -> str | None:
    """The way out, where a table names files that are there, but not below a folder; None: its first row does not.

    Raises:
        UserError: as `read_columns`.
    """
    columns = read_columns(table)
    for name in sorted(columns, key=lambda name: _plain(name) not in NAME_COLUMNS):
        if text := _way_outside(table, root, columns[name][0]):
            return text
    return None


def _way_outside(table: Path, root: Path, cell: Any) -> str | None:
    name, folder, top = _Lookup.text(cell), os.path.realpath(table.parent), os.path.realpath(root)
    target = posixpath.normpath(posixpath.join(folder, name))
    if not name or "\0" in name or not os.path.isfile(target) or target.startswith(posixpath.join(top, "")):
        return None
    both = os.path.commonpath([folder, top, os.path.dirname(target)])
    return (
        f"{cell!r} lies outside of {str(root)!r}: give the folder of both as --data.source {both}, and to fine-tune "
        f"the table as --data.labels {table}"
    )


def _rows_of_split(table: Path, columns: Columns, name: str | None, split: str, other: str | None) -> np.ndarray:
    """bool (rows,): which belong to a split."""
    count = len(next(iter(columns.values())))
    if name is None:
        if split != "train" and table.stem.lower() != split.lower():
            raise UserError(
                f"the table {str(table)!r} has no column {' or '.join(SPLIT_COLUMNS)}, which data.split "
                f"{split!r} needs: leave that out, or name a table of these rows"
            )
        return np.ones(count, dtype=bool)
    values = np.array([str(value) for value in columns[name]])
    chosen = np.char.lower(values) == split.lower()
    if not chosen.any():
        if split != "train":
            known = sorted(set(values.tolist()))[:10]
            raise UserError(
                f"the table {str(table)!r} has no split {split!r} in its column {name!r}: {', '.join(known)}"
            )
        chosen = np.ones(count, dtype=bool) if other is None else np.char.lower(values) != other.lower()
    if not chosen.all():
        warn_once(
            f"the table {str(table)!r}: {int(chosen.sum()):,} of {counted(count, 'row')} taken, by its column {name!r} "
            f"for data.split {split!r}"
        )
    return chosen
