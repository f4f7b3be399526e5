"""What encoded pictures say that they unpack to, read before a decoder sees them: JPEG, JPEG-LS, JPEG 2000, JPEG XL,
WebP and LERC.

They are files, the strips and tiles of a TIFF, or the frames of a DICOM file. Decoders make room, and take time, for
what these headers say.
"""

import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from swin_mim.data.decoding.decode_limits import BrokenImage

_SEGMENTS = 4096  # of a JPEG before its frame, and marker segments of a JPEG 2000
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}  # the last one is JPEG-LS
_TILE_BYTES, _COMPONENT_BYTES = 6000, 1200  # that OpenJPEG keeps for each tile, and each component of one
_TILES_MEMORY = 128 * 2**20
_BLOCKS = 2**20  # of which OpenJPEG keeps some hundred bytes each
_PACKETS = 2**22
_PLAIN_KINDS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}


class CodedPicture(NamedTuple):
    """The header of an encoded picture."""

    width: int
    height: int
    components: int
    dtype: np.dtype
    """What a decoder returns: the smallest type that holds its numbers."""
    bits: int
    """Bits of a number that are used."""


def integers(bits: int, signed: bool = False) -> np.dtype:
    """The smallest type for integers of so many bits. Raises `BrokenImage` above 32."""
    if not 0 < bits <= 32:
        raise BrokenImage(f"its numbers have {bits} bits: 1 to 32 are read")
    return np.dtype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2 if bits <= 16 else 4}")


def jpeg_header(data: bytes) -> CodedPicture:
    """The frame of a JPEG or JPEG-LS."""
    if not data.startswith(b"\xff\xd8"):
        raise BrokenImage("it holds no JPEG where it says so")
    at = 2
    for _ in range(_SEGMENTS):
        while data[at : at + 2] == b"\xff\xff":
            at += 1
        if at + 10 > len(data) or data[at] != 0xFF:
            break
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if kind in _JPEG_FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            return CodedPicture(width, height, components, integers(bits), bits)
        if kind == 0xDA or length < 2:
            break
        at += 2 + length
    raise BrokenImage("its JPEG has no frame header")


def jpeg2000_codestream(data: bytes) -> bytes:
    """The first codestream of a JP2 file; of a codestream, itself."""
    if data.startswith(b"\xff\x4f\xff\x51"):
        return data
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"jp2h" and any(inner == b"pclr" for inner, _, _ in _boxes(data, start, end)):
            raise BrokenImage("its JPEG 2000 has a palette, which is not read as channels")
        if kind == b"jp2c":
            return data[start:end]
    raise BrokenImage("its JPEG 2000 file holds no picture")


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start and end of what it holds) of boxes one behind the other."""
    for _ in range(_SEGMENTS):
        if start + 8 > end:
            return
        length, kind = struct.unpack_from(">L4s", data, start)
        head = 8
        if length == 1 and start + 16 <= end:
            length, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        stop = end if length == 0 else start + length
        if length and length < head:
            raise BrokenImage("a box of its JPEG 2000 or JPEG XL file is shorter than its header")
        yield kind, start + head, min(stop, end)
        start = stop
    raise BrokenImage("it has more boxes than a picture needs")


def jpeg2000_header(codestream: bytes) -> CodedPicture:
    """The size and the numbers of a JPEG 2000 codestream, of which all components are alike.

    Raises:
        BrokenImage: of different components, or cut into so many tiles, blocks or packets that these, and not the
            pixels, take the memory or the time.
    """
    if len(codestream) < 60 or not codestream.startswith(b"\xff\x4f\xff\x51"):
        raise BrokenImage("it holds no JPEG 2000 where it says so")
    length, _, right, bottom, left, top, tile_width, tile_height, *_, components = struct.unpack_from(
        ">HHLLLLLLLLH", codestream, 4
    )
    said = codestream[42 : 42 + 3 * components]
    width, height = right - left, bottom - top
    if not components or length != 38 + 3 * components or len(said) < 3 * components or min(width, height) < 1:
        raise BrokenImage("the header of its JPEG 2000 is damaged")
    if not tile_width or not tile_height:
        raise BrokenImage("its JPEG 2000 has tiles of no pixels")
    if len({said[at : at + 3] for at in range(0, len(said), 3)}) > 1 or said[1:3] != b"\1\1":
        raise BrokenImage("the components of its JPEG 2000 differ in their size or their bits")
    signed, bits = said[0] >= 128, (said[0] & 127) + 1
    tiles = math.ceil(right / tile_width) * math.ceil(bottom / tile_height)
    if tiles * (_TILE_BYTES + components * _COMPONENT_BYTES) > _TILES_MEMORY:
        raise BrokenImage(f"its JPEG 2000 has {tiles} tiles of {components} components, more than a picture needs")
    for style in _coding_styles(codestream):
        _check_coding(style, width, height, components, tiles)
    return CodedPicture(width, height, components, integers(bits, signed), bits)


class _CodingStyle(NamedTuple):
    """How components are coded: JPEG 2000's COD or COC."""

    layers: int
    levels: int
    block: tuple[int, int]
    """Exponents of the sides of blocks."""
    precincts: bytes
    """Exponents of both sides, by resolution."""


