"""How the kernels of `window_kernels.py` divide a shape among programs: tiles, warps and the number of programs.

Nothing here is tuned at run time. The sums of the bias gradient depend on how many programs share them, so that
number is a function of the shape and the processors of the GPU alone, and a resumed run adds in the same order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Pair = tuple[int, int]
Kernel = Literal["forward", "whole", "rows", "columns"]

WHOLE = 64
"""The most tokens of a window whose scores are one tile."""
LEAST = 16
"""Rows or columns that tensor cores multiply at least."""
WIDEST = 64
"""Columns of a part: what is live of one part, several numbers per score, has to fit into registers."""


@dataclass(frozen=True)
class Plan:
    """What a kernel is compiled for.

    Everything that the kernel reads is a field and none a property: Triton's cache knows a plan by its repr.

    Args:
        padded_dim: channels of a head in a tile, a power of two.
        scale: of the scores, head_dim^-0.5.
        filled: some tokens are padding, and they are not zeros.
        rows: of the score matrix in one strip.
        strips: of one window.
        widths, starts: columns of the parts of a strip, and the first of each.
        whole: the window is one strip of one part.
        kinds: of windows that have a bias of their own, for where the cyclic shift put strangers side by side.
    """

    heads: int
    head_dim: int
    padded_dim: int
    scale: float
    tokens: int
    window: Pair
    table_window: Pair
    shift: Pair
    filled: bool
    rows: int
    strips: int
    parts: int
    widths: tuple[int, ...]
    starts: tuple[int, ...]
    whole: bool
    kinds: int


@dataclass(frozen=True)
class Launch:
    """Warps of a program, stages of its loop over windows (2: one window is read ahead), programs of a processor."""

    num_warps: int
    num_stages: int
    programs: int


def plan_of(
    heads: int, head_dim: int, window: Sequence[int], table_window: Sequence[int], shift: Sequence[int], filled: bool
) -> Plan:
    tokens = window[0] * window[1]
    rows, widths = strip_rows(tokens), part_widths(tokens)
    return Plan(
        heads=heads,
        head_dim=head_dim,
        padded_dim=max(16, _power_of_two(head_dim)),
        scale=head_dim**-0.5,
        tokens=tokens,
        window=(window[0], window[1]),
        table_window=(table_window[0], table_window[1]),
        shift=(shift[0], shift[1]),
        filled=filled,
        rows=rows,
        strips=math.ceil(tokens / rows),
        parts=len(widths),
        widths=widths,
        starts=tuple(sum(widths[:part]) for part in range(len(widths))),
        whole=tokens <= WHOLE,
        kinds=4 if any(shift) else 1,
    )


def strip_rows(tokens: int) -> int:
    """64 rows read keys and values half as often as 32, which are taken where they waste fewer: 144 = 4.5 x 32."""
    if tokens <= WHOLE:
        return max(LEAST, _power_of_two(tokens))
    return min((64, 32), key=lambda rows: math.ceil(tokens / rows) * rows)


def part_widths(tokens: int) -> tuple[int, ...]:
    """Powers of two, descending, that together have the fewest columns: 144 -> (64, 64, 16), 100 -> (64, 32, 16)."""
    if tokens <= WHOLE:
        return (max(LEAST, _power_of_two(tokens)),)
    widths, left = [], math.ceil(tokens / LEAST) * LEAST
    while left:
        widths.append(min(WIDEST, 1 << (left.bit_length() - 1)))
        left -= widths[-1]
    return tuple(widths)


def launch_of(kernel: Kernel, plan: Plan, exact: bool) -> Launch:
    """How to start a kernel; exact: fp32 operands, which are multiplied without tensor cores and fill registers."""
    warps = plan.rows // 16
    if plan.whole:
        return Launch(2 * warps if exact else warps, 1 if exact else 2, 16 // warps)
    return Launch(2 * warps if exact else warps, 1, 8 // warps)


def groups_of(windows: int, plan: Plan, launch: Launch, processors: int) -> int:
    """Programs that share the windows of a batch, for each head and strip; all of them get as many, or one less."""
    most = max(1, processors * launch.programs // (plan.heads * plan.strips))
    return max(1, math.ceil(windows / math.ceil(max(1, windows) / most)))


def _power_of_two(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << (number - 1).bit_length()
