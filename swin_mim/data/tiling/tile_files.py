"""Tiles as files: PNG or JPEG of pictures, TIFF of all else, with what the scene's file says of its pixels."""

import io
from typing import Any

import numpy as np
from PIL import Image

from swin_mim.data.decoding.channel_reader import import_extra
from swin_mim.data.scenes.georeference import nodata_tag
from swin_mim.data.scenes.scene import Scene, Window
from swin_mim.data.tiling.options import Format

_GDAL_METADATA, _ORIENTATION = 42112, 274  # tags
_ASCII, _SHORT = 2, 3  # types of a tag
_MASK = 4  # kind of a page
_HORIZONTAL, _FLOATING = 2, 3  # predictors: what makes differences of the values before they are compressed


def tile_suffix(scene: Scene, format: Format) -> str:
    """Suffix of the files of a scene's tiles."""
    if not scene.picture:
        return ".tif"
    return ".jpg" if format == "jpeg" and not scene.alpha else ".png"


def tile_content(
    scene: Scene, window: Window, values: np.ndarray, mask: np.ndarray | None, format: Format, quality: int
) -> bytes:
    """The file of a tile: lossless unless `format` is "jpeg" and its pixels are 8-bit RGB or grey, without nodata.

    Args:
        values: (h, w, C) of the window.
        mask: bool (h, w), False where the scene's own mask says that there is no pixel.
        quality: of JPEG.
    """
    values = values.astype(bool) if scene.bilevel else values
    buffer = io.BytesIO()
    suffix = tile_suffix(scene, format)
    if suffix == ".tif":
        _write_tiff(buffer, scene, window, values, mask, quality if format == "jpeg" else None)
        return buffer.getvalue()
    image = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
    profile = {} if scene.profile is None else {"icc_profile": scene.profile}
    if suffix == ".jpg":
        image.save(buffer, "JPEG", quality=quality, **profile)
    else:
        image.save(buffer, "PNG", **profile)
    return buffer.getvalue()


def _write_tiff(
    buffer: io.BytesIO,
    scene: Scene,
    window: Window,
    values: np.ndarray,
    mask: np.ndarray | None,
    quality: int | None,
) -> None:
    tifffile = import_extra("tifffile")
    tags = scene.georeference.shifted(window.top, window.left)
    if scene.metadata is not None:
        tags.append((_GDAL_METADATA, _ASCII, 0, scene.metadata, True))
    if scene.nodata is not None:
        tags.append(nodata_tag(scene.nodata))
    if scene.orientation != 1:
        tags.append((_ORIENTATION, _SHORT, 1, scene.orientation, True))
    plain: dict[str, Any] = {"metadata": None, "software": False, "maxworkers": 1}
    lossy = quality is not None and scene.nodata is None and values.dtype == np.uint8
    if lossy and (scene.photometric, values.shape[2]) in (("rgb", 3), ("minisblack", 1)):
        how: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": quality}}
    else:
        predictor = {"f": _FLOATING, "b": None}.get(values.dtype.kind, _HORIZONTAL)
        how = {"compression": "zlib", "predictor": predictor}
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(
            values[:, :, 0] if values.shape[2] == 1 else values,
            photometric=scene.photometric,
            planarconfig=None if values.shape[2] == 1 else "contig",
            extrasamples=scene.extrasamples or None,
            iccprofile=scene.profile,
            extratags=sorted(tags),
            **how,
            **plain,
        )
        if mask is not None and not mask.all():
            writer.write(np.ascontiguousarray(mask), photometric="mask", subfiletype=_MASK, compression="zlib", **plain)
