"""What the features of an encoder are worth as they are: k-NN and linear probes of every stage.

Cheap, and to be read with care. The k-NN of the last stage under-rates masked image models: a ViT-B of MAE that reaches
81.3 % when it is fine-tuned has 11.2 % there, and 46.0 % with a linear probe (README of lightly). Look at the linear
probe, at the best stage rather than the last one, and at how far it is above the same encoder with random weights.
What counts in the end is fine-tuning with few labels: `swin-mim transfer`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from swin_mim.data.labels import Labelled
from swin_mim.errors import UserError
from swin_mim.evaluation.reader import Reader, read_of
from swin_mim.evaluation.validation import evaluation_mode
from swin_mim.models.swin import Swin
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.labelled_images import to_probe_in

NEIGHBOURS = 20
TEMPERATURE = 0.07
"""Temperature of the neighbours' votes: each weighs exp(cosine similarity / TEMPERATURE), as in arXiv 1805.01978."""
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates for the L2 penalty of the linear probe."""
HELD_BACK = 5
"""Every fifth training image of a class decides the penalty."""
CHANNEL_BINS, JOINT_BINS = 32, 8
"""Bins of a colour histogram: of each channel by itself, and of each when they are taken together."""
SPAN = 3.0
"""Standard deviations from the mean, up and down, that the bins of a histogram of other channels cover."""


class Score(NamedTuple):
    """Accuracies from 0 to 1 of one set of features; balanced is the mean over the classes."""

    linear: float
    linear_balanced: float
    knn: float
    knn_balanced: float


def as_metrics(scores: Sequence[Score], prefix: str = "") -> dict[str, float]:
    """Name the scores of all stages as metrics: "linear_stage1" and so on."""
    return {
        f"{prefix}{kind}_stage{stage}": value
        for stage, score in enumerate(scores, start=1)
        for kind, value in score._asdict().items()
    }


def probe_text(measured: Mapping[str, float]) -> str:
    """The linear probe of every stage, for a line of the log."""
    linear = [f"{value:.3f}" for key, value in measured.items() if key.startswith("linear_stage")]
    return f"linear probe {', '.join(linear)}"


@dataclass(frozen=True)
class Prober:
    """Probes encoders on the same images, with one label each.

    Args:
        training, evaluated: images to learn from and to test on, of the same classes.
        reader: how they reach an encoder.
    """

    training: Labelled
    evaluated: Labelled
    reader: Reader

    @classmethod
    def open(cls, config: PretrainConfig, channels: Sequence[str] | None, reader: Reader, seed: int) -> "Prober":
        """Open the labelled images that a pretraining's settings name.

        Args:
            channels: names of those that it takes; None: RGB.
            seed: decides the choice of images to learn from.

        Raises:
            UserError: they cannot be opened, or have no labels.
        """
        return cls(*to_probe_in(config, None if channels is None else tuple(channels), seed), reader)

    def stages(self, encoder: Swin) -> list[Score]:
        """Score the mean over the grid of every stage's output; all processes call it together."""
        with evaluation_mode(encoder):

            def pooled(images: Tensor) -> Tensor:
                maps = encoder.pyramid(self.reader.preprocess(images))
                return torch.cat([each.float().mean(dim=(2, 3)) for each in maps], dim=1)

            widths = [encoder.config.stage_dim(stage) for stage in range(encoder.config.num_stages)]
            (train, labels), (test, truth) = (
                features(images, self.reader, pooled, sum(widths)) for images in (self.training, self.evaluated)
            )
        parts = zip(train.split(widths, dim=1), test.split(widths, dim=1), strict=True)
        return [score(known, labels, other, truth, len(self.training.names)) for known, other in parts]


def features(images: Labelled, reader: Reader, of: Callable[[Tensor], Tensor], width: int) -> tuple[Tensor, np.ndarray]:
    """Compute float64 (n, width) features and int64 (n,) classes of the images that can be read, on every process.

    Args:
        of: images as a batch has them (B, C, H, W) -> (B, width).

    Raises:
        UserError: none can be read.
    """
    rows = torch.zeros(len(images), 1 + width, dtype=torch.float64)
    for batch in reader.batches(images.images):
        read = read_of(batch)
        values = of(batch.images).cpu().double()[read]
        rows[batch.indices[read]] = torch.cat([torch.ones(len(values), 1, dtype=torch.float64), values], dim=1)
    rows = reader.reduce(rows)
    done = rows[:, 0] > 0
    if not done.any():
        raise UserError("there is no image to probe on that can be read")
    return rows[done, 1:], images.targets[done.numpy()]


def colours_of(images: Labelled, reader: Reader) -> tuple[Tensor, np.ndarray]:
    """Compute histograms as `features`: of the images' colours, or of their channels' values where they are not RGB.

    A task that these solve says nothing about an encoder.
    """
    if reader.preprocess.preprocessing.scale == 255:
        return features(images, reader, colour_histogram, 3 * CHANNEL_BINS + JOINT_BINS**3)
    width = len(reader.preprocess.preprocessing.mean) * CHANNEL_BINS
    return features(images, reader, lambda values: value_histogram(reader.preprocess.normalized(values)), width)


