"""The labelled images that a run's settings name: to train on, and to evaluate on."""

import os
import re
from pathlib import Path
from typing import Any

from swin_mim.data.labels import (
    Labelled,
    check_classes,
    labels_per_class,
    open_labelled,
    split_labelled,
    with_classes,
)
from swin_mim.data.sources.listed import is_table_file
from swin_mim.data.sources.packed import packed_rasters
from swin_mim.data.transforms.crops import FinetuneTransform
from swin_mim.errors import UserError
from swin_mim.training.config.common_checks import has_images_to_evaluate
from swin_mim.training.config.finetune import FinetuneConfig, LabelledDataConfig
from swin_mim.training.config.pretrain import DataConfig, PretrainConfig
from swin_mim.training.images import decode_options, named_channels
from swin_mim.weights.config_json import Preprocessing

HELDOUT_SEED = 0
"""Decides which images of a source are held out: the same in every run, so that results can be compared."""


def to_train_and_evaluate(data: LabelledDataConfig) -> tuple[Labelled, Labelled]:
    """Those of data.source, and those of data.validation or the split data.validation_split: with the same classes.

    Without these two a part of each class of data.source is held out; blue_marble has tiles for it.

    Raises:
        UserError: they cannot be opened, the first ones are all of one class, or the second ones have classes
            that the first ones lack.
    """
    # of a table of file names, what is evaluated on is never trained on
    other = data.validation_split if data.validation is None else None
    options = {"split": data.split, "labels": data.labels, "other_split": other, **_columns(data)}
    training = open_labelled(data.source, exclude=data.exclude, **options)
    check_classes(training, data.source)
    if not has_images_to_evaluate(data):
        training, evaluated = split_labelled(training, data.heldout, HELDOUT_SEED)
        if not len(evaluated):
            raise UserError(
                f"data.source {data.source!r} has too few images to hold some out: name others with data.validation"
            )
    else:
        evaluated = with_classes(to_evaluate(data), training.names)
    if data.labels_per_class:
        training = labels_per_class(training, data.labels_per_class, data.subset_seed)
    return training, evaluated


def to_probe(data: LabelledDataConfig, images: int, seed: int) -> tuple[Labelled, Labelled]:
    """As `to_train_and_evaluate`, with at most `images` to learn from, as many of each class and at least one.

    Raises:
        UserError: they cannot be opened.
    """
    training, evaluated = to_train_and_evaluate(data)
    each = min(max(1, images // len(training.names)), int(training.counts().max()))
    return labels_per_class(training, each, seed), evaluated


def named_by(config: PretrainConfig, channels: tuple[str, ...] | None) -> LabelledDataConfig:
    """The labelled images that a pretraining is probed on; `channels` are those it takes, None: RGB."""
    probe, own = config.probe, config.data
    return LabelledDataConfig(
        source=probe.source or own.source,
        config=None if probe.source else own.config,
        column=None if probe.source else own.column,
        split=probe.split,
        label_column=None if probe.label_column is None else (probe.label_column,),
        validation=probe.validation,
        validation_split=probe.validation_split,
        channels=own.channels or channels,  # as they were chosen: other files may have no names
        **_gaps(own, probe.source),
        stack=probe.stack if probe.source else own.stack,
        exclude=None if probe.source else own.exclude,
        max_pixels=own.max_pixels,
        color_profile=own.color_profile,
    )


def _gaps(own: DataConfig, other: str | None) -> dict[str, Any]:
    """What marks the gaps of the images `other`: what marks those of the training, unless one of both is packed."""
    gaps = {"nodata": own.nodata, "mask_channel": own.mask_channel}
    if other is None:
        return gaps
    if packed_rasters(Path(os.path.expanduser(other))):
        return dict.fromkeys(gaps)
    packed = packed_rasters(Path(os.path.expanduser(own.source)))
    return {"nodata": packed.nodata, "mask_channel": packed.mask_channel} if packed else gaps


def to_probe_in(config: PretrainConfig, channels: tuple[str, ...] | None, seed: int) -> tuple[Labelled, Labelled]:
    """`to_probe` of the images that a pretraining's settings name; `channels` are those it takes, None: RGB.

    Raises:
        UserError: as `to_probe`, of the settings of the probe.
    """
    try:
        return to_probe(named_by(config, channels), config.probe.images, seed)
    except UserError as error:
        text = re.sub(r"data\.(validation(_split)?|label_column|split)\b", r"probe.\1", str(error))
        raise UserError(re.sub(r"data\.(source|stack)\b", r"probe.\1", text) if config.probe.source else text) from None


def to_evaluate(data: LabelledDataConfig) -> Labelled:
    """All images of data.validation, or else of data.source; of the split data.validation_split where that is given.

    Raises:
        UserError: they cannot be opened.
    """
    usual = "train" if data.validation else data.split
    if (data.validation or data.source) == "blue_marble" and usual == "train":
        usual = "validation"  # tiles overlap: none of those to train on can be held out
    split = data.validation_split or usual
    # the table may be of both; one that is named as data.validation says its labels itself
    labels = None if data.validation and is_table_file(data.validation) else data.labels
    try:
        exclude = None if has_images_to_evaluate(data) else data.exclude
        spec = data.validation or data.source
        return open_labelled(spec, exclude=exclude, split=split, labels=labels, **_columns(data))
    except UserError as error:
        if data.validation is None:
            raise
        raise type(error)(str(error).replace("data.source", "data.validation")) from None


def _columns(data: LabelledDataConfig) -> dict[str, Any]:
    return {
        "config": data.config,
        "column": data.column,
        "label_column": data.label_column,
        "multi_label": data.multi_label,
        "bands": named_channels(data),
        "stack": data.stack,
        "decoding": decode_options(data),
    }


def finetune_transform(
    config: FinetuneConfig, preprocessing: Preprocessing, size: tuple[int, int]
) -> FinetuneTransform:
    """The augmentation that the settings describe, for images of (H, W) pixels."""
    data, augment = config.data, config.augment
    return FinetuneTransform(
        size,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        interpolation=preprocessing.interpolation,
        flips=augment.flips,
        auto=augment.auto,
        color_jitter=augment.color_jitter,
        random_erasing=augment.random_erasing,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
