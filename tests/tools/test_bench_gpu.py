"""Everything for a GPU machine, on a CPU: what is planned, what is kept, and calls that are killed and go on."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from tools.clone import ROOT, environment

LABEL = "swin_nano_64_w2"
NOT_THERE = "no_such_module"


def parts(bench, *, microsoft="/checkout", dry=False):
    return bench.plan.parts_of(bench.plan.DRY if dry else bench.plan.GPU, microsoft, bench.settings.SYSTEMS)


# What is planned.


def test_every_part_has_a_name_of_its_own_and_arguments_that_are_understood(bench):
    found = parts(bench)
    assert len({part.name for part in found}) == len(found)
    assert [part.tests.is_file() for part in found if part.tests] == [True]
    for part in found:
        if part.tests or any(f"_b{batch}_" in part.name for batch in bench.plan.GPU.batches[1:]):
            continue
        command, settings = bench.parse(bench.gpu.writing(part.arguments, Path("x")))
        assert (settings.device, settings.json) == ("cuda", "x")
        assert command in part.name or part.name.split("_")[0] in ("parity", "auto", "sdpa", "breakdown")


def test_a_part_is_one_model_batch_system_and_mode_with_ours_beside_it(bench):
    steps = [part for part in parts(bench) if part.name.startswith("step_")]
    assert len(steps) == 4 * 6 * (1 + 4) * 2
    for part in steps[::7]:
        _, settings = bench.parse(part.arguments)
        *beside, system = settings.systems
        assert beside == ([] if system == "ours" else ["ours"])
        assert len(settings.batch) == len(settings.modes) == 1
        label = f"{settings.model}_{settings.image_size}_w{settings.window_size}_b{settings.batch[0]}"
        assert part.name == f"step_{label}_{system}_{settings.modes[0]}"
        assert settings.microsoft == (None if system == "ours" else "/checkout")
        assert part.needs == (() if system == "ours" else (bench.plan.MODULES[system],))


def test_ours_comes_before_the_others_and_the_kernels_tests_before_all(bench):
    names = [part.name for part in parts(bench)]
    assert names[:2] == ["kernels_triton_attention", "parity"]
    assert all("_ours_" in name and "_b256_" in name for name in names[2 : 2 + 2 * 6])
    places = {name: place for place, name in enumerate(names)}
    for first, later in [
        ("step_swin_base_192_w6_b256_timm_compiled", "train"),
        ("loader", "auto_swin_base_192_w6_b256_compiled"),
        ("sdpa_swin_base_192_w6_b256_eager", "breakdown_swin_base_192_w6_b256_compiled_stage1"),
        ("breakdown_swin_base_192_w6_b256_eager_rest", "step_swin_tiny_192_w6_b256_timm_eager"),
        ("step_swin_small_192_w6_b256_torchvision_compiled", "step_swin_base_192_w6_b512_ours_compiled"),
    ]:
        assert places[first] < places[later]


def test_only_what_is_wanted_in_the_order_of_the_patterns(bench):
    found = parts(bench, microsoft=None)
    assert not any("microsoft" in part.name for part in found)
    chosen = bench.gpu.named(found, ["loader", "*_timm_*", "parity", "*"])
    assert [part.name for part in chosen[:2]] == ["loader", "step_swin_base_192_w6_b256_timm_eager"]
    assert sorted(part.name for part in chosen) == sorted(part.name for part in found)
    with pytest.raises(ValueError, match=r"--only nothing: no part has such a name; there are kernels_"):
        bench.gpu.named(found, ["parity", "nothing"])


# What is kept.


def test_what_is_over_and_what_is_begun_again(bench):
    over, begun, failed = bench.results.is_over, bench.results.begun, bench.results.failed
    entry = begun(None, "one")
    assert (entry["state"], entry["tries"]) == ("unfinished", 1)
    assert not over(None, "one")
    assert not over(entry, "one")
    assert over(entry | {"state": "done"}, "another")
    assert over(entry | {"state": "not installed", "missing": [NOT_THERE]}, "one")
    assert not over(entry | {"state": "not installed", "missing": ["json"]}, "one")  # it is there by now
    once = entry | failed(entry, "reason")
    twice = begun(once, "one") | failed(begun(once, "one"), "reason")
    assert not over(once, "one")
    assert over(twice, "one")
    assert not over(twice, "another")
    assert (twice["tries"], begun(twice, "another")["tries"]) == (2, 1)


def test_tests_that_passed_count_for_the_same_code_alone(bench):
    entry = {"state": "unfinished", "code": "one", "tries": 1, "failures": 0, "passed": ["a"]}
    assert bench.results.begun(entry, "one")["passed"] == ["a"]
    assert "passed" not in bench.results.begun(entry, "another")


def test_what_is_cut_off_again_and_again_comes_last(bench):
    found = parts(bench, dry=True)[:4]
    entries = {
        found[0].name: {"state": "unfinished", "code": "c", "tries": 2, "failures": 0},
        found[1].name: {"state": "unfinished", "code": "c", "tries": 1, "failures": 0},
        found[2].name: {"state": "done", "code": "c", "tries": 1, "failures": 0},
    }
    left = bench.results.in_order(found, entries, "c")
    assert left == [found[1], found[3], found[0]]


def test_results_of_two_folders(bench, tmp_path):
    def entry(state, code):
        return {"state": state, "code": code}

    ours = {"a": entry("done", "ours"), "b": entry("unfinished", "ours"), "c": entry("failed", "ours")}
    theirs = {"a": entry("done", "theirs"), "b": entry("done", "theirs"), "c": entry("unfinished", "theirs")}
    theirs["d"] = entry("failed", "theirs")
    found = bench.results.merged({"environment": {}, "parts": ours}, {"environment": {"x": "y"}, "parts": theirs})
    assert {name: each["code"] for name, each in found["parts"].items()} == {
        "a": "ours",
        "b": "theirs",
        "c": "ours",
        "d": "theirs",
    }
    bench.results.write(tmp_path, found)
    assert bench.results.read(tmp_path) == found
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    (tmp_path / "results.json").write_text('{"parts": ')
    with pytest.raises(ValueError, match=r"results\.json are no results of tools\.bench\.gpu"):
        bench.results.read(tmp_path)


def test_what_was_compiled_is_carried_on_in_few_small_files(bench, monkeypatch, tmp_path):
    made, out, there = (tmp_path / name for name in ("made", "out", "there"))
    out.mkdir()
    files = {f"inductor/{number:02}/code.py": os.urandom(5000) for number in range(20)} | {
        "triton/a/k.cubin": b"kernel"
    }
    unwanted = ("triton/a/x.lock", "triton/tmp.pid_7/k.cubin", "inductor/locks/y", "inductor/00/.7.tmp", "other/z")
    for name, content in [*files.items(), *((name, b"") for name in unwanted)]:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    monkeypatch.setattr(bench.caches, "LARGEST", 40_000)
    assert bench.caches.pack(out, made)
    archives = {file.name: file.read_bytes() for file in out.iterdir()}
    assert 3 <= len(archives) <= bench.caches.ARCHIVES
    assert max(map(len, archives.values())) <= 45_000
    bench.caches.unpack(out, there)
    assert {str(file.relative_to(there)): file.read_bytes() for file in there.rglob("*") if file.is_file()} == files
    assert bench.caches.pack(out, there)  # nothing is new
    assert {file.name: file.read_bytes() for file in out.iterdir()} == archives
    monkeypatch.setattr(bench.caches, "LARGEST", 1000)
    (there / "triton" / "new").write_bytes(os.urandom(2000))
    assert not bench.caches.pack(out, there)
    bench.caches.clear(there)
    assert not any(there.iterdir())


def test_what_a_compiler_is_writing_is_not_packed(bench, tmp_path):
    (tmp_path / "inductor").mkdir()
    for name, age in (("old.so", 60), ("new.so", 0)):
        file = tmp_path / "inductor" / name
        file.write_bytes(b"code")
        os.utime(file, (time.time() - age,) * 2)
    bench.caches.pack(tmp_path, tmp_path, settled=bench.caches.SETTLED)
    with zipfile.ZipFile(tmp_path / "cache-0.zip") as packed:
        assert packed.namelist() == ["inductor/old.so"]
    bench.caches.pack(tmp_path, tmp_path)
    assert sorted(bench.caches.packed_names(tmp_path / "cache-0.zip")) == ["inductor/new.so", "inductor/old.so"]


# Processes.


def test_a_call_ends_at_the_deadline_with_all_that_it_started(bench, tmp_path):
    log = tmp_path / "log"
    command = ["sh", "-c", "sleep 60 & echo $!; echo begun; sleep 60"]
    assert bench.running.call(command, time.monotonic() + 0.5, log, {}, lambda: None) is None
    below, begun = log.read_text().split()
    assert begun == "begun"
    wait_until(lambda: not is_running(int(below)))
    assert bench.running.call(["sh", "-c", "echo $A; exit 3"], time.monotonic() + 60, log, {"A": "b"}, int) == 3
    assert log.read_text().endswith("begun\nb\n")


def test_what_was_made_is_looked_after_meanwhile(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench.running, "MEANWHILE", 0.05)
    looked = []
    command = ["sh", "-c", "sleep 0.5"]
    assert bench.running.call(command, time.monotonic() + 60, tmp_path / "log", {}, lambda: looked.append(1)) == 0
    assert len(looked) > 2


def is_running(pid):
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# The command, with calls of `tools.bench` in this process or none at all.


@pytest.fixture
def in_this_process(bench, monkeypatch, tmp_path):
    """Calls of `tools.bench` without a process for each; returns the commands that were called."""
    called = []

    def call(command, deadline, log, variables, meanwhile):
        called.append(command[3])
        with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
            try:
                bench.main(command[3:])
                code = 0
            except SystemExit as left:
                code = left.code
        log.write_text(log.read_text() + output.getvalue())
        return code

    monkeypatch.setattr(bench.gpu, "call", call)
    monkeypatch.setattr(bench.gpu, "DRY", bench.plan.DRY._replace(modes=("eager",), tests="none"))
    monkeypatch.setattr(bench.plan, "PLACES", ("stage4", "rest"))
    return called


def run(bench, *arguments):
    """The exit code."""
    with pytest.raises(SystemExit) as left:
        bench.gpu.main([*arguments, "--dry"])
    return left.value.code


@pytest.mark.slow
def test_dry_everything_is_measured_and_the_table_says_it(bench, in_this_process, tmp_path, capsys):
    options = [str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    assert run(bench, *options, "--minutes", "0") == 75
    assert in_this_process == []
    assert run(bench, *options, "--only", "curves*") == 0
    assert run(bench, *options) == 0
    expected = ["curves", "curves", *["step"] * 4, "train", "loader", *["step"] * 4, "attention"]
    assert in_this_process == expected
    assert run(bench, *options) == 0
    assert in_this_process == expected
    entries = bench.results.read(tmp_path / "out")["parts"]
    assert {entry["state"] for entry in entries.values()} == {"done"}
    table = (tmp_path / "out" / "table.md").read_text()
    for text in (
        "| swin_nano, 64 px, window 2 | **",
        "| swin_nano, 64 px, window 2 | 2 | transformers |",
        "| swin_nano, 64 px, window 2 | 2 | ours, sdpa |",
        "eager, of stage4, rest:",
        "| optimizer, clip |",
        "| ours chunked, alone |",
        "sdpa at most",
        "| recipe |",
        "| ours-raw | 1 |",
    ):
        assert text in table, text
    assert {file.name for file in (tmp_path / "out").iterdir()} <= {
        *("results.json", "log.txt", "table.md"),
        *(f"cache-{number}.zip" for number in range(bench.caches.ARCHIVES)),
    }


def failing(text, code=2):
    def call(command, deadline, log, variables, meanwhile):
        with log.open("a") as file:
            print(text, file=file)
        return code

    return call


def test_a_part_that_fails_is_named_and_begun_again_once(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.gpu, "call", failing("some lines\nerror: no such thing"))
    options = [str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--only", "parity", "--only", "loader"]
    assert run(bench, *options) == 75
    said = capsys.readouterr().out
    assert said.count("failed: error: no such thing") == 2
    assert "2 parts are left: parity, loader" in said
    assert run(bench, *options) == 1
    assert "2 parts failed: parity, loader" in capsys.readouterr().out
    monkeypatch.setattr(bench.gpu, "call", None)
    assert run(bench, *options) == 1
    assert "`loader` failed: error: no such thing" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "log.txt").read_text().count("some lines") == 4


def test_what_is_not_installed_is_said_and_done_without(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.gpu, "call", failing(f"ModuleNotFoundError: No module named '{NOT_THERE}.sub'", 1))
    options = [str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--only", "train"]
    assert run(bench, *options) == 0
    assert f"not installed: {NOT_THERE}" in capsys.readouterr().out
    assert f"Not installed: {NOT_THERE}, for train." in (tmp_path / "out" / "table.md").read_text()
    monkeypatch.setattr(bench.gpu, "call", None)
    assert run(bench, *options) == 0


def test_a_step_that_was_not_timed_is_no_result_unless_memory_lacks(bench):
    part = next(part for part in parts(bench) if part.name.endswith("timm_compiled"))
    entry = bench.results.begun(None, "code")

    def judged(reason):
        table = {"results": {"ours compiled": {}}, "not_measured": {"timm compiled": reason}}
        return bench.gpu.judged(part, entry, {"settings": {"systems": ["ours", "timm"]}, "batches": [table]})

    assert judged("out of memory: OutOfMemoryError: 9 GiB")["state"] == "done"
    assert judged(f"not installed: {NOT_THERE}") | {"report": 0} == {
        "state": "not installed",
        "missing": [NOT_THERE],
        "report": 0,
    }
    assert judged("does not compile: RuntimeError: no")["state"] == "failed"
    assert judged("fails: ModuleNotFoundError: No module named 'torch'")["state"] == "failed"  # it is there


PYTEST = """tests/kernels/test_x.py::test_a PASSED                    [ 25%]
tests/kernels/test_x.py::test_b[Case(grid=(8, 8), d=16)] PASSED [ 50%]
tests/kernels/test_x.py::test_c[one] FAILED                             [ 75%]
tests/kernels/test_x.py::test_d SKIPPED (a GPU has more)                [ 90%]
tests/kernels/test_x.py::test_e """


def test_kernel_tests_that_passed_are_not_run_again(bench, tmp_path):
    (tmp_path / "log").write_text("tests/kernels/test_x.py::test_before PASSED\n" + PYTEST)
    passed, failed = bench.kernel_tests.outcomes(tmp_path / "log", 44)
    assert passed == [
        f"tests/kernels/test_x.py::{name}" for name in ("test_a", "test_b[Case(grid=(8, 8), d=16)]", "test_d")
    ]
    assert failed == ["tests/kernels/test_x.py::test_c[one]"]
    part = parts(bench)[0]
    arguments = bench.kernel_tests.arguments(part, passed)
    assert arguments[0] == "tests/kernels/test_triton_attention.py"
    assert arguments[-3:] == [f"--deselect={name}" for name in passed]


@pytest.mark.slow
def test_a_killed_run_of_the_kernels_tests_goes_on(bench, tmp_path, capsys):
    """The log is that of a process that was killed after one of the tests."""
    out = tmp_path / "out"
    out.mkdir()
    done = "tests/kernels/test_chunked_attention.py::test_bf16_is_near_float64"
    (out / "log.txt").write_text(f"{done} PASSED [ 10%]\n")
    entry = bench.results.begun(None, bench.results.code_now()) | {"log": 0}
    name = "kernels_chunked_attention"
    bench.results.write(out, {"environment": {}, "parts": {name: entry}})
    assert run(bench, str(out), "--cache", str(tmp_path / "cache"), "--only", name) == 0
    found = bench.results.read(out)["parts"][name]
    assert found["state"] == "done"
    assert found["passed"][0] == done
    assert len(found["passed"]) == len(set(found["passed"])) > 5
    text = (out / "log.txt").read_text()
    assert "1 deselected" in text
    assert f"Tests `{name}`: {len(found['passed'])} passed, done." in (out / "table.md").read_text()


def test_a_folder_that_is_not_there_is_said(bench, tmp_path, capsys):
    options = [str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--minutes", "0"]
    assert run(bench, *options, "--have", str(tmp_path / "nothing")) == 2
    assert "nothing is no folder: name what OUT held" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(bench, *options, "--have", str(tmp_path / "empty")) == 75
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"results.json", "table.md"}
    assert "holds no results.json: everything is new" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(bench, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        bench.gpu.main([str(tmp_path)])
    assert left.value.code == 2
    assert "--dry" in capsys.readouterr().err


# Killed for real.

PATTERNS = ("parity", "curves*")
CURVES = f"curves_{LABEL}"


@pytest.mark.slow
def test_killed_and_interrupted_with_out_emptied_it_ends_with_all_parts(tmp_path):
    """Two calls are ended as soon as they have begun the second part; OUT is another folder each time."""
    said = [
        ended_call(tmp_path, 0, signal.SIGKILL),
        ended_call(tmp_path, 1, signal.SIGINT),
        ended_call(tmp_path, 2, None),
    ]
    assert [text.count("    done") for text in said] == [1, 0, 1]
    found = json.loads((tmp_path / "out2" / "results.json").read_text())["parts"]
    assert {name: (entry["state"], entry["tries"]) for name, entry in found.items()} == {
        "parity": ("done", 1),
        CURVES: ("done", 3),
    }
    assert (tmp_path / "out2" / "table.md").read_text().count("sdpa at most") == 2
    assert (tmp_path / "out2" / "log.txt").read_text().count(f"===== {CURVES}") == 3


def ended_call(tmp_path, number, how):
    """What a call said that was ended in the second part, or ended by itself; nothing of it runs any more."""
    out, before = tmp_path / f"out{number}", tmp_path / f"out{number - 1}"
    command = [sys.executable, "-m", "tools.bench.gpu", str(out), "--dry", "--cache", str(tmp_path / f"cache{number}")]
    command += [word for pattern in PATTERNS for word in ("--only", pattern)]
    command += ["--have", str(before)] if number else []
    said = ""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            said += line
            if how and CURVES in line:
                wait_until(lambda: times_begun(out, CURVES) == number + 1)
                os.killpg(process.pid, how)
                break
        said += process.stdout.read()
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, None: 0}[how]
    wait_until(lambda: not any(is_running(pid) for pid in of_group(process.pid)))
    return said


def times_begun(out, name):
    file = out / "results.json"
    return json.loads(file.read_text())["parts"].get(name, {}).get("tries", 0) if file.is_file() else 0


def of_group(group):
    """The processes of a group."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(file.read_text().rpartition(")")[2].split()[2]) == group:
                yield int(file.parent.name)


def wait_until(true):
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        os.sched_yield()
