"""The one training loop. It knows that a batch has a loss, and nothing else about what is trained."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from swin_mim.data.loader import Batch
from swin_mim.errors import UserError
from swin_mim.training.plan import Plan
from swin_mim.training.run_state import RunState
from swin_mim.training.schedule import due
from swin_mim.training.stop_signal import StopSignal
from swin_mim.training.tracking import Interval, RunLog, duration_text, peak_memory_gb
from swin_mim.training.weight_average import WeightAverage

BROKEN_GRACE = 1000
"""Images that are read before the share of broken ones says anything."""
SKIPS_IN_A_ROW = 3
"""Non-finite steps in a row after which a run has diverged; a loss scaler finds its scale by many more."""
SKIPS_IN_A_ROW_SCALED = 50

_LOG = logging.getLogger(__name__)


Evaluation = tuple[int, Callable[[int], dict[str, float]]]
"""(every, function of the step that returns metrics)"""


def fit(
    accelerator: Accelerator,
    model: Any,
    optimizer: Any,
    *,
    plan: Plan,
    state: RunState,
    batches: Iterator[Batch],
    loss_of: Callable[[Batch], Tensor],
    learning_rate: Callable[[int, float], float],
    evaluations: Sequence[Evaluation],
    save: Callable[[RunState], None],
    log: RunLog,
    average: WeightAverage | None = None,
) -> bool:
    """Train from `state` to the end of the plan, or until a stop is asked for.

    Args:
        batches: micro batches of this process, from `state.samples_seen` on.
        loss_of: a micro batch -> its mean loss, by a forward of the prepared model.
        learning_rate: (step, "lr_scale" of a parameter group) -> absolute rate.
        evaluations: what to measure and how often. One that finds the best step so far says so in `state.best`, and
            it is saved.
        save: writes a checkpoint of the state; called by all processes together.
        average: follows the weights.

    Returns:
        whether the run reached its end.

    Raises:
        UserError: the loss stays non-finite, or too many images are broken.
    """
    trainer = _Trainer(accelerator, model, optimizer, plan, state, batches, loss_of, average)
    resumed_at = state.step  # which was evaluated and saved when it was reached
    with StopSignal() as stop:
        while True:
            new = state.step > resumed_at
            for every, evaluation in evaluations:
                if new and due(state.step, every, plan.total_steps):
                    trainer.read_reports()
                    log.metrics(state.step, evaluation(state.step))
                    trainer.interval.restart_clock()
            stopping = trainer.stop_agreed or (new and plan.ends_early_at(state.step))
            best = state.best is not None and state.best.step == state.step
            if new and (stopping or best or due(state.step, plan.save_every, plan.total_steps)):
                trainer.read_reports()
                save(trainer.snapshot())
                trainer.interval.restart_clock()
            if stopping or state.step >= plan.total_steps:
                log.close()
                return state.step >= plan.total_steps
            trainer.step(partial(learning_rate, state.step), stop)
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
        plan: Plan,
        state: RunState,
        batches: Iterator[Batch],
        loss_of: Callable[[Batch], Tensor],
        average: WeightAverage | None,
    ) -> None:
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.plan, self.state = plan, state
        self.stop_agreed = False
        self.interval = Interval(accelerator.device, state.sums)
        self._batches, self._loss_of, self._average = batches, loss_of, average
        self._reports: deque[_Report] = deque()
        # Reading a report waits until the device has computed it; one step later it has.
        self._lag = 0 if accelerator.device.type == "cpu" else 1

    def step(self, rate: Callable[[float], float], stop: StopSignal) -> None:
        """One update of the global batch, and what all processes then agree on."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate(group.get("lr_scale", 1.0))
        broken = 0
        losses = []
        for _ in range(self.plan.accumulation):
            batch = self._next_batch()
            broken += len(batch.broken)
            with self.accelerator.accumulate(self.model):
                _seed_forward(self.plan.seed, batch.start)
                loss = self._loss_of(batch)
                self.accelerator.backward(loss)
                losses.append(loss.detach())
        mean = torch.stack(losses).mean().float() / self.accelerator.num_processes
        counts = [torch.full_like(mean, count) for count in (float(stop.received), float(broken))]
        shared = self.accelerator.reduce(torch.stack([mean, *counts]), "sum")
        norm, finite = self._update(shared[0])
        if self._average is not None:
            self._average.update(self.state.step)
        self.interval.add(shared[0], norm)
        self._reports.append(_Report(torch.cat([shared, finite[None]])))
        self.state.step += 1
        self.state.samples_seen += self.plan.global_batch
        self.read_reports(self._lag)

    def read_reports(self, behind: int = 0) -> None:
        """Act on what all processes reported, up to the step `behind` the last one."""
        while len(self._reports) > behind:
            loss, stop, broken, good = self._reports.popleft().read()
            state = self.state
            self.stop_agreed |= stop > 0
            state.broken += int(broken)
            state.skipped += not good
            state.skipped_in_a_row = 0 if good else state.skipped_in_a_row + 1
            if not good:
                step = state.step - len(self._reports)  # reports of later steps may be on their way
                _LOG.warning("step %d: loss %s or its gradient is not finite: update skipped", step, loss)
            _check_finite(state, scaled=self.accelerator.mixed_precision == "fp16")
            _check_broken(state, self.plan)

    def snapshot(self) -> RunState:
        """The state with the sums of the running interval, ready to be saved."""
        self.state.sums = self.interval.sums()
        return self.state

    def _next_batch(self) -> Batch:
        start = time.perf_counter()
        batch = next(self._batches)
        self.interval.waited(time.perf_counter() - start)
        return batch

    def _update(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Clip, and update unless loss or gradient is not finite -> the gradient's norm, and 1.0 if both are finite."""
        accelerator = self.accelerator
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.plan.clip_norm)
        norm = torch.as_tensor(norm, dtype=torch.float32, device=accelerator.device)
        finite = norm.isfinite() & loss.isfinite()
        if accelerator.distributed_type != DistributedType.DEEPSPEED and accelerator.scaler is None:
            # The fused optimizer leaves weights and moments alone where this is not 0. Loss and gradient are those
            # of all processes, so all decide alike; DeepSpeed and the loss scaler have rules of their own.
            self.optimizer.optimizer.found_inf = (~finite).float()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm, finite.float()


