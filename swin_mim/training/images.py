"""The images that a pretraining's settings name: to train on, and held out."""

from typing import Any, NamedTuple

from swin_mim.counts import counted
from swin_mim.data.blue_marble.tiles import open_blue_marble
from swin_mim.data.decoding.options import DecodeOptions
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.decoding.rgb import decoder_text
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.exclude import without_excluded
from swin_mim.data.sources.open import open_source
from swin_mim.training.channels import preprocessing_of
from swin_mim.training.config.pretrain import DataConfig, ImagesConfig, PretrainConfig
from swin_mim.training.config.pretrain_checks import reads_rasters
from swin_mim.weights.config_json import Preprocessing


class Images(NamedTuple):
    training: Source
    heldout: Source
    """To measure on; there may be none."""
    channels: tuple[str, ...] | None
    """Names of the channels; None: images are RGB."""
    preprocessing: Preprocessing
    """How they become a model's input."""

    def text(self, size: tuple[int, int]) -> str:
        """What they are, for the first line of the log; `size` is (H, W) of the model's input."""
        channels = f" of {counted(len(self.channels), 'channel')}" if self.channels else ""
        decoder = "" if self.channels else f", decoded by {decoder_text()}"
        counts = f"{counted(len(self.training), 'image')} and {len(self.heldout)} held out{decoder}"
        return f"{size[0]}x{size[1]} px{channels}, {counts}"


def channels_of_settings(config: PretrainConfig) -> ChannelSpec | None:
    """What is read of each image; None: 8-bit RGB."""
    data, count = config.data, config.model.in_channels
    if not reads_rasters(data, config.model):
        return None
    return ChannelSpec(count, data.channels, data.nodata, data.mask_channel, data.max_pixels)


def named_channels(data: ImagesConfig) -> ChannelSpec | None:
    """What is read of each image beside a model, whose channels are named; None: 8-bit RGB."""
    if not data.channels:
        return None
    return ChannelSpec(len(data.channels), data.channels, data.nodata, data.mask_channel, data.max_pixels)


def decode_options(data: ImagesConfig) -> DecodeOptions:
    return DecodeOptions(data.max_pixels, data.color_profile)


def open_pretraining_images(config: PretrainConfig) -> Images:
    """Open data.source, or its shards where it is streamed.

    Raises:
        UserError: it cannot be opened, or has other channels than the settings say.
    """
    data = config.data
    if data.source == "blue_marble":
        training, heldout = open_blue_marble()
        return Images(without_excluded(training, data.exclude), heldout, None, preprocessing_of(data, None))
    source = open_source_of(data, channels_of_settings(config))
    channels = source.channels
    return Images(*source.split(data.heldout, config.run.seed), channels, preprocessing_of(data, channels))


def open_source_of(data: DataConfig, bands: ChannelSpec | None) -> Source:
    """Open data.source, or its shards where it is streamed, all of it; `bands` None: as 8-bit RGB.

    Raises:
        UserError: as `open_pretraining_images`.
    """
    where: dict[str, Any] = {"config": data.config, "split": data.split, "column": data.column}
    where["bands"] = bands
    where["decoding"] = decode_options(data)
    if not data.streaming:
        return open_source(data.source, stack=data.stack, exclude=data.exclude, **where)
    from swin_mim.data.streaming.source import CacheOptions, open_streamed  # what does not stream needs none of it

    cache = CacheOptions(data.cache, data.cache_gb)
    where["exclude"] = data.exclude
    return open_streamed(data.source, shards_at_once=data.shards_at_once, cache=cache, **where)
