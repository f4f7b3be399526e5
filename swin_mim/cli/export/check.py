"""Whether a file computes what the model does: the greatest difference between the two."""

from typing import NamedTuple

import torch

from swin_mim.cli.export.graph import Graph, Run
from swin_mim.errors import UserError

TOLERANCE = 1e-3
"""Greatest difference between a file's output and ours, in the largest value of ours."""
BATCHES = (1, 5)


class Difference(NamedTuple):
    """Between a file and the model, on random images."""

    batch: int
    size: tuple[int, int]
    name: str
    """Of the tensor."""
    value: float
    """In the largest value of ours."""

    def line(self) -> str:
        height, width = self.size
        return f"{self.batch} x {height} x {width}  {self.name:<9}  {self.value:.1e}"


def differences(graph: Graph, run: Run, sizes: list[tuple[int, int]]) -> list[Difference]:
    """Compare on one image and on several, of each size.

    Args:
        run: the file.

    Raises:
        UserError: they differ by more than `TOLERANCE`; or the file's output is of another shape.
    """
    found = [each for size in sizes for batch in BATCHES for each in _at(graph, run, batch, size)]
    worst = max(found, key=lambda each: (not each.value <= TOLERANCE, each.value))  # NaN is larger than nothing
    if not worst.value <= TOLERANCE:
        raise UserError(
            f"the file's {worst.name} differs from the model's by {worst.value:.1e} of the largest value, with "
            f"{worst.batch} images of {worst.size[0]} x {worst.size[1]}, and at most {TOLERANCE:g} is let through: "
            "nothing was written. The values of this model may be too large for fp32, or a version of torch or "
            "onnxruntime is at fault: try --to with another format"
        )
    return found


def sizes_to_check(graph: Graph, fixed: tuple[int, int] | None) -> list[tuple[int, int]]:
    """The model's own size, and of a file for any size another one, whose grids no window divides."""
    if fixed is not None:
        return [fixed]
    patch = graph.encoder.config.patch_size
    height, width = (side // patch for side in graph.size)
    return [graph.size, (patch * (height - height // 4 + 1), patch * (width + width // 8 + 1))]


def _at(graph: Graph, run: Run, batch: int, size: tuple[int, int]) -> list[Difference]:
    images = graph.example(batch, size, seed=batch)
    with torch.no_grad():
        ours, theirs = graph(images), run(images)
    found = []
    for name, mine, other in zip(graph.names, ours, theirs, strict=True):
        if mine.shape != other.shape:
            raise UserError(
                f"the file's {name} is {tuple(other.shape)} where the model's is {tuple(mine.shape)}, with images "
                f"{tuple(images.shape)}: nothing was written"
            )
        largest = max(float(mine.abs().max()), torch.finfo(torch.float32).tiny)
        found.append(Difference(batch, size, name, float((mine - other).abs().max()) / largest))
    return found
