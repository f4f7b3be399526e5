"""What a classifier makes of every evaluation image, and the metrics of that.

Exact over any number of processes: each fills in the images that it was dealt, one sum over the processes makes the
arrays complete, and every number is computed from them. No floating-point sum depends on how the images were dealt.
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_mim.data.loading.loader import Batch
from swin_mim.errors import UserError
from swin_mim.evaluation.reader import read_of
from swin_mim.evaluation.validation import evaluation_mode
from swin_mim.files import replacing

TOP = 5
"""Classes that are kept of each image."""
CONFUSIONS = 1000
"""Classes up to which confusions are counted pair by pair."""


@dataclass(frozen=True)
class Outcome:
    """What is known of every image that could be evaluated, in the order of the source; the same on all processes."""

    images: np.ndarray
    """int64 (n,): their indices in the source. What could not be read is not among them."""
    targets: np.ndarray
    """int64 (n,), or with several labels bool (n, classes)."""
    loss: np.ndarray
    """float64 (n,): cross-entropy, or the mean binary one over the classes."""
    top: np.ndarray
    """int64 (n, k): the likeliest classes, the likeliest first; k is 5 or the number of classes."""
    probabilities: np.ndarray
    """float64 (n, k): theirs. With several labels (n, classes), of each class by itself."""
    missing: int
    """Images that could not be read."""
    classes: int

    @property
    def multi_label(self) -> bool:
        return self.targets.ndim == 2


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    targets: np.ndarray,
    *,
    classes: int,
    prepare: Callable[[Tensor], Tensor],
    reduce: Callable[[Tensor], Tensor],
) -> Outcome:
    """Evaluate on the images of all processes. The model comes back in the mode it was in.

    Args:
        model: images -> logits (B, classes). The bare model: one wrapped for distributed training may wait for the
            forward of a process that has no batch left.
        batches: this process's share of the images, as `heldout_batches` deals them.
        targets: int64 (n,) or bool (n, classes), of all images.
        prepare: uint8 (B, C, H, W) -> normalised float on the model's device.
        reduce: the sum of a float64 CPU tensor over all processes; every process calls it exactly once.

    Raises:
        UserError: no image could be read.
    """
    several = targets.ndim == 2
    kept = min(TOP, classes)
    # one row for each image: whether it was evaluated, its loss, the top classes, probabilities
    rows = torch.zeros(len(targets), 2 + kept + (classes if several else kept), dtype=torch.float64)
    truth = torch.from_numpy(targets)
    with evaluation_mode(model):
        for batch in batches:
            read = read_of(batch)
            logits = model(prepare(batch.images)).float().cpu()[read]
            places = batch.indices[read]
            rows[places] = _row(logits, truth[places], kept)
    rows = reduce(rows)
    done = rows[:, 0] > 0
    if not done.any():
        raise UserError("there is no image to evaluate on that can be read")
    found = rows[done].numpy()
    return Outcome(
        images=np.flatnonzero(done.numpy()),
        targets=targets[done.numpy()],
        loss=found[:, 1],
        top=found[:, 2 : 2 + kept].astype(np.int64),
        probabilities=found[:, 2 + kept :],
        missing=int((~done).sum()),
        classes=classes,
    )


def metrics(outcome: Outcome) -> dict[str, float]:
    """The numbers to follow while a model learns; accuracies and precisions from 0 to 1.

    One label each: "accuracy", "balanced_accuracy" (the mean over the classes that have images), "top5_accuracy" where
    there are more than 5 classes. Several: "mean_average_precision" over the classes that have images, "accuracy" (all
    labels of an image right, at a probability of one half). Both: "heldout_loss".
    """
    values = {"heldout_loss": float(outcome.loss.mean())}
    if outcome.multi_label:
        right = ((outcome.probabilities > 0.5) == outcome.targets).all(axis=1)
        classes = np.flatnonzero(outcome.targets.any(axis=0))
        precisions = [average_precision(outcome.probabilities[:, k], outcome.targets[:, k]) for k in classes]
        return values | {
            "accuracy": float(right.mean()),
            "mean_average_precision": float(np.mean(precisions)) if precisions else 0.0,
        }
    hit = outcome.top == outcome.targets[:, None]  # (n, k)
    values["accuracy"] = float(hit[:, 0].mean())
    values["balanced_accuracy"] = float(
        np.mean([hit[outcome.targets == k, 0].mean() for k in np.unique(outcome.targets)])
    )
    if outcome.classes > TOP:
        values["top5_accuracy"] = float(hit.any(axis=1).mean())
    return values


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mean, over the positive samples, of the precision among all that score at least as much.

    Args:
        scores: float (n,).
        positive: bool (n,), at least one of them.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, levels = positive[order], scores[order]
    last = np.searchsorted(-levels, -levels, side="right") - 1  # of the samples that score the same
    precision = np.cumsum(ranked)[last] / (last + 1)
    return float(precision[ranked].mean())


def confusions(outcome: Outcome) -> np.ndarray:
    """int64 (classes, classes): images of the class of the row for which that of the column was predicted."""
    counts = np.zeros((outcome.classes, outcome.classes), dtype=np.int64)
    np.add.at(counts, (outcome.targets, outcome.top[:, 0]), 1)
    return counts


def report(outcome: Outcome, names: Sequence[str]) -> dict[str, Any]:
    """All that is measured, as JSON: the metrics, every class by itself, and up to 1000 classes the confusions."""
    one = not outcome.multi_label
    counts = np.bincount(outcome.targets, minlength=len(names)) if one else outcome.targets.sum(axis=0)
    classes: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        entry: dict[str, Any] = {"name": name, "images": int(counts[number])}
        if counts[number] and one:
            entry["accuracy"] = float((outcome.top[outcome.targets == number, 0] == number).mean())
        elif counts[number]:
            scores = outcome.probabilities[:, number]
            entry["average_precision"] = average_precision(scores, outcome.targets[:, number])
        classes.append(entry)
    found = {
        # what is no number, as the loss of a model that diverged, JSON has no word for
        "metrics": {key: value if np.isfinite(value) else None for key, value in metrics(outcome).items()},
        "evaluated": len(outcome.images),
        "unreadable": outcome.missing,
        "classes": classes,
    }
    if one and len(names) <= CONFUSIONS:
        found["confusions"] = confusions(outcome).tolist()
    return found


def write_predictions(
    path: Path, outcome: Outcome, names: Sequence[str], image_names: Sequence[str], *, labelled: bool = True
) -> None:
    """One row for each image: its name, its label, what is predicted; `path` ends in .csv or .parquet.

    Args:
        names: of the classes.
        image_names: of all images of the source.
        labelled: whether the targets are known; else there are only columns of what is predicted.

    Raises:
        UserError: the file cannot be written.
    """
    table = _several_table(outcome, names) if outcome.multi_label else _table(outcome, names)
    if not labelled:
        table = {key: values for key, values in table.items() if key not in ("label", "labels", "correct")}
    columns = {"image": [image_names[index] for index in outcome.images], **table}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            _write_table(temporary, columns, path.suffix)
    except OSError as error:
        raise UserError(f"predictions {path} cannot be written: {error.strerror or error}") from None


def _row(logits: Tensor, targets: Tensor, kept: int) -> Tensor:
    """(B, classes), (B,) or (B, classes) -> float64 (B, columns)."""
    logits = logits.double()
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :kept]  # of equal ones the first class
    if targets.ndim == 2:
        loss = F.binary_cross_entropy_with_logits(logits, targets.double(), reduction="none").mean(dim=1)
        probabilities = logits.sigmoid()
    else:
        loss = F.cross_entropy(logits, targets, reduction="none")
        probabilities = logits.softmax(dim=1).gather(1, order)
    return torch.cat([torch.ones_like(loss)[:, None], loss[:, None], order.double(), probabilities], dim=1)


def _table(outcome: Outcome, names: Sequence[str]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "label": [names[number] for number in outcome.targets],
        "predicted": [names[number] for number in outcome.top[:, 0]],
        "correct": (outcome.top[:, 0] == outcome.targets).tolist(),
    }
    for rank in range(outcome.top.shape[1]):
        columns[f"class_{rank + 1}"] = [names[number] for number in outcome.top[:, rank]]
        columns[f"probability_{rank + 1}"] = [round(value, 6) for value in outcome.probabilities[:, rank].tolist()]
    return columns


def _several_table(outcome: Outcome, names: Sequence[str]) -> dict[str, list[Any]]:
    def words(chosen: np.ndarray) -> list[str]:
        return [";".join(names[number] for number in np.flatnonzero(row).tolist()) for row in chosen]

    columns: dict[str, list[Any]] = {"labels": words(outcome.targets), "predicted": words(outcome.probabilities > 0.5)}
    for number, name in enumerate(names):
        columns[f"probability of {name}"] = [round(value, 6) for value in outcome.probabilities[:, number].tolist()]
    return columns


def _write_table(path: Path, columns: dict[str, list[Any]], suffix: str) -> None:
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
