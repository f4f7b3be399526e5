"""The benchmark's modules, with ceilings that take no time."""

import importlib
import json
from types import SimpleNamespace

import pytest
import torch

COMMANDS = ("attention", "curves", "decoders", "loader", "step", "train")
NAMES = (
    *(f"commands.{name}" for name in COMMANDS),
    *(
        "breakdown",
        "ceilings",
        "images",
        "memory",
        "peers",
        "picture",
        "report",
        "settings",
        "timing",
        "training",
    ),
    *(f"gpu.{name}" for name in ("caches", "kernel_tests", "plan", "results", "running", "table")),
)


@pytest.fixture(scope="session")
def bench_modules():
    modules = {name.rpartition(".")[2]: importlib.import_module(f"tools.bench.{name}") for name in NAMES}
    modules["gpu"] = importlib.import_module("tools.bench.gpu.__main__")
    command = importlib.import_module("tools.bench.__main__")
    modules["ceilings"].SIDES = {"cpu": (64, 128)}
    modules["ceilings"].COPY_BYTES = {"cpu": 1 << 20}
    return SimpleNamespace(**modules, main=command.main, parse=command.parse)


@pytest.fixture
def bench(bench_modules):
    """`bench.main(arguments)`, `bench.parse`, and `bench.step` and so on for the files."""
    threads = torch.get_num_threads()
    yield bench_modules
    torch.set_num_threads(threads)


@pytest.fixture
def report_of(bench, capsys):
    """Runs a command and returns what it wrote to stdout as JSON, and the tables on stderr."""

    def run(*arguments):
        bench.main([*arguments[:1], "--json", "-", *arguments[1:]])
        captured = capsys.readouterr()
        return json.loads(captured.out), captured.err

    return run


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch):
    """Triton's takes minutes for what a benchmark computes, and is none of the backends of a CPU."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
