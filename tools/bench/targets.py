"""What each target costs a training step, in time and memory, side by side: `python -m tools.bench.targets`.

One network in six trainings, which take turns on the same images and masks: SimMIM's pixels, normalised pixels,
histograms of gradients, heads of every stage, both, and a teacher, a Swin of the same size. Memory is what the forward
pass keeps for the backward pass, counted from its tensors, and what of weights, gradients and moments is there.
"""

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swin_mim.architecture import SwinConfig
from swin_mim.cli.options import add_json_option, text_stream, write_json
from swin_mim.errors import Parser, one_line_errors
from swin_mim.masking import BlockMasks
from swin_mim.models.saving import Preprocessing
from swin_mim.models.simmim import SimMIM
from swin_mim.models.swin import Swin
from swin_mim.models.targets.teacher import Teacher
from swin_mim.weights.heads import taught_stage
from tools.bench.memory import kept_gb
from tools.bench.peers import System
from tools.bench.report import describe, print_machine, print_table
from tools.bench.settings import ModelSettings, check
from tools.bench.timing import seconds_per_call, take_turns, times
from tools.bench.training import Contestant, enter, random_batch, train_step

RATIO, UNIT = 0.6, 32
OPTIONS: dict[str, dict[str, Any]] = {
    "pixels": {},
    "normalized": {"target": "normalized"},
    "hog": {"target": "hog"},
    "stages": {"stages": True},
    "hog, stages": {"target": "hog", "stages": True},
    "teacher": {"teacher": True},
}
MOMENTS = 16
"""Bytes of a parameter that is trained: weight, gradient and two moments in fp32."""


class Entry(NamedTuple):
    """A training that is measured."""

    contestant: Contestant
    frozen: int
    """Parameters of the teacher."""


def entry(
    config: SwinConfig,
    cells: int,
    device: torch.device,
    *,
    stages: bool = False,
    teacher: bool = False,
    target: Any = "pixels",
) -> Entry:
    """A network with new weights and its optimizer."""
    torch.manual_seed(0)
    weights = (1 / config.num_stages,) * config.num_stages if stages else ()
    width = config.stage_dim(taught_stage(config)) if teacher else 0
    model = SimMIM(config, target=target, stage_weights=weights, teacher_width=width).train().to(device)
    if not teacher:
        return Entry(enter(System(model, lambda images, mask: model(images, mask, cells).loss), "eager"), 0)
    known = Preprocessing()
    frozen = Teacher(Swin(config), width, known, known, range(config.in_channels)).to(device)

    def loss(images: Tensor, mask: Tensor) -> Tensor:
        return model(images, mask, cells, taught=frozen(images)).loss

    return Entry(enter(System(model, loss), "eager"), sum(weight.numel() for weight in frozen.parameters()))


def measured(settings: ModelSettings, device: torch.device) -> dict[str, dict[str, float]]:
    """Option -> its figures."""
    config = SwinConfig.named(settings.model, image_size=settings.image_size, window_size=settings.window_size)
    masks = BlockMasks.of(config, unit=UNIT, ratio=RATIO)
    entries = {name: entry(config, masks.cells, device, **options) for name, options in OPTIONS.items()}

    def batch(repeat: int) -> tuple[Tensor, Tensor]:
        images, _ = random_batch(config, settings.batch[0], repeat, device)
        return images, masks.draw(len(images), seed=0, start=repeat * len(images), device=device)

    def turn(contestant: Contestant, repeat: int) -> float:
        given = batch(repeat)
        return seconds_per_call(partial(train_step, contestant, given, settings.precision), 1, device)

    for each in entries.values():
        turn(each.contestant, 0)
    seconds, _ = take_turns({name: partial(turn, each.contestant) for name, each in entries.items()}, settings.repeats)
    found = {}
    for name, each in entries.items():
        own = sum(weight.numel() for weight in each.contestant.system.model.parameters())
        ratios = [one / first for one, first in zip(seconds[name], seconds["pixels"], strict=True)]
        taken = times(seconds[name])
        found[name] = {
            "seconds": taken.median,
            "spread": taken.spread,
            "ratio": statistics.median(ratios),
            "kept_gb": kept_gb(each.contestant, batch(0), settings.precision),
            "held_gb": (MOMENTS * own + 4 * each.frozen) / 1e9,
            "parameters": own,
            "frozen_parameters": each.frozen,
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the JSON."""
    with one_line_errors():
        settings = parse(arguments)
        out = text_stream(settings.json)
        device = check(settings)
        report = describe(settings, device)
        print_machine(report, out)
        shape = f"{settings.model}, {settings.image_size} px, {settings.batch[0]} images, {settings.precision}"
        print(f"targets   {shape}, units of {UNIT} px, ratio {RATIO}; {settings.repeats} turns\n", file=out, flush=True)
        found = measured(settings, device)
        first = found["pixels"]
        rows = [
            [
                name,
                f"{1000 * row['seconds']:.0f}",
                f"{row['spread']:.0%}",
                f"{row['ratio']:.3f}",
                f"{row['kept_gb']:.3f}",
                f"{row['kept_gb'] / first['kept_gb']:.3f}",
                f"{row['held_gb']:.3f}",
                f"{row['parameters'] / 1e6:.2f}",
                f"{row['frozen_parameters'] / 1e6:.2f}",
            ]
            for name, row in found.items()
        ]
        head = (
            "target",
            "ms a step",
            "spread",
            "of pixels",
            "kept GB",
            "of pixels",
            "held GB",
            "trained M",
            "frozen M",
        )
        print_table(head, rows, out)
        write_json(report | {"targets": found}, settings.json)


def parse(arguments: Sequence[str] | None = None) -> ModelSettings:
    parser = Parser(
        prog="python -m tools.bench.targets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="swin_tiny", help="a named size (default: swin_tiny)")
    add("--image-size", type=int, default=192)
    add("--window-size", type=int, default=6)
    add("--batch", type=int, default=8, help="images of a step")
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--repeats", type=int, default=9, help="turns of each")
    add("--threads", type=int)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add_json_option(parser)
    options = vars(parser.parse_args(arguments))
    return ModelSettings(**options | {"batch": (options["batch"],)})


if __name__ == "__main__":
    main()
