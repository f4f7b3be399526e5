"""What one image is, and what is wrong with it. For `swin-mim doctor`."""

import warnings
from io import BytesIO
from typing import NamedTuple

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from swin_mim.cli.doctor.images.depth import Depth, deep_values, is_flat, is_flat_in_its_range
from swin_mim.counts import counted
from swin_mim.data.decoding.channel_reader import numbers
from swin_mim.data.decoding.coded_headers import jpeg2000_codestream, jpeg2000_header
from swin_mim.data.decoding.color_profiles import profile_name
from swin_mim.data.decoding.decode_limits import BrokenImage, MeteredFile, TooLargeImage, check_metadata
from swin_mim.data.decoding.kinds import HEAD, kind_of
from swin_mim.data.decoding.multichannel import channel_names
from swin_mim.data.decoding.openers import open_file
from swin_mim.data.decoding.options import USUAL, DecodeOptions
from swin_mim.data.decoding.rgb import cut_out, decode_image
from swin_mim.data.decoding.tiff_files import pictures_beside
from swin_mim.data.nodata import Suspect, suspects
from swin_mim.data.offsets import beginning
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.multichannel import RasterSource
from swin_mim.data.statistics import Statistics
from swin_mim.errors import UserError
from swin_mim.files import sha256

UNKNOWN_BITS = ("DICOM", "JPEG XL")
"""Kinds of which only decoding tells how many bits a value has."""

_BLACK, _WHITE = 4, 251  # of 255, with what a JPEG leaves of them
_PIXELS = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with transparency",
    "La": "grey with transparency",
    "P": "palette",
    "PA": "palette with transparency",
    "RGB": "RGB",
    "RGBA": "RGB with transparency",
    "RGBX": "RGB",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "LAB": "Lab",
}
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL = 258, 277  # TIFF tags


class Look(NamedTuple):
    """What one image is."""

    name: str
    format: str = ""
    pixels: str = ""
    """ "RGB 8 bit"."""
    size: tuple[int, int] = (0, 0)
    """Width and height, upright."""
    digest: str = ""
    """sha256 of its bytes."""
    flat: bool = False
    reason: str = ""
    """Why it cannot be read; empty if it can."""
    too_large: int | None = None
    """The data.max_pixels with which it could be read, 0 if with none; None: it is not too large."""
    channels: int = 0
    """Known of a raster, or of a TIFF that cannot be read."""
    dtype: str = ""
    """Known of a raster."""
    statistics: Statistics | None = None
    """Known of a raster."""
    suspects: tuple[Suspect, ...] = ()
    """Values of a raster that may mark missing pixels."""
    depth: Depth | None = None
    """Known of an image of more than 8 bits that is read as RGB."""
    beginning: int | None = None
    """The value at which its darkest channel begins, of integers of more than 8 bits."""
    frames: str = ""
    """ "TIFF of 3 pages", "GIF of several frames"; empty: it holds one picture."""
    profile: str = ""
    """Name of the colour profile from which it is converted."""
    edges: str = ""
    """ "black" or "white": the colour of two of its edges at least; only of RGB."""


class Header(NamedTuple):
    """What the header of a file says that can be decoded."""

    format: str
    pixels: str
    bits: int
    """Of a value; 0: only decoding tells."""
    frames: str = ""
    profile: str = ""


def look_at(source: Source, index: int) -> Look:
    """Read and decode one image."""
    look = Look(source.name(index))
    try:
        if isinstance(source, RasterSource):
            return _look_at_raster(source, index, look)
        if not (files := source.files(index)):
            image = source.image(index)
            look = look._replace(digest=sha256([image.tobytes()]), format="crops of a picture in memory")
            return look._replace(pixels="RGB 8 bit", size=image.size, flat=is_flat(image))
        return _look_at_file(files[0][1], source.decoding, look)
    except BrokenImage as error:
        return _broken(look, error)


