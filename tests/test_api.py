"""swin_mim.pretrain: twice in a process, from a thread, beside a caller's own accelerator and log."""

import logging
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from safetensors.torch import load_file

import swin_mim
import swin_mim.api

SETTINGS: dict[str, Any] = {
    "run.name": "api",
    "data.workers": 0,
    "data.heldout": 4,
    "model.embed_dim": 16,
    "model.depths": [1, 1],
    "model.num_heads": [1, 2],
    "model.image_size": 32,
    "model.window_size": 4,
    "optim.warmup": "2 steps",
    "train.duration": "6 steps",
    "train.global_batch": 8,
    "train.micro_batch": 8,
    "train.threads": 1,
    "log.every": "1 step",
    "log.evaluate_every": "3 steps",
    "log.pictures_every": "3 steps",
    "log.trackers": [],
    "save.every": "3 steps",
}


@pytest.fixture(autouse=True)
def _cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for number in range(44):
        Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)).resize((50, 40)).save(folder / f"{number}.png")
    return folder


def weights(result: swin_mim.api.PretrainResult) -> dict[str, torch.Tensor]:
    assert result.export is not None
    return load_file(result.export / "model.safetensors")


def losses(result: swin_mim.api.PretrainResult) -> list[float]:
    return [row["loss"] for row in result.metrics if "loss" in row]


def test_a_run_is_continued_by_the_same_call_and_ends_as_one_at_a_go(photos: Path) -> None:
    half = swin_mim.pretrain(photos, "demo", **SETTINGS, **{"train.stop_after": "3 steps"})
    assert (half.finished, half.export) == (False, None)
    result = swin_mim.pretrain(photos, "demo", **SETTINGS)
    assert result.finished
    assert result.run == Path("runs/api")
    assert result.metrics[-1]["step"] == 6
    assert {"loss", "grad_norm"} <= {key for row in result.metrics for key in row}
    (picture,) = result.pictures
    assert picture.mode == "RGB"
    assert picture.width > 100
    assert swin_mim.Swin.from_pretrained(result.export).preprocessing.mean  # type: ignore[arg-type]

    again = swin_mim.pretrain(photos, "demo", **SETTINGS | {"run.name": "at_a_go"})
    assert losses(again) == losses(result)
    one, other = weights(result), weights(again)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_in_another_thread_signals_are_left_alone_and_it_says_so(
    photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    found: list[Any] = []

    def work() -> None:
        found.append(swin_mim.pretrain(photos, "demo", **SETTINGS))
        found.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].finished
    assert found[1] == before
    assert "not the main thread" in capfd.readouterr().err


def test_two_at_a_time_are_refused(photos: Path) -> None:
    with swin_mim.api._busy, pytest.raises(ValueError, match="another thread of this process"):
        swin_mim.pretrain(photos, "demo", **SETTINGS)


def test_what_the_caller_had_stays_as_it_was(photos: Path) -> None:
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    log, handler = logging.getLogger("swin_mim"), logging.NullHandler()
    log.addHandler(handler)
    before = log.level, log.propagate, list(log.handlers), torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    numbers = torch.random.get_rng_state()
    try:
        assert swin_mim.pretrain(photos, "demo", **SETTINGS).finished
        assert AcceleratorState().mixed_precision == "bf16"
        assert accelerator.num_processes == 1
        after = log.level, log.propagate, list(log.handlers), torch.get_num_threads(), signal.getsignal(signal.SIGINT)
        assert after == before
        assert torch.equal(torch.random.get_rng_state(), numbers)
    finally:
        log.removeHandler(handler)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        PartialState._reset_state()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train.durations": "6 steps"}, "train.duration"),
        ({"train.global_batch": 17}, "train.global_batch 17 is not a multiple"),
        ({"model.window_size": "large"}, "model.window_size"),
    ],
)
def test_a_mistake_is_a_value_error_of_one_line(photos: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        swin_mim.pretrain(photos, "demo", **SETTINGS | settings)
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()


def test_a_second_run_in_the_same_folder_is_refused(photos: Path) -> None:
    first, second = SETTINGS, SETTINGS | {"model.depths": [1, 2]}
    swin_mim.pretrain(photos, "demo", **first)
    with pytest.raises(ValueError, match="holds a run with other settings"):
        swin_mim.pretrain(photos, "demo", **second)
    with pytest.raises(ValueError, match="does not exist"):
        swin_mim.pretrain("nowhere/at/all", "demo", **SETTINGS | {"run.name": "none"})
    assert swin_mim.pretrain(photos, "demo", **first).finished


def test_several_processes_are_the_commands_matter(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"accelerate launch -m swin_mim\.recipes\.pretrain"):
        swin_mim.pretrain(photos, "demo", **SETTINGS)
