"""Objects that are too small for the anchors of a detector, and what is said of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

from swin_mim import SwinConfig
from swin_mim.data.dense.boxes import ImagesWithObjects, Objects
from swin_mim.data.sources.base import Source
from swin_mim.models.dense.detector import SwinDetector
from swin_mim.training.dense.small_objects import fitted_sides, overlaps, suited_anchor, warn_of_small_objects

CONFIG = SwinConfig(64, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)


class Plain(Source):
    """Pictures of one size."""

    fingerprint = "plain"

    def __init__(self, count, size):
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def name(self, index):
        return str(index)

    def image(self, index):
        return Image.new("RGB", self.size[::-1])


def images(boxes, *, size=(128, 96), told=True, crowd=None):
    """Two images with the same objects."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.array(crowd)
    objects = Objects(boxes, np.zeros(len(boxes), np.int64), (None,) * len(boxes), crowd, np.ones(len(boxes)))
    return ImagesWithObjects(Plain(2, size), ("one",), (objects,) * 2, np.array([size] * 2) if told else None)


def squares(side, count=4):
    return [[10, 10, 10 + side, 10 + side]] * count


@given(st.lists(st.tuples(st.floats(1, 200), st.floats(1, 200)), min_size=1, max_size=8), st.integers(4, 40))
def test_overlaps_are_those_of_torchvision(sides, smallest):
    """With its anchors around the centre of each box."""
    levels = [smallest, 2 * smallest, 4 * smallest]
    found = overlaps(np.array(sides), levels)
    anchors = torch.cat(AnchorGenerator(tuple((side,) for side in levels), ((0.5, 1.0, 2.0),) * 3).cell_anchors)
    h, w = torch.tensor(sides, dtype=torch.float32).T
    expected = box_iou(torch.stack([-w / 2, -h / 2, w / 2, h / 2], dim=1), anchors).max(dim=1).values
    assert found == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("told", [True, False])
def test_sides_are_those_in_the_images_that_the_detector_sees(told):
    """Of 128 x 96 pixels made to fit into 64 x 64 half of both; a crowd does not count."""
    found = fitted_sides(images([[0, 0, 10, 20], [0, 0, 6, 6]], told=told, crowd=[False, True]), (64, 64))
    assert found.tolist() == [[10, 5], [10, 5]]


def test_what_would_suit_is_the_side_of_the_smallest():
    sides = np.array([[9.0, 9], [10, 10], [20, 22], [40, 36]])
    assert (overlaps(sides, [suited_anchor(sides, (32, 64, 128)) * 2**level for level in range(3)]) >= 0.5).all()
    assert 6 <= suited_anchor(sides, (32, 64, 128)) <= 13
    assert suited_anchor(np.array([[3.0, 4.0]]), (32, 64, 128)) == 5
    assert suited_anchor(np.array([[1.0, 2.0]]), (32, 64, 128)) is None
    assert suited_anchor(np.array([[3.0, 4.0]]), (4, 8, 16)) is None


def test_most_objects_are_too_small(caplog):
    model = SwinDetector(CONFIG, 1)
    warn_of_small_objects(images(squares(20)), model)
    said = caplog.records[0].getMessage()
    assert "100 % of the objects are too small for the smallest anchors of 32 px" in said
    assert "their median side is 10 px in images of 64 px" in said
    number = int(said.split("--model.smallest_anchor ")[1].split(",")[0])
    caplog.clear()
    warn_of_small_objects(images(squares(20)), SwinDetector(CONFIG, 1, smallest_anchor=number))
    assert not caplog.records


def test_what_is_proposed_suits_those_that_are_missed(caplog):
    """Not the large ones beside them; and of those that are too thin for all anchors no number is said."""
    large = squares(80, 2)
    warn_of_small_objects(images(squares(20, 3) + large), SwinDetector(CONFIG, 1))
    assert "their median side is 10 px" in caplog.records[0].getMessage()
    assert "--model.smallest_anchor 1" in caplog.records[0].getMessage()
    caplog.clear()
    warn_of_small_objects(images([[10, 10, 90, 12]] * 3 + large), SwinDetector(CONFIG, 1))
    said = caplog.records[0].getMessage()
    assert said.endswith("use a larger model.image_size, if they are not too thin for any anchor")


@pytest.mark.parametrize("boxes", [[], squares(50), squares(20, 2) + squares(50, 2), [[0, 0, 96, 128]] * 3])
def test_nothing_is_said_of_others(boxes, caplog):
    """No objects, large ones, as many large as small ones, and those of the whole image."""
    warn_of_small_objects(images(boxes), SwinDetector(CONFIG, 1))
    assert not caplog.records
