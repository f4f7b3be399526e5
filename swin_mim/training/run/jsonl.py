"""Files that tell of a run: one JSON object a line, which survives that a process is killed while it writes."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Add one line; the torn end of an earlier one stays a line of its own.

    A disk that does not take it costs the line, with a warning, and not the run that it tells of.
    """
    with disk_may_fail(f"a line of {path.name}"), path.open("ab+") as file:
        torn = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + json.dumps(entry).encode() + b"\n")


def timestamp() -> str:
    """ "2026-01-31T12:00:00+0100" """
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


@contextmanager
def disk_may_fail(what: str) -> Iterator[None]:
    """What a run can do without: if the disk is full, read-only or gone it is left out, with a warning."""
    try:
        yield
    except OSError as error:
        _LOG.warning("%s could not be written (%s): the run goes on without it", what, error.strerror or error)


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a file, which may be missing, without lines that were torn."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # a process was killed in the middle of it
    return entries
