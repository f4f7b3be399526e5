"""What the operators of the window attention on CPUs share: their signature, shapes, gradients, operations and memory.

Forward: (qkv, table, fill, window, table_window, shift) -> output. Backward: (gradient, and the same) -> gradients of
qkv, table and fill, the last also without a fill. Those that compare by cosines have a scale, fp32 (heads, 1) or None,
behind the fill, and its gradient behind the fill's.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef
from torch.utils.flop_counter import register_flop_formula

from swin_mim.kernels.window_geometry import padded


def complete(name: str, forward: CustomOpDef, backward: CustomOpDef, *, tensors: int = 3) -> None:
    """Give two operators `swin_mim::NAME` and `swin_mim::NAME_backward` shapes, gradients and formulas of operations.

    Nothing but the inputs is kept for the backward pass. `tensors` is how many of these are no geometry: 3, or 4 with
    a scale.
    """

    @forward.register_fake
    def _(qkv: Tensor, *_: Any) -> Tensor:
        return qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])

    @backward.register_fake
    def _(gradient: Tensor, qkv: Tensor, table: Tensor, fill: Tensor | None, *more: Any) -> tuple[Tensor, ...]:
        to_fill = (qkv if fill is None else fill).new_empty(3, *qkv.shape[4:])
        to_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        to_scale = [qkv.new_empty(qkv.shape[4], 1, dtype=torch.float32)] * (tensors - 3)
        return to_qkv, torch.empty_like(table), to_fill, *to_scale

    def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.geometry = inputs[tensors:]

    def gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        found = backward(gradient, *given, *ctx.geometry)
        return *(None if x is None else to_x for x, to_x in zip(given, found, strict=True)), None, None, None

    forward.register_autograd(gradients, setup_context=keep_inputs)
    register_flop_formula(getattr(torch.ops.swin_mim, name))(_products(2, qkv=0, window=tensors))
    register_flop_formula(getattr(torch.ops.swin_mim, f"{name}_backward"))(_products(5, qkv=1, window=tensors + 1))


_buffers = threading.local()


def scratch(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory that is used again and again: new memory costs more than the arithmetic on it."""
    size = math.prod(shape)
    key = f"{name} {dtype}"
    buffer = getattr(_buffers, key, None)
    if buffer is None or len(buffer) < size:
        with torch.inference_mode(False):  # who comes next may be a training
            buffer = torch.empty(size, dtype=dtype, device="cpu")
        setattr(_buffers, key, buffer)
    return buffer[:size].view(*shape)


def _products(count: int, qkv: int, window: int) -> Any:
    """Floating-point operations of so many products of (t, d) and (d, t) per window and head; places of arguments."""

    def formula(*shapes: Any, **_: Any) -> int:
        batch, height, width, _, heads, d = shapes[qkv]
        side_h, side_w = shapes[window]
        height, width = padded((height, width), (side_h, side_w))
        return count * 2 * batch * height * width * side_h * side_w * heads * d

    return formula
