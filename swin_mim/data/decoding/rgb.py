"""Bytes of an image file -> an 8-bit RGB image, safely.

The files come from anywhere: they may be damaged, hostile, or hold more bits, channels or frames than a model
takes. Every refusal is a `BrokenImage`, and nothing else leaves this module, but for a `UserError` where a package is
missing.
"""

import math
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import PIL
from PIL import Image

from swin_mim.data.decoding.color_profiles import Profile, profile_of, to_srgb
from swin_mim.data.decoding.decode_limits import BrokenImage, MeteredFile, check_size
from swin_mim.data.decoding.openers import open_file
from swin_mim.data.decoding.options import USUAL, DecodeOptions
from swin_mim.data.timing import decoding
from swin_mim.errors import UserError

try:  # the extra "fast"
    import simplejpeg
except ImportError:
    simplejpeg = None

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

_FACTORS = (8, 4, 2)  # by which libjpeg divides the sides of an image while it decodes it
_STRIP = 2**20  # pixels that are converted at a time
_EXIF_BYTES = 2**16  # of which each of thousands of tags may count all
# of a BMP: its mark and length, where the pixels begin, the length of the second header, width, height, planes, bits a
# pixel, compression, length of the pixels, two resolutions, how many colours a palette has
_BITMAP = struct.Struct("<2sI4xIIiiHHII8xI4x")
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
_LAST_COLUMN_COMES_FIRST = tuple(_UPRIGHT[tag] for tag in (2, 3, 6, 7))
"""The turns after which what was stored at the right, or at the bottom, is at the left."""
_LAST_ROW_COMES_FIRST = tuple(_UPRIGHT[tag] for tag in (3, 4, 7, 8))


@dataclass(frozen=True)
class Decoded:
    """An image, in which each square of `factor` x `factor` pixels of its file may have become one."""

    image: Image.Image | np.ndarray
    """Upright: a loaded image of mode "RGB", or uint8 (H, W, 3), maybe a view of the file with steps backwards."""
    size: tuple[int, int]
    """(W, H) of all the pixels that the file holds, upright."""
    factor: int = 1
    margin: tuple[int, int] = (0, 0)
    """What the first squares reach beyond the left and the upper edge of the picture, in pixels of the file."""

    @classmethod
    def whole(cls, image: Image.Image) -> "Decoded":
        return cls(image, image.size)

    def decode(self, max_shrink: float) -> "Decoded":
        """Itself: its pixels are there."""
        return self

    def place(self, box: Box) -> Box:
        """Where in `image` a box of the whole picture lies, up to parts of pixels."""
        left, top, right, bottom = box
        x, y = self.margin
        return (left + x) / self.factor, (top + y) / self.factor, (right + x) / self.factor, (bottom + y) / self.factor


class EncodedJpeg:
    """A JPEG of which the header was read and checked, and no pixel is decoded yet. Opened by `open_image`."""

    def __init__(self, data: bytes, file: MeteredFile, image: Image.Image, profile: Profile | None) -> None:
        self._opened, self._turn = [(data, file, image, profile)], _turn(image)
        self.size = image.size[::-1] if _swaps_sides(self._turn) else image.size
        """(W, H), upright."""

    def decode(self, max_shrink: float) -> Decoded:
        """Decode it, once, to 1/2, 1/4 or 1/8 of its sides where these may be divided by so many.

        Every pixel of a smaller one is the mean of a square of those that the whole image has, nearly: what its lower
        frequencies say. Where simplejpeg is installed, ordinary JPEGs that are not made smaller and stand upright are
        decoded by it, to the same pixels. The same files are broken.

        Args:
            max_shrink: number by which the sides may be divided; below 2 the image is whole.
        """
        with decoding(), _refusals():
            return _upright(_part(*self._opened.pop(), self._turn, max_shrink), self._turn)


