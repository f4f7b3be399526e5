"""The place of a tile on Earth."""

import pytest

from swin_mim.data.scenes.georeference import Georeference, georeference_of_gml

SCALE, TIEPOINTS, TRANSFORMATION, RPC = 33550, 33922, 34264, 50844
GML = b"""<gml:RectifiedGrid dimension="2"><gml:origin><gml:Point gml:id="P0001" srsName="urn:ogc:def:crs:EPSG::%s">
<gml:pos>%s</gml:pos></gml:Point></gml:origin>
<gml:offsetVector gml:id="OV1" srsName="urn:ogc:def:crs:EPSG::%s">%s</gml:offsetVector>
<gml:offsetVector gml:id="OV2" srsName="urn:ogc:def:crs:EPSG::%s">%s</gml:offsetVector></gml:RectifiedGrid>"""


def moved(values: dict[int, tuple[float, ...]], top: int, left: int) -> dict[int, tuple[float, ...]]:
    return {number: value for number, _, _, value, _ in Georeference(values).shifted(top, left)}


def test_one_tiepoint_becomes_that_of_the_first_pixel() -> None:
    found = moved({SCALE: (10.0, 20.0, 0.0), TIEPOINTS: (2, 3, 0, 500000, 4600000, 7)}, 100, 1000)
    assert found[TIEPOINTS] == (0, 0, 0, 500000 + 998 * 10, 4600000 - 97 * 20, 7)
    assert found[SCALE] == (10, 20, 0)


def test_ground_control_points_move_on_the_grid() -> None:
    points = (0.0, 0.0, 0.0, 10.0, 50.0, 0.0, 600.0, 0.0, 0.0, 11.0, 50.0, 0.0)
    assert moved({TIEPOINTS: points}, 5, 100)[TIEPOINTS] == (-100, -5, 0, 10, 50, 0, 500, -5, 0, 11, 50, 0)


def test_a_rotated_picture() -> None:
    matrix = (1.0, 2.0, 0.0, 100.0, 3.0, -4.0, 0.0, 200.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    found = moved({TRANSFORMATION: matrix}, 10, 5)[TRANSFORMATION]
    assert (found[3], found[7]) == (100 + 1 * 5 + 2 * 10, 200 + 3 * 5 - 4 * 10)


def test_rational_polynomials() -> None:
    found = moved({RPC: tuple(float(number) for number in range(92))}, 10, 5)[RPC]
    assert found[:5] == (0, 1, 2 - 10, 3 - 5, 4)


@pytest.mark.parametrize(
    ("code", "origin", "steps", "corner", "scale"),
    [
        (b"32632", b"600005 5299995", (b"10 0", b"0 -10"), (600000, 5300000), (10, 10)),
        (b"4326", b"49.5 10.5", (b"0 1", b"-1 0"), (10, 50), (1, 1)),  # latitude comes first
    ],
)
def test_gml_in_jpeg2000(
    code: bytes,
    origin: bytes,
    steps: tuple[bytes, bytes],
    corner: tuple[float, float],
    scale: tuple[float, float],
) -> None:
    found = georeference_of_gml(GML % (code, origin, code, steps[0], code, steps[1])).values
    assert found[TIEPOINTS][3:5] == corner
    assert found[SCALE][:2] == scale
    assert found[34735][-1] == int(code)


def test_gml_that_says_nothing() -> None:
    assert not georeference_of_gml(b"<gml:pos>1 2</gml:pos>")
