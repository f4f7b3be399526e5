"""Everything that a GPU machine has to show, in one command that can be stopped, killed and continued.

    python -m tools.bench.gpu OUT                                  # as long as it takes
    python -m tools.bench.gpu OUT --minutes 9                      # as often as it takes; OUT is kept
    python -m tools.bench.gpu OUT --minutes 9 --have EARLIER       # OUT is empty, EARLIER is what it held before
    python -m tools.bench.gpu OUT --dry                            # the same way with a tiny model, on a CPU

It needs torch, numpy and triton. A part that needs another library says that it is not installed, and is begun again
once it is there. First come the kernels' tests and our steps, then those of the others, the recipe and the loader, the
breakdown, and everything again at other batch sizes.

OUT has few files, none of them large: results.json with all parts, which is written when a part begins and when it
ends; log.txt, what they wrote; table.md, made of whatever is there; cache-0.zip and so on, what the compilers made. So
a kill costs the part that runs, and what that one compiled is packed every 10 seconds and not compiled again. A folder
that was handed out and is not writable is named with --have: its content goes into OUT first.

A part is one model, batch size, system and mode. In that of another system ours takes turns with it: what it is
compared to is measured in the same minute, by the same process, and has been compiled already. A part whose models are
compiled spends nearly all of its time with that, and its repeats take seconds: they are not kept one by one. Every part
measures the rate of a matrix product, too: where the column "of matmul" is steady and images/s are not, the machine was
another.
"""

import argparse
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import torch

from swin_mim.errors import Parser, UserError, one_line_errors
from tools.bench.__main__ import names_of
from tools.bench.gpu import caches, kernel_tests, results
from tools.bench.gpu.plan import DRY, GPU, Part, parts_of
from tools.bench.gpu.running import call, terminated_as_interrupted
from tools.bench.gpu.table import markdown
from tools.bench.report import PACKAGES, cpu_name, version_of
from tools.bench.settings import SYSTEMS, check_microsoft

UNFINISHED = 75
"""Exit code: something is left, the same command goes on (EX_TEMPFAIL)."""
LOG, TABLE = "log.txt", "table.md"
MISSING = re.compile(r"No module named '?([A-Za-z0-9_]+)|not installed: ([A-Za-z0-9_]+)")
END_OF_LOG = 4000
"""Bytes that are looked through for the reason of a failure."""


class Run(NamedTuple):
    """What every part needs to know."""

    out: Path
    cache: Path
    found: dict[str, Any]
    """The content of results.json."""
    code: str
    deadline: float
    """Of `time.monotonic`."""

    @property
    def entries(self) -> dict[str, results.Entry]:
        return self.found["parts"]


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors("stopped: the same command goes on"), terminated_as_interrupted():
        options = parse(arguments)
        run = prepare(options)
        microsoft = options.microsoft and str(Path(options.microsoft).resolve())
        parts = named(parts_of(DRY if options.dry else GPU, microsoft, options.systems), options.only)
        try:
            measure(parts, run)
        finally:
            keep(run, settled=caches.SETTLED)
            print_now(f"see {run.out / TABLE}")
        sys.exit(exit_code(parts, run))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m tools.bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out", help="folder of the results; what is there is not measured again")
    add("--have", metavar="FOLDER", help="what OUT held after an earlier call; only read")
    add("--microsoft", metavar="PATH", help="a checkout of github.com/microsoft/SimMIM; its steps are measured too")
    add("--minutes", type=float, default=600, help="after which it stops; the same command goes on")
    add("--only", action="append", metavar="PATTERN", help="only the parts with such a name, as "
        "'step_swin_base_192_w6_*'; several times: in this order")  # fmt: skip
    add("--systems", type=names_of(SYSTEMS), default=SYSTEMS, help="as of tools.bench; default: all. Compiling four "
        "others takes minutes for each batch size")  # fmt: skip
    add("--cache", metavar="FOLDER", default=str(Path(tempfile.gettempdir(), "swin_mim_bench_cache")),
        help="where the compilers work; OUT keeps it packed. Default: %(default)s")  # fmt: skip
    add("--dry", action="store_true", help="the same way with a tiny model on a CPU, in minutes")
    return parser.parse_args(arguments)


def print_now(text: str) -> None:
    print(text, flush=True)


def named(parts: Sequence[Part], patterns: Sequence[str] | None) -> list[Part]:
    """The parts whose names fit, in the order of the patterns."""
    chosen: dict[str, Part] = {}
    for pattern in patterns or ("*",):
        fitting = {part.name: part for part in parts if fnmatch(part.name, pattern)}
        if not fitting:
            raise UserError(
                f"--only {pattern}: no part has such a name; there are {', '.join(part.name for part in parts)}"
            )
        for name, part in fitting.items():
            chosen.setdefault(name, part)
    return list(chosen.values())


