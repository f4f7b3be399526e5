"""How fast a training on a CPU is beside other work, by the way its threads wait: `tools.bench busy`.

Threads of OpenMP wait for each other at the end of every parallel loop. While they spin they hold a core that the one
they wait for may need. Each way is a process of its own, as OpenMP reads its variables once; all of them take turns.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from swin_mim.architecture import SwinConfig
from swin_mim.cli.options import text_stream, write_json
from swin_mim.models.simmim import SimMIM
from swin_mim.threads import VARIABLES
from tools.bench.peers import System
from tools.bench.report import describe, print_machine, print_table
from tools.bench.settings import BusySettings, check
from tools.bench.training import enter, random_batch, train_step
from tools.clone import environment

WAYS = {
    "OpenMP's own": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin 100": {"GOMP_SPINCOUNT": "100"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "spin 100000": {"GOMP_SPINCOUNT": "100000"},
}
SPIN = "while True: pass"
IMAGES = 32
"""Of a step."""


def busy(settings: BusySettings) -> None:
    """Measure every way beside every number of busy processes, print images/s, and write the JSON."""
    out = text_stream(settings.json)
    report = describe(settings, check(settings))
    print_machine(report, out)
    rates: dict[str, dict[int, list[float]]] = {way: {count: [] for count in settings.busy} for way in WAYS}
    with ExitStack() as stack:
        trainings = {way: stack.enter_context(_training(settings, variables)) for way, variables in WAYS.items()}
        for _ in range(settings.repeats):
            for count in settings.busy:
                with _busy_processes(count):
                    for way, training in trainings.items():
                        rates[way][count].append(_rate(training, settings.seconds))
    report |= {"rates": rates, "ours": VARIABLES}
    print(f"busy      the demo's network, {IMAGES} images, images/s and their ratio to the first row's\n", file=out)
    print_table(
        ("threads wait", *(f"{count} busy" for count in settings.busy)),
        [[way, *(_cell(rates, way, count) for count in settings.busy)] for way in WAYS],
        out,
    )
    write_json(report, settings.json)


def _cell(rates: dict[str, dict[int, list[float]]], way: str, count: int) -> str:
    """Median, and the median of the ratios to the first way in the same turn."""
    first = rates[next(iter(rates))][count]
    ratios = [rate / own for rate, own in zip(rates[way][count], first, strict=True)]
    return f"{statistics.median(rates[way][count]):.1f} ({statistics.median(ratios):.2f})"


@contextmanager
def _training(settings: BusySettings, variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    plain = {key: value for key, value in environment().items() if not key.startswith(("OMP_", "GOMP_"))}
    # torch first: whoever imports swin_mim first is given its variables
    program = "import torch; from tools.bench.commands.busy import train; train()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=plain | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _ask(process, str(settings.threads or len(os.sched_getaffinity(0))))
            yield process
        finally:
            process.kill()


def _ask(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"the training ended with exit code {process.wait()}")
    return answer


def _rate(training: subprocess.Popen[str], seconds: float) -> float:
    """Images per second."""
    return float(_ask(training, str(seconds)))


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def train() -> None:
    """Be a training: its threads on the first line of the input, then a number of seconds a line -> images/s a line."""
    torch.set_num_threads(int(sys.stdin.readline()))
    torch.manual_seed(0)
    # as recipes/configs/demo.yaml has it
    config = SwinConfig.named("swin_nano", image_size=64, window_size=8, embed_dim=48, depths=(2, 4), num_heads=(4, 8))
    model = SimMIM(config).train()
    contestant = enter(System(model, lambda images, mask: model(images, mask).loss), "eager")
    batch = random_batch(config, IMAGES, 0, torch.device("cpu"))
    for _ in range(3):
        train_step(contestant, batch, "fp32")
    print("ready", flush=True)
    for line in sys.stdin:
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < float(line):
            train_step(contestant, batch, "fp32")
            steps += 1
        print(steps * IMAGES / (time.perf_counter() - start), flush=True)