def decode_image(data: bytes, options: DecodeOptions = USUAL) -> Image.Image:
    """Decode the first frame of an image file of any of `KINDS` that can be RGB, and turn it upright.

    Its kind is what it begins with. Colours of an ICC profile become sRGB, unless `options` say to ignore it; then
    transparent pixels become white. 16-bit grey is divided by 257, never clipped; 32-bit integers
    too unless they leave 0..65535: those, and floats, are scaled so that their own (finite) range becomes 0..255.
    NaN and -inf are black, inf is white. (16 bits per channel in colour arrive from Pillow cut to their high byte.)

    Args:
        data: of a length that `check_length` has passed.

    Returns:
        A loaded image of mode "RGB".

    Raises:
        BrokenImage: not such a file, damaged, truncated, or larger than `options.max_pixels` or 30000 px a side, which
            the header tells before any pixel is decoded; or built to take more time or memory than its pixels do; or a
            TIFF of which RGB would leave channels out (pages after the first are other images, and none of these).
        UserError: a package that this kind needs is not installed.
    """
    with _refusals():
        image = _upright(*_whole(*_opened(data, options))).image
    assert isinstance(image, Image.Image)
    return image


def open_image(data: bytes, options: DecodeOptions = USUAL) -> Decoded | EncodedJpeg:
    """Open a file as `decode_image` does; what is no JPEG is decoded at once.

    BMPs as Pillow writes them are not decoded at all: see `_as_it_lies`. The same files are broken, a JPEG maybe not
    before it is decoded.
    """
    with _refusals():
        if (pixels_there := _as_it_lies(data, options)) is not None:
            return pixels_there
        opened = [_opened(data, options)]
        if opened[0][1].format in ("JPEG", "MPO"):
            return EncodedJpeg(data, *opened[0])
        return _upright(*_whole(*opened.pop()))


def decoder_text() -> str:
    """What decodes here, for a line of a log: "Pillow 12.0.0"."""
    fast = f"simplejpeg {simplejpeg.__version__} and " if simplejpeg else ""
    return f"{fast}Pillow {PIL.__version__}"


@contextmanager
def _refusals() -> Iterator[None]:
    """Whatever a decoder raises inside is a `BrokenImage`."""
    try:
        # Pillow warns of bombs (checked below), odd EXIF and odd palettes: nothing that a reader of a log can mend
        with warnings.catch_warnings(action="ignore"):
            yield
    except (BrokenImage, UserError):
        raise
    except Image.DecompressionBombError:  # inside of its openers of WebP and GIF
        # nor does cutting it into tiles help, which opens it in the same way
        raise BrokenImage("it has more pixels than are read of a file of its kind: save it as PNG or TIFF") from None
    except Exception as error:  # damaged files raise ValueError, struct.error, SyntaxError, MemoryError and more
        raise BrokenImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


_DEPTH, _COLOUR_TYPE = 24, 25  # bytes of a PNG
_SPREAD_GREY = {(2, 0): 85, (4, 0): 17}
"""By what Pillow multiplies the values of grey PNGs of so many bits."""


def decode_channels(data: bytes, deep_png: Callable[[bytes], np.ndarray], options: DecodeOptions = USUAL) -> np.ndarray:
    """As `decode_image`, but with the channels and the values of the file, upright: (H, W, C).

    Grey has one channel, colours three, CMYK four, a palette becomes RGB, and transparency is one channel more. Values
    are uint8, or of grey images of more than 8 bit uint16, int32 or float32.

    Args:
        deep_png: bytes of a PNG of 16 bit in colour, or with transparency -> uint16 (H, W, C), as it is stored.
    """
    with _refusals():
        file, image = open_file(data, options)
        file.begin_pixels()
        # Pillow reads 16 bit in grey alone, and leaves a transparent grey in it as it is
        whole = image.mode == "I;16" and "transparency" not in image.info
        deep = image.format == "PNG" and data[_DEPTH] == 16 and not whole
        if deep:
            pixels = deep_png(data)
            # Pillow would decode all of it to look for EXIF behind the pixels
            turn = _turn(image) if "exif" in image.info else None
        else:
            image.load()
            turn, pixels = _turn(image), _own_channels(image)
            if image.format == "PNG" and (data[_DEPTH], data[_COLOUR_TYPE]) in _SPREAD_GREY:
                pixels = pixels.copy()
                pixels[:, :, 0] //= _SPREAD_GREY[data[_DEPTH], data[_COLOUR_TYPE]]
        return pixels if turn is None else _turned(pixels, turn)


