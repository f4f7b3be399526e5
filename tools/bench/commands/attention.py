"""Window attention forward and backward at every stage of a model, ours and the others': `tools.bench attention`.

All get tokens (B, h, w, D) in raster order and return the same: projections, shift, windows and what undoes them
included, each library in its own way, with the same weights. Besides, ours without the two projections ("alone").
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TextIO, get_args

import torch
from torch import Tensor

from swin_mim.architecture import SwinConfig
from swin_mim.cli.options import text_stream, write_json
from swin_mim.errors import UserError
from swin_mim.kernels.window_geometry import window_geometry
from swin_mim.models.blocks.window_attention import Backend, resolve_backend
from swin_mim.models.simmim import SimMIM
from tools.bench.breakdown import Part, bytes_of, flops_of, without_norm, without_projections
from tools.bench.ceilings import Ceilings, measure_ceilings
from tools.bench.peers import ATTENTION, Attention, System, build, ours_attention, random_weights
from tools.bench.report import describe, number, print_ceilings, print_machine, print_table
from tools.bench.settings import PeerSettings, check, check_microsoft, check_model
from tools.bench.timing import Failed, attempt, autocast, seconds_per_call, take_turns, times

DIFFERENCE = 2e-3
"""The largest difference of outputs and gradients that is rounding, of the largest value; in fp32."""
ALONE = ", alone"


@dataclass(frozen=True)
class Place:
    """One kind of block of a stage."""

    stage: int
    block: int
    """One of them, within its stage: 0 is not shifted, 1 is."""
    count: int


@dataclass(frozen=True)
class Work:
    """Cost of one call, forward and backward."""

    flops: int
    bytes: int


def attention(settings: PeerSettings) -> None:
    """Measure, print the tables and write the JSON."""
    out = text_stream(settings.json)
    device, config = check(settings), check_model(settings)
    check_microsoft(settings.microsoft)
    if "ours" not in settings.systems:
        raise UserError(f"--systems {','.join(settings.systems)}: the others are compared to ours, so name it too")
    systems, failed = build(config, random_weights(config), settings, device)
    report = describe(settings, device)
    print_machine(report, out)
    ceilings = measure_ceilings(device, settings.precision) if settings.ceilings else None
    print_ceilings(ceilings, out)
    backends, refused = backends_on(device)
    reasons = {name: reason for name, (reason,) in (failed | refused).items()}
    for name, reason in reasons.items():
        print(f"{name} is not measured: {reason}", file=out)
    report |= {"ceilings": ceilings and ceilings._asdict(), "not_measured": reasons, "batches": []}
    for batch in settings.batch:
        found = [measure(systems, backends, place, batch, config, settings, device) for place in places(config)]
        report["batches"].append(summed(found, batch, config, ceilings))
        print_batch(report["batches"][-1], settings, out)
    print(LEGEND, file=out)
    write_json(report, settings.json)


def places(config: SwinConfig) -> list[Place]:
    return [
        Place(stage, block, count)
        for stage, depth in enumerate(config.depths)
        for block, count in enumerate((depth - depth // 2, depth // 2))
        if count
    ]


# Who takes part.


def backends_on(device: torch.device) -> tuple[list[Backend], dict[str, Failed]]:
    """Our backends that run on the device, and why the others do not."""
    backends: list[Backend] = []
    refused = {}
    for backend in get_args(Backend):
        if backend == "auto":
            continue
        try:
            resolve_backend(backend, device)
        except UserError as error:
            refused[f"ours {backend}"] = Failed(str(error))
        else:
            backends.append(backend)
    return backends, refused


def rows_at(systems: Mapping[str, System], backends: Sequence[Backend], place: Place) -> dict[str, Attention]:
    """Ours with these backends, whole and alone, and the others."""
    rows: dict[str, Attention] = {}
    for name, system in systems.items():
        found = ATTENTION[name](system.model, place.stage, place.block)
        rows |= by_backend(found, backends) if name == "ours" else {name: found}
    return rows


def by_backend(ours: Attention, backends: Sequence[Backend]) -> dict[str, Attention]:
    rows: dict[str, Attention] = {}
    for backend in backends:
        twin: Any = copy.copy(ours.module)
        twin.backend = backend
        whole, bare = without_norm(twin), without_projections(twin)
        rows |= {f"ours {backend}": Attention(whole, whole), f"ours {backend}{ALONE}": Attention(bare, bare)}
    return rows


def reference_of(name: str) -> str:
    return "ours reference" + ALONE * name.endswith(ALONE)


def disagreeing(
    rows: Mapping[str, Attention], place: Place, config: SwinConfig, device: torch.device
) -> dict[str, Failed]:
    """Those that do not compute what our reference does, or refuse this device; in fp32."""
    expected: dict[str, tuple[Tensor, Tensor]] = {}
    failed = {}
    for name, row in rows.items():
        seen = attempt(partial(probe, row, tokens(name, place, 2, config, device)), otherwise="fails")
        if isinstance(seen, Failed):
            failed[name] = seen
            continue
        differences = [
            ((a - b).abs().max() / b.abs().max()).item()
            for a, b in zip(seen, expected.setdefault(reference_of(name), seen), strict=True)
        ]
        if not max(differences) <= DIFFERENCE:
            failed[name] = Failed(f"not the same work: differs by {max(differences):.1e} from {reference_of(name)}")
    return failed


def probe(row: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient of the input for an uneven one of the output."""
    y = row.call(x)
    (gradient,) = torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y))
    return y.detach(), gradient


