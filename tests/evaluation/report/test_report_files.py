"""What is read of a run's folder, and what a page makes of numbers, settings and pictures: no page, no browser."""

import base64
import gzip
import io
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import made_runs
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from swin_mim.errors import UserError
from swin_mim.evaluation.report import findings, pictures
from swin_mim.evaluation.report.curves import BUCKETS, CHARTS, PROBES, drawn, thinned
from swin_mim.evaluation.report.numbers_text import duration, file_size, moment, number, setting, share
from swin_mim.evaluation.report.run_files import RunFiles
from swin_mim.evaluation.report.settings import DEFAULTS, compared, read_settings


@pytest.fixture
def demo(tmp_path: Path) -> RunFiles:
    return RunFiles.read(made_runs.pretraining(tmp_path / "demo"))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: name the folder of a run"):
        RunFiles.read(tmp_path / "nothing")
    with pytest.raises(UserError, match="is not a run: it has neither"):
        RunFiles.read(tmp_path)
    (tmp_path / "config.yaml").write_text("run: [")
    with pytest.raises(UserError, match="damaged"):
        RunFiles.read(tmp_path)


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {name: begun}\nmask: {ratio: 0.6}\n")
    run = RunFiles.read(tmp_path)
    assert (run.name, run.kind, run.step, run.pictures, run.inventory) == ("begun", "pretraining", 0, [], None)
    assert [figure.name for figure in findings.figures(run)] == ["Broken images"]


def test_torn_lines_are_left_out(tmp_path: Path) -> None:
    folder = made_runs.pretraining(tmp_path / "demo")
    before = RunFiles.read(folder).metrics
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 410, "lo')
    assert RunFiles.read(folder).metrics == before


def test_key_figures(demo: RunFiles) -> None:
    found = {figure.name: figure for figure in findings.figures(demo)}
    loss = demo.last("heldout_loss")
    assert loss is not None
    assert found["Held-out loss"].value == number(loss)
    assert found["Held-out loss"].note == f"{loss / 0.8:.2f} of the mean fill, {loss / 0.55:.2f} of the interpolation"
    assert found["Linear probe"][1:] == ("50.0 %", "stage 2, 30.0 % with random weights")
    seconds = sum(10 * 32 / row["images_per_second"] for row in demo.metrics if "images_per_second" in row)
    assert found["Time"].value == duration(seconds)
    assert found["Steps left out"].value == "1"
    assert findings.standing(demo).startswith("pretraining · finished · step 400 of 400 · 12,800 images seen · 31 Jan")


def test_the_time_that_is_left(tmp_path: Path) -> None:
    folder = made_runs.pretraining(tmp_path / "demo", steps=100)
    (folder / "run_status.json").write_text(json.dumps({"status": "running", "step": 0, "total_steps": 300}))
    run = RunFiles.read(folder)
    speed = run.last("images_per_second")
    assert speed is not None
    assert {figure.name: figure.note for figure in findings.figures(run)}["Time"] == (
        f"{duration(200 * 32 / speed)} to go"
    )


def test_a_run_of_another_machine_says_when_its_last_line_was_written(tmp_path: Path) -> None:
    folder = made_runs.pretraining(tmp_path / "demo", steps=100)
    status = {"status": "running", "step": 0, "total_steps": 300, "time": "2026-01-31T12:00:00+0100"}
    (folder / "run_status.json").write_text(json.dumps(status))
    for name in ("run_status.json", "metrics.jsonl"):
        os.utime(folder / name, (1_700_000_000 + len(name),) * 2)
    (folder / "run.lock").write_text(json.dumps({"host": "a machine that is not this one", "process": 1}))
    run = RunFiles.read(folder)
    assert run.held is None
    written = moment(time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(1_700_000_000)))
    assert " · running by its files · step 100 of 300 · " in findings.standing(run)
    assert findings.standing(run).endswith(f" · last line written {written}")
    assert findings.troubles(run) == ["1 step left out, as loss or gradient were not finite."]
    assert " to go" in {figure.name: figure.note for figure in findings.figures(run)}["Time"]
    lost = replace(run, held=False)
    assert findings.troubles(lost)[0] == (
        "Killed or lost at step 100: no process has it. The same command continues it from the beginning: it has no "
        "checkpoint yet."
    )
    assert {figure.name: figure.note for figure in findings.figures(lost)}["Time"] == "in the steps alone"


def test_steps_that_were_left_out_have_their_images(demo: RunFiles) -> None:
    assert findings.skipped_steps(demo) == [
        {"step": "3", "loss": "nan", "norm": "nan", "images": f"a/{made_runs.NASTY}.png, a/b.png"}
    ]