def palette_numbers(data: bytes, options: DecodeOptions = USUAL) -> np.ndarray | None:
    """Numbers of the colours of an image with a palette, uint8 (H, W), upright; None: it has no palette.

    Raises:
        BrokenImage: as `decode_image`.
    """
    with _refusals():
        file, image = open_file(data, options)
        if image.mode not in ("P", "PA"):
            return None
        file.begin_pixels()
        image.load()
        turn, numbers = _turn(image), np.asarray(image if image.mode == "P" else image.getchannel("P"))
        return numbers if turn is None else _turned(numbers[:, :, None], turn)[:, :, 0]


def _own_channels(image: Image.Image) -> np.ndarray:
    """(H, W, C) of a loaded image, as `decode_channels`."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode == "La" or (image.mode == "L" and image.has_transparency_data):
        image = image.convert("LA")
    elif image.mode == "RGB" and image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode == "RGBX":
        image = image.convert("RGB")
    pixels = np.asarray(image)
    pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    return pixels.reshape(*pixels.shape[:2], -1)


def _turned(pixels: np.ndarray, turn: Image.Transpose) -> np.ndarray:
    """As Pillow's `transpose`, for (H, W, C)."""
    if _swaps_sides(turn):
        pixels = pixels.swapaxes(0, 1)
    if turn in _LAST_COLUMN_COMES_FIRST:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if turn in _LAST_ROW_COMES_FIRST else pixels


def to_rgb(image: Image.Image, profile: Profile | None = None) -> Image.Image:
    """A loaded image of any mode -> mode "RGB", by the rules of `decode_image`.

    Args:
        profile: what converts its colours to sRGB; it may change the image.
    """
    rgb: Image.Image
    if image.mode.startswith(("I", "F")):
        convert = _to_eight_bits(image)
        rgb = _by_strips(
            image, convert if profile is None else lambda strip: profile.apply(convert(strip).convert("L"))
        )
    elif profile is not None and (image.mode != "RGB" or image.has_transparency_data):
        rgb = _by_strips(image, lambda strip: to_rgb(to_srgb(strip, profile)))
    elif profile is not None:
        rgb = profile.apply(image)
    elif image.has_transparency_data:
        rgb = _by_strips(image, _over_background)
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    rgb.info.pop("icc_profile", None)  # which whoever saves it would hand on
    return rgb


