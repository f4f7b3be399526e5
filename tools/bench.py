"""Measure swin_mim beside other implementations, on this machine, in one run.

    python tools/bench.py step --model swin_base --batch 128 --precision bf16 --memory --json step.json

`step` times a SimMIM training step: forward with a block mask, masked L1, backward, clipping at 5.0, AdamW, zero_grad.
Every system starts from the same weights and gets the same images, masks and optimizer. timm and torchvision have no
SimMIM: their encoder gets our mask token, decoder and loss; transformers and microsoft bring their own. A system whose
loss or gradient is not ours with the same weights does other work and is not timed. The systems take turns, repeat by
repeat, so that whatever else the machine does meets all of them.
"""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TextIO, get_args

import torch
from bench_peers import BUILDERS, Precision, Settings, System, Weights
from peers import NotBuilt
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from swin_mim.errors import Parser, UserError, one_line_errors
from swin_mim.masking import block_mask
from swin_mim.models.simmim import SimMIM
from swin_mim.models.swin_config import SwinConfig, as_pair
from swin_mim.models.window_attention import Backend
from swin_mim.training.optim import UNDECAYED, adamw

MASK_RATIO = 0.6
MAX_GRAD_NORM = 5.0
LEARNING_RATE = 1e-4


class Probe(NamedTuple):
    """What a system computes with the common weights."""

    loss: float
    gradient_norm: float


PARITY = Probe(loss=1e-4, gradient_norm=1e-3)
"""The largest differences that are rounding."""


class Contestant(NamedTuple):
    system: System
    optimizer: torch.optim.Optimizer


# The measurement.


def step(settings: Settings, arguments: list[str]) -> None:
    """Measure, print the table and write the JSON. `arguments` is the command line, for the children."""
    out = sys.stderr if settings.json == "-" else sys.stdout
    config, device = check(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    # first, while this process is small: a child's high-water mark may start at its parent's
    alone = len(settings.systems) == 1
    peaks = peaks_of_children(settings.systems, arguments) if settings.memory and not alone else {}
    systems, not_measured = build(config, settings, device)
    probes = {name: probe(system, random_batch(config, 2, 0, device)) for name, system in systems.items()}
    for name, reason in disagreeing(probes).items():
        not_measured[name] = reason
        del systems[name]
    parity = {name: seen._asdict() for name, seen in probes.items()}
    report = describe(settings, device) | {"parity": parity}
    print_heading(report, settings, out)
    seconds, peak = measure(systems, config, settings, device)
    flops = flops_per_step(config, settings.batch)
    if alone:
        peaks = dict.fromkeys(systems, peak)
    measured = results(systems, seconds, peaks, settings.batch, flops)
    report |= {"flops_per_step": flops, "not_measured": not_measured, "results": measured}
    print_table(report, settings.systems, out)
    write_json(report, settings.json)


def build(config: SwinConfig, settings: Settings, device: torch.device) -> tuple[dict[str, System], dict[str, str]]:
    """The systems that can take part, with equal weights, and why the others cannot."""
    weights = random_weights(config)
    systems, not_measured = {}, {}
    for name in settings.systems:
        try:
            system = BUILDERS[name](config, weights, settings)
        except NotBuilt as reason:
            not_measured[name] = str(reason)
        else:
            system.model.to(device).train()
            systems[name] = system
    return systems, not_measured


def random_weights(config: SwinConfig) -> Weights:
    """Weights of a trained model's size: at initialisation attention hardly matters, and parity would not see it."""
    torch.manual_seed(0)
    weights = SimMIM(config).state_dict()
    for key, value in weights.items():
        if value.ndim == 1 or key.endswith(UNDECAYED):
            value += 0.3 * torch.randn(value.shape)
        elif value.ndim == 2:
            value *= 5
    return weights


def probe(system: System, batch: tuple[Tensor, Tensor]) -> Probe:
    """In fp32, before compilation."""
    loss = system.loss(*batch)
    loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in system.model.parameters() if p.grad is not None])
    system.model.zero_grad()
    return Probe(loss.item(), norm.item())


def disagreeing(probes: dict[str, Probe]) -> dict[str, str]:
    """The systems that do not compute what the first does, and the reason to leave them out."""
    reasons = {}
    for name, seen in probes.items():
        first, expected = next(iter(probes.items()))
        for quantity, a, b, tolerance in zip(Probe._fields, seen, expected, PARITY, strict=True):
            if not abs(a - b) <= tolerance:
                reasons[name] = f"not the same work: {quantity} {a:.6f}, {first} {b:.6f} with the same weights"
    return reasons


