"""One run at a time in a folder."""

import json
import logging
import os
import socket
from pathlib import Path

from filelock import FileLock

from swin_mim import files
from swin_mim.errors import UserError
from swin_mim.training.run.jsonl import disk_may_fail, timestamp

LOCK = "run.lock"

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
    held = None
    try:
        held = files.lock(path)
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


def _described(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it has the lock and has not written its name yet
        return "another process"
