"""A run in steps: its length, what happens how often, and the learning rate of each step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

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

    @classmethod
    def from_config(cls, config: RecipeConfig, *, images: int, accumulation: int) -> "TrainingSchedule":
        """Translate the durations of the settings.

        Args:
            images: to train on, which make an epoch.
            accumulation: micro batches of each process in one step.

        Raises:
            UserError: the warm-up does not end before the run.
        """
        steps = partial(to_steps, dataset_size=images, global_batch=config.train.global_batch)
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
            learning_rate=lr_schedule(config, steps),
        )

    def ends_early_at(self, step: int) -> bool:
        return 0 < self.stop_after == step

    def steps(self, duration: str) -> int:
        """A duration of the settings -> steps."""
        return to_steps(duration, dataset_size=self.dataset_size, global_batch=self.global_batch)


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


def lr_schedule(config: RecipeConfig, steps: Callable[[str], int]) -> LearningRate:
    """The learning rate that the settings describe; `steps` translates a duration.

    Raises:
        UserError: the warm-up does not end before the run.
    """
    optim, batch, total_steps = config.optim, config.train.global_batch, steps(config.train.duration)
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
