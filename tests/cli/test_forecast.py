"""What the doctor foretells: entropies that are known, holes whose filling is known, and only what was measured."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from swin_mim.cli.doctor.images.expectation import CHARACTERS, CLOTHES, KINDS, TILES, lines
from swin_mim.cli.doctor.images.forecast import Filled, Forecast, entropies, forecast_of, units
from swin_mim.data.sources.open import open_source
from swin_mim.errors import UserError
from swin_mim.training.config.commands import pretrain_config

NOISE = np.random.default_rng(0)


def grey(pixels):
    """(H, W) -> uint8 (1, 3, H, W)."""
    return torch.from_numpy(np.asarray(pixels, dtype=np.uint8)).expand(1, 3, -1, -1)


def halves(low, high):
    return np.where(np.arange(64)[:, None] < 32, low, high) * np.ones((1, 64))


def config_of(*flags):
    small = (
        "--model.name",
        "swin_nano",
        "--model.image_size",
        "64",
        "--mask.unit",
        "16",
        "--train.global_batch",
        "16",
        "--train.micro_batch",
        "16",
    )
    return pretrain_config(["--config", "simmim_swin_tiny_192_100ep", "--data.source", ".", *small, *flags])


def test_entropies_that_are_known():
    assert entropies(grey(np.full((64, 64), 77))).tolist() == [0]
    assert entropies(grey(halves(10, 200))).tolist() == pytest.approx([1])
    every = np.arange(64 * 64).reshape(64, 64) % 256
    assert entropies(grey(every)).tolist() == pytest.approx([8])
    noise = entropies(grey(NOISE.integers(0, 256, (64, 64))))
    assert 7.9 < noise.item() < 8
    both = torch.cat([grey(halves(10, 200)), grey(every)])
    assert entropies(both).tolist() == pytest.approx([1, 8])


def test_entropies_of_other_channels_are_the_mean_over_them_without_gaps():
    values = torch.stack([torch.full((64, 64), 3.5), torch.from_numpy(halves(-1e4, 1e4)).float()])[None]
    assert entropies(values).tolist() == pytest.approx([0.5])
    valid = torch.arange(64)[:, None].expand(64, 64)[None] < 32
    assert entropies(values.where(valid[:, None], torch.nan), valid).tolist() == [0]
    assert entropies(values.where(valid[:, None], torch.nan), torch.zeros_like(valid)).tolist() == [0]


def folder_of(tmp_path, make):
    for number in range(12):
        Image.fromarray(np.asarray(make(number), dtype=np.uint8)).save(tmp_path / f"{number:02d}.png")
    return open_source(str(tmp_path))


def test_a_plane_is_filled_and_noise_is_not(tmp_path):
    """Of noise the mean is a better guess than the pixels around, of a plane these know nearly all."""
    for name in ("plane", "noise", "flat"):
        (tmp_path / name).mkdir()
    slope = np.add.outer(np.arange(80), np.arange(80))
    plane = folder_of(tmp_path / "plane", lambda number: 40 + number + slope)
    noise = folder_of(tmp_path / "noise", lambda _: NOISE.integers(0, 256, (80, 80)))
    flat = folder_of(tmp_path / "flat", lambda number: np.full((80, 80), 10 * number))
    config = config_of()
    smooth, rough, empty = (forecast_of(config, source, None, None) for source in (plane, noise, flat))
    assert (smooth.looked_at, smooth.unlabelled, smooth.per_label) == (12, 12, None)
    assert [each.unit for each in smooth.filled] == [16, 32]
    assert smooth.filled[0].share < smooth.filled[1].share < 0.7
    assert rough.filled[0].share > 1
    assert rough.entropy > max(7, smooth.entropy)
    assert empty.filled[0].share is None
    assert empty.entropy == 0
    text = dict(lines(empty, config))
    assert "there is nothing to predict" in text["holes"]
    assert text["expect"].startswith("nothing")
    assert "take" not in text


def known(share, **options):
    filled = Filled(16, 1.0, share), Filled(32, 1.0, share + 0.2)
    return replace(Forecast(48, 6.0, filled, 1000, None), **options)


def told(share, *flags, **options):
    return dict(lines(known(share, **options), config_of(*flags)))


def test_what_is_said_is_what_was_measured():
    smooth, middle, rough = (told(share) for share in (0.4, 0.7, 1.0))
    assert "0.40 with units of 16 px, 0.60 with units of 32 px" in smooth["holes"]
    assert "nearest are the embedded tiles (0.45), where pretraining on pixels won steps" in smooth["expect"]
    assert "--mask.unit 32" in smooth["take"]
    assert "--model.target pixels or normalized (no figure of ours" in smooth["take"]
    assert "nearest are small grey pictures of clothes (0.72), where pretraining won accuracy" in middle["expect"]
    assert "--mask.unit 16 (as set)" in middle["take"]
    assert "--model.target hog or pixels or normalized (in this order" in middle["take"]
    assert "nearest are drawn characters in random colours (0.96), where new weights learned nothing" in rough["expect"]
    assert "--model.target normalized or pixels (about alike; hog learned nothing" in rough["take"]
    assert all(text["expect"].endswith("Only a trial tells of yours") for text in (smooth, middle, rough))
    assert all("validation pictures, one run each" in text["expect"] for text in (middle, rough))
    assert "--labelled N" in smooth["labels"]


@pytest.mark.parametrize(("share", "kind", "labelled", "near"), [
    (0.4, TILES, 43, 23),
    (0.4, TILES, 128, 7.8),
    (0.4, TILES, 1250, 0.8),
    (0.7, CLOTHES, 1, 1825),
    (0.7, CLOTHES, 5, 182),
    (0.9, CHARACTERS, 50, 20),
    (0.4, TILES, 10_000, None),
    (0.7, CLOTHES, 100, None),
    (0.9, CHARACTERS, 1, None),
])  # fmt: skip
def test_points_are_told_where_about_as_many_have_labels(share, kind, labelled, near):
    said = told(share, labelled=labelled)
    assert f"{1000 / labelled:,.1f} images to pretrain on for each" in said["labels"]
    if near is None:
        assert "far from yours" in said["expect"]
        assert "it won" not in said["expect"]
    else:
        assert f"with {near:,g} unlabelled images for a labelled one it won {kind.gains[near]} points" in said["expect"]


def test_kinds_of_images_meet_in_the_middle():
    middles = [(one.share + other.share) / 2 for one, other in itertools.pairwise(KINDS)]
    for middle, pair in zip(middles, itertools.pairwise(KINDS), strict=True):
        for share, kind in zip((middle - 0.01, middle + 0.01), pair, strict=True):
            assert f"nearest are {kind.name} ({kind.share:.2f}), where {kind.what}" in told(share)["expect"]


def test_images_unlike_all_that_was_measured_are_told_so():
    assert "smoother than all of these" in told(0.34)["expect"]
    assert "rougher than all of these" in told(1.07)["expect"]


def test_only_targets_that_a_pretraining_takes_are_proposed():
    flags = ("--mask.unit", "4", "--model.patch_size", "4")
    forecast = replace(known(0.7), filled=(Filled(4, 1.0, 0.7),))
    said = dict(lines(forecast, config_of(*flags)))
    assert "--mask.unit 4 (as set)" in said["take"]
    assert "--model.target pixels or normalized" in said["take"]
    with pytest.raises(UserError, match="unit 4 is not a multiple of 8"):
        config_of(*flags, "--model.target", "hog")


def test_units_leave_four_of_an_image():
    assert list(units(config_of())) == [16, 32]
    assert list(units(config_of("--mask.unit", "32"))) == [32]
    assert list(units(config_of("--mask.ratio", "0.8"))) == [16], "of four units 0.8 would be all"
    assert list(units(config_of("--model.image_size", "64", "96", "--mask.unit", "8"))) == [8, 16, 32]
