"""Files that are replaced in one step, hashed and locked."""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from swin_mim.errors import CANNOT_WRITE, UserError

_POLL = 0.05  # seconds between two attempts to take a lock


class LockHeld(Exception):
    """Another process or thread has the lock."""


@contextmanager
def replacing(path: Path, *, temporary: Path | None = None, durable: bool = False) -> Iterator[Path]:
    """Yield a path to write to, which takes the place of `path` when the block ends: nobody ever sees half a file.

    After an error `path` is as it was, and the temporary file is removed.

    Args:
        temporary: in the same folder as `path`; None: ".NAME.PROCESS.tmp", so that two processes do not mix.
        durable: return only after content and name are on the disk, so that they survive a power cut.
    """
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            flush(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # the error that led here says more
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        flush(path.parent)


def replace_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a UTF-8 text file whole or not at all; `durable` as in `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    replace_text(path, json.dumps(value, indent=1) + "\n")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A disk that does not take it: a `UserError`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        way_out = "make room, the same command goes on where this one ended" if full else "name another folder"
        message = f"cannot write {folder}: {error.strerror or error}: {way_out}"
        raise UserError(message, code=CANNOT_WRITE) from error


@contextmanager
def said_of_disk(path: Path) -> Iterator[None]:
    """Raise a `UserError` where a file cannot be written, also by torch's writer of archives."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}") from error
    except RuntimeError as error:
        if "inline_container" not in str(error):  # all that torch says of a disk
            raise
        raise UserError(f"{path} could not be written: the disk is full, or takes no files there") from error


def flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """SHA-256 in hex of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(parts: Iterable[bytes]) -> str:
    """SHA-256 in hex of byte strings one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def lock(path: Path, *, cancelled: Callable[[], bool] | None = None) -> FileLock:
    """Lock a file until `release()`, or until this process ends in whatever way.

    The file is made if it is missing; its content stays, and so does the file. Processes that are forked from this one,
    such as workers, do not have the lock.

    Args:
        cancelled: whether to stop waiting for the lock; None: do not wait.

    Raises:
        LockHeld: another process or thread has it (and `cancelled` gave up).
        OSError: the file cannot be opened for writing, or its file system has no locks.
    """
    held = FileLock(path, thread_local=False, fallback_to_soft=False)
    while True:
        try:
            held.acquire(blocking=False)
        except Timeout:
            if cancelled is None or cancelled():
                raise LockHeld(str(path)) from None
            time.sleep(_POLL)
        else:
            return held
