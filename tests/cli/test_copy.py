"""Copies of recipes, configs and launch files: what there is, what comes along, and what is never overwritten."""

from pathlib import Path

import pytest
import yaml

from swin_mim.cli import copy
from swin_mim.training.config.shipped import recipes_folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        copy.main(arguments)
    said = capsys.readouterr()
    assert (left.value.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    return said.err


def test_everything_is_listed_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    copy.main([])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"pretrain.py", "finetune.py", "demo.yaml", "zero2.yaml"} <= set(lines)
    assert lines["pretrain.py"].startswith("Pretrain a Swin Transformer with SimMIM")
    assert "zero2.json" not in lines  # it comes with zero2.yaml
    assert "__init__.py" not in lines


@pytest.mark.parametrize("name", ["pretrain.py", "pretrain"])
def test_a_recipe_comes_with_its_config(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy.main([name])
    assert capsys.readouterr().out == "pretrain.py\ndemo.yaml\n"
    assert (folder / "pretrain.py").read_text() == (recipes_folder() / "pretrain.py").read_text()
    assert (folder / "demo.yaml").read_text() == (recipes_folder() / "configs" / "demo.yaml").read_text()


def test_a_config_by_name_into_a_new_folder(folder: Path) -> None:
    copy.main(["simmim_swin_tiny_192_100ep", "mine/configs"])
    assert [path.name for path in (folder / "mine/configs").iterdir()] == ["simmim_swin_tiny_192_100ep.yaml"]


@pytest.mark.parametrize(("where", "path"), [(".", "zero2.json"), ("launch", "launch/zero2.json")])
def test_a_launch_file_finds_its_json(where: str, path: str, folder: Path) -> None:
    copy.main(["zero2.yaml", where])
    found = yaml.safe_load((folder / where / "zero2.yaml").read_text())
    assert found["deepspeed_config"]["deepspeed_config_file"] == path
    assert (folder / path).is_file()


def test_nothing_is_overwritten_without_being_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "demo.yaml").write_text("mine")
    said = failure(capsys, "pretrain.py")
    assert said == "error: demo.yaml exists: name another folder, or overwrite it with --force\n"
    assert (folder / "demo.yaml").read_text() == "mine"
    assert not (folder / "pretrain.py").exists()
    copy.main(["pretrain.py", "--force"])
    assert (folder / "demo.yaml").read_text() != "mine"


def test_mistakes_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, "pretain.py").endswith("did you mean pretrain.py?\n")
    assert failure(capsys, "xyz").endswith("swin-mim copy lists the files\n")
    (folder / "file").write_text("")
    assert failure(capsys, "demo", "file").startswith("error: cannot write file")
