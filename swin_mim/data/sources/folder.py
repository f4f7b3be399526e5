"""A folder of image files as a source: the regular files below it, and their bytes."""

import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.decoding.decode_limits import MAX_PIXELS, BrokenImage, check_length
from swin_mim.data.sources.base import FileSource
from swin_mim.data.timing import reading
from swin_mim.files import sha256

TABLE_SUFFIXES = (".parquet", ".arrow")

_log = logging.getLogger(__name__)


class FolderSource(FileSource):
    """The image files below a folder, sorted by relative path. Opened by `open_source`."""

    left_out: Mapping[str, int]
    """Files below the folder that are no images, by suffix in lower case or "without a suffix", most frequent first."""
    without_images: Mapping[str, Mapping[str, int]]
    """Folders at the top without any image: what is in each of them instead, by suffix."""

    def __init__(self, root: Path, files: Sequence[tuple[str, int]]) -> None:
        """`files` are (relative path, size in bytes)."""
        self._root = str(root)
        self.left_out, self.without_images = {}, {}
        self.paths = [path for path, _ in files]
        self._sizes = np.array([size for _, size in files], dtype=np.int64)
        # contents are not read: a data set may be terabytes
        lines = (os.fsencode(path) + f"\0{size}\n".encode() for path, size in files)
        self.fingerprint = sha256(lines)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return printable(self.paths[index])

    def content(self, index: int) -> bytes:
        with reading():
            return read_file(str(self.file(index)), self.decoding.max_pixels)

    def file(self, index: int) -> Path:
        """Where it lies."""
        return Path(self._root, self.paths[index])

    def path(self, index: int) -> str | None:
        return self.name(index)

    def inventory(self) -> Iterator[tuple[str, int]]:
        return ((self.name(index), int(size)) for index, size in enumerate(self._sizes))

    def without(self, kept: np.ndarray) -> "FolderSource":
        """As if the other files were not there."""
        folder = FolderSource(Path(self._root), [(self.paths[index], int(self._sizes[index])) for index in kept])
        folder.decoding, folder.left_out, folder.without_images = self.decoding, self.left_out, self.without_images
        return folder


def printable(path: str) -> str:
    """A file name, which may hold any bytes, as text for a line of a log."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[tuple[str, int]]:
    """(relative path, size) of the regular files below a folder with one of the suffixes, sorted by path.

    Links are followed; every real file and folder counts once, hidden ones not at all.
    """
    found: list[tuple[str, int]] = []
    unreadable: list[str] = []
    seen: set[str] = set()
    for path, real, status in walk(root, unreadable):
        if stat.S_ISDIR(status.st_mode) or real in seen or not path.lower().endswith(suffixes):
            continue
        seen.add(real)
        if stat.S_ISREG(status.st_mode):
            found.append((path, status.st_size))
        else:
            unreadable.append(no_regular_file(path))
    warn_unreadable(root, unreadable)
    return sorted(found)


def walk(root: Path, unreadable: list[str]) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield (relative path, real path, status) of all below a folder but hidden names.

    Links are followed; every real folder comes once, and a file as often as there are paths to it. What cannot be read
    is noted in `unreadable`.
    """
    folders = [("", os.path.realpath(root))]  # (relative path, real path)
    seen = {folders[0][1]}
    while folders:
        relative, folder = folders.pop()
        for name, real, status in _entries(folder, unreadable):
            path = os.path.join(relative, name)
            if stat.S_ISDIR(status.st_mode):
                if real in seen:
                    continue
                seen.add(real)
                folders.append((path, real))
            yield path, real, status


def no_regular_file(path: str) -> str:
    """Why a path is left out that is neither a file nor a folder."""
    return f"{path!r} is a pipe, a socket or a device"


def warn_unreadable(root: Path, unreadable: list[str]) -> None:
    """Warn of what `walk` could not read."""
    if unreadable:
        count = counted(len(unreadable), "entry", "entries")
        _log.warning("%s: %s cannot be read, the first: %s", root, count, unreadable[0])


def _entries(folder: str, unreadable: list[str]) -> Iterator[tuple[str, str, os.stat_result]]:
    """(name, real path, status) of what a folder holds, by name; what cannot be read is noted in `unreadable`."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        unreadable.append(str(error))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
            yield entry.name, real, entry.stat()
        except OSError as error:  # a link to nothing, or to itself
            unreadable.append(str(error))


def read_file(path: str, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of a regular file. Raises `BrokenImage`, also for too many or none."""
    try:
        # what was a file when the folder was listed may be a pipe by now, which would block, or a device without end
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BrokenImage("cannot be read: it is no regular file")
            check_length(status.st_size, max_pixels)
            return file.read(status.st_size)
    except OSError as error:
        raise BrokenImage(f"cannot be read: {error.strerror}") from error


def read_below(roots: Sequence[Path], path: str, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of a file that a table names, if it lies below one of `roots`. Raises `BrokenImage`."""
    for root in map(os.path.realpath, roots if "\0" not in path else ()):
        real = os.path.realpath(os.path.join(root, path))
        if real.startswith(os.path.join(root, "")) and os.path.isfile(real):
            return read_file(real, max_pixels)
    raise BrokenImage(f"the table names a file outside the data set, which is not opened: {path!r}")
