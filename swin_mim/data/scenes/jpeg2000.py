"""JPEG 2000 scenes: of a window only the tiles of the codestream that it needs are decoded.

Decoders take whole files. A tile is made one: its parts, behind a header that says that the image is this tile, where
it lies on the reference grid. The pixels are those that the whole image has there.
"""

import io
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swin_mim.data.decoding.channel_reader import import_extra, numbers
from swin_mim.data.decoding.coded_headers import integers, jpeg2000_header
from swin_mim.data.decoding.decode_limits import MAX_CHANNELS, BrokenImage
from swin_mim.data.scenes.georeference import Georeference, georeference, georeference_of_gml
from swin_mim.data.scenes.scene import Chunks, Scene

_START = b"\xff\x4f\xff\x51"
_END = b"\xff\xd9"
_SIZE = struct.Struct(">HHHLLLLLLLLH")  # marker, length, capabilities; the image and its tiles; number of components
_PART = struct.Struct(">HHHLBB")  # marker, length, tile; bytes of the part; its number, and how many there are
_SIZ, _SOT, _EOC, _TLM, _PLM, _PPM = 0xFF51, 0xFF90, 0xFFD9, 0xFF55, 0xFF57, 0xFF60
_GEOTIFF = bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03")  # the UUID of a box with a GeoTIFF of one pixel
_MAX_PARTS = 2**20
_MAX_HEADER = 2**24
_MAX_BOXES = 4096
_SRGB, _GREY = 16, 17  # of the colours, as a box says them


class _Boxes(NamedTuple):
    """What the boxes around a codestream say."""

    start: int = 0
    """Where the codestream begins."""
    end: int = 0
    colours: int | None = None
    profile: bytes | None = None
    special: bool = False
    """Whether they say that channels are something else than colours, or numbers in a palette."""
    georeference: Georeference = Georeference()


