"""swin-mim report --facts: the page of a pretraining says of its images what the doctor says of them."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from swin_mim.cli import report
from swin_mim.cli.doctor import command as doctor
from swin_mim.evaluation.report import findings, looked_at, page
from swin_mim.evaluation.report.page import render
from swin_mim.evaluation.report.run_files import RunFiles
from swin_mim.training.config.commands import pretrain_config
from swin_mim.training.config.yaml_file import to_yaml

TINY = {
    "data": {"workers": 0, "heldout": 4},
    "model": {"name": "swin_nano", "image_size": 32, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "mask": {"unit": 8},
    "optim": {"warmup": "1 step"},
    "train": {"duration": "200 steps", "global_batch": 4, "micro_batch": 4, "threads": 1},
    "log": {"trackers": []},
}


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_measure", lambda *_: (None, None, None))  # speed is no fact of images
    monkeypatch.setattr(page, "plotly_js", lambda: "")


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a pretraining of a source, with options of the command line."""

    def run(source: str, *flags: str) -> Path:
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"run": {"name": "mine"}, **TINY}))
        config = pretrain_config(["--config", "tiny.yaml", "--data.source", source, *flags])
        folder = tmp_path / "runs" / "mine"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(to_yaml(config))
        return folder

    return run


def facts(folder: Path) -> dict[str, str]:
    return dict(findings.data_facts(RunFiles.read(folder)))


def said_by_the_doctor(source: str, *flags: str) -> dict[str, Any]:
    assert doctor.main([source, "--config", "tiny.yaml", "--json", "doctor.json", *flags]) == 0
    held: dict[str, Any] = json.loads(Path("doctor.json").read_text())
    return held


def photos(folder: Path, number: int) -> Path:
    folder.mkdir()
    for i in range(number):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((20 + i, 40), Image.Resampling.BICUBIC).save(folder / f"{i:02}.jpg")
    return folder


def test_the_figures_of_photographs_are_the_doctors(tmp_path: Path, run_of: Callable[..., Path]) -> None:
    photos(tmp_path / "photos", 20)
    (tmp_path / "photos" / "copy.jpg").write_bytes((tmp_path / "photos" / "07.jpg").read_bytes())
    Image.new("RGB", (70, 70), "navy").save(tmp_path / "photos" / "flat.png")
    (tmp_path / "photos" / "torn.jpg").write_bytes((tmp_path / "photos" / "08.jpg").read_bytes()[:400])
    flags = ("--data.max_broken", "0.1")
    folder = run_of("photos", *flags)
    assert facts(folder)["looked at"].startswith("not yet: swin-mim report --facts looks")
    report.main([str(folder), "--facts", "--labelled", "8"])
    doctors = said_by_the_doctor("photos", *flags, "--labelled", "8")
    kept = json.loads((folder / "data_facts.json").read_text())
    assert kept["images"] == doctors["images"]
    assert kept["forecast"] == doctors["forecast"]
    assert kept["expected"] == doctors["expected"]
    found, first = facts(folder), doctors["forecast"]["filled"][0]
    assert found["looked at"].startswith("all 23 images, on ")
    assert (found["formats"], found["duplicates"]) == (
        "21 JPEG, 1 PNG",
        "1 (4.3%), byte for byte, as 07.jpg = copy.jpg",
    )
    assert found["width x height"].startswith("smallest 20 x 40, median 30 x 40, largest 70 x 70; 13 (56.5%) smaller")
    assert found["cannot be read"].startswith("1 (4.3%), the first torn.jpg: ")
    assert found["near-empty"] == "1 (4.3%), as flat.png"
    assert found["entropy"].startswith(f"{doctors['forecast']['entropy']:.1f} of 8 bits in the grey levels")
    share = first["interpolation"] / first["mean_fill"]
    assert found["filling holes"].startswith(
        f"interpolation leaves of the error of a mean fill: {share:.2f} with units of 8 px"
    )
    assert found["labels"] == "2.6 images to pretrain on for each of the 8 with labels"
    assert "take" not in found
    html = (folder / "report.html").read_text()
    assert all(text.split(":")[0] in html for text in found.values())


