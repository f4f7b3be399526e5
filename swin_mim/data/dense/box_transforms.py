"""What is done to an image and its objects on their way to a detector: large-scale jitter, crop or padding, a flip."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swin_mim.data.dense.boxes import Objects, Shape, coco_masks, drawn_runs
from swin_mim.data.transforms.crops import Interpolation, to_tensor

BoxFlips = Literal["none", "horizontal"]
MIN_SIDE = 1.0
"""Pixels of width and height that must be left of an object for it to be learned."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Placed:
    """Where an image lands: it is scaled, a window of it is cut out, and that may be mirrored."""

    scale: tuple[float, float]
    """Factors of x and y."""
    corner: Pair
    """Left and top of the window in the scaled image."""
    window: Pair
    """(H, W) of it."""
    mirrored: bool

    def points(self, points: np.ndarray) -> np.ndarray:
        """(k, 2) of (x, y) in the image -> in the window, float64."""
        moved = points.astype(np.float64) * self.scale - self.corner
        if self.mirrored:
            moved[:, 0] = self.window[1] - moved[:, 0]
        return moved

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """(n, 4) -> float64 (n, 4), cut to the window."""
        height, width = self.window
        return self._whole(boxes).clip(0, np.array([width, height, width, height]))

    def cuts(self, box: np.ndarray) -> bool:
        """Whether a part of a box (4,) is outside of the window."""
        return bool((self._whole(box[None]) != self.boxes(box[None])).any())

    def _whole(self, boxes: np.ndarray) -> np.ndarray:
        corners = self.points(boxes.reshape(-1, 2)).reshape(-1, 4)
        return corners[:, [2, 1, 0, 3]] if self.mirrored else corners

    def source_box(self) -> tuple[float, float, float, float]:
        """The window in pixels of the image."""
        (across, down), (left, top), (height, width) = self.scale, self.corner, self.window
        return left / across, top / down, (left + width) / across, (top + height) / down


