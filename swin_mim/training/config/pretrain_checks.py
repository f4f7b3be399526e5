"""Constraints of a pretraining run: what goes together. The settings are in `pretrain.py`."""

import math
import os
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from swin_mim.architecture import SwinConfig, as_pair, nearest_multiple
from swin_mim.counts import counted
from swin_mim.data.sources.packed import packed_rasters
from swin_mim.errors import UserError
from swin_mim.training.config import common_checks
from swin_mim.training.config.common_checks import accumulation, nearest_divisor, one_or_pair
from swin_mim.training.config.durations import to_steps
from swin_mim.training.config.pretrain import (
    DataConfig,
    LogConfig,
    MaskConfig,
    ModelConfig,
    PretrainConfig,
    ProbeConfig,
    TeacherConfig,
)
from swin_mim.weights.heads import head_outputs, hog_cell


def with_packed_channels(config: PretrainConfig) -> PretrainConfig:
    """Fill in what packed images of other channels than RGB say of themselves.

    That is model.in_channels, data.channels, data.mean and data.std, each as long as it has its default value.

    Raises:
        UserError: their manifest is damaged.
    """
    data, plain = config.data, DataConfig()
    packed = packed_rasters(Path(os.path.expanduser(data.source)))
    if packed is None:
        return config
    channels = data.channels
    if channels is None and config.model.in_channels in (ModelConfig().in_channels, len(packed.channels)):
        channels = packed.channels
    numbered = {str(place + 1): place for place in range(len(packed.channels))}
    known = numbered | {name: place for place, name in enumerate(packed.channels)}
    places = [known[name] for name in channels or () if name in known]
    if channels is None or len(places) < len(channels):
        return config  # a wrong choice
    measured: dict[str, Any] = {
        name: tuple(getattr(packed, name)[place] for place in places) for name in ("mean", "std")
    }
    measured = {name: values for name, values in measured.items() if getattr(data, name) == getattr(plain, name)}
    return replace(
        config,
        data=replace(data, channels=channels, **measured),
        model=replace(config.model, in_channels=len(channels)),
    )


def swin_config(model: ModelConfig) -> SwinConfig:
    """Architecture that the settings describe.

    Raises:
        UserError: no Swin has these values.
    """
    sizes = {"embed_dim": model.embed_dim, "depths": model.depths, "num_heads": model.num_heads}
    overrides = {name: value for name, value in sizes.items() if value is not None}
    try:
        return SwinConfig.named(
            model.name,
            image_size=one_or_pair(model.image_size),
            window_size=one_or_pair(model.window_size),
            patch_size=model.patch_size,
            in_channels=model.in_channels,
            drop_path_rate=model.drop_path_rate,
            **overrides,
        )
    except UserError as error:
        raise UserError(f"model: {error}") from None


def check(config: PretrainConfig) -> None:
    """Raise a UserError for settings that cannot go together.

    What needs the number of images or of processes is checked where they are known: that the warm-up ends
    before the run, and `accumulation`.

    Raises:
        UserError: names the keys, the values, the relation that fails and the nearest values that are legal.
    """
    run, data, log = config.run, config.data, config.log
    constraints = (
        common_checks.run_constraints(run),
        common_checks.image_constraints(data),
        _streaming_constraints(data),
        common_checks.crop_constraints(data.crop_scale, data.crop_ratio),
        _model_constraints(config.model, config.mask, data),
        _channel_constraints(data, config.model, log),
        _teacher_constraints(config.teacher),
        _log_constraints(data, log, config.probe),
        common_checks.hub_constraints(config.hub),
        common_checks.training_constraints(config.optim, config.train, config.save),
    )
    common_checks.validate(config, chain(*constraints))
    periods = {
        "log.every": log.every,
        "log.evaluate_every": log.evaluate_every,
        "log.pictures_every": log.pictures_every,
        "probe.every": config.probe.every,
        "probe.first": config.probe.first,
    }
    common_checks.check_durations(config.optim, config.train, config.save, periods)
    if any(to_steps(length, dataset_size=1, global_batch=1) for length in (config.probe.every, config.probe.first)):
        _check_probes(config)
    _check_geometry(config.model, config.mask)
    _check_targets(config.model, config.mask)
    accumulation(config.train, world=1)


