"""Norm or none, linear, GELU, linear for a CPU: some tokens at a time, so that the hidden layer stays in a cache."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swin_mim.kernels.native.gelu import gelu, gelu_backward
from swin_mim.kernels.product import (
    WORTH,
    Norm,
    add_transposed,
    is_plain_cpu,
    multiplies_cheaply,
    onednn_is_faster,
    product,
)

AGAIN = 384
"""Most channels for which the hidden layer is computed again in the backward pass instead of being kept, where products
are cheap (`multiplies_cheaply`).

Training, fp32, 16 images of Swin-T on 2 cores of Zen 5: at 96 channels that is 1.3 times as fast, at 192 as fast, and
at 384 1.1 times slower, which is 2 % of a step for 4 % of its memory. On Zen 4 keeping is faster at all widths.
"""
CACHE = 16 << 20
"""Bytes of a hidden layer that a processor's shared cache holds: with MKL's products there is nothing to gain below,
and nothing with more than 96 channels."""
AT_A_TIME = 384 * 1536
"""Numbers of the hidden layer in one chunk, of at least 768 tokens; fewer and more were measured to be slower."""


def pays(x: Tensor, hidden: Tensor) -> bool:
    """Whether to use `mlp` for x (..., D) and the weight (hidden, D) of its first layer."""
    if not is_plain_cpu(x, hidden):
        return False
    if onednn_is_faster():
        return x.numel() * len(hidden) >= WORTH
    cold = x.shape[:-1].numel() * len(hidden) * x.element_size() > CACHE
    return cold and x.shape[-1] <= 96 and torch.is_grad_enabled()


def again() -> int:
    """Most channels for which `mlp` computes the hidden layer again instead of keeping it."""
    if not onednn_is_faster():
        return 96
    return AGAIN if multiplies_cheaply() else 0


def mlp(x: Tensor, norm: Norm | None, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """x (..., D), w1 (hidden, D), b1 (hidden,), w2 (D, hidden), b2 (D,) -> (..., D). GELU is the exact one.

    Of the normalised x, if there is a norm.
    """
    keep = torch.is_grad_enabled() and x.shape[-1] > again()
    return _Mlp.apply(x, *(norm or (None, None, 0.0)), w1, b1, w2, b2, keep)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        offset: Tensor | None,
        eps: float,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        keep: bool,
    ) -> Tensor:
        tokens = x.flatten(0, -2).contiguous()  # (n, D)
        out = torch.empty_like(tokens)
        kept = []
        for part in _chunks(tokens, w1):
            hidden = product(_normed(tokens[part], scale, offset, eps)[0], w1, b1)
            if keep:
                kept.append(hidden)
            out[part] = product(gelu(hidden), w2, b2)
        ctx.save_for_backward(x, scale, offset, w1, b1, w2, *kept)
        ctx.eps = eps
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, offset, w1, b1, w2, *kept = ctx.saved_tensors
        tokens, upstream = x.flatten(0, -2).contiguous(), upstream.flatten(0, -2).contiguous()
        to_x = torch.empty_like(tokens)
        to_w1, to_w2 = (torch.empty_like(w) if len(tokens) else torch.zeros_like(w) for w in (w1, w2))
        to_b1 = torch.zeros_like(b1)
        to_scale, to_offset = (None if p is None else torch.zeros_like(p) for p in (scale, offset))
        for number, part in enumerate(_chunks(tokens, w1)):
            token, u = tokens[part], upstream[part]
            normed, mean, rstd = _normed(token, scale, offset, ctx.eps)
            hidden = kept[number] if kept else product(normed, w1, b1)
            active, to_hidden, to_bias = gelu_backward(hidden, product(u, w2.mT))
            add_transposed(to_w2, u, active, first=number == 0)
            add_transposed(to_w1, to_hidden, normed, first=number == 0)
            to_b1 += to_bias
            to_normed = product(to_hidden, w1.mT)
            if scale is None:
                to_x[part] = to_normed
                continue
            to_x[part], a, b = torch.ops.aten.native_layer_norm_backward(
                to_normed, token, scale.shape, mean, rstd, scale, offset, [True, True, True]
            )
            to_scale += a
            to_offset += b
        return to_x.view(x.shape), to_scale, to_offset, None, to_w1, to_b1, to_w2, upstream.sum(0), None


def _normed(
    tokens: Tensor, scale: Tensor | None, offset: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(n, D) -> the same normalised, with mean and 1 / std (n, 1); without a scale as they are."""
    if scale is None:
        return tokens, None, None
    return torch.native_layer_norm(tokens, scale.shape, scale, offset, eps)


def _chunks(tokens: Tensor, w1: Tensor) -> list[slice]:
    size = max(768, AT_A_TIME // len(w1))
    return [slice(first, first + size) for first in range(0, len(tokens), size)]
