"""Shifted-window attention as one torch op, `swin_mim::window_attention`, on Triton kernels.

q, k, v are read where the projection left them and the output is written in raster order: padding, cyclic shift and
windows are index arithmetic in the kernels, so nothing is copied, and no mask or bias is written out for the windows of
a batch. The backward pass computes the probabilities again. Nothing is atomic: the same input gives the same bits on
the same kind of GPU.

B images, h x w tokens, heads, d channels of a head, n windows of an image (padding included), t tokens of a window.
Needs triton, which comes with torch for CUDA and ROCm; on CPU tensors only its interpreter runs (TRITON_INTERPRET=1).
"""

import math
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
    Pair,
    Plan,
    groups_of,
    launch_of,
    plan_of,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
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
    out, _ = attention_op(qkv, table, fill, list(window), list(table_window), list(shift))
    return out


@torch.library.custom_op("swin_mim::window_attention", mutates_args=())
def attention_op(
    qkv: Tensor, table: Tensor, fill: Tensor | None, window: list[int], table_window: list[int], shift: list[int]
) -> tuple[Tensor, Tensor]:
    """The output, and what the backward pass of a wide window needs besides: log_sums (windows, heads, t), fp32."""
    _check(qkv, window)
    qkv, fill = qkv.contiguous(), _contiguous(fill)
    out, log_sums = _empty_outputs(qkv, window)
    plan = _plan(qkv, fill, window, table_window, shift)
    _Starter(qkv, plan)(kernels.forward, "forward", qkv, _bias(table, plan), fill, out, log_sums)
    return out, log_sums


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, table and fill (of no elements without one). grad is (B, h, w, heads, d), of qkv's dtype."""
    qkv, fill, out, grad = qkv.contiguous(), _contiguous(fill), out.contiguous(), grad.contiguous()
    plan = _plan(qkv, fill, window, table_window, shift)
    start = _Starter(qkv, plan)
    qkv_grad = torch.empty_like(qkv)
    pairs = start.sums("whole" if plan.whole else "rows", plan.tokens, plan.tokens)
    fills = start.sums("whole" if plan.whole else "columns", plan.strips * 2, plan.head_dim)
    bias = _bias(table, plan)
    if plan.whole:
        start(kernels.backward_whole, "whole", qkv, bias, fill, grad, qkv_grad, pairs, fills)
    else:
        means = torch.empty_like(log_sums)
        start(kernels.backward_rows, "rows", qkv, bias, fill, out, grad, log_sums, means, qkv_grad, pairs)
        bias = _bias(table, plan, turned=True)
        start(kernels.backward_columns, "columns", qkv, bias, fill, grad, log_sums, means, qkv_grad, fills)
    return qkv_grad, _table_grad(pairs, table, plan), _fill_grad(fills, fill, plan)


@attention_op.register_fake
def _(
    qkv: Tensor, table: Tensor, fill: Tensor | None, window: list[int], table_window: list[int], shift: list[int]
) -> tuple[Tensor, Tensor]:
    return _empty_outputs(qkv, window)


@backward_op.register_fake
def _(grad: Tensor, qkv: Tensor, table: Tensor, fill: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), table.new_empty(table.shape), _empty_fill_grad(qkv, fill)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep for the backward pass what is in memory anyway: the projections around keep qkv's source and the output."""
    qkv, table, fill, *ctx.geometry = inputs
    ctx.save_for_backward(qkv, table, fill, *output)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    qkv, table, fill, out, log_sums = ctx.saved_tensors
    grads = backward_op(grad, qkv, table, fill, *ctx.geometry, out, log_sums)
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
        self.qkv, self.plan = qkv, plan
        self.windows = batch * math.ceil(height / plan.window[0]) * math.ceil(width / plan.window[1])
        self.exact = qkv.dtype == torch.float32

    def groups(self, kernel: Kernel) -> int:
        launch = launch_of(kernel, self.plan, self.exact)
        return groups_of(self.windows, self.plan, launch, _processors(self.qkv.device))

    def sums(self, kernel: Kernel, *shape: int) -> Tensor:
        """(groups, heads, *shape), fp32, for the sums of the groups of programs of a kernel."""
        return self.qkv.new_empty(self.groups(kernel), self.plan.heads, *shape, dtype=torch.float32)

    def __call__(self, function: Any, kernel: Kernel, *tensors: Tensor | None) -> None:
        launch = launch_of(kernel, self.plan, self.exact)
        programs = self.groups(kernel) * self.plan.heads * self.plan.strips
        height, width = self.qkv.shape[1:3]
        with torch.cuda.device_of(self.qkv):
            function[(programs,)](
                *tensors,
                self.windows,
                height,
                width,
                self.plan,
                num_warps=launch.num_warps,
                num_stages=launch.num_stages,
            )


def _plan(qkv: Tensor, fill: Tensor | None, window: list[int], table_window: list[int], shift: list[int]) -> Plan:
    _, height, width, _, heads, head_dim = qkv.shape
    padded = bool(height % window[0] or width % window[1])
    return plan_of(
        heads,
        head_dim,
        window,
        table_window,
        shift,
        filled=padded and fill is not None,
        exact=qkv.dtype == torch.float32,
    )


def _bias(table: Tensor, plan: Plan, turned: bool = False) -> Tensor:
    """(kinds, heads, t, pitch), fp32, of queries and keys or `turned`: so small that the kernels find it in a cache."""
    bias = table.new_empty(plan.kinds, plan.heads, plan.tokens, plan.pitch, dtype=torch.float32)
    with torch.cuda.device_of(table):
        grid = (math.ceil(plan.tokens * plan.pitch / 1024), plan.heads, plan.kinds)
        kernels.table_to_pairs[grid](table.contiguous(), bias, plan, turned, num_warps=4)
    return bias


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


def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return INTERPRETER_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


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
