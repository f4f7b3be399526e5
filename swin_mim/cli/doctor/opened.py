"""The images that a config names, opened as a pretraining opens them."""

from typing import NamedTuple

from swin_mim.data.blue_marble.tiles import open_blue_marble
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.exclude import without_excluded
from swin_mim.errors import UserError
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.images import channels_of_settings, open_source_of


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
        training = without_excluded(training, data.exclude)
        return Opened(training, training, heldout)
    if data.streaming:
        raise UserError(
            "data.streaming: this tool looks at images of all parts of a source, which would bring every shard: "
            "give it a folder with a few of them"
        )
    source = open_source_of(data, channels_of_settings(config))
    return Opened(source, *source.split(max(data.heldout, 0), config.run.seed))
