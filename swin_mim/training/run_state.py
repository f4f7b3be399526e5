"""Everything that a resumed run continues from, and its way to disk and back.

Works with one process, with DDP and with DeepSpeed up to ZeRO-2, in which every process holds all weights.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, broadcast_object_list
from safetensors.torch import load_file
from torch import Tensor, nn

from swin_mim.errors import UserError
from swin_mim.training import checkpoint
from swin_mim.training.weight_average import WeightAverage

MODEL, AVERAGE, TRAINER = "model.safetensors", "average.safetensors", "trainer.json"

_LOG = logging.getLogger(__name__)


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
    broken: int = 0
    """Images that could not be read and were replaced."""
    sums: dict[str, float] | None = None
    """Of the metrics since the last line of the log."""
    best: Best | None = None
    """The step whose checkpoint is kept besides the newest ones."""


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder of them; the main process looks, all learn of it.

    Raises:
        UserError: there are checkpoints, and every one of them is broken.
    """
    answer: list[Any] = [None, False]
    if PartialState().is_main_process:
        path = checkpoint.newest(folder)
        answer = [path, path is None and checkpoint.set_aside(folder)]
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
    fault = checkpoint.verify(path)
    if fault:
        raise UserError(
            f"the checkpoint {path}, which is to be published, is broken ({fault}): publish another one with "
            "--save.export best or last"
        )
    return load_file(path / AVERAGE if (path / AVERAGE).exists() else path / MODEL)


def read_state(path: Path) -> RunState:
    """The counters of a checkpoint."""
    return _state(json.loads((path / TRAINER).read_text()))


def _state(trainer: dict[str, Any]) -> RunState:
    state = dict(trainer["state"])
    best = state.pop("best", None)
    return RunState(**state, best=Best(**best) if best else None)


@dataclass(frozen=True)
class Checkpoints:
    """Saves and restores one run.

    Args:
        folder: holds the checkpoints.
        model, prepared, optimizer: the bare model, and what accelerate's `prepare` made of it and its optimizer.
        keep: how many of the newest stay.
        facts: what must be the same in a resumed run: values of JSON, such as the fingerprint of the data.
        documents: JSON files to put into every checkpoint, by name, such as the config.json that makes it loadable.
        average: of the weights, if there is one: a part of every checkpoint.
    """

    folder: Path
    accelerator: Accelerator
    model: nn.Module
    prepared: Any
    optimizer: Any
    keep: int
    facts: dict[str, Any] = field(default_factory=dict)
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    average: WeightAverage | None = None

    def save(self, state: RunState) -> None:
        """Write a checkpoint; all processes call it together."""
        accelerator = self.accelerator
        if accelerator.is_main_process:
            checkpoint.stage(self.folder, state.step)
        accelerator.wait_for_everyone()
        staging = checkpoint.staging_path(self.folder, state.step)
        if self._deepspeed:
            self.prepared.save_checkpoint(str(staging / "deepspeed"), tag="state", save_latest=False)
        if accelerator.is_main_process:
            checkpoint.save_model(self.model.state_dict(), staging / MODEL)
            if self.average is not None:
                checkpoint.save_model(self.average.state(), staging / AVERAGE)
            if not self._deepspeed:
                checkpoint.save_optimizer(self.optimizer.optimizer, self.model, staging / "optimizer.safetensors")
            for name, content in {TRAINER: self._trainer(state), **self.documents}.items():
                checkpoint.write_json(staging / name, content)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            checkpoint.commit(staging, state.step)
            checkpoint.prune(self.folder, self.keep, besides=state.best.step if state.best else None)
        accelerator.wait_for_everyone()

    def restore(self, path: Path) -> RunState:
        """Load a checkpoint into model and optimizer.

        Raises:
            UserError: it belongs to other data or settings, or to another kind of distribution.
        """
        trainer = json.loads((path / TRAINER).read_text())
        self._check(path, trainer)
        if self._deepspeed:
            loaded, _ = self.prepared.load_checkpoint(str(path / "deepspeed"), tag="state")
            assert loaded is not None, f"DeepSpeed found no state in {path}"
        else:
            checkpoint.load_model(self.model, path / MODEL)
            checkpoint.load_optimizer(self.optimizer.optimizer, self.model, path / "optimizer.safetensors")
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(trainer["scaler"])
        if self.average is not None:
            self.average.load(load_file(path / AVERAGE))
        return _state(trainer)

    @property
    def _deepspeed(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def _trainer(self, state: RunState) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "state": asdict(state),
            "facts": self.facts,
            "strategy": "deepspeed" if self._deepspeed else "replicated",
            "processes": self.accelerator.num_processes,
            "scaler": None if scaler is None else scaler.state_dict(),
            "versions": {"torch": torch.__version__},
        }

    def _check(self, path: Path, trainer: dict[str, Any]) -> None:
        for key, value in self.facts.items():
            saved = trainer["facts"].get(key)
            if saved != value:
                raise UserError(
                    f"{path} was written with {key} {saved}, now it is {value}: "
                    "restore it, or start another run with another run.name"
                )
        strategy = "deepspeed" if self._deepspeed else "replicated"
        if trainer["strategy"] != strategy:
            raise UserError(
                f"{path} was written by a {trainer['strategy']} run and this one is {strategy}: launch it as before"
            )
        if self._deepspeed and trainer["processes"] != self.accelerator.num_processes:
            raise UserError(
                f"{path} was written by {trainer['processes']} DeepSpeed processes and this run has "
                f"{self.accelerator.num_processes}: launch it with {trainer['processes']}"
            )
