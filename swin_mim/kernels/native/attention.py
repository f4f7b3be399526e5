"""Window attention for a CPU in C++: a window's scores never leave the caches of a core, and nothing is copied.

Registered operators, so that torch.compile keeps them whole. The legend of dimension letters is in `models/swin.py`.
"""

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from itertools import product, starmap

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from swin_mim.kernels import chunked_attention, cosine
from swin_mim.kernels.cpu_attention import complete, scratch
from swin_mim.kernels.native.library import Unavailable, library, parallel_for
from swin_mim.kernels.window_geometry import Pair

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""For qkv of these dtypes it is written; the largest difference from float64 in the trial, of the largest value."""
TRIAL = ((1, 9, 7, 3, 2, 12), (63, 2), [4, 4], [5, 4], [2, 1])
"""Shapes of qkv and table, window, its table's and shift: padded and shifted."""
NAMES = ("output", "gradient of qkv", "gradient of the bias table", "gradient of the padding", "gradient of the scale")


def window_attention(
    qkv: Tensor,
    table: Tensor,
    fill: Tensor | None,
    scale: Tensor | None,
    window: Pair,
    table_window: Pair,
    shift: Pair,
) -> Tensor:
    """Attention within (shifted) windows.

    Args:
        qkv: (B, h, w, 3, heads, d), fp32 or bf16.
        table: ((2 table_window_h - 1)(2 table_window_w - 1), heads), bias by relative position.
        fill: (3, heads, d), what q, k and v are at padded positions; None: zeros.
        scale: fp32 (heads, 1): compare by cosines times this, at padded positions too; None: by products over
            sqrt(d).
        window, table_window, shift: tokens (h, w).

    Returns:
        (B, h, w, heads, d) of qkv's dtype. Everything is computed in fp32, and nothing but the inputs is kept for the
        backward pass. The same number of threads gives the same bits.
    """
    return _forward(qkv, table, fill, scale, window, table_window, shift)


@cache
def failure_reason() -> str:
    """Say why not to use it on this machine; empty if all is well, whatever mode the caller is in."""
    try:
        library(), parallel_for()
    except Unavailable as error:
        return str(error)
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
        return next(filter(None, starmap(_difference, product(TOLERANCES, (False, True)))), "")


def _difference(dtype: torch.dtype, by_cosines: bool) -> str:
    """Compare one forward and backward pass with the chunked one in float64."""
    generator = torch.Generator("cpu").manual_seed(0)
    shape, of_table, *geometry = TRIAL
    shapes = (shape, of_table, shape[3:], (*shape[:3], *shape[4:]))
    qkv, table, fill, upstream = (torch.randn(s, generator=generator, device="cpu").to(dtype) for s in shapes)
    scale = torch.tensor([[3.0], [7.0]], device="cpu") if by_cosines else None
    ours = (_forward(qkv, table, fill, scale, *geometry), *_backward(upstream, qkv, table, fill, scale, *geometry))
    exact = _exact(upstream.double(), qkv.double(), table.double(), fill.double(), scale, geometry)
    there = len(exact)  # without cosines there is no scale
    for name, got, expected in zip(NAMES[:there], ours[:there], exact, strict=True):
        off = ((got.double() - expected).abs().max() / expected.abs().max()).item()
        if not off <= TOLERANCES[dtype]:
            return f"in {dtype} its {name} is off by {off:.1e} of the largest value"
    return ""


def _exact(
    upstream: Tensor, qkv: Tensor, table: Tensor, fill: Tensor, scale: Tensor | None, geometry: list[list[int]]
) -> tuple[Tensor, ...]:
    """Output and gradients by the chunked one."""
    if scale is None:
        inputs = (qkv, table, fill, *geometry)
        return chunked_attention._forward(*inputs), *chunked_attention._backward(upstream, *inputs)
    whole = scale.double() * math.sqrt(qkv.shape[-1])
    (of_qkv, lengths), (of_fill, lengths_of_fill) = cosine.forward(qkv, whole), cosine.forward(fill, whole)
    out = chunked_attention._forward(of_qkv, table, of_fill, *geometry)
    to_qkv, to_table, to_fill = chunked_attention._backward(upstream, of_qkv, table, of_fill, *geometry)
    to_qkv, to_scale = cosine.backward(to_qkv, of_qkv, lengths, whole)
    to_fill, more_to_scale = cosine.backward(to_fill, of_fill, lengths_of_fill, whole)
    return out, to_qkv, to_table, to_fill, (to_scale + more_to_scale) * math.sqrt(qkv.shape[-1])


@torch.library.custom_op("swin_mim::native_attention", mutates_args=(), device_types="cpu")
def _forward(
    qkv: Tensor,
    table: Tensor,
    fill: Tensor | None,
    scale: Tensor | None,
    window: Sequence[int],
    table_window: Sequence[int],
    shift: Sequence[int],
) -> Tensor:
    out = qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])
    if out.numel():
        _run("", [], (qkv, table, fill, scale), [*window, *table_window, *shift], [out])
    return out


@torch.library.custom_op("swin_mim::native_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    gradient: Tensor,
    qkv: Tensor,
    table: Tensor,
    fill: Tensor | None,
    scale: Tensor | None,
    window: Sequence[int],
    table_window: Sequence[int],
    shift: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of qkv, table, fill and scale, of their dtypes; the last two are there without them too."""
    to_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    # what it adds up in is fp32, whatever the default is
    to_table, to_fill, to_scale = (
        qkv.new_zeros(shape, dtype=torch.float32) for shape in (table.shape, (3, *qkv.shape[4:]), (qkv.shape[4], 1))
    )
    if qkv.numel():
        given, results = (qkv, table, fill, scale), [to_qkv, to_table, to_fill, to_scale]
        _run("_backward", [gradient.contiguous()], given, [*window, *table_window, *shift], results)
    return to_qkv, to_table.to(table.dtype), to_fill.to(qkv.dtype if fill is None else fill.dtype), to_scale


def _run(
    which: str,
    upstream: list[Tensor],
    given: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    geometry: list[int],
    results: list[Tensor],
) -> None:
    """Call a function of `attention.cpp` that writes to the results; given are qkv, table, fill and scale."""
    qkv, table, fill, scale = given
    if qkv.dtype not in TOLERANCES:
        raise TypeError(f"qkv is {qkv.dtype}: the compiled attention takes {', '.join(map(str, TOLERANCES))}")
    batch, height, width, _, heads, d = qkv.shape
    numbers = (ctypes.c_int64 * 11)(batch, height, width, heads, d, *geometry)
    parts = torch.get_num_threads()
    size = library().swin_mim_attention_workspace
    size.argtypes, size.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32], ctypes.c_int64
    workspace = scratch("native", [size(numbers, parts, bool(upstream))], torch.float32)
    # what is converted here has to live until the call is over
    inputs = [*upstream, qkv.contiguous(), table.float().contiguous()]
    padding = None if fill is None else fill.to(qkv.dtype).float().contiguous()
    by_cosine = None if scale is None else scale.float().contiguous()
    tensors = [*(x.data_ptr() for x in inputs), *(None if x is None else x.data_ptr() for x in (padding, by_cosine))]
    tensors += [x.data_ptr() for x in (*results, workspace)]
    function = getattr(library(), f"swin_mim_attention{which}")
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, *[ctypes.c_void_p] * (len(tensors) + 1)]
    function.restype = ctypes.c_int32
    if failed := function(numbers, parts, qkv.dtype == torch.bfloat16, *tensors, parallel_for()):
        raise RuntimeError(f"torch_parallel_for failed with {failed}")


complete("native_attention", _forward, _backward, tensors=4)
