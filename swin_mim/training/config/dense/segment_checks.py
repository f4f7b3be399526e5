"""Constraints of a semantic segmentation: what goes together. The settings are in `segment.py`."""

from itertools import chain
from pathlib import Path, PurePath

from swin_mim.data.dense.limits import IMAGE_FOLDERS, MASK_FOLDERS, MAX_CLASSES, MAX_NUMBER
from swin_mim.training.config import common_checks
from swin_mim.training.config.common_checks import accumulation
from swin_mim.training.config.dense.segment import MaskedDataConfig, SegmentConfig, SegmenterConfig, SegmentSaveConfig
from swin_mim.training.config.finetune_checks import model_constraints, new_encoder


def check(config: SegmentConfig) -> None:
    """Raise a UserError for settings that cannot go together.

    Raises:
        UserError: names the keys, the values, the relation that fails and what is legal.
    """
    constraints = (
        common_checks.run_constraints(config.run),
        common_checks.image_constraints(config.data),
        _data_constraints(config.data),
        _channel_constraints(config),
        model_constraints(config.model),
        _head_constraints(config.model),
        _augment_constraints(config),
        _result_constraints(config),
        common_checks.hub_constraints(config.hub),
        common_checks.training_constraints(config.optim, config.train, config.save),
    )
    common_checks.validate(config, chain(*constraints))
    periods = {"log.every": config.log.every, "log.evaluate_every": config.log.evaluate_every}
    common_checks.check_durations(config.optim, config.train, config.save, periods)
    if config.model.pretrained is None and not config.evaluate:
        new_encoder(config.model, config.data.channels)
    accumulation(config.train, world=1)


def best_by(save: SegmentSaveConfig) -> str:
    """Metric that makes a checkpoint the best one."""
    return "heldout_loss" if save.best_by == "loss" else save.best_by


def _data_constraints(data: MaskedDataConfig) -> common_checks.Constraints:
    yield from common_checks.statistics_constraints(data.channels, data.mean, data.std)
    few = data.num_classes is None or 1 <= data.num_classes <= MAX_CLASSES
    yield "data.num_classes", few, f"must be 1 to {MAX_CLASSES}"
    for name in ("first_class", "ignore_index"):
        yield f"data.{name}", 0 <= getattr(data, name) <= MAX_NUMBER, f"must be 0 to {MAX_NUMBER}"
    rule = "is for data.validation, which is not given: leave it out"
    for name in ("validation_masks", "validation_panoptic_folder"):
        yield f"data.{name}", getattr(data, name) is None or data.validation is not None, rule
    yield from _coco_constraints(data)
    separate = common_checks.has_images_to_evaluate(data)
    yield "data.heldout", data.heldout >= 0, "must not be negative: use 0 for a tenth"
    rule = "is kept out of data.source, but other images to evaluate on are named, or are blue_marble's own: use 0"
    yield "data.heldout", not (data.heldout and separate), rule
    yield "data.images", data.images >= 0, "must not be negative: use 0 for all"
    yield "data.subset_seed", data.subset_seed >= 0, "must not be negative: use 0"
    yield "data.resize", data.resize is None or data.resize > 0, "must be positive"


def _coco_constraints(data: MaskedDataConfig) -> common_checks.Constraints:
    of_coco = [masks is not None and masks.lower().endswith(".json") for masks in (data.masks, data.validation_masks)]
    rule = (
        "is for masks of class numbers, and data.masks is a JSON file of COCO's, which names its classes: leave it out"
    )
    usual = MaskedDataConfig()
    for name in ("class_names", "num_classes", "first_class", "ignore_index"):
        yield f"data.{name}", not of_coco[0] or getattr(data, name) == getattr(usual, name), rule
    rule = "is for data.masks of a JSON file of COCO's: leave it out"
    yield "data.uncovered", any(of_coco) or data.uncovered == "auto", rule


def _channel_constraints(config: SegmentConfig) -> common_checks.Constraints:
    data, rasters = config.data, config.data.channels is not None
    yield from common_checks.channel_constraints(data, rasters, "set data.channels")
    yield "data.source", not rasters or data.source != "blue_marble", "is RGB: leave data.channels out"
    new = rasters and config.model.pretrained is None and not config.evaluate
    for key, values in (("data.mean", data.mean), ("data.std", data.std)):
        yield key, not new or values is not None, "is needed for data.channels, as swin-mim stats measures it"
    rule = "is for RGB images, and these are read as data.channels says: use false"
    yield "augment.photometric", not (rasters and config.augment.photometric), rule


def _head_constraints(model: SegmenterConfig) -> common_checks.Constraints:
    yield "model.head_channels", model.head_channels is None or model.head_channels >= 4, "must be at least 4"
    yield "model.head_dropout", 0 <= model.head_dropout < 1, "must be at least 0 and less than 1: use 0 for none"
    yield "model.auxiliary_weight", model.auxiliary_weight >= 0, "must not be negative: use 0"


def _augment_constraints(config: SegmentConfig) -> common_checks.Constraints:
    augment = config.augment
    yield "augment.scale", 0 < augment.scale[0] <= augment.scale[1], "must be min and max, above 0: use 1 1 for none"
    yield "augment.max_share", 0 < augment.max_share <= 1, "must be above 0 and up to 1: use 1 for any crop"
    square = len(set(config.model.image_size or (0,))) == 1
    rule = "turns images by quarters, and model.image_size is not square: use both"
    yield "augment.flips", square or augment.flips != "dihedral", rule


def _result_constraints(config: SegmentConfig) -> common_checks.Constraints:
    yield "optim.layer_decay", 0 < config.optim.layer_decay <= 1, "must be above 0 and up to 1: use 1 for none"
    yield "train.ema", 0 <= config.train.ema < 1, "must be at least 0 and less than 1: use 0 for none"
    yield "log.pictures", config.log.pictures >= 0, "must not be negative: use 0 for none"
    folder = config.predictions is None or not PurePath(config.predictions).suffix
    yield "predictions", folder, "must be a folder: a mask is written for every image"
    rule = "is a folder of images or masks, which predictions of the same names would replace: name another one"
    yield "predictions", config.predictions is None or not _holds_data(config.predictions, config.data), rule


def _holds_data(predictions: str, data: MaskedDataConfig) -> bool:
    folders = (data.panoptic_folder, data.validation_panoptic_folder)
    named = (data.source, data.masks, data.validation, data.validation_masks, *folders)
    given = [Path(folder).expanduser() for folder in named if folder]
    # the PNGs of a panoptic file lie beside it, in a folder of its name
    given += [file.with_suffix("") for file in given if file.suffix.lower() == ".json"]
    inside = [folder / name for folder in given for name in (*IMAGE_FOLDERS, *MASK_FOLDERS)]
    return Path(predictions).expanduser().resolve() in {folder.resolve() for folder in (*given, *inside)}
