"""Drawn detections: what is there and what was found, side by side."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from swin_mim.data.dense.boxes import ImagesWithObjects, Shape, drawn_runs
from swin_mim.evaluation.dense.detection import Found, Outcome, encoded
from swin_mim.files import replacing

SIDE = 320
"""Longer side of a drawn image, in pixels."""
SHOWN = 0.5
"""Min score of what is drawn."""
PICTURES = 8
"""Images that are drawn at most."""


def save_pictures(path: Path, outcome: Outcome) -> None:
    """Write a PNG of some images: a row for each, on the left the objects that are there, on the right what was found.

    Those with the most objects of the first ones are shown, so that there is something to see.
    """
    found, truth = outcome.found, outcome.truth
    chosen = sorted(sorted(found, key=lambda each: -len(truth.objects[each.image]))[:PICTURES], key=lambda e: e.image)
    rows = [_row(each, truth) for each in chosen]
    width, height = max(row.width for row in rows), sum(row.height + 4 for row in rows)
    sheet, top = Image.new("RGB", (width, height), "white"), 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + 4
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _row(found: Found, truth: ImagesWithObjects) -> Image.Image:
    picture, objects = truth.images.image(found.image), truth.objects[found.image]
    shapes: Sequence[Shape | None] = [None] * len(objects)
    if found.shapes is not None:
        shapes = [encoded(objects, place, found.size) for place in range(len(objects))]
    names = [truth.names[label] for label in objects.labels]
    left = _drawn(picture, objects.boxes, objects.labels, names, shapes)
    shown = found.scores >= SHOWN
    said = [
        f"{truth.names[label]} {score:.0%}"
        for label, score in zip(found.labels[shown], found.scores[shown], strict=True)
    ]
    shapes = [None] * len(said) if found.shapes is None else [found.shapes[place] for place in np.flatnonzero(shown)]
    right = _drawn(picture, found.boxes[shown], found.labels[shown], said, shapes)
    row = Image.new("RGB", (2 * left.width + 4, left.height), "white")
    row.paste(left, (0, 0))
    row.paste(right, (left.width + 4, 0))
    return row


def _drawn(
    picture: Image.Image, boxes: np.ndarray, labels: np.ndarray, texts: Sequence[str], shapes: Sequence[Any]
) -> Image.Image:
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    image = picture.convert("RGB").resize(size)
    for shape, label in zip(shapes, labels.tolist(), strict=True):
        if shape is not None:
            stencil = Image.fromarray(drawn_runs(shape) * 110).resize(size)
            image.paste(Image.new("RGB", size, _colour(label)), mask=stencil)
    draw = ImageDraw.Draw(image)
    for box, label, text in zip((boxes * scale).tolist(), labels.tolist(), texts, strict=True):
        draw.rectangle(box, outline=_colour(label))
        draw.text((box[0] + 2, max(0, box[1] - 11)), text, fill=_colour(label))
    return image


def _colour(label: int) -> tuple[int, int, int]:
    """Far from that of the neighbours, bright on any picture."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.381966 % 1, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)
