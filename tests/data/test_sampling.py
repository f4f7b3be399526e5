from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swin_mim.data.sampling import BalancedOrder, SampleOrder, ShardOrder, epoch_order, positions, sample_generator

seeds = st.integers(0, 2**64 - 1)
classes = st.lists(st.integers(0, 9), min_size=1, max_size=40).map(np.array)


@settings(deadline=None)
@given(n=st.integers(0, 200), seed=seeds, epoch=st.integers(0, 2**40))
def test_an_epoch_visits_every_sample_once(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(n))


def test_order_never_changes_with_a_release() -> None:
    assert epoch_order(10, seed=0, epoch=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert epoch_order(10, seed=7, epoch=3).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]
    assert sample_generator(7, 3).random(2).tolist() == [0.20846739571851047, 0.5383972497385711]


def test_orders_of_other_seeds_and_epochs_differ() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


@settings(deadline=None)
@given(n=st.integers(1, 30), seed=seeds, jumps=st.lists(st.integers(0, 200), max_size=20))
def test_sample_order_is_a_function_of_the_position(n: int, seed: int, jumps: list[int]) -> None:
    order = SampleOrder(n, seed)
    for position in jumps:
        assert order.index(position) == epoch_order(n, seed, position // n)[position % n]


@settings(deadline=None)
@given(seed=seeds, position=st.integers(0, 2**63))
def test_streams_of_one_position_are_independent_and_repeatable(seed: int, position: int) -> None:
    draws = [tuple(sample_generator(seed, position, stream).random(4)) for stream in (0, 1, 2, 0)]
    assert draws[0] == draws[3]
    assert len(set(draws)) == 3
    assert tuple(sample_generator(seed, position + 1).random(4)) not in draws


def test_crops_do_not_reuse_the_bits_that_order_an_epoch() -> None:
    keys = np.random.Philox(key=np.array([5, 9], dtype=np.uint64)).random_raw(1000)
    own = sample_generator(5, 9).bit_generator.random_raw(1000)
    assert not set(keys.tolist()) & set(own.tolist())


def test_sample_generator_leaves_the_global_state_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    sample_generator(1, 2).random(100)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@settings(deadline=None)
@given(
    start=st.integers(0, 1000),
    micro=st.integers(1, 5),
    world=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    steps=st.integers(1, 3),
)
def test_processes_share_each_step_out(start: int, micro: int, world: int, accumulation: int, steps: int) -> None:
    size = micro * world * accumulation
    for step in range(steps):
        taken: list[int] = []
        for rank in range(world):
            firsts = list(islice(positions(start, size, micro, rank, world), accumulation * steps))
            for first in firsts[step * accumulation : (step + 1) * accumulation]:
                taken.extend(range(first, first + micro))
        assert sorted(taken) == list(range(start + step * size, start + (step + 1) * size))


def test_a_global_batch_that_does_not_divide_is_our_bug() -> None:
    with pytest.raises(AssertionError, match=r"10 % \(4 \* 2\)"):
        next(positions(0, 10, 4, 0, 2))


@settings(deadline=None)
@given(targets=classes, seed=seeds, first=st.integers(0, 10**6))
def test_a_balanced_round_takes_one_sample_of_each_class(targets: np.ndarray, seed: int, first: int) -> None:
    order, present = BalancedOrder(targets, seed), np.unique(targets)
    for k in range(first, first + 5):
        taken = [targets[order.index(position)] for position in range(k * len(present), (k + 1) * len(present))]
        assert sorted(taken) == present.tolist()


@settings(deadline=None)
@given(targets=classes, seed=seeds)
def test_a_balanced_order_repeats_no_sample_before_all_of_its_class(targets: np.ndarray, seed: int) -> None:
    order, present = BalancedOrder(targets, seed), np.unique(targets)
    visits = [order.index(position) for position in range(3 * len(targets) * len(present))]
    for each in present:
        members = np.flatnonzero(targets == each)
        own = [sample for sample in visits if targets[sample] == each]
        for first in range(0, len(own) - len(members) + 1, len(members)):
            assert sorted(own[first : first + len(members)]) == members.tolist()


@settings(deadline=None)
@given(targets=classes, seed=seeds, jumps=st.lists(st.integers(0, 99), max_size=20))
def test_balanced_order_is_a_function_of_the_position(targets: np.ndarray, seed: int, jumps: list[int]) -> None:
    jumping, straight = BalancedOrder(targets, seed), BalancedOrder(targets, seed)
    stream = [straight.index(position) for position in range(100)]
    assert [jumping.index(position) for position in jumps] == [stream[position] for position in jumps]


def test_balanced_order_never_changes_with_a_release() -> None:
    order = BalancedOrder(np.array([4, 4, 4, 0, 2, 2]), seed=0)
    assert [order.index(position) for position in range(12)] == [2, 3, 5, 4, 0, 3, 1, 3, 4, 5, 3, 1]


def test_classes_without_samples_take_no_turn() -> None:
    order = BalancedOrder(np.array([7, 3, 7, 7]), seed=1)
    visits = [order.index(position) for position in range(60)]
    assert [visits.count(sample) for sample in range(4)] == [10, 30, 10, 10]


def test_balanced_orders_of_other_seeds_classes_and_rounds_differ() -> None:
    targets = np.repeat([0, 1, 2, 3], 50)
    orders = [BalancedOrder(targets, seed) for seed in range(20)]
    streams = [[order.index(position) for position in range(400)] for order in orders]
    assert len(set(map(tuple, streams))) == 20
    within = [tuple(sample % 50 for sample in streams[0] if sample // 50 == each) for each in range(4)]
    assert len(set(within)) == 4
    assert len({each[:50] for each in within} | {each[50:] for each in within}) == 8
    rounds = {tuple(targets[stream[first : first + 4]]) for stream in streams for first in range(0, 400, 4)}
    assert len(rounds) == 24  # every order of four classes


shard_sizes = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)


@settings(deadline=None)
@given(sizes=shard_sizes, seed=seeds, at_once=st.integers(1, 5), epoch=st.integers(0, 2**30))
def test_an_epoch_of_shards_visits_every_sample_once_group_by_group(
    sizes: list[int], seed: int, at_once: int, epoch: int
) -> None:
    order, n = ShardOrder(sizes, seed, at_once), sum(sizes)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    visits = [order.index(position) for position in range(epoch * n, (epoch + 1) * n)]
    assert sorted(visits) == list(range(n))
    position, seen = epoch * n, []
    while position < (epoch + 1) * n:
        group = order.group(position)
        assert (group.start, group.epoch, group.number) == (position, epoch, len(seen) // at_once)
        samples = visits[group.start - epoch * n : group.end - epoch * n]
        assert sorted(set(shard_of[samples])) == sorted(group.shards)  # its shards and no others
        assert len(group.shards) == min(at_once, sum(map(bool, sizes)) - len(seen))
        seen += group.shards.tolist()
        position = group.end
    assert len(set(seen)) == len(seen)


@settings(deadline=None)
@given(sizes=shard_sizes, seed=seeds, at_once=st.integers(1, 5), jumps=st.lists(st.integers(0, 300), max_size=30))
def test_shard_order_is_a_function_of_the_position(sizes: list[int], seed: int, at_once: int, jumps: list[int]) -> None:
    jumping, straight = ShardOrder(sizes, seed, at_once), ShardOrder(sizes, seed, at_once)
    stream = [straight.index(position) for position in range(301)]
    assert [jumping.index(position) for position in jumps] == [stream[position] for position in jumps]
    assert all(
        (group := jumping.group(position)).start <= position < group.end and jumping.index(position) == stream[position]
        for position in jumps
    )


def test_shard_order_never_changes_with_a_release() -> None:
    order = ShardOrder([3, 0, 4, 2, 3], seed=5, at_once=2)
    assert [order.index(position) for position in range(24)] == [
        *(7, 8, 11, 9, 10, 0, 5, 1, 6, 2, 4, 3),
        *(2, 1, 3, 0, 5, 4, 6, 8, 11, 7, 9, 10),
    ]
    assert [order.group(position).shards.tolist() for position in (0, 6, 12)] == [[3, 4], [2, 0], [2, 0]]


def test_groups_of_shards_are_mixed_and_no_two_alike() -> None:
    order = ShardOrder([100] * 6, seed=3, at_once=2)
    visits = [order.index(position) for position in range(1200)]
    for start in range(0, 1200, 200):
        shards = [visit // 100 for visit in visits[start : start + 200]]
        assert 60 < sum(a != b for a, b in pairwise(shards)) < 140
    within = {tuple(visit % 100 for visit in visits[start : start + 200]) for start in range(0, 1200, 200)}
    assert len(within) == 6
    other = ShardOrder([100] * 6, seed=4, at_once=2)
    assert [other.index(position) for position in range(200)] != visits[:200]


def test_groups_do_not_reuse_the_bits_of_epochs_and_samples() -> None:
    keys = np.random.Philox(key=np.array([5, 9], dtype=np.uint64)).random_raw(1000)
    counter = np.array([0, 0, 1, 0], dtype=np.uint64)
    group = np.random.Philox(key=np.array([5, 9], dtype=np.uint64), counter=counter).random_raw(1000)
    samples = sample_generator(5, 9).bit_generator.random_raw(1000)
    assert not set(group.tolist()) & (set(keys.tolist()) | set(samples.tolist()))
