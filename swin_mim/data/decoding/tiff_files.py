"""TIFF files as images of any channels, by tifffile: 8 to 64 bit, integers and floats, of one page or many."""

import html
import json
import logging
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.decoding.channel_reader import Channels, check_kind, import_extra, numbers
from swin_mim.data.decoding.coded_headers import (
    CodedPicture,
    jpeg2000_codestream,
    jpeg2000_header,
    jpegxl_header,
    lerc_header,
    webp_header,
)
from swin_mim.data.decoding.decode_limits import (
    MAX_PIXELS,
    BrokenImage,
    MeteredFile,
    check_metadata,
    check_pages,
    check_raster,
    check_scans,
)

_LOG = logging.getLogger(__name__)


def _jpeg2000_header(data: bytes) -> CodedPicture:
    return jpeg2000_header(jpeg2000_codestream(data))


_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PACKED = (1, 5, 7, 8, 32773, 32946, 34887, 34925, 34926, 50000)
_CODED = {
    33003: _jpeg2000_header,
    33004: _jpeg2000_header,
    33005: _jpeg2000_header,
    34712: _jpeg2000_header,
    50001: webp_header,
    50002: jpegxl_header,
    52546: jpegxl_header,
}
"""Compressions whose strips and tiles are pictures, with what reads the headers of these. Of them and of the others it
is known how much they unpack to, before it is done."""
_NAMES = "none, LZW, JPEG, deflate, PackBits, zstd, LZMA, LERC, JPEG 2000, JPEG XL and WebP"
_JPEG, _LERC, _WEBP, _PALETTE = 7, 34887, 50001, 3
_COLOURED = (2, 3, 6)  # RGB, palette, YCbCr
_LERC_PARAMETERS = 50674  # a tag: the version, and what blobs are compressed with besides
_REDUCED, _MASK = 1, 4  # bits of the kind of a page
_GDAL_METADATA, _GDAL_NODATA = 42112, 42113  # tags
_TEXT = 2**20  # characters of metadata that are searched
_ITEM = re.compile(r"<Item\b([^<>]{0,400})>([^<>]{0,400})</Item>")
_SAMPLE = re.compile(r'sample="(\d{1,6})"')
_FRAME = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]..[\x08\x0c\x10](..)(..)", re.DOTALL)
"""The frame header of a JPEG: height, width."""
_said: list[str] = []  # of pages that are left out: slides of one folder have many sizes, and workers are forked
_BLOCK = 32  # pixels that a JPEG may reach beyond the strip it is in


def is_tiff(data: bytes) -> bool:
    return data.startswith(_SIGNATURES)


def open_tiff(data: bytes, max_pixels: int = MAX_PIXELS) -> Channels:
    """Its full-size pages: samples and pages are channels, in their order. The picture is not turned.

    Names are the descriptions of GDAL's bands; an internal mask and GDAL_NODATA mark what is not there.

    Raises:
        BrokenImage: pages of several sizes or types, or what is not read. Damaged files raise anything.
        UserError: tifffile or imagecodecs is not installed.
    """
    file, pages = _pages(data)
    full = full_pages(pages)
    masks = [page for page in pages if page.subfiletype & _MASK and page.shape == full[0].shape[:2]]
    for page in (*full, *masks[:1]):
        _check_page(page, full[0], data, max_pixels)
    file.begin_pixels()
    return _channels(full, masks, max_pixels)


def pictures_beside(data: bytes) -> int:
    """How many smaller pictures a TIFF file has beside its channels; raises as `open_tiff` does."""
    pages = _pages(data)[1]
    unmarked = [page for page in pages if not page.subfiletype & (_REDUCED | _MASK)]
    return len(unmarked) - len(full_pages(pages))


def _pages(data: bytes) -> tuple[MeteredFile, list[Any]]:
    tifffile = import_extra("tifffile")
    import_extra("imagecodecs")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is odd about a file: nothing for a reader of ours
    check_metadata(data)
    check_pages(data)
    file = MeteredFile(data)
    # no other file is opened, and no maker's format is guessed at
    special = {f"is_{name}": False for name in ("ome", "lsm", "scanimage", "ndpi")}
    return file, list(tifffile.TiffFile(file, _multifile=False, **special).pages)


