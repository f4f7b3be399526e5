"""Scenes in files that are read whole, as JPEG, PNG and WebP, and those that lie in the file as they are: .npy."""

from pathlib import Path

import numpy as np
from PIL import Image

from swin_mim.data.decoding.channel_reader import Channels, channels_last, check_kind, numbers, shape_as_image
from swin_mim.data.decoding.decode_limits import MAX_CHANNELS, BrokenImage, TooLargeImage, check_length
from swin_mim.data.decoding.kinds import HEAD, kind_of
from swin_mim.data.decoding.multichannel import open_channels
from swin_mim.data.decoding.openers import open_file
from swin_mim.data.decoding.options import DecodeOptions
from swin_mim.data.scenes.scene import Scene, Window

_BYTES = 12  # that reading one takes for each pixel: Pillow's image, the values, and one turned upright
_PHOTOMETRICS = {"CMYK": "separated", "LAB": "cielab"}
_NOT_BY_PILLOW = ("JPEG XL", "DICOM", "NPZ")
_ALPHA = 2  # of TIFF's extra samples: not multiplied into the colours


def open_npy_scene(path: Path) -> Scene:
    """Open an array (H, W), (C, H, W) or (H, W, C) of numbers; what a window needs is read of it.

    Raises:
        BrokenImage: another shape or type. Damaged files raise anything.
    """
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    check_kind(array.dtype)
    if array.ndim not in (2, 3) or not array.size:
        raise BrokenImage(f"its array has the shape {array.shape}: an image has two axes, or three with its channels")
    height, width, count = shape_as_image(array.shape)
    if count > MAX_CHANNELS:
        raise BrokenImage(f"it has {count} channels: there may be 1 to {MAX_CHANNELS}")
    dtype = np.dtype(np.uint8) if array.dtype.kind == "b" else array.dtype.newbyteorder("=")

    def read(window: Window) -> np.ndarray:
        # a map for each window: what was read does not stay in memory
        whole = channels_last(np.load(path, mmap_mode="r", allow_pickle=False))
        return whole[window.top : window.bottom, window.left : window.right].astype(dtype)

    return Scene(
        size=(height, width),
        dtype=dtype,
        channels=numbers(count),
        read=read,
        chunk=(1, width),
        photometric="rgb" if count == 3 and dtype == np.uint8 else "minisblack",
        picture=count in (1, 3) and dtype == np.uint8,
    )


def open_whole_scene(path: Path, max_pixels: int) -> Scene:
    """Decode a file of any other kind, upright, with the channels and the values that it has.

    Args:
        max_pixels: of the file.

    Raises:
        BrokenImage: too large, or not read. Damaged files raise anything.
        UserError: a package is missing.
    """
    options = DecodeOptions(max_pixels, max_side=max_pixels)  # a panorama is long
    length = path.stat().st_size
    check_length(length, max_pixels)
    data = path.read_bytes()
    kind = kind_of(data[:HEAD])
    mode, profile = ("RGB" if kind == "JPEG XL" else ""), None
    try:
        if kind is not None and kind not in _NOT_BY_PILLOW:
            image = open_file(data, options)[1]
            mode, profile = image.mode, image.info.get("icc_profile")
        channels = open_channels(data, max_pixels=max_pixels, max_side=max_pixels)
    except Image.DecompressionBombError:
        raise BrokenImage(f"a {kind} of so many pixels cannot be read: convert it to a tiled TIFF") from None
    except TooLargeImage as error:
        if not error.max_pixels:
            raise BrokenImage(f"a side of it is too long for a {kind}: convert it to a tiled TIFF") from None
        raise BrokenImage(
            f"it has more than {max_pixels} pixels, and a file of its kind is read whole: --max_pixels "
            f"{error.max_pixels} reads it, with {_BYTES * error.max_pixels / 2**30:.1f} GiB of memory a worker, or "
            "convert it to a tiled TIFF"
        ) from None
    return _scene(channels, mode, profile)


def _scene(channels: Channels, mode: str, profile: bytes | None) -> Scene:
    """A scene in memory; `mode` as Pillow says what its values mean, or "" for measurements."""
    count, values = len(channels.names), channels.read(range(len(channels.names)))
    dtype = np.dtype(np.uint8) if values.dtype.kind == "b" else values.dtype.newbyteorder("=")
    mask = None if channels.mask is None else channels.mask() != 0
    alpha = count in (2, 4) and mode not in ("", *_PHOTOMETRICS)
    colours = count - alpha == 3 and mode not in _PHOTOMETRICS and (mode != "" or dtype == np.uint8)

    def read(window: Window) -> np.ndarray:
        part = values[window.top : window.bottom, window.left : window.right]
        return np.ascontiguousarray(part, dtype)

    def read_mask(window: Window) -> np.ndarray:
        assert mask is not None
        return mask[window.top : window.bottom, window.left : window.right]

    return Scene(
        size=channels.size,
        dtype=dtype,
        channels=channels.names,
        read=read,
        chunk=channels.size,
        photometric=_PHOTOMETRICS.get(mode, "rgb" if colours else "minisblack"),
        picture=dtype == np.uint8 and (colours or count - alpha == 1) and channels.nodata is None and mask is None,
        bilevel=count == 1 and (values.dtype.kind == "b" or mode == "1"),
        alpha=alpha,
        extrasamples=(_ALPHA,) if alpha else (),
        nodata=channels.nodata,
        mask=None if mask is None else read_mask,
        profile=profile,
    )
