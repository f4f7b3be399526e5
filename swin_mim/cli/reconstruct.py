"""Draw what a masked image model makes of images: image | masked | prediction | composite, a PNG for each.

    swin-mim reconstruct runs/mine photo.jpg --out drawn
    swin-mim reconstruct runs/mine photos/*.jpg --out drawn --seed 3 --ratio 0.75

MODEL is a run of a pretraining, its export, or what else has SimMIM's pixel head. The mask of an image depends on the
seed and on its place among the IMAGEs alone. What is hidden, and how much, is as the run has it, unless --unit and
--ratio say otherwise. Of other channels than RGB three are shown as red, green and blue, or one as grey.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from swin_mim.cli.options import add_raster_options_beside_a_model, given_channels
from swin_mim.errors import Parser, one_line_errors


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="swin-mim reconstruct", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run, an export, a checkpoint, or user/name on the Hub")
    add("images", metavar="IMAGE", nargs="+", help="files")
    add("--out", required=True, type=Path, metavar="DIR", help="a folder for the pictures")
    add("--seed", type=int, default=0, help="of the masks (default: 0)")
    add("--ratio", type=float, metavar="R", help="share of the units to hide (default: the run's, or 0.6)")
    add("--unit", type=int, metavar="PX", help="side of what is hidden as one (default: the run's, or 32)")
    text = "those to show: three, or one (default: the visible ones by their names, or the first)"
    add("--picture_channels", "--picture-channels", nargs="+", metavar="NAME", help=text)
    text = "max pixels of an image (default: 67108864)"
    add("--max_pixels", "--max-pixels", type=int, metavar="N", help=text)
    add("--color_profile", "--color-profile", choices=("convert", "ignore"), help="of RGB images (default: convert)")
    add_raster_options_beside_a_model(parser)
    options = parser.parse_args(arguments)
    if options.ratio is not None and not 0 <= options.ratio <= 1:
        parser.error(f"--ratio {options.ratio} must be between 0 and 1")
    for name in ("unit", "max_pixels"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} {value} must be at least 1")
    if options.stack is not None:
        parser.error("--stack is of folders, and each IMAGE is one file: leave it out")
    if options.out.is_file():
        parser.error(f"--out {options.out} is a file: name a folder")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        options = parse(arguments)
        from swin_mim.data.sources.folder import printable
        from swin_mim.evaluation.outputs.drawings import Masking, draw

        settings = {"max_pixels": options.max_pixels, "color_profile": options.color_profile}
        masking = Masking(options.seed, options.ratio, options.unit)
        for path in draw(
            options.model,
            options.images,
            options.out,
            masking,
            settings | given_channels(options),
            options.picture_channels,
        ):
            print(printable(str(path)))