def full_pages(pages: Sequence[Any]) -> list[Any]:
    """Pages that are channels, the first of full size and those after it, without smaller pictures of another kind.

    These are thumbnails, labels and overviews of slides, which makers of scanners do not mark as such. A line in the
    log says so of the first file.

    Raises:
        BrokenImage: there is none.
    """
    full = [page for page in pages if not page.subfiletype & (_REDUCED | _MASK)]
    if not full:
        raise BrokenImage("it has no page with an image of full size")
    first = full[0]
    left_out = [page for page in full if _is_thumbnail(page, first)]
    if left_out and not _said:
        _said.append(_left_out_text(left_out[0], first))
        _LOG.warning("%s", _said[0])
    return [page for page in full if page not in left_out]


def _is_thumbnail(page: Any, first: Any) -> bool:
    """Whether it is smaller, and in colour or of other numbers; else it may be a channel of lower resolution."""
    smaller = page.imagewidth < first.imagewidth and page.imagelength < first.imagelength
    other = (page.samplesperpixel, page.dtype) != (first.samplesperpixel, first.dtype)
    return page is not first and smaller and (other or page.photometric in _COLOURED)


def _left_out_text(page: Any, first: Any) -> str:
    return (
        "smaller pictures in TIFF files, which are no channels, are left out (thumbnails, labels, overviews): the "
        f"first is page {page.index + 1}, {page.shape} of {page.dtype}, and page 1 is {first.shape} of {first.dtype}"
    )


def _check_page(page: Any, first: Any, data: bytes, max_pixels: int) -> None:
    """All that can be known to be wrong, or too much, before a pixel is decoded."""
    check_layout(page, first)
    size = (page.imagewidth, page.imagelength)
    check_raster(size, page.samplesperpixel, page.dtype.itemsize, max_pixels)
    _check_strips(page, data, max_pixels)


def check_layout(page: Any, first: Any) -> None:
    """Raises `BrokenImage` for a page of numbers, colours or compression that are not read, or unlike the first one."""
    if page.dtype is None:
        raise BrokenImage(f"it has samples of {page.bitspersample} bit in the format {int(page.sampleformat)}")
    check_kind(page.dtype)
    if page.imagedepth != 1 or page.tiledepth != 1:
        raise BrokenImage(f"it is {page.imagedepth} pixels deep: flat images are read")
    if page.photometric == _PALETTE and (page.dtype != np.uint8 or page.samplesperpixel != 1):
        raise BrokenImage(f"it has a palette for {page.samplesperpixel} x {page.dtype}: those of 8 bit are read")
    if page is not first and not page.subfiletype & _MASK and (page.shape, page.dtype) != (first.shape, first.dtype):
        shapes = f"page 1 is {first.shape} of {first.dtype} and page {page.index + 1} {page.shape} of {page.dtype}"
        raise BrokenImage(
            f"its pages differ, {shapes}: those that are channels have one shape and type; write the others to files "
            "of their own, or mark them as reduced (NewSubfileType 1)"
        )
    check_compression(page)


def check_compression(page: Any) -> None:
    """Raises `BrokenImage` for a page that is packed in a way that is not read."""
    if page.bitspersample == 1 and page.samplesperpixel > 1 and page.planarconfig == 1:
        # some writers begin a byte with each pixel, and their files do not tell
        raise BrokenImage(f"it has {page.samplesperpixel} samples of 1 bit in each pixel: write 8 bit")
    if page.compression not in (*_PACKED, *_CODED):
        raise BrokenImage(f"it is compressed by {_method(page)}: {_NAMES} are read")
    if page.compression == _LERC and page.predictor != 1:
        raise BrokenImage(f"it is compressed by {_method(page)} with a predictor, which is not read")


def _method(page: Any) -> str:
    """ "CCITT_T6 (method 4)": by the name that tifffile has for it, if any."""
    name = getattr(page.compression, "name", None)
    return f"{name} (method {int(page.compression)})" if name else f"method {int(page.compression)}"