def test_the_inventory_is_counted(demo: RunFiles) -> None:
    inventory = demo.inventory
    assert inventory is not None
    assert inventory == (type(inventory))(100, {".jpg": 100}, 2, (1000, 1500, 1990))
    assert ("kinds of files", ".jpg 100") in findings.data_facts(demo)
    assert ("in the data set", "100") in findings.data_facts(demo)  # its held-out tiles are others
    data = {**demo.settings["data"], "source": "photos"}
    photos = replace(demo, settings={**demo.settings, "data": data})
    assert ("in the data set", "100, the held-out ones among them") in findings.data_facts(photos)
    data["streaming"] = True
    streamed = replace(demo, settings={**demo.settings, "data": data})
    assert ("in the data set", "100 shards, the held-out ones among them") in findings.data_facts(streamed)
    with gzip.open(demo.folder / "images.gz", "wt") as file:
        file.write("12288 row 3\n12288 60.3 N 20.1 E\n")
    os.utime(demo.folder / "images.gz", (1, 1))
    inventory = demo.inventory
    assert inventory is not None
    assert inventory.suffixes == {"": 2}
    assert "kinds of files" not in dict(findings.data_facts(demo))
    (demo.folder / "images.gz").write_bytes(b"no gzip")
    assert demo.inventory is None


def test_confusions_and_classes(tmp_path: Path) -> None:
    run = RunFiles.read(made_runs.finetuning(tmp_path / "fine"))
    counts = run.evaluation["confusions"]
    found = findings.confusions(run)
    assert found is not None
    assert [[cell.images for cell in row] for row in found.rows] == counts
    assert found.rows[0][1].share == pytest.approx(counts[0][1] / sum(counts[0]))
    true, predicted, count, _ = found.pairs[0]
    off = {(i, j): counts[i][j] for i in range(3) for j in range(3) if i != j}
    names = ["cat", "dog", made_runs.NASTY]
    assert count == max(off.values()) == counts[names.index(true)][names.index(predicted)]
    columns, rows = findings.classes(run)
    assert columns == ["images", "accuracy"]
    assert rows[0] == ("cat", [str(sum(counts[0])), "50.0 %"])


def test_of_many_classes_the_confused_ones_are_shown(tmp_path: Path) -> None:
    run = RunFiles.read(made_runs.finetuning(tmp_path / "fine", [f"class {number}" for number in range(60)]))
    found = findings.confusions(run)
    assert found is not None
    assert (len(found.names), found.classes) == (40, 60)
    assert {cell.text for row in found.rows for cell in row} == {""}


# --- curves


def test_curves_hold_what_was_measured(demo: RunFiles) -> None:
    charts = {chart["key"]: chart for each in CHARTS if (chart := drawn(each, [demo]))}
    assert set(charts) == {"loss", "rate", "norm", "speed", "wait", "memory"}
    loss = charts["loss"]
    assert [line["name"] for line in loss["lines"]] == ["training", "held out"]
    wanted = [(row["step"], row["loss"]) for row in demo.metrics if "loss" in row]
    assert list(loss["lines"][0]["x"]) == [step for step, _ in wanted]
    assert list(loss["lines"][0]["y"]) == pytest.approx([value for _, value in wanted], rel=1e-5)
    assert {level["name"]: level["y"] for level in loss["levels"]} == {
        "mean of the visible pixels": 0.8,
        "interpolated": 0.55,
    }
    assert loss["text"].startswith(f"training {number(round(wanted[0][1], 4))} at step 10, ")
    probe = drawn(PROBES, [demo])
    assert probe is not None
    assert [line["name"] for line in probe["lines"]] == ["stage 1", "stage 2"]
    assert len(probe["levels"]) == 2


def test_losses_of_other_parts_have_names(tmp_path: Path) -> None:
    made_runs.lines(
        tmp_path / "metrics.jsonl", [{"step": 1, "loss": 3.0, "box_loss": 2.0, "heldout_hog_loss": 1.0, "other": 1}]
    )
    loss = drawn(CHARTS[0], [RunFiles.read(tmp_path)])
    assert loss is not None
    assert [line["name"] for line in loss["lines"]] == ["training", "training, box", "held out, hog"]


def test_what_is_not_finite_is_not_drawn(tmp_path: Path) -> None:
    made_runs.lines(tmp_path / "metrics.jsonl", [{"step": k, "loss": math.nan if k == 2 else 1.0} for k in (1, 2, 3)])
    loss = drawn(CHARTS[0], [RunFiles.read(tmp_path)])
    assert loss is not None
    assert loss["lines"][0]["x"] == (1, 3)


def test_thinned_lines_keep_ends_and_spikes() -> None:
    points = [(step, 1.0 + 0.001 * (step % 7)) for step in range(100_000)]
    points[54_321] = (54_321, 99.0)
    kept = thinned(points)
    assert len(kept) <= 2 * BUCKETS + 2
    assert {points[0], points[-1], points[54_321]} <= set(kept)
    assert kept == sorted(kept)
    assert thinned(points[:900]) == points[:900]


# --- settings


def test_settings_beside_the_nearest_recipe(tmp_path: Path) -> None:
    run = RunFiles.read(made_runs.pretraining(tmp_path / "mine", mask__ratio=0.5))
    settings = read_settings(run.settings)
    assert settings.beside == "demo"
    assert settings.differences == [("mask.ratio", "0.5", "0.6")]


