"""Metrics over the steps as charts: which there are, what their lines are called, and their points, thinned out."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from swin_mim.evaluation.report.numbers_text import number, share
from swin_mim.evaluation.report.run_files import RunFiles

BUCKETS = 500
"""Parts of a long line of which the lowest and the highest point are drawn."""

LEVELS = {
    "mean_fill_error": "mean of the visible pixels",
    "interpolation_error": "interpolated",
    "constant_teacher_loss": "one answer to the teacher",
    "constant_hog_loss": "mean histogram",
}
"""What held-out losses would be with nothing learned; those of the heads of every stage besides."""

Names = Callable[[set[str]], dict[str, str]]
"""The metrics that there are -> those of a chart with what they are called, in their order."""


@dataclass(frozen=True)
class Chart:
    """One diagram."""

    key: str
    title: str
    unit: str
    """What the vertical axis counts."""
    lines: Names
    levels: Names = lambda there: {}
    """Metrics that were measured once, drawn as dashed levels."""
    percent: bool = False
    zero: bool = False
    """Whether the vertical axis begins at 0."""
    logarithmic: bool = False
    """Whether a logarithmic axis is offered."""


def _these(**names: str) -> Names:
    return lambda there: {key: text for key, text in names.items() if key in there}


def _levels(there: set[str]) -> dict[str, str]:
    """Those that were measured."""
    stages = sorted(key for key in there if key.startswith("constant_stage"))
    named = {key: f"mean histogram, {key.removeprefix('constant_').removesuffix('_hog_loss')}" for key in stages}
    return {key: text for key, text in (LEVELS | named).items() if key in there}


def _losses(there: set[str]) -> dict[str, str]:
    """The loss, its parts, that on held-out images, and those of other heads."""
    others = sorted(
        key for key in there - {"heldout_loss"} if key.endswith("_loss") and not key.startswith("constant_")
    )
    names = {"loss": "training", "heldout_loss": "held out"}
    for key in others:
        heldout = key.startswith("heldout_")
        part = key.removeprefix("heldout_").removesuffix("_loss").replace("_", " ")
        names[key] = f"{'held out' if heldout else 'training'}, {part}"
    return {key: text for key, text in names.items() if key in there}


def _stages(prefix: str) -> Names:
    def names(there: set[str]) -> dict[str, str]:
        found = sorted(key for key in there if key.startswith(prefix) and key.removeprefix(prefix).isdigit())
        random = ", random weights" if prefix.startswith("random_") else ""
        return {key: f"stage {key.removeprefix(prefix)}{random}" for key in found}

    return names


CHARTS = (
    Chart(
        "loss",
        "Loss",
        "by step, as all curves",
        _losses,
        _levels,
        logarithmic=True,
    ),
    Chart(
        "scores",
        "Evaluation",
        "of the evaluation images",
        _these(
            accuracy="accuracy",
            balanced_accuracy="balanced accuracy",
            top5_accuracy="top-5 accuracy",
            mean_average_precision="mean average precision",
            mean_iou="mean IoU",
            pixel_accuracy="pixel accuracy",
            AP="AP of boxes",
            AP50="AP of boxes at IoU 0.5",
            mask_AP="AP of shapes",
            mask_AP50="AP of shapes at IoU 0.5",
        ),
        percent=True,
    ),
    Chart("rate", "Learning rate", "AdamW, highest group", _these(lr="learning rate"), logarithmic=True),
    Chart("norm", "Gradient norm", "before clipping", _these(grad_norm="gradient norm"), logarithmic=True),
    Chart("speed", "Speed", "images/s", _these(images_per_second="images/s"), zero=True),
    Chart("wait", "Waiting for data", "of the time of a step", _these(data_wait="data wait"), percent=True, zero=True),
    Chart("memory", "Memory", "GB, peak of one process", _these(memory_gb="memory"), zero=True),
)

PROBES = Chart(
    "probe",
    "Linear probe of every stage",
    "accuracy",
    _stages("linear_stage"),
    _stages("random_linear_stage"),
    percent=True,
)


def drawn(chart: Chart, runs: Sequence[RunFiles]) -> dict[str, Any] | None:
    """A chart of some runs as JSON; None: none of them has its metrics.

    "lines" are {"name", "run" and "metric" as numbers, "x", "y", "points" whether there are few enough to mark}, and
    "levels" the same with one value. "text" says for those who do not see it where the lines begin and end.
    """
    lines, levels, texts = [], [], []
    for place, run in enumerate(runs):
        there = {key for row in run.metrics for key in row}
        several = f"{run.name}: " if len(runs) > 1 else ""
        for metric, (key, name) in enumerate(chart.lines(there).items()):
            points = list(_points(run.metrics, key))
            if not points:
                continue
            x, y = zip(*thinned(points), strict=True)
            lines.append(
                {"name": several + name, "run": place, "metric": metric, "x": x, "y": y, "points": len(points) <= 60}
            )
            texts.append(f"{several}{name} {_ends(points, percent=chart.percent)}")
        for metric, (key, name) in enumerate(chart.levels(there).items()):
            value = run.first(key)
            if value is not None and math.isfinite(value):
                levels.append({"name": several + name, "run": place, "metric": metric, "y": _short(value)})
                texts.append(f"{several}{name} {share(value) if chart.percent else number(value)}")
    if not lines:
        return None
    about = {name: getattr(chart, name) for name in ("key", "title", "unit", "percent", "zero", "logarithmic")}
    return about | {"lines": lines, "levels": levels, "text": "; ".join(texts)}


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Points of which a line looks the same: of each of many parts the lowest and the highest, and both ends."""
    if len(points) <= 2 * BUCKETS:
        return points
    kept = {0, len(points) - 1}
    for part in range(BUCKETS):
        span = range(part * len(points) // BUCKETS, (part + 1) * len(points) // BUCKETS)
        kept |= {min(span, key=lambda i: points[i][1]), max(span, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def _points(rows: Sequence[dict[str, Any]], key: str) -> Iterator[tuple[int, float]]:
    for row in rows:
        value = row.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            yield row["step"], _short(value)


def _short(value: float) -> float:
    """Six digits, which no eye misses on a chart."""
    return float(f"{value:.6g}")


def _ends(points: list[tuple[int, float]], *, percent: bool) -> str:
    text = share if percent else number
    (first, start), (last, end) = points[0], points[-1]
    return (
        f"{text(end)} at step {last:,}"
        if first == last
        else f"{text(start)} at step {first:,}, {text(end)} at step {last:,}"
    )
