"""A run that has ended is made longer: the run that was extended, however it was interrupted, is one run."""

import json
import signal

import pytest
import yaml

LONGER = ("--train.duration", "20 steps")
IN_ONE = (*LONGER, "--train.extended", "10 steps")
"""What an extended run has in its config.yaml: from it the same run is made at one go."""


UNEVEN = ("--log.evaluate_every", "4 steps", "--log.every", "3 steps", "--save.every", "3 steps")
"""What does not divide the length that the run had at first, at whose end all of it happens too."""


def rows(recipe, name):
    return [row for row in recipe.metrics(name) if "lr" in row]


@pytest.fixture(scope="module")
def in_one(recipe):
    recipe.run("in_one", *IN_ONE)
    return "in_one"


@pytest.fixture(scope="module")
def in_one_finetune(finetune):
    finetune.run("in_one", *IN_ONE, *UNEVEN)
    return "in_one"


def assert_same(recipe, one, other):
    """Metrics, weights, moments and averages after 20 steps, to the last bit."""
    assert recipe.metrics(one) == recipe.metrics(other)
    for path in sorted((recipe.path(one) / "checkpoints" / "step_0000000020").glob("*.safetensors")):
        assert path.read_bytes() == (recipe.path(other) / path.relative_to(recipe.path(one))).read_bytes(), path.name


def test_an_extended_pretraining_is_the_run_at_one_go(recipe, whole_run, in_one):
    recipe.run("extended")
    recipe.assert_same_run(whole_run, "extended")
    output = recipe.run("extended", *LONGER)
    assert "extended: the run had ended after 10 steps; from a learning rate of " in output
    assert "until step 11, then the cosine schedule runs once more, until step 20" in output
    assert "resumed at step 10" in output
    assert_same(recipe, in_one, "extended")
    assert recipe.metrics("extended")[: len(recipe.metrics(whole_run))] == recipe.metrics(whole_run)
    rates = [row["lr"] for row in rows(recipe, "extended")]
    assert rates[10] == rates[9] < rates[11] < max(rates) * 1.001
    assert rates[11:] == sorted(rates[11:], reverse=True)
    status = json.loads((recipe.path("extended") / "run_status.json").read_text())
    assert (status["status"], status["step"], status["total_steps"]) == ("finished", 20, 20)
    settings = yaml.safe_load((recipe.path("extended") / "config.yaml").read_text())["train"]
    assert (settings["duration"], settings["extended"]) == ("20 steps", ["10 steps"])
    # the same command again does nothing more, and the first one is of another run
    before = (recipe.path("extended") / "metrics.jsonl").read_bytes()
    assert "resumed at step 20" in recipe.run("extended", *LONGER)
    assert (recipe.path("extended") / "metrics.jsonl").read_bytes() == before
    assert "'10 steps' is 10 steps, and the run already had 20" in recipe.run("extended", expect=2)


def test_a_killed_extension_goes_on_to_the_same_bits(recipe, in_one):
    """By SIGKILL before its first checkpoint, and stopped in its middle."""
    recipe.run("killed")
    process = recipe.start("killed", *LONGER)
    for line in process.stdout:
        if line.startswith("step     1"):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert "extended: the run had ended after 10 steps" in recipe.run(
        "killed", *LONGER, "--train.stop_after", "13 steps"
    )
    output = recipe.run("killed", *LONGER)
    assert "resumed at step 13" in output
    assert "extended: the run had ended after 10 steps" in output
    assert_same(recipe, in_one, "killed")


def test_an_extended_fine_tuning_is_the_run_at_one_go(finetune, in_one_finetune):
    """With layer decay, an average of the weights and the best step so far."""
    finetune.run("extended", *UNEVEN)
    stopped = finetune.run("extended", *LONGER, *UNEVEN, "--train.stop_after", "14 steps")
    assert "extended: the run had ended after 10 steps" in stopped
    assert "resumed at step 14" in finetune.run("extended", *LONGER, *UNEVEN)
    assert_same(finetune, in_one_finetune, "extended")


def test_a_run_that_has_not_ended_or_would_be_shorter_is_refused(recipe):
    recipe.run("unended", "--train.stop_after", "4 steps")
    output = recipe.run("unended", *LONGER, expect=2)
    assert "train.duration: 10 steps -> 20 steps" in output
    assert "it can be made longer once it has ended" in output
    recipe.run("unended")
    output = recipe.run("unended", "--train.duration", "64 images", expect=2)
    assert "train.duration '64 images' is 4 steps, and the run already had 10 ('10 steps')" in output
    # the checkpoint of the last step is broken: there is more to do than to extend
    newest = recipe.path("unended") / "checkpoints" / "step_0000000010" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    output = recipe.run("unended", *LONGER, expect=2)
    assert (
        "has not ended, its newest checkpoint is of step 5 of 10: continue it with --train.duration '10 steps'"
        in output
    )
    assert "resumed at step 5" in recipe.run("unended")
    assert "resumed at step 10" in recipe.run("unended", *LONGER)


@pytest.mark.slow
def test_two_processes_extend(recipe, in_one):
    recipe.launch("together", "--train.micro_batch", "8")
    recipe.launch("together", "--train.micro_batch", "8", *LONGER)
    for a, b in zip(recipe.metrics(in_one), recipe.metrics("together"), strict=True):
        assert b == pytest.approx(a, abs=1e-5, rel=1e-4)
