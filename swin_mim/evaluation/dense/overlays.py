"""Images, their masks and what is predicted, side by side as a picture with a legend."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 192
"""Pixels along the longer side of an image in the picture."""
SHARE = 0.6
"""Part of a colour that is its class's, where a class is drawn over the image."""
LONGEST = 28
"""Characters of a name in the legend."""

_FIRST = ("4363d8", "e6194b", "ffe119", "3cb44b", "911eb4", "a9f0f5", "f58231", "f032e6", "9a6324", "bfef45", "808000")
_GAP, _LINE = 6, 20
_GOLDEN = 0.61803398875  # of the circle from hue to hue: neighbours differ


class Shown(NamedTuple):
    """An image of the picture."""

    image: np.ndarray
    """uint8 (H, W, 3)."""
    truth: np.ndarray | None
    """Labels (H, W); None: nobody knows them."""
    predicted: np.ndarray
    """Classes (H, W)."""


def palette(count: int) -> np.ndarray:
    """uint8 (count, 3): a colour for each class."""
    colours = [bytes.fromhex(colour) for colour in _FIRST[:count]]
    for number in range(len(_FIRST), count):
        hue, value = (number * _GOLDEN) % 1, (0.95, 0.7, 0.5)[number % 3]
        colours.append(bytes(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, value)))
    return np.array([list(colour) for colour in colours], dtype=np.uint8).reshape(count, 3)


def save_overlays(path: Path, rows: Sequence[Shown], names: Sequence[str]) -> None:
    """A row for each image: itself, the classes of its mask over it, those of the prediction over it.

    Classes that are in none of them are not in the legend. Pixels without a label show the image.
    """
    colours = palette(len(names))
    drawn = [[row.image, *(_over(row.image, each, colours) for each in (row.truth, row.predicted))] for row in rows]
    columns = [[_small(picture) for picture in row] for row in drawn]
    found = [labels for row in rows for labels in (row.truth, row.predicted) if labels is not None]
    there = sorted({int(number) for labels in found for number in np.unique(labels) if number < len(names)})
    widths = [max(row[column].width for row in columns) for column in range(3)]
    legend = _legend([(_short(names[number]), colours[number]) for number in there], sum(widths) + 2 * _GAP)
    height = _LINE + sum(row[0].height + _GAP for row in columns) + legend.height
    sheet = Image.new("RGB", (sum(widths) + 4 * _GAP, height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    left = _GAP
    for column, title in enumerate(("image", "mask", "prediction")):
        draw.text((left, 3), title, fill="#303040", font=font)
        top = _LINE
        for row in columns:
            sheet.paste(row[column], (left, top))
            top += row[0].height + _GAP
        left += widths[column] + _GAP
    sheet.paste(legend, (_GAP, height - legend.height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def _over(image: np.ndarray, labels: np.ndarray | None, colours: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): the classes over the image in grey; white where nobody knows them."""
    if labels is None:
        return np.full_like(image, 255)
    classes = np.minimum(labels.astype(np.int64), len(colours) - 1)
    grey = image.mean(axis=2, keepdims=True)
    mixed = SHARE * colours[classes] + (1 - SHARE) * grey
    return np.where((labels < len(colours))[..., None], mixed, image).round().astype(np.uint8)


def _small(picture: np.ndarray) -> Image.Image:
    """Resized so that its longer side is `SIDE`."""
    image = Image.fromarray(picture)
    factor = SIDE / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR)


def _legend(entries: Sequence[tuple[str, np.ndarray]], width: int) -> Image.Image:
    font = ImageFont.load_default(12)
    places, left, top = [], 0, 0
    for name, colour in entries:
        length = 18 + round(font.getlength(name)) + 12
        if left and left + length > width:
            left, top = 0, top + _LINE
        places.append((left, top, name, colour))
        left += length
    legend = Image.new("RGB", (width, top + _LINE), "white")
    draw = ImageDraw.Draw(legend)
    for left, top, name, colour in places:
        draw.rectangle((left, top + 4, left + 11, top + 15), fill=tuple(colour.tolist()), outline="#808080")
        draw.text((left + 17, top + 2), name, fill="#303040", font=font)
    return legend


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."