def tokens(name: str, place: Place, batch: int, config: SwinConfig, device: torch.device) -> Tensor:
    """What a row gets: (B, h, w, D), or three times the channels if it is attention alone."""
    channels = config.stage_dim(place.stage) * (3 if name.endswith(ALONE) else 1)
    generator = torch.Generator().manual_seed(place.stage)
    x = torch.randn(batch, *config.stage_grid(place.stage), channels, generator=generator)
    return x.to(device).requires_grad_()


# The measurement.


def measure(
    systems: Mapping[str, System],
    backends: Sequence[Backend],
    place: Place,
    batch: int,
    config: SwinConfig,
    settings: PeerSettings,
    device: torch.device,
) -> dict[str, Any]:
    """Seconds of every row at one place, what it has to do there, and who is not measured."""
    rows = rows_at(systems, backends, place)
    failed = disagreeing(rows, place, config, device)
    steps = settings.steps or (10 if device.type == "cuda" else 1)
    turns = {
        name: partial(turn, name, row, partial(tokens, name, place, batch, config, device), settings.precision, steps)
        for name, row in rows.items()
        if name not in failed
    }
    for name, run in turns.items():
        warm = attempt(partial(run, 0, calls=settings.warmup), otherwise="fails") if settings.warmup else None
        if isinstance(warm, Failed):
            failed[name] = warm
    seconds, later = take_turns({n: run for n, run in turns.items() if n not in failed}, settings.repeats)
    return {
        "place": place,
        "seconds": seconds,
        "work": {name: work_of(name, place, batch, config, settings.precision, systems) for name in seconds},
        "failed": failed | later,
        **geometry(place, config),
    }


def turn(
    name: str, row: Attention, draw: Callable[[], Tensor], precision: str, steps: int, repeat: int, calls: int = 0
) -> float:
    """Seconds per forward and backward pass, all parameters' gradients included; `draw` gives tokens (B, h, w, D)."""
    x = draw().detach().to(input_dtype(name, precision)).requires_grad_()
    wanted = [x, *row.module.parameters()]

    def forward_backward() -> None:
        with autocast(x.device, precision):  # each time anew, because it keeps the weights that it has cast
            y = row.call(x)
        torch.autograd.grad(y, wanted, y.detach(), allow_unused=True)

    return seconds_per_call(forward_backward, calls or steps, x.device)


def input_dtype(name: str, precision: str) -> torch.dtype:
    """Under autocast a norm gives fp32 and a projection bf16."""
    return torch.bfloat16 if precision == "bf16" and name.endswith(ALONE) else torch.float32


def work_of(
    name: str, place: Place, batch: int, config: SwinConfig, precision: str, systems: Mapping[str, System]
) -> Work:
    """Work of our reference: the same for all, however they do it."""
    module: Any = ours_attention(systems["ours"].model, place.stage, place.block).module
    with torch.device("meta"):
        on_meta: Any = ours_attention(SimMIM(config, attention="reference"), place.stage, place.block).module
    taken = without_projections if name.endswith(ALONE) else without_norm
    module, on_meta = taken(module), taken(on_meta)
    x = tokens(name, place, batch, config, torch.device("meta"))
    typed = x.detach().to(input_dtype(name, precision))
    return Work(flops_of(Part("", None, 1, on_meta, x)), bytes_of(Part("", None, 1, module, typed), precision))


