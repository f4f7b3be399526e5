"""The same weights for another window, image size or channel count, under our names."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.weights.config_json import Description, Preprocessing
from swin_mim.weights.heads import NAME

Pair = tuple[int, int]
Method = Literal["bicubic", "geometric"]

SMALLEST_FOR_A_SPLINE = 3
"""Window of which the bias map has the four points a side that a cubic spline needs."""

PROJECTION = "patch_embed.proj.weight"
DECODER = ("decoder.0.weight", "decoder.0.bias")


def adapt(
    description: Description,
    tensors: Mapping[str, Tensor],
    fields: Mapping[str, Any],
    *,
    bias_tables: Method = "bicubic",
    channels: int | Sequence[str] | None = None,
) -> tuple[Description, dict[str, Tensor], list[str]]:
    """The same weights for other fields of SwinConfig, and for other channels.

    Args:
        tensors: under our names.
        fields: image_size, window_size, drop_rate, drop_path_rate.
        bias_tables: of a V1, as in `resize_bias_table`. A V2 has none: its weights stay as they are.
        channels: as `target` of `adapt_channels`.

    Returns:
        the new description and tensors, and a line for each thing that changed.
    """
    if bias_tables not in get_args(Method):
        raise UserError(f"bias_tables is {bias_tables!r}: expected {' or '.join(get_args(Method))}")
    before, tensors = description.config, dict(tensors)
    said: list[str] = []
    if channels is not None and channels != before.in_channels:
        tensors, said = adapt_channels(tensors, source=description.preprocessing.channels, target=channels)
        fields = {**fields, "in_channels": channels if isinstance(channels, int) else len(channels)}
        description = replace(description, preprocessing=_preprocessing(description.preprocessing, channels))
    config = replace(before, **fields)
    stages = range(config.num_stages)
    if config.version == 1:
        tensors, lines = adapt_tables(
            tensors,
            sources=[before.stage_window(stage) for stage in stages],
            targets=[config.stage_window(stage) for stage in stages],
            depths=config.depths,
            method=bias_tables,
        )
    elif bias_tables == "bicubic":
        config, lines = keep_measures(before, config)
    else:
        raise UserError(f"bias_tables is {bias_tables!r}, and a Swin V2 has no bias tables: leave it out")
    return replace(description, config=config), tensors, said + lines


def resize_bias_table(table: Tensor, source: Pair, target: Pair, method: Method = "bicubic") -> Tensor:
    """A table of relative position biases for another window.

    A table is a map of (2h-1, 2w-1) offsets for each head. "bicubic" scales that map, as microsoft's Swin code and
    timm's `resize_rel_pos_bias_table_simple` do. (timm's Swin itself uses another function of theirs, which is linear
    between geometric positions.) "geometric" is SimMIM's way: the known offsets are spread in a geometric progression,
    so that near ones keep their meaning and the farthest reach the new border, and a cubic spline goes through them.
    Where the window shrinks it takes the centre of the map, as all offsets that are needed are known; SimMIM's search
    for the ratio ends at 1.01, which blurs that centre, and at 1.5, which leaves the border out of reach for windows
    that grow more than twofold.

    Args:
        table: ((2h-1)(2w-1), heads).
        source, target: windows (h, w).

    Returns:
        the same for `target`, of the table's dtype; computed in float32 at least.

    Raises:
        UserError: a table of another window than `source`, or a source too small for a spline.
    """
    size, new_size = _map_size(source), _map_size(target)
    if table.ndim != 2 or table.shape[0] != size[0] * size[1]:
        rows = f"{size[0] * size[1]} rows, (2*{source[0]}-1)(2*{source[1]}-1)"
        raise UserError(f"a bias table for {_by(source)} windows has {rows}, not shape {tuple(table.shape)}")
    if source == target:
        return table
    image = (table if table.dtype == torch.float64 else table.float()).T.unflatten(1, size)  # (heads, 2h-1, 2w-1)
    if method == "bicubic":
        image = F.interpolate(image[None], size=new_size, mode="bicubic", align_corners=False)[0]
    else:
        down, right = (_spline_matrix(s, t) for s, t in zip(source, target, strict=True))
        image = down @ image.double() @ right.T
    return image.flatten(1).T.contiguous().to(table.dtype)


def adapt_tables(
    state: Mapping[str, Tensor],
    *,
    sources: Sequence[Pair],
    targets: Sequence[Pair],
    depths: Sequence[int],
    method: Method = "bicubic",
) -> tuple[dict[str, Tensor], list[str]]:
    """All bias tables for other windows.

    Args:
        state: tensors under our names.
        sources, targets: window (h, w) of each stage, before and after.
        depths: blocks of each stage.

    Returns:
        the new state, and a line for each stage that changed.

    Raises:
        UserError: as `resize_bias_table`.
    """
    assert len(sources) == len(targets) == len(depths)
    out, lines = dict(state), []
    for stage, (source, target) in enumerate(zip(sources, targets, strict=True)):
        if source == target:
            continue
        for block in range(depths[stage]):
            name = f"layers.{stage}.blocks.{block}.attn.relative_position_bias_table"
            out[name] = resize_bias_table(state[name], source, target, method)
        lines.append(f"stage {stage}: bias tables resized from {_by(source)} to {_by(target)} windows ({method})")
    return out, lines


def keep_measures(before: SwinConfig, config: SwinConfig) -> tuple[SwinConfig, list[str]]:
    """The config of the same Swin V2 with other windows, whose positions are measured as they were in pretraining.

    Its position bias is a network's answer to coordinates, so that no weight changes: pretrained_window_sizes keep the
    window of the pretraining, which is the stage's own until it gets another (arXiv 2111.09883, section 3.3).

    Args:
        before: what the weights were made for.
        config: the same with other sizes.

    Returns:
        the config, and a line for each stage whose window changed.
    """
    stages = range(config.num_stages)
    windows = [(before.stage_window(stage), config.stage_window(stage)) for stage in stages]
    if all(source == target for source, target in windows):
        return config, []
    pairs = map(as_pair, before.pretrained_window_sizes)
    measures = [
        (height or source[0], width or source[1]) for (height, width), (source, _) in zip(pairs, windows, strict=True)
    ]
    lines = [
        f"stage {stage}: windows of {_by(source)} become {_by(target)}, positions measured by {_by(measures[stage])} "
        "as in pretraining (pretrained_window_sizes)"
        for stage, (source, target) in enumerate(windows)
        if source != target
    ]
    sizes = tuple(height if height == width else (height, width) for height, width in measures)
    return replace(config, pretrained_window_sizes=sizes), lines


def adapt_channels(
    state: Mapping[str, Tensor], *, source: Sequence[str] | None, target: Sequence[str] | int
) -> tuple[dict[str, Tensor], list[str]]:
    """Patch embedding, and decoder if there is one, for other image channels. Nothing is ever tiled.

    By name: a channel that the source has keeps its kernel, a new one gets the mean of the source's kernels, and all
    are scaled by the old number of channels over the new one: the response to a grey image stays what it was, if no
    channel is dropped. By number: every channel gets the mean, scaled so; nothing changes if the number is the same.
    The outputs of the decoder and of other heads follow, unscaled, as each predicts its own channel.

    Args:
        state: tensors under our names.
        source: names of the channels that the weights are for, None if unknown.
        target: names, or the number, of the channels that they shall be for.

    Returns:
        the new state, and a line for each module that changed.

    Raises:
        UserError: a name twice, unknown source names, or another number of them than the weights have channels.
    """
    if isinstance(target, str):
        raise UserError(f"channels is {target!r}: expected a list of names, or a number")
    old = state[PROJECTION].shape[1]
    new = target if isinstance(target, int) else len(target)
    if new < 1:
        raise UserError(f"channels {target!r}: there must be at least one")
    origins = _origins(source, target, old)
    if origins == list(range(old)):
        return dict(state), []
    scale = Fraction(old, new)
    words = _described(source, target, origins, old)
    scaled = f", all scaled by {scale}" if scale != 1 else ""
    out, lines = dict(state), [f"patch_embed.proj: {words}{scaled}"]
    out[PROJECTION] = _gathered(state[PROJECTION], origins, 1, float(scale))
    if DECODER[0] in state:
        lines.append(f"decoder.0: {words}")
    for name in state:
        if name in DECODER or (name.startswith(f"{NAME}.") and ".proj." in name):
            out[name] = _gathered(state[name].unflatten(0, (old, -1)), origins, 0).flatten(0, 1)
    return out, lines


# Bias tables.


def _map_size(window: Pair) -> Pair:
    return 2 * window[0] - 1, 2 * window[1] - 1


def _spline_matrix(source: int, target: int) -> Tensor:
    """float64 (2 target - 1, 2 source - 1): one side of a bias map to that of another window."""
    offsets = torch.arange(-(target - 1), target, dtype=torch.float64)
    if target <= source:
        return (offsets[:, None] == torch.arange(-(source - 1), source)).double()
    if source < SMALLEST_FOR_A_SPLINE:
        raise UserError(
            f"geometric interpolation needs a window of at least {SMALLEST_FOR_A_SPLINE}, not {source}: use bicubic"
        )
    positive = _progression(_ratio(source - 1, target - 1), source - 1)
    return cubic_spline_matrix(torch.cat([-positive.flip(0), positive.new_zeros(1), positive]), offsets)


def _progression(ratio: float, terms: int) -> Tensor:
    """float64 (terms): 1, 1 + ratio, 1 + ratio + ratio^2, ..."""
    return torch.full((terms,), ratio, dtype=torch.float64).pow(torch.arange(terms)).cumsum(0)


def _ratio(terms: int, reach: int) -> float:
    """The ratio at which the last term of the progression is `reach`, more than `terms`; by bisection."""
    low, high = 1.0, float(reach)
    for _ in range(100):
        middle = (low + high) / 2
        if _progression(middle, terms)[-1] > reach:
            high = middle
        else:
            low = middle
    return high  # not below: the last target lies within the known positions


def cubic_spline_matrix(knots: Tensor, points: Tensor) -> Tensor:
    """(points, knots): values at the knots -> values of their cubic spline at the points.

    The spline is "not-a-knot": its third derivative is continuous at the second knot and the last but one, as in
    FITPACK and so in scipy's interp2d, which SimMIM used.

    Args:
        knots: float64 (n), increasing, n >= 4.
        points: float64 (m).
    """
    n, h = len(knots), knots.diff()
    moments, right = torch.zeros(2, n, n, dtype=knots.dtype)  # moments @ second derivatives = right @ values
    for i in range(1, n - 1):
        moments[i, i - 1 : i + 2] = torch.stack([h[i - 1], 2 * (h[i - 1] + h[i]), h[i]])
        right[i, i - 1 : i + 2] = 6 * torch.stack([1 / h[i - 1], -1 / h[i - 1] - 1 / h[i], 1 / h[i]])
    moments[0, :3] = torch.stack([-1 / h[0], 1 / h[0] + 1 / h[1], -1 / h[1]])
    moments[-1, -3:] = torch.stack([-1 / h[-2], 1 / h[-2] + 1 / h[-1], -1 / h[-1]])
    second = torch.linalg.solve(moments, right)

    piece = (torch.searchsorted(knots, points, right=True) - 1).clamp(0, n - 2)
    step, unit = h[piece, None], torch.eye(n, dtype=knots.dtype)
    a, b = (knots[piece + 1, None] - points[:, None]) / step, (points[:, None] - knots[piece, None]) / step
    line = a * unit[piece] + b * unit[piece + 1]
    return line + ((a**3 - a) * second[piece] + (b**3 - b) * second[piece + 1]) * step**2 / 6


# Channels.


def _origins(source: Sequence[str] | None, target: Sequence[str] | int, old: int) -> list[int | None]:
    """For each new channel the old one that it is, or None for the mean."""
    if isinstance(target, int):
        return list(range(old)) if target == old else [None] * target
    if source is None:
        raise UserError(
            f"channels {', '.join(target)}: nobody knows which of them the {old} of these weights are; say their "
            f"number, channels={len(target)}, and all get the mean"
        )
    for whose, names in (("these weights", source), ("the new model", target)):
        for name in names:
            if list(names).count(name) > 1:
                raise UserError(f"channel {name!r} of {whose} is named twice: {', '.join(names)}")
    if len(source) != old:
        names = f"{counted(len(source), 'name')} for {'it' if old == 1 else 'them'}: {', '.join(source)}"
        raise UserError(f"these weights have {counted(old, 'channel')}, but {names}")
    return [source.index(name) if name in source else None for name in target]


def _gathered(tensor: Tensor, origins: Sequence[int | None], axis: int, scale: float = 1.0) -> Tensor:
    """Slices of an axis by number, their mean for None, times scale; in float32 at least, of the tensor's dtype."""
    values = tensor if tensor.dtype == torch.float64 else tensor.float()
    mean = values.mean(axis)
    slices = [mean if origin is None else values.select(axis, origin) for origin in origins]
    return (torch.stack(slices, axis) * scale).to(tensor.dtype)


