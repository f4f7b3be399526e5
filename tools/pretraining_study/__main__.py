"""Whether pretraining pays, and with which target: the runs of docs/pretraining-protocol.md.

    python -m tools.pretraining_study A --out docs/pretraining-study --work runs/pretraining_study

The first call gets fonts and draws characters in WORK, which takes minutes; each run is then a line of
OUT/results.jsonl, two at a time with a thread each. The same command again does what is missing, also in another
clone and without WORK, if OUT is there: encoders that are still needed are pretrained again. OUT gets table.md and
pretraining-study.png too, also by the session "report".
"""

import argparse
import shutil
import signal
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from swin_mim.cli.transfer.command import keep_to_one_plan
from swin_mim.data.blue_marble.tiles import composite
from swin_mim.errors import Parser, one_line_errors
from swin_mim.files import sha256
from swin_mim.training.run.jsonl import whole_lines
from swin_mim.training.run.lock import lock
from swin_mim.training.run.tracking import duration_text
from tools import characters
from tools.pretraining_study import fonts, plan
from tools.pretraining_study.plan import (
    CHARACTERS,
    KINDS,
    NEW,
    SESSIONS,
    TILES,
    Cell,
    Results,
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

RESULTS, PLAN, MADE = "results.jsonl", "plan.json", "made.json"
DRAWN = ("--size", "32", "--classes", "100", "--unlabelled", "60000", "--each", "100", "--validation-each", "30")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m tools.pretraining_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("session", choices=[*SESSIONS, "report"], help="of the protocol; report runs nothing")
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
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors("interrupted: the same command goes on"):
        options = parse(arguments)
        if options.session != "report":
            for number in (signal.SIGINT, signal.SIGTERM):  # a shell ignores the first for what it starts with &
                signal.signal(number, signal.default_int_handler)
            options.work.mkdir(parents=True, exist_ok=True)
            held = lock(options.work)
            run(options.session, options.out, Folders(options.work), options.jobs)
            del held
        report(read(options.out / RESULTS), options.out)


def run(session: str, out: Path, folders: Folders, jobs: int) -> None:
    """Do the runs of a session that are missing.

    Raises:
        UserError: a run failed, or the folder is of another study.
    """
    torch.set_num_threads(1)  # a forked process would wait for ever for the threads that its parent had
    draw(folders)
    keep_to_one_plan(out / PLAN, plan_of(folders))
    composite()  # of the tiles: decoded once, for all runs
    found, under_way, clock = dict(read(out / RESULTS)), dict[Running, Cell](), Clock(jobs)
    try:
        while True:
            todo = missing(SESSIONS[session](found), found, folders.kept)
            while len(under_way) < jobs and (cell := startable(todo, list(under_way.values()), found, folders.kept)):
                under_way[start(cell, folders, found)] = cell
            if not under_way:
                return
            ended = first_to_end(list(under_way))
            cell = under_way.pop(ended)
            result = conclude(cell, ended, out, folders, found)
            first = found.setdefault(cell, result)
            left = [*under_way.values(), *(other for other in todo if other not in (cell, *under_way.values()))]
            print(f"{clock.line(cell, result['seconds'], left)}: {told(result, first)}", flush=True)
    finally:
        interrupt(list(under_way))


def draw(folders: Folders) -> None:
    """Get the fonts and draw the characters, if they are not there."""
    if (folders.characters / MADE).is_file():
        return
    if not folders.fonts.exists():
        print(f"getting {len(fonts.PACKAGES)} packages of fonts", flush=True)
        fonts.unpack(folders.fonts)
    if folders.characters.exists():
        shutil.rmtree(folders.characters)  # drawing was interrupted
    print("drawing characters", flush=True)
    characters.make(characters.parse([str(folders.fonts), str(folders.characters), *DRAWN]))


def plan_of(folders: Folders) -> dict[str, Any]:
    """What all sessions must have in common: the images, and the settings besides those that make up a cell."""
    cells = [pretraining(images, "pixels", {}) for images in (CHARACTERS, TILES)]
    work = Folders(Path("WORK"))
    words = {cell.name: pretraining_words(cell, work, {}) for cell in cells}
    for images, arm in product((CHARACTERS, TILES), (NEW, "pixels")):
        cell = training(images, arm, min(plan.STEPS[images]), 1e-3)
        words[cell.name] = training_words(cell, work, {})
    here = str(work.work.resolve())
    settings = {name: " ".join(of).replace(here, "WORK") for name, of in words.items()}
    return {"characters": sha256([(folders.characters / MADE).read_bytes()]), "settings": settings}


def conclude(cell: Cell, ended: Running, out: Path, folders: Folders, found: Results) -> dict[str, Any]:
    """Keep what a run found, and remove its folder if nothing starts from it.

    Raises:
        UserError: it failed.
    """
    result = result_of(cell, ended.conclude(), folders, found)
    append_result(out / RESULTS, {"kind": type(cell).__name__, **cell._asdict(), **result})
    if isinstance(cell, Training):
        shutil.rmtree(folders.of(cell))
    return result


def read(path: Path) -> dict[Cell, Mapping[str, Any]]:
    """The results that are there; of a pretraining that was made again the first ones."""
    found: dict[Cell, Mapping[str, Any]] = {}
    for row in whole_lines(path):
        kind = KINDS[row["kind"]]
        found.setdefault(kind(**{field: row[field] for field in kind._fields if field in row}), row)
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
