"""Channels of images beside those that weights were made for."""

import logging
from dataclasses import replace

import pytest

from swin_mim.errors import UserError
from swin_mim.models.saving import Preprocessing
from swin_mim.training.channels import (
    RGB,
    check_channels,
    preprocessing_of,
    warn_of_other_channels,
    warn_of_other_gaps,
)
from swin_mim.training.config.pretrain import DataConfig

PHOTOS = Preprocessing()
BANDS = Preprocessing((1.0, 2.0), (3.0, 4.0), ("nir", "red"), scale=1, nodata=0.0)


def test_images_are_rgb_or_as_their_files_have_them() -> None:
    assert preprocessing_of(DataConfig(), None) == PHOTOS
    data = DataConfig(mean=(1.0, 2.0), std=(3.0, 4.0), nodata=0.0)
    assert preprocessing_of(data, ("nir", "red")) == BANDS


@pytest.mark.parametrize(
    ("seen", "channels", "message"),
    [
        (PHOTOS, ("nir", "red"), "takes 3 channels (red, green, blue) of values from 0 to 1, and images are read as 2"),
        (PHOTOS, RGB, "make a model of these channels with SimMIM.from_pretrained"),
        (
            BANDS,
            None,
            "takes 2 channels (nir, red) as they stand in the files, and images are read as RGB: name the same",
        ),
        (BANDS, ("red", "nir"), "images are read as 2 channels (red, nir): name the same channels in data.channels"),
        (replace(BANDS, channels=None), ("a", "b", "c"), "takes 2 channels as they stand in the files"),
        (Preprocessing.unknown(4), None, "takes 4 channels of values from 0 to 1"),
    ],
)
def test_a_classifier_of_other_channels_is_refused(seen, channels, message) -> None:
    with pytest.raises(UserError) as error:
        check_channels(seen, channels, "weights")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("seen", "channels"), [(PHOTOS, None), (BANDS, ("nir", "red")), (replace(BANDS, channels=None), ("x", "y"))]
)
def test_one_of_the_same_channels_is_not(seen, channels) -> None:
    check_channels(seen, channels, "weights")


@pytest.mark.parametrize(
    ("seen", "channels"), [(BANDS, ("1", "2")), (replace(BANDS, channels=("1", "2")), ("nir", "red"))]
)
def test_numbers_on_one_side_are_accepted_with_a_warning(seen, channels, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    check_channels(seen, channels, "weights")
    assert "whether they are the same nothing tells" in caplog.text
    with pytest.raises(UserError, match="name the same channels"):
        check_channels(seen, (*channels, "3"), "weights")


@pytest.mark.parametrize(
    ("weights", "images", "warns"),
    [
        (PHOTOS, PHOTOS, False),
        (BANDS, BANDS, False),
        (replace(BANDS, channels=None), BANDS, False),
        (replace(BANDS, channels=("red", "nir")), BANDS, True),
        (PHOTOS, replace(PHOTOS, scale=1), True),
    ],
)
def test_a_pretraining_that_starts_from_other_channels_says_so(weights, images, warns, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_other_channels(weights, images, "weights")
    assert ("weights was made for images of" in caplog.text) == warns


@pytest.mark.parametrize(
    ("seen", "nodata", "mask", "warns"),
    [(BANDS, 0.0, None, False), (BANDS, None, None, True), (BANDS, 0.0, "there", True), (PHOTOS, 7.0, None, False)],
)
def test_gaps_that_are_marked_in_another_way_are_told(seen, nodata, mask, warns, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_other_gaps(seen, nodata, mask, "weights")
    assert ("gaps that are not told are read as values" in caplog.text) == warns
