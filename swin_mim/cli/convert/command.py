"""Convert weights of a Swin or a SimMIM from any format to any other, and show that nothing was lost.

    swin-mim convert simmim_pretrain__swin_base__img192_window6__800ep.pth pretrained --to swin_mim
    swin-mim convert user/name model.pth --to torchvision --image-size 224 --window-size 7
    swin-mim convert runs/demo native --to transformers

SOURCE is a file (.pth, .pt, .bin or .safetensors), a folder (a run, an export or a checkpoint of ours, or a model of
timm or transformers), or a repository on the Hub. Its format is recognised by its keys. Pickles are read without
running anything that is in them. mmpretrain's files are read too. A prefix of all keys of the network is found and
taken off, and what stands beside it is left; of several networks, as student and teacher, --prefix says which.

DEST is a new or empty folder for swin_mim, timm and transformers, and a new file for microsoft and torchvision: a .pth
as they save it, or .safetensors. It is there whole or not at all.

The report names every key, and the largest difference of outputs on random images between the library that the weights
are from, ours, and the library that they are for, where these are installed. If one is more than rounding, nothing is
written.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

from swin_mim.architecture import as_pair
from swin_mim.errors import Parser, UserError, one_line_errors

LARGEST = 4096
"""Pixels, tokens or channels. Outputs are compared at the full image size, which takes memory."""
TARGETS = ("timm", "transformers", "microsoft", "torchvision", "swin_mim")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="swin-mim convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a file, a folder or user/name on the Hub")
    add("dest", metavar="DEST", type=Path, help="a new folder or file")
    add("--to", required=True, choices=TARGETS, help="for whom")
    add("--image-size", nargs="+", type=positive, metavar="N", help="pixels of the new model, one number or H W")
    add("--window-size", nargs="+", type=positive, metavar="N", help="window of the new model, one number or H W")
    add("--bias-tables", choices=("bicubic", "geometric"), default="bicubic", help="how they are resized to it")
    add("--channels", nargs="+", metavar="NAME", help="channels of the new model: red green blue nir; or their number")
    add("--encoder-only", action="store_true", help="leave head, mask token and decoder")
    add("--source-image-size", nargs="+", type=positive, metavar="N", help="what SOURCE is for, if it does not say it")
    add(
        "--source-window-size", nargs="+", type=positive, metavar="N", help="its window; of a Swin V2 it may not say it"
    )
    add("--prefix", default="", metavar="TEXT", help="of the keys of the network to take: student.backbone.")
    add(
        "--microsoft",
        metavar="PATH",
        help="a checkout of github.com/microsoft/SimMIM, to compare with their code; for "
        "Swin V2 of github.com/microsoft/Swin-Transformer",
    )
    add("--no-compare", action="store_true", help="do not compare outputs")
    add("--json", type=Path, metavar="FILE", help="write the report there too")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {LARGEST}")
    return int(text)


def size(sides: list[int] | None) -> int | tuple[int, int] | None:
    if sides is None:
        return None
    height, width = as_pair(tuple(sides))
    return height if height == width else (height, width)


def channels(names: list[str] | None) -> int | list[str] | None:
    if names is None or len(names) > 1 or not names[0].isdecimal():
        return names
    try:
        return positive(names[0])
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--channels: {error}") from None


def check(options: argparse.Namespace) -> None:
    """What can be said before torch is there, which takes seconds."""
    if options.microsoft is not None and not Path(options.microsoft, "models", "simmim.py").is_file():
        raise UserError(
            f"--microsoft {options.microsoft}: no models/simmim.py there; "
            "name the folder of a checkout of github.com/microsoft/SimMIM"
        )
    if options.json is not None and (options.json.exists() or not options.json.absolute().parent.is_dir()):
        raise UserError(f"--json {options.json}: name a new file in a folder that exists")


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors("interrupted: nothing was written"), warnings.catch_warnings():
        options = parse(arguments)
        check(options)
        # peers warn of their own old habits (timm.models.layers, meshgrid)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
        from swin_mim.cli.convert.conversion import Options, convert
        from swin_mim.cli.convert.report import as_text, write_json

        how = Options(
            image_size=size(options.image_size),
            window_size=size(options.window_size),
            bias_tables=options.bias_tables,
            channels=channels(options.channels),
            encoder_only=options.encoder_only,
            source_image_size=size(options.source_image_size),
            source_window_size=size(options.source_window_size),
            prefix=options.prefix,
            microsoft=options.microsoft,
            compare=not options.no_compare,
        )
        report = convert(options.source, options.dest, options.to, how)
        print(as_text(report))
        if options.json is not None:
            write_json(report, options.json)
