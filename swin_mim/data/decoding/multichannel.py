"""Bytes of image files -> a `Raster`, safely: whatever channels and numbers the files hold, in their own units.

The files come from anywhere, as in `decode`. Every refusal is a `BrokenImage`, and nothing else leaves this module, but
for a `UserError` where a package is missing.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.decoding.array_files import is_npy, is_npz, open_npy, open_npz, open_packed
from swin_mim.data.decoding.channel_reader import Channels, check_kind, import_extra, whole_array
from swin_mim.data.decoding.coded_headers import CodedPicture, jpeg2000_codestream, jpeg2000_header, jpegxl_header
from swin_mim.data.decoding.decode_limits import MAX_PIXELS, BrokenImage, check_raster
from swin_mim.data.decoding.dicom_files import open_dicom
from swin_mim.data.decoding.kinds import HEAD, kind_of
from swin_mim.data.decoding.options import DecodeOptions
from swin_mim.data.decoding.raster import LARGEST, ChannelSpec, NamedFile, Raster
from swin_mim.data.decoding.rgb import decode_channels
from swin_mim.data.decoding.tiff_files import is_tiff, open_tiff
from swin_mim.errors import UserError

_LISTED = 20  # channels


def decode_raster(files: Sequence[NamedFile], bands: ChannelSpec, names: Sequence[str] | None = None) -> Raster:
    """Decode one image: a file with all its channels, or several files of one channel each.

    What is read, with the type of the file (in native byte order; one bit as uint8):

    - TIFF of integers and floats up to 64 bit, with its samples and then its pages as channels, by tifffile. GDAL's
      names of bands, its value for gaps and its internal masks count. It is not turned, whatever its orientation tag.
    - .npy, and .npz of one array or of one for each channel. Of three axes, the shorter one of the first and the last
      is the channels, and the first if they are equal.
    - JPEG 2000, its components as they are stored, and JPEG XL, by imagecodecs.
    - DICOM, by pydicom and imagecodecs: the first frame, rescaled, grey with more for what is brighter.
    - PNG of 16 bit, and all that `decode_image` reads; turned upright, transparency as one more channel.

    Channels are chosen by the names that the file gives them, or by their numbers from 1. The files of a stack may have
    different sizes where these divide the largest: smaller ones are enlarged by repeating their pixels.

    A pixel is not valid where a chosen channel is not finite, is not below `LARGEST`, or is the value for gaps (that of
    `bands`, or else the file's own), or where the mask is 0.

    Args:
        files: of one image.
        names: of the channels of an ordinary file as packing leaves it: one more is 0 where a pixel is not valid.

    Returns:
        values (H, W, bands.count), writable and contiguous.

    Raises:
        BrokenImage: no such file, damaged, not these channels, no valid pixel, or larger than `limits` allow, which the
            header tells before any pixel is decoded.
        UserError: tifffile, imagecodecs or pydicom is needed and not installed.
    """
    with _refusals():
        return _checked(_stack(files, bands) if _is_stack(files) else _single(files[0][1], bands, names))


def channel_names(files: Sequence[NamedFile], mask: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[str, ...]:
    """Names of all channels of an image: what files say, or numbers from 1. Raises as `decode_raster`."""
    with _refusals():
        if _is_stack(files):
            return tuple(str(name) for name, _ in files)
        return open_channels(files[0][1], mask, max_pixels).names


def choose(names: Sequence[str], bands: ChannelSpec) -> tuple[list[int], int | None]:
    """(indices of the channels that the model takes, that of the mask), of those that there are.

    Raises:
        BrokenImage: a channel is missing, or there are not as many as the model takes.
    """
    mask = None if bands.mask is None else find_channel(names, bands.mask)
    if bands.channels is not None:
        chosen = [find_channel(names, name) for name in bands.channels]
    else:
        chosen = [index for index in range(len(names)) if index != mask]
    if len({*chosen, mask}) < len(chosen) + 1:
        raise BrokenImage(f"data.channels and data.mask_channel name a channel twice: its channels are {listed(names)}")
    if len(chosen) != bands.count:
        besides = "" if mask is None else " besides the mask"
        some = f"name {bands.count} of them in data.channels, or " if bands.count < len(chosen) else ""
        raise BrokenImage(
            f"it has {len(chosen)} channel{'' if len(chosen) == 1 else 's'}{besides} ({listed(names)}) and "
            f"model.in_channels is {bands.count}: {some}set model.in_channels {len(chosen)}"
        )
    return chosen, mask


def can_hold(dtype: np.dtype, nodata: float) -> bool:
    """Whether pixels of this type can be `nodata`, or are gaps without it (NaN)."""
    return nodata != nodata or _marker(dtype, nodata) is not None


def listed(names: Sequence[str]) -> str:
    """ "B02, B03, B04"."""
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


@contextmanager
def _refusals() -> Iterator[None]:
    """Whatever is raised inside is a `BrokenImage`, or was a `UserError`."""
    try:
        # numpy and Pillow warn of what is odd in a file: nothing that a reader of a log can mend
        with warnings.catch_warnings(action="ignore"):
            yield
    except (BrokenImage, UserError):
        raise
    except Exception as error:  # damaged files raise ValueError, struct.error, zlib.error, MemoryError and more
        raise BrokenImage(f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]) from error


@contextmanager
def _of_channel(name: str) -> Iterator[None]:
    """What is refused inside is said to be of this channel."""
    try:
        with _refusals():
            yield
    except BrokenImage as error:
        raise BrokenImage(f"channel {name}: {error}") from error


def _is_stack(files: Sequence[NamedFile]) -> bool:
    return files[0][0] is not None


def _checked(image: Raster) -> Raster:
    if image.valid is None or image.valid.all():
        return Raster(image.values)
    if not image.valid.any():
        raise BrokenImage("no pixel of it is valid")
    return image


def _single(data: bytes, bands: ChannelSpec, names: Sequence[str] | None) -> Raster:
    file = open_channels(data, bands.mask, bands.max_pixels) if names is None else open_packed(data, bands.max_pixels)
    if names is not None and not 0 <= len(file.names) - len(names) <= 1:
        raise BrokenImage(
            f"it has {counted(len(file.names), 'channel')}, and {len(names)} were packed: {listed(names)}"
        )
    chosen, mask = choose(names or file.names, bands)
    if names is not None and len(file.names) > len(names):
        mask = len(names)
    values, valid = _read(file, chosen, bands.nodata)
    if mask is not None:
        valid = _both(valid, _there(file.read([mask])[:, :, 0]))
    return Raster(values, valid)


def _read(file: Channels, chosen: Sequence[int], nodata: float | None) -> Raster:
    values = _writable(file.read(chosen), _native(file.dtype))
    valid = valid_pixels(values, file.nodata if nodata is None else nodata)
    return Raster(values, valid if file.mask is None else _both(valid, _there(file.mask())))


def _stack(files: Sequence[NamedFile], bands: ChannelSpec) -> Raster:
    names = tuple(str(name) for name, _ in files)
    chosen, mask = choose(names, bands)
    needed = {*chosen} if mask is None else {*chosen, mask}
    opened = {
        index: _one_channel(names[index], files[index][1], len(chosen), bands.max_pixels) for index in sorted(needed)
    }
    size = _common_size({names[index]: file for index, file in opened.items()})
    kind = np.result_type(*(_native(opened[index].dtype) for index in chosen))
    check_raster(size[::-1], len(chosen), kind.itemsize, bands.max_pixels)
    values, valid = np.empty((*size, len(chosen)), kind), None
    for place, index in enumerate(chosen):
        with _of_channel(names[index]):
            band, there = _read(opened[index], [0], bands.nodata)
        values[:, :, place] = _enlarged(band[:, :, 0], size)
        valid = valid if there is None else _both(valid, _enlarged(there, size))
    if mask is not None:
        with _of_channel(names[mask]):
            valid = _both(valid, _there(_enlarged(opened[mask].read([0])[:, :, 0], size)))
    return Raster(values, valid)


def _one_channel(name: str, data: bytes, together: int, max_pixels: int) -> Channels:
    """One of so many that are decoded together."""
    with _of_channel(name):
        file = open_channels(data, max_pixels=max_pixels)
        if len(file.names) != 1:
            raise BrokenImage(f"its file has {len(file.names)} channels: those of a stack have one each")
        # now, as some are decoded when they are opened
        check_raster(file.size[::-1], together, file.dtype.itemsize, max_pixels)
        return file


def _common_size(files: dict[str, Channels]) -> tuple[int, int]:
    """(H, W) of the largest, of which the others are integer parts, the same on both sides."""
    size = max(file.size for file in files.values())
    for name, (height, width) in ((name, file.size) for name, file in files.items()):
        if size[0] % height or size[1] % width or size[0] // height != size[1] // width:
            raise BrokenImage(
                f"channel {name} has {width} x {height} pixels, which do not divide the {size[1]} x {size[0]} of others"
            )
    return size


def _enlarged(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) -> (H, W), each pixel repeated."""
    factor = size[0] // plane.shape[0]
    return plane if factor == 1 else plane.repeat(factor, axis=0).repeat(factor, axis=1)


def open_channels(
    data: bytes, mask: str | None = None, max_pixels: int = MAX_PIXELS, max_side: int | None = None
) -> Channels:
    """All channels of a file of any kind, before their pixels are decoded where that can wait.

    Args:
        mask: an array of this name in an .npz file is no channel.
        max_pixels: of an image.
        max_side: pixels of a side, of what Pillow reads; None: `MAX_SIDE`.

    Raises:
        BrokenImage: too large, or not read. Damaged files raise anything.
        UserError: a package is missing.
    """
    if is_npy(data):
        return open_npy(data, max_pixels)
    if is_npz(data):
        return open_npz(data, mask, max_pixels)
    if kind_of(data[:HEAD]) == "DICOM":  # before TIFF, as its preamble may be that of one
        return open_dicom(data, max_pixels)
    if is_tiff(data):
        return open_tiff(data, max_pixels)
    if kind_of(data[:HEAD]) == "JPEG 2000":
        return _open_jpeg2000(data, max_pixels)
    if kind_of(data[:HEAD]) == "JPEG XL":
        return _open_jpegxl(data, max_pixels)
    return whole_array(decode_channels(data, _deep_png, DecodeOptions(max_pixels, max_side=max_side)))


def _open_jpeg2000(data: bytes, max_pixels: int) -> Channels:
    """The components of a JPEG 2000 as they are stored."""
    codestream = jpeg2000_codestream(data)
    return _decoded(jpeg2000_header(codestream), "jpeg2k_decode", codestream, max_pixels)


def _open_jpegxl(data: bytes, max_pixels: int) -> Channels:
    """The colours of a JPEG XL, then its other channels; turned upright."""
    return _decoded(jpegxl_header(data), "jpegxl_decode", data, max_pixels)


def _decoded(header: CodedPicture, decoder: str, data: bytes, max_pixels: int) -> Channels:
    """Decode what has such a header, by a function of imagecodecs."""
    shape = header.height, header.width, header.components
    check_raster(shape[1::-1], header.components, 4, max_pixels)  # the decoders keep numbers of 4 bytes
    pixels = getattr(import_extra("imagecodecs"), decoder)(data, numthreads=1)
    if pixels.size != math.prod(shape) or pixels.shape[:2] != shape[:2]:
        raise BrokenImage(f"its header says {shape}, and its pixels are {pixels.shape}")
    return whole_array(pixels.reshape(shape))


def _deep_png(data: bytes) -> np.ndarray:
    """uint16 (H, W, C) of a PNG whose header was checked."""
    pixels = import_extra("imagecodecs").png_decode(data)
    return pixels.reshape(*pixels.shape[:2], -1)


def find_channel(names: Sequence[str], name: str) -> int:
    """The index of a channel: by its name, or else by its number from 1."""
    if names.count(name) > 1:
        raise BrokenImage(f"it has {names.count(name)} channels that are called {name!r}: choose by number")
    if name in names:
        return names.index(name)
    if name.isascii() and name.isdecimal() and 0 < int(name[:9]) <= len(names):
        return int(name[:9]) - 1
    raise BrokenImage(f"it has no channel {name!r}: its channels are {listed(names)}")


def _native(dtype: np.dtype) -> np.dtype:
    check_kind(dtype)
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")


def _writable(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    values = np.ascontiguousarray(values, dtype)
    return values if values.flags.writeable else values.copy()


def valid_pixels(values: np.ndarray, nodata: float | None) -> np.ndarray | None:
    """bool (H, W): where all channels are finite and none marks a gap; None: everywhere."""
    marker, valid = _marker(values.dtype, nodata), None
    # channel by channel: numpy is slow over a short last axis
    for channel in (values[:, :, index] for index in range(values.shape[2])):
        if values.dtype.kind == "f":
            valid = _both(valid, np.abs(channel) < LARGEST)  # NaN is not
        if marker is not None:
            valid = _both(valid, channel != marker)
    return valid


def _marker(dtype: np.dtype, nodata: float | None) -> np.generic | None:
    """The value for gaps as a file holds it, which is how it was rounded; None: no number of this type is."""
    if nodata is None or nodata != nodata:
        return None  # not finite: none is
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # inf, which is a gap by itself
            return dtype.type(nodata)
    limits = np.iinfo(dtype)
    if nodata in (np.inf, -np.inf) or nodata != int(nodata) or not limits.min <= nodata <= limits.max:
        return None
    return dtype.type(int(nodata))


def _there(mask: np.ndarray) -> np.ndarray:
    """bool: where a mask is not 0; NaN is not."""
    return (mask != 0) & (mask == mask)


def _both(valid: np.ndarray | None, other: np.ndarray) -> np.ndarray:
    return other if valid is None else valid & other
