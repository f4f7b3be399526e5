"""Images of more than 8 bits: what is left of their grey levels where they are read as RGB. For `swin-mim doctor`."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.multichannel import channel_names, decode_raster
from swin_mim.data.decoding.options import DecodeOptions
from swin_mim.data.decoding.raster import ChannelSpec, Raster
from swin_mim.errors import UserError

FEW = 64
"""Grey levels as RGB that are few, if the files have `MANY_TIMES` as many."""
MANY_TIMES = 4
FLAT = 2.0
"""Standard deviation, of values from 0 to 255, up to which a picture shrunk to 32 x 32 counts as near-empty."""

_SHRUNK = (32, 32)


@dataclass(frozen=True)
class Depth:
    """The numbers in images of more than 8 bits."""

    low: float
    high: float
    mask: int
    """All bits that are set in some of them, of integers; 0: of other numbers."""
    limit: int
    """The largest number of their type, if it is one of integers; 0: it is not."""

    @classmethod
    def of(cls, raster: Raster) -> "Depth":
        values = raster.values if raster.valid is None else raster.values[raster.valid]
        if values.dtype.kind == "f":
            return cls(float(values.min()), float(values.max()), 0, 0)
        mask = int(np.bitwise_or.reduce(values, axis=None))
        return cls(int(values.min()), int(values.max()), mask, int(np.iinfo(values.dtype).max))

    def merge(self, other: "Depth") -> "Depth":
        low, high, limit = min(self.low, other.low), max(self.high, other.high), max(self.limit, other.limit)
        return Depth(low, high, self.mask | other.mask, limit)

    @property
    def step(self) -> int:
        """The power of two of which all values are multiples."""
        return self.mask & -self.mask or 1

    @property
    def text(self) -> str:
        """ "values go from 160 to 4080 of 65535, in steps of 16"."""
        of_all = f" of {self.limit}" if self.limit else ""
        steps = f", in steps of {self.step}" if self.step > 1 else ""
        return f"values go from {self.low:.6g} to {self.high:.6g}{of_all}{steps}"


@dataclass(frozen=True)
class Levels:
    """Grey levels of some images, and of what they become as RGB."""

    depth: Depth
    values: np.ndarray
    """All that there are, sorted; as RGB too."""
    rgb: np.ndarray

    def merge(self, other: "Levels") -> "Levels":
        values, rgb = np.union1d(self.values, other.values), np.union1d(self.rgb, other.rgb)
        return Levels(self.depth.merge(other.depth), values, rgb)

    @property
    def too_few(self) -> bool:
        return len(self.rgb) < FEW and len(self.values) > MANY_TIMES * len(self.rgb)

    @property
    def text(self) -> str:
        return f"{self.depth.text}: as RGB {len(self.rgb)} of {len(self.values):,} grey levels would be left"


def deep_values(data: bytes, options: DecodeOptions) -> Raster | None:
    """A file that can be read as RGB, with its own numbers in all channels; None: they are of 8 bits, or fewer.

    None too where tifffile or imagecodecs is missing: training reads such a file as RGB without them.
    """
    try:
        names = channel_names([(None, data)])
        raster = decode_raster([(None, data)], ChannelSpec(len(names), max_pixels=options.max_pixels))
    except (BrokenImage, UserError):
        return None
    return raster if raster.values.dtype.itemsize > 1 else None


def levels(raster: Raster, rgb: Image.Image) -> Levels:
    """Compare a file's own numbers with its pixels as RGB."""
    values = raster.values if raster.valid is None else raster.values[raster.valid]
    return Levels(Depth.of(raster), np.unique(values), np.unique(np.asarray(rgb)))


def is_flat(image: Image.Image) -> bool:
    """Whether a picture is almost constant; noise does not count."""
    small = np.asarray(image.resize(_SHRUNK, Image.Resampling.BOX), dtype=np.float32)
    return bool(small.std(axis=(0, 1)).max() <= FLAT)


def is_flat_in_its_range(raster: Raster) -> bool:
    """As `is_flat`, for integers of as many bits as the largest of them needs; floats fill their range as RGB too."""
    values = raster.values
    if values.dtype.kind == "f":
        return True
    full = (1 << max(8, int(abs(Depth.of(raster).high)).bit_length())) - 1
    return max(_shrunk_std(values[:, :, channel]) for channel in range(values.shape[2])) * 255 / full <= FLAT


def _shrunk_std(plane: np.ndarray) -> float:
    small = Image.fromarray(plane.astype(np.float32)).resize(_SHRUNK, Image.Resampling.BOX)
    return float(np.asarray(small).std())
