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


@dataclass(frozen=True)
class Plan:
    """What a kernel is compiled for.

    Everything that the kernel reads is a field and none a property: Triton's cache knows a plan by its repr.

    Args:
        padded_dim: channels of a head in a tile, a power of two.
        scale: of the scores, head_dim^-0.5.
        filled: some tokens are padding, and they are not zeros.
        rows: of the score matrix in one strip.
        near, far: columns of the two parts of a strip; far may be 0.
        strips: of one window.
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
    near: int
    far: int
    strips: int


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
    rows, near, far = tile(tokens)
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
        near=near,
        far=far,
        strips=math.ceil(tokens / rows),
    )


def tile(tokens: int) -> tuple[int, int, int]:
    """Rows of a strip and columns of its two parts; 16 is the least that tensor cores multiply.

    Wide windows go in strips of 32: 144 tokens are then 160 x (128 + 16), 11 % more than they need, where one tile
    would be three times as much. Strips of 16 would waste nothing and read keys and values twice as often.
    """
    if tokens <= WHOLE:
        side = max(16, _power_of_two(tokens))
        return side, side, 0
    near = 64 if tokens <= 96 else 128
    return 32, near, max(16, _power_of_two(tokens - near)) if tokens > near else 0


def launch_of(kernel: Kernel, plan: Plan, exact: bool) -> Launch:
    """How to start a kernel; exact: fp32 operands, which are multiplied without tensor cores and fill registers."""
    if plan.tokens <= WHOLE:
        warps = {16: 1, 32: 2, 64: 4}[plan.rows]
        return Launch(2 * warps if exact else warps, 1 if exact else 2, 16 // warps)
    return Launch(8 if exact or kernel == "rows" else 4, 1 if exact else 2, 2)


def groups_of(windows: int, plan: Plan, launch: Launch, processors: int) -> int:
    """Programs that share the windows of a batch, for each head and strip; all of them get as many, or one less."""
    most = max(1, processors * launch.programs // (plan.heads * plan.strips))
    return max(1, math.ceil(windows / math.ceil(max(1, windows) / most)))


def _power_of_two(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << (number - 1).bit_length()
