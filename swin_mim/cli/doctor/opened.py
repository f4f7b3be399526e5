"""The images that a config names, opened as a pretraining opens them."""

from typing import Any, NamedTuple

from swin_mim.data.blue_marble.tiles import open_blue_marble
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.open import open_source
from swin_mim.errors import UserError
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.images import channels_of_settings, decode_options


class Opened(NamedTuple):
    """The images of a config."""

    source: Source
    """All images."""
    training: Source
    heldout: Source


def open_images(config: PretrainConfig) -> Opened:
    """All images, those to train on and those held out.

    Raises:
        UserError: they cannot be opened, or are streamed.
    """
    data = config.data
    if data.source == "blue_marble":
        training, heldout = open_blue_marble()
        return Opened(training, training, heldout)
    if data.streaming:
        raise UserError(
            "data.streaming: this tool looks at images of all parts of a source, which would bring every shard: "
            "give it a folder with a few of them"
        )
    where: dict[str, Any] = {"config": data.config, "split": data.split, "column": data.column}
    decoding = decode_options(data)
    source = open_source(data.source, **where, bands=channels_of_settings(config), stack=data.stack, decoding=decoding)
    return Opened(source, *source.split(max(data.heldout, 0), config.run.seed))
