"""Files of one JSON object a line, which survive that a process is killed while it writes."""

import json
import os
from pathlib import Path
from typing import Any


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Add one line; the torn end of an earlier one stays a line of its own."""
    with path.open("ab+") as file:
        torn = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + json.dumps(entry).encode() + b"\n")


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
