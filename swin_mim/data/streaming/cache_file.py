"""Images one after the other in a file, of which any one is read without the others.

bytes of the images | int64 (n + 1) where each begins | uint32 (n) crc32 of each | int64 n | b"SWINIMG1"
"""

import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from swin_mim.data.decoding.decode_limits import MAX_PIXELS, BrokenImage, check_length

_TAIL = struct.Struct("<q8s")
_MAGIC = b"SWINIMG1"


class Damaged(Exception):
    """The file is not what was written; the message says how."""


def table_bytes(rows: int) -> int:
    """What the file takes beside the images."""
    return 8 * (rows + 1) + 4 * rows + _TAIL.size


def write_images(path: Path, images: Iterable[bytes]) -> int:
    """Write them through to the disk; how many they are.

    Raises:
        OSError: the disk does not take it.
    """
    offsets, checks = [0], []
    with path.open("wb") as file:
        for image in images:
            file.write(image)
            offsets.append(offsets[-1] + len(image))
            checks.append(zlib.crc32(image))
        file.write(np.array(offsets, dtype="<i8").tobytes() + np.array(checks, dtype="<u4").tobytes())
        file.write(_TAIL.pack(len(checks), _MAGIC))
        file.flush()
        os.fsync(file.fileno())
    return len(checks)


def read_image(path: str, row: int, rows: int, max_pixels: int = MAX_PIXELS) -> bytes:
    """One of `rows` images, of a length that `check_length` passes.

    Raises:
        FileNotFoundError: the file is gone.
        Damaged: it is not whole.
        BrokenImage: the row has none, or one that is too large.
    """
    # opened for one image: an open file would keep its room on the disk after it was removed
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read(descriptor, row, rows, max_pixels)
    finally:
        os.close(descriptor)


def _read(descriptor: int, row: int, rows: int, max_pixels: int) -> bytes:
    size = os.fstat(descriptor).st_size
    table = size - table_bytes(rows)
    if table < 0 or os.pread(descriptor, _TAIL.size, size - _TAIL.size) != _TAIL.pack(rows, _MAGIC):
        raise Damaged(f"it has not the {rows} images that were written")
    start, end = struct.unpack("<qq", os.pread(descriptor, 16, table + 8 * row))
    if not 0 <= start <= end <= table:
        raise Damaged(f"its table of row {row} is no table")
    if start == end:
        raise BrokenImage("the row has no image")
    check_length(end - start, max_pixels)
    image = os.pread(descriptor, end - start, start)
    (check,) = struct.unpack("<I", os.pread(descriptor, 4, table + 8 * (rows + 1) + 4 * row))
    if len(image) != end - start or zlib.crc32(image) != check:
        raise Damaged(f"row {row} has changed since it was written")
    return image
