"""Shards, bigger than the disk and elsewhere if need be, as a source of images in an order that any resume continues.

A source like any other: images by index. What makes it quick is `ShardOrder`, which stays with a few shards at a time;
these are brought into a bounded cache before a worker needs them, and the next ones while it reads these.
"""

import logging
import math
import os
import shutil
import threading
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from swin_mim.data.decoding.options import USUAL, DecodeOptions
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.sampling import HELDOUT_EPOCH, Place, ShardGroup, ShardOrder, epoch_order
from swin_mim.data.sources.base import FileSource, Lookahead, StreamStatus
from swin_mim.data.sources.exclude import kept_indices
from swin_mim.data.sources.multichannel import RasterSource, check_bands
from swin_mim.data.streaming.cache import CancelToken, Shard, ShardCache
from swin_mim.data.streaming.shards import count_all, list_shards
from swin_mim.data.streaming.storage import Interrupted
from swin_mim.data.timing import reading
from swin_mim.errors import STOPPED, UserError
from swin_mim.files import sha256
from swin_mim.redaction import public_url

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheOptions:
    """Where shards are kept, and how many."""

    folder: str | None = None
    """None is one in the user's cache folder."""
    max_gb: float = 20.0
    """Most bytes in it, in units of 10^9."""


class StreamOptions(TypedDict, total=False):
    """How shards are read. What is left out has its default."""

    config: str | None
    """Of a Hub data set or a folder."""
    split: str
    """The same; "train" by default."""
    column: str | None
    """Column of parquet files, or suffix of the images in tars; None: the only one."""
    bands: ChannelSpec | None
    """As in `open_source`: the images are of any channels. The first shard is brought to look at one."""
    decoding: DecodeOptions
    """How files are decoded."""


def open_streamed(
    spec: str,
    *,
    cache: CacheOptions = CacheOptions(),
    shards_at_once: int = 4,
    exclude: str | None = None,
    **options: Unpack[StreamOptions],
) -> "StreamedSource | RasterSource":
    """Open the parquet or tar shards of a Hub data set, of a folder, or at addresses that fsspec or a web server opens.

    Only their sizes and rows are asked for: of parquet files from their footers, of tars from a sizes.json beside
    them, or by reading each once. A tar is a WebDataset: members of one name are a sample, of which the only image
    is taken, or the one with the suffix `column`; with "*" each image is a sample of its own.

    Args:
        spec: user/name, a folder, or a pattern: https://host/train-{000..127}.tar, s3://bucket/*.parquet.
        shards_at_once: shards whose images are mixed.
        exclude: a file of names that are left out, as `kept_indices` takes it.

    Raises:
        UserError: there are no such shards, they cannot be read, the cache does not hold enough of them, or their
            images have other channels than `bands` says.
    """
    bands, split = options.get("bands"), options.get("split", "train")
    listed = list_shards(spec, options.get("config"), split, options.get("column"), rasters=bands is not None)
    kept = ShardCache(Path(cache.folder).expanduser() if cache.folder else default_cache(), int(cache.max_gb * 1e9))
    _check_room([shard.file.size for shard in listed], shards_at_once, kept)
    shards = count_all(spec, listed, kept)
    source = StreamedSource(shards, kept, shards_at_once, [range(shard.rows) for shard in shards])
    source.decoding = options.get("decoding", USUAL)
    if exclude is not None:
        source = source.without(kept_indices(source, exclude))
    if bands is None:
        return source
    rasters = RasterSource(source, bands)
    check_bands(rasters, public_url(spec))
    return rasters


