"""TIFF, BigTIFF and GeoTIFF scenes: of a window only the strips or tiles that it needs are read."""

import logging
import mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.decoding.channel_reader import import_extra, numbers
from swin_mim.data.decoding.decode_limits import MAX_CHANNELS, BrokenImage, check_pages
from swin_mim.data.decoding.tiff_files import (
    band_names,
    check_chunk,
    check_layout,
    full_pages,
    is_array_of_rows,
    lerc_chunk,
    nodata_of,
)
from swin_mim.data.scenes.georeference import georeference
from swin_mim.data.scenes.scene import Chunks, Scene, Window

_MAX_TAG_VALUES = 2**23
"""Numbers in a tag: one for each strip or tile, of 256 x 256 pixels in an image of 700,000 x 700,000."""
_MASK = 4  # a bit of the kind of a page
_PHOTOMETRICS = {0: "miniswhite", 2: "rgb", 5: "separated", 8: "cielab"}
_RGB, _PALETTE, _YCBCR = 2, 3, 6
_UNCOMPRESSED, _JPEG, _LERC = 1, 7, 34887
_SPECIAL = {f"is_{name}": False for name in ("ome", "lsm", "scanimage", "ndpi")}  # nothing is guessed of its maker
_ORIENTATION, _PROFILE, _GDAL_METADATA = 274, 34675, 42112  # tags


class _MappedFile(mmap.mmap):
    """A file that is looked into as bytes are, without being read."""

    def startswith(self, prefix: bytes | tuple[bytes, ...]) -> bool:
        return self[:16].startswith(prefix)

    def ljust(self, width: int, fill: bytes) -> bytes:
        return self[:width].ljust(width, fill)


def open_tiff_scene(path: Path) -> Scene:
    """Open the full-size pages of a file: their samples are channels, one page after the other.

    Raises:
        BrokenImage: pages of several sizes or types, or what is not read. Damaged files raise anything.
        UserError: tifffile or imagecodecs is not installed.
    """
    tifffile = import_extra("tifffile")
    import_extra("imagecodecs")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is odd about a file: nothing for a reader of ours
    with path.open("rb") as looked_at, _MappedFile(looked_at.fileno(), 0, access=mmap.ACCESS_READ) as data:
        check_pages(data, _MAX_TAG_VALUES)  # type: ignore[arg-type]  # which slices it, and no more
    file = path.open("rb")
    try:
        opened = tifffile.TiffFile(file, name=str(path), _multifile=False, **_SPECIAL)
        pages = list(opened.pages)
        full = full_pages(pages)
        masks = [page for page in pages if page.subfiletype & _MASK and page.shape == full[0].shape[:2]]
        for page in (*full, *masks[:1]):
            _check_page(page, full[0])
        if is_array_of_rows(full):
            raise BrokenImage("each of its pages is a row of the image: write it as one page")
        return _scene(file, full, masks[:1])
    except BaseException:
        file.close()
        raise


def _check_page(page: Any, first: Any) -> None:
    if min(page.imagewidth, page.imagelength) < 1 or not 0 < page.samplesperpixel <= MAX_CHANNELS:
        raise BrokenImage(f"it has {page.imagewidth} x {page.imagelength} pixels of {page.samplesperpixel} channels")
    check_layout(page, first)
    if page.photometric == _YCBCR and not (page.compression == _JPEG or _is_image(page)):
        raise BrokenImage("its colours are YCbCr that no JPEG holds: write RGB")


def _is_image(page: Any) -> bool:
    """Whether its strips or tiles are images of their own, as WebP, which decode to RGB."""
    return page.compression in import_extra("tifffile").TIFF.IMAGE_COMPRESSIONS


def _scene(file: BinaryIO, full: list[Any], masks: list[Any]) -> Scene:
    first = full[0]
    readers = [_PageReader(page, file.name) for page in full]
    palette = first.photometric == _PALETTE and len(full) == 1
    count = 3 if palette else len(full) * first.samplesperpixel
    if count > MAX_CHANNELS:
        raise BrokenImage(f"it has {count} channels, more than {MAX_CHANNELS}")
    colours = palette or first.photometric in (_RGB, _YCBCR)
    photometric = "rgb" if colours else _PHOTOMETRICS.get(int(first.photometric), "minisblack")

    def read(window: Window) -> np.ndarray:
        if palette:
            table = (first.colormap >> 8).astype(np.uint8)  # (3, 256)
            return table.T[readers[0].read(window)[:, :, 0]]
        parts = [reader.read(window) for reader in readers]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    mask = _PageReader(masks[0], file.name) if masks else None

    def read_mask(window: Window) -> np.ndarray:
        if mask is not None:
            return mask.read(window)[:, :, 0] != 0
        return np.logical_and.reduce([reader.there(window) for reader in readers])

    def close() -> None:
        file.close()
        for reader in (*readers, *([mask] if mask else [])):
            reader.drop()

    metadata, orientation = first.tags.valueof(_GDAL_METADATA), int(first.tags.valueof(_ORIENTATION) or 1)
    placed, nodata = georeference(first.tags), nodata_of(first)
    dtype = np.dtype(np.uint8) if first.dtype.kind == "b" else np.dtype(first.dtype).newbyteorder("=")
    kept = (
        bool(placed or metadata or masks or readers[0].has_gaps)
        or nodata is not None
        or orientation != 1
        or len(full) > 1
    )
    plain = dtype == np.uint8 and first.dtype.kind != "b" and count == (3 if colours else 1)
    return Scene(
        size=(first.imagelength, first.imagewidth),
        dtype=dtype,
        channels=numbers(count) if palette else band_names(first, count),
        read=read,
        chunk=readers[0].chunk,
        photometric=photometric if len(full) == 1 else "minisblack",
        picture=plain and photometric in ("rgb", "minisblack") and not kept,
        bilevel=first.dtype.kind == "b" and count == 1,
        extrasamples=() if palette or len(full) > 1 else tuple(map(int, first.extrasamples)),
        nodata=nodata,
        mask=read_mask if mask is not None or readers[0].has_gaps else None,
        metadata=metadata if isinstance(metadata, str) else None,
        orientation=orientation,
        profile=first.tags.valueof(_PROFILE),
        georeference=placed,
        close=close,
    )


