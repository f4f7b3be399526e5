"""Images and their objects move together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as tools

from swin_mim.data.dense.box_transforms import DetectionTransform, EvaluationBoxes, unpacked
from swin_mim.data.dense.boxes import Objects
from swin_mim.data.dense.coco import collected


def pair(width, height, boxes, *, runs=False):
    """A white picture with a red rectangle for each box, and the rectangles as objects."""
    picture = Image.new("RGB", (width, height), "white")
    found = []
    for left, top, right, bottom in boxes:
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), fill=(255, 0, 0))
        shape = (np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32),)
        if runs:
            drawn = np.zeros((height, width), np.uint8)
            drawn[top:bottom, left:right] = 1
            shape = dict(tools.encode(np.asfortranarray(drawn)))
        area = (right - left) * (bottom - top)
        found.append((np.array([left, top, right, bottom], np.float32), 0, shape, False, area))
    return picture, collected(found)


@given(
    st.integers(20, 90), st.integers(20, 90), st.floats(0, 1), st.floats(0, 1), st.booleans(), st.integers(0, 2**32),
    st.sampled_from([(48, 48), (40, 64)]),
)  # fmt: skip
def test_boxes_and_shapes_lie_where_the_picture_shows_them(width, height, x, y, runs, seed, size):
    left, top = int(x * (width - 12)), int(y * (height - 12))
    transform = DetectionTransform(size, scale=(0.4, 2.0), flips="horizontal", masks=True, fill=(255, 255, 255))
    image, target = transform(
        pair(width, height, [(left, top, left + 12, top + 12)], runs=runs), np.random.default_rng(seed)
    )
    assert image.dtype == torch.uint8
    assert image.shape[1:] == tuple(target["size"].tolist())
    if size == (48, 48):
        assert image.shape == (3, 48, 48)
    red = (image[1] < 128).numpy()
    shapes = unpacked(target["packed"], image.shape[2]).numpy()
    if not len(target["boxes"]):
        assert red.sum() <= 2 * 48
        return
    (shape,), ((left, top, right, bottom),) = shapes, target["boxes"].tolist()
    rows, columns = np.nonzero(shape)
    assert abs(rows.min() - top) <= 1
    assert abs(columns.max() + 1 - right) <= 1
    assert (shape.astype(bool) ^ red).sum() <= 2 * (right - left + bottom - top) + 8, "they differ at the border alone"
    assert 0 <= left < right <= image.shape[2]
    assert 0 <= top < bottom <= image.shape[1]


def test_the_same_place_gives_the_same_and_another_one_another():
    transform = DetectionTransform((32, 32), scale=(0.5, 2.0), flips="horizontal", masks=True)
    sample = pair(60, 40, [(10, 10, 30, 30)])
    images = [transform(sample, np.random.default_rng(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_crowds_and_slivers_are_not_learned():
    picture, objects = pair(40, 40, [(5, 5, 20, 20), (0, 0, 40, 40)])
    crowded = Objects(objects.boxes, objects.labels, objects.shapes, np.array([False, True]), objects.areas)
    _, target = DetectionTransform((40, 40), masks=True)((picture, crowded), np.random.default_rng(0))
    assert target["boxes"].tolist() == [[5, 5, 20, 20]]
    _, target = DetectionTransform((40, 40), scale=(0.05, 0.05))((picture, objects), np.random.default_rng(0))
    assert target["boxes"].tolist() == [[0, 0, 2, 2]]


@pytest.mark.parametrize(("size", "expected"), [((64, 64), (32, 64)), ((40, 96), (40, 80))])
def test_evaluation_fits_images_of_any_orientation(size, expected):
    for picture, wanted in ((Image.new("RGB", (100, 50)), expected), (Image.new("RGB", (50, 100)), expected[::-1])):
        image, target = EvaluationBoxes(size)((picture, collected([])))
        assert image.shape[1:] == wanted
        assert target["original"].tolist() == [*picture.size[::-1]]
