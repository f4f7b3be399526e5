"""What an image file may ask for, so that none takes a data worker's time or memory without end.

A small file may be a large picture (which its header tells), and smaller ones make a decoder work on and on: a JPEG
that goes over the same pixels a thousand times, a GIF of ten million comments, a TIFF whose tags all point at the
same megabytes. What is refused is decided by what the file says, never by a clock or by the memory at hand, so that
every machine trains on the same images.
"""

import io
import re
import struct
from collections.abc import Iterator
from itertools import islice

MAX_PIXELS = 64 * 2**20
"""Max pixels of an image where nobody chose another number; limits that say so grow with it."""
MAX_SIDE = 30_000
"""Max pixels of a side."""
MAX_BYTES = 512 * 2**20
"""Max bytes of a file; more where more than `MAX_PIXELS` are allowed, in proportion."""
MAX_MEMORY = 1920 * 2**20
"""Bytes that decoding takes at most for a while, besides the file: what every data worker may need, in proportion
where other than `MAX_PIXELS` are allowed. Seen at `MAX_PIXELS`: 1860 MiB of a JPEG 2000 of four colours of 16 bit, 1560
MiB of one of 8 bit, 1300 MiB of a JPEG XL of 16 bit, 1150 MiB of a transparent WebP with a profile, 770 MiB of a
progressive JPEG in four colours, others less."""

MAX_SCANS = 24
"""How often a JPEG of `MAX_PIXELS` may go over them, a smaller one more often: a progressive one does 10 times, in four
colours 18 times."""
MAX_RASTER_BYTES = 512 * 2**20
"""Max bytes of the decoded pixels of an image of any channels: of all channels that are decoded together.
Decoding takes up to twice as much. It follows the limit of pixels: 8 bytes for each."""
MAX_CHANNELS = 1024
"""Also the pages of a TIFF file, and the arrays of an .npz file."""
MAX_RUN_PIXELS = 16 * 2**20
"""Max pixels of a BMP that is compressed by runs: Pillow makes its pixels one by one, in Python."""
MAX_HEADER = 16 * 2**20
"""Bytes of metadata before the pixels."""
MAX_TAG_VALUES = 2**16
"""Numbers in a tag of a TIFF file: more than the strips are in two planes of `MAX_SIDE` rows each."""

