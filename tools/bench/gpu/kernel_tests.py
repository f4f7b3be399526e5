"""The kernels' tests as parts that keep their progress: a test that passed is not run again by the same code.

Compiling for them takes minutes. What a killed run came to is read from its log.
"""

import re
from pathlib import Path
from typing import NamedTuple

from tools.bench.gpu.plan import Part
from tools.clone import ROOT

OUTCOME = re.compile(r"^(tests/\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b")
"""A line of pytest -v: `tests/kernels/test_x.py::test_y[a case] PASSED [ 10%]`."""
OVER = ("PASSED", "SKIPPED", "XFAIL")
NOTHING_LEFT = 5
"""Exit code of pytest that has no test to run."""


class Outcomes(NamedTuple):
    passed: list[str]
    """Those that need not run again, in order."""
    failed: list[str]


def arguments(part: Part, passed: list[str]) -> list[str]:
    """Arguments of pytest for the tests that are left; warnings of other versions of a library are no failures."""
    assert part.tests is not None
    options = ["-v", "--tb=short", "-p", "no:cacheprovider", "-W", "default", *part.arguments]
    return [str(part.tests.relative_to(ROOT)), *options, *(f"--deselect={test}" for test in passed)]


def outcomes(log: Path, offset: int) -> Outcomes:
    """What a log says from a byte on."""
    if not log.exists():
        return Outcomes([], [])
    lines = log.read_bytes()[offset:].decode(errors="replace").splitlines()
    found = [match.groups() for line in lines if (match := OUTCOME.match(line))]
    passed = [name for name, outcome in found if outcome in OVER]
    return Outcomes(list(dict.fromkeys(passed)), [name for name, outcome in found if outcome not in OVER])
