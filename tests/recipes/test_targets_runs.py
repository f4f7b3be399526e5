"""Runs with histograms, heads of every stage and a teacher: however one is cut up or interrupted, it is the same."""

import pytest
import torch
from safetensors.torch import load_file

from swin_mim import SimMIM, Swin, SwinConfig

HALF = ("--train.micro_batch", "8")
FSDP = ("--train.fsdp", "true")
TASKS = {
    "taught": (),
    "taught_stages": ("--model.supervise", "stages", "--model.stage_weights", "0.3", "0.7"),
    "taught_hog": ("--model.target", "hog"),
    "hog_stages": ("--model.target", "hog", "--model.supervise", "stages"),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A Swin of three stages, whose features differ from image to image."""
    torch.manual_seed(0)
    encoder = Swin(SwinConfig(32, embed_dim=8, depths=(1, 1, 1), num_heads=(1, 2, 4), window_size=4))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return encoder.save_pretrained(tmp_path_factory.mktemp("teacher") / "swin")


@pytest.fixture(scope="module")
def flags(teacher):
    """Task -> words of the command line."""
    taught = ("--teacher.model", str(teacher))
    return {task: (*words, *(taught if task.startswith("taught") else ())) for task, words in TASKS.items()}


@pytest.fixture(scope="module")
def whole(recipe, flags):
    """Runs a task at one go, once -> the run's name."""
    done = set()

    def run(task):
        if task not in done:
            recipe.run(task, *flags[task])
            done.add(task)
        return task

    return run


def interrupted_fsdp(recipe, name, flags):
    recipe.launch(name, *flags, *HALF, *FSDP, "--train.stop_after", "4 steps")
    assert "resumed at step 4" in recipe.launch(name, *flags, *HALF, *FSDP)


WAYS = {
    "accumulation": lambda recipe, name, flags: recipe.run(name, *flags, *HALF),
    "processes_2": lambda recipe, name, flags: recipe.launch(name, *flags, *HALF),
    "fsdp_interrupted": interrupted_fsdp,
    "zero_2_accumulation": lambda recipe, name, flags: recipe.launch(name, *flags, "--train.micro_batch", "4", zero=2),
}
QUICK = {("accumulation", "taught_stages")}
CASES = [
    pytest.param(way, task, marks=[pytest.mark.slow] * ((way, task) not in QUICK)) for way in WAYS for task in TASKS
]


@pytest.mark.parametrize(("way", "task"), CASES)
def test_losses_are_those_of_one_process(way, task, recipe, flags, whole):
    """Of every part, trained and held out, and the weights of every head at the end."""
    name = f"{task}_{way}"
    WAYS[way](recipe, name, flags[task])
    expected, found = recipe.metrics(whole(task)), recipe.metrics(name)
    for key in ("heldout_teacher_loss", "constant_teacher_loss"):
        assert any(key in row for row in expected) == task.startswith("taught")
    assert recipe.losses(task)[-1] < recipe.losses(task)[0] - 0.02
    for a, b in zip(expected, found, strict=True):
        assert b == pytest.approx(a, abs=1e-5, rel=1e-4)
    one, other = (SimMIM.from_pretrained(recipe.path(each)).state_dict() for each in (task, name))
    assert any(key.startswith("teacher_head.") for key in one) == task.startswith("taught")
    assert any(key.startswith("stage_heads.") for key in one) == (task != "taught")
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, atol=2e-4, rtol=0, msg=key)


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=[pytest.mark.slow] * (task != "taught_hog")) for task in TASKS]
)
def test_continued_equals_uninterrupted(task, recipe, flags, whole):
    """To the last bit, from within an epoch; and all that learns has learnt."""
    name = f"{task}_stopped"
    recipe.run(name, *flags[task], "--train.stop_after", "4 steps")
    assert "resumed at step 4" in recipe.run(name, *flags[task])
    recipe.assert_same_run(whole(task), name)
    first, last = (
        load_file(recipe.path(name) / "checkpoints" / f"step_{step:010d}" / "model.safetensors") for step in (5, 10)
    )
    for key in first:
        assert not torch.equal(first[key], last[key]), f"{key} has learnt nothing"
