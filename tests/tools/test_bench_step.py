"""`python -m tools.bench step` at a tiny size: what it reports of whom, and where a step goes."""

import contextlib
import io
import json
import statistics
import sys

import pytest
import torch
from PIL import Image

from swin_mim import SimMIM, SwinConfig
from swin_mim.errors import UserError

TINY = [
    *("step", "--model", "swin_nano", "--image-size", "64", "--window-size", "2", "--batch", "2"),
    *("--device", "cpu", "--threads", "1", "--warmup", "1", "--repeats", "1"),
]
ALL = ("ours", "timm", "transformers", "torchvision", "microsoft")
QUANTITIES = {
    *("images_per_second", "relative_to_best_peer", "seconds_per_step", "seconds", "spread", "first_step_seconds"),
    *("peak_memory_gb", "kept_gb", "parameters", "tflops", "share_of_matmul_ceiling"),
}


@pytest.fixture(scope="module")
def run(bench_modules, tmp_path_factory):
    """Output and report of one run of every system that needs no checkout."""
    file = tmp_path_factory.mktemp("bench") / "step.json"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        bench_modules.main([*TINY, "--repeats", "2", "--breakdown", "--json", str(file)])
    return output.getvalue(), json.loads(file.read_text())


@pytest.fixture
def not_compiled(bench, monkeypatch):
    """A compiled system is the plain one: the compiler takes minutes."""
    monkeypatch.setattr(bench.training, "compile_system", lambda model: None)


def test_every_system_is_measured_or_named(run):
    output, report = run
    (table,) = report["batches"]
    assert set(table["results"]) == {"ours", "timm", "transformers", "torchvision"}
    assert set(table["not_measured"]) == {"microsoft"}
    assert "--microsoft" in table["not_measured"]["microsoft"]
    rows = output.split("\nsystem ", 1)[1].splitlines()[1:6]
    assert [row.split()[0] for row in rows] == list(ALL)
    assert "not measured" in rows[4]


def test_report_says_where_and_how(run):
    output, report = run
    assert set(report) == {
        *("machine", "versions", "date", "settings", "parity", "attention", "ceilings", "batches", "breakdown"),
    }
    assert report["machine"]["threads"] == 1
    assert report["machine"]["name"] in output
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert report["settings"]["batch"] == [2]
    assert report["settings"]["systems"] == list(ALL)
    assert report["ceilings"]["matmul"] in output
    assert report["attention"] in ("native", "chunked")  # what auto is on a CPU, with a compiler and without
    assert f"attention {report['attention']} (ours)" in output


def test_numbers_follow_from_the_seconds(run):
    _, report = run
    (table,) = report["batches"]
    best_peer = min(r["seconds_per_step"] for name, r in table["results"].items() if name != "ours")
    for result in table["results"].values():
        assert set(result) == QUANTITIES
        seconds, median = result["seconds"], statistics.median(result["seconds"])
        assert len(seconds) == 2
        assert min(seconds) > 0
        assert result["seconds_per_step"] == median
        assert result["images_per_second"] == pytest.approx(2 / median)
        assert result["relative_to_best_peer"] == {"eager": pytest.approx(best_peer / median), "compiled": None}
        assert result["spread"] == pytest.approx((max(seconds) - min(seconds)) / median)
        assert result["tflops"] == pytest.approx(table["flops_per_step"] / median / 1e12)
        share = result["tflops"] / report["ceilings"]["matmul_tflops"]
        assert result["share_of_matmul_ceiling"] == pytest.approx(share)


def test_all_do_the_same_work(run):
    _, report = run
    ours = report["parity"]["ours"]
    for peer in ("timm", "transformers", "torchvision"):
        assert report["parity"][peer]["loss"] == pytest.approx(ours["loss"], abs=1e-5)
        assert report["parity"][peer]["gradient_norm"] == pytest.approx(ours["gradient_norm"], rel=1e-4)
    config = SwinConfig.named("swin_nano", image_size=64, window_size=2)
    expected = sum(p.numel() for p in SimMIM(config).parameters())
    assert {r["parameters"] for r in report["batches"][0]["results"].values()} == {expected}