def _broken(look: Look, error: BrokenImage) -> Look:
    for each in (error, error.__cause__):  # what is refused of one channel of a stack has a message of its own
        if isinstance(each, TooLargeImage):
            return look._replace(reason=str(error), too_large=each.max_pixels)
    return look._replace(reason=str(error))


def _look_at_file(data: bytes, options: DecodeOptions, look: Look) -> Look:
    look = look._replace(digest=sha256([data]))
    try:
        image = decode_image(data, options)
    except BrokenImage as error:
        channels, bits, _ = tiff_layout(data)
        look = _broken(look, error)
        if channels <= 4 or look.too_large is not None:
            return look
        return look._replace(reason=f"TIFF of {channels} channels of {bits} bit", channels=channels)
    head = header(data, options)
    raster = None if 0 < head.bits <= 8 else deep_values(data, options)
    look = look._replace(format=head.format, pixels=head.pixels, frames=head.frames, profile=head.profile)
    if raster is not None:
        look = look._replace(depth=Depth.of(raster), beginning=beginning(raster))
        if not head.bits:
            look = look._replace(pixels=f"{plural_channels(raster.values.shape[2])} of {raster.values.dtype}")
    flat = is_flat(image) and (raster is None or is_flat_in_its_range(raster))
    return look._replace(size=image.size, flat=flat, edges="" if flat else edge_colour(image))


def _look_at_raster(source: RasterSource, index: int, look: Look) -> Look:
    files = source.files(index)
    look = look._replace(digest=sha256(content for _, content in files))
    try:
        # known also of images that have others than are read
        mask, names = source.bands.mask, source.names_of(files)
        count = sum(mask not in (name, number) for name, number in zip(names, numbers(len(names)), strict=True))
        look = look._replace(channels=count)
        raster = source.decode(files)
    except BrokenImage as error:
        return _broken(look, error)
    single, statistics = len(files) == 1, Statistics.of(raster)
    return look._replace(
        format=raster_format(files[0][1]) if single else f"of {len(files)} files",
        frames=frames_of(files[0][1]) if single else "",
        pixels=f"{plural_channels(raster.values.shape[2])} of {raster.values.dtype}",
        size=(raster.values.shape[1], raster.values.shape[0]),
        flat=statistics.min == statistics.max,
        dtype=raster.values.dtype.name,
        statistics=statistics,
        suspects=suspects(raster, statistics),
        beginning=beginning(raster),
    )


def plural_channels(count: int) -> str:
    return f"{count} channel{'' if count == 1 else 's'}"


def raster_format(data: bytes) -> str:
    """ "TIFF", of a file that can be decoded."""
    kind = kind_of(data[:HEAD])
    return "npz" if kind is None else "npy" if kind == "NPY" else kind.upper()


def header(data: bytes, options: DecodeOptions = USUAL) -> Header:
    """Describe a file that can be decoded as RGB."""
    kind = str(kind_of(data[:HEAD]))
    if kind in UNKNOWN_BITS:
        return Header(kind, "RGB", 0, frames_of(data))
    with warnings.catch_warnings(action="ignore"):
        file, image = _opened(data, kind, options)
        with file, image:
            bits = _bits(image, kind, data)
            text = {"1": "1 bit", "F": "floating point"}.get(image.mode) or f"{bits} bit"
            profile = None if options.color_profile == "ignore" else profile_name(image)
            animated = kind not in ("JPEG", "TIFF") and _is_animated(file, image)
    frames = f"{kind} of several frames" if animated else frames_of(data)
    return Header(kind.upper(), f"{_PIXELS.get(image.mode, 'grey')} {text}", bits, frames, profile or "")


def _opened(data: bytes, kind: str, options: DecodeOptions) -> tuple[MeteredFile, Image.Image]:
    if kind != "JPEG":
        return open_file(data, options)
    file = MeteredFile(data)  # what it was checked for is not checked again: most images are JPEGs
    return file, JpegImageFile(file)


