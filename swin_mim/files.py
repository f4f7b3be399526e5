"""Files that are replaced in one step, hashed and locked."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

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
    try:
        held.acquire(blocking=cancelled is not None, poll_interval=_POLL, cancel_check=cancelled)
    except Timeout:
        raise LockHeld(str(path)) from None
    return held