def _check_probes(config: PretrainConfig) -> None:
    data = config.data
    for key in ("source", "validation"):
        if getattr(config.probe, key) == "blue_marble" and reads_rasters(data, config.model):
            raise UserError(
                f"probe.{key} 'blue_marble' is RGB, and data.channels or model.in_channels say that images are not: "
                "name labelled images with these channels"
            )
    if config.probe.stack is not None and not (config.probe.source and reads_rasters(data, config.model)):
        raise UserError(
            f"probe.stack {config.probe.stack!r} is for a probe.source of files that are one channel each: leave it out"
        )
    if data.exclude is not None and not config.probe.source and config.probe.split != data.split:
        raise UserError(
            f"data.exclude {data.exclude!r} names images of data.split {data.split!r}, and probe.split is "
            f"{config.probe.split!r}, in which these names may be of other images: use the same split, or name the "
            "labelled images with probe.source"
        )
    if data.streaming and not config.probe.source:
        every, first = config.probe.every, config.probe.first
        key = f"probe.every {every!r}" if to_steps(every, dataset_size=1, global_batch=1) else f"probe.first {first!r}"
        raise UserError(
            f"{key} would read all of data.source for its labels, which data.streaming is to avoid: "
            "name labelled images with probe.source"
        )


def _teacher_constraints(teacher: TeacherConfig) -> common_checks.Constraints:
    yield "teacher.weight", teacher.weight > 0, "must be positive: GFM's is 1"
    named = teacher.model is not None
    yield "teacher.weight", named or teacher.weight == TeacherConfig().weight, "is of teacher.model, which is not given"
    yield "teacher.channels", named or teacher.channels is None, "are of teacher.model, which is not given"


def _log_constraints(data: DataConfig, log: LogConfig, probe: ProbeConfig) -> common_checks.Constraints:
    yield "data.heldout", data.heldout >= 0, "must not be negative: use 0 to keep none"
    yield "log.pictures", log.pictures >= 0, "must not be negative: use 0 for none"
    yield "probe.images", probe.images > 0, "must be positive: use 2000"


def _streaming_constraints(data: DataConfig) -> common_checks.Constraints:
    yield "data.shards_at_once", data.shards_at_once > 0, "must be positive: the smallest is 1"
    yield "data.cache_gb", data.cache_gb > 0, "must be positive: use 20"
    streamed = not data.streaming or data.source != "blue_marble"
    yield "data.streaming", streamed, "reads shards, and data.source is blue_marble: name parquet or tar files"
    yield "data.stack", not data.streaming or data.stack is None, "is a folder's: a shard has an image as one file"


def _model_constraints(model: ModelConfig, mask: MaskConfig, data: DataConfig) -> common_checks.Constraints:
    yield "model.in_channels", model.in_channels > 0, "must be positive: 3 for RGB"
    measure = ", as swin-mim stats measures them" if reads_rasters(data, model) else ""
    for key, channels in (("data.mean", data.mean), ("data.std", data.std)):
        entries = counted(len(channels), "entry", "entries")
        rule = f"has {entries} and model.in_channels is {model.in_channels}: give one for each{measure}"
        yield key, len(channels) == model.in_channels, rule
    yield "data.std", min(data.std) > 0, "must be positive"
    for key, sides in (("model.image_size", model.image_size), ("model.window_size", model.window_size)):
        entries = counted(len(sides), "entry", "entries")
        yield key, len(sides) in (1, 2), f"has {entries}: give one number, or height and width"
    square = len(set(model.image_size)) == 1
    yield (
        "data.flips",
        square or data.flips != "dihedral",
        "turns images by quarters, and model.image_size is not square: use both",
    )
    yield "model.patch_size", model.patch_size > 0, "must be positive: SimMIM's is 4"
    yield "mask.unit", mask.unit > 0, "must be positive: SimMIM's is 32"
    yield "mask.ratio", 0 < mask.ratio < 1, "must be more than 0 and less than 1: SimMIM's is 0.6"


def reads_rasters(data: DataConfig, model: ModelConfig) -> bool:
    """Whether images keep their channels and the values of their files, and are not made RGB."""
    return data.channels is not None or model.in_channels != 3