CUT = "cut it into tiles: swin-mim prepare SOURCE TILES --tile 512"
_HEADER_READS = 10_000  # a hundred is much
_PIXEL_READS = 2**19  # a TIFF takes one for a strip or tile, a PNG three for a chunk, a BMP two for a run
# the marker, its length and the number of components, as far as libjpeg takes them
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_SCANS = 1000  # of any JPEG
_EXIF = re.compile(rb"\xff\xe1..Exif\x00\x00", re.DOTALL)
_EXIF_PARTS = 16
_TAGS = 4096  # in a directory; a hundred is much
_BYTE_KINDS = (1, 2, 7)  # of which Pillow makes one object in all
_KINDS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes of a value, by the number of its type in a TIFF file."""
_WHOLE = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q"}
_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability: Pillow reads them with the pixels


class BrokenImage(ValueError):
    """An image that cannot be used; the message is the reason, in one line."""


class TooLargeImage(BrokenImage):
    """An image of more pixels, or a longer side, than is decoded."""

    max_pixels = 0
    """The setting of that name with which it would be decoded; 0: none."""


class MeteredFile(io.BytesIO):
    """A file in memory that lets its metadata be read only so often, and its pixels after `begin_pixels`.

    What loops over the parts of a file in Python reads for each of them, so that this bounds all such loops.
    """

    def __init__(self, data: bytes, header: int = MAX_HEADER, reads: int = _HEADER_READS) -> None:
        """`header`: bytes of metadata that may be read, in so many `reads`."""
        super().__init__(data)
        self._reads = reads
        # WebP, AVIF and HEIC are taken in one piece; tags of a TIFF, which may be most of it, are checked by themselves
        whole = data[8:12] == b"WEBP" or data[4:8] == b"ftyp" or _is_tiff(data)
        self._bytes = header + (2 * len(data) if whole else 0)

    def begin_pixels(self) -> None:
        self._reads = _PIXEL_READS
        self._bytes = _PIXEL_READS * 2**16

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._reads -= 1
        self._bytes -= len(data)
        if self._reads < 0 or self._bytes < 0:
            raise BrokenImage("it consists of more parts, or more metadata, than a picture needs")
        return data


def check_length(length: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raises `BrokenImage` for a file that need not be looked into."""
    if not length:
        raise BrokenImage("the file is empty")
    if length > (most := max(MAX_BYTES, MAX_BYTES * max_pixels // MAX_PIXELS)):
        raise BrokenImage(f"{length} bytes are more than {most}")


def check_size(size: tuple[int, int], max_pixels: int = MAX_PIXELS, max_side: int | None = None) -> None:
    """Raises `BrokenImage` for too many pixels, or none; `max_side` None: `MAX_SIDE`."""
    width, height = size
    if min(size) < 1:
        raise BrokenImage(f"{width} x {height} pixels are none")
    if max(size) > (most := MAX_SIDE if max_side is None else max_side):
        raise TooLargeImage(f"{width} x {height} pixels are more than {most} a side: {CUT}")
    if width * height > max_pixels:
        raise _too_large(
            width * height,
            f"{width} x {height} are {width * height} pixels, more than {max_pixels}: raise data.max_pixels, or {CUT}",
        )


def check_raster(size: tuple[int, int], channels: int, itemsize: int, max_pixels: int = MAX_PIXELS) -> None:
    """As `check_size`, and for too many channels or decoded bytes, 8 for each of `max_pixels`.

    Args:
        itemsize: bytes of a number.
    """
    check_size(size, max_pixels)
    if not 0 < channels <= MAX_CHANNELS:
        raise BrokenImage(f"it has {channels} channels: there may be 1 to {MAX_CHANNELS}")
    most = MAX_RASTER_BYTES * max_pixels // MAX_PIXELS
    if (total := size[0] * size[1] * channels * itemsize) > most:
        shape = f"{size[0]} x {size[1]} pixels of {channels} channels of {8 * itemsize} bit"
        raise _too_large(
            -(-total // 8), f"{shape} are {total} bytes, more than {most}: raise data.max_pixels, or {CUT}"
        )


def _too_large(pixels: int, reason: str) -> TooLargeImage:
    error = TooLargeImage(reason)
    error.max_pixels = pixels
    return error


def check_scans(data: bytes, pixels: int, strips: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raises `BrokenImage` for a JPEG, or JPEGs in the strips of a TIFF, that go over their pixels too often."""
    passes = MAX_SCANS * max(MAX_PIXELS, max_pixels) // pixels
    most = min(passes, _SCANS) + 4 * strips  # four colours one by one are no sign of malice
    if (_is_jpeg(data) or _is_tiff(data)) and _more_than(most, _SCAN.finditer(data)):
        raise BrokenImage(f"it has more than {most} scans, which are too many for {pixels} pixels")


def check_runs(compression: object, pixels: int) -> None:
    """Raises `BrokenImage` for a BMP of runs that is too large; `compression` is the number in its header."""
    if compression in (1, 2) and pixels > MAX_RUN_PIXELS:
        raise BrokenImage(f"{pixels} pixels are more than {MAX_RUN_PIXELS}, which a BMP of runs may have")


def check_metadata(data: bytes) -> None:
    """Raises `BrokenImage` for a JPEG with EXIF in too many parts, which Pillow joins, and as `_check_tags`."""
    if _is_jpeg(data) and _more_than(_EXIF_PARTS, _EXIF.finditer(data, 0, MAX_HEADER)):
        raise BrokenImage(f"it has more than {_EXIF_PARTS} parts of EXIF")
    _check_tags(data)


def check_pages(data: bytes, max_values: int = MAX_TAG_VALUES) -> None:
    """Raises `BrokenImage` for a TIFF file of too many pages, or ones that lead back, or as `check_metadata` in any.

    Args:
        max_values: numbers in a tag.
    """
    order = "<" if data.startswith(b"II") else ">"
    big = 43 in data[2:4]
    at = struct.unpack_from(order + ("Q" if big else "L"), data.ljust(16, b"\0"), 8 if big else 4)[0]
    seen: set[int] = set()
    while at:
        if at in seen:
            raise BrokenImage("its pages lead back to one before")
        if len(seen) == MAX_CHANNELS:
            raise BrokenImage(f"it has more than {MAX_CHANNELS} pages")
        seen.add(at)
        _check_directories(data, order, big, at, max_values)
        at = _next_directory(data, order, big, at)


def _next_directory(data: bytes, order: str, big: bool, at: int) -> int:
    """Position of the one behind; 0: none, or it is not in the file."""
    length, entry, pointer = (8, 20, "Q") if big else (2, 12, "L")
    if at + length > len(data):
        return 0
    tags = struct.unpack_from(order + ("Q" if big else "H"), data, at)[0]
    behind = at + length + tags * entry
    room = behind + struct.calcsize(order + pointer) <= len(data)
    return struct.unpack_from(order + pointer, data, behind)[0] if room else 0


def _is_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8")


def _is_tiff(data: bytes) -> bool:
    return data.startswith((b"II", b"MM"))


def _more_than(most: int, matches: Iterator[object]) -> bool:
    return next(islice(matches, most, None), None) is not None


def _check_tags(data: bytes) -> None:
    """Raises `BrokenImage` for a TIFF file with tags that are too large, or that count the same bytes again and again.

    Pillow makes a Python object of every number. Other damage is left for Pillow to find.
    """
    if not _is_tiff(data) or len(data) < 16:
        return
    order = "<" if data.startswith(b"II") else ">"
    for big in {43 in data[2:4], data[2] == 43}:  # Pillow takes the header of a big-endian BigTIFF for a small one's
        first = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)[0]
        _check_directories(data, order, big, first)


def _check_directories(data: bytes, order: str, big: bool, first: int, max_values: int = MAX_TAG_VALUES) -> None:
    waiting, seen, total = [first], set(), 0
    while waiting:
        start = waiting.pop()
        if start in seen:
            continue
        seen.add(start)
        for tag, kind, count, at in _entries(data, start, order, big):
            size = count * _KINDS.get(kind, 0)
            if kind not in _KINDS or at + size > len(data):
                continue  # as Pillow does
            total += size
            if total > len(data) or (count > max_values and kind not in _BYTE_KINDS):
                raise BrokenImage(f"its tag {tag} has {count} values, which is more than a picture needs")
            if tag in _DIRECTORIES and kind in _WHOLE and at <= len(data) - 8:
                waiting.append(struct.unpack_from(order + _WHOLE[kind], data, at)[0])


def _entries(data: bytes, start: int, order: str, big: bool) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, number of values, position of the first) of a directory, as far as it lies in the file."""
    length, entry = struct.Struct(order + ("Q" if big else "H")), struct.Struct(order + ("HHQQ" if big else "HHLL"))
    inline = 8 if big else 4
    if not 0 <= start <= len(data) - length.size:
        return
    tags = length.unpack_from(data, start)[0]
    for number in range(tags):
        position = start + length.size + number * entry.size
        if position + entry.size > len(data):
            return
        if number >= _TAGS:
            raise BrokenImage(f"it has {tags} tags, which are more than a picture needs")
        tag, kind, count, at = entry.unpack_from(data, position)
        yield tag, kind, count, at if count * _KINDS.get(kind, 0) > inline else position + entry.size - inline