def test_settings_near_the_defaults_and_of_another_version() -> None:
    near = read_settings({"run": {"name": "x"}, "augment": {"mixup": 0.5}, "model": {"pretrained": "runs/a"}})
    assert near.beside == DEFAULTS
    assert ("augment.mixup", "0.5", "0.8") in near.differences
    strange = read_settings({"run": {"name": "x"}, "future": {"setting": [1, 2]}})
    assert (strange.beside, strange.differences) == ("", [])
    assert strange.values["future.setting"] == "1 2"


def test_settings_of_two_runs(tmp_path: Path) -> None:
    runs = [
        made_runs.pretraining(tmp_path / "a"),
        made_runs.pretraining(tmp_path / "b", optim__base_lr=0.01, model__image_size=96),
    ]
    rows = compared([read_settings(RunFiles.read(run).settings) for run in runs])
    assert rows == [("model.image_size", ["64", "96"]), ("optim.base_lr", ["0.048", "0.01"])]


# --- pictures


def test_a_sheet_of_two_blocks_is_cut_in_its_middle(tmp_path: Path) -> None:
    made_runs.sheet(tmp_path / "step_0000100.png", 1)
    (frame,) = pictures.series([tmp_path / "step_0000100.png"], 100_000)
    assert (frame.step, len(frame.parts), frame.size) == (100, 2, (320, 320))
    made_runs.sheet(tmp_path / "step_0000100.png", 1, blocks=1)
    (frame,) = pictures.series([tmp_path / "step_0000100.png"], 100_000)
    assert len(frame.parts) == 1


def test_rows_of_a_picture_are_pictures_without_what_is_between_them(tmp_path: Path) -> None:
    drawn, info = Image.new("RGB", (2800, 208), "white"), PngInfo()
    for top, colour in ((0, "navy"), (108, "maroon")):
        drawn.paste(colour, (0, top, 2800, top + 100))
    drawn.save(tmp_path / "whole.png")
    info.add_text("rows", "0 100 108 208")
    drawn.save(tmp_path / "rows.png", pnginfo=info)
    shown = [
        Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2])))
        for text in pictures.picture(tmp_path / "rows.png")
    ]
    assert [image.size for image in shown] == [(1400, 50), (1400, 50)]
    assert [max(range(3), key=image.convert("RGB").getpixel((700, 25)).__getitem__) for image in shown] == [2, 0]
    assert len(pictures.picture(tmp_path / "whole.png")) == 1
    assert pictures.picture(tmp_path / "none.png") == ()


def test_series_keep_both_ends_and_their_budget(tmp_path: Path) -> None:
    files = [tmp_path / f"step_{step:07d}.png" for step in range(0, 500, 10)]
    for number_, file in enumerate(files):
        Image.effect_noise((300, 200), 80).save(file) if number_ % 2 else made_runs.sheet(file, number_)
    frames = pictures.series(files, 10_000_000)
    assert len(frames) == pictures.MOST
    assert (frames[0].step, frames[-1].step) == (0, 490)
    for budget in (60_000, 20_000):
        frames = pictures.series(files, budget)
        assert frames
        assert (frames[0].step, frames[-1].step) == (0, 490)
        assert sum(len(part) for frame in frames for part in frame.parts) <= budget
    assert pictures.series(files, 10) == []


def test_broken_pictures_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made_runs.sheet(tmp_path / "step_0000001.png", 1)
    (tmp_path / "step_0000002.png").write_bytes(b"\x89PNG")
    assert [frame.step for frame in pictures.series(sorted(tmp_path.glob("*.png")), 100_000)] == [1]
    assert "step_0000002.png is left out of the report" in caplog.text


def test_other_files_among_the_pictures_are_none(tmp_path: Path) -> None:
    run = made_runs.pretraining(tmp_path / "run")
    (run / "samples").mkdir(exist_ok=True)
    before = RunFiles.read(run).pictures
    for name in ("step_0000001 (1).png", "step_1.png.part", "mine.png"):
        (run / "samples" / name).touch()
    assert RunFiles.read(run).pictures == before


# --- numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.31234567, "0.3123"),
        (12800, "12,800"),
        (2e-05, "2e-05"),
        (None, "–"),
        (math.nan, "not finite"),
        (1234.56, "1,234.6"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_other_texts() -> None:
    assert (share(0.5234), share(None)) == ("52.3 %", "–")
    assert [duration(seconds) for seconds in (0, 65, 3725, 90_000)] == ["0 s", "1 min 5 s", "1 h 2 min", "1 d 1 h"]
    assert [file_size(count) for count in (999, 1_234_567)] == ["999 bytes", "1.2 MB"]
    assert moment("2026-01-31T12:00:00+0100") == "31 Jan 2026, 12:00"
    assert setting("https://ada:secret@host/a.tar?signature=x") == "https://host/a.tar"
    assert [setting(value) for value in (None, True, (0.67, 1), 0.048)] == ["none", "true", "0.67 1", "0.048"]