def _check_strips(page: Any, data: bytes, max_pixels: int) -> None:
    """Strips or tiles, which may be larger than the picture, and may all be the same bytes."""
    strips, chunk = math.prod(page.chunked), page.chunks
    rows, columns = chunk[:2]
    check_raster((columns, rows), page.samplesperpixel, page.dtype.itemsize, max_pixels)
    padded = math.prod(chunk) * strips * page.dtype.itemsize
    used = math.prod(page.shape) * page.dtype.itemsize
    if padded > 4 * used + 2**24:
        raise BrokenImage(f"its tiles of {columns} x {rows} pixels are too large for its picture")
    if not strips == len(page.dataoffsets) == len(page.databytecounts):
        there = counted(len(page.dataoffsets), "strip or tile", "strips or tiles")
        raise BrokenImage(f"it has {there}, and its picture is {strips}")
    if sum(page.databytecounts) > len(data) or min(page.databytecounts) < 0:
        raise BrokenImage("its strips or tiles have more bytes than the file")
    if page.compression == _JPEG:
        check_scans(data, page.imagewidth * page.imagelength, strips)
        _check_frames(page, data, rows, columns)
    if page.compression in _CODED:
        for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if count:
                _check_coded(page, _CODED[int(page.compression)](data[start : start + count]), rows, columns)


def _check_coded(page: Any, header: CodedPicture, rows: int, columns: int) -> None:
    """Raises `BrokenImage` for a picture in a strip or tile that is larger than that, or of other numbers."""
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    # WebP leaves out an alpha that is opaque everywhere
    alike = header.components == samples or (page.compression == _WEBP and (header.components, samples) == (3, 4))
    if header.height > rows or header.width > columns or not alike or header.dtype != page.dtype.newbyteorder("="):
        found = f"{header.width} x {header.height} x {header.components} of {header.dtype}"
        raise BrokenImage(
            f"it holds a picture of {found}, compressed by {_method(page)}, in a tile of "
            f"{columns} x {rows} x {samples} of {page.dtype.newbyteorder('=')}"
        )


def _check_frames(page: Any, data: bytes, rows: int, columns: int) -> None:
    """A JPEG in a strip says its size itself, and room is made for that."""
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        _check_frame(data, start, start + count, rows, columns)


def _check_frame(data: bytes, start: int, end: int, rows: int, columns: int) -> None:
    for found in _FRAME.finditer(data, start, end):
        height, width = (int.from_bytes(side, "big") for side in found.groups())
        if height > rows + _BLOCK or width > columns + _BLOCK:
            raise BrokenImage(f"it holds a JPEG of {width} x {height} pixels in a strip of {columns} x {rows}")


def check_chunk(page: Any, data: bytes) -> None:
    """Raises `BrokenImage` for the bytes of one strip or tile that unpack to something else than it is."""
    rows, columns = _tile_size(page)
    if page.compression == _JPEG:
        check_scans(data, rows * columns, 1)
        _check_frame(data, 0, len(data), rows, columns)
    if page.compression in _CODED:
        _check_coded(page, _CODED[int(page.compression)](data), rows, columns)


def lerc_chunk(page: Any, data: bytes) -> tuple[np.ndarray, np.ndarray | None] | None:
    """((h, w, samples), bool (h, w): whether a pixel is there, None if all are) of one strip or tile of LERC.

    Floats are NaN where there is none. None: the page is not packed by LERC.
    """
    if page.compression != _LERC:
        return None
    rows, columns = _tile_size(page)
    pixels, there = _lerc_decoded(page, _lerc_unpacked(page, data, rows * columns))
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    if pixels.shape[2] < samples:  # as GDAL writes alpha that is 0 or 255
        alpha = np.ones(pixels.shape[:2], bool) if there is None else there
        return np.dstack([pixels, alpha * np.uint8(255)]), None
    if there is not None and pixels.dtype.kind == "f":
        return np.where(there[:, :, None], pixels, pixels.dtype.type(np.nan)), None
    return pixels, there


