"""Which config and which name a command has that gives none."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swin_mim.errors import UserError
from swin_mim.training.config.commands import finetune_config, pretrain_config, pretrain_settings
from swin_mim.training.config.defaults import source_name
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.config.yaml_file import to_yaml


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def began(folder: Path, config: Any, *, without: str = "") -> None:
    """A run of this config that was stopped; without a setting as if an earlier version had written it."""
    (folder / "checkpoints" / "step_0000000001").mkdir(parents=True)
    lines = to_yaml(config).splitlines(keepends=True)
    (folder / "config.yaml").write_text("".join(line for line in lines if not without or without not in line))


@pytest.mark.parametrize(("source", "name"), [
    ("photos", "photos"),
    ("/a/b/photos/", "photos"),
    ("~/photos", "photos"),
    ("photos/train", "photos"),
    ("photos/Validation/", "photos"),
    ("user/name", "name"),
    ("my photos (1)", "my_photos_1"),
    ("été.v2", "été.v2"),
    ("https://host/birds/train-{000..127}.tar?token=x", "birds"),
    ("s3://user:pass@bucket/train/*.parquet", "bucket"),
    ("hf://datasets/user/clouds", "clouds"),
    ("/", "images"),
    ("train", None),
])  # fmt: skip
def test_a_source_has_a_name_that_is_one_folder(source: str, name: str | None, place: Path) -> None:
    assert source_name(source) == (name or place.name)


def test_a_table_is_called_without_its_suffix(place: Path) -> None:
    (place / "labels.csv").write_text("")
    (place / "v1.0").mkdir()
    assert source_name("labels.csv") == "labels"
    assert source_name("v1.0") == "v1.0"


def test_a_run_on_own_images_is_named_after_them() -> None:
    assert pretrain_config([]).run.name == "demo"
    assert pretrain_config(["--data.source", "blue_marble"]).run.name == "demo"
    assert pretrain_config(["--data.source", "user/clouds"]).run.name == "clouds"
    assert pretrain_config(["--data.source", "photos", "--run.name", "mine"]).run.name == "mine"
    assert pretrain_config(["--config", "demo", "--data.source", "photos"]).run.name == "demo"
    assert pretrain_settings(None, {"data.source": "photos"}).run.name == "photos"
    assert pretrain_settings({"data": {"source": "photos"}}, {}).run.name == "photos"
    assert finetune_config([]).run.name == "finetune_demo"
    flags = ["--data.source", "photos/train", "--model.pretrained", "runs/photos"]
    assert finetune_config(flags).run.name == "finetune_photos"


def test_a_config_without_a_name_is_named_after_its_source(place: Path) -> None:
    (place / "mine.yaml").write_text("data: {source: photos}")
    assert pretrain_config(["--config", "mine.yaml"]).run.name == "photos"
    (place / "nothing.yaml").write_text("")
    with pytest.raises(UserError, match=r"run\.name is missing"):
        pretrain_config(["--config", "nothing.yaml"])


def test_own_images_do_not_inherit_what_suits_the_demo(caplog: pytest.LogCaptureFixture) -> None:
    demo = finetune_config([])
    assert (demo.data.labels_per_class, demo.model.pretrained, caplog.messages) == (100, "runs/demo", [])
    own = finetune_config(["--data.source", "photos", "--model.pretrained", "runs/a"])
    assert (own.data.labels_per_class, own.augment.flips, own.train.duration) == (0, "horizontal", "30 epochs")
    assert caplog.messages == ["no --config: the settings are those of finetune_images, which --print-config shows"]
    with pytest.raises(UserError, match=r"give --model\.pretrained"):
        finetune_config(["--data.source", "photos"])
    channels = ["--data.channels", "red", "nir", "--data.mean", "1", "2", "--data.std", "1", "2"]
    assert finetune_config(["--data.source", "a", "--model.pretrained", "b", *channels]).augment.auto is None


@pytest.mark.parametrize("settings", [{}, {"data.source": "photos", "run.name": "demo"}])
def test_a_run_that_an_earlier_version_called_demo_goes_on(
    settings: dict[str, str], place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began(place / "runs" / "demo", pretrain_settings("demo", settings))
    goes_on = bool(settings)
    assert pretrain_config(["--data.source", "photos"]).run.name == ("demo" if goes_on else "photos")
    assert any("goes on; --run.name starts another one" in message for message in caplog.messages) == goes_on
    began(place / "runs" / "photos", pretrain_settings("demo", {"data.source": "photos"}))
    assert pretrain_config(["--data.source", "photos"]).run.name == "photos"


def test_an_evaluation_goes_to_the_run_or_to_a_folder_of_its_own(place: Path) -> None:
    train = ["--data.source", "photos/train", "--model.pretrained", "runs/a"]

    def name(*flags: str) -> str:
        return finetune_config(["--evaluate", *flags]).run.name

    assert name(*train) == "evaluate_photos"
    began(place / "runs" / "finetune_photos", finetune_config(train))
    assert name(*train) == "finetune_photos"
    assert name("--data.source", "photos/train") == "finetune_photos"
    assert name("--data.source", "photos/test", "--model.pretrained", "runs/finetune_photos") == "evaluate_photos"
    assert name(*train, "--data.validation", "others") == "finetune_photos"
    assert name("--data.source", "clouds", "--model.pretrained", "runs/finetune_photos") == "evaluate_clouds"


@pytest.mark.parametrize("load", [pretrain_config, finetune_config])
def test_a_run_keeps_the_colours_that_it_began_with(load: Callable[[list[str]], Any], place: Path) -> None:
    new = load(["--run.name", "new"])
    assert new.data.color_profile == "convert"
    began(place / "runs" / "new", new)
    assert load(["--run.name", "new"]).data.color_profile == "convert"
    began(place / "runs" / "old", new, without="color_profile")
    assert load(["--run.name", "old"]).data.color_profile == "ignore"
    assert load(["--run.name", "old", "--data.color-profile", "convert"]).data.color_profile == "convert"
    (place / "runs" / "old" / "checkpoints" / "step_0000000001").rmdir()
    assert load(["--run.name", "old"]).data.color_profile == "convert"


def test_remarks_are_said_by_one_process_and_of_no_evaluation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    flags = ["--data.source", "photos", "--model.pretrained", "runs/a"]
    assert isinstance(finetune_config([*flags, "--evaluate"]), FinetuneConfig)
    monkeypatch.setenv("RANK", "1")
    finetune_config(flags)
    assert caplog.messages == []
