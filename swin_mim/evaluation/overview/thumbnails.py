"""Small pictures of some images of a source, as text that a page holds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from swin_mim.data.sources.base import Source
from swin_mim.evaluation.false_colours import FalseColours, shown_channels
from swin_mim.evaluation.pages import data_address, webp
from swin_mim.evaluation.reader import Reader

SIDE = 144
"""Pixels along the shorter side."""
MAX_BYTES = 4 * 2**20
"""Max size of all of them, before they are text."""
PICTURE_CHANNELS = "--picture_channels"
_QUALITIES = (75, 50, 25, 10, 1)


def thumbnails(
    source: Source, reader: Reader, rows: Sequence[int], picture_channels: Sequence[str] | None
) -> dict[int, str]:
    """A data URI of WebP for each of `rows` that can be read: what the model sees, in false colours if not RGB.

    Args:
        reader: how images reach the model.
        picture_channels: shown of images of any channels; None: the visible ones, or the first.

    Raises:
        UserError: no such channels, or the images cannot be loaded.
    """
    pixels = _pixels(source, reader, sorted(set(rows)))
    if source.channels:
        pixels = _coloured(pixels, shown_channels(picture_channels, source.channels, PICTURE_CHANNELS))
    return encoded(pixels)


def encoded(pixels: Mapping[int, Tensor]) -> dict[int, str]:
    """A data URI of WebP for each of uint8 (3, H, W), as good as `MAX_BYTES` allow."""
    pictures = {row: Image.fromarray(values.permute(1, 2, 0).numpy()) for row, values in pixels.items()}
    for quality in _QUALITIES:
        files = {row: webp(picture, quality) for row, picture in pictures.items()}
        if sum(map(len, files.values())) <= MAX_BYTES:
            break
    return {row: data_address(file) for row, file in files.items()}


def _pixels(source: Source, reader: Reader, rows: Sequence[int]) -> dict[int, Tensor]:
    height, width = reader.size
    scale = SIDE / min(height, width)
    small = (round(height * scale), round(width * scale))
    reader = replace(reader, size=small, batch=1, wrap=None, replaces=False)
    # the tensors of workers lie in shared memory, which is small
    return {batch.start: batch.images[0].clone() for batch in reader.batches(source, rows) if not batch.broken}


def _coloured(pixels: dict[int, Tensor], channels: tuple[int, ...]) -> dict[int, Tensor]:
    """float32 (C, H, W) of each, NaN where there is no pixel -> uint8 (3, H, W), by one range for all."""
    if not pixels:
        return {}
    images = torch.stack(list(pixels.values()))[:, list(channels)]
    valid = ~images.isnan().any(dim=1)
    colours = FalseColours.of(images.nan_to_num(), valid, tuple(range(len(channels))))
    return dict(zip(pixels, colours(images.nan_to_num(), valid), strict=True))