def score(known: Tensor, labels: np.ndarray, others: Tensor, truth: np.ndarray, classes: int) -> Score:
    """Learn from known features and test on others; float64 (n, D) and (m, D), int64 (n,) and (m,)."""
    mean, std = known.mean(dim=0), known.std(dim=0, correction=0)
    # a feature that never changes says nothing, and would be divided by 0
    scale = torch.where(std > 1e-12 * (1 + mean.abs()), 1 / std.clamp_min(1e-300), 0)
    known, others = (known - mean) * scale, (others - mean) * scale
    wanted = torch.from_numpy(labels)
    linear = linear_probe(known, wanted, others, classes)
    near = nearest_neighbours(known, wanted, others, classes)
    return Score(*accuracies(linear.numpy(), truth), *accuracies(near.numpy(), truth))


def accuracies(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Compute the share of right predictions, over all images and as the mean over the classes that have images."""
    right = predicted == truth
    return float(right.mean()), float(np.mean([right[truth == number].mean() for number in np.unique(truth)]))


def nearest_neighbours(known: Tensor, labels: Tensor, others: Tensor, classes: int) -> Tensor:
    """Predict int64 (m,) the class for which the 20 most similar of the known features (n, D) vote."""
    known = F.normalize(known, dim=1)
    votes = F.one_hot(labels, classes).double()
    found = []
    for part in F.normalize(others, dim=1).split(1024):
        similar, index = (part @ known.T).topk(min(NEIGHBOURS, len(known)), dim=1)
        weight = (similar / TEMPERATURE).exp()  # (1024, k)
        found.append((weight[..., None] * votes[index]).sum(dim=1).argmax(dim=1))
    return torch.cat(found)


def linear_probe(known: Tensor, labels: Tensor, others: Tensor, classes: int) -> Tensor:
    """Predict int64 (m,) by logistic regression, its penalty chosen on a fifth of what it learns from."""
    order = labels.argsort(stable=True)
    starts = torch.searchsorted(labels[order], labels[order])
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - starts  # 0 for the first image of its class, and so on
    back = rank % HELD_BACK == HELD_BACK - 1
    penalty = PENALTIES[len(PENALTIES) // 2]
    if back.any():
        losses = []
        for candidate in PENALTIES:
            logits = _regression(known[~back], labels[~back], classes, candidate)(known[back])
            losses.append(float(F.cross_entropy(logits, labels[back])))
        penalty = PENALTIES[int(np.argmin(losses))]
    return _regression(known, labels, classes, penalty)(others).argmax(dim=1)


def _regression(known: Tensor, labels: Tensor, classes: int, penalty: float) -> Callable[[Tensor], Tensor]:
    """features -> logits, by the weights that minimise cross-entropy + penalty / 2 |weights|^2."""
    weight = torch.zeros(known.shape[1], classes, dtype=known.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=known.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=200, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(known @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    weight, bias = weight.detach(), bias.detach()
    return lambda values: values @ weight + bias


def colour_histogram(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float64 (B, 608): the square roots of the shares of the pixels in bins of colour.

    32 bins of each channel, then 8 x 8 x 8 of all three together.
    """
    pixels = images.flatten(2).long()  # (B, 3, H W)
    channels = pixels * CHANNEL_BINS // 256 + torch.arange(3)[:, None] * CHANNEL_BINS
    joint = pixels * JOINT_BINS // 256
    joint = (joint[:, 0] * JOINT_BINS + joint[:, 1]) * JOINT_BINS + joint[:, 2] + 3 * CHANNEL_BINS  # (B, H W)
    bins = torch.cat([channels.flatten(1), joint], dim=1)
    counts = torch.zeros(len(images), 3 * CHANNEL_BINS + JOINT_BINS**3, dtype=torch.float64)
    counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float64))
    return (counts / pixels.shape[2]).sqrt()


def value_histogram(values: Tensor) -> Tensor:
    """Float (B, C, H, W) of mean 0 and std 1 -> float64 (B, 32 C): the square roots of the shares of 32 bins.

    The bins of a channel go from 3 std below its mean to 3 above; what is beyond is in the last ones. Pixels that are
    NaN do not count, and an image without others has zeros. The result is on the CPU, whatever the device.
    """
    values = values.flatten(2).cpu()  # (B, C, H W); MPS has no float64
    there = ~values.isnan()
    bins = ((values + SPAN) / (2 * SPAN) * CHANNEL_BINS).nan_to_num(0).clamp(0, CHANNEL_BINS - 1).long()
    counts = torch.zeros(*values.shape[:2], CHANNEL_BINS, dtype=torch.float64)
    counts.scatter_add_(2, bins, there.double())
    return (counts / there.sum(dim=2, keepdim=True).clamp_min(1)).sqrt().flatten(1)
