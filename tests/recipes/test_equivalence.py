"""However a run is cut up, it is the same run."""

import pytest

HALF = ("--train.micro_batch", "8")
WAYS = {
    "accumulation": lambda recipe, name: recipe.run(name, *HALF),
    "workers_2": lambda recipe, name: recipe.run(name, "--data.workers", "2"),
    "workers_4": lambda recipe, name: recipe.run(name, "--data.workers", "4"),
    "machines_2": lambda recipe, name: recipe.launch_machines(name, *HALF),
    "processes_2": lambda recipe, name: recipe.launch(name, *HALF),
    "zero_1": lambda recipe, name: recipe.launch(name, *HALF, zero=1),
    "zero_2_accumulation": lambda recipe, name: recipe.launch(name, "--train.micro_batch", "4", zero=2),
}


# DeepSpeed compiles a part of itself once on each machine, which takes longer than all the others together
SLOW = ("machines_2", "zero_1", "zero_2_accumulation")


@pytest.mark.parametrize("way", [pytest.param(way, marks=[pytest.mark.slow] * (way in SLOW)) for way in WAYS])
def test_losses_are_those_of_one_process(way, recipe, whole_run):
    WAYS[way](recipe, way)
    expected, found = recipe.metrics(whole_run), recipe.metrics(way)
    assert len(expected) == 13  # 10 steps, 2 evaluations, the errors of filling
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            # exact where the arithmetic is the same, else up to the order of sums
            tolerance = 0 if way.startswith("workers") else 1e-5
            assert b[key] == pytest.approx(a[key], abs=tolerance, rel=0 if key != "grad_norm" else tolerance * 10), key


def test_the_run_learns(recipe, whole_run):
    """Ten equal losses would be equivalent too."""
    losses = recipe.losses(whole_run)
    assert losses[-1] < losses[0] - 0.05
    assert len(set(losses)) == 10
