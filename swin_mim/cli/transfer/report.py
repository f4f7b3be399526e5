"""The cells of a transfer comparison as numbers, a table and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Cells = Mapping[tuple[str, int, float, int], Mapping[str, Any]]
"""(arm, labels, rate, seed) -> what `transfer_cells.measured` found"""
SCRATCH, PRETRAINED = "scratch", "pretrained"
METRICS = ("accuracy", "balanced_accuracy")


def summary(cells: Cells, labels: Sequence[int]) -> list[dict[str, Any]]:
    """One entry for each number of labels: of both kinds of weights the chosen rates, the scores of all runs, the gain.

    The score of a run is the mean over the two halves of the evaluation images, each under the rate that was best, in
    the mean over the runs of its kind, on the other half.
    """
    entries = []
    for count in labels:
        entry: dict[str, Any] = {"labels": count}
        for kind in (SCRATCH, PRETRAINED):
            entry[kind] = _kind(
                {key: cell for key, cell in cells.items() if key[1] == count and _kind_of(key[0]) == kind}
            )
        gains = {metric: entry[PRETRAINED][metric]["mean"] - entry[SCRATCH][metric]["mean"] for metric in METRICS}
        entries.append(entry | {"gain": gains})
    return entries


def _kind_of(arm: str) -> str:
    return SCRATCH if arm == SCRATCH else PRETRAINED


def _kind(cells: Cells) -> dict[str, Any]:
    rates = sorted({rate for _, _, rate, _ in cells})
    runs = sorted({(arm, seed) for arm, _, _, seed in cells})
    count = next(iter(cells))[1]
    # (rates, runs, halves, accuracy and balanced accuracy), and the images of the halves
    table = np.array(
        [[[half[:2] for half in cells[arm, count, rate, seed]["halves"]] for arm, seed in runs] for rate in rates]
    )
    images = np.array([half[2] for half in next(iter(cells.values()))["halves"]])
    means = table[..., 0].mean(axis=1)  # (rates, halves): accuracy
    chosen = means.argmax(axis=0)[::-1]  # for each half by the other one
    scores = np.stack([table[chosen[half], :, half] for half in (0, 1)], axis=1)  # (runs, halves, 2)
    found: dict[str, Any] = {
        "rates": [rates[index] for index in chosen],
        "accuracy_of_each_rate": {
            f"{rate:g}": float(value) for rate, value in zip(rates, _weighted(means, images), strict=True)
        },
        "runs": [f"{arm}, seed {seed}" for arm, seed in runs],
    }
    for index, metric in enumerate(METRICS):
        values = _weighted(scores[..., index], images)
        found[metric] = statistics(values)
    return found


def _weighted(halves: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(..., halves) -> (...): the mean over all images."""
    return halves @ images / images.sum()


def statistics(values: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation (of a sample), and the values themselves."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "std": spread, "values": [float(value) for value in values]}


def curves(cells: Cells, count: int, entry: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Accuracy over the steps at a number of labels, the mean over the runs with the first half's rate."""
    found = {}
    for kind in (SCRATCH, PRETRAINED):
        rate = entry[kind]["rates"][0]
        runs = [
            cell["curve"]
            for (arm, n, r, _), cell in cells.items()
            if n == count and r == rate and _kind_of(arm) == kind
        ]
        steps = [step for step, _ in runs[0]]
        found[kind] = list(
            zip(steps, np.mean([[value for _, value in run] for run in runs], axis=0).tolist(), strict=True)
        )
    return found


def table(report: Mapping[str, Any]) -> str:
    """Markdown: accuracy in percent, mean ± std over the runs, the balanced one in brackets."""
    lines = [
        "| labels per class | new weights | pretrained | gain, points | colours alone |",
        "|---|---|---|---|---|",
    ]
    for entry in report["summary"]:
        cells = [
            str(entry["labels"] or "all"),
            *(_cell(entry[kind]) for kind in (SCRATCH, PRETRAINED)),
            f"{100 * entry['gain']['accuracy']:+.1f} ({100 * entry['gain']['balanced_accuracy']:+.1f})",
            _cell(entry["colours"]) if entry["colours"] else "not measured",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(scores: Mapping[str, Any]) -> str:
    plain, balanced = (scores[metric] for metric in METRICS)
    return f"{100 * plain['mean']:.1f} ± {100 * plain['std']:.1f} ({100 * balanced['mean']:.1f})"


COLOURS = {SCRATCH: "#8a8f98", PRETRAINED: "#c44e2c", "colours": "#3f7fbf"}
NAMES = {SCRATCH: "new weights", PRETRAINED: "pretrained", "colours": "colours alone"}


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Accuracy over the number of labels, with every run as a dot; and how the runs got there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained", width_ratios=[1, 1.1])
    _plot_scores(left, report["summary"])
    _plot_curves(right, report["summary"])
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    low = min(left.get_ylim()[0], right.get_ylim()[0])
    high = max(left.get_ylim()[1], right.get_ylim()[1])
    left.set_ylim(low, high)
    right.set_ylim(low, high)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plot_scores(axes: Any, summary: Sequence[Mapping[str, Any]]) -> None:
    places = np.arange(len(summary))
    for kind, shift in ((SCRATCH, -0.06), ("colours", 0.0), (PRETRAINED, 0.06)):
        entries = [entry[kind]["accuracy"] for entry in summary if entry[kind]]
        if not entries:
            continue
        means, std = ([entry[key] for entry in entries] for key in ("mean", "std"))
        axes.errorbar(
            places + shift,
            means,
            yerr=std,
            fmt="o--" if kind == "colours" else "o-",
            color=COLOURS[kind],
            label=NAMES[kind],
            capsize=3,
            markersize=4,
            linewidth=1.4,
        )
        for place, entry in zip(places, entries, strict=True):
            values = entry["values"]
            axes.plot([place + shift] * len(values), values, ".", color=COLOURS[kind], alpha=0.35, markersize=4)
    axes.set_xticks(places, [str(entry["labels"] or "all") for entry in summary])
    axes.set(xlabel="labels per class", ylabel="accuracy")


def _plot_curves(axes: Any, summary: Sequence[Mapping[str, Any]]) -> None:
    for number, entry in enumerate(summary):
        for kind in (SCRATCH, PRETRAINED):
            steps = entry["curves"][kind]
            opacity = 0.3 + 0.7 * (number + 1) / len(summary)
            axes.plot(*zip(*steps, strict=True), color=COLOURS[kind], alpha=opacity, linewidth=1.4)
            axes.annotate(
                str(entry["labels"] or "all"),
                steps[-1],
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=COLOURS[kind],
                alpha=opacity,
            )
    axes.set(xlabel="step of fine-tuning", ylabel="accuracy", title="")
    axes.plot([], [], color=COLOURS[SCRATCH], label="new weights, by labels per class")
    axes.plot([], [], color=COLOURS[PRETRAINED], label="pretrained")
