"""What happens to a run from outside: a second one, a full disk, signals at any moment, processes that die."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import run_recipe

import swin_mim


def status(recipe, name):
    return json.loads((recipe.path(name) / "run_status.json").read_text())


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_second_run_in_the_folder_is_refused(recipe):
    first = recipe.start("taken_folder", "--train.duration", "100000 steps")
    try:
        until(lambda: (recipe.path("taken_folder") / "metrics.jsonl").exists())
        before = (recipe.path("taken_folder") / "config.yaml").read_bytes()
        output = recipe.run("taken_folder", expect=2)
        assert f"is in use by process {first.pid} on " in output
        assert output.strip().count("\n") == 0
        assert (recipe.path("taken_folder") / "config.yaml").read_bytes() == before
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)
    assert first.returncode == 75


def limited(size: int) -> Callable[[], None]:
    """For a new process: no file of its own may grow beyond so many bytes."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_deepspeed_in_one_line(recipe):
    """DeepSpeed writes itself, in all processes, and one that fails leaves the others waiting for it."""
    environment = os.environ | run_recipe.ENVIRONMENT | recipe.deepspeed(1)
    # what it compiles for itself, once on each machine, is a larger file than is allowed below
    compiled = "from deepspeed.comm.torch import build_shm_op; build_shm_op()"
    subprocess.run([sys.executable, "-c", compiled], env=environment, check=True, timeout=600)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    arguments = recipe.arguments("full_zero", ("--train.micro_batch", "8", "--save.every", "2 steps"))
    done = subprocess.run(
        [sys.executable, *launcher, "--rdzv-endpoint", "127.0.0.1:0", str(recipe.script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=limited(100_000),
        cwd=recipe.folder,
        timeout=240,
        check=False,
    )
    assert "error: DeepSpeed could not write the checkpoint of step 2 to " in done.stderr
    assert "exitcode  : 73" in done.stderr
    assert "in _save_with_deepspeed" not in done.stderr
    assert not [*(recipe.path("full_zero") / "checkpoints").glob("step_*")]


LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_full_disk_ends_a_run_after_three_checkpoints_and_costs_nothing_else(recipe, whole_run):
    """No file may grow beyond the size of the moments, which are the largest one."""
    optimizer = recipe.path(whole_run) / "checkpoints" / "step_0000000010" / "optimizer.safetensors"
    script = recipe.folder / "small_disk.py"
    script.write_text(LIMITED)
    arguments = [str(optimizer.stat().st_size - 1), str(recipe.script)]
    arguments += recipe.arguments("full", ("--save.every", "2 steps"))
    code, said = run_recipe.run(script, arguments, recipe.folder)
    assert code == 73, said
    for step in (2, 4, 6):
        assert f"the checkpoint of step {step} could not be written (File too large)" in said
    assert said.strip().splitlines()[-1].startswith("error: 3 checkpoints in a row could not be written")
    assert status(recipe, "full")["status"] == "failed"
    assert list((recipe.path("full") / "checkpoints").iterdir()) == []
    recipe.run("full")
    recipe.assert_same_run(whole_run, "full")


def test_a_full_disk_ends_a_replay_in_one_line(recipe, whole_run):
    """A checkpoint is copied first."""
    script = recipe.folder / "small_scratch.py"
    script.write_text(LIMITED)
    command = [
        "20000",
        str(Path(swin_mim.__file__).parent / "__main__.py"),
        "replay",
        str(recipe.path(whole_run)),
        "11",
    ]
    code, said = run_recipe.run(script, command, recipe.folder)
    assert code == 2, said
    assert said.count("\n") == 1
    assert said.startswith("error: the run could not be copied to ")
    assert said.endswith(": make room, or set TMPDIR\n")
    assert "File too large" in said


def test_a_disk_that_takes_nothing_more_costs_the_log_and_not_the_run(recipe, whole_run):
    """From the first step on no file grows, be it checkpoint, metrics or status."""
    script = recipe.folder / "full_from_now_on.py"
    script.write_text(
        "import resource, runpy, signal, sys\n"
        "from swin_mim.training.loop import trainer\n"
        "seed = trainer.seed_forward\n"
        "def full(*arguments):\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "    seed(*arguments)\n"
        "trainer.seed_forward = full\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    arguments = [str(recipe.script), *recipe.arguments("read_only", ("--save.every", "3 steps"))]
    process = run_recipe.start(script, arguments, recipe.folder)  # into a pipe, which has no size
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 73, said
    assert "a line of metrics.jsonl could not be written (File too large)" in said
    assert said.count("train.log could not be written (File too large)") == 1
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("error: 3 checkpoints in a row could not be written")
    recipe.run("read_only")
    recipe.assert_same_run(whole_run, "read_only")


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGUSR1,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_before_the_first_step_stops_after_it(number, recipe, whole_run):
    name = f"early_{number}"
    process = recipe.start(name, "--data.workers", "2")
    until(lambda: (recipe.path(name) / "run.lock").exists())
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert status(recipe, name)["status"] == "stopped"
    assert status(recipe, name)["step"] == 1
    recipe.run(name)
    recipe.assert_same_run(whole_run, name)


def test_a_run_stops_with_its_launcher(recipe, whole_run):
    """`accelerate launch` with one process dies of a SIGTERM by itself."""
    arguments = recipe.arguments("orphan", ("--train.duration", "100000 steps"))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu", str(recipe.script)]
    launcher = subprocess.Popen(
        [*command, *arguments], env=os.environ | run_recipe.ENVIRONMENT, cwd=recipe.folder, stdout=subprocess.DEVNULL
    )
    until(lambda: (recipe.path("orphan") / "metrics.jsonl").exists())
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(timeout=60)
    until(lambda: status(recipe, "orphan")["status"] == "stopped")
    # beside it may lie that of an interval, if the signal came late
    assert (recipe.path("orphan") / "checkpoints" / f"step_{status(recipe, 'orphan')['step']:010d}").is_dir()


def process_of_rank(rank: int, script: str) -> int:
    """The trainer of that rank that runs a script."""
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RANK={rank}".encode() in environment and script.encode() in command:
            return int(folder.name)
    raise LookupError(rank)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for the process in /proc")
@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_a_process_that_is_killed_is_started_again_and_the_run_goes_on(victim, recipe, whole_run):
    name = f"killed_{victim}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", str(recipe.script)]
    slow = ("--train.micro_batch", "8", "--save.every", "1 step")
    launcher = subprocess.Popen(
        [*command, *recipe.arguments(name, slow)],
        env=os.environ | run_recipe.ENVIRONMENT | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        cwd=recipe.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in launcher.stdout:
        lines.append(line)
        if line.startswith("step      2/10"):
            os.kill(process_of_rank(victim, str(recipe.script)), signal.SIGKILL)
            break
    output = "".join([*lines, launcher.communicate(timeout=120)[0]])
    assert launcher.returncode == 0, output
    assert "resumed at step" in output
    assert "Traceback" not in output
    assert "fail now and then" not in output
    for a, b in zip(recipe.metrics(whole_run), recipe.metrics(name), strict=True):
        assert b == pytest.approx(a, abs=1e-5, rel=1e-4)


def test_a_run_that_diverges_goes_back_twice_and_says_where(recipe):
    """A learning rate that no weight survives."""
    flags = ["--optim.base_lr", "1e38", "--optim.warmup_lr", "1e38", "--optim.min_lr", "1e38", "--save.every", "1 step"]
    output = recipe.run("diverged", *flags, expect=65)
    last = output.strip().splitlines()[-1]
    assert "2 returns to a checkpoint did not help: the run has diverged" in last
    assert output.count("not finite for 3 steps in a row: back to step") == 2
    noted = [json.loads(line) for line in (recipe.path("diverged") / "skipped_steps.jsonl").read_text().splitlines()]
    steps = [entry for entry in noted if "images" not in entry]
    first = steps[0]["step"]
    assert [entry["step"] for entry in steps] == [first, first + 1, first + 2] * 3
    assert [entry["positions"][0] for entry in steps] == [16 * (first - 1 + i) for i in range(9)]
    pictures = next(entry for entry in noted if "images" in entry)
    assert [position for position, _ in pictures["images"]] == list(range(16 * (first - 1), 16 * first))
    assert all(name.endswith(".png") for _, name in pictures["images"])

    code, said = run_recipe.command("replay", str(recipe.path("diverged")), str(first), folder=recipe.folder)
    assert code == 0, said
    # the convolution is at its limit, and the variance of that beyond it
    assert "output not finite first in encoder.patch_embed.norm" in said
    assert "what it came from is finite, up to " in said
