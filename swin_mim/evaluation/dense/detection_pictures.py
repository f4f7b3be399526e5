"""Drawn detections: what is there and what was found, side by side."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from swin_mim.data.decoding.raster import Raster
from swin_mim.data.dense.box_transforms import Picture
from swin_mim.data.dense.boxes import ImagesWithObjects, Objects, Shape, drawn_runs, size_of
from swin_mim.evaluation.dense.detection import Found, Outcome, encoded
from swin_mim.evaluation.false_colours import FalseColours, shown_channels
from swin_mim.files import replacing

SIDE = 320
"""Longer side of a drawn image, in pixels."""
SHOWN = 0.5
"""Min score of what is drawn."""
PICTURES = 8
"""Images that are drawn at most."""

_GAP = 4


def save_pictures(path: Path, outcome: Outcome) -> None:
    """Write a PNG of some images: a row for each, on the left the objects that are there, on the right what was found.

    Those with the most objects of the first ones are shown, so that there is something to see; crowds are not drawn, as
    nothing is to be found there. Images of any channels are shown in the visible ones, by their names, or in the first.
    "rows" of its text are the first and the last line of each, so that a page can show them one by one.
    """
    found, truth = outcome.found, outcome.truth
    chosen = sorted(sorted(found, key=lambda each: -len(_wanted(each, truth)))[:PICTURES], key=lambda e: e.image)
    pictures = _small_pictures([truth.images.image(each.image) for each in chosen], truth.images.channels)
    rows = [_row(each, truth, picture) for each, picture in zip(chosen, pictures, strict=True)]
    width, height = max(row.width for row in rows), sum(row.height + _GAP for row in rows)
    sheet, top = Image.new("RGB", (width, height), "white"), 0
    places: list[int] = []
    for row in rows:
        sheet.paste(row, (0, top))
        places += [top, top + row.height]
        top += row.height + _GAP
    info = PngInfo()
    info.add_text("rows", " ".join(map(str, places)))
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=info)


def _small_pictures(pictures: Sequence[Picture], channels: Sequence[str] | None) -> list[Image.Image]:
    """RGB, with the longer side at `SIDE`."""
    sizes = [size_of(picture) for picture in pictures]
    sizes = [(max(1, round(h * SIDE / max(h, w))), max(1, round(w * SIDE / max(h, w)))) for h, w in sizes]
    small, rasters = [], []
    for picture, size in zip(pictures, sizes, strict=True):
        if isinstance(picture, Raster):
            rasters.append(_nearest(picture, size))
        else:
            small.append(picture.convert("RGB").resize(size[::-1]))
    if not rasters:
        return small
    flat = torch.cat([each.flatten(1) for each in rasters], dim=1)[None, :, :, None]  # (1, C, all pixels, 1)
    names = channels or tuple(str(number + 1) for number in range(flat.shape[1]))
    colours = FalseColours.of(flat, ~flat[:, 0].isnan(), shown_channels(None, names))
    shown = [colours(each[None], ~each[None, 0].isnan())[0] for each in rasters]
    return [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in shown]


def _nearest(raster: Raster, size: tuple[int, int]) -> torch.Tensor:
    """Resize to (H, W), so that a single pixel that is there is shown -> float32 (C, H, W), NaN in gaps."""
    height, width = size_of(raster)
    rows, columns = ((2 * np.arange(to) + 1) * of // (2 * to) for to, of in zip(size, (height, width), strict=True))
    place = np.ix_(rows, columns)
    with np.errstate(over="ignore"):  # of pixels that are not there
        values = torch.from_numpy(raster.values[place].astype(np.float32)).permute(2, 0, 1)
    return values if raster.valid is None else values.where(torch.from_numpy(raster.valid[place]), torch.nan)


def _wanted(found: Found, truth: ImagesWithObjects) -> Objects:
    """The objects of an image that are to be found."""
    objects = truth.objects[found.image]
    return objects.take(~objects.crowd)


def _row(found: Found, truth: ImagesWithObjects, picture: Image.Image) -> Image.Image:
    """`picture` is the image, small."""
    objects, scale = _wanted(found, truth), SIDE / max(found.size)
    shapes: Sequence[Shape | None] = [None] * len(objects)
    if found.shapes is not None:
        shapes = [encoded(objects, place, found.size) for place in range(len(objects))]
    names = [truth.names[label] for label in objects.labels]
    left = _drawn(picture, objects.boxes * scale, objects.labels, names, shapes)
    shown = found.scores >= SHOWN
    said = [
        f"{truth.names[label]} {score:.0%}"
        for label, score in zip(found.labels[shown], found.scores[shown], strict=True)
    ]
    shapes = [None] * len(said) if found.shapes is None else [found.shapes[place] for place in np.flatnonzero(shown)]
    right = _drawn(picture, found.boxes[shown] * scale, found.labels[shown], said, shapes)
    row = Image.new("RGB", (2 * left.width + _GAP, left.height), "white")
    row.paste(left, (0, 0))
    row.paste(right, (left.width + _GAP, 0))
    return row


def _drawn(
    picture: Image.Image, boxes: np.ndarray, labels: np.ndarray, texts: Sequence[str], shapes: Sequence[Any]
) -> Image.Image:
    """Boxes in pixels of the picture; shapes of the image at any size."""
    image = picture.copy()
    for shape, label in zip(shapes, labels.tolist(), strict=True):
        if shape is not None:
            stencil = Image.fromarray(drawn_runs(shape) * 110).resize(picture.size)
            image.paste(Image.new("RGB", picture.size, _colour(label)), mask=stencil)
    draw = ImageDraw.Draw(image)
    one_line = (" ".join(text.split()) for text in texts)
    for box, label, text in zip(boxes.tolist(), labels.tolist(), one_line, strict=True):
        draw.rectangle(box, outline=_colour(label))
        place = max(1, min(box[0] + 1, image.width - draw.textlength(text) - 2)), max(0, box[1] - 12)
        draw.rectangle(draw.textbbox(place, text), fill=_colour(label), outline=_colour(label))
        draw.text(place, text, fill="black")
    return image


def _colour(label: int) -> tuple[int, int, int]:
    """Far from that of the neighbours, bright on any picture."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.381966 % 1, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)
