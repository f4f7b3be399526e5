"""The console command `swin-mim`: finds the subcommand, imports nothing else, and runs it."""

import difflib
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from swin_mim.errors import MISTAKE


class Command(NamedTuple):
    """A subcommand: a function that takes the arguments behind its name and returns an exit code, or None for 0."""

    module: str
    line: str
    function: str = "main"


COMMANDS = {
    "doctor": Command("swin_mim.cli.doctor.command", "look at images, settings and machine before a run"),
    "prepare": Command("swin_mim.cli.prepare", "pack images of any source into shards that train fast"),
    "stats": Command("swin_mim.cli.stats", "mean, std and range of each channel of a source"),
    "pretrain": Command("swin_mim.cli.recipes", "pretrain a Swin with SimMIM on unlabelled images", "pretrain"),
    "reconstruct": Command("swin_mim.cli.reconstruct", "draw what a masked image model makes of images"),
    "probe": Command("swin_mim.cli.probe", "k-NN and linear probes of an encoder on labelled images"),
    "finetune": Command("swin_mim.cli.recipes", "fine-tune a classifier, or measure one", "finetune"),
    "segment": Command("swin_mim.cli.recipes", "train a segmenter of pixels, or measure one", "segment"),
    "detect": Command("swin_mim.cli.recipes", "train a detector of objects, or measure one", "detect"),
    "transfer": Command("swin_mim.cli.transfer.command", "fine-tuning from a pretraining beside new weights"),
    "embed": Command("swin_mim.cli.embed", "features of every image of a source, in a file"),
    "predict": Command("swin_mim.cli.predict", "classes, masks or objects of every image of a source, in files"),
    "export": Command("swin_mim.cli.export.command", "a model as ONNX, torch.export or TorchScript file"),
    "convert": Command("swin_mim.cli.convert.command", "weights of any library's format to any other"),
    "report": Command("swin_mim.cli.report", "show runs as one page, also while they go on"),
    "push": Command("swin_mim.cli.push", "publish a model on the Hugging Face Hub"),
    "replay": Command("swin_mim.cli.replay", "do a step of a run again and find where it stops being finite"),
    "copy": Command("swin_mim.cli.copy", "get a recipe, a config or a launch file to change"),
}
"""In the order of the work."""

_RECIPES = ("pretrain", "finetune", "segment", "detect")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand -> exit code. Without arguments it lists them."""
    given = sys.argv[1:] if arguments is None else arguments
    name, *rest = given or ["--help"]
    if name in ("-h", "--help"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
        print(usage())
        return 0
    if name == "--version":
        from swin_mim import __version__

        print(f"swin-mim {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: {_unknown(name)}", file=sys.stderr)
        return MISTAKE
    command = COMMANDS[name]
    if name not in _RECIPES:  # which have their own way to stop
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's way to say Ctrl-C
    run: Callable[[Sequence[str]], int | None] = getattr(import_module(command.module), command.function)
    return run(rest) or 0


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.line}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: swin-mim COMMAND [...]",
            "",
            "Pretrain Swin Transformers with SimMIM on your own images, and use the result.",
            "",
            *lines,
            "",
            "swin-mim COMMAND --help tells what it takes. A recipe on several GPUs:",
            "accelerate launch -m swin_mim.recipes.pretrain --config NAME --data.source DIR",
        ]
    )


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    way_out = f"did you mean {near[0]}?" if near else "swin-mim --help lists the commands"
    return f"swin-mim has no command {name!r}: {way_out}"