def test_the_figures_of_rasters_are_the_doctors(tmp_path: Path, run_of: Callable[..., Path]) -> None:
    (tmp_path / "scenes").mkdir()
    for i in range(16):
        values = np.random.default_rng(i).integers(100, 4000, (35, 40, 6)).astype("u2")
        values[:4] = 0
        tifffile.imwrite(tmp_path / "scenes" / f"{i}.tif", values, photometric="minisblack", planarconfig="contig")
    means = [*("--data.mean", *["2000"] * 6), *("--data.std", *["1000"] * 6)]
    flags = ("--model.in_channels", "6", "--data.nodata", "0", *means)
    folder = run_of("scenes", *flags)
    report.main([str(folder), "--facts"])
    doctors = said_by_the_doctor("scenes", *flags)
    kept = json.loads((folder / "data_facts.json").read_text())
    assert (kept["images"], kept["forecast"]) == (doctors["images"], doctors["forecast"])
    channels = looked_at.channels(RunFiles.read(folder))
    assert [name for name, _ in channels] == doctors["images"]["channels"]["names"] == list("123456")
    assert [float(values[0]) for _, values in channels] == doctors["images"]["channels"]["mean"]
    found = facts(folder)
    assert found["missing pixels"] == "11.43%"
    assert " of 8 bits in the values of a channel of an image" in found["entropy"]
    assert f"<td>{channels[5][1][3]}</td>" in render([folder])


def test_of_a_stream_one_shard_is_looked_at(tmp_path: Path, run_of: Callable[..., Path]) -> None:
    photos(tmp_path / "photos", 40)
    (tmp_path / "shards").mkdir()
    for number in range(4):
        with tarfile.open(tmp_path / "shards" / f"{number}.tar", "w") as archive:
            for path in sorted((tmp_path / "photos").iterdir())[10 * number : 10 * number + 10]:
                about = tarfile.TarInfo(path.name)
                about.size = path.stat().st_size
                archive.addfile(about, io.BytesIO(path.read_bytes()))
    flags = ("--data.streaming", "true", "--data.cache", str(tmp_path / "cache"), "--data.shards_at_once", "1")
    folder = run_of("shards", *flags)
    report.main([str(folder), "--facts"])
    found = facts(folder)
    count = json.loads((folder / "data_facts.json").read_text())["images"]["total"]
    assert count in (6, 10)  # of ten the held-out four may be of this shard
    assert found["looked at"].startswith(f"all {count} images of one shard, on ")
    assert found["formats"] == f"{count} JPEG"
    assert found["labels"].startswith("36 images to pretrain on; ")


def test_without_them_the_page_says_what_the_run_has_measured(run_of: Callable[..., Path]) -> None:
    folder = run_of("photos")
    (folder / "metrics.jsonl").write_text('{"step": 0, "mean_fill_error": 0.8, "interpolation_error": 0.4}\n')
    assert facts(folder)["filling holes"] == (
        "interpolation leaves of a mean fill's error: 0.50 with units of 8 px, on the held-out images"
    )
    (folder / "config.yaml").write_text("augment: {mixup: 0.0}\n")
    assert facts(folder) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("augment: {mixup: 0.0}\n", "mine is no pretraining, whose images alone swin-mim doctor looks at"),
        ("run: {name: mine}\nmask: {unit: 8}\ndata: {source: gone}\n", "gone"),
        ("run: {name: mine}\nmask: {future: 8}\n", "mask.future"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(
    run_of: Callable[..., Path], settings: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of("photos")
    (folder / "config.yaml").write_text(settings)
    with pytest.raises(SystemExit) as left:
        report.main([str(folder), "--facts"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--labelled", "3"], "--labelled is of --facts"), (["--facts", "--labelled", "0"], "must be at least 1")],
)
def test_mistakes_of_labelled(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main(["runs/mine", *words])
    assert message in capsys.readouterr().err
