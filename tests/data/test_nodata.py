"""Values that may mark missing pixels: which are noticed, and which pictures raise no alarm."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from swin_mim.data.decoding.raster import Raster
from swin_mim.data.nodata import Nodata, find_nodata, number_text, statistics_without, suspects
from swin_mim.data.statistics import Statistics

Y, X = np.mgrid[:96, :96]
CORNER = (Y + X < 40)[..., None]
CIRCLE = ((Y - 48) ** 2 + (X - 48) ** 2 < 44**2)[..., None]


def smooth(seed: int, channels: int, low: float, high: float, kind: str) -> np.ndarray:
    """(96, 96, channels) without an edge, from `low` to `high`."""
    rng = np.random.default_rng(seed)
    planes = [Image.fromarray(rng.random((9, 9), np.float32)).resize((96, 96), 3) for _ in range(channels)]
    return (low + np.stack([np.asarray(plane) for plane in planes], -1).clip(0, 1) * (high - low)).astype(kind)


def found(make: Callable[[int], np.ndarray], valid: np.ndarray | None = None) -> tuple[Nodata, ...]:
    """What is suspected in six images."""
    images = [Raster(make(seed), valid) for seed in range(6)]
    each = [Statistics.of(image) for image in images]
    pairs = zip(images, each, strict=True)
    return find_nodata([suspects(image, statistics) for image, statistics in pairs], sum(one.valid for one in each))


@pytest.mark.parametrize(("make", "value", "apart"), [
    (lambda i: np.where(CORNER, -9999, smooth(i, 1, 0, 3000, "i2")), -9999, True),  # elevations
    (lambda i: np.where(CORNER, np.float32(-32768), smooth(i, 1, -400, 8000, "f4")), -32768, True),
    (lambda i: np.where(CORNER, 65535, smooth(i, 4, 100, 9000, "u2")).astype("u2"), 65535, True),
    (lambda i: np.where(CIRCLE, smooth(i, 1, -1024, 3000, "i2"), -2000), -2000, True),  # what CT scanners write outside
    (lambda i: np.where(CORNER & (np.arange(3) == 1), -9999, smooth(i, 3, 0, 900, "i2")), -9999, True),  # of one band
    (lambda i: np.where(CORNER, 0, smooth(i, 13, 200, 4000, "u2")), 0, False),  # the edge of an orbit
    (lambda i: np.where(CORNER, 0, smooth(i, 1, 200, 4000, "u2")), 0, False),
    (lambda i: np.where(CORNER, 0, smooth(i, 4, 1, 255, "u1")).astype("u1"), 0, False),  # an aerial photograph
    (lambda i: np.where(CORNER, np.float32(0), smooth(i, 2, -30, 5, "f4")), 0, False),  # decibels: 0 is amid others
    (lambda i: np.where(CORNER, np.float32(0), smooth(i, 1, -30, 5, "f4")), 0, False),
    (lambda i: np.full((9, 9, 1), -9999) if i % 2 else smooth(i, 1, 0, 900, "i4"), -9999, True),
])  # fmt: skip
def test_what_is_noticed(make: Callable[[int], np.ndarray], value: float, apart: bool) -> None:
    (only,) = found(make)
    assert (only.value, only.apart) == (value, apart)
    assert 0 < only.share < 0.5
    assert only.said(6).startswith(f"{value} is in {only.images} of 6 images, ")


@pytest.mark.parametrize("make", [
    lambda i: smooth(i, 13, 0, 4000, "u2"),
    lambda i: smooth(i, 1, -30, 5, "f4"),
    lambda i: np.maximum(smooth(i, 1, -1500, 3000, "i2"), 0),  # the sea
    lambda i: np.maximum(smooth(i, 1, -3000, 4000, "i4"), 0).astype("u2"),  # a dark background
    lambda i: np.maximum(smooth(i, 1, -3000, 2000, "i2"), -1024),  # air
    lambda i: np.where((Y == 5)[..., None] & (X == 5)[..., None], 65535, smooth(i, 1, 100, 2000, "u2")),  # a hot pixel
    lambda i: (smooth(i, 1, 0, 2, "u1") * 255).astype("u1"),  # a mask of two values
    lambda i: smooth(i, 1, 0, 6, "u1"),  # a map of classes
    lambda i: np.where(CORNER, np.nan, smooth(i, 1, 0, 1, "f4")) * 0 + smooth(i, 1, 0, 1, "f4"),
])  # fmt: skip
def test_what_raises_no_alarm(make: Callable[[int], np.ndarray]) -> None:
    valid = np.isfinite(make(0)).all(axis=2)
    assert found(make, None if valid.all() else valid) == ()


def test_what_is_marked_already_is_no_suspicion() -> None:
    def make(seed: int) -> np.ndarray:
        return np.where(CORNER, -9999, smooth(seed, 2, 0, 900, "i2"))

    assert len(found(make)) == 1
    assert found(make, ~CORNER[..., 0]) == ()


def test_statistics_without_it_are_those_of_the_other_pixels() -> None:
    clean = [smooth(seed, 2, 0, 900, "i2") for seed in range(4)]
    images = [Raster(np.where(CORNER, -9999, values) if seed != 2 else values) for seed, values in enumerate(clean)]
    images.append(Raster(np.full((9, 9, 2), -9999, "i2")))
    each = [Statistics.of(image) for image in images]
    pairs = [(one, suspects(image, one)) for image, one in zip(images, each, strict=True)]
    without = statistics_without(-9999, iter(pairs))
    there = np.concatenate([clean[i].reshape(-1, 2) if i == 2 else clean[i][~CORNER[..., 0]] for i in range(4)])
    assert without is not None
    np.testing.assert_allclose(without.mean, there.mean(axis=0))
    np.testing.assert_allclose(without.std, there.std(axis=0))
    assert without.valid == len(there)
    assert statistics_without(-9999, iter(pairs[-1:])) is None


@pytest.mark.parametrize(("value", "text"), [(-9999.0, "-9999"), (0.0, "0"), (0.5, "0.5"), (1e30, "1e+30")])
def test_values_as_options_take_them(value: float, text: str) -> None:
    assert number_text(value) == text
    assert float(text) == value
