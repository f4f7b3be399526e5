"""`python -m tools.bench train` for a few steps of the real recipe."""

import pytest

TINY = ["train", "--steps", "2", "--warmup", "1", "--repeats", "1", "--device", "cpu", "--threads", "1"]
RECIPE = ["--", "--train.global-batch", "4", "--train.micro-batch", "2", "--data.heldout", "8"]


@pytest.mark.slow
def test_the_recipe_is_measured_beside_its_bare_step(report_of):
    report, tables = report_of(*TINY, *RECIPE)
    recipe, bare = report["results"]["recipe"], report["results"]["bare step"]
    for entry in (recipe, bare):
        assert entry["images_per_second"] == pytest.approx(4 / entry["seconds_per_step"])
    assert recipe["of_bare_step"] == pytest.approx(bare["seconds_per_step"] / recipe["seconds_per_step"])
    assert 0 <= recipe["data_wait"] <= 1
    assert 0.05 < recipe["memory_gb"] < 20
    assert report["recipe"] == RECIPE[1:]
    assert "data wait" in tables


def test_images_that_are_made_are_the_recipes_source(bench, tmp_path):
    _, settings = bench.parse(["train", "--images", "3", "--device", "cpu"])
    text = bench.train.made(settings.images, tmp_path)
    arguments = bench.train.recipe_arguments(settings, tmp_path)
    source = tmp_path / bench.train.IMAGES
    assert arguments[arguments.index("--data.source") + 1] == str(source)
    assert len(list(source.glob("*/*.jpg"))) == 3
    assert text == "3 crops of Blue Marble, JPEGs of 500 x 375 px"


def test_only_the_lines_after_the_warm_up_count(bench):
    rows = [
        {"images_per_second": 10.0, "data_wait": 0.1, "memory_gb": 1.0},
        {"images_per_second": 30.0, "data_wait": 0.5, "memory_gb": 2.0},
    ]
    found = bench.train.results({"recipe": [0.6], "bare step": [0.3]}, [rows], global_batch=6)
    assert found["recipe"]["images_per_second"] == pytest.approx(10)
    assert found["recipe"]["of_bare_step"] == pytest.approx(0.5)
    assert found["recipe"]["data_wait"] == pytest.approx(0.2)  # of the time: the first line is three times as long
    assert found["recipe"]["memory_gb"] == 2


@pytest.mark.slow
def test_a_recipe_that_fails_is_one_line(bench, capsys):
    with pytest.raises(SystemExit) as left:
        bench.main([*TINY, "--", "--data.source", "/nowhere"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "swin_mim.recipes.pretrain failed" in error
    assert "/nowhere" in error
    assert error.count("\n") == 1
