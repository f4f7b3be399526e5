"""All that a GPU machine has to show, in one command that can be stopped and continued.

    python -m tools.bench.gpu gpu_results --microsoft PATH
    python -m tools.bench.gpu gpu_results --microsoft PATH --minutes 10      # as often as it takes
    python -m tools.bench.gpu dry_results --dry                              # the same way with a tiny model, on a CPU

It looks at the environment, tests the kernels on the GPU, and lets `tools.bench` compare the backends' numbers, time
the window attention and the training step of several models and batch sizes, say where a step goes, and draw the loss
curves. Each part leaves OUT/<part>.json, and one whose file is there is not done again. OUT/table.md is made anew from
these files each time.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import torch

from swin_mim.errors import Parser, UserError, one_line_errors
from tools.bench.report import PACKAGES, cpu_name, number, version_of
from tools.bench.settings import check_microsoft
from tools.clone import ROOT
from tools.clone import environment as environment_of_clone

KERNEL_TESTS = ROOT / "tests" / "kernels"
UNFINISHED = 75
"""Exit code: out of time, the same command goes on (EX_TEMPFAIL)."""


class Model(NamedTuple):
    name: str
    image_size: int
    window_size: int

    @property
    def label(self) -> str:
        return f"{self.name}_{self.image_size}_w{self.window_size}"

    @property
    def options(self) -> list[str]:
        return ["--model", self.name, "--image-size", str(self.image_size), "--window-size", str(self.window_size)]


class Plan(NamedTuple):
    """What is measured: in earnest, or dry."""

    models: tuple[Model, ...]
    """The first one also has the breakdown and the curves."""
    batches: tuple[int, ...]
    options: list[str]
    """Arguments of every call of `python -m tools.bench`."""
    step: list[str]
    backends: str
    curve: list[str]


GPU = Plan(
    models=(
        Model("swin_base", 192, 6),
        Model("swin_tiny", 192, 6),
        Model("swin_large", 192, 12),
        Model("swin_base", 192, 12),
        Model("swin_base", 224, 7),
        Model("swin_small", 192, 6),
    ),
    batches=(128, 256, 512, 1024),
    options=["--device", "cuda", "--precision", "bf16"],
    step=["--modes", "eager,compiled", "--repeats", "5", "--attention", "triton"],
    backends="reference,triton",
    curve=["--steps", "200", "--batch", "64"],
)
DRY = Plan(
    models=(Model("swin_nano", 64, 2),),
    batches=(2,),
    options=["--device", "cpu", "--precision", "fp32", "--threads", "1"],
    step=["--modes", "eager", "--repeats", "1"],
    backends="reference,sdpa",
    curve=["--steps", "3", "--batch", "2"],
)


class Part(NamedTuple):
    name: str
    arguments: list[str]
    """Those of `python -m tools.bench`."""


def parts_of(plan: Plan, microsoft: str | None, systems: str | None = None) -> list[Part]:
    """In the order of what is wanted first."""
    first, smallest = plan.models[0], str(plan.batches[0])
    peers = ["--microsoft", microsoft] if microsoft else []
    peers += ["--systems", systems] if systems else []
    curve = ["curves", *first.options, *plan.options, "--backends", plan.backends]
    exact = [*curve, "--precision", "fp32", "--steps", "3", "--batch", "2"]
    whole = ["step", *plan.options, *plan.step]
    alone = [*whole, *first.options, "--batch", smallest, "--systems", "ours", "--breakdown"]
    found = [Part("parity", exact), Part(f"breakdown_{first.label}", alone)]
    found += [
        Part(f"attention_{model.label}", ["attention", *model.options, *plan.options, "--batch", smallest, *peers])
        for model in plan.models
    ]
    found += [
        Part(f"step_{model.label}_b{batch}", [*whole, *model.options, "--batch", str(batch), *peers])
        for batch in plan.batches
        for model in plan.models
    ]
    return [*found, Part(f"curves_{first.label}", [*curve, *plan.curve])]


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors("stopped: the same command goes on"):
        options = parse(arguments)
        out, plan = Path(options.out).resolve(), DRY if options.dry else GPU
        check_microsoft(options.microsoft)
        microsoft = options.microsoft and str(Path(options.microsoft).resolve())
        out.mkdir(parents=True, exist_ok=True)
        seen = environment(dry=options.dry)
        write(out / "environment.json", seen)
        print_now(", ".join(f"{name} {value}" for name, value in seen.items()))
        deadline = time.monotonic() + 60 * options.minutes
        if not options.dry:
            test_kernels(out, deadline)
        unfinished = measure(parts_of(plan, microsoft, options.systems), out, options.only, deadline)
        (out / "table.md").write_text(markdown(out))
        print_now(f"see {out / 'table.md'}")
        if unfinished:
            print_now(f"{len(unfinished)} parts are left: {', '.join(unfinished)}; the same command goes on with them")
            sys.exit(UNFINISHED)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m tools.bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out", help="folder of the results; what is there is not measured again")
    add("--microsoft", metavar="PATH", help="a checkout of github.com/microsoft/SimMIM")
    add("--minutes", type=float, default=600, help="after which it stops; the same command goes on")
    add("--only", default="*", metavar="PATTERN", help="only the parts with such a name, as 'step_swin_base_192_w6_*'")
    add("--systems", help="as of tools.bench; default: all. Compiling four others takes minutes for each batch size")
    add("--dry", action="store_true", help="the same way with a tiny model on a CPU, in about a minute")
    return parser.parse_args(arguments)


def print_now(text: str) -> None:
    print(text, flush=True)


def write(file: Path, document: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(document, indent=2) + "\n")


# What is done.


def environment(*, dry: bool) -> dict[str, str]:
    """The machine and what is installed. Raises `UserError` where the figures could not be had."""
    if not dry and not torch.cuda.is_available():
        raise UserError(f"torch {torch.__version__} sees no GPU here: --dry shows the way without one")
    if not dry and version_of("triton") == "not installed":
        raise UserError("triton is not installed, and the fused attention needs it: it comes with torch for CUDA")
    seen = {"machine": cpu_name() if dry else torch.cuda.get_device_name(), "python": platform.python_version()}
    if not dry:
        free, whole = torch.cuda.mem_get_info()
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        seen |= {"CUDA": str(torch.version.cuda), "capability": capability}
        seen |= {"GPU memory GB": f"{whole / 1e9:.0f}, {free / 1e9:.0f} free"}
    return seen | {name: version_of(name) for name in PACKAGES}


def test_kernels(out: Path, deadline: float) -> None:
    """The tests of the kernels on the GPU itself -> kernels.json; done again until they pass."""
    file = out / "kernels.json"
    if not KERNEL_TESTS.is_dir() or (file.is_file() and json.loads(file.read_text())["passed"]):
        return
    # the tests hide the GPUs from torch unless they are named
    variables = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
    code, text = call([sys.executable, "-m", "pytest", "-q", str(KERNEL_TESTS)], deadline, variables)
    write(file, {"passed": code == 0, "exit_code": code, "output": text[-4000:]})
    print_now(f"kernels: {'the tests pass' if code == 0 else f'THE TESTS DO NOT PASS, see {file}'}")


def measure(parts: Sequence[Part], out: Path, only: str, deadline: float) -> list[str]:
    """Those that have no file yet, until the deadline -> what is still without one."""
    wanted = [part for part in parts if fnmatch(part.name, only)]
    if not wanted:
        raise UserError(f"--only {only}: no part has such a name; there are {', '.join(part.name for part in parts)}")
    for count, part in enumerate(wanted, 1):
        file = out / f"{part.name}.json"
        if file.is_file() or time.monotonic() >= deadline:
            continue
        start = time.monotonic()
        print_now(f"[{count}/{len(wanted)}] {part.name}")
        unfinished = file.with_suffix(".unfinished")
        code, text = call([sys.executable, "-m", "tools.bench", *part.arguments, "--json", str(unfinished)], deadline)
        file.with_suffix(".log").write_text(text)
        if code == 0:
            unfinished.rename(file)
        print_now(f"    {outcome(code, text)}, {time.monotonic() - start:.0f} s")
    return [part.name for part in wanted if not (out / f"{part.name}.json").is_file()]


def outcome(code: int | None, text: str) -> str:
    if code is None:
        return "out of time"
    return "done" if code == 0 else f"FAILED: {(text.strip().splitlines() or [f'exit code {code}'])[-1]}"


def call(command: Sequence[str], deadline: float, variables: Mapping[str, str] | None = None) -> tuple[int | None, str]:
    """Exit code, None past the deadline, and what was written."""
    started = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment_of_clone(**(variables or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # compilers have processes of their own, which hold the pipe
    )
    try:
        text, _ = started.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        text, _ = started.communicate()
        return None, text
    except KeyboardInterrupt:
        os.killpg(started.pid, signal.SIGKILL)
        raise
    return started.returncode, text


# The table.


def markdown(out: Path) -> str:
    """The table of the README, and the whole results below it."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(out.glob("*.json"))}
    steps = [report for name, report in found.items() if name.startswith("step_")]
    curve = [report for name, report in found.items() if name.startswith(("parity", "curves_"))]
    texts = [heading(found)]
    if steps:
        texts += [summary(steps), "Every batch size:", everything(steps)]
    texts += [agreement(report) for report in curve]
    return "\n\n".join(texts) + "\n"


