"""Constraints of the settings that both recipes have, section by section."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from swin_mim.architecture import as_pair, nearest_multiple
from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.training.config.dense.detect import BoxedDataConfig
from swin_mim.training.config.dense.recipes import RecipeConfig
from swin_mim.training.config.dense.segment import MaskedDataConfig
from swin_mim.training.config.durations import to_steps
from swin_mim.training.config.fields import leaves
from swin_mim.training.config.finetune import LabelledDataConfig
from swin_mim.training.config.pretrain import (
    HubConfig,
    ImagesConfig,
    OptimConfig,
    RunConfig,
    SaveConfig,
    TrainConfig,
)

Constraints = Iterator[tuple[str, bool, str]]
"""(key, whether its value is legal, what would be legal)"""


def validate(config: Any, constraints: Iterable[tuple[str, bool, str]]) -> None:
    """Raise a UserError for a number that is not finite, and for the first constraint that does not hold."""
    values = dict(leaves(config))
    for key, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{key} {value} must be finite")
    for key, legal, rule in constraints:
        if not legal:
            raise UserError(f"{key} {values[key]!r} {rule}")


def has_images_to_evaluate(data: LabelledDataConfig | MaskedDataConfig | BoxedDataConfig) -> bool:
    """Whether what is evaluated is another data set than data.source, of which a part is held out otherwise."""
    return data.validation is not None or data.validation_split is not None or data.source == "blue_marble"


def hub_constraints(hub: HubConfig) -> Constraints:
    named = hub.repo is None or re.fullmatch(r"[\w.-]+/[\w.-]+", hub.repo) is not None
    yield "hub.repo", named, "must be user/name, a repository of the Hugging Face Hub"
    yield "hub.every", hub.every >= 0, "must not be negative: use 0 to push at the end only"
    yield "hub.every", not hub.every or hub.repo is not None, "pushes nowhere: name a repository with hub.repo"


def run_constraints(run: RunConfig) -> Constraints:
    one_folder = run.name.strip() not in ("", ".", "..") and not set(run.name) & set("/\\")
    yield "run.name", one_folder, "must name one folder, without / and \\: the folder above it is run.root"
    yield "run.seed", run.seed >= 0, "must not be negative: use 0"


def image_constraints(data: ImagesConfig) -> Constraints:
    yield "data.max_pixels", data.max_pixels > 0, "must be positive: use 67108864"
    yield (
        "data.workers",
        data.workers == "auto" or data.workers >= 0,
        "must not be negative: use 0 to decode without workers",
    )
    yield "data.max_broken", 0 <= data.max_broken <= 1, "must be at least 0 and at most 1: use 0.01"


def channel_constraints(data: ImagesConfig, rasters: bool, way_out: str) -> Constraints:
    """Constraints of the channels.

    Args:
        rasters: images keep their channels and values, and are not made RGB.
        way_out: how to have them so.
    """
    chosen = data.channels or ()
    yield "data.channels", data.channels != (), "names no channel: leave it out, or name some"
    yield "data.channels", len(set(chosen)) == len(chosen), "names a channel twice"
    yield "data.mask_channel", data.mask_channel not in chosen, "is one of data.channels: leave it out there"
    for name in ("stack", "nodata", "mask_channel"):
        rule = f"is for images that are not read as RGB: {way_out}"
        yield f"data.{name}", getattr(data, name) is None or rasters, rule
    stack = data.stack or "{image}{channel}"
    once = stack.count("{image}") == stack.count("{channel}") == 1
    yield "data.stack", once, "must have {image} and {channel} once each, such as {image}_{channel}.tif"


def statistics_constraints(
    channels: Sequence[str] | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Constraints:
    """Constraints of data.mean and data.std; `channels` None means RGB."""
    count, what = (3, "red, green and blue") if channels is None else (len(channels), "data.channels")
    for key, values in (("data.mean", mean), ("data.std", std)):
        yield key, values is None or len(values) == count, f"must have {counted(count, 'entry', 'entries')}, for {what}"
    yield "data.std", std is None or min(std) > 0, "must be positive"


def crop_constraints(scale: tuple[float, float], ratio: tuple[float, float]) -> Constraints:
    yield "data.crop_scale", 0 < scale[0] <= scale[1] <= 1, "must be min and max, above 0 and up to 1"
    yield "data.crop_ratio", 0 < ratio[0] <= ratio[1], "must be min and max, above 0"


def training_constraints(optim: OptimConfig, train: TrainConfig, save: SaveConfig) -> Constraints:
    for name in ("base_lr", "gamma", "power", "eps", "clip_norm"):
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
    yield "save.keep", save.keep >= 2, "must be at least 2: the last one may be being written"
    yield "save.keep_every", save.keep_every >= 0, "must not be negative: use 0 to keep only the newest"


def check_durations(optim: OptimConfig, train: TrainConfig, save: SaveConfig, periods: Mapping[str, str]) -> None:
    """Raise a UserError for a text that is no duration, and for 0 where something has to happen.

    Args:
        periods: further durations of which 0 means never, by key.
    """
    never = {"optim.warmup": optim.warmup, "train.stop_after": train.stop_after, **periods}
    once = {"train.duration": train.duration, "save.every": save.every}
    points = {f"optim.milestones[{i}]": duration for i, duration in enumerate(optim.milestones)}
    points |= {f"train.extended[{i}]": duration for i, duration in enumerate(train.extended)}
    for key, duration in (never | once | points).items():
        try:
            steps = to_steps(duration, dataset_size=1, global_batch=1)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        if steps == 0 and key not in never:
            raise UserError(f'{key} "{duration}" must be positive: the smallest is "1 step"')


def one_or_pair(sides: tuple[int, ...]) -> int | tuple[int, int]:
    """(6,) or (6, 6) -> 6; (4, 8) stays."""
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
        proposals.append(f"train.micro_batch {nearest_divisor(train.micro_batch, share)}")
    use = " or ".join(proposals)
    raise UserError(f"train.global_batch {train.global_batch} is not a multiple of {parts}: use {use}")


def nearest_divisor(value: int, of: int, step: int = 1) -> int:
    """The divisor of `of`, among the multiples of `step`, that is nearest to `value`; the smaller of two."""
    divisors = [number for number in range(step, of + 1, step) if of % number == 0]
    return min(divisors, key=lambda number: (abs(number - value), number))


def immutable_differences(saved: RecipeConfig, current: RecipeConfig) -> list[str]:
    """Settings that differ and may not: lines such as "optim.base_lr: 0.0002 -> 0.0004"."""
    return [line for key, line in _differences(saved, current) if key not in current.mutable]


def mutable_differences(saved: RecipeConfig, current: RecipeConfig) -> list[str]:
    """Settings that differ and may, in the same words."""
    return [line for key, line in _differences(saved, current) if key in current.mutable]


def _differences(saved: RecipeConfig, current: RecipeConfig) -> list[tuple[str, str]]:
    now = dict(leaves(current))
    return [(key, f"{key}: {value} -> {now[key]}") for key, value in leaves(saved) if value != now[key]]
