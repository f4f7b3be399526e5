"""What `tools.bench` prints and writes: the machine, the versions, tables, JSON."""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch

from tools.bench.ceilings import Ceilings
from tools.bench.settings import Settings

PACKAGES = ("torch", "triton", "timm", "transformers", "torchvision", "datasets")
Row = Sequence[str]
"""Cells of a table; a row of two is a name and a text that runs over the other columns."""


def describe(settings: Settings, device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    machine = {
        "name": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "device": str(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    versions = {"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES}
    if cuda:
        versions["CUDA"] = str(torch.version.cuda)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"machine": machine, "versions": versions, "date": date, "settings": asdict(settings)}


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return name[1] if name else platform.processor() or platform.machine()


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def print_machine(report: dict[str, Any], out: TextIO) -> None:
    machine = report["machine"]
    print(f"machine   {machine['name']}, {machine['cores']} cores, {machine['threads']} threads", file=out)
    print("versions  " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()), file=out)


def print_ceilings(ceilings: Ceilings | None, out: TextIO) -> None:
    if ceilings:
        print(
            f"ceilings  {ceilings.matmul_tflops:.3f} TFLOP/s ({ceilings.matmul}), "
            f"{ceilings.copy_gb_per_second:.1f} GB/s (copy, read and write)",
            file=out,
            flush=True,
        )


def print_table(header: Row, rows: Sequence[Row], out: TextIO) -> None:
    """The first column to the left, the others to the right."""
    whole = [header, *(row for row in rows if len(row) == len(header))]
    widths = [max(len(row[column]) for row in whole) for column in range(len(header))]
    widths[0] = max(widths[0], *(len(row[0]) for row in rows), 0)
    for row in [header, *rows]:
        texts = row[1:] if len(row) < len(header) else [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *texts]), file=out)


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
