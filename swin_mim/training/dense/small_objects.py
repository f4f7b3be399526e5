"""Whether a detector's anchors are as small as the objects that it is to learn."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from swin_mim.architecture import as_pair
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.dense.box_transforms import DetectionTransform
from swin_mim.data.dense.boxes import ImagesWithObjects, size_of
from swin_mim.models.dense.detector import RATIOS, SMALLEST, SwinDetector

MATCHED = 0.3
"""Overlap with an anchor from which on torchvision does not take the anchor for background."""
LOOKED_AT = 64
"""Images that are decoded at most, where nobody says how large they are."""

_WELL = 0.5
_ENOUGH = 10_000  # objects: of more some are looked at
_LOG = logging.getLogger(__name__)


def warn_of_small_objects(images: ImagesWithObjects, model: SwinDetector) -> None:
    """Warn if most objects are so small that no anchor of the detector matches them, with what would suit.

    Args:
        images: that it is to learn from.
    """
    size = as_pair(model.encoder.config.image_size)
    sides, anchors = fitted_sides(images, size), model.anchors()
    sides = sides[:: max(1, len(sides) // _ENOUGH)]
    missed = (overlaps(sides, anchors) < MATCHED) & (sides.prod(axis=1) < anchors[0] ** 2)
    if not len(sides) or missed.mean() <= 0.5:
        return
    suited = suited_anchor(sides[missed], anchors)
    way_out = "a larger model.image_size, if they are not too thin for any anchor"
    if suited is not None:
        way_out = f"--model.smallest_anchor {suited}, or a model.image_size {anchors[0] / suited:.1f} times as large"
    _LOG.warning(
        "%.0f %% of the objects are too small for the smallest anchors of %d px (IoU below %g; their median side is "
        "%.0f px in images of %s px): use %s",
        100 * missed.mean(),
        anchors[0],
        MATCHED,
        np.median(np.sqrt(sides[missed].prod(axis=1))),
        size[0] if size[0] == size[1] else f"{size[0]} x {size[1]}",
        way_out,
    )


def fitted_sides(images: ImagesWithObjects, size: tuple[int, int]) -> np.ndarray:
    """Height and width of all objects in images that are made to fit into (H, W), float64 (n, 2); without crowds.

    Of images whose size nobody says, `LOOKED_AT` are decoded, and the objects are those of these.
    """
    fit, found = DetectionTransform(size), [np.zeros((0, 2))]
    for index, (height, width) in _sizes(images):
        frame, objects = fit.frame(height, width), images.objects[index]
        boxes = objects.boxes[~objects.crowd].astype(np.float64) * min(frame[0] / height, frame[1] / width)
        found.append((boxes[:, 2:] - boxes[:, :2])[:, ::-1])
    return np.concatenate(found)


def overlaps(sides: np.ndarray, anchors: Sequence[int]) -> np.ndarray:
    """Largest overlap (IoU) of each box with an anchor around the same centre, float64 (n,).

    Args:
        sides: float (n, 2), height and width.
        anchors: sides of the square ones, in pixels; each has others of the same area, of torchvision's ratios.
    """
    ratios = np.sqrt(np.array(RATIOS))
    exact = np.stack([np.outer(anchors, ratios), np.outer(anchors, 1 / ratios)], axis=-1).reshape(-1, 2)
    shapes = 2 * np.round(exact / 2)  # (k, 2): torchvision rounds where an anchor begins and ends
    common = np.minimum(sides[:, None], shapes).prod(axis=-1)  # (n, k)
    return np.asarray((common / (sides.prod(axis=1)[:, None] + shapes.prod(axis=1) - common)).max(axis=1))


def suited_anchor(sides: np.ndarray, anchors: Sequence[int]) -> int | None:
    """Side of the smallest anchor, in whole pixels, with which most boxes overlap an anchor by half; of several the
    largest. None: none does with any.

    Args:
        sides: float (n, 2), height and width.
        anchors: of a detector, one for each map, that are too large.
    """
    well = {
        side: (overlaps(sides, [side * 2**level for level in range(len(anchors))]) >= _WELL).sum()
        for side in range(SMALLEST, anchors[0])
    }
    best = max(well, key=lambda side: (well[side], side), default=None)
    return best if best is not None and well[best] else None


def _sizes(images: ImagesWithObjects) -> Iterator[tuple[int, tuple[int, int]]]:
    """(number, (H, W)) of images."""
    if images.sizes is not None:
        yield from ((index, (int(height), int(width))) for index, (height, width) in enumerate(images.sizes))
        return
    for index in np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).astype(int)).tolist():
        try:
            yield index, size_of(images.images.image(index))
        except BrokenImage:
            continue  # the loader tells of it
