"""How the kernels of `window_kernels.py` divide a shape among programs: tiles, warps and the number of programs.

Nothing here is tuned at run time. The sums of the bias gradient depend on how many programs share them, so that
number is a function of the shape, the GPU and the compiled kernel alone, and a resumed run adds in the same order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from swin_mim.kernels.window_geometry import Pair

Kernel = Literal["forward", "whole", "rows", "columns"]

MOST_TOKENS = 256
"""Max tokens of a window: 16 x 16."""
MOST_CHANNELS = 64
"""Max channels of a head. Every published Swin has 32."""
WHOLE = 64
"""The most tokens of a window whose scores are one tile."""
MIN_TILE = 16
"""Min rows or columns that tensor cores multiply."""
WIDEST = 32
"""Columns of a part: several numbers of each of its scores are live, besides the bias gradient of all parts."""


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
        held: the bias of a kind of windows stays in registers for all its windows. fp32 operands and wide heads leave
            no room, and on AMD the registers of the backward pass double.
        pitch: numbers from one row of the bias to the next.
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
    held: bool
    kinds: int
    pitch: int


@dataclass(frozen=True)
class Launch:
    """Warps of a program, stages of its loop over windows (2: one is read ahead), max programs of a processor."""

    num_warps: int
    num_stages: int
    programs: int


def plan_of(
    heads: int,
    head_dim: int,
    window: Sequence[int],
    table_window: Sequence[int],
    shift: Sequence[int],
    *,
    filled: bool,
    exact: bool,
    amd: bool = False,
) -> Plan:
    """exact: operands are fp32. amd: for a GPU of that make."""
    assert all(0 <= s < w <= t for s, w, t in zip(shift, window, table_window, strict=True)), (shift, window)
    tokens = window[0] * window[1]
    rows, widths = strip_rows(tokens), part_widths(tokens, exact)
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
        held=tokens <= WHOLE and head_dim <= 32 and not (exact or amd),
        kinds=4 if any(shift) else 1,
        pitch=math.ceil(tokens / 8) * 8,
    )


def strip_rows(tokens: int) -> int:
    """64 for wide windows. With 32, 144 tokens would waste fewer rows, but keys and values would be read 5 times, not
    3, and two warps would hold on the way what four do: 60 registers more than there are.
    """
    return min(WHOLE, max(MIN_TILE, _power_of_two(tokens)))


def part_widths(tokens: int, exact: bool) -> tuple[int, ...]:
    """Powers of two, descending, that together have the fewest columns: 144 -> (32, 32, 32, 32, 16)."""
    if tokens <= WHOLE:
        return (strip_rows(tokens),)
    widths, left = [], math.ceil(tokens / MIN_TILE) * MIN_TILE
    while left:
        widths.append(MIN_TILE if exact else min(WIDEST, 1 << (left.bit_length() - 1)))
        left -= widths[-1]
    return tuple(widths)


def launch_of(kernel: Kernel, plan: Plan, exact: bool) -> Launch:
    """How to start a kernel; exact: fp32 operands, which are multiplied without tensor cores and fill registers.

    Two stages where their shared memory leaves room for one program on any GPU. Programs are at most as many as a
    processor keeps busy; how many it holds, `programs_of` says.
    """
    warps = plan.rows // 16
    programs = {"forward": 16 // warps, "whole": {1: 16, 2: 6, 4: 2}[warps], "rows": 2, "columns": 3}[kernel]
    if exact:
        return Launch((4 if plan.padded_dim > 32 else 2) * warps, 1, programs)
    return Launch(warps, 2 if plan.padded_dim <= 32 and plan.tokens <= 144 else 1, programs)


@dataclass(frozen=True)
class Processors:
    """Those of a GPU: how many, and the bytes of shared memory and the registers (of 32 bits) of one."""

    count: int
    shared: int
    registers: int


@dataclass(frozen=True)
class Taken:
    """What a program of a compiled kernel takes: bytes of shared memory, registers of a thread, threads."""

    shared: int
    registers: int
    threads: int


SYSTEM_SHARED = 1024
"""Bytes of shared memory that CUDA keeps for itself beside every program."""
REGISTER_STEP = 8
"""Registers of a thread are given in eights."""


def programs_of(launch: Launch, taken: Taken, processors: Processors) -> int:
    """Programs that a processor holds at once: more would wait for a second turn, in which most processors idle."""
    by_shared = processors.shared // (taken.shared + SYSTEM_SHARED)
    by_registers = processors.registers // (math.ceil(taken.registers / REGISTER_STEP) * REGISTER_STEP * taken.threads)
    return max(1, min(launch.programs, by_shared, by_registers))


def groups_of(windows: int, plan: Plan, programs: int) -> int:
    """Groups of programs that share the windows of a batch, for each head and strip; all get as many, or one less.

    programs: that the whole GPU holds.
    """
    most = max(1, programs // (plan.heads * plan.strips))
    return max(1, math.ceil(windows / math.ceil(max(1, windows) / most)))


def _power_of_two(number: int) -> int:
    """Round up to a power of two."""
    return 1 << (number - 1).bit_length()
