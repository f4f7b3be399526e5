"""Which network has these tensors, and which tensors a network has. Shapes only, under our names."""

import math
from collections.abc import Iterator, Mapping, Sequence

from swin_mim.architecture import POSITION_HIDDEN, SwinConfig
from swin_mim.errors import UserError
from swin_mim.weights.config_json import Kind
from swin_mim.weights.formats import version_of
from swin_mim.weights.heads import NAME, TEACHER, TEACHER_NAME, heads_in, taught_stage

Shape = tuple[int, ...]
Pair = tuple[int, int]
Size = int | tuple[int, int]

NO_HEADS: Mapping[int, int] = {}
_NAMED = 5
"""Tensors that a message names before it says how many more there are."""


def network_of(
    shapes: Mapping[str, Shape],
    *,
    image_size: Size | None = None,
    window_size: Size | None = None,
    windows: Sequence[Pair] | None = None,
    pretrained_window_sizes: Sequence[Size] = (),
) -> tuple[SwinConfig, Kind, int]:
    """The network that has these tensors, what it is, and its classes (0 without a head).

    Args:
        shapes: all of them.
        image_size, window_size: as far as they are known. Without them they are those of the smallest square image
            whose stages have windows of the sizes that the bias tables have. Where no stage has a smaller window than
            the others, every larger image gives them too.
        windows: of a V2, which has no bias tables, of each stage, where its buffers tell them.
        pretrained_window_sizes: of a V2, as far as they are known.

    Raises:
        UserError: the sizes cannot be told, or the shapes are of no one network; names a tensor.
    """
    embed_dim, in_channels, patch, width = shapes["patch_embed.proj.weight"]
    if patch != width:
        raise UserError(f"patch_embed.proj.weight has patches of {patch}x{width} pixels: they must be square")
    depths = _depths(shapes)
    first = [f"layers.{stage}.blocks.0." for stage in range(len(depths))]
    version = version_of(shapes)
    image_size, window_size = _sizes(shapes, first, patch, (image_size, window_size), windows)
    config = SwinConfig(
        image_size,
        window_size=window_size,
        patch_size=patch,
        in_channels=in_channels,
        embed_dim=embed_dim,
        depths=depths,
        num_heads=tuple(_heads(shapes, block) for block in first),
        mlp_ratio=_mlp_ratio([shapes[f"{block}mlp.fc1.weight"] for block in first]),
        qkv_bias=f"{first[0]}attn.qkv.bias" in shapes or f"{first[0]}attn.q_bias" in shapes,
        version=version,
        pretrained_window_sizes=tuple(pretrained_window_sizes) if version > 1 else (),
        extra_norm_period=_extra_norm_period(shapes, depths),
    )
    num_classes = shapes["head.fc.weight"][0] if "head.fc.weight" in shapes else 0
    kind: Kind = "SimMIM" if "decoder.0.weight" in shapes else "SwinClassifier" if num_classes else "Swin"
    # transformers can save an encoder with its mask token, and then there is no decoder
    spare = {"mask_token"} if kind == "Swin" else set()
    checked = {name: shape for name, shape in shapes.items() if name not in spare}
    check_shapes(checked, config, kind, num_classes, by="the rest of the file", heads=heads_in(shapes))
    return config, kind, num_classes


def check_shapes(
    shapes: Mapping[str, Shape],
    config: SwinConfig,
    kind: Kind,
    num_classes: int,
    *,
    by: str,
    heads: Mapping[int, int] = NO_HEADS,
) -> None:
    """Raise a UserError unless these are exactly the tensors of a network.

    Args:
        by: what says so, for messages.
        heads: as in `expected_shapes`.
    """
    if sum(config.depths) > len(shapes):
        blocks = f"depths {config.depths} are {sum(config.depths)} blocks"
        raise UserError(f"{blocks}, more than the {len(shapes)} tensors there are")
    expected = dict(expected_shapes(config, kind, num_classes, heads))
    missing, extra = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing:
        raise UserError(f"{some(missing)} missing for the {kind} that {by} describes")
    if extra:
        raise UserError(f"{some(extra)} too many for the {kind} that {by} describes")
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise UserError(
                f"{name} has shape {tuple(shapes[name])}, but {by} describes {shape} (image_size {config.image_size}, "
                f"window_size {config.window_size}, embed_dim {config.embed_dim})"
            )


