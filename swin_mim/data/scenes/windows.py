"""Windows of a file that is too large to be decoded whole, as its images reach a model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swin_mim.data.decoding.decode_limits import CUT, MAX_SIDE, BrokenImage
from swin_mim.data.decoding.kinds import HEAD, kind_of
from swin_mim.data.decoding.multichannel import choose, valid_pixels
from swin_mim.data.decoding.raster import ChannelSpec, Raster
from swin_mim.data.scenes.find import SceneFiles
from swin_mim.data.scenes.georeference import Georeference
from swin_mim.data.scenes.open import open_scene, read_in_parts, refusals
from swin_mim.data.scenes.scene import Scene, Window

SMALL = 2**20
"""Bytes of a file that is not looked into: no image that cannot be decoded whole has so few."""

_PLAIN = (("rgb", 3), ("minisblack", 1))


@dataclass(frozen=True)
class Windows:
    """An image of which a window is read at a time."""

    size: tuple[int, int]
    """(H, W)."""
    read: Callable[[Window], Raster]
    """Decode a window: of RGB uint8 (h, w, 3), else the channels that were chosen. Raises `BrokenImage`."""
    place: Georeference | None
    """Where it lies, of a TIFF."""
    close: Callable[[], None]


def is_read_in_parts(name: str) -> bool:
    """Whether a file is called like those that are read in parts."""
    return name.lower().endswith((".tif", ".tiff", ".jp2", ".j2k", ".npy"))


def open_windows(path: Path, bands: ChannelSpec | None, max_pixels: int) -> Windows | None:
    """Open a file that is read in parts; None: it is decoded whole.

    Args:
        bands: what is read of it; None: it is 8-bit RGB, or grey.
        max_pixels: of an image that is decoded whole.

    Raises:
        BrokenImage: it is damaged, or of such a kind that it is not read in parts.
    """
    with refusals():
        files = SceneFiles(path.name, path.stem, ((None, path),), path.stat().st_size)
        if not read_in_parts(files):
            return None
    scene = open_scene(files, nodata=None if bands is None else bands.nodata, max_pixels=max_pixels)
    try:
        if scene.size[0] * scene.size[1] <= max_pixels and max(scene.size) <= MAX_SIDE:
            scene.close()
            return None
        return Windows(scene.size, _reader(scene, bands), _place(path, scene), scene.close)
    except BaseException:
        scene.close()
        raise


def _place(path: Path, scene: Scene) -> Georeference | None:
    with path.open("rb") as file:
        return scene.georeference if kind_of(file.read(HEAD)) == "TIFF" else None


def _reader(scene: Scene, bands: ChannelSpec | None) -> Callable[[Window], Raster]:
    count, upright = len(scene.channels), scene.orientation == 1
    plain = scene.dtype == np.uint8 and scene.profile is None and (scene.photometric, count) in _PLAIN
    if not upright or (bands is None and not plain):
        height, width = scene.size
        raise BrokenImage(
            f"{width} x {height} pixels are too many to be decoded whole, and of such files only upright 8-bit RGB or "
            f"grey without a colour profile is read in parts, or the channels that are named: {CUT}"
        )
    chosen, mask = (list(range(count)), None) if bands is None else choose(scene.channels, bands)
    nodata = scene.nodata if bands is None or bands.nodata is None else bands.nodata

    def read(window: Window) -> Raster:
        with refusals():
            everything = scene.read(window)
            values = np.ascontiguousarray(everything[:, :, chosen])
            if bands is None:
                values = 255 * values if scene.bilevel else values
                return Raster(values if count == 3 else values.repeat(3, axis=2))
            there = [valid_pixels(values, nodata), None if scene.mask is None else scene.mask(window)]
            if mask is not None:
                there.append((everything[:, :, mask] != 0) & (everything[:, :, mask] == everything[:, :, mask]))
            known = [each for each in there if each is not None]
            return Raster(values, np.logical_and.reduce(known) if known else None)

    return read
