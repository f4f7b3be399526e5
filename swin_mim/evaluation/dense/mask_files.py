"""Predicted classes as files of masks, beside which the images need not lie."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from swin_mim.data.decoding.channel_reader import import_extra
from swin_mim.data.decoding.kinds import HEAD, kind_of
from swin_mim.data.dense.masks import ClassNumbers
from swin_mim.data.scenes.find import stems
from swin_mim.data.scenes.georeference import Georeference, georeference, nodata_tag
from swin_mim.data.sources.base import Source
from swin_mim.errors import UserError
from swin_mim.evaluation.dense.overlays import palette
from swin_mim.files import replacing


def mask_stems(source: Source) -> list[str]:
    """What the mask of each image is called, less its suffix: as the image, by its relative path, or by its row.

    Images of the same name but for the suffix keep theirs, and those of the same path have their row besides.
    """
    paths = [_inside(path, index) for index, path in enumerate(source.each_path())]
    found, seen = stems(paths), set[str]()
    for index, stem in enumerate(found):
        if stem in seen:
            found[index] = f"{stem}_{index:06d}"
        seen.add(found[index])
    return found


def place_of(source: Source, index: int) -> Georeference | None:
    """Where an image lies on Earth, by the first of its files; None: that is no TIFF."""
    files = source.files(index)
    data = files[0][1] if files else b""
    if kind_of(data[:HEAD]) != "TIFF":
        return None
    tifffile: Any = import_extra("tifffile")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return georeference(file.pages[0].tags)


def write_mask(folder: Path, stem: str, classes: np.ndarray, numbers: ClassNumbers, place: Georeference | None) -> Path:
    """Write one: of a TIFF as TIFF with its georeference, of others as PNG, where numbers have 8 bit with a palette.

    In a TIFF the number of what is not labelled is GDAL's nodata.

    Args:
        stem: of its name, as of `mask_stems`.
        classes: integers (H, W); the number of what is not labelled stays without a class.
        numbers: of the classes in files.
        place: of the image, as of `place_of`.

    Returns:
        the file.

    Raises:
        UserError: it cannot be written.
    """
    values = numbers.numbers(classes)
    path = folder / f"{stem}{'.png' if place is None else '.tif'}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            if place is None:
                _write_png(temporary, values, numbers)
            else:
                _write_tiff(temporary, values, numbers.ignore, place)
    except OSError as error:
        raise UserError(f"predictions {path} cannot be written: {error.strerror or error}") from None
    return path


def _inside(path: str | None, index: int) -> str:
    """A path that leads nowhere else, whatever a table says."""
    parts = [part for part in (path or "").split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or f"row_{index:06d}"


def _write_png(path: Path, values: np.ndarray, numbers: ClassNumbers) -> None:
    image = Image.fromarray(values)
    if values.dtype == np.uint8:
        colours = np.zeros((256, 3), dtype=np.uint8)
        colours[numbers.first : numbers.first + numbers.count] = palette(numbers.count)
        image = Image.frombytes("P", image.size, values.tobytes())
        image.putpalette(colours.tobytes())
    image.save(path, format="PNG")


def _write_tiff(path: Path, values: np.ndarray, missing: int, place: Georeference) -> None:
    options = {"photometric": "minisblack", "compression": "zlib", "metadata": None}
    tags = [*place.shifted(0, 0), nodata_tag(missing)]
    import_extra("tifffile").imwrite(path, values, **options, extratags=tags)
