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
from tools.pretraining_study import convnet
from tools.pretraining_study.plan import (
    CONVNET,
    CONVNET_PART,
    RATES,
    STAGES,
    TEACHER,
    TEST,
    VALIDATION,
    Cell,
    Pretraining,
    Training,
    needs,
)
from tools.side_by_side import Running, seconds_file

BATCH = 64
"""Pictures of a step."""
CURVE = 3
"""Evaluations of a run with labels on validation pictures; there is none on test pictures before the end."""
RESULT, OUTPUT = "result.json", "output.txt"
QUIET = ("--train.threads", "1", "--data.workers", "0", "--log.report", "false")
COMMON = ("--train.global_batch", str(BATCH), "--train.micro_batch", str(BATCH))
WARMUP, PRETRAINING_WARMUP = 100, 600
"""Steps; the convolutional network has as much less of the first as of all steps."""
SIDE = "32"
"""Pixels, to which pictures of 28 are enlarged: four units of the mask along a side."""
FLIPS = {"clothes": "horizontal", "digits": "none"}
MIXED = ("--augment.mixup", "0.8", "--augment.cutmix", "1.0")
"""As in the fine-tuning of the SimMIM papers."""
NETWORK = (
    *("--model.name", "swin_nano", "--model.embed_dim", "48", "--model.depths", "2", "4"),
    *("--model.num_heads", "4", "8", "--model.window_size", "8", "--model.patch_size", "4", "--model.image_size", SIDE),
)
"""That of the config demo."""
RATE = {"pretraining": 400, "training": 400, "convnet": 150}
"""Pictures a second of one thread, for the ETA alone; an evaluation takes a third."""
EVALUATED = {VALIDATION: 5000, TEST: 10_000}
"""Pictures of an evaluation, likewise."""


class Folders(NamedTuple):
    """Where a study works; nothing of it is committed."""

    work: Path

    def pictures(self, images: str) -> Path:
        """A set of pictures."""
        return self.work / images

    def of(self, cell: Cell) -> Path:
        """The folder of a run; that of a pretraining is kept."""
        return self.work / ("pretrained" if isinstance(cell, Pretraining) else "cells") / cell.name

    def kept(self, cell: Pretraining) -> bool:
        """Whether the encoder of a pretraining is there."""
        return (self.of(cell) / RESULT).is_file()


def start(cell: Cell, folders: Folders) -> Running:
    """Start a run, or what is left of it."""
    folder = folders.of(cell)
    folder.mkdir(parents=True, exist_ok=True)
    return Running(cell.name, partial(_run, cell, folders), folder / OUTPUT)


def _run(cell: Cell, folders: Folders) -> int:
    if isinstance(cell, Pretraining):
        return pretrain.main(pretrain_config(pretraining_words(cell, folders)))
    config = finetune_config(training_words(cell, folders))
    if cell.arm != CONVNET:
        return finetune.main(config)
    folder = folders.of(cell)
    for path in (folder / "metrics.jsonl", seconds_file(folder / OUTPUT)):
        path.unlink(missing_ok=True)  # it has no checkpoints, and begins anew
    convnet.train(config, folder)
    return 0


def pretraining_words(cell: Pretraining, folders: Folders) -> list[str]:
    """The command line of swin-mim pretrain."""
    target, _, added = cell.arm.partition(" ")
    pictures = folders.pictures(cell.images)
    words = ["--config", "demo", *_place(cell, folders), *QUIET, *COMMON, "--train.duration", f"{cell.steps} steps"]
    words += ["--data.source", str(pictures / "train"), "--data.flips", FLIPS[cell.images]]
    words += ["--model.target", target, "--model.image_size", SIDE]
    words += ["--optim.base_lr", repr(cell.rate * 512 / BATCH), "--optim.warmup", f"{PRETRAINING_WARMUP} steps"]
    words += ["--save.every", "500 steps", "--log.pictures_every", f"{cell.steps} steps"]
    words += ["--log.evaluate_every", f"{max(1, cell.steps // 10)} steps"]
    words += ["--probe.source", str(pictures / "train"), "--probe.validation", str(pictures / "validation")]
    words += ["--probe.images", "300", "--probe.first", f"{max(1, cell.steps // 8)} steps"]
    if added == STAGES:
        words += ["--model.supervise", "stages"]
    if added == TEACHER:
        words += ["--teacher.model", str(folders.of(needs(cell)[0]))]
    return words


def training_words(cell: Training, folders: Folders) -> list[str]:
    """The command line of swin-mim finetune; for a convolutional network that of new weights."""
    pictures = folders.pictures(cell.images)
    every = cell.steps // CURVE if cell.split != TEST else 0
    words = ["--config", "finetune_demo", *_place(cell, folders), *QUIET, *COMMON]
    words += ["--data.source", str(pictures / "train"), "--data.validation", str(pictures / cell.split)]
    words += ["--data.labels_per_class", str(cell.labels), "--data.subset_seed", str(cell.seed)]
    words += ["--augment.flips", FLIPS[cell.images], *MIXED]
    warmup = max(1, WARMUP // (CONVNET_PART if cell.arm == CONVNET else 1))
    words += ["--train.duration", f"{cell.steps} steps", "--optim.warmup", f"{warmup} steps"]
    words += ["--optim.base_lr", repr(cell.rate * 512 / BATCH)]
    words += ["--save.export", "last", "--save.every", f"{cell.steps} steps", "--log.evaluate_every", f"{every} steps"]
    if cell.arm in RATES:
        return [*words, "--model.pretrained", "None", "--optim.layer_decay", "1.0", *NETWORK]
    return [*words, "--model.pretrained", str(folders.of(needs(cell)[0]))]


def _place(cell: Cell, folders: Folders) -> list[str]:
    folder = folders.of(cell).resolve()
    return ["--run.root", str(folder.parent), "--run.name", folder.name, "--run.seed", str(cell.seed)]


def result_of(cell: Cell, seconds: float, folders: Folders) -> dict[str, Any]:
    """What is kept of a run that has ended: of a pretraining beside its encoder too."""
    folder = folders.of(cell)
    if isinstance(cell, Training):
        weights = [json.loads((folders.of(need) / RESULT).read_text())["weights"] for need in needs(cell)]
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
    levels = {key: row[key] for row in rows for key in row if key.endswith("_error") or key.startswith("constant_")}
    probes = [
        (row["step"], [round(row[key], 4) for key in sorted(row) if key.startswith("linear_stage")])
        for row in rows
        if "linear_stage1" in row
    ]
    chance = [value for row in rows for key, value in sorted(row.items()) if key.startswith("random_linear_stage")]
    curve = [(row["step"], round(row["heldout_loss"], 4)) for row in rows if "heldout_loss" in row]
    return {**merged, **levels, "probes": probes, "random_probes": chance, "curve": curve}


def estimate(cell: Cell) -> float:
    """Seconds that a run should take, for the ETA."""
    if isinstance(cell, Pretraining):
        return cell.steps * BATCH / RATE["pretraining"]
    evaluations = CURVE + 1 if cell.split != TEST else 1
    images = cell.steps * BATCH + evaluations * EVALUATED[cell.split] / 3
    return images / RATE["convnet" if cell.arm == CONVNET else "training"]
