"""Workers whose main process was killed."""

import os
import time
from threading import Thread

_LOOK = 1.0  # seconds between two looks at whether the main process lives
_watched: set[int] = set()


def end_with(main: int) -> None:
    """Let this process end if it is a worker of the process `main` and that was killed.

    It would wait for ever for somebody to take what it made.
    """
    if os.getpid() == main or os.getpid() in _watched:
        return
    _watched.add(os.getpid())
    Thread(target=_watch, args=(main,), daemon=True).start()


def _watch(main: int) -> None:
    while os.getppid() == main:
        time.sleep(_LOOK)
    os._exit(1)