def default_cache() -> Path:
    """A folder in the user's cache folder. Raises a `UserError` if there is none."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # a container's user that has neither HOME nor a name
        raise UserError(
            "data.cache None is ~/.cache, and this user has no home: name a folder with data.cache"
        ) from error
    return base / "swin_mim" / "shards"


class StreamedSource(FileSource):
    """Rows of shards, in the order of the shards' names. Opened by `open_streamed`."""

    unit = "shards"

    def __init__(
        self, shards: Sequence[Shard], cache: ShardCache, at_once: int, rows: Sequence[np.ndarray | range]
    ) -> None:
        """`rows` are those of each shard that belong to this part of the data set, ascending."""
        self._shards, self.cache, self.at_once, self._rows = shards, cache, at_once, rows
        self.sizes = [len(each) for each in rows]
        self._starts = np.cumsum([0, *self.sizes])
        self.fingerprint = sha256(self._described())

    def _described(self) -> Iterator[bytes]:
        for shard, rows in zip(self._shards, self._rows, strict=True):
            about = (shard.name, shard.file.size, shard.file.content, shard.layout.column, shard.rows, len(rows))
            yield ("\0".join(map(str, about)) + "\n").encode()
            if len(rows) != shard.rows:
                yield np.asarray(rows, dtype="<i8").tobytes()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        shard, row = self._place(index)
        return f"{shard.name} row {row}"

    def content(self, index: int) -> bytes:
        """The bytes of an image file.

        Raises:
            BrokenImage: the row has none.
            UserError: its shard cannot be brought, or is not what it was.
        """
        with reading():
            return self.cache.read(*self._place(index), self.decoding.max_pixels)

    def inventory(self) -> Iterator[tuple[str, int]]:
        """Yield (name, size) of every shard, the name with what else identifies it."""
        for shard in self._shards:
            about = ", ".join(filter(None, [f"{shard.rows} rows", shard.file.content[:23]]))
            yield f"{shard.name} ({about})", shard.file.size

    def find(self, names: Collection[str]) -> dict[str, list[int]]:
        number = {shard.name: place for place, shard in enumerate(self._shards)}
        found = dict[str, list[int]]()
        for name in names:
            shard, _, row = name.rpartition(" row ")
            if shard in number and row.isascii() and row.isdecimal():
                place, rows = number[shard], np.asarray(self._rows[number[shard]])
                at = int(np.searchsorted(rows, int(row)))
                if at < len(rows) and rows[at] == int(row):
                    found[name] = [int(self._starts[place]) + at]
        return found

    def without(self, kept: np.ndarray) -> "StreamedSource":
        bounds = np.searchsorted(kept, self._starts)
        parts = [
            np.asarray(rows)[kept[low:high] - start] if high - low < len(rows) else rows
            for rows, start, low, high in zip(self._rows, self._starts[:-1], bounds[:-1], bounds[1:], strict=True)
        ]
        return self._of(parts)

    def order(self, seed: int) -> ShardOrder:
        return ShardOrder(self.sizes, seed, self.at_once)

    def near(self, index: int) -> range:
        """Indices of the images of the same shard, which take the place of one without another being brought."""
        shard = self._shard(index)
        return range(int(self._starts[shard]), int(self._starts[shard + 1]))

    def split(self, count: int, seed: int) -> tuple["StreamedSource", "StreamedSource"]:
        """(training, held out): `count` images, at most a tenth of all, chosen by seed from few shards.

        They come from as many shards as are mixed in training, or as it takes: one alone may hold nothing but one kind.
        """
        count = min(count, len(self) // 10)
        shards = epoch_order(len(self.sizes), seed, HELDOUT_EPOCH)
        enough = int(np.searchsorted(np.cumsum(np.array(self.sizes)[shards]), count)) + 1
        chosen = np.sort(shards[: max(enough, self.at_once)])
        candidates = np.concatenate([np.arange(*self._starts[shard : shard + 2]) for shard in chosen])
        held = np.sort(candidates[epoch_order(len(candidates), seed, HELDOUT_EPOCH)[:count]])
        bounds = zip(self._starts[:-1], self._starts[1:], strict=True)
        # of each shard the held out rows, as numbers among those of this part
        parts = [held[np.searchsorted(held, start) : np.searchsorted(held, end)] - start for start, end in bounds]
        pairs = list(zip(self._rows, parts, strict=True))
        # a range where it can be: an array of all rows of all shards would be much
        training = [np.delete(rows, part) if len(part) else rows for rows, part in pairs]
        heldout = [np.asarray(rows)[part] if len(part) else range(0) for rows, part in pairs]
        return self._of(training), self._of(heldout)

    def _of(self, rows: Sequence[np.ndarray | range]) -> "StreamedSource":
        part = StreamedSource(self._shards, self.cache, self.at_once, rows)
        part.decoding = self.decoding
        return part

    def ensure(self, indices: Iterable[int], unless: CancelToken | None = None) -> None:
        """Bring the shards of images that are about to be read. Raises as the cache's `ensure`."""
        for shard in sorted({self._shard(index) for index in indices}):
            self.cache.ensure(self._shards[shard], unless=unless)

    def ensure_shards(self, shards: Iterable[int], unless: CancelToken) -> None:
        """Bring shards by their numbers, if their store is not away now. Raises as the cache's `ensure`."""
        for shard in shards:
            self.cache.ensure(self._shards[shard], unless=unless, patience=0)

    @property
    def roomy(self) -> bool:
        """Whether the cache holds three groups of any shards: those before, of now and to come."""
        sizes = [shard.file.size for shard in self._shards]
        return 3 * _largest(sizes, self.at_once) + max(sizes) <= self.cache.limit

    def warn_of_room(self, underway: int) -> None:
        """Warn where the cache does not hold the images that are under way, besides two groups."""
        sizes = [shard.file.size for shard in self._shards]
        images = underway * sum(sizes) / max(1, sum(shard.rows for shard in self._shards))
        needed = min(images + 2 * _largest(sizes, self.at_once) + max(sizes), sum(sizes) + max(sizes))
        if needed > self.cache.limit:
            _log.warning(
                "data.cache_gb %g does not hold the %d images that are loaded ahead besides two groups of shards, so "
                "that some may be brought again: use %s or more, or fewer data.workers",
                *(self.cache.limit / 1e9, underway, _up(needed / 1e9)),
            )

    def prefetch(
        self, lists: Generator[list[Place], None, None], status: StreamStatus, lookahead: Lookahead
    ) -> Generator[list[Place], None, None]:
        return ShardPrefetcher(self, status, lookahead).pass_on(lists)

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._starts, int(index), side="right")) - 1

    def _place(self, index: int) -> tuple[Shard, int]:
        shard = self._shard(index)
        return self._shards[shard], int(self._rows[shard][int(index) - int(self._starts[shard])])


