"""Where tiles lie and what they are called."""

import pytest

from swin_mim.data.tiling.grid import starts, tile_name


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "expected"),
    [
        (100, 100, 0, [0]),
        (99, 100, 10, [0]),
        (300, 100, 0, [0, 100, 200]),
        (301, 100, 0, [0, 100, 200, 201]),
        (280, 100, 10, [0, 90, 180]),  # neighbours share 10, and the last one ends with the side
        (281, 100, 10, [0, 90, 180, 181]),
        (101, 100, 99, [0, 1]),
    ],
)
def test_tiles_cover_a_side_and_end_with_it(length: int, tile: int, overlap: int, expected: list[int]) -> None:
    found = starts(length, tile, overlap)
    assert found == expected
    covered = {pixel for start in found for pixel in range(start, min(start + tile, length))}
    assert covered == set(range(length))


def test_names_sort_as_tiles_lie() -> None:
    assert tile_name("a/scene", 448, 10000, (20000, 20000)) == "a/scene_00448_10000"
    assert tile_name("scene", 5, 0, (1_200_000, 10)) == "scene_0000005_0000000"
