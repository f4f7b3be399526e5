"""What version 0.1.0 wrote (tests/fixtures/first_edition) goes on: runs, checkpoints, exports, packed images, YAML.

Made with its recipes from pretrain.yaml and finetune.yaml: `half` and `fine_half` were stopped after 3 of 6 steps, and
expected/ is what the uninterrupted runs had measured.
"""

import json
import shutil
from pathlib import Path

import pytest
import run_recipe
import torch
import yaml
from conftest import TIMING
from run_recipe import RECIPES

from swin_mim import SimMIM, Swin, SwinClassifier

FIRST_EDITION = Path(__file__).parents[1] / "fixtures" / "first_edition"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return shutil.copytree(FIRST_EDITION, tmp_path / "place")


def run(place: Path, recipe: str, *flags: str) -> str:
    config = ["--config", f"{recipe}.yaml"]
    code, output = run_recipe.run(RECIPES / f"{recipe}.py", [*config, *flags], place)
    assert code == 0, output
    return output


def assert_measured(place: Path, name: str, expected: str) -> None:
    """Every metric that is no matter of time; on a processor of another kind the last digits differ."""
    files = place / "runs" / name / "metrics.jsonl", place / "expected" / f"{expected}.jsonl"
    found, wanted = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert len(found) == len(wanted) > 6
    for row, other in zip(found, wanted, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() - TIMING:
            assert row[key] == pytest.approx(other[key], rel=1e-4), key


def test_a_pretraining_goes_on(place: Path) -> None:
    output = run(place, "pretrain", "--run.name", "half")
    assert "resumed at step 3" in output
    assert "this run began when colour profiles were ignored and goes on so" in output
    assert yaml.safe_load((place / "runs/half/config.yaml").read_text())["data"]["color_profile"] == "ignore"
    assert "colour profiles" not in run(place, "pretrain", "--run.name", "half")
    assert_measured(place, "half", "pre")
    assert (place / "runs/half/export/model.safetensors").is_file()


def test_a_fine_tuning_goes_on_and_its_old_setting_is_understood(place: Path) -> None:
    output = run(place, "finetune", "--run.name", "fine_half")
    assert "colour profiles were ignored" in output
    assert "resumed at step 3" in output
    assert "data.crop_share" in output
    assert "data.crop_pct" in output
    assert_measured(place, "fine_half", "fine")


def test_packed_images_train_as_they_did(place: Path) -> None:
    run(place, "pretrain", "--run.name", "of_packed", "--data.source", "packed")
    assert_measured(place, "of_packed", "of_packed")
    code, output = run_recipe.command("prepare", "--verify", "packed", folder=place)
    assert code == 0, output


def test_exports_and_checkpoints_load(place: Path) -> None:
    images = torch.randn(1, 3, 16, 16)
    exported = Swin.from_pretrained(place / "runs" / "pre" / "export")
    assert exported(images).shape == (1, 4, 4, 8)
    assert exported.preprocessing.mean == (0.485, 0.456, 0.406)
    trained = SimMIM.from_pretrained(place / "runs" / "half" / "checkpoints" / "step_0000000003")
    assert trained.encoder(images).isfinite().all()
    classifier = SwinClassifier.from_pretrained(place / "runs" / "fine_half" / "checkpoints" / "step_0000000003")
    assert classifier.labels == ("a", "b")
    assert classifier.preprocessing.crop_pct == 0.9
