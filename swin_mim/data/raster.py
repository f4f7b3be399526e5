"""Images of any channels and any numbers: satellite bands, 16-bit scans, elevations, with pixels that are not there."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from swin_mim.data.limits import BrokenImage

LEAST = 0.499
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
class Bands:
    """What is read of each image: which channels, and how its gaps are marked."""

    count: int
    """How many channels the model takes."""
    channels: tuple[str, ...] | None = None
    """Their names, or their numbers from 1, in the order that the model takes them in. None: all of the image."""
    nodata: float | None = None
    """The value of pixels that are not there. None: what a file says itself, if anything. NaN and infinities always
    are such."""
    mask: str | None = None
    """Name or number of the channel that is 0 where a pixel is not there; not one of those that the model takes."""


def cut_raster(
    raster: Raster,
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> Tensor:
    """Crop and resize, antialiased -> float32 (C, H, W), NaN in every channel of a pixel that is not there.

    Such pixels give nothing to their neighbours: a pixel of the result is the weighted mean of those that are there.

    Args:
        size: (H, W) of the result.
        box: left, top, right, bottom in pixels, rounded to whole ones, at least one a side.

    Raises:
        BrokenImage: no pixel of the result is there.
    """
    left, top = (min(round(edge), side - 1) for edge, side in zip(box, raster.values.shape[1::-1], strict=False))
    right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
    part = raster.values[top:bottom, left:right].transpose(2, 0, 1)
    values = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))[None]  # (1, C, h, w)
    valid = None if raster.valid is None else raster.valid[top:bottom, left:right]
    if valid is None or valid.all():
        return _resized(values, size, interpolation)[0]
    there = torch.from_numpy(np.ascontiguousarray(valid))[None, None]
    share = _resized(there.float(), size, interpolation)
    mean = _resized(values.where(there, 0), size, interpolation) / share
    found = share >= LEAST
    if not found.any():
        raise BrokenImage("no pixel of its crop is valid")
    return mean.where(found, torch.nan)[0]


def _resized(values: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    return interpolate(values, size, mode=interpolation, antialias=True)
