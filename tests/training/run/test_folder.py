import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from swin_mim.data.loading.loader import Batch, Broken
from swin_mim.errors import PEER_LOST, UserError
from swin_mim.files import replace_json
from swin_mim.training.checkpoints import store
from swin_mim.training.checkpoints.state import RunState
from swin_mim.training.config.fields import leaves
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.config.parsing import from_mapping
from swin_mim.training.config.pretrain import MUTABLE, PretrainConfig, RunConfig
from swin_mim.training.config.yaml_file import to_yaml
from swin_mim.training.run import folder as run_folder
from swin_mim.training.run.jsonl import whole_lines
from swin_mim.training.run.skipped_steps import SkippedPart, SkippedStep, SkippedSteps

CONFIG = PretrainConfig(run=RunConfig(name="clouds", seed=3))
TUNING = FinetuneConfig(run=RunConfig(name="clouds", seed=3))
Config = PretrainConfig | FinetuneConfig


def changed(key: str, value: Any, of: Any = CONFIG) -> Any:
    section, _, name = key.rpartition(".")
    return replace(of, **({section: replace(getattr(of, section), **{name: value})} if section else {name: value}))


def on_disk(folder: Path, kind: type[Config] = PretrainConfig) -> Config:
    path = folder / "config.yaml"
    return from_mapping(kind, yaml.safe_load(path.read_text()), where=str(path))


def with_checkpoint(folder: Path) -> None:
    staging = store.stage(folder / "checkpoints", 1)
    replace_json(staging / "trainer.json", {})
    store.commit(staging, 1)


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


def test_mutable_settings_may_change_and_the_change_is_recorded(tmp_path: Path) -> None:
    run_folder.claim(tmp_path, CONFIG)
    with_checkpoint(tmp_path)
    values = dict(leaves(CONFIG))
    other: dict[type, Any] = {str: "7 steps", int: 7, float: 0.25, bool: True, tuple: (), type(None): "text"}
    for key in MUTABLE:
        one_of = {
            "data.workers": 7,
            "train.compile": True,
            "train.attention": "reference",
            "log.picture_channels": ("text",),
        }
        value = one_of.get(key, other[type(values[key])])
        run_folder.claim(tmp_path, changed(key, value))
        assert on_disk(tmp_path) == changed(key, value), key


def test_what_changed_is_written_down_with_the_step(tmp_path: Path) -> None:
    run_folder.claim(tmp_path, CONFIG)
    run_folder.claim(tmp_path, changed("log.every", "5 steps"))
    assert not (tmp_path / "config_changes.jsonl").exists(), "without a checkpoint it is another run"
    with_checkpoint(tmp_path)
    run_folder.claim(tmp_path, changed("log.every", "5 steps"))
    assert not (tmp_path / "config_changes.jsonl").exists(), "nothing changed"
    run_folder.claim(tmp_path, changed("log.every", "7 steps"), write=False)
    run_folder.claim(tmp_path, changed("data.workers", 3, changed("log.every", "7 steps")))
    (entry,) = whole_lines(tmp_path / "config_changes.jsonl")
    assert (entry["step"], entry["changes"]) == (1, ["data.workers: auto -> 3", "log.every: 5 steps -> 7 steps"])


def test_mutable_settings_of_a_fine_tuning_may_change_too(tmp_path: Path) -> None:
    run_folder.claim(tmp_path, TUNING)
    with_checkpoint(tmp_path)
    values = dict(leaves(TUNING))
    other: dict[type, Any] = {str: "7 steps", int: 7, float: 0.25, tuple: (), type(None): "text"}
    special = {"data.workers": 7, "train.compile": True, "train.attention": "reference", "save.export": "last"}
    free = FinetuneConfig.mutable & values.keys()
    assert {"save.export", "evaluate", "predictions", "data.validation", "hub.repo"} < free
    for key in sorted(free):
        was = values[key]
        config = changed(key, not was if isinstance(was, bool) else special.get(key, other[type(was)]), TUNING)
        assert config != TUNING
        run_folder.claim(tmp_path, config)
        assert on_disk(tmp_path, FinetuneConfig) == config, key


def ended(folder: Path, steps: int) -> None:
    """The run is said to have so many steps, and its checkpoint is of the first."""
    replace_json(folder / "run_status.json", {"status": "finished", "step": 1, "total_steps": steps})


