"""Objects that are made of the embedded maps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from swin_mim.data.dense.boxes import drawn_runs
from swin_mim.data.dense.islands import MAX_SIDE, MIN_AREA, NAMES, components, open_islands
from swin_mim.errors import UserError


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32), st.floats(0, 1))
def test_parts_are_those_of_scipy(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    found, count = components(mask)
    expected, theirs = ndimage.label(mask)
    assert count == theirs
    assert len(set(zip(found.ravel().tolist(), expected.ravel().tolist(), strict=True))) == len(np.unique(expected))


@pytest.mark.slow
def test_islands_and_lakes_lie_whole_in_their_tiles():
    tiles = open_islands("validation")
    assert tiles.names == NAMES
    assert tiles.have_shapes
    assert tiles.counts().min() > 5
    for objects in tiles.objects[:20]:
        for box, shape, crowd in zip(objects.boxes, objects.shapes, objects.crowd, strict=True):
            rows, columns = np.nonzero(drawn_runs(shape))
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if not crowd:
                assert box.min() > 0
                assert box.max() < 64
                assert len(rows) >= MIN_AREA
                assert (box[2:] - box[:2]).max() <= MAX_SIDE
    with pytest.raises(UserError, match="has the splits train, validation and test, not 'all'"):
        open_islands("all")


@pytest.mark.slow
def test_islands_are_those_of_the_picture():
    """Less blue than the water around them, by 20 of 255; of the islands of the climate zones half were not."""
    tiles, seen = open_islands("test"), []
    for index, objects in enumerate(tiles.objects):
        picture = np.asarray(tiles.images.image(index)).astype(int)
        tone = picture[..., 0] - picture[..., 2]
        land = np.zeros(tone.shape, bool)
        for shape, label in zip(objects.shapes, objects.labels, strict=True):
            land |= (drawn_runs(shape) > 0) & (label == 0)
        for place in np.flatnonzero(~objects.crowd & (objects.labels == 0)):
            inside = drawn_runs(objects.shapes[place]) > 0
            around = ndimage.binary_dilation(inside, iterations=2) & ~land
            seen.append(tone[inside].mean() - tone[around].mean())
    assert np.mean(np.array(seen) > 20) > 0.9
