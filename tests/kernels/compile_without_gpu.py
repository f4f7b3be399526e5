"""Compile the kernels that a call of the op would start on a GPU, without one: registers, spills and shared memory.

Prints a line of JSON for every kernel. Arguments: the compute capability, then shapes as
window_h,window_w,shift_h,shift_w,heads,d,dtype,padded (0 or 1).
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from swin_mim.kernels import triton_attention

started: list[tuple[str, Any]] = []
compile_or_launch = JITFunction.run


def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    started.append((self.fn.__name__, compile_or_launch(self, *args, grid=grid, warmup=True, **kwargs)))


def pretend(capability: int) -> None:
    """There is a GPU, as far as the compiler asks."""
    target = GPUTarget("cuda", capability, 32)
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target
        )
    )
    JITFunction.run = compile_only
    triton_attention._check = lambda *args: None


def resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return {"registers": int(found["REG"]), "spilled": int(found["STACK"]) + int(found["LOCAL"])}


def call(window: tuple[int, int], shift: tuple[int, int], heads: int, d: int, dtype: torch.dtype, padded: int) -> None:
    grid = (2 * window[0] - padded, 2 * window[1] - padded)
    qkv = torch.zeros(1, *grid, 3, heads, d, dtype=dtype, requires_grad=True)
    table = torch.zeros((2 * window[0] - 1) * (2 * window[1] - 1), heads)
    fill = torch.zeros(3, heads, d)
    triton_attention.window_attention(qkv, table, fill, window, window, shift).sum().backward()


def lines(capability: int, shapes: list[str]) -> Iterator[str]:
    pretend(capability)
    for shape in shapes:
        *numbers, dtype, padded = shape.split(",")
        wh, ww, sh, sw, heads, d = map(int, numbers)
        started.clear()
        call((wh, ww), (sh, sw), heads, d, getattr(torch, dtype), int(padded))
        for name, kernel in started:
            shared = kernel.metadata.shared
            usage = {"warps": kernel.metadata.num_warps, **resources(kernel.asm["cubin"]), "shared": shared}
            yield json.dumps({"shape": shape, "kernel": name, **usage, "triton": triton.__version__})


if __name__ == "__main__":
    for line in lines(int(sys.argv[1]), sys.argv[2:]):
        print(line, flush=True)
