"""The buffers of Swin V2 that tell what its weights do not: the window, and the one that measures positions.

Its position bias is a network's answer to coordinates (arXiv 2111.09883, section 3.3), so that the same weights fit any
window. microsoft's, torchvision's and mmpretrain's files keep the coordinates beside them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from swin_mim.errors import UserError
from swin_mim.kernels.window_geometry import relative_coordinates

Pair = tuple[int, int]
Shape = tuple[int, ...]
Names = Sequence[Sequence[str]]
"""Of the buffers of each stage."""

_LARGEST = 1 << 10
"""Tokens along the side of any window."""
_ROUNDING = 1.2e-2
"""Of coordinates from -1 to 1 and beyond, in bfloat16 too."""


def windows_of(shapes: Mapping[str, Shape], names: Names) -> tuple[Pair, ...] | None:
    """The window of each stage, from the shapes of its buffers; None without buffers.

    Args:
        shapes: by the file's names.

    Raises:
        UserError: a shape that no window has, or blocks of a stage that differ.
    """
    windows = []
    for stage, blocks in enumerate(names):
        first, *others = found = [tuple(shapes[name]) for name in blocks]
        for name, shape in zip(blocks, found, strict=True):
            if len(shape) != 4 or shape[0] != 1 or shape[3] != 2 or not shape[1] % 2 or not shape[2] % 2:
                raise UserError(f"{name} is {shape}: it must be (1, 2h-1, 2w-1, 2) for a window of h x w")
        if any(other != first for other in others):
            raise UserError(f"the blocks of stage {stage} have relative_coords_table of different shapes")
        windows.append(((first[1] + 1) // 2, (first[2] + 1) // 2))
    return tuple(windows) or None


def measures_of(tensors: Mapping[str, Tensor], names: Names, windows: Sequence[Pair]) -> tuple[Pair, ...]:
    """The window of each stage that measures its positions, from the values of its buffers.

    Args:
        tensors: by the file's names.
        windows: (h, w) of each stage, as `windows_of` has them.

    Raises:
        UserError: values that are no coordinates.
    """
    return tuple(_measure(tensors, blocks, window) for blocks, window in zip(names, windows, strict=True))


def _measure(tensors: Mapping[str, Tensor], blocks: Sequence[str], window: Pair) -> Pair:
    ends = tensors[blocks[0]][0, -1, -1].double()
    reach = ((3 * ends.clamp(min=1e-7, max=10)).exp2() - 1) / 8  # of the far end, in measuring windows
    far = torch.tensor(window, dtype=torch.float64) - 1
    sides = (1 + far / reach).nan_to_num(0).round().long().tolist()
    measure = tuple(side if at > 0 else own for side, at, own in zip(sides, far.tolist(), window, strict=True))
    expected = relative_coordinates(window, (measure[0], measure[1]))
    for name in blocks:
        if max(measure) > _LARGEST or not (
            tensors[name].float() - expected
        ).abs().max() <= _ROUNDING * expected.abs().max().clamp(min=1):
            raise UserError(f"{name} holds no coordinates of a window of {window[0]}x{window[1]}: the file is damaged")
    return measure[0], measure[1]
