"""A part in a process of its own, until it ends or the time is over."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tools.clone import ROOT
from tools.clone import environment as environment_of_clone

MEANWHILE = 10.0
"""Seconds from one look after what was made to the next."""


def call(
    command: Sequence[str], deadline: float, log: Path, variables: Mapping[str, str], meanwhile: Callable[[], object]
) -> int | None:
    """Exit code, None past the deadline; what is written is added to the log as it comes.

    The process belongs to the group of this one: whoever kills the group, or interrupts it, reaches all.

    Args:
        deadline: of `time.monotonic`.
        meanwhile: called every `MEANWHILE` seconds.
    """
    environment = environment_of_clone(**{"PYTHONUNBUFFERED": "1", **variables})
    with log.open("a") as file:
        started = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        while (left := deadline - time.monotonic()) > 0:
            with suppress(subprocess.TimeoutExpired):
                return started.wait(min(left, MEANWHILE))
            meanwhile()
    finally:
        if started.poll() is None:
            kill_with_descendants(started.pid)
            started.wait()
    return None


def kill_with_descendants(pid: int) -> None:
    """Kill a process and those that it started, such as compilers and the workers of a loader."""
    for each in [pid, *descendants(pid)]:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Where the system has /proc; elsewhere none are found."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(file.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM is as Ctrl-C: the process that runs is ended too, and what it came to is kept."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
