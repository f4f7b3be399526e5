"""The one training loop. It knows that a batch has a loss, and nothing else about what is trained."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from swin_mim.data.loading.loader import Batch
from swin_mim.data.sources.base import StreamStatus
from swin_mim.errors import CANNOT_WRITE, DATA_ERROR, STOPPED, UNAVAILABLE, UserError
from swin_mim.training.checkpoints.manager import RunState
from swin_mim.training.config.schedule import due
from swin_mim.training.distributed.replicas import check_replicas
from swin_mim.training.distributed.sharding import whole_tensor
from swin_mim.training.distributed.weight_average import WeightAverage
from swin_mim.training.loop.data_wait import DataWait
from swin_mim.training.loop.loss_spikes import LossSpikes
from swin_mim.training.loop.plan import TrainingSchedule
from swin_mim.training.run.signals import StopSignal
from swin_mim.training.run.tracking import Interval, RunLog, duration_text, peak_memory_gb

BROKEN_GRACE = 1000
"""Images that are read before the share of broken ones says anything."""
SKIPS_IN_A_ROW = 3
"""Non-finite steps in a row after which a run goes back; a loss scaler finds its scale by many more."""
SKIPS_IN_A_ROW_SCALED = 50

_LOG = logging.getLogger(__name__)


Evaluation = tuple[int, Callable[[int], dict[str, float]]]
"""(every, function of the step that returns metrics)"""


class Saving(Protocol):
    """How a run gets to the disk and back; every method is called by all processes together."""

    def save(self, state: RunState) -> None:
        """Write a checkpoint of the state."""

    def finish(self) -> None:
        """Wait until the last one is on the disk."""

    def failure_reason(self) -> str:
        """Why this process would end the run now; empty if all is well. Asked at every step."""

    def roll_back(self, state: RunState) -> None:
        """Return to the newest checkpoint, behind the images that have been seen; changes model and state in place."""


class SkippedPart(NamedTuple):
    """A micro batch of this process whose loss was not finite."""

    start: int
    """Position of its first image."""
    indices: list[int]
    """Of its images in the source."""
    loss: float


class SkippedStep(NamedTuple):
    """A step whose update was left out."""

    step: int
    positions: tuple[int, int]
    """Of its images, over all processes: the first one, and the one behind the last."""
    loss: float
    """Mean over all processes."""
    grad_norm: float
    parts: list[SkippedPart]
    """Of this process; none if its losses were finite, and only a gradient or another process's loss was not."""


def fit(
    accelerator: Accelerator,
    model: Any,
    optimizer: Any,
    *,
    plan: TrainingSchedule,
    state: RunState,
    batches: Callable[[int], Iterator[Batch]],
    loss_of: Callable[[Batch], Tensor],
    learning_rate: Callable[[int, float], float],
    evaluations: Sequence[Evaluation],
    saving: Saving,
    saved: Callable[[], None],
    skipped: Callable[[SkippedStep], None],
    stop: StopSignal,
    log: RunLog,
    average: WeightAverage | None = None,
    supply: StreamStatus | None = None,
) -> bool:
    """Train from `state` to the end of the plan, or until a stop is asked for.

    A step whose loss or gradient is not finite changes nothing but the counters. After a few of them in a row the run
    goes back to its newest checkpoint and on with the images behind those that led there.

    Args:
        batches: a position in the data -> micro batches of this process from there on.
        loss_of: a micro batch -> its mean loss, by a forward of the prepared model.
        learning_rate: (step, "lr_scale" of a parameter group) -> absolute rate.
        evaluations: one that finds the best step so far says so in `state.best`, and it is saved.
        saving, saved: checkpoints; called when one was taken.
        skipped: told of every step that was left out.
        stop, supply: whether this process was asked to stop, or has no more images; both end the run with a checkpoint.
        average: follows the weights.

    Returns:
        whether the run reached its end. The last checkpoint is on the disk.

    Raises:
        UserError: it diverged for good, images are broken or run out, replicas differ, checkpoints cannot be written.
    """
    control = (saving, skipped, log, supply or StreamStatus())
    trainer = _Trainer(accelerator, model, optimizer, plan, state, batches, loss_of, average, *control)
    done = state.step  # evaluated and saved when it was reached
    while True:
        new = state.step > done
        if new:
            trainer.evaluate(evaluations)
        stopping = trainer.stop_agreed or (new and plan.ends_early_at(state.step))
        if new and (stopping or trainer.save_is_due()):
            trainer.save(saved)
        if stopping or state.step >= plan.total_steps:
            return trainer.finish()
        trainer.step(partial(learning_rate, state.step), stop)
        if trainer.diverged:
            trainer.roll_back()
            done = state.step
            continue
        log.advance()
        if due(state.step, plan.log_every, plan.total_steps):
            _log_interval(log, trainer, learning_rate(state.step - 1, 1.0))


