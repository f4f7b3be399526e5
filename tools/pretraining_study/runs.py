"""One run of the study as settings of a recipe, what it does in its process, and what is kept of it."""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot  # noqa: F401  this and the next three: what every run would import, once here
import timm.data  # noqa: F401
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

from swin_mim.evaluation.outputs.parts import digest
from swin_mim.files import replace_json
from swin_mim.models.swin import Swin
from swin_mim.recipes import finetune, pretrain
from swin_mim.training.config.commands import finetune_config, pretrain_config
from swin_mim.training.run.jsonl import whole_lines
from tools.pretraining_study import convnet, plan
from tools.pretraining_study.plan import (
    CHARACTERS,
    CONVNET,
    FINE,
    NEW_FINE,
    RATES,
    STAGES,
    TEACHER,
    TEST,
    Cell,
    Pretraining,
    Results,
    Training,
    needs,
)
from tools.side_by_side import Running, seconds_file

BATCH = {CHARACTERS: 64, "tiles": 32}
"""Images of a step without labels."""
CURVE = 3
"""Evaluations of a run with labels on validation images; there is none on test images before the end."""
RESULT, OUTPUT = "result.json", "output.txt"
QUIET = ("--train.threads", "1", "--data.workers", "0", "--log.report", "false")
WARMUP = "100 steps"
"""Of all runs with labels, and of pretrainings on characters."""
NETWORK = {
    CHARACTERS: ("--model.embed_dim", "48", "--model.depths", "2", "4", "--model.image_size", "32"),
    "tiles": ("--model.embed_dim", "64", "--model.depths", "4", "2", "--model.image_size", "64"),
}
PATCH = {CHARACTERS: 4, "tiles": 8}
RATE = {"pretraining": 410, "training": 370, "convnet": 110}
"""Images a second of one thread, for the ETA alone; fine patches take 2.5 times as long, an evaluation a third."""
EVALUATED = {CHARACTERS: {"validation": 3000, TEST: 10_000}, "tiles": {"validation": 600, TEST: 600}}
"""Images of an evaluation, likewise."""


class Folders(NamedTuple):
    """Where a study works; nothing of it is committed."""

    work: Path

    @property
    def fonts(self) -> Path:
        return self.work / "fonts"

    @property
    def characters(self) -> Path:
        return self.work / "characters"

    def of(self, cell: Cell) -> Path:
        """The folder of a run; that of a pretraining is kept."""
        return self.work / ("pretrained" if isinstance(cell, Pretraining) else "cells") / cell.name

    def kept(self, cell: Pretraining) -> bool:
        """Whether the encoder of a pretraining is there."""
        return (self.of(cell) / RESULT).is_file()


def start(cell: Cell, folders: Folders, found: Results) -> Running:
    """Start a run, or what is left of it."""
    folder = folders.of(cell)
    folder.mkdir(parents=True, exist_ok=True)
    return Running(cell.name, partial(_run, cell, folders, found), folder / OUTPUT)


def _run(cell: Cell, folders: Folders, found: Results) -> int:
    if isinstance(cell, Pretraining):
        return pretrain.main(pretrain_config(pretraining_words(cell, folders, found)))
    config = finetune_config(training_words(cell, folders, found))
    if cell.arm != CONVNET:
        return finetune.main(config)
    folder = folders.of(cell)
    for path in (folder / "metrics.jsonl", seconds_file(folder / OUTPUT)):
        path.unlink(missing_ok=True)  # it has no checkpoints, and begins anew
    convnet.train(config, folder)
    return 0


