"""The images that a pretraining's settings name: to train on, and held out."""

from typing import Any, NamedTuple

from swin_mim.data.blue_marble.tiles import open_blue_marble
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.sources.multichannel import channels_of
from swin_mim.data.sources.open import Source, open_source, split_heldout
from swin_mim.data.streaming.source import open_streamed
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import reads_rasters


class Images(NamedTuple):
    training: Source
    heldout: Source
    """To measure on; there may be none."""
    channels: tuple[str, ...] | None
    """Names of the channels; None: images are RGB."""


def bands_of(config: PretrainConfig) -> ChannelSpec | None:
    """What is read of each image; None: 8-bit RGB."""
    data, count = config.data, config.model.in_channels
    return (
        ChannelSpec(count, data.channels, data.nodata, data.mask_channel) if reads_rasters(data, config.model) else None
    )


def open_pretraining_images(config: PretrainConfig) -> Images:
    """Open data.source, or its shards where it is streamed.

    Raises:
        UserError: it cannot be opened, or has other channels than the settings say.
    """
    data = config.data
    if data.source == "blue_marble":
        return Images(*open_blue_marble(), None)
    where: dict[str, Any] = {"config": data.config, "split": data.split, "column": data.column}
    where["bands"] = bands_of(config)
    if data.streaming:
        cache: dict[str, Any] = {"cache": data.cache, "cache_gb": data.cache_gb}
        source: Source = open_streamed(data.source, shards_at_once=data.shards_at_once, **where, **cache)
    else:
        source = open_source(data.source, stack=data.stack, **where)
    return Images(*split_heldout(source, data.heldout, config.run.seed), channels_of(source))
