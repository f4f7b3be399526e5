"""Bytes of an image file -> an 8-bit RGB image, safely.

The files come from anywhere: they may be damaged, hostile, or hold more bits, channels or frames than a model
takes. Every refusal is a `BrokenImage`; nothing else leaves this module.
"""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from swin_mim.data.limits import (
    BrokenImage,
    MeteredFile,
    check_length,
    check_metadata,
    check_runs,
    check_scans,
    check_size,
)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # no "MPO": Pillow's JPEG opener already covers it
BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels."""

_STRIP = 2**20  # pixels that are converted at a time
_EXIF_BYTES = 2**16  # of which each of thousands of tags may count all
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324  # TIFF tags
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes) -> Image.Image:
    """Decode the first frame of a JPEG, PNG, WebP, GIF, BMP or TIFF file and turn it upright.

    Transparent pixels are white. 16-bit grey is divided by 257, never clipped; 32-bit integers
    too unless they leave 0..65535: those, and floats, are scaled so that their own (finite) range becomes 0..255.
    NaN and -inf are black, inf is white. (16 bits per channel in colour arrive from Pillow cut to their high byte.)

    Returns:
        A loaded image of mode "RGB".

    Raises:
        BrokenImage: not such a file, damaged, truncated, or larger than 512 MiB, 64 Mpx or 30000 px a side, which the
            header tells before any pixel is decoded; or built to take more time or memory than its pixels do.
    """
    check_length(len(data))
    try:
        # Pillow warns of bombs (checked below), odd EXIF and odd palettes: nothing that a reader of a log can mend
        with warnings.catch_warnings(action="ignore"):
            image, turn = _decode(data)
            return image if turn is None else image.transpose(turn)
    except BrokenImage:
        raise
    except UnidentifiedImageError:  # its own message holds a memory address
        raise BrokenImage(f"not a readable {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from None
    except Exception as error:  # damaged files raise ValueError, struct.error, SyntaxError, MemoryError and more
        raise BrokenImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode -> mode "RGB", by the rules of `decode_image`."""
    if image.mode.startswith(("I", "F")):
        convert = _to_eight_bits(image)
    elif image.has_transparency_data:
        convert = _over_background
    else:
        return image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        rgb.paste(convert(strip), (0, top))
    return rgb


def _decode(data: bytes) -> tuple[Image.Image, Image.Transpose | None]:
    """The RGB image as it is stored, and what turns it upright."""
    check_metadata(data)
    with MeteredFile(data) as file, Image.open(file, formats=FORMATS) as image:
        check_size(image.size)
        pixels = image.width * image.height
        check_scans(data, pixels, _strips_stored(image))
        check_runs(image.info.get("compression"), pixels)
        file.begin_pixels()
        image.load()
        return to_rgb(image), _turn(image)


def _strips_stored(image: Image.Image) -> int:
    """In how many strips or tiles a TIFF keeps the pixels; 0 for other formats."""
    tags = getattr(image, "tag_v2", {})
    offsets = tags.get(_STRIP_OFFSETS, tags.get(_TILE_OFFSETS, ()))
    return len(offsets) if isinstance(offsets, tuple) else 1


def _turn(image: Image.Image) -> Image.Transpose | None:
    for key, most in (("exif", _EXIF_BYTES), ("Raw profile type exif", 2 * _EXIF_BYTES)):  # the latter in hexadecimal
        if key in image.info:
            image.info[key] = image.info[key][:most]
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF is written by anything; a malformed one says nothing about the pixels
        return None


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(top, rows from there on): what is converted as a whole takes several times its memory."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _over_background(image: Image.Image) -> Image.Image:
    ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def _to_eight_bits(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What converts strips of an image of uint16, int32 or float32."""
    low, high = _range(image)
    if not image.mode.startswith("F") and low >= 0 and high <= 65535:
        return lambda strip: _grey((np.asarray(strip).astype(np.uint32) + 128) // 257)
    scale = max(high - low, np.finfo(np.float64).tiny)

    def stretch(strip: Image.Image) -> Image.Image:
        values = np.nan_to_num(np.asarray(strip).astype(np.float64), nan=low, neginf=low, posinf=high)
        return _grey(np.rint((values - low) * 255 / scale))

    return stretch


def _range(image: Image.Image) -> tuple[float, float]:
    """The least and the greatest finite value."""
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        if (values := values[np.isfinite(values)]).size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low > high:
        raise BrokenImage("none of its pixels is a finite number")
    return low, high


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
