"""The channels of the images of a run, beside those that weights were made for."""

import logging
from collections.abc import Sequence
from typing import Any

from swin_mim.counts import counted
from swin_mim.data.decoding.channel_reader import numbers
from swin_mim.errors import UserError
from swin_mim.models.saving import Preprocessing
from swin_mim.training.config.pretrain import DataConfig

RGB = ("red", "green", "blue")
"""What images are read as, unless they keep the channels of their files."""

_LOG = logging.getLogger(__name__)


def preprocessing_of(data: DataConfig, channels: tuple[str, ...] | None) -> Preprocessing:
    """How the images of a pretraining become its input; `channels` are their names, None: they are RGB."""
    if channels is None:
        return Preprocessing(data.mean, data.std, RGB)
    return Preprocessing(data.mean, data.std, channels, scale=1, nodata=data.nodata, mask_channel=data.mask_channel)


def warn_of_other_channels(weights: Preprocessing, images: Preprocessing, name: str) -> None:
    """Warn of a pretraining that starts from the weights `name`, which were made for images of other channels."""
    if weights.scale != images.scale or (weights.channels or images.channels) != (images.channels or weights.channels):
        _LOG.warning(
            "%s was made for images of %s, and these are of %s: its first layer has to learn them anew",
            *(name, _text(weights), _text(images)),
        )


def check_channels(preprocessing: Preprocessing, channels: tuple[str, ...] | None, name: str) -> None:
    """Refuse images of other channels than the classifier or encoder `name` takes; `channels` None: RGB.

    Where one side has names and the other numbers only the count can be checked, and a warning says so.

    Raises:
        UserError: names both.
    """
    count = len(preprocessing.mean)
    read = "RGB" if channels is None else f"{counted(len(channels), 'channel')} ({', '.join(channels)})"
    if preprocessing.scale == 255:
        if count == 3 and channels is None:
            return
        raise UserError(
            f"{name} takes {_text(preprocessing)}, and images are read as {read}: make a model of these channels with "
            "SimMIM.from_pretrained(..., channels=[names]), its preprocessing = Preprocessing(mean, std, "
            "names, scale=1) and save_pretrained, and start from that"
        )
    theirs = preprocessing.channels or channels
    as_many = channels is not None and len(channels) == count
    if as_many and _numbered(channels) != _numbered(theirs):
        text = "%s takes %s, and of these images channels %s are read: whether they are the same nothing tells"
        _LOG.warning(text, name, _text(preprocessing), ", ".join(channels or ()))
    elif not as_many or channels != theirs:
        raise UserError(
            f"{name} takes {_text(preprocessing)}, and images are read as {read}: name the same channels in "
            "data.channels, in the same order"
        )


def channels_to_read(
    preprocessing: Preprocessing,
    name: str,
    *,
    channels: tuple[str, ...] | None,
    nodata: float | None,
    mask_channel: str | None,
    stack: str | None,
) -> dict[str, Any]:
    """Settings that say which channels are read for the finished model `name`: without `channels` those it takes.

    Raises:
        UserError: they are others than it takes.
    """
    if channels is None and preprocessing.scale != 255:
        channels = preprocessing.channels or numbers(len(preprocessing.mean))
    check_channels(preprocessing, channels, name)
    how = {"nodata": nodata, "mask_channel": mask_channel, "stack": stack}
    if channels is None and (given := [key for key, value in how.items() if value is not None]):
        raise UserError(f"--{given[0]} is of images of any channels, and {name} takes RGB images: leave it out")
    warn_of_other_gaps(preprocessing, nodata, mask_channel, name)
    return {"channels": channels} | how


def _numbered(channels: Sequence[str] | None) -> bool:
    return channels is not None and all(name.isdecimal() for name in channels)


def warn_of_other_gaps(preprocessing: Preprocessing, nodata: float | None, mask_channel: str | None, name: str) -> None:
    """Warn where a model was trained on images whose gaps were marked in another way."""
    marked = nodata == nodata  # NaN is no pixel without being named
    theirs, ours = (preprocessing.nodata, preprocessing.mask_channel), (nodata if marked else None, mask_channel)
    if preprocessing.scale == 1 and theirs != ours:
        _LOG.warning(
            "%s was trained with data.nodata %s and data.mask_channel %s, and here these are %s and %s: gaps that are "
            "not told are read as values",
            *(name, *theirs, *ours),
        )


def _text(preprocessing: Preprocessing) -> str:
    names = "" if preprocessing.channels is None else f" ({', '.join(preprocessing.channels)})"
    units = "of values from 0 to 1" if preprocessing.scale == 255 else "as they stand in the files"
    return f"{counted(len(preprocessing.mean), 'channel')}{names} {units}"