def check_windows(windows: Sequence[Pair] | None, config: SwinConfig) -> None:
    """Raise a UserError where the buffers of a V2 are of other windows than its sizes give.

    Args:
        windows: of each stage; None without buffers.
    """
    for stage, window in enumerate(windows or ()):
        if config.stage_window(stage) != window:
            raise UserError(
                f"relative_coords_table of stage {stage} is for windows of {window[0]}x{window[1]}, and image_size "
                f"{config.image_size} with window_size {config.window_size} has {config.stage_window(stage)} there"
            )


def expected_shapes(
    config: SwinConfig, kind: Kind, num_classes: int, heads: Mapping[int, int] = NO_HEADS
) -> Iterator[tuple[str, Shape]]:
    """Name and shape of every tensor. Written out, so that a file is checked before there is a model.

    Args:
        heads: of a masked image model besides its decoder, their outputs by stage (`heads.head_outputs`).
    """
    yield "patch_embed.proj.weight", (config.embed_dim, config.in_channels, config.patch_size, config.patch_size)
    yield "patch_embed.proj.bias", (config.embed_dim,)
    yield from _norm("patch_embed.norm", config.embed_dim)
    for stage, depth in enumerate(config.depths):
        dim, attention = config.stage_dim(stage), _ATTENTION[config.version]
        if stage:
            yield from _norm(f"layers.{stage}.downsample.norm", dim * _MERGED[config.version])
            yield f"layers.{stage}.downsample.reduction.weight", (dim, 2 * dim)
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            yield from _norm(f"{name}.norm1", dim)
            yield from attention(config, stage, f"{name}.attn")
            yield from _linear(f"{name}.attn.proj", dim, dim)
            yield from _norm(f"{name}.norm2", dim)
            hidden = int(dim * config.mlp_ratio)
            yield from _linear(f"{name}.mlp.fc1", hidden, dim)
            yield from _linear(f"{name}.mlp.fc2", dim, hidden)
            if config.extra_norm_period and (block + 1) % config.extra_norm_period == 0:
                yield from _norm(f"{name}.norm3", dim)
    yield from _norm("norm", config.num_features)
    if kind == "SimMIM":
        pixels = config.stride**2 * config.in_channels
        yield "mask_token", (1, 1, config.embed_dim)
        yield "decoder.0.weight", (pixels, config.num_features, 1, 1)
        yield "decoder.0.bias", (pixels,)
        for stage, outputs in heads.items():
            if stage == TEACHER:
                yield from _linear(TEACHER_NAME, outputs, config.stage_dim(taught_stage(config)))
                continue
            if stage < config.num_stages - 1:
                yield from _norm(f"{NAME}.{stage}.norm", config.stage_dim(stage))
            yield from _linear(f"{NAME}.{stage}.proj", outputs, config.stage_dim(stage))
    if kind == "SwinClassifier":
        yield from _linear("head.fc", num_classes, config.num_features)


def some(names: Sequence[str]) -> str:
    """ "a, b, c, d, e and 7 more are" """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more} {'is' if len(names) == 1 else 'are'}"


