"""Where the time goes between a file and a batch: measured by whoever loads the batch, and sent along with it.

It costs some reads of the clock per image, and no sample depends on it.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple

_reader = threading.local()


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
    """Inside, a source reads bytes: the rest of its time is decoding."""
    start = perf_counter()
    try:
        yield
    finally:
        _reader.seconds = seconds_read() + perf_counter() - start


def seconds_read() -> float:
    """What this thread has spent in `reading` so far."""
    return getattr(_reader, "seconds", 0.0)


class Stopwatch:
    """The stages of one sample, from now on."""

    def __init__(self) -> None:
        self._start, self._before = perf_counter(), seconds_read()

    def decoded(self) -> None:
        """The image is there; another one, if what came of the one before was of no use."""
        self._decoded, self._read = perf_counter(), seconds_read() - self._before

    def transformed(self) -> LoadingTime:
        """So is its crop."""
        decode = self._decoded - self._start - self._read
        return LoadingTime(self._read, decode, perf_counter() - self._decoded)
