"""Images of any channels and any numbers: satellite bands, 16-bit scans, elevations, with pixels that are not there."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


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
