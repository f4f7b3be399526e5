"""Groups of equal and nearly equal images, beside a comparison of all pairs; and the hashes by which they are found."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from swin_mim.data.transforms.crops import EvaluationTransform
from swin_mim.evaluation.overview import duplicates as module
from swin_mim.evaluation.overview.duplicates import BITS, COSINE, duplicates, to_leave_out
from swin_mim.evaluation.overview.hashes import HashedTransform, image_hash


def photograph(seed: int) -> Image.Image:
    """Smooth, as a picture is, with fine detail."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 7, 3), dtype=np.uint8)).resize(
        (240, 200), Image.Resampling.BICUBIC
    )
    return Image.fromarray((np.asarray(coarse) + rng.normal(0, 4, (200, 240, 3))).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def test_hashes_survive_what_people_do_to_copies() -> None:
    """Looks of one picture differ in few bits, those of two in about half of them; another pixel is another hash."""
    transform = HashedTransform(EvaluationTransform((96, 96)))
    assert transform.size == (96, 96)
    first, other = photograph(0), photograph(1)
    _, (pixels, look) = transform(first)
    values, again = transform(first.copy())
    assert again == (pixels, look) == image_hash(values)
    for changed in (encoded(first, 60), first.resize((180, 150)), first.point(lambda value: value * 0.9)):
        _, (theirs, near) = transform(changed)
        assert theirs != pixels
        assert (near ^ look).bit_count() <= BITS
    assert 16 < (transform(other)[1].look ^ look).bit_count() < 48


def test_hashes_of_rasters_do_not_depend_on_units() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(6, 40, 40)).astype(np.float32)).cumsum(dim=2)
    units = torch.tensor([1, 100, 7, 3, 1000, 2.0]).view(6, 1, 1)
    assert image_hash(image).look == image_hash(image * units + units).look
    assert image_hash(image).pixels != image_hash(image * units).pixels
    image[:, :5] = torch.nan
    assert image_hash(image) == image_hash(image.clone())


def all_pairs(hashes: np.ndarray) -> list[list[int]]:
    """Groups of looks that are near each other, by comparing all with all."""
    looks, parents = [int(look) for look in hashes[:, 1]], list(range(len(hashes)))
    for a in range(len(looks)):
        for b in range(a):
            if (looks[a] ^ looks[b]).bit_count() <= BITS or hashes[a, 0] == hashes[b, 0]:
                old, new = parents[a], parents[b]
                parents = [new if each == old else each for each in parents]
    groups = [[row for row in range(len(looks)) if parents[row] == parent] for parent in sorted(set(parents))]
    return [group for group in groups if len(group) > 1 and len({int(hashes[row, 0]) for row in group}) > 1]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), bits=st.integers(0, 9), pairs=st.sampled_from([1, 7, 2**22]))
def test_near_looks_are_found_as_by_comparing_all_pairs(seed: int, bits: int, pairs: int) -> None:
    rng = np.random.default_rng(seed)
    looks = rng.integers(0, 2**64, 8, dtype=np.uint64)[rng.integers(0, 8, 60)]
    for _ in range(bits):
        looks ^= np.uint64(1) << rng.integers(0, 64, 60, dtype=np.uint64)
    hashes = np.stack([rng.integers(0, 50, 60).astype(np.uint64), looks], axis=1)
    by_pixels = {int(pixels): look for pixels, look in hashes[::-1]}  # equal pixels look equal
    hashes[:, 1] = [by_pixels[int(pixels)] for pixels in hashes[:, 0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIRS", pairs)
        found = duplicates(hashes, None, np.arange(60))
    near = sorted(group.rows.tolist() for group in found if not group.exact)
    assert near == sorted(all_pairs(hashes))
    exact = sorted(group.rows.tolist() for group in found if group.exact)
    numbers = hashes[:, 0].tolist()
    assert exact == sorted(
        [row for row in range(60) if numbers[row] == each] for each in set(numbers) if numbers.count(each) > 1
    )


def test_features_decide_whether_a_look_is_chance() -> None:
    hashes = np.array([[1, 0], [2, 0], [3, 1], [4, 2**64 - 1]], dtype=np.uint64)
    features = torch.tensor([[1, 0], [0.9, 0.43], [-1, 0], [0, 1]])
    (group,) = duplicates(hashes, features, np.arange(4))
    assert group.rows.tolist() == [0, 1]
    assert not group.exact
    (group,) = duplicates(hashes, None, np.arange(4))
    assert group.rows.tolist() == [0, 1, 2]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), rows=st.sampled_from([1, 3, 256]))
def test_all_images_of_one_look_are_compared(seed: int, rows: int) -> None:
    """Not only the next one: images of other features may stand between two that agree."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, 12)
    looks = rng.integers(0, 2, 12).astype(np.uint64) * np.uint64(2**64 - 1)
    hashes = np.stack([np.arange(12, dtype=np.uint64), looks], axis=1)
    features = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    agree = (features @ features.T).numpy() >= COSINE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS", rows)
        found = duplicates(hashes, features, np.arange(12))
    expected = connected(agree & (looks[:, None] == looks))
    assert sorted(group.rows.tolist() for group in found) == expected


def connected(near: np.ndarray) -> list[list[int]]:
    """Groups of two and more, by powers of the relation."""
    reach = np.linalg.matrix_power(near.astype(np.int64), len(near)) > 0
    groups = {tuple(np.flatnonzero(row).tolist()) for row in reach if row.sum() > 1}
    return [list(group) for group in sorted(groups)]


def test_an_image_of_a_near_look_is_compared_with_all_groups_of_a_look() -> None:
    hashes = np.array([[1, 0], [2, 0], [3, 1]], dtype=np.uint64)
    features = torch.tensor([[1.0, 0], [-1, 0], [-0.9, 0.1]])
    (group,) = duplicates(hashes, features, np.arange(3))
    assert group.rows.tolist() == [1, 2]


def test_what_cannot_be_read_is_in_no_group_and_the_first_of_each_stays() -> None:
    hashes = np.array([[0, 0], [1, 5], [0, 0], [1, 5], [7, 5], [1, 5], [9, 2**40 - 1]], dtype=np.uint64)
    groups = duplicates(hashes, None, np.array([1, 3, 4, 5, 6]))
    assert [(group.rows.tolist(), group.exact) for group in groups] == [([1, 3, 5], True), ([1, 3, 4, 5], False)]
    assert to_leave_out(groups).tolist() == [3, 4, 5]
    assert to_leave_out(groups[:1]).tolist() == [3, 5]
    assert to_leave_out([]).tolist() == []


def test_a_million_copies_of_one_look_are_no_million_pairs() -> None:
    """It ends: equal looks are chained, and of many that share a band only the next ones are compared."""
    count = 30_000
    hashes = np.stack([np.arange(count, dtype=np.uint64), np.zeros(count, np.uint64)], axis=1)
    (group,) = duplicates(hashes, None, np.arange(count))
    assert len(group.rows) == count
