"""Runs of a study: functions in forked processes, a few side by side, whose results are lines of a file.

What a study imports and decodes once, its runs share. A run ends with the study, however that ends.
"""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from swin_mim.errors import UserError, one_line_errors

_FORKED = multiprocessing.get_context("fork")
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


class Running:
    """A function in a process of its own, whose outputs go to a file.

    The process that starts it must have no threads of torch: a forked one would wait for them for ever.

    Args:
        name: for messages.
        do: what is done; it returns an exit code.
        output: a file in a folder that is there. Beside it, ending in .seconds, lies what parts of it took so far.
    """

    def __init__(self, name: str, do: Callable[[], int | None], output: Path) -> None:
        self.name, self.output = name, output
        self.process = _FORKED.Process(target=_become, args=(do, output, os.getpid()))
        self.process.start()

    def conclude(self) -> float:
        """Wait for its end -> seconds that it took, with earlier parts of it that were not killed.

        Raises:
            UserError: it failed.
            KeyboardInterrupt: it was interrupted too, and has ended.
        """
        try:
            self.process.join()
        except KeyboardInterrupt:
            interrupt([self])
            raise
        if self.process.exitcode:
            said = self.output.read_text(errors="replace").strip().splitlines() or ["nothing was said"]
            raise UserError(f"the run {self.name} failed ({said[-1]}): see {self.output}")
        return round(sum(map(float, seconds_file(self.output).read_text().split())), 1)


def first_to_end(running: Sequence[Running]) -> Running:
    """Wait until one of them has ended.

    Raises:
        KeyboardInterrupt: all were interrupted, and have ended.
    """
    try:
        ended = wait([each.process.sentinel for each in running])
    except KeyboardInterrupt:
        interrupt(running)
        raise
    return next(each for each in running if each.process.sentinel in ended)


def interrupt(running: Sequence[Running]) -> None:
    """Ask them to end, which a recipe does with a checkpoint, and wait until they have."""
    for each in running:
        if each.process.pid is not None and each.process.is_alive():
            os.kill(each.process.pid, signal.SIGINT)
    for each in running:
        each.process.join()


def append_result(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line that survives what may come; the torn end of an earlier one stays a line of its own."""
    with path.open("ab+") as file:
        torn = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _become(do: Callable[[], int | None], output: Path, parent: int) -> None:
    """Do it, and leave with its exit code."""
    os.setsid()  # Ctrl-C reaches the study alone, which passes it on once: a second one would end a recipe at once
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts with &
    if sys.platform.startswith("linux"):
        if ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
        if os.getppid() != parent:  # it ended in between
            os._exit(1)
    with output.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = (open(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))  # noqa: SIM115
    begun = time.monotonic()
    try:
        with one_line_errors():
            sys.exit(do())
    finally:
        with seconds_file(output).open("a") as file:
            file.write(f"{time.monotonic() - begun:.1f}\n")


def seconds_file(output: Path) -> Path:
    """Where the seconds of each part of a run are, a line each."""
    return output.with_name(f"{output.name}.seconds")
