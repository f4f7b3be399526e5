"""How the files of images are decoded, where a user may choose."""

from dataclasses import dataclass
from typing import Literal

from swin_mim.data.decoding.decode_limits import MAX_PIXELS


@dataclass(frozen=True)
class DecodeOptions:
    """Choices that decide which images are broken, and what their pixels are."""

    max_pixels: int = MAX_PIXELS
    """Max pixels of an image: width x height. Images of other channels than RGB may take 8 bytes for each of them."""
    color_profile: Literal["convert", "ignore"] = "convert"
    """What becomes of RGB images with an ICC profile: converted to sRGB, or taken as if they were sRGB."""
    max_side: int | None = None
    """Max pixels of a side; None: `MAX_SIDE`."""


USUAL = DecodeOptions()
