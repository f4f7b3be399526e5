"""The page of a run that goes on, kept up to date in its folder."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from swin_mim.evaluation.report.page import REPORT, write_report
from swin_mim.training.run.run import Run

_LOG = logging.getLogger(__name__)


@contextmanager
def report_kept(run: Run) -> Iterator[Callable[[int], dict[str, float]]]:
    """Yield what writes report.html of the run's folder, at a step; when the block ends it is written once more.

    It takes a step and gives no metrics, as an evaluation of the training loop. With log.report false, and in all
    processes but the main one, it does nothing. Whatever fails is a warning, said once: no page is worth a run.
    """
    said: set[str] = set()

    def written() -> bool:
        if not run.is_main or not run.config.log.report:
            return False
        try:
            write_report([run.folder], run.folder / REPORT)
        except Exception as error:  # of disks, pictures and files that somebody edits: none ends a training
            reason = f"{type(error).__name__}: {error}"
            if reason not in said:
                _LOG.warning("%s could not be written (%s): the run goes on without it", REPORT, reason)
            said.add(reason)
            return False
        return True

    def at(step: int) -> dict[str, float]:
        written()
        return {}

    try:
        yield at
    finally:
        if "log" in vars(run) and written():  # it has begun
            _LOG.info("the run as a page: %s", run.folder / REPORT)
