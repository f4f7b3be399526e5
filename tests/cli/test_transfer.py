"""The transfer comparison: its arithmetic on made-up cells, and the whole of it on a tiny model."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from swin_mim import SimMIM, SwinConfig
from swin_mim.cli.transfer.cells import Cell, balanced, second_half
from swin_mim.cli.transfer.command import main
from swin_mim.cli.transfer.report import plot, summary, table


def cell(first: float, second: float) -> dict[str, object]:
    """What a run measured that has these accuracies on the halves, of 60 and 40 images."""
    halves = [[first, first / 2, 60], [second, second / 2, 40]]
    return {"accuracy": 0.0, "balanced_accuracy": 0.0, "halves": halves, "curve": [[1, 0.1], [2, first]]}


CELLS = {
    ("scratch", 10, 0.1, 0): cell(0.5, 0.2),
    ("scratch", 10, 0.1, 1): cell(0.3, 0.2),
    ("scratch", 10, 0.2, 0): cell(0.2, 0.6),
    ("scratch", 10, 0.2, 1): cell(0.2, 0.8),
    ("model1", 10, 0.1, 0): cell(0.9, 0.9),
    ("model1", 10, 0.1, 1): cell(0.9, 0.9),
    ("model1", 10, 0.2, 0): cell(0.1, 0.1),
    ("model1", 10, 0.2, 1): cell(0.1, 0.1),
    ("model2", 10, 0.1, 0): cell(0.7, 0.7),
    ("model2", 10, 0.1, 1): cell(0.7, 0.7),
    ("model2", 10, 0.2, 0): cell(0.8, 0.8),
    ("model2", 10, 0.2, 1): cell(0.8, 0.8),
}


def test_no_half_is_reported_under_the_rate_that_it_chose() -> None:
    """For new weights the first half likes 0.1 and the second 0.2: each gets the other one's."""
    (entry,) = summary(CELLS, [10])
    new = entry["scratch"]
    assert new["rates"] == [0.2, 0.1]
    assert new["accuracy"]["values"] == pytest.approx([0.6 * 0.2 + 0.4 * 0.2, 0.6 * 0.2 + 0.4 * 0.2])
    assert new["balanced_accuracy"]["mean"] == pytest.approx(0.1)
    assert new["accuracy_of_each_rate"]["0.1"] == pytest.approx(0.6 * 0.4 + 0.4 * 0.2)


def test_several_pretrainings_count_as_one() -> None:
    """One rate for both, by the mean over all their runs."""
    (entry,) = summary(CELLS, [10])
    pretrained = entry["pretrained"]
    assert pretrained["rates"] == [0.1, 0.1]
    assert pretrained["runs"] == ["model1, seed 0", "model1, seed 1", "model2, seed 0", "model2, seed 1"]
    assert pretrained["accuracy"]["values"] == pytest.approx([0.9, 0.9, 0.7, 0.7])
    assert pretrained["accuracy"]["mean"] == pytest.approx(0.8)
    assert pretrained["accuracy"]["std"] == pytest.approx(np.std([0.9, 0.9, 0.7, 0.7], ddof=1))
    assert entry["gain"]["accuracy"] == pytest.approx(0.8 - 0.2)


def test_halves_of_each_class() -> None:
    labels = np.array(["a", "b", "a", "a", "b", "b", "b", "c"])
    assert second_half(labels).tolist() == [False, False, False, True, False, True, True, False]
    assert balanced(np.array([True, False, True, False]), np.array(["a", "a", "a", "b"])) == pytest.approx(1 / 3)


def test_table_and_picture(tmp_path: Path) -> None:
    entries = summary(CELLS, [10])
    for entry in entries:
        entry["colours"] = entry["scratch"]
        entry["curves"] = {"scratch": [(1, 0.1), (2, 0.2)], "pretrained": [(1, 0.5), (2, 0.8)]}
    report = {"summary": entries}
    row = table(report).splitlines()[2]
    assert row == "| 10 | 20.0 ± 0.0 (10.0) | 80.0 ± 11.5 (40.0) | +60.0 (+30.0) | 20.0 ± 0.0 (10.0) |"
    plot(report, tmp_path / "transfer.png")
    Image.open(tmp_path / "transfer.png").verify()


def test_names_of_cells_are_all_different() -> None:
    cells = [Cell(*key) for key in CELLS] + [Cell("model1", 0, 0.1, 0), Cell("model11", 10, 0.1, 0)]
    cells += [Cell("scratch", 10, 0.1, 0, steps) for steps in (5, 50)]
    assert len({each.name for each in cells}) == len(cells)


