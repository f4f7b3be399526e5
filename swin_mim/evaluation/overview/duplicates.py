"""Groups of images that are the same, or nearly: by their hashes, and by their features.

Nearly the same are two images whose looks differ in at most `BITS` of 64 bits, and whose features agree. Such looks
have one of `BITS` + 1 bands of bits in common, so that only images of one band's value are compared: what is compared
grows with the images, not with their square.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

BITS = 4
"""Bits of the look in which two images may differ."""
COSINE = 0.8
"""Min cosine of their features, less the mean: looks of clear sky or bare walls agree by chance."""
MAX_BUCKET = 4096
"""Images of one look, and looks with one band in common, that are compared; of more, which say little, only those next
in order."""
_ROWS = 256  # of one look, whose features are multiplied with those of the next ones at a time
_PAIRS, _PRODUCTS = 2**22, 2**15  # whose bits are counted, and features multiplied, at a time


class Group(NamedTuple):
    """Images that are alike."""

    rows: np.ndarray
    """int64, ascending."""
    exact: bool
    """The model sees the same pixels of all of them."""


def duplicates(hashes: np.ndarray, features: Tensor | None, read: np.ndarray) -> list[Group]:
    """Find the groups of two images and more, the largest first; no image is in two of the same kind.

    A group of nearly equal images holds whole groups of equal ones.

    Args:
        hashes: uint64 (N, 2), pixels and look.
        features: normalised, float32 (n, D), of the images of `read`; None: looks alone decide.
        read: int64 (n,), ascending: rows of the images that could be read.
    """
    pixels, look = hashes[read].T
    exact = _groups_of(_first_of_each(pixels))
    alone, first = np.unique(_first_of_each(pixels), return_inverse=True)
    # equal images are one, so that a thousand copies are no million pairs
    parents = np.arange(len(alone))
    for left, right in _pairs_of_one_look(look[alone], features, alone):
        _join_all(parents, left, right)
    standing = np.unique(_roots(parents, np.arange(len(alone))))  # one for all of its look whose features agree
    for a, b in _near_pairs(look[alone][standing]):
        left, right = standing[a], standing[b]
        if features is not None:
            keep = _cosines(features, alone[left], alone[right]) >= COSINE
            left, right = left[keep], right[keep]
        _join_all(parents, left, right)
    roots = _roots(parents, np.arange(len(parents)))
    near = [rows for rows in _groups_of(roots[first]) if len(np.unique(pixels[rows])) > 1]
    found = [Group(read[rows], True) for rows in exact] + [Group(read[rows], False) for rows in near]
    return sorted(found, key=lambda group: (not group.exact, -len(group.rows), int(group.rows[0])))


def to_leave_out(groups: list[Group]) -> np.ndarray:
    """int64, ascending: all images of the groups but the first of each."""
    chosen = [group.rows[1:] for group in groups]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *chosen]))


def _cosines(features: Tensor, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float32 (n,): of pairs of rows."""
    found = np.empty(len(left), np.float32)
    for start in range(0, len(left), _PRODUCTS):
        chosen = slice(start, start + _PRODUCTS)
        found[chosen] = (features[left[chosen]] * features[right[chosen]]).sum(dim=1).numpy()
    return found


def _first_of_each(values: np.ndarray) -> np.ndarray:
    """int64 (n,): the first place of the same value."""
    _, places, inverse = np.unique(values, return_index=True, return_inverse=True)
    return places[inverse]


def _groups_of(labels: np.ndarray) -> list[np.ndarray]:
    """Places of each value that occurs twice or more, ascending."""
    order = np.argsort(labels, kind="stable")
    bounds = np.flatnonzero(np.diff(labels[order])) + 1
    return [rows for rows in np.split(order, bounds) if len(rows) > 1]


def _pairs_of_one_look(
    looks: np.ndarray, features: Tensor | None, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield places (a, b) of equal looks whose features agree; of no features a chain, which joins as many.

    Args:
        rows: of the features, of each place.
    """
    for members in _groups_of(looks):
        if features is None:
            yield members[:-1], members[1:]
            continue
        for start in range(0, len(members) - 1, _ROWS):
            left, right = members[start : start + _ROWS], members[start : start + _ROWS + MAX_BUCKET]
            agree = (features[rows[left]] @ features[rows[right]].T).numpy() >= COSINE
            a, b = np.nonzero(np.triu(agree, 1))
            yield left[a], right[b]


def _near_pairs(looks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield places (a, b) of different looks that differ in at most `BITS` bits; a pair may come twice."""
    edges = np.linspace(0, 64, BITS + 2).round().astype(int)
    for low, high in pairwise(edges):
        band = (looks >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for left, right in _pairs_within(bucket):
                bits = np.bitwise_count(looks[left] ^ looks[right])
                near = (bits > 0) & (bits <= BITS)
                yield left[near], right[near]


def _pairs_within(bucket: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all pairs of a bucket, some at a time."""
    size = len(bucket)
    for start in range(0, size - 1, step := max(1, _PAIRS // min(size, MAX_BUCKET))):
        rows = np.arange(start, min(start + step, size - 1))
        counts = np.minimum(size - 1 - rows, MAX_BUCKET)
        left = np.repeat(rows, counts)
        right = left + 1 + np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield bucket[left], bucket[right]


def _roots(parents: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int64 (n,): the first image of the group of each of `places`."""
    while ((above := parents[places]) != places).any():
        places = above
    return places


def _join_all(parents: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Put the groups of each pair together; most pairs are of one group already."""
    roots = np.stack([_roots(parents, left), _roots(parents, right)], axis=1)
    for a, b in np.unique(roots[roots[:, 0] != roots[:, 1]], axis=0).tolist():
        _join(parents, a, b)


def _root(parents: np.ndarray, place: int) -> int:
    while parents[place] != place:
        parents[place] = parents[parents[place]]
        place = int(parents[place])
    return place


def _join(parents: np.ndarray, a: int, b: int) -> None:
    """Put two groups together, under their first image."""
    first, second = sorted((_root(parents, a), _root(parents, b)))
    parents[second] = first
