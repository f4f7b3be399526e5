"""The matrix product that a CPU is fastest with, and the linear layer made of it."""

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

CHUNK = 1536
"""Tokens at a time where that keeps what lies between in a cache."""
WORTH = 1 << 21
"""Multiplications from which on a product pays for its overhead."""
ZEN_5 = 26
"""Family of AMD's first processors that multiply 512 bits at once."""
_CPU_INFO = Path("/proc/cpuinfo")
_PLAIN = (Tensor, torch.nn.Parameter)


class Norm(NamedTuple):
    """Layer normalization over the last dimension; weight and bias (D,)."""

    weight: Tensor
    bias: Tensor
    eps: float


@cache
def onednn_is_faster() -> bool:
    """Whether fp32 products are to be oneDNN's, which torch has beside MKL.

    MKL, which torch uses for them, leaves AVX-512 to Intel's own processors. Measured on an AMD EPYC (Zen 5), 2 cores:
    450 GFLOP/s against 210; on one of Zen 4, which takes 512 bits in halves, 1 core: 103 to 113 against 97 to 104. Held
    to AVX2 the two were equal, so that older processors have nothing to gain.
    """
    intel = not _CPU_INFO.exists() or "GenuineIntel" in _CPU_INFO.read_text()
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512" and not intel


@cache
def multiplies_cheaply() -> bool:
    """Whether products are so fast that memory is what counts: with oneDNN's on units of 512 bits (AMD from Zen 5 on).

    There a product is done again sooner than its result is kept, and copies are made so that oneDNN can be taken.
    """
    if not onednn_is_faster():
        return False
    found = re.search(r"^cpu family\s*: (\d+)$", _CPU_INFO.read_text(), re.MULTILINE)
    return found is not None and int(found[1]) >= ZEN_5


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (m, k) contiguous, b (n, k) of any strides, bias (n,) -> a b^T + bias (m, n). Not differentiable."""
    if onednn_is_faster() and a.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return a @ b.mT if bias is None else torch.addmm(bias, a, b.mT)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, norm: Norm | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) -> (..., out), of the normalised x if there is a norm.

    As torch's, but by `product` where that is faster, and there the normalised x is not kept for the backward pass.
    """
    if is_plain_cpu(x, weight) and onednn_is_faster() and x.numel() * len(weight) >= WORTH:
        return _Linear.apply(x, weight, bias, *(norm or (None, None, 0.0)))
    return F.linear(x if norm is None else F.layer_norm(x, x.shape[-1:], *norm), weight, bias)


def is_plain_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether it is fp32 in the memory of a CPU, to be computed here and now."""
    plain = type(x) in _PLAIN and type(weight) in _PLAIN  # a FakeTensor has no memory
    fp32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return plain and x.device.type == "cpu" and fp32 and not traced


def add_transposed(total: Tensor, x: Tensor, y: Tensor, *, first: bool) -> None:
    """total (a, b) += x^T y, of x (n, a) and y (n, b); the first time total = x^T y, whatever it held.

    MKL adds as it multiplies. For oneDNN the narrower of the two is written out transposed.
    """
    if not multiplies_cheaply():
        torch.addmm(total, x.mT, y, beta=0 if first else 1, out=total)
        return
    narrower = x.shape[1] <= y.shape[1]
    found = product(x.mT.contiguous(), y.mT) if narrower else product(y.mT.contiguous(), x.mT).mT
    if first:
        total.copy_(found)
    else:
        total += found


if hasattr(torch.ops.mkldnn, "_linear_pointwise"):

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(a: torch.Size, b: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * a.numel() * b[0]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        offset: Tensor | None,
        eps: float,
    ) -> Tensor:
        tokens = x.flatten(0, -2).contiguous()
        mean = rstd = None
        normed = tokens
        if scale is not None:
            normed, mean, rstd = torch.native_layer_norm(tokens, tokens.shape[1:], scale, offset, eps)
        ctx.save_for_backward(x, weight, scale, offset, mean, rstd)
        ctx.eps = eps
        return product(normed, weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, offset, mean, rstd = ctx.saved_tensors
        for_x, for_weight, for_bias, for_scale, *_ = ctx.needs_input_grad
        tokens, upstream = x.flatten(0, -2).contiguous(), upstream.flatten(0, -2).contiguous()
        to_x = to_weight = to_scale = to_offset = None
        if for_x or for_scale:
            to_x = product(upstream, weight.mT)
        if scale is not None and to_x is not None:
            to_x, to_scale, to_offset = torch.ops.aten.native_layer_norm_backward(
                to_x, tokens, tokens.shape[1:], mean, rstd, scale, offset, [True, True, True]
            )
        if for_weight:
            to_weight = torch.empty_like(weight) if len(tokens) else torch.zeros_like(weight)
            for number, (part, u) in enumerate(zip(tokens.split(CHUNK), upstream.split(CHUNK), strict=True)):
                normed = part if scale is None else F.layer_norm(part, part.shape[1:], scale, offset, ctx.eps)
                add_transposed(to_weight, u, normed, first=number == 0)
        to_bias = upstream.sum(0) if for_bias else None
        return None if to_x is None else to_x.view(x.shape), to_weight, to_bias, to_scale, to_offset, None