class _PageReader:
    """The windows of a page."""

    def __init__(self, page: Any, path: str) -> None:
        self._page, self._path = page, path
        size = page.imagelength, page.imagewidth
        tile = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, size[1])
        self.chunk = min(tile[0], size[0]) if not page.is_tiled else tile[0], tile[1]
        if min(self.chunk) < 1:
            raise BrokenImage(f"its strips or tiles have {self.chunk[1]} x {self.chunk[0]} pixels")
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        self._samples = page.samplesperpixel // planes
        self._dtype = np.dtype(np.uint8) if page.dtype.kind == "b" else np.dtype(page.dtype).newbyteorder("=")
        self.has_gaps = False
        """Whether its strips or tiles say themselves which pixels are there."""
        self._lies_there = page.compression == _UNCOMPRESSED and page.is_memmappable
        self._chunks: Chunks | None = None
        if self._lies_there:
            self.chunk = 1, size[1]
            return
        expected = planes * -(-size[0] // self.chunk[0]) * -(-size[1] // self.chunk[1])
        if not expected == len(page.dataoffsets) == len(page.databytecounts):
            there = counted(len(page.dataoffsets), "strip or tile", "strips or tiles")
            raise BrokenImage(f"it has {there}, and its picture is {expected}")
        self.has_gaps = page.compression == _LERC and self._dtype.kind != "f"
        self._file_size = page.parent.filehandle.size
        self._tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        how: dict[str, Any] = {"planes": planes, "fill": page.nodata}
        kept = self._samples + self.has_gaps
        self._chunks = Chunks(size, self.chunk, kept, self._dtype, self._decode, **how)

    def read(self, window: Window) -> np.ndarray:
        """(h, w, samples)."""
        if self._chunks is not None:
            values = self._chunks.read(window)
            return self._by_plane(values)[..., : self._samples].reshape(*window.size, -1) if self.has_gaps else values
        page = self._page
        dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
        # a map for each window: what was read does not stay in memory
        whole = np.memmap(self._path, dtype, "r", page.dataoffsets[0], shape=page.shaped)
        part = whole[:, 0, window.top : window.bottom, window.left : window.right]
        return np.moveaxis(part, 0, 2).reshape(*window.size, -1).astype(self._dtype)

    def there(self, window: Window) -> np.ndarray:
        """bool (h, w): where all its samples have a pixel."""
        assert self._chunks is not None
        return (self._by_plane(self._chunks.read(window))[..., -1] != 0).all(axis=2)

    def _by_plane(self, values: np.ndarray) -> np.ndarray:
        """(h, w, planes, samples and whether they are there)."""
        return values.reshape(*values.shape[:2], -1, self._samples + 1)

    def _with_gaps(self, values: np.ndarray, there: np.ndarray | None) -> np.ndarray:
        """(h, w, samples), or one more that tells which pixels are there."""
        if not self.has_gaps:
            return values
        last = np.ones(values.shape[:2], values.dtype) if there is None else there.astype(values.dtype)
        return np.concatenate([values, last[:, :, None]], axis=2)

    def drop(self) -> None:
        """Drop what is kept in memory."""
        if self._chunks is not None:
            self._chunks.drop()

    def _decode(self, index: int) -> np.ndarray | None:
        page = self._page
        start, count = page.dataoffsets[index], page.databytecounts[index]
        if not start or not count:
            return None  # a sparse file
        if start + count > self._file_size:
            raise BrokenImage("it ends before its pixels do")
        file = page.parent.filehandle
        file.seek(start)
        data = file.read(count)  # before what decodes it is looked up, which moves the file
        check_chunk(page, data)
        if (lerc := lerc_chunk(page, data)) is not None:
            return self._with_gaps(*lerc)
        tables = self._tables if page.compression == _JPEG else {}
        decoded = page.decode(data, index, **tables)[0]
        return None if decoded is None else decoded[0].astype(self._dtype, copy=False)
