"""Files that are read as RGB: opened by what they begin with, as images of Pillow's.

Each is opened by the plugin of its kind alone: `Image.open` would refuse large ones by a limit of the whole process.
"""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from swin_mim.data.decoding.av1_headers import coded_pixels
from swin_mim.data.decoding.channel_reader import import_extra
from swin_mim.data.decoding.coded_headers import boxes, jpeg2000_codestream, jpeg2000_header, jpegxl_header
from swin_mim.data.decoding.decode_limits import (
    BrokenImage,
    MeteredFile,
    check_metadata,
    check_runs,
    check_scans,
    check_size,
)
from swin_mim.data.decoding.dicom_files import dicom_rgb
from swin_mim.data.decoding.kinds import HEAD, KINDS, kind_of
from swin_mim.data.decoding.options import DecodeOptions

_RGB_KINDS = tuple(kind.name for kind in KINDS if kind.rgb)
_COMPOSED = 2**22  # pixels of small pictures that are in an AVIF besides
_STRIP_OFFSETS, _TILE_OFFSETS, _SAMPLES = 273, 324, 277  # TIFF tags


class _Tiff(TiffImagePlugin.TiffImageFile):
    """As Pillow's, but for a limit of pixels that is the whole process's: `check_size` has passed it."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.core.new(self.mode, getattr(self, "_tile_size", self.size))
        super().load_prepare()


def _open_heic(file: MeteredFile, name: str) -> Image.Image:
    return import_extra("pillow_heif.as_plugin").HeifImageFile(file, name)


_PLUGINS: dict[str, Callable[[Any, str], Image.Image]] = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": _Tiff,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "HEIC": _open_heic,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
}


def _rgb_kind(data: bytes) -> str:
    """Name of the kind of an image file, as in `KINDS`. Raises `BrokenImage` for none that is read as RGB."""
    kind = kind_of(data[:HEAD])
    if kind not in _RGB_KINDS:
        raise BrokenImage(f"not a readable {', '.join(_RGB_KINDS[:-1])} or {_RGB_KINDS[-1]} file")
    return kind


def open_file(data: bytes, options: DecodeOptions) -> tuple[MeteredFile, Image.Image]:
    """(file, image), after all that its header tells was checked; JPEG XL and DICOM are decoded, others not yet.

    Raises:
        BrokenImage: of no kind that is read, too large, or built to take more time or memory than its pixels do.
            Damaged files raise anything.
        UserError: a package is missing.
    """
    kind = _rgb_kind(data)
    file = MeteredFile(data)
    if kind == "JPEG XL":
        return file, _jpegxl_image(data, options)
    if kind == "DICOM":
        return file, dicom_rgb(data, options)
    if kind == "JPEG 2000":
        _check_jpeg2000(data, options)
    check_metadata(data)
    try:
        image = _PLUGINS[kind](file, "")
    except (SyntaxError, IndexError, TypeError, struct.error):  # a header that Pillow does not understand
        raise BrokenImage(_unreadable(kind)) from None
    check_size(image.size, options.max_pixels, options.max_side)
    _check_samples(image)
    pixels = image.width * image.height
    check_scans(data, pixels, _strips_stored(image), options.max_pixels)
    check_runs(image.info.get("compression"), pixels)
    if kind == "AVIF":
        _check_avif(data, pixels)
    if kind == "JPEG 2000":  # Pillow leaves it out
        image.info["icc_profile"] = _jpeg2000_profile(data)
    return file, image


def _unreadable(kind: str) -> str:
    if kind == "TIFF":
        return "it is no TIFF of a kind that is read as RGB; one of other channels is read if data.channels names them"
    return f"not a readable {kind} file"


def _check_jpeg2000(data: bytes, options: DecodeOptions) -> None:
    """As Pillow reads the size from elsewhere, and a decoder makes room for what the header of its codestream says."""
    header = jpeg2000_header(jpeg2000_codestream(data, palette=True))
    check_size((header.width, header.height), options.max_pixels)
    if header.components > 4:
        raise BrokenImage(f"it has {header.components} channels: name those to be read in data.channels")


def _jpeg2000_profile(data: bytes) -> bytes | None:
    """The ICC profile of a JP2 file."""
    for kind, start, end in boxes(data, 0, 0 if data.startswith(b"\xff") else len(data)):
        for inner, first, last in boxes(data, start, end) if kind == b"jp2h" else ():
            if inner == b"colr" and data[first : first + 1] == b"\x02":
                return data[first + 3 : last]
    return None


def _check_avif(data: bytes, pixels: int) -> None:
    """The pictures that an AVIF is composed of may each be larger than the whole."""
    if (coded := coded_pixels(data)) > 4 * pixels + _COMPOSED:
        raise BrokenImage(f"it is coded as {coded} pixels, which are too many for {pixels}")


def _jpegxl_image(data: bytes, options: DecodeOptions) -> Image.Image:
    """Upright. Grey of more than 8 bits keeps them, colours are cut to 8."""
    header = jpegxl_header(data)
    most = options.max_pixels if header.dtype.kind != "f" else options.max_pixels // 2  # which take 52 bytes a pixel
    check_size((header.width, header.height), most)
    if header.components > 4:
        raise BrokenImage(f"it has {header.components} channels: name those to be read in data.channels")
    pixels = import_extra("imagecodecs").jpegxl_decode(data, index=0, numthreads=1)
    pixels = pixels.reshape(header.height, header.width, header.components)
    if header.components == 1 and pixels.dtype in (np.uint16, np.float32):
        return Image.fromarray(pixels[:, :, 0])
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        pixels = np.rint(np.nan_to_num(pixels).clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if header.components == 1 else pixels)


def _check_samples(image: Image.Image) -> None:
    """Refuse a TIFF of many channels of which Pillow would read the first ones without a word.

    One beside three is usual: alpha, or a filler. One beside one is as likely a second channel.
    """
    samples, read = getattr(image, "tag_v2", {}).get(_SAMPLES, 1), len(image.getbands())
    if samples > (read + 1 if read >= 3 else read):
        raise BrokenImage(
            f"it has {samples} channels, of which RGB would show {read}: name those to be read in data.channels"
        )


def _strips_stored(image: Image.Image) -> int:
    """In how many strips or tiles a TIFF keeps the pixels; 0 for other formats."""
    tags = getattr(image, "tag_v2", {})
    offsets = tags.get(_STRIP_OFFSETS, tags.get(_TILE_OFFSETS, ()))
    return len(offsets) if isinstance(offsets, tuple) else 1
