"""The warning of a run that waits for its images."""

import logging

import pytest
import torch

from swin_mim.data.timing import LoadingTime
from swin_mim.training.loop import data_wait
from swin_mim.training.loop.data_wait import DataWait, advice, slow_stage

CPU = torch.device("cpu")
DECODING = LoadingTime(read=1.0, decode=6.0, transform=2.0, collate=1.0)


def test_it_warns_once_and_not_of_the_first_interval(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_wait, "room_for_workers", lambda device: 6)
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    waits = DataWait(2, CPU)
    waits.add(50, 0.9, DECODING, 5.0)
    waits.add(100, 0.2, DECODING, 5.0)
    assert not caplog.messages
    waits.add(150, 0.43, DECODING, 5.0)
    waits.add(200, 0.5, DECODING, 5.0)
    (said,) = caplog.messages
    assert said == (
        "step 150: waiting for images took 43 % of the time since the last line. Of the time that loading takes: "
        "reading files 10%, decoding 60%, cropping and resizing 20%, stacking images into batches 10%. Decoding is "
        "slow: raise data.workers from 2 to 6, for which this machine has the cores (said once)"
    )


def test_batches_that_nobody_timed_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    waits = DataWait(2, CPU)
    waits.add(50, 0.9, LoadingTime(), 5.0)
    waits.add(100, 0.9, LoadingTime(), 5.0)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("loading", "seconds", "workers", "stage"),
    [
        (DECODING, 5.0, 2, "decode"),
        (DECODING, 11.0, 2, "pass"),  # two workers were busy for 10 of 22 s
        (DECODING, 100.0, 0, "decode"),  # nothing is passed on
        (LoadingTime(read=9.0, decode=1.0), 5.0, 2, "read"),
        (LoadingTime(transform=9.0, decode=1.0), 5.0, 2, "transform"),
        (LoadingTime(collate=9.0, decode=1.0), 5.0, 2, "collate"),
    ],
)
def test_the_slow_stage(loading: LoadingTime, seconds: float, workers: int, stage: str) -> None:
    assert slow_stage(loading, seconds, workers) == stage


@pytest.mark.parametrize(
    ("stage", "workers", "text"),
    [
        (
            "read",
            8,
            "Reading files is slow: copy the images to a faster, local disk, or raise data.workers from 8 to 16",
        ),
        ("decode", 2, "Decoding is slow: raise data.workers from 2 to 4"),
        ("decode", 4, "no core is free for more data.workers: pack the images once with swin-mim prepare"),
        ("transform", 0, "Cropping and resizing is slow: raise data.workers from 0 to 4"),
        ("collate", 4, "memory is what limits"),
        ("pass", 4, "the workers are not busy"),
    ],
)
def test_the_advice(stage: str, workers: int, text: str) -> None:
    assert text in advice(stage, workers, room=4)