def _coding_styles(codestream: bytes) -> Iterator[_CodingStyle]:
    """Of the main header, then of the tiles."""
    at, layers, tile_end, wide = 2, 1, 0, int.from_bytes(codestream[40:42], "big") > 256
    for _ in range(4 * _SEGMENTS * 16):
        marker, length = struct.unpack_from(">HH", codestream.ljust(at + 4, b"\0"), at)
        if marker == 0xFF93:  # the pixels of a tile follow
            at = tile_end
            continue
        if marker == 0xFFD9 or at + 4 > len(codestream):
            return
        if not 0xFF50 <= marker < 0xFF9F or length < 2:
            raise BrokenImage("the parts of its JPEG 2000 are not where they should be")
        body = codestream[at + 4 : at + 2 + length]
        if marker == 0xFF90 and len(body) >= 8:
            size = int.from_bytes(body[2:6], "big")
            tile_end = at + size if size >= 14 else len(codestream)
        elif marker == 0xFF52 and len(body) >= 10:
            layers = int.from_bytes(body[2:4], "big")
            yield _CodingStyle(layers, body[5], (body[6], body[7]), body[10:] if body[0] & 1 else b"")
        elif marker == 0xFF53 and len(body) >= 7 + wide:
            said = body[1 + wide :]
            yield _CodingStyle(layers, said[1], (said[2], said[3]), said[6:] if said[0] & 1 else b"")
        elif marker in (0xFF52, 0xFF53, 0xFF90):
            raise BrokenImage("a part of its JPEG 2000 is too short")
        at += 2 + length
    raise BrokenImage("its JPEG 2000 consists of more parts than a picture needs")


def _check_coding(style: _CodingStyle, width: int, height: int, components: int, tiles: int) -> None:
    """Raises `BrokenImage` for more blocks and packets than pixels ask for."""
    if style.levels > 32 or max(style.block) > 8:
        raise BrokenImage("the header of its JPEG 2000 is damaged")
    blocks = packets = 0
    for resolution in range(style.levels + 1):
        shrink = style.levels - resolution
        wide, high = (math.ceil(side / 2**shrink) for side in (width, height))
        exponents = style.precincts[resolution] if resolution < len(style.precincts) else 0xFF
        precinct = exponents & 15, exponents >> 4
        inner = [max(0, exponent - (resolution > 0)) for exponent in precinct]
        sides = [2 ** min(own + 2, limit) for own, limit in zip(style.block, inner, strict=True)]
        # each tile has at least one
        packets += math.ceil(wide / 2 ** precinct[0]) * math.ceil(high / 2 ** precinct[1]) + tiles
        blocks += math.ceil(wide / sides[0]) * math.ceil(high / sides[1]) + tiles
    if blocks * components > _BLOCKS * max(1, components // 4) or packets * components * style.layers > _PACKETS:
        raise BrokenImage("its JPEG 2000 consists of more blocks or layers than its pixels need")
