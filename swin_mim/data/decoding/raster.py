"""Images of any channels and any numbers: satellite bands, 16-bit scans, elevations, with pixels that are not there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from swin_mim.data.decoding.decode_limits import MAX_PIXELS, BrokenImage

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""
NamedFile = tuple[str | None, bytes]
"""(name of the channel, content), or (None, content) of a file that is all of an image."""
LARGEST = 3.4e38
"""Values that are not smaller than that are gaps, as float32 holds hardly more, and many programs mark gaps by the
largest number that it does hold."""
MIN_COVER = 0.499
"""Part of the area of a pixel that has to be there when an image is resized, for the pixel to be: half, less what
rounding may take, so that an edge in the middle of pixels stays straight."""


class Raster(NamedTuple):
    """A decoded image, in the units of its file."""

    values: np.ndarray
    """(H, W, C), integers or floats. Those of invalid pixels mean nothing."""
    valid: np.ndarray | None = None
    """bool (H, W): whether a pixel holds a finite value in each of these channels that does not mark a gap. None: all
    do."""


@dataclass(frozen=True)
class ChannelSpec:
    """What is read of each image: which channels, and how its gaps are marked."""

    count: int
    """How many channels the model takes."""
    channels: tuple[str, ...] | None = None
    """Their names, or their numbers from 1, in the order that the model takes them in. None: all of the image."""
    nodata: float | None = None
    """The value of pixels that are not there. None: what a file says itself, if anything. NaN, infinities and the
    largest numbers of float32 (`LARGEST`) always are such."""
    mask: str | None = None
    """Name or number of the channel that is 0 where a pixel is not there; not one of those that the model takes."""
    max_pixels: int = MAX_PIXELS
    """Max pixels of an image: width x height."""


def pixel_bytes(channels: int) -> int:
    """Bytes of a pixel in a batch: values of 4 bytes, and whether it is there."""
    return 4 * channels + 1


def cut_raster(
    raster: Raster,
    size: tuple[int, int],
    box: Box,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> Tensor:
    """Crop and resize, antialiased -> float32 (C, H, W), NaN in every channel of a pixel that is not there.

    Such pixels give nothing to their neighbours: a pixel of the result is the weighted mean of those that are there.

    Args:
        size: (H, W) of the result.
        box: rounded to whole pixels, at least one a side.

    Raises:
        BrokenImage: no pixel of the result is there: of none of them half is.
    """
    height, width, _ = raster.values.shape
    left, top = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
    part = raster.values[top:bottom, left:right].transpose(2, 0, 1)
    with np.errstate(over="ignore"):  # of pixels that are not there: see `LARGEST`
        values = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))[None]  # (1, C, h, w)
    valid = None if raster.valid is None else raster.valid[top:bottom, left:right]
    if valid is None or valid.all():
        return _resized(values, size, interpolation)[0]
    there = torch.from_numpy(np.ascontiguousarray(valid))[None, None]
    cover = _resized(there.float(), size, interpolation)
    mean = _resized(values.where(there, 0), size, interpolation) / cover
    found = cover >= MIN_COVER
    if not found.any():
        raise BrokenImage(f"its valid pixels are too few to be seen at {size[0]} x {size[1]}")
    return mean.where(found, torch.nan)[0]


def cut_where_pixels_are(
    raster: Raster,
    size: tuple[int, int],
    boxes: Iterator[Box],
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> Tensor:
    """As `cut_raster`, of the first of some boxes that has a valid pixel; if none has, of the last one, moved to some.

    Raises:
        BrokenImage: too few of its pixels are there to be seen.
    """
    box = None
    for box in boxes:
        left, top, right, bottom = map(round, box)
        if raster.valid is None or raster.valid[top : bottom + 1, left : right + 1].any():
            try:
                return cut_raster(raster, size, box, interpolation)
            except BrokenImage:
                continue
    assert box is not None
    return cut_raster(raster, size, moved_to_pixels(box, raster), interpolation)


def moved_to_pixels(box: Box, raster: Raster) -> Box:
    """A box of the same size inside the image, about the valid pixel that is nearest to its middle."""
    assert raster.valid is not None
    height, width = raster.valid.shape
    rows, columns = np.nonzero(raster.valid)
    nearest = int(np.argmin((2 * rows + 1 - height) ** 2 + (2 * columns + 1 - width) ** 2))
    w, h = box[2] - box[0], box[3] - box[1]
    left = min(max(columns[nearest] + 0.5 - w / 2, 0), width - w)
    top = min(max(rows[nearest] + 0.5 - h / 2, 0), height - h)
    return left, top, left + w, top + h


def _resized(values: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    return interpolate(values, size, mode=interpolation, antialias=True)