def measure(
    systems: dict[str, System], config: SwinConfig, settings: Settings, device: torch.device
) -> tuple[dict[str, list[float]], float]:
    """Seconds per step of every repeat, and the peak memory in GB of all systems together."""
    contestants = {name: enter(system, settings.compile) for name, system in systems.items()}
    batch = random_batch(config, settings.batch, 0, device)
    for contestant in contestants.values():
        for _ in range(settings.warmup):
            train_step(contestant, batch, settings.precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps = settings.steps or (10 if device.type == "cuda" else 1)
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for repeat in range(settings.repeats):
        batch = random_batch(config, settings.batch, repeat, device)
        for name, contestant in contestants.items():
            seconds[name].append(seconds_per_step(contestant, batch, settings.precision, steps))
    return seconds, peak_memory_gb(device)


def enter(system: System, compiled: bool) -> Contestant:
    optimizer = adamw(system.model)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    if compiled:
        system.model.compile(dynamic=False)
    return Contestant(system, optimizer)


def random_batch(config: SwinConfig, batch: int, repeat: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and mask (B, h, w) of one repeat, the same for every system."""
    generator = torch.Generator().manual_seed(repeat)
    images = torch.randn(batch, config.in_channels, *as_pair(config.image_size), generator=generator)
    unit = config.stride // config.patch_size
    mask = block_mask(batch, config.stage_grid(0), unit, MASK_RATIO, seed=0, start=repeat * batch)
    return images.to(device), mask.to(device)


def train_step(contestant: Contestant, batch: tuple[Tensor, Tensor], precision: Precision) -> None:
    (model, loss_of), optimizer = contestant
    with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = loss_of(*batch)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()


def seconds_per_step(contestant: Contestant, batch: tuple[Tensor, Tensor], precision: Precision, steps: int) -> float:
    """Of several steps without a wait in between, as in training."""
    synchronize(batch[0].device)
    start = time.perf_counter()
    for _ in range(steps):
        train_step(contestant, batch, precision)
    synchronize(batch[0].device)
    return (time.perf_counter() - start) / steps


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_per_step(config: SwinConfig, batch: int) -> int:
    """Floating-point operations of our forward and backward, by torch's counter. Computes and allocates nothing."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        images = torch.empty(batch, config.in_channels, *as_pair(config.image_size))
        mask = torch.empty(batch, *config.stage_grid(0), dtype=torch.bool)
        SimMIM(config, attention="reference")(images, mask).loss.backward()
    return counter.get_total_flops()


def peak_memory_gb(device: torch.device) -> float:
    """On a GPU what torch allocated since the warm-up; on a CPU the whole process with its libraries."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")
    high_water = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if high_water:
        return int(high_water[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def peaks_of_children(names: Sequence[str], arguments: list[str]) -> dict[str, float]:
    """Peak memory in GB of each system, in a process of its own: a high-water mark never falls."""
    peaks = {}
    for name in names:
        # two steps, because the optimizer allocates its state at the end of the first
        overrides = ["--systems", name, "--repeats", "1", "--warmup", "1", "--steps", "1", "--json", "-"]
        command = [sys.executable, str(Path(__file__).resolve()), *arguments, *overrides]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
            raise UserError(f"the process that measures the memory of {name} failed: {last}")
        result = json.loads(child.stdout)["results"].get(name)
        if result:
            peaks[name] = result["peak_memory_gb"]
    return peaks


# The report.


def results(
    systems: dict[str, System], seconds: dict[str, list[float]], peaks: dict[str, float], batch: int, flops: int
) -> dict[str, dict[str, Any]]:
    median = {name: statistics.median(values) for name, values in seconds.items()}
    best_peer = min((value for name, value in median.items() if name != "ours"), default=None)
    return {
        name: {
            "images_per_second": batch / median[name],
            "relative_to_best_peer": best_peer / median[name] if best_peer else None,
            "seconds_per_step": median[name],
            "seconds": seconds[name],
            "spread": (max(seconds[name]) - min(seconds[name])) / median[name],
            "peak_memory_gb": peaks.get(name),
            "parameters": sum(p.numel() for p in system.model.parameters()),
            "tflops": flops / median[name] / 1e12,
        }
        for name, system in systems.items()
    }


def describe(settings: Settings, device: torch.device) -> dict[str, Any]:
    packages = ("torch", "timm", "transformers", "torchvision")
    machine = {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "device": str(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    versions = {"python": platform.python_version()} | {name: version_of(name) for name in packages}
    return {"machine": machine, "versions": versions, "settings": asdict(settings)}


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return name[1] if name else platform.processor() or platform.machine()


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def print_heading(report: dict[str, Any], settings: Settings, out: TextIO) -> None:
    machine = report["machine"]
    print(f"machine   {machine['name']}, {machine['cores']} cores, {machine['threads']} threads", file=out)
    print("versions  " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()), file=out)
    flags = [settings.precision, f"attention {settings.attention} (ours)"]
    flags += ["compiled"] * settings.compile + ["activation checkpointing"] * settings.activation_checkpointing
    print(
        f"step      {settings.model}, {settings.image_size} px, window {settings.window_size}, "
        f"batch {settings.batch}, {', '.join(flags)}, {settings.repeats} repeats",
        file=out,
    )
    parity = (f"{name} {seen['loss']:.6f} {seen['gradient_norm']:.6f}" for name, seen in report["parity"].items())
    print(f"parity    loss and gradient norm with the same weights: {', '.join(parity)}", file=out, flush=True)


def print_table(report: dict[str, Any], names: Sequence[str], out: TextIO) -> None:
    print(f"\n{'system':<14}images/s  vs best peer   s/step  spread  peak GB  TFLOP/s  M params", file=out)
    for name in names:
        if name in report["not_measured"]:
            print(f"{name:<14}not measured: {report['not_measured'][name]}", file=out)
            continue
        r = report["results"][name]
        relative, peak = (
            "-" if value is None else f"{value:.2f}" for value in (r["relative_to_best_peer"], r["peak_memory_gb"])
        )
        print(
            f"{name:<14}{r['images_per_second']:>8.1f}{relative:>14}{r['seconds_per_step']:>9.4f}"
            f"{r['spread']:>8.0%}{peak:>9}{r['tflops']:>9.3f}{r['parameters'] / 1e6:>10.2f}",
            file=out,
        )
    print(
        f"\nimages/s and s/step: median of the repeats. spread: (slowest - fastest) / median. TFLOP/s: for all systems "
        f"the {report['flops_per_step'] / 1e12:.4f} TFLOP that our forward and backward need.",
        file=out,
    )


def write_json(report: dict[str, Any], file: str | None) -> None:
    text = json.dumps(report, indent=2)
    if file == "-":
        print(text)
    elif file is not None:
        try:
            Path(file).write_text(text + "\n")
        except OSError as error:
            raise UserError(f"--json {file} cannot be written: {error.strerror}") from error


# The command line.


def parse(arguments: Sequence[str]) -> Settings:
    parser = Parser(prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="step")
    defaults = argparse.ArgumentDefaultsHelpFormatter
    add = commands.add_parser("step", help="time a training step", formatter_class=defaults).add_argument
    add("--model", default="swin_tiny", help="a named size")
    add("--image-size", type=int, default=192, help="pixels, a multiple of 32")
    add("--window-size", type=int, default=6, help="tokens along the side of a window")
    add("--batch", type=int, default=8, help="images per step")
    add("--repeats", type=int, default=7, help="turns of each system")
    add("--warmup", type=int, default=2, help="untimed steps of each system, before all turns")
    add("--steps", type=int, help="steps in a turn; default: 10 on a GPU, 1 on a CPU")
    add("--precision", choices=get_args(Precision), default="fp32", help="bf16: autocast")
    add("--compile", action="store_true", help="torch.compile every system, each as a whole")
    add("--attention", choices=get_args(Backend), default="auto", help="backend of ours; peers run as shipped")
    add("--activation-checkpointing", action="store_true", help="in every system, as each implements it")
    add("--threads", type=int, help="threads of torch on a CPU; default: torch's choice")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add("--systems", type=system_names, default=tuple(BUILDERS), help="comma-separated, among " + ",".join(BUILDERS))
    add("--microsoft", metavar="PATH", help="a checkout of github.com/microsoft/SimMIM")
    add("--memory", action="store_true", help="measure the peak memory of each system in a process of its own")
    add("--json", metavar="FILE", help="also write everything there; - is stdout, and the table goes to stderr")
    return Settings(**vars(parser.parse_args(arguments)))


def system_names(text: str) -> tuple[str, ...]:
    """The named systems in the order of the table, ours first: parity is with the first."""
    names = text.split(",")
    for name in names:
        if name not in BUILDERS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(BUILDERS)}")
    return tuple(name for name in BUILDERS if name in names)


def check(settings: Settings) -> tuple[SwinConfig, torch.device]:
    for name, least in {"batch": 1, "repeats": 1, "warmup": 0, "steps": 1, "threads": 1}.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value} must be at least {least}")
    if settings.compile and not settings.warmup:
        raise UserError("--compile with --warmup 0 would time the compiler: give at least --warmup 1")
    if settings.microsoft is not None and not Path(settings.microsoft, "models", "simmim.py").is_file():
        raise UserError(
            f"--microsoft {settings.microsoft}: no models/simmim.py there; "
            "name the folder of a checkout of github.com/microsoft/SimMIM"
        )
    config = SwinConfig.named(settings.model, image_size=settings.image_size, window_size=settings.window_size)
    if settings.image_size % config.stride:
        raise UserError(f"--image-size {settings.image_size} must be a multiple of the masked unit, {config.stride} px")
    return config, checked_device(settings.device)


def checked_device(name: str) -> torch.device:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device {name!r} must be cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here; use cpu")
    return device


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors(), warnings.catch_warnings():
        # peers warn of their own old habits (timm.models.layers, meshgrid, use_reentrant)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
        step(parse(arguments), arguments)


if __name__ == "__main__":
    main()
