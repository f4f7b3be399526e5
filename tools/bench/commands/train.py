"""The real recipe end to end, beside the bare step of the same model: `tools.bench train`.

The recipe runs in a process of its own for a few steps, without evaluations, and its metrics.jsonl says how
fast it was. The bare step has the same model, micro batch, precision and accumulation, and images that are already
there: what the recipe is slower is the data and the engine. The two take turns.
"""

import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch

from swin_mim.cli.options import text_stream, write_json
from swin_mim.errors import UserError
from swin_mim.models.compilation import is_compiled
from swin_mim.models.simmim import SimMIM
from swin_mim.training.config.commands import pretrain_config
from swin_mim.training.config.common_checks import accumulation
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import swin_config
from swin_mim.training.run.tracking import read_metrics
from tools.bench.peers import System
from tools.bench.report import describe, number, print_machine, print_table
from tools.bench.settings import SIZES, TrainSettings, check
from tools.bench.timing import free, seconds_per_call, take_turns, times
from tools.bench.training import enter, random_batch, train_step
from tools.clone import environment

RECIPE = "swin_mim.recipes.pretrain"
IMAGES = "images"
"""Folder of the images that are made."""


def train(settings: TrainSettings) -> None:
    """Measure, print the table and write the JSON."""
    out = text_stream(settings.json)
    device = check(settings)
    if not settings.warmup:
        raise UserError("--warmup 0 would time the start of the workers: give at least --warmup 1")
    with tempfile.TemporaryDirectory() as root:
        arguments = recipe_arguments(settings, Path(root))
        config = pretrain_config(arguments)
        source = made(settings.images, Path(root)) if settings.images else config.data.source
        report = describe(settings, device) | {"recipe": list(settings.overrides), "source": source}
        print_machine(report, out)
        print(f"train     {heading(config, settings)}\n", file=out, flush=True)
        lines: list[list[dict[str, float]]] = []
        turns = {
            "recipe": partial(recipe_turn, arguments, config, settings, device, Path(root), lines),
            "bare step": partial(bare_turn, config, settings, device),
        }
        seconds, failed = take_turns(turns, settings.repeats)
    report |= {
        "results": results(seconds, lines, config.train.global_batch),
        "not_measured": {name: f.reason for name, f in failed.items()},
    }
    print_results(report, out)
    write_json(report, settings.json)


def recipe_arguments(settings: TrainSettings, root: Path) -> list[str]:
    every = f"{math.gcd(settings.warmup, settings.steps)} steps"
    total = f"{settings.warmup + settings.steps} steps"
    own = {"run.root": str(root), "train.duration": total, "log.every": every, "save.every": total}
    own |= {"optim.warmup": "0 steps", "log.evaluate_every": "0 steps", "log.pictures_every": "0 steps"}
    own |= {"train.threads": str(settings.threads)} if settings.threads else {}
    own |= {"data.source": str(root / IMAGES)} if settings.images else {}
    return [*settings.overrides, *(part for name, value in own.items() for part in (f"--{name}", value))]


def made(count: int, root: Path) -> str:
    """Make JPEGs of ImageNet's usual size to train on; says what they are."""
    from tools.bench.images import make_images, picture_text, sizes_text  # here: a config's own images need no Pillow

    make_images(root / IMAGES, count, SIZES[:1])
    return f"{count} crops of {picture_text()}, {sizes_text(SIZES[:1])}"


def heading(config: PretrainConfig, settings: TrainSettings) -> str:
    train = config.train
    return (
        f"{config.model.name}, {config.model.image_size} px, {config.data.source}, {config.data.workers} workers, "
        f"{settings.steps} steps of {train.global_batch} in micro batches of {train.micro_batch}, {settings.repeats} "
        "repeats"
    )


# The two that take turns: each gives seconds per step.


def recipe_turn(
    arguments: Sequence[str],
    config: PretrainConfig,
    settings: TrainSettings,
    device: torch.device,
    root: Path,
    lines: list[list[dict[str, float]]],
    repeat: int,
) -> float:
    """Notes the lines of metrics that count in `lines`."""
    name = f"bench{repeat}"
    variables = {"ACCELERATE_USE_CPU": "true"} if device.type == "cpu" else {}
    command = [sys.executable, "-m", RECIPE, *arguments, "--run.name", name]
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{RECIPE} failed: {last.removeprefix('error: ')}")
    timed = [row for row in read_metrics(root / name) if "images_per_second" in row and row["step"] > settings.warmup]
    lines.append(timed)
    return sum(config.train.global_batch / row["images_per_second"] for row in timed) / len(timed)


def bare_turn(config: PretrainConfig, settings: TrainSettings, device: torch.device, repeat: int) -> float:
    """Seconds per step of a model that is made for this turn: the recipe has the machine for itself when it runs."""
    train, geometry = config.train, swin_config(config.model)
    model = SimMIM(
        geometry,
        target=config.model.target,
        attention=train.attention,
        activation_checkpointing=train.activation_checkpointing,
    )
    system = System(model.to(device).train(), lambda images, mask: model(images, mask).loss)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision(config, device), torch.float32)
    contestant = enter(system, "compiled" if is_compiled(train.compile, model.encoder, device, dtype) else "eager")
    batch = random_batch(geometry, train.micro_batch, repeat, device)
    run = partial(train_step, contestant, batch, precision(config, device), accumulation=accumulation(train, 1))
    for _ in range(settings.warmup):
        run()
    seconds = seconds_per_call(run, settings.steps, device)
    free()
    return seconds


def precision(config: PretrainConfig, device: torch.device) -> str:
    """What the recipe makes of "auto"."""
    if config.train.precision != "auto":
        return config.train.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


# The report.


def results(
    seconds: Mapping[str, list[float]], lines: Sequence[Sequence[Mapping[str, float]]], global_batch: int
) -> dict[str, dict[str, Any]]:
    """`lines` are those of metrics.jsonl that count, of every repeat; their intervals are of equally many steps."""
    timed = {name: times(values) for name, values in seconds.items()}
    bare = timed["bare step"].median if "bare step" in timed else None
    found: dict[str, dict[str, Any]] = {
        name: {
            "images_per_second": global_batch / seen.median,
            "of_bare_step": bare and bare / seen.median,
            "seconds_per_step": seen.median,
            "seconds": seen.seconds,
            "spread": seen.spread,
        }
        for name, seen in timed.items()
    }
    rows = [row for repeat in lines for row in repeat]
    if "recipe" in found:
        spent = [1 / row["images_per_second"] for row in rows]
        waits = sum(row["data_wait"] * time for row, time in zip(rows, spent, strict=True))
        found["recipe"] |= {"data_wait": waits / sum(spent), "memory_gb": max(row["memory_gb"] for row in rows)}
    return found


COLUMNS = ("train", "images/s", "of bare step", "s/step", "spread", "data wait", "memory GB")


def print_results(report: Mapping[str, Any], out: TextIO) -> None:
    rows: list[list[str]] = [
        [
            name,
            f"{entry['images_per_second']:.1f}",
            number(entry["of_bare_step"], ".2f"),
            f"{entry['seconds_per_step']:.4f}",
            f"{entry['spread']:.0%}",
            number(entry.get("data_wait"), ".1%"),
            number(entry.get("memory_gb"), ".2f"),
        ]
        for name, entry in report["results"].items()
    ]
    rows += [[name, f"not measured: {reason}"] for name, reason in report["not_measured"].items()]
    print_table(COLUMNS, rows, out)