class _Trainer:
    """One step after the other; holds what lives between them."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: Any,
        optimizer: Any,
        plan: TrainingSchedule,
        state: RunState,
        batches: Callable[[int], Iterator[Batch]],
        loss_of: Callable[[Batch], Tensor],
        average: WeightAverage | None,
        saving: Saving,
        skipped: Callable[[SkippedStep], None],
        log: RunLog,
        supply: StreamStatus,
    ) -> None:
        self._supply = supply
        self.starved: UserError | None = None
        """Why there are no more images."""
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.plan, self.state = plan, state
        self.stop_agreed = False
        self.interval = Interval(accelerator.device, state.sums)
        self._batches_from, self._loss_of, self._average = batches, loss_of, average
        self._batches = batches(state.samples_seen)
        self._saving, self._skipped, self._log, self._spikes = saving, skipped, log, LossSpikes()
        self.data_wait = DataWait(plan.workers, accelerator.device)
        self._reports: deque[_Report] = deque()
        # Reading a report waits until the device has computed it; one step later it has.
        self._lag = 0 if accelerator.device.type == "cpu" else 1

    def step(self, rate: Callable[[float], float], stop: StopSignal) -> None:
        """One update of the global batch, and what all processes then agree on."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate(group.get("lr_scale", 1.0))
        broken = 0
        losses, parts = [], []
        for _ in range(self.plan.accumulation):
            batch = self._next_batch()
            broken += len(batch.broken)
            with self.accelerator.accumulate(self.model):
                seed_forward(self.plan.seed, batch.start)
                loss = self._loss_of(batch)
                self.accelerator.backward(loss)
            losses.append(loss.detach().float())
            parts.append((batch.start, batch.indices))
        mean = torch.stack(losses).mean() / self.accelerator.num_processes
        flags = [float(stop.received), float(broken), float(bool(self._saving.failure_reason()))]
        flags.append(float(self._supply.failure is not None))
        shared = self.accelerator.reduce(torch.stack([mean, *(torch.full_like(mean, flag) for flag in flags)]), "sum")
        norm, finite = self._update(shared[0])
        if self._average is not None:
            self._average.update(self.state.step)
        self.interval.add(shared[0], norm)
        self._reports.append(_Report(torch.cat([shared, torch.stack([finite, norm, *losses])]), parts))
        self.state.step += 1
        self.state.samples_seen += self.plan.global_batch
        self.read_reports(self._lag)

    def read_reports(self, behind: int = 0) -> None:
        """Act on what all processes reported, up to the step `behind` the last one."""
        while len(self._reports) > behind:
            report = self._reports.popleft()
            loss, stop, broken, failure_reason, starved, finite, norm, *losses = report.read()
            state = self.state
            step = state.step - len(self._reports)  # reports of later steps may be on their way
            self.stop_agreed |= stop > 0 or starved > 0
            if starved:
                elsewhere = UserError("another process has no more images to read", code=UNAVAILABLE)
                self.starved = self._supply.failure or elsewhere
            state.broken += int(broken)
            if finite:
                state.skipped_in_a_row = 0
                self._spikes.add(step, loss)
            else:
                state.skipped += 1
                state.skipped_in_a_row += 1
                _LOG.warning("step %d: loss %s or its gradient is not finite: update skipped", step, loss)
                end = state.samples_seen - len(self._reports) * self.plan.global_batch
                positions = (end - self.plan.global_batch, end)
                self._skipped(SkippedStep(step, positions, loss, norm, _not_finite(report.parts, losses)))
            if failure_reason:
                other = "another process cannot write checkpoints"
                raise UserError(self._saving.failure_reason() or other, code=CANNOT_WRITE)
            _check_broken(state, self.plan)

    @property
    def diverged(self) -> bool:
        """Whether so many steps in a row were not finite that the run has to go back."""
        # DeepSpeed has a loss scaler of its own, which accelerate does not show
        scaled = self.accelerator.mixed_precision == "fp16"
        limit = SKIPS_IN_A_ROW_SCALED if scaled else SKIPS_IN_A_ROW
        return self.state.skipped_in_a_row >= limit

    def finish(self) -> bool:
        """After the last step, for now: whether it was the last one of the plan. Raises why images ran out before."""
        self._saving.finish()
        self._log.close()
        done = self.state.step >= self.plan.total_steps
        if self.starved is not None and self.starved.code != STOPPED and not done:
            raise self.starved
        return done

    def roll_back(self) -> None:
        """Return to the newest checkpoint, and go on behind the images that led here."""
        self.read_reports()
        self._saving.roll_back(self.state)
        self._batches = iter(())  # the workers end before new ones start
        self._batches = self._batches_from(self.state.samples_seen)
        self.interval = Interval(self.accelerator.device, self.state.sums)
        self._log.rewind(self.state.step)

    def evaluate(self, evaluations: Sequence[Evaluation]) -> None:
        """What is due at this step, into the metrics."""
        for every, evaluation in evaluations:
            if due(self.state.step, every, self.plan.total_steps):
                self.read_reports()
                self._log.metrics(self.state.step, evaluation(self.state.step))
                self.interval.restart_clock()

    def save_is_due(self) -> bool:
        """The best step so far at once; others at their time, but not in a row of steps that were left out: a run that
        goes back wants to be before them."""
        state, plan = self.state, self.plan
        if state.best is not None and state.best.step == state.step:
            return True
        if not due(state.step, plan.save_every, plan.total_steps):
            return False
        self.read_reports()
        return not state.skipped_in_a_row or state.step >= plan.total_steps

    def save(self, saved: Callable[[], None]) -> None:
        """A checkpoint of the state, with the sums of the running interval; and what is to be done after it."""
        self.read_reports()
        check_replicas(self.accelerator, self.model)
        self.state.sums = self.interval.sums()
        start = time.perf_counter()
        self._saving.save(self.state)
        self.interval.saved(time.perf_counter() - start)
        saved()
        self.interval.restart_clock()

    def _next_batch(self) -> Batch:
        start = time.perf_counter()
        batch = next(self._batches)
        self.interval.waited(time.perf_counter() - start, batch.seconds)
        return batch

    def _update(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Clip, and update unless loss or gradient is not finite -> the gradient's norm, and 1.0 if both are finite."""
        accelerator = self.accelerator
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.plan.clip_norm)
        norm = torch.as_tensor(whole_tensor(norm), dtype=torch.float32, device=accelerator.device)
        finite = norm.isfinite() & loss.isfinite()
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            # it has decided and stepped at the end of the backward pass
            finite = finite & self.model.was_step_applied()
        elif accelerator.scaler is None:
            # The fused optimizer leaves weights and moments alone where this is not 0. Loss and gradient are those
            # of all processes, so all decide alike; the loss scaler has rules of its own.
            self.optimizer.optimizer.found_inf = (~finite).float()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm, finite.float()


