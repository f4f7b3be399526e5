"""Predicted classes as files of masks, beside which the images need not lie."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from swin_mim.data.decoding.channel_reader import import_extra
from swin_mim.data.decoding.kinds import HEAD, kind_of
from swin_mim.data.dense.masks import ClassNumbers
from swin_mim.data.sources.base import Source
from swin_mim.data.tiling.georeference import georeference
from swin_mim.errors import UserError
from swin_mim.evaluation.dense.overlays import palette
from swin_mim.files import replacing


def mask_path(folder: Path, source: Source, index: int, suffix: str) -> Path:
    """Where the mask of an image goes: under its own relative path, or the number of its row."""
    path = source.path(index)
    stem = f"row_{index:06d}" if path is None else os.path.splitext(path)[0]
    parts = [part for part in stem.split("/") if part not in ("", ".", "..")]  # what a table says may lead anywhere
    return folder.joinpath(*parts[:-1], f"{parts[-1] if parts else f'row_{index:06d}'}{suffix}")


def write_mask(folder: Path, source: Source, index: int, classes: np.ndarray, numbers: ClassNumbers) -> Path:
    """Write one: of a TIFF as TIFF with its georeference, of others as PNG, where numbers have 8 bit with a palette.

    Args:
        source: of the images; `index` is the image's.
        classes: int64 (H, W).
        numbers: of the classes in files.

    Returns:
        the file.

    Raises:
        UserError: it cannot be written.
    """
    values = numbers.numbers(classes)
    data = _tiff_of(source, index)
    path = mask_path(folder, source, index, ".png" if data is None else ".tif")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            if data is None:
                _write_png(temporary, values, numbers)
            else:
                _write_tiff(temporary, values, data)
    except OSError as error:
        raise UserError(f"predictions {path} cannot be written: {error.strerror or error}") from None
    return path


def _tiff_of(source: Source, index: int) -> bytes | None:
    """The content of the first file of an image, if that is a TIFF."""
    files = source.files(index)
    data = files[0][1] if files else b""
    return data if kind_of(data[:HEAD]) == "TIFF" else None


def _write_png(path: Path, values: np.ndarray, numbers: ClassNumbers) -> None:
    image = Image.fromarray(values)
    if values.dtype == np.uint8:
        colours = np.zeros((256, 3), dtype=np.uint8)
        colours[numbers.first : numbers.first + numbers.count] = palette(numbers.count)
        image = Image.frombytes("P", image.size, values.tobytes())
        image.putpalette(colours.tobytes())
    image.save(path, format="PNG")


def _write_tiff(path: Path, values: np.ndarray, data: bytes) -> None:
    tifffile: Any = import_extra("tifffile")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        place = georeference(file.pages[0].tags)
    options = {"photometric": "minisblack", "compression": "zlib", "metadata": None}
    tifffile.imwrite(path, values, **options, extratags=place.shifted(0, 0))
