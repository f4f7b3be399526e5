"""tools/bench.py at a tiny size: what it reports, and what it refuses. No figure of this machine is checked."""

import contextlib
import importlib
import io
import json
import statistics
import sys
from pathlib import Path

import pytest
import torch

from swin_mim import SimMIM, SwinConfig

BENCH = Path(__file__).parents[2] / "tools" / "bench.py"
TINY = [
    *("step", "--model", "swin_nano", "--image-size", "64", "--window-size", "2", "--batch", "2"),
    *("--device", "cpu", "--threads", "1", "--warmup", "1"),
]
ALL = ("ours", "timm", "transformers", "torchvision", "microsoft")
QUANTITIES = {
    *("images_per_second", "relative_to_best_peer", "seconds_per_step", "seconds", "spread"),
    *("peak_memory_gb", "parameters", "tflops"),
}


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH.parent))  # as when it is started as a script
    try:
        return importlib.import_module("bench")
    finally:
        sys.path.remove(str(BENCH.parent))


@pytest.fixture(scope="module", autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(bench, tmp_path_factory):
    """Output and report of one run of every system that needs no checkout."""
    file = tmp_path_factory.mktemp("bench") / "step.json"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        bench.main([*TINY, "--repeats", "2", "--steps", "2", "--json", str(file)])
    return output.getvalue(), json.loads(file.read_text())


def test_every_system_is_measured_or_named(run):
    output, report = run
    assert set(report["results"]) == {"ours", "timm", "transformers", "torchvision"}
    assert set(report["not_measured"]) == {"microsoft"}
    assert "--microsoft" in report["not_measured"]["microsoft"]
    rows = output.split("\nsystem ", 1)[1].splitlines()[1:6]
    assert [row.split()[0] for row in rows] == list(ALL)
    assert len({row.index(".") for row in rows[:4]}) == 1  # columns stand below each other
    assert "not measured" in rows[4]


def test_report_says_where_and_how(run):
    output, report = run
    assert set(report) == {
        *("machine", "versions", "settings", "parity", "flops_per_step", "not_measured", "results"),
    }
    assert report["machine"]["threads"] == 1
    assert report["machine"]["name"] in output
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert report["settings"]["batch"] == 2
    assert report["settings"]["systems"] == list(ALL)


def test_numbers_follow_from_the_seconds(run):
    _, report = run
    best_peer = min(r["seconds_per_step"] for name, r in report["results"].items() if name != "ours")
    for result in report["results"].values():
        assert set(result) == QUANTITIES
        seconds, median = result["seconds"], statistics.median(result["seconds"])
        assert len(seconds) == 2
        assert min(seconds) > 0
        assert result["seconds_per_step"] == median
        assert result["images_per_second"] == pytest.approx(2 / median)
        assert result["relative_to_best_peer"] == pytest.approx(best_peer / median)
        assert result["spread"] == pytest.approx((max(seconds) - min(seconds)) / median)
        assert result["tflops"] == pytest.approx(report["flops_per_step"] / median / 1e12)


def test_all_do_the_same_work(run):
    _, report = run
    ours = report["parity"]["ours"]
    for peer in ("timm", "transformers", "torchvision"):
        assert report["parity"][peer]["loss"] == pytest.approx(ours["loss"], abs=1e-5)
        assert report["parity"][peer]["gradient_norm"] == pytest.approx(ours["gradient_norm"], rel=1e-4)
    config = SwinConfig.named("swin_nano", image_size=64, window_size=2)
    expected = sum(p.numel() for p in SimMIM(config).parameters())
    assert {r["parameters"] for r in report["results"].values()} == {expected}


def test_a_system_that_computes_something_else_is_left_out(bench):
    settings = bench.parse([*TINY, "--systems", "ours,timm"])
    config, device = bench.check(settings)
    batch = bench.random_batch(config, 2, 0, device)
    systems, _ = bench.build(config, settings, device)
    probes = {name: bench.probe(system, batch) for name, system in systems.items()}
    assert bench.disagreeing(probes) == {}
    for module in systems["timm"].model.modules():
        if getattr(module, "shift_size", (0, 0)) != (0, 0) and hasattr(module, "attn_mask"):
            module.attn_mask.zero_()  # a Swin whose shifted windows see across the border of the image
    probes["timm"] = bench.probe(systems["timm"], batch)
    assert "not the same work" in bench.disagreeing(probes)["timm"]
    assert bench.disagreeing({"ours": bench.Probe(1.0, 1.0), "timm": bench.Probe(float("nan"), 1.0)})


def test_flops_are_those_of_the_products(bench):
    """Against a count by hand of one block: 2 per multiply-add, and twice the forward for the backward."""
    config = SwinConfig(32, embed_dim=32, depths=(1,), num_heads=(1,), window_size=4)
    tokens, dim, area, pixels = 64, 32, 16, 48
    patches = tokens * pixels * dim
    linear = tokens * (12 * dim * dim + dim * pixels)  # qkv 3, proj 1, mlp 8; decoder
    attention = 2 * tokens * area * dim
    # the images need no gradient: only the weights' half of the patch embedding's backward
    expected = 2 * (3 * (linear + attention) + 2 * patches)
    assert bench.flops_per_step(config, 1) == expected
    assert bench.flops_per_step(config, 3) == 3 * expected


def test_one_system_alone_measures_its_memory(bench, capsys):
    bench.main([*TINY, "--systems", "ours", "--repeats", "1", "--json", "-"])
    captured = capsys.readouterr()
    result = json.loads(captured.out)["results"]["ours"]  # nothing but JSON on stdout
    assert result["relative_to_best_peer"] is None
    assert 0.05 < result["peak_memory_gb"] < 20
    assert "images/s" in captured.err


def test_memory_of_each_system_is_that_of_its_own_process(bench):
    (peak,) = bench.peaks_of_children(["ours"], [*TINY, "--systems", "ours,timm", "--memory"]).values()
    assert 0.05 < peak < 20


def test_microsoft_is_imported_from_the_checkout_alone(bench, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    (models / "__init__.py").write_text("raise AssertionError('needs yacs')")
    (models / "parts.py").write_text("from torch import nn\nclass Encoder(nn.Linear): pass")
    (models / "simmim.py").write_text(
        "from .parts import Encoder\n"
        "def SwinTransformerForSimMIM(**_): return Encoder(2, 2)\n"
        "def SimMIM(encoder, encoder_stride): return encoder\n"
    )
    path = list(sys.path)
    settings = bench.parse([*TINY, "--systems", "microsoft", "--microsoft", str(tmp_path)])
    systems, not_measured = bench.build(*bench.check(settings)[:1], settings, torch.device("cpu"))
    assert not systems
    assert "not the same network" in not_measured["microsoft"]
    assert sys.path == path
    assert "models" not in sys.modules
    for name in [name for name in sys.modules if name.startswith("microsoft_simmim")]:
        del sys.modules[name]


def test_a_peer_that_is_missing_is_not_installed(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    settings = bench.parse([*TINY, "--systems", "timm"])
    config, device = bench.check(settings)
    assert bench.build(config, settings, device) == ({}, {"timm": "not installed"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--systems", "ours,tim"], ["'tim'", "timm"]),
        (["--microsoft", "/nowhere"], ["/nowhere", "models/simmim.py", "github.com/microsoft/SimMIM"]),
        (["--model", "swin_tyni"], ["swin_tyni", "swin_tiny"]),
        (["--image-size", "40"], ["40", "32"]),
        (["--batch", "0"], ["--batch 0", "1"]),
        (["--batch", "many"], ["--batch", "many"]),
        (["--precision", "fp8"], ["fp8", "bf16"]),
        (["--warmup", "0", "--compile"], ["--compile", "--warmup 0"]),
        (["--device", "tpu"], ["tpu", "cuda"]),
        (["--device", "cuda:99"], ["cuda:99", "CUDA devices"]),
        (["--fast"], ["--fast"]),
    ],
)
def test_bad_input_is_one_line(bench, capsys, options, words):
    with pytest.raises(SystemExit) as left:
        bench.main([*TINY, *options])
    captured = capsys.readouterr()
    assert left.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert all(word in captured.err for word in words), captured.err
