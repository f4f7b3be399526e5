"""What a pretraining is worth for segmentation with few labelled tiles: the runs of docs/dense-protocol.md.

    python -m tools.dense_study runs/dense_pretrained --out runs/dense_study

Every cell is one run of swin-mim segment, one after the other, from the pretrained weights or from new ones: first
those that choose the rates, then those that decide the number of steps, both on validation tiles, then those on test
tiles. OUT gets results.jsonl with a line for each run, table.md and dense-transfer.png. The same command again does
what is missing; --report makes the table and the picture of what is there.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch._dynamo  # the initialisation of a head imports it: once here, not in every run

from swin_mim.cli.transfer.command import keep_to_one_plan, new_weights
from swin_mim.cli.transfer.report import COLOURS, NAMES, PRETRAINED, SCRATCH, statistics
from swin_mim.data.blue_marble.tiles import climate_zones, composite
from swin_mim.errors import Parser, UserError, one_line_errors
from swin_mim.evaluation.outputs.parts import digest
from swin_mim.models.swin import Swin
from swin_mim.recipes import segment as recipe
from swin_mim.training.config.commands import segment_config
from swin_mim.training.config.yaml_file import to_yaml
from swin_mim.training.run.jsonl import whole_lines
from tools.side_by_side import Running, append_result

ARMS = (SCRATCH, PRETRAINED)
STEPS = {10: 400, 30: 1200, 100: 2000}
"""Base steps by the number of labelled tiles."""
RATES = {SCRATCH: (5e-4, 1.5e-3, 4.5e-3), PRETRAINED: (1e-3, 3e-3, 9e-3)}
"""Of the optimizer, at BATCH tiles a step; where an end is best, one a factor of 3 beyond it is tried too."""
BATCH, SEEDS, EVERY = 8, 5, 200
"""Tiles a step; seeds of the measurement; steps between two evaluations on validation tiles."""
MIN_GAIN, CONVERGED, LONGEST = 0.01, (0, 1), 4
"""Mean IoU of these seeds that twice the steps have to gain in an arm to be taken; the most times the base steps."""
SETTINGS = (
    *("--config", "segment_demo", "--train.threads", "1", "--save.export", "last", "--log.pictures", "0"),
    *("--train.global_batch", str(BATCH), "--train.micro_batch", str(BATCH)),
)
RESULTS, TABLE, PLOT = "results.jsonl", "table.md", "dense-transfer.png"


class Cell(NamedTuple):
    """One run."""

    arm: str
    tiles: int
    rate: float
    seed: int
    steps: int
    split: str
    """validation or test."""

    @property
    def name(self) -> str:
        return f"{self.arm}_tiles{self.tiles}_rate{self.rate:g}_seed{self.seed}_steps{self.steps}_{self.split}"


Result = Mapping[str, Any]
Results = Mapping[Cell, Result]
Run = Callable[[Cell], Result]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m tools.dense_study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="pretrained weights")
    parser.add_argument("--out", type=Path, required=True, help="a folder, new or of the same study")
    parser.add_argument("--report", action="store_true", help="run nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors("interrupted: the same command goes on"):
        options = parse(arguments)
        if not options.report:
            study(options.model, options.out)
        report(read(options.out / RESULTS), options.out)


def study(model: str, out: Path) -> None:
    """Do the runs that are missing.

    Raises:
        UserError: a run failed, or the folder is of another study.
    """
    torch.set_num_threads(1)  # a forked process would wait for ever for the threads that its parent had
    encoder = Swin.from_pretrained(model)
    pretrained = ("--model.pretrained", str(Path(model).resolve()))
    settings = segment_config([*SETTINGS, *pretrained, "--run.name", "study"])
    alike = replace(settings, model=replace(settings.model, pretrained=None))
    keep_to_one_plan(out / "plan.json", {"settings": to_yaml(alike), "weights": digest(encoder)})
    flags = {SCRATCH: tuple(new_weights(encoder, settings)), PRETRAINED: pretrained}
    found = dict(read(out / RESULTS))
    composite(), climate_zones()  # decoded once, for all runs

    def run(cell: Cell) -> Result:
        if cell not in found:
            found[cell] = run_cell(cell, flags[cell.arm], out)
            print(f"{cell.name}: mean IoU {found[cell]['mean_iou']:.3f}", flush=True)
        return found[cell]

    rates = {(arm, tiles): chosen_rate(arm, tiles, run) for tiles, arm in product(STEPS, ARMS)}
    steps = {tiles: chosen_steps(tiles, {arm: rates[arm, tiles] for arm in ARMS}, run) for tiles in STEPS}
    print(f"steps {steps}, rates {rates}", flush=True)
    for cell in measured_cells(steps, rates):
        run(cell)


def chosen_rate(arm: str, tiles: int, run: Run) -> float:
    """The best one on the validation tiles; one is added beyond an end as long as that end is best."""
    found: dict[float, float] = {}
    asked = list(RATES[arm])
    while True:
        for rate in asked:
            found[rate] = run(Cell(arm, tiles, rate, 0, STEPS[tiles], "validation"))["mean_iou"]
        best = max(found, key=found.__getitem__)
        beyond = {min(found): best / 3, max(found): best * 3}
        if best not in beyond:
            return best
        asked = [float(f"{beyond[best]:.6g}")]


def chosen_steps(tiles: int, rates: Mapping[str, float], run: Run) -> int:
    """The base steps, doubled as long as either arm gains by it on the validation tiles, in the mean of some seeds."""

    def score(arm: str, steps: int) -> float:
        cells = (Cell(arm, tiles, rates[arm], seed, steps, "validation") for seed in CONVERGED)
        return float(np.mean([run(cell)["mean_iou"] for cell in cells]))

    steps = STEPS[tiles]
    while steps < LONGEST * STEPS[tiles] and any(score(arm, 2 * steps) - score(arm, steps) > MIN_GAIN for arm in ARMS):
        steps *= 2
    return steps


def measured_cells(steps: Mapping[int, int], rates: Mapping[tuple[str, int], float]) -> list[Cell]:
    """The runs on test tiles in order: the largest number of tiles last, both arms of a seed one after the other."""
    return [
        Cell(arm, tiles, rates[arm, tiles], seed, steps[tiles], "test")
        for some in (sorted(STEPS)[:-1], sorted(STEPS)[-1:])
        for seed, tiles, arm in product(range(SEEDS), some, ARMS)
    ]


def run_cell(cell: Cell, flags: Sequence[str], out: Path) -> Result:
    """Run a cell, or what is left of it, add its line to the results, and remove its folder.

    Raises:
        UserError: it failed.
    """
    folder = out / "runs" / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    words = [*SETTINGS, *flags]
    words += ["--run.root", str(folder.parent.resolve()), "--run.name", cell.name, "--run.seed", str(cell.seed)]
    words += ["--data.images", str(cell.tiles), "--data.subset_seed", str(cell.seed)]
    words += ["--data.validation_split", cell.split, "--optim.base_lr", repr(cell.rate * 512 / BATCH)]
    words += ["--train.duration", f"{cell.steps} steps", "--save.every", f"{cell.steps} steps"]
    # nothing is looked at on test tiles before the end
    words += ["--log.evaluate_every", f"{EVERY if cell.split == 'validation' else 0} steps"]
    seconds = Running(cell.name, partial(segment, words), folder / "output.txt").conclude()
    result = result_of(folder) | {"seconds": seconds}
    append_result(out / RESULTS, cell._asdict() | result)
    shutil.rmtree(folder)
    return result


def segment(words: Sequence[str]) -> int:
    return recipe.main(segment_config(words))


def result_of(folder: Path) -> dict[str, Any]:
    """What a finished run found at its last step, and its mean IoU over the steps."""
    found = json.loads((folder / "evaluation" / "metrics.json").read_text())
    rows = whole_lines(folder / "metrics.jsonl")
    return found["metrics"] | {
        "class_iou": {each["name"]: each.get("iou") for each in found["classes"]},
        "curve": [(row["step"], row["mean_iou"]) for row in rows if "mean_iou" in row],
        "losses": [(row["step"], row["loss"]) for row in rows if "loss" in row],
    }


def read(path: Path) -> dict[Cell, Result]:
    """The results that are there."""
    return {Cell(*(row[field] for field in Cell._fields)): row for row in whole_lines(path)}


# The report.


def report(results: Results, out: Path) -> None:
    """Write table and picture of what is there. Raises `UserError` if nothing is."""
    measured = summary(results)
    if not measured:
        raise UserError(f"{out} has no run on test tiles in both arms: run the study first, without --report")
    text = f"{validation_table(results)}\n{table(measured)}\n{class_table(results)}"
    (out / TABLE).write_text(text)
    plot(measured, results, out / PLOT)
    print(f"{text}\nsee {out}: {RESULTS}, {TABLE}, {PLOT}")


def summary(results: Results) -> list[dict[str, Any]]:
    """Of each number of tiles the seeds that both arms have on test tiles: mean IoU, accuracy, differences."""
    entries = []
    for tiles in STEPS:
        of_arm = {
            arm: {cell.seed: (cell, results[cell]) for cell in results if cell[:2] == (arm, tiles) and is_test(cell)}
            for arm in ARMS
        }
        seeds = sorted(of_arm[SCRATCH].keys() & of_arm[PRETRAINED].keys())
        if not seeds:
            continue
        entry: dict[str, Any] = {"tiles": tiles, "seeds": seeds, "steps": of_arm[SCRATCH][seeds[0]][0].steps}
        for arm in ARMS:
            rows = [of_arm[arm][seed][1] for seed in seeds]
            entry[arm] = {
                key: statistics(np.array([row[key] for row in rows])) for key in ("mean_iou", "pixel_accuracy")
            } | {"rate": of_arm[arm][seeds[0]][0].rate}
        ious = (np.array(entry[arm]["mean_iou"]["values"]) for arm in (PRETRAINED, SCRATCH))
        entry["gain"] = statistics(np.subtract(*ious))
        entries.append(entry)
    return entries


def is_test(cell: Cell) -> bool:
    return cell.split == "test"


def table(measured: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean IoU in percent, mean ± std over the seeds, in brackets the pixel accuracy."""
    lines = [
        "| labelled tiles | steps | new weights | pretrained | gain, points | gain of each seed |",
        "|---|---|---|---|---|---|",
    ]
    for entry in measured:
        gain = entry["gain"]
        cells = [
            *(str(entry["tiles"]), str(entry["steps"])),
            *(scores(entry[arm]) for arm in ARMS),
            f"{100 * gain['mean']:+.1f} ± {100 * gain['std']:.1f}",
            ", ".join(f"{100 * value:+.1f}" for value in gain["values"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def scores(arm: Mapping[str, Any]) -> str:
    iou, accuracy = arm["mean_iou"], arm["pixel_accuracy"]
    return f"{100 * iou['mean']:.1f} ± {100 * iou['std']:.1f} ({100 * accuracy['mean']:.1f})"


def validation_table(results: Results) -> str:
    """Markdown: mean IoU in percent of the runs on validation tiles."""
    lines = ["| arm | labelled tiles | steps | rate: mean IoU of seeds 0, 1 |", "|---|---|---|---|"]
    cells = sorted(cell for cell in results if not is_test(cell))
    for arm, tiles, steps in sorted({(cell.arm, cell.tiles, cell.steps) for cell in cells}, reverse=True):
        found = [cell for cell in cells if (cell.arm, cell.tiles, cell.steps) == (arm, tiles, steps)]
        ious = {
            rate: [results[cell]["mean_iou"] for cell in found if cell.rate == rate]
            for rate in sorted({cell.rate for cell in found})
        }
        words = "; ".join(f"{rate:g}: {', '.join(f'{100 * iou:.1f}' for iou in each)}" for rate, each in ious.items())
        lines.append(f"| {NAMES[arm]} | {tiles} | {steps} | {words} |")
    return "\n".join(lines) + "\n"


def class_table(results: Results) -> str:
    """Markdown: IoU in percent of each class on test tiles, the mean over the seeds that have one."""
    tested = [cell for cell in results if is_test(cell)]
    names = list(results[tested[0]]["class_iou"])
    lines = [f"| labelled tiles | arm | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for tiles, arm in product(STEPS, ARMS):
        found = [results[cell]["class_iou"] for cell in tested if cell[:2] == (arm, tiles)]
        if found:
            means = (_mean_percent([each[name] for each in found]) for name in names)
            lines.append(f"| {tiles} | {NAMES[arm]} | {' | '.join(means)} |")
    return "\n".join(lines) + "\n"


def _mean_percent(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * np.mean(known):.1f}" if known else "–"


def plot(measured: Sequence[Mapping[str, Any]], results: Results, path: Path) -> None:
    """Mean IoU on test tiles with every seed as a point; and on validation tiles over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained", width_ratios=[1, 1.1])
    plot_scores(left, measured)
    plot_curves(right, results)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_scores(axes: Any, measured: Sequence[Mapping[str, Any]]) -> None:
    for arm, shift in ((SCRATCH, -0.08), (PRETRAINED, 0.08)):
        places = np.arange(len(measured)) + shift
        ious = [entry[arm]["mean_iou"] for entry in measured]
        axes.plot(places, [iou["mean"] for iou in ious], "_-", color=COLOURS[arm], label=NAMES[arm], markersize=16)
        for place, iou in zip(places, ious, strict=True):
            axes.plot([place] * len(iou["values"]), iou["values"], "o", color=COLOURS[arm], alpha=0.5, markersize=4)
    for number, entry in enumerate(measured):  # the two of a seed have the same tiles
        for pair in zip(*(entry[arm]["mean_iou"]["values"] for arm in ARMS), strict=True):
            axes.plot([number - 0.08, number + 0.08], pair, color="#8a8f98", alpha=0.4, linewidth=0.8)
    axes.set_xticks(range(len(measured)), [str(entry["tiles"]) for entry in measured])
    axes.set(xlabel="labelled tiles", ylabel="mean IoU", title="test tiles; a point for each seed")


def plot_curves(axes: Any, results: Results) -> None:
    for (number, tiles), arm in product(enumerate(STEPS), ARMS):
        rates = {cell.rate for cell in results if is_test(cell) and cell[:2] == (arm, tiles)}
        cells = [
            cell
            for cell in results
            if cell[:2] == (arm, tiles) and cell.rate in rates and cell.seed == 0 and not is_test(cell)
        ]
        for cell in cells:
            longest = cell.steps == max(each.steps for each in cells)
            places, values = zip(*results[cell]["curve"], strict=True)
            opacity = (0.35, 0.6, 1.0)[number]
            axes.plot(places, values, "-" if longest else ":", color=COLOURS[arm], alpha=opacity, linewidth=1.4)
            axes.annotate(str(tiles), (places[-1], values[-1]), fontsize=8, color=COLOURS[arm])
    axes.set(xlabel="step", ylabel="mean IoU", title="validation tiles, seed 0, chosen rates; dotted: fewer steps")
    axes.margins(y=0.18)
    for arm in ARMS:
        axes.plot([], [], color=COLOURS[arm], label=f"{NAMES[arm]}, by labelled tiles")


if __name__ == "__main__":
    main()
