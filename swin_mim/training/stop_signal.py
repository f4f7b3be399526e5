"""Ctrl-C and SIGTERM end a run between two steps, with a checkpoint."""

import logging
import os
import signal
from types import FrameType, TracebackType

_LOG = logging.getLogger(__name__)


class StopSignal:
    """While it is entered, SIGINT and SIGTERM only set `received`; a second signal ends the process at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = True
        _LOG.info("%s: stopping after this step, with a checkpoint; again to leave at once", signal.strsignal(number))
