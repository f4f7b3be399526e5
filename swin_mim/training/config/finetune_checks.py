"""Constraints of a fine-tuning run: what goes together. The settings are in `finetune.py`."""

from dataclasses import fields
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

from swin_mim.architecture import NAMED, SwinConfig
from swin_mim.data.transforms.rand_augment import check_policy
from swin_mim.errors import UserError
from swin_mim.training.config import common_checks
from swin_mim.training.config.common_checks import accumulation, one_or_pair
from swin_mim.training.config.finetune import (
    AugmentConfig,
    ClassifierConfig,
    FinetuneConfig,
    FinetuneSaveConfig,
    LabelledDataConfig,
)

TABLES = (".csv", ".parquet")
"""Formats of predictions."""


def check(config: FinetuneConfig) -> None:
    """Raise a UserError for settings that cannot go together.

    Raises:
        UserError: names the keys, the values, the relation that fails and what is legal.
    """
    data = config.data
    constraints = (
        common_checks.run_constraints(config.run),
        common_checks.image_constraints(data),
        common_checks.crop_constraints(data.crop_scale, data.crop_ratio),
        _data_constraints(data),
        _channel_constraints(config),
        model_constraints(config.model),
        _augment_constraints(config.augment, config.model, config.train.micro_batch),
        _result_constraints(config),
        common_checks.hub_constraints(config.hub),
        common_checks.training_constraints(config.optim, config.train, config.save),
    )
    common_checks.validate(config, chain(*constraints))
    check_policy(config.augment.auto)
    periods = {"log.every": config.log.every, "log.evaluate_every": config.log.evaluate_every}
    common_checks.check_durations(config.optim, config.train, config.save, periods)
    if config.model.pretrained is None and not config.evaluate:
        new_encoder(config.model, data.channels)
    accumulation(config.train, world=1)


def best_by(save: FinetuneSaveConfig, *, multi_label: bool) -> str:
    """Metric that makes a checkpoint the best one."""
    if save.best_by == "auto":
        return "mean_average_precision" if multi_label else "accuracy"
    return "heldout_loss" if save.best_by == "loss" else save.best_by


def sizes(model: ClassifierConfig) -> dict[str, Any]:
    """Those of image_size and window_size that are given, for `from_pretrained`."""
    given = {"image_size": model.image_size, "window_size": model.window_size}
    return {field: one_or_pair(side) for field, side in given.items() if side is not None}


def new_encoder(model: ClassifierConfig, channels: tuple[str, ...] | None = None) -> SwinConfig:
    """Architecture that the settings describe, for new weights; `channels` None means RGB.

    Raises:
        UserError: they do not say enough, or no Swin has these values.
    """
    for key in ("name", "image_size", "window_size"):
        if getattr(model, key) is None:
            raise UserError(
                f"model.{key} is needed where there is no model.pretrained: give --model.pretrained, or from new "
                "weights --model.name, --model.image-size and --model.window-size"
            )
    architecture = {key: value for key, value in _architecture(model).items() if key in _given(model)}
    architecture |= {"in_channels": 3 if channels is None else len(channels), "drop_path_rate": model.drop_path_rate}
    try:
        return SwinConfig.named(str(model.name), **architecture, **sizes(model))
    except UserError as error:
        raise UserError(f"model: {error}") from None


def check_architecture(model: ClassifierConfig, found: SwinConfig) -> None:
    """Raise a UserError for pretrained weights of another architecture than the settings name.

    Raises:
        UserError: the first difference.
    """
    for key, wanted in _architecture(model).items():
        theirs = getattr(found, key)
        if theirs != wanted:
            setting = f"model.{key}" if getattr(model, key, None) is not None else f"model.name {model.name}, {key}"
            raise UserError(
                f"{setting} is {wanted} and that of model.pretrained {model.pretrained} is {theirs}: leave it out, "
                "the architecture comes with the weights"
            )


def _given(model: ClassifierConfig) -> set[str]:
    return {field.name for field in fields(model) if getattr(model, field.name) is not None}


def _architecture(model: ClassifierConfig) -> dict[str, Any]:
    """Architecture as far as the settings give it: the named size, and what is given besides."""
    named: dict[str, Any] = {} if model.name is None else dict(NAMED.get(model.name, {}))
    keys = ("patch_size", "embed_dim", "depths", "num_heads")
    return named | {key: getattr(model, key) for key in keys if getattr(model, key) is not None}


