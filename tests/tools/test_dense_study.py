"""The study of segmentation with few labelled tiles: what it decides and reports, and a small one from end to end."""

import json
import math
import statistics

import pytest
from PIL import Image

from swin_mim import SimMIM, SwinConfig
from swin_mim.cli.transfer.report import PRETRAINED, SCRATCH
from swin_mim.errors import UserError
from tools import dense_study
from tools.dense_study import ARMS, RATES, SEEDS, STEPS, Cell


def found(iou, cell, classes=("water", "A tropical")):
    curve = [(200, iou / 2), (cell.steps, iou)]
    return {"mean_iou": iou, "pixel_accuracy": iou + 0.1, "class_iou": dict.fromkeys(classes, iou), "curve": curve}


def write(path, ious):
    """Lines of results for mean IoUs by their cells."""
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(cell._asdict() | found(iou, cell)) + "\n" for cell, iou in ious.items()]
    path.write_text("".join(lines))


@pytest.mark.parametrize(
    ("gains", "factor"),
    [
        ({SCRATCH: 0.009, PRETRAINED: 0.0}, 1),
        ({SCRATCH: 0.011, PRETRAINED: -0.1}, 4),
        ({SCRATCH: 0, PRETRAINED: 0.03}, 4),
    ],
)
def test_steps_are_doubled_as_long_as_either_arm_gains(gains, factor):
    asked = []

    def run(cell):
        asked.append(cell)
        doubled = {1: 0, 2: 1, 4: 2}[cell.steps // STEPS[30]]
        return {"mean_iou": 0.4 + gains[cell.arm] * doubled + 0.05 * (-1) ** cell.seed}

    rates = {arm: RATES[arm][1] for arm in ARMS}
    assert dense_study.chosen_steps(30, rates, run) == factor * STEPS[30]
    assert {(cell.split, cell.tiles, cell.rate == rates[cell.arm]) for cell in asked} == {("validation", 30, True)}
    assert {cell.seed for cell in asked} == {0, 1}
    assert max(cell.steps for cell in asked) == min(2 * factor, 4) * STEPS[30]


@pytest.mark.parametrize("best", [1e-3 / 9, 1e-3 / 3, 1e-3, 3e-3, 9e-3, 27e-3])
def test_the_rate_is_the_best_on_validation_tiles_and_not_at_an_end(best):
    asked = []

    def run(cell):
        asked.append(cell.rate)
        return {"mean_iou": -abs(math.log(cell.rate / best))}

    assert dense_study.chosen_rate(PRETRAINED, 10, run) == pytest.approx(best, rel=1e-5)
    assert min(asked) < 0.9 * best
    assert max(asked) > 1.1 * best
    assert len(asked) == len(set(asked))


def test_arms_are_measured_side_by_side_and_the_most_tiles_last():
    rates = {(arm, tiles): RATES[arm][0] for arm in ARMS for tiles in STEPS}
    cells = dense_study.measured_cells(STEPS, rates)
    assert len(set(cells)) == len(cells) == len(ARMS) * len(STEPS) * SEEDS
    assert {cell.split for cell in cells} == {"test"}
    for first, second in zip(cells[::2], cells[1::2], strict=True):
        assert (first.arm, second.arm) == ARMS
        assert (first.tiles, first.seed, first.steps) == (second.tiles, second.seed, second.steps)
    assert {cell.tiles for cell in cells[-2 * SEEDS :]} == {max(STEPS)}


def test_report_is_of_the_seeds_that_both_arms_have(tmp_path):
    new, trained = {0: 0.30, 1: 0.34, 2: 0.5}, {0: 0.36, 1: 0.35}
    ious = {Cell(SCRATCH, 10, 5e-4, seed, 400, "test"): iou for seed, iou in new.items()}
    ious |= {Cell(PRETRAINED, 10, 1e-3, seed, 400, "test"): iou for seed, iou in trained.items()}
    for arm, rate in ((SCRATCH, 5e-4), (PRETRAINED, 1e-3)):
        ious |= {Cell(arm, 10, rate, 0, steps, "validation"): 0.4 for steps in (400, 800)}
    ious[Cell(PRETRAINED, 10, 1e-3, 1, 800, "validation")] = 0.5
    write(tmp_path / "results.jsonl", ious)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"arm": "scratch", "ti')  # torn
    results = dense_study.read(tmp_path / "results.jsonl")
    assert {cell: row["mean_iou"] for cell, row in results.items()} == ious
    (entry,) = dense_study.summary(results)
    assert entry["seeds"] == [0, 1]
    assert entry["gain"]["values"] == pytest.approx([0.06, 0.01])
    assert entry["gain"]["std"] == pytest.approx(statistics.stdev([0.06, 0.01]))
    dense_study.main(["nothing", "--out", str(tmp_path), "--report"])
    text = (tmp_path / "table.md").read_text()
    assert "| 10 | 400 | 32.0 ± 2.8 (42.0) | 35.5 ± 0.7 (45.5) | +3.5 ± 3.5 | +6.0, +1.0 |" in text
    assert "| pretrained | 10 | 800 | 0.001: 40.0, 50.0 |" in text
    assert (tmp_path / "dense-transfer.png").stat().st_size < 100_000
    with Image.open(tmp_path / "dense-transfer.png") as picture:
        assert picture.width > 1000


def test_without_a_pair_there_is_no_report(tmp_path):
    write(tmp_path / "results.jsonl", {Cell(SCRATCH, 10, 5e-4, 0, 400, "test"): 0.3})
    with pytest.raises(UserError, match="no run on test tiles in both arms"):
        dense_study.report(dense_study.read(tmp_path / "results.jsonl"), tmp_path)


@pytest.mark.slow
def test_a_study_goes_on_where_it_ended(tmp_path, monkeypatch, capsys):
    def middle_rate(arm, tiles, run):
        rate = RATES[arm][1]
        run(Cell(arm, tiles, rate, 0, dense_study.STEPS[tiles], "validation"))
        return rate

    monkeypatch.setattr(dense_study, "chosen_rate", middle_rate)  # how it is chosen is tested above, in no time
    monkeypatch.setattr(dense_study, "CONVERGED", (0,))
    monkeypatch.setattr(dense_study, "STEPS", {2: 4})
    monkeypatch.setattr(dense_study, "SEEDS", 1)
    monkeypatch.setattr(dense_study, "SETTINGS", (*dense_study.SETTINGS, "--optim.warmup", "0 steps"))
    config = SwinConfig(64, embed_dim=16, depths=(1, 1), num_heads=(1, 2), patch_size=8, window_size=8)
    SimMIM(config).save_pretrained(tmp_path / "pretrained")
    command = [str(tmp_path / "pretrained"), "--out", str(tmp_path / "study")]
    dense_study.main(command)
    lines = (tmp_path / "study" / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["arm"], row["split"]) for row in rows[-2:]] == [(SCRATCH, "test"), (PRETRAINED, "test")]
    assert all(0 <= row["mean_iou"] <= 1 for row in rows)
    assert not list((tmp_path / "study" / "runs").iterdir())
    (tmp_path / "study" / "results.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    capsys.readouterr()
    dense_study.main(command)
    again = [json.loads(line) for line in (tmp_path / "study" / "results.jsonl").read_text().splitlines()]
    assert again[:-1] == rows[:-1]
    assert {**again[-1], "seconds": 0} == {**rows[-1], "seconds": 0}
    assert capsys.readouterr().out.count("_test: mean IoU ") == 1
    SimMIM(config).save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit):
        dense_study.main([str(tmp_path / "other"), "--out", str(tmp_path / "study")])
    assert "holds cells with other weights" in capsys.readouterr().err


def test_a_class_without_iou_is_no_zero():
    """It has none where neither the masks nor the predictions have a pixel of it."""
    cells = [Cell(arm, tiles, 1e-4, seed, STEPS[tiles], "test") for arm in ARMS for tiles in STEPS for seed in (0, 1)]
    results = {cell: found(0.5, cell) for cell in cells}
    for cell in cells:
        results[cell]["class_iou"] = {"water": 0.5 if cell.seed else None, "A tropical": None}
    for line in dense_study.class_table(results).splitlines()[2:]:
        assert line.endswith("| 50.0 | – |")
