"""The regular files below a folder, and their bytes."""

import hashlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from swin_mim.data.decoding.decode_limits import BrokenImage, check_length

_log = logging.getLogger(__name__)


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[tuple[str, int]]:
    """(relative path, size) of the regular files below a folder with one of the suffixes, sorted by path.

    Links are followed; every real file and folder counts once, hidden ones not at all.
    """
    found: list[tuple[str, int]] = []
    unreadable: list[str] = []
    folders = [("", os.path.realpath(root))]  # (relative path, real path)
    seen = {folders[0][1]}
    while folders:
        relative, folder = folders.pop()
        for name, real, status in _entries(folder, unreadable):
            is_folder = stat.S_ISDIR(status.st_mode)
            if real in seen or not (is_folder or name.lower().endswith(suffixes)):
                continue
            seen.add(real)
            path = os.path.join(relative, name)
            if is_folder:
                folders.append((path, real))
            elif stat.S_ISREG(status.st_mode):
                found.append((path, status.st_size))
            else:
                unreadable.append(f"{path!r} is a pipe, a socket or a device")
    if unreadable:
        _log.warning("%s: %d entries cannot be read, the first: %s", root, len(unreadable), unreadable[0])
    return sorted(found)


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


def read_file(path: str) -> bytes:
    try:
        # what was a file when the folder was listed may be a pipe by now, which would block, or a device without end
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BrokenImage("cannot be read: it is no regular file")
            check_length(status.st_size)
            return file.read(status.st_size)
    except OSError as error:
        raise BrokenImage(f"cannot be read: {error.strerror}") from error


def read_below(roots: Sequence[Path], path: str) -> bytes:
    """Read a file that a table names, if it lies below one of `roots`."""
    for root in map(os.path.realpath, roots if "\0" not in path else ()):
        real = os.path.realpath(os.path.join(root, path))
        if real.startswith(os.path.join(root, "")) and os.path.isfile(real):
            return read_file(real)
    raise BrokenImage(f"the table names a file outside the data set, which is not opened: {path!r}")


def sha256(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
