"""However a fine-tuning is cut up or interrupted, it is the same one."""

import pytest

HALF = ("--train.micro_batch", "8")


def interrupted_zero(recipe, name):
    recipe.launch(name, *HALF, "--train.stop_after", "4 steps", zero=2)
    assert "resumed at step 4" in recipe.launch(name, *HALF, zero=2)


def interrupted_fsdp(recipe, name):
    recipe.launch(name, *HALF, "--train.fsdp", "true", "--train.stop_after", "4 steps")
    assert "resumed at step 4" in recipe.launch(name, *HALF, "--train.fsdp", "true")


WAYS = {
    "accumulation": lambda recipe, name: recipe.run(name, *HALF),
    "workers_2": lambda recipe, name: recipe.run(name, "--data.workers", "2"),
    "processes_2": lambda recipe, name: recipe.launch(name, *HALF),
    "fsdp_interrupted": interrupted_fsdp,
    "zero_2_interrupted": interrupted_zero,
}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.slow] if "interrupted" in way else []) for way in WAYS]
)
def test_metrics_are_those_of_one_process(way, finetune, whole_finetune):
    """Losses, gradients, accuracies of the averaged weights: 10 steps and 2 evaluations on 23 images."""
    WAYS[way](finetune, way)
    expected, found = finetune.metrics(whole_finetune), finetune.metrics(way)
    assert len(expected) == 12
    exact = way.startswith("workers")
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            tolerance = 0 if exact else 2e-5
            assert b[key] == pytest.approx(a[key], abs=tolerance, rel=0 if key != "grad_norm" else tolerance * 10), key


def test_the_run_learns(finetune, whole_finetune):
    losses = finetune.losses(whole_finetune)
    assert len(set(losses)) == 10
    assert finetune.metrics(whole_finetune)[-1]["accuracy"] > 1 / 3


@pytest.mark.parametrize("k", [1, 4, 7])
def test_continued_equals_uninterrupted(k, finetune, whole_finetune):
    """To the last bit: weights, moments, averages, and all draws of augmentation and mixing. An epoch is 2.5 steps."""
    name = f"stopped_{k}"
    command = (name, "--train.stop_after", f"{k} steps")
    assert "the same command continues the run" in finetune.run(*command)
    assert f"resumed at step {k}" in finetune.run(*command)
    finetune.assert_same_run(whole_finetune, name)


@pytest.mark.slow
def test_the_evaluation_is_the_same_on_one_two_and_three_processes(finetune, whole_finetune):
    """The same weights on 23 images give every number and every prediction alike, to the last bit of the report."""
    reports = []
    for processes in (1, 2, 3):
        file = finetune.folder / f"predictions_{processes}.csv"
        flags = ["--evaluate", "--predictions", str(file), "--train.micro_batch", "4"]
        finetune.launch(whole_finetune, *flags, processes=processes)
        report = (finetune.path(whole_finetune) / "evaluation" / "metrics.json").read_text()
        reports.append((report, file.read_text()))
    assert reports[0] == reports[1] == reports[2]
    assert reports[0][1].count("\n") == 24
