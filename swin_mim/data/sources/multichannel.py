"""Any source of files as a source of rasters."""

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from swin_mim.data.decoding.channel_reader import numbers
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.multichannel import NamedFile, can_hold, channel_names, choose, decode_raster
from swin_mim.data.decoding.raster import ChannelSpec, Raster
from swin_mim.errors import UserError

_log = logging.getLogger(__name__)

_TRIED = 8  # images that are looked at for one that can be read


class Listed(Protocol):
    """What any source has: see `sources.Source`."""

    fingerprint: str

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def listing(self) -> Iterator[tuple[str, int]]: ...


@runtime_checkable
class OneFile(Listed, Protocol):
    """A source of which an image is a file."""

    def content(self, index: int) -> bytes:
        """Its bytes. Raises `BrokenImage`."""


@runtime_checkable
class SeveralFiles(Listed, Protocol):
    """A source of which an image is a file for each channel."""

    channels: tuple[str, ...]

    def files(self, index: int) -> list[NamedFile]:
        """(channel, bytes) of each. Raises `BrokenImage`."""


@runtime_checkable
class OfChannels(Protocol):
    """A source that may be one of rasters."""

    @property
    def channels(self) -> tuple[str, ...] | None:
        """Names of the channels that the model takes; None: its images are RGB."""


def channels_of(source: object) -> tuple[str, ...] | None:
    """Names of the channels of a source's images, None: they are RGB."""
    return source.channels if isinstance(source, OfChannels) else None


class RasterSource:
    """The images of a source, each decoded to a `Raster` of the channels that `bands` says."""

    def __init__(self, source: OneFile | SeveralFiles, bands: ChannelSpec, names: Sequence[str] | None = None) -> None:
        """`names` are of the channels of each image, as packing left it: see `decode_raster`."""
        self.source, self.bands, self._names = source, bands, names
        self.fingerprint = source.fingerprint
        self.channels = bands.channels or numbers(bands.count)
        """Names of those that the model takes, as far as they are known: see `check_bands`."""

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def image(self, index: int) -> Raster:
        """Decode an image. Raises `BrokenImage`."""
        return self.decode(self.files(index))

    def decode(self, files: Sequence[NamedFile]) -> Raster:
        """What `files` gave. Raises `BrokenImage`."""
        return decode_raster(files, self.bands, self._names)

    def files(self, index: int) -> list[NamedFile]:
        """(channel or None, content) of its files, of which there may be one. Raises `BrokenImage`."""
        if isinstance(self.source, OneFile):
            return [(None, self.source.content(index))]
        return self.source.files(index)

    def names(self, index: int) -> tuple[str, ...]:
        """Of all channels of an image. Raises `BrokenImage`."""
        # a stack has them without being read
        return self.source.channels if isinstance(self.source, SeveralFiles) else self.names_of(self.files(index))

    def names_of(self, files: Sequence[NamedFile]) -> tuple[str, ...]:
        """Of all channels of what `files` gave. Raises `BrokenImage`."""
        return tuple(self._names or channel_names(files, self.bands.mask))

    def listing(self) -> Iterator[tuple[str, int]]:
        return self.source.listing()


def check_bands(source: RasterSource, spec: str) -> None:
    """Look at the first image that can be read, so that a wrong choice of channels is known before all are broken.

    The source learns the names of its channels. A data.nodata that these pixels cannot have is told in the log.

    Raises:
        UserError: its channels are not those that are chosen, or the choice contradicts itself.
    """
    bands = source.bands
    if bands.channels is not None and len(bands.channels) != bands.count:
        raise UserError(
            f"data.channels names {len(bands.channels)} channels and model.in_channels is {bands.count}: they are the "
            "same channels, set both alike"
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
        _tell_if_nothing_is_marked(source, bands.nodata)


def _tell_if_nothing_is_marked(source: RasterSource, nodata: float) -> None:
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
