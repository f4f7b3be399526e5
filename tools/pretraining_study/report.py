"""Table and picture of what the study has found so far."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from swin_mim.cli.transfer.report import statistics
from swin_mim.errors import UserError
from tools.pretraining_study import plan
from tools.pretraining_study.plan import CONVNET, NEW, SETS, TEST, VALIDATION, Pretraining, Results, Training, all_needs

TABLE, PLOT = "table.md", "pretraining-gain.png"
LONG = f"{NEW}, {plan.LONGER_BY} times the steps"
COLOURS = ("#8a8f98", "#3f7fbf", "#c44e2c", "#4f9d69", "#8d62a8", "#c9a227", "#2b2d33", "#d77fa1")


def report(results: Results, out: Path) -> None:
    """Write table and picture. Raises `UserError` if there is nothing."""
    if not results:
        raise UserError(f"{out} has no results: run a session first")
    parts = [pretraining_table(results), validation_table(results), tested_table(results), time_table(results)]
    text = "\n".join(part for part in parts if part)
    (out / TABLE).write_text(text)
    plot(results, out / PLOT)
    print(f"{text}\nsee {out}: {TABLE}, {PLOT}")


def rows_of(results: Results, split: str, images: str) -> dict[Training, Mapping[str, Any]]:
    """The runs with labels on one split of a set."""
    return {
        cell: row
        for cell, row in results.items()
        if isinstance(cell, Training) and (cell.split, cell.images) == (split, images)
    }


def arms_of(arms: Iterable[str]) -> list[str]:
    """Each once, in the order in which tables have them: those without pretraining first."""
    return sorted(set(arms), key=lambda arm: (not arm.startswith(NEW), arm != CONVNET, arm))


def shown(cell: Training) -> str:
    """What tables of the test call an arm: new weights with more steps are one of their own."""
    return cell.arm if cell.steps == plan.steps_of(cell.arm, cell.labels) else LONG


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; empty without lines."""
    rows = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]
    return "\n".join(rows) + "\n" if lines else ""


def pretraining_table(results: Results) -> str:
    """Held-out losses, interpolation, and linear probes of every stage, in percent."""
    lines = []
    for cell, row in results.items():
        if isinstance(cell, Pretraining):
            probes = [
                ", ".join(f"{100 * value:.1f}" for value in of) for of in (row["probes"][-1][1], row["random_probes"])
            ]
            loss = f"{row['heldout_loss']:.4f} ({row['interpolation_error']:.4f})"
            if "heldout_hog_loss" in row:
                loss += f"; histograms {row['heldout_hog_loss']:.5f} ({row['constant_hog_loss']:.5f})"
            lines.append(
                [
                    cell.images,
                    cell.arm,
                    f"{cell.rate:g}",
                    str(cell.seed),
                    str(cell.steps),
                    minutes(row["seconds"]),
                    loss,
                ]
                + probes
            )
    head = (
        "images",
        "arm",
        "rate",
        "seed",
        "steps",
        "minutes",
        "held-out loss (interpolation; of the mean histogram)",
        "probes of the stages",
    )
    return markdown([*head, "random weights"], lines)


def validation_table(results: Results) -> str:
    """Accuracy in percent of the runs on validation images."""
    lines = []
    for images in SETS:
        rows = rows_of(results, VALIDATION, images)
        for arm in arms_of(cell.arm for cell in rows):
            for labels, steps in sorted({(cell.labels, cell.steps) for cell in rows if cell.arm == arm}):
                of = {
                    c.rate: r["accuracy"] for c, r in rows.items() if (c.arm, c.labels, c.steps) == (arm, labels, steps)
                }
                rates = ", ".join(f"{rate:g}: {100 * value:.1f}" for rate, value in sorted(of.items()))
                lines.append([images, arm, str(labels), str(steps), rates])
    return markdown(["images", "arm", "labels per class", "steps", "rate: accuracy"], lines)


def tested_table(results: Results) -> str:
    """Accuracy in percent on test images, mean ± std over the seeds, and what an arm is ahead of new weights."""
    lines = []
    for images in SETS:
        rows = rows_of(results, TEST, images)
        for labels, arm in product(sorted({cell.labels for cell in rows}), arms_of(map(shown, rows))):
            own = by_seed(rows, arm, labels)
            if own:
                ahead = [gains(own, by_seed(rows, other, labels)) if arm != other else "" for other in (NEW, LONG)]
                lines.append([images, str(labels), arm, spread(list(own.values())), *ahead])
    head = ["images", "labels per class", "arm", "accuracy", f"points ahead of {NEW}", f"of {LONG}"]
    return markdown(head, lines)


def by_seed(rows: Mapping[Training, Mapping[str, Any]], arm: str, labels: int) -> dict[int, float]:
    return {cell.seed: row["accuracy"] for cell, row in rows.items() if (shown(cell), cell.labels) == (arm, labels)}


