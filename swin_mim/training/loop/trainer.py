"""The one training loop. It knows that a batch has a loss, and nothing else about what is trained."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate.utils import DistributedType
from torch import Tensor

from swin_mim.counts import counted
from swin_mim.data.loading.gpu_copies import copied_beside
from swin_mim.data.loading.loader import Batch
from swin_mim.errors import CANNOT_WRITE, DATA_ERROR, STOPPED, UNAVAILABLE, UserError
from swin_mim.training.checkpoints.state import RunState
from swin_mim.training.distributed.prepare import PreparedModel
from swin_mim.training.distributed.replicas import check_replicas
from swin_mim.training.distributed.sharding import full_tensor_of
from swin_mim.training.loop.data_wait import DataWait
from swin_mim.training.loop.loss_spikes import LossSpikes
from swin_mim.training.loop.schedule import TrainingSchedule, due, due_early
from swin_mim.training.run.run import Run
from swin_mim.training.run.skipped_steps import SkippedPart, SkippedStep
from swin_mim.training.run.tracking import Interval, duration_text, peak_memory_gb

BROKEN_GRACE = 1000
"""Images that are read before the share of broken ones says anything."""
SKIPS_IN_A_ROW = 3
"""Non-finite steps in a row after which a run goes back; a loss scaler finds its scale by many more."""
SKIPS_IN_A_ROW_SCALED = 50

Losses = Tensor | Mapping[str, Tensor]
"""Of a micro batch: its mean loss, a scalar, or several by name, of which the sum is trained and each one is logged."""

_LOG = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """A measurement that is repeated during a run, by all processes together."""

    every: int
    """Steps; 0: never."""
    measure: Callable[[int], dict[str, float]]
    """The step -> metrics. One that finds the best step so far says so in the run's state, and it is saved."""
    describe: Callable[[dict[str, float]], str] | None = None
    """The metrics as a line of the log; None: nothing is said."""
    first: int = 0
    """Steps after which it is measured too, and at twice as many, four times and so on; 0: never."""


class Saving(Protocol):
    """Where a run stands, and how it gets to the disk and back; all processes call every method together."""

    state: RunState

    def save(self, state: RunState) -> None:
        """Write a checkpoint of the state."""

    def finish(self) -> None:
        """Wait until the last one is on the disk."""

    def failure_reason(self) -> str:
        """Tell why this process would end the run now; empty if all is well. Asked at every step."""

    def roll_back(self, state: RunState) -> None:
        """Return to the newest checkpoint, behind the images that have been seen; changes model and state in place."""


class Publishing(Protocol):
    """What publishes a run while it goes on."""

    def saved(self, step: int) -> None:
        """Publish the run, if that is due after the checkpoint of this step; all processes call it together."""


class Loader(Protocol):
    """Where the images to train on come from."""

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        """Yield the micro batches of this process from this position on."""


def fit(
    run: Run,
    trained: PreparedModel[Any],
    task: Callable[[Batch], Losses],
    loader: Loader,
    schedule: TrainingSchedule,
    checkpoints: Saving,
    evaluations: Sequence[Evaluation] = (),
    publisher: Publishing | None = None,
) -> bool:
    """Train from where the checkpoints stand to the end of the schedule, or until a stop is asked for.

    A step whose loss or gradient is not finite changes nothing but the counters; the average of the weights moves
    towards these as they are. After a few of them in a row the run goes back to its newest checkpoint and on with the
    images behind those that led there.

    Args:
        run: asks for a stop, and is told what happens.
        task: a micro batch -> its losses, by a forward of `trained.model`.
        publisher: told of every checkpoint.

    Returns:
        whether the run reached its end. The last checkpoint is on the disk.

    Raises:
        UserError: it diverged for good, images are broken or run out, replicas differ, checkpoints cannot be written.
    """
    trainer, state = Trainer(run, trained, task, loader, schedule, checkpoints), checkpoints.state
    done = begin = state.step  # evaluated and saved when it was reached
    while True:
        new = state.step > done
        if new:
            trainer.evaluate(evaluations)
        stopping = trainer.stop_agreed or (new and schedule.ends_early_at(state.step))
        if new and (stopping or trainer.save_is_due()):
            trainer.save(publisher)
        if stopping or state.step >= schedule.total_steps:
            return trainer.finish()
        trainer.step()
        if trainer.diverged:
            trainer.roll_back()
            done = state.step
            continue
        run.log.advance()
        if due(state.step, schedule.log_every, schedule.end(state.step)):
            trainer.log_interval()
        elif state.step == begin + 1 and not run.log.shows_progress:
            trainer.log_first_step()


