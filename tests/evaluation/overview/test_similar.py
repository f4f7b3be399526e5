"""Clusters, neighbours and outliers, beside what a straight computation over all pairs finds."""

import numpy as np
import pytest
import torch

from swin_mim.evaluation.overview import similar
from swin_mim.evaluation.overview.similar import clusters, distance_to_others, neighbours, normalised

CENTRES = 5


@pytest.fixture
def features() -> np.ndarray:
    """300 rows around five far centres, a sixth of them around the first one, far from the origin."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, 16)) * 10 + 50
    return (centres[np.arange(300) % 6 % CENTRES] + rng.normal(size=(300, 16))).astype(np.float32)


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "BLOCK_BYTES", 1000)


def plain(features: np.ndarray) -> np.ndarray:
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def test_features_are_of_unit_length_around_their_mean(features: np.ndarray) -> None:
    np.testing.assert_allclose(normalised(features.copy()).numpy(), plain(features), atol=1e-5)
    both = normalised(np.concatenate([features, 1000 * features[:, ::-1]], axis=1), (16, 16)).numpy()
    np.testing.assert_allclose(np.linalg.norm(both[:, :16], axis=1), 0.5**0.5, rtol=1e-4)
    np.testing.assert_allclose(both @ both.T, plain(features) @ plain(features).T, atol=1e-3)


@pytest.mark.usefixtures("_small_blocks")
def test_clusters_are_the_groups_that_there_are(features: np.ndarray) -> None:
    """The largest first; in each the most typical image first, as all distances to its mean say."""
    values = normalised(features)
    found = clusters(values, CENTRES)
    groups = [{row for row in range(300) if row % 6 % CENTRES == number} for number in range(CENTRES)]
    assert set(found.members[0].tolist()) == groups[0]
    assert sorted(sorted(members.tolist()) for members in found.members) == sorted(map(sorted, groups))
    for members in found.members:
        inside = values[members].double()
        distance = (inside - inside.mean(dim=0)).norm(dim=1)
        assert (distance.diff() > -1e-5).all()
    again = clusters(values, CENTRES)
    assert all(np.array_equal(*pair) for pair in zip(found.members, again.members, strict=True))


def test_there_are_no_more_clusters_than_different_images() -> None:
    values = normalised(np.repeat(np.eye(3, 8, dtype=np.float32), 4, axis=0))
    assert sorted(map(len, clusters(values, 10).members)) == [4, 4, 4]
    assert [each.tolist() for each in clusters(normalised(np.ones((1, 4), np.float32)), 10).members] == [[0]]


@pytest.mark.usefixtures("_small_blocks")
def test_neighbours_are_exact(features: np.ndarray) -> None:
    """By blocks as over all pairs at once; an image is no neighbour of its own."""
    values = normalised(features)
    queries = np.array([0, 7, 299, 150])
    rows, cosines = neighbours(values, queries, 6)
    all_pairs = values.numpy() @ values.numpy().T
    np.fill_diagonal(all_pairs, -np.inf)
    np.testing.assert_array_equal(rows, np.argsort(-all_pairs[queries], axis=1)[:, :6])
    np.testing.assert_allclose(cosines, -np.sort(-all_pairs[queries], axis=1)[:, :6], atol=1e-6)
    few, _ = neighbours(values[:3], np.array([1]), 6)
    assert sorted(few[0].tolist()) == [0, 2]


@pytest.mark.usefixtures("_small_blocks")
def test_an_odd_image_is_far_from_others_and_its_copy_does_not_hide_it(features: np.ndarray) -> None:
    features[[100, 200]] = np.random.default_rng(1).normal(size=16) * 10 + 50
    values = normalised(features)
    distance = distance_to_others(values)
    assert set(np.argsort(-distance)[:2]) == {100, 200}
    all_pairs = values.numpy() @ values.numpy().T
    np.fill_diagonal(all_pairs, -np.inf)
    nearest = -np.sort(-all_pairs, axis=1)[:, : similar.NEAREST]
    np.testing.assert_allclose(distance, 1 - nearest.mean(axis=1), atol=1e-5)
    assert distance_to_others(values[:1]).tolist() == [0]


def test_a_sample_is_enough_for_many_images(features: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "SAMPLE", 60)
    monkeypatch.setattr(similar, "COMPARED", 60)
    features[100] = np.random.default_rng(1).normal(size=16) * 10 + 50
    values = normalised(features)
    assert int(distance_to_others(values).argmax()) == 100
    sizes = [len(members) for members in clusters(torch.cat([values[:100], values[101:]]), CENTRES).members]
    assert sizes[0] in (99, 100)
    assert sum(sizes) == 299