def _data_constraints(data: LabelledDataConfig) -> common_checks.Constraints:
    yield from common_checks.statistics_constraints(data.channels, data.mean, data.std)
    rule = "names files of a folder, and data.source is blue_marble: leave it out"
    yield "data.labels", data.labels is None or data.source != "blue_marble", rule
    yield "data.label_column", data.label_column != (), "names no column: leave it out"
    separate = common_checks.has_images_to_evaluate(data)
    yield "data.heldout", data.heldout >= 0, "must not be negative: use 0 for a tenth"
    rule = "is kept out of data.source, but other images to evaluate on are named, or are blue_marble's own: use 0"
    yield "data.heldout", not (data.heldout and separate), rule
    yield "data.labels_per_class", data.labels_per_class >= 0, "must not be negative: use 0 for all"
    yield "data.subset_seed", data.subset_seed >= 0, "must not be negative: use 0"
    rule = "needs one label for each image, and data.multi_label is on: use {}"
    yield "data.labels_per_class", not (data.multi_label and data.labels_per_class), rule.format("0")
    yield "data.balance", not data.multi_label or data.balance == "none", rule.format("none")
    yield "data.crop_pct", 0 < data.crop_pct <= 1, "must be above 0 and up to 1: use 0.875"


def _channel_constraints(config: FinetuneConfig) -> common_checks.Constraints:
    """Constraints of images that are not read as RGB, and of options for one of the two kinds."""
    data, augment, rasters = config.data, config.augment, config.data.channels is not None
    yield from common_checks.channel_constraints(data, rasters, "set data.channels")
    yield "data.source", not rasters or data.source != "blue_marble", "is RGB: leave data.channels out"
    new = rasters and config.model.pretrained is None and not config.evaluate
    for key, values in (("data.mean", data.mean), ("data.std", data.std)):
        yield key, not new or values is not None, "is needed for data.channels, as swin-mim stats measures it"
    augmented = rasters and not config.evaluate
    rule = "is for RGB images, and these are read as data.channels says: use {}"
    yield "augment.auto", not augmented or augment.auto is None, rule.format("None, in YAML null")
    for name in ("color_jitter", "random_erasing"):
        yield f"augment.{name}", not augmented or not getattr(augment, name), rule.format(0)


def model_constraints(model: ClassifierConfig) -> common_checks.Constraints:
    """Constraints of encoder and first weights."""
    for key in ("image_size", "window_size"):
        sides = getattr(model, key)
        rule = "must be one number, or height and width"
        yield f"model.{key}", sides is None or len(sides) in (1, 2), rule
        yield f"model.{key}", sides is None or min(sides, default=0) > 0, "must be positive"
    rule = f"is no named size: the names are {', '.join(NAMED)}"
    yield "model.name", model.name is None or model.name in NAMED, rule
    yield "model.drop_path_rate", 0 <= model.drop_path_rate < 1, "must be at least 0 and less than 1: use 0.1"
    yield "model.freeze", model.freeze >= 0, "must not be negative: use 0 to train all"
    yield "model.freeze", not model.freeze or model.pretrained is not None, "needs model.pretrained: new weights learn"


def _augment_constraints(
    augment: AugmentConfig, model: ClassifierConfig, micro_batch: int
) -> common_checks.Constraints:
    square = len(set(model.image_size or (0,))) == 1
    rule = "turns images by quarters, and model.image_size is not square: use both"
    yield "augment.flips", square or augment.flips != "dihedral", rule
    for name in ("color_jitter", "mixup", "cutmix"):
        yield f"augment.{name}", getattr(augment, name) >= 0, "must not be negative: use 0 to switch it off"
    for name in ("random_erasing", "mix_probability", "mix_switch"):
        yield f"augment.{name}", 0 <= getattr(augment, name) <= 1, "must be at least 0 and at most 1"
    smoothing = augment.label_smoothing
    yield "augment.label_smoothing", 0 <= smoothing < 1, "must be at least 0 and less than 1"
    rule = "must be even: Mixup and CutMix mix neighbouring images; or switch both off (augment.mixup 0, cutmix 0)"
    yield "train.micro_batch", not mixes(augment) or micro_batch % 2 == 0, rule


def _result_constraints(config: FinetuneConfig) -> common_checks.Constraints:
    yield "optim.layer_decay", 0 < config.optim.layer_decay <= 1, "must be above 0 and up to 1: use 1 for none"
    yield "train.ema", 0 <= config.train.ema < 1, "must be at least 0 and less than 1: use 0 for none"
    table = config.predictions is None or PurePath(config.predictions).suffix in TABLES
    yield "predictions", table, f"must end in {' or '.join(TABLES)}"
    rule = "is a table of images or labels, which the predictions would replace: name another one"
    yield "predictions", config.predictions is None or not _holds_data(Path(config.predictions), config.data), rule
    several = config.save.best_by in ("auto", "loss", "mean_average_precision" if config.data.multi_label else "")
    single = config.save.best_by != "mean_average_precision"
    kind = "several labels" if config.data.multi_label else "one label"
    rule = f"is not measured where images have {kind}: use auto"
    yield "save.best_by", several if config.data.multi_label else single, rule


def _holds_data(predictions: Path, data: LabelledDataConfig) -> bool:
    file = predictions.expanduser().resolve()
    named = {Path(each).expanduser().resolve() for each in (data.source, data.labels, data.validation) if each}
    return file in named or (file.exists() and file.parent in named)


def mixes(augment: AugmentConfig) -> bool:
    """Whether Mixup or CutMix ever mixes."""
    return augment.mix_probability > 0 and (augment.mixup > 0 or augment.cutmix > 0)
