"""python -m tools.bench scaling: its formulas, its limits, its exponents, its picture."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from swin_mim import SwinConfig
from swin_mim.models.blocks.window_attention import resolve_backend
from tools.bench import picture
from tools.bench.__main__ import main, parse
from tools.bench.commands import scaling
from tools.bench.settings import LAYERS, NETWORKS
from tools.clone import ROOT, environment

TINY = [
    *("scaling", "--model", "swin_nano", "--window-size", "2", "--image-sizes", "64,32", "--device", "cpu"),
    *("--threads", "1", "--repeats", "1"),
]


@pytest.fixture
def settings():
    threads = torch.get_num_threads()
    yield parse(TINY)[1]
    torch.set_num_threads(threads)


def points(series, seconds, memory, sizes=(128, 256, 512, 1024)):
    """As they stand in the JSON, with functions of the number of tokens."""
    return [
        {
            "series": series,
            "image_size": size,
            "tokens": (size // 4) ** 2,
            "multiply_adds": 10 * (size // 4) ** 2,
            "seconds": seconds((size // 4) ** 2),
            "repeats": [1.0],
            "spread": 0.0,
            "memory_gb": memory((size // 4) ** 2),
            "kernel": "any",
        }
        for size in sizes
    ]


@pytest.mark.parametrize("series", LAYERS)
@pytest.mark.parametrize("size", [64, 128])
def test_formulas_are_what_torch_counts(series, size):
    config = SwinConfig.named("swin_tiny", image_size=size, window_size=8)
    assert scaling.multiply_adds(series, config) == scaling.counted(series, config)


def test_a_backward_pass_is_twice_the_forward():
    """Of the rate in the table: six operations a multiply-add."""
    config = SwinConfig.named("swin_nano", image_size=32, window_size=4)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        x = torch.empty(scaling.shape_of("window", config), requires_grad=True)
        y = scaling.model_of("window", config, "reference")(x)
        y.backward(torch.ones_like(y))
    assert counter.get_total_flops() == 6 * scaling.multiply_adds("window", config)


def test_the_vit_is_like_the_stage_of_stride_16():
    config = SwinConfig.named("swin_tiny", image_size=224)
    with torch.device("meta"):
        model, small = scaling.vit(config), timm.create_model("vit_small_patch16_224", num_classes=0)
    count, published = (sum(p.numel() for p in each.parameters()) for each in (model, small))
    assert published - count == 2 * 384  # its class token and the position of that
    assert model.patch_embed.patch_size == (16, 16)


@pytest.mark.parametrize("series", ["window", "global-plain"])
def test_work_grows_as_the_series_says(series):
    small, large = (
        scaling.multiply_adds(series, SwinConfig.named("swin_tiny", image_size=size, window_size=8))
        for size in (512, 1024)
    )
    assert math.log(large / small, 4) == pytest.approx(1 if series == "window" else 2, abs=0.02)


def test_layers_compute_the_same_with_and_without_the_fused_kernel():
    config = SwinConfig.named("swin_nano", image_size=32, window_size=4)
    fused = scaling.model_of("global", config)
    plain = scaling.model_of("global-plain", config)
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(scaling.shape_of("global", config))
    torch.testing.assert_close(fused(x), plain(x))


@pytest.mark.parametrize("series", [*LAYERS, *NETWORKS])
def test_a_point_is_measured(settings, series):
    seen = scaling.measure(series, 32, replace(settings, repeats=2))
    ours = resolve_backend("auto", torch.device("cpu"), 2 * 2, 24)
    kernels = {"window": ours, "swin": ours, "global-plain": "plain operations"}
    assert seen["kernel"] == kernels.get(series, "_scaled_dot_product_flash_attention_for_cpu")
    assert len(seen["repeats"]) == 2
    assert min(seen["repeats"]) > 0
    assert seen["memory_gb"] >= 0
    json.dumps(seen)


def test_repeats_end_when_their_time_is_up(settings):
    seen = scaling.measure("window", 32, replace(settings, repeats=10**6, max_seconds=0.1))
    assert sum(seen["repeats"]) < 5
    assert len(seen["repeats"]) < 10**6


def test_a_series_stops_where_it_would_take_too_long():
    done = points("global", lambda tokens: 1e-3 * tokens, lambda tokens: 1.0, sizes=(128, 256))
    seconds = done[-1]["seconds"]
    assert scaling.reason_to_stop(10**9, [], 1) is None
    assert scaling.reason_to_stop(2 * done[-1]["multiply_adds"], done, 2 * seconds) is None
    reason = scaling.reason_to_stop(4 * done[-1]["multiply_adds"], done, 3 * seconds)
    assert f"about {4 * seconds:.0f} s" in reason
    assert f"--max-seconds {3 * seconds:g}" in reason
    stopped = [*done, {"image_size": 512, "multiply_adds": 1, "not_measured": "any"}]
    assert "512 px" in scaling.reason_to_stop(1, stopped, 100)


def test_exponents_are_slopes_from_256_pixels_on():
    grown = points("global", lambda tokens: 3e-9 * tokens**2, lambda tokens: 1e-6 * tokens)
    grown[0]["seconds"] = 100.0  # 128 pixels do not count
    grown.append({"image_size": 2048, "multiply_adds": 1, "not_measured": "any"})
    found = scaling.exponents(grown)
    assert found == {
        "multiply_adds": pytest.approx(1),
        "seconds": pytest.approx(2),
        "memory_gb": pytest.approx(1),
        "points": 3,
    }
    assert scaling.exponents(grown[:2]) is None


def test_what_was_not_measured_stands_in_the_table(settings, capsys):
    rows = points("global", lambda tokens: 0.5, lambda tokens: 0.25, sizes=(256, 512))
    rows.append({**rows[0], "image_size": 1024, "not_measured": "about 300 s, over --max-seconds 60"})
    scaling.print_series(rows, scaling.exponents(rows), settings, sys.stdout)
    lines = capsys.readouterr().out.splitlines()
    assert "kernel: any" in lines[1]
    assert lines[5].startswith("1024")
    assert "not measured: about 300 s, over --max-seconds 60" in lines[5]
    assert "multiply-adds 1.00, seconds 0.00, memory 0.00" in lines[6]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--image-sizes", "64,132"], ["--image-sizes 132", "multiple of 8", "use 128"]),
        (["--image-sizes", "64,0"], ["--image-sizes 0"]),
        (["--series", "window,local"], ["'local'", "global-plain"]),
        (["--max-gb", "0"], ["--max-gb 0"]),
        (["--max-seconds", "0"], ["--max-seconds 0"]),
        (["--model", "swin_tyni"], ["swin_tyni", "swin_tiny"]),
    ],
)
def test_bad_input_is_one_line(capsys, options, words):
    with pytest.raises(SystemExit) as left:
        main([*TINY, *options])
    said = capsys.readouterr()
    assert left.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert all(word in said.err for word in words), said.err


def test_the_command_measures_from_the_smallest_size_on(settings, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scaling, "in_a_process", scaling.measure)  # in this one: a second less for each
    file = tmp_path / "scaling.json"
    scaling.scaling(replace(settings, series=("window", "global"), json=str(file)))
    said = capsys.readouterr()
    report = json.loads(file.read_text())
    seen = [(p["series"], p["image_size"]) for p in report["points"]]
    assert seen == [("window", 32), ("window", 64), ("global", 32), ("global", 64)]
    assert [p["tokens"] for p in report["points"]] == [64, 256, 64, 256]
    assert report["exponents"] == {"window": None, "global": None}  # both are below 256 pixels
    assert report["versions"]["timm"] != "not installed"
    assert "global, 64 px ..." in said.err
    assert "kernel: _scaled_dot_product_flash_attention_for_cpu" in said.out


@pytest.mark.slow
def test_every_point_is_a_process_and_stops_at_its_memory(tmp_path, capsys):
    file = tmp_path / "scaling.json"
    sizes = ["--series", "global-plain", "--image-sizes", "256,512,520", "--max-gb", "1.5"]
    main([*TINY, *sizes, "--json", str(file)])
    small, large, larger = json.loads(file.read_text())["points"]
    assert 2 * 4 * 4096**2 / 1e9 < small["memory_gb"] < 1.5  # the scores of two heads, once at least
    assert large["not_measured"] == "over --max-gb 1.5"
    assert "512 px" in larger["not_measured"]
    assert "not measured: over --max-gb 1.5" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interruption_is_one_line_and_keeps_what_was_measured(tmp_path):
    file = tmp_path / "scaling.json"
    command = [sys.executable, "-m", "tools.bench", *TINY, "--series", "window", "--json", str(file)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "window, 32 px ...\n"
        assert process.stderr.readline() == "window, 64 px ...\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.stderr.read() == "interrupted\n"
    assert process.returncode == 130
    assert [p["image_size"] for p in json.loads(file.read_text())["points"]] == [32]


@pytest.mark.parametrize("layers", [LAYERS, LAYERS[:1]])
def test_a_report_becomes_a_picture(tmp_path, layers):
    file, drawn = tmp_path / "scaling.json", tmp_path / "scaling.png"
    series = {
        "window": points("window", lambda tokens: 1e-6 * tokens, lambda tokens: 1e-6 * tokens),
        "global": points("global", lambda tokens: 1e-9 * tokens**2, lambda tokens: 1e-6 * tokens, sizes=(128, 256)),
        "global-plain": [{"series": "global-plain", "image_size": 128, "multiply_adds": 1, "not_measured": "any"}],
    }
    report = {
        "machine": {"name": "any", "threads": 1},
        "settings": {"model": "swin_tiny", "precision": "fp32", "image_sizes": [128, 256, 512, 1024]},
        "points": [p for name in layers for p in series[name]],
        "exponents": {name: scaling.exponents(series[name]) for name in layers},
    }
    file.write_text(json.dumps(report))
    picture.main([str(file), str(drawn)])
    with Image.open(drawn) as image:
        assert image.size == (1100, 440)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20
