"""What is done to an image on its way to the model: crops in the workers, normalisation on the device.

RGB images cross from the workers as uint8 (3, H, W), a quarter of the bytes of float32. Rasters are float32 (C, H, W),
in the units of their files, and NaN where there is nothing.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from swin_mim.data.decoding.raster import Raster, cut_where_pixels_are
from swin_mim.data.decoding.rgb import Box, Decoded, EncodedJpeg, cut_out
from swin_mim.data.transforms.rand_augment import check_policy, rand_augment
from swin_mim.errors import UserError

Interpolation = Literal["bilinear", "bicubic"]
Flips = Literal["none", "horizontal", "both", "dihedral"]
"""Which of its mirror images a picture becomes with equal chances: left to right, also top to bottom, and the quarter
turns of all these too, for pictures without up and down."""

_TRIES = 10


Values = Sequence[float] | Tensor
"""One number for each channel."""


@dataclass(frozen=True)
class PretrainTransform:
    """SimMIM's augmentation: a random crop resized to `size`, then a flip.

    A JPEG need not be decoded whole for it, but only to a scale at which the crop still has as many pixels as `size`,
    or more, which depends on the crop and the size of the image alone. Crops and flips are those of the whole image, to
    parts of a pixel. What changes is that the image is resized in two steps, the first of which leaves out its high
    frequencies: the mean difference from a whole decoding is below one grey level of 255 in every crop of aerial
    pictures (on average half a level), below two in every one of a sharp photograph (1.3), and no pixel was off by more
    than 64. Evaluation and fine-tuning decode whole images.
    """

    size: tuple[int, int]
    """(H, W) of the result, in pixels."""
    scale: tuple[float, float] = (0.67, 1.0)
    """Min and max part of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Min and max width / height of the crop, relative to those of `size`."""
    flips: Flips = "horizontal"

    def __post_init__(self) -> None:
        check_flips(self.flips, self.size)

    def __call__(self, image: Image.Image | Decoded | EncodedJpeg | Raster, rng: np.random.Generator) -> Tensor:
        """An image of any size -> uint8 (3, H, W), or float32 (C, H, W) of a raster; of the image and `rng` alone.

        Raises:
            BrokenImage: it cannot be decoded, or too few pixels of a raster are there to be seen.
        """
        if isinstance(image, Raster):
            height, width, _ = image.values.shape
            boxes = (self._box((width, height), rng) for _ in range(_TRIES))
            cut = cut_where_pixels_are(image, self.size, boxes)
        else:
            opened = Decoded.whole(image) if isinstance(image, Image.Image) else image
            box = self._box(opened.size, rng)
            decoded = opened.decode(self._shrink(box))
            cut = _cut(decoded.image, self.size, decoded.place(box))
        return mirrored(cut, self.flips, rng)

    def _shrink(self, box: Box) -> float:
        """Number by which the sides of a crop may be divided."""
        left, top, right, bottom = box
        return min((right - left) / self.size[1], (bottom - top) / self.size[0])

    def _box(self, size: tuple[int, int], rng: np.random.Generator) -> Box:
        stretch = self.size[1] / self.size[0]
        return random_crop_box(size, self.scale, (self.ratio[0] * stretch, self.ratio[1] * stretch), rng)


@dataclass(frozen=True)
class FinetuneTransform:
    """The augmentation of SimMIM's fine-tuning, in the order of timm's `create_transform`.

    A random crop, flips, RandAugment, colour jitter, random erasing. The operations are timm's and torchvision's; the
    random numbers that these draw from global generators come from the image's own.
    """

    size: tuple[int, int]
    """(H, W) of the result, in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Min and max part of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Min and max width / height of the crop, relative to those of `size`."""
    interpolation: Interpolation = "bicubic"
    flips: Flips = "horizontal"
    auto: str | None = None
    """RandAugment in timm's notation, as "rand-m9-mstd0.5-inc1"."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation."""
    random_erasing: float = 0.0
    """Part of the images of which a rectangle becomes noise."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of the normalisation that follows; the noise is normal after it, and cut to what 8 bits hold."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        check_policy(self.auto)
        check_flips(self.flips, self.size)

    def __call__(self, image: Image.Image | Raster, rng: np.random.Generator) -> Tensor:
        """An image of any size -> uint8 (3, H, W), or float32 (C, H, W) of a raster; of the image and `rng` alone.

        Rasters are cropped and flipped, and what else there is must be off.

        Raises:
            BrokenImage: too few pixels of a raster are there to be seen.
        """
        stretch = self.size[1] / self.size[0]
        ratio = (self.ratio[0] * stretch, self.ratio[1] * stretch)
        if isinstance(image, Raster):
            assert not any((self.auto, self.color_jitter, self.random_erasing)), "of RGB images only"
            height, width, _ = image.values.shape
            boxes = (random_crop_box((width, height), self.scale, ratio, rng) for _ in range(_TRIES))
            return mirrored(cut_where_pixels_are(image, self.size, boxes, self.interpolation), self.flips, rng)
        image = _resize(image, self.size, random_crop_box(image.size, self.scale, ratio, rng), self.interpolation)
        image = _flipped(image, self.flips, rng)
        with _global_generators(rng):
            for change in self._changes:
                image = change(image)
            return self._erased(to_tensor(image))

    @cached_property
    def _changes(self) -> list[Callable[[Image.Image], Image.Image]]:
        changes: list[Callable[[Image.Image], Image.Image]] = []
        if self.auto:
            changes.append(rand_augment(self.auto, self.size, self.mean, self.interpolation))
        if self.color_jitter:
            from torchvision.transforms import ColorJitter

            changes.append(ColorJitter(*[self.color_jitter] * 3))
        return changes

    def _erased(self, image: Tensor) -> Tensor:
        if not self.random_erasing:
            return image
        from timm.data.random_erasing import RandomErasing

        normal = normalize(image[None], self.mean, self.std)[0]
        erase = RandomErasing(self.random_erasing, mode="pixel", device="cpu")
        return denormalize(erase(normal)[None], self.mean, self.std)[0]


@contextmanager
def _global_generators(rng: np.random.Generator) -> Iterator[None]:
    """Inside, the generators of Python, numpy and torch continue from `rng`; afterwards as if nothing had been."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - timm draws from it
    seeds = [int(seed) for seed in rng.integers(2**32, size=3)]
    try:
        random.seed(seeds[0])
        np.random.seed(seeds[1])  # noqa: NPY002
        torch.default_generator.manual_seed(seeds[2])
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


