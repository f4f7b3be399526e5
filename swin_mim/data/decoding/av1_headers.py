"""Headers of the AV1 pictures in an AVIF file, whose decoder trusts the sizes that the file gives beside them."""

import struct
from collections.abc import Callable, Iterator

from swin_mim.data.decoding.coded_headers import boxes
from swin_mim.data.decoding.decode_limits import BrokenImage

_ITEMS = 4096  # a grid of 64 x 64
_UNITS = 16  # before the header of a sequence: none or one
_HEADER = 256
"""Bytes of a picture in which its header is found."""
_SEQUENCE = 1


def coded_pixels(data: bytes) -> int:
    """Pixels of all pictures together that an AVIF file is composed of, as their own headers say; 0 for a film.

    Raises:
        BrokenImage: a picture without a header, or too many of them. Damaged files raise anything.
    """
    total = 0
    for kind, start, end in boxes(data, 0, len(data)):
        if kind == b"meta":
            inner = {name: (first, last) for name, first, last in boxes(data, start + 4, end)}
            if b"iinf" not in inner or b"iloc" not in inner:
                continue
            pictures = set(_pictures(data, *inner[b"iinf"]))
            for item, content in _contents(data, *inner[b"iloc"], inner.get(b"idat", (0, 0))[0]):
                if item in pictures:
                    total += _pixels(content)
    return total


def _pictures(data: bytes, start: int, end: int) -> Iterator[int]:
    """Numbers of the items that are AV1."""
    for count, (kind, first, _) in enumerate(boxes(data, start + (8 if data[start] else 6), end)):
        if count == _ITEMS:
            raise BrokenImage(f"it has more than {_ITEMS} items")
        if kind == b"infe":
            number, _, code = struct.unpack_from(">LH4s" if data[first] == 3 else ">HH4s", data, first + 4)
            if code == b"av01":
                yield number


def _contents(data: bytes, start: int, end: int, inside: int) -> Iterator[tuple[int, bytes]]:
    """(number, first bytes) of the items. `inside`: where those begin that are in the metadata."""
    reader = _Fields(data, start, end)
    version = reader.take(1)
    reader.take(3)
    sizes = reader.take(1)
    more = reader.take(1)
    wide = 2 if version < 2 else 4
    items = reader.take(wide)
    if items > _ITEMS:
        raise BrokenImage(f"it has {items} items, more than {_ITEMS}")
    for _ in range(items):
        number = reader.take(wide)
        method = reader.take(2) & 15 if version else 0
        reader.take(2)
        base = reader.take(more >> 4) + (inside if method == 1 else 0)
        content = b""
        for _ in range(reader.take(2)):
            reader.take(more & 15 if version else 0)
            at, length = base + reader.take(sizes >> 4), reader.take(sizes & 15)
            if len(content) < _HEADER:
                content += data[at : at + min(length or _HEADER, _HEADER)]
        yield number, content


class _Fields:
    """Numbers one behind the other, the highest byte of each first."""

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self._data, self._at, self._end = data, start, end

    def take(self, count: int) -> int:
        if self._at + count > self._end:
            raise BrokenImage("the list of its items is cut off")
        self._at += count
        return int.from_bytes(self._data[self._at - count : self._at], "big")


def _pixels(content: bytes) -> int:
    """Those of a picture, by the header of its sequence."""
    at = 0
    for _ in range(_UNITS):
        if at + 2 > len(content):
            break
        unit = content[at]
        at += 2 if unit & 4 else 1
        size = shift = 0
        if not unit & 2:
            size = len(content) - at
        while unit & 2 and at < len(content):
            byte, at = content[at], at + 1
            size, shift = size | (byte & 127) << shift, shift + 7
            if byte < 128 or shift > 56:
                break
        if unit >> 3 & 15 == _SEQUENCE:
            return _sequence_pixels(content[at : at + size])
        at += size
    raise BrokenImage("it holds a picture without a header")


def _sequence_pixels(header: bytes) -> int:
    bits, left = int.from_bytes(header, "big"), 8 * len(header)

    def take(count: int) -> int:
        nonlocal left
        left -= count
        if left < 0:
            raise BrokenImage("the header of a picture in it is cut off")
        return bits >> left & ((1 << count) - 1)

    take(4)
    if take(1):  # a still picture
        take(5)
    else:
        _skip_operating_points(take)
    wide, high = take(4) + 1, take(4) + 1
    return (take(wide) + 1) * (take(high) + 1)


def _skip_operating_points(take: Callable[[int], int]) -> None:
    """What is said of the timing of a film."""
    model = delay = 0
    if take(1):
        take(64)
        if take(1):
            _skip_long(take)
        if model := take(1):
            delay = take(5) + 1
            take(42)
    waits = take(1)
    for _ in range(take(5) + 1):
        take(12)
        if take(5) > 7:
            take(1)
        if model and take(1):
            take(2 * delay + 1)
        if waits and take(1):
            take(4)


def _skip_long(take: Callable[[int], int]) -> None:
    """A number whose length is the zeros before it."""
    zeros = 0
    while not take(1):
        zeros += 1
    take(zeros)