def has_deep_values(data: bytes, options: DecodeOptions) -> bool:
    """Whether a file that can be decoded as RGB has values of more than 8 bits, or only decoding would tell."""
    return not 0 < header(data, options).bits <= 8


def _is_animated(file: MeteredFile, image: Image.Image) -> bool:
    file.begin_pixels()  # a GIF is read up to its second frame
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # damage behind the first frame, which is the one that is read
        return False


def _bits(image: Image.Image, kind: str, data: bytes) -> int:
    # Pillow's mode knows of 16 bits in grey only
    by_mode = 16 if image.mode.startswith("I;16") else 32 if image.mode.startswith(("I", "F")) else 8
    if kind == "PNG":
        return max(data[24], by_mode) if image.mode != "P" else by_mode
    if kind == "JPEG 2000":
        try:
            return max(by_mode, jpeg2000_header(jpeg2000_codestream(data)).bits)
        except BrokenImage:  # it is not read as channels
            return by_mode
    return max(by_mode, tiff_layout(data)[1])


def frames_of(data: bytes) -> str:
    """ "TIFF of 3 pages", as `Look.frames`, of a file of pages that are channels, or a DICOM file."""
    kind = kind_of(data[:HEAD])
    if kind == "DICOM":
        count = dicom_frames(data)
        return f"DICOM of {count} frames" if count > 1 else ""
    if kind != "TIFF" or not (samples := tiff_layout(data)[0]):
        return ""
    try:
        pages = len(channel_names([(None, data)])) // samples
        pictures = pictures_beside(data) if tiff_layout(data)[2] else 0
    except BrokenImage:
        return "TIFF of pages that differ" if tiff_layout(data)[2] else ""
    except UserError:  # what reads them is missing
        return ""
    beside = f" beside {counted(pictures, 'smaller picture')}" if pictures else ""
    return f"TIFF of {counted(pages, 'page')}{beside}" if pages > 1 or pictures else ""


def dicom_frames(data: bytes) -> int:
    import pydicom

    try:
        said = pydicom.dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=["NumberOfFrames"])
        return int(said.get("NumberOfFrames", 1) or 1)
    except Exception:  # a damaged header can raise anything, and then says nothing
        return 1


def tiff_layout(data: bytes) -> tuple[int, int, bool]:
    """(channels, bits of a channel, whether another page follows) of a TIFF file; (0, 0, False) of any other."""
    if not data.startswith((b"II", b"MM")):
        return 0, 0, False
    try:
        check_metadata(data)
        tags = ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
        file = BytesIO(data)
        file.seek(tags.next)
        with warnings.catch_warnings(action="ignore"):
            tags.load(file)
        bits = tags.get(_BITS_PER_SAMPLE, (1,))
        samples, most = int(tags.get(_SAMPLES_PER_PIXEL, 1)), int(max(bits) if isinstance(bits, tuple) else bits)
        return samples, most, bool(tags.next)
    except Exception:  # a damaged header can raise anything, and then says nothing
        return 0, 0, False


def edge_colour(image: Image.Image) -> str:
    """Colour of two edges of an RGB picture at least, if it is "black" or "white"; else empty."""
    right, bottom = image.width - 1, image.height - 1
    corners = [image.getpixel((x, y)) for x in (0, right) for y in (0, bottom)]
    if sum(max(corner) <= _BLACK or min(corner) >= _WHITE for corner in corners) < 3:  # type: ignore[arg-type]
        return ""  # two edges have three corners at least: this spares almost every photograph the rest
    edges = ((0, 0, right + 1, 1), (0, bottom, right + 1, bottom + 1), (0, 0, 1, bottom + 1))
    ranges = [cut_out(image, edge).getextrema() for edge in (*edges, (right, 0, right + 1, bottom + 1))]
    black = sum(all(high <= _BLACK for _, high in bands) for bands in ranges)  # type: ignore[misc]
    white = sum(all(low >= _WHITE for low, _ in bands) for bands in ranges)  # type: ignore[misc]
    return "black" if black > 1 else "white" if white > 1 else ""
