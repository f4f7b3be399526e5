"""Mean, std and range of each channel of any source of images: what a training normalises by.

    swin-mim stats photos
    swin-mim stats scenes --in_channels 13 --nodata 0
    swin-mim stats sentinel --stack "{image}_{channel}.tif" --channels B02 B03 B04 B08 --mask SCL --json -

Values are in the units of the files, and only pixels that are there count; of 8-bit RGB images they are from 0 to 1.
The last line is the options to copy, without channels of one value. Values that look as if they marked missing pixels
are named, and counted until --nodata names them. What swin-mim prepare packs needs none of this: it says so itself.
"""

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from swin_mim.cli.options import add_json_option, add_raster_options, channels_of, text_stream, told_once, write_json
from swin_mim.counts import counted
from swin_mim.data.decoding.decode_limits import MAX_PIXELS
from swin_mim.errors import Parser, UserError, one_line_errors

if TYPE_CHECKING:
    from swin_mim.data.dataset_statistics import DatasetStats
    from swin_mim.data.decoding.raster import ChannelSpec
    from swin_mim.data.statistics import Statistics

RGB = ("red", "green", "blue")
_LISTED = 5  # broken images


def parse(arguments: Sequence[str] | None) -> "tuple[argparse.Namespace, ChannelSpec | None]":
    parser = Parser(prog="swin-mim stats", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a folder of images, a folder of tables, or a Hub data set")
    add("--config", help="configuration of a Hub data set that has several")
    add("--split", default="train", help="of a data set (default: train)")
    add("--column", help="of the images")
    add("--exclude", metavar="FILE", help="names of images to leave out, one a line, as data.exclude")
    add("--images", type=int, default=2000, metavar="N", help="to look at, at most, evenly spread (default: 2000)")
    cores = len(os.sched_getaffinity(0))
    add("--workers", type=int, default=cores, metavar="N", help="processes; 0 works in this one (default: each core)")
    text = "max pixels of an image, as data.max_pixels (default: 67108864)"
    add("--max_pixels", "--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help=text)
    text = "as data.color_profile (default: convert, to sRGB)"
    add("--color_profile", "--color-profile", choices=("convert", "ignore"), default="convert", help=text)
    add_json_option(parser)
    add_raster_options(parser)
    options = parser.parse_args(arguments)
    for name, minimum in (("images", 1), ("workers", 0), ("max_pixels", 1)):
        if getattr(options, name) < minimum:
            parser.error(f"--{name} {getattr(options, name)} must be at least {minimum}")
    return options, channels_of(options, parser)


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        options, bands = parse(arguments)
        # the imports wait until the command line is known to be right
        from swin_mim.data.dataset_statistics import DatasetStats
        from swin_mim.data.decoding.options import DecodeOptions
        from swin_mim.data.sources.open import open_source

        decoding = DecodeOptions(options.max_pixels, options.color_profile)
        if bands is not None:
            bands = replace(bands, max_pixels=options.max_pixels)
        where = {name: getattr(options, name) for name in ("config", "split", "column", "stack", "exclude")}
        with told_once():
            source = open_source(options.source, **where, bands=bands, decoding=decoding)
        names = source.channels or RGB
        found = DatasetStats.of(source, options.images, options.workers)
        if found.statistics is None:
            name, reason = found.broken[0]
            raise UserError(
                f"none of the {found.looked_at} images of {options.source!r} that were looked at can be used, the "
                f"first: {name}: {reason}"
            )
        print(as_text(found, found.statistics, names, len(source)), file=text_stream(options.json))
        write_json(as_json(found, found.statistics, names, len(source)), options.json)


def as_json(found: "DatasetStats", statistics: "Statistics", names: Sequence[str], total: int) -> dict[str, Any]:
    return {
        "images": total,
        "looked_at": found.looked_at,
        "channels": list(names),
        "dtypes": found.dtypes,
        "valid_share": statistics.share,
        "mean": list(statistics.mean),
        "std": list(statistics.std),
        "min": list(statistics.min),
        "max": list(statistics.max),
        "nodata": [asdict(suspect) for suspect in found.nodata],
        "offset": asdict(found.offset) if found.offset else None,
        "broken": [broken._asdict() for broken in found.broken],
        "statistics": statistics.as_json(),
    }


def as_text(found: "DatasetStats", statistics: "Statistics", names: Sequence[str], total: int) -> str:
    """A table, what is broken or looks wrong, and the options."""
    from swin_mim.data.statistics import rounded

    columns = [rounded(each) for each in (statistics.mean, statistics.std, statistics.min, statistics.max)]
    rows = [("channel", "mean", "std", "min", "max")]
    rows += [(name, *(f"{value:.6g}" for value in each)) for name, *each in zip(names, *columns, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{found.looked_at:,} of {total:,} images, {', '.join(found.dtypes)}; {statistics.share:.2%} valid pixels"]
    for name, *values in rows:
        cells = [f"{value:>{width}}" for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *cells]))
    if found.broken:
        lines.append(f"{counted(len(found.broken), 'broken one')} left out, the first:")
        lines += [f"  {name}: {reason}" for name, reason in found.broken[:_LISTED]]
    lines += [f"{suspect.said(statistics.images)}; if so: --nodata {suspect.text}" for suspect in found.nodata]
    if found.offset:
        lines.append(f"suspicion: {found.offset.said()}")
    return "\n".join([*lines, *_options(statistics, names)])


def _options(statistics: "Statistics", names: Sequence[str]) -> Iterator[str]:
    """What a training takes, without channels that say nothing: it refuses a std of 0."""
    from swin_mim.data.statistics import options_text

    mean, std = statistics.mean, statistics.std
    kept = [place for place, value in enumerate(std) if value]
    if len(kept) == len(names):
        yield options_text(mean, std)
        return
    constant = ", ".join(name for name, value in zip(names, std, strict=True) if not value)
    what = "has one value in all images that were looked at"
    if not kept:
        yield f"every channel ({constant}) {what}: there is nothing to learn from"
        return
    yield f"channel {constant} {what}, and is left out of these options:"
    numbers = names
    if tuple(names) == RGB:  # with data.channels images keep the values of their files
        numbers, mean, std = ("1", "2", "3"), *(tuple(255 * value for value in each) for each in (mean, std))
    yield (
        f"--model.in_channels {len(kept)} --data.channels {shlex.join(numbers[place] for place in kept)} "
        f"{options_text(tuple(mean[place] for place in kept), tuple(std[place] for place in kept))}"
    )