def gains(own: Mapping[int, float], other: Mapping[int, float]) -> str:
    """Mean ± std of the differences, and in brackets that of each seed that both have."""
    values = [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]
    if not values:
        return ""
    found, each = statistics(np.array(values)), ", ".join(f"{100 * value:+.1f}" for value in values)
    return f"{100 * found['mean']:+.1f} ± {100 * found['std']:.1f} ({each})"


def spread(values: Sequence[float]) -> str:
    found = statistics(np.array(values))
    return f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f} ({len(values)} seeds)"


def time_table(results: Results) -> str:
    """Minutes of one core until an arm has what the best new weights end with, its pretraining counted in."""
    lines = []
    for images in SETS:
        rows = rows_of(results, VALIDATION, images)
        for labels in sorted({cell.labels for cell in rows if cell.arm == NEW}):
            goal = max(row["accuracy"] for cell, row in rows.items() if (cell.arm, cell.labels) == (NEW, labels))
            for arm in arms_of(cell.arm for cell in rows):
                times = [
                    time_to(cell, row, goal, results)
                    for cell, row in rows.items()
                    if (cell.arm, cell.labels) == (arm, labels)
                ]
                reached = [time for time in times if time is not None]
                if times:
                    time = f"{min(reached):.1f}" if reached else "not reached"
                    lines.append([images, str(labels), f"{100 * goal:.1f}", arm, time])
    return markdown(["images", "labels per class", "new weights end at", "arm", "minutes of a core until there"], lines)


def time_to(cell: Training, row: Mapping[str, Any], goal: float, results: Results) -> float | None:
    """Minutes; None: it does not get there, or its pretraining was not measured here."""
    step = next((step for step, accuracy in row["curve"] if accuracy >= goal), None)
    before = all_needs(cell)
    if step is None or any(need not in results for need in before):
        return None
    return (float(row["seconds"]) * step / cell.steps + sum(float(results[need]["seconds"]) for need in before)) / 60


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


def plot(results: Results, path: Path) -> None:
    """A row for each set: accuracy on test pictures with every seed as a point, once there are any; on validation ones
    over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cells = [cell for cell in results if isinstance(cell, Training)]
    arms = arms_of([*map(shown, cells), *(cell.arm for cell in cells)])
    colours = {arm: COLOURS[number % len(COLOURS)] for number, arm in enumerate(arms)}
    sets = [images for images in SETS if any(cell.images == images for cell in cells)] or [SETS[0]]
    tested = {images: rows_of(results, TEST, images) for images in sets}
    width, height = 1 + any(tested.values()), len(sets)
    figure, panels = plt.subplots(
        height, width, figsize=(0.7 + 4.9 * width, 4.0 * height), layout="constrained", squeeze=False
    )
    for row, images in zip(panels, sets, strict=True):
        if tested[images]:
            plot_scores(row[0], tested[images], colours)
            row[0].set_title(f"{images}, test; a point for each seed")
        plot_curves(row[-1], rows_of(results, VALIDATION, images), colours)
        row[-1].set_title(f"{images}, validation, best rates, by labels per class")
    for axes in panels.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_scores(axes: Any, rows: Mapping[Training, Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    for arm in arms_of(map(shown, rows)):
        numbers = sorted({cell.labels for cell in rows if shown(cell) == arm})
        values = [list(by_seed(rows, arm, labels).values()) for labels in numbers]
        axes.plot(numbers, [np.mean(of) for of in values], "-", color=colours[arm], label=arm)
        for labels, of in zip(numbers, values, strict=True):
            axes.plot([labels] * len(of), of, "o", color=colours[arm], alpha=0.5, markersize=4)
    numbers = sorted({cell.labels for cell in rows})
    axes.set_xscale("log")
    axes.set_xticks(numbers, [str(number) for number in numbers], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="labels per class", ylabel="accuracy")


def plot_curves(axes: Any, rows: Mapping[Training, Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """Of each arm, number of labels and of steps the run that ends best."""
    top: dict[tuple[str, int, int], Training] = {}
    for cell, row in rows.items():
        key = cell.arm, cell.labels, cell.steps
        if key not in top or row["accuracy"] > rows[top[key]]["accuracy"]:
            top[key] = cell
    named = set()
    for (arm, labels, _), cell in sorted(top.items()):
        places, values = zip(*rows[cell]["curve"], strict=True)
        axes.plot(places, values, "-", color=colours[arm], linewidth=1.4, label=None if arm in named else arm)
        axes.annotate(str(labels), (places[-1], values[-1]), fontsize=8, color=colours[arm])
        named.add(arm)
    axes.set(xlabel="step", ylabel="accuracy")
