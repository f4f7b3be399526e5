"""Objects of another image are put into one, and what they cover is gone."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.dense.box_transforms import DetectionTransform, unpacked
from swin_mim.data.dense.boxes import ImagesWithObjects, PicturesWithObjects
from swin_mim.data.dense.coco import collected
from swin_mim.data.dense.copy_paste import CopyPaste, pasted
from swin_mim.data.loading.loader import LoaderOptions, TrainingLoader
from swin_mim.data.sources.base import Source


class Drawn(Source):
    """Pictures in memory; None cannot be decoded."""

    def __init__(self, pictures):
        self._pictures, self.fingerprint = pictures, "drawn"

    def __len__(self):
        return len(self._pictures)

    def name(self, index):
        return str(index)

    def image(self, index):
        if self._pictures[index] is None:
            raise BrokenImage("it is torn")
        return self._pictures[index]


def drawn(seed, sides=(40, 60), most=4):
    """A picture of one grey, and in it rectangles whose colour tells which they are."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(*sides, 2).tolist()
    picture, found = Image.new("RGB", (width, height), (seed % 50, 0, 0)), []
    for number in range(int(rng.integers(0, most + 1))):
        w, h = rng.integers(4, 25, 2).tolist()
        left, top = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        ImageDraw.Draw(picture).rectangle((left, top, left + w - 1, top + h - 1), fill=(100 + number, seed % 256, 200))
        corners = [[left, top], [left + w, top], [left + w, top + h], [left, top + h]]
        box = np.array([left, top, left + w, top + h], np.float32)
        found.append((box, number, (np.array(corners, np.float32),), False, float(w * h)))
    return picture, collected(found)


def pictures(pairs):
    names = tuple("abcd")
    return PicturesWithObjects(ImagesWithObjects(Drawn([each for each, _ in pairs]), names, tuple(o for _, o in pairs)))


JITTER = DetectionTransform((48, 48), scale=(0.4, 2.0), flips="horizontal", masks=True)


def shapes_of(image, target):
    return unpacked(target["packed"], image.shape[2]).numpy().astype(bool)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 2**32), st.sampled_from([(48, 48), (40, 64)]))
def test_what_is_pasted_covers_what_was_there(one, two, seed, size):
    rng = np.random.default_rng(seed)
    jitter = DetectionTransform(size, scale=(0.4, 2.0), flips="horizontal", masks=True)
    sample, other = (jitter(drawn(each), rng) for each in (one, two))
    before = sample[0].clone(), {key: value.clone() for key, value in sample[1].items()}
    image, target = pasted(sample, other)
    height, width = image.shape[1:]
    assert tuple(target["size"].tolist()) == (height, width)
    new = np.zeros((len(other[1]["labels"]), height, width), bool)
    theirs = shapes_of(*other)[:, :height, :width]
    new[:, : theirs.shape[1], : theirs.shape[2]] = theirs
    cover = new.any(axis=0)
    h, w = min(height, other[0].shape[1]), min(width, other[0].shape[2])
    assert torch.equal(image[:, ~cover], sample[0][:, ~cover])
    assert torch.equal(image[:, :h, :w][:, cover[:h, :w]], other[0][:, :h, :w][:, cover[:h, :w]])
    left = shapes_of(*sample) & ~cover
    expected = [shape for shape in [*left, *new] if shape.any()]
    found = shapes_of(image, target)
    assert len(found) <= len(expected)
    assert {shape.tobytes() for shape in found} <= {shape.tobytes() for shape in expected}
    for shape, box in zip(found, target["boxes"].tolist(), strict=True):
        rows, columns = np.nonzero(shape)
        # of what nothing was taken the box stays: it is that of the file, which is not of whole pixels
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.array(box) - around).max() <= 1.01
        assert box[2] - box[0] >= 1
        assert box[3] - box[1] >= 1
    dropped = [shape for shape in expected if shape.tobytes() not in {each.tobytes() for each in found}]
    assert all(min(shape.any(axis=0).sum(), shape.any(axis=1).sum()) <= 1 for shape in dropped), "less than a pixel"
    assert torch.equal(sample[0], before[0]), "the arguments stay"
    assert all(torch.equal(value, before[1][key]) for key, value in sample[1].items())


