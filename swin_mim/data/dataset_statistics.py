"""Looks at the images of a source for the mean, std and range of each channel, and for values that look wrong."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.nodata import Nodata, Suspect, find_nodata, suspects
from swin_mim.data.offsets import Offset, beginning, find_offset
from swin_mim.data.statistics import Statistics, spread_indices

if TYPE_CHECKING:
    from swin_mim.data.sampling import Place
    from swin_mim.data.sources.base import Source

_TOGETHER = 8  # images that a worker decodes at a time


class Broken(NamedTuple):
    """An image that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class DatasetStats:
    """What was found in the images that were looked at."""

    looked_at: int
    statistics: Statistics | None
    """In the units of the files, of RGB images from 0 to 1; None: no image can be used."""
    dtypes: dict[str, int]
    """How many images are of which type."""
    broken: tuple[Broken, ...]
    nodata: tuple[Nodata, ...] = ()
    """Values that may mark missing pixels, of images of any channels; they are counted in the statistics."""
    offset: Offset | None = None
    """Two kinds of images of any channels, of which one may have an offset of 1000."""

    @classmethod
    def of(cls, source: "Source", limit: int, workers: int, *, progress: bool | None = None) -> "DatasetStats":
        """Decode up to `limit` images, evenly spread: the result depends on these alone, not on the number of workers.

        Args:
            workers: processes; 0 works in this one.
            progress: show a bar on stderr; None: if that is a terminal.

        Raises:
            UserError: workers die again and again.
        """
        from tqdm import tqdm

        from swin_mim.data.loading.workers import load_batches
        from swin_mim.data.sampling import Place

        indices = spread_indices(len(source), limit)
        each = [Place(index, index) for index in indices]
        places = [each[start : start + _TOGETHER] for start in range(0, len(each), _TOGETHER)]
        total, dtypes, broken = None, Counter[str](), []
        suspects: list[Sequence[Suspect]] = []
        beginnings: list[tuple[str, int | None]] = []
        images: Any = _Images(source)
        loaded = load_batches(images, places, list, workers=min(workers, len(places)), batch_bytes=1)
        hidden = None if progress is None else not progress
        with tqdm(total=len(indices), desc="images", unit="", file=sys.stderr, disable=hidden, leave=False) as bar:
            for batch in loaded:
                for found in batch:
                    if isinstance(found, Broken):
                        broken.append(found)
                        continue
                    name, statistics, dtype, suspected, begun = found
                    dtypes[dtype] += 1
                    suspects.append(suspected)
                    beginnings.append((name, begun))
                    total = statistics if total is None else total.merge(statistics)
                bar.update(len(batch))
        nodata = find_nodata(suspects, total.valid) if total else ()
        offset = find_offset(beginnings)
        return cls(len(indices), total, dict(dtypes.most_common()), tuple(broken), nodata, offset)


class _Found(NamedTuple):
    """What one image is."""

    name: str
    statistics: Statistics
    dtype: str
    suspects: tuple[Suspect, ...] = ()
    """Values that may mark missing pixels."""
    beginning: int | None = None
    """The value at which its darkest channel begins, of integers of more than 8 bits."""


class _Images:
    """The pure function place -> `_Found` or `Broken`."""

    def __init__(self, source: "Source") -> None:
        self._source = source

    def __getitem__(self, place: "Place") -> _Found | Broken:
        import numpy as np

        from swin_mim.data.decoding.raster import Raster

        name = self._source.name(place.image)
        try:
            image = self._source.image(place.image)
        except BrokenImage as error:
            return Broken(name, str(error))
        if isinstance(image, Raster):
            statistics = Statistics.of(image)
            kind = image.values.dtype.name
            return _Found(name, statistics, kind, suspects(image, statistics), beginning(image))
        return _Found(name, Statistics.of(Raster(np.asarray(image))).divided(255), "uint8")