@pytest.mark.parametrize("config", [CONFIG, TUNING])
def test_another_length_of_a_run_that_ended_extends_it(tmp_path: Path, config: Any) -> None:
    run_folder.claim(tmp_path, config)
    with_checkpoint(tmp_path)
    ended(tmp_path, 1)
    longer = changed("train.duration", "200 epochs", config)
    found, extends = run_folder.claim(tmp_path, longer)
    wanted = changed("train.extended", ("100 epochs",), longer)
    assert (found, extends) == (wanted, True)
    assert on_disk(tmp_path, type(config)) == config, "not before the run has begun"
    run_folder.write_extension(tmp_path, found)
    assert on_disk(tmp_path, type(config)) == wanted
    (entry,) = whole_lines(tmp_path / "config_changes.jsonl")
    assert (entry["step"], entry["changes"]) == (1, ["train.duration: 100 epochs -> 200 epochs"])
    # the same command, and the settings as they are written down, continue the extension
    assert run_folder.claim(tmp_path, longer) == run_folder.claim(tmp_path, wanted) == (wanted, False)
    again = run_folder.claim(tmp_path, changed("train.duration", "300 epochs", config))
    assert again == (changed("train.duration", "300 epochs", extended(wanted)), True)


def extended(config: Any) -> Any:
    return changed("train.extended", ("100 epochs", "200 epochs"), config)


def test_only_a_run_that_ended_is_extended(tmp_path: Path) -> None:
    run_folder.claim(tmp_path, CONFIG)
    with_checkpoint(tmp_path)
    longer = changed("train.duration", "200 epochs")
    for total in (None, 2):
        if total:
            ended(tmp_path, total)
        with pytest.raises(UserError, match=r"100 epochs -> 200 epochs.*; it can be made longer once it has ended"):
            run_folder.claim(tmp_path, longer)
    ended(tmp_path, 1)
    with pytest.raises(UserError, match=r"\(optim.base_lr: 0.0002 -> 0.0004\)"):
        run_folder.claim(tmp_path, changed("optim.base_lr", 4e-4, longer))
    with pytest.raises(UserError, match=r"train\.extended: \(\) -> \('3 epochs',\)"):
        run_folder.claim(tmp_path, changed("train.extended", ("3 epochs",), longer))


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("model.pretrained", "runs/other", "None -> runs/other"),
        ("augment.mixup", 0.0, "0.8 -> 0.0"),
        ("data.labels_per_class", 5, "0 -> 5"),
        ("optim.layer_decay", 1.0, "0.9 -> 1.0"),
        ("train.ema", 0.99, "0.0 -> 0.99"),
        ("save.best_by", "loss", "auto -> loss"),
    ],
)
def test_other_settings_do_not_continue_a_fine_tuning(tmp_path: Path, key: str, value: Any, shown: str) -> None:
    run_folder.claim(tmp_path, TUNING)
    with_checkpoint(tmp_path)
    with pytest.raises(UserError) as caught:
        run_folder.claim(tmp_path, changed(key, value, TUNING))
    assert f"({key}: {shown})" in str(caught.value)
    assert on_disk(tmp_path, FinetuneConfig) == TUNING


