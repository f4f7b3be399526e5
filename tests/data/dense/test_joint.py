"""Crops of images and labels on one geometry."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from swin_mim.data.decoding.raster import Raster
from swin_mim.data.dense.joint import JointTransform, WholePair, pack, unpack
from swin_mim.data.dense.pairs import Pair
from swin_mim.data.sampling import sample_generator

COLOURS = np.array([[10, 200, 30], [200, 20, 90], [90, 90, 250]], dtype=np.uint8)
TRANSFORM = JointTransform((24, 32), unlabelled=255, fill=(127.0, 3.0, 60.0), flips="both")


@pytest.fixture
def pair() -> Pair:
    """Large squares of classes, in the colours of these."""
    labels = np.random.default_rng(0).integers(0, 3, (5, 7), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    return Pair(Image.fromarray(COLOURS[labels]), labels)


def crop(transform: JointTransform, pair: Pair, position: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, C) and (H, W)."""
    channels = 3 if isinstance(pair.image, Image.Image) else pair.image.values.shape[2]
    images, labels = unpack(transform(pair, sample_generator(0, position))[None], channels)
    return images[0].permute(1, 2, 0).numpy(), labels[0].numpy()


@pytest.mark.parametrize("resize", [None, 40])
def test_labels_are_where_their_colours_are(resize: int | None, pair: Pair) -> None:
    """Where all neighbours are of one class the pixel has its colour, whatever scale, crop and flip."""
    transform, padded, seen = replace(TRANSFORM, resize=resize), 0, 0
    for position in range(60):
        image, labels = crop(transform, pair, position)
        assert image.shape == (24, 32, 3)
        outside = labels == 255
        padded += outside.any()
        assert (image[outside] == (127, 3, 60)).all()
        around = np.lib.stride_tricks.sliding_window_view(labels, (7, 7)).reshape(18, 26, 49)
        inner = (around.min(axis=2) == around.max(axis=2)) & ~outside[3:-3, 3:-3]
        assert np.abs(image[3:-3, 3:-3][inner].astype(int) - COLOURS[labels[3:-3, 3:-3][inner]]).max(initial=0) <= 8
        seen += inner.sum()
    assert seen > 1000
    assert padded if resize else not padded


def test_a_crop_is_a_function_of_its_position(pair: Pair) -> None:
    transform = replace(TRANSFORM, photometric=True, max_share=0.6)
    first = [transform(pair, sample_generator(3, position)) for position in range(8)]
    torch.manual_seed(5)
    again = [transform(pair, sample_generator(3, position)) for position in reversed(range(8))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert len({tensor.numpy().tobytes() for tensor in first}) == 8


def test_colours_change_and_labels_stay(pair: Pair) -> None:
    plain, changed = TRANSFORM, replace(TRANSFORM, photometric=True, flips="none")
    differs = 0
    for position in range(12):
        (a, labels), (b, others) = crop(replace(plain, flips="none"), pair, position), crop(changed, pair, position)
        assert np.array_equal(labels, others)
        differs += not np.array_equal(a, b)
        assert (b[labels == 255] == (127, 3, 60)).all()
    assert 8 <= differs <= 12


def test_crops_of_one_class_are_drawn_again() -> None:
    labels = np.zeros((64, 64), dtype=np.uint8)
    labels[:, 48:] = 1
    pair = Pair(Image.fromarray(COLOURS[labels]), labels)
    transform = replace(TRANSFORM, size=(16, 16), scale=(1.0, 1.0))
    parts = [[len(np.unique(crop(each, pair, k)[1])) == 2 for k in range(100)] for each in
             (transform, replace(transform, max_share=0.9))]  # fmt: skip
    assert sum(parts[0]) < 50 < 80 < sum(parts[1])


def test_rasters_keep_values_and_gaps() -> None:
    """Labels lie where the values are, also beside gaps and beyond the edges, which are NaN and not labelled."""
    labels = np.random.default_rng(1).integers(0, 3, (2, 3), dtype=np.uint8).repeat(24, axis=0).repeat(24, axis=1)
    valid = np.ones(labels.shape, dtype=bool)
    valid[:, :20] = False
    values = np.stack([labels * 1000.0, labels - 7.0], axis=-1).astype(np.float32)
    pair = Pair(Raster(values, valid), np.where(valid, labels, 255).astype(np.uint8))
    transform = replace(TRANSFORM, size=(20, 20), resize=24)
    for position in range(40):
        image, found = crop(transform, pair, position)
        there = ~np.isnan(image[..., 0])
        assert there.any()
        assert np.array_equal(np.isnan(image[..., 0]), np.isnan(image[..., 1]))
        # up to half a pixel at the border of a gap, which the nearest pixel and the mean see differently
        assert ((found != 255) != there).mean() < 0.12
        exact = there & (found != 255) & (np.abs(image[..., 0] - found * 1000.0) < 1)
        assert exact.sum() > 0.25 * there.sum()
        assert np.allclose(image[exact][:, 1], found[exact] - 7.0, atol=1e-2)


def test_a_crop_without_pixels_is_moved_to_some() -> None:
    valid = np.zeros((200, 200), dtype=bool)
    valid[150:154, 20:24] = True
    pair = Pair(Raster(np.ones((200, 200, 1), np.uint16), valid), valid.astype(np.uint8))
    transform = replace(TRANSFORM, size=(16, 16), scale=(1.0, 1.0))
    assert all((~np.isnan(crop(transform, pair, position)[0])).any() for position in range(10))


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_both_travel_in_one_tensor(floats: bool, dtype: type) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, np.iinfo(dtype).max, (5, 6), dtype=dtype, endpoint=True)
    image = torch.from_numpy(rng.integers(0, 255, (4, 5, 6), dtype=np.uint8))
    image = image.float() if floats else image
    images, found = unpack(torch.stack([pack(image, labels)] * 2), 4)
    assert torch.equal(images[1], image)
    assert found.dtype == torch.int64
    assert np.array_equal(found[1].numpy(), labels)


def test_evaluation_leaves_a_pair_as_it_is(pair: Pair) -> None:
    images, labels = unpack(WholePair((8, 8))(pair)[None], 3)
    assert np.array_equal(images[0].permute(1, 2, 0), np.asarray(pair.image))
    assert np.array_equal(labels[0], pair.labels)
