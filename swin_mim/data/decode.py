"""Bytes of an image file -> an 8-bit RGB image, safely.

The files come from anywhere: they may be damaged, hostile, or hold more bits, channels or frames than a model
takes. Every refusal is a `BrokenImage`; nothing else leaves this module.
"""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # no "MPO": Pillow's JPEG opener already covers it
MAX_PIXELS = 64 * 2**20
MAX_SIDE = 30_000
BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels."""

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


class BrokenImage(ValueError):
    """An image that cannot be used; the message is the reason, in one line."""


def decode_image(data: bytes) -> Image.Image:
    """Decode the first frame of a JPEG, PNG, WebP, GIF, BMP or TIFF file and turn it upright.

    Transparent pixels are white. 16-bit grey is divided by 257, never clipped; 32-bit integers
    too unless they leave 0..65535: those, and floats, are scaled so that their own (finite) range becomes 0..255.
    NaN and -inf are black, inf is white. (16 bits per channel in colour arrive from Pillow cut to their high byte.)

    Returns:
        A loaded image of mode "RGB".

    Raises:
        BrokenImage: not such a file, damaged, truncated, or larger than 64 Mpx or 30000 px a side, which the
            header tells before any pixel is decoded.
    """
    if not data:
        raise BrokenImage("the file is empty")
    try:
        # Pillow warns of bombs (checked below), odd EXIF and odd palettes: nothing that a reader of a log can mend
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size)
            image.load()
            return to_rgb(_upright(image))
    except BrokenImage:
        raise
    except UnidentifiedImageError:  # its own message holds a memory address
        raise BrokenImage(f"not a readable {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from None
    except Exception as error:  # damaged files raise ValueError, struct.error, SyntaxError, MemoryError and more
        raise BrokenImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode -> mode "RGB", by the rules of `decode_image`."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS or max(size) > MAX_SIDE:
        raise BrokenImage(f"{width} x {height} pixels are more than {MAX_PIXELS} in all or {MAX_SIDE} a side")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF is written by anything; a malformed one says nothing about the pixels
        return image
    return image if turn is None else image.transpose(turn)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """(H, W) of uint16, int32 or float32 -> uint8."""
    if values.dtype.kind != "f" and values.min() >= 0 and values.max() <= 65535:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        raise BrokenImage("none of its pixels is a finite number")
    low, high = finite.min(), finite.max()
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low, neginf=low, posinf=high) - low) * 255
    return np.rint(scaled / max(high - low, np.finfo(np.float64).tiny)).astype(np.uint8)
