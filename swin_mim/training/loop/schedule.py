"""A run in steps: its length, what happens how often, and the learning rate of each step."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.training.config.dense.recipes import RecipeConfig
from swin_mim.training.config.durations import LearningRateSchedule, checked_warmup, to_steps


@dataclass(frozen=True)
class TrainingSchedule:
    """A run in steps; 0 means never."""

    total_steps: int
    stop_after: int
    log_every: int
    save_every: int
    global_batch: int
    accumulation: int
    """Micro batches of each process in one step."""
    clip_norm: float
    seed: int
    dataset_size: int
    """Images in one epoch."""
    max_broken: float
    learning_rate: Callable[[int, float], float]
    """(step, "lr_scale" of a parameter group) -> absolute learning rate of that update, which counts from 0."""
    restarts: tuple[int, ...] = ()
    """Steps after which the run had ended before it was extended."""

    @classmethod
    def from_config(cls, config: RecipeConfig, *, images: int, accumulation: int) -> "TrainingSchedule":
        """Translate the durations of the settings.

        Args:
            images: to train on, which make an epoch.
            accumulation: micro batches of each process in one step.

        Raises:
            UserError: the warm-up does not end before the run, or an extended run is not longer than before.
        """
        steps = partial(to_steps, dataset_size=images, global_batch=config.train.global_batch)
        learning_rate = lr_schedule(config, steps)
        return cls(
            total_steps=steps(config.train.duration),
            stop_after=steps(config.train.stop_after),
            log_every=steps(config.log.every),
            save_every=steps(config.save.every),
            global_batch=config.train.global_batch,
            accumulation=accumulation,
            clip_norm=config.optim.clip_norm,
            seed=config.run.seed,
            dataset_size=images,
            max_broken=config.data.max_broken,
            learning_rate=learning_rate,
            restarts=learning_rate.starts[1:] if isinstance(learning_rate, WarmRestarts) else (),
        )

    def ends_early_at(self, step: int) -> bool:
        return 0 < self.stop_after == step

    def end(self, step: int) -> int:
        """The last step of the part of the run that `step` is in: that of the run, or of what it was before."""
        return next((end for end in self.restarts if end >= step), self.total_steps)

    def steps(self, duration: str) -> int:
        """A duration of the settings -> steps."""
        return to_steps(duration, dataset_size=self.dataset_size, global_batch=self.global_batch)

    def extension_text(self) -> str:
        """What the last extension of the run does: from which step, up to which rate, until which step."""
        rates, begin = self.learning_rate, self.restarts[-1]
        assert isinstance(rates, WarmRestarts)
        last = rates.parts[-1]
        return (
            f"extended: the run had ended after {counted(begin, 'step')}; from a learning rate of "
            f"{rates(begin - 1):.2e} it warms up to {last.base:.2e} until step {begin + last.warmup_steps}, then the "
            f"{last.schedule} schedule runs once more, until step {self.total_steps}"
        )


@dataclass(frozen=True)
class LearningRate:
    """The learning rate as a pure function of the step.

    A straight line from `warmup_start` to `base` over `warmup_steps`, then the schedule. The cosine spans the
    whole run, as in the official recipes: after the warm-up it goes on where it would be without one, a
    little below `base`; poly, (1 - step / total_steps) ** `power`, likewise. `milestones` (steps) and `gamma` belong to
    "multistep", `minimum` to "cosine" and "poly".

    The scale of a parameter group is of the peak alone: warm-up start and minimum are the same for all groups, as with
    timm's schedulers in the official recipes.
    """

    total_steps: int
    warmup_steps: int
    base: float
    warmup_start: float
    minimum: float
    schedule: LearningRateSchedule
    milestones: Sequence[int] = ()
    gamma: float = 0.1
    power: float = 1.0

    def __call__(self, step: int, scale: float = 1.0) -> float:
        """Absolute learning rate of update number `step`, which counts from 0, in a group of this scale."""
        base = self.base * scale
        if step < self.warmup_steps:
            return self.warmup_start + step * (base - self.warmup_start) / self.warmup_steps
        if self.schedule == "cosine":
            wave = 1 + math.cos(math.pi * step / self.total_steps)
            return self.minimum + 0.5 * (base - self.minimum) * wave
        if self.schedule == "poly":
            return self.minimum + (base - self.minimum) * (1 - step / self.total_steps) ** self.power
        if self.schedule == "multistep":
            return float(base * self.gamma ** sum(milestone <= step for milestone in self.milestones))
        return base


@dataclass(frozen=True)
class WarmRestarts:
    """The learning rate of a run that was extended after it had ended (warm restarts, arXiv 1608.03983).

    Each extension warms up from the rate of the step before it, in every parameter group from its own.

    Args:
        starts: the first step of each part, from 0 on.
        parts: the rate within each, whose steps count from 0; of all but the first the warm-up's start is not heeded.
    """

    starts: tuple[int, ...]
    parts: tuple[LearningRate, ...]

    def __call__(self, step: int, scale: float = 1.0) -> float:
        """As that of a `LearningRate`."""
        place = bisect_right(self.starts, step) - 1
        start, part = self.starts[place], self.parts[place]
        if place and step - start < part.warmup_steps:
            part = replace(part, warmup_start=self(start - 1, scale))
        return part(step - start, scale)


def lr_schedule(config: RecipeConfig, steps: Callable[[str], int]) -> LearningRate | WarmRestarts:
    """The learning rate that the settings describe; `steps` translates a duration.

    An extension has the schedule of the run once more, over the steps that are added: milestones at the same fractions
    of it, and a warm-up as long as the run's, but at most a tenth of the extension.

    Raises:
        UserError: the warm-up does not end before the run, or an extended run is not longer than before.
    """
    lengths = (*config.train.extended, config.train.duration)
    ends = tuple(map(steps, lengths))
    for (before, end), (old, new) in zip(pairwise(ends), pairwise(lengths), strict=True):
        if end <= before:
            raise UserError(
                f"train.duration {new!r} is {counted(end, 'step')}, and the run already had {before} ({old!r}): give a "
                "longer one to extend it, or start another run with --run.name"
            )
    first = _lr_schedule(config, steps, ends[0])
    if len(ends) == 1:
        return first
    added = (end - before for before, end in pairwise(ends))
    return WarmRestarts((0, *ends[:-1]), (first, *(_over(first, length) for length in added)))


def _over(first: LearningRate, length: int) -> LearningRate:
    """The schedule of a run, over an extension of so many steps."""
    milestones = [round(milestone * length / first.total_steps) for milestone in first.milestones]
    warmup = min(first.warmup_steps, math.ceil(length / 10))
    return replace(first, total_steps=length, warmup_steps=warmup, milestones=milestones)


def _lr_schedule(config: RecipeConfig, steps: Callable[[str], int], total_steps: int) -> LearningRate:
    """The learning rate of a run that was never extended."""
    optim, batch = config.optim, config.train.global_batch
    return LearningRate(
        total_steps=total_steps,
        warmup_steps=checked_warmup(optim.warmup, steps(optim.warmup), total_steps),
        base=scaled(optim.base_lr, batch),
        warmup_start=scaled(optim.warmup_lr, batch),
        minimum=scaled(optim.min_lr, batch),
        schedule=optim.schedule,
        milestones=[steps(milestone) for milestone in optim.milestones],
        gamma=optim.gamma,
        power=optim.power,
    )


def scaled(rate: float, global_batch: int) -> float:
    """The rate of a global batch, of a rate that is given per 512 images."""
    return rate * global_batch / 512


def due(step: int, every: int, total_steps: int) -> bool:
    """Whether something periodic happens after `step` steps: every `every` and after the last; 0 = never."""
    return every > 0 and step > 0 and (step % every == 0 or step == total_steps)


def due_early(step: int, first: int, total_steps: int) -> bool:
    """Whether something that comes less and less often happens after `step` steps: after `first`, twice as many, four
    times and so on, and after the last; 0 = never."""
    if first <= 0 or step <= 0:
        return False
    times, rest = divmod(step, first)
    return step == total_steps or (rest == 0 and times & (times - 1) == 0)