def _described(
    source: Sequence[str] | None, target: Sequence[str] | int, origins: Sequence[int | None], old: int
) -> str:
    """`red, green kept, blue dropped, nir is the mean of the 3`."""
    if isinstance(target, int) or source is None:
        return f"each of the {len(origins)} channels is the mean of the {old}"
    groups = {
        "kept": [name for name in target if name in source],
        "dropped": [name for name in source if name not in target],
        f"{'is' if origins.count(None) == 1 else 'are'} the mean of the {old}": [
            name for name in target if name not in source
        ],
    }
    return ", ".join(f"{', '.join(names)} {what}" for what, names in groups.items() if names)


def _by(window: Pair) -> str:
    return f"{window[0]}x{window[1]}"


def _preprocessing(old: Preprocessing, channels: int | Sequence[str]) -> Preprocessing:
    """Channels that stay keep their mean and std, new ones get the mean of the old ones'."""
    names = [None] * channels if isinstance(channels, int) else list(channels)
    pairs = list(zip(old.mean, old.std, strict=True))
    known = {} if old.channels is None else dict(zip(old.channels, pairs, strict=True))
    middle = (sum(old.mean) / len(old.mean), sum(old.std) / len(old.std))
    mean, std = zip(*(middle if name is None else known.get(name, middle) for name in names), strict=True)
    return replace(old, mean=mean, std=std, channels=None if isinstance(channels, int) else tuple(channels))
