"""Images that are not 8-bit RGB: which channels they have, and what settings they need. For `swin-mim doctor`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swin_mim.data.decoding.array_files import is_npy, is_npz
from swin_mim.data.decoding.channel_reader import numbers
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.multichannel import channel_names
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.decoding.rgb import decode_image
from swin_mim.data.sources.open import open_files
from swin_mim.data.sources.stacks import StackSource
from swin_mim.data.sources.tables import Table
from swin_mim.data.statistics import Statistics, rounded, spread_indices
from swin_mim.errors import UserError
from swin_mim.training.config.pretrain import DataConfig, ModelConfig, PretrainConfig
from swin_mim.training.config.pretrain_checks import reads_rasters

PEEKED = 8
"""Images that are looked at for what kind they are."""

RGB = 3


@dataclass(frozen=True)
class Channels:
    """What was found in the images that were looked at; values in the units of the files, over valid pixels."""

    names: tuple[str, ...]
    """Those that are read."""
    counts: dict[int, int]
    """How many images have so many channels, read or not, without the mask."""
    dtypes: dict[str, int]
    """How many images are of which type."""
    valid_share: float
    """Share of the pixels that are there."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]

    @classmethod
    def of(
        cls, names: Sequence[str], counts: dict[int, int], dtypes: dict[str, int], statistics: Statistics
    ) -> "Channels":
        mean, std = rounded(statistics.mean), rounded(statistics.std)
        ranges = rounded(statistics.min), rounded(statistics.max)
        return cls(tuple(names), counts, dtypes, statistics.share, mean, std, *ranges)


@dataclass(frozen=True)
class Change:
    """Another value for an option, as words of a command line."""

    key: str
    words: tuple[str, ...]
    reason: str


def with_channels(config: PretrainConfig) -> tuple[PretrainConfig, tuple[Change, ...]]:
    """The config for what the first images have, and what that changes, where it reads RGB and they cannot be.

    Raises:
        UserError: data.stack does not fit the files.
    """
    data = config.data
    if reads_rasters(data, config.model) or data.source == "blue_marble":
        return config, ()
    names = _names_of_rasters(data)
    if not names:
        return config, ()
    what = f"the images have {len(names)} channel{'' if len(names) == 1 else 's'}"
    changes = [Change("model.in_channels", (str(len(names)),), f"{what}, and are not read as RGB")]
    if len(names) == RGB or names != numbers(len(names)):
        changes.append(Change("data.channels", names, "their names, of which some may be left out"))
        data = replace(data, channels=names)
    return replace(config, data=data, model=replace(config.model, in_channels=len(names))), tuple(changes)


def with_statistics(config: PretrainConfig, found: Channels) -> tuple[PretrainConfig, tuple[Change, ...]]:
    """The config with the measured means and stds, where it has others by default, and what that changes."""
    data, plain, changes = config.data, DataConfig(), []
    measured: dict[str, Any] = {}
    for name, what in (("mean", "means"), ("std", "stds")):
        now, values = getattr(data, name), getattr(found, name)
        if now == getattr(plain, name) or len(now) != config.model.in_channels:
            measured[name] = values
            words = tuple(f"{value:.6g}" for value in values)
            changes.append(Change(f"data.{name}", words, f"the {what} of these images, in the units of their files"))
    return replace(config, data=replace(data, **measured)), tuple(changes)


def constant_channels(found: Channels) -> Iterator[str]:
    """Why a run cannot start with channels that say nothing."""
    if constant := [name for name, std in zip(found.names, found.std, strict=True) if std == 0]:
        kept = " ".join(name for name in found.names if name not in constant) or "others"
        yield (
            f"channel {', '.join(constant)} has one value in all images that were looked at: leave it out, with "
            f"data.channels {kept}"
        )


def _names_of_rasters(data: DataConfig) -> tuple[str, ...] | None:
    """Names of the channels that most of the first images have; None: most of them are read as RGB, or not at all."""
    bands = ChannelSpec(ModelConfig().in_channels, None, data.nodata, data.mask_channel)
    where: dict[str, Any] = {"config": data.config, "split": data.split, "column": data.column}
    try:
        opened = open_files(data.source, **where, bands=bands, stack=data.stack)
        files = opened.images(data.column) if isinstance(opened, Table) else opened
    except UserError:
        if data.stack is not None:
            raise
        return None  # said by whoever opens it next
    if isinstance(files, StackSource):
        return tuple(name for name in files.channels if name != data.mask_channel)
    asked = data.nodata is not None or data.mask_channel is not None
    kinds: Counter[tuple[str, ...] | None] = Counter()
    for index in spread_indices(len(files), PEEKED):
        try:
            content = files.content(index)
        except BrokenImage:
            continue
        kinds[_names_if_raster(content, data.mask_channel, asked)] += 1
    return kinds.most_common(1)[0][0] if kinds else None


def _names_if_raster(content: bytes, mask: str | None, asked: bool) -> tuple[str, ...] | None:
    """None: it is read as RGB, or not at all. `asked`: there are settings that are of rasters only."""
    if not (asked or is_npy(content) or is_npz(content)) and _is_rgb(content):
        return None
    try:
        names = channel_names([(None, content)], mask)
    except BrokenImage:
        return None
    return tuple(name for number, name in zip(numbers(len(names)), names, strict=True) if mask not in (name, number))


def _is_rgb(content: bytes) -> bool:
    try:
        decode_image(content)
    except BrokenImage:
        return False
    return True
