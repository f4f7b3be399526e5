"""The page that a run leaves, and the list of its starts."""

import json
import re

import pytest

pytestmark = pytest.mark.slow


def test_a_run_leaves_its_page(recipe):
    output = recipe.run("paged", "--log.pictures_every", "5 steps", "--train.stop_after", "5 steps")
    folder = recipe.path("paged")
    assert f"the run as a page: {folder / 'report.html'}" in output
    page = (folder / "report.html").read_text()
    assert "step 5 of 10" in page
    recipe.run("paged", "--log.pictures_every", "5 steps")
    page = (folder / "report.html").read_text()
    assert re.search(r"pretraining · finished · step 10 of 10 · 160 images seen", page)
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == ["overview", "curves", "reconstructions", "data", "settings", "machine"]
    assert [json.loads(line)["step"] for line in (folder / "starts.jsonl").read_text().splitlines()] == [0, 5]
    start = json.loads((folder / "starts.jsonl").read_text().splitlines()[0])
    assert {"time", "model", "images", "device", "processes", "batch", "precision", "system", "versions"} <= set(start)
    assert {"swin_mim", "python", "torch"} <= set(start["versions"])


def test_a_page_that_cannot_be_written_ends_no_run(recipe):
    (recipe.path("blocked") / "report.html").mkdir(parents=True)
    output = recipe.run("blocked")
    assert output.count("report.html could not be written (IsADirectoryError") == 1
    assert "finished" in output


def test_without_the_setting_there_is_none(recipe):
    output = recipe.run("plain", "--log.report", "false")
    assert "report.html" not in output
    assert not (recipe.path("plain") / "report.html").exists()
