"""Shifted-window attention as one torch op, `swin_mim::window_attention`, on Triton kernels.

q, k, v are read where the projection left them and the output is written in raster order: padding, cyclic shift and
windows are index arithmetic in the kernels, so nothing is copied, and no mask or bias is written out for the windows of
a batch. The backward pass computes the probabilities again. Nothing is atomic: the same input gives the same bits on
the same kind of GPU.

B images, h x w tokens, heads, d channels of a head, n windows of an image (padding included), t tokens of a window.
Needs triton, which comes with torch for CUDA and ROCm; on CPU tensors only its interpreter runs (TRITON_INTERPRET=1).
"""

import math
import sys
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from swin_mim.errors import UserError
from swin_mim.kernels import window_kernels as kernels
from swin_mim.kernels.window_plan import (
    MOST_CHANNELS,
    MOST_TOKENS,
    WHOLE,
    Kernel,
    Launch,
    Pair,
    Plan,
    Processors,
    Taken,
    groups_of,
    launch_of,
    plan_of,
    programs_of,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
AMD = torch.version.hip is not None
INTERPRETER_PROCESSORS = 1
"""Taken for the number of processors where there are none: so few that every program gets several windows."""


def window_attention(
    qkv: Tensor, table: Tensor, fill: Tensor | None, window: Pair, table_window: Pair, shift: Pair
) -> Tensor:
    """Attention within (shifted) windows; scores, softmax and sums in fp32.

    Autocast does not reach into the op: under it, qkv has the dtype that the projection gave it, and table and fill
    are the fp32 parameters. All three get gradients, of their own dtypes; these have none themselves.

    Args:
        qkv: (B, h, w, 3, heads, d) in raster order, fp32, bf16 or fp16. Copied if it is not contiguous.
        table: ((2 Th - 1) (2 Tw - 1), heads), any float dtype: relative position bias of windows of Th x Tw tokens.
        fill: (3, heads, d), any float dtype: what q, k, v are at padded positions. None: zeros.
        window: tokens (h, w) of a window; uses the centre of the table. A grid that it does not divide is padded at
            the bottom and right.
        table_window: (Th, Tw), not less than the window.
        shift: cyclic shift (h, w) of the windows, less than the window.

    Returns:
        (B, h, w, heads, d), contiguous, of qkv's dtype.

    Raises:
        UserError: no kernel is written for this.
    """
    out, _, _ = attention_op(qkv, table, fill, list(window), list(table_window), list(shift))
    return out


@torch.library.custom_op("swin_mim::window_attention", mutates_args=())
def attention_op(
    qkv: Tensor, table: Tensor, fill: Tensor | None, window: list[int], table_window: list[int], shift: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and what the backward pass needs besides.

    That is, of wide windows, log_sums (windows, heads, t), fp32; and the bias written out, as `_empty_bias`.
    """
    _check(qkv, window)
    qkv, fill = qkv.contiguous(), _contiguous(fill)
    out, log_sums = _empty_outputs(qkv, window)
    plan = _plan(qkv, fill, window, table_window, shift)
    start, bias = _Starter(qkv, plan), _bias(table, plan, qkv.dtype)
    if plan.held:
        start(kernels.forward_whole, "forward", qkv, bias, fill, out)
    else:
        start(kernels.forward, "forward", qkv, bias, fill, out, log_sums)
    return out, log_sums, bias


@torch.library.custom_op("swin_mim::window_attention_backward", mutates_args=())
def backward_op(
    grad: Tensor,
    qkv: Tensor,
    table: Tensor,
    fill: Tensor | None,
    window: list[int],
    table_window: list[int],
    shift: list[int],
    out: Tensor,
    log_sums: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, table and fill (of no elements without one). grad is (B, h, w, heads, d), of qkv's dtype.

    out, log_sums and bias are what `attention_op` returned.
    """
    qkv, fill, out, grad = qkv.contiguous(), _contiguous(fill), out.contiguous(), grad.contiguous()
    plan = _plan(qkv, fill, window, table_window, shift)
    start = _Starter(qkv, plan)
    qkv_grad = torch.empty_like(qkv)
    if plan.whole:
        pairs, fills = start.sums(
            kernels.backward_whole,
            "whole",
            (qkv, bias, fill, grad, qkv_grad),
            (plan.tokens, plan.tokens),
            (2, plan.head_dim),
        )
        start(kernels.backward_whole, "whole", qkv, bias, fill, grad, qkv_grad, pairs, fills)
    else:
        means = torch.empty_like(log_sums)
        rows = (qkv, bias, fill, out, grad, log_sums, means, qkv_grad)
        (pairs,) = start.sums(kernels.backward_rows, "rows", rows, (plan.tokens, plan.tokens))
        start(kernels.backward_rows, "rows", *rows, pairs)
        turned = _bias(table, plan, qkv.dtype, turned=True)
        columns = (qkv, turned, fill, grad, log_sums, means, qkv_grad)
        (fills,) = start.sums(kernels.backward_columns, "columns", columns, (plan.strips * 2, plan.head_dim))
        start(kernels.backward_columns, "columns", *columns, fills)
    return qkv_grad, _table_grad(pairs, table, plan), _fill_grad(fills, fill, plan)


@attention_op.register_fake
def _(
    qkv: Tensor, table: Tensor, fill: Tensor | None, window: list[int], table_window: list[int], shift: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _plan(qkv, None, window, table_window, shift)
    return *_empty_outputs(qkv, window), _empty_bias(table, plan, qkv.dtype)


@backward_op.register_fake
def _(grad: Tensor, qkv: Tensor, table: Tensor, fill: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), table.new_empty(table.shape), _empty_fill_grad(qkv, fill)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep for the backward pass what is in memory anyway: the projections around keep qkv's source and the output.

    The bias is small, as it does not grow with the batch.
    """
    qkv, table, fill, *ctx.geometry = inputs
    ctx.save_for_backward(qkv, table, fill, *output)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    qkv, table, fill, *saved = ctx.saved_tensors
    grads = backward_op(grad, qkv, table, fill, *ctx.geometry, *saved)
    wanted = (grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad[:3], strict=True))
    return *wanted, None, None, None


attention_op.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.swin_mim.window_attention)
def forward_flops(qkv_shape: torch.Size, table_shape: Any, fill_shape: Any, window: Pair, *_: Any, **__: Any) -> int:
    """Two matrix products of every window, padding of the grid included and of tiles not."""
    return 2 * _product_flops(qkv_shape, window)


@register_flop_formula(torch.ops.swin_mim.window_attention_backward)
def backward_flops(
    grad_shape: Any, qkv_shape: torch.Size, table_shape: Any, fill_shape: Any, window: Pair, *_: Any, **__: Any
) -> int:
    """Five products: four of the gradient and the scores again, as torch counts its own fused attention."""
    return 5 * _product_flops(qkv_shape, window)


def _product_flops(qkv_shape: torch.Size, window: Pair) -> int:
    batch, height, width, _, heads, head_dim = qkv_shape
    windows = batch * math.ceil(height / window[0]) * math.ceil(width / window[1])
    return 2 * windows * heads * (window[0] * window[1]) ** 2 * head_dim


class _Starter:
    """Starts the kernels of one plan on the device of `qkv`."""

    def __init__(self, qkv: Tensor, plan: Plan) -> None:
        batch, height, width = qkv.shape[:3]
        self.qkv, self.plan, self.grid = qkv, plan, (height, width)
        self.windows = batch * math.ceil(height / plan.window[0]) * math.ceil(width / plan.window[1])
        self.exact = qkv.dtype == torch.float32

    def groups(self, function: Any, kernel: Kernel, dtypes: tuple[torch.dtype | None, ...]) -> int:
        """How many groups of programs share the windows in a kernel that takes tensors of these dtypes."""
        launch = launch_of(kernel, self.plan, self.exact)
        processors = _processors(self.qkv.device)
        if processors is None:
            return groups_of(self.windows, self.plan, INTERPRETER_PROCESSORS * launch.programs)
        with torch.cuda.device_of(self.qkv):
            taken = _taken(function, dtypes, self.grid, self.plan, launch, self.qkv.device)
        return groups_of(self.windows, self.plan, processors.count * programs_of(launch, taken, processors))

    def sums(
        self, function: Any, kernel: Kernel, tensors: tuple[Tensor | None, ...], *shapes: tuple[int, int]
    ) -> list[Tensor]:
        """(groups, heads, *shape), fp32, of every shape, for the sums of the groups of programs of a kernel.

        tensors: what the kernel takes before them.
        """
        groups = self.groups(function, kernel, (*_dtypes(tensors), *(torch.float32 for _ in shapes)))
        return [self.qkv.new_empty(groups, self.plan.heads, *shape, dtype=torch.float32) for shape in shapes]

    def __call__(self, function: Any, kernel: Kernel, *tensors: Tensor | None) -> None:
        launch = launch_of(kernel, self.plan, self.exact)
        programs = self.groups(function, kernel, _dtypes(tensors)) * self.plan.heads * self.plan.strips
        with torch.cuda.device_of(self.qkv):
            function[(programs,)](
                *tensors,
                self.windows,
                *self.grid,
                self.plan,
                num_warps=launch.num_warps,
                num_stages=launch.num_stages,
            )


@cache
def _taken(
    function: Any, dtypes: tuple[torch.dtype | None, ...], grid: Pair, plan: Plan, launch: Launch, device: torch.device
) -> Taken:
    """What a program takes, from the kernel as it is compiled for the device, which is the current one.

    To start it then compiles nothing more.
    """
    compiled = function.warmup(
        *dtypes, 2, *grid, plan, grid=(1,), num_warps=launch.num_warps, num_stages=launch.num_stages
    )
    compiled._init_handles()  # which alone asks the driver for the registers
    return Taken(compiled.metadata.shared, compiled.n_regs, launch.num_warps * compiled.metadata.target.warp_size)


def _dtypes(tensors: tuple[Tensor | None, ...]) -> tuple[torch.dtype | None, ...]:
    return tuple(None if x is None else x.dtype for x in tensors)


def _plan(qkv: Tensor, fill: Tensor | None, window: list[int], table_window: list[int], shift: list[int]) -> Plan:
    _, height, width, _, heads, head_dim = qkv.shape
    filled = fill is not None and bool(height % window[0] or width % window[1])
    return plan_of(
        heads,
        head_dim,
        window,
        table_window,
        shift,
        filled=filled,
        exact=qkv.dtype == torch.float32,
        amd=AMD,
    )


def _bias(table: Tensor, plan: Plan, dtype: torch.dtype, turned: bool = False) -> Tensor:
    """Write out the bias of queries and keys, or of keys and queries (`turned`), for operands of a dtype."""
    bias = _empty_bias(table, plan, dtype)
    with torch.cuda.device_of(table):
        grid = (math.ceil(plan.pitch / 16), plan.heads, plan.kinds)
        kernels.table_to_pairs[grid](
            table.contiguous(), bias, plan, triton.next_power_of_2(plan.pitch), turned, num_warps=4
        )
    return bias


def _empty_bias(table: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
    """(kinds, heads, t, pitch), so small that kernels find it in a cache.

    fp32; of wide windows fp16 for operands of half precision, as it is read again for every window.
    """
    own = torch.float32 if plan.whole or dtype == torch.float32 else torch.float16
    return table.new_empty(plan.kinds, plan.heads, plan.tokens, plan.pitch, dtype=own)


def _table_grad(pairs: Tensor, table: Tensor, plan: Plan) -> Tensor:
    """(groups, heads, t, t) -> (entries, heads), of table's dtype; in a fixed order."""
    grad = table.new_empty(table.shape, dtype=torch.float32)
    entries, heads = table.shape
    with torch.cuda.device_of(table):
        kernels.pairs_to_table[(math.ceil(entries / 16), heads)](
            pairs.sum(0), grad, plan, entries, triton.next_power_of_2(plan.tokens), num_warps=4
        )
    return grad.to(table.dtype)


def _fill_grad(fills: Tensor, fill: Tensor | None, plan: Plan) -> Tensor:
    """(groups, heads, strips x 2, d) -> (3, heads, d), of fill's dtype. Of a padded query there is no output."""
    grad = _empty_fill_grad(fills, fill)
    if fill is None:
        return grad
    grad.zero_()
    if plan.filled:
        grad[1:] = fills.unflatten(2, (-1, 2)).sum((0, 2)).transpose(0, 1)
    return grad


def _empty_outputs(qkv: Tensor, window: list[int]) -> tuple[Tensor, Tensor]:
    batch, height, width, _, heads, head_dim = qkv.shape
    tokens = window[0] * window[1]
    windows = batch * -(-height // window[0]) * -(-width // window[1]) if tokens > WHOLE else 0
    return (
        qkv.new_empty(batch, height, width, heads, head_dim),
        qkv.new_empty(windows, heads, tokens, dtype=torch.float32),
    )


def _empty_fill_grad(like: Tensor, fill: Tensor | None) -> Tensor:
    return like.new_empty(0) if fill is None else fill.new_empty(fill.shape)


def _contiguous(fill: Tensor | None) -> Tensor | None:
    return None if fill is None else fill.contiguous()


def _processors(device: torch.device) -> Processors | None:
    """None: the interpreter. torch gives the registers of AMD's processors in another unit, so they set no limit."""
    if device.type == "cpu":
        return None
    of = torch.cuda.get_device_properties(device)
    registers = sys.maxsize if AMD else of.regs_per_multiprocessor  # type: ignore[attr-defined]
    return Processors(of.multi_processor_count, of.shared_memory_per_multiprocessor, registers)


def _check(qkv: Tensor, window: list[int]) -> None:
    """Raise a UserError for what the kernels cannot do."""
    _, height, width, parts, heads, head_dim = qkv.shape
    tokens = window[0] * window[1]
    way_out = "use attention sdpa or reference"
    if qkv.dtype not in DTYPES:
        raise UserError(f"triton attention takes fp32, bf16 or fp16, not {qkv.dtype}: {way_out}")
    if tokens > MOST_TOKENS:
        raise UserError(
            f"triton attention takes windows of up to {MOST_TOKENS} tokens, not {window[0]} x {window[1]}: {way_out}"
        )
    if head_dim > MOST_CHANNELS:
        raise UserError(f"triton attention takes up to {MOST_CHANNELS} channels of a head, not {head_dim}: {way_out}")
    if height * width * parts * heads * head_dim >= 2**31:
        raise UserError(
            f"triton attention takes less than 2^31 numbers of one image, not {tuple(qkv.shape)}: {way_out}"
        )
    if qkv.device.type == "cpu" and not kernels.INTERPRETED.value:
        raise UserError("triton attention needs a GPU: use attention auto, sdpa or reference (or TRITON_INTERPRET=1)")