@dataclass(frozen=True)
class EvaluationTransform:
    """The largest centred part of the image that has the aspect of `size`, or a part of it, resized to `size`.

    A `crop_pct` of 0.875 is what resizing to 256 and cutting out 224 takes, but for rounding to whole pixels between.
    """

    size: tuple[int, int]
    """(H, W) of the result, in pixels."""
    interpolation: Interpolation = "bilinear"
    crop_pct: float = 1.0
    """Side of the part that is taken, as a part of the largest one's."""

    def __call__(self, image: Image.Image | Raster) -> Tensor:
        """An image of any size -> uint8 (3, H, W), or float32 (C, H, W) of a raster, cut out at whole pixels.

        A raster whose middle has no pixels is cut out where it has some.

        Raises:
            BrokenImage: as `PretrainTransform`.
        """
        if isinstance(image, Raster):
            boxes = iter([self._box(image.values.shape[1::-1])])
            return cut_where_pixels_are(image, self.size, boxes, self.interpolation)
        return to_tensor(_resize(image, self.size, self._box(image.size), self.interpolation))

    def _box(self, size: tuple[int, ...]) -> Box:
        (height, width), (image_width, image_height) = self.size, size
        shrink = min(image_width / width, image_height / height) * self.crop_pct
        crop = min(width * shrink, image_width), min(height * shrink, image_height)
        left, top = (image_width - crop[0]) / 2, (image_height - crop[1]) / 2
        return left, top, left + crop[0], top + crop[1]


