"""Everything that a resumed run continues from, and its way to disk and back.

A checkpoint holds whole tensors, with one process, with DDP and with FSDP2, and each of them continues from those of
the others. DeepSpeed keeps the moments in files of its own, which need its number of processes.
"""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from safetensors.torch import load_file
from torch import Tensor, nn

from swin_mim.errors import CANNOT_WRITE, DATA_ERROR, UserError
from swin_mim.files import replace_json
from swin_mim.training.checkpoints import store
from swin_mim.training.checkpoints.model_state import load_model, load_optimizer, optimizer_tensors
from swin_mim.training.checkpoints.state import (
    AVERAGE,
    MODEL,
    OPTIMIZER,
    TRAINER,
    RunState,
    newest_checkpoint,
    state_of,
)
from swin_mim.training.checkpoints.writer import BackgroundWriter
from swin_mim.training.distributed.processes import lost_peer
from swin_mim.training.distributed.sharding import full_tensors, is_sharded
from swin_mim.training.distributed.weight_average import WeightAverage
from swin_mim.weights.safetensors_writer import copied, write_tensors

ROLLBACKS = 2
"""Times that a run goes back to a checkpoint because it diverged, before it gives up."""

_LOG = logging.getLogger(__name__)


def _best_step(state: RunState) -> int | None:
    return state.best.step if state.best else None


def _filled(
    staging: Path, tensors: dict[str, dict[str, Tensor]], documents: dict[str, dict[str, Any]]
) -> dict[str, str]:
    """Write the main process's files into a staged folder -> the digests of what the tensors' files should hold."""
    meant = {name: write_tensors(content, staging / name) for name, content in tensors.items()}
    for name, document in documents.items():
        replace_json(staging / name, document)
    return meant


