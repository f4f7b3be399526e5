"""What a segmenter makes of every pixel of the evaluation images, and the metrics of that.

Exact over any number of processes: pixels are counted in whole numbers, losses are added per image, and one sum over
the processes makes both complete. No number depends on how the images were dealt.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from swin_mim.data.dense.joint import unpack
from swin_mim.data.dense.pairs import Pairs
from swin_mim.data.loading.loader import Batch
from swin_mim.errors import UserError
from swin_mim.evaluation.reader import read_of
from swin_mim.evaluation.validation import evaluation_mode
from swin_mim.models.dense.segmenter import SwinSegmenter
from swin_mim.models.dense.sliding import predict as predict_pixels
from swin_mim.models.preprocessing import Preprocessor


@dataclass(frozen=True)
class Inference:
    """How an image of any size becomes logits of its size.

    Args:
        resize: shorter side in pixels at which the model sees it; None: its own.
        window: (h, w) of sliding windows, which overlap by a third; None: the image whole.
    """

    resize: int | None = None
    window: tuple[int, int] | None = None

    def __call__(self, model: SwinSegmenter, images: Tensor) -> Tensor:
        """Normalised float (B, C, H, W) -> logits float32 (B, K, H, W) on its device."""
        size = images.shape[2:]
        if self.resize is not None and self.resize != min(size):
            sides = [max(1, round(side * self.resize / min(size))) for side in size]
            images = F.interpolate(images, sides, mode="bilinear", antialias=True)
        logits = predict_pixels(model, images, self.window)
        if logits.shape[2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits


@dataclass(frozen=True)
class Outcome:
    """What is known of all pixels that could be evaluated; the same on all processes."""

    confusions: np.ndarray
    """int64 (classes, classes): pixels of the class of the row for which that of the column was predicted."""
    loss: float
    """Mean cross-entropy of a labelled pixel; NaN where there is none."""
    images: int
    """Images that were evaluated."""
    missing: int
    """Images that could not be read."""


def evaluate(
    model: SwinSegmenter,
    batches: Iterable[Batch],
    pairs: Pairs,
    *,
    infer: Inference,
    preprocess: Preprocessor,
    reduce: Callable[[Tensor], Tensor],
    keep: Callable[[int, np.ndarray], None] | None = None,
) -> Outcome:
    """Evaluate on the images of all processes. The model comes back in the mode it was in.

    Args:
        batches: this process's share of the images, one in each.
        pairs: all of the images.
        infer: image -> logits.
        preprocess: images of a batch -> normalised float on the model's device.
        reduce: the sum of a float64 CPU tensor over all processes; every process calls it exactly once.
        keep: gets the index of an image and its predicted classes, int64 (H, W); pixels that are not there have none.

    Raises:
        UserError: no image could be read.
    """
    count, channels = len(pairs.names), len(preprocess.preprocessing.mean)
    images = torch.zeros(len(pairs), 3, dtype=torch.float64)  # whether evaluated, sum of the loss, labelled pixels
    confusions = torch.zeros(count * count, dtype=torch.int64)
    with evaluation_mode(model):
        for batch in batches:
            if not read_of(batch).all():
                continue
            pixels, labels = unpack(batch.images, channels)
            logits = infer(model, preprocess(pixels))
            found, labels = logits.argmax(dim=1), labels.to(logits.device)
            labelled = labels != pairs.numbers.unlabelled
            losses = F.cross_entropy(logits, labels.where(labelled, 0), reduction="none")[labelled]
            together = count * labels[labelled] + found[labelled]
            confusions += torch.bincount(together, minlength=count * count).cpu()
            images[batch.start] = torch.tensor([1.0, losses.cpu().double().sum().item(), float(labelled.sum())])
            if keep is not None:
                classes = found[0].cpu().numpy()
                if pixels.is_floating_point():
                    classes[pixels[0, 0].isnan().numpy()] = pairs.numbers.unlabelled
                keep(batch.start, classes)
    # whole numbers below 2^53 are exact in float64
    total = reduce(torch.cat([images.flatten(), confusions.double()]))
    images, confusions = total[: 3 * len(pairs)].view(-1, 3), total[3 * len(pairs) :].long()
    done = images[:, 0] > 0
    if not done.any():
        raise UserError("there is no image to evaluate on that can be read")
    pixels_of, losses_of = images[done, 2].sum().item(), images[done, 1].sum().item()
    loss = losses_of / pixels_of if pixels_of else float("nan")
    return Outcome(confusions.view(count, count).numpy(), loss, int(done.sum()), int((~done).sum()))


def metrics(outcome: Outcome) -> dict[str, float]:
    """The numbers to follow while a model learns.

    "mean_iou" over the classes that are in masks or predictions, "pixel_accuracy" of all labelled pixels, both from 0
    to 1, and "heldout_loss", the cross-entropy of a labelled pixel. Without any label they are NaN.
    """
    counts = outcome.confusions
    ious, total = class_ious(counts), counts.sum()
    return {
        "heldout_loss": outcome.loss,
        "mean_iou": float(np.nanmean(ious)) if total else float("nan"),
        "pixel_accuracy": float(np.trace(counts) / total) if total else float("nan"),
    }


def class_ious(confusions: np.ndarray) -> np.ndarray:
    """float64 (classes,): pixels of a class that are predicted so, of all that are of it or predicted so.

    NaN where there is no such pixel.
    """
    hits = np.diag(confusions).astype(np.float64)
    union = confusions.sum(axis=0) + confusions.sum(axis=1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def report(outcome: Outcome, names: Sequence[str]) -> dict[str, Any]:
    """All that is measured, as JSON: the metrics, every class by itself, and the confusions in pixels."""
    counts, ious = outcome.confusions, class_ious(outcome.confusions)
    pixels, predicted = counts.sum(axis=1), counts.sum(axis=0)
    classes: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        entry: dict[str, Any] = {"name": name, "pixels": int(pixels[number]), "predicted": int(predicted[number])}
        if not np.isnan(ious[number]):
            entry["iou"] = float(ious[number])
        if pixels[number]:
            entry["accuracy"] = float(counts[number, number] / pixels[number])
        classes.append(entry)
    return {
        # what is no number, as the loss of a model that diverged, JSON has no word for
        "metrics": {key: value if np.isfinite(value) else None for key, value in metrics(outcome).items()},
        "evaluated": outcome.images,
        "unreadable": outcome.missing,
        "classes": classes,
        "confusions": counts.tolist(),
    }
