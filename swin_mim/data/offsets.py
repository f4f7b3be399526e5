"""Images whose values have an offset of 1000 among others without, as Sentinel-2's before and after January 2022.

Since processing baseline 04.00 its files have 1000 added to every value. Training on both kinds at once shows a model
two brightnesses of the same ground; an offset that all images share goes away with normalisation.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swin_mim.counts import counted

if TYPE_CHECKING:
    from swin_mim.data.decoding.raster import Raster

OFFSET = 1000

_PIXELS = 2**16  # of an image that are looked at: they tell where it begins as well as all do
_DARKEST = 1000  # one pixel in so many may be darker: some reflectances are below 0, and some sensors have dead pixels
_PLAIN = 300  # below which images without the offset begin: of water, shadow or wood
_SHIFTED = 1200  # below which those with it begin
_EDGE = 700  # from which to the offset few images begin if it is one
_FEW = 4  # times as many have to begin above it as in that gap
_IMAGES, _SHARE = 3, 0.05  # of each kind, at least


@dataclass(frozen=True)
class Offset:
    """Two kinds of images, by the value at which their darkest channel begins."""

    shifted: int
    """Images that begin a little above `OFFSET`."""
    shifted_range: tuple[int, int]
    """The lowest and the highest of these beginnings."""
    plain: int
    """Images that begin near 0."""
    plain_range: tuple[int, int]
    example: str
    """Name of an image that begins above `OFFSET`."""

    def said(self) -> str:
        """Both kinds in numbers, what they usually are, and what to do."""
        first = f"{counted(self.shifted, 'image')} (such as {self.example})"
        return (
            f"the darkest channel of {first} begins at {_span(self.shifted_range)}, that of {self.plain} others "
            f"at {_span(self.plain_range)}: the first may have an offset of {OFFSET}, as Sentinel-2's have since "
            f"processing baseline 04.00 (January 2022); before training, subtract {OFFSET} from "
            "them, negative values to 0"
        )


def beginning(image: "Raster") -> int | None:
    """The value at which the darkest channel of an image begins, without its darkest thousandth and without 0.

    None: its values are not integers of more than 8 bits, or are 0 everywhere. 0 is what there is beside an orbit.
    """
    import numpy as np

    values, valid = image
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 2:
        return None
    step = max(1, math.isqrt(values.shape[0] * values.shape[1] // _PIXELS))
    values, valid = values[::step, ::step], None if valid is None else valid[::step, ::step]
    lowest = []
    for channel in range(values.shape[2]):
        plane = values[:, :, channel] if valid is None else values[:, :, channel][valid]
        there = plane[plane != 0]
        if rank := there.size:
            rank //= _DARKEST
            lowest.append(int(np.partition(there, rank)[rank]))
    return min(lowest, default=None)


def find_offset(images: Iterable[tuple[str, int | None]]) -> Offset | None:
    """What tells of images with the offset among others without; None: all are alike, or of any beginnings.

    Args:
        images: name and `beginning` of each.
    """
    begun = [(name, low) for name, low in images if low is not None]
    shifted = [(low, name) for name, low in begun if OFFSET <= low < _SHIFTED]
    plain = [low for _, low in begun if 0 <= low < _PLAIN]
    below = sum(_EDGE <= low < OFFSET for _, low in begun)
    enough = max(_IMAGES, _SHARE * len(begun))
    if min(len(shifted), len(plain)) < enough or len(shifted) < _FEW * below:
        return None
    span = min(shifted)[0], max(shifted)[0]
    return Offset(len(shifted), span, len(plain), (min(plain), max(plain)), shifted[0][1])


def _span(between: tuple[int, int]) -> str:
    low, high = between
    return str(low) if low == high else f"{low} to {high}"