class _Report:
    """A few numbers of one step on their way from the device; a GPU goes on working while they are copied."""

    def __init__(self, numbers: Tensor) -> None:
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


def _seed_forward(seed: int, position: int) -> None:
    """Stochastic depth and dropout are functions of the run's seed and the micro batch's position too."""
    words = np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


def _check_finite(state: RunState, *, scaled: bool) -> None:
    limit = SKIPS_IN_A_ROW_SCALED if scaled else SKIPS_IN_A_ROW
    if state.skipped_in_a_row >= limit:
        raise UserError(
            f"the loss or its gradient was not finite for {limit} steps in a row, up to step {state.step}: "
            "the run has diverged; resume it from its last checkpoint, with a smaller optim.base_lr under another "
            "run.name, or with train.precision fp32"
        )


def _check_broken(state: RunState, plan: Plan) -> None:
    if state.samples_seen >= BROKEN_GRACE and state.broken > plan.max_broken * state.samples_seen:
        raise UserError(
            f"{state.broken} of {state.samples_seen} images could not be read, more than data.max_broken "
            f"{plan.max_broken:.2%}: they are listed in broken_images.jsonl in the run's folder; "
            "repair or remove them, or raise data.max_broken"
        )


def _log_interval(log: RunLog, trainer: _Trainer, rate: float) -> None:
    plan, state = trainer.plan, trainer.state
    trainer.read_reports()
    values = {
        "epoch": round(state.samples_seen / plan.dataset_size, 4),
        "samples_seen": state.samples_seen,
        **trainer.interval.means(),
        "lr": rate,
        "skipped": state.skipped,
        "broken": state.broken,
        **trainer.interval.speed(plan.global_batch),
        "memory_gb": peak_memory_gb(trainer.accelerator.device),
    }
    log.metrics(state.step, values)
    left = (plan.total_steps - state.step) * plan.global_batch / max(values["images_per_second"], 1e-9)
    loss, norm = values.get("loss", math.nan), values.get("grad_norm", math.nan)
    _LOG.info(
        f"step {state.step:>6}/{plan.total_steps}  epoch {values['epoch']:.2f}  loss {loss:.4f}  "
        f"lr {rate:.2e}  grad norm {norm:.3f}  {values['images_per_second']:.0f} images/s  "
        f"data wait {values['data_wait']:.0%}  {values['memory_gb']:.2f} GB  eta {duration_text(left)}"
    )
