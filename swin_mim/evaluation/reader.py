"""The images of an evaluation: every image of a source once, over all processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from swin_mim.data.loading.loader import Batch, LoaderOptions, WholeTransform, heldout_batches
from swin_mim.data.sources.base import Source
from swin_mim.data.transforms.crops import EvaluationTransform
from swin_mim.models.preprocessing import Preprocessor


@dataclass(frozen=True)
class Reader:
    """Loads every image of a source once, over all processes.

    Args:
        preprocess: images of a batch -> the model's input.
        size: (H, W) of that, in pixels.
        reduce: the sum of a float64 CPU tensor over all processes.
        watch: passes batches through, and takes note of what could not be read.
        batch: images of one forward.
        options: rank, world and workers of this process.
        replaces: another image takes the place of one that cannot be read, see `heldout_batches`.
        wrap: makes the transform of that which every evaluation has; None: it is that.
    """

    preprocess: Preprocessor
    size: tuple[int, int]
    reduce: Callable[[Tensor], Tensor]
    watch: Callable[[Iterator[Batch]], Iterable[Batch]]
    batch: int
    options: LoaderOptions
    replaces: bool = True
    wrap: Callable[[EvaluationTransform], WholeTransform] | None = None

    def batches(self, source: Source, starts: Sequence[int] | None = None) -> Iterable[Batch]:
        """Decode the images that this process has to evaluate; `starts` as in `heldout_batches`."""
        known = self.preprocess.preprocessing
        usual = EvaluationTransform(self.size, known.interpolation, known.crop_pct)
        transform = self.wrap(usual) if self.wrap else usual
        options = replace(self.options, pixel_bytes=self.preprocess.pixel_bytes)
        batches = heldout_batches(source, transform, self.batch, options, starts=starts, replaces=self.replaces)
        return self.watch(batches)


def read_of(batch: Batch) -> Tensor:
    """Tell which images are themselves, and not another one, or nothing, in place of one that cannot be read:
    bool (B,)."""
    return batch.indices == torch.arange(batch.start, batch.start + len(batch.indices))
