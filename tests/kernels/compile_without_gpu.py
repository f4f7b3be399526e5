"""Compile the kernels that a call of the op would start on a GPU, without one: registers, spills, shared memory, loops.

Prints a line of JSON for every kernel. Arguments: targets, split by commas (compute capabilities, or gfx942 and the
like), then shapes as window_h,window_w,shift_h,shift_w,heads,d,dtype,padded (0 or 1).
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
from triton.compiler.compiler import CompiledKernel
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from swin_mim.kernels import triton_attention, window_kernels
from swin_mim.kernels.window_plan import Processors

asked: list[tuple[str, Any]] = []
started: list[tuple[str, Any]] = []
compile_or_launch = JITFunction.run


def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
    kernel = compile_or_launch(self, *args, grid=grid, warmup=True, **kwargs)
    (asked if warmup else started).append((self.fn.__name__, kernel))
    return kernel


def take_registers(self: CompiledKernel) -> None:
    """What a driver would say."""
    self.n_regs = resources(self)["registers"]


def pretend(target: str) -> None:
    """There is a GPU, as far as the compiler and the op ask: an H100's processors, whatever the target."""
    amd = target.startswith("gfx")
    gpu = (
        GPUTarget("hip", target, 64 if target.startswith("gfx9") else 32) if amd else GPUTarget("cuda", int(target), 32)
    )
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: gpu
        )
    )
    for kernel in vars(window_kernels).values():
        if isinstance(kernel, JITFunction):
            kernel.device_caches.clear()
    triton_attention._taken.cache_clear()
    JITFunction.run = compile_only
    CompiledKernel._init_handles = take_registers
    triton_attention.AMD = amd
    triton_attention._check = lambda *args: None
    triton_attention._processors = lambda device: Processors(132, 228 * 1024, 65536)


def nvidia_tool(kernel: Any, *arguments: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([tool, *arguments, file.name], capture_output=True, text=True, check=True).stdout


def resources(kernel: Any) -> dict[str, int]:
    if "cubin" not in kernel.asm:
        counts = {
            name: re.search(rf"\.{name}:\s*(\d+)", kernel.asm["amdgcn"]) for name in ("vgpr_count", "vgpr_spill_count")
        }
        return {"registers": int(counts["vgpr_count"][1]), "spilled": 4 * int(counts["vgpr_spill_count"][1])}
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", nvidia_tool(kernel, "-res-usage")))
    return {"registers": int(found["REG"]), "spilled": int(found["STACK"]) + int(found["LOCAL"])}


def loops(kernel: Any) -> list[int]:
    """Instructions of every innermost loop, the way around: from the target of a branch back to the branch."""
    if "cubin" not in kernel.asm:
        return []
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", nvidia_tool(kernel, "-sass"))
    places = [int(address, 16) for address, _ in found]
    spans = []
    for last, (_, instruction) in enumerate(found):
        back = re.search(r"BRA.*?(0x[0-9a-f]+)", instruction)
        if back and int(back[1], 16) < places[last]:
            spans.append((places.index(int(back[1], 16)), last))
    inner = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [last - first + 1 for first, last in inner]


def call(window: tuple[int, int], shift: tuple[int, int], heads: int, d: int, dtype: torch.dtype, padded: int) -> None:
    grid = (4 * window[0] - padded, 4 * window[1] - padded)
    qkv = torch.zeros(1, *grid, 3, heads, d, dtype=dtype, requires_grad=True)
    table = torch.zeros((2 * window[0] - 1) * (2 * window[1] - 1), heads)
    fill = torch.zeros(3, heads, d)
    triton_attention.window_attention(qkv, table, fill, window, window, shift).sum().backward()


def lines(targets: str, shapes: list[str]) -> Iterator[str]:
    for target in targets.split(","):
        pretend(target)
        for shape in shapes:
            *numbers, dtype, padded = shape.split(",")
            wh, ww, sh, sw, heads, d = map(int, numbers)
            asked.clear()
            started.clear()
            call((wh, ww), (sh, sw), heads, d, getattr(torch, dtype), int(padded))
            assert all(kernel in [k for _, k in started] for _, kernel in asked), (
                "a kernel is compiled to be asked alone"
            )
            for name, kernel in started:
                usage = {"shared": kernel.metadata.shared, "warps": kernel.metadata.num_warps, **resources(kernel)}
                about = {"triton": triton.__version__, "target": target, "shape": shape, "kernel": name}
                yield json.dumps({**about, **usage, "loops": loops(kernel)})


if __name__ == "__main__":
    for line in lines(sys.argv[1], sys.argv[2:]):
        print(line, flush=True)
