"""TIFF files as images of any channels, by tifffile: 8 to 64 bit, integers and floats, of one page or many."""

import html
import json
import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from swin_mim.data.decoding.channel_reader import Channels, check_kind, import_extra, numbers
from swin_mim.data.decoding.decode_limits import (
    BrokenImage,
    MeteredFile,
    check_metadata,
    check_pages,
    check_raster,
    check_scans,
)

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_COMPRESSIONS = (1, 5, 7, 8, 32773, 32946, 34926, 50000)
"""Compressions of which it is known how much they unpack to, before it is done."""
_NAMES = "none, LZW, JPEG, deflate, PackBits or zstd"
_JPEG, _PALETTE = 7, 3
_REDUCED, _MASK = 1, 4  # bits of the kind of a page
_GDAL_METADATA, _GDAL_NODATA = 42112, 42113  # tags
_TEXT = 2**20  # characters of metadata that are searched
_ITEM = re.compile(r"<Item\b([^<>]{0,400})>([^<>]{0,400})</Item>")
_SAMPLE = re.compile(r'sample="(\d{1,6})"')
_FRAME = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]..[\x08\x0c\x10](..)(..)", re.DOTALL)
"""The frame header of a JPEG: height, width."""
_BLOCK = 32  # pixels that a JPEG may reach beyond the strip it is in


def is_tiff(data: bytes) -> bool:
    return data.startswith(_SIGNATURES)


def open_tiff(data: bytes) -> Channels:
    """Its full-size pages: samples and pages are channels, in their order. The picture is not turned.

    Names are the descriptions of GDAL's bands; an internal mask and GDAL_NODATA mark what is not there.

    Raises:
        BrokenImage: pages of several sizes or types, or what is not read. Damaged files raise anything.
        UserError: tifffile or imagecodecs is not installed.
    """
    tifffile = import_extra("tifffile")
    import_extra("imagecodecs")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is odd about a file: nothing for a reader of ours
    check_metadata(data)
    check_pages(data)
    file = MeteredFile(data)
    # no other file is opened, and no maker's format is guessed at
    special = {f"is_{name}": False for name in ("ome", "lsm", "scanimage", "ndpi")}
    opened = tifffile.TiffFile(file, _multifile=False, **special)
    pages = list(opened.pages)
    full = [page for page in pages if not page.subfiletype & (_REDUCED | _MASK)]
    if not full:
        raise BrokenImage("it has no page with an image of full size")
    masks = [page for page in pages if page.subfiletype & _MASK and page.shape == full[0].shape[:2]]
    for page in (*full, *masks[:1]):
        _check_page(page, full[0], data)
    file.begin_pixels()
    return _channels(full, masks)


def _check_page(page: Any, first: Any, data: bytes) -> None:
    """All that can be known to be wrong, or too much, before a pixel is decoded."""
    if page.dtype is None:
        raise BrokenImage(f"it has samples of {page.bitspersample} bit in the format {int(page.sampleformat)}")
    check_kind(page.dtype)
    if page.imagedepth != 1 or page.tiledepth != 1:
        raise BrokenImage(f"it is {page.imagedepth} pixels deep: flat images are read")
    if page.photometric == _PALETTE and (page.dtype != np.uint8 or page.samplesperpixel != 1):
        raise BrokenImage(f"it has a palette for {page.samplesperpixel} x {page.dtype}: those of 8 bit are read")
    if page is not first and not page.subfiletype & _MASK and (page.shape, page.dtype) != (first.shape, first.dtype):
        shapes = f"{first.shape} of {first.dtype} and {page.shape} of {page.dtype}"
        raise BrokenImage(f"its pages differ, {shapes}: those that are channels have one shape and type")
    if page.bitspersample == 1 and page.samplesperpixel > 1 and page.planarconfig == 1:
        # some writers begin a byte with each pixel, and their files do not tell
        raise BrokenImage(f"it has {page.samplesperpixel} samples of 1 bit in each pixel: write 8 bit")
    if page.compression not in _COMPRESSIONS:
        raise BrokenImage(f"it is compressed by method {int(page.compression)}: {_NAMES} are read")
    size = (page.imagewidth, page.imagelength)
    check_raster(size, page.samplesperpixel, page.dtype.itemsize)
    _check_strips(page, data)


def _check_strips(page: Any, data: bytes) -> None:
    """Strips or tiles, which may be larger than the picture, and may all be the same bytes."""
    strips, chunk = math.prod(page.chunked), page.chunks
    rows, columns = chunk[:2]
    check_raster((columns, rows), page.samplesperpixel, page.dtype.itemsize)
    padded = math.prod(chunk) * strips * page.dtype.itemsize
    used = math.prod(page.shape) * page.dtype.itemsize
    if padded > 4 * used + 2**24:
        raise BrokenImage(f"its tiles of {columns} x {rows} pixels are too large for its picture")
    if not strips == len(page.dataoffsets) == len(page.databytecounts):
        raise BrokenImage(f"it has {len(page.dataoffsets)} strips or tiles, and its picture is {strips}")
    if sum(page.databytecounts) > len(data) or min(page.databytecounts) < 0:
        raise BrokenImage("its strips or tiles have more bytes than the file")
    if page.compression == _JPEG:
        check_scans(data, page.imagewidth * page.imagelength, strips)
        _check_frames(page, data, rows, columns)


def _check_frames(page: Any, data: bytes, rows: int, columns: int) -> None:
    """A JPEG in a strip says its size itself, and room is made for that."""
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        for found in _FRAME.finditer(data, start, start + count):
            height, width = (int.from_bytes(side, "big") for side in found.groups())
            if height > rows + _BLOCK or width > columns + _BLOCK:
                raise BrokenImage(f"it holds a JPEG of {width} x {height} pixels in a strip of {columns} x {rows}")


def _channels(full: Sequence[Any], masks: Sequence[Any]) -> Channels:
    first, samples = full[0], full[0].samplesperpixel
    if first.photometric == _PALETTE and len(full) == 1:
        return _coloured(first)
    height, width, count = first.imagelength, first.imagewidth, len(full) * samples
    if is_array_of_rows(full):  # each page is a row of the picture
        height, width, count = len(full), height, width

    def read(indices: Sequence[int]) -> np.ndarray:
        check_raster((width, height), len(indices), first.dtype.itemsize)
        return _read(full, indices, (height, width, count))

    check_raster((width, height), count, 1)
    names = band_names(first, count)
    mask = (lambda: _page(masks[0])[:, :, 0]) if masks else None
    return Channels(names, (height, width), _kind(first.dtype), read, nodata_of(first), mask)


def _coloured(page: Any) -> Channels:
    """RGB, 8 bit, of a page with a palette."""
    height, width = page.shape

    def read(indices: Sequence[int]) -> np.ndarray:
        palette = (page.colormap >> 8).astype(np.uint8)  # (3, 256)
        return palette[list(indices)].T[page.asarray(maxworkers=1)]

    check_raster((width, height), 3, 1)
    return Channels(numbers(3), (height, width), np.dtype(np.uint8), read)


def _read(full: Sequence[Any], indices: Sequence[int], shape: tuple[int, int, int]) -> np.ndarray:
    """(H, W, number of indices), no more pages decoded than that needs."""
    if shape[:2] != (full[0].imagelength, full[0].imagewidth):
        check_raster(shape[1::-1], shape[2], full[0].dtype.itemsize)
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
    pixels = page.asarray(maxworkers=1)
    return np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels.reshape(*pixels.shape[:2], -1)


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
