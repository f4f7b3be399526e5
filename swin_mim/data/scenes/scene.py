"""A scene: an image of any size, of which a window is read at a time."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.scenes.georeference import Georeference

MAX_CHUNK = 2**30
"""Max bytes of the decoded pixels of a strip or tile of a file, which cannot be read in part."""
KEPT = 2**28
"""Bytes of decoded strips or tiles that are kept, at least one, for the windows beside the one that needed them."""


class Window(NamedTuple):
    """A rectangle of pixels; bottom and right are the first ones outside."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.bottom - self.top, self.right - self.left


@dataclass(frozen=True)
class Scene:
    """What the header of a scene's file says, and how its pixels are read."""

    size: tuple[int, int]
    """(H, W)."""
    dtype: np.dtype
    """Of the values: native byte order."""
    channels: tuple[str, ...]
    """Names that the file gives them, or their numbers from 1."""
    read: Callable[[Window], np.ndarray]
    """-> (h, w, number of channels). Raises anything for a damaged file."""
    chunk: tuple[int, int]
    """(H, W) of what is decoded together."""
    photometric: str = "minisblack"
    """What the values mean, in tifffile's words: "minisblack", "rgb", "separated" (CMYK), ..."""
    picture: bool = False
    """Whether its pixels are all there is of it, so that a tile may be a PNG or a JPEG."""
    bilevel: bool = False
    """Whether the file has 1 bit a pixel: values are 0 and 1, which a picture shows as black and white."""
    alpha: bool = False
    """Whether the last channel is 0 where nothing is seen."""
    extrasamples: tuple[int, ...] = ()
    """What the channels beyond those of the colours are, as TIFF counts it."""
    nodata: float | None = None
    """The value of pixels that are not there, as the file says."""
    mask: Callable[[Window], np.ndarray] | None = None
    """-> bool (h, w): where a pixel is there; of a mask that is none of the channels."""
    metadata: str | None = None
    """GDAL's metadata."""
    orientation: int = 1
    """How it is to be turned, as TIFF counts it."""
    profile: bytes | None = None
    """ICC profile of its colours."""
    georeference: Georeference = field(default_factory=Georeference)
    close: Callable[[], None] = lambda: None
    """Close its files."""

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel."""
        return len(self.channels) * self.dtype.itemsize


class Chunks:
    """The strips or tiles of a file, decoded as windows need them; the last ones are kept."""

    def __init__(
        self,
        size: tuple[int, int],
        chunk: tuple[int, int],
        samples: int,
        dtype: np.dtype,
        decode: Callable[[int], np.ndarray | None],
        *,
        planes: int = 1,
        fill: float = 0,
    ) -> None:
        """
        Args:
            size, chunk: (H, W) of the image, and of what is decoded together; the last ones may reach beyond it.
            samples: in a chunk.
            decode: index of a chunk, row by row and plane by plane -> (h, w, samples), or None where all is `fill`.
            planes: how often the chunks cover the image, each time with other samples.
        """
        if (needed := chunk[0] * chunk[1] * samples * dtype.itemsize) > MAX_CHUNK:
            raise BrokenImage(
                f"its strips or tiles of {chunk[1]} x {chunk[0]} pixels take {needed} bytes each, more than "
                f"{MAX_CHUNK}, and are read whole: write it in smaller ones (gdal_translate -co TILED=YES)"
            )
        self._size, self._chunk, self._samples, self._dtype = size, chunk, samples, dtype
        self._decode, self._planes, self._fill = decode, planes, fill
        self._grid = -(-size[0] // chunk[0]), -(-size[1] // chunk[1])
        self._kept: OrderedDict[int, np.ndarray | None] = OrderedDict()
        self._bytes = 0

    def read(self, window: Window) -> np.ndarray:
        """(h, w, samples of all planes)."""
        values = np.full((*window.size, self._planes * self._samples), self._fill, self._dtype)
        for plane, row, column in self._touched(window):
            index = (plane * self._grid[0] + row) * self._grid[1] + column
            if (chunk := self._decoded(index)) is None:
                continue
            top, left = row * self._chunk[0], column * self._chunk[1]
            first, last = max(top, window.top), min(top + chunk.shape[0], window.bottom)
            start, end = max(left, window.left), min(left + chunk.shape[1], window.right)
            values[
                first - window.top : last - window.top,
                start - window.left : end - window.left,
                plane * self._samples : (plane + 1) * self._samples,
            ] = chunk[first - top : last - top, start - left : end - left]
        return values

    def drop(self) -> None:
        """Drop what is kept."""
        self._kept.clear()
        self._bytes = 0

    def _touched(self, window: Window) -> Iterator[tuple[int, int, int]]:
        rows = range(window.top // self._chunk[0], (window.bottom - 1) // self._chunk[0] + 1)
        columns = range(window.left // self._chunk[1], (window.right - 1) // self._chunk[1] + 1)
        return ((plane, row, column) for plane in range(self._planes) for row in rows for column in columns)

    def _decoded(self, index: int) -> np.ndarray | None:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        expected = self._extent(index)
        # before the next one takes room
        while self._kept and self._bytes + np.prod((*self._chunk, self._samples)) * self._dtype.itemsize > KEPT:
            dropped = self._kept.popitem(last=False)[1]
            self._bytes -= 0 if dropped is None else dropped.nbytes
        chunk = self._decode(index)
        wrong = chunk is not None and (chunk.shape[2] != self._samples or np.less(chunk.shape[:2], expected).any())
        if chunk is not None and wrong:
            raise BrokenImage(f"a strip or tile of it has the shape {chunk.shape}, and {expected} are to be there")
        self._kept[index] = chunk
        self._bytes += 0 if chunk is None else chunk.nbytes
        return chunk

    def _extent(self, index: int) -> tuple[int, int]:
        """(h, w) of the part of a chunk that lies in the image."""
        row, column = divmod(index % (self._grid[0] * self._grid[1]), self._grid[1])
        height, width = self._chunk
        return min(height, self._size[0] - row * height), min(width, self._size[1] - column * width)