@dataclass(frozen=True)
class Checkpoints:
    """Saves and restores one run.

    A checkpoint is copied out of the model and written beside the training. DeepSpeed's is written by all processes
    together, and the training waits for it.

    Args:
        folder: holds the checkpoints.
        model, prepared, optimizer: the bare model, and what `prepare` made of it and its optimizer.
        keep: how many of the newest stay.
        keep_every: those of every so many steps stay too; 0: none.
        facts: what must be the same in a resumed run: values of JSON, such as the fingerprint of the data.
        changes: of some facts what to call to learn how they changed, as the end of a sentence; raises OSError if it
            cannot be told.
        documents: JSON files to put into every checkpoint, by name, such as the config.json that makes it loadable.
        average: of the weights, if there is one: a part of every checkpoint.
        state: where the run stands.
    """

    folder: Path
    accelerator: Accelerator
    model: nn.Module
    prepared: Any
    optimizer: Any
    keep: int
    keep_every: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    average: WeightAverage | None = None
    changes: dict[str, Callable[[], str]] = field(default_factory=dict)
    state: RunState = field(default_factory=RunState)
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)

    def save(self, state: RunState) -> None:
        """Write a checkpoint; all processes call it together. `failure_reason` reports one that failed."""
        if self._deepspeed:
            self._save_together(state)
            return
        self.writer.wait()  # before there is a second copy in memory
        tensors = self._tensors()
        if self.accelerator.is_main_process:
            write = partial(self._write, tensors, self._documents(state), state.step, _best_step(state))
            self.writer.start(write, f"the checkpoint of step {state.step}")

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk; all processes call it together.

        Raises:
            UserError: it could not be written.
        """
        self.writer.wait()
        (reason,) = broadcast_object_list([self.writer.reason])
        self.accelerator.wait_for_everyone()  # after a broadcast alone a process might leave while others still receive
        if reason:
            raise UserError(
                f"the last checkpoint could not be written to {self.folder} ({reason}): make room, and give the same "
                "command again to continue from the one before it",
                code=CANNOT_WRITE,
            )

    def failure_reason(self) -> str:
        """Why this process would end the run now; empty as long as checkpoints can be written."""
        if not self.writer.failing:
            return ""
        return (
            f"{self.writer.failures} checkpoints in a row could not be written to {self.folder} "
            f"({self.writer.reason}): make room, and give the same command again to continue from the last one"
        )

    def roll_back(self, state: RunState) -> None:
        """Return to the newest checkpoint, but not to its place in the data: go on behind the images that led here.

        Model, optimizer and `state` are changed in place. All processes call it together.

        Raises:
            UserError: there is no checkpoint, or the run has been here too often.
        """
        where = f"up to step {state.step} and image {state.samples_seen} of the run"
        self.writer.wait()
        newest = newest_checkpoint(self.folder)
        if newest is None or state.rollbacks == ROLLBACKS:
            tried = (
                f"{state.rollbacks} returns to a checkpoint did not help" if newest else "there is no checkpoint yet"
            )
            raise UserError(
                f"the loss or its gradient was not finite for {state.skipped_in_a_row} steps in a row, {where}, and "
                f"{tried}: the run has diverged; start another one with a smaller optim.base_lr under another "
                "run.name, or with train.precision fp32 (skipped_steps.jsonl in the run's folder lists the images)",
                code=DATA_ERROR,
            )
        back = self.restore(newest)
        _LOG.warning(
            "the loss or its gradient was not finite for %d steps in a row: back to step %d, and on with the images "
            "behind number %d of the run; return %d of %d",
            *(state.skipped_in_a_row, back.step, state.samples_seen, state.rollbacks + 1, ROLLBACKS),
        )
        kept = {"samples_seen": state.samples_seen, "skipped": state.skipped, "broken": state.broken}
        vars(state).update(vars(back) | kept | {"rollbacks": state.rollbacks + 1, "skipped_in_a_row": 0})

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
            load_model(self.model, path / MODEL)
            load_optimizer(self.optimizer.optimizer, self.model, path / OPTIMIZER)
            if self.accelerator.scaler is not None and trainer["scaler"] is not None:  # swin-mim replay may add one
                self.accelerator.scaler.load_state_dict(trainer["scaler"])
        if self.average is not None:
            self.average.load(load_file(path / AVERAGE))
        return state_of(trainer)

    def _write(
        self,
        tensors: dict[str, dict[str, Tensor]],
        documents: dict[str, dict[str, Any]],
        step: int,
        best: int | None,
    ) -> None:
        """The main process's part of a checkpoint, from copies."""
        staging = store.stage(self.folder, step)
        try:
            store.commit(staging, step, _filled(staging, tensors, documents))
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)  # its bytes may be what the disk is short of
            raise
        store.prune(self.folder, self.keep, besides=best, every=self.keep_every)

    def _save_together(self, state: RunState) -> None:
        try:
            self._save_with_deepspeed(state)
        except (OSError, RuntimeError) as error:  # torch.save has a RuntimeError for a full disk
            if lost_peer(error) or isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
                raise
            # the others are waiting inside DeepSpeed: there is no way back into step with them
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"DeepSpeed could not write the checkpoint of step {state.step} to {self.folder} ({reason}): make "
                "room, and give the same command again to continue from the one before it",
                local=True,
                code=CANNOT_WRITE,
            ) from None

    def _save_with_deepspeed(self, state: RunState) -> None:
        accelerator = self.accelerator
        if accelerator.is_main_process:
            store.stage(self.folder, state.step)
        accelerator.wait_for_everyone()
        staging = store.staging_path(self.folder, state.step)
        self.prepared.save_checkpoint(str(staging / "deepspeed"), tag="state", save_latest=False)
        tensors = self._tensors()
        if accelerator.is_main_process:
            meant = _filled(staging, tensors, self._documents(state))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            store.commit(staging, state.step, meant)
            store.prune(self.folder, self.keep, besides=_best_step(state), every=self.keep_every)
        accelerator.wait_for_everyone()

    @property
    def _deepspeed(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """In the main process, copies of what the safetensors files of a checkpoint hold. DeepSpeed keeps the moments
        itself. All processes call it together, because it takes all of them to make parts whole."""
        tensors = {MODEL: self.model.state_dict(keep_vars=True)}
        if not self._deepspeed:
            tensors[OPTIMIZER] = optimizer_tensors(self.optimizer.optimizer, self.model)
        if self.average is not None:
            tensors[AVERAGE] = self.average.state()
        return {name: self._copied(content) for name, content in tensors.items()}

    def _copied(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        main = self.accelerator.is_main_process
        if not main and not is_sharded(self.model):
            return {}
        return {name: copied(tensor) for name, tensor in full_tensors(tensors) if main}

    def _documents(self, state: RunState) -> dict[str, dict[str, Any]]:
        """The JSON files of a checkpoint, as they are now."""
        scaler = self.accelerator.scaler
        trainer = {
            "state": asdict(state),
            "facts": self.facts,
            "strategy": "deepspeed" if self._deepspeed else "replicated",
            "processes": self.accelerator.num_processes,
            "scaler": None if scaler is None else scaler.state_dict(),
            "versions": {"torch": torch.__version__},
        }
        return {TRAINER: trainer, **self.documents}

    def _how(self, key: str) -> str:
        """ ": of 20 images then and 19 now, 1 is gone (03.png)", as far as that is known."""
        try:
            return f": {self.changes[key]()}" if key in self.changes else ""
        except OSError as error:
            return f" (how they changed is not known: {error})"

    def _check(self, path: Path, trainer: dict[str, Any]) -> None:
        for key, value in self.facts.items():
            saved = trainer["facts"].get(key)
            if saved == value:
                continue
            if not key.endswith("images"):
                raise UserError(
                    f"{path} was written with {key} {saved}, now it is {value}: "
                    "restore it, or start another run with another --run.name"
                )
            raise UserError(
                f"the {key} are not those that this run began with{self._how(key)}. Restore them, or start another "
                f"run with another --run.name ({path}: {key} {str(saved)[:12]}, now it is {str(value)[:12]})"
            )
        strategy = "deepspeed" if self._deepspeed else "replicated"
        if trainer["strategy"] != strategy:
            raise UserError(
                f"{path} was written {'with' if strategy == 'replicated' else 'without'} DeepSpeed and this run is "
                f"{'without' if strategy == 'replicated' else 'with'} it: launch it as before"
            )
        if self._deepspeed and trainer["processes"] != self.accelerator.num_processes:
            raise UserError(
                f"{path} was written by {trainer['processes']} DeepSpeed processes and this run has "
                f"{self.accelerator.num_processes}: launch it with {trainer['processes']}"
            )
