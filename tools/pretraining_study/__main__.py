"""What pretraining is worth, and with which target: the runs of docs/pretraining-gain.md.

    python -m tools.pretraining_study choose clothes --out docs/pretraining-gain --work runs/pretraining_study

The first call gets the pictures into WORK; each run is then a line of OUT/results.jsonl, two at a time with a thread
each. The same command again does what is missing, also in another clone and without WORK, if OUT is there: encoders
that are still needed are pretrained again. OUT gets table.md and pretraining-gain.png too, also by the session
"report".
"""

import argparse
import shutil
import signal
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from swin_mim.cli.transfer.command import keep_to_one_plan
from swin_mim.errors import Parser, one_line_errors
from swin_mim.training.run.jsonl import whole_lines
from swin_mim.training.run.lock import lock
from swin_mim.training.run.tracking import duration_text
from tools.pretraining_study import pictures
from tools.pretraining_study.plan import (
    KINDS,
    NEW,
    SESSIONS,
    SETS,
    Cell,
    Training,
    missing,
    pretraining,
    startable,
    training,
)
from tools.pretraining_study.report import report
from tools.pretraining_study.runs import (
    Folders,
    estimate,
    pretraining_words,
    result_of,
    start,
    training_words,
)
from tools.side_by_side import Running, append_result, first_to_end, interrupt

RESULTS, PLAN = "results.jsonl", "plan.json"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m tools.pretraining_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("session", choices=[*SESSIONS, "report"], help="of the protocol; report runs nothing")
    add("images", choices=SETS, nargs="?", help="a set of pictures; report has all")
    add("--out", type=Path, required=True, help="results: a folder, new or of the same study")
    add(
        "--work",
        type=Path,
        default=Path("runs", "pretraining_study"),
        help="images and encoders (default: %(default)s)",
    )
    add("--jobs", type=int, default=2, help="runs at the same time (default: 2)")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs} must be at least 1")
    if (options.images is None) != (options.session == "report"):
        parser.error(f"{options.session} {'needs one of ' + ', '.join(SETS) if options.images is None else 'has all'}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors("interrupted: the same command goes on"):
        options = parse(arguments)
        if options.session != "report":
            for number in (signal.SIGINT, signal.SIGTERM):  # a shell ignores the first for what it starts with &
                signal.signal(number, signal.default_int_handler)
            options.work.mkdir(parents=True, exist_ok=True)
            held = lock(options.work)
            run(options.session, options.images, options.out, Folders(options.work), options.jobs)
            del held
        report(read(options.out / RESULTS), options.out)


def run(session: str, images: str, out: Path, folders: Folders, jobs: int) -> None:
    """Do the runs of a session that are missing.

    Raises:
        UserError: a run failed, or the folder is of another study.
    """
    torch.set_num_threads(1)  # a forked process would wait for ever for the threads that its parent had
    if not folders.pictures(images).exists():
        print(f"getting {images}", flush=True)
        pictures.make(images, folders.pictures(images))
    keep_to_one_plan(out / PLAN, plan_of())
    found, under_way, clock = dict(read(out / RESULTS)), dict[Running, Cell](), Clock(jobs)
    try:
        while True:
            todo = missing(SESSIONS[session](images, found), found, folders.kept)
            while len(under_way) < jobs and (cell := startable(todo, list(under_way.values()), folders.kept)):
                under_way[start(cell, folders)] = cell
            if not under_way:
                return
            ended = first_to_end(list(under_way))
            cell = under_way.pop(ended)
            result = conclude(cell, ended, out, folders)
            first = found.setdefault(cell, result)
            left = [*under_way.values(), *(other for other in todo if other not in (cell, *under_way.values()))]
            print(f"{clock.line(cell, result['seconds'], left)}: {told(result, first)}", flush=True)
    finally:
        interrupt(list(under_way))


def plan_of() -> dict[str, str]:
    """The settings that all sessions must have in common, besides those that make up a cell."""
    work = Folders(Path("WORK"))
    here, words = str(work.work.resolve()), dict[str, list[str]]()
    for images in SETS:
        without = pretraining(images, "pixels")
        words[without.name] = pretraining_words(without, work)
        for arm in (NEW, "pixels"):
            cell = training(images, arm, 3, 1e-3)
            words[cell.name] = training_words(cell, work)
    return {name: " ".join(of).replace(here, "WORK") for name, of in words.items()}


def conclude(cell: Cell, ended: Running, out: Path, folders: Folders) -> dict[str, Any]:
    """Keep what a run found, and remove its folder if nothing starts from it.

    Raises:
        UserError: it failed.
    """
    result = result_of(cell, ended.conclude(), folders)
    append_result(out / RESULTS, {"kind": type(cell).__name__, **cell._asdict(), **result})
    if isinstance(cell, Training):
        shutil.rmtree(folders.of(cell))
    return result


def read(path: Path) -> dict[Cell, Mapping[str, Any]]:
    """The results that are there; of a pretraining that was made again the first ones."""
    found: dict[Cell, Mapping[str, Any]] = {}
    for row in whole_lines(path):
        kind = KINDS[row["kind"]]
        found.setdefault(kind(**{field: row[field] for field in kind._fields}), row)
    return found


class Clock:
    """Tells how long the rest takes, from the estimates and from how wrong they were so far."""

    def __init__(self, jobs: int) -> None:
        self._jobs, self._done, self._taken, self._estimated = jobs, 0, 0.0, 0.0

    def line(self, cell: Cell, seconds: float, left: Collection[Cell]) -> str:
        self._done += 1
        self._taken += seconds
        self._estimated += estimate(cell)
        eta = sum(map(estimate, left)) * self._taken / self._estimated / self._jobs
        return f"[{self._done}/{self._done + len(left)}, eta {duration_text(eta)}] {cell.name}, {seconds:.0f} s"


def told(result: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """What a run found, and whether an encoder that was made again is another one than the first."""
    if "accuracy" in result:
        return f"accuracy {100 * result['accuracy']:.1f} %"
    probes = ", ".join(f"{100 * value:.1f}" for value in result["probes"][-1][1])
    loss = f"held-out loss {result['heldout_loss']:.4f} (interpolation {result['interpolation_error']:.4f})"
    other = "" if result["weights"] == first["weights"] else "; NOT the bits of the first time"
    return f"{loss}, linear probe {probes} %{other}"


if __name__ == "__main__":
    main()