def _channels(full: Sequence[Any], masks: Sequence[Any], max_pixels: int) -> Channels:
    first, samples = full[0], full[0].samplesperpixel
    if first.photometric == _PALETTE and len(full) == 1:
        return _coloured(first, max_pixels)
    height, width, count = first.imagelength, first.imagewidth, len(full) * samples
    if is_array_of_rows(full):  # each page is a row of the picture
        height, width, count = len(full), height, width

    def read(indices: Sequence[int]) -> np.ndarray:
        check_raster((width, height), len(indices), first.dtype.itemsize, max_pixels)
        return _read(full, indices, (height, width, count), max_pixels)

    check_raster((width, height), count, 1, max_pixels)
    names = band_names(first, count)
    mask = (lambda: _page(masks[0])[:, :, 0]) if masks else None
    if not masks and first.compression == _LERC and first.dtype.kind != "f" and (height, width) == first.shape[:2]:
        mask = lambda: _lerc_mask(full)  # noqa: E731
    return Channels(names, (height, width), _kind(first.dtype), read, nodata_of(first), mask)


def _coloured(page: Any, max_pixels: int) -> Channels:
    """RGB, 8 bit, of a page with a palette."""
    height, width = page.shape

    def read(indices: Sequence[int]) -> np.ndarray:
        palette = (page.colormap >> 8).astype(np.uint8)  # (3, 256)
        return palette[list(indices)].T[page.asarray(maxworkers=1)]

    check_raster((width, height), 3, 1, max_pixels)
    return Channels(numbers(3), (height, width), np.dtype(np.uint8), read)


def _read(full: Sequence[Any], indices: Sequence[int], shape: tuple[int, int, int], max_pixels: int) -> np.ndarray:
    """(H, W, number of indices), no more pages decoded than that needs."""
    if shape[:2] != (full[0].imagelength, full[0].imagewidth):
        check_raster(shape[1::-1], shape[2], full[0].dtype.itemsize, max_pixels)
        return np.stack([_page(page)[:, :, 0] for page in full])[:, :, list(indices)]
    samples = full[0].samplesperpixel
    if len(full) == 1:
        whole = _page(full[0])
        return whole if list(indices) == list(range(samples)) else whole[:, :, list(indices)]
    chosen = np.empty((*shape[:2], len(indices)), _kind(full[0].dtype))
    decoded, at = np.empty(0), -1
    for place in np.argsort(indices, kind="stable"):
        if indices[place] // samples != at:
            at = indices[place] // samples
            decoded = _page(full[at])
        chosen[:, :, place] = decoded[:, :, indices[place] % samples]
    return chosen


def _page(page: Any) -> np.ndarray:
    """(H, W, samples). One thread: the worker that calls has one core."""
    if page.compression == _LERC:
        return _lerc_page(page)
    pixels = page.asarray(maxworkers=1)
    return np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels.reshape(*pixels.shape[:2], -1)


def _lerc_page(page: Any) -> np.ndarray:
    """(H, W, samples) of a page of LERC, whose blobs tell which pixels are there: floats are NaN where none is."""
    values = np.full((page.imagelength, page.imagewidth, page.samplesperpixel), page.nodata, _kind(page.dtype))
    for rows, columns, chosen, blob in _lerc_tiles(page):
        pixels, there = _lerc_decoded(page, blob)
        part = values[rows, columns, chosen]
        height, width, samples = part.shape
        part[:, :, : pixels.shape[2]] = pixels[:height, :width]
        if pixels.shape[2] < samples:  # as GDAL writes alpha that is 0 or 255
            part[:, :, -1] = 255 if there is None else there[:height, :width] * np.uint8(255)
        elif there is not None and values.dtype.kind == "f":
            part[~there[:height, :width]] = np.nan
    return values


def _lerc_mask(full: Sequence[Any]) -> np.ndarray:
    """bool (H, W): where the blobs of all pages and samples have a pixel."""
    valid = np.ones((full[0].imagelength, full[0].imagewidth), bool)
    for page in full:
        for rows, columns, _, blob in _lerc_tiles(page):
            header = lerc_header(blob)
            picture = header.picture
            is_alpha = page.planarconfig == 1 and picture.components < page.samplesperpixel
            if header.valid < picture.width * picture.height and not is_alpha:
                part, there = valid[rows, columns], _lerc_decoded(page, blob)[1]
                if there is not None:
                    part &= there[: part.shape[0], : part.shape[1]]
    return valid


