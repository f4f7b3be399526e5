"""The order of samples: pure functions of (seed, epoch) and (seed, position). Needs numpy only.

A position is the number of a sample in the endless stream of all epochs; `samples_seen` is the next one. The
random bits are Philox's (Salmon et al., SC 2011), counter based: nothing is carried from one sample to the next.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

HELDOUT_EPOCH = 2**64 - 1
"""An epoch that no training reaches: its order chooses what is held out."""

_WORD = (1 << 64) - 1
_CLASS = 1 << 40  # far from the seeds that people choose


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """int64 (n,): the permutation of range(n) in which an epoch visits the samples."""
    # raw bits and a stable sort: numpy promises them for ever, Generator.permutation may change with a release
    keys = np.random.Philox(key=_key(seed, epoch)).random_raw(n)
    return np.argsort(keys, kind="stable")


class SampleOrder:
    """The sample at each position: one permutation after the other, of `n` samples."""

    def __init__(self, n: int, seed: int) -> None:
        self._n, self._seed = n, seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def index(self, position: int) -> int:
        """The sample, in range(n), at a position >= 0."""
        epoch, k = divmod(position, self._n)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self._n, self._seed, epoch)
        return int(self._order[k])


class ShardGroup(NamedTuple):
    """Shards whose samples are visited together, all mixed, before those of any other shard."""

    start: int
    """Position of the first sample."""
    end: int
    """Position behind the last sample."""
    shards: np.ndarray
    """int64: their numbers."""
    epoch: int
    number: int
    """In its epoch."""


class ShardOrder:
    """The sample at each position, where samples lie in shards that are cheap to visit one after the other only.

    In each epoch the shards come in a new permutation, cut into groups of `at_once`; the samples of a group come in
    one permutation of them all. So every sample comes once in an epoch, at any time only the shards of one group are
    needed, and a position alone says which. With at_once 1 the order is a permutation of shards and of samples within.

    Memory is that of the shards' sizes and of the samples of a group.
    """

    def __init__(self, sizes: Sequence[int], seed: int, at_once: int) -> None:
        """`sizes` are the samples of each shard, more than 0 in all; samples are numbered from shard to shard."""
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._filled = np.flatnonzero(self._sizes)
        self._n, self._seed, self._at_once = int(self._sizes.sum()), seed, at_once
        self._group = ShardGroup(0, 0, self._filled[:0], 0, 0)
        self._order = np.empty(0, dtype=np.int64)

    def index(self, position: int) -> int:
        """The sample at a position >= 0."""
        if not self._group.start <= position < self._group.end:
            self._group = self.group(position)
            self._order = self._samples(self._group)
        return int(self._order[position - self._group.start])

    def group(self, position: int) -> ShardGroup:
        """The shards that are visited around a position >= 0."""
        epoch, k = divmod(position, self._n)
        shards = self._filled[epoch_order(len(self._filled), self._seed, epoch)]
        bounds = np.cumsum(self._sizes[shards])[self._at_once - 1 :: self._at_once]
        number = int(np.searchsorted(bounds, k, side="right"))
        start, end = np.r_[0, bounds, self._n][[number, number + 1]] + epoch * self._n
        chosen = shards[number * self._at_once : (number + 1) * self._at_once]
        return ShardGroup(int(start), int(end), chosen, epoch, number)

    def _samples(self, group: ShardGroup) -> np.ndarray:
        samples = np.concatenate([self._starts[shard] + np.arange(self._sizes[shard]) for shard in group.shards])
        # a word of the counter that neither the orders of epochs nor the generators of samples reach
        counter = np.array([0, 0, group.number + 1, 0], dtype=np.uint64)
        keys = np.random.Philox(key=_key(self._seed, group.epoch), counter=counter).random_raw(len(samples))
        return samples[np.argsort(keys, kind="stable")]


class BalancedOrder:
    """The sample at each position, every class as often as the others.

    Rounds of one sample of each class that has any, the classes in a new order each time; within a class its samples
    in one permutation after the other.
    """

    def __init__(self, targets: np.ndarray, seed: int) -> None:
        """`targets` int64 (n,): the class of each sample."""
        self._classes = np.unique(targets)
        self._members = [np.flatnonzero(targets == each) for each in self._classes]
        # each class shuffles by a seed of its own, which no other stream of the run uses
        self._orders = [
            SampleOrder(len(each), seed + (number + 1) * _CLASS) for number, each in enumerate(self._members)
        ]
        self._rounds = SampleOrder(len(self._classes), seed + _CLASS // 2)

    def index(self, position: int) -> int:
        """The sample at a position >= 0."""
        number = self._rounds.index(position)
        visit = position // len(self._classes)
        return int(self._members[number][self._orders[number].index(visit)])


def sample_generator(seed: int, position: int, stream: int = 0) -> np.random.Generator:
    """The random numbers that belong to one position; each stream >= 0 holds other ones, 2**192 of them."""
    # the counter starts at 1: with 0 the crop at position e would reuse the bits that order epoch e
    counter = np.array([0, 0, 0, stream + 1], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=_key(seed, position), counter=counter))


class Place(NamedTuple):
    """Where a sample stands in the stream, and which image of the source that is."""

    position: int
    image: int


def positions(samples_seen: int, global_batch: int, micro_batch: int, rank: int, world: int) -> Iterator[int]:
    """The first position of each micro batch that this process takes, endlessly.

    A micro batch is the contiguous range [first, first + micro_batch). The processes together, over one global
    batch, take each of its positions once.
    """
    assert global_batch % (micro_batch * world) == 0, f"{global_batch} % ({micro_batch} * {world}) != 0"
    accumulation = global_batch // (micro_batch * world)
    while True:
        for m in range(accumulation):
            yield samples_seen + (m * world + rank) * micro_batch
        samples_seen += global_batch


def _key(seed: int, number: int) -> np.ndarray:
    return np.array([seed & _WORD, number & _WORD], dtype=np.uint64)