SETTINGS = {
    "run": {"name": "transfer"},
    "data": {"workers": 0, "crop_scale": [0.5, 1.0]},
    "augment": {"auto": None, "random_erasing": 0.0, "mix_probability": 0.0},
    "optim": {"warmup": "2 steps"},
    "train": {"duration": "5 steps", "global_batch": 8, "micro_batch": 8, "precision": "fp32"},
    "log": {"every": "3 steps", "evaluate_every": "3 steps", "trackers": []},
    "save": {"every": "3 steps"},
}


@pytest.fixture
def comparison(tmp_path: Path) -> list[str]:
    """A command line: one pretraining, one number of labels, one rate, one seed."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 5)):
        for number, name in enumerate(("blue", "red")):
            for i in range(count):
                picture = rng.integers(0, 140, (20, 20, 3), dtype=np.uint8)
                picture[..., 2 - 2 * number] += 100
                path = tmp_path / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    SimMIM(SwinConfig(16, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)).save_pretrained(
        tmp_path / "mim"
    )
    folders = {"source": str(tmp_path / "train"), "validation": str(tmp_path / "val")}
    (tmp_path / "transfer.yaml").write_text(yaml.safe_dump(SETTINGS | {"data": SETTINGS["data"] | folders}))
    command = [sys.executable, "-m", "swin_mim", "transfer", str(tmp_path / "mim"), "--config"]
    command += [str(tmp_path / "transfer.yaml"), "--out", str(tmp_path / "out"), "--jobs", "2"]
    return [*command, "--seeds", "1", "--labels", "3", "--rates", "0.05"]


@pytest.mark.slow
def test_a_comparison_is_run_once_and_extended(comparison: list[str], tmp_path: Path) -> None:
    comparison += ["--steps", "6"]
    done = subprocess.run(comparison, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "[2/2]" in done.stdout
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    (entry,) = report["summary"]
    assert entry["labels"] == 3
    assert 0 <= entry["scratch"]["accuracy"]["mean"] <= 1
    assert entry["colours"]["accuracy"]["mean"] == 1.0
    assert entry["curves"]["pretrained"][-1][0] == 6
    assert "| 3 |" in (tmp_path / "out" / "table.md").read_text()
    cells = sorted((tmp_path / "out" / "cells").iterdir())
    assert [path.name for path in cells] == [f"{arm}_labels3_steps6_rate0.05_seed0" for arm in ("model1", "scratch")]
    assert not (cells[0] / "checkpoints").exists()
    config = yaml.safe_load((cells[1] / "config.yaml").read_text())
    assert (config["model"]["pretrained"], config["optim"]["layer_decay"]) == (None, 1.0)
    assert (config["model"]["embed_dim"], config["model"]["image_size"]) == (8, [16, 16])

    before = {path: path.stat().st_mtime_ns for path in cells[0].iterdir()}
    again = subprocess.run(comparison, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert "[" not in again.stdout.splitlines()[0]
    assert {path: path.stat().st_mtime_ns for path in cells[0].iterdir()} == before

    other = subprocess.run(
        [*comparison, "--", "--train.duration", "7 steps"], capture_output=True, text=True, timeout=240
    )
    assert other.returncode == 2
    assert "holds cells with other settings" in other.stderr
    assert other.stderr.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_stops_the_runs_with_checkpoints_and_the_same_command_goes_on(
    comparison: list[str], tmp_path: Path
) -> None:
    long = [
        "--",
        "--train.duration",
        "400000 steps",
        "--log.evaluate_every",
        "400000 steps",
        "--save.every",
        "400000 steps",
    ]
    process = subprocess.Popen(
        [*comparison, *long],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that starts the tests in the background has them, and all below, ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    outputs = [
        tmp_path / "out" / "cells" / f"{arm}_labels3_rate0.05_seed0" / "output.txt" for arm in ("scratch", "model1")
    ]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not all(file.is_file() and "step " in file.read_text() for file in outputs):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    for file in outputs:
        assert "with a checkpoint" in file.read_text()
        assert list((file.parent / "checkpoints").glob("step_*"))


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Compare in this process -> what was said on stderr."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    return capsys.readouterr().err


def test_a_failing_run_is_named_with_what_it_said(comparison: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = refused([*comparison[4:], "--", "--optim.warmup", "6 steps"], capsys)
    assert "failed (error: optim.warmup '6 steps' does not end before the run" in said.splitlines()[-1]


@pytest.mark.parametrize(("flags", "text"), [
    (["--rates", "fast"], "'fast' is not a learning rate"),
    (["--seeds", "0"], "must be at least 1"),
    (["--steps", "5", "6"], "--steps has 2 values and --labels 1"),
    (["--labels", "-3"], "'-3' is not a whole number"),
    (["--config", "nowhere.yaml"], "no config file nowhere.yaml"),
    (["--", "--data.multi_label"], "data.multi_label"),
])  # fmt: skip
def test_a_users_mistake_is_one_line(
    flags: list[str], text: str, comparison: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused([*comparison[4:], *flags], capsys)
    assert text in said
    assert said.strip().count("\n") == 0
