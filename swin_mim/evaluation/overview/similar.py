"""Which images are alike by their features: clusters, nearest neighbours, and those that are far from all others.

All of it on features of unit length around their common mean, so that a distance is one of angles: features of a masked
image model have much in common, which says nothing. It works by blocks of rows, and the same features and seed give the
same result.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK_BYTES = 64 * 2**20
"""Max size of a block of similarities."""
SAMPLE = 65_536
"""Rows by which the clusters are found; all are assigned to them."""
COMPARED = 4096
"""Rows by which the distance to others is measured."""
NEAREST = 5
"""Of them those whose mean distance counts, so that one or two copies do not make an odd image a usual one."""
_ROUNDS = 50


def normalised(features: np.ndarray, widths: tuple[int, ...] | None = None) -> Tensor:
    """float32 (N, D), finite -> float32 (N, D): less the mean, of unit length; in place, the array is used up.

    Args:
        widths: of features of several stages side by side, each of which counts the same; None: they are of one.

    """
    values = torch.from_numpy(features)
    for part in values.split(list(widths or [values.shape[1]]), dim=1):
        part -= part.mean(dim=0, dtype=torch.float64).float()
        part /= part.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return values.div_(len(widths or [0]) ** 0.5)


@dataclass(frozen=True)
class Clusters:
    """Groups of images that are alike."""

    members: list[np.ndarray]
    """int64 rows of each, the most typical first; the largest cluster first."""


def clusters(features: Tensor, count: int, seed: int = 0) -> Clusters:
    """k-means (Lloyd, from k-means++) of normalised features (N, D), with at most `count` clusters; none is empty."""
    rows = _sample(len(features), SAMPLE, seed)
    known = features[rows]
    centres = _first_centres(known, min(count, len(known)), seed)
    nearest = torch.full((len(known),), -1)
    for _ in range(_ROUNDS):
        before, nearest = nearest, _nearest_centre(known, centres)[0]
        if torch.equal(before, nearest):
            break
        sums = torch.zeros_like(centres).index_add_(0, nearest, known)
        counts = nearest.bincount(minlength=len(centres))
        # a cluster without images keeps its centre
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    nearest, distance = _nearest_centre(features, centres)
    members = []
    for number in range(len(centres)):
        inside = (nearest == number).nonzero()[:, 0]
        if len(inside):
            members.append(inside[distance[inside].argsort(stable=True)].numpy())
    return Clusters(sorted(members, key=len, reverse=True))


def neighbours(features: Tensor, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(int64 (Q, n) rows, float32 (Q, n) cosines): the `count` nearest of each of `queries` among all others, exactly.

    There are fewer where there are not so many others.
    """
    chosen = torch.from_numpy(np.asarray(queries, dtype=np.int64))
    count = min(count, len(features) - 1)
    best = torch.full((len(chosen), 0), 0.0)
    rows = torch.zeros((len(chosen), 0), dtype=torch.int64)
    for start, block in _blocks(features, len(chosen)):
        near = features[chosen] @ block.T  # (Q, b)
        within = (chosen >= start) & (chosen < start + len(block))
        near[within, chosen[within] - start] = -torch.inf
        places = torch.arange(start, start + len(block)).expand(len(chosen), -1)
        best, rows = torch.cat([best, near], dim=1), torch.cat([rows, places], dim=1)
        best, order = best.topk(min(count, best.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return rows.numpy(), best.numpy()


def distance_to_others(features: Tensor, seed: int = 0) -> np.ndarray:
    """float32 (N,): the mean distance, 1 less the cosine, to the `NEAREST` of up to `COMPARED` other images."""
    rows = torch.from_numpy(_sample(len(features), COMPARED, seed + 1))
    others = features[rows]
    count = min(NEAREST, len(others) - 1)
    found = torch.zeros(len(features))
    if not count:
        return found.numpy()
    for start, block in _blocks(features, len(others)):
        near = block @ others.T  # (b, S)
        within = ((rows >= start) & (rows < start + len(block))).nonzero()[:, 0]
        near[rows[within] - start, within] = -torch.inf
        found[start : start + len(block)] = 1 - near.topk(count, dim=1).values.mean(dim=1)
    return found.numpy()


def _sample(total: int, count: int, seed: int) -> np.ndarray:
    """int64, ascending: so many of the rows, or all."""
    if total <= count:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))


def _first_centres(features: Tensor, count: int, seed: int) -> Tensor:
    """k-means++: each one is drawn by the squared distance to those before it."""
    rng = np.random.default_rng(seed)
    chosen = [int(rng.integers(len(features)))]
    distance = torch.full((len(features),), torch.inf)
    for _ in range(count - 1):
        distance = torch.minimum(distance, (features - features[chosen[-1]]).square().sum(dim=1))
        weights = distance.double().clamp(min=0).numpy()
        if not weights.sum() > 0:  # there are not so many different ones
            break
        chosen.append(int(np.searchsorted(weights.cumsum(), rng.random() * weights.sum(), side="right")))
    return features[chosen]


def _nearest_centre(features: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(int64 (N,) of the nearest centre, float32 (N,) squared distance to it but for what is alike for a row)."""
    nearest = torch.empty(len(features), dtype=torch.int64)
    distance = torch.empty(len(features))
    lengths = centres.square().sum(dim=1)
    for start, block in _blocks(features, len(centres)):
        found = (lengths - 2 * block @ centres.T).min(dim=1)
        nearest[start : start + len(block)], distance[start : start + len(block)] = found.indices, found.values
    return nearest, distance


def _blocks(features: Tensor, columns: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows), so many that there are `BLOCK_BYTES` of similarities to `columns` others."""
    size = max(1, BLOCK_BYTES // (4 * max(columns, 1)))
    for start in range(0, len(features), size):
        yield start, features[start : start + size]
