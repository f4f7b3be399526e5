"""Mixup and CutMix of neighbouring images, and the targets of a classifier.

The images at positions 2k and 2k + 1 are mixed with each other, and everything random about that is a function of
(seed, 2k): how the stream is cut into micro batches, by processes or accumulation, changes nothing. (timm mixes
within whatever batch a process has, from global generators.)
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from swin_mim.data.sampling import sample_generator

STREAM = 2
"""Stream of the random numbers of a position: 0 is its crop, 1 the replacements of a broken image."""

Box = tuple[int, int, int, int]  # top, bottom, left, right


class Mix(NamedTuple):
    """What is done to a pair of images."""

    share: float
    """Part of the image itself; the rest comes from the other one."""
    box: Box | None
    """CutMix: the pixels that come from the other image. None: all are blended."""


@dataclass(frozen=True)
class Mixing:
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899).

    Args:
        mixup, cutmix: alpha of the Beta distribution of the share; 0 is off.
        probability: part of the pairs that are mixed.
        switch: part of these that CutMix mixes, where both are on.
    """

    mixup: float
    cutmix: float
    probability: float
    switch: float
    seed: int

    def __call__(self, images: Tensor, targets: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Mix the images of the positions start, start + 1, ...

        Args:
            images: float (B, C, H, W), B and `start` even.
            targets: float (B, K).

        Returns:
            both mixed, of the same shapes.
        """
        batch, _, height, width = images.shape
        assert batch % 2 == start % 2 == 0, f"pairs begin at even positions: {batch} images from {start}"
        mixes = [self.draw(position, height, width) for position in range(start, start + batch, 2)]
        numbers = [(mix.share, *(mix.box or (0, 0, 0, 0)), mix.box is not None) for mix in mixes]
        drawn = torch.tensor(numbers, dtype=torch.float32).repeat_interleave(2, dim=0)  # (B, 6)
        share, top, bottom, left, right, cut = drawn.to(images.device, non_blocking=True)[..., None, None, None].unbind(
            1
        )
        rows = torch.arange(height, device=images.device)[:, None]
        columns = torch.arange(width, device=images.device)
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)  # (B, 1, H, W)
        own = torch.where(cut.bool(), (~inside).float(), share).to(images.dtype)  # (B, 1, H, W)
        label_share = share.view(-1, 1)
        return (
            images * own + _partners(images) * (1 - own),
            targets * label_share + _partners(targets) * (1 - label_share),
        )

    def draw(self, position: int, height: int, width: int) -> Mix:
        """What happens to the pair that begins at an even position."""
        rng = sample_generator(self.seed, position, STREAM)
        mixed, other = rng.random(2)
        if mixed >= self.probability:
            return Mix(1.0, None)
        cut = self.cutmix > 0 and (self.mixup == 0 or other < self.switch)
        share = float(rng.beta(self.cutmix, self.cutmix) if cut else rng.beta(self.mixup, self.mixup))
        return _cut(share, height, width, rng) if cut else Mix(share, None)


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """int64 (B,) -> float32 (B, num_classes): 1 for the class, with a part of it spread over all classes."""
    spread = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    return spread.scatter(1, labels[:, None], 1 - smoothing + smoothing / num_classes)


def multi_hot(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """bool (B, num_classes) -> float32 of this shape: 1 and 0, each moved by half of `smoothing` towards the other."""
    assert labels.shape[1] == num_classes
    return labels.float() * (1 - smoothing) + smoothing / 2


def _cut(share: float, height: int, width: int, rng: np.random.Generator) -> Mix:
    """A box of about 1 - share of the area, its centre anywhere; what lies outside the image is cut off."""
    side = math.sqrt(1 - share)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    row, column = int(rng.random() * height), int(rng.random() * width)
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def _partners(values: Tensor) -> Tensor:
    """The other one of each pair."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
