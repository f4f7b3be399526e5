"""What a file of any channels holds, before its pixels are decoded."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.errors import UserError

KINDS = "biuf"
"""Kinds of numpy types that a picture may hold."""


@dataclass(frozen=True)
class Channels:
    """The channels of one file, all of the same size and type."""

    names: tuple[str, ...]
    """Names that the file gives them, or their numbers from 1."""
    size: tuple[int, int]
    """(H, W) in pixels."""
    dtype: np.dtype
    read: Callable[[Sequence[int]], np.ndarray]
    """Indices of channels -> (H, W, number of these), any byte order. Raises anything for a damaged file."""
    nodata: float | None = None
    """The value of pixels that are not there, as the file says."""
    mask: Callable[[], np.ndarray] | None = None
    """-> (H, W), 0 where a pixel is not there; of a mask that is none of the channels."""


def numbers(count: int) -> tuple[str, ...]:
    """("1", "2", ...)"""
    return tuple(str(number) for number in range(1, count + 1))


def check_kind(dtype: np.dtype) -> None:
    """Raises `BrokenImage` for what is no integer or float of up to 64 bits."""
    if dtype.kind not in KINDS or dtype.itemsize > 8:
        raise BrokenImage(f"its numbers are of the type {dtype}, which is no integer or float of up to 64 bit")
    # an array of fields, of texts or of objects has another kind
    assert dtype.names is None


def whole_array(array: np.ndarray, names: Sequence[str] | None = None, nodata: float | None = None) -> Channels:
    """Channels of an array (H, W, C) that is in memory."""
    height, width, count = array.shape

    def read(indices: Sequence[int]) -> np.ndarray:
        start = indices[0]
        if list(indices) == list(range(start, start + len(indices))):
            return array[:, :, start : start + len(indices)]  # many times as fast as a list of them
        return array[:, :, list(indices)]

    return Channels(tuple(names or numbers(count)), (height, width), array.dtype, read, nodata)


def channels_last(array: np.ndarray) -> np.ndarray:
    """(H, W), (C, H, W) or (H, W, C) -> (H, W, C): the shorter one of the first and the last axis is the channels.

    Raises:
        BrokenImage: it has another number of axes.
    """
    if array.ndim not in (2, 3):
        raise BrokenImage(f"its array has the shape {array.shape}: an image has two axes, or three with its channels")
    if array.ndim == 2:
        return array[:, :, None]
    return np.moveaxis(array, 0, -1) if array.shape[0] <= array.shape[2] else array


def shape_as_image(shape: Sequence[int]) -> tuple[int, int, int]:
    """(H, W, C) that `channels_last` makes of such a shape, without an array."""
    return channels_last(np.broadcast_to(np.int8(0), tuple(shape))).shape


def import_extra(name: str) -> ModuleType:
    """tifffile, imagecodecs, pydicom, pillow_heif or a module in them. Raises `UserError` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = {"pydicom": "dicom", "pillow_heif": "heif"}.get(name.split(".")[0], "raster")
        raise UserError(
            f"images of this kind are read by {name}, which is not installed: pip install 'swin-mim[{extra}]'"
        ) from error
