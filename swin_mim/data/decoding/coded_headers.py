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
_LERC_KINDS = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
_JPEGXL_HEADER = 4096  # bytes of a JPEG XL that are looked at
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


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


def jpeg2000_codestream(data: bytes, palette: bool = False) -> bytes:
    """The first codestream of a JP2 file; of a codestream, itself.

    Args:
        palette: of colours may be there, which is refused otherwise.
    """
    if data.startswith(b"\xff\x4f\xff\x51"):
        return data
    for kind, start, end in boxes(data, 0, len(data)):
        if kind == b"jp2h" and not palette and any(inner == b"pclr" for inner, _, _ in boxes(data, start, end)):
            raise BrokenImage("its JPEG 2000 has a palette, which is not read as channels")
        if kind == b"jp2c":
            return data[start:end]
    raise BrokenImage("its JPEG 2000 file holds no picture")


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
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
            raise BrokenImage("a box of it is shorter than its header")
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
        marker, length = struct.unpack(">HH", codestream[at : at + 4].ljust(4, b"\0"))
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
    if blocks * components > _BLOCKS or packets * components * style.layers > _PACKETS:
        raise BrokenImage("its JPEG 2000 consists of more blocks or layers than its pixels need")


def webp_header(data: bytes) -> CodedPicture:
    """The size of a WebP that is no animation; its components are four if it says that it has alpha."""
    chunk, said = data[12:16], data[20:30]
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(said) < 10:
        raise BrokenImage("it holds no WebP where it says so")
    if chunk == b"VP8X" and not said[0] & 2:
        alpha, sides = said[0] & 16, [1 + int.from_bytes(said[at : at + 3], "little") for at in (4, 7)]
    elif chunk == b"VP8L" and said[0] == 0x2F:
        packed = int.from_bytes(said[1:5], "little")
        alpha, sides = packed >> 28 & 1, [1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)]
    elif chunk == b"VP8 " and said[3:6] == b"\x9d\x01\x2a":
        alpha, sides = 0, [int.from_bytes(said[at : at + 2], "little") & 0x3FFF for at in (6, 8)]
    else:
        raise BrokenImage("its WebP is an animation, or damaged")
    return CodedPicture(sides[0], sides[1], 4 if alpha else 3, np.dtype("u1"), 8)


class LercBlob(NamedTuple):
    """The header of a LERC blob."""

    picture: CodedPicture
    valid: int
    """How many pixels are there."""
    length: int
    """Bytes of the blob: what follows would be decoded as one more."""


def lerc_header(data: bytes) -> LercBlob:
    """The first band of a blob of the second kind of LERC."""
    version = int.from_bytes(data[6:10], "little")
    if not data.startswith(b"Lerc2 ") or not 1 <= version <= 6 or len(data) < 46:
        raise BrokenImage("it holds no LERC of version 2 where it says so")
    at = 10 if version < 3 else 14
    height, width = struct.unpack_from("<ii", data, at)
    depth = struct.unpack_from("<i", data, at + 8)[0] if version > 3 else 1
    valid, _, length, kind = struct.unpack_from("<iiii", data, at + (12 if version > 3 else 8))
    if min(height, width, depth) < 1 or not 0 <= kind < len(_LERC_KINDS) or not 0 <= valid <= height * width:
        raise BrokenImage("the header of its LERC is damaged")
    if not 46 <= length <= len(data):
        raise BrokenImage(f"its LERC says that it takes {length} bytes, and {len(data)} are there")
    dtype = np.dtype(_LERC_KINDS[kind])
    return LercBlob(CodedPicture(width, height, depth, dtype, 8 * dtype.itemsize), valid, length)


def jpegxl_header(data: bytes) -> CodedPicture:
    """The size and the numbers of a JPEG XL of one frame, as it is shown.

    Raises:
        BrokenImage: of several frames, or with a profile in it, behind which these cannot be counted: each may be as
            large as the picture, and take a few bytes.
    """
    bits = _Bits(_jpegxl_codestream(data))
    width, height = _jpegxl_size(bits)
    if bits.flag():
        components, depth, floats, turned, extra, xyb = 3, 8, False, False, 0, True
    else:
        more = bits.flag()
        turned = more and bits.take(3) > 3
        if more and bits.flag():
            _jpegxl_size(bits)  # at which it is meant to be shown
        if more and (bits.flag() or bits.flag()):
            raise BrokenImage("its JPEG XL is an animation, or has a preview: single pictures are read")
        floats, depth = _jpegxl_depth(bits)
        bits.take(1)
        extra = bits.choice((0, 0), (0, 1), (4, 2), (12, 1))
        for _ in range(extra):
            _skip_extra_channel(bits)
        xyb = bits.flag()
        components = (1 if _is_grey(bits) else 3) + extra
        if more:
            _skip_tone_mapping(bits)
        _skip_extensions(bits)
    if not bits.flag():
        _skip_transforms(bits, xyb)
    bits.align()
    if not _is_only_frame(bits, xyb, extra):
        raise BrokenImage("its JPEG XL has several frames or layers: single pictures are read")
    dtype = np.dtype("f2" if depth <= 16 else "f4") if floats else integers(depth)
    return CodedPicture(*((height, width) if turned else (width, height)), components, dtype, depth)


def _jpegxl_codestream(data: bytes) -> bytes:
    """The start of the codestream of a file, or of a codestream."""
    if data.startswith(b"\xff\x0a"):
        return data[2:_JPEGXL_HEADER]
    parts = b""
    for kind, start, end in boxes(data, 0, len(data)):
        if kind in (b"jxlc", b"jxlp"):
            parts += data[start + (4 if kind == b"jxlp" else 0) : min(end, start + _JPEGXL_HEADER)]
        if kind == b"jxlc" or len(parts) >= _JPEGXL_HEADER:
            break
    if not parts.startswith(b"\xff\x0a"):
        raise BrokenImage("it holds no JPEG XL where it says so")
    return parts[2:_JPEGXL_HEADER]


