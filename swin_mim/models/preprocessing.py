"""From images to a model's input: normalisation on the device, and back."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import pixel_bytes
from swin_mim.data.decoding.rgb import decode_image, to_rgb
from swin_mim.data.transforms.crops import EvaluationTransform, denormalize, normalize
from swin_mim.errors import UserError
from swin_mim.weights.config_json import Preprocessing

ImageLike = Image.Image | str | os.PathLike[str]
"""A picture, or the path of its file."""


@dataclass(frozen=True)
class Preprocessor:
    """Normalises images of a batch on a device.

    Args:
        preprocessing: mean, std, scale and gaps of the images that the model takes.
        device: the model's.
    """

    preprocessing: Preprocessing
    device: torch.device

    def __call__(self, images: Tensor) -> Tensor:
        """Images of a batch (B, C, H, W), uint8 or float -> normalised float on the device; 0, the mean, in gaps."""
        pixels = self.normalized(images)
        return pixels.masked_fill_(pixels.isnan(), 0) if images.is_floating_point() else pixels

    def normalized(self, images: Tensor) -> Tensor:
        """Normalise as `__call__`, with NaN in gaps."""
        return normalize(images.to(self.device, non_blocking=True), *self._statistics, self.preprocessing.scale)

    def restore(self, pixels: Tensor) -> Tensor:
        """Undo the normalisation: float (B, C, H, W) -> float in the range of the images, clamped where it has one."""
        known = self.preprocessing
        return denormalize(pixels, known.mean, known.std, known.scale)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel in a batch of decoded images."""
        channels = len(self.preprocessing.mean)
        return channels if self.preprocessing.scale == 255 else pixel_bytes(channels)

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and std on the device: copied once, as a copy waits for it."""
        known = self.preprocessing
        mean, std = (torch.tensor(values, device=self.device) for values in (known.mean, known.std))
        return mean, std


def model_input(
    images: Tensor | ImageLike | Sequence[ImageLike],
    preprocessing: Preprocessing,
    size: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """Prepare images of any kind as evaluation does: float (B, C, H, W), normalised, on a device.

    Args:
        images: pictures or paths of files, cut to the centre and resized to `size`; or a tensor (B, C, H, W) or
            (C, H, W), whose size stays: uint8, or of other channels than RGB in the units of their files.

    Raises:
        UserError: a file that cannot be decoded, a tensor that is normalised already or of other channels.
    """
    if not isinstance(images, Tensor):
        several = [images] if isinstance(images, Image.Image | str | os.PathLike) else list(images)
        if preprocessing.scale != 255 or len(preprocessing.mean) != 3:
            raise UserError(
                "files and pictures are RGB and this model is not: give a tensor (B, C, H, W) in their units"
            )
        if not several:
            raise UserError("no images were given")
        transform = EvaluationTransform(size, preprocessing.interpolation, preprocessing.crop_pct)
        images = torch.stack([transform(_picture(image)) for image in several])
    pixels = images[None] if images.ndim == 3 else images
    if pixels.ndim != 4 or pixels.shape[1] != len(preprocessing.mean):
        raise UserError(f"images must be (B, {len(preprocessing.mean)}, H, W), not {tuple(images.shape)}")
    if preprocessing.scale == 255 and pixels.dtype != torch.uint8:
        dtype = str(pixels.dtype).removeprefix("torch.")
        raise UserError(
            f"images must be uint8, from 0 to 255, not {dtype}: what is normalised goes to the model itself"
        )
    return Preprocessor(preprocessing, device)(pixels)


def _picture(image: ImageLike) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image))
    try:
        return decode_image(Path(image).expanduser().read_bytes())
    except (BrokenImage, OSError) as error:
        raise UserError(f"{image} cannot be read: {error.strerror if isinstance(error, OSError) else error}") from error
