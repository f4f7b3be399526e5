"""A SimMIM training step of ours and of the others: `tools.bench step`.

Forward with a block mask, masked L1, backward, clipping at 5.0, AdamW, zero_grad. Every system starts from the same
weights and gets the same images, masks and optimizer. One whose loss or gradient is not ours with the same weights does
other work and is not timed. The systems take turns, repeat by repeat, so that whatever else the machine does meets all
of them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor, nn

from swin_mim.architecture import SwinConfig
from swin_mim.cli.options import text_stream, write_json
from swin_mim.errors import UserError
from swin_mim.models.simmim import SimMIM
from swin_mim.models.swin import attention_text
from tools.bench.breakdown import breakdown, print_breakdown
from tools.bench.ceilings import Ceilings, measure_ceilings
from tools.bench.memory import alone, in_children, kept_gb, own_bytes, peaks_of_children, resident_peak_gb
from tools.bench.peers import System, build, random_weights
from tools.bench.report import describe, number, print_ceilings, print_machine, print_table
from tools.bench.settings import StepSettings, check, check_microsoft, check_model, row_name
from tools.bench.timing import Failed, attempt, exact, free, seconds_per_call, take_turns, times
from tools.bench.training import Contestant, enter, flops_per_step, random_batch, train_step

FIRST_LOSS = 0.02
"""The largest relative difference between the first losses that is rounding, in bf16 too. Compilers make mistakes."""


class Probe(NamedTuple):
    """What a system computes with the common weights."""

    loss: float
    gradient_norm: float


PARITY = Probe(loss=1e-4, gradient_norm=1e-3)
"""The largest differences that are rounding."""


class Measured(NamedTuple):
    """Figures of one batch size, by the name of the row."""

    seconds: dict[str, list[float]]
    """Per step, of every repeat."""
    first_seconds: dict[str, float]
    """Time of the first step: of a compiled system the time to compile it."""
    peaks: dict[str, float]
    """GB."""
    kept: dict[str, float]
    """GB, between forward and backward."""
    failed: dict[str, Failed]


# The command.


def step(settings: StepSettings, arguments: Sequence[str]) -> None:
    """Measure, print the tables and write the JSON. `arguments` is the command line, for the children."""
    out = text_stream(settings.json)
    config, device = check_step(settings)
    # first, while this process is small: a child's high-water mark may start at its parent's
    peaks, lost = peaks_of_children(settings, arguments) if in_children(settings) else ({}, {})
    contestants, not_measured, parity = enter_all(config, settings, device)
    report = describe(settings, device) | {"parity": {name: seen._asdict() for name, seen in parity.items()}}
    report |= {"attention": attention_taken(contestants, settings, device)}
    print_heading(report, settings, out)
    measured = {}
    for batch in settings.batch:
        here = {name: c for name, c in contestants.items() if name not in lost.get(batch, {})}
        measured[batch] = measure(here, config, replace(settings, batch=(batch,)), device)
    ceilings = measure_ceilings(device, settings.precision) if settings.ceilings else None
    print_ceilings(ceilings, out)
    tables = []
    for batch, seen in measured.items():
        failed = not_measured | lost.get(batch, {}) | seen.failed
        memory = peaks.get(batch, {}) | seen.peaks
        tables.append(table(contestants, seen, memory, failed, batch, flops_per_step(config, batch), ceilings))
        print_step(tables[-1], row_names(settings), out)
    report |= {"ceilings": ceilings and ceilings._asdict(), "batches": tables}
    if settings.breakdown:
        assert ceilings is not None
        report["breakdown"] = breakdowns(contestants, measured, config, settings, ceilings, out)
    print_legend(out)
    write_json(report, settings.json)


def check_step(settings: StepSettings) -> tuple[SwinConfig, torch.device]:
    device, config = check(settings), check_model(settings)
    check_microsoft(settings.microsoft)
    if "compiled" in settings.modes and not settings.warmup:
        raise UserError("--modes compiled with --warmup 0 would time the compiler: give at least --warmup 1")
    if settings.breakdown and ("ours" not in settings.systems or not settings.ceilings):
        raise UserError("--breakdown is of ours, against the ceilings: it needs ours in --systems, not --no-ceilings")
    return config, device


def row_names(settings: StepSettings) -> list[str]:
    """In the order of the table, ours first: parity is with the first."""
    return [row_name(system, mode) for mode in settings.modes for system in settings.systems]


# Who takes part.


def enter_all(
    config: SwinConfig, settings: StepSettings, device: torch.device
) -> tuple[dict[str, Contestant], dict[str, Failed], dict[str, Probe]]:
    """Contestants with equal weights by the name of the row, why others are none, and what each computes."""
    weights = random_weights(config)
    contestants: dict[str, Contestant] = {}
    failed: dict[str, Failed] = {}
    probes: dict[str, Probe] = {}
    for mode in settings.modes:
        systems, not_built = build(config, weights, settings, device)
        failed |= {row_name(name, mode): reason for name, reason in not_built.items()}
        for name, system in systems.items():
            row = row_name(name, mode)
            seen = attempt(partial(probe, system, random_batch(config, 2, 0, device)), otherwise="fails")
            if isinstance(seen, Failed):
                failed[row] = seen
            else:
                probes[row], contestants[row] = seen, enter(system, mode)
    for name, reason in disagreeing(probes).items():
        failed[name] = reason
        del contestants[name]
    return contestants, failed, probes


def attention_taken(contestants: Mapping[str, Contestant], settings: StepSettings, device: torch.device) -> str | None:
    """The backend of ours: what `auto` is, too. None where ours does not take part."""
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    models = (contestant.system.model for contestant in contestants.values())
    return next((attention_text(m.encoder, device, dtype) for m in models if isinstance(m, SimMIM)), None)


def probe(system: System, batch: tuple[Tensor, Tensor]) -> Probe:
    """In fp32, before compilation."""
    with exact():
        loss = system.loss(*batch)
        loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in system.model.parameters() if p.grad is not None])
    system.model.zero_grad()
    return Probe(loss.item(), norm.item())


def disagreeing(probes: Mapping[str, Probe]) -> dict[str, Failed]:
    """The systems that do not compute what the first does, and the reason to leave them out."""
    failed = {}
    for name, seen in probes.items():
        first, expected = next(iter(probes.items()))
        for quantity, a, b, tolerance in zip(Probe._fields, seen, expected, PARITY, strict=True):
            if not abs(a - b) <= tolerance:
                failed[name] = Failed(f"not the same work: {quantity} {a:.6f}, {first} {b:.6f} with the same weights")
    return failed


# The measurement.


def measure(
    contestants: Mapping[str, Contestant], config: SwinConfig, settings: StepSettings, device: torch.device
) -> Measured:
    """All contestants at one batch size."""
    torch.compiler.reset()  # graphs of another batch would count against the limit of recompilations
    (size,) = settings.batch
    first_seconds, failed = warm_up(contestants, random_batch(config, size, 0, device), settings)
    steps = settings.steps or (10 if device.type == "cuda" else 1)
    peaks: dict[str, float] = {}
    batch = lru_cache(maxsize=1)(partial(random_batch, config, size, device=device))  # one for all systems of a repeat
    turns = {
        name: partial(turn, name, contestant, batch, settings, steps, peaks)
        for name, contestant in contestants.items()
        if name not in failed
    }
    seconds, later = take_turns(turns, settings.repeats)
    kept = {name: kept_gb(contestants[name], batch(0), settings.precision) for name in seconds if name not in later}
    if device.type == "cpu" and alone(settings):
        peaks = dict.fromkeys(seconds, resident_peak_gb())
    return Measured(seconds, first_seconds, peaks, kept, failed | later)


def warm_up(
    contestants: Mapping[str, Contestant], batch: tuple[Tensor, Tensor], settings: StepSettings
) -> tuple[dict[str, float], dict[str, Failed]]:
    """Seconds of each first step, and who failed: to compile, for memory, or with another loss than the first."""
    seconds: dict[str, float] = {}
    failed: dict[str, Failed] = {}
    losses: dict[str, float] = {}
    for name, contestant in contestants.items() if settings.warmup else ():
        new = not contestant.optimizer.state  # later batch sizes find weights that each has trained for itself
        start = time.perf_counter()
        first = partial(first_loss, contestant, batch, settings)
        loss = attempt(first, otherwise="does not compile" if contestant.mode == "compiled" else "fails")
        if isinstance(loss, Failed):
            failed[name] = given_up(contestant, loss)
            continue
        seconds[name] = time.perf_counter() - start
        if new:
            losses[name] = loss
        rest = attempt(partial(further_steps, contestant, batch, settings))
        if isinstance(rest, Failed):
            failed[name] = given_up(contestant, rest)
    return seconds, failed | other_losses(losses)


def first_loss(contestant: Contestant, batch: tuple[Tensor, Tensor], settings: StepSettings) -> float:
    return train_step(contestant, batch, settings.precision).item()


def further_steps(contestant: Contestant, batch: tuple[Tensor, Tensor], settings: StepSettings) -> None:
    for _ in range(settings.warmup - 1):
        train_step(contestant, batch, settings.precision)


def given_up(contestant: Contestant, failed: Failed) -> Failed:
    """The same, with the half-made gradients freed."""
    contestant.optimizer.zero_grad()
    free()
    return failed


def other_losses(losses: Mapping[str, float]) -> dict[str, Failed]:
    """Systems whose first loss from the same weights is another, in the precision and mode that is timed."""
    failed = {}
    for name, loss in losses.items():
        first, expected = next(iter(losses.items()))
        if not abs(loss - expected) <= FIRST_LOSS * abs(expected):
            failed[name] = Failed(f"not the same work: the first loss is {loss:.4f}, that of {first} {expected:.4f}")
    return failed


def turn(
    name: str,
    contestant: Contestant,
    batch_of: Callable[[int], tuple[Tensor, Tensor]],
    settings: StepSettings,
    steps: int,
    peaks: dict[str, float],
    repeat: int,
) -> float:
    """Seconds per step of one repeat. On a GPU it also notes the peak of memory in `peaks`."""
    batch = batch_of(repeat)
    device = batch[0].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        others = torch.cuda.memory_allocated(device) - own_bytes(contestant)
    try:
        seconds = seconds_per_call(lambda: train_step(contestant, batch, settings.precision), steps, device)
    except Exception:
        contestant.optimizer.zero_grad()
        raise
    if device.type == "cuda":
        peaks[name] = max(peaks.get(name, 0), (torch.cuda.max_memory_allocated(device) - others) / 1e9)
    return seconds


# The report.


def table(
    contestants: Mapping[str, Contestant],
    measured: Measured,
    peaks: Mapping[str, float],
    failed: Mapping[str, Failed],
    batch: int,
    flops: int,
    ceilings: Ceilings | None,
) -> dict[str, Any]:
    """What the JSON says of one batch size."""
    timed = {name: times(values) for name, values in measured.seconds.items() if name not in failed}
    median = {name: seen.median for name, seen in timed.items()}
    results = {
        name: {
            "images_per_second": batch / seen.median,
            "relative_to_best_peer": relative_to_best_peer(name, median),
            "seconds_per_step": seen.median,
            "seconds": seen.seconds,
            "spread": seen.spread,
            "first_step_seconds": measured.first_seconds.get(name),
            "peak_memory_gb": peaks.get(name),
            "kept_gb": measured.kept[name],
            "parameters": sum(p.numel() for p in contestants[name].system.model.parameters()),
            "tflops": flops / seen.median / 1e12,
            "share_of_matmul_ceiling": ceilings and flops / seen.median / 1e12 / ceilings.matmul_tflops,
        }
        for name, seen in timed.items()
    }
    reasons = {name: reason for name, (reason,) in failed.items()}
    return {"batch": batch, "flops_per_step": flops, "not_measured": reasons, "results": results}


def relative_to_best_peer(name: str, median: Mapping[str, float]) -> dict[str, float | None]:
    """How many times as fast as the fastest other system in each mode."""
    peers = {row: value for row, value in median.items() if not row.startswith("ours")}
    best: dict[str, float | None] = {
        "eager": min((value for row, value in peers.items() if not row.endswith("compiled")), default=None),
        "compiled": min((value for row, value in peers.items() if row.endswith("compiled")), default=None),
    }
    return {mode: value and value / median[name] for mode, value in best.items()}


def print_heading(report: Mapping[str, Any], settings: StepSettings, out: TextIO) -> None:
    print_machine(dict(report), out)
    flags = [settings.precision, f"attention {report['attention'] or settings.attention} (ours)", *settings.modes]
    flags += ["activation checkpointing"] * settings.activation_checkpointing
    print(
        f"step      {settings.model}, {settings.image_size} px, window {settings.window_size}, "
        f"{', '.join(flags)}, {settings.repeats} repeats",
        file=out,
    )
    parity = (f"{name} {seen['loss']:.6f} {seen['gradient_norm']:.6f}" for name, seen in report["parity"].items())
    print(f"parity    loss and gradient norm with the same weights: {', '.join(parity)}", file=out, flush=True)


COLUMNS = (
    *(
        "system",
        "images/s",
        "vs eager",
        "vs compiled",
        "s/step",
        "spread",
        "peak GB",
        "kept GB",
        "TFLOP/s",
        "of matmul",
    ),
    *("first s", "M params"),
)


def print_step(table: Mapping[str, Any], names: Sequence[str], out: TextIO) -> None:
    print(f"\nbatch {table['batch']}, {table['flops_per_step'] / 1e12:.4f} TFLOP a step", file=out)
    rows: list[Sequence[str]] = []
    for name in names:
        if name in table["not_measured"]:
            rows.append([name, f"not measured: {table['not_measured'][name]}"])
        else:
            rows.append([name, *cells(table["results"][name])])
    print_table(COLUMNS, rows, out)


def cells(result: Mapping[str, Any]) -> list[str]:
    return [
        f"{result['images_per_second']:.1f}",
        *(number(value, ".2f") for value in result["relative_to_best_peer"].values()),
        f"{result['seconds_per_step']:.4f}",
        f"{result['spread']:.0%}",
        number(result["peak_memory_gb"], ".2f"),
        f"{result['kept_gb']:.2f}",
        f"{result['tflops']:.3f}",
        number(result["share_of_matmul_ceiling"], ".0%"),
        number(result["first_step_seconds"], ".1f"),
        f"{result['parameters'] / 1e6:.2f}",
    ]


def print_legend(out: TextIO) -> None:
    print(
        "\nimages/s and s/step: median of the repeats. vs eager, vs compiled: times as fast as the fastest other "
        "system in that mode. spread: (slowest - fastest) / median. TFLOP/s: for all systems what our forward and "
        "backward need. first s: the first step, with the compilation.",
        file=out,
    )


def breakdowns(
    contestants: Mapping[str, Contestant],
    measured: Mapping[int, Measured],
    config: SwinConfig,
    settings: StepSettings,
    ceilings: Ceilings,
    out: TextIO,
) -> list[dict[str, Any]]:
    """Breakdown of ours in every mode, at the first batch size."""
    batch, seen = next(iter(measured.items()))
    found = []
    for mode in settings.modes:
        name = row_name("ours", mode)
        if name not in seen.seconds:
            continue
        system, optimizer, _ = contestants[name]
        data = random_batch(config, batch, 0, next(system.model.parameters()).device)
        whole = times(seen.seconds[name]).median
        parts = breakdown(system.model, optimizer, data, settings, mode, whole, ceilings)
        found.append({"mode": mode, "batch": batch, **parts})
        print_breakdown(found[-1], out)
    return found
