"""The learning rate of a step, against published values and timm's scheduler; what is due when."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swin_mim.training.loop.schedule import LearningRate, due, due_early, scaled

BATCH = 2048


def learning_rate(step: int, **shape: Any) -> float:
    return LearningRate(**shape)(step)


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


def test_published_poly_of_upernet() -> None:
    """6e-5 for 16 images, 1,500 steps of warm-up, a line to 0 after 160,000; as torch's PolynomialLR has it."""
    from swin_mim.training.config.commands import segment_config
    from swin_mim.training.loop.schedule import lr_schedule

    settings = segment_config(["--config", "segment_swin_tiny_512_160k", "--model.pretrained", "weights"])
    rate = lr_schedule(settings, lambda duration: int(duration.split()[0]))
    assert rate(0) == pytest.approx(6e-11)
    assert rate(750) == pytest.approx(3e-5, rel=1e-5)
    assert rate(160_000) == 0
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=6e-5)
    other = torch.optim.lr_scheduler.PolynomialLR(optimizer, 160_000, power=1.0)
    for step in range(3_000):
        if step >= 1_500:
            assert rate(step) == pytest.approx(other.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        other.step()
    bent = LearningRate(100, 0, 2.0, 0.0, 1.0, "poly", power=0.9)
    assert bent(25) == pytest.approx(1 + 0.75**0.9)


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


@given(st.integers(1, 300), st.integers(1, 40))
def test_early_ones_come_at_powers_of_two_and_at_the_end(total: int, first: int) -> None:
    when = [step for step in range(total + 1) if due_early(step, first, total)]
    assert when == sorted({total, *(first * 2**power for power in range(10) if first * 2**power <= total)})
    assert not any(due_early(step, 0, total) for step in range(total + 1))