def heading(found: Mapping[str, Any]) -> str:
    seen = found["environment"]
    dates = sorted(report["date"][:10] for report in found.values() if "date" in report)
    names = ("CUDA", *PACKAGES)
    versions = ", ".join(f"{name} {seen[name]}" for name in names if seen.get(name, "not installed") != "not installed")
    tests = found.get("kernels")
    passed = "" if tests is None else f" Kernel tests on the GPU: {'passed' if tests['passed'] else 'FAILED'}."
    return (
        f"{seen['machine']}, {versions}, {dates[-1] if dates else 'no date'}, `python -m tools.bench.gpu OUT`.{passed} "
        "Images/s of a SimMIM training step, medians; systems took turns."
    )


def summary(steps: Sequence[Mapping[str, Any]]) -> str:
    """One line for each model: every system at its best batch size."""
    lines = ["| model | ours | fastest other, eager | fastest other, compiled | TFLOP/s | of matmul | peak GB |"]
    lines.append("|" + "---|" * 7)
    for label in dict.fromkeys(model_text(report) for report in steps):
        rows = [row for report in steps if model_text(report) == label for row in rows_of(report)]
        ours = best(rows, lambda system: system.startswith("ours"))
        if ours is None:
            continue
        eager = best(rows, lambda system: not system.startswith("ours") and not system.endswith("compiled"))
        compiled = best(rows, lambda system: not system.startswith("ours") and system.endswith("compiled"))
        others = (beside(ours, other) for other in (eager, compiled))
        result = ours["result"]
        lines.append(
            f"| {label} | **{result['images_per_second']:.0f}** ({ours['system']}, batch {ours['batch']}) | "
            f"{' | '.join(others)} | {result['tflops']:.3g} | {number(result['share_of_matmul_ceiling'], '.0%')} | "
            f"{number(result['peak_memory_gb'], '.1f')} |"
        )
    return "\n".join(lines)