def _lerc_tiles(page: Any) -> Iterator[tuple[slice, slice, slice, bytes]]:
    """(rows, columns and samples of the page, the blob that they are in) of strips and tiles."""
    file, (rows, columns) = page.parent.filehandle, _tile_size(page)
    across, down = math.ceil(page.imagewidth / columns), math.ceil(page.imagelength / rows)
    for number, (start, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        if not count:
            continue
        sample, top, left = number // (across * down), number // across % down * rows, number % across * columns
        file.seek(start)
        blob = _lerc_unpacked(page, file.read(count), rows * columns)
        chosen = slice(None) if page.planarconfig == 1 else slice(sample, sample + 1)
        yield slice(top, top + rows), slice(left, left + columns), chosen, blob


def _tile_size(page: Any) -> tuple[int, int]:
    """(rows, columns) of a strip or tile."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _lerc_unpacked(page: Any, blob: bytes, pixels: int) -> bytes:
    """A blob, which may be compressed as a whole once more."""
    said = page.tags.valueof(_LERC_PARAMETERS)
    way = said[1] if isinstance(said, tuple) and len(said) > 1 else 0
    most = 2 * pixels * page.samplesperpixel * page.dtype.itemsize + 2**16
    if way == 1:
        return zlib.decompressobj().decompress(blob, most)
    return import_extra("imagecodecs").zstd_decode(blob, out=most) if way == 2 else blob


def _lerc_decoded(page: Any, blob: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """((h, w, samples), bool (h, w): whether a pixel is there, None if all are)"""
    header, samples = lerc_header(blob), page.samplesperpixel if page.planarconfig == 1 else 1
    found = header.picture
    if samples > 1 and found.components == samples - 1 and page.dtype == np.uint8 and page.extrasamples:
        samples -= 1
    rows, columns = _tile_size(page)
    last = page.imagelength % rows or rows  # of rows in the last strip
    kind = page.dtype.newbyteorder("=")
    if found.width != columns or not min(rows, last) <= found.height <= rows:
        raise BrokenImage(f"it holds a LERC of {found.width} x {found.height} pixels in a tile of {columns} x {rows}")
    if found.components != samples or found.dtype != kind:
        raise BrokenImage(f"it holds a LERC of {found.components} x {found.dtype}, and says {samples} x {kind}")
    pixels, there = import_extra("imagecodecs").lerc_decode(blob[: header.length], masks=True)
    shape = found.height, found.width
    return pixels.reshape(*shape, samples), None if there is None else there.reshape(shape).astype(bool)


def is_array_of_rows(full: Sequence[Any]) -> bool:
    """Whether tifffile was given an array (H, W, C) without a word on its axes, and made a page of each row."""
    if len(full) == 1 or full[0].samplesperpixel != 1 or not (said := full[0].shaped_description):
        return False
    shape = json.loads(said).get("shape") if said.startswith("{") else None
    return shape == [len(full), *full[0].shape] and shape[2] < shape[0]


def _kind(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")


def band_names(page: Any, count: int) -> tuple[str, ...]:
    """What GDAL's metadata call the bands, and the numbers of those that it does not name."""
    names, said = list(numbers(count)), page.tags.valueof(_GDAL_METADATA)
    for attributes, text in _ITEM.findall(said[:_TEXT] if isinstance(said, str) else ""):
        sample = _SAMPLE.search(attributes)
        if 'role="description"' in attributes and sample and int(sample[1]) < count and text.strip():
            names[int(sample[1])] = html.unescape(text).strip()
    return tuple(names)


def nodata_of(page: Any) -> float | None:
    """The value of pixels that are not there, as GDAL's tag says."""
    said = page.tags.valueof(_GDAL_NODATA)
    if said is None or not (said := str(said).strip().strip("\0")):
        return None
    try:
        return int(said)  # of 64 bit, which a float does not hold
    except ValueError:
        pass
    try:
        return float(said)
    except ValueError:
        raise BrokenImage(f"its GDAL_NODATA is {said[:40]!r}, which is no number") from None
