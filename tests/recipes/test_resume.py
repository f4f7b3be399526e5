"""A run that was interrupted and continued is the run that was not."""

import json
import signal

import pytest


@pytest.mark.parametrize("k", [1, 4, 7])
def test_continued_equals_uninterrupted(k, recipe, whole_run):
    """An epoch is 2.5 steps: 4 is in the middle of one, 1 is before the first checkpoint that was due."""
    name = f"stopped_{k}"
    command = (name, "--train.stop_after", f"{k} steps")
    assert "the same command continues the run" in recipe.run(*command)
    assert f"resumed at step {k}" in recipe.run(*command)
    recipe.assert_same_run(whole_run, name)


def test_a_finished_run_does_nothing_again(recipe, whole_run):
    before = (recipe.path(whole_run) / "metrics.jsonl").read_bytes()
    assert "resumed at step 10" in recipe.run(whole_run)
    assert (recipe.path(whole_run) / "metrics.jsonl").read_bytes() == before


def test_one_process_continues_as_two(recipe, whole_run):
    recipe.run("grown", "--train.stop_after", "4 steps")
    recipe.launch("grown", "--train.micro_batch", "8")
    for a, b in zip(recipe.metrics(whole_run), recipe.metrics("grown"), strict=True):
        assert b == pytest.approx(a, abs=1e-5, rel=1e-4)


@pytest.mark.slow
def test_zero_3_continues(recipe, whole_run):
    split = ["--train.micro_batch", "8"]
    recipe.launch("zero_stopped", *split, "--train.stop_after", "4 steps", zero=3)
    assert "resumed at step 4" in recipe.launch("zero_stopped", *split, zero=3)
    for a, b in zip(recipe.metrics(whole_run), recipe.metrics("zero_stopped"), strict=True):
        assert b == pytest.approx(a, abs=1e-5, rel=1e-4)


@pytest.mark.slow
def test_fsdp_continues_on_any_number_of_processes(recipe):
    """Two, three, and one without FSDP; with pictures, which the main process draws alone."""
    batch = ["--train.global_batch", "12", "--train.micro_batch", "4", "--log.pictures_every", "3 steps"]
    recipe.run("whole_12", *batch)
    recipe.launch(
        "resharded", *batch, "--train.micro_batch", "6", "--train.fsdp", "true", "--train.stop_after", "4 steps"
    )
    fewer = ["--train.fsdp", "true", "--train.stop_after", "7 steps"]
    assert "resumed at step 4" in recipe.launch("resharded", *batch, *fewer, processes=3)
    assert "resumed at step 7" in recipe.run("resharded", *batch)
    for a, b in zip(recipe.metrics("whole_12"), recipe.metrics("resharded"), strict=True):
        assert b == pytest.approx(a, abs=1e-5, rel=1e-4)
    pictures = [sorted((recipe.path(name) / "samples").glob("*.png")) for name in ("whole_12", "resharded")]
    assert [picture.name for picture in pictures[0]] == [picture.name for picture in pictures[1]]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_stops_with_a_checkpoint(number, recipe, whole_run):
    name = f"signal_{number}"
    start = recipe.start_from_nothing if number == signal.SIGTERM else recipe.start
    process = start(name, "--data.workers", "2")
    lines = []
    for line in process.stdout:  # the first step is done when its line appears
        lines.append(line)
        if line.startswith("step "):
            process.send_signal(number)
            break
    lines.append(process.communicate(timeout=120)[0])
    output = "".join(lines)
    status = json.loads((recipe.path(name) / "run_status.json").read_text())
    if status["status"] == "stopped":  # a tiny run may end before the signal arrives
        assert process.returncode == 75, output
        assert 0 < status["step"] < 10
    recipe.run(name)
    recipe.assert_same_run(whole_run, name)


def test_a_broken_checkpoint_falls_back(recipe, whole_run):
    recipe.run("broken", "--train.stop_after", "7 steps")
    checkpoints = recipe.path("broken") / "checkpoints"
    newest = checkpoints / "step_0000000007" / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    output = recipe.run("broken")
    assert "step_0000000007 is broken (optimizer.safetensors was changed)" in output
    assert "resumed at step 5" in output
    assert (checkpoints / "bad_step_0000000007").is_dir()
    recipe.assert_same_run(whole_run, "broken")


def test_other_settings_do_not_continue_a_run(recipe, whole_run):
    output = recipe.run(whole_run, "--optim.base_lr", "0.2", expect=2)
    assert "optim.base_lr: 0.1 -> 0.2" in output
    assert output.strip().count("\n") == 0


def test_other_images_do_not_continue_a_run(recipe, images, tmp_path):
    recipe.run("moved", "--train.stop_after", "1 step")
    (images / "00.png").rename(tmp_path / "gone.png")
    try:
        output = recipe.run("moved", expect=2)
    finally:
        (tmp_path / "gone.png").rename(images / "00.png")
    assert "the images are not those that this run began with: of 44" in output
    assert "of 44 images then and 43 now, 1 is gone (00.png)" in output


def test_other_images_left_out_do_not_continue_a_run(recipe, tmp_path):
    """The list may move, and may gain names of no image; another one makes other data."""
    lists = {"first": ["00.png", "07.png"], "moved": ["07.png", "00.png"], "second": ["00.png"]}
    files = {name: tmp_path / f"{name}.txt" for name in lists}
    for name, names in lists.items():
        files[name].write_text("\n".join(names))
    recipe.run("excluded", "--train.stop_after", "1 step", "--data.exclude", str(files["first"]))
    output = recipe.run("excluded", "--data.exclude", str(files["second"]), expect=2)
    assert "of 42 images then and 43 now, 1 is new (07.png)" in output
    output = recipe.run("excluded", "--data.exclude", "None", expect=2)
    assert "of 42 images then and 44 now, 2 are new (00.png, 07.png)" in output
    output = recipe.run("excluded", "--train.stop_after", "2 steps", "--data.exclude", str(files["moved"]))
    assert "resumed at step 1" in output
