"""Tensors of a Swin from the files of others to ours and back: by the tables of `layouts.py`, both directions.

"Our names" are those of a published model: timm's for the encoder, `head.fc`, `mask_token`, `decoder.0`, `stage_heads`.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from swin_mim.errors import UserError
from swin_mim.kernels.window_geometry import relative_coordinates
from swin_mim.weights.heads import NAME, TEACHER_NAME, is_head
from swin_mim.weights.layouts import LAYOUTS, OURS, OURS_OF, PARTS, PARTS_OF, REFUSED, Format, Kind, Layout

Shape = tuple[int, ...]
Pair = tuple[int, int]

MASKED_SCORE = -100.0
"""What the official code stores in attn_mask for two tokens that are neighbours only through the cyclic shift."""


@dataclass(frozen=True)
class KeyMap:
    """Where each of our tensors is found in a file."""

    format: Format
    sources: dict[str, tuple[str, ...]]
    """Our name -> their name, or their three of query, key and value."""
    left: tuple[str, ...]
    """Their buffers that the geometry decides: relative_position_index, attn_mask and relative_coords_table."""
    coordinates: tuple[tuple[str, ...], ...] = ()
    """Those of `left` that tell the window of a V2, and that of its pretraining: of each stage, a name for each block
    that has one."""


def key_map(names: Collection[str], format: Format | None = None) -> KeyMap:
    """Our names and theirs, with nothing left over.

    Args:
        names: of the tensors in a file.
        format: recognised from the names where it is None.

    Raises:
        UserError: no Swin, or keys that are missing or unknown.
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
    return KeyMap(layout.format, sources, tuple(sorted(buffers & set(names))), _coordinates(layout, depths, names))


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
        if third(name, theirs) is None:
            ours[name] = (len(theirs) * first[0], *first[1:])
        elif first[0] % 3:
            raise UserError(f"{theirs[0]} is {first}: it must hold as many values for queries, keys and values")
        else:
            ours[name] = (first[0] // 3,)
    return ours


def to_ours(tensors: Mapping[str, Tensor], keys: KeyMap) -> dict[str, Tensor]:
    """Their tensors under our names: contiguous, of their dtype, bit for bit. Those of one source share its memory."""
    ours = {}
    for name, theirs in keys.sources.items():
        pieces = [tensors[source] for source in theirs]
        tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        place = third(name, theirs)
        if place is not None:
            tensor = tensor.chunk(3)[place]
        if merges_unfolded(name, keys):
            tensor = _from_unfold(tensor)
        ours[name] = tensor.contiguous()
    return ours


def key_biases(tensors: Mapping[str, Tensor], keys: KeyMap) -> tuple[str, ...]:
    """Their names of the biases of queries, keys and values whose middle, which a V2 does not use, is not zero."""
    whole = {theirs[0] for name, theirs in keys.sources.items() if third(name, theirs) is not None}
    return tuple(sorted(name for name in whole if tensors[name].chunk(3)[1].any()))


def third(name: str, theirs: Sequence[str]) -> int | None:
    """Which third of their tensor is ours, where one is the biases of a V2's queries, keys and values."""
    if not theirs[0].endswith(".qkv.bias"):
        return None
    return next((place for end, place in {".q_bias": 0, ".v_bias": 2}.items() if name.endswith(end)), None)


def merges_unfolded(name: str, keys: KeyMap) -> bool:
    """Whether one of our tensors has the channels of four merged cells in another order in a file."""
    after_reduction = ".norm." in name and any(other.endswith(".attn.logit_scale") for other in keys.sources)
    return keys.format == "mmpretrain" and ".downsample." in name and not after_reduction


def to_theirs(
    state: Mapping[str, Tensor],
    format: Format,
    *,
    windows: Sequence[Pair],
    grids: Sequence[Pair],
    kind: Kind,
    pretrained: Sequence[Pair] = (),
) -> dict[str, Tensor]:
    """Our tensors under their names, with the buffers that their model has in its state dict.

    What the format has no place for is left out (`left_out`). Ask `unsupported_reason` before.

    Args:
        state: tensors under our names.
        windows, grids: cells (h, w) of each stage's window and grid.
        kind: decides the prefix, and which of mask token, decoder and head go out.
        pretrained: of a V2, the window of each stage that measures positions; 0: the stage's own.

    Returns:
        contiguous tensors that share no memory with each other.

    Raises:
        UserError: a format that is only read.
    """
    layout = _written_layout(format, kind, version_of(state))
    depths = _depths(OURS, state)
    assert len(depths) == len(windows) == len(grids)
    unwanted = set(PARTS) - PARTS_OF[kind]
    out: dict[str, Tensor] = {}
    for name, theirs in _counterparts(layout, depths).items():
        part, place = _optional_part(name), third(name, theirs)
        if part in unwanted or (part and part not in PARTS and name not in state):
            continue
        if place is not None:
            whole = out.setdefault(theirs[0], state[name].new_zeros(3 * state[name].numel()))
            whole.chunk(3)[place].copy_(state[name])
            continue
        for source, piece in zip(theirs, state[name].chunk(len(theirs)), strict=True):
            out[source] = piece.contiguous() if len(theirs) == 1 else piece.clone()
    buffers = _buffers(layout, depths, windows, grids) | _coordinate_buffers(layout, depths, windows, pretrained)
    return out | (buffers if layout.writes_buffers else {})


def left_out(format: Format, names: Collection[str]) -> tuple[str, ...]:
    """Our names among these that the format has no place for, as mask token and decoder of timm and torchvision."""
    layout = _written_layout(format, "SimMIM", version_of(names))
    absent = [part for part in (*PARTS_OF["SimMIM"], NAME, TEACHER_NAME) if getattr(layout, part) is None]
    return tuple(sorted(name for name in names if name.split(".")[0] in absent))


def version_of(names: Collection[str]) -> int:
    """1 or 2: the Swin that has tensors of these names of ours."""
    return 2 if _in_block(0, 0, "attn.logit_scale") in names else 1


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
    for stage in range(len(depths)):
        for module in ("norm", "proj"):
            heads = layout.stage_heads
            yield from _weight_and_bias(None if heads is None else _fill(layout, heads, stage) + module)
    yield from _weight_and_bias(layout.teacher_head)


def _block_names(layout: Layout, prefix: str) -> Iterator[tuple[str, ...]]:
    yield from _weight_and_bias(prefix + layout.norm1)
    for names in (layout.qkv, layout.qkv_bias):
        yield tuple(prefix + name for name in names)
    for name in (layout.q_bias, layout.v_bias, layout.bias_table, layout.logit_scale):
        yield () if name is None else (prefix + name,)
    for part in ("0.weight", "0.bias", "2.weight"):
        yield () if layout.position_mlp is None else (f"{prefix}{layout.position_mlp}.{part}",)
    for module in (layout.proj, layout.norm2, layout.fc1, layout.fc2, layout.norm3):
        yield from _weight_and_bias(None if module is None else prefix + module)


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
    pairs = zip(_names(OURS_OF[layout.version], depths), _names(layout, depths), strict=True)
    return {ours[0]: theirs for ours, theirs in pairs if theirs}


def _present(counterparts: dict[str, tuple[str, ...]], names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The pairs without the optional parts of which a file has nothing."""
    found = {_optional_part(ours) for ours, theirs in counterparts.items() if any(name in names for name in theirs)}
    return {ours: theirs for ours, theirs in counterparts.items() if _optional_part(ours) in {"", *found}}


def _optional_part(name: str) -> str:
    """The part that one of our names belongs to, of those that a network may lack; "" for the others."""
    if name.endswith((".attn.qkv.bias", ".attn.q_bias", ".attn.v_bias")):
        return "qkv"
    if ".norm3." in name or is_head(name):
        return name.rpartition(".")[0]  # each for itself: which blocks or stages have one, a setting decides
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
    buffers = [name for name in (layout.position_index, layout.shift_mask, layout.coordinates) if name is not None]
    return {block + name for block in blocks for name in buffers}


def _coordinates(layout: Layout, depths: Sequence[int], names: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """Those of a file, of each stage; () unless all stages have some."""
    if layout.coordinates is None:
        return ()
    found = tuple(
        tuple(
            name
            for block in range(depth)
            if (name := f"{_fill(layout, layout.block, stage, block)}{layout.coordinates}") in names
        )
        for stage, depth in enumerate(depths)
    )
    return found if all(found) else ()


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


def _written_layout(format: Format, kind: Kind, version: int) -> Layout:
    if format == "mmpretrain":
        raise UserError("mmpretrain files are read, not written: choose timm, microsoft, torchvision or transformers")
    return next(one for one in LAYOUTS if (one.format, one.version) == (format, version) and kind in one.kinds)


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
    if name == "mask_token" or name.endswith(".logit_scale"):
        return 3
    if name in ("patch_embed.proj.weight", "decoder.0.weight"):
        return 4
    if name.endswith((".bias", "q_bias", "v_bias", "norm.weight", "norm1.weight", "norm2.weight", "norm3.weight")):
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


def _coordinate_buffers(
    layout: Layout, depths: Sequence[int], windows: Sequence[Pair], pretrained: Sequence[Pair]
) -> dict[str, Tensor]:
    if layout.coordinates is None:
        return {}
    return {
        _fill(layout, layout.block, stage, block) + layout.coordinates: relative_coordinates(windows[stage], measure)[
            None
        ]
        for stage, (depth, measure) in enumerate(zip(depths, pretrained, strict=True))
        for block in range(depth)
    }


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
