"""Pack the images of any source into shards that train fast, and that are an ordinary data set.

    swin-mim prepare photos packed                       # a folder, a table, or user/name on the Hub
    swin-mim prepare photos packed --format raw          # nothing to decompress: faster, ten times the size
    swin-mim prepare --verify packed
    swin-mim pretrain --data.source packed ...

    swin-mim prepare scenes packed --in_channels 13 --nodata 0        # images of any channels
    swin-mim prepare scenes packed --channels B02 B03 B04 B08 --mask SCL --stack "{image}_{channel}.tif"

The same command again goes on behind the last whole shard. What is packed says nothing of how: neither the number of
workers nor an interruption changes a byte. At the end it prints mean and std of the channels as options.

Size: 256 pixels on the shorter side are practically lossless for SimMIM, up to an image size of about 190: its crops
cover 67 to 100 % of an image's area, so that the smallest crop of a 4:3 photograph has a shorter side of 209 pixels,
and only in the worst case, of a square image, 181. For more than that pack larger: --size 288 never enlarges at 192
pixels, --size 320 at 224; in general 1.42 times the image size. Smaller crops (--data.crop_scale), as fine-tuning from
0.08 on, want larger ones too. Nothing is ever enlarged here.

Format: jpeg at --quality 95 compresses what was a JPEG a second time; values from 0 to 255 are off by 1 on average.
raw is uncompressed pixels as BMP: of the containers that the datasets library shows, the one that is read fastest.
Images of any channels become .npy files of their own type and units, with a channel that says which pixels are there;
gaps are never mixed into what is made smaller. A training on them needs no other option: names, means and stds are in
packed.json.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swin_mim.cli.options import add_raster_options, channels_of
from swin_mim.errors import Parser, one_line_errors

if TYPE_CHECKING:
    from swin_mim.data.sources.packed import Packed

MINIMA = {"size": 0, "quality": 1, "shard_mib": 1, "workers": 0}
MAX_QUALITY = 100
INTERRUPTED = "interrupted: the same command goes on behind the last whole shard"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="swin-mim prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="a folder of images, a folder of tables, or a Hub data set")
    add("dest", nargs="?", type=Path, metavar="DEST", help="a new folder, or one that the same command has begun")
    add("--config", help="configuration of a Hub data set that has several")
    add("--split", default="train", help="of a data set (default: train)")
    add("--column", help="of the images")
    add("--size", type=int, default=256, metavar="PX", help="of the shorter side at most; 0: as it is (default: 256)")
    add("--format", choices=("jpeg", "raw"), help="of packed RGB images (default: jpeg)")
    add("--quality", type=int, help="of JPEG, up to 100 (default: 95)")
    add("--shard-mib", type=int, default=256, metavar="N", help="MiB of images in a shard (default: 256)")
    cores = len(os.sched_getaffinity(0))
    add("--workers", type=int, default=cores, metavar="N", help="processes; 0 works in this one (default: each core)")
    add("--verify", type=Path, metavar="DEST", help="check the sha256 of every shard of a folder, and nothing else")
    add_raster_options(parser)
    options = parser.parse_args(arguments)
    options.bands = channels_of(options, parser)
    _check_format(options, parser)
    if options.verify and options.source is not None:
        parser.error(f"--verify {options.verify} checks that folder alone: leave out {options.source}")
    if not options.verify and options.dest is None:
        parser.error("two arguments are needed: SOURCE and DEST")
    for name, minimum in MINIMA.items():
        if getattr(options, name) < minimum:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least {minimum}")
    if options.quality > MAX_QUALITY:
        parser.error(f"--quality {options.quality} must be at most {MAX_QUALITY}")
    return options


def _check_format(options: argparse.Namespace, parser: Parser) -> None:
    for name, usual in (("format", "jpeg"), ("quality", 95)):
        given = getattr(options, name)
        if given is not None and options.bands is not None:
            parser.error(
                f"--{name} {given} is of RGB images, and --in_channels or --channels makes them .npy: leave it"
            )
        setattr(options, name, usual if given is None else given)


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors(INTERRUPTED):
        options = parse(arguments)
        # the imports wait until the command line is known to be right
        from swin_mim.data.packing.pack import PackOptions, pack
        from swin_mim.data.sources.packed import verify

        if options.verify:
            packed = verify(options.verify)
            print(f"{options.verify}: {packed.images} images, every shard whole ({len(packed.shards)})")
            return
        packed = pack(
            options.source,
            options.dest,
            config=options.config,
            split=options.split,
            column=options.column,
            bands=options.bands,
            stack=options.stack,
            options=PackOptions(
                size=options.size,
                format=options.format,
                quality=options.quality,
                shard_mib=options.shard_mib,
                workers=options.workers,
                progress=sys.stderr.isatty(),
            ),
        )
        print(text(packed, options.dest))


def text(packed: "Packed", folder: Path) -> str:
    """What is there, and the options to train on it."""
    from swin_mim.data.sources.packed import BROKEN

    assert packed.mean is not None
    assert packed.std is not None
    lost = f", {packed.broken} broken ones left out (see {folder / BROKEN})" if packed.broken else ""
    head = (
        f"{folder}: {packed.images} images{lost}, {packed.bytes / 1e6:.1f} MB, shards: {len(packed.shards)}, "
        f"fingerprint {packed.fingerprint}\n"
    )
    if packed.rasters is not None:
        return head + _rasters_text(packed.rasters) + f"\nto train on them:\n--data.source {folder}"
    mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (packed.mean, packed.std))
    return f"{head}to train on them:\n--data.source {folder} --data.mean {mean} --data.std {std}"


def _rasters_text(rasters: dict[str, Any]) -> str:
    from swin_mim.data.statistics import Statistics

    statistics, names = Statistics.from_json(rasters["statistics"]), ", ".join(rasters["channels"])
    kinds = ", ".join(f"{number} of {kind}" for kind, number in rasters["dtypes"].items())
    return f"channels: {names}; images: {kinds}; {statistics.share:.2%} of the pixels are valid"
