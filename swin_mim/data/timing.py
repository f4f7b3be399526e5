"""Where the time goes between a file and a batch: measured by whoever loads the batch, and sent along with it.

It costs some reads of the clock per image, and no sample depends on it.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple

_spent = threading.local()


class LoadingTime(NamedTuple):
    """Seconds that a batch took, or several; summed over the workers, which load side by side."""

    read: float = 0.0
    """The bytes of the files, or the rows of a table."""
    decode: float = 0.0
    """Bytes to pixels."""
    transform: float = 0.0
    """Crop, resize, flip."""
    collate: float = 0.0
    """The images into one tensor. Its way to the training process is not in it."""

    @property
    def total(self) -> float:
        return sum(self)

    @property
    def slowest(self) -> str:
        """The stage that takes most of it."""
        return max(self._fields, key=lambda stage: getattr(self, stage))


def together(times: Iterable[LoadingTime]) -> LoadingTime:
    """Their sums, stage by stage."""
    return LoadingTime(*map(sum, zip(LoadingTime(), *times, strict=True)))


@contextmanager
def reading() -> Iterator[None]:
    """Inside, a source reads bytes, also while it is decoding."""
    with _counted("read"):
        yield


@contextmanager
def decoding() -> Iterator[None]:
    """Inside, an image is opened or decoded: what is not reading of that is decoding."""
    with _counted("decode"):
        yield


@contextmanager
def _counted(stage: str) -> Iterator[None]:
    start = perf_counter()
    try:
        yield
    finally:
        setattr(_spent, stage, seconds_spent(stage) + perf_counter() - start)


def seconds_spent(stage: str) -> float:
    """What this thread has spent in `reading` ("read") or in `decoding` ("decode") so far."""
    return getattr(_spent, stage, 0.0)


class Stopwatch:
    """The stages of one sample, from now on."""

    def __init__(self) -> None:
        self._start, self._before = perf_counter(), (seconds_spent("read"), seconds_spent("decode"))

    def passed(self) -> LoadingTime:
        """What has been spent since; all that is no decoding is the transform."""
        read, decode = seconds_spent("read") - self._before[0], seconds_spent("decode") - self._before[1]
        return LoadingTime(read, decode - read, perf_counter() - self._start - decode)