def _depths(shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    depths: list[int] = []
    while f"layers.{len(depths)}.blocks.0.norm1.weight" in shapes:
        block = 0
        while f"layers.{len(depths)}.blocks.{block}.norm1.weight" in shapes:
            block += 1
        depths.append(block)
    return tuple(depths)


def _attention_v1(config: SwinConfig, stage: int, name: str) -> Iterator[tuple[str, Shape]]:
    dim, (height, width) = config.stage_dim(stage), config.stage_window(stage)
    yield from _linear(f"{name}.qkv", 3 * dim, dim, bias=config.qkv_bias)
    entries = (2 * height - 1) * (2 * width - 1)
    yield f"{name}.relative_position_bias_table", (entries, config.num_heads[stage])


def _attention_v2(config: SwinConfig, stage: int, name: str) -> Iterator[tuple[str, Shape]]:
    dim, heads = config.stage_dim(stage), config.num_heads[stage]
    yield f"{name}.qkv.weight", (3 * dim, dim)
    for bias in ("q_bias", "v_bias") if config.qkv_bias else ():
        yield f"{name}.{bias}", (dim,)
    yield f"{name}.logit_scale", (heads, 1, 1)
    yield from _linear(f"{name}.cpb_mlp.0", POSITION_HIDDEN, 2)
    yield f"{name}.cpb_mlp.2.weight", (heads, POSITION_HIDDEN)


_ATTENTION = {1: _attention_v1, 2: _attention_v2}
_MERGED = {1: 2, 2: 1}
"""Version -> channels of the norm of a halving, in those of its stage: V1 norms four cells, V2 what they become."""


def _norm(name: str, dim: int) -> list[tuple[str, Shape]]:
    return [(f"{name}.weight", (dim,)), (f"{name}.bias", (dim,))]


def _linear(name: str, out: int, into: int, *, bias: bool = True) -> list[tuple[str, Shape]]:
    return [(f"{name}.weight", (out, into)), *([(f"{name}.bias", (out,))] if bias else [])]


def _heads(shapes: Mapping[str, Shape], block: str) -> int:
    if f"{block}attn.logit_scale" in shapes:
        return shapes[f"{block}attn.logit_scale"][0]
    return shapes[f"{block}attn.relative_position_bias_table"][1]


def _extra_norm_period(shapes: Mapping[str, Shape], depths: Sequence[int]) -> int:
    """After how many blocks the first extra norm stands, in any stage; 0 without one."""
    places = (
        block + 1
        for stage, depth in enumerate(depths)
        for block in range(depth)
        if f"layers.{stage}.blocks.{block}.norm3.weight" in shapes
    )
    return min(places, default=0)


def _mlp_ratio(sizes: Sequence[Shape]) -> float:
    """The shortest decimal that gives the hidden channels of every stage, (hidden, channels): int(channels * ratio)."""
    low = max(hidden / dim for hidden, dim in sizes)
    for ratio in (*(round(low, digits) for digits in range(17)), math.nextafter(low, math.inf)):
        if all(int(dim * ratio) == hidden for hidden, dim in sizes):
            return float(ratio)
    raise UserError(f"mlp.fc1.weight has shapes {list(sizes)} in the stages: no one mlp_ratio gives all of them")


def _sizes(
    shapes: Mapping[str, Shape],
    first: Sequence[str],
    patch: int,
    said: tuple[Size | None, Size | None],
    windows: Sequence[Pair] | None,
) -> tuple[Size, Size]:
    """Image and window: what is said, else the smallest image whose stages have the windows that are told.

    Args:
        first: what the names of the first block of each stage begin with.
        windows: of each stage, of a V2.
    """
    image_size, window_size = said
    tables = [shapes.get(f"{block}attn.relative_position_bias_table") for block in first]
    rows = [table[0] for table in tables if table is not None]
    if rows:
        sides = [_square_window(count) for count in rows]
    else:
        sides = [height if height == width else None for height, width in windows or ()] or [None]
        if windows and window_size is None:
            height, width = (max(side) for side in zip(*windows, strict=True))
            window_size = height if height == width else (height, width)
    window_size = window_size or (None if None in sides else max(side for side in sides if side))
    image_size = image_size or _smallest_image(sides, patch)
    if window_size is None or image_size is None:
        field = "image_size" if window_size else "window_size"
        if rows:
            raise UserError(f"{field} is not told by the bias tables, which have {rows} rows: say it")
        raise UserError(
            f"{field} is not told by the weights of a Swin V2, which fit any: put its config.json beside it, or say it "
            "with swin-mim convert FILE FOLDER --to swin_mim --source-image-size N --source-window-size N"
        )
    return image_size, window_size


def _square_window(rows: int) -> int | None:
    """Side of the square window whose bias table has these rows."""
    side = math.isqrt(rows)
    return (side + 1) // 2 if side * side == rows and side % 2 else None


def _smallest_image(windows: Sequence[int | None], patch: int) -> int | None:
    """Side in pixels of the smallest square image that gives these windows, None if none does."""
    sides = [window for window in windows if window is not None]
    if len(sides) < len(windows):
        return None
    largest, multiple = max(sides), 2 ** (len(windows) - 1)
    # Stage i halves the first grid i times, rounding up. A window is the smaller of the largest one and the grid.
    low = max((window - 1) * 2**stage + 1 for stage, window in enumerate(sides))
    smaller = [window * 2**stage for stage, window in enumerate(sides) if window < largest]
    grid = -(-low // multiple) * multiple
    high = min(smaller, default=grid)
    if high < low:
        return None
    return patch * (grid if grid <= high else low)