# Before and after.


def prepare(options: argparse.Namespace) -> Run:
    """Everything that earlier calls left, in its place. Raises `UserError`."""
    seen = environment(dry=options.dry)
    check_microsoft(options.microsoft)
    out, cache = Path(options.out).resolve(), Path(options.cache).resolve()
    out.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    found = recovered(out)
    if options.have:
        found = take_over(Path(options.have), out, found)
    if any(entry["state"] == "unfinished" for entry in found["parts"].values()):
        caches.clear(cache)  # a compiler that was killed may have left half a file
    caches.unpack(out, cache)
    run = Run(out, cache, found | {"environment": seen}, results.code_now(), time.monotonic() + 60 * options.minutes)
    results.write(out, run.found)
    (out / TABLE).write_text(markdown(run.found))
    print_now(", ".join(f"{name} {value}" for name, value in seen.items()))
    return run


def environment(*, dry: bool) -> dict[str, str]:
    """The machine and what is installed. Raises `UserError` where the figures could not be had."""
    if not dry and not torch.cuda.is_available():
        raise UserError(f"torch {torch.__version__} sees no GPU here: --dry shows the way without one")
    if not dry and version_of("triton") == "not installed":
        raise UserError("triton is not installed, and the fused attention needs it: it comes with torch for CUDA")
    seen = {"machine": cpu_name() if dry else torch.cuda.get_device_name(), "python": platform.python_version()}
    seen |= {"cores": str(os.cpu_count())}
    if not dry:
        free, whole = torch.cuda.mem_get_info()
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        seen |= {"CUDA": str(torch.version.cuda), "capability": capability}
        seen |= {"GPU memory GB": f"{whole / 1e9:.0f}, {free / 1e9:.0f} free"}
    return seen | {name: version_of(name) for name in PACKAGES}


