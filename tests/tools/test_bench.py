"""python -m tools.bench: its command line, its clock and its ceilings. No figure of this machine is checked."""

import argparse
import json
import sys

import pytest
import torch

TINY = ["--model", "swin_nano", "--image-size", "64", "--window-size", "2", "--batch", "2", "--device", "cpu"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--systems", "ours,tim"], ["'tim'", "timm"]),
        (["--microsoft", "/nowhere"], ["/nowhere", "models/simmim.py", "github.com/microsoft/SimMIM"]),
        (["--model", "swin_tyni"], ["swin_tyni", "swin_tiny"]),
        (["--image-size", "40"], ["40", "32"]),
        (["--batch", "4,0"], ["--batch 0", "1"]),
        (["--batch", "many"], ["--batch", "many"]),
        (["--precision", "fp8"], ["fp8", "bf16"]),
        (["--modes", "eager,fast"], ["'fast'", "compiled"]),
        (["--warmup", "0", "--modes", "compiled"], ["compiled", "--warmup 0"]),
        (["--breakdown", "--systems", "timm"], ["--breakdown", "ours"]),
        (["--breakdown", "--no-ceilings"], ["--breakdown", "--no-ceilings"]),
        (["--device", "tpu"], ["tpu", "cuda"]),
        (["--device", "cuda:99"], ["cuda:99", "CUDA devices"]),
        (["--fast"], ["--fast"]),
        (["--", "--run.name", "x"], ["--", "step"]),
    ],
)
def test_bad_input_of_step_is_one_line(bench, capsys, options, words):
    refuses(bench, capsys, ["step", *TINY, *options], words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["command"]),
        (["walk"], ["walk", "attention"]),
        (["attention", *TINY, "--systems", "timm"], ["timm", "ours"]),
        (["attention", *TINY, "--repeats", "0"], ["--repeats 0"]),
        (["curves", *TINY, "--backends", "reference,flash"], ["'flash'", "sdpa"]),
        (["loader", "--images", "64", "--batch", "32", "--workers", "2"], ["--images 64", "96"]),
        (["loader", "--workers", "-1"], ["--workers", "-1"]),
        (["loader", "--systems", "ours,theirs"], ["'theirs'", "ours-raw"]),
        (["loader", "--sizes", "500x375,9000x10"], ["--sizes", "9000x10", "5000x2500"]),
        (["loader", "--sizes", "big"], ["'big'", "500x375"]),
        (["train", "--warmup", "0"], ["--warmup 0"]),
        (["train", "--", "--model.nmae", "x"], ["model.nmae", "model.name"]),
    ],
)
def test_bad_input_of_the_others_is_one_line(bench, capsys, arguments, words):
    refuses(bench, capsys, arguments, words)


def refuses(bench, capsys, arguments, words):
    with pytest.raises(SystemExit) as left:
        bench.main(arguments)
    captured = capsys.readouterr()
    assert left.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert all(word in captured.err for word in words), captured.err


def test_lists_keep_the_order_of_what_is_known(bench):
    _, settings = bench.parse(
        ["step", *TINY, "--systems", "timm,ours", "--modes", "compiled,eager", "--batch", "8,2,8"]
    )
    assert settings.systems == ("ours", "timm")  # parity is with the first
    assert settings.modes == ("eager", "compiled")
    assert settings.batch == (8, 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ceilings_are_rates_of_this_machine(bench, precision):
    seen = bench.ceilings.measure_ceilings(torch.device("cpu"), precision)
    assert seen.matmul_tflops > 0
    assert seen.copy_gb_per_second > 0
    assert precision in seen.matmul
    assert seen.matmul.split(",")[0] in ("torch.mm", "oneDNN")


def test_a_roofline_is_the_slower_of_products_and_copies(bench):
    ceilings = bench.ceilings.Ceilings(2.0, "any", 10.0)
    assert ceilings.seconds(4e12, 0) == 2
    assert ceilings.seconds(4e12, 50e9) == 5


def test_turns_alternate_and_go_on_without_what_fails(bench):
    calls = []

    def turn(name, repeat):
        calls.append((name, repeat))
        if name == "b" and repeat == 1:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB\nand more")
        return 1.0 + repeat

    turns = {name: lambda repeat, name=name: turn(name, repeat) for name in "ab"}
    seconds, failed = bench.timing.take_turns(turns, 3)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)]
    assert seconds == {"a": [1.0, 2.0, 3.0]}
    assert failed["b"].reason == "out of memory: OutOfMemoryError: tried to allocate 9 GiB"
    assert bench.timing.times(seconds["a"]) == (2.0, 1.0, [1.0, 2.0, 3.0])


def test_only_a_lack_of_memory_is_survived_unless_told_otherwise(bench):
    def fail(error):
        raise error

    full = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    assert "out of memory" in bench.timing.attempt(lambda: fail(full)).reason
    with pytest.raises(KeyError):
        bench.timing.attempt(lambda: fail(KeyError("x")))
    assert bench.timing.attempt(lambda: fail(KeyError("x")), otherwise="fails").reason == "fails: KeyError: 'x'"


def test_a_table_stands_below_each_other(bench, capsys):
    rows = [["a", "1.0", "22"], ["a long name", "not measured: because"], ["b", "100.0", "2"]]
    bench.report.print_table(["what", "x", "y"], rows, sys.stdout)
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines if "because" not in line}) == 1
    assert lines[2].startswith("a long name  not measured")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing/a.json", "a.json: there is no folder"),
        ("", "is a folder: name a file"),
        ("a_file/b.json", "there is no folder"),
    ],
)
def test_json_that_could_not_be_written_is_a_mistake_of_the_command(bench, tmp_path, capsys, place, message):
    from swin_mim.cli.options import add_json_option

    (tmp_path / "a_file").touch()
    parser = argparse.ArgumentParser()
    add_json_option(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--json", str(tmp_path / place)])
    assert message in capsys.readouterr().err
    assert parser.parse_args(["--json", str(tmp_path / "new.json")]).json == str(tmp_path / "new.json")
    assert (parser.parse_args(["--json", "-"]).json, parser.parse_args([]).json) == ("-", None)


def test_json_that_cannot_be_written_is_said(bench, tmp_path, capsys):
    from swin_mim.cli.options import write_json

    write_json({"a": 1}, None)
    write_json({"a": 1}, "-")
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    write_json({"a": 1}, str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    with pytest.raises(ValueError, match=r"^cannot write --json .*missing"):
        write_json({}, str(tmp_path / "missing" / "a.json"))
