"""What is done to an image and its objects on their way to a detector: large-scale jitter, crop or padding, a flip."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import Raster, cut_raster
from swin_mim.data.dense.boxes import Objects, Shape, coco_masks, drawn_runs, size_of
from swin_mim.data.transforms.crops import Interpolation, to_tensor

BoxFlips = Literal["none", "horizontal"]
MIN_SIDE = 1.0
"""Pixels of width and height that must be left of an object for it to be learned."""

TRIES = 10
"""Places that are drawn for an image with gaps until one shows something."""

Pair = tuple[int, int]
Picture = Image.Image | Raster


@dataclass(frozen=True)
class Placed:
    """Where an image lands: it is scaled, a window of it is cut out, and that may be mirrored."""

    scale: tuple[float, float]
    """Factors of x and y."""
    corner: tuple[float, float]
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

    def on_whole_pixels(self, height: int, width: int) -> "Placed":
        """Nearly the same, where the window is made of whole pixels of an image of this size, as rasters are cut."""
        left, top, right, bottom = map(round, self.source_box())
        left, top = min(left, width - 1), min(top, height - 1)
        right, bottom = min(max(right, left + 1), width), min(max(bottom, top + 1), height)
        across, down = self.window[1] / (right - left), self.window[0] / (bottom - top)
        return replace(self, scale=(across, down), corner=(left * across, top * down))


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
    """Colour of the padding of RGB images; ImageNet's mean, 0 after normalisation. That of rasters is NaN, a gap."""

    @property
    def square(self) -> bool:
        return self.size[0] == self.size[1]

    def frame(self, height: int, width: int) -> Pair:
        """(H, W) that an image of this size fits into."""
        short, long = sorted(self.size)
        return (long, short) if height > width else (short, long)

    def __call__(self, pair: tuple[Picture, Objects], rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """(picture, objects) -> uint8 (3, h, w), or of a raster float32 (C, h, w), and its target; of these and `rng`
        alone.

        The target has boxes float32 (N, 4), labels int64 (N,), size int64 (2,), the pixels that are no padding of a
        batch, and with `masks` packed, uint8 (N, h, ceil(w / 8)): see `unpacked`. Crowds, and objects of which less
        than a pixel is left or that lie in a gap, are not in it.

        Raises:
            BrokenImage: of a raster, too few of its pixels are there to be seen.
        """
        picture, objects = pair
        there = None
        if isinstance(picture, Raster):
            placed, image = self._of_raster(picture, rng)
            there = None if picture.valid is None else (~image[0].isnan()).numpy()
        else:
            placed = self.place(picture.height, picture.width, rng)
            image = to_tensor(self._of_rgb(picture, placed))
        return self._padded(image), self._target(objects.take(~objects.crowd), placed, there)

    def place(self, height: int, width: int, rng: np.random.Generator) -> Placed:
        """Draw where an image of this size lands."""
        factor, down, across, flip = rng.random(4)
        frame = self.frame(height, width)
        fit = min(frame[0] / height, frame[1] / width) * (self.scale[0] + (self.scale[1] - self.scale[0]) * factor)
        h, w = max(1, round(height * fit)), max(1, round(width * fit))
        window = min(h, frame[0]), min(w, frame[1])
        corner = int(across * (w - window[1] + 1)), int(down * (h - window[0] + 1))
        return Placed((w / width, h / height), corner, window, bool(flip < 0.5 and self.flips == "horizontal"))

    def _of_rgb(self, picture: Image.Image, placed: Placed) -> Image.Image:
        left, top, right, bottom = placed.source_box()
        box = (left, top, min(right, picture.width), min(bottom, picture.height))
        part = picture.resize(placed.window[::-1], Image.Resampling[self.interpolation.upper()], box=box)
        return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if placed.mirrored else part

    def _of_raster(self, raster: Raster, rng: np.random.Generator) -> tuple[Placed, Tensor]:
        """A window that shows something, the whole image if none is found."""
        size = size_of(raster)
        for _ in range(TRIES):
            placed = self.place(*size, rng).on_whole_pixels(*size)
            try:
                return placed, cut(raster, placed, self.interpolation)
            except BrokenImage:
                continue
        placed = replace(self, scale=(1.0, 1.0), flips="none").place(*size, rng)
        return placed, cut(raster, placed, self.interpolation)

    def _padded(self, image: Tensor) -> Tensor:
        if not self.square or image.shape[1:] == self.size:
            return image
        if image.is_floating_point():
            whole = image.new_full((len(image), *self.size), torch.nan)
        else:
            whole = torch.tensor(self.fill, dtype=torch.uint8)[:, None, None].repeat(1, *self.size)
        whole[:, : image.shape[1], : image.shape[2]] = image
        return whole

    def _target(self, objects: Objects, placed: Placed, there: np.ndarray | None) -> dict[str, Tensor]:
        """What the window shows of the objects; `there` are its pixels that are no gaps, None: all are."""
        canvas = self.size if self.square else placed.window
        boxes = placed.boxes(objects.boxes)
        kept = np.flatnonzero(large(boxes) & _seen(boxes, there))
        target = {"size": torch.tensor(canvas)}
        if self.masks:
            shapes = np.zeros((len(kept), *canvas), np.uint8)
            for place, index in enumerate(kept):
                shape = objects.shapes[index]
                assert shape is not None, "checked when the images were opened"
                pixels = drawn(shape, placed)
                shapes[place, : placed.window[0], : placed.window[1]] = pixels if there is None else pixels & there
            # what a window shows of an object may be less than what it shows of its box
            for index, pixels in zip(kept, shapes, strict=True):
                if placed.cuts(objects.boxes[index]):
                    boxes[index] = bounds(pixels)
            visible = shapes.any(axis=(1, 2)) & large(boxes[kept])
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

    def __call__(self, pair: tuple[Picture, Objects]) -> tuple[Tensor, dict[str, Tensor]]:
        """(picture, objects) -> uint8 (3, h, w), or float32 (C, h, w) of a raster, NaN in gaps; and its target: size
        int64 (2,), and original, that of the picture.

        Raises:
            BrokenImage: of a raster, too few of its pixels are there to be seen.
        """
        picture, _ = pair
        whole = DetectionTransform(self.size).place(*size_of(picture), np.random.default_rng(0))
        if isinstance(picture, Raster):
            image = cut(picture, whole, self.interpolation)
        else:
            image = to_tensor(picture.resize(whole.window[::-1], Image.Resampling[self.interpolation.upper()]))
        sizes = {"size": whole.window, "original": size_of(picture)}
        return image, {key: torch.tensor(size) for key, size in sizes.items()}


def cut(raster: Raster, placed: Placed, interpolation: Interpolation) -> Tensor:
    """What lands in the window, of whole pixels of the raster: float32 (C, h, w), NaN in gaps.

    Raises:
        BrokenImage: too few of its pixels are there to be seen.
    """
    part = cut_raster(raster, placed.window, placed.source_box(), interpolation)
    return part.flip(-1) if placed.mirrored else part


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


def large(boxes: np.ndarray) -> np.ndarray:
    """bool (n,): boxes that have enough width and height to be learned."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(axis=1)


def bounds(shape: np.ndarray) -> np.ndarray:
    """The box around the pixels of an object, of none without any."""
    rows, columns = (np.flatnonzero(shape.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros(4)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)


def _seen(boxes: np.ndarray, there: np.ndarray | None) -> np.ndarray:
    """bool (n,): boxes in which a pixel is there."""
    if there is None:
        return np.ones(len(boxes), bool)
    corners = [(*np.floor(box[:2]).astype(int), *np.ceil(box[2:]).astype(int)) for box in boxes]
    seen = [bool(there[top:bottom, left:right].any()) for left, top, right, bottom in corners]
    return np.array(seen, dtype=bool)
