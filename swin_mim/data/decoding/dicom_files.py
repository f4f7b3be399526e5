"""DICOM files as images: the first frame, as channels in the units of the file or as RGB."""

import logging
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from swin_mim.data.decoding.channel_reader import Channels, import_extra, whole_array
from swin_mim.data.decoding.coded_headers import CodedPicture, jpeg2000_codestream, jpeg2000_header, jpeg_header
from swin_mim.data.decoding.decode_limits import (
    MAX_HEADER,
    MAX_PIXELS,
    BrokenImage,
    MeteredFile,
    check_raster,
    check_scans,
)
from swin_mim.data.decoding.options import DecodeOptions

_SYNTAX, _PIXELS = (2, 0x10), {0x7FE00008: "f4", 0x7FE00009: "f8", 0x7FE00010: None}
_DEFLATED, _EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
_RLE, _JPEG_LS = "1.2.840.10008.1.2.5", ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70))
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91))
_READS = 2**17  # of elements, two or three each: a file of a thousand frames says thirty things about each
_UNKNOWN_LENGTH = 0xFFFFFFFF
_VALUE = 2**18  # bytes of a value that is looked at: a palette has 2**17
_GROUPS = 2**22  # bytes of what is said of each frame
_STRIP = 2**20  # pixels that are converted at a time
_GREY = ("MONOCHROME1", "MONOCHROME2")


class _Frame(NamedTuple):
    """The first frame as it is stored."""

    values: np.ndarray
    """(H, W, C), integers, or floats of a parametric map; colours as RGB."""
    bits: int
    """Bits of a number that are used."""
    said: "_Said"
    inverted: bool
    """Whether larger numbers are darker."""


class _Said:
    """What the header of a file says."""

    def __init__(self, dataset: Any) -> None:
        self._dataset, self._groups = dataset, _frame_groups(dataset)

    def get(self, keyword: str, default: Any = None) -> Any:
        """The first value of an element, of the file or of its first frame."""
        for place in (self._dataset, *self._groups):
            if keyword in place and (found := _first(_bounded(place, keyword, _VALUE))) not in (None, ""):
                return found
        return default

    def whole(self, keyword: str) -> Any:
        """All of an element, None if there is none."""
        return _bounded(self._dataset, keyword, _VALUE) if keyword in self._dataset else None

    def integer(self, keyword: str, default: int | None = None) -> int:
        value = self.get(keyword, default)
        if value is None:
            raise BrokenImage(f"it has no {keyword}: it is no image")
        return int(value)


def open_dicom(data: bytes, max_pixels: int = MAX_PIXELS) -> Channels:
    """The first frame in the units of the file: grey is one channel, colours are three.

    Grey is rescaled by the file's slope and intercept, to float32 unless they are 1 and 0, and inverted within the
    stored range where its larger numbers are darker, so that more is brighter. PixelPaddingValue marks what is not
    there.

    Raises:
        BrokenImage: no image, of a kind that is not read, or too large. Damaged files raise anything.
        UserError: pydicom or imagecodecs is not installed.
    """
    frame = _first_frame(data, max_pixels)
    if frame.values.shape[2] > 1:
        return whole_array(frame.values)
    padding = _merge_padding(frame)
    values, nodata = _in_units(_brighter(frame.values, frame), frame.said), None
    if padding is not None:
        nodata = _in_units(_brighter(padding, frame), frame.said).item()
    return whole_array(values, nodata=nodata)


def dicom_rgb(data: bytes, options: DecodeOptions) -> Image.Image:
    """The first frame as a loaded image of mode "RGB".

    8 bits are taken as they are. Deeper grey goes through the file's window; where it has none, its own range becomes
    0..255. Deeper colours are divided.

    Raises: as `open_dicom`.
    """
    frame = _first_frame(data, options.max_pixels)
    values = frame.values
    if values.shape[2] == 3:
        return Image.fromarray(values if values.dtype == np.uint8 else _divided(values, frame.bits))
    padding = _merge_padding(frame)
    if values.dtype == np.uint8:
        grey = values[:, :, 0] * np.uint8(255 if frame.bits == 1 else 1)
    else:
        grey = _stretched(frame, padding)
    return Image.fromarray(255 - grey if frame.inverted else grey).convert("RGB")


