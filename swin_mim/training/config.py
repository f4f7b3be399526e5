"""The configuration of a pretraining run: what goes together, and what may change when a run is resumed.

Everything about configuration is imported from here. The settings are in `settings.py`, YAML and the command
line in `config_file.py`; none of them needs torch, so that `--help` is quick.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from swin_mim.errors import UserError
from swin_mim.models.swin_config import SwinConfig, as_pair, nearest_multiple
from swin_mim.training.config_file import from_mapping, leaves, load_config, to_yaml
from swin_mim.training.schedule import to_steps
from swin_mim.training.settings import (
    FREE,
    DataConfig,
    HubConfig,
    LogConfig,
    MaskConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    SaveConfig,
    TrainConfig,
)

__all__ = [
    "FREE",
    "DataConfig",
    "HubConfig",
    "LogConfig",
    "MaskConfig",
    "ModelConfig",
    "OptimConfig",
    "PretrainConfig",
    "RunConfig",
    "SaveConfig",
    "TrainConfig",
    "accumulation",
    "check",
    "from_mapping",
    "frozen_differences",
    "leaves",
    "load_config",
    "swin_config",
    "to_yaml",
]


def frozen_differences(saved: PretrainConfig, current: PretrainConfig) -> list[str]:
    """Settings that differ and may not: lines such as "optim.base_lr: 0.0002 -> 0.0004"."""
    now = dict(leaves(current))
    return [f"{key}: {value} -> {now[key]}" for key, value in leaves(saved) if key not in FREE and value != now[key]]


def swin_config(model: ModelConfig) -> SwinConfig:
    """The encoder that the settings describe.

    Raises:
        UserError: no Swin has these values.
    """
    sizes = {"embed_dim": model.embed_dim, "depths": model.depths, "num_heads": model.num_heads}
    overrides = {name: value for name, value in sizes.items() if value is not None}
    try:
        return SwinConfig.named(
            model.name,
            image_size=_one_or_pair(model.image_size),
            window_size=_one_or_pair(model.window_size),
            patch_size=model.patch_size,
            in_channels=model.in_channels,
            drop_path_rate=model.drop_path_rate,
            **overrides,
        )
    except UserError as error:
        raise UserError(f"model: {error}") from None


def _one_or_pair(sides: tuple[int, ...]) -> int | tuple[int, int]:
    height, width = as_pair(sides)
    return height if height == width else (height, width)


def accumulation(train: TrainConfig, world: int) -> int:
    """Micro batches of each process in one step.

    Raises:
        UserError: the global batch is not a multiple of micro batch x processes; names the nearest that are.
    """
    together = train.micro_batch * world
    if train.global_batch % together == 0:
        return train.global_batch // together
    parts = f"train.micro_batch {train.micro_batch}"
    parts += f" x {world} processes = {together}" if world > 1 else ""
    proposals = [f"train.global_batch {nearest_multiple(train.global_batch, together)}"]
    if train.global_batch % world == 0:
        share = train.global_batch // world
        proposals.append(f"train.micro_batch {_nearest_divisor(train.micro_batch, share)}")
    use = " or ".join(proposals)
    raise UserError(f"train.global_batch {train.global_batch} is not a multiple of {parts}: use {use}")


def _nearest_divisor(value: int, of: int, step: int = 1) -> int:
    """The divisor of `of`, among the multiples of `step`, that is nearest to `value`; the smaller of two."""
    divisors = [number for number in range(step, of + 1, step) if of % number == 0]
    return min(divisors, key=lambda number: (abs(number - value), number))


def check(config: PretrainConfig) -> None:
    """Refuse settings that cannot go together.

    What needs the number of images or of processes is checked where they are known: that the warm-up ends
    before the run, and `accumulation`.

    Raises:
        UserError: names the keys, the values, the relation that fails and the nearest values that are legal.
    """
    values = dict(leaves(config))
    for key, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{key} {value} must be finite")
    rules = (
        _run_rules(config.run, config.data),
        _model_rules(config.model, config.mask, config.data),
        _hub_rules(config.hub),
    )
    for key, legal, rule in chain(*rules, _training_rules(config.optim, config.train, config.log, config.save)):
        if not legal:
            raise UserError(f"{key} {values[key]!r} {rule}")
    _check_durations(config)
    _check_geometry(config.model, config.mask)
    accumulation(config.train, world=1)


Rules = Iterator[tuple[str, bool, str]]
"""(key, whether its value is legal, what would be)"""


def _hub_rules(hub: HubConfig) -> Rules:
    named = hub.repo is None or re.fullmatch(r"[\w.-]+/[\w.-]+", hub.repo) is not None
    yield "hub.repo", named, "must be user/name, a repository of the Hugging Face Hub"
    yield "hub.every", hub.every >= 0, "must not be negative: use 0 to push at the end only"
    yield "hub.every", not hub.every or hub.repo is not None, "pushes nowhere: name a repository with hub.repo"


def _run_rules(run: RunConfig, data: DataConfig) -> Rules:
    one_folder = run.name.strip() not in ("", ".", "..") and not set(run.name) & set("/\\")
    yield "run.name", one_folder, "must name one folder, without / and \\: the folder above it is run.root"
    yield "run.seed", run.seed >= 0, "must not be negative: use 0"
    yield "data.heldout", data.heldout >= 0, "must not be negative: use 0 to keep none"
    yield "data.workers", data.workers >= 0, "must not be negative: use 0 to decode without workers"
    least, greatest = data.crop_scale
    yield "data.crop_scale", 0 < least <= greatest <= 1, "must be least and greatest, above 0 and up to 1"
    least, greatest = data.crop_ratio
    yield "data.crop_ratio", 0 < least <= greatest, "must be least and greatest, above 0"
    yield "data.max_broken", 0 <= data.max_broken <= 1, "must be at least 0 and at most 1: use 0.01"


def _model_rules(model: ModelConfig, mask: MaskConfig, data: DataConfig) -> Rules:
    yield "model.in_channels", model.in_channels == 3, "must be 3 for now: images are read as RGB"
    for key, channels in (("data.mean", data.mean), ("data.std", data.std)):
        rule = f"has {len(channels)} entries and model.in_channels is {model.in_channels}: give one for each"
        yield key, len(channels) == model.in_channels, rule
    yield "data.std", min(data.std) > 0, "must be positive"
    for key, sides in (("model.image_size", model.image_size), ("model.window_size", model.window_size)):
        yield key, len(sides) in (1, 2), f"has {len(sides)} entries: give one number, or height and width"
    yield "model.patch_size", model.patch_size > 0, "must be positive: SimMIM's is 4"
    yield "mask.unit", mask.unit > 0, "must be positive: SimMIM's is 32"
    yield "mask.ratio", 0 < mask.ratio < 1, "must be more than 0 and less than 1: SimMIM's is 0.6"


def _training_rules(optim: OptimConfig, train: TrainConfig, log: LogConfig, save: SaveConfig) -> Rules:
    for name in ("base_lr", "gamma", "eps", "clip_norm"):
        yield f"optim.{name}", getattr(optim, name) > 0, "must be positive"
    for name in ("warmup_lr", "min_lr", "weight_decay"):
        yield f"optim.{name}", getattr(optim, name) >= 0, "must not be negative: use 0"
    yield "optim.betas", all(0 <= beta < 1 for beta in optim.betas), "must be at least 0 and less than 1"
    stepped = optim.schedule == "multistep"
    rule = f"must be given with optim.schedule multistep and only then: the schedule is {optim.schedule}"
    yield "optim.milestones", bool(optim.milestones) == stepped, rule
    for name in ("global_batch", "micro_batch"):
        yield f"train.{name}", getattr(train, name) > 0, "must be positive: the smallest is 1"
    yield "train.threads", train.threads >= 0, "must not be negative: use 0 to share out the cores"
    yield "log.pictures", log.pictures >= 0, "must not be negative: use 0 for none"
    yield "save.keep", save.keep >= 2, "must be at least 2: the last one may be being written"


def _check_durations(config: PretrainConfig) -> None:
    optim, train, log = config.optim, config.train, config.log
    never = {
        "optim.warmup": optim.warmup,
        "train.stop_after": train.stop_after,
        "log.every": log.every,
        "log.evaluate_every": log.evaluate_every,
        "log.pictures_every": log.pictures_every,
    }
    once = {"train.duration": train.duration, "save.every": config.save.every}
    points = {f"optim.milestones[{i}]": duration for i, duration in enumerate(optim.milestones)}
    for key, duration in (never | once | points).items():
        try:
            steps = to_steps(duration, dataset_size=1, global_batch=1)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        if steps == 0 and key not in never:
            raise UserError(f'{key} "{duration}" must be positive: the smallest is "1 step"')


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
            f"mask.ratio {mask.ratio} masks all {units} units of {mask.unit} pixels of an image: "
            "use a smaller mask.ratio or mask.unit"
        )


def _nearest_unit(unit: int, patch: int, side: int) -> int:
    """A multiple of the patch, and one that divides the image's side where that can be."""
    return nearest_multiple(unit, patch) if side % patch else _nearest_divisor(unit, side, patch)


def _proposal(model: ModelConfig, side: int) -> str:
    """ "192 (windows of 6 fit every stage)": an image size, and whether the windows tile it."""
    config = swin_config(replace(model, image_size=(side,)))
    windows = as_pair(config.window_size)
    size = str(windows[0]) if windows[0] == windows[1] else f"{windows[0]}x{windows[1]}"
    tiled = all(
        grid % window == 0
        for stage in range(config.num_stages)
        for grid, window in zip(config.stage_grid(stage), config.stage_window(stage), strict=True)
    )
    return f"{side} (windows of {size} {'fit every stage' if tiled else 'need padding'})"