def cut_out(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Cut out whole pixels as Pillow's `crop`, but for a limit of pixels that is the whole process's.

    As in `openers`, that limit is neither asked nor changed: it holds for the user's own images, in any thread.

    Args:
        box: left, top, right, bottom, in pixels.
    """
    image.load()
    return image._new(image.im.crop(box))


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        rgb.paste(convert(strip), (0, top))
    return rgb


def _whole(file: MeteredFile, image: Image.Image, profile: Profile | None) -> tuple[Decoded, Image.Transpose | None]:
    """An opened image as it is stored, and what turns it upright.

    The caller keeps no reference to its arguments, so that what was decoded is freed before it is turned.
    """
    with file, image:
        file.begin_pixels()
        image.load()
        return Decoded(to_rgb(image, profile), image.size), _turn(image)


def _part(
    data: bytes,
    file: MeteredFile,
    image: Image.Image,
    profile: Profile | None,
    turn: Image.Transpose | None,
    max_shrink: float,
) -> Decoded:
    """An opened JPEG as it is stored, its sides divided by `max_shrink` or less; as `_whole`."""
    with file, image:
        stored, factor = image.size, _begin_smaller(image, max_shrink)
        plain = profile is None or image.mode == "RGB"
        if factor == 1 and plain and (whole := _by_simplejpeg(data, image, turn)) is not None:
            return Decoded(whole if profile is None else profile.apply(Image.fromarray(whole)), stored)
        file.begin_pixels()
        image.load()
        return Decoded(to_rgb(image, profile), stored, factor)


def _as_it_lies(data: bytes, options: DecodeOptions) -> Decoded | None:
    """The pixels of a BMP where they are in the file, with nothing copied; None: not one as Pillow writes in 24 bits.

    This is what images are packed as, raw. Its rows begin at the bottom and its pixels with blue.
    """
    if len(data) < _BITMAP.size:
        return None
    mark, length, start, header, width, height, planes, bits, compression, _, colours = _BITMAP.unpack_from(data)
    plain = (mark, start, header, planes, bits, compression, colours) == (b"BM", _BITMAP.size, 40, 1, 24, 0, 0)
    row = (width * 3 + 3) // 4 * 4  # bytes
    if not plain or min(width, height) < 1 or not length == len(data) == start + row * height:
        return None
    check_size((width, height), options.max_pixels)
    rows = np.frombuffer(data, dtype=np.uint8, offset=start).reshape(height, row)
    return Decoded(rows[::-1, : width * 3].reshape(height, width, 3)[..., ::-1], (width, height))


def _opened(data: bytes, options: DecodeOptions) -> tuple[MeteredFile, Image.Image, Profile | None]:
    """(file, image that is not loaded yet, what converts it), after all that its header tells was checked."""
    file, image = open_file(data, options)
    return file, image, None if options.color_profile == "ignore" else profile_of(image)


def _begin_smaller(image: Image.Image, max_shrink: float) -> int:
    """Have a JPEG decoded to a part of its size; returns by what its sides are divided."""
    width, height = image.size
    factor = next((factor for factor in _FACTORS if factor <= min(max_shrink, width, height)), 1)
    if factor > 1:
        image.draft(image.mode, (width // factor, height // factor))
    assert image.size == (math.ceil(width / factor), math.ceil(height / factor))
    return factor


def _by_simplejpeg(data: bytes, image: Image.Image, turn: Image.Transpose | None) -> np.ndarray | None:
    """uint8 (H, W, 3) of a JPEG that was opened; None: a matter for Pillow, also to say whether it is broken."""
    if simplejpeg is None or image.format != "JPEG" or image.mode not in ("RGB", "L") or turn is not None:
        return None
    room = np.empty((image.height, image.width, 3), dtype=np.uint8)  # no more than this, whatever the file says
    try:
        pixels = simplejpeg.decode_jpeg(data, buffer=room)
    except Exception:  # ValueError for everything that libjpeg as much as warns of
        return None
    return pixels if pixels.shape == room.shape else None


def _upright(stored: Decoded, turn: Image.Transpose | None) -> Decoded:
    if turn is None:
        return stored
    assert isinstance(stored.image, Image.Image)
    image, factor = stored.image.transpose(turn), stored.factor
    size = stored.size[::-1] if _swaps_sides(turn) else stored.size
    # the squares of the last row and column reach beyond the picture, and may be the first ones now
    beyond = image.width * factor - size[0], image.height * factor - size[1]
    margin = beyond[0] * (turn in _LAST_COLUMN_COMES_FIRST), beyond[1] * (turn in _LAST_ROW_COMES_FIRST)
    return Decoded(image, size, factor, margin)


def _swaps_sides(turn: Image.Transpose | None) -> bool:
    return turn in (_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8])


def _turn(image: Image.Image) -> Image.Transpose | None:
    for key, most in (("exif", _EXIF_BYTES), ("Raw profile type exif", 2 * _EXIF_BYTES)):  # the latter in hexadecimal
        if image.info.get(key):
            image.info[key] = image.info[key][:most]
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF is written by anything; a malformed one says nothing about the pixels
        return None


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(top, rows from there on): what is converted as a whole takes several times its memory."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, cut_out(image, (0, top, image.width, min(top + rows, image.height)))


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
    """The min and the max finite value."""
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
