"""Offsets of 1000 in some of the images: when a word is said, and which pictures raise no alarm."""

from collections.abc import Callable

import numpy as np
import pytest

from swin_mim.data.decoding.raster import Raster
from swin_mim.data.offsets import Offset, beginning, find_offset

Y, X = np.mgrid[:64, :64]


def ground(seed: int, added: int = 0, channels: int = 4, kind: str = "u2") -> np.ndarray:
    """(64, 64, channels) of reflectances times 10,000, the first channel darkest."""
    rng = np.random.default_rng(seed)
    return (rng.integers(20 + seed, 3000, (64, 64, channels)) + 150 * np.arange(channels) + added).astype(kind)


def found(make: Callable[[int], np.ndarray], images: int = 12, valid: np.ndarray | None = None) -> Offset | None:
    return find_offset((f"{seed}.tif", beginning(Raster(make(seed), valid))) for seed in range(images))


def later(seed: int) -> bool:
    return seed % 3 == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda i: ground(i, 1000 * later(i)),
        lambda i: ground(i, 1000 * later(i), channels=1, kind="i4"),
        lambda i: np.where((Y + X < 30)[..., None], 0, ground(i, 1000 * later(i))),  # beside the orbit
        lambda i: np.where((Y + X < 2)[..., None], 870, ground(i, 1000)) if later(i) else ground(i),  # below 0
        lambda i: ground(i, 1000 * later(i) + 2000 * (i in (1, 3))),  # snow
    ],
    ids=["plain", "one channel", "frames of 0", "some reflectances below 0", "bright ones"],
)
def test_two_kinds_of_images_are_noticed(make: Callable[[int], np.ndarray]) -> None:
    offset = found(make)
    assert offset is not None
    assert (offset.shifted, offset.plain) in ((4, 8), (3, 7))
    assert offset.example == "0.tif"
    text = offset.said()
    low, high = offset.shifted_range
    assert 1000 <= low <= high < 1200
    assert (
        f"of {offset.shifted} images (such as 0.tif) begins at {low} to {high}, that of {offset.plain} others" in text
    )
    assert "Sentinel-2's have since processing baseline 04.00" in text
    assert "subtract 1000 from them" in text


def test_pixels_that_are_not_there_do_not_count() -> None:
    marked = Y >= 8

    def make(seed: int) -> np.ndarray:
        return np.where(marked[..., None], ground(seed, 1000 * later(seed)), 1)

    assert found(make) is None
    assert found(make, valid=marked) is not None


def test_of_a_large_image_a_part_tells_as_much() -> None:
    values = np.random.default_rng(0).integers(1020, 4000, (700, 900, 2)).astype("u2")
    low = beginning(Raster(values, np.ones((700, 900), bool)))
    assert low is not None
    assert 1020 <= low < 1030


@pytest.mark.parametrize("make", [
    ground,
    lambda i: ground(i, 1000),  # all with it: it goes away with normalisation
    lambda i: np.random.default_rng(i).integers(1216, 4096, (64, 64, 1)).astype("u2"),  # 12 bits, a dark level of 1216
    lambda i: np.random.default_rng(i).integers(7000 + 90 * i, 9000, (64, 64, 1)).astype("u2"),  # a thermal camera
    lambda i: np.random.default_rng(i).integers(90 + 110 * i, 4000, (64, 64, 1)).astype("u2"),  # any exposures
    lambda i: np.random.default_rng(i).integers(0, 256, (64, 64, 3)).astype("u1"),  # photographs
    lambda i: np.random.default_rng(i).integers(0, 256, (64, 64, 3)).astype("u2") + 1000 * (i == 3),  # one odd image
    lambda i: (ground(i, 1000 * later(i)) / 10_000).astype("f4"),
    lambda i: np.zeros((64, 64, 2), "u2"),
    lambda i: np.where((i == X)[..., None], -9999, ground(i, 1000).astype("i4")) if i % 2 else ground(i, 1000),
], ids=["none", "all", "12 bits", "thermal", "exposures", "8 bits", "one", "floats", "empty", "nodata"])  # fmt: skip
def test_what_raises_no_alarm(make: Callable[[int], np.ndarray]) -> None:
    assert found(make) is None