def _channel_constraints(data: DataConfig, model: ModelConfig, log: LogConfig) -> common_checks.Constraints:
    rasters, way_out = reads_rasters(data, model), "set model.in_channels, or data.channels"
    entries = counted(len(data.channels or ()), "entry", "entries")
    count = f"has {entries} and model.in_channels is {model.in_channels}: name as many"
    yield "data.channels", data.channels is None or len(data.channels) == model.in_channels, count
    yield from common_checks.channel_constraints(data, rasters, way_out)
    rule = f"is for images that are not read as RGB: {way_out}"
    yield "log.picture_channels", log.picture_channels is None or rasters, rule
    yield "data.source", not rasters or data.source != "blue_marble", "is RGB: name a folder or a data set of yours"
    measured = "is ImageNet's, and images keep the values of their files: give it as swin-mim stats measures it"
    for key in ("mean", "std"):
        yield f"data.{key}", not rasters or getattr(data, key) != getattr(DataConfig(), key), measured


def _check_geometry(model: ModelConfig, mask: MaskConfig) -> None:
    sides = as_pair(model.image_size)
    if mask.unit % model.patch_size:
        unit = _nearest_unit(mask.unit, model.patch_size, math.gcd(*sides))
        raise UserError(f"mask.unit {mask.unit} is not a multiple of model.patch_size {model.patch_size}: use {unit}")
    for side in sides:
        if side <= 0 or side % mask.unit:
            below = max(side, 0) // mask.unit * mask.unit
            use = " or ".join(_proposal(model, size) for size in (below, below + mask.unit) if size)
            raise UserError(f"model.image_size {side} is not a multiple of mask.unit {mask.unit}: use {use}")
    swin_config(model)
    units = math.prod(side // mask.unit for side in sides)
    if math.ceil(units * mask.ratio) == units:
        raise UserError(
            f"mask.ratio {mask.ratio} masks all {counted(units, 'unit')} of {mask.unit} pixels of an image: "
            "use a smaller mask.ratio or mask.unit"
        )


def stage_weights(model: ModelConfig) -> tuple[float, ...]:
    """Weights of the losses of the stages; () where the last alone predicts."""
    if model.supervise == "last":
        return ()
    stages = swin_config(model).num_stages
    return model.stage_weights or (1 / stages,) * stages


def _check_targets(model: ModelConfig, mask: MaskConfig) -> None:
    if model.supervise == "last" and model.stage_weights is not None:
        raise UserError("model.stage_weights is of every stage, and model.supervise is last: use stages")
    config, weights = swin_config(model), stage_weights(model)
    if weights and len(weights) != config.num_stages:
        entries = counted(len(weights), "entry", "entries")
        raise UserError(
            f"model.stage_weights has {entries} and the model {counted(config.num_stages, 'stage')}: give one for each"
        )
    if weights and (min(weights) < 0 or weights[-1] <= 0):
        given = ", ".join(map(str, weights))
        raise UserError(f"model.stage_weights {given}: none may be negative, and the last must be positive")
    if model.target == "hog":
        try:
            head_outputs(config, model.target, bool(weights))
        except UserError as error:
            raise UserError(f"model.{error}") from None
        cell = hog_cell(config.stride)
        if mask.unit % cell:
            raise UserError(
                f"mask.unit {mask.unit} is not a multiple of {cell}, the side of the squares of model.target hog: "
                f"use {nearest_multiple(mask.unit, math.lcm(cell, model.patch_size))}"
            )


def _nearest_unit(unit: int, patch: int, side: int) -> int:
    """Multiple of the patch near `unit`, which divides the image's side where that is possible."""
    return nearest_multiple(unit, patch) if side % patch else nearest_divisor(unit, side, patch)


def _proposal(model: ModelConfig, side: int) -> str:
    """An image size, and whether the windows tile it: "192 (windows of 6 fit every stage)"."""
    config = swin_config(replace(model, image_size=(side,)))
    windows = as_pair(config.window_size)
    size = str(windows[0]) if windows[0] == windows[1] else f"{windows[0]}x{windows[1]}"
    tiled = not any(any(config.stage_padding(stage)) for stage in range(config.num_stages))
    return f"{side} (windows of {size} {'fit every stage' if tiled else 'need padding'})"