def test_a_covered_object_is_gone_and_a_half_covered_one_is_half_as_large():
    def sample(colour, boxes):
        shapes = np.zeros((len(boxes), 8, 8), np.uint8)
        for shape, (left, top, right, bottom) in zip(shapes, boxes, strict=True):
            shape[top:bottom, left:right] = 1
        labels = torch.arange(len(boxes)) + colour
        packed = torch.from_numpy(np.packbits(shapes, axis=2))
        target = {"size": torch.tensor((8, 8)), "packed": packed, "labels": labels}
        return torch.full((3, 8, 8), colour, dtype=torch.uint8), {**target, "boxes": torch.tensor(boxes).float()}

    image, target = pasted(sample(10, [[0, 0, 2, 2], [2, 0, 6, 2], [0, 6, 8, 8]]), sample(20, [[0, 0, 4, 4]]))
    assert target["labels"].tolist() == [11, 12, 20]
    assert target["boxes"].tolist() == [[4, 0, 6, 2], [0, 6, 8, 8], [0, 0, 4, 4]]
    assert (image[0] == 20).sum() == 16


def test_nothing_is_pasted_without_luck_without_objects_or_from_a_broken_image():
    pair = drawn(1)
    sets = {
        "chance": (pictures([drawn(seed) for seed in range(5)]), 0.0),
        "objects": (pictures([(drawn(seed)[0], collected([])) for seed in range(5)]), 1.0),
        "broken": (pictures([(None, drawn(seed)[1]) for seed in range(5)]), 1.0),
    }
    for name, (others, probability) in sets.items():
        for seed in range(10):
            image, target = CopyPaste(JITTER, others, probability)(pair, np.random.default_rng(seed))
            plain, wanted = JITTER(pair, np.random.default_rng(seed))
            assert torch.equal(image, plain), name
            assert target.keys() == wanted.keys()
            assert all(torch.equal(target[key], wanted[key]) for key in wanted), name


def test_about_half_of_the_objects_come_as_often_as_asked():
    """Any number from none to all: of images with 4 objects 2 on the average, where the window shows them."""
    whole = DetectionTransform((64, 64), masks=True)
    pairs = [pair for pair in (drawn(seed, most=4) for seed in range(200)) if len(pair[1]) == 4]
    empty = (Image.new("RGB", (64, 64)), collected([]))
    counts = [
        len(CopyPaste(whole, pictures(pairs), 0.5)(empty, np.random.default_rng(seed))[1]["labels"])
        for seed in range(400)
    ]
    assert max(counts) == 4
    assert np.mean(counts) == pytest.approx(0.5 * 2, abs=0.2)


def test_boxes_alone_need_no_shapes_in_the_result():
    boxes_alone = DetectionTransform((48, 48), scale=(0.4, 2.0), flips="horizontal")
    others = pictures([drawn(seed) for seed in range(5)])
    for seed in range(20):
        image, target = CopyPaste(boxes_alone, others)(drawn(7), np.random.default_rng(seed))
        expected, wanted = CopyPaste(JITTER, others)(drawn(7), np.random.default_rng(seed))
        assert torch.equal(image, expected)
        assert target.keys() == {"size", "boxes", "labels"}
        assert torch.equal(target["boxes"], wanted["boxes"])


@pytest.mark.parametrize(("workers", "world"), [(2, 1), (0, 2)])
def test_position_alone_decides(workers, world):
    """From the start, from the middle, by workers, on two processes: every position has the same pixels and boxes."""
    others = pictures([drawn(seed) for seed in range(7)])
    transform = CopyPaste(JITTER, others, 0.7)

    def samples(seen, steps, options):
        loader = TrainingLoader(others, transform, seed=3, global_batch=4, micro_batch=2, options=options)
        found = {}
        for batch in islice(loader.batches(seen), steps * 2 // options.world):
            for place, (image, target) in enumerate(zip(batch.images, batch.targets, strict=True)):
                found[batch.start + place] = (image, target)
        return found

    expected = samples(0, 4, LoaderOptions())
    later = [samples(8, 2, LoaderOptions(rank, world, workers)) for rank in range(world)]
    again = {position: sample for part in later for position, sample in part.items()}
    assert again.keys() == set(range(8, 16))
    for position, (image, target) in again.items():
        assert torch.equal(image, expected[position][0])
        assert all(torch.equal(value, expected[position][1][key]) for key, value in target.items())
