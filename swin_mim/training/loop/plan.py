"""A run in steps: its length, what happens how often, and the learning rate of each step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from swin_mim.training.config.pretrain_checks import FinetuneConfig, PretrainConfig
from swin_mim.training.config.schedule import checked_warmup, learning_rate, scaled, to_steps


@dataclass(frozen=True)
class TrainingSchedule:
    """A run in steps; 0 means never."""

    total_steps: int
    stop_after: int
    log_every: int
    save_every: int
    global_batch: int
    accumulation: int
    clip_norm: float
    seed: int
    dataset_size: int
    max_broken: float
    workers: int = 0
    """Processes that load images for each training process."""

    def ends_early_at(self, step: int) -> bool:
        return 0 < self.stop_after == step

    def steps(self, duration: str) -> int:
        """A duration of the settings -> steps."""
        return to_steps(duration, dataset_size=self.dataset_size, global_batch=self.global_batch)


def plan_of(config: PretrainConfig | FinetuneConfig, *, images: int, accumulation: int) -> TrainingSchedule:
    """What the settings say of a run.

    Args:
        images: to train on, which make an epoch.
        accumulation: micro batches of one process in a step.
    """
    steps = partial(to_steps, dataset_size=images, global_batch=config.train.global_batch)
    return TrainingSchedule(
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
        workers=config.data.workers,
    )


def rate_of(config: PretrainConfig | FinetuneConfig, plan: TrainingSchedule) -> Callable[[int, float], float]:
    """(step, scale of a parameter group) -> absolute learning rate of that update.

    The scale is of the peak alone: warm-up start and minimum are the same for all groups, as with timm's schedulers
    in the official recipes.

    Raises:
        UserError: the warm-up does not end before the run.
    """
    optim, batch = config.optim, config.train.global_batch
    of_step = partial(
        learning_rate,
        total_steps=plan.total_steps,
        warmup_steps=checked_warmup(optim.warmup, plan.steps(optim.warmup), plan.total_steps),
        warmup_start=scaled(optim.warmup_lr, batch),
        minimum=scaled(optim.min_lr, batch),
        schedule=optim.schedule,
        milestones=[plan.steps(milestone) for milestone in optim.milestones],
        gamma=optim.gamma,
    )
    base = scaled(optim.base_lr, batch)
    return lambda step, scale: of_step(step, base=base * scale)
