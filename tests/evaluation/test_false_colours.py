"""Which channels a picture shows, and in which colours."""

import pytest
import torch

from swin_mim.errors import UserError
from swin_mim.evaluation.false_colours import FalseColours, shown_channels


@pytest.mark.parametrize(
    ("chosen", "names", "shown"),
    [
        (None, ("nir", "Blue", "green", "red"), (3, 2, 1)),
        (None, ("B02", "B03", "B04", "B08"), (2, 1, 0)),
        (None, ("1", "2", "3", "4"), (0, 1, 2)),
        (None, ("depth", "slope"), (0,)),
        (("nir", "2", "1"), ("red", "green", "nir"), (2, 1, 0)),
        (("NIR",), ("red", "nir"), (1,)),
        (("2",), ("9", "2"), (1,)),  # a name comes before a number
    ],
)
def test_channels_are_found_by_name_and_by_number(chosen, names, shown):
    assert shown_channels(chosen, names) == shown


@pytest.mark.parametrize("chosen", [("swir",), ("red", "nir"), ("3",), ()])
def test_others_are_refused(chosen):
    with pytest.raises(UserError, match=r"must be one or three of the channels: red, nir$"):
        shown_channels(chosen, ("red", "nir"))


def test_most_values_become_all_greys_and_gaps_white():
    images = torch.arange(1000.0).view(1, 1, 10, 100).repeat(1, 2, 1, 1)
    images[0, 1] *= -30
    images[:, :, 0, 0] = torch.nan
    valid = ~images[:, 0].isnan()
    colours = FalseColours.of(images, valid, (1, 0, 0))
    shown = colours(images, valid)
    assert shown.shape == (1, 3, 10, 100)
    assert shown.dtype == torch.uint8
    assert (shown[0, :, 0, 0] == 255).all()
    seen = shown[0, :, valid[0]]
    assert seen.unique().numel() == 256
    assert (seen[1].diff() >= 0).all(), "brighter where values are larger"
    assert ((seen == 0).sum(1) <= 25).all()
    assert torch.equal(FalseColours.of(images[:, 1:], valid, (0,))(images[:, 1:], valid)[0, 2], shown[0, 0])


def test_a_flat_image_is_black_and_no_division_by_nothing():
    images = torch.full((1, 1, 4, 4), 7.0)
    assert not FalseColours.of(images, None, (0,))(images, None).any()
