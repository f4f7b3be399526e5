"""The probe of an encoder as a command: its table, its JSON, and what it says of mistakes."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swin_mim import SimMIM, SwinConfig
from swin_mim.cli import probe
from swin_mim.models.saving import Preprocessing

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder in mim/, and photos/ of two classes that differ in where they are bright, not in colour."""
    root = tmp_path_factory.mktemp("probe")
    rng = np.random.default_rng(0)
    for name, rows in (("stripes", slice(None, None, 2)), ("halves", slice(0, 8))):
        for number in range(40):
            picture = rng.integers(0, 200, (16, 16, 3), dtype=np.uint8)
            picture[rows] += 55
            path = root / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    torch.manual_seed(5)  # the random weights beside it are those of --seed 0
    SimMIM(SwinConfig(16, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)).save_pretrained(root / "mim")
    return root


def test_table_and_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe.main([
        *(str(folder / "mim"), "--source", str(folder / "photos"), "--images", "60", "--workers", "0"),
        *("--json", str(tmp_path / "probe.json")),
    ])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "probe.json").read_text())
    assert report["classes"] == ["halves", "stripes"]
    assert (report["learnt_from"], report["tested_on"]) == (60, 8)
    assert len(report["stages"]) == len(report["random_weights"]) == 2
    # where it is bright can be seen by any encoder; the colours do not tell
    assert max(stage["linear"] for stage in report["stages"]) > report["colours"]["linear"]
    assert report["stages"] != report["random_weights"]
    assert [line.split("  ")[0] for line in lines[3:]] == ["colours alone", "stage 1", "stage 2"]
    for line, own, other in zip(lines[4:], report["stages"], report["random_weights"], strict=True):
        numbers = [f"{100 * scores[kind]:.1f}" for kind in ("linear", "knn") for scores in (own, other)]
        assert [word for word in line.split()[2:] if not word.startswith("(")] == numbers


def test_the_same_command_says_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(folder / "mim"), "--source", str(folder / "photos"), "--images", "20", "--workers", "0"]
    said = []
    for seed in ("1", "1", "2"):
        probe.main([*command, "--seed", seed, "--json", "-"])
        said.append(capsys.readouterr())
    assert said[0] == said[1] != said[2]
    assert len(json.loads(said[0].out)["stages"]) == 2  # and the table is not in it
    assert "stage 2" in said[0].err


@pytest.mark.parametrize(("flags", "text"), [
    (["--images", "0"], "--images 0 must be at least 1"),
    (["--workers", "-1"], "--workers -1 must be at least 0"),
    (["--json", "no/such/folder.json"], "argument --json: no/such/folder.json: there is no folder"),
    (["--label-column", "kind"], "belongs to tables"),
])  # fmt: skip
def test_a_users_mistake_is_one_line(
    flags: list[str], text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        probe.main([str(folder / "mim"), "--source", str(folder / "photos"), "--workers", "0", *flags])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.strip().count("\n") == 0


def test_the_help_says_how_to_read_it() -> None:
    done = subprocess.run([sys.executable, "-m", "swin_mim", "probe", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "under-rates masked image models" in done.stdout


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of two channels in mim/, and scenes/ of two classes that differ in their second channel."""
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for number in range(48):
        values = rng.normal(1000, 100, (16, 16, 2))
        values[..., 1] += number % 2 * 150
        values[rng.random((16, 16)) < rng.random() / 2] = -9999
        path = root / "scenes" / ("low", "high")[number % 2] / f"{number}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, vv=values[..., 0].astype(np.int16), vh=values[..., 1].astype(np.int16))
    torch.manual_seed(5)
    model = SimMIM(SwinConfig(16, in_channels=2, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4))
    model.preprocessing = Preprocessing((1000.0, 1075.0), (100.0, 125.0), ("vv", "vh"), scale=1, nodata=-9999.0)
    model.save_pretrained(root / "mim")
    return root


def test_images_of_other_channels(scenes: Path, capsys: pytest.CaptureFixture[str], told: list[str]) -> None:
    """They are read as the model says."""
    command = [str(scenes / "mim"), "--source", str(scenes / "scenes"), "--workers", "0", "--json", "-"]
    probe.main([*command, "--nodata", "-9999"])
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["colours"]["linear"] == report["stages"][0]["linear"] == 1
    assert "values alone" in said.err
    assert not told
    probe.main([*command, "--channels", "vv", "vh"])
    assert json.loads(capsys.readouterr().out)["stages"] != report["stages"]  # gaps were read as values, as it says:
    assert "was trained with data.nodata -9999.0" in told[0]


@pytest.fixture
def told() -> Iterator[list[str]]:
    """Warnings of the package."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("swin_mim").addHandler(handler)
    yield lines
    logging.getLogger("swin_mim").removeHandler(handler)


@pytest.mark.parametrize(
    ("which", "flags", "text"),
    [
        ("scenes", ["--channels", "vh", "vv"], "takes 2 channels (vv, vh) as they stand in the files, and images are"),
        ("scenes", ["--stack", "{image}.npy"], "data.stack '{image}.npy' must be the path"),
        ("folder", ["--channels", "1", "2", "3"], "takes 3 channels (red, green, blue) of values from 0 to 1"),
        ("folder", ["--nodata", "0"], "--nodata is of images of any channels, and"),
        ("folder", ["--stack", "{image}_{channel}.png"], "--stack is of images of any channels, and"),
    ],
)
def test_channels_that_the_model_does_not_take(
    which: str, flags: list[str], text: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    root = request.getfixturevalue(which)
    images = root / ("scenes" if which == "scenes" else "photos")
    with pytest.raises(SystemExit) as caught:
        probe.main([str(root / "mim"), "--source", str(images), "--workers", "0", *flags])
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_images_that_cannot_be_read_are_not_counted(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scenes / "scenes", tmp_path / "scenes")
    for number in (0, 3, 5):
        (tmp_path / "scenes" / ("low", "high")[number % 2] / f"{number}.npz").write_bytes(b"broken")
    command = [str(scenes / "mim"), "--workers", "0", "--nodata", "-9999", "--source", str(tmp_path / "scenes")]
    probe.main([*command, "--json", "-"])
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["learnt_from"] + report["tested_on"] == 45
    assert "3 of 48 images cannot be read, the first: " in said.err
    for file in (tmp_path / "scenes" / "low").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(SystemExit):
        probe.main(command)
    assert ": there are none of 'low' to learn from" in capsys.readouterr().err
