"""Measure swin_mim beside other implementations, on this machine, in one run.

    python -m tools.bench step --model swin_base --batch 128,256 --precision bf16 --modes eager,compiled
    python -m tools.bench step --model swinv2_tiny --image-size 256 --window-size 8 --memory --microsoft DIR
    python -m tools.bench dense --threads 2 --repeats 5
    python -m tools.bench attention --model swin_base --batch 128 --precision bf16
    python -m tools.bench loader --images 2000 --workers 0,1,2
    python -m tools.bench embed --model swin_tiny --images 1000 --workers 1,2
    python -m tools.bench train --steps 50 -- --config simmim_swin_tiny_192_100ep --data.source DIR
    python -m tools.bench curves --backends reference,sdpa --steps 200
    python -m tools.bench decoders --steps 300 --seeds 0,1,2
    python -m tools.bench busy --busy 0,1,2,4
    python -m tools.bench scaling --image-sizes 128,256,512

The files `step.py` and so on say what each of them measures. All measure the ceilings of the machine too: the rate of
a matrix product and that of a copy. `python -m tools.bench.gpu` runs all that a GPU machine has to show.
"""

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, get_args

import torch

from swin_mim.cli.options import add_json_option
from swin_mim.errors import Parser, one_line_errors
from swin_mim.models.blocks.window_attention import Backend
from tools.bench.settings import (
    DENSE,
    EMBEDDERS,
    LARGEST,
    LAYERS,
    LOADERS,
    NETWORKS,
    PLACES,
    SIZES,
    SYSTEMS,
    BusySettings,
    CurveSettings,
    DecoderSettings,
    DenseSettings,
    EmbedSettings,
    LoaderSettings,
    Mode,
    PeerSettings,
    Precision,
    ScalingSettings,
    StepSettings,
    TrainSettings,
)

COMMANDS: dict[str, type] = {
    "step": StepSettings,
    "dense": DenseSettings,
    "attention": PeerSettings,
    "loader": LoaderSettings,
    "embed": EmbedSettings,
    "train": TrainSettings,
    "curves": CurveSettings,
    "decoders": DecoderSettings,
    "busy": BusySettings,
    "scaling": ScalingSettings,
}
"""Each is a function in a file of its name in `commands`, which is imported when it is called: what one of them needs
may be missing where another one runs."""


def parse(arguments: Sequence[str]) -> tuple[str, Any]:
    """The command and its settings."""
    parser = Parser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_step(commands.add_parser("step", help="a SimMIM training step"))
    add_dense(commands.add_parser("dense", help="a training step of segmentation and of detection"))
    add_attention(commands.add_parser("attention", help="window attention, stage by stage"))
    add_loader(commands.add_parser("loader", help="images from JPEGs to the device, without training"))
    add_embed(commands.add_parser("embed", help="features of a folder of JPEGs, from the files to an array"))
    add_train(commands.add_parser("train", help="the real recipe, end to end, beside the bare step"))
    add_curves(commands.add_parser("curves", help="the losses of one training with several attention backends"))
    add_decoders(commands.add_parser("decoders", help="the losses of one training with small and with whole decodes"))
    add_busy(commands.add_parser("busy", help="a training on a CPU beside other work, by how its threads wait"))
    add_scaling(commands.add_parser("scaling", help="attention against the size of the image, in windows and global"))
    own, overrides = split_at_dashes(arguments)
    options = vars(parser.parse_args(own))
    command = options.pop("command")
    if command == "train":
        options["overrides"] = tuple(overrides)
    elif overrides:
        parser.error(f"{command} takes nothing after --")
    return command, COMMANDS[command](**options)