def random_crop_box(
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draw a crop as torchvision's RandomResizedCrop does: up to 10 tries, then `central_crop_box`.

    Args:
        size: (width, height) of the image.
        scale: min and max part of the area; the share is uniform.
        ratio: min and max width / height; its logarithm is uniform.
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


def normalize(images: Tensor, mean: Values, std: Values, scale: float = 255) -> Tensor:
    """(B, C, H, W) on any device -> float32: (x / scale - mean) / std, with a mean and std for each channel.

    Tensors on the device of the images save it a wait for their copy.

    Args:
        scale: 255 for uint8 images, whose mean and std are of values from 0 to 1; 1 for those in the units of files.
    """
    pixels = images.to(torch.float32, copy=True)  # the one new tensor: each is four times as large as the images
    if scale != 1:
        pixels.div_(scale)
    return pixels.sub_(_per_channel(mean, images)).div_(_per_channel(std, images))


def denormalize(pixels: Tensor, mean: Values, std: Values, scale: float = 255) -> Tensor:
    """The inverse of `normalize`: float (B, C, H, W) -> uint8, values out of range clipped; float32 if `scale` is 1."""
    values = (pixels.float() * _per_channel(std, pixels) + _per_channel(mean, pixels)) * scale
    return values if scale == 1 else values.round().clamp(0, 255).to(torch.uint8)


def check_flips(flips: Flips, size: tuple[int, int]) -> None:
    """Refuse quarter turns of images that are not square.

    Raises:
        UserError: names both sides.
    """
    if flips == "dihedral" and size[0] != size[1]:
        raise UserError(
            f"flips dihedral turns images by quarters, and these are {size[0]} x {size[1]} pixels: use both"
        )


def _draw_flips(flips: Flips, rng: np.random.Generator) -> tuple[bool, bool, bool]:
    """Whether to mirror left to right, then top to bottom, and then to exchange rows and columns."""
    sideways, upside_down, transposed = rng.random(3) < 0.5
    return (
        sideways and flips != "none",
        upside_down and flips in ("both", "dihedral"),
        transposed and flips == "dihedral",
    )


def mirrored(pixels: Tensor, flips: Flips, rng: np.random.Generator) -> Tensor:
    """Flip at random: (C, H, W), with H = W for quarter turns -> the same, contiguous."""
    sideways, upside_down, transposed = _draw_flips(flips, rng)
    pixels = pixels.flip([axis for axis, flip in ((2, sideways), (1, upside_down)) if flip])
    return (pixels.mT if transposed else pixels).contiguous()


def _flipped(image: Image.Image, flips: Flips, rng: np.random.Generator) -> Image.Image:
    sideways, upside_down, transposed = _draw_flips(flips, rng)
    if sideways:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if upside_down:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if transposed:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    return image


def _per_channel(values: Values, like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=like.device).view(-1, 1, 1)  # (C, 1, 1)


def _cut(image: Image.Image | np.ndarray, size: tuple[int, int], box: Box) -> Tensor:
    """Crop and resize to `size`, bilinear and antialiased: an RGB image or uint8 (h, w, 3) -> uint8 (3, H, W)."""
    left, top, right, bottom = map(int, box)
    if isinstance(image, np.ndarray) and image.strides[2] < 0:
        # blue first: copying rows takes little, copying bytes one by one much, so that the colours change places last
        return _cut(image[..., ::-1], size, box).flip(0)
    if isinstance(image, np.ndarray):
        pixels = torch.from_numpy(image[top:bottom, left:right].copy())
    elif (left, top, right, bottom) == tuple(box):
        part = cut_out(image, (left, top, right, bottom))
        # as Pillow holds it, with a byte for nothing in each pixel: a copy and no conversion
        pixels = torch.frombuffer(bytearray(part.tobytes("raw", "RGBX")), dtype=torch.uint8)
        pixels = pixels.view(part.height, part.width, 4)
    else:
        return to_tensor(_resize(image, size, box))
    # torch's resize takes a quarter of the time of Pillow's, and gives the same, but knows whole pixels only
    return interpolate(pixels.permute(2, 0, 1)[None], size, mode="bilinear", antialias=True)[0, :3]


def _resize(
    image: Image.Image, size: tuple[int, int], box: Box, interpolation: Interpolation = "bilinear"
) -> Image.Image:
    """Crop and resize in one pass, antialiased; `size` is (H, W)."""
    return image.resize((size[1], size[0]), Image.Resampling[interpolation.upper()], box=box)
