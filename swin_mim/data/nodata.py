"""Values that look as if they marked missing pixels, in images whose files do not say that they do.

A program that has nothing to write for a pixel writes one number into all of its channels: -9999, 0, 65535. What tells
it from a measured value is that it lies apart from all others, or that it fills the image from its edges.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

from swin_mim.counts import counted
from swin_mim.data.statistics import Statistics

if TYPE_CHECKING:
    import numpy as np

    from swin_mim.data.decoding.raster import Raster

USUAL = (-999, -2000, -3024, -9999, -10000, -32767, -32768, -99999)
"""Numbers that programs write for missing pixels, and that few instruments measure."""

_SHARE = 0.01  # of an image, from which a value that is not apart by far is suspected
_STEP = 0.01  # of the range of other values: the distance to the next one that is a gap
_USUAL_STEP = 0.05  # that is enough for what is usual
_MASK = 0.01  # of the distance: other values that differ less are the second one of a mask
_SPREAD_OUT = 0.5  # of its pixels, from which to an edge of the image there are only such ones
_SPREAD_OUT_INSIDE = 0.9  # of a value in the middle of others, in one channel


class Suspect(NamedTuple):
    """A value in one image."""

    value: float
    pixels: int
    """That have it."""
    apart: bool = False
    """Whether it is so far from all others that it spoils mean and std."""
    frame: bool = False
    """Whether it fills the image from its edges, or lies apart a little."""
    others: Statistics | None = None
    """Statistics of all other pixels, if it is apart; None: there are none."""


@dataclass(frozen=True)
class Nodata:
    """A value that may mark missing pixels, in all images that were looked at."""

    value: float
    images: int
    """Those that have it."""
    share: float
    """Part of all pixels."""
    apart: bool
    """Whether it is far from all other values, in an image at least."""

    def said(self, images: int) -> str:
        """ "-9999 is in 12 of 12 images, 6.51% of the pixels, far from all other values: it may mark missing pixels".

        Args:
            images: that were looked at.
        """
        share = f"{self.share:.2%}" if self.share >= 0.0001 else "less than 0.01%"
        where = "far from all other values" if self.apart else "and fills parts of them"
        of_images = f"{self.images:,} of {counted(images, 'image')}"
        return f"{self.text} is in {of_images}, {share} of the pixels, {where}: it may mark missing pixels"

    @property
    def text(self) -> str:
        """The value, as an option takes it."""
        return number_text(self.value)


def number_text(value: float) -> str:
    """ "-9999", "0.5"."""
    return str(int(value)) if value == int(value) and abs(value) < 2**63 else repr(value)


def suspects(image: "Raster", statistics: Statistics) -> tuple[Suspect, ...]:
    """Find values that all channels of a pixel have at once: 0, and what is the min or the max of each channel.

    What is `USUAL` counts in any channel of a pixel, as bands may have gaps of their own.

    Args:
        statistics: of the image.
    """
    values, valid = image
    candidates = [0.0, *(found[0] for found in (statistics.min, statistics.max) if len(set(found)) == 1)]
    candidates += [low for low in statistics.min if low in USUAL]
    found = []
    for value in dict.fromkeys(candidates):
        held = _held(values, value)
        if held is not None and valid is not None:
            held &= valid
        if held is not None and (pixels := int(held.sum())):
            found.append(_judged(image, Suspect(value, pixels), held, statistics))
    return tuple(found)


def find_nodata(found: Sequence[Sequence[Suspect]], pixels: int) -> tuple[Nodata, ...]:
    """What is suspected in some images, over all of them; the most certain and frequent first.

    Args:
        found: the suspects of each image.
        pixels: valid ones of all images.
    """
    by_value: dict[float, list[Suspect]] = {}
    for suspect in (suspect for image in found for suspect in image):
        by_value.setdefault(suspect.value, []).append(suspect)
    result = []
    for value, same in by_value.items():
        apart, odd = (sum(each) for each in zip(*((one.apart, one.apart or one.frame) for one in same), strict=True))
        if odd >= _SHARE * len(found) or (apart and value in USUAL):
            result.append(Nodata(value, len(same), sum(one.pixels for one in same) / pixels, bool(apart)))
    return tuple(sorted(result, key=lambda each: (not each.apart, -each.share)))


def statistics_without(value: float, images: Iterator[tuple[Statistics, Sequence[Suspect]]]) -> Statistics | None:
    """Statistics of the pixels that do not hold a value which is apart; None: there are none.

    Args:
        images: the statistics of each image, and its suspects.
    """
    kept: list[Statistics] = []
    for statistics, found in images:
        suspect = next((each for each in found if each.value == value and each.apart), None)
        others = suspect.others if suspect else statistics
        kept += [others] if others else []
    return reduce(Statistics.merge, kept) if kept else None


def _judged(image: "Raster", suspect: Suspect, held: "np.ndarray", statistics: Statistics) -> Suspect:
    from swin_mim.data.decoding.raster import Raster

    values, valid = image
    value, channels = suspect.value, values.shape[2]
    if suspect.pixels == statistics.valid:  # there is nothing that it could be apart from
        return suspect._replace(apart=value in USUAL)
    others = Raster(values, ~held if valid is None else valid & ~held)
    low, high = _range(others)
    gap, spread = max(low - value, value - high, 0.0), high - low
    apart = gap > _USUAL_STEP * spread if value in USUAL else gap > spread > _MASK * gap
    if apart and (value in USUAL or suspect.pixels >= _SHARE / 10 * statistics.valid):
        return suspect._replace(apart=True, others=Statistics.of(others))
    if suspect.pixels < _SHARE * statistics.valid or spread <= _MASK * gap:
        return suspect
    from_edges = _from_edges(held)
    stepped = gap > max(_STEP * spread, 0 if values.dtype.kind == "f" else 1)
    if channels > 1:
        frame = stepped or from_edges >= _SPREAD_OUT
    elif values.dtype.kind == "f" and low < value < high:
        frame = from_edges >= _SPREAD_OUT_INSIDE
    else:
        frame = stepped and from_edges >= _SPREAD_OUT
    return suspect._replace(frame=frame)


def _held(values: "np.ndarray", value: float) -> "np.ndarray | None":
    """bool (H, W): whether all channels of a pixel have the value, or one, of what is `USUAL`; None: no pixel has."""
    held, any_channel = values[:, :, 0] == value, value in USUAL
    for channel in range(1, values.shape[2]):
        if any_channel:
            held |= values[:, :, channel] == value
        elif held.any():
            held &= values[:, :, channel] == value
    return held if held.any() else None


def _range(image: "Raster") -> tuple[float, float]:
    values, valid = image
    there = [values[:, :, channel][valid] for channel in range(values.shape[2])]
    return float(min(each.min() for each in there)), float(max(each.max() for each in there))


def _from_edges(held: "np.ndarray") -> float:
    """Part of the pixels from which a straight way to an edge of the image leads over such pixels alone."""
    import numpy as np

    along = np.logical_and.accumulate
    reached = along(held, axis=0) | along(held[::-1], axis=0)[::-1]
    reached |= along(held, axis=1) | along(held[:, ::-1], axis=1)[:, ::-1]
    return float(reached.sum() / held.sum())
