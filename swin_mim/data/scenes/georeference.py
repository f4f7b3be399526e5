"""Where on Earth a scene lies, in the tags of GeoTIFF; moved along for the tiles that are cut from it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ExtraTag = tuple[int, int, int, Any, bool]
"""A TIFF tag as tifffile writes it: its number, type, count and value, and True."""

_SCALE, _TIEPOINTS, _TRANSFORMATION = 33550, 33922, 34264
_KEYS, _DOUBLES, _TEXT = 34735, 34736, 34737
_RPC = 50844
_GDAL_NODATA = 42113
_POINT = 6  # numbers of a tiepoint: column, row, depth; x, y, z
_SHORT, _DOUBLE, _ASCII = 3, 12, 2  # types of a tag
_LINE_OFFSET, _SAMPLE_OFFSET = 2, 3  # places in the rational polynomial's coefficients
# GeoTIFF's keys: version 1.1.0, then a projected system, pixels as areas, and the code of that system
_PROJECTED = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1)
_GEOGRAPHIC = (1, 1, 0, 3, 1024, 0, 1, 2, 1025, 0, 1, 1, 2048, 0, 1)
_EPSG = re.compile(rb'srsName="[^"]{0,80}EPSG[^"]{0,8}?(\d{4,5})"')
_ORIGIN = re.compile(rb"<gml:pos>\s*([-+.\deE]{1,30})\s+([-+.\deE]{1,30})\s*</gml:pos>")
_STEP = re.compile(rb"<gml:offsetVector[^>]{0,200}>\s*([-+.\deE]{1,30})\s+([-+.\deE]{1,30})\s*</gml:offsetVector>")


@dataclass(frozen=True)
class Georeference:
    """The tags that say where a picture lies, by their numbers."""

    values: Mapping[int, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.values)

    def shifted(self, top: int, left: int) -> list[ExtraTag]:
        """Tags of the part of the picture that begins at this row and column."""
        moved = dict(self.values)
        if _TIEPOINTS in moved:
            moved[_TIEPOINTS] = _moved_tiepoints(moved[_TIEPOINTS], moved.get(_SCALE), top, left)
        if _TRANSFORMATION in moved:
            matrix = list(moved[_TRANSFORMATION])
            for row in range(0, 12, 4):
                matrix[row + 3] += matrix[row] * left + matrix[row + 1] * top
            moved[_TRANSFORMATION] = tuple(matrix)
        if _RPC in moved:
            numbers = list(moved[_RPC])
            numbers[_LINE_OFFSET] -= top
            numbers[_SAMPLE_OFFSET] -= left
            moved[_RPC] = tuple(numbers)
        return [_tag(number, value) for number, value in sorted(moved.items())]


def georeference(tags: Any) -> Georeference:
    """Read that of a page's tags, which are tifffile's `TiffTags`; tags of a wrong length are no georeference."""
    lengths = {_SCALE: 3, _TRANSFORMATION: 16, _RPC: 92}
    found = {}
    for number in (_SCALE, _TIEPOINTS, _TRANSFORMATION, _KEYS, _DOUBLES, _TEXT, _RPC):
        value = tags.valueof(number)
        if isinstance(value, int | float):
            value = (value,)
        if not value or len(value) != lengths.get(number, len(value)):
            continue
        if number == _TIEPOINTS and len(value) % _POINT:
            continue
        found[number] = value
    return Georeference(found)


def nodata_tag(value: float) -> ExtraTag:
    """The tag by which programs know, after GDAL, what stands for pixels that are not there."""
    return _GDAL_NODATA, _ASCII, 0, f"{value:.17g}", True


def georeference_of_gml(text: bytes) -> Georeference:
    """Read that of a GMLJP2 box, as in Sentinel-2's images: an EPSG code, an upper left pixel and two steps."""
    system, origin, steps = _EPSG.search(text), _ORIGIN.search(text), _STEP.findall(text)
    if not system or not origin or len(steps) != 2:
        return Georeference()
    code = int(system[1])
    geographic = 4000 <= code < 5000
    x, y = float(origin[1]), float(origin[2])
    (ax, ay), (bx, by) = ((float(a), float(b)) for a, b in steps)
    if geographic:  # latitude comes first
        x, y, ax, ay, bx, by = y, x, ay, ax, by, bx
    # the origin is the centre of the first pixel
    x, y = x - (ax + bx) / 2, y - (ay + by) / 2
    keys = (*(_GEOGRAPHIC if geographic else _PROJECTED), code)
    matrix = (ax, bx, 0.0, x, ay, by, 0.0, y, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    if ay == bx == 0 and ax > 0 > by:
        return Georeference({_SCALE: (ax, -by, 0.0), _TIEPOINTS: (0.0, 0.0, 0.0, x, y, 0.0), _KEYS: keys})
    return Georeference({_TRANSFORMATION: matrix, _KEYS: keys})


def _moved_tiepoints(points: Any, scale: Any, top: int, left: int) -> tuple[float, ...]:
    if len(points) == _POINT and scale is not None:  # as programs expect it: of the first pixel
        column, row, depth, x, y, z = points
        return 0.0, 0.0, depth, x + (left - column) * scale[0], y - (top - row) * scale[1], z
    moved = list(points)
    for start in range(0, len(moved), _POINT):
        moved[start] -= left
        moved[start + 1] -= top
    return tuple(moved)


def _tag(number: int, value: Any) -> ExtraTag:
    if number == _TEXT:
        return number, _ASCII, 0, value, True
    return number, _SHORT if number == _KEYS else _DOUBLE, len(value), value, True
