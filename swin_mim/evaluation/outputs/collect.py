"""What a model makes of every image of a source, batch after batch.

A batch is always of the same images, whatever process computes it and whatever was computed before: its rows are the
same to the bit on one process and on several, and after an interruption.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from swin_mim.data.loading.loader import Batch, LoaderOptions
from swin_mim.data.sources.base import Source
from swin_mim.evaluation.overview.hashes import HashedTransform, hashes_of
from swin_mim.evaluation.reader import Reader, read_of
from swin_mim.evaluation.validation import evaluation_mode
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training.config.pretrain import DataConfig
from swin_mim.training.loop.worker_count import worker_count
from swin_mim.weights.config_json import Preprocessing


@dataclass(frozen=True)
class Outputs:
    """What is wanted of a model for each image.

    Args:
        model: on its device; in evaluation mode while it works.
        of: normalised images (B, C, H, W) -> a tensor (B, *shape) for each name.
        shapes: of one image, by name.
        preprocessing: images -> the model's input.
        size: (H, W) of that, in pixels.
    """

    model: nn.Module
    of: Callable[[Tensor], Sequence[Tensor]]
    shapes: dict[str, tuple[int, ...]]
    preprocessing: Preprocessing
    size: tuple[int, int]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


class Rows(NamedTuple):
    """What was computed for the contiguous images start, start + 1, ..."""

    start: int
    values: list[np.ndarray]
    """float32 (n, *shape) for each name; NaN for an image that cannot be read."""
    errors: list[str | None]
    """Why it cannot be read, of each image."""
    hashes: np.ndarray | None = None
    """uint64 (n, 2), as `hashes_of` has them; None: nobody asked for them."""


def reader_of(outputs: Outputs, data: DataConfig, source: Source, batch: int, *, hashes: bool = False) -> Reader:
    """How images reach the model: decoded as in every evaluation, none replaced; with `hashes` those come too."""
    device = outputs.device
    workers = worker_count(data, device) if len(source) > batch else 0
    cuda = device.type == "cuda"
    return Reader(
        Preprocessor(outputs.preprocessing, device),
        outputs.size,
        reduce=lambda values: values,
        watch=lambda batches: batches,
        batch=batch,
        options=LoaderOptions(workers=workers, automatic=data.workers == "auto", pin_memory=cuda),
        replaces=False,
        wrap=HashedTransform if hashes else None,
    )


def collect(
    source: Source,
    reader: Reader,
    outputs: Outputs,
    starts: Sequence[int],
    dtype: torch.dtype,
    take: Callable[[Rows], None],
) -> None:
    """Compute the batches that begin at `starts`, in this order, and pass the rows of each to `take`.

    Args:
        dtype: float32, or what autocast multiplies in.

    Raises:
        UserError: the images cannot be loaded, other than by being broken.
    """
    device = outputs.device
    waiting: _Computed | None = None
    with evaluation_mode(outputs.model), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for batch in reader.batches(source, starts):
            computed = _compute(batch, reader, outputs)
            if waiting:  # it is fetched while a GPU works on the next one
                take(_rows(waiting, outputs))
            waiting = computed
        if waiting:
            take(_rows(waiting, outputs))


class _Computed(NamedTuple):
    start: int
    read: Tensor
    reasons: Iterator[str]
    hashes: np.ndarray | None
    values: list[Tensor]
    """On the CPU once `there` says so; none where no image of the batch can be read."""
    there: Any


def _compute(batch: Batch, reader: Reader, outputs: Outputs) -> _Computed:
    values: list[Tensor] = []
    there = None
    read = read_of(batch)
    if read.any():
        found = outputs.of(reader.preprocess(batch.images))
        values = [each.float().to("cpu", non_blocking=True) for each in found]
        if outputs.device.type == "cuda":
            there = torch.cuda.Event()
            there.record()
    reasons = iter([broken.reason for broken in batch.broken])
    hashes = hashes_of(batch) if reader.wrap else None
    return _Computed(batch.start, read, reasons, hashes, values, there)


def _rows(computed: _Computed, outputs: Outputs) -> Rows:
    if computed.there is not None:
        computed.there.synchronize()
    read = computed.read.numpy()
    errors = [None if there else next(computed.reasons) for there in read.tolist()]
    if not computed.values:
        blank = [np.full((len(read), *shape), np.nan, np.float32) for shape in outputs.shapes.values()]
        return Rows(computed.start, blank, errors, computed.hashes)
    values = [each.numpy() for each in computed.values]
    for each in values:
        each[~read] = np.nan
    return Rows(computed.start, values, errors, computed.hashes)