def test_a_breakdown_adds_up_to_the_step(run):
    output, report = run
    (found,) = report["breakdown"]
    parts = found["parts"]
    assert found["step_seconds"] == report["batches"][0]["results"]["ours"]["seconds_per_step"]
    counted = list(parts.values())
    assert sum(part["flops"] for part in counted) == report["batches"][0]["flops_per_step"]
    together = sum(part["seconds"] for part in counted)
    assert together + found["rest"]["seconds"] == pytest.approx(found["step_seconds"])
    seconds = [part["seconds"] for part in parts.values()]
    assert seconds == sorted(seconds, reverse=True)
    by_stage = sum(row["seconds"] for row in found["by_stage"])
    assert by_stage == pytest.approx(sum(seconds))
    for name, part in parts.items():
        assert part["share_of_roofline"] == pytest.approx(part["roofline_seconds"] / part["seconds"]), name
        assert part["bytes"] > 0
        assert name in output


def test_a_breakdown_in_pieces_is_the_whole_one(run, bench_modules):
    _, report = run
    (whole,) = report["breakdown"]
    assert whole["places"] == list(bench_modules.settings.PLACES)
    ceilings = bench_modules.ceilings.Ceilings(**report["ceilings"])
    pieces = [(of_place(whole, place), ceilings) for place in whole["places"]]
    assert all(piece["by_stage"] for piece, _ in pieces)
    found = bench_modules.breakdown.joined(pieces)
    assert {key: found[key] for key in ("mode", "batch", "places", "step_seconds")} == {
        key: whole[key] for key in ("mode", "batch", "places", "step_seconds")
    }
    assert list(found["parts"]) == list(whole["parts"])
    for name, part in found["parts"].items():
        assert part == pytest.approx(whole["parts"][name])


def of_place(whole, place):
    stage = None if place == "rest" else int(place.removeprefix("stage")) - 1
    rows = [row for row in whole["by_stage"] if row["stage"] == stage]
    return whole | {"by_stage": rows, "places": [place], "parts": {}}


def test_a_breakdown_of_one_place_has_no_other(report_of):
    report, tables = report_of(*TINY, "--systems", "ours", "--breakdown", "--places", "stage4")
    (found,) = report["breakdown"]
    assert {row["stage"] for row in found["by_stage"]} == {3}
    assert found["places"] == ["stage4"]
    assert "optimizer" not in tables


def test_the_parts_of_a_breakdown_hold_every_parameter(bench):
    config = SwinConfig.named("swin_nano", image_size=64, window_size=3)  # padded, and shifted
    model = SimMIM(config)
    batch = bench.training.random_batch(config, 2, 0, torch.device("cpu"))
    parts = list(bench.breakdown.parts_of(model, batch))
    held = sum(part.count * sum(p.numel() for p in part.module.parameters()) for part in parts)
    assert held == sum(p.numel() for p in model.parameters())
    flops = sum(bench.breakdown.flops_of(part) for part in bench.breakdown.meta_parts(model, batch))
    assert flops == bench.training.flops_per_step(config, 2)


def test_a_norm_that_a_layer_does_belongs_to_its_part(bench):
    class Normed(torch.nn.Linear):
        def forward(self, x, norm=None):
            return super().forward(x if norm is None else norm(x))

    layer, norm, x = Normed(8, 4), torch.nn.LayerNorm(8), torch.randn(3, 8)
    torch.nn.init.normal_(norm.weight)
    call = bench.breakdown.Call(x, (norm,), layer(x, norm))
    part = bench.breakdown.called("qkv", 0, 2, layer, {layer: call})
    assert part.name == "norm, qkv"
    assert torch.equal(part.module(x), layer(x, norm))
    assert sum(p.numel() for p in part.module.parameters()) == 8 * 4 + 4 + 2 * 8
    assert torch.equal(bench.breakdown.without_norm(layer)(x), layer(x))