def _first_frame(data: bytes, max_pixels: int) -> _Frame:
    pydicom = import_extra("pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what is odd about a file: nothing for a reader of ours
    data = _inflated(data, max_pixels)
    file = MeteredFile(data, len(data) + MAX_HEADER, _READS)
    found: list[tuple[int, str | None, int, int]] = []

    def at_pixels(tag: int, unit: str | None, length: int) -> bool:
        if int(tag) in _PIXELS:
            found.append((int(tag), unit, length, file.tell()))
        return bool(found)

    dataset = pydicom.filereader.read_partial(file, stop_when=at_pixels, force=True)
    if not found:
        raise BrokenImage("it is a DICOM file without an image")
    tag, unit, length, start = found[0]
    said, syntax = _Said(dataset), str(dataset.file_meta.get("TransferSyntaxUID", ""))
    shape = said.integer("Rows"), said.integer("Columns"), said.integer("SamplesPerPixel", 1)
    kind = said.get("PhotometricInterpretation", "MONOCHROME2")
    _check_kind(shape[2], kind, said.integer("BitsAllocated"), max_pixels, shape)
    if length != _UNKNOWN_LENGTH:
        order = "<" if dataset.original_encoding[1] else ">"
        stored = memoryview(data)[start : start + length]
        if order == ">" and unit == "OW" and said.integer("BitsAllocated") == 8:  # bytes that were written as words
            stored = memoryview(np.frombuffer(stored, ">u2", len(stored) // 2).astype("<u2").tobytes())
        values, bits = _native(stored, shape, order, _PIXELS[tag], said)
    else:
        file.seek(start)
        frames = max(1, said.integer("NumberOfFrames", 1))
        coded = pydicom.encaps.get_frame(file, 0, number_of_frames=frames)
        values, bits, kind = _decoded(coded, syntax, shape, kind, said)
    return _shown(values, bits, kind, said, max_pixels)


def _check_kind(samples: int, kind: str, allocated: int, max_pixels: int, shape: Sequence[int]) -> None:
    """All that can be known to be wrong, or too much, before a pixel is decoded."""
    grey = samples == 1 and kind in (*_GREY, "PALETTE COLOR")
    if not grey and not (samples == 3 and kind in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")):
        raise BrokenImage(f"it is a DICOM image of {samples} samples of the kind {str(kind)[:40]!r}, which is not read")
    if allocated not in (1, 8, 16, 32, 64):
        raise BrokenImage(f"its numbers take {allocated} bits: 1, 8, 16 and 32 are read")
    channels = 3 if kind == "PALETTE COLOR" else samples
    # rescaled numbers are floats of 32 bits
    check_raster((shape[1], shape[0]), channels, max(4 if channels == 1 else 1, allocated // 8), max_pixels)


def _inflated(data: bytes, max_pixels: int) -> bytes:
    """A file of which the elements were deflated as a whole, as an ordinary one; another as it is."""
    start, syntax = _after_meta(data)
    if syntax != _DEFLATED:
        return data
    most = 8 * max_pixels + MAX_HEADER
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    content = unpacker.decompress(data[start:], most)
    if not unpacker.eof and len(content) >= most:
        raise BrokenImage(f"its elements unpack to more than {most} bytes")
    return data[:start].replace(_DEFLATED, _EXPLICIT) + content


def _after_meta(data: bytes) -> tuple[int, bytes]:
    """(where the meta information ends, its transfer syntax), as pydicom reads it."""
    at, syntax = 132 if data[128:132] == b"DICM" else 0, b""
    while len(data) >= at + 8:
        group, element, kind, length = struct.unpack_from("<HH2sH", data, at)
        if group != _SYNTAX[0]:
            break
        head = 8
        if kind in (b"OB", b"OW", b"OF", b"SQ", b"UN", b"UT") and len(data) >= at + 12:
            head, length = 12, struct.unpack_from("<L", data, at + 8)[0]
        if element == _SYNTAX[1]:
            syntax = data[at + head : at + head + length].rstrip(b"\0 ")
        at += head + length
    return at, syntax


def _frame_groups(dataset: Any) -> list[Any]:
    """What an enhanced file says of its first frame, and of all frames."""
    places = []
    for keyword in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        if keyword not in dataset or not (sequence := _bounded(dataset, keyword, _GROUPS)):
            continue
        for inner in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            if inner in sequence[0] and (items := _bounded(sequence[0], inner, _VALUE)):
                places.append(items[0])
    return places


def _bounded(dataset: Any, keyword: str, most: int) -> Any:
    """The value of an element, which becomes objects of Python when it is looked at."""
    raw = dataset.get_item(keyword)
    if isinstance(getattr(raw, "value", None), bytes) and len(raw.value) > most:
        raise BrokenImage(f"its {keyword} takes {len(raw.value)} bytes, more than {most}")
    return dataset[keyword].value


def _first(value: Any) -> Any:
    several = hasattr(value, "__len__") and not isinstance(value, str | bytes)
    return (value[0] if len(value) else None) if several else value


def _native(
    stored: memoryview, shape: tuple[int, int, int], order: str, kind: str | None, said: _Said
) -> tuple[np.ndarray, int]:
    """(the numbers of pixels that are not compressed, how many bits of them are used)."""
    height, width, samples = shape
    count, allocated = height * width * samples, said.integer("BitsAllocated")
    if half := said.get("PhotometricInterpretation") == "YBR_FULL_422":
        count = height * width * 2
    size = (count * allocated + 7) // 8
    if len(stored) < size:
        raise BrokenImage(f"its first frame takes {size} bytes, and {len(stored)} are there")
    if allocated == 1:
        # in the first bit is the first pixel
        return np.unpackbits(np.frombuffer(stored, np.uint8, size), count=count, bitorder="little").reshape(shape), 1
    if kind is not None:
        return np.frombuffer(stored, order + kind, count).reshape(shape).astype(kind), allocated
    numbers = np.frombuffer(stored, f"{order}u{allocated // 8}", count)
    if half:
        return _of_pairs(numbers, height, width), allocated
    bits = said.integer("BitsStored", allocated)
    high = said.integer("HighBit", bits - 1)
    if not 0 < bits <= high + 1 <= allocated:
        raise BrokenImage(f"its numbers have {bits} bits up to bit {high} of {allocated}")
    values = _extended(numbers, allocated - 1 - high, bits, bool(said.integer("PixelRepresentation", 0)))
    if samples > 1 and said.integer("PlanarConfiguration", 0) == 1:
        return np.ascontiguousarray(np.moveaxis(values.reshape(samples, height, width), 0, -1)), bits
    return values.reshape(shape), bits


def _of_pairs(stored: np.ndarray, height: int, width: int) -> np.ndarray:
    """Two pixels have one colour: their two values, then two of colour."""
    if width % 2:
        raise BrokenImage(f"it is {width} pixels wide, and its pixels come in pairs")
    pairs = stored.reshape(height, width // 2, 4)
    values = np.empty((height, width, 3), stored.dtype)
    values[:, :, 0] = pairs[:, :, :2].reshape(height, width)
    values[:, :, 1:] = pairs[:, :, 2:].repeat(2, axis=1)
    return values


def _extended(stored: np.ndarray, above: int, bits: int, signed: bool) -> np.ndarray:
    """Integers of some bits that lie so many bits below the highest, in native byte order."""
    values = stored.astype(stored.dtype.newbyteorder("="))
    below = 8 * values.dtype.itemsize - bits
    values <<= above
    if signed:
        values = values.view(values.dtype.str.replace("u", "i"))
    values >>= below
    return values


def _decoded(
    coded: bytes, syntax: str, shape: tuple[int, int, int], kind: str, said: _Said
) -> tuple[np.ndarray, int, str]:
    """(the numbers of a compressed frame, how many bits of them are used, the kind of their colours)."""
    if syntax == _RLE:
        allocated, bits = said.integer("BitsAllocated"), said.integer("BitsStored")
        stored = _runs(coded, shape, allocated)
        return _extended(stored, allocated - bits, bits, bool(said.integer("PixelRepresentation", 0))), bits, kind
    imagecodecs = import_extra("imagecodecs")
    decode: Callable[[], np.ndarray]
    if syntax in _JPEG:
        header, spaces = jpeg_header(coded), _colour_spaces(coded, kind)
        check_scans(coded, header.width * header.height or 1, 1)
        kind = spaces["outcolorspace"] if spaces else kind
        decode = lambda: imagecodecs.jpeg8_decode(coded, **spaces)  # noqa: E731
    elif syntax in _JPEG_LS:
        header = jpeg_header(coded)
        if not coded.rstrip(b"\0").endswith(b"\xff\xd9"):  # CharLS counts bits beyond the end for seconds
            raise BrokenImage("its JPEG-LS is cut off")
        decode = lambda: imagecodecs.jpegls_decode(coded)  # noqa: E731
    elif syntax in _JPEG_2000:
        coded = jpeg2000_codestream(coded)
        header = jpeg2000_header(coded)
        kind = "RGB" if kind in ("YBR_RCT", "YBR_ICT") else kind
        decode = lambda: imagecodecs.jpeg2k_decode(coded, numthreads=1)  # noqa: E731
    else:
        raise BrokenImage(f"it is compressed by the transfer syntax {syntax[:80]}, which is not read")
    if (found := (header.height, header.width, header.components)) != shape:
        raise BrokenImage(f"its compressed frame is {found}, and its header says {shape}")
    values = decode().reshape(shape)
    return _as_signed(values, header, bool(said.integer("PixelRepresentation", 0))), header.bits, kind


def _as_signed(values: np.ndarray, header: CodedPicture, signed: bool) -> np.ndarray:
    """Integers whose sign is what DICOM says, as what compresses them may not know of it."""
    if (values.dtype.kind == "i") == signed:
        return values
    return _extended(
        values.view(f"u{values.dtype.itemsize}"), 8 * values.dtype.itemsize - header.bits, header.bits, signed
    )


def _colour_spaces(coded: bytes, kind: str) -> dict[str, str]:
    """What a JPEG's colours are, and what they shall be, in the words of imagecodecs."""
    if kind in (*_GREY, "PALETTE COLOR"):
        return {}
    at = coded.find(b"\xff\xee\x00\x0eAdobe", 0, 2**16)
    apart = coded[at + 15] == 1 if 0 <= at < len(coded) - 15 else kind != "RGB"
    return {"colorspace": "YCBCR" if apart else "RGB", "outcolorspace": "RGB"}


def _runs(coded: bytes, shape: tuple[int, int, int], allocated: int) -> np.ndarray:
    """Unpack DICOM's RLE: each byte of each sample is a plane, from the highest."""
    packbits, (height, width, samples) = import_extra("imagecodecs").packbits_decode, shape
    size, planes = allocated // 8, samples * (allocated // 8)
    count, *starts = struct.unpack_from("<16L", coded)
    if count != planes or planes > 15:
        raise BrokenImage(f"it has {count} planes of bytes, and its pixels {planes}")
    values = np.empty((height * width, samples, size), np.uint8)
    ends = [*starts[1:planes], len(coded)]
    for plane, (start, end) in enumerate(zip(starts[:planes], ends, strict=True)):
        if not 64 <= start <= end <= len(coded):
            raise BrokenImage("its planes of bytes are not in the frame")
        unpacked = np.frombuffer(packbits(coded[start:end], out=height * width), np.uint8)
        values[:, plane // size, size - 1 - plane % size] = unpacked[: height * width]
    return values.view(f"<u{size}").reshape(shape)


def _shown(values: np.ndarray, bits: int, kind: str, said: _Said, max_pixels: int) -> _Frame:
    if kind == "PALETTE COLOR":
        return _coloured(values, said, max_pixels)
    if kind.startswith("YBR"):
        if values.dtype != np.uint8:
            raise BrokenImage(f"its colours are {kind} of {bits} bits: of 8 are read")
        values, convert = values.copy(), import_extra("pydicom.pixels").convert_color_space
        rows = max(1, _STRIP // values.shape[1])
        for top in range(0, len(values), rows):
            values[top : top + rows] = convert(values[top : top + rows], "YBR_FULL", "RGB")
    return _Frame(values, bits, said, kind == "MONOCHROME1" and values.dtype.kind != "f")


def _coloured(values: np.ndarray, said: _Said, max_pixels: int) -> _Frame:
    """RGB of a palette, 8 or 16 bit."""
    described = said.whole("RedPaletteColorLookupTableDescriptor")
    tables = [said.whole(f"{name}PaletteColorLookupTableData") for name in ("Red", "Green", "Blue")]
    if not described or len(described) != 3 or any(not isinstance(table, bytes) for table in tables):
        raise BrokenImage("its palette is not in three whole tables")
    count, first, bits = (int(number) for number in described)
    count = count or 2**16
    # of 8 bits, some writers fill 16
    sizes = {len(table) // count for table in tables}
    if sizes not in ({1}, {2}) or bits not in (8, 16):
        raise BrokenImage(
            f"its palette has {count} colours of {bits} bits, in tables of {[len(t) for t in tables]} bytes"
        )
    palette = np.stack([np.frombuffer(table, f"<u{sizes.copy().pop()}", count) for table in tables], axis=-1)
    palette = palette.astype(np.uint8 if bits == 8 else np.uint16)
    check_raster(values.shape[1::-1], 3, palette.dtype.itemsize, max_pixels)
    indices = np.clip(values[:, :, 0].astype(np.int64) - first, 0, count - 1)
    return _Frame(palette[indices], bits, said, False)


def _merge_padding(frame: _Frame) -> np.ndarray | None:
    """Have all padding hold one value, which is returned as an array of one number."""
    said, kind = frame.said, frame.values.dtype
    if kind.kind == "f" or (padding := said.get("PixelPaddingValue")) is None:
        return None
    ends = [int(padding), int(said.get("PixelPaddingRangeLimit", padding))]
    # written as unsigned by some where the pixels are signed, and the other way round
    ends = [int(np.array(end).astype(kind)) for end in ends]
    if ends[0] != ends[1]:
        values = frame.values if frame.values.flags.writeable else frame.values.copy()
        np.putmask(values, (values >= min(ends)) & (values <= max(ends)), ends[0])
    return np.array(ends[:1], kind)


def _brighter(values: np.ndarray, frame: _Frame) -> np.ndarray:
    """Turned round within the stored range, if larger numbers are darker."""
    if not frame.inverted:
        return values
    if values.dtype.kind == "i":
        return -1 - values
    return np.array(2**frame.bits - 1, values.dtype) - values


def _in_units(values: np.ndarray, said: _Said) -> np.ndarray:
    """Rescaled to float32, or as it is where that changes nothing."""
    slope, intercept = float(said.get("RescaleSlope", 1)), float(said.get("RescaleIntercept", 0))
    if (slope, intercept) == (1, 0):
        return values
    scaled: np.ndarray = values.astype(np.float32 if values.dtype.itemsize < 4 else np.float64)
    np.multiply(scaled, slope, out=scaled)
    np.add(scaled, intercept, out=scaled)
    return scaled.astype(np.float32, copy=False)


def _divided(values: np.ndarray, bits: int) -> np.ndarray:
    """uint8 of colours of more bits."""
    shrunk = np.empty(values.shape, np.uint8)
    for top in range(len(values)):
        shrunk[top] = np.rint(values[top] * (255 / (2**bits - 1))).clip(0, 255)
    return shrunk


def _stretched(frame: _Frame, padding: np.ndarray | None) -> np.ndarray:
    """uint8 (H, W) of grey of more than 8 bits, larger numbers not yet turned round."""
    values, said = frame.values[:, :, 0], frame.said
    center, width = said.get("WindowCenter"), said.get("WindowWidth")
    if center is not None and width is not None:
        shade = _window(float(center), float(width), str(said.get("VOILUTFunction", "LINEAR")))
    else:
        shade = _own_range(values, said, padding)
    grey, rows = np.empty(values.shape, np.uint8), max(1, _STRIP // values.shape[1])
    for top in range(0, len(values), rows):
        units = _in_units(values[top : top + rows], said).astype(np.float64)
        grey[top : top + rows] = np.rint(np.nan_to_num(shade(units) * 255).clip(0, 255))
    return grey


def _window(center: float, width: float, function: str) -> Callable[[np.ndarray], np.ndarray]:
    """Units -> 0..1 and beyond, as PS3.3 C.11.2.1.2 has it."""
    if function == "SIGMOID":
        return lambda units: 1 / (1 + np.exp((-4 * (units - center) / width).clip(-500, 500)))
    if function == "LINEAR_EXACT":
        return lambda units: (units - center) / width + 0.5
    return lambda units: (units - (center - 0.5)) / max(width - 1, 1e-9) + 0.5


def _own_range(values: np.ndarray, said: _Said, padding: np.ndarray | None) -> Callable[[np.ndarray], np.ndarray]:
    there = values if padding is None or (values == padding).all() else values[values != padding]
    if there.dtype.kind == "f":
        there = there[np.isfinite(there)]
    if not there.size:
        raise BrokenImage("none of its pixels is a finite number")
    ends = _in_units(np.array([there.min(), there.max()]), said).astype(np.float64)
    return lambda units: (units - ends.min()) / max(np.ptp(ends), 1e-300)
