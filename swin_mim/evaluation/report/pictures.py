"""The pictures of a run, small enough for one page: read from its folder, as data: addresses."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from swin_mim.evaluation.pages import data_address, webp

MOST = 24
"""Frames of a series, evenly spread over its steps, the first and the last among them."""
FEWEST = 6
"""Frames below which a series gets smaller rather than shorter."""
WIDTH = 1400
"""Max width of a picture in pixels."""

_QUALITY = 82
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """The reconstructions of one step."""

    step: int
    parts: tuple[str, ...]
    """One picture, or the two halves of one that has two blocks side by side, which a narrow screen shows one below the
    other."""
    size: tuple[int, int]
    """(width, height) of a part in pixels."""


def series(files: Sequence[Path], budget: int) -> list[Frame]:
    """samples/step_*.png -> frames of at most `budget` characters together, fewer and smaller ones where it has to be.

    A file that is no picture, or gone again, is left out with a warning.
    """
    chosen, width = spread(files, MOST), WIDTH
    while True:
        frames = [frame for path in chosen if (frame := _frame(path, width))]
        if sum(len(part) for frame in frames for part in frame.parts) <= budget or width < 100:
            return frames if width >= 100 else []
        if len(chosen) > FEWEST:
            chosen = spread(chosen, max(FEWEST, len(chosen) * 2 // 3))
        else:
            width = width * 3 // 4


def spread(files: Sequence[Path], count: int) -> list[Path]:
    """`count` of them at most, evenly spread, with both ends."""
    if len(files) <= count:
        return list(files)
    return [files[round(place * (len(files) - 1) / (count - 1))] for place in range(count)]


def picture(path: Path) -> tuple[str, ...]:
    """A picture as data: addresses, of each row where it tells where they are; none where there is no picture."""
    if not path.is_file():
        return ()
    try:
        return _encoded(path, path.stat().st_mtime_ns, WIDTH)[0]
    except OSError as error:
        _LOG.warning("%s is left out of the report: %s", path.name, error)
        return ()


def _frame(path: Path, width: int) -> Frame | None:
    try:
        parts, size = _encoded(path, path.stat().st_mtime_ns, width)
    except OSError as error:
        _LOG.warning("%s is left out of the report: %s", path.name, error)
        return None
    return Frame(int(path.stem.removeprefix("step_")), parts, size)


@lru_cache(maxsize=4 * MOST)
def _encoded(path: Path, changed: int, width: int) -> tuple[tuple[str, ...], tuple[int, int]]:
    """(the parts, the size of the first), encoded once for each version of the file, which `changed` tells apart.

    Raises:
        OSError: it cannot be read as a picture.
    """
    try:
        with Image.open(path) as opened:
            blocks, rows = int(opened.info.get("blocks", 1)), [*map(int, opened.info.get("rows", "").split())]
            before, image = opened.width, opened.convert("RGB")
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from None
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    side, ends = image.width // blocks, [round(row * image.width / before) for row in rows] or [0, image.height]
    parts = [
        image.crop((block * side, top, (block + 1) * side, bottom))
        for top, bottom in zip(ends[::2], ends[1::2], strict=True)
        for block in range(blocks)
    ]
    return tuple(map(_address, parts)), parts[0].size


def _address(image: Image.Image) -> str:
    return data_address(webp(image, _QUALITY, method=3))
