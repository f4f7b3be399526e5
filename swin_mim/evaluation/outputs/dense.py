"""Images at their own sizes, one or a few at a time, for models whose results have the sizes of the images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from swin_mim.data.loading.loader import Batch, LoaderOptions, WholeTransform, heldout_batches
from swin_mim.data.sources.base import Source
from swin_mim.evaluation.outputs.collect import Rows
from swin_mim.evaluation.validation import evaluation_mode
from swin_mim.training.config.pretrain import DataConfig
from swin_mim.training.loop.worker_count import worker_count

PART_IMAGES = 64
"""Max images of a part."""
_PARTS = 256  # of a source, if its images are not many


@dataclass(frozen=True)
class DenseOutputs:
    """What is wanted of a model for each image, where that is no tensor of one shape.

    Args:
        model: on its device; in evaluation mode while it works.
        shapes: of one image, by name: all () as everything is a column of its own.
        compute: the batches that begin at `starts`, in this order, by float32 or what autocast multiplies in; passes
            the rows of each on.
    """

    model: nn.Module
    shapes: dict[str, tuple[int, ...]]
    compute: Callable[[Sequence[int], torch.dtype, Callable[[Rows], None]], None]


def part_of(images: int, batch: int) -> int:
    """Images of a part: as few as keep the number of parts small, so that little is computed twice."""
    return batch * max(1, min(PART_IMAGES, images // _PARTS) // batch)


def whole_batches(
    source: Source,
    transform: WholeTransform,
    starts: Sequence[int],
    *,
    data: DataConfig,
    device: torch.device,
    batch: int,
    pixel_bytes: int,
) -> Iterator[Batch]:
    """The batches of a source that begin at `starts`, none of whose images is replaced; see `heldout_batches`."""
    workers = worker_count(data, device) if len(source) > batch else 0
    options = LoaderOptions(
        workers=workers, automatic=data.workers == "auto", pin_memory=device.type == "cuda", pixel_bytes=pixel_bytes
    )
    return heldout_batches(source, transform, batch, options, starts=starts, replaces=False)


@contextmanager
def computing(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """The model in evaluation mode, multiplying in `dtype`."""
    with evaluation_mode(model), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def rows(start: int, columns: Sequence[Sequence[Any]], errors: list[str | None]) -> Rows:
    """Rows of columns of anything."""
    found = []
    for column in columns:
        values = np.empty(len(errors), dtype=object)
        for place, value in enumerate(column):  # one by one, as numpy would look into lists
            values[place] = value
        found.append(values)
    return Rows(start, found, errors, np.zeros((len(errors), 2), np.uint64))
