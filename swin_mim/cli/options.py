"""Options that several subcommands have: --json FILE, and which channels are read of images of any channels."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from swin_mim.counts import counted
from swin_mim.errors import Parser, UserError

if TYPE_CHECKING:
    from swin_mim.data.decoding.raster import ChannelSpec

RGB = 3


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json FILE; a file that cannot be written is a mistake before the work begins, and not after it."""
    text = "write everything there too; - is stdout, and what one reads goes to stderr"
    parser.add_argument("--json", type=_file, metavar="FILE", help=text)


def text_stream(file: str | None) -> TextIO:
    """Where what one reads goes: stdout holds the JSON alone where that was asked for."""
    return sys.stderr if file == "-" else sys.stdout


def write_json(report: dict[str, Any], file: str | None) -> None:
    """Write a report to a file, or to stdout for "-", or nowhere for None."""
    text = json.dumps(report, indent=1) + "\n"
    if file is None:
        return
    if file == "-":
        sys.stdout.write(text)
        return
    try:
        Path(file).write_text(text)
    except OSError as error:
        raise UserError(f"cannot write --json {file}: {error.strerror}") from None


def _file(text: str) -> str:
    if text == "-":
        return text
    path = Path(text).absolute()
    try:
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text} is a folder: name a file")
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise argparse.ArgumentTypeError(f"{text} may not be written")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {error.strerror}") from None
    return text


def add_raster_options(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a training that say which channels are read, under their names there."""
    group = parser.add_argument_group(
        "images of any channels", "as data.* and model.in_channels of a training; without them images are 8-bit RGB"
    )
    text = "how many channels; 3 of no names are 8-bit RGB"
    group.add_argument("--in_channels", "--in-channels", type=int, metavar="N", help=text)
    _add_channels(group)


def add_raster_options_beside_a_model(parser: argparse.ArgumentParser) -> None:
    """Add those of a fine-tuning: how many channels there are is the model's matter."""
    text = "as data.* of a fine-tuning; without --channels those that the model was trained on"
    _add_channels(parser.add_argument_group("models of images of any channels", text))


def given_channels(options: argparse.Namespace) -> dict[str, Any]:
    """What was given of these, for `channels_to_read`."""
    named = None if options.channels is None else tuple(options.channels)
    return {"channels": named} | {name: getattr(options, name) for name in ("nodata", "mask_channel", "stack")}


def _add_channels(group: argparse._ArgumentGroup) -> None:
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


def channels_of(options: argparse.Namespace, parser: Parser) -> "ChannelSpec | None":
    """Say which channels are read of each image; None: 8-bit RGB. Raises `UserError` if options contradict others."""
    from swin_mim.data.decoding.raster import ChannelSpec

    named = options.channels
    count = options.in_channels if options.in_channels is not None else len(named or ()) or RGB
    if count < 1:
        parser.error(f"--in_channels {count} must be at least 1")
    if named is not None and len(named) != count:
        parser.error(f"--channels names {counted(len(named), 'channel')} and --in_channels is {count}: set both alike")
    if named is None and count == RGB:
        given = [name for name in ("nodata", "mask_channel", "stack") if getattr(options, name) is not None]
        if given:
            parser.error(f"--{given[0]} is of images of any channels: name these, as in --channels 1 2 3")
        return None
    return ChannelSpec(count, None if named is None else tuple(named), options.nodata, options.mask_channel)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a training that say how any source is opened and read, under their names there."""
    add = parser.add_argument
    add("--config", help="configuration of a Hub data set that has several")
    add("--split", help="of a data set (default: train)")
    add("--column", help="of the images; of streamed tars their suffix, or '*' for all")
    add("--exclude", metavar="FILE", help="names of images to leave out, one a line, as data.exclude of a training")
    group = parser.add_argument_group("reading", "as data.* of a training")
    add = group.add_argument
    text = "processes that decode images, for each that computes (default: its cores less one, at most 4 on a CPU)"
    add("--workers", type=int, metavar="N", help=text)
    add("--max_pixels", "--max-pixels", type=int, metavar="N", help="max pixels of an image (default: 67108864)")
    text = "of RGB images (default: convert, to sRGB)"
    add("--color_profile", "--color-profile", choices=("convert", "ignore"), help=text)
    text = "read parquet or tar shards through a cache; of itself with addresses, .tar files and patterns (*.parquet)"
    add("--streaming", action="store_true", default=None, help=text)
    add("--cache", metavar="DIR", help="for streamed shards (default: ~/.cache/swin_mim/shards)")
    add("--cache_gb", "--cache-gb", type=float, metavar="GB", help="max size of it (default: 20)")
    add_raster_options_beside_a_model(parser)


def given_source_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was given of these, as settings of data.*; None: not given."""
    source = ("config", "split", "column", "exclude", "streaming", "cache", "cache_gb")
    names = (*source, "workers", "max_pixels", "color_profile")
    return {name: getattr(options, name) for name in names} | given_channels(options)


def add_job_options(parser: argparse.ArgumentParser, batch: int | None = 64, usual: str = "64") -> None:
    """Add how a finished model is run on every image: batch, precision, threads, and whether results are replaced.

    Args:
        batch: unless it is given; `usual` says so.
    """
    add = parser.add_argument_group("computing").add_argument
    add("--batch", type=int, default=batch, metavar="N", help=f"images of one forward (default: {usual})")
    text = "auto is bf16 on a GPU that has it, else fp32 (default: auto)"
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help=text)
    add(
        "--threads", type=int, default=0, metavar="N", help="CPU threads of a process (default: its share of the cores)"
    )
    add("--overwrite", action="store_true", help="begin anew, and replace what is there of an earlier command")


@contextmanager
def told_once() -> Iterator[None]:
    """Show what the package says of a source while it is opened, of several processes by the first alone."""
    log, first = logging.getLogger("swin_mim"), os.environ.get("RANK", "0") == "0"
    before, terminal = log.level, logging.StreamHandler()
    shown = first and not log.hasHandlers()
    log.setLevel(logging.INFO if first else logging.ERROR)
    if shown:
        log.addHandler(terminal)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(terminal)


def check_numbers(options: argparse.Namespace, parser: Parser) -> None:
    """Raise a `UserError` for numbers of these options that are too small."""
    for name, minimum in (("batch", 1), ("threads", 0), ("workers", 0), ("max_pixels", 1)):
        value = getattr(options, name)
        if value is not None and value < minimum:
            parser.error(f"--{name} {value} must be at least {minimum}")


def check_out(path: Path, suffixes: Sequence[str], parser: Parser) -> None:
    """Raise a `UserError` for a result that cannot be a file of one of these suffixes."""
    if path.suffix.lower() not in suffixes:
        parser.error(f"--out {path} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        parser.error(f"--out {path} is a folder: name a file in it")
