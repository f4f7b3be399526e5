import logging
import random

import pytest

from swin_mim.training.loop.loss_spikes import LossSpikes


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    caplog.set_level(logging.WARNING, "swin_mim.training.loop.loss_spikes")


def noisy(number: int, middle: float = 0.5, noise: float = 0.02) -> list[float]:
    draw = random.Random(number)
    return [draw.gauss(middle, noise) for _ in range(number)]


def test_a_spike_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    spikes = LossSpikes()
    for step, loss in enumerate([*noisy(80), 1.5, 1.6, *noisy(10)]):
        spikes.add(step, loss)
    (record,) = caplog.records
    assert record.getMessage() == "step 80: the loss 1.5 is 3.0 times the median of the 80 steps before it"


def test_a_later_spike_is_told_again(caplog: pytest.LogCaptureFixture) -> None:
    spikes = LossSpikes()
    for step, loss in enumerate([*noisy(80), 1.5, *noisy(120), 1.5]):
        spikes.add(step, loss)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["step 80", "step 201"]


@pytest.mark.parametrize(
    "losses",
    [
        [*noisy(49), 1.5],  # too few to compare with
        [5 / (1 + step) for step in range(300)],  # falling
        [0.2] * 200 + [0.29] * 10,  # hardly more, though it never moved before
        noisy(2000),
        [abs(loss) for loss in noisy(2000, 0.3, 0.2)],  # wide: small batches with Mixup
    ],
    ids=["early", "falling", "flat", "noise", "wide"],
)
def test_what_is_none(losses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    spikes = LossSpikes()
    for step, loss in enumerate(losses):
        spikes.add(step, loss)
    assert not caplog.records
