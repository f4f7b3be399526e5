"""Copy-paste: objects of another image are put into one, each at the place and size that its own jitter gave it.

Simple Copy-Paste, arXiv 2012.07177: both images are jittered, a random subset of the objects of the other is pasted
without blending, and what they cover is taken out of the shapes and boxes that were there.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.dense.box_transforms import DetectionTransform, Picture, bounds, large, unpacked
from swin_mim.data.dense.boxes import Objects, PicturesWithObjects
from swin_mim.data.timing import decoding

Sample = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class CopyPaste:
    """An image with objects of another one of the same images.

    Which other one, which of its objects and how it is jittered are functions of `rng` alone, which belongs to the
    position: neither processes nor workers nor a resumed run change them.
    """

    jitter: DetectionTransform
    """Of both images."""
    pictures: PicturesWithObjects
    """Where the others are from: all that can be learned there has a shape."""
    probability: float = 1.0
    """With which an image gets objects of another one."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the result."""
        return self.jitter.size

    def __call__(self, pair: tuple[Picture, Objects], rng: np.random.Generator) -> Sample:
        """(picture, objects) -> as `DetectionTransform`."""
        jitter = replace(self.jitter, masks=True)
        sample = jitter(pair, rng)
        chance, place = rng.random(2)
        if chance < self.probability:
            try:
                with decoding():
                    other = self.pictures.image(int(place * len(self.pictures)))
                sample = pasted(sample, _some(jitter(other, rng), rng))
            except BrokenImage:
                pass  # it is told where the image stands in the order itself; here nothing is pasted
        image, target = sample
        if not self.jitter.masks:
            target = {key: value for key, value in target.items() if key != "packed"}
        return image, target


def pasted(sample: Sample, other: Sample) -> Sample:
    """Put the objects of `other` into `sample`, at the same pixels.

    What is covered is taken out of the shapes of the objects that were there. Their boxes shrink to what is left, and
    those of which less than a pixel is left are dropped.

    Args:
        sample, other: as `DetectionTransform` gives them, with masks. What of the other lies beyond the first is cut.
    """
    (image, target), (other_image, other_target) = sample, other
    height, width = image.shape[1:]
    old, new = _shown(target, width), _within(_shown(other_target, other_image.shape[2]), height, width)
    h, w = min(height, other_image.shape[1]), min(width, other_image.shape[2])
    cover: np.ndarray = np.logical_or.reduce(new.shapes, axis=0)
    old = _reduced(old, old.shapes & ~cover)
    mixed, covered = image.clone(), torch.from_numpy(cover[:h, :w])
    mixed[:, :h, :w] = torch.where(covered, other_image[:, :h, :w], image[:, :h, :w])
    shapes, boxes, labels = (np.concatenate(parts) for parts in zip(old, new, strict=True))
    return mixed, {
        "size": target["size"],
        "packed": torch.from_numpy(np.packbits(shapes, axis=2)),
        "boxes": torch.from_numpy(boxes),
        "labels": torch.from_numpy(labels),
    }


class _Shown(NamedTuple):
    """The objects of a target."""

    shapes: np.ndarray
    """bool (n, h, w)."""
    boxes: np.ndarray
    """float32 (n, 4)."""
    labels: np.ndarray
    """int64 (n,)."""


def _shown(target: dict[str, Tensor], width: int) -> _Shown:
    shapes = unpacked(target["packed"], width).numpy().astype(bool)
    return _Shown(shapes, target["boxes"].numpy(), target["labels"].numpy())


def _reduced(shown: _Shown, shapes: np.ndarray) -> _Shown:
    """The objects with fewer pixels: the box of one that lost some is around the rest; without a rest it is dropped."""
    boxes = shown.boxes.copy()
    for index in np.flatnonzero((shapes != shown.shapes).any(axis=(1, 2))):
        boxes[index] = bounds(shapes[index])
    kept = shapes.any(axis=(1, 2)) & large(boxes)
    return _Shown(shapes[kept], boxes[kept], shown.labels[kept])


def _within(shown: _Shown, height: int, width: int) -> _Shown:
    """What of the objects lies within the first rows and columns, for an image of that size."""
    if shown.shapes.shape[1:] == (height, width):
        return shown
    inside = np.zeros_like(shown.shapes)
    inside[:, :height, :width] = shown.shapes[:, :height, :width]
    left = _reduced(shown, inside)
    shapes = np.zeros((len(left.labels), height, width), bool)
    part = left.shapes[:, :height, :width]
    shapes[:, : part.shape[1], : part.shape[2]] = part
    return left._replace(shapes=shapes)


def _some(sample: Sample, rng: np.random.Generator) -> Sample:
    """Some of the objects, any number of them from none to all."""
    image, target = sample
    count = len(target["labels"])
    number = int(rng.random() * (count + 1))
    chosen = torch.from_numpy(np.sort(rng.permutation(count)[:number]))
    parts = ("packed", "boxes", "labels")
    return image, {key: value[chosen] if key in parts else value for key, value in target.items()}
