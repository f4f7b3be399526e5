"""Durations in any unit become steps here; the learning rate is a pure function of the step."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from swin_mim.errors import UserError

Schedule = Literal["cosine", "multistep", "constant"]

_DURATION = re.compile(r"(?P<count>[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?)\s*(?P<unit>epoch|step|image)s?")


def to_steps(duration: str, *, dataset_size: int, global_batch: int) -> int:
    """A duration such as "100 epochs", "500 steps" or "2e6 images" -> steps, rounded up to whole ones.

    Args:
        duration: a number and a unit; underscores and an exponent are fine, and fractions of epochs.
        dataset_size: images in one epoch.
        global_batch: images in one step.

    Raises:
        UserError: `duration` has another form.
    """
    assert dataset_size > 0
    assert global_batch > 0
    match = _DURATION.fullmatch(duration.strip())
    # Exact fractions: 1.1 epochs of 1000 images are 1100 images, not 1100.0000000000002.
    count = Fraction(match["count"].replace("_", "")) if match else Fraction(-1)
    if match is None or (match["unit"] != "epoch" and count.denominator != 1):
        raise UserError(
            f"{duration!r} is not a duration: write a number and a unit, "
            '"100 epochs", "0.5 epochs", "500 steps" or "2e6 images"'
        )
    steps_per_unit = {"epoch": Fraction(dataset_size, global_batch), "image": Fraction(1, global_batch)}
    return math.ceil(count * steps_per_unit.get(match["unit"], 1))


def learning_rate(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    base: float,
    warmup_start: float,
    minimum: float,
    schedule: Schedule,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
) -> float:
    """Learning rate of update number `step`, which counts from 0.

    A straight line from `warmup_start` to `base` over `warmup_steps`, then the schedule. The cosine spans the
    whole run, as in the official recipes: after the warm-up it goes on where it would be without one, a
    little below `base`. `milestones` (steps) and `gamma` belong to "multistep", `minimum` to "cosine".
    """
    if step < warmup_steps:
        return warmup_start + step * (base - warmup_start) / warmup_steps
    if schedule == "cosine":
        return minimum + 0.5 * (base - minimum) * (1 + math.cos(math.pi * step / total_steps))
    if schedule == "multistep":
        return float(base * gamma ** sum(milestone <= step for milestone in milestones))
    return base


def scaled(rate: float, global_batch: int) -> float:
    """The rate of a global batch, of a rate that is given per 512 images."""
    return rate * global_batch / 512


def checked_warmup(duration: str, steps: int, total_steps: int) -> int:
    """The warm-up in steps, once it is sure to end before the run.

    Raises:
        UserError: it does not.
    """
    if steps >= total_steps:
        raise UserError(
            f"optim.warmup {duration!r} does not end before the run, which has {total_steps} steps: "
            f"the warm-up must be shorter, such as '{total_steps // 10} steps'"
        )
    return steps


def due(step: int, every: int, total_steps: int) -> bool:
    """Whether something periodic happens after `step` steps: every `every` and after the last; 0 = never."""
    return every > 0 and step > 0 and (step % every == 0 or step == total_steps)
