"""Where a run stands, and where its checkpoints say so."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch import Tensor

from swin_mim.errors import UserError
from swin_mim.training.checkpoints import store

MODEL, AVERAGE, OPTIMIZER = "model.safetensors", "average.safetensors", "optimizer.safetensors"
TRAINER = "trainer.json"


@dataclass(frozen=True)
class Best:
    """The best step of a run so far, by one metric."""

    step: int
    value: float


@dataclass
class RunState:
    """The counters of a run. With weights, moments and settings they decide all that follows."""

    step: int = 0
    """Updates of the global batch so far; the only clock."""
    samples_seen: int = 0
    """Images consumed so far: the whole position of the data."""
    skipped: int = 0
    """Updates left out because a loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    rollbacks: int = 0
    """Times that the run went back to a checkpoint, past the images that led to numbers that are not finite."""
    broken: int = 0
    """Images that could not be read and were replaced."""
    sums: dict[str, float] | None = None
    """Sums of the metrics since the last line of the log."""
    best: Best | None = None
    """The step whose checkpoint is kept besides the newest ones."""


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder of them; the main process looks, all learn of it.

    Raises:
        UserError: there are checkpoints, and every one of them is broken.
    """
    answer: list[Any] = [None, False]
    if PartialState().is_main_process:
        path = store.newest(folder)
        answer = [path, path is None and store.set_aside(folder)]
    path, all_broken = broadcast_object_list(answer)
    if all_broken:
        raise UserError(
            f"every checkpoint in {folder} is broken and was set aside as bad_...: "
            "start anew under another run.name, or remove them to start this run from scratch"
        )
    return path


def published_weights(path: Path) -> dict[str, Tensor]:
    """What a checkpoint would publish: the average if it has one, else the weights.

    Raises:
        UserError: it is gone or broken.
    """
    fault = store.verify(path)
    if fault:
        raise UserError(
            f"the checkpoint {path}, which is to be published, is broken ({fault}): publish another one with "
            "--save.export best or last"
        )
    average = load_file(path / AVERAGE) if (path / AVERAGE).exists() else {}
    return load_file(path / MODEL) | average  # of buffers there is no average


def read_state(path: Path) -> RunState:
    """Read the counters of a checkpoint."""
    return state_of(json.loads((path / TRAINER).read_text()))


def state_of(trainer: dict[str, Any]) -> RunState:
    """The counters in the content of trainer.json."""
    state = dict(trainer["state"])
    best = state.pop("best", None)
    return RunState(**state, best=Best(**best) if best else None)


def better(best: Best | None, new: Best, *, smaller: bool) -> Best | None:
    """The better of two steps, of equally good ones the new one; a value that is NaN never is.

    Args:
        smaller: whether smaller values are better.
    """
    if math.isnan(new.value):
        return best
    sign = -1 if smaller else 1
    return new if best is None or sign * new.value >= sign * best.value else best


def published_step(state: RunState, export: str, checkpoints: Path | None = None) -> int:
    """The step whose weights are published.

    Args:
        export: "best" or "last".
        checkpoints: where the best one has to be by now. If it could not be written, it is the last one.
    """
    if not state.best or export != "best":
        return state.step
    best = state.best.step
    return best if checkpoints is None or store.path_of(checkpoints, best).exists() else state.step
