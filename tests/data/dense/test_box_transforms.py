"""Images and their objects move together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as tools

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import Raster
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


def as_raster(picture, valid=None):
    """Green and blue of a picture, in hundreds: white is 25500, the rectangles are 0."""
    return Raster(np.asarray(picture)[..., 1:].astype(np.uint16) * 100, valid)


@given(
    st.integers(20, 90), st.integers(20, 90), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32),
    st.sampled_from([(48, 48), (40, 64)]),
)  # fmt: skip
def test_objects_of_a_raster_lie_where_it_shows_them(width, height, x, y, seed, size):
    """Its windows are of whole pixels, and boxes and shapes go with them."""
    left, top = int(x * (width - 12)), int(y * (height - 12))
    picture, objects = pair(width, height, [(left, top, left + 12, top + 12)])
    transform = DetectionTransform(size, scale=(0.4, 2.0), flips="horizontal", masks=True)
    image, target = transform((as_raster(picture), objects), np.random.default_rng(seed))
    assert image.dtype == torch.float32
    assert (len(image), *image.shape[1:]) == (2, *target["size"].tolist())
    there = ~image[0].isnan().numpy()
    assert there.any(axis=1).sum() * there.any(axis=0).sum() == there.sum(), "padding is a gap, and nothing else is"
    dark = (image[1] < 12_750).numpy()
    if not len(target["boxes"]):
        assert dark.sum() <= 2 * 48
        return
    (shape,), ((left, top, right, bottom),) = unpacked(target["packed"], image.shape[2]).numpy(), target["boxes"]
    rows, columns = np.nonzero(shape)
    assert abs(rows.min() - top) <= 1
    assert abs(columns.max() + 1 - right) <= 1
    assert (shape.astype(bool) ^ dark).sum() <= 2 * (right - left + bottom - top) + 8, "they differ at the border alone"


def test_what_lies_in_a_gap_is_not_learned():
    picture, objects = pair(48, 48, [(4, 4, 20, 20), (4, 28, 20, 44), (20, 4, 40, 20)])
    valid = np.ones((48, 48), bool)
    valid[:22, :30] = False  # all of the first one, none of the second, half of the third
    for masks in (True, False):
        image, target = DetectionTransform((48, 48), masks=masks)(
            (as_raster(picture, valid), objects), np.random.default_rng(0)
        )
        assert torch.equal(~image[0].isnan(), torch.from_numpy(valid))
        assert target["boxes"].tolist() == [[4, 28, 20, 44], [20, 4, 40, 20]]
    shapes = unpacked(DetectionTransform((48, 48), masks=True)(
        (as_raster(picture, valid), objects), np.random.default_rng(0))[1]["packed"], 48)  # fmt: skip
    assert shapes[1].sum() == 10 * 16


def test_a_window_shows_something_of_a_raster_with_gaps():
    picture, objects = pair(80, 80, [(60, 60, 76, 76)])
    valid = np.zeros((80, 80), bool)
    valid[56:, 56:] = True
    transform = DetectionTransform((32, 32), scale=(1.0, 3.0), masks=True)
    for seed in range(50):
        image, _ = transform((as_raster(picture, valid), objects), np.random.default_rng(seed))
        assert not image[0].isnan().all()
    with pytest.raises(BrokenImage, match="too few"):
        transform((as_raster(picture, np.zeros((80, 80), bool)), objects), np.random.default_rng(0))
    image, target = EvaluationBoxes((40, 40))((as_raster(picture, valid), objects))
    assert (image.shape, image.dtype) == ((2, 40, 40), torch.float32)
    assert (~image[0].isnan()).sum() == 12 * 12
    assert target["original"].tolist() == [80, 80]