def beside(ours: Mapping[str, Any], other: Mapping[str, Any] | None) -> str:
    if other is None:
        return "not measured"
    speed = other["result"]["images_per_second"]
    times = ours["result"]["images_per_second"] / speed
    return f"{speed:.0f} ({other['system'].split()[0]}, batch {other['batch']}): {times:.2f} times"


def best(rows: Sequence[Mapping[str, Any]], wanted: Any) -> Mapping[str, Any] | None:
    among = [row for row in rows if wanted(row["system"])]
    return max(among, key=lambda row: row["result"]["images_per_second"], default=None)


def model_text(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    return f"{settings['model']}, {settings['image_size']} px, window {settings['window_size']}"


def rows_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"system": system, "batch": table["batch"], "result": result}
        for table in report["batches"]
        for system, result in table["results"].items()
    ]


def everything(steps: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| model | batch | system | images/s | spread | TFLOP/s | of matmul | peak GB | first step s |"]
    lines.append("|" + "---|" * 9)
    for report in steps:
        for row in rows_of(report):
            result = row["result"]
            values = (
                *(f"{result['images_per_second']:.1f}", f"{result['spread']:.0%}", f"{result['tflops']:.3g}"),
                number(result["share_of_matmul_ceiling"], ".0%"),
                number(result["peak_memory_gb"], ".1f"),
                number(result["first_step_seconds"], ".1f"),
            )
            lines.append(f"| {model_text(report)} | {row['batch']} | {row['system']} | {' | '.join(values)} |")
        for table in report["batches"]:
            for system, reason in table["not_measured"].items():
                lines.append(f"| {model_text(report)} | {table['batch']} | {system} | not measured: {reason} |")
    return "\n".join(lines)


def agreement(report: Mapping[str, Any]) -> str:
    """How far loss curves are apart, as text."""
    settings = report["settings"]
    first = settings["backends"][0]
    apart = (
        f"{name} at most {seen['max']:.1e}, on average {seen['mean']:.1e}"
        for name, seen in report["differences"].items()
    )
    last = report["losses"][first][-1]
    return (
        f"Losses of {settings['steps']} steps, {model_text(report)}, {settings['precision']}, apart from those with "
        f"{first} attention (the last is {last:.4f}): {'; '.join(apart)}."
    )


if __name__ == "__main__":
    main()
