"""Scenes of which every channel is a file of its own; coarser ones are enlarged by repeating their pixels."""

from collections.abc import Mapping
from html import escape

import numpy as np

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.multichannel import valid_pixels
from swin_mim.data.scenes.scene import Scene, Window


def stack_scenes(bands: Mapping[str, Scene]) -> Scene:
    """One scene of several of one channel each, by their names.

    It lies where the finest of them lies. Where they mark gaps by different values, or have masks, a pixel is there if
    it is in all of them.

    Raises:
        BrokenImage: a file of several channels, or sizes that do not divide the largest.
    """
    for name, band in bands.items():
        if len(band.channels) != 1:
            raise BrokenImage(f"channel {name}: its file has {len(band.channels)} channels: those of a stack have one")
    size = max(band.size for band in bands.values())
    factors = {name: _factor(name, band.size, size) for name, band in bands.items()}
    finest = next(band for name, band in bands.items() if factors[name] == 1)
    dtype = np.result_type(*(band.dtype for band in bands.values()))
    marks = {band.nodata for band in bands.values()}
    masked = len(marks) > 1 or any(band.mask is not None for band in bands.values())

    def read(window: Window) -> np.ndarray:
        values = np.empty((*window.size, len(bands)), dtype)
        for place, (name, band) in enumerate(bands.items()):
            values[:, :, place] = _enlarged(band.read(_coarse(window, factors[name])), window, factors[name])[:, :, 0]
        return values

    def mask(window: Window) -> np.ndarray:
        there = np.ones(window.size, bool)
        for name, band in bands.items():
            coarse = _coarse(window, factors[name])
            valid = valid_pixels(band.read(coarse), band.nodata)
            for part in (valid, None if band.mask is None else band.mask(coarse)):
                if part is not None:
                    there &= _enlarged(part, window, factors[name])
        return there

    def close() -> None:
        for band in bands.values():
            band.close()

    return Scene(
        size=size,
        dtype=dtype,
        channels=tuple(bands),
        read=read,
        chunk=max((band.chunk[0] * factors[name], band.chunk[1] * factors[name]) for name, band in bands.items()),
        nodata=None if masked else finest.nodata,
        mask=mask if masked else None,
        metadata=_descriptions(tuple(bands)),
        orientation=finest.orientation,
        georeference=finest.georeference,
        close=close,
    )


def _factor(name: str, size: tuple[int, int], largest: tuple[int, int]) -> int:
    if largest[0] % size[0] or largest[1] % size[1] or largest[0] // size[0] != largest[1] // size[1]:
        raise BrokenImage(
            f"channel {name} has {size[1]} x {size[0]} pixels, which do not divide the {largest[1]} x {largest[0]} of "
            "others"
        )
    return largest[0] // size[0]


def _coarse(window: Window, factor: int) -> Window:
    """The pixels of a coarser channel that a window touches."""
    top, left, bottom, right = window
    return Window(top // factor, left // factor, -(-bottom // factor), -(-right // factor))


def _enlarged(part: np.ndarray, window: Window, factor: int) -> np.ndarray:
    """What was read of a coarser channel -> the pixels of the window."""
    if factor == 1:
        return part
    top, left = window.top % factor, window.left % factor
    height, width = window.size
    return part.repeat(factor, axis=0).repeat(factor, axis=1)[top : top + height, left : left + width]


def _descriptions(names: tuple[str, ...]) -> str:
    items = (
        f'  <Item name="DESCRIPTION" sample="{number}" role="description">{escape(name)}</Item>\n'
        for number, name in enumerate(names)
    )
    return f"<GDALMetadata>\n{''.join(items)}</GDALMetadata>\n"
