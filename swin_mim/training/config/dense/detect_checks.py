"""Constraints of an object detection: what goes together. The settings are in `detect.py`."""

from itertools import chain
from pathlib import Path, PurePath

from swin_mim.training.config import common_checks
from swin_mim.training.config.common_checks import accumulation
from swin_mim.training.config.dense.detect import BoxedDataConfig, DetectConfig, DetectSaveConfig
from swin_mim.training.config.finetune_checks import model_constraints, new_encoder


def check(config: DetectConfig) -> None:
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
        _other_constraints(config),
        common_checks.hub_constraints(config.hub),
        common_checks.training_constraints(config.optim, config.train, config.save),
    )
    common_checks.validate(config, chain(*constraints))
    periods = {"log.every": config.log.every, "log.evaluate_every": config.log.evaluate_every}
    common_checks.check_durations(config.optim, config.train, config.save, periods)
    if config.model.pretrained is None and not config.evaluate:
        new_encoder(config.model, config.data.channels)
    accumulation(config.train, world=1)


def best_by(save: DetectSaveConfig) -> str:
    """Metric that makes a checkpoint the best one."""
    return "AP" if save.best_by == "auto" else save.best_by


def _data_constraints(data: BoxedDataConfig) -> common_checks.Constraints:
    yield from common_checks.statistics_constraints(data.channels, data.mean, data.std)
    rule = "is for data.validation, which is not given: leave it out"
    yield "data.validation_folder", data.validation_folder is None or data.validation is not None, rule
    separate = common_checks.has_images_to_evaluate(data)
    yield "data.heldout", data.heldout >= 0, "must not be negative: use 0 for a tenth"
    rule = "is kept out of data.source, but other images to evaluate on are named, or are blue_marble's own: use 0"
    yield "data.heldout", not (data.heldout and separate), rule
    yield "data.images", data.images >= 0, "must not be negative: use 0 for all"
    yield "data.subset_seed", data.subset_seed >= 0, "must not be negative: use 0"


def _channel_constraints(config: DetectConfig) -> common_checks.Constraints:
    data, rasters = config.data, config.data.channels is not None
    rule = "makes an image of several files, and objects are of images that are one file each: leave it out"
    yield "data.stack", data.stack is None, rule
    yield from common_checks.channel_constraints(data, rasters, "set data.channels")
    yield "data.source", not rasters or data.source != "blue_marble", "is RGB: leave data.channels out"
    new = rasters and config.model.pretrained is None and not config.evaluate
    for key, values in (("data.mean", data.mean), ("data.std", data.std)):
        yield key, not new or values is not None, "is needed for data.channels, as swin-mim stats measures it"


def _other_constraints(config: DetectConfig) -> common_checks.Constraints:
    channels, scale = config.model.head_channels, config.augment.scale
    yield "model.head_channels", channels is None or channels > 0, "must be positive: use 256"
    anchor = config.model.smallest_anchor
    rule = "must be at least 4 pixels: make smaller objects larger with model.image_size"
    yield "model.smallest_anchor", anchor is None or anchor >= 4, rule
    yield "augment.scale", 0 < scale[0] <= scale[1], "must be min and max, above 0: use 1 1 for none"
    yield "augment.copy_paste", 0 <= config.augment.copy_paste <= 1, "must be at least 0 and at most 1: use 0 for none"
    yield "optim.layer_decay", 0 < config.optim.layer_decay <= 1, "must be above 0 and up to 1: use 1 for none"
    yield "train.ema", 0 <= config.train.ema < 1, "must be at least 0 and less than 1: use 0 for none"
    shapes = config.save.best_by != "mask_AP" or config.model.masks is not False
    yield "save.best_by", shapes, "is of shapes, and model.masks is false: use AP"
    results = config.predictions is None or PurePath(config.predictions).suffix == ".json"
    yield "predictions", results, "must end in .json: it becomes a file of COCO's results"
    if config.predictions is not None:
        file = Path(config.predictions).expanduser().resolve()
        named = [Path(each).expanduser().resolve() for each in (config.data.source, config.data.validation) if each]
        rule = "is a file of annotations, which the predictions would replace: name another one"
        yield "predictions", file not in named, rule
