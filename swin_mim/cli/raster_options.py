"""Options that say which channels are read of images that are not 8-bit RGB. Part of the tools that read images."""

import argparse
from typing import TYPE_CHECKING

from swin_mim.errors import Parser

if TYPE_CHECKING:
    from swin_mim.data.decoding.raster import ChannelSpec

RGB = 3


def add_raster_options(parser: argparse.ArgumentParser) -> None:
    """As the settings of a training of the same names say it."""
    group = parser.add_argument_group(
        "images of any channels", "as data.* and model.in_channels of a training; without them images are 8-bit RGB"
    )
    text = "how many channels; 3 of no names are 8-bit RGB"
    group.add_argument("--in_channels", "--in-channels", type=int, metavar="N", help=text)
    _add(group)


def add_raster_options_beside_a_model(parser: argparse.ArgumentParser) -> None:
    """As the settings of a fine-tuning of the same names say it; how many channels there are is the model's matter."""
    text = "as data.* of a fine-tuning; without --channels those that the model was trained on"
    _add(parser.add_argument_group("models of images of any channels", text))


def _add(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--channels", nargs="+", metavar="NAME", help="their names, or numbers from 1, in the order of the model")
    add("--nodata", type=float, metavar="V", help="value of pixels that are not there, where files do not say it")
    add(
        "--mask_channel",
        "--mask-channel",
        "--mask",
        metavar="NAME",
        help="channel that is 0 where a pixel is not there",
    )
    add("--stack", metavar="PATTERN", help='one file for each channel: "{image}_{channel}.tif" below the source')


def bands_of(options: argparse.Namespace, parser: Parser) -> "ChannelSpec | None":
    """What is read of each image; None: 8-bit RGB. Raises `UserError` for options that contradict each other."""
    from swin_mim.data.decoding.raster import ChannelSpec

    named = options.channels
    count = options.in_channels if options.in_channels is not None else len(named or ()) or RGB
    if count < 1:
        parser.error(f"--in_channels {count} must be at least 1")
    if named is not None and len(named) != count:
        parser.error(f"--channels names {len(named)} channels and --in_channels is {count}: set both alike")
    if named is None and count == RGB:
        given = [name for name in ("nodata", "mask_channel", "stack") if getattr(options, name) is not None]
        if given:
            parser.error(f"--{given[0]} is of images of any channels: name these, as in --channels 1 2 3")
        return None
    return ChannelSpec(count, None if named is None else tuple(named), options.nodata, options.mask_channel)