class ShardPrefetcher:
    """Lists of places, each once the shards of its images are here; those to come are brought in the background.

    It is iterated in the training process, which may wait for as long as a shard takes, as a worker may not. What
    cannot be brought ends the lists early, so that all before it are still loaded, and is left in the status.
    """

    def __init__(self, source: StreamedSource, status: StreamStatus, lookahead: Lookahead) -> None:
        self._source, self._status, self._ahead = source, status, lookahead.ahead
        self._order = source.order(lookahead.seed) if lookahead.seed is not None else None
        self._lag = 0 if source.roomy else lookahead.underway
        self._group, self._brought, self._told, self._asked = ShardGroup(0, 0, np.empty(0), 0, 0), 0, False, 0
        self._over, self._thread = threading.Event(), threading.Thread()
        source.warn_of_room(lookahead.underway)

    def pass_on(self, lists: Iterable[list[Place]]) -> Generator[list[Place], None, None]:
        """Yield the lists; closing the generator ends what runs in the background."""
        ready = deque[list[Place]]()
        try:
            for places in lists:
                if not self._ensure(places):
                    break
                self._bring_next(places[0].position)
                ready.append(places)
                if len(ready) > self._ahead:
                    yield ready.popleft()
            yield from ready
        finally:
            self._over.set()
            if self._thread.is_alive():
                self._thread.join(timeout=10)  # it may wait for another process, and ends with this one

    def _ensure(self, places: list[Place]) -> bool:
        """Bring the shards of these images; False: there will be no more, and the status says why."""
        try:
            self._source.ensure((place.image for place in places), self._status)
        except Interrupted:
            stopped = "stopped while images were still being brought: the same command goes on"
            self._status.failure = UserError(stopped, local=True, code=STOPPED)
        except UserError as failure:
            self._status.failure = failure
        return self._status.failure is None

    def _bring_next(self, position: int) -> None:
        """Bring the group after that of a position, once all before this one is loaded or the cache holds three."""
        if self._order is None:
            return
        if not self._group.start <= position < self._group.end:
            self._look_back()
            self._group, self._brought = self._order.group(position), self._source.cache.brought
        loaded = max(position - self._lag, 0)
        if loaded < self._group.start or self._group.end <= self._asked or self._thread.is_alive():
            return
        self._asked = self._group.end
        shards = self._order.group(self._asked).shards
        self._thread = threading.Thread(target=self._bring, args=(shards,), daemon=True)
        self._thread.start()

    def _look_back(self) -> None:
        """Warn once where a group has cost far more than its shards and those of the next one."""
        cache, shards = self._source.cache, len(self._group.shards)
        brought = cache.brought - self._brought
        if brought > 3 * shards + 3 and shards and not self._told:
            self._told = True
            _log.warning(
                "%d shards were brought while %d were read: the cache does not hold what is needed at a time, as "
                "when shards are larger unpacked; raise data.cache_gb %g",
                *(brought, shards, cache.limit / 1e9),
            )

    def _bring(self, shards: np.ndarray) -> None:
        try:
            self._source.ensure_shards(shards, self._over)
        except Interrupted:
            pass
        except UserError as error:
            _log.warning("the next shards cannot be brought ahead of their time: %s", error)


def _largest(sizes: Sequence[int], count: int) -> int:
    return sum(sorted(sizes)[-count:])


def _check_room(sizes: Sequence[int], at_once: int, cache: ShardCache) -> None:
    """A cache that does not hold a group, the next one and a shard on its way would bring each shard several times."""
    most = sum(sizes) + max(sizes)
    needed = min(2 * _largest(sizes, at_once) + max(sizes), most)
    if needed > cache.limit:
        raise UserError(
            f"data.cache_gb {cache.limit / 1e9:g} does not hold twice the data.shards_at_once {at_once} largest shards "
            f"and one more: use {_up(needed / 1e9)} or more, or lower data.shards_at_once"
        )
    free = shutil.disk_usage(cache.folder).free + cache.used()
    if free < min(most, cache.limit):
        raise UserError(
            f"data.cache_gb {cache.limit / 1e9:g} is more than the {free / 1e9:.3g} GB that are free for "
            f"{cache.folder}: lower it, to {_up(needed / 1e9)} or more, or name another folder with data.cache"
        )


def _up(number: float) -> str:
    """Rounded up to two digits."""
    digit = 10 ** (math.floor(math.log10(number)) - 1)
    return f"{math.ceil(number / digit) * digit:g}"
