"""GPUs by name, as their data sheets have them, and what a plan assumes of each: the one table of hardware."""

import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from swin_mim.errors import UserError
from swin_mim.training.config.parsing import from_mapping
from swin_mim.training.config.yaml_file import read_yaml

MOST_GPUS = 1024


@dataclass(frozen=True)
class Gpu:
    """A GPU and its connections: numbers of a data sheet, and assumed shares of them. A YAML file has the same keys."""

    memory_gb: float
    """In units of 10^9 bytes."""
    half_tflops: float
    """Dense products in bf16 and fp16 with sums in fp32."""
    fp32_tflops: float
    """Without tensor cores: products of fp32 stay exact."""
    memory_gb_s: float
    link_gb_s: float
    """From a GPU to the others of its node, in one direction."""
    network_gb_s: float
    """From a node to the others, in one direction."""
    gpus_a_node: int = 8
    bf16: bool = True
    fused_attention: bool = True
    """Whether our kernel runs there, from compute capability 8.0 on; else torch's fused attention."""
    usable: float = 0.9
    """Share of the memory that a plan fills; the rest is for what the allocator cannot use."""
    product_share: float = 0.6
    """Share of the peak that matrix products reach."""
    attention_share: float = 0.2
    """Share of the peak that the window attention reaches on its tiles."""
    memory_share: float = 0.8
    """Share of the memory's bandwidth that kernels reach."""
    link_share: float = 0.8
    """Share of the bandwidth inside a node that collectives reach."""
    network_share: float = 0.8
    """Share of the bandwidth between nodes that they reach."""


_PCIE: dict[str, float] = {"link_share": 0.4, "network_gb_s": 12.5}
"""All GPUs share paths through the processor; one network port of 100 Gb/s: both assumed."""

GPUS: dict[str, Gpu] = {
    # NVIDIA A100 data sheet (SXM); NVLink 600 GB/s both ways; DGX A100: 8 ports of 200 Gb/s
    "a100-40": Gpu(40, 312, 19.5, 1555, 300, 200),
    "a100-80": Gpu(80, 312, 19.5, 2039, 300, 200),
    # NVIDIA H100 and H200 data sheets (SXM), half of the figures with sparsity; NVLink 900 GB/s; DGX: 8 x 400 Gb/s
    "h100": Gpu(80, 989, 67, 3350, 450, 400),
    "h200": Gpu(141, 989, 67, 4800, 450, 400),
    # NVIDIA HGX B200 page, an eighth of 36 PFLOPS with sparsity, 600 TFLOPS and 1.44 TB; NVLink 1,800 GB/s
    "b200": Gpu(180, 2250, 75, 8000, 900, 400),
    # NVIDIA L40S data sheet; PCIe 4.0 x16, 64 GB/s both ways
    "l40s": Gpu(48, 362, 91.6, 864, 32, **_PCIE),  # type: ignore[arg-type]
    # NVIDIA Ada whitepaper: fp16 with sums in fp32, half of the figure with sparsity; PCIe 4.0 x16
    "rtx4090": Gpu(24, 165.2, 82.6, 1008, 32, **_PCIE),  # type: ignore[arg-type]
    # NVIDIA A10G data sheet, as in AWS's g5; PCIe 4.0 x16
    "a10g": Gpu(24, 70, 35, 600, 32, **_PCIE),  # type: ignore[arg-type]
    # NVIDIA T4 data sheet: fp16 alone; compute capability 7.5; PCIe 3.0 x16, 32 GB/s both ways
    "t4": Gpu(16, 65, 8.1, 300, 16, bf16=False, fused_attention=False, **_PCIE),  # type: ignore[arg-type]
}


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs, one process on each GPU."""

    name: str
    nodes: int
    gpus: int
    """In each node."""
    gpu: Gpu

    @property
    def processes(self) -> int:
        return self.nodes * self.gpus

    @property
    def text(self) -> str:
        """ "8 x h100" or "2 x 8 x h100"."""
        parts = [str(self.nodes)] * (self.nodes > 1) + [str(self.gpus)] * (self.processes > 1)
        return " x ".join([*parts, self.name])


def cluster_of(text: str) -> Cluster:
    """Read "h100", "8xh100", "2x8xh100" (nodes x GPUs of a node x name), or a YAML file in place of the name.

    Raises:
        UserError: no such GPU or file, a number that is none, nodes that are not whole, or more than `MOST_GPUS`.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(?:(\d+)x)?(.+)", text)
    first, second, name = match.groups() if match else (None, None, text)
    gpu = _gpu(name, text)
    numbers = [int(number) for number in (first, second) if number is not None]
    if 0 in numbers:
        raise UserError(f"--on {text}: a number of GPUs is at least 1")
    nodes, gpus = numbers if len(numbers) == 2 else _as_nodes(numbers[0] if numbers else 1, gpu, text, name)
    if nodes * gpus > MOST_GPUS:
        raise UserError(f"--on {text} is {nodes * gpus:,} GPUs: a plan is for up to {MOST_GPUS:,}")
    return Cluster(name.lower() if name.lower() in GPUS else Path(name).name, nodes, gpus, gpu)


def _as_nodes(number: int, gpu: Gpu, text: str, name: str) -> tuple[int, int]:
    """(nodes, GPUs of each) of so many GPUs in nodes that are full."""
    side = gpu.gpus_a_node
    if number <= side:
        return 1, number
    if number % side:
        below = number // side * side
        raise UserError(
            f"--on {text}: {number} GPUs are not whole nodes of {side}: use {below}x{name}, {below + side}x{name}, or "
            f"NODESxGPUSx{name}"
        )
    return number // side, side


def _gpu(name: str, text: str) -> Gpu:
    if (known := GPUS.get(name.lower())) is not None:
        return known
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return _checked(from_mapping(Gpu, read_yaml(path), path), path)
    raise UserError(
        f"--on {text}: no GPU is named {name!r}: the names are {', '.join(GPUS)}; write 8xNAME, NODESxGPUSxNAME, or a "
        "YAML file for NAME"
    )


def _checked(gpu: Gpu, path: Path) -> Gpu:
    for field in fields(gpu):
        value = getattr(gpu, field.name)
        if isinstance(value, bool):
            continue
        is_share = field.name == "usable" or field.name.endswith("_share")
        if not 0 < value <= (1 if is_share else sys.float_info.max):
            rule = "above 0 and at most 1" if is_share else "positive and finite"
            raise UserError(f"{field.name} in {path} is {value}: it must be {rule}")
    return gpu