@pytest.mark.parametrize(("first", "second"), [(CONFIG, TUNING), (TUNING, CONFIG)])
def test_a_run_of_the_other_kind_is_not_continued(tmp_path: Path, first: Config, second: Config) -> None:
    run_folder.claim(tmp_path, first)
    with_checkpoint(tmp_path)
    before = (tmp_path / "config.yaml").read_bytes()
    for write in (True, False):
        with pytest.raises(UserError) as caught:
            run_folder.claim(tmp_path, second, write=write)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path} holds a run of another kind or version (unknown key ")
        assert message.endswith("start another one with --run.name")
        assert "\n" not in message
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert on_disk(tmp_path, type(first)) == first


@pytest.mark.parametrize("config", [CONFIG, TUNING])
def test_a_look_at_a_run_checks_and_writes_nothing(tmp_path: Path, config: Config) -> None:
    run_folder.claim(tmp_path, config, write=False)
    assert list(tmp_path.iterdir()) == []
    run_folder.claim(tmp_path, config)
    with_checkpoint(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run_folder.claim(tmp_path, changed("log.every", "7 steps", config), write=False)
    with pytest.raises(UserError, match=r"run\.seed: 3 -> 4"):
        run_folder.claim(tmp_path, changed("run.seed", 4, config), write=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


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


def test_a_skipped_step_is_listed_with_its_images(tmp_path: Path) -> None:
    path = tmp_path / "skipped_steps.jsonl"
    nan = float("nan")
    for rank, parts in ((0, []), (1, [SkippedPart(36, [7, 2], nan)])):
        skips = SkippedSteps(path, seed=3, rank=rank, name_of=lambda index: f"{index}.png")
        skips.add(SkippedStep(5, (32, 40), nan, float("inf"), parts))
    common = {"step": 5, "positions": [32, 40], "seed": 3}
    assert whole_lines(path) == [
        common | {"loss": "nan", "grad_norm": "inf"},
        common | {"process": 1, "loss": "nan", "images": [[36, "7.png"], [37, "2.png"]]},
    ]


class Gone(torch.distributed.DistBackendError):
    pass


@pytest.mark.parametrize(
    "error",
    [RuntimeError("[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2"), Gone("NCCL\nmore")],
)
def test_a_lost_process_is_said_in_one_line(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(UserError) as caught, run_folder.reported(tmp_path, RunState(), 10, main=True):
        raise error
    assert caught.value.code == PEER_LOST
    assert caught.value.local
    assert "another process of the run is gone" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert status(tmp_path)["status"] == "failed"


def test_a_home_folder_is_written_as_one_and_is_the_same_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/jo")
    config = changed("model.pretrained", "/home/jo/runs/a", changed("data.source", "/home/jo/photos", TUNING))
    run_folder.claim(tmp_path, config)
    with_checkpoint(tmp_path)
    assert "/home/jo" not in (tmp_path / "config.yaml").read_text()
    assert on_disk(tmp_path, FinetuneConfig).data.source == "~/photos"
    run_folder.claim(tmp_path, config)
    run_folder.claim(tmp_path, changed("model.pretrained", "~/runs/a", config))
    assert not (tmp_path / "config_changes.jsonl").exists()
    (tmp_path / "config.yaml").write_text(to_yaml(config))  # of a version that wrote it out
    run_folder.claim(tmp_path, config)
    with pytest.raises(UserError, match=r"model\.pretrained: ~/runs/a -> ~/runs/b"):
        run_folder.claim(tmp_path, changed("model.pretrained", "/home/jo/runs/b", config))


def test_a_run_of_before_goes_on_without_colour_conversion(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its config has no data.color_profile; whoever wants the conversion gets it, and from then on it is fixed."""
    caplog.set_level("INFO")
    old = changed("data.color_profile", "ignore")
    run_folder.claim(tmp_path, old)
    with_checkpoint(tmp_path)
    path = tmp_path / "config.yaml"
    began = "".join(line for line in path.read_text().splitlines(keepends=True) if "color_profile" not in line)
    for config, said in ((old, "goes on so"), (CONFIG, "converted from here on")):
        path.write_text(began)
        caplog.clear()
        run_folder.claim(tmp_path, config, write=False)
        assert caplog.messages == []
        run_folder.claim(tmp_path, config)
        assert [said in message for message in caplog.messages] == [True]
        assert on_disk(tmp_path) == config
        run_folder.claim(tmp_path, config)
        assert len(caplog.messages) == 1
    with pytest.raises(UserError, match=r"data\.color_profile: convert -> ignore"):
        run_folder.claim(tmp_path, old)


def test_a_folder_full_of_broken_images_does_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "broken.jsonl"
    names = [f"{number}.jpg" for number in range(30)]
    broken = Batch(torch.zeros(1), 0, [Broken(name, "empty") for name in names], torch.zeros(1))
    list(run_folder.BrokenImages(path, "it is left out").watch(iter([broken, broken])))
    assert [entry["name"] for entry in whole_lines(path)] == names
    assert len(caplog.messages) == 21
    assert caplog.messages[0] == "cannot read 0.jpg (empty): it is left out"
    assert "further images that cannot be read are only listed" in caplog.messages[-1]