def split_at_dashes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    arguments = list(arguments)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def add_step(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model(parser, batch="8")
    add_peers(parser)
    add("--modes", type=modes, default=("eager",), help="comma-separated, of eager and compiled: ours compiled block "
        "by block as in training, others each as a whole")  # fmt: skip
    add("--attention", choices=get_args(Backend), default="auto", help="backend of ours; peers run as shipped")
    add("--activation-checkpointing", action="store_true", help="in every system, as each implements it")
    add("--memory", action="store_true", help="on a CPU: the peak memory of each system, in a process of its own; "
        "on a GPU it is always there")  # fmt: skip
    add("--breakdown", action=argparse.BooleanOptionalAction, default=False, help="where a step of ours goes, part by "
        "part, at the first batch size")  # fmt: skip
    add("--places", type=names_of(PLACES), default=PLACES, help="of the breakdown, among " + ",".join(PLACES))
    add_common(parser, repeats=7)


def add_dense(parser: argparse.ArgumentParser) -> None:
    add_model(parser, batch="2")
    add = parser.add_argument
    add("--tasks", type=names_of(DENSE), default=DENSE, help="comma-separated, of " + ",".join(DENSE))
    add("--warmup", type=int, default=1, help="untimed steps of each system, before all turns")
    add("--steps", type=int, default=1, help="steps in a turn")
    parser.set_defaults(image_size=256, window_size=7)
    add_common(parser, repeats=5)


def add_attention(parser: argparse.ArgumentParser) -> None:
    add_model(parser, batch="8")
    add_peers(parser)
    add_common(parser, repeats=7)


def add_loader(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--source", metavar="DIR", help="a folder of JPEGs in class folders; default: crops of Blue Marble")
    add(
        "--images",
        type=int,
        default=2000,
        help="images of one turn, of the folder that is made, and at most of what is packed; many times batch x "
        "workers",
    )
    add("--sizes", type=pixel_sizes, default=SIZES, help="of the JPEGs that are made, in turn: 500x375,1600x1200")
    add("--image-size", type=int, default=192, help="pixels of the crops")
    add("--batch", type=int, default=32, help="images of a batch")
    add("--workers", type=numbers, default=(0, 1, 2), help="comma-separated; 0 decodes in the process itself")
    add("--systems", type=names_of(LOADERS), default=LOADERS, help="among " + ",".join(LOADERS))
    add_common(parser, repeats=3)


def add_embed(parser: argparse.ArgumentParser) -> None:
    add_model(parser, batch="64")
    add = parser.add_argument
    add("--source", metavar="DIR", help="a folder of JPEGs; default: crops of Blue Marble")
    add("--images", type=int, default=1000, help="of the folder that is made")
    add("--sizes", type=pixel_sizes, default=SIZES, help="of the JPEGs that are made, in turn: 500x375,1600x1200")
    add("--workers", type=numbers, default=(1,), help="comma-separated; 0 decodes in the process itself")
    add("--systems", type=names_of(EMBEDDERS), default=EMBEDDERS, help="among " + ",".join(EMBEDDERS))
    add_common(parser, repeats=5)


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "After -- come the settings of swin-mim pretrain."
    parser.add_argument("--steps", type=int, default=20, help="steps that count")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them, which do not")
    parser.add_argument("--images", type=int, help="make so many JPEGs of 500 x 375 px and train on them; default: the "
        "images that the config names")  # fmt: skip
    add_common(parser, repeats=3)


def add_curves(parser: argparse.ArgumentParser) -> None:
    add_model(parser, batch="8")
    parser.add_argument("--backends", type=names_of(get_args(Backend)), default=("reference", "sdpa"),
        help="comma-separated; the others are compared to the first")  # fmt: skip
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    add_common(parser, repeats=1)


def add_decoders(parser: argparse.ArgumentParser) -> None:
    add_model(parser, batch="8")
    add = parser.add_argument
    add("--steps", type=int, default=300, help="of each training")
    add("--seeds", type=numbers, default=(0, 1, 2), help="comma-separated; each trains once with each decoder")
    add("--images", type=int, default=320, help="JPEGs that are made; a tenth of them is held out")
    add("--workers", type=int, default=1, help="processes that decode")
    parser.set_defaults(model="swin_nano", image_size=64, window_size=4)
    add_common(parser, repeats=1)


def add_busy(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--busy", type=numbers, default=(0, 1, 2, 4), help="comma-separated numbers of busy processes")
    add("--seconds", type=float, default=4, help="of each measurement")
    add_common(parser, repeats=3)


def add_scaling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="swin_tiny", help="a named size, whose first stage gives the width of the layers")
    add("--image-sizes", type=numbers, default=(128, 192, 256, 320, 384, 512, 768, 1024),
        help="pixels, comma-separated multiples of the patch times the window")  # fmt: skip
    add("--window-size", type=int, default=8, help="tokens along the side of a window")
    add("--precision", choices=get_args(Precision), default="fp32", help="bf16: autocast")
    known = (*LAYERS, *NETWORKS)
    add("--series", type=names_of(known), default=known, help="comma-separated, of " + ",".join(known))
    add("--max-seconds", type=float, default=60, help="of a forward and backward: where it takes longer a series stops")
    add("--max-gb", type=float, default=6, help="of a process: where it takes more a series stops")
    add_common(parser, repeats=3)


def add_model(parser: argparse.ArgumentParser, *, batch: str) -> None:
    add = parser.add_argument
    add("--model", default="swin_tiny", help="a named size")
    add("--image-size", type=int, default=192, help="pixels, a multiple of 32")
    add("--window-size", type=int, default=6, help="tokens along the side of a window")
    add("--batch", type=numbers, default=numbers(batch), help="images per step; several, comma-separated, in turn")
    add("--precision", choices=get_args(Precision), default="fp32", help="bf16: autocast")


def add_peers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--warmup", type=int, default=2, help="untimed steps of each system, before all turns")
    add("--steps", type=int, help="steps in a turn; default: 10 on a GPU, 1 on a CPU")
    add("--systems", type=names_of(SYSTEMS), default=SYSTEMS, help="among " + ",".join(SYSTEMS))
    add("--microsoft", metavar="PATH", help="a checkout of github.com/microsoft/SimMIM; for "
        "Swin V2 of github.com/microsoft/Swin-Transformer")  # fmt: skip
    add("--ceilings", action=argparse.BooleanOptionalAction, default=True, help="measure what the machine reaches")


def add_common(parser: argparse.ArgumentParser, *, repeats: int) -> None:
    add = parser.add_argument
    add("--repeats", type=int, default=repeats, help="turns of each system")
    add("--threads", type=int, help="threads of torch on a CPU; default: torch's choice")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add_json_option(parser)


def numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 128,256") from None


def pixel_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """(W, H), ..."""
    pairs = [re.fullmatch(r"(\d+)x(\d+)", part) for part in text.split(",")]
    sizes = tuple((int(pair[1]), int(pair[2])) for pair in pairs if pair)
    if len(sizes) < len(pairs) or not all(1 <= w <= LARGEST[0] and 1 <= h <= LARGEST[1] for w, h in sizes):
        largest = "x".join(map(str, LARGEST))
        raise argparse.ArgumentTypeError(f"{text!r} is no list of sizes such as 500x375, up to {largest}")
    return sizes


def names_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A list of names in the order of `known`, as the others are compared to the first."""

    def read(text: str) -> tuple[str, ...]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return tuple(name for name in known if name in names)

    return read


modes = names_of(get_args(Mode))


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors(), warnings.catch_warnings():
        # peers warn of their own old habits (timm.models.layers, meshgrid, use_reentrant)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
        command, settings = parse(arguments)
        call = getattr(import_module(f"tools.bench.commands.{command}"), command)
        # its processes for the memory of each system have the same command line
        call(settings, arguments) if command == "step" else call(settings)


if __name__ == "__main__":
    main()
