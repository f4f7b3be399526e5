import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swin_mim import block_mask

GEOMETRY = st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 5))


@given(GEOMETRY, st.integers(1, 5), st.integers(0, 100), st.integers(-(2**70), 2**70), st.integers(0, 2**40))
def test_masks_exactly_the_share_in_whole_units(geometry, batch, percent, seed, start):
    units_h, units_w, unit = geometry
    mask = block_mask(batch, (units_h * unit, units_w * unit), unit, percent / 100, seed=seed, start=start)
    assert mask.dtype == torch.bool
    units = mask.view(batch, units_h, unit, units_w, unit).transpose(2, 3).flatten(3)
    assert (units.all(-1) == units.any(-1)).all(), "a unit is masked in part"
    expected = -(-percent * units_h * units_w // 100)  # the ceiling, in integers
    assert (units.all(-1).sum((1, 2)) == expected).all()


@given(st.integers(0, 2**40), st.integers(1, 7), st.integers(0, 6))
def test_a_mask_depends_on_seed_and_position_alone(start, batch, offset):
    whole = block_mask(16, (8, 12), 2, 0.6, seed=3, start=start)
    assert torch.equal(block_mask(batch, (8, 12), 2, 0.6, seed=3, start=start + offset), whole[offset:][:batch])


def test_masks_do_not_touch_the_global_generator():
    before = torch.get_rng_state()
    block_mask(4, (8, 8), 2, 0.5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_golden_masks():
    """The stream of masks is part of a run's identity: a resumed run must see it again, in any version."""
    mask = block_mask(2, (3, 4), 1, 0.5, seed=0, start=7)
    assert mask.int().flatten(1).tolist() == GOLDEN


GOLDEN = [[0, 1, 1, 0, 1, 0, 1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_unit_and_every_pair_is_masked_equally_often(seed):
    n, units, k = 20_000, 9, 6
    mask = block_mask(n, (3, 3), 1, 0.6, seed=seed).flatten(1).double()
    together = mask.T @ mask / n
    single, pair = k / units, k * (k - 1) / (units * (units - 1))
    expected = torch.full((units, units), pair, dtype=torch.double).fill_diagonal_(single)
    std = (expected * (1 - expected) / n).sqrt()
    assert ((together - expected).abs() / std).max() < 4.5
    neighbours = (mask[:-1] * mask[1:]).mean()  # masks of consecutive images are independent
    assert abs(neighbours - single**2) < 0.005


def test_seeds_and_images_differ():
    masks = torch.cat([block_mask(50, (6, 6), 1, 0.5, seed=seed) for seed in range(50)]).flatten(1)
    assert len(masks.unique(dim=0)) > 2490


@pytest.mark.parametrize(
    ("unit", "ratio", "text"),
    [
        (5, 0.5, "5 tokens does not divide the token grid 8x12"),
        (0, 0.5, "0 tokens"),
        (2, 1.1, "1.1 must be between"),
    ],
)
def test_impossible_masks_say_why(unit, ratio, text):
    with pytest.raises(ValueError, match=text):
        block_mask(1, (8, 12), unit, ratio, seed=0)


def test_count_is_the_ceiling_that_the_official_code_takes():
    assert block_mask(1, (48, 48), 8, 0.6, seed=0).sum() == math.ceil(36 * 0.6) * 64


@given(GEOMETRY, st.integers(1, 3), st.integers(0, 100), st.integers(0, 2**40), st.integers(0, 2**32))
def test_units_without_pixels_are_not_masked_and_of_the_others_the_share(geometry, scale, percent, start, gaps):
    batch, (units_h, units_w, unit) = 3, geometry
    grid = (units_h * unit, units_w * unit)
    draw = torch.Generator().manual_seed(gaps)
    valid = torch.rand(batch, grid[0] * scale, grid[1] * scale, generator=draw) < torch.rand(1, generator=draw) ** 3
    mask = block_mask(batch, grid, unit, percent / 100, seed=1, start=start, valid=valid)
    units = mask.view(batch, units_h, unit, units_w, unit).transpose(2, 3).flatten(3)
    side = unit * scale
    usable = valid.view(batch, units_h, side, units_w, side).transpose(2, 3).flatten(3).any(-1)
    assert (units.all(-1) == units.any(-1)).all(), "a unit is masked in part"
    assert not (units.any(-1) & ~usable).any()
    expected = -(-percent * usable.sum((1, 2)) // 100)
    assert torch.equal(units.all(-1).sum((1, 2)), expected)
    alone = [
        block_mask(1, grid, unit, percent / 100, seed=1, start=start + i, valid=valid[i : i + 1]) for i in range(batch)
    ]
    assert torch.equal(torch.cat(alone), mask), "a mask depends on the gaps of another image"


def test_where_all_is_there_the_masks_are_the_usual_ones():
    there = torch.ones(8, 48, 48, dtype=torch.bool)
    usual = block_mask(8, (48, 48), 8, 0.6, seed=3, start=11)
    assert torch.equal(block_mask(8, (48, 48), 8, 0.6, seed=3, start=11, valid=there), usual)
