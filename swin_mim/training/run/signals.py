"""Signals that end a run between two steps, with a checkpoint; and the end of the launcher, which is one too."""

import ctypes
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

_PASSED_ON = 2.0  # seconds
_LOG = logging.getLogger(__name__)


class StopSignal:
    """From `listen` on, signals only set `received`; a second one ends the process at once.

    A second Ctrl-C at a prompt or in a notebook ends only the run: what else the process holds is not ours.

    SIGUSR1 is what schedulers send ahead of the end: Slurm's `--signal=USR1@120`. SIGHUP comes when a terminal is
    closed; a process that was told to ignore it (nohup) still does.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    LAUNCHER_ENDED = signal.SIGUSR2
    """Signal of `follow_launcher`: one of its own, because a Ctrl-C ends the launcher too: that is no second wish."""

    def __init__(self) -> None:
        self.received = False
        self._first: tuple[int, float] = (0, 0.0)
        self._before: dict[signal.Signals, object] = {}

    @property
    def listens(self) -> bool:
        return bool(self._before)

    def listen(self) -> "StopSignal":
        """Take over the signals; only the main thread can."""
        for number in (*self.SIGNALS, self.LAUNCHER_ENDED):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def leave(self) -> None:
        """Signals do again what they did before; the end of the launcher does nothing any more."""
        for number, handler in self._before.items():
            unwanted = number == self.LAUNCHER_ENDED and handler == signal.SIG_DFL  # which would end the process
            signal.signal(number, signal.SIG_IGN if unwanted else handler)  # type: ignore[arg-type]
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before, self.received = self.received, True
        if number == self.LAUNCHER_ENDED:
            if not before:
                _LOG.warning("the launcher of this process has ended: stopping after this step, with a checkpoint")
        elif before and number != signal.SIGINT and self._is_repeated(number):
            return
        elif before and number == signal.SIGINT and hasattr(sys, "ps1"):
            raise KeyboardInterrupt
        elif before:
            os._exit(128 + number)
        else:
            self._first = number, time.monotonic()
            name = signal.strsignal(number)
            _LOG.info("%s: stopping after this step, with a checkpoint; again to leave at once", name)

    def _is_repeated(self, number: int) -> bool:
        """Whether it is the first one again: what signals all processes of a job reaches the launcher too, which passes
        it on."""
        first, when = self._first
        return number == first and time.monotonic() - when < _PASSED_ON


def follow_launcher() -> None:
    """Get a signal when the launcher of this process ends, however it does: with it ends who would pass signals on.

    `accelerate launch` with one process ends on a SIGTERM and leaves the process that it started behind. Only on
    Linux; a process that a shell started is let be, so that it can outlive it (nohup).
    """
    if not sys.platform.startswith("linux"):
        return
    launcher = os.getppid()
    if not _is_launcher(launcher):
        return
    parent_death_signal = 1  # PR_SET_PDEATHSIG
    if ctypes.CDLL(None, use_errno=True).prctl(parent_death_signal, StopSignal.LAUNCHER_ENDED, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != launcher:  # it ended in between
        os.kill(os.getpid(), StopSignal.LAUNCHER_ENDED)


def _is_launcher(process: int) -> bool:
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    words = [os.fsdecode(word) for word in command[:4]]  # python -u -m module, or python script
    return bool(_LAUNCHERS & {*words, *(Path(word).name for word in words)})


_LAUNCHERS = {
    *("accelerate", "accelerate.commands.launch", "torchrun", "torch.distributed.run", "torch.distributed.launch"),
    "deepspeed.launcher.launch",
}
