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

    swin-mim prepare scenes tiles --tile 512 --overlap 64                # scenes larger than an image: cut into tiles
    swin-mim prepare scene.tif tiles --tile 512 --nodata 0 --min-valid 0.9
    swin-mim prepare scenes tiles --tile 512 --channels B02 B03 B04 B08 --stack "{image}_{channel}.jp2"

With --tile nothing is packed: scenes become image files that every other command reads, --data.source tiles. Of TIFF,
JPEG 2000 and .npy no more is in memory at a time than a row of tiles needs; other files are read whole. Pictures of
8-bit RGB become PNG, all else TIFF of the same values, channels, nodata and place on Earth. Empty tiles are left out.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swin_mim.cli.options import add_raster_options, channels_of
from swin_mim.counts import counted
from swin_mim.errors import Parser, one_line_errors

if TYPE_CHECKING:
    from swin_mim.data.sources.packed import Packed
    from swin_mim.data.tiling.manifest import Tiles

MINIMA = {"size": 0, "quality": 1, "shard_mib": 1, "workers": 0, "tile": 1, "overlap": 0, "max_pixels": 1}
MAX_QUALITY = 100
INTERRUPTED = "interrupted: the same command goes on behind the last whole {part}"
OF_PACKING = {
    "config": None,
    "split": "train",
    "column": None,
    "size": 256,
    "shard_mib": 256,
    "color_profile": "convert",
    "verify": None,
}
"""Options that --tile does not have, and their defaults."""
OF_TILES = {"overlap": 0, "min_valid": 0.5}
"""Options that only --tile has."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="swin-mim prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="a folder of images, a folder of tables, or a Hub data set")
    add("dest", nargs="?", type=Path, metavar="DEST", help="a new folder, or one that the same command has begun")
    add("--config", help="configuration of a Hub data set that has several")
    add("--split", help="of a data set (default: train)")
    add("--column", help="of the images")
    add("--size", type=int, metavar="PX", help="of the shorter side at most; 0: as it is (default: 256)")
    add(
        "--format", choices=("jpeg", "raw"), help="of packed RGB images (default: jpeg); with --tile: jpeg, or lossless"
    )
    add("--quality", type=int, help="of JPEG, up to 100 (default: 95)")
    add("--shard-mib", type=int, metavar="N", help="MiB of images in a shard (default: 256)")
    cores = len(os.sched_getaffinity(0))
    add("--workers", type=int, default=cores, metavar="N", help="processes; 0 works in this one (default: each core)")
    text = "max pixels of an image, as data.max_pixels (default: 67108864); with --tile of a file that is read whole"
    add("--max_pixels", "--max-pixels", type=int, metavar="N", help=text)
    text = "as data.color_profile (default: convert, to sRGB); with --tile profiles are kept"
    add("--color_profile", "--color-profile", choices=("convert", "ignore"), help=text)
    add("--verify", type=Path, metavar="DEST", help="check the sha256 of every shard of a folder, and nothing else")
    _add_tile_options(parser)
    add_raster_options(parser)
    options = parser.parse_args(arguments)
    _check_mode(options, parser)
    _check_format(options, parser)
    if options.verify and options.source is not None:
        parser.error(f"--verify {options.verify} checks that folder alone: leave out {options.source}")
    if not options.verify and options.dest is None:
        parser.error("two arguments are needed: SOURCE and DEST")
    for name, minimum in MINIMA.items():
        if (value := getattr(options, name)) is not None and value < minimum:
            parser.error(f"{_option(name)} {value} must be at least {minimum}")
    if options.quality > MAX_QUALITY:
        parser.error(f"--quality {options.quality} must be at most {MAX_QUALITY}")
    if options.tile is not None and options.overlap >= options.tile:
        parser.error(f"--overlap {options.overlap} must be less than --tile {options.tile}")
    if not 0 <= options.min_valid <= 1:
        parser.error(f"--min-valid {options.min_valid} must be from 0 to 1")
    return options


def _add_tile_options(parser: argparse.ArgumentParser) -> None:
    text = "cut into tiles, as files that every command reads; SOURCE may be one file"
    add = parser.add_argument_group("scenes larger than an image", text).add_argument
    add("--tile", type=int, metavar="PX", help="of a side of a tile")
    add("--overlap", type=int, metavar="PX", help="pixels that neighbours share at least (default: 0)")
    text = "part of the pixels of a tile that have to be there, or it is left out (default: 0.5)"
    add("--min-valid", "--min_valid", type=float, metavar="PART", help=text)


def _check_mode(options: argparse.Namespace, parser: Parser) -> None:
    """Refuse options of the other way to work, and give those of this one their defaults."""
    tiles, profile = options.tile is not None, options.color_profile
    for name in OF_PACKING if tiles else OF_TILES:
        if getattr(options, name) is not None:
            way = "is of packing, and --tile cuts scenes into files" if tiles else "is of --tile PX"
            parser.error(f"{_option(name)} {getattr(options, name)} {way}: leave it out")
    for name, usual in (OF_PACKING | OF_TILES).items():
        if getattr(options, name) is None:
            setattr(options, name, usual)
    if not tiles or options.stack is not None:
        options.bands = channels_of(options, parser)
        if profile is not None and options.bands is not None:
            parser.error(f"--color_profile {profile} is of RGB images, and --in_channels or --channels ignore it")
    elif options.channels is not None or options.in_channels is not None:
        parser.error("--channels and --in_channels are of files of one channel each, with --stack: tiles keep them all")


def _option(name: str) -> str:
    """As it is written: those that are settings of a training too have their names."""
    return f"--{name if name in ('max_pixels', 'color_profile') else name.replace('_', '-')}"


def _check_format(options: argparse.Namespace, parser: Parser) -> None:
    if options.tile is not None:
        if options.format == "raw":
            parser.error("--format raw is of packing: tiles are lossless, or --format jpeg")
        if options.quality is not None and options.format is None:
            parser.error(f"--quality {options.quality} is of --format jpeg: tiles are lossless without it")
        options.quality = 95 if options.quality is None else options.quality
        return
    for name, usual in (("format", "jpeg"), ("quality", 95)):
        given = getattr(options, name)
        if given is not None and options.bands is not None:
            parser.error(
                f"--{name} {given} is of RGB images, and --in_channels or --channels makes them .npy: leave it"
            )
        setattr(options, name, usual if given is None else given)


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        options = parse(arguments)
    with one_line_errors(INTERRUPTED.format(part="shard" if options.tile is None else "tile")):
        if options.tile is not None:
            print(tiles_text(_cut(options), options.dest))
            return
        # the imports wait until the command line is known to be right
        from swin_mim.data.decoding.options import USUAL, DecodeOptions
        from swin_mim.data.packing.pack import PackOptions, pack
        from swin_mim.data.sources.packed import verify

        if options.verify:
            packed = verify(options.verify)
            whole = f"every shard whole ({len(packed.shards)})"
            print(f"{options.verify}: {counted(packed.images, 'image')}, {whole}")
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
                decoding=DecodeOptions(options.max_pixels or USUAL.max_pixels, options.color_profile),
                progress=sys.stderr.isatty(),
            ),
        )
        print(text(packed, options.dest))


def _cut(options: argparse.Namespace) -> "Tiles":
    from swin_mim.data.tiling.cut import cut
    from swin_mim.data.tiling.options import MAX_WHOLE, TileOptions

    stack = options.stack
    return cut(
        options.source,
        options.dest,
        bands=None if stack is None else options.bands,
        stack=stack,
        options=TileOptions(
            tile=options.tile,
            overlap=options.overlap,
            min_valid=options.min_valid,
            format=options.format,
            quality=options.quality,
            nodata=options.nodata,
            mask_channel=options.mask_channel,
            max_pixels=options.max_pixels or MAX_WHOLE,
            workers=options.workers,
            progress=sys.stderr.isatty(),
        ),
    )


def text(packed: "Packed", folder: Path) -> str:
    """What is there, and the options to train on it."""
    from swin_mim.data.sources.packed import BROKEN

    assert packed.mean is not None
    assert packed.std is not None
    lost = ""
    if packed.broken:
        lost = f", {counted(packed.broken, 'broken one')} left out (see {folder / BROKEN})"
    head = (
        f"{folder}: {counted(packed.images, 'image')}{lost}, {packed.bytes / 1e6:.1f} MB, "
        f"shards: {len(packed.shards)}, fingerprint {packed.fingerprint}\n"
    )
    if packed.rasters is not None:
        names = packed.rasters["channels"]
        kept = [name for name, std in zip(names, packed.std, strict=True) if std]  # a training refuses a std of 0
        chosen = (
            f" --model.in_channels {len(kept)} --data.channels {shlex.join(kept)}" if 0 < len(kept) < len(names) else ""
        )
        return head + _rasters_text(packed.rasters) + f"\nto train on them:\n--data.source {folder}{chosen}"
    mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (packed.mean, packed.std))
    return f"{head}to train on them:\n--data.source {folder} --data.mean {mean} --data.std {std}"


def _rasters_text(rasters: dict[str, Any]) -> str:
    from swin_mim.data.statistics import Statistics

    statistics, names = Statistics.from_json(rasters["statistics"]), ", ".join(rasters["channels"])
    kinds = ", ".join(f"{number} of {kind}" for kind, number in rasters["dtypes"].items())
    return f"channels: {names}; images: {kinds}; {statistics.share:.2%} of the pixels are valid"


def tiles_text(tiles: "Tiles", folder: Path) -> str:
    """What was cut, what was left out and why, and the next command."""
    settings, scenes, side = tiles.settings, tiles.scenes.values(), tiles.settings["tile"]
    kinds = ", ".join(f"{number} {suffix or 'without suffix'}" for suffix, number in sorted(tiles.suffixes().items()))
    there = f"{counted(tiles.tiles, 'tile')} of {side} x {side} pixels ({kinds}) of {counted(len(scenes), 'scene')}"
    lines = [f"{folder}: {there}"]
    if whole := sum(scene.whole for scene in scenes):
        verb, kept = ("is", "stays") if whole == 1 else ("are", "stay")
        lines.append(f"{counted(whole, 'scene')} {verb} not larger than a tile and {kept} as large")
    missing, constant = (sum(getattr(scene, name) for scene in scenes) for name in ("missing", "constant"))
    if missing:
        lines.append(f"{counted(missing, 'tile')} left out with less than {settings['min_valid']:.0%} valid pixels")
    if constant:
        lines.append(f"{counted(constant, 'tile')} left out of a single value")
    if tiles.broken:
        name, reason = next(iter(tiles.broken.items()))
        broken = f"{counted(len(tiles.broken), 'broken scene')} left out (see {folder / 'tiles.json'})"
        lines.append(f"{broken}, the first: {name}: {reason}")
    return "\n".join([*lines, "to look at them:", f"swin-mim doctor {folder}"])
