"""The images that a classifier gets most wrong: a file with their names, labels, predictions and small pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import Raster
from swin_mim.data.labels import Labelled
from swin_mim.data.sources.base import Source
from swin_mim.evaluation.classification import Outcome
from swin_mim.evaluation.false_colours import FalseColours, shown_channels
from swin_mim.evaluation.pages import data_address, webp
from swin_mim.files import replace_json

WORST = 12
"""Images in the file."""
SIDE = 160
"""Longer side of their pictures, in pixels."""


def save_worst(path: Path, outcome: Outcome, images: Labelled, *, step: int | None) -> None:
    """Write "images", those with a wrong prediction and the highest loss, the worst first.

    Each has "image" (its name), "label", "predicted", "probability" of that (with several labels none), "loss", and
    "picture", a data: address, or nothing where the image can no longer be read.

    Args:
        images: all that were evaluated, in the order of the source.
        step: after which the weights were these; None: nobody knows.
    """
    found = [_entry(outcome, place, images) for place in worst(outcome)]
    replace_json(path, {"step": step, "images": found})


def worst(outcome: Outcome) -> list[int]:
    """Places in the outcome of the wrong predictions with the highest loss, the highest first."""
    if outcome.multi_label:
        wrong = ((outcome.probabilities > 0.5) != outcome.targets).any(axis=1)
    else:
        wrong = outcome.top[:, 0] != outcome.targets
    order = np.argsort(-np.where(np.isfinite(outcome.loss), outcome.loss, np.inf), kind="stable")
    return [int(place) for place in order if wrong[place]][:WORST]


def _entry(outcome: Outcome, place: int, images: Labelled) -> dict[str, Any]:
    index, loss = int(outcome.images[place]), float(outcome.loss[place])
    if outcome.multi_label:
        chosen = (outcome.targets[place], outcome.probabilities[place] > 0.5)
        label, predicted = ("; ".join(images.names[k] for k in np.flatnonzero(row)) or "none" for row in chosen)
        probability = None
    else:
        label, predicted = images.names[outcome.targets[place]], images.names[outcome.top[place, 0]]
        probability = round(float(outcome.probabilities[place, 0]), 6)
    return {
        "image": images.images.path(index) or images.images.name(index),
        "label": label,
        "predicted": predicted,
        "probability": probability,
        "loss": loss if np.isfinite(loss) else None,
        "picture": _picture(images.images, index),
    }


def _picture(source: Source, index: int) -> str | None:
    try:
        image = source.image(index)
    except BrokenImage:
        return None
    picture = _coloured(image, source) if isinstance(image, Raster) else image
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return data_address(webp(picture.convert("RGB"), 85))


def _coloured(raster: Raster, source: Source) -> Image.Image:
    """Three of its channels as colours, or one as grey, by its own range."""
    values = torch.from_numpy(np.ascontiguousarray(raster.values, dtype=np.float32)).permute(2, 0, 1)[None]
    valid = None if raster.valid is None else torch.from_numpy(raster.valid)[None]
    names = source.channels or tuple(str(number + 1) for number in range(values.shape[1]))
    colours = FalseColours.of(values, valid, shown_channels(None, names))(values, valid)
    return Image.fromarray(colours[0].permute(1, 2, 0).numpy())
