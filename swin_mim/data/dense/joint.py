"""What is done to an image and to its labels on one geometry, and how both travel in one tensor.

The image is resized bilinearly and antialiased, the labels take the nearest pixel. What lies outside of the image is
the mean of the images, or NaN of rasters, and not labelled.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import Raster, cut_raster, moved_to_pixels
from swin_mim.data.decoding.rgb import cut_out
from swin_mim.data.dense.pairs import Pair
from swin_mim.data.transforms.crops import Flips, check_flips, mirrored, to_tensor

IntBox = tuple[int, int, int, int]
"""Left, top, right, bottom, in whole pixels; it may reach beyond the image."""

_TRIES = 10


def pack(image: Tensor, labels: np.ndarray) -> Tensor:
    """An image (C, H, W) and its labels (H, W) -> one tensor: with a channel more, or two for uint16 beside uint8."""
    if image.is_floating_point():
        return torch.cat([image, torch.from_numpy(labels.astype(np.float32))[None]])
    planes = np.ascontiguousarray(labels[None] if labels.dtype == np.uint8 else np.stack([labels % 256, labels // 256]))
    return torch.cat([image, torch.from_numpy(planes.astype(np.uint8))])


def unpack(packed: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """What `pack` made of several, (B, C + 1 or 2, H, W) -> (images (B, C, H, W), labels int64 (B, H, W))."""
    images, planes = packed[:, :channels], packed[:, channels:].long()
    return images, planes[:, 0] if planes.shape[1] == 1 else planes[:, 0] + 256 * planes[:, 1]


@dataclass(frozen=True)
class WholeImage:
    """An image as it is, without labels."""

    size: tuple[int, int]
    """(H, W) that images usually have; theirs stays what it is."""

    def __call__(self, image: Image.Image | Raster) -> Tensor:
        """An image of any size -> uint8 (3, H, W), or float32 (C, H, W) of a raster, NaN where there is no pixel."""
        if isinstance(image, Image.Image):
            return to_tensor(image)
        values, valid = image
        with np.errstate(over="ignore"):  # of pixels that are not there
            pixels = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32))
        return pixels if valid is None else pixels.where(torch.from_numpy(valid)[None], torch.nan)


@dataclass(frozen=True)
class WholePair:
    """A pair as it is, for evaluation."""

    size: tuple[int, int]
    """(H, W) that images usually have; theirs stays what it is."""

    def __call__(self, pair: Pair) -> Tensor:
        """A pair of any size -> packed: uint8, or float32 of a raster, NaN where there is no pixel."""
        return pack(WholeImage(self.size)(pair.image), pair.labels)


@dataclass(frozen=True)
class JointTransform:
    """A random scale, a random crop, flips, and for RGB changes of colour: of the pair and its position alone."""

    size: tuple[int, int]
    """(H, W) of the result, in pixels."""
    unlabelled: int
    """Label of pixels that are not labelled."""
    fill: tuple[float, ...]
    """Colour outside of an RGB image, from 0 to 255."""
    resize: int | None = None
    """Shorter side of an image at a scale of 1, in pixels; None: its own."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Min and max factor of the sides."""
    max_share: float = 1.0
    """Max part of the labelled pixels of a crop that one class has; up to ten crops are drawn for it."""
    flips: Flips = "horizontal"
    photometric: bool = False
    """Random brightness, contrast, saturation and hue."""

    def __post_init__(self) -> None:
        check_flips(self.flips, self.size)

    def __call__(self, pair: Pair, rng: np.random.Generator) -> Tensor:
        """A pair of any size -> packed (C + 1 or 2, H, W): uint8, or float32 of a raster."""
        shape = pair.labels.shape
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * rng.random()
        factor *= 1.0 if self.resize is None else self.resize / min(shape)
        sides = max(1, round(self.size[0] / factor)), max(1, round(self.size[1] / factor))
        for _ in range(_TRIES):
            box = _random_box(shape, sides, rng)
            labels = nearest(pair.labels, self.size, box, self.unlabelled)
            if self._is_varied(labels) and _shows_something(pair.image, box):
                break
        if isinstance(pair.image, Raster):
            image, labels = self._of_raster(pair.image, pair.labels, labels, box)
        else:
            image = self._of_rgb(pair.image, box, rng)
        return mirrored(pack(image, labels), self.flips, rng)

    def _is_varied(self, labels: np.ndarray) -> bool:
        if self.max_share >= 1:
            return True
        counts = np.bincount(labels[labels != self.unlabelled])
        return bool(counts.size and counts.max() <= self.max_share * counts.sum())

    def _of_rgb(self, image: Image.Image, box: IntBox, rng: np.random.Generator) -> Tensor:
        left, top, right, bottom = box
        inner = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
        part = np.asarray(cut_out(image, inner))
        beyond = inner[0] - left, inner[1] - top, right - inner[2], bottom - inner[3]
        if any(beyond):  # repeated, so that nothing else mixes with the last pixels
            part = np.pad(part, ((beyond[1], beyond[3]), (beyond[0], beyond[2]), (0, 0)), mode="edge")
        pixels = torch.from_numpy(part.copy()).permute(2, 0, 1)
        if pixels.shape[1:] != self.size:
            pixels = interpolate(pixels[None], self.size, mode="bilinear", antialias=True)[0]
        if self.photometric:
            pixels = photometric(pixels, rng)
        outside = ~torch.from_numpy(_inside((image.height, image.width), self.size, box))
        fill = torch.tensor(self.fill).round().clamp(0, 255).to(torch.uint8)[:, None, None]
        return pixels.where(~outside, fill).contiguous()

    def _of_raster(self, image: Raster, labels: np.ndarray, cut: np.ndarray, box: IntBox) -> tuple[Tensor, np.ndarray]:
        try:
            return self._cut(image, box), cut
        except BrokenImage:  # no pixel is there: what is nearest to it that has some
            if image.valid is None:
                raise
            left, top, _, _ = moved_to_pixels(box, image)
            box = round(left), round(top), round(left) + box[2] - box[0], round(top) + box[3] - box[1]
            return self._cut(image, box), nearest(labels, self.size, box, self.unlabelled)

    def _cut(self, image: Raster, box: IntBox) -> Tensor:
        left, top, right, bottom = box
        height, width, channels = image.values.shape
        x, y = slice(max(left, 0), min(right, width)), slice(max(top, 0), min(bottom, height))
        values = np.zeros((bottom - top, right - left, channels), image.values.dtype)
        there = np.zeros(values.shape[:2], dtype=bool)
        place = slice(y.start - top, y.stop - top), slice(x.start - left, x.stop - left)
        values[place] = image.values[y, x]
        there[place] = True if image.valid is None else image.valid[y, x]
        cut = cut_raster(Raster(values, there), self.size, (0, 0, right - left, bottom - top))
        return cut.where(torch.from_numpy(_inside((height, width), self.size, box)), torch.nan)


