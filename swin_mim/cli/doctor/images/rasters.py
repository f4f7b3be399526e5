"""Images that are not 8-bit RGB: which channels they have, and what settings they need. For `swin-mim doctor`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from PIL import Image

from swin_mim.cli.doctor.images.depth import Levels, deep_values, levels
from swin_mim.cli.doctor.images.look import has_deep_values, plural_channels, raster_format
from swin_mim.data.decoding.channel_reader import numbers
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.multichannel import channel_names
from swin_mim.data.decoding.options import DecodeOptions
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.decoding.rgb import decode_image
from swin_mim.data.nodata import Nodata
from swin_mim.data.sources.exclude import kept_indices
from swin_mim.data.sources.open import open_files
from swin_mim.data.sources.packed import packed_rasters
from swin_mim.data.sources.stacks import StackSource
from swin_mim.data.sources.tables import Table
from swin_mim.data.statistics import Statistics, rounded, spread_indices
from swin_mim.errors import UserError
from swin_mim.training.config.pretrain import DataConfig, ModelConfig, PretrainConfig
from swin_mim.training.config.pretrain_checks import reads_rasters
from swin_mim.training.images import decode_options

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
    nodata: tuple[Nodata, ...] = ()
    """Values that may mark missing pixels; they are counted in these figures."""
    without_nodata: "Channels | None" = None
    """The same without the first of these values, if it is apart from all others."""

    @classmethod
    def of(
        cls, names: Sequence[str], counts: dict[int, int], dtypes: dict[str, int], statistics: Statistics
    ) -> "Channels":
        empty = cls(tuple(names), counts, dtypes, 1.0, (), (), (), ())
        return empty.with_values(statistics)

    def with_values(self, statistics: Statistics) -> "Channels":
        return replace(
            self,
            valid_share=statistics.share,
            mean=rounded(statistics.mean),
            std=rounded(statistics.std),
            min=rounded(statistics.min),
            max=rounded(statistics.max),
        )

    @property
    def constant(self) -> tuple[str, ...]:
        """Names of the channels that have one value in all images."""
        return tuple(name for name, std in zip(self.names, self.std, strict=True) if std == 0)

    @property
    def varied(self) -> bool:
        """Whether any channel has several values."""
        effective = self.without_nodata or self
        return len(effective.constant) < len(effective.names)

    def only(self, names: Sequence[str]) -> "Channels":
        """Some of them."""
        places = [self.names.index(name) for name in names]
        values: dict[str, Any] = {
            key: tuple(getattr(self, key)[place] for place in places) for key in ("mean", "std", "min", "max")
        }
        return replace(self, names=tuple(names), **values)


@dataclass(frozen=True)
class Change:
    """Another value for an option, as words of a command line."""

    key: str
    words: tuple[str, ...]
    reason: str


def with_channels(config: PretrainConfig) -> tuple[PretrainConfig, tuple[Change, ...]]:
    """The config for what the first images have, and what that changes, where it reads RGB and they are none.

    They are none where they cannot be read so, or where that would leave few of their grey levels.

    Raises:
        UserError: data.stack does not fit the files.
    """
    data = config.data
    if reads_rasters(data, config.model) or data.source == "blue_marble":
        return config, ()
    names, found = _peek(data)
    if not names:
        return config, ()
    what = f"the images have {plural_channels(len(names))}, and are not read as RGB"
    changes = [Change("model.in_channels", (str(len(names)),), found.text if found else what)]
    if len(names) == RGB or names != numbers(len(names)) or found:
        why = "with it images keep the values of their files" if found else "their names, of which some may be left out"
        changes.append(Change("data.channels", names, why))
        data = replace(data, channels=names)
    return replace(config, data=data, model=replace(config.model, in_channels=len(names))), tuple(changes)


def with_values(config: PretrainConfig, found: Channels) -> tuple[PretrainConfig, tuple[Change, ...]]:
    """The config for the values that were found, and what that changes.

    A value that looks as if it marked missing pixels, and is apart from all others, becomes data.nodata; channels of
    one value are left out; means and stds are the measured ones where the config has others by default.
    """
    changes: list[Change] = []
    data = config.data
    if not found.varied:  # with no options can it be trained on
        return config, ()
    if found.without_nodata and takes_nodata(data):
        why = f"{found.nodata[0].said(sum(found.counts.values()))}; means and stds are without it"
        changes.append(Change("data.nodata", (found.nodata[0].text,), why))
        data, found = replace(data, nodata=found.nodata[0].value), found.without_nodata
    if found.constant and (kept := tuple(name for name in found.names if name not in found.constant)):
        changes.append(Change("model.in_channels", (str(len(kept)),), "without the channels of one value"))
        changes.append(Change("data.channels", kept, "the others"))
        data, found = replace(data, channels=kept), found.only(kept)
    config = replace(config, data=data, model=replace(config.model, in_channels=len(found.names)))
    config, more = _with_statistics(config, found)
    return config, (*changes, *more)


def takes_nodata(data: DataConfig) -> bool:
    """Whether data.nodata may be set: what is packed says itself which pixels are there."""
    return data.nodata is None and packed_rasters(Path(data.source).expanduser()) is None


def _with_statistics(config: PretrainConfig, found: Channels) -> tuple[PretrainConfig, list[Change]]:
    data, plain, changes = config.data, DataConfig(), []
    measured: dict[str, Any] = {}
    for name, what in (("mean", "means"), ("std", "stds")):
        now, values = getattr(data, name), getattr(found, name)
        if now == getattr(plain, name) or len(now) != config.model.in_channels:
            measured[name] = values
            words = tuple(f"{value:.6g}" for value in values)
            changes.append(Change(f"data.{name}", words, f"the {what} of these images, in the units of their files"))
    return replace(config, data=replace(data, **measured)), changes


def constant_channels(found: Channels) -> Iterator[str]:
    """Why a run cannot start with channels that say nothing."""
    found = found.without_nodata or found
    kept = " ".join(name for name in found.names if name not in found.constant)
    what = "has one value in all images that were looked at"
    if not kept:
        yield f"every channel ({', '.join(found.names)}) {what}: there is nothing to learn from"
    elif found.constant:
        yield f"channel {', '.join(found.constant)} {what}: leave it out, with data.channels {kept}"


def _peek(data: DataConfig) -> tuple[tuple[str, ...] | None, Levels | None]:
    """(names of the channels that most of the first images have, what is left of them as RGB).

    The names are None where most of them are read as RGB, and lose little by that, or cannot be read at all; the levels
    are None where they are not read as RGB.
    """
    bands = ChannelSpec(ModelConfig().in_channels, None, data.nodata, data.mask_channel, data.max_pixels)
    where: dict[str, Any] = {"config": data.config, "split": data.split, "column": data.column}
    try:
        opened = open_files(data.source, **where, bands=bands, stack=data.stack)
        files = opened.images(data.column) if isinstance(opened, Table) else opened
        kept = range(len(files)) if data.exclude is None else kept_indices(files, data.exclude)
    except UserError:
        if data.stack is not None:
            raise
        return None, None  # said by whoever opens it next
    if isinstance(files, StackSource):
        return tuple(name for name in files.channels if name != data.mask_channel), None
    asked = data.nodata is not None or data.mask_channel is not None
    kinds: Counter[tuple[str, ...] | None] = Counter()
    deep: Counter[tuple[str, ...]] = Counter()
    found: list[Levels] = []
    for place in spread_indices(len(kept), PEEKED):
        try:
            content = files.content(int(kept[place]))
        except BrokenImage:
            continue
        names, compared = _look_into(content, data, asked)
        kinds[names if compared is None else None] += 1
        if compared and names:
            deep[names] += 1
            found.append(compared)
    together = reduce(Levels.merge, found) if 2 * len(found) > sum(kinds.values()) else None
    if together and together.too_few:
        return deep.most_common(1)[0][0], together
    return (kinds.most_common(1)[0][0] if kinds else None), None


def _look_into(content: bytes, data: DataConfig, asked: bool) -> tuple[tuple[str, ...] | None, Levels | None]:
    """(names of the channels, None) of an image that is not read as RGB; (names, levels) of one that is and has more
    than 8 bits; (None, None) of others.

    Args:
        asked: there are settings that are of images of any channels only.
    """
    options = decode_options(data)
    rgb = None if asked or raster_format(content) in ("npy", "npz") else _as_rgb(content, options)
    if rgb is None:
        return _names(content, data.mask_channel), None
    if not has_deep_values(content, options) or (raster := deep_values(content, options)) is None:
        return None, None
    return _names(content, None), levels(raster, rgb)


def _names(content: bytes, mask: str | None) -> tuple[str, ...] | None:
    """None: it cannot be read as channels."""
    try:
        names = channel_names([(None, content)], mask)
    except BrokenImage:
        return None
    return tuple(name for number, name in zip(numbers(len(names)), names, strict=True) if mask not in (name, number))


def _as_rgb(content: bytes, options: DecodeOptions) -> Image.Image | None:
    try:
        return decode_image(content, options)
    except BrokenImage:
        return None
