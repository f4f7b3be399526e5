"""What this very machine reaches at most: the rate of a matrix product, and that of a copy. Measured, not looked up."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tools.bench.timing import seconds_per_call

SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 12288)}
"""Sides of the square matrices; the fastest counts."""
COPY_BYTES = {"cpu": 512 << 20, "cuda": 2 << 30}
"""Far more than caches hold."""
TRIES = 5
"""The fastest counts: a ceiling is what is possible."""


class Ceilings(NamedTuple):
    matmul_tflops: float
    matmul: str
    """The product that reached it."""
    copy_gb_per_second: float
    """Bytes read and bytes written, in 10^9."""

    def seconds(self, flops: float, moved: float) -> float:
        """Roofline: the time below which this much work cannot be done, of bytes `moved`."""
        return max(flops / self.matmul_tflops / 1e12, moved / self.copy_gb_per_second / 1e9)


def measure_ceilings(device: torch.device, precision: str) -> Ceilings:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rates = {
        f"{name}, {side} x {side}, {precision}": 2 * side**3 / fastest(product, side, dtype, device) / 1e12
        for name, product in products(device, dtype).items()
        for side in SIDES[device.type]
    }
    best = max(rates, key=lambda name: rates[name])
    return Ceilings(rates[best], best, copy_rate(device))


def products(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """On a CPU torch.mm is MKL's product, slow on some processors: oneDNN's is there too, if it has the type."""
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    lacking = dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if device.type != "cpu" or onednn is None or lacking:
        return {"torch.mm": torch.mm}
    return {"torch.mm": torch.mm, "oneDNN": lambda x, w: onednn(x, w, None, "none", [], "")}


def fastest(product: Callable[[Tensor, Tensor], Tensor], side: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of one product of two matrices (side, side)."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    calls = 10 if device.type == "cuda" else 1
    with torch.no_grad():
        product(a, b)
        return min(seconds_per_call(lambda: product(a, b), calls, device) for _ in range(TRIES))


def copy_rate(device: torch.device) -> float:
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source).copy_(source)
    seconds = min(seconds_per_call(lambda: target.copy_(source), 1, device) for _ in range(TRIES))
    return 2 * source.nbytes / seconds / 1e9