def test_attention_without_projections_is_the_middle_of_the_module(bench):
    config = SwinConfig.named("swin_nano", image_size=64, window_size=3)
    attention = SimMIM(config).encoder.layers[0].blocks[1].attn
    torch.nn.init.normal_(attention.qkv.bias)  # what padded positions hold
    middle = bench.breakdown.without_projections(attention)
    x = torch.randn(2, 16, 16, 48)
    assert torch.equal(attention.proj(middle(attention.qkv(x))), bench.breakdown.without_norm(attention)(x))
    assert isinstance(attention.qkv, torch.nn.Linear)  # the module itself is as it was


@pytest.mark.slow
def test_modes_and_batches_are_rows_and_tables(bench, report_of, not_compiled):
    report, tables = report_of(*TINY, "--systems", "ours,timm", "--modes", "eager,compiled", "--batch", "2,1")
    assert [table["batch"] for table in report["batches"]] == [2, 1]
    for table in report["batches"]:
        assert list(table["results"]) == ["ours", "timm", "ours compiled", "timm compiled"]
        relative = table["results"]["ours compiled"]["relative_to_best_peer"]
        median = {name: result["seconds_per_step"] for name, result in table["results"].items()}
        assert relative["eager"] == pytest.approx(median["timm"] / median["ours compiled"])
        assert relative["compiled"] == pytest.approx(median["timm compiled"] / median["ours compiled"])
    assert report["batches"][0]["flops_per_step"] == 2 * report["batches"][1]["flops_per_step"]
    assert tables.count("\ntimm compiled ") == 2


def test_what_does_not_compile_is_named_and_the_rest_goes_on(bench, report_of, monkeypatch):
    def no_compiler(*_):
        raise RuntimeError("no compiler\nsome advice")

    monkeypatch.setattr(bench.training, "compile_system", lambda model: model.register_forward_pre_hook(no_compiler))
    report, tables = report_of(*TINY, "--systems", "ours", "--modes", "eager,compiled")
    (table,) = report["batches"]
    assert table["not_measured"] == {"ours compiled": "does not compile: RuntimeError: no compiler"}
    assert list(table["results"]) == ["ours"]
    assert "does not compile" in tables


@pytest.mark.slow
def test_a_batch_too_large_for_one_is_measured_for_the_others(bench, report_of, monkeypatch):
    def too_large(model, inputs):
        if len(inputs[0]) == 3:
            raise torch.OutOfMemoryError("3 images are too many")

    def build(*arguments):
        systems, failed = bench.peers.build(*arguments)
        systems["timm"].model.register_forward_pre_hook(too_large)
        return systems, failed

    monkeypatch.setattr(bench.step, "build", build)
    report, _ = report_of(*TINY, "--systems", "ours,timm", "--batch", "3,1", "--no-ceilings")
    large, small = report["batches"]
    assert "out of memory" in large["not_measured"]["timm"]
    assert set(large["results"]) == {"ours"}
    assert set(small["results"]) == {"ours", "timm"}
    assert report["ceilings"] is None


def test_a_system_that_computes_something_else_is_left_out(bench, monkeypatch):
    _, settings = bench.parse([*TINY, "--systems", "ours,timm"])
    config, device = bench.step.check_step(settings)
    assert set(bench.step.enter_all(config, settings, device)[0]) == {"ours", "timm"}

    def build(*arguments):
        systems, failed = bench.peers.build(*arguments)
        for module in systems["timm"].model.modules():
            if getattr(module, "shift_size", (0, 0)) != (0, 0) and hasattr(module, "attn_mask"):
                module.attn_mask.zero_()  # a Swin whose shifted windows see across the border of the image
        return systems, failed

    monkeypatch.setattr(bench.step, "build", build)
    contestants, failed, _ = bench.step.enter_all(config, settings, device)
    assert set(contestants) == {"ours"}
    assert "not the same work" in failed["timm"].reason
    nan = {"ours": bench.step.Probe(1.0, 1.0), "timm": bench.step.Probe(float("nan"), 1.0)}
    assert set(bench.step.disagreeing(nan)) == {"timm"}
    assert set(bench.step.other_losses({"ours": 1.0, "timm": 1.001, "timm compiled": 1.5})) == {"timm compiled"}


