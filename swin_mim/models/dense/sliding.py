"""Prediction for images of any size: whole, or window by window with the logits averaged where windows overlap.

What becomes of an image depends on it, the window and the stride alone, not on the others of its batch: windows are
taken in rows from the top left, and summed in that order.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from swin_mim.architecture import as_pair
from swin_mim.errors import UserError
from swin_mim.models.dense.segmenter import SwinSegmenter

Size = int | tuple[int, int]
Read = Callable[[int, int, int, int], Tensor]
"""(top, left, height, width) -> that part of an image, normalised float (C, height, width)."""

TOGETHER = 8
"""Windows of one row that go through the model together."""


class Band(NamedTuple):
    """Rows of an image with their logits."""

    top: int
    logits: Tensor
    """(K, rows, W), float32, on the model's device."""


def predict(model: SwinSegmenter, images: Tensor, window: Size | None = None, stride: Size | None = None) -> Tensor:
    """Images, normalised float (B, C, H, W) of any size -> logits (B, K, H, W), float32, on their device.

    Args:
        model: in evaluation mode.
        window: pixels, one number or (h, w); None: the images whole, as one batch.
        stride: pixels from window to window, at most the window; None: two thirds of it.

    Raises:
        UserError: the model is in training mode; a stride that is no such number.
    """
    if window is None:
        _check_mode(model)
        return _logits(model, images).to(images.device)
    return torch.stack([torch.cat(list(_of(model, image, window, stride)), dim=1) for image in images])


def predict_classes(
    model: SwinSegmenter, images: Tensor, window: Size | None = None, stride: Size | None = None
) -> Tensor:
    """Images, as in `predict` -> the class of every pixel (B, H, W), uint8 or of more than 256 classes int32.

    With a window the logits of as many rows as it has are in memory, not those of the image.
    """
    dtype = torch.uint8 if model.num_classes <= 256 else torch.int32
    if window is None:
        return predict(model, images).argmax(dim=1).to(dtype)
    found = [[rows.argmax(dim=0).to(dtype) for rows in _of(model, image, window, stride)] for image in images]
    return torch.stack([torch.cat(bands) for bands in found])


def bands(
    model: SwinSegmenter, read: Read, size: tuple[int, int], window: Size, stride: Size | None = None
) -> Iterator[Band]:
    """The logits of one image of any size from the top on, each row once: for scenes that no memory holds.

    Args:
        model: in evaluation mode.
        read: gives parts of the image, which lie inside of it.
        size: (H, W) of the image.
        window, stride: as in `predict`. Where the image is smaller than the window, it is padded with 0, the mean.

    Raises:
        UserError: as `predict`.
    """
    _check_mode(model)
    (height, width), steps = as_pair(window), _steps(window, stride)
    tops, lefts = (_starts(*sides) for sides in zip(size, (height, width), steps, strict=True))
    device = next(model.parameters()).device
    across = _counts(lefts, width, size[1]).to(device)
    total = torch.zeros(model.num_classes, 0, size[1], device=device)
    count = torch.zeros(0, device=device)
    for place, top in enumerate(tops):
        rows = min(height, size[0] - top)
        total = F.pad(total, (0, 0, 0, rows - total.shape[1]))
        count = F.pad(count, (0, rows - len(count))) + 1
        for left, logits in _row(model, read, size, (top, lefts), (height, width)):
            total[:, :, left : left + logits.shape[2]] += logits
        done = tops[place + 1] - top if place + 1 < len(tops) else rows
        yield Band(top, total[:, :done] / (count[:done, None] * across))
        total, count = total[:, done:], count[done:]


def _of(model: SwinSegmenter, image: Tensor, window: Size, stride: Size | None) -> Iterator[Tensor]:
    """(C, H, W) -> logits (K, rows, W) from the top on, on the image's device."""

    def read(top: int, left: int, height: int, width: int) -> Tensor:
        return image[:, top : top + height, left : left + width]

    size = (image.shape[1], image.shape[2])
    return (band.logits.to(image.device) for band in bands(model, read, size, window, stride))


def _row(
    model: SwinSegmenter,
    read: Read,
    size: tuple[int, int],
    places: tuple[int, list[int]],
    window: tuple[int, int],
) -> Iterator[tuple[int, Tensor]]:
    """Left side and logits (K, h, w) of each window of a row, cut to the image; places: top, and all left sides."""
    (top, lefts), (height, width) = places, window
    rows, device = min(height, size[0] - top), next(model.parameters()).device
    columns = min(width, size[1])
    for first in range(0, len(lefts), TOGETHER):
        some = lefts[first : first + TOGETHER]
        parts = torch.stack([read(top, left, rows, columns) for left in some]).to(device)
        logits = _logits(model, F.pad(parts, (0, width - columns, 0, height - rows)))
        yield from zip(some, logits[:, :, :rows, :columns], strict=True)


@torch.no_grad()
def _logits(model: SwinSegmenter, images: Tensor) -> Tensor:
    device = next(model.parameters()).device
    return model(images.to(device)).logits


def _check_mode(model: SwinSegmenter) -> None:
    if model.training:
        raise UserError("the model is in training mode, in which it does not predict: call model.eval() before")


def _steps(window: Size, stride: Size | None) -> tuple[int, int]:
    sides = as_pair(window)
    steps = as_pair(stride) if stride is not None else tuple(max(1, 2 * side // 3) for side in sides)
    if not all(0 < step <= side for step, side in zip(steps, sides, strict=True)):
        raise UserError(f"stride {stride} must be at least 1 and at most the window {window}, or pixels are left out")
    return steps[0], steps[1]


def _starts(side: int, window: int, step: int) -> list[int]:
    """Where windows begin along a side, so that they cover it; the last one ends where the image does."""
    last = max(side - window, 0)
    return [*range(0, last, step), last]


def _counts(starts: list[int], window: int, side: int) -> Tensor:
    """float (side): the windows that each place lies in."""
    places = torch.arange(side)
    return sum((((places >= start) & (places < start + window)).float() for start in starts), torch.zeros(side))
