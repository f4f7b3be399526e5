"""Names of a Swin's tensors in the files of others, and ours: a table for each format, both directions.

"Our names" are those of a published model: timm's for the encoder, `head.fc`, `mask_token` and `decoder.0`.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

import torch
from torch import Tensor

from swin_mim.errors import UserError

Format = Literal["swin_mim", "timm", "checkpoint", "microsoft", "torchvision", "transformers", "mmpretrain"]
Kind = Literal["SimMIM", "Swin", "SwinClassifier"]
Shape = tuple[int, ...]
Pair = tuple[int, int]

MASKED_SCORE = -100.0
"""What the official code stores in attn_mask for two tokens that are neighbours only through the cyclic shift."""

PARTS = ("head", "mask_token", "decoder")
"""What a network may have besides the encoder."""
PARTS_OF: dict[Kind, set[str]] = {"SimMIM": {"mask_token", "decoder"}, "Swin": set(), "SwinClassifier": {"head"}}


@dataclass(frozen=True)
class Layout:
    """How one kind of file names the tensors; the defaults are our names.

    Fields of the templates: {prefix}, {stage}, {block}, {next} = stage + 1, {odd} = 2 stage + 1, {even} = 2 stage + 2,
    {last} = the last stage, {stages} = last + 1. In `merging` the stage is the one before the halving. None: the format
    has no such tensor.
    """

    format: Format
    kinds: tuple[Kind, ...] = ()
    """What is written in this layout."""
    prefix: str = ""
    patch: str = "{prefix}patch_embed.proj"
    patch_norm: str = "{prefix}patch_embed.norm"
    block: str = "{prefix}layers.{stage}.blocks.{block}."
    norm1: str = "norm1"
    qkv: tuple[str, ...] = ("attn.qkv",)
    bias_table: str = "attn.relative_position_bias_table"
    proj: str = "attn.proj"
    norm2: str = "norm2"
    fc1: str = "mlp.fc1"
    fc2: str = "mlp.fc2"
    merging: str = "{prefix}layers.{next}.downsample."
    norm: str = "{prefix}norm"
    head: str | None = "head.fc"
    mask_token: str | None = "mask_token"
    decoder: str | None = "decoder.0"
    position_index: str | None = None
    """Buffer of a block that its window decides."""
    flat_index: bool = False
    shift_mask: str | None = None
    """Buffer of a shifted block that its window and grid decide."""


OURS = Layout("swin_mim", ("SimMIM", "Swin", "SwinClassifier"))
MICROSOFT = Layout(
    "microsoft",
    ("Swin", "SwinClassifier"),
    merging="{prefix}layers.{stage}.downsample.",
    head="head",
    mask_token=None,
    decoder=None,
    position_index="attn.relative_position_index",
    shift_mask="attn_mask",
)
TRANSFORMERS = Layout(
    "transformers",
    ("SimMIM", "SwinClassifier"),
    prefix="swin.",
    patch="{prefix}embeddings.patch_embeddings.projection",
    patch_norm="{prefix}embeddings.norm",
    block="{prefix}encoder.layers.{stage}.blocks.{block}.",
    norm1="layernorm_before",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    bias_table="attention.self.relative_position_bias_table",
    proj="attention.output.dense",
    norm2="layernorm_after",
    fc1="intermediate.dense",
    fc2="output.dense",
    merging="{prefix}encoder.layers.{stage}.downsample.",
    norm="{prefix}layernorm",
    head="classifier",
    mask_token="{prefix}embeddings.mask_token",
    # Version 4 has it in its files and reports it missing where it is not; version 5 ignores it.
    position_index="attention.self.relative_position_index",
)
MMPRETRAIN = Layout(
    "mmpretrain",
    prefix="backbone.",
    patch="{prefix}patch_embed.projection",
    block="{prefix}stages.{stage}.blocks.{block}.",
    qkv=("attn.w_msa.qkv",),
    bias_table="attn.w_msa.relative_position_bias_table",
    proj="attn.w_msa.proj",
    fc1="ffn.layers.0.0",
    fc2="ffn.layers.1",
    merging="{prefix}stages.{stage}.downsample.",
    norm="{prefix}norm{last}",
    mask_token="{prefix}mask_token",
    decoder="neck.decoder.0",
    position_index="attn.w_msa.relative_position_index",
    shift_mask="attn.attn_mask",
)

LAYOUTS = (
    replace(OURS, format="timm", mask_token=None, decoder=None),
    OURS,
    replace(OURS, format="checkpoint", kinds=("SimMIM", "SwinClassifier"), prefix="encoder."),
    replace(OURS, format="checkpoint", kinds=("Swin",), head=None, mask_token=None, decoder=None),
    replace(
        MICROSOFT,
        kinds=("SimMIM",),
        prefix="encoder.",
        head=None,
        mask_token="{prefix}mask_token",
        decoder="decoder.0",
    ),
    MICROSOFT,
    Layout(
        "torchvision",
        ("SimMIM", "Swin", "SwinClassifier"),
        patch="features.0.0",
        patch_norm="features.0.2",
        block="features.{odd}.{block}.",
        fc1="mlp.0",
        fc2="mlp.3",
        merging="features.{even}.",
        head="head",
        mask_token=None,
        decoder=None,
        position_index="attn.relative_position_index",
        flat_index=True,
    ),
    TRANSFORMERS,
    replace(TRANSFORMERS, kinds=("Swin",), prefix="", head=None, decoder=None),
    # A backbone with an output norm for each stage, in detection and segmentation: the last one is the final norm.
    replace(TRANSFORMERS, kinds=(), prefix="", norm="hidden_states_norms.stage{stages}", head=None, decoder=None),
    replace(MICROSOFT, kinds=(), norm="{prefix}norm{last}", head=None),
    MMPRETRAIN,
    replace(MMPRETRAIN, norm="{prefix}norm"),
    replace(MMPRETRAIN, prefix="", head=None, decoder=None),
    replace(MMPRETRAIN, prefix="", norm="norm", head=None, decoder=None),
)
"""All that is read, the more usual one first where the names of a file fit two."""

REFUSED = {
    "Swin V2, which is another network; only Swin V1 is known here": (
        "logit_scale",
        "cpb_mlp.",
        "rpe_mlp.",
        "continuous_position_bias_mlp.",
        "relative_coords_table",
    ),
    "a Vision Transformer, not a Swin": ("cls_token", "class_token"),
    "a network with absolute position embeddings; only a Swin without them (ape: false) is known here": (
        "absolute_pos_embed",
        "position_embeddings",
    ),
    "the names that transformers 5 has in memory: write the file with model.save_pretrained(folder)": (
        ".attention.q_proj.",
        ".attention.relative_position_bias.",
    ),
    "timm's features_only model, which has no final norm: save the one of create_model(...) without it": (
        "layers_0.blocks.",
    ),
}
"""What it is -> parts of names that say so."""


@dataclass(frozen=True)
class KeyMap:
    """Where each of our tensors is found in a file."""

    format: Format
    sources: dict[str, tuple[str, ...]]
    """Our name -> their name, or their three of query, key and value."""
    left: tuple[str, ...]
    """Their buffers that the geometry decides: relative_position_index and attn_mask."""


def key_map(names: Collection[str], format: Format | None = None) -> KeyMap:
    """Our names and theirs, with nothing left over.

    Args:
        names: of the tensors in a file.
        format: recognised from the names where it is None.

    Raises:
        UserError: no Swin V1, or keys that are missing or unknown.
    """
    layout = _best_layout(names, [layout for layout in LAYOUTS if format in (None, layout.format)])
    depths = _depths(layout, names)
    sources = _present(_counterparts(layout, depths), names)
    expected = {name for theirs in sources.values() for name in theirs}
    buffers = _buffer_names(layout, depths)
    complaints = [
        first_names(sorted(expected - set(names)), "missing"),
        first_names(sorted(set(names) - expected - buffers), "unknown"),
    ]
    if any(complaints):
        what = " and ".join(filter(None, complaints))
        raise UserError(f"not a whole Swin of {_listed([layout])}: {what}; it is damaged or another model's file")
    return KeyMap(layout.format, sources, tuple(sorted(buffers & set(names))))


def our_shapes(shapes: Mapping[str, Shape], keys: KeyMap) -> dict[str, Shape]:
    """Shapes under our names, without touching data.

    Args:
        shapes: of the tensors in a file, under their names.

    Raises:
        UserError: a wrong number of dimensions, an empty tensor, or query, key and value of different shapes.
    """
    ours = {}
    for name, theirs in keys.sources.items():
        first, *others = (tuple(shapes[source]) for source in theirs)
        for source, shape in zip(theirs[1:], others, strict=True):
            if shape != first:
                raise UserError(f"{source} is {shape} and {theirs[0]} {first}: they must have the same shape")
        if len(first) != _rank(name) or min(first) < 1:
            raise UserError(f"{theirs[0]} is {first}: it must have {_rank(name)} dimensions, none of them 0")
        ours[name] = (len(theirs) * first[0], *first[1:])
    return ours


def to_ours(tensors: Mapping[str, Tensor], keys: KeyMap) -> dict[str, Tensor]:
    """Their tensors under our names: contiguous, of their dtype, bit for bit. Those of one source share its memory."""
    ours = {}
    for name, theirs in keys.sources.items():
        pieces = [tensors[source] for source in theirs]
        tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if keys.format == "mmpretrain" and ".downsample." in name:
            tensor = _from_unfold(tensor)
        ours[name] = tensor.contiguous()
    return ours


def to_theirs(
    state: Mapping[str, Tensor], format: Format, *, windows: Sequence[Pair], grids: Sequence[Pair], kind: Kind
) -> dict[str, Tensor]:
    """Our tensors under their names, with the buffers that their model has in its state dict.

    What the format has no place for is left out (`left_out`). Ask `unsupported_reason` before.

    Args:
        state: tensors under our names.
        windows, grids: cells (h, w) of each stage's window and grid.
        kind: decides the prefix, and which of mask token, decoder and head go out.

    Returns:
        contiguous tensors that share no memory with each other.

    Raises:
        UserError: a format that is only read.
    """
    layout = _written_layout(format, kind)
    depths = _depths(OURS, state)
    assert len(depths) == len(windows) == len(grids)
    absent = set(PARTS) - PARTS_OF[kind] | ({"qkv"} if _in_block(0, 0, "attn.qkv.bias") not in state else set())
    out = {}
    for name, theirs in _counterparts(layout, depths).items():
        if _optional_part(name) in absent:
            continue
        for source, piece in zip(theirs, state[name].chunk(len(theirs)), strict=True):
            out[source] = piece.contiguous() if len(theirs) == 1 else piece.clone()
    return out | _buffers(layout, depths, windows, grids)


def left_out(format: Format, names: Collection[str]) -> tuple[str, ...]:
    """Our names among these that the format has no place for: mask token and decoder of timm and torchvision."""
    layout = _written_layout(format, "SimMIM")
    absent = [part for part in PARTS_OF["SimMIM"] if getattr(layout, part) is None]
    return tuple(sorted(name for name in names if _optional_part(name) in absent))


# Names.


def _names(layout: Layout, depths: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """The name, or three, of every tensor, in an order that all layouts share; () where a layout has none."""
    yield from _weight_and_bias(_fill(layout, layout.patch))
    yield from _weight_and_bias(_fill(layout, layout.patch_norm))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            yield from _block_names(layout, _fill(layout, layout.block, stage, block))
    for stage in range(len(depths) - 1):
        merging = _fill(layout, layout.merging, stage)
        yield from _weight_and_bias(f"{merging}norm")
        yield (f"{merging}reduction.weight",)
    yield from _weight_and_bias(_fill(layout, layout.norm, last=len(depths) - 1))
    yield from _weight_and_bias(layout.head)
    yield () if layout.mask_token is None else (_fill(layout, layout.mask_token),)
    yield from _weight_and_bias(layout.decoder)


def _block_names(layout: Layout, prefix: str) -> Iterator[tuple[str, ...]]:
    yield from _weight_and_bias(prefix + layout.norm1)
    for parameter in ("weight", "bias"):
        yield tuple(f"{prefix}{module}.{parameter}" for module in layout.qkv)
    yield (prefix + layout.bias_table,)
    for module in (layout.proj, layout.norm2, layout.fc1, layout.fc2):
        yield from _weight_and_bias(prefix + module)


def _weight_and_bias(module: str | None) -> Iterator[tuple[str, ...]]:
    for parameter in ("weight", "bias"):
        yield () if module is None else (f"{module}.{parameter}",)


def _fill(layout: Layout, template: str, stage: int = 0, block: int = 0, last: int = 0) -> str:
    numbers = {"stage": stage, "block": block, "next": stage + 1, "odd": 2 * stage + 1, "even": 2 * stage + 2}
    return template.format(prefix=layout.prefix, last=last, stages=last + 1, **numbers)


def _in_block(stage: int, block: int, name: str) -> str:
    return _fill(OURS, OURS.block, stage, block) + name


def _counterparts(layout: Layout, depths: Sequence[int]) -> dict[str, tuple[str, ...]]:
    """Our name -> theirs, for all tensors that the layout has a place for."""
    pairs = zip(_names(OURS, depths), _names(layout, depths), strict=True)
    return {ours[0]: theirs for ours, theirs in pairs if theirs}


def _present(counterparts: dict[str, tuple[str, ...]], names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The pairs without the optional parts of which a file has nothing."""
    found = {_optional_part(ours) for ours, theirs in counterparts.items() if any(name in names for name in theirs)}
    absent = {"qkv", *PARTS} - found
    return {ours: theirs for ours, theirs in counterparts.items() if _optional_part(ours) not in absent}


