"""The statistics of a sample of any source's images."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import Raster
from swin_mim.data.loading.workers import load_batches
from swin_mim.data.sampling import Place
from swin_mim.data.sources.base import Source
from swin_mim.data.statistics import Statistics

_TOGETHER = 8


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


class _Found(NamedTuple):
    statistics: Statistics | None
    dtype: str
    broken: Broken | None


class _Images(Dataset[_Found]):
    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, place: Place) -> _Found:
        try:
            image = self._source.image(place.image)
        except BrokenImage as error:
            return _Found(None, "", Broken(self._source.name(place.image), str(error)))
        if isinstance(image, Raster):
            return _Found(Statistics.of(image), image.values.dtype.name, None)
        return _Found(Statistics.of(Raster(np.asarray(image))).divided(255), "uint8", None)


def spread(count: int, most: int) -> Sequence[int]:
    """Up to `most` of `count` indices, evenly spread and the same ones each time."""
    return [int(index) for index in np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))]


def survey(source: Source, most: int, workers: int, *, progress: bool | None = None) -> DatasetStats:
    """Decode up to `most` images, evenly spread: the result depends on these alone, not on the number of workers.

    Args:
        workers: processes; 0 works in this one.
        progress: show a bar on stderr; None: if that is a terminal.

    Raises:
        UserError: workers die again and again.
    """
    indices = spread(len(source), most)
    each = [Place(index, index) for index in indices]
    places = [each[start : start + _TOGETHER] for start in range(0, len(each), _TOGETHER)]
    total, dtypes, broken = None, Counter[str](), []
    loaded = load_batches(_Images(source), places, list, workers=min(workers, len(places)), batch_bytes=1)
    hidden = None if progress is None else not progress
    with tqdm(total=len(indices), desc="images", unit="", file=sys.stderr, disable=hidden, leave=False) as bar:
        for batch in loaded:
            for found in batch:
                if found.broken:
                    broken.append(found.broken)
                    continue
                dtypes[found.dtype] += 1
                total = found.statistics if total is None else total.and_of(found.statistics)
            bar.update(len(batch))
    return DatasetStats(len(indices), total, dict(dtypes.most_common()), tuple(broken))
