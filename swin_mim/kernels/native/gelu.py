"""GELU for a CPU in C++: in one pass, and backward together with its derivative and the sums for a bias."""

import ctypes
import logging
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from swin_mim.kernels.cpu_attention import scratch
from swin_mim.kernels.native.library import Unavailable, library, parallel_for

TOLERANCE = 1e-6
"""The largest difference from float64 in the trial, of max(1, |x|)."""

_LOG = logging.getLogger(__name__)


def gelu(x: Tensor) -> Tensor:
    """x fp32 (n, D), contiguous -> x F(x) of its shape, F the normal distribution.

    In memory that the next call takes again: to be read before that. Not differentiable.
    """
    if not _compiled():
        return F.gelu(x)
    out = scratch("gelu", x.shape, x.dtype)
    _run("swin_mim_gelu", x, out)
    return out


def gelu_backward(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gelu(x), the gradient of x, and its sum over the tokens.

    Args:
        x: fp32 (n, D), contiguous.
        gradient: the same, that of gelu(x). It is overwritten.

    Returns:
        (n, D), (n, D) and (D,); the first in memory that the next call takes again. The same number of threads gives
        the same bits.
    """
    if not _compiled():
        to_x = torch.ops.aten.gelu_backward(gradient, x)
        return F.gelu(x), to_x, to_x.sum(0)
    out, sums = scratch("gelu", x.shape, x.dtype), x.new_empty(torch.get_num_threads(), x.shape[1])
    _run("swin_mim_gelu_backward", x, out, gradient, sums)
    return out, gradient, sums.sum(0)


@cache
def failure_reason() -> str:
    """Say why not to use it on this machine; empty if all is well, whatever mode the caller is in."""
    try:
        library(), parallel_for()
    except Unavailable as error:
        return str(error)
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
        x = torch.linspace(-9, 9, 3003, dtype=torch.float32, device="cpu").view(-1, 39)
        gradient, exact = torch.ones_like(x), x.double()
        out, sums = torch.empty_like(x), x.new_empty(torch.get_num_threads(), x.shape[1])
        _run("swin_mim_gelu_backward", x, out, gradient, sums)
        found = (out, gradient, sums.sum(0) / len(x))
        slope = torch.ops.aten.gelu_backward(torch.ones_like(exact), exact)
        for name, ours, expected in zip(
            ("", " gradient", " sum"), found, (F.gelu(exact), slope, slope.mean(0)), strict=True
        ):
            off = ((ours - expected).abs() / expected.abs().clamp(min=1)).max().item()
            if not off <= TOLERANCE:
                return f"its{name or ' output'} is off by {off:.1e}"
    return ""


@cache
def _compiled() -> bool:
    reason = failure_reason()
    if reason:
        _LOG.warning("GELU: the compiled one is not used, but torch's slower one: %s", reason)
    return not reason


def _run(name: str, *tensors: Tensor) -> None:
    """Call a function of `gelu.cpp`; the first tensor is x."""
    parts = torch.get_num_threads()
    function: Any = getattr(library(), name)
    function.argtypes = [*[ctypes.c_int64] * 3, *[ctypes.c_void_p] * (len(tensors) + 1)]
    function.restype = ctypes.c_int32
    if failed := function(*tensors[0].shape, parts, *(x.data_ptr() for x in tensors), parallel_for()):
        raise RuntimeError(f"torch_parallel_for failed with {failed}")
