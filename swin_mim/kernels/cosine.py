"""Queries and keys of unit length, as Swin V2's attention compares them (arXiv 2111.09883, section 3.2)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST = 1e-12
"""Length below which a vector is taken as one of this length."""


def cosine(qkv: Tensor, scale: Tensor) -> Tensor:
    """Divide queries and keys by their lengths and multiply the queries by a scale.

    Args:
        qkv: (..., 3, heads, d).
        scale: fp32 or fp64 (heads, 1).

    Returns:
        of qkv's shape and dtype; the values as they are. Lengths and quotients are computed in fp32 at least.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        q, k, v = qkv.unbind(-3)
        return torch.stack([_unit(q, scale), _unit(k, None), v], dim=-3)
    return _Cosine.apply(qkv, scale)


def _unit(x: Tensor, scale: Tensor | None) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_exact(x)).clamp(min=SMALLEST)
    return (x * ((1 if scale is None else scale) / length)).to(x.dtype)


class _Cosine(torch.autograd.Function):
    """Keeps its result, which the attention keeps anyway, and not its input."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: Tensor) -> Tensor:
        out, length = forward(qkv, scale)
        ctx.save_for_backward(out, length, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        return backward(upstream, *ctx.saved_tensors)


def forward(qkv: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """What `cosine` gives, and the lengths (..., 2, heads, 1) of queries and keys."""
    length = torch.linalg.vector_norm(qkv[..., :2, :, :], dim=-1, keepdim=True, dtype=_exact(qkv))
    length.clamp_(min=SMALLEST)
    out = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    torch.mul(qkv[..., :2, :, :], _factors(scale, length), out=out[..., :2, :, :])
    out[..., 2, :, :] = qkv[..., 2, :, :]
    return out, length


def backward(upstream: Tensor, out: Tensor, length: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `qkv` and `scale`, from that of what `forward` gave."""
    both = slice(None, 2)
    unit, u = (x[..., both, :, :].to(length.dtype) for x in (out, upstream))
    along = (unit * u).sum(-1, keepdim=True)  # (..., 2, heads, 1): of the queries times the scale
    to_scale = along[..., 0, :, :].flatten(0, -3).sum(0) / scale if along.ndim > 3 else along[0] / scale
    squared = torch.stack([scale.square(), torch.ones_like(scale)])  # (2, heads, 1)
    to_qkv = torch.empty_like(upstream, memory_format=torch.contiguous_format)
    to_qkv[..., both, :, :] = (u - unit * (along / squared)) * _factors(scale, length)
    to_qkv[..., 2, :, :] = upstream[..., 2, :, :]
    return to_qkv, to_scale


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _factors(scale: Tensor, length: Tensor) -> Tensor:
    """scale (heads, 1), length (..., 2, heads, 1) -> (..., 2, heads, 1): of queries and keys."""
    return torch.stack([scale, torch.ones_like(scale)]) / length
