"""Checkpoints are written beside the training, one at a time."""

import logging
import time
from collections.abc import Callable
from threading import Thread

FAILURES_IN_A_ROW = 3
"""Checkpoints that could not be written, after which a run stops."""

_LOG = logging.getLogger(__name__)


class BackgroundWriter:
    """Runs one job at a time in a thread; the next one waits for it.

    A job that raises an `OSError` (the disk is full, read-only, gone) costs the run nothing but that checkpoint: it is
    reported and counted. Any other error is ours, and is raised by the next call.
    """

    def __init__(self) -> None:
        self.failures = 0
        """In a row, up to the last job that is done."""
        self.reason = ""
        """Why the last job failed; empty once a job has succeeded."""
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None], name: str) -> None:
        """Run a job, after the one before it has ended.

        Args:
            name: of what it writes, for the log.
        """
        self.wait()
        # not a daemon: a process that ends by an error finishes the checkpoint that it has begun
        self._thread = Thread(target=self._run, args=(job, name), name="checkpoint writer")
        self._thread.start()

    def join(self) -> None:
        """Wait until nothing is being written; what went wrong is left to `wait`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Wait until nothing is being written, and raise an error of ours that was met."""
        self.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @property
    def failing(self) -> bool:
        """Whether so many checkpoints in a row could not be written that the run should end."""
        return self.failures >= FAILURES_IN_A_ROW

    def _run(self, job: Callable[[], None], name: str) -> None:
        start = time.perf_counter()
        try:
            job()
        except OSError as error:
            self.failures += 1
            self.reason = error.strerror or str(error)
            _LOG.warning(
                "%s could not be written (%s): the run goes on with the checkpoint before it; failure %d of %d in a "
                "row, after which it stops",
                *(name, self.reason, self.failures, FAILURES_IN_A_ROW),
            )
        except BaseException as error:
            _LOG.exception("%s could not be written", name)
            self._error = error
        else:
            self.failures, self.reason = 0, ""
            _LOG.debug("%s written in %.2f s", name, time.perf_counter() - start)
