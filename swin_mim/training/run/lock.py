"""One run at a time in a folder."""

import json
import logging
import os
import socket
import time
from pathlib import Path

from filelock import FileLock

from swin_mim import files
from swin_mim.errors import UserError
from swin_mim.training.run.jsonl import disk_may_fail, timestamp

LOCK = "run.lock"

_PATIENCE = 1.0  # seconds: longer than `is_held` has a lock, also on a busy machine
_LOG = logging.getLogger(__name__)


def lock(folder: Path) -> FileLock | None:
    """Hold a run's folder until the lock is released or forgotten, or until this process ends, however it ends.

    The system gives the lock back with the process, so that none is ever left over. Processes that are forked from this
    one, such as workers, do not have it. None, with a warning: the file system has no locks.

    Raises:
        UserError: another process has it; says which, where and since when. Or the folder cannot be written to.
    """
    path = folder / LOCK
    try:
        path.open("a").close()
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror}): choose another run.root or run.name") from None
    held, until = None, time.monotonic() + _PATIENCE
    try:
        held = files.lock(path, cancelled=lambda: time.monotonic() > until)
    except files.LockHeld:
        raise UserError(
            f"{folder} is in use by {_described(path.read_text())}: wait for its end or stop it, or start another run "
            "with --run.name"
        ) from None
    except OSError as error:
        _LOG.warning("%s cannot be locked (%s): nothing keeps two runs out of this folder", path, error.strerror)
    name = {"host": socket.gethostname(), "process": os.getpid(), "since": timestamp()}
    with disk_may_fail(f"the name of the holder in {path}"):
        path.write_text(json.dumps(name))
    return held


def is_held(folder: Path) -> bool | None:
    """Whether a process has a run's folder now. None: nobody can tell here.

    That is so where another machine had it last, and where the file system or the system has no such locks. Nothing is
    written; a run that begins in the same instant waits for the answer.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        with (folder / LOCK).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False if _host(file.read()) == socket.gethostname() else None
    except OSError:  # no such file, or no locks
        return None


def _host(text: bytes) -> str | None:
    """Name of the machine that had the lock last; None: its holder was gone before it had written that."""
    try:
        return str(json.loads(text)["host"])
    except (ValueError, KeyError, TypeError):
        return None


def _described(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it has the lock and has not written its name yet
        return "another process"