def take_over(have: Path, out: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The results of both folders; the archives and the log of `have` are in `out` then, where it had none."""
    if not have.is_dir():
        raise UserError(f"--have {have} is no folder: name what OUT held after an earlier call, or leave it out")
    if not (have / results.FILE).is_file():
        print_now(f"--have {have} holds no {results.FILE}: everything is new")
    if not caches.archives(out):
        for archive in caches.archives(have):
            shutil.copyfile(archive, out / archive.name)
    if (have / LOG).is_file() and not (out / LOG).exists():
        shutil.copyfile(have / LOG, out / LOG)
    return results.merged(found, recovered(have))


def recovered(folder: Path) -> dict[str, Any]:
    """The results in a folder, with the tests that its log says passed before their process was killed."""
    found = results.read(folder)
    for entry in found["parts"].values():
        offset = entry.pop("log", None)
        if offset is not None:
            passed = kernel_tests.outcomes(folder / LOG, offset).passed
            entry["passed"] = list(dict.fromkeys([*entry.get("passed", ()), *passed]))
    return found


def keep(run: Run, *, settled: float) -> None:
    """Leave everything in OUT as it is now; of what was compiled the files that are that old, in seconds."""
    results.write(run.out, run.found)
    (run.out / TABLE).write_text(markdown(run.found))
    if not caches.pack(run.out, run.cache, settled=settled):
        print_now(f"    not all that was compiled finds room in {caches.ARCHIVES} archives of {caches.LARGEST} bytes")


def exit_code(parts: Sequence[Part], run: Run) -> int:
    """0 when there is nothing left to do, 1 when what is left fails, 75 when a later call goes on; says so."""
    states = {part.name: run.entries.get(part.name, {}).get("state") for part in parts}
    for state in ("not installed", "failed"):
        names = [name for name in states if states[name] == state]
        if names:
            print_now(f"{len(names)} parts {state}: {', '.join(names)}")
    left = [part.name for part in results.in_order(parts, run.entries, run.code)]
    if left:
        print_now(f"{len(left)} parts are left: {', '.join(left)}; the same command goes on with them")
        return UNFINISHED
    return int("failed" in states.values())


# The parts.


def measure(parts: Sequence[Part], run: Run) -> None:
    """Those that are not over, until the deadline."""
    wanted = results.in_order(parts, run.entries, run.code)
    for count, part in enumerate(wanted, 1):
        if time.monotonic() >= run.deadline:
            return
        print_now(f"[{count}/{len(wanted)}] {part.name}")
        start = time.monotonic()
        ended = do(part, run)
        if ended["state"] != "unfinished":
            ended |= {"seconds": round(time.monotonic() - start, 1), "date": datetime.now(UTC).isoformat()[:19]}
        run.entries[part.name] = ended
        keep(run, settled=0 if ended["state"] != "unfinished" else caches.SETTLED)
        print_now(f"    {text_of(ended)}, {time.monotonic() - start:.0f} s")


def text_of(entry: results.Entry) -> str:
    if entry["state"] == "unfinished":
        return "out of time"
    detail = entry.get("reason") or ", ".join(entry.get("missing", ()))
    return entry["state"] + (f": {detail}" if detail else "")


def do(part: Part, run: Run) -> results.Entry:
    """Begin a part and wait for it -> its entry."""
    entry = results.begun(run.entries.get(part.name), run.code)
    if missing := results.missing(part.needs):
        return entry | {"state": "not installed", "missing": missing}
    log = run.out / LOG
    with log.open("a") as file:
        print(f"\n===== {part.name}, {datetime.now(UTC).isoformat()[:19]}", file=file)
    run.entries[part.name] = entry | ({"log": log.stat().st_size} if part.tests else {})
    results.write(run.out, run.found)
    return tested(part, entry, run) if part.tests else timed(part, entry, run)


def timed(part: Part, entry: results.Entry, run: Run) -> results.Entry:
    """A command of `tools.bench`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.json")
        code, offset = started(["-m", "tools.bench", *writing(part.arguments, file)], run)
        if code is None:
            return entry
        if code:
            return entry | failure(entry, run.out / LOG, offset, code)
        report = json.loads(file.read_text())
    return entry | judged(part, entry, report)


def writing(arguments: list[str], file: Path) -> list[str]:
    """Arguments of `tools.bench` with the file of the report before all others, which may be another program's."""
    command, *options = arguments
    return [command, "--json", str(file), *options]


def judged(part: Part, entry: results.Entry, report: dict[str, Any]) -> results.Entry:
    """What a report makes of its part: a step that was not timed is done only where that is a lack of memory."""
    reason = reason_of(report) if part.arguments[0] == "step" else None
    if reason is None or reason.startswith("out of memory"):
        return {"state": "done", "report": report}
    if missing := results.missing(missing_in(reason)):
        return {"state": "not installed", "missing": missing, "report": report}
    return results.failed(entry, reason) | {"report": report}


def reason_of(report: dict[str, Any]) -> str | None:
    """Why the system of a step was not timed; None if it was."""
    (table,), (*_, wanted) = report["batches"], report["settings"]["systems"]
    return next((reason for name, reason in table["not_measured"].items() if name.split()[0] == wanted), None)


def tested(part: Part, entry: results.Entry, run: Run) -> results.Entry:
    """A file of tests, without those that passed before."""
    passed = entry.get("passed", [])
    # the tests hide the GPUs from torch unless they are named
    visible = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")} if torch.cuda.is_available() else {}
    code, offset = started(["-m", "pytest", *kernel_tests.arguments(part, passed)], run, visible)
    seen = kernel_tests.outcomes(run.out / LOG, offset)
    entry = entry | {"passed": [*passed, *seen.passed]}
    if code is None:
        return entry
    if code in (0, kernel_tests.NOTHING_LEFT) and entry["passed"]:
        return entry | {"state": "done"}
    if seen.failed:
        return entry | results.failed(entry, f"{len(seen.failed)} tests: {', '.join(seen.failed)}")
    return entry | failure(entry, run.out / LOG, offset, code)


def started(arguments: list[str], run: Run, variables: dict[str, str] | None = None) -> tuple[int | None, int]:
    """Exit code of python with these arguments, None past the deadline, and where in the log its output begins."""
    log = run.out / LOG
    offset = log.stat().st_size
    code = call(
        [sys.executable, *arguments],
        run.deadline,
        log,
        caches.variables(run.cache) | (variables or {}),
        lambda: caches.pack(run.out, run.cache, settled=caches.SETTLED),
    )
    return code, offset


def failure(entry: results.Entry, log: Path, offset: int, code: int) -> results.Entry:
    """Why a process failed: for a module that is missing, or the last line that it wrote."""
    text = log.read_bytes()[offset:][-END_OF_LOG:].decode(errors="replace").strip()
    if missing := results.missing(missing_in(text)):
        return {"state": "not installed", "missing": missing}
    return results.failed(entry, (text.splitlines() or [f"exit code {code}"])[-1][:300])


def missing_in(text: str) -> list[str]:
    """The modules that a message says are not installed."""
    return [match[1] or match[2] for match in MISSING.finditer(text)]


if __name__ == "__main__":
    main()