def pretraining_words(cell: Pretraining, folders: Folders, found: Results) -> list[str]:
    """The command line of swin-mim pretrain."""
    target, _, added = cell.arm.partition(" ")
    words = [*_place(cell, folders), *QUIET, "--train.duration", f"{cell.steps} steps", "--model.target", target]
    words += ["--save.every", "500 steps", "--log.pictures_every", f"{cell.steps} steps"]
    words += ["--log.evaluate_every", f"{max(1, cell.steps // 10)} steps"]
    short = cell.steps == plan.SHORT_STEPS[cell.images]
    words += ["--probe.first", f"{cell.steps if short else max(1, cell.steps // 8)} steps"]
    words += ["--optim.base_lr", repr(cell.rate * 512 / BATCH[cell.images])]
    if added == STAGES:
        words += ["--model.supervise", "stages"]
    if added == TEACHER:
        words += ["--teacher.model", str(folders.of(needs(cell, found)[0]))]
    if added == FINE:
        words += ["--model.patch_size", str(PATCH[cell.images] // 2)]
    if cell.images == CHARACTERS:
        return [
            *("--config", "demo", *words, "--data.source", str(folders.characters / "unlabelled")),
            *("--data.flips", "none", "--model.image_size", "32", "--optim.warmup", WARMUP),
            *("--train.global_batch", "64", "--train.micro_batch", "64"),
            *("--probe.source", str(folders.characters / "train")),
            *("--probe.validation", str(folders.characters / "validation"), "--probe.images", "3000"),
        ]
    return [
        *("--config", "blue_marble_20min", *words),
        *("--probe.label_column", "coast", "--probe.validation_split", "validation"),
    ]


def training_words(cell: Training, folders: Folders, found: Results) -> list[str]:
    """The command line of swin-mim finetune; for a convolutional network that of new weights."""
    every = cell.steps // CURVE if cell.split != TEST else 0
    words = [*_place(cell, folders), *QUIET, "--train.duration", f"{cell.steps} steps", "--save.export", "last"]
    words += ["--save.every", "500 steps", "--log.evaluate_every", f"{every} steps"]
    words += ["--optim.warmup", WARMUP, "--optim.base_lr", repr(cell.rate * 512 / plan.BATCH)]
    words += ["--data.labels_per_class", str(cell.labels), "--data.subset_seed", str(cell.seed)]
    if cell.arm in RATES:
        words += ["--model.pretrained", "None", "--optim.layer_decay", "1.0", "--model.name", "swin_nano"]
        words += [*NETWORK[cell.images], "--model.num_heads", "4", "8", "--model.window_size", "8"]
        words += ["--model.patch_size", str(PATCH[cell.images] // (2 if cell.arm == NEW_FINE else 1))]
    else:
        words += ["--model.pretrained", str(folders.of(needs(cell, found)[0]))]
    words += plan.RECIPES.get(cell.recipe, ())
    if cell.images == CHARACTERS:
        images = folders.characters
        words += ["--data.source", str(images / "train"), "--data.validation", str(images / cell.split)]
        return ["--config", "finetune_demo", *words]
    return ["--config", "finetune_blue_marble", *words, "--data.validation_split", cell.split]


def _place(cell: Cell, folders: Folders) -> list[str]:
    folder = folders.of(cell).resolve()
    return ["--run.root", str(folder.parent), "--run.name", folder.name, "--run.seed", str(cell.seed)]


def result_of(cell: Cell, seconds: float, folders: Folders, found: Results) -> dict[str, Any]:
    """What is kept of a run that has ended: of a pretraining beside its encoder too."""
    folder = folders.of(cell)
    if isinstance(cell, Training):
        weights = [json.loads((folders.of(need) / RESULT).read_text())["weights"] for need in needs(cell, found)]
        return trained(folder) | {"seconds": seconds, "starts_from": weights}
    result = pretrained(folder) | {"seconds": seconds, "weights": digest(Swin.from_pretrained(folder))}
    replace_json(folder / RESULT, result)
    return result


def trained(folder: Path) -> dict[str, Any]:
    """The accuracies of the last step, and how it got there."""
    rows = whole_lines(folder / "metrics.jsonl")
    return {
        **json.loads((folder / "evaluation" / "metrics.json").read_text())["metrics"],
        "curve": [(row["step"], round(row["accuracy"], 4)) for row in rows if "accuracy" in row],
        "loss": next((round(row["loss"], 4) for row in reversed(rows) if "loss" in row), None),
    }


def pretrained(folder: Path) -> dict[str, Any]:
    """The held-out losses beside what interpolation has, and the linear probes of every stage over the steps."""
    rows = whole_lines(folder / "metrics.jsonl")
    merged = {key: value for row in rows for key, value in row.items() if key.startswith("heldout_")}
    first = {key: value for row in rows for key, value in row.items() if key.endswith("_error")}
    probes = [
        (row["step"], [round(row[key], 4) for key in sorted(row) if key.startswith("linear_stage")])
        for row in rows
        if "linear_stage1" in row
    ]
    chance = [value for row in rows for key, value in sorted(row.items()) if key.startswith("random_linear_stage")]
    curve = [(row["step"], round(row["heldout_loss"], 4)) for row in rows if "heldout_loss" in row]
    return {**merged, **first, "probes": probes, "random_probes": chance, "curve": curve}


def estimate(cell: Cell) -> float:
    """Seconds that a run should take, for the ETA."""
    slower = 2.5 if FINE in cell.arm.split() or cell.arm == NEW_FINE else 1
    if isinstance(cell, Pretraining):
        return slower * cell.steps * BATCH[cell.images] / RATE["pretraining"]
    evaluations = CURVE + 1 if cell.split != TEST else 1
    images = cell.steps * cell.batch + evaluations * EVALUATED[cell.images][cell.split] / 3
    return slower * images / RATE["convnet" if cell.arm == CONVNET else "training"]
