"""Objects from a column of a table: data sets of the Hub and of the datasets library, with a list of boxes in each row.

A row has {"bbox": [[left, top, width, height], ...], "category": [...]}, as COCO's boxes, or a list of such objects.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from swin_mim.data.dense.boxes import ImagesWithObjects, Objects
from swin_mim.data.dense.coco import checked_box, collected
from swin_mim.data.sources.tables import Table, columns_text
from swin_mim.errors import UserError

BOXES = ("bbox", "bboxes", "boxes", "box")
CLASSES = ("category", "categories", "category_id", "label", "labels", "class")
"""Names of the fields of an object, the first that is there is taken."""


def objects_of_table(table: Table, column: str | None, images_column: str | None) -> ImagesWithObjects:
    """Images and objects of the rows.

    Args:
        column: of the objects; None: the only one that has boxes.
        images_column: as in `Table.images`.

    Raises:
        UserError: there is no such column, or a box in it is none.
    """
    features = table.dataset.features
    column = _column(table, column)
    fields = _fields(features[column])
    box = next((name for name in BOXES if name in fields), None)
    kind = next((name for name in CLASSES if name in fields), None)
    if box is None or kind is None:
        raise UserError(
            f"column {column!r} of {table.name!r} must have the fields {BOXES[0]} and {CLASSES[0]}: it has "
            f"{', '.join(fields) or 'none'}"
        )
    rows = table.dataset.with_format(None).select_columns([column, *_sides(features)])
    raw = [_row(rows[index], column, box, kind) for index in range(len(rows))]
    names, number = _classes(fields[kind], [label for _, labels, _ in raw for label in labels])
    objects = tuple(_objects(table, place, each, number) for place, each in enumerate(raw))
    sizes = [size for *_, size in raw]
    known = np.array(sizes, dtype=np.int64) if all(size is not None for size in sizes) else None
    return ImagesWithObjects(table.images(images_column), names, objects, known)


def _column(table: Table, column: str | None) -> str:
    features = table.dataset.features
    if column is not None:
        if column not in features:
            raise UserError(f"data.objects_column {column!r} is not in {table.name!r}: {columns_text(features)}")
        return column
    having = [name for name, kind in features.items() if any(key in _fields(kind) for key in BOXES)]
    if len(having) != 1:
        raise UserError(
            f"{table.name!r} has no evident column of objects: set data.objects_column, its columns are "
            f"{columns_text(features)}"
        )
    return having[0]


def _fields(kind: Any) -> Mapping[str, Any]:
    """Fields of an object: of {"bbox": [...], ...} or of a list of such."""
    inner = getattr(kind, "feature", kind)
    if isinstance(inner, list):
        inner = inner[0]
    return inner if isinstance(inner, Mapping) else {}


def _sides(features: Mapping[str, Any]) -> list[str]:
    return ["height", "width"] if {"height", "width"} <= features.keys() else []


def _row(
    row: Mapping[str, Any], column: str, box: str, kind: str
) -> tuple[list[Any], list[Any], tuple[int, int] | None]:
    found = row[column] or {}
    if isinstance(found, list):
        boxes, labels = [each[box] for each in found], [each[kind] for each in found]
    else:
        boxes, labels = list(found.get(box) or ()), list(found.get(kind) or ())
    size = (int(row["height"]), int(row["width"])) if row.get("height") and row.get("width") else None
    return boxes, labels, size


def _classes(kind: Any, found: Sequence[Any]) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Names of the classes, and the number of each value."""
    inner = getattr(kind, "feature", kind)
    if names := getattr(inner, "names", None):
        return tuple(names), {number: number for number in range(len(names))}
    values = sorted(set(found), key=lambda value: (str(type(value)), value))
    return tuple(str(value) for value in values), {value: number for number, value in enumerate(values)}


def _objects(
    table: Table, place: int, row: tuple[list[Any], list[Any], tuple[int, int] | None], number: Mapping[Any, int]
) -> Objects:
    boxes, labels, size = row
    if len(boxes) != len(labels):
        raise UserError(f"row {place} of {table.name!r} has {len(boxes)} boxes and {len(labels)} classes")
    found = []
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        what = f"object {index} of row {place} of {table.name!r}"
        corners = checked_box(box, size, what)
        if label not in number:
            raise UserError(f"{what} is of class {label!r}, which its column does not have")
        area = float((corners[2] - corners[0]) * (corners[3] - corners[1]))
        found.append((corners, number[label], None, False, area))
    return collected(found)
