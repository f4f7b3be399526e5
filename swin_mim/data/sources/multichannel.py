"""Any source of files as a source of rasters."""

import logging
from collections.abc import Collection, Generator, Iterator, Sequence

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.decoding.channel_reader import numbers
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.multichannel import can_hold, channel_names, choose, decode_raster
from swin_mim.data.decoding.raster import ChannelSpec, NamedFile, Raster
from swin_mim.data.sampling import Place
from swin_mim.data.sources.base import Lookahead, Order, Source, StreamStatus
from swin_mim.errors import UserError

_log = logging.getLogger(__name__)

_TRIED = 8  # images that are looked at for one that can be read


class RasterSource(Source):
    """The images of a source of files, each decoded to a `Raster` of the channels that `bands` says."""

    def __init__(self, source: Source, bands: ChannelSpec, names: Sequence[str] | None = None) -> None:
        """`names` are of the channels of each image, as packing left it: see `decode_raster`."""
        self.source, self.bands, self._names = source, bands, names
        self.fingerprint, self.unit = source.fingerprint, source.unit
        self.channels: tuple[str, ...] = bands.channels or numbers(bands.count)
        """Names of those that the model takes, as far as they are known: see `check_bands`."""

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def path(self, index: int) -> str | None:
        return self.source.path(index)

    def each_path(self) -> Iterator[str | None]:
        return self.source.each_path()

    def image(self, index: int) -> Raster:
        return self.decode(self.files(index))

    def decode(self, files: Sequence[NamedFile]) -> Raster:
        """Decode what `files` gave. Raises `BrokenImage`."""
        return decode_raster(files, self.bands, self._names)

    def files(self, index: int) -> Sequence[NamedFile]:
        return self.source.files(index)

    def names(self, index: int) -> tuple[str, ...]:
        """Names of all channels of an image. Raises `BrokenImage`."""
        # a stack has them without being read
        return self.source.channels or self.names_of(self.files(index))

    def names_of(self, files: Sequence[NamedFile]) -> tuple[str, ...]:
        """Names of all channels of what `files` gave. Raises `BrokenImage`."""
        return tuple(self._names or channel_names(files, self.bands.mask, self.bands.max_pixels))

    def inventory(self) -> Iterator[tuple[str, int]]:
        return self.source.inventory()

    def find(self, names: Collection[str]) -> dict[str, list[int]]:
        return self.source.find(names)

    def without(self, kept: np.ndarray) -> "RasterSource":
        return self._of(self.source.without(kept))

    def split(self, count: int, seed: int) -> "tuple[RasterSource, RasterSource]":
        training, heldout = self.source.split(count, seed)
        return self._of(training), self._of(heldout)

    def _of(self, part: Source) -> "RasterSource":
        images = RasterSource(part, self.bands, self._names)
        images.channels = self.channels
        return images

    def near(self, index: int) -> range:
        return self.source.near(index)

    def order(self, seed: int) -> Order:
        return self.source.order(seed)

    def prefetch(
        self, lists: Generator[list[Place], None, None], status: StreamStatus, lookahead: Lookahead
    ) -> Generator[list[Place], None, None]:
        return self.source.prefetch(lists, status, lookahead)


def check_bands(source: RasterSource, spec: str) -> None:
    """Look at the first image that can be read, so that a wrong choice of channels is known before all are broken.

    The source learns the names of its channels. A data.nodata that these pixels cannot have is told in the log.

    Raises:
        UserError: its channels are not those that are chosen, or the choice contradicts itself.
    """
    bands = source.bands
    if bands.channels is not None and len(bands.channels) != bands.count:
        raise UserError(
            f"data.channels names {counted(len(bands.channels), 'channel')} and model.in_channels is {bands.count}: "
            "they are the same channels, set both alike"
        )
    if bands.channels is not None and bands.mask in bands.channels:
        raise UserError(
            f"data.mask_channel {bands.mask!r} is one of data.channels: the mask is none of them, leave it out"
        )
    for index in range(min(_TRIED, len(source))):
        try:
            names = source.names(index)
        except BrokenImage:
            continue  # a matter of the loader, which counts them
        try:
            source.channels = tuple(names[channel] for channel in choose(names, bands)[0])
        except BrokenImage as error:
            raise UserError(f"data.source {spec!r}: {source.name(index)}: {error}") from error
        break
    if bands.nodata is not None:
        _warn_if_nothing_is_marked(source, bands.nodata)


def _warn_if_nothing_is_marked(source: RasterSource, nodata: float) -> None:
    """Warn of a value that the first image which can be read cannot have."""
    for index in range(min(_TRIED, len(source))):
        try:
            dtype = source.image(index).values.dtype
        except BrokenImage:
            continue
        if not can_hold(dtype, nodata):
            text = "data.nodata %s is no %s, which the pixels of %s are: it marks no gap there"
            _log.warning(text, nodata, dtype.name, source.name(index))
        return
