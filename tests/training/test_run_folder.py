import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from swin_mim.errors import UserError
from swin_mim.training import checkpoint, run_folder
from swin_mim.training.config import FREE, PretrainConfig, RunConfig, from_mapping, leaves
from swin_mim.training.run_state import RunState

CONFIG = PretrainConfig(run=RunConfig(name="clouds", seed=3))


def changed(key: str, value: Any) -> PretrainConfig:
    section, name = key.split(".")
    return replace(CONFIG, **{section: replace(getattr(CONFIG, section), **{name: value})})


def on_disk(folder: Path) -> PretrainConfig:
    path = folder / "config.yaml"
    return from_mapping(PretrainConfig, yaml.safe_load(path.read_text()), where=str(path))


def with_checkpoint(folder: Path) -> None:
    staging = checkpoint.stage(folder / "checkpoints", 1)
    checkpoint.write_json(staging / "trainer.json", {})
    checkpoint.commit(staging, 1)


def test_a_new_folder_gets_the_settings_as_they_are(tmp_path: Path) -> None:
    run_folder.claim(tmp_path, CONFIG)
    assert on_disk(tmp_path) == CONFIG
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_same_settings_continue(tmp_path: Path) -> None:
    run_folder.claim(tmp_path, CONFIG)
    with_checkpoint(tmp_path)
    before = (tmp_path / "config.yaml").read_bytes()
    run_folder.claim(tmp_path, CONFIG)
    assert (tmp_path / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("optim.base_lr", 4e-4, ("0.0002", "0.0004")),
        ("run.seed", 4, ("3", "4")),
        ("model.image_size", (128,), ("192", "128")),
        ("model.depths", (2, 2, 2, 2), ("None", "(2, 2, 2, 2)")),
        ("mask.ratio", 0.5, ("0.6", "0.5")),
        ("train.duration", "200 epochs", ("100 epochs", "200 epochs")),
        ("train.global_batch", 1024, ("2048", "1024")),
        ("data.mean", (0.5, 0.5, 0.5), ("0.485", "0.5")),
    ],
)
def test_other_settings_do_not_continue_a_run(tmp_path: Path, key: str, value: Any, shown: tuple[str, str]) -> None:
    run_folder.claim(tmp_path, CONFIG)
    with_checkpoint(tmp_path)
    with pytest.raises(UserError) as caught:
        run_folder.claim(tmp_path, changed(key, value))
    message = str(caught.value)
    assert key in message
    assert shown[0] in message.split(" -> ")[0]
    assert shown[1] in message.split(" -> ")[1]
    assert str(tmp_path) in message
    assert "--run.name" in message
    assert "\n" not in message
    assert on_disk(tmp_path) == CONFIG, "a refused start leaves the run as it is"


def test_every_difference_is_named(tmp_path: Path) -> None:
    run_folder.claim(tmp_path, CONFIG)
    with_checkpoint(tmp_path)
    config = replace(changed("optim.base_lr", 1e-3), mask=replace(CONFIG.mask, unit=16))
    with pytest.raises(UserError, match=r"mask\.unit.*optim\.base_lr"):
        run_folder.claim(tmp_path, config)


def test_free_settings_may_change_and_the_change_is_recorded(tmp_path: Path) -> None:
    run_folder.claim(tmp_path, CONFIG)
    with_checkpoint(tmp_path)
    values = dict(leaves(CONFIG))
    other: dict[type, Any] = {str: "7 steps", int: 7, float: 0.25, bool: True, tuple: (), type(None): "text"}
    for key in FREE:
        value = "reference" if key == "train.attention" else other[type(values[key])]
        run_folder.claim(tmp_path, changed(key, value))
        assert on_disk(tmp_path) == changed(key, value), key


def test_without_a_checkpoint_there_is_no_run_to_protect(tmp_path: Path) -> None:
    run_folder.claim(tmp_path, CONFIG)
    config = changed("optim.base_lr", 4e-4)
    run_folder.claim(tmp_path, config)
    assert on_disk(tmp_path) == config


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run_status.json").read_text())


@pytest.mark.parametrize(("end", "said"), [(10, "finished"), (9, "stopped")])
def test_the_status_follows_the_run(tmp_path: Path, end: int, said: str) -> None:
    state = RunState(step=4)
    with run_folder.reported(tmp_path, state, 10, main=True):
        assert (status(tmp_path)["status"], status(tmp_path)["step"]) == ("running", 4)
        state.step = end
    done = status(tmp_path)
    assert done.pop("time")
    assert done == {"status": said, "step": end, "total_steps": 10}


@pytest.mark.parametrize("error", [RuntimeError, UserError, KeyboardInterrupt, SystemExit])
def test_a_run_that_ends_by_an_error_has_failed(tmp_path: Path, error: type[BaseException]) -> None:
    state = RunState()
    with pytest.raises(error), run_folder.reported(tmp_path, state, 10, main=True):  # noqa: PT012
        state.step = 10
        raise error("oh")
    assert (status(tmp_path)["status"], status(tmp_path)["step"]) == ("failed", 10)


def test_only_the_main_process_writes_the_status(tmp_path: Path) -> None:
    with run_folder.reported(tmp_path, RunState(), 10, main=False):
        pass
    with pytest.raises(OSError, match="oh"), run_folder.reported(tmp_path, RunState(), 10, main=False):
        raise OSError("oh")
    assert list(tmp_path.iterdir()) == []
