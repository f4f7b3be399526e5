"""What a source of images holds: formats, channels, sizes, and what is wrong with them. For `swin-mim doctor`."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from torch.utils.data import Dataset
from tqdm import tqdm

from swin_mim.cli.doctor.images.depth import Depth
from swin_mim.cli.doctor.images.look import Look, look_at
from swin_mim.cli.doctor.images.rasters import Channels
from swin_mim.data.loading.workers import load_batches
from swin_mim.data.nodata import find_nodata, statistics_without
from swin_mim.data.offsets import Offset, find_offset
from swin_mim.data.sampling import Place
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.folder import FolderSource
from swin_mim.data.sources.multichannel import RasterSource
from swin_mim.data.statistics import Statistics, spread_indices

READABLE = "grey, RGB, palette and CMYK, with or without transparency"

_TOGETHER = 8
_FIRST = 5  # names that are listed


@dataclass(frozen=True)
class Broken:
    name: str
    reason: str


@dataclass(frozen=True)
class Images:
    """What was found; counts are of the images that were looked at."""

    total: int
    looked_at: int
    formats: dict[str, int]
    pixels: dict[str, int]
    smallest: tuple[int, int] | None
    """Width and height, as of the next two; None if no image can be read."""
    median: tuple[int, int] | None
    largest: tuple[int, int] | None
    too_small: int
    """Smaller than the training size on a side."""
    broken: int
    first_broken: tuple[Broken, ...]
    too_many_channels: dict[int, int]
    """Broken TIFF files that have more channels than are read."""
    near_empty: int
    first_near_empty: tuple[str, ...]
    copies: int
    """Files that are byte for byte equal to one before."""
    first_copies: tuple[tuple[str, ...], ...]
    """Names that are the same image."""
    folders: dict[str, int]
    """Images in each folder at the top."""
    other_files: dict[str, int]
    """Files that are not read, by suffix."""
    too_large: int
    """Broken images that are too large."""
    max_pixels: int
    """The data.max_pixels with which those are read that can be; 0: none can."""
    read_with_max_pixels: int
    """How many of the too large images `max_pixels` reads."""
    depth: Depth | None
    """The values of images of more than 8 bits that are read as RGB."""
    offset: Offset | None
    """Two kinds of images, of which one may have an offset of 1000."""
    frames: dict[str, int]
    """Images of files that hold several pictures: "TIFF of 3 pages"."""
    profiles: dict[str, int]
    """Images that are converted from a colour profile, by its name."""
    edges: dict[str, int]
    """Images read as RGB of which two edges at least are "black", or "white"."""
    without_images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Folders at the top without an image: the files in each, by suffix."""
    channels: Channels | None = None
    """Known of rasters."""

    @property
    def broken_share(self) -> float:
        return self.broken / self.looked_at


def look_at_all(source: Source, most: int, size: tuple[int, int], workers: int) -> Images:
    """Decode up to `most` images, evenly spread and the same ones each time.

    Args:
        size: (H, W) of training.
        workers: processes that decode.

    Raises:
        UserError: decoders die again and again.
    """
    indices = spread_indices(len(source), most)
    each = [Place(index, index) for index in indices]
    places = [each[start : start + _TOGETHER] for start in range(0, len(each), _TOGETHER)]
    looks: list[Look] = []
    loaded = load_batches(_Looks(source), places, list, workers=min(workers, len(places)), batch_bytes=1)
    with tqdm(total=len(indices), desc="images", unit="", file=sys.stderr, disable=None, leave=False) as bar:
        for batch in loaded:
            looks += batch
            bar.update(len(batch))
    found = summary(looks, len(source), size)
    if isinstance(source, RasterSource):
        found = replace(found, channels=_channels(looks, source.channels))
    files = source.source if isinstance(source, RasterSource) else source
    if not isinstance(files, FolderSource):
        return found
    folders = Counter(path.split(os.sep)[0] for path in files.paths if os.sep in path)
    return replace(
        found, folders=dict(folders), other_files=dict(files.left_out), without_images=dict(files.without_images)
    )


def _channels(looks: Sequence[Look], names: Sequence[str]) -> Channels | None:
    """None: no image can be read."""
    counts = Counter(look.channels for look in looks if look.channels)
    measured = [(look.statistics, look.suspects) for look in looks if look.statistics is not None]
    if not measured:
        return None
    total = reduce(Statistics.merge, (statistics for statistics, _ in measured))
    found = Channels.of(names, dict(counts.most_common()), _counted(look.dtype for look in looks if look.dtype), total)
    nodata = find_nodata([suspects for _, suspects in measured], total.valid)
    apart = [each.value for each in nodata if each.apart][:1]
    without = statistics_without(apart[0], iter(measured)) if apart else None
    return replace(found, nodata=nodata, without_nodata=None if without is None else found.with_values(without))


def summary(looks: Sequence[Look], total: int, size: tuple[int, int]) -> Images:
    readable, broken = [look for look in looks if not look.reason], [look for look in looks if look.reason]
    by_area = sorted((look.size for look in readable), key=lambda size: size[0] * size[1])
    flat = [look.name for look in readable if look.flat]
    same: dict[str, list[str]] = {}
    for look in looks:
        if look.digest:
            same.setdefault(look.digest, []).append(look.name)
    groups = [tuple(names) for names in same.values() if len(names) > 1]
    return Images(
        total=total,
        looked_at=len(looks),
        formats=_counted(look.format for look in readable),
        pixels=_counted(look.pixels for look in readable),
        smallest=by_area[0] if by_area else None,
        median=by_area[len(by_area) // 2] if by_area else None,
        largest=by_area[-1] if by_area else None,
        too_small=sum(width < size[1] or height < size[0] for width, height in by_area),
        broken=len(broken),
        first_broken=tuple(Broken(look.name, look.reason) for look in broken[:_FIRST]),
        too_many_channels=dict(Counter(look.channels for look in broken if look.channels > 4)),
        near_empty=len(flat),
        first_near_empty=tuple(flat[:_FIRST]),
        copies=sum(len(group) - 1 for group in groups),
        first_copies=tuple(group[:_FIRST] for group in groups[:_FIRST]),
        folders={},
        other_files={},
        too_large=sum(look.too_large is not None for look in broken),
        max_pixels=max((look.too_large or 0 for look in broken), default=0),
        read_with_max_pixels=sum(bool(look.too_large) for look in broken),
        depth=reduce(Depth.merge, depths) if (depths := [look.depth for look in readable if look.depth]) else None,
        offset=find_offset((look.name, look.beginning) for look in readable),
        frames=_counted(look.frames for look in readable if look.frames),
        profiles=_counted(look.profile for look in readable if look.profile),
        edges=_counted(look.edges for look in readable if look.edges),
    )


class _Looks(Dataset[Look]):
    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, place: Place) -> Look:
        return look_at(self._source, place.image)


def _counted(values: Iterator[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())
