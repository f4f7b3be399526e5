"""What a run has shown, as rows and tables of its page: key figures, probes, confusions, data, machines."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from swin_mim.counts import counted
from swin_mim.evaluation.confusion import NUMBERS, most_confused
from swin_mim.evaluation.report import looked_at
from swin_mim.evaluation.report.numbers_text import duration, file_size, moment, number, setting, share
from swin_mim.evaluation.report.run_files import RunFiles

MOST_NAMES = 200
"""Broken images, steps that were left out and classes that a page names."""
PAIRS = 8
"""Pairs of classes that are taken for each other which are named."""


class Figure(NamedTuple):
    """A key figure."""

    name: str
    value: str
    note: str = ""


class Cell(NamedTuple):
    """Images of a true class for which one class was predicted."""

    images: int
    share: float
    """Of the images of the true class."""
    text: str
    """What the cell says; empty where there are too many classes."""


class Confusions(NamedTuple):
    """Which class is taken for which."""

    names: list[str]
    """Of the classes shown."""
    rows: list[list[Cell]]
    classes: int
    """All of them."""
    pairs: list[tuple[str, str, int, float]]
    """(true, predicted, count, share of the true class) of the most frequent mistakes."""


def figures(run: RunFiles) -> list[Figure]:
    """What one wants to know first."""
    found = [*_results(run), *_speed(run)]
    skipped, broken = run.last("skipped"), len(run.broken)
    if skipped is not None:
        found.append(Figure("Steps left out", number(skipped), "loss or gradient not finite" if skipped else ""))
    found.append(Figure("Broken images", number(broken), "replaced by others" if broken else ""))
    return found


def _results(run: RunFiles) -> Iterator[Figure]:
    loss = run.last("heldout_loss")
    if loss is not None:
        parts = [
            f"{loss / baseline:.2f} of {name}"
            for key, name in (("mean_fill_error", "the mean fill"), ("interpolation_error", "the interpolation"))
            if (baseline := run.first(key))
        ]
        yield Figure("Held-out loss", number(loss), ", ".join(parts))
    elif (training := run.last("loss")) is not None:
        yield Figure("Training loss", number(training))
    best = max(probes(run), key=lambda row: row["linear"] or 0, default=None)
    if best and best["linear"] is not None:
        random = f", {share(best['random_linear'])} with random weights" if best["random_linear"] is not None else ""
        yield Figure("Linear probe", share(best["linear"]), f"stage {best['stage']}{random}")
    published = run.evaluation.get("metrics", {})
    step = run.evaluation.get("step")
    for key, name in _SCORES.items():
        value = published.get(key, run.last(key))
        if value is not None:
            yield Figure(name, share(value), f"after step {step:,}" if step is not None and key in published else "")


_SCORES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "mean_average_precision": "Mean average precision",
    "mean_iou": "Mean IoU",
    "pixel_accuracy": "Pixel accuracy",
    "AP": "AP of boxes",
    "mask_AP": "AP of shapes",
}


def _speed(run: RunFiles) -> Iterator[Figure]:
    speeds = sorted(row["images_per_second"] for row in run.metrics if row.get("images_per_second"))
    if not speeds:
        return
    wait = run.last("data_wait")
    yield Figure("Images/s", number(round(speeds[len(speeds) // 2])), f"median; {share(wait)} waiting for data")
    batch, last = run.setting("train.global_batch"), run.last("images_per_second")
    if not isinstance(batch, int):
        return
    seconds, before = 0.0, 0
    for row in run.metrics:
        if row.get("images_per_second"):
            seconds += (row["step"] - before) * batch / row["images_per_second"]
            before = row["step"]
    left = run.status.get("total_steps", 0) - run.step
    going = run.status.get("status") == "running" and not run.lost and left > 0
    note = f"{duration(left * batch / last)} to go" if going and last else "in the steps alone"
    yield Figure("Time", duration(seconds), note)


def standing(run: RunFiles) -> str:
    """How the run stands, in a line."""
    total, seen = run.status.get("total_steps"), run.last("samples_seen")
    status, when = _status(run)
    parts = [
        run.kind,
        status,
        f"step {run.step:,} of {total:,}" if total else f"step {run.step:,}",
        f"{int(seen):,} images seen" if seen else "",
        when,
    ]
    return " · ".join(part for part in parts if part)


def _status(run: RunFiles) -> tuple[str, str]:
    """(how it stands, since when)"""
    status, when = run.status.get("status", ""), moment(run.status.get("time"))
    if status != "running":
        return status, when
    if run.held:
        return status, f"since {when}"
    return "killed or lost" if run.lost else "running by its files", f"last line written {moment(run.written)}"


def probes(run: RunFiles) -> list[dict[str, Any]]:
    """A row for each stage: "stage", and the newest "linear" and "knn" beside "random_linear" and "random_knn"."""
    stages = {key.removeprefix("linear_stage") for row in run.metrics for key in row if key.startswith("linear_stage")}
    kinds = ("linear", "random_linear", "knn", "random_knn")
    return [
        {"stage": int(stage), **{kind: run.last(f"{kind}_stage{stage}") for kind in kinds}}
        for stage in sorted(stages, key=int)
    ]


def confusions(run: RunFiles) -> Confusions | None:
    """Those of the published weights; of many classes those that are confused most."""
    counts = np.array(run.evaluation.get("confusions") or [], dtype=np.int64)
    names = [str(each["name"]) for each in run.evaluation.get("classes", [])]
    if counts.ndim != 2 or counts.shape != (len(names), len(names)):
        return None
    shown = most_confused(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    said = len(shown) <= NUMBERS
    rows = [[_cell(int(counts[i, j]), float(shares[i, j]), said=said) for j in shown] for i in shown]
    mistakes = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:PAIRS]
    places = [np.unravel_index(each, counts.shape) for each in order]
    pairs = [(names[i], names[j], int(counts[i, j]), float(shares[i, j])) for i, j in places if mistakes[i, j]]
    return Confusions([names[i] for i in shown], rows, len(names), pairs)


def _cell(count: int, part: float, *, said: bool) -> Cell:
    text = "" if not count or not said else f"{part:.0%}".rstrip("%") if part >= 0.005 else "<1"
    return Cell(count, part, text)


def classes(run: RunFiles) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(columns, rows) of what was measured of each class, the worst first; both empty where nothing was."""
    entries = run.evaluation.get("classes", [])
    known = [key for key in _CLASS_COLUMNS if any(key in each for each in entries)]
    if not known:
        return [], []
    main = next((key for key in known if key not in _COUNTS), known[0])
    ordered = sorted(entries, key=lambda each: (each.get(main) is None, each.get(main) or 0))
    rows = [
        (str(each["name"]), [(number if key in _COUNTS else share)(each.get(key)) for key in known])
        for each in ordered[:MOST_NAMES]
    ]
    return [_CLASS_COLUMNS[key] for key in known], rows


