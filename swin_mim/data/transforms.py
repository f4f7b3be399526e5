"""What is done to an image on its way to the model: crops in the workers, normalisation on the device.

Images cross from the workers as uint8 (3, H, W), a quarter of the bytes of float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

_TRIES = 10


Values = Sequence[float] | Tensor
"""One number for each channel."""


@dataclass(frozen=True)
class PretrainTransform:
    """SimMIM's augmentation: a random crop resized to `size`, then a horizontal flip of every second image."""

    size: tuple[int, int]
    """(H, W) of the result, in pixels."""
    scale: tuple[float, float] = (0.67, 1.0)
    """Least and greatest part of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width / height of the crop, relative to those of `size`."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """An RGB image of any size -> uint8 (3, H, W), a function of the image and `rng` alone."""
        stretch = self.size[1] / self.size[0]
        ratio = (self.ratio[0] * stretch, self.ratio[1] * stretch)
        box = random_crop_box(image.size, self.scale, ratio, rng)
        crop = _resize(image, self.size, box)
        return to_tensor(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop)


@dataclass(frozen=True)
class EvaluationTransform:
    """The largest centred part of the image that has the aspect of `size`, resized to it."""

    size: tuple[int, int]
    """(H, W) of the result, in pixels."""

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image of any size -> uint8 (3, H, W)."""
        (height, width), (image_width, image_height) = self.size, image.size
        shrink = min(image_width / width, image_height / height)
        crop = min(width * shrink, image_width), min(height * shrink, image_height)
        left, top = (image_width - crop[0]) / 2, (image_height - crop[1]) / 2
        return to_tensor(_resize(image, self.size, (left, top, left + crop[0], top + crop[1])))


def random_crop_box(
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draw a crop as torchvision's RandomResizedCrop does: up to 10 tries, then `central_crop_box`.

    Args:
        size: (width, height) of the image.
        scale: least and greatest part of the area; the share is uniform.
        ratio: least and greatest width / height; its logarithm is uniform.
    """
    width, height = size
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(log_low + (log_high - log_low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1))
            return left, top, left + w, top + h
    return central_crop_box(size, ratio)


def central_crop_box(size: tuple[int, int], ratio: tuple[float, float]) -> Box:
    """The largest centred box whose width / height lies in `ratio`, at least one pixel a side."""
    width, height = size
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image -> uint8 (3, H, W), contiguous."""
    pixels = np.asarray(image)  # (H, W, 3)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def normalize(images: Tensor, mean: Values, std: Values) -> Tensor:
    """uint8 (B, C, H, W) on any device -> float32: (x / 255 - mean) / std, with a mean and std for each channel.

    Tensors on the device of the images save it a wait for their copy.
    """
    return (images.float() / 255 - _per_channel(mean, images)) / _per_channel(std, images)


def denormalize(pixels: Tensor, mean: Values, std: Values) -> Tensor:
    """The inverse of `normalize`: float (B, C, H, W) -> uint8, values out of range clipped."""
    values = (pixels.float() * _per_channel(std, pixels) + _per_channel(mean, pixels)) * 255
    return values.round().clamp(0, 255).to(torch.uint8)


def _per_channel(values: Values, like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=like.device).view(-1, 1, 1)  # (C, 1, 1)


def _resize(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """Crop and resize in one pass, antialiased; `size` is (H, W)."""
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
