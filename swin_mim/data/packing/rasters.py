"""An image of any channels as packing leaves it: made smaller without its gaps, as a .npy file."""

import io
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import MIN_COVER, Raster
from swin_mim.data.sources.multichannel import RasterSource
from swin_mim.data.statistics import Statistics


class Row(NamedTuple):
    """A packed image, or why there is none."""

    content: bytes
    path: str | None
    reason: str = ""
    """Not empty: it is broken."""
    pixels: int = 0
    sums: tuple[int, ...] = (0, 0, 0)
    """Sum of the values of each channel of an RGB image, as in `Packed`."""
    squares: tuple[int, ...] = (0, 0, 0)
    """Sum of their squares."""
    statistics: Statistics | None = None
    """None: an RGB image."""
    dtype: str = ""
    """Type of a raster's values."""


def raster_row(source: RasterSource, index: int, size: int, path: str | None) -> Row:
    """A packed raster. Raises `BrokenImage`."""
    image = smaller_raster(source.image(index), size)
    if image.valid is not None and not image.valid.any():
        raise BrokenImage(f"no pixel of it is valid at a size of {size}")
    statistics = Statistics.of(image)
    return Row(as_npy(image), path, pixels=statistics.pixels, statistics=statistics, dtype=image.values.dtype.name)


def as_npy(image: Raster) -> bytes:
    """(H, W, C), or if a pixel is not valid (H, W, C + 1): the last channel is 0 where it is not, as all others are."""
    values = image.values
    if image.valid is not None and not image.valid.all():
        there = image.valid[:, :, None]
        values = np.concatenate([np.where(there, values, 0), there.astype(values.dtype)], axis=2, dtype=values.dtype)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(values), allow_pickle=False)
    return buffer.getvalue()


def smaller_raster(image: Raster, size: int) -> Raster:
    """A raster whose shorter side is `size` pixels, or itself if it is not larger, or `size` is 0.

    Bilinear and antialiased. Each value is a mean of valid ones, so that it lies between them; integers are rounded. A
    pixel is valid where half of what becomes it is, by weight.
    """
    height, width, channels = image.values.shape
    short = min(height, width)
    if not size or short <= size:
        return image
    shape = (size if height == short else round(size * height / short), 0)
    shape = (shape[0], size if width == short else round(size * width / short))
    weights, valid = None, None
    if image.valid is not None:
        weights = _resized(image.valid.astype(np.float64), shape)
        valid = weights >= MIN_COVER
    values = np.empty((*shape, channels), image.values.dtype)
    for channel in range(channels):
        plane = image.values[:, :, channel].astype(np.float64)
        if image.valid is None or weights is None:
            mean = _resized(plane, shape)
        else:
            plane[~image.valid] = 0
            mean = _resized(plane, shape) / np.where(weights > 0, weights, 1)
        values[:, :, channel] = _as_type(mean, image.values.dtype)
    if valid is not None:
        values[~valid] = 0
    return Raster(values, None if valid is None or valid.all() else valid)


def _resized(plane: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """float64 (h, w) -> (H, W)"""
    tensor = torch.from_numpy(plane)[None, None]
    return interpolate(tensor, shape, mode="bilinear", antialias=True)[0, 0].numpy()


def _as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    with np.errstate(invalid="ignore"):  # the largest integers of 64 bit are none of floats; they are put right here
        whole = np.rint(values)
        return np.where(whole >= limits.max, limits.max, np.maximum(whole, limits.min).astype(dtype)).astype(dtype)
