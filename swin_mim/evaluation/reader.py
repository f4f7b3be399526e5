"""How the images of an evaluation reach a model: decoded how, normalised how, by which of the processes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from swin_mim.data.decoding.raster import pixel_bytes
from swin_mim.data.loading.loader import Batch, LoaderOptions, heldout_batches
from swin_mim.data.sources.open import Source
from swin_mim.data.transforms.crops import EvaluationTransform, normalize
from swin_mim.models.saving import Preprocessing


@dataclass(frozen=True)
class Reader:
    """Every image of a source once, over all processes.

    Args:
        seen: how an image becomes the model's input.
        size: (H, W) of that, in pixels.
        device: the model's.
        reduce: the sum of a float64 CPU tensor over all processes.
        watch: passes batches through, and takes note of what could not be read.
        batch: images of one forward.
        rank, world, workers: as in `LoaderOptions`.
    """

    seen: Preprocessing
    size: tuple[int, int]
    device: torch.device
    reduce: Callable[[Tensor], Tensor]
    watch: Callable[[Iterator[Batch]], Iterable[Batch]]
    batch: int
    rank: int
    world: int
    workers: int

    def batches(self, source: Source) -> Iterable[Batch]:
        """This process's share of the images, decoded."""
        transform = EvaluationTransform(self.size, self.seen.interpolation, self.seen.crop_pct)
        options = LoaderOptions(self.rank, self.world, self.workers, self.pixel_bytes)
        return self.watch(heldout_batches(source, transform, self.batch, options))

    @property
    def pixel_bytes(self) -> int:
        """Of a pixel in a batch."""
        channels = len(self.seen.mean)
        return channels if self.seen.scale == 255 else pixel_bytes(channels)

    def prepare(self, images: Tensor) -> Tensor:
        """Images of a batch (B, C, H, W) -> normalised float on the model's device; 0, the mean, where nothing is."""
        pixels = self.normalized(images)
        return pixels.masked_fill_(pixels.isnan(), 0) if images.is_floating_point() else pixels

    def normalized(self, images: Tensor) -> Tensor:
        """As `prepare`, with NaN where nothing is."""
        return normalize(images.to(self.device, non_blocking=True), *self._statistics, self.seen.scale)

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation on the device: copied once, as a copy waits for it."""
        mean, std = (torch.tensor(values, device=self.device) for values in (self.seen.mean, self.seen.std))
        return mean, std


def read_of(batch: Batch) -> Tensor:
    """bool (B,): which images are themselves, and not another one in place of one that cannot be read."""
    return batch.indices == torch.arange(batch.start, batch.start + len(batch.indices))
