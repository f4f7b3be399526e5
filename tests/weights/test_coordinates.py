"""The buffers that tell the windows of a Swin V2: as the libraries make them, read back, and refused where damaged."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.swin_transformer_v2 import WindowAttention
from torchvision.models.swin_transformer import ShiftedWindowAttentionV2

from swin_mim.errors import UserError
from swin_mim.kernels.window_geometry import relative_coordinates
from swin_mim.weights.coordinates import measures_of, windows_of

SIDES = st.integers(1, 64)
MEASURES = st.integers(2, 64)
"""A window of 1 measures as one of 2 does."""


@pytest.mark.parametrize("pretrained", [(0, 0), (12, 12), (6, 8)])
@pytest.mark.parametrize("window", [(7, 7), (16, 16), (4, 6)])
def test_they_are_those_of_the_libraries(window, pretrained):
    table = relative_coordinates(window, pretrained)[None]
    theirs = WindowAttention(8, window, 1, pretrained_window_size=pretrained).relative_coords_table
    torch.testing.assert_close(table, theirs, atol=3e-7, rtol=0)
    if pretrained == (0, 0):
        assert torch.equal(table, ShiftedWindowAttentionV2(8, list(window), [0, 0], 1).relative_coords_table)


@given(
    st.tuples(SIDES, SIDES),
    st.tuples(MEASURES, MEASURES),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_both_windows_are_read_from_them(window, pretrained, dtype):
    table = relative_coordinates(window, pretrained)[None].to(dtype)
    names = [["a", "b"]]
    assert windows_of({"a": table.shape, "b": table.shape}, names) == (window,)
    found = measures_of({"a": table, "b": table}, names, [window])[0]
    if dtype == torch.float32:
        # a window of 1 has the one coordinate 0, whatever measures it
        assert found == tuple(p if w > 1 else w for p, w in zip(pretrained, window, strict=True))
    for side, other in zip(found, pretrained, strict=True):
        assert dtype == torch.float32 or abs(side - other) <= 0.05 * other + 1 or 1 in window


def test_without_buffers_no_window_is_told():
    assert windows_of({}, ()) is None


@pytest.mark.parametrize("shape", [(1, 6, 6, 2), (7, 7, 2), (1, 7, 7, 3), (2, 7, 7, 2), ()])
def test_shapes_of_no_window_are_refused(shape):
    with pytest.raises(UserError, match=r"a is \(.*: it must be \(1, 2h-1, 2w-1, 2\)"):
        windows_of({"a": shape}, [["a"]])


def test_blocks_of_a_stage_that_differ_are_refused():
    with pytest.raises(UserError, match="the blocks of stage 1 have relative_coords_table of different shapes"):
        windows_of({"a": (1, 7, 7, 2), "b": (1, 5, 5, 2)}, [["a"], ["a", "b"]])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table.zero_(),
        lambda table: table.neg_(),
        lambda table: table[0, 0, 0].add_(0.1),
        lambda table: table.fill_(float("nan")),
        lambda table: table[0, 3, 2].fill_(float("inf")),
        lambda table: table[0, -1, -1].fill_(float("inf")),
        lambda table: table.mul_(1e30),
    ],
)
def test_other_values_are_refused(spoil):
    good, bad = (relative_coordinates((4, 4), (0, 0))[None] for _ in range(2))
    spoil(bad)
    for tensors in ({"a": bad, "b": bad}, {"a": good, "b": bad}):
        with pytest.raises(UserError, match="holds no coordinates of a window of 4x4: the file is damaged"):
            measures_of(tensors, [["a", "b"]], [(4, 4)])