class Trainer:
    """One step after the other; holds what lives between them. The arguments are those of `fit`."""

    def __init__(
        self,
        run: Run,
        trained: PreparedModel[Any],
        task: Callable[[Batch], Losses],
        loader: Loader,
        schedule: TrainingSchedule,
        checkpoints: Saving,
    ) -> None:
        self.run, self.trained, self.schedule, self.checkpoints = run, trained, schedule, checkpoints
        self.accelerator, self.state = run.accelerator, checkpoints.state
        self._task, self._loader = task, loader
        self.no_images: UserError | None = None
        """Why there are no more images."""
        self.stop_agreed = False
        self.interval = Interval(self.accelerator.device, self.state.sums)
        self._batches = self._started()
        self._spikes = LossSpikes()
        self.data_wait = DataWait(run.workers, self.accelerator.device)
        self._reports: deque[_Report] = deque()
        self._last: _Report | None = None
        # Reading a report waits until the device has computed it; one step later it has.
        self._lag = 0 if self.accelerator.device.type == "cpu" else 1

    def step(self) -> None:
        """Update with one global batch, and share what all processes then agree on."""
        for group in self.trained.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(self.state.step, group.get("lr_scale", 1.0))
        broken = 0
        losses, singles, parts = [], [], []
        for _ in range(self.schedule.accumulation):
            batch = self._next_batch()
            broken += len(batch.broken)
            with self.accelerator.accumulate(self.trained.model):
                seed_forward(self.schedule.seed, batch.start)
                loss, single = summed(self._task(batch))
                self.accelerator.backward(self._to_differentiate(loss))
            losses.append(loss.detach().float())
            singles.append(single)
            parts.append((batch.start, batch.indices))
        mean = torch.stack(losses).mean() / self.accelerator.num_processes
        flags = [float(self.run.stop.received), float(broken), float(bool(self.checkpoints.failure_reason()))]
        flags.append(float(self.run.stream.failure is not None))
        flagged = [torch.full_like(mean, flag) for flag in flags]
        means = _means(singles, self.accelerator.num_processes)
        reduced = self.accelerator.reduce(torch.stack([mean, *flagged, *means.values()]), "sum")
        shared, named = reduced[: 1 + len(flags)], dict(zip(means, reduced[1 + len(flags) :], strict=True))
        norm, finite = self._update(shared[0])
        if self.trained.average is not None:
            self.trained.average.update(self.state.step)
        self.interval.add(shared[0], norm, named)
        self._last = _Report(torch.cat([shared, torch.stack([finite, norm, *losses])]), parts)
        self._reports.append(self._last)
        self.state.step += 1
        self.state.samples_seen += self.schedule.global_batch
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
                self.no_images = self.run.stream.failure or elsewhere
            state.broken += int(broken)
            if finite:
                state.skipped_in_a_row = 0
                self._spikes.add(step, loss)
            else:
                state.skipped += 1
                state.skipped_in_a_row += 1
                _LOG.warning("step %d: loss %s or its gradient is not finite: update skipped", step, loss)
                end = state.samples_seen - len(self._reports) * self.schedule.global_batch
                positions = (end - self.schedule.global_batch, end)
                self.run.skipped(SkippedStep(step, positions, loss, norm, _not_finite(report.parts, losses)))
            if failure_reason:
                other = "another process cannot write checkpoints"
                raise UserError(self.checkpoints.failure_reason() or other, code=CANNOT_WRITE)
            _check_broken(state, self.schedule)

    @property
    def diverged(self) -> bool:
        """Whether so many steps in a row were not finite that the run has to go back."""
        # DeepSpeed has a loss scaler of its own, which accelerate does not show
        scaled = self.accelerator.mixed_precision == "fp16"
        limit = SKIPS_IN_A_ROW_SCALED if scaled else SKIPS_IN_A_ROW
        return self.state.skipped_in_a_row >= limit

    def finish(self) -> bool:
        """End the log -> whether the schedule is at its end. Raises why images ran out before."""
        self.checkpoints.finish()
        self.run.log.close()
        done = self.state.step >= self.schedule.total_steps
        if self.no_images is not None and self.no_images.code != STOPPED and not done:
            raise self.no_images
        return done

    def roll_back(self) -> None:
        """Return to the newest checkpoint, and go on behind the images that led here."""
        self.read_reports()
        self.checkpoints.roll_back(self.state)
        self._batches = iter(())  # the workers end before new ones start
        self._batches = self._started()
        self.interval = Interval(self.accelerator.device, self.state.sums)
        self.run.log.rewind(self.state.step)

    def evaluate(self, evaluations: Sequence[Evaluation]) -> None:
        """What is due at this step, into the metrics."""
        for evaluation in evaluations:
            step, end = self.state.step, self.schedule.end(self.state.step)
            if due(step, evaluation.every, end) or due_early(step, evaluation.first, end):
                self.read_reports()
                metrics = evaluation.measure(self.state.step)
                if evaluation.describe is not None:
                    self.run.log.log_step(self.state.step, evaluation.describe(metrics))
                self.run.log.metrics(self.state.step, metrics)
                self.interval.restart_clock()

    def save_is_due(self) -> bool:
        """The best step so far at once; others at their time, but not in a row of steps that were left out: a run that
        goes back wants to be before them."""
        state, schedule = self.state, self.schedule
        if state.best is not None and state.best.step == state.step:
            return True
        if not due(state.step, schedule.save_every, end := schedule.end(state.step)):
            return False
        self.read_reports()
        return not state.skipped_in_a_row or state.step == end

    def save(self, publisher: Publishing | None) -> None:
        """Write a checkpoint of the state, with the sums of the running interval, and tell the publisher."""
        self.read_reports()
        check_replicas(self.accelerator, self.trained.model)
        self.state.sums = self.interval.sums()
        start = time.perf_counter()
        self.checkpoints.save(self.state)
        self.interval.saved(time.perf_counter() - start)
        if publisher is not None:
            publisher.saved(self.state.step)
        self.interval.restart_clock()

    def log_first_step(self) -> None:
        """Say that the training goes on, where no progress bar shows it: the first line of metrics may be far."""
        assert self._last is not None
        # the report is only looked at: all processes act on it together, some steps later
        loss, step = self._last.read()[0], self.state.step
        every, total = self.schedule.log_every, self.schedule.total_steps
        following = min(total, (step // every + 1) * every) if every else 0
        then = f"next line after step {following}" if every else "log.every is 0: no lines of metrics follow"
        _LOG.info(f"step {step:>6}/{total}  loss {loss:.4f}  first step took {self.interval.seconds:.1f} s; {then}")

    def log_interval(self) -> None:
        """Write the metrics since the last line of the log."""
        schedule, state = self.schedule, self.state
        self.read_reports()
        check_replicas(self.accelerator, self.trained.model)
        rate = schedule.learning_rate(state.step - 1, 1.0)
        loading, seconds = self.interval.loading, self.interval.seconds
        values = {
            "epoch": round(state.samples_seen / schedule.dataset_size, 4),
            "samples_seen": state.samples_seen,
            **self.interval.means(),
            "lr": rate,
            "skipped": state.skipped,
            "broken": state.broken,
            **self.interval.speed(schedule.global_batch),
            **{f"{stage}_seconds": round(spent, 3) for stage, spent in loading._asdict().items()},
            "memory_gb": peak_memory_gb(self.accelerator.device),
        }
        self.run.log.metrics(state.step, values)
        self.data_wait.add(state.step, values["data_wait"], loading, seconds)
        left = (schedule.total_steps - state.step) * schedule.global_batch / max(values["images_per_second"], 1e-9)
        loss, norm = values.get("loss", math.nan), values.get("grad_norm", math.nan)
        _LOG.info(
            f"step {state.step:>6}/{schedule.total_steps}  epoch {values['epoch']:.2f}  loss {loss:.4f}  "
            f"lr {rate:.2e}  grad norm {norm:.3f}  {values['images_per_second']:.0f} images/s  "
            f"data wait {values['data_wait']:.0%}  {values['memory_gb']:.2f} GB  eta {duration_text(left)}"
        )

    def _started(self) -> Iterator[Batch]:
        """The batches from where the run stands."""
        batches = self._loader.batches(self.state.samples_seen)
        return self.run.watch(copied_beside(batches, self.accelerator.device))

    def _next_batch(self) -> Batch:
        start = time.perf_counter()
        batch = next(self._batches)
        self.interval.waited(time.perf_counter() - start, batch.seconds)
        return batch

    def _to_differentiate(self, loss: Tensor) -> Tensor:
        """The loss, or where it is not finite and a scaler of the loss decides, one whose gradient is NaN as well.

        Loss scalers look at gradients alone, and that of |x| is 0 where x is NaN.
        """
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        if self.accelerator.scaler is None and not deepspeed:
            return loss
        return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)

    def _update(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Clip, and update unless loss or gradient is not finite -> the gradient's norm, and 1.0 if both are finite."""
        accelerator = self.accelerator
        norm = accelerator.clip_grad_norm_(self.trained.model.parameters(), self.schedule.clip_norm)
        norm = torch.as_tensor(full_tensor_of(norm), dtype=torch.float32, device=accelerator.device)
        finite = norm.isfinite() & loss.isfinite()
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            # it has decided and stepped at the end of the backward pass
            finite = finite & self.trained.model.was_step_applied()
        elif accelerator.scaler is None and heeds_found_inf(accelerator.device):
            # The fused optimizer leaves weights and moments alone where this is not 0. Loss and gradient are those
            # of all processes, so all decide alike; the loss scaler has rules of its own.
            self.trained.optimizer.optimizer.found_inf = (~finite).float()
        if heeds_found_inf(accelerator.device) or finite.item():
            self.trained.optimizer.step()
        self.trained.optimizer.zero_grad()
        return norm, finite.float()


def summed(losses: Losses) -> tuple[Tensor, dict[str, Tensor]]:
    """What a task gave -> the loss to train, and the single ones for the log, float32 without their graph."""
    if isinstance(losses, Tensor):
        return losses, {}
    single = {name: loss.float() for name, loss in losses.items()}
    return torch.stack([*single.values()]).sum(), {name: loss.detach() for name, loss in single.items()}


def _means(singles: Sequence[Mapping[str, Tensor]], processes: int) -> dict[str, Tensor]:
    """This process's share of the mean of each loss over the micro batches of all."""
    return {name: torch.stack([each[name] for each in singles]).mean() / processes for name in singles[0]}


def heeds_found_inf(device: torch.device) -> bool:
    """Whether fused optimizers leave out a step there by themselves.

    On MPS only since https://github.com/pytorch/pytorch/pull/186360 of June 2026: there the host waits and decides.
    """
    return device.type != "mps"


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


def _check_broken(state: RunState, schedule: TrainingSchedule) -> None:
    if state.samples_seen >= BROKEN_GRACE and state.broken > schedule.max_broken * state.samples_seen:
        raise UserError(
            f"{state.broken} of {counted(state.samples_seen, 'image')} could not be read, more than data.max_broken "
            f"{schedule.max_broken:.2%}: they are listed in broken_images.jsonl in the run's folder; "
            "repair or remove them, or raise data.max_broken",
            code=DATA_ERROR,
        )
