"""RandAugment (arXiv 1909.13719) in timm's notation and implementation. Reading the notation needs none of torch,
timm and Pillow."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from swin_mim.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

_POLICY = re.compile(r"rand(-(m\d+|n[1-9]\d*|p(0\.\d+|1|1\.0)|mstd\d+(\.\d+)?|mmax\d+|inc[01]))*")


def check_policy(text: str | None) -> None:
    """Refuse a RandAugment that timm would read in part only, or not at all.

    Raises:
        UserError: `text` has another form.
    """
    if text is not None and not _POLICY.fullmatch(text):
        raise UserError(
            f"augment.auto {text!r} is no RandAugment: write rand and parts such as -m9 -n2 -p0.5 -mstd0.5 -mmax10 "
            "-inc1, as in rand-m9-mstd0.5-inc1, or null for none"
        )


def rand_augment(
    text: str, size: tuple[int, int], mean: tuple[float, ...], interpolation: str
) -> "Callable[[Image.Image], Image.Image]":
    """The policy with the parameters that timm's own pipeline gives it.

    Args:
        text: as in "rand-m9-mstd0.5-inc1".
        size: (H, W) of the images.
        mean: colour of what a shift or a turn uncovers, from 0 to 1.
        interpolation: "bilinear" or "bicubic".
    """
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.transforms import str_to_pil_interp

    parameters = {
        "translate_const": int(min(size) * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": str_to_pil_interp(interpolation),
    }
    policy: Any = rand_augment_transform(text, parameters)
    for operation in policy.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return policy


def _posterize(image: "Image.Image", bits: int, **_: Any) -> "Image.Image":
    """timm's, which asks for no bits at all at the max magnitude; Pillow refuses that from version 13 on.

    Before, it was black.
    """
    from PIL import Image, ImageOps

    return ImageOps.posterize(image, min(bits, 8)) if bits else Image.new("RGB", image.size)
