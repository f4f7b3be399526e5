"""Batches on their way to a GPU: each is copied on a stream of its own while the GPU computes with the last one."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, cuda

from swin_mim.data.loading.loader import Batch


def copied_beside(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches in the same order, on a GPU with their pixels there; on other devices as they are.

    None is taken from `batches` before it is asked for: the host is ahead of the GPU anyway. The memory of a batch on
    the GPU is that of the second one after it, so that what has to last longer is cloned.

    Args:
        batches: in page-locked memory, without which a copy would make the host wait.
        device: of the computation, whose work with a batch is enqueued on the current stream before the next is asked
            for.
    """
    return _copied(batches, device) if device.type == "cuda" else batches


@dataclass
class _Place:
    """Memory on the GPU that batches use in turn."""

    images: Tensor | None = None
    valid: Tensor | None = None
    free: cuda.Event | None = None
    """Reached when the work with the last batch in it is done."""


def _copied(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    lane = cuda.Stream(device)
    now, before = _Place(), _Place()
    for batch in batches:
        compute = cuda.current_stream(device)
        before.free = compute.record_event()  # all work with the batch before this one has been enqueued
        if now.free is not None:
            lane.wait_event(now.free)
        now.images = _room(now.images, batch.images, device, lane, compute)
        now.valid = None if batch.valid is None else _room(now.valid, batch.valid, device, lane, compute)
        with cuda.stream(lane):
            _copy(now.images, batch.images)
            if now.valid is not None and batch.valid is not None:
                _copy(now.valid, batch.valid)
        # What is given back to the allocator later belongs to this stream, which has waited for every copy.
        compute.wait_stream(lane)
        yield batch._replace(images=now.images, valid=now.valid)
        now, before = before, now


def _room(memory: Tensor | None, like: Tensor, device: torch.device, lane: cuda.Stream, compute: cuda.Stream) -> Tensor:
    """Memory for a batch: what there is, or new memory that the compute stream may still be working with."""
    if memory is not None and (memory.shape, memory.dtype) == (like.shape, like.dtype):
        return memory
    memory = torch.empty_like(like, device=device)
    lane.wait_stream(compute)
    return memory


def _copy(to: Tensor, source: Tensor) -> None:
    to.copy_(source, non_blocking=True)
