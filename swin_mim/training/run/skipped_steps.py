"""Steps whose update was left out: what is known of them, and the list in the run's folder."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from swin_mim.training.run.jsonl import append_line


class SkippedPart(NamedTuple):
    """A micro batch of this process whose loss was not finite."""

    start: int
    """Position of its first image."""
    indices: list[int]
    """Indices of its images in the source."""
    loss: float


class SkippedStep(NamedTuple):
    """A step whose update was left out."""

    step: int
    positions: tuple[int, int]
    """Positions of its images, over all processes: the first one, and the one behind the last."""
    loss: float
    """Mean over all processes."""
    grad_norm: float
    parts: list[SkippedPart]
    """Parts of this process; none if its losses were finite, and only a gradient or another process's loss was not."""


class SkippedSteps:
    """The list of steps whose update was left out, in the run's folder, with the images that led to them.

    Args:
        seed: of the run, which with a position decides crop, flip and mask of an image.
        name_of: an index -> the name of that image.
    """

    def __init__(self, path: Path, *, seed: int, rank: int, name_of: Callable[[int], str]) -> None:
        self._path, self._seed, self._rank, self._name_of = path, seed, rank, name_of

    def add(self, skipped: SkippedStep) -> None:
        """Write a line for the step, in the main process, and one for each bad micro batch of this process."""
        step = {"step": skipped.step, "positions": skipped.positions, "seed": self._seed}
        if not self._rank:
            append_line(self._path, step | {"loss": str(skipped.loss), "grad_norm": str(skipped.grad_norm)})
        for part in skipped.parts:
            images = [[part.start + i, self._name_of(index)] for i, index in enumerate(part.indices)]
            append_line(self._path, step | {"process": self._rank, "loss": str(part.loss), "images": images})
