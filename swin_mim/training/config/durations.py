"""Durations in any unit become steps here."""

import math
import re
from fractions import Fraction
from typing import Literal

from swin_mim.counts import counted
from swin_mim.errors import UserError

LearningRateSchedule = Literal["cosine", "poly", "multistep", "constant"]

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


def checked_warmup(duration: str, steps: int, total_steps: int) -> int:
    """The warm-up in steps, once it is sure to end before the run.

    Raises:
        UserError: it does not.
    """
    if steps >= total_steps:
        raise UserError(
            f"optim.warmup {duration!r} does not end before the run, which has {counted(total_steps, 'step')}: "
            f"the warm-up must be shorter, such as '{counted(total_steps // 10, 'step')}'"
        )
    return steps