def _not_finite(parts: list[tuple[int, Tensor]], losses: list[float]) -> list[SkippedPart]:
    return [
        SkippedPart(start, indices.tolist(), loss)
        for (start, indices), loss in zip(parts, losses, strict=True)
        if not math.isfinite(loss)
    ]


class _Report:
    """A few numbers of one step on their way from the device; a GPU goes on working while they are copied."""

    def __init__(self, numbers: Tensor, parts: list[tuple[int, Tensor]]) -> None:
        self.parts = parts
        """Position and indices of this process's micro batches."""
        self._numbers, self._arrived = numbers, None
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()


def seed_forward(seed: int, position: int) -> None:
    """Stochastic depth and dropout are functions of the run's seed and the micro batch's position too."""
    words = np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


def _check_broken(state: RunState, plan: TrainingSchedule) -> None:
    if state.samples_seen >= BROKEN_GRACE and state.broken > plan.max_broken * state.samples_seen:
        raise UserError(
            f"{state.broken} of {state.samples_seen} images could not be read, more than data.max_broken "
            f"{plan.max_broken:.2%}: they are listed in broken_images.jsonl in the run's folder; "
            "repair or remove them, or raise data.max_broken",
            code=DATA_ERROR,
        )


def _log_interval(log: RunLog, trainer: _Trainer, rate: float) -> None:
    plan, state = trainer.plan, trainer.state
    trainer.read_reports()
    check_replicas(trainer.accelerator, trainer.model)
    loading, seconds = trainer.interval.loading, trainer.interval.seconds
    values = {
        "epoch": round(state.samples_seen / plan.dataset_size, 4),
        "samples_seen": state.samples_seen,
        **trainer.interval.means(),
        "lr": rate,
        "skipped": state.skipped,
        "broken": state.broken,
        **trainer.interval.speed(plan.global_batch),
        **{f"{stage}_seconds": round(spent, 3) for stage, spent in loading._asdict().items()},
        "memory_gb": peak_memory_gb(trainer.accelerator.device),
    }
    log.metrics(state.step, values)
    trainer.data_wait.add(state.step, values["data_wait"], loading, seconds)
    left = (plan.total_steps - state.step) * plan.global_batch / max(values["images_per_second"], 1e-9)
    loss, norm = values.get("loss", math.nan), values.get("grad_norm", math.nan)
    _LOG.info(
        f"step {state.step:>6}/{plan.total_steps}  epoch {values['epoch']:.2f}  loss {loss:.4f}  "
        f"lr {rate:.2e}  grad norm {norm:.3f}  {values['images_per_second']:.0f} images/s  "
        f"data wait {values['data_wait']:.0%}  {values['memory_gb']:.2f} GB  eta {duration_text(left)}"
    )