def geometry(place: Place, config: SwinConfig) -> dict[str, Any]:
    grid = config.stage_grid(place.stage)
    window, shift = window_geometry(grid, config.stage_window(place.stage), place.block == 1)
    heads, dim = config.num_heads[place.stage], config.stage_dim(place.stage)
    return {"grid": grid, "window": window, "shift": shift, "heads": heads, "channels": dim}


# The report.


def summed(found: list[dict[str, Any]], batch: int, config: SwinConfig, ceilings: Ceilings | None) -> dict[str, Any]:
    """What the JSON says of one batch size: every place, and all blocks of the model together."""
    at_places = []
    for seen in found:
        place, seconds, work = seen.pop("place"), seen.pop("seconds"), seen.pop("work")
        reasons = {name: reason for name, (reason,) in seen.pop("failed").items()}
        timed = {name: times(values) for name, values in seconds.items()}
        medians = {name: t.median for name, t in timed.items()}
        results = {
            name: judged(name, medians, work[name], batch, ceilings) | {"spread": t.spread, "seconds": t.seconds}
            for name, t in timed.items()
        }
        entry = {"stage": place.stage, "count": place.count, **seen, "not_measured": reasons, "results": results}
        at_places.append(entry | {"work": {name: asdict(each) for name, each in work.items()}})
    return {"batch": batch, "places": at_places, "total": total(at_places, batch, ceilings)}


def total(at_places: list[dict[str, Any]], batch: int, ceilings: Ceilings | None) -> dict[str, Any]:
    """Sums of the rows that are measured everywhere."""
    everywhere = [name for name in at_places[0]["results"] if all(name in entry["results"] for entry in at_places)]
    seconds = {
        name: sum(entry["count"] * entry["results"][name]["seconds_per_call"] for entry in at_places)
        for name in everywhere
    }
    work = {
        name: Work(
            *(sum(entry["count"] * entry["work"][name][key] for entry in at_places) for key in ("flops", "bytes"))
        )
        for name in everywhere
    }
    return {name: judged(name, seconds, work[name], batch, ceilings) for name in everywhere}


def judged(
    name: str, seconds: Mapping[str, float], work: Work, batch: int, ceilings: Ceilings | None
) -> dict[str, Any]:
    here, reference = seconds[name], seconds.get(reference_of(name))
    tflops, rate = work.flops / here / 1e12, work.bytes / here / 1e9
    return {
        "seconds_per_call": here,
        "images_per_second": batch / here,
        "relative_to_reference": reference and reference / here,
        "tflops": tflops,
        "share_of_matmul_ceiling": ceilings and tflops / ceilings.matmul_tflops,
        "gb_per_second": rate,
        "share_of_copy_ceiling": ceilings and rate / ceilings.copy_gb_per_second,
    }


COLUMNS = (*("attention", "ms", "images/s", "vs reference", "TFLOP/s", "of matmul", "GB/s", "of copy", "spread"),)
LEGEND = (
    "\nms: median of the repeats, forward and backward. GB/s: of the bytes that must be moved at least (input, output, "
    "weights and their gradients). alone: without the two projections."
)


def print_batch(found: Mapping[str, Any], settings: PeerSettings, out: TextIO) -> None:
    for entry in found["places"]:
        sides = {key: " x ".join(map(str, entry[key])) for key in ("grid", "window", "shift")}
        print(
            f"\nstage {entry['stage'] + 1}, grid {sides['grid']}, window {sides['window']}, shift {sides['shift']}, "
            f"{entry['channels']} channels, {entry['heads']} heads, batch {found['batch']}, {settings.precision} "
            f"({entry['count']} of these)",
            file=out,
        )
        print_rows(entry["results"], entry["not_measured"], out)
    print(f"\nall blocks of {settings.model}, batch {found['batch']}", file=out)
    print_rows(found["total"], {}, out)


def print_rows(results: Mapping[str, Any], not_measured: Mapping[str, str], out: TextIO) -> None:
    rows: list[Any] = [[name, *cells(result)] for name, result in results.items()]
    rows += [[name, f"not measured: {reason}"] for name, reason in not_measured.items()]
    print_table(COLUMNS, rows, out)


def cells(result: Mapping[str, Any]) -> list[str]:
    return [
        f"{1e3 * result['seconds_per_call']:.2f}",
        f"{result['images_per_second']:.1f}",
        number(result["relative_to_reference"], ".2f"),
        f"{result['tflops']:.3f}",
        number(result["share_of_matmul_ceiling"], ".0%"),
        f"{result['gb_per_second']:.1f}",
        number(result["share_of_copy_ceiling"], ".0%"),
        number(result.get("spread"), ".0%"),
    ]
