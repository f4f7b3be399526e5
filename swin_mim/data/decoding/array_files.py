"""numpy's files as images of any channels: .npy, and .npz of one array or of one for each channel."""

import io
import math
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

from swin_mim.data.decoding.channel_reader import Channels, channels_last, check_kind, shape_as_image, whole_array
from swin_mim.data.decoding.decode_limits import MAX_CHANNELS, MAX_PIXELS, BrokenImage, MeteredFile, check_raster

_NPY, _ZIP = b"\x93NUMPY", b"PK"
_HEADER = 2**16  # of an array: numpy reads no more than 10,000 characters
_DIRECTORY = 2**20  # bytes of an archive's list of members: 22,000 at most
_ARCHIVED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # as numpy does


def is_npy(data: bytes) -> bool:
    return data.startswith(_NPY)


def is_npz(data: bytes) -> bool:
    return data.startswith(_ZIP)


def open_npy(data: bytes, max_pixels: int = MAX_PIXELS) -> Channels:
    """An array (H, W), (C, H, W) or (H, W, C) of numbers. Raises anything for a file that is damaged."""
    return whole_array(channels_last(_array(data, max_pixels)))


def open_packed(data: bytes, max_pixels: int = MAX_PIXELS) -> Channels:
    """As packing leaves it: always (H, W, C)."""
    array = _array(data, max_pixels)
    if array.ndim != 3:
        raise BrokenImage(f"its array has the shape {array.shape}: packed ones have three axes")
    return whole_array(array)


def open_npz(data: bytes, mask: str | None, max_pixels: int = MAX_PIXELS) -> Channels:
    """One array as of `open_npy`, or arrays (H, W) that are channels by their names; `mask` may name one more.

    Raises:
        BrokenImage: it holds something else. Damaged files raise anything.
    """
    arrays = _members(data, max_pixels)
    shapes = {name: array.shape for name, array in arrays.items()}
    several = len({name for name in arrays if name != mask}) > 1
    if not arrays or (several and any(len(shape) != 2 for shape in shapes.values())) or len(set(_planes(shapes))) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
        raise BrokenImage(f"its arrays are {found}: it may be one of three axes, or several of two and the same size")
    picture = {name: array for name, array in arrays.items() if name != mask or len(arrays) == 1}
    only = next(iter(picture.values()))
    if len(picture) == 1 and only.ndim == 3:
        whole = whole_array(channels_last(only))
        return whole if mask not in arrays or len(arrays) == 1 else _with_mask(whole, str(mask), arrays[str(mask)])
    return _by_name(arrays, max_pixels)


def _planes(shapes: dict[str, tuple[int, ...]]) -> Sequence[tuple[int, int]]:
    """(H, W) of each."""
    return [shape_as_image(shape)[:2] for shape in shapes.values()]


def _by_name(arrays: dict[str, np.ndarray], max_pixels: int) -> Channels:
    first, names = next(iter(arrays.values())), tuple(arrays)

    def read(indices: Sequence[int]) -> np.ndarray:
        return np.stack([arrays[names[index]] for index in indices], axis=-1)

    kind = np.result_type(*arrays.values())
    check_raster((first.shape[1], first.shape[0]), len(arrays), kind.itemsize, max_pixels)
    return Channels(names, (first.shape[0], first.shape[1]), kind, read)


def _with_mask(whole: Channels, name: str, mask: np.ndarray) -> Channels:
    """With one channel more, for whoever asks for it by name."""

    def read(indices: Sequence[int]) -> np.ndarray:
        if list(indices) == [len(whole.names)]:
            return mask[:, :, None]
        return whole.read(indices)

    return Channels((*whole.names, name), whole.size, whole.dtype, read)


def _array(data: bytes, max_pixels: int) -> np.ndarray:
    """The array of a file, over its bytes; nothing that they do not hold is made room for."""
    file = io.BytesIO(data)
    shape, backwards, kind = _header(file, max_pixels)
    start, count = file.tell(), math.prod(shape)
    if len(data) - start != count * kind.itemsize:
        wants = f"its header says {shape} of {kind}, which are {count * kind.itemsize} bytes"
        raise BrokenImage(f"{wants}, and {len(data) - start} follow")
    return np.frombuffer(data, kind, count, start).reshape(shape, order="F" if backwards else "C")


def _header(file: io.BytesIO, max_pixels: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether columns come first, type), checked; the file is at the first number after it."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise BrokenImage(f"it is a .npy file of version {version[0]}.{version[1]}: 1.0 and 2.0 are read")
    read: Callable[..., tuple[tuple[int, ...], bool, np.dtype]] = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    try:
        shape, backwards, kind = read(file)
    except Exception as error:  # it is a text of Python, read by a parser of that
        raise BrokenImage("the header of its array cannot be read") from error
    check_kind(kind)
    if min(shape, default=1) < 0:
        raise BrokenImage(f"its shape is {shape}")
    if len(shape) not in (2, 3) or not math.prod(shape):
        raise BrokenImage(f"its array has the shape {shape}: an image has two axes, or three with its channels")
    # axes before pixels: numpy takes none that are longer than its largest integer
    check_raster((max(shape), 1), 1, 1, max_pixels)
    height, width, channels = shape_as_image(shape)
    check_raster((width, height), channels, kind.itemsize, max_pixels)
    return shape, backwards, kind


def _members(data: bytes, max_pixels: int) -> dict[str, np.ndarray]:
    """The arrays of an archive by their names, in its order."""
    file = MeteredFile(data, _DIRECTORY)
    with zipfile.ZipFile(file) as archive:
        file.begin_pixels()
        entries = archive.infolist()
        if len(entries) > MAX_CHANNELS:
            raise BrokenImage(f"it has {len(entries)} arrays, more than {MAX_CHANNELS}")
        # no member gives more than it declares: what is read of it ends there
        if (total := sum(entry.file_size for entry in entries)) > 8 * max_pixels + len(entries) * _HEADER:
            raise BrokenImage(f"its arrays are {total} bytes, more than {8 * max_pixels}: raise data.max_pixels")
        return {entry.filename.removesuffix(".npy"): _member(archive, entry, max_pixels) for entry in entries}


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, max_pixels: int) -> np.ndarray:
    if entry.compress_type not in _ARCHIVED or not entry.filename.endswith(".npy"):
        raise BrokenImage(f"{entry.filename!r} in it is no array as numpy archives it")
    with archive.open(entry) as member:
        head = member.read(_HEADER)
        file = io.BytesIO(head)
        shape, _, kind = _header(file, max_pixels)
        if entry.file_size != file.tell() + math.prod(shape) * kind.itemsize:  # before more of it is unpacked
            raise BrokenImage(f"{entry.filename!r} in it has {entry.file_size} bytes, which are not those of {shape}")
        # a number of bytes, or it would unpack all that there are
        return _array(head + member.read(max(0, entry.file_size - len(head))), max_pixels)