class _Bits:
    """The bits of a JPEG XL header, the lowest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._bits, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise BrokenImage("the header of its JPEG XL is damaged")
        value = self._bits & ((1 << count) - 1)
        self._bits >>= count
        return value

    def flag(self) -> bool:
        return bool(self.take(1))

    def choice(self, *options: tuple[int, int]) -> int:
        """A number that is coded in one of four ways: (bits, what is added to them)."""
        count, base = options[self.take(2)]
        return base + self.take(count)

    def enum(self) -> int:
        return self.choice((0, 0), (0, 1), (4, 2), (6, 18))

    def long(self) -> int:
        """An integer of up to 64 bits."""
        way = self.take(2)
        if way < 3:
            return (0, 1, 17)[way] + self.take((0, 4, 8)[way])
        value, shift = self.take(12), 12
        while self.flag():
            if shift == 60:
                return value | self.take(4) << shift
            value, shift = value | self.take(8) << shift, shift + 8
        return value

    def align(self) -> None:
        if self.take(self._left % 8):
            raise BrokenImage("the header of its JPEG XL is damaged")


def _jpegxl_size(bits: _Bits) -> tuple[int, int]:
    """(width, height)"""
    small = bits.flag()

    def side() -> int:
        return 8 * (1 + bits.take(5)) if small else bits.choice((9, 1), (13, 1), (18, 1), (30, 1))

    height = side()
    if ratio := bits.take(3):
        over, under = _RATIOS[ratio - 1]
        return height * over // under, height
    return side(), height


def _jpegxl_depth(bits: _Bits) -> tuple[bool, int]:
    """(whether its numbers are floats, their bits)"""
    if bits.flag():
        depth = bits.choice((0, 32), (0, 16), (0, 24), (6, 1))
        bits.take(4)
        return True, depth
    return False, bits.choice((0, 8), (0, 10), (0, 12), (6, 1))


def _skip_extra_channel(bits: _Bits) -> None:
    if bits.flag():
        return
    kind = bits.enum()
    _jpegxl_depth(bits)
    if bits.choice((0, 0), (0, 3), (0, 4), (3, 1)):
        raise BrokenImage("a channel of its JPEG XL is smaller than others")
    bits.take(8 * bits.choice((0, 0), (4, 0), (5, 16), (10, 48)))
    if kind == 0:
        bits.take(1)
    elif kind == 2:
        bits.take(64)
    elif kind == 5:
        bits.choice((0, 1), (2, 0), (4, 3), (8, 19))


def _is_grey(bits: _Bits) -> bool:
    """Whether it has one colour, as the description of its colours says."""
    if bits.flag():
        return False
    profile, space = bits.flag(), bits.enum()
    if profile:
        raise BrokenImage("its JPEG XL has an ICC profile, behind which its frames cannot be counted: save it without")

    def point() -> None:
        for _ in range(2):
            bits.choice((19, 0), (19, 0), (20, 0), (21, 0))

    if space != 2 and bits.enum() == 2:
        point()
    if space not in (1, 2) and bits.enum() == 2:
        for _ in range(3):
            point()
    if space != 2:
        if bits.flag():
            bits.take(24)
        else:
            bits.enum()
    bits.enum()
    return space == 1


def _skip_tone_mapping(bits: _Bits) -> None:
    if not bits.flag():
        bits.take(16 + 16 + 1 + 16)


def _skip_extensions(bits: _Bits) -> None:
    which = bits.long()
    bits.take(sum(min(bits.long(), 8 * _JPEGXL_HEADER) for _ in range(which.bit_count())))


def _skip_transforms(bits: _Bits, xyb: bool) -> None:
    if xyb and not bits.flag():
        bits.take(16 * 16)
    weights = bits.take(3)
    bits.take(16 * sum(count for place, count in enumerate((15, 55, 210)) if weights >> place & 1))


def _is_only_frame(bits: _Bits, xyb: bool, extra: int) -> bool:
    """Whether the first frame is a picture, and the last one."""
    if bits.flag():
        return True
    kind, modular, flags = bits.take(2), bits.flag(), bits.long()
    luma = not xyb and bits.flag()
    based = bool(flags & 32)  # on a frame before
    if kind != 0 or based:
        return False
    if luma:
        bits.take(6)
    for _ in range(1 + extra):
        bits.take(2)
    if modular:
        bits.take(2)
    elif xyb:
        bits.take(6)
    _skip_passes(bits)
    part = bits.flag()
    if part:
        for _ in range(4):
            bits.choice((8, 0), (11, 256), (14, 2304), (30, 18688))
    for _ in range(1 + extra):
        _skip_blending(bits, part, extra)
    return bits.flag()


def _skip_passes(bits: _Bits) -> None:
    passes = bits.choice((0, 1), (0, 2), (0, 3), (3, 4))
    if passes > 1:
        smaller = bits.choice((0, 0), (0, 1), (0, 2), (1, 3))
        bits.take(2 * (passes - 1) + 2 * smaller)
        for _ in range(smaller):
            bits.choice((0, 0), (0, 1), (0, 2), (3, 0))


def _skip_blending(bits: _Bits, part: bool, extra: int) -> None:
    mode = bits.choice((0, 0), (0, 1), (0, 2), (2, 3))
    over = extra > 0 and mode in (2, 3)
    if over:
        bits.choice((0, 0), (0, 1), (0, 2), (3, 3))
    if over or mode == 4:
        bits.take(1)
    if mode or part:
        bits.take(2)
