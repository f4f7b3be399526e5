"""A warning when a run waits for its images: which stage of loading is slow, and the option that helps."""

import logging

import torch

from swin_mim.data.timing import LoadingTime
from swin_mim.training.loop.worker_count import room_for_workers

MOST = 0.2
"""Share of the time between two lines of the log that may go into waiting."""
BUSY = 0.5
"""Share of the time that workers load at least, if it is them that the training waits for."""
STAGES = {
    "read": "reading files",
    "decode": "decoding",
    "transform": "cropping and resizing",
    "collate": "stacking images into batches",
    "pass": "passing batches on to the training process",
}

_LOG = logging.getLogger(__name__)


class DataWait:
    """Looks at each interval but the first, in which workers start; warns once in a run.

    Args:
        workers: that load images for this process.
    """

    def __init__(self, workers: int, device: torch.device) -> None:
        self._workers, self._device = workers, device
        self._first, self._said = True, False

    def add(self, step: int, share: float, loading: LoadingTime, seconds: float) -> None:
        """One interval.

        Args:
            share: of the interval that the training waited for images.
            loading: what the workers spent on the images of it.
            seconds: length of the interval.
        """
        first, self._first = self._first, False
        if first or self._said or share <= MOST or not loading.total:
            return
        self._said = True
        spent = ", ".join(f"{STAGES[stage]} {time / loading.total:.0%}" for stage, time in loading._asdict().items())
        _LOG.warning(
            "step %d: waiting for images took %.0f %% of the time since the last line. Of the time that loading takes: "
            "%s. %s (said once)",
            *(step, 100 * share, spent),
            advice(slow_stage(loading, seconds, self._workers), self._workers, room_for_workers(self._device)),
        )


def slow_stage(loading: LoadingTime, seconds: float, workers: int) -> str:
    """A key of `STAGES`: what the training waits for, if it does."""
    idle = loading.total < BUSY * max(workers, 1) * seconds
    return "pass" if workers and idle else loading.slowest


def advice(stage: str, workers: int, room: int) -> str:
    """The option that helps where a stage is slow.

    Args:
        stage: of `STAGES`.
        workers: that there are.
        room: how many would have a core.
    """
    slow = f"{STAGES[stage][0].upper()}{STAGES[stage][1:]} is slow: "
    more = f"raise data.workers from {workers} to {room}, for which this machine has the cores"
    if stage == "pass":
        return slow + "the workers are not busy; more training processes share it out, if there are more devices"
    if stage == "read":
        waiting = f"raise data.workers from {workers} to {2 * max(workers, room)}, as readers mostly wait"
        return slow + f"copy the images to a faster, local disk, or {waiting}"
    if workers < room:
        return slow + more
    if stage == "collate":
        return slow + "no core is free for more data.workers, and memory is what limits: leave it, or add cores"
    return slow + (
        "no core is free for more data.workers: pack the images once with swin-mim prepare, smaller (of the short "
        "side 4/3 of model.image_size is enough for the pretraining's crops)"
    )
