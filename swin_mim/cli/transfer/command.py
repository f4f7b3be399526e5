"""What a pretraining is worth: fine-tuning from it beside training from new weights, with few labels.

    swin-mim transfer runs/NAME --config finetune_images --out runs/transfer --labels 10 30 100 300 \\
        --steps 400 1200 4000 4000 --seeds 5 --rates 2e-3 4e-3 8e-3 -- --data.source DIR --data.validation DIR2

Every cell is one run of swin-mim finetune: some weights (each MODEL, and new ones), a number of labels for each
class, a learning rate, a seed. At a number of labels all have the same steps, augmentation and images; new weights
train without layer-wise decay. The seed decides which labels, their order and the new weights; the labels of a
smaller number are among those of a larger one.

The learning rate is chosen for new weights and for the MODELs separately, at every number of labels, by the mean
accuracy over the runs; and no image is reported under a rate that it helped to choose: of every class the first half
of the evaluation images (in their order) chooses for the second half, and the second for the first.

Beside them stands a logistic regression on the colours of the same images: where that does as well, the task shows
nothing.

OUT gets results.json, table.md and transfer.png. The same command again does what is missing; longer lists of labels,
seeds or rates reuse what is there.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swin_mim.counts import counted
from swin_mim.errors import Parser, UserError, one_line_errors

if TYPE_CHECKING:
    from swin_mim.cli.transfer.cells import Cell, Runner
    from swin_mim.cli.transfer.report import Cells
    from swin_mim.models.swin import Swin
    from swin_mim.training.config.dense.segment import SegmentConfig
    from swin_mim.training.config.finetune import FinetuneConfig

SCRATCH = "scratch"
"""The arm of new weights."""
PLAN, RESULTS, TABLE, PLOT = "plan.json", "results.json", "table.md", "transfer.png"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="swin-mim transfer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="pretrained weights; several count as runs of one pretraining")
    add("--config", required=True, metavar="YAML", help="of a fine-tuning: a file, or the name of one that is shipped")
    add("--out", type=Path, required=True, metavar="OUT", help="a folder, new or of the same comparison")
    add("--labels", nargs="+", type=whole, default=[10, 30, 100, 300], metavar="N", help="of each class; 0 is all")
    add(
        "--steps",
        nargs="+",
        type=positive,
        metavar="N",
        help="of all runs at each number of LABELS, if not the config's",
    )
    add("--seeds", type=positive, default=5, metavar="N", help="seeds 0 to N - 1 (default: 5)")
    add("--rates", nargs="+", type=rate, required=True, metavar="R", help="values of optim.base_lr to choose from")
    add("--new-rates", nargs="+", type=rate, metavar="R", help="for new weights, if they are to have other ones")
    add("--jobs", type=positive, default=1, metavar="N", help="runs at the same time, sharing the cores (default: 1)")
    add("--launch", default=sys.executable, metavar="COMMAND", help="such as 'accelerate launch --config_file YAML'")
    add("--keep", action="store_true", help="keep checkpoints and exports of the runs")
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:end])
    options.flags = given[end + 1 :]
    if options.steps and len(options.steps) != len(options.labels):
        parser.error(
            f"--steps has {counted(len(options.steps), 'value')} and --labels {len(options.labels)}: one for each is "
            "needed"
        )
    return options


def whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    if not whole(text):
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a learning rate")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors("interrupted: the same command goes on"):
        compare(parse(arguments))


def compare(options: argparse.Namespace) -> None:
    """Run what is missing and write the report."""
    flags = ["--config", options.config, *options.flags]
    settings = read_settings(flags, options.models[0])

    from swin_mim.cli.transfer.cells import Runner
    from swin_mim.cli.transfer.report import curves, plot, summary, table
    from swin_mim.data.loading.cores import share_of_cores
    from swin_mim.evaluation.outputs.parts import digest
    from swin_mim.files import replace_json
    from swin_mim.training.config.yaml_file import to_yaml

    arms = {f"model{number}": model for number, model in enumerate(options.models, start=1)}
    encoders = load_encoders(options.models)
    plan = {"settings": to_yaml(settings), "models": {arm: digest(e) for arm, e in zip(arms, encoders, strict=True)}}
    keep_to_one_plan(options.out / PLAN, plan)
    threads = share_of_cores(options.jobs)
    runner = Runner(
        options.out / "cells",
        launch=shlex.split(options.launch),
        flags=[*flags, *([] if settings.train.threads else ["--train.threads", str(threads)])],
        own_flags={arm: ["--model.pretrained", str(model)] for arm, model in arms.items()}
        | {SCRATCH: new_weights(encoders[0], settings)},
        jobs=options.jobs,
        keep=options.keep,
    )
    rates = dict.fromkeys(arms, options.rates) | {SCRATCH: options.new_rates or options.rates}
    found = run_cells(runner, cells_of(options, rates))
    entries = summary(found, options.labels)
    for entry in entries:
        # what colours tell of RGB images, nobody knows of other channels
        rgb = settings.data.channels is None
        entry["colours"] = colours(settings, encoders[0], entry["labels"], options.seeds) if rgb else None
        entry["curves"] = curves(found, entry["labels"], entry)
    given = {"models": options.models, "seeds": options.seeds, "steps": options.steps, "rates": rates}
    report = {**given, **plan, "summary": entries}
    replace_json(options.out / RESULTS, report)
    (options.out / TABLE).write_text(table(report))
    plot(report, options.out / PLOT)
    print(f"{table(report)}\nsee {options.out}: {RESULTS}, {TABLE}, {PLOT}")


def read_settings(flags: Sequence[str], model: str) -> "FinetuneConfig":
    """The settings of all runs, without weights.

    Args:
        flags: of the fine-tuning.
        model: one that it could start from, with which the settings are checked.

    Raises:
        UserError: they are wrong, or the images have several labels each.
    """
    from swin_mim.training.config.finetune import FinetuneConfig
    from swin_mim.training.config.finetune_checks import check
    from swin_mim.training.config.parsing import load_config

    settings = load_config(
        FinetuneConfig,
        [*flags, "--model.pretrained", model],
        default_config="finetune_demo",
        prog="swin-mim transfer",
        description="",
        check=check,
    )
    if settings.data.multi_label:
        raise UserError("data.multi_label is on: images with one label each can be compared so")
    return replace(settings, model=replace(settings.model, pretrained=None))


def load_encoders(models: Sequence[str]) -> "list[Swin]":
    """Raises `UserError` for weights that cannot be loaded, or architectures that differ."""
    from swin_mim.models.swin import Swin

    encoders = [Swin.from_pretrained(model, pickles=True) for model in models]
    architectures = {repr(encoder.config) for encoder in encoders}
    if len(architectures) > 1:
        raise UserError(f"the models have different architectures: {' and '.join(sorted(architectures))}")
    return encoders


def cells_of(options: argparse.Namespace, rates: Mapping[str, Sequence[float]]) -> "list[Cell]":
    """All runs of a comparison, in the order in which they start."""
    from swin_mim.cli.transfer.cells import Cell

    budgets = dict.fromkeys(zip(options.labels, options.steps or [None] * len(options.labels), strict=True))
    return [
        Cell(arm, labels, value, seed, steps)
        for seed, (labels, steps), arm in product(range(options.seeds), budgets, rates)
        for value in dict.fromkeys(rates[arm])
    ]


def run_cells(runner: "Runner", cells: "Sequence[Cell]") -> "Cells":
    """The result of every run; prints a line as each ends."""
    from swin_mim.training.run.tracking import duration_text

    found = {}
    start, ran = time.monotonic(), 0
    for cell, result, fresh in runner.results(cells):
        found[cell.arm, cell.labels, cell.rate, cell.seed] = result
        if fresh:
            ran += 1
            left = (time.monotonic() - start) / ran * (len(cells) - len(found))
            accuracy = f"accuracy {result['accuracy']:.3f}  eta {duration_text(left)}"
            print(f"[{len(found)}/{len(cells)}] {cell.name}: {accuracy}", flush=True)
    return found


def keep_to_one_plan(path: Path, plan: dict[str, Any]) -> None:
    """Write down what all cells in a folder have in common, or make sure that it still is that.

    Raises:
        UserError: the folder holds cells of other settings or other weights.
    """
    from swin_mim.files import replace_json

    if path.exists():
        saved = json.loads(path.read_text())
        for key in plan:
            if saved.get(key) != plan[key]:
                raise UserError(f"{path.parent} holds cells with other {key}, as {path} says: use another --out")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_json(path, plan)


def new_weights(encoder: "Swin", settings: "FinetuneConfig | SegmentConfig") -> list[str]:
    """Flags of the recipe with these settings for the same network with new weights.

    Raises:
        UserError: it has what the recipe has no setting for.
    """
    from swin_mim.architecture import NAMED, SwinConfig, as_pair

    config, model, data = encoder.config, settings.model, settings.data
    for key in ("mlp_ratio", "qkv_bias", *(["in_channels"] if data.channels is None else [])):
        value, usual = getattr(config, key), getattr(SwinConfig(224), key)
        if value != usual:
            raise UserError(f"the models have {key} {value}: swin-mim finetune draws new weights with {usual} only")
    values = {
        "name": next(iter(NAMED)),  # all that it stands for is given below
        "embed-dim": config.embed_dim,
        "patch-size": config.patch_size,
        "depths": config.depths,
        "num-heads": config.num_heads,
        "image-size": model.image_size or as_pair(config.image_size),
        "window-size": model.window_size or as_pair(config.window_size),
    }
    flags = ["--model.pretrained", "None", "--optim.layer-decay", "1.0"]
    for key, value in values.items():
        flags += [f"--model.{key}", *map(str, value if isinstance(value, tuple) else (value,))]
    if data.channels is not None:  # new weights know no statistics of theirs
        for key in ("mean", "std"):
            flags += [f"--data.{key}", *map(str, getattr(data, key) or getattr(encoder.preprocessing, key))]
    return flags


def colours(settings: "FinetuneConfig", encoder: "Swin", count: int, seeds: int) -> dict[str, Any]:
    """Logistic regression on colour histograms, from the labels that the run of each seed has."""
    import numpy as np
    import torch

    from swin_mim.architecture import as_pair
    from swin_mim.cli.transfer.report import statistics
    from swin_mim.data.labels import labels_per_class
    from swin_mim.data.loading.loader import LoaderOptions
    from swin_mim.evaluation.probes import colours_of, score
    from swin_mim.evaluation.reader import Reader
    from swin_mim.models.preprocessing import Preprocessor
    from swin_mim.training.labelled_images import to_train_and_evaluate
    from swin_mim.training.loop.worker_count import worker_count

    size = as_pair(settings.model.image_size or encoder.config.image_size)
    data, cpu = settings.data, torch.device("cpu")
    known_by = replace(encoder.preprocessing, interpolation=data.interpolation, crop_pct=data.crop_pct)
    preprocess = Preprocessor(known_by, cpu)
    options = LoaderOptions(workers=worker_count(data, cpu), automatic=data.workers == "auto")
    reader = Reader(preprocess, size, lambda sums: sums, lambda batches: batches, 64, options)
    training, evaluated = to_train_and_evaluate(replace(data, labels_per_class=0))
    others, truth = colours_of(evaluated, reader)
    scores = []
    for seed in range(seeds if count else 1):
        known, labels = colours_of(labels_per_class(training, count, seed) if count else training, reader)
        scores.append(score(known, labels, others, truth, len(training.names)))
    return {
        "accuracy": statistics(np.array([each.linear for each in scores])),
        "balanced_accuracy": statistics(np.array([each.linear_balanced for each in scores])),
    }
