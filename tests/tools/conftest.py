"""The benchmark's modules, as they are imported when it is started as a script, with ceilings that take no time."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"
NAMES = (
    *("attention", "breakdown", "ceilings", "curves", "decoders", "gpu", "images", "loader", "memory", "peers"),
    *("picture", "report", "settings", "step", "timing", "train", "training"),
)


@pytest.fixture(scope="session")
def bench_modules():
    sys.path.insert(0, str(TOOLS))
    try:
        modules = {name: importlib.import_module(f"bench_{name}") for name in NAMES}
        modules["main"] = importlib.import_module("bench").main
        modules["parse"] = importlib.import_module("bench").parse
    finally:
        sys.path.remove(str(TOOLS))
    modules["ceilings"].SIDES = {"cpu": (64, 128)}
    modules["ceilings"].COPY_BYTES = {"cpu": 1 << 20}
    return SimpleNamespace(**modules)


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
