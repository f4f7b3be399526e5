"""Mean, std and range of each channel of any source of images: what a training normalises by.

    swin-mim stats photos
    swin-mim stats scenes --in_channels 13 --nodata 0
    swin-mim stats sentinel --stack "{image}_{channel}.tif" --channels B02 B03 B04 B08 --mask SCL --json -

Values are in the units of the files, and only pixels that are there count; of 8-bit RGB images they are from 0 to 1.
The last line is the two options to copy. What swin-mim prepare packs needs none of this: it says so itself.
"""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swin_mim.cli.options import add_json_option, add_raster_options, channels_of, text_stream, write_json
from swin_mim.errors import Parser, UserError, one_line_errors

if TYPE_CHECKING:
    from swin_mim.data.decoding.raster import ChannelSpec
    from swin_mim.data.statistics import DatasetStats, Statistics

RGB = ("red", "green", "blue")
_LISTED = 5  # broken images


def parse(arguments: Sequence[str] | None) -> "tuple[argparse.Namespace, ChannelSpec | None]":
    parser = Parser(prog="swin-mim stats", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a folder of images, a folder of tables, or a Hub data set")
    add("--config", help="configuration of a Hub data set that has several")
    add("--split", default="train", help="of a data set (default: train)")
    add("--column", help="of the images")
    add("--images", type=int, default=2000, metavar="N", help="to look at, at most, evenly spread (default: 2000)")
    cores = len(os.sched_getaffinity(0))
    add("--workers", type=int, default=cores, metavar="N", help="processes; 0 works in this one (default: each core)")
    add_json_option(parser)
    add_raster_options(parser)
    options = parser.parse_args(arguments)
    for name, minimum in (("images", 1), ("workers", 0)):
        if getattr(options, name) < minimum:
            parser.error(f"--{name} {getattr(options, name)} must be at least {minimum}")
    return options, channels_of(options, parser)


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        options, bands = parse(arguments)
        # the imports wait until the command line is known to be right
        from swin_mim.data.sources.open import open_source
        from swin_mim.data.statistics import DatasetStats

        where = {"config": options.config, "split": options.split, "column": options.column}
        source = open_source(options.source, **where, bands=bands, stack=options.stack)
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
        "broken": [broken._asdict() for broken in found.broken],
        "statistics": statistics.as_json(),
    }


def as_text(found: "DatasetStats", statistics: "Statistics", names: Sequence[str], total: int) -> str:
    """A table, what is broken, and the options."""
    from swin_mim.data.statistics import options_text, rounded

    columns = [rounded(each) for each in (statistics.mean, statistics.std, statistics.min, statistics.max)]
    rows = [("channel", "mean", "std", "min", "max")]
    rows += [(name, *(f"{value:.6g}" for value in each)) for name, *each in zip(names, *columns, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{found.looked_at:,} of {total:,} images, {', '.join(found.dtypes)}; {statistics.share:.2%} valid pixels"]
    for name, *values in rows:
        cells = [f"{value:>{width}}" for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *cells]))
    if found.broken:
        lines.append(f"{len(found.broken):,} broken ones left out, the first:")
        lines += [f"  {name}: {reason}" for name, reason in found.broken[:_LISTED]]
    return "\n".join([*lines, options_text(statistics.mean, statistics.std)])