_COUNTS = ("images", "pixels", "objects", "predicted")
_CLASS_COLUMNS = {
    "images": "images",
    "pixels": "pixels",
    "predicted": "pixels predicted",
    "objects": "objects",
    "iou": "IoU",
    "accuracy": "accuracy",
    "average_precision": "average precision",
    "AP": "AP of boxes",
    "mask_AP": "AP of shapes",
}


def data_facts(run: RunFiles) -> list[tuple[str, str]]:
    """What the run knows of its images, and what was found in them."""
    found = [("source", setting(run.setting("data.source")))] if run.setting("data.source") else []
    if validation := run.setting("data.validation"):
        found.append(("evaluated on", setting(validation)))
    if run.starts and run.starts[-1].get("images"):
        found.append(("images", str(run.starts[-1]["images"])))
    if inventory := run.inventory:
        kinds = ", ".join(f"{suffix or 'no suffix'} {count:,}" for suffix, count in [*inventory.suffixes.items()][:6])
        number_of = counted(inventory.images, "shard") if run.setting("data.streaming") else f"{inventory.images:,}"
        apart = run.setting("data.source") == "blue_marble" or validation
        found.append(("in the data set", f"{number_of}{'' if apart else ', the held-out ones among them'}"))
        files = set(inventory.suffixes) != {""}
        if files:
            found.append(("kinds of files", kinds))
        if files and inventory.folders > 1:
            found.append(("folders", f"{inventory.folders:,}"))
        if files and inventory.sizes:
            least, median, most = map(file_size, inventory.sizes)
            found.append(("sizes of files", f"{least} to {most}, median {median}"))
    for key, name in (("data.channels", "channels"), ("data.nodata", "value of missing pixels")):
        if (value := run.setting(key)) is not None:
            found.append((name, setting(value)))
    if run.evaluation:
        unreadable = run.evaluation.get("unreadable", 0)
        evaluated = f"{run.evaluation.get('evaluated', 0):,}"
        found.append(("evaluated", f"{evaluated}, {unreadable:,} more could not be read" if unreadable else evaluated))
    return [*found, *looked_at.rows(run)]


def skipped_steps(run: RunFiles) -> list[dict[str, str]]:
    """A row for each step that was left out: "step", "loss", "norm", and the names of the "images" if known."""
    steps: dict[int, dict[str, str]] = {}
    for entry in run.skipped:
        row = steps.setdefault(entry["step"], {"step": number(entry["step"]), "loss": "", "norm": "", "images": ""})
        if "images" in entry:
            names = ", ".join(str(name) for _, name in entry["images"])
            row["images"] = f"{row['images']}, {names}" if row["images"] else names
        else:
            row["loss"], row["norm"] = (_figure(entry.get(key)) for key in ("loss", "grad_norm"))
    return list(steps.values())


def _figure(text: Any) -> str:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return str(text)
    return number(value) if math.isfinite(value) else str(text)


def starts(run: RunFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """(when, facts) of each start, the newest first."""
    found = []
    for entry in reversed(run.starts):
        step = entry.get("step", 0)
        when = f"{moment(entry.get('time'))}, {'new' if not step else f'from step {step:,}'}"
        facts = {
            key: setting(value) for key, value in entry.items() if key not in ("time", "step", "versions", "images")
        }
        versions = entry.get("versions", {})
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
        found.append((when, [(key.replace("_", " "), value) for key, value in facts.items() if value]))
    return found


def troubles(run: RunFiles) -> list[str]:
    """What a reader has to know before anything else."""
    found = []
    if run.status.get("status") == "failed":
        found.append("The run failed: train.log of its folder says why.")
    if run.lost:
        step, at = run.step, run.checkpoint
        where = "the beginning: it has no checkpoint yet" if at is None else f"step {at:,}, its newest checkpoint"
        found.append(f"Killed or lost at step {step:,}: no process has it. The same command continues it from {where}.")
    if skipped := run.last("skipped"):
        found.append(f"{counted(int(skipped), 'step')} left out, as loss or gradient were not finite.")
    wait = run.last("data_wait")
    if wait is not None and wait > 0.2:
        found.append(f"{share(wait)} of the time goes by waiting for data: more workers, or packed images, help.")
    return found
