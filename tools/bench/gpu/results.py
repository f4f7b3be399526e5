"""The file of all results, OUT/results.json: what each part came to, and what is still to be done.

State of a part:
    unfinished     begun, and cut off by the deadline or by whoever killed the process
    done           not begun again
    not installed  a module is missing; begun again once it is there
    failed         begun again once by a later call, and after that only when the code has changed
"""

import json
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from swin_mim.errors import UserError
from swin_mim.files import replacing, sha256
from tools.bench.gpu.plan import Part
from tools.clone import ROOT

FILE = "results.json"
CODE = ("swin_mim", "tools/bench", "tests/kernels")
"""Folders whose files make the code: a failure of other code is none of this one."""
TRIES = 2
"""How often a part is begun in its place that fails or is cut off; then the others come first."""
Entry = dict[str, Any]
"""state, code, tries, failures, and once it has ended seconds, date and what there is of report, reason, missing; the
tests that passed."""


def read(folder: Path) -> dict[str, Any]:
    """The results in a folder: "environment" and "parts" by name; empty if there are none. Raises `UserError`."""
    file = folder / FILE
    if not file.exists():
        return {"environment": {}, "parts": {}}
    try:
        found = json.loads(file.read_text())
        return {"environment": dict(found["environment"]), "parts": dict(found["parts"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} are no results of tools.bench.gpu: {error!r}; name another folder") from None


def write(folder: Path, results: dict[str, Any]) -> None:
    """Write whole or not at all; what a kill leaves of it is replaced by the next."""
    with replacing(folder / FILE, temporary=folder / f"{FILE}.tmp") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")


def merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """All parts of both; of those in both ours, unless theirs alone is done."""
    parts = dict(theirs["parts"])
    for name, entry in ours["parts"].items():
        if name not in parts or entry["state"] == "done" or parts[name]["state"] != "done":
            parts[name] = entry
    return {"environment": ours["environment"] or theirs["environment"], "parts": parts}


def code_now() -> str:
    """A hash of the code that is measured."""
    files = sorted(file for folder in CODE for file in (ROOT / folder).rglob("*.py"))
    return sha256(part for file in files for part in (str(file.relative_to(ROOT)).encode(), file.read_bytes()))[:12]


def missing(modules: Iterable[str]) -> list[str]:
    return [name for name in modules if find_spec(name) is None]


def is_over(entry: Entry | None, code: str) -> bool:
    """Whether a later call has nothing to do for a part."""
    if entry is None or entry["state"] == "unfinished":
        return False
    if entry["state"] == "not installed":
        return bool(missing(entry["missing"]))
    return entry["state"] == "done" or (entry["code"] == code and entry["failures"] >= TRIES)


def in_order(parts: Sequence[Part], entries: dict[str, Entry], code: str) -> list[Part]:
    """What is to be done: as planned, but what was cut off again and again after all others."""
    left = [part for part in parts if not is_over(entries.get(part.name), code)]
    return sorted(left, key=lambda part: tries(entries.get(part.name), code) >= TRIES)


def begun(entry: Entry | None, code: str) -> Entry:
    """The entry of a part while it runs, which says that it is unfinished if nobody comes to say more."""
    before = entry if entry and entry["code"] == code else {}
    kept = {"passed": before["passed"]} if "passed" in before else {}
    return {
        "state": "unfinished",
        "code": code,
        "tries": before.get("tries", 0) + 1,
        "failures": before.get("failures", 0),
        **kept,
    }


def failed(entry: Entry, reason: str) -> Entry:
    """What a failure adds to the entry of a part."""
    return {"state": "failed", "failures": entry["failures"] + 1, "reason": reason}


def tries(entry: Entry | None, code: str) -> int:
    return entry["tries"] if entry and entry["code"] == code else 0
