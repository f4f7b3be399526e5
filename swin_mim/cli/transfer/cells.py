"""One cell of a transfer comparison: a run of the fine-tuning recipe, and what is kept of it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.files import replace_json
from swin_mim.training.run.jsonl import whole_lines

RECIPE = "swin_mim.recipes.finetune"
RESULT = "result.json"


@dataclass(frozen=True)
class Cell:
    """What one run is given, besides what all of them have."""

    arm: str
    """ "scratch", or "model1" and so on."""
    labels: int
    """Number for each class; 0 is all."""
    rate: float
    seed: int
    steps: int | None = None
    """None for those of the settings."""

    @property
    def name(self) -> str:
        steps = f"_steps{self.steps}" if self.steps else ""
        return f"{self.arm}_labels{self.labels or 'all'}{steps}_rate{self.rate:g}_seed{self.seed}"


class Runner:
    """Runs cells, a few at a time, and reuses those that are done.

    Args:
        folder: of all runs.
        launch: the beginning of the command, up to the recipe.
        flags: of the recipe, for all cells.
        own_flags: of the recipe, for an arm.
        jobs: runs at the same time.
        keep: do not remove the run's folder when its result is written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        launch: Sequence[str],
        flags: Sequence[str],
        own_flags: Mapping[str, Sequence[str]],
        jobs: int,
        keep: bool,
    ) -> None:
        self._folder, self._launch, self._flags, self._own = folder, launch, flags, own_flags
        self._jobs, self._keep = jobs, keep
        self._running: dict[Cell, tuple[subprocess.Popen[bytes], float]] = {}

    def results(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, dict[str, Any], bool]]:
        """(cell, result, whether it was run now), those that were there first, then in the order in which they end.

        Raises:
            UserError: a run failed; the others are stopped, with checkpoints.
            KeyboardInterrupt: all are stopped so.
        """
        missing = []
        for cell in cells:
            known = self._known(cell)
            if known is None:
                missing.append(cell)
            else:
                yield cell, known, False
        with self._stopped_at_the_end():
            while True:
                while missing and len(self._running) < self._jobs:
                    self._start(missing.pop(0))
                if not self._running:
                    return
                for done in self._finished():
                    yield done, self._take(done), True

    def _known(self, cell: Cell) -> dict[str, Any] | None:
        path = self._folder / cell.name / RESULT
        return dict(json.loads(path.read_text())) if path.is_file() else None

    def _start(self, cell: Cell) -> None:
        folder = self._folder / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            *self._launch,
            *("-m", RECIPE),
            *self._flags,
            *self._own[cell.arm],
            *("--run.root", str(self._folder), "--run.name", cell.name, "--run.seed", str(cell.seed)),
            *("--data.labels-per-class", str(cell.labels), "--data.subset-seed", str(cell.seed)),
            *("--optim.base-lr", repr(cell.rate), "--save.export", "last"),
            *(["--train.duration", f"{cell.steps} steps"] if cell.steps else []),
            *("--predictions", str(folder / "predictions.csv")),
        ]
        with (folder / "output.txt").open("wb") as output:
            # a session of its own: Ctrl-C is passed on once, by us
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        self._running[cell] = process, time.monotonic()

    def _finished(self) -> list[Cell]:
        """Cells whose process has ended; waits for one."""
        while True:
            done = [cell for cell, (process, _) in self._running.items() if process.poll() is not None]
            if done:
                return done
            time.sleep(0.2)

    def _take(self, cell: Cell) -> dict[str, Any]:
        process, start = self._running.pop(cell)
        folder = self._folder / cell.name
        if process.returncode:
            lines = (folder / "output.txt").read_text(errors="replace").strip().splitlines()
            said = lines[-1] if lines else "nothing was said"
            raise UserError(f"the run {cell.name} failed ({said}): see {folder / 'output.txt'}")
        result = {**measured(folder), "seconds": round(time.monotonic() - start, 1)}
        replace_json(folder / RESULT, result)
        if not self._keep:
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
        return result

    @contextmanager
    def _stopped_at_the_end(self) -> Iterator[None]:
        try:
            yield
        finally:
            alive = [process for process, _ in self._running.values() if process.poll() is None]
            for process in alive:
                os.killpg(process.pid, signal.SIGINT)
            if alive:
                print(f"stopping {counted(len(alive), 'run')}, with checkpoints", file=sys.stderr)
            for process in alive:
                process.wait()
            self._running.clear()


def measured(folder: Path) -> dict[str, Any]:
    """What a finished run found: on each half of the evaluation images and over the steps.

    "halves" holds, for either half of the images of each class, [accuracy, balanced accuracy, images].
    """
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = np.array([row["label"] for row in rows])
    right = np.array([row["correct"] == "True" for row in rows])
    second = second_half(labels)
    curve = [(row["step"], row["accuracy"]) for row in whole_lines(folder / "metrics.jsonl") if "accuracy" in row]
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": balanced(right, labels),
        "halves": [
            [float(right[half].mean()), balanced(right[half], labels[half]), int(half.sum())]
            for half in (~second, second)
        ],
        "curve": curve,
    }


def second_half(labels: np.ndarray) -> np.ndarray:
    """bool (n,): whether an image is in the second half of those of its class, which may be the smaller one."""
    second = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        second[members[(len(members) + 1) // 2 :]] = True
    return second


def balanced(right: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes of the share that is right."""
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))