def test_flops_are_those_of_the_products(bench):
    """Against a count by hand of one block: 2 per multiply-add, and twice the forward for the backward."""
    config = SwinConfig(32, embed_dim=32, depths=(1,), num_heads=(1,), window_size=4)
    tokens, dim, area, pixels = 64, 32, 16, 48
    patches = tokens * pixels * dim
    masked = 39  # of 64 cells, at 60 %: no others are decoded
    linear = tokens * 12 * dim * dim + masked * dim * pixels  # qkv 3, proj 1, mlp 8; decoder
    attention = 2 * tokens * area * dim
    # the images need no gradient: only the weights' half of the patch embedding's backward
    expected = 2 * (3 * (linear + attention) + 2 * patches)
    assert bench.training.flops_per_step(config, 1) == expected
    assert bench.training.flops_per_step(config, 3) == 3 * expected


def test_a_report_becomes_a_picture(run, bench_modules, tmp_path, capsys):
    _, report = run
    file, picture = tmp_path / "step.json", tmp_path / "step.png"
    file.write_text(json.dumps(report))
    bench_modules.picture.main([str(file), str(picture)])
    with Image.open(picture) as image:
        assert min(image.size) > 300
    file.write_text(json.dumps({key: value for key, value in report.items() if key != "breakdown"}))
    with pytest.raises(UserError, match="has no breakdown: make it with"):
        bench_modules.picture.main([str(file), str(picture)])


@pytest.mark.slow
def test_what_is_kept_for_the_backward_pass(report_of):
    plain, again = (
        report_of(*TINY, "--systems", "ours,timm", *flags)[0]["batches"][0]["results"]
        for flags in ([], ["--activation-checkpointing"])
    )
    for name in ("ours", "timm"):
        assert plain[name]["kept_gb"] > 2 * again[name]["kept_gb"] > 0


def test_one_system_alone_measures_its_memory(report_of):
    report, tables = report_of(*TINY, "--systems", "ours")  # nothing but JSON on stdout
    result = report["batches"][0]["results"]["ours"]
    assert result["relative_to_best_peer"] == {"eager": None, "compiled": None}
    assert 0.05 < result["peak_memory_gb"] < 20
    assert "images/s" in tables


@pytest.mark.slow
def test_memory_of_each_system_is_that_of_its_own_process(bench):
    arguments = [*TINY, "--systems", "ours,timm", "--memory"]
    peak = bench.memory.peak_of_child("ours", "eager", 2, arguments)
    assert 0.05 < peak < 20


def test_a_process_that_does_not_live_costs_only_its_system(bench, monkeypatch):
    _, settings = bench.parse([*TINY, "--systems", "ours,timm", "--memory"])
    failed = bench.timing.Failed("killed")
    monkeypatch.setattr(bench.memory, "peak_of_child", lambda system, *_: failed if system == "timm" else 1.5)
    assert bench.memory.in_children(settings)
    assert bench.memory.peaks_of_children(settings, []) == ({2: {"ours": 1.5}}, {2: {"timm": failed}})


def test_microsoft_is_imported_from_the_checkout_alone(bench, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    (models / "__init__.py").write_text("raise AssertionError('needs yacs')")
    (models / "parts.py").write_text("from torch import nn\nclass Encoder(nn.Linear): pass")
    (models / "swin_transformer.py").touch()
    (models / "simmim.py").write_text(
        "from .parts import Encoder\n"
        "def SwinTransformerForSimMIM(**_): return Encoder(2, 2)\n"
        "def SimMIM(encoder, encoder_stride): return encoder\n"
    )
    path = list(sys.path)
    _, settings = bench.parse([*TINY, "--systems", "microsoft", "--microsoft", str(tmp_path)])
    systems, failed = build(bench, settings)
    assert not systems
    assert "not the same network" in failed["microsoft"].reason
    assert sys.path == path
    assert "models" not in sys.modules
    for name in [name for name in sys.modules if name.startswith("microsoft_simmim")]:
        del sys.modules[name]


def test_a_peer_that_is_missing_is_not_installed(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    _, settings = bench.parse([*TINY, "--systems", "timm"])
    assert build(bench, settings) == ({}, {"timm": bench.timing.Failed("not installed")})


def build(bench, settings):
    config = bench.settings.check_model(settings)
    return bench.peers.build(config, bench.peers.random_weights(config), settings, torch.device("cpu"))