def _optional_part(name: str) -> str:
    """The part that one of our names belongs to, of those that a network may lack; "" for the others."""
    if name.endswith(".attn.qkv.bias"):
        return "qkv"
    part = name.split(".")[0]
    return part if part in PARTS else ""


def _depths(layout: Layout, names: Collection[str]) -> tuple[int, ...]:
    """Different blocks in each stage; () if no name fits. Counted, so that a hostile index costs nothing."""
    odd = "{odd}" in layout.block
    fields = {"prefix": re.escape(layout.prefix)} | dict.fromkeys(("stage", "odd", "block"), r"(\d{1,6})")
    pattern = re.compile(layout.block.replace(".", r"\.").format(**fields))
    found = {match.groups() for match in map(pattern.match, names) if match is not None}
    stages = [int(stage) for stage, _ in found]
    blocks = Counter([stage // 2 for stage in stages if stage % 2] if odd else stages)
    return tuple(blocks[stage] for stage in takewhile(blocks.__contains__, range(len(blocks))))


def _buffer_names(layout: Layout, depths: Sequence[int]) -> set[str]:
    """All that a file may have: old ones keep attn_mask in blocks that need none."""
    blocks = [_fill(layout, layout.block, stage, j) for stage, depth in enumerate(depths) for j in range(depth)]
    buffers = [name for name in (layout.position_index, layout.shift_mask) if name is not None]
    return {block + name for block in blocks for name in buffers}


def _best_layout(names: Collection[str], layouts: Sequence[Layout]) -> Layout:
    """The layout that explains most of the names, the first of equals."""
    for what, parts in REFUSED.items():
        for name in names:
            if any(part in name for part in parts):
                raise UserError(f"this is {what} (it has {name})")
    explained = [len(explained_names(layout, names)) for layout in layouts]
    if 2 * max(explained) <= len(names):
        raise UserError(
            f"no Swin of {_listed(layouts)} is in this file: {first_names(sorted(names), 'unknown') or 'it is empty'}"
        )
    return layouts[explained.index(max(explained))]


def explained_names(layout: Layout, names: Collection[str]) -> set[str]:
    """The names among these that a layout knows; none where they are too few for its blocks."""
    depths = _depths(layout, names)
    if not depths or 12 * sum(depths) > len(names):  # a block has 12 tensors; more blocks are no Swin, and take time
        return set()
    known = {name for theirs in _counterparts(layout, depths).values() for name in theirs}
    return (known | _buffer_names(layout, depths)) & set(names)


def _written_layout(format: Format, kind: Kind) -> Layout:
    if format == "mmpretrain":
        raise UserError("mmpretrain files are read, not written: choose timm, microsoft, torchvision or transformers")
    return next(layout for layout in LAYOUTS if layout.format == format and kind in layout.kinds)


def first_names(names: Sequence[str], what: str) -> str:
    """`2 missing keys (a, b)`, of more than five the first; "" for none."""
    if not names:
        return ""
    dots = ", ..." if len(names) > 5 else ""
    words = (str(len(names)), what, f"key{'s' * (len(names) > 1)}", f"({', '.join(names[:5])}{dots})")
    return " ".join(filter(None, words))


def _listed(layouts: Sequence[Layout]) -> str:
    names = (layout.format.replace("checkpoint", "swin_mim") for layout in layouts)
    return ", ".join(dict.fromkeys(names))


# Data.


def _rank(name: str) -> int:
    """Dimensions of one of our tensors."""
    if name == "mask_token":
        return 3
    if name in ("patch_embed.proj.weight", "decoder.0.weight"):
        return 4
    if name.endswith((".bias", "norm.weight", "norm1.weight", "norm2.weight")):
        return 1
    return 2


def _from_unfold(tensor: Tensor) -> Tensor:
    """(..., 4C) -> (..., 4C), the four cells' channels in our order.

    nn.Unfold numbers them channel, row, column; the official code column, row, channel.
    """
    return tensor.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)


def _buffers(
    layout: Layout, depths: Sequence[int], windows: Sequence[Pair], grids: Sequence[Pair]
) -> dict[str, Tensor]:
    out = {}
    for stage, (depth, window, grid) in enumerate(zip(depths, windows, grids, strict=True)):
        shift = tuple(w // 2 if g > w else 0 for g, w in zip(grid, window, strict=True))
        for j in range(depth):
            block = _fill(layout, layout.block, stage, j)
            if layout.position_index is not None:
                index = _position_index(window)
                out[block + layout.position_index] = index.flatten() if layout.flat_index else index
            if layout.shift_mask is not None and j % 2 and any(shift):
                out[block + layout.shift_mask] = _shift_mask(grid, window, (shift[0], shift[1]))
    return out


def _position_index(window: Pair) -> Tensor:
    """int64 (t, t): the row of the bias table for each pair of tokens of a window."""
    cells = torch.cartesian_prod(*(torch.arange(side) for side in window)).view(-1, 2)  # (t, 2), down and right
    offsets = cells[:, None] - cells[None, :] + torch.tensor(window) - 1  # (t, t, 2)
    return offsets[..., 0] * (2 * window[1] - 1) + offsets[..., 1]


def _shift_mask(grid: Pair, window: Pair, shift: Pair) -> Tensor:
    """float32 (windows, t, t): 0 where two tokens of a shifted window lie side by side in the image."""
    cells = [torch.arange(side) for side in grid]
    sides = zip(cells, grid, window, shift, strict=True)
    down, right = ((cell >= g - w).long() + (cell >= g - s).long() for cell, g, w, s in sides)
    region = 3 * down[:, None] + right[None, :]  # (h, w)
    region = region.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0]))
    region = region.transpose(1, 2).flatten(2).flatten(0, 1)  # (windows, t)
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros(apart.shape).masked_fill_(apart, MASKED_SCORE)
