"""What there is to learn in images: their entropy, and what filling holes without learning leaves to be predicted."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from swin_mim.architecture import as_pair
from swin_mim.data.loading.loader import Batch, LoaderOptions, owned
from swin_mim.data.sources.base import Source, Subset
from swin_mim.data.statistics import spread_indices
from swin_mim.evaluation.reader import Reader
from swin_mim.evaluation.validation import baseline_errors
from swin_mim.masking import BlockMasks, masked_units
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training.config.pretrain import MaskConfig, PretrainConfig
from swin_mim.training.config.pretrain_checks import swin_config
from swin_mim.training.images import preprocessing_of

LOOKED_AT = 48
"""Images that holes are filled in."""
LEVELS = 256
NOTHING = 1e-4
"""Error of the mean fill, in std of the images, under which there is nothing to predict."""


@dataclass(frozen=True)
class Filled:
    """Errors of holes that are filled with nothing learned: masked L1 of normalised pixels."""

    unit: int
    """Side of the holes' units in pixels."""
    mean_fill: float
    interpolation: float

    @property
    def share(self) -> float | None:
        """Interpolation over mean fill; None: there is nothing to predict."""
        return self.interpolation / self.mean_fill if self.mean_fill > NOTHING else None


@dataclass(frozen=True)
class Forecast:
    """What is known of the images before anything is trained."""

    looked_at: int
    entropy: float
    """Of the grey levels of an image in bits, from 0 to 8, the median; of other channels their mean."""
    filled: tuple[Filled, ...]
    """At mask.unit first, then at larger units."""
    unlabelled: int
    labelled: int | None
    """As it was told; None: not known."""

    @property
    def per_label(self) -> float | None:
        """Unlabelled over labelled images."""
        return self.unlabelled / self.labelled if self.labelled else None


def forecast_of(
    config: PretrainConfig, training: Source, channels: tuple[str, ...] | None, labelled: int | None
) -> Forecast:
    """Fill holes in a few images, evenly spread, under the masks of a run, at mask.unit and at larger units.

    Args:
        config: a pretraining that passed its checks.
        channels: names of those that images have; None: they are RGB.
        labelled: number of images with labels, if it is known.

    Raises:
        UserError: too many images cannot be read.
    """
    preprocess = Preprocessor(preprocessing_of(config.data, channels), torch.device("cpu"))
    swin = swin_config(config.model)
    reader = Reader(preprocess, as_pair(swin.image_size), lambda values: values, iter, 8, LoaderOptions())
    chosen = Subset(training, spread_indices(len(training), LOOKED_AT))
    batches = [owned(batch) for batch in reader.batches(chosen)]
    bits = torch.cat([entropies(batch.images, batch.valid) for batch in batches])
    filled = tuple(_filled(config, unit, batches, preprocess) for unit in units(config))
    return Forecast(len(chosen), float(bits.quantile(0.5)), filled, len(training), labelled)


def units(config: PretrainConfig) -> Iterator[int]:
    """mask.unit, and its doubles that still leave four units of an image and can be masked at mask.ratio."""
    unit, sides = config.mask.unit, as_pair(swin_config(config.model).image_size)
    yield unit
    while all(side % (2 * unit) == 0 and side >= 4 * unit for side in sides):
        unit *= 2
        height, width = (side // unit for side in sides)
        if masked_units((height, width), 1, config.mask.ratio) == height * width:  # a pretraining refuses to mask all
            return
        yield unit


def entropies(images: Tensor, valid: Tensor | None = None) -> Tensor:
    """Entropy in bits of the values of each image, float64 (B,): of its grey levels, or the mean over its channels.

    Args:
        images: uint8 (B, 3, H, W), or float (B, C, H, W), of which each channel has 256 levels over its own range.
        valid: bool (B, H, W), the pixels that count; None: all.
    """
    if images.dtype == torch.uint8:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        levels = (images * weights).sum(1, keepdim=True).round().long().clamp(0, LEVELS - 1)
    else:
        there = images.isfinite() if valid is None else valid[:, None].expand_as(images)
        low = images.where(there, torch.inf).amin((2, 3), keepdim=True)
        high = images.where(there, -torch.inf).amax((2, 3), keepdim=True)
        scaled = (images - low) / (high - low).clamp_min(1e-30) * LEVELS
        levels = scaled.nan_to_num(0, 0, 0).clamp(0, LEVELS - 1).long()
    weight = torch.ones_like(levels, dtype=torch.float64)
    if valid is not None:
        weight = weight * valid[:, None]
    counts = torch.zeros(*levels.shape[:2], LEVELS, dtype=torch.float64)
    counts.scatter_add_(2, levels.flatten(2), weight.flatten(2))
    shares = counts / counts.sum(2, keepdim=True).clamp_min(1)
    return -(shares * shares.clamp_min(1e-300).log2()).sum(2).mean(1)


def _filled(config: PretrainConfig, unit: int, batches: list[Batch], preprocess: Preprocessor) -> Filled:
    swin = swin_config(config.model)
    mask: MaskConfig = replace(config.mask, unit=unit)
    masks = BlockMasks.of(swin, unit=mask.unit, ratio=mask.ratio)
    draw = partial(_drawn, masks)
    options = {"prepare": preprocess, "draw_mask": draw, "patch": swin.patch_size, "reduce": lambda values: values}
    return Filled(unit, **baseline_errors(batches, **options))  # type: ignore[arg-type]


def _drawn(masks: BlockMasks, batch: Batch) -> Tensor:
    cpu = torch.device("cpu")
    return masks.draw(len(batch.images), seed=0, start=batch.start, device=cpu, **batch.valid_on(cpu))
