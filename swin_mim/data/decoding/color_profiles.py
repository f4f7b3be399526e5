"""ICC profiles: pixels of an image -> the same colours in sRGB.

Colours are mapped relative to white, with black mapped to black: what sRGB can show keeps its colour exactly, and the
darkest ink of a printer is black. Perceptual tables would differ from one maker of profiles to the next.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE = 4 * 2**20
"""Max bytes of a profile that is used; those of printers take half a megabyte."""

_SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK", b"Lab ": "LAB"}
"""Pillow's mode of the pixels, by what a profile says in its header."""
_SPACE, _HEADER = slice(16, 20), 128
_NEAR = 2
"""Difference from 0..255 up to which a profile counts as sRGB: makers of sRGB round differently."""
_GRID = 9  # colours along each axis that are compared


class Profile:
    """What converts pixels of one mode to sRGB."""

    def __init__(self, mode: str, transform: ImageCms.ImageCmsTransform) -> None:
        self.mode = mode
        """Pillow's mode of the pixels that it takes: "RGB", "L", "CMYK" or "LAB"."""
        self._transform = transform

    def apply(self, image: Image.Image) -> Image.Image:
        """Convert an image of its mode to mode "RGB"; one of mode "RGB" in place."""
        out = image if self.mode == "RGB" else Image.new("RGB", image.size)
        self._transform.transform.apply(image.getim(), out.getim())
        return out


def profile_of(image: Image.Image) -> Profile | None:
    """What converts an image that was opened; None: it has no profile, or one of sRGB, of other pixels, or damaged."""
    content = image.info.get("icc_profile")
    if not isinstance(content, bytes) or not _HEADER <= len(content) <= MAX_PROFILE:
        return None
    mode = _SPACES.get(content[_SPACE])
    return _profile(content) if mode is not None and _holds(image.mode, mode) else None


def profile_name(image: Image.Image) -> str | None:
    """Name of the profile from which an image is converted, in one line; None: it is not."""
    if profile_of(image) is None:
        return None
    try:
        name = ImageCms.getProfileDescription(_opened(image.info["icc_profile"]))
    except ImageCms.PyCMSError:
        name = ""
    return "".join(letter for letter in name if letter.isprintable()).strip()[:60] or "without a name"


def to_srgb(image: Image.Image, profile: Profile) -> Image.Image:
    """Convert a loaded image, of any mode that may have such a profile, to mode "RGB", or "RGBA" if it is transparent.

    Changes the image where it can be done in place.
    """
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
        alpha = image.getchannel("A")
    if image.mode in ("LA", "RGBA"):
        image = image.convert(image.mode.removesuffix("A"))
    rgb = profile.apply(image if image.mode == profile.mode else image.convert(profile.mode))
    if alpha is not None:
        rgb.putalpha(alpha)
    return rgb


def _holds(mode: str, space: str) -> bool:
    """Whether pixels of a mode are such colours."""
    if space == "RGB":
        return mode in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr")
    return mode in ("L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N") if space == "L" else mode == space


@lru_cache(maxsize=8)
def _profile(content: bytes) -> Profile | None:
    mode = _SPACES[content[_SPACE]]
    try:
        transform = ImageCms.ImageCmsTransform(
            _opened(content),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except Exception:  # a profile is written by anything; a damaged one says nothing about the pixels
        return None
    profile = Profile(mode, transform)
    return None if _is_srgb(profile) else profile


def _opened(content: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(content))


def _is_srgb(profile: Profile) -> bool:
    """Whether it changes no colour by more than rounding does."""
    levels = np.linspace(0, 255, _GRID).round().astype(np.uint8)
    if profile.mode == "L":
        colors = np.arange(256, dtype=np.uint8)[None]
        plain = np.repeat(colors[..., None], 3, axis=2)
    elif profile.mode == "RGB":
        colors = plain = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(_GRID, -1, 3)
    else:
        return False
    converted = np.asarray(profile.apply(Image.fromarray(colors)))
    return bool(np.abs(converted.astype(int) - plain).max() <= _NEAR)