class _Layout(NamedTuple):
    """What the main header of a codestream says of its tiles."""

    right: int
    bottom: int
    left: int
    top: int
    tile_width: int
    tile_height: int
    tiles_left: int
    tiles_top: int

    @property
    def columns(self) -> int:
        return -(-(self.right - self.tiles_left) // self.tile_width)

    @property
    def rows(self) -> int:
        return -(-(self.bottom - self.tiles_top) // self.tile_height)


def open_jpeg2000_scene(path: Path) -> Scene:
    """Open a JP2 file or a codestream.

    Raises:
        BrokenImage: a palette, components of several sizes, or a damaged header. Damaged files raise anything.
        UserError: imagecodecs is not installed.
    """
    import_extra("imagecodecs")
    file = path.open("rb")
    try:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    finally:
        file.close()
    boxes = _boxes(data)
    if boxes.special:
        raise BrokenImage("its JPEG 2000 has a palette, or a channel that is no colour: convert it to TIFF")
    codestream = _Codestream(data, boxes.start, boxes.end)
    layout, dtype, count = codestream.layout, codestream.dtype, codestream.components
    chunk = min(layout.tile_height, layout.bottom - layout.top), min(layout.tile_width, layout.right - layout.left)
    size = layout.bottom - layout.top, layout.right - layout.left
    colours = count == 3 and boxes.colours in (None, _SRGB)
    plain = dtype == np.uint8 and (colours or count == 1) and not boxes.georeference
    # the first tile of the grid may be smaller than the others, where the image begins inside it
    if (layout.left - layout.tiles_left, layout.top - layout.tiles_top) != (0, 0) and codestream.tiles > 1:
        raise BrokenImage("its JPEG 2000 begins within a tile: convert it to TIFF")
    chunks = Chunks(size, chunk, count, dtype, codestream.decode)

    def close() -> None:
        data.close()
        chunks.drop()

    return Scene(
        size=size,
        dtype=dtype,
        channels=numbers(count),
        read=chunks.read,
        chunk=chunk,
        photometric="rgb" if colours else "minisblack",
        picture=plain,
        profile=boxes.profile,
        georeference=boxes.georeference,
        close=close,
    )


class _Codestream:
    """The tiles of a codestream in a mapped file."""

    def __init__(self, data: mmap.mmap, start: int, end: int) -> None:
        self._data, self._end = data, end
        head, first_part = self._main_header(start)
        size = _SIZE.unpack_from(head[0])
        self.layout, self.components = _Layout(*size[3:11]), size[11]
        layout, said = self.layout, head[0][_SIZE.size :]
        if not layout.tile_width or not layout.tile_height or not 0 < self.components <= MAX_CHANNELS:
            raise BrokenImage("the header of its JPEG 2000 is damaged")
        if len(said) != 3 * self.components or len(set(struct.iter_unpack("3s", said))) != 1 or said[1:3] != b"\1\1":
            raise BrokenImage("the components of its JPEG 2000 differ in their size or their bits: convert it to TIFF")
        self.dtype = integers((said[0] & 127) + 1, said[0] >= 128)
        self.tiles = layout.columns * layout.rows
        if not 0 < self.tiles <= 2**16:
            raise BrokenImage(f"its JPEG 2000 says that it has {self.tiles} tiles")
        self._size, self._head = size[:3], b"".join(head[1:])
        self._components = head[0][_SIZE.size - 2 :]
        self._parts = self._tile_parts(first_part)

    def _main_header(self, at: int) -> tuple[list[bytes], int]:
        """(its segments, the one of the size first; position of the first tile's)."""
        if self._data[at : at + 4] != _START:
            raise BrokenImage("it holds no JPEG 2000 where it says so")
        segments, begin = [], at
        at += 2
        while (marker := int.from_bytes(self._data[at : at + 2], "big")) != _SOT:
            length = int.from_bytes(self._data[at + 2 : at + 4], "big")
            if marker == _PPM:
                raise BrokenImage("its JPEG 2000 keeps the headers of all tiles together: convert it to TIFF")
            if length < 2 or at + 2 + length > self._end or at - begin > _MAX_HEADER:
                raise BrokenImage("the header of its JPEG 2000 is damaged")
            if marker not in (_TLM, _PLM):  # where parts lie, which changes
                segments.append(self._data[at : at + 2 + length])
            at += 2 + length
        if len(segments[0]) < _SIZE.size:
            raise BrokenImage("the header of its JPEG 2000 is damaged")
        return segments, at

    def _tile_parts(self, at: int) -> dict[int, list[tuple[int, int]]]:
        """(start, end) of the parts of each tile."""
        parts: dict[int, list[tuple[int, int]]] = {}
        for _ in range(_MAX_PARTS):
            head = self._data[at : at + _PART.size]
            if len(head) < _PART.size or int.from_bytes(head[:2], "big") == _EOC:
                return parts
            marker, _, tile, length, _, _ = _PART.unpack(head)
            end = at + length if length else self._end - len(_END)
            if marker != _SOT or tile >= self.tiles or end <= at + _PART.size or end > self._end:
                raise BrokenImage("the tiles of its JPEG 2000 are not where they should be")
            parts.setdefault(tile, []).append((at, end))
            at = end
        raise BrokenImage("its JPEG 2000 has more parts than a picture needs")

    def decode(self, tile: int) -> np.ndarray:
        """(h, w, components) of a tile."""
        if tile not in self._parts:
            raise BrokenImage("it ends before its pixels do")
        layout, (row, column) = self.layout, divmod(tile, self.layout.columns)
        tiles_left, tiles_top = (
            layout.tiles_left + column * layout.tile_width,
            layout.tiles_top + row * layout.tile_height,
        )
        left, top = max(tiles_left, layout.left), max(tiles_top, layout.top)
        right, bottom = (
            min(tiles_left + layout.tile_width, layout.right),
            min(tiles_top + layout.tile_height, layout.bottom),
        )
        sides = right, bottom, left, top, layout.tile_width, layout.tile_height, tiles_left, tiles_top
        size = struct.pack(">HHHLLLLLLLL", *self._size, *sides) + self._components
        parts = [
            self._data[start : start + 4] + b"\0\0" + self._data[start + 6 : end] for start, end in self._parts[tile]
        ]
        alone = b"".join((_START[:2], size, self._head, *parts, _END))
        jpeg2000_header(alone)
        pixels = import_extra("imagecodecs").jpeg2k_decode(alone, numthreads=1)
        return pixels.reshape(*pixels.shape[:2], -1)


def _boxes(data: mmap.mmap) -> _Boxes:
    if data[:4] == _START:
        return _Boxes(0, len(data))
    found = _Boxes()
    waiting = [(0, len(data))]
    for _ in range(_MAX_BOXES):
        if not waiting:
            break
        at, end = waiting.pop()
        if at + 8 > end:
            continue
        length, kind = struct.unpack(">L4s", data[at : at + 8])
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        stop = end if length == 0 else at + length
        if stop > end or stop < at + head:
            raise BrokenImage("a box of its JPEG 2000 is longer than the file, or shorter than its header")
        waiting.append((stop, end))
        if kind in (b"jp2h", b"asoc"):
            waiting.append((at + head, stop))
        found = _with_box(found, data, kind, at + head, stop)
    if not found.end:
        raise BrokenImage("its JPEG 2000 file holds no picture")
    return found


def _with_box(found: _Boxes, data: mmap.mmap, kind: bytes, start: int, stop: int) -> _Boxes:
    """What is known of the boxes, with one more."""
    if kind == b"jp2c" and not found.end:
        return found._replace(start=start, end=stop)
    if stop - start > _MAX_HEADER:
        return found
    if kind in (b"pclr", b"cdef"):
        body = data[start:stop]
        return found._replace(special=found.special or kind == b"pclr" or _other_channels(body))
    if kind == b"colr" and stop - start >= 7:
        if data[start] == 1:
            return found._replace(colours=int.from_bytes(data[start + 3 : start + 7], "big"))
        return found._replace(profile=data[start + 3 : stop])
    if kind == b"uuid" and data[start : start + 16] == _GEOTIFF:
        tifffile = import_extra("tifffile")
        with tifffile.TiffFile(io.BytesIO(data[start + 16 : stop]), _multifile=False) as inside:
            placed: Any = georeference(inside.pages[0].tags)
        return found._replace(georeference=placed or found.georeference)
    if kind == b"xml " and not found.georeference:
        return found._replace(georeference=georeference_of_gml(data[start:stop]))
    return found


def _other_channels(definitions: bytes) -> bool:
    """Whether a channel is something else than a colour, in the order of the colours: transparency, or none is said."""
    entries = [struct.unpack_from(">HHH", definitions, at) for at in range(2, len(definitions) - 5, 6)]
    return any(kind != 0 or position not in (0, number + 1) for number, kind, position in entries)
