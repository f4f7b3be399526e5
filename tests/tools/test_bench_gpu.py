"""Loss curves of backends, and the one script for a GPU machine, on a CPU."""

import contextlib
import io
import json
import time

import pytest
import torch

TINY = ["--model", "swin_nano", "--image-size", "64", "--window-size", "2", "--batch", "2", "--threads", "1"]


def test_curves_of_backends_agree_and_fall(report_of):
    report, tables = report_of("curves", *TINY, "--device", "cpu", "--steps", "6", "--backends", "reference,sdpa")
    losses = report["losses"]
    assert {len(values) for values in losses.values()} == {6}
    assert losses["reference"][-1] < losses["reference"][0]
    assert list(report["differences"]) == ["sdpa"]
    apart = [abs(a - b) for a, b in zip(losses["sdpa"], losses["reference"], strict=True)]
    assert report["differences"]["sdpa"]["max"] == max(apart) < 1e-3
    assert "max difference" in tables


def test_curves_of_equal_backends_are_equal(bench):
    _, settings = bench.parse(["curves", *TINY, "--device", "cpu"])
    config, device = bench.settings.check_model(settings), bench.settings.check(settings)
    once, again = (bench.curves.curve(config, "reference", 2, 3, "fp32", device) for _ in range(2))
    assert once == again
    assert bench.curves.difference(once, again) == {"max": 0, "mean": 0, "max_relative": 0}
    other = [*once[:2], once[2] + 0.5]
    assert bench.curves.difference(other, once)["max"] == pytest.approx(0.5)


@pytest.fixture
def in_this_process(bench, monkeypatch):
    """Calls of `tools.bench` without a process for each; returns the names of the commands that were called."""
    called = []

    def call(command, deadline, variables=None):
        called.append(command[3])
        with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
            try:
                bench.main(command[3:])
            except SystemExit as left:
                return left.code, output.getvalue()
        return 0, output.getvalue()

    monkeypatch.setattr(bench.gpu, "call", call)
    return called


@pytest.mark.slow
def test_the_gpu_script_runs_dry_and_goes_on_where_it_stopped(bench, in_this_process, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        bench.gpu.main([str(tmp_path), "--dry", "--minutes", "0"])
    assert left.value.code == 75
    assert in_this_process == []
    bench.gpu.main([str(tmp_path), "--dry", "--only", "curves*"])
    bench.gpu.main([str(tmp_path), "--dry"])
    assert in_this_process == ["curves", "curves", "step", "attention", "step"]
    bench.gpu.main([str(tmp_path), "--dry"])
    assert len(in_this_process) == 5
    names = {file.stem for file in tmp_path.glob("*.json")}
    label = "swin_nano_64_w2"
    assert names == {
        *("environment", "parity", f"breakdown_{label}", f"attention_{label}", f"step_{label}_b2", f"curves_{label}"),
    }
    assert not list(tmp_path.glob("*.unfinished"))
    table = (tmp_path / "table.md").read_text()
    assert "| swin_nano, 64 px, window 2 | **" in table
    assert "| swin_nano, 64 px, window 2 | 2 | transformers |" in table
    assert "not measured: name a checkout" in table
    assert "sdpa at most" in table
    assert "table.md" in capsys.readouterr().out


def test_a_part_that_fails_is_named_and_the_others_go_on(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.gpu, "call", lambda command, *_: (2, "some lines\nerror: no such thing"))
    with pytest.raises(SystemExit):
        bench.gpu.main([str(tmp_path), "--dry"])
    output = capsys.readouterr().out
    assert output.count("FAILED: error: no such thing") == 5
    assert "5 parts are left" in output
    assert (tmp_path / "parity.log").read_text().startswith("some lines")


def test_a_call_ends_at_the_deadline(bench):
    code, text = bench.gpu.call(["sh", "-c", "echo begun; sleep 60"], time.monotonic() + 0.5)
    assert code is None
    assert text == "begun\n"
    assert bench.gpu.call(["sh", "-c", "echo $A; exit 3"], time.monotonic() + 60, {"A": "b"}) == (3, "b\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(bench, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        bench.gpu.main([str(tmp_path)])
    assert left.value.code == 2
    assert "--dry" in capsys.readouterr().err


def test_what_a_gpu_is_to_show_is_all_there(bench):
    parts = bench.gpu.parts_of(bench.gpu.GPU, "/checkout")
    names = [part.name for part in parts]
    assert len(names) == len(set(names)) == 1 + 1 + 6 + 24 + 1
    for part in parts:
        command, settings = bench.parse([*part.arguments, "--json", "x"])
        assert settings.device == "cuda"
        if command == "step" and not settings.breakdown:
            assert settings.modes == ("eager", "compiled")
            assert settings.microsoft == "/checkout"
    steps = next(part for part in parts if part.name == "step_swin_base_224_w7_b1024")
    assert json.dumps(steps.arguments).count("1024") == 1