def nearest(labels: np.ndarray, size: tuple[int, int], box: IntBox, unlabelled: int) -> np.ndarray:
    """Crop and resize labels (H, W) to `size`: those of the nearest pixels, and `unlabelled` outside."""
    rows, columns = _sampled(labels.shape, size, box)
    height, width = labels.shape
    y, x = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    cut = np.full(size, unlabelled, dtype=labels.dtype)
    cut[np.ix_(y, x)] = labels[np.ix_(rows[y], columns[x])]
    return cut


def photometric(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness by up to an eighth, contrast and saturation by up to a half, hue by up to a tenth of the
    circle, each in half of the images: uint8 (3, H, W) -> the same."""
    from torchvision.transforms.v2 import functional

    draws, chosen = 2 * rng.random(4) - 1, rng.random(4) < 0.5
    changes = (
        (functional.adjust_brightness, 1 + draws[0] / 8),
        (functional.adjust_contrast, 1 + draws[1] / 2),
        (functional.adjust_saturation, 1 + draws[2] / 2),
        (functional.adjust_hue, draws[3] / 10),
    )
    for (change, amount), happens in zip(changes, chosen, strict=True):
        if happens:
            pixels = change(pixels, float(amount))
    return pixels


def _random_box(shape: tuple[int, ...], sides: tuple[int, int], rng: np.random.Generator) -> IntBox:
    """A box of these sides (H, W) inside an image, or around it along an axis where that is smaller."""
    free = [size - side for size, side in zip(shape, sides, strict=True)]
    top, left = (min(0, each) + int(rng.random() * (abs(each) + 1)) for each in free)
    return left, top, left + sides[1], top + sides[0]


def _sampled(shape: tuple[int, ...], size: tuple[int, int], box: IntBox) -> tuple[np.ndarray, np.ndarray]:
    """int64: the rows and columns of the pixels under the centres of those of the result."""
    left, top, right, bottom = box
    rows, columns = (
        start + ((2 * np.arange(count) + 1) * (end - start)) // (2 * count)
        for start, end, count in ((top, bottom, size[0]), (left, right, size[1]))
    )
    return rows, columns


def _inside(shape: tuple[int, int], size: tuple[int, int], box: IntBox) -> np.ndarray:
    """bool of `size`: which pixels of the result lie in the image."""
    rows, columns = _sampled(shape, size, box)
    return ((rows >= 0) & (rows < shape[0]))[:, None] & ((columns >= 0) & (columns < shape[1]))[None]


def _shows_something(image: Image.Image | Raster, box: IntBox) -> bool:
    if not isinstance(image, Raster) or image.valid is None:
        return True
    left, top, right, bottom = box
    return bool(image.valid[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)].any())