@dataclass(frozen=True)
class DetectionTransform:
    """An image and its objects -> the same at the size in which a detector learns or looks.

    The image is resized so that it fits into `size`, in either orientation, times a factor between the two of `scale`.
    What is larger then is cut to a random window; of a square `size` what is smaller is padded at the right and bottom,
    so that all results are alike.
    """

    size: Pair
    """(H, W) in pixels, a square or the shorter and the longer side of images of any orientation."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Min and max factor, uniform between them."""
    flips: BoxFlips = "none"
    masks: bool = False
    """Give shapes too."""
    interpolation: Interpolation = "bilinear"
    fill: tuple[int, ...] = (124, 116, 104)
    """Colour of the padding; ImageNet's mean, 0 after normalisation."""

    @property
    def square(self) -> bool:
        return self.size[0] == self.size[1]

    def frame(self, height: int, width: int) -> Pair:
        """(H, W) that an image of this size fits into."""
        short, long = sorted(self.size)
        return (long, short) if height > width else (short, long)

    def __call__(self, pair: tuple[Image.Image, Objects], rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """(picture, objects) -> uint8 (3, h, w) and its target; of these and `rng` alone.

        The target has boxes float32 (N, 4), labels int64 (N,), size int64 (2,), the pixels that are no padding of a
        batch, and with `masks` packed, uint8 (N, h, ceil(w / 8)): see `unpacked`. Crowds, and objects of which less
        than a pixel is left, are not in it.
        """
        picture, objects = pair
        placed = self.place(picture.height, picture.width, rng)
        part = picture.resize(
            placed.window[::-1], Image.Resampling[self.interpolation.upper()], box=self._inside(placed, picture)
        )
        if placed.mirrored:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        target = self._target(objects.take(~objects.crowd), placed)
        return self._padded(to_tensor(part)), target

    def place(self, height: int, width: int, rng: np.random.Generator) -> Placed:
        """Draw where an image of this size lands."""
        factor, down, across, flip = rng.random(4)
        frame = self.frame(height, width)
        fit = min(frame[0] / height, frame[1] / width) * (self.scale[0] + (self.scale[1] - self.scale[0]) * factor)
        h, w = max(1, round(height * fit)), max(1, round(width * fit))
        window = min(h, frame[0]), min(w, frame[1])
        corner = int(across * (w - window[1] + 1)), int(down * (h - window[0] + 1))
        return Placed((w / width, h / height), corner, window, bool(flip < 0.5 and self.flips == "horizontal"))

    @staticmethod
    def _inside(placed: Placed, picture: Image.Image) -> tuple[float, float, float, float]:
        left, top, right, bottom = placed.source_box()
        return left, top, min(right, picture.width), min(bottom, picture.height)

    def _padded(self, image: Tensor) -> Tensor:
        if not self.square or image.shape[1:] == self.size:
            return image
        whole = torch.tensor(self.fill, dtype=torch.uint8)[:, None, None].repeat(1, *self.size)
        whole[:, : image.shape[1], : image.shape[2]] = image
        return whole

    def _target(self, objects: Objects, placed: Placed) -> dict[str, Tensor]:
        canvas = self.size if self.square else placed.window
        boxes = placed.boxes(objects.boxes)
        kept = np.flatnonzero(_large(boxes))
        target = {"size": torch.tensor(canvas)}
        if self.masks:
            shapes = np.zeros((len(kept), *canvas), np.uint8)
            for place, index in enumerate(kept):
                shape = objects.shapes[index]
                assert shape is not None, "checked when the images were opened"
                shapes[place, : placed.window[0], : placed.window[1]] = drawn(shape, placed)
            # what a window shows of an object may be less than what it shows of its box
            for index, pixels in zip(kept, shapes, strict=True):
                if placed.cuts(objects.boxes[index]):
                    boxes[index] = _bounds(pixels)
            visible = shapes.any(axis=(1, 2)) & _large(boxes[kept])
            kept, shapes = kept[visible], shapes[visible]
            target["packed"] = torch.from_numpy(np.packbits(shapes, axis=2))
        target["boxes"] = torch.from_numpy(boxes[kept].astype(np.float32))
        target["labels"] = torch.from_numpy(objects.labels[kept])
        return target


@dataclass(frozen=True)
class EvaluationBoxes:
    """An image at the size in which a detector looks for objects, without padding."""

    size: Pair
    """As of `DetectionTransform`."""
    interpolation: Interpolation = "bilinear"

    def __call__(self, pair: tuple[Image.Image, Objects]) -> tuple[Tensor, dict[str, Tensor]]:
        """(picture, objects) -> uint8 (3, h, w), and its target: size int64 (2,), and original, that of the picture."""
        picture, _ = pair
        fit = DetectionTransform(self.size)
        height, width = fit.place(picture.height, picture.width, np.random.default_rng(0)).window
        image = to_tensor(picture.resize((width, height), Image.Resampling[self.interpolation.upper()]))
        sizes = {"size": (height, width), "original": (picture.height, picture.width)}
        return image, {key: torch.tensor(size) for key, size in sizes.items()}


def drawn(shape: Shape, placed: Placed) -> np.ndarray:
    """The pixels of an object, uint8 of the size of the window, 1 inside, drawn as pycocotools draws polygons.

    Raises:
        UserError: pycocotools is not installed.
    """
    height, width = placed.window
    if isinstance(shape, dict):
        whole = Image.fromarray(drawn_runs(shape))
        box = placed.source_box()
        box = (box[0], box[1], min(box[2], whole.width), min(box[3], whole.height))
        part = np.asarray(whole.resize((width, height), Image.Resampling.NEAREST, box=box))
        return part[:, ::-1] if placed.mirrored else part
    tools, polygons = coco_masks("a shape"), [placed.points(polygon).ravel().tolist() for polygon in shape]
    return drawn_runs(tools.merge(tools.frPyObjects(polygons, height, width)))


def unpacked(packed: Tensor, width: int) -> Tensor:
    """Masks as `DetectionTransform` gives them, uint8 (N, h, ceil(w / 8)) -> uint8 (N, h, w) of 0 and 1."""
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    return ((packed[..., None] >> shifts) & 1).flatten(2)[..., :width]


def _large(boxes: np.ndarray) -> np.ndarray:
    """bool (n,): boxes that have enough width and height to be learned."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(axis=1)


def _bounds(shape: np.ndarray) -> np.ndarray:
    """The box around the pixels of an object, of none without any."""
    rows, columns = (np.flatnonzero(shape.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros(4)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
