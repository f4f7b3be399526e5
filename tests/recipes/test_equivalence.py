"""However a run is cut up, it is the same run."""

import pytest

WAYS = {
    "accumulation": (["--train.micro_batch", "8"], {}),
    "workers_2": (["--data.workers", "2"], {}),
    "workers_4": (["--data.workers", "4"], {}),
    "processes_2": (["--train.micro_batch", "8"], {"processes": 2}),
    "zero_1": (["--train.micro_batch", "8"], {"processes": 2, "zero": 1}),
    "zero_2": (["--train.micro_batch", "4"], {"processes": 2, "zero": 2}),
}


@pytest.mark.parametrize("way", WAYS)
def test_losses_are_those_of_one_process(way, recipe, whole_run):
    flags, launch = WAYS[way]
    recipe.run(way, *flags, **launch)
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
