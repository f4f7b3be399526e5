import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swin_mim.errors import UserError
from swin_mim.training.config.schedule import checked_warmup, due, learning_rate, scaled, to_steps

IMAGENET, BATCH = 1_281_167, 2048


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("500 steps", 500),
        ("1 step", 1),
        ("500steps", 500),
        (" 1_000  steps ", 1000),
        ("1e3 steps", 1000),
        ("0 steps", 0),
        ("0 epochs", 0),
        ("1 epoch", 626),  # 625.57 batches
        ("100 epochs", 62_557),
        ("0.5 epochs", 313),
        ("2000000 images", 977),  # 976.56 batches
        ("2e6 images", 977),
        ("2_000_000 images", 977),
        ("1 image", 1),
        ("2048 images", 1),
        ("2049 images", 2),
        ("1.5e3 images", 1),
    ],
)
def test_durations(duration: str, steps: int) -> None:
    assert to_steps(duration, dataset_size=IMAGENET, global_batch=BATCH) == steps


def test_fractions_of_epochs_are_exact() -> None:
    # In floating point 1.1 * 1000 is a little more than 1100 and would cost a twelfth step.
    assert to_steps("1.1 epochs", dataset_size=1000, global_batch=100) == 11


@given(st.integers(0, 10**6), st.integers(1, 10**7), st.integers(1, 10**5))
def test_steps_see_at_least_the_images_and_less_than_one_batch_more(count: int, size: int, batch: int) -> None:
    for duration, images in ((f"{count} images", count), (f"{count} epochs", count * size)):
        steps = to_steps(duration, dataset_size=size, global_batch=batch)
        assert images <= steps * batch < images + batch
    assert to_steps(f"{count} steps", dataset_size=size, global_batch=batch) == count


@pytest.mark.parametrize(
    "duration",
    ["", "100", "epochs", "-1 epochs", "100 epochss", "1,000 steps", "ten steps", "1.5 steps", "0.5 images"]
    + ["1e-1 steps", "nan epochs", "inf steps", "1e999 steps", ". steps", "100 epochs 3 steps", "100 Epochs", "١ step"],
)
def test_bad_durations_name_the_text_and_the_form(duration: str) -> None:
    with pytest.raises(UserError) as caught:
        to_steps(duration, dataset_size=IMAGENET, global_batch=BATCH)
    assert str(caught.value) == (
        f"{duration!r} is not a duration: write a number and a unit, "
        '"100 epochs", "0.5 epochs", "500 steps" or "2e6 images"'
    )


def official_100(step: int) -> float:
    """The 100 epochs of 625 steps of the official Swin-B run."""
    return learning_rate(
        step,
        total_steps=62_500,
        warmup_steps=6_250,
        base=scaled(2e-4, BATCH),
        warmup_start=scaled(1e-6, BATCH),
        minimum=scaled(1e-5, BATCH),
        schedule="cosine",
    )


def official_800(step: int) -> float:
    return learning_rate(
        step,
        total_steps=500_000,
        warmup_steps=6_250,
        base=scaled(1e-4, BATCH),
        warmup_start=scaled(5e-7, BATCH),
        minimum=0.0,
        schedule="multistep",
        milestones=[437_500],
        gamma=0.1,
    )


def test_scaled_is_per_512_images() -> None:
    assert scaled(2e-4, 2048) == pytest.approx(8e-4)
    assert scaled(2e-4, 512) == 2e-4
    assert scaled(2e-4, 128) == pytest.approx(5e-5)


def test_official_cosine_from_published_absolute_values() -> None:
    assert official_100(0) == pytest.approx(4e-6)
    assert official_100(3_125) == pytest.approx(4.02e-4)  # half way from 4e-6 to 8e-4
    assert official_100(31_250) == pytest.approx(4.2e-4)  # half way from 8e-4 to 4e-5
    assert official_100(62_500) == pytest.approx(4e-5)
    # A tenth of the cosine is over when the warm-up ends: sin(18 degrees x 4) = cos(pi / 10).
    assert official_100(6_250) == pytest.approx(4e-5 + 3.8e-4 * (1 + math.sin(math.radians(72))))
    assert official_100(6_249) == pytest.approx(4e-6 + 7.96e-4 * 6249 / 6250)


def test_official_multistep_from_published_absolute_values() -> None:
    assert official_800(0) == pytest.approx(2e-6)
    assert official_800(6_250) == pytest.approx(4e-4)
    assert official_800(437_499) == pytest.approx(4e-4)
    assert official_800(437_500) == pytest.approx(4e-5)
    assert official_800(499_999) == pytest.approx(4e-5)


def test_cosine_is_that_of_timm_which_the_official_code_uses() -> None:
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=8e-4)
    theirs = CosineLRScheduler(
        optimizer, t_initial=62_500, lr_min=4e-5, warmup_lr_init=4e-6, warmup_t=6_250, t_in_epochs=False
    )
    for step in [*range(0, 62_500, 997), 6_249, 6_250, 62_499]:
        theirs.step_update(step)
        assert official_100(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_constant_and_no_warmup() -> None:
    shape = {"total_steps": 10, "warmup_steps": 0, "base": 3e-3, "warmup_start": 1e-6, "minimum": 1e-5}
    assert [learning_rate(step, **shape, schedule="constant") for step in (0, 5, 9)] == [3e-3] * 3
    assert learning_rate(0, **shape, schedule="cosine") == pytest.approx(3e-3)


def test_milestones_multiply() -> None:
    shape = {"total_steps": 40, "warmup_steps": 0, "base": 1.0, "warmup_start": 0.0, "minimum": 0.0}
    rates = [
        learning_rate(step, **shape, schedule="multistep", milestones=[10, 30], gamma=0.5)
        for step in (9, 10, 29, 30, 39)
    ]
    assert rates == [1.0, 0.5, 0.5, 0.25, 0.25]


@given(st.integers(1, 200), st.integers(0, 200))
def test_warmup_rises_in_equal_parts_and_the_cosine_never_rises(total: int, warmup: int) -> None:
    warmup = min(warmup, total)
    rates = [
        learning_rate(
            step,
            total_steps=total,
            warmup_steps=warmup,
            base=1.0,
            warmup_start=0.25,
            minimum=0.125,
            schedule="cosine",
        )
        for step in range(total)
    ]
    for step in range(warmup):
        assert rates[step] == pytest.approx(float(Fraction(1, 4) + Fraction(3, 4) * Fraction(step, warmup)))
    after = rates[warmup:]
    assert after == sorted(after, reverse=True)
    assert all(0.125 <= rate <= 1.0 for rate in rates)


@given(st.integers(1, 300), st.integers(1, 300))
def test_due_every_so_often_and_at_the_end(total: int, every: int) -> None:
    when = [step for step in range(total + 1) if due(step, every, total)]
    assert when == sorted({*range(every, total + 1, every), total})


@given(st.integers(0, 300), st.integers(-5, 0))
def test_nothing_is_due_every_zero_steps(total: int, every: int) -> None:
    assert not any(due(step, every, total) for step in range(total + 1))


def test_the_warm_up_ends_before_the_run() -> None:
    assert checked_warmup("5 steps", 5, 6) == 5
    with pytest.raises(
        UserError,
        match="the run, which has 60 steps: the warm-up must be shorter, such as '6 steps'",
    ):
        checked_warmup("60 steps", 60, 60)
