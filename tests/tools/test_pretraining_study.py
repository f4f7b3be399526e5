"""The study of pretraining: what it decides and in which order, its network, and a small session from end to end."""

import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image

from swin_mim.errors import UserError
from swin_mim.training.config.commands import finetune_config
from tools.pretraining_study import __main__ as study
from tools.pretraining_study import convnet, fonts, plan, report, runs
from tools.pretraining_study.plan import (
    CHARACTERS,
    CONVNET,
    NEW,
    NEW_FINE,
    RATES,
    SESSIONS,
    TARGETS,
    TEST,
    TILES,
    VALIDATION,
    Pretraining,
    Training,
)
from tools.side_by_side import Running, append_result, first_to_end, interrupt

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def done(session, accuracy_of, found=None):
    """The results of a session with made-up accuracies."""
    found = dict(found or {})
    while open_cells := [cell for cell in SESSIONS[session](found) if cell not in found]:
        for cell in open_cells:
            best = cell.rate == plan.PRETRAINING_RATES[cell.images][1]
            made = isinstance(cell, Pretraining)
            found[cell] = {"heldout_loss": 0.5 if best else 0.6} if made else {"accuracy": accuracy_of(cell)}
    return found


def is_long(cell):
    return isinstance(cell, Training) and cell.steps > plan.STEPS[cell.images][cell.labels]


def by_target(cell):
    """Normalised pixels with heads of every stage are best, at the middle rate."""
    if isinstance(cell, Pretraining):
        return None
    arms = {NEW: 0.1, CONVNET: 0.2, "pixels": 0.3, "hog": 0.4, "normalized": 0.5, "normalized stages": 0.6}
    rates = RATES.get(cell.arm, plan.PRETRAINED_RATES)
    return arms.get(cell.arm, 0.45) + 0.01 * (cell.rate == rates[1])


def test_rates_go_one_beyond_an_end_that_is_best():
    arm, (low, middle, high) = NEW, RATES[NEW]

    def found(best):
        accuracies = {rate: 0.3 if rate == best else 0.2 for rate in (low, middle, high)}
        return {
            plan.training(CHARACTERS, arm, labels, rate): {"accuracy": accuracy}
            for labels in (3, 30)
            for rate, accuracy in accuracies.items()
        }

    assert plan.grid(CHARACTERS, arm, {}) == (low, middle, high)
    assert plan.grid(CHARACTERS, arm, found(middle)) == (low, middle, high)
    assert plan.grid(CHARACTERS, arm, found(high)) == (low, middle, high, 2 * high)
    assert plan.grid(CHARACTERS, arm, found(low)) == (low, middle, high, low / 2)
    assert plan.chosen(CHARACTERS, arm, found(high)) is None
    assert plan.chosen(CHARACTERS, arm, found(middle)) == (middle, pytest.approx(0.3))


def test_the_rate_of_a_pretraining_is_that_of_the_smallest_loss_of_its_target():
    rates = plan.PRETRAINING_RATES[CHARACTERS]
    assert [cell.rate for cell in plan.short_pretrainings(CHARACTERS, "hog", {})] == list(rates)
    assert plan.chosen_pretraining(CHARACTERS, "hog", {}) is None
    cells = plan.short_pretrainings(CHARACTERS, "hog", {})
    found = {
        cell: {"heldout_loss": pixels, "heldout_hog_loss": hog}
        for cell, pixels, hog in zip(cells, (0.3, 0.2, 0.1), (0.2, 0.1, 0.3), strict=True)
    }
    assert plan.chosen_pretraining(CHARACTERS, "hog", found) == rates[1]
    assert plan.pretraining(CHARACTERS, "hog stages", found).rate == rates[1]
    found[cells[0]] = {"heldout_loss": 0.3, "heldout_hog_loss": 0.05}
    assert plan.short_pretrainings(CHARACTERS, "hog", found)[-1].rate == rates[0] / 2
    assert plan.chosen_pretraining(CHARACTERS, "hog", found) is None


def test_sessions_follow_one_another():
    first = done("A", by_target)
    pretrained = [cell for cell in first if isinstance(cell, Pretraining)]
    whole = [cell for cell in pretrained if cell.steps == plan.PRETRAINING_STEPS[CHARACTERS]]
    assert [cell.arm for cell in whole] == list(TARGETS)
    assert {cell.rate for cell in whole} == {plan.PRETRAINING_RATES[CHARACTERS][1]}
    assert len(pretrained) == 4 * len(TARGETS)
    longer = [cell for cell in first if is_long(cell)]
    assert {(cell.arm, cell.rate, cell.labels) for cell in longer} == {(NEW, RATES[NEW][1], n) for n in (3, 30)}
    assert {cell.split for cell in first if isinstance(cell, Training)} == {VALIDATION}

    second = done("B", by_target, first)
    assert {cell.arm for cell in second.keys() - first.keys()} == {
        CONVNET,
        "normalized stages",
        "normalized teacher",
        "normalized longer",
    }
    assert list(second)[-1].arm == "normalized longer"  # what time does not allow
    third = {cell for cell in done("C", by_target, second) if cell not in second}
    fourth = {cell for cell in done("D", by_target, second) if cell not in second}
    assert {cell.arm for cell in third if isinstance(cell, Training)} == {NEW, "normalized stages"}
    assert {cell.arm for cell in fourth if isinstance(cell, Training)} == {CONVNET}
    for cells in (third, fourth):
        assert {cell.split for cell in cells if isinstance(cell, Training)} == {TEST}
    for cells, seeds in ((third, plan.SEEDS), (fourth, plan.CONVNET_SEEDS)):
        runs_of = {(cell.labels, cell.seed) for cell in cells if isinstance(cell, Training)}
        assert Counter(labels for labels, _ in runs_of) == seeds
    fine = [cell for cell in done("F", by_target, second) if cell not in second]
    assert {(cell.arm, getattr(cell, "labels", 30)) for cell in fine} == {(NEW_FINE, 30), ("normalized fine", 30)}
    tiles = [cell for cell in done("E", by_target, second) if cell not in second]
    assert {cell.images for cell in tiles} == {TILES}
    assert [cell.split for cell in tiles if isinstance(cell, Training)][-1] == TEST


@pytest.mark.parametrize(("gain", "count"), [(0.019, 0), (0.021, 2 * plan.LONG_SEEDS)])
def test_new_weights_are_measured_for_longer_where_they_gain_by_it(gain, count):
    def accuracy(cell):
        return by_target(cell) and by_target(cell) + gain * is_long(cell)

    cells = done("C", accuracy, done("B", accuracy, done("A", accuracy)))
    found = [cell for cell in cells if is_long(cell) and cell.split == TEST]
    assert len(found) == count
    assert {cell.arm for cell in found} <= {NEW}


def test_a_later_session_first_does_what_an_earlier_one_left():
    assert plan.session_c({}) == plan.session_a({})
    assert plan.session_c(done("A", by_target)) == plan.session_b(done("A", by_target))
    assert {cell.split for cell in plan.session_d({})} == {VALIDATION}
    assert not {cell.split for cell in plan.session_e({}) if isinstance(cell, Training)} & {TEST}


def test_the_trial_changes_what_it_names_in_the_fine_tuning_and_counts_for_nothing_else(tmp_path):
    found = {
        cell: {"heldout_loss": cell.rate, "heldout_hog_loss": cell.rate}
        for target in TARGETS
        for rate in (*plan.PRETRAINING_RATES[CHARACTERS], 3.75e-4)
        for cell in [Pretraining(CHARACTERS, target, rate, 0, plan.SHORT_STEPS[CHARACTERS])]
    }
    cells, folders = plan.trial(found), runs.Folders(tmp_path)
    assert len({cell.name for cell in cells}) == len(cells) == 14 + len(plan.FOLLOWED)
    others = {"whole": (0, 1.0), "even": (1, 1.0), "sharp": (2, 0.0), "all blocks": (3, 0.0), "batch 128": (4, 128)}
    changes = {name: [change] for name, change in others.items()}
    changes |= {"usual": [], "plain": list(others.values())[:4]}

    def settings(cell):
        config = finetune_config(runs.training_words(cell, folders, found))
        parts = config.data.crop_scale[0], config.optim.layer_decay, config.augment.label_smoothing
        return [*parts, config.model.drop_path_rate, config.train.global_batch]

    for cell in cells:
        wanted = settings(cell._replace(recipe=""))
        for place, value in changes[cell.recipe]:
            wanted[place] = value
        assert settings(cell) == wanted, cell.name
    curve = [(cells[0].steps // 2, 0.25), (cells[0].steps, 0.5)]
    done = {cell: {"accuracy": 0.5, "loss": 1.25, "heldout_loss": 2.0, "curve": curve} for cell in cells}
    assert report.rows_of(done, VALIDATION, CHARACTERS) == {}
    assert "| plain | new weights | 30 | 0.001 | 3000 | 50.0 | 1.25 | 2.00 |" in report.trial_table(done)
    assert not any(cell in done for cell in plan.session_a(found))
    report.plot(done, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width == 1050  # a panel of its own


def test_encoders_are_made_before_what_starts_from_them_and_again_where_they_are_gone():
    teacher = plan.pretraining(CHARACTERS, "pixels teacher", {}, 1)
    base = plan.pretraining(CHARACTERS, "pixels", {}, 1)
    run = Training(CHARACTERS, "pixels teacher", 3, 1e-3, 1, 10, TEST)
    new = run._replace(arm=NEW)
    assert plan.missing([run, new], {}, lambda cell: False) == [base, teacher, run, new]
    made = {base: {}, teacher: {}}
    assert plan.missing([run, new], made, lambda cell: False) == [base, teacher, run, new]
    assert plan.missing([run, new], made, lambda cell: cell == teacher) == [run, new]
    assert plan.missing([run, new], {**made, run: {}, new: {}}, lambda cell: False) == []
    todo = plan.missing([new, run], {}, lambda cell: False)
    assert plan.startable(todo, [], {}, lambda cell: False) == base
    assert plan.startable(todo, [base], {}, lambda cell: False) == new
    assert plan.startable(todo, [base, new], {}, lambda cell: False) is None
    assert plan.startable(todo[2:], [new], {}, lambda cell: cell == base) == teacher
    # the seed of a run decides which pretraining it starts from
    assert [plan.needs(run._replace(seed=seed), {})[0].seed for seed in range(4)] == [0, 1, 0, 1]


def test_the_network_is_about_as_large_as_the_demo_and_all_of_it_learns():
    model = convnet.convnet(100, 64)
    assert 0.5e6 < sum(weight.numel() for weight in model.parameters()) < 0.7e6
    shapes = []
    for module in model.children():
        module.register_forward_hook(lambda module, given, out: shapes.append(tuple(out.shape[2:])))
    out = model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (2, 100)
    assert list(dict.fromkeys(shapes)) == [(32, 32), (16, 16), (8, 8), (1, 1), ()]
    out.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def test_a_failed_run_says_why_and_the_others_are_ended(tmp_path):
    def fail():
        raise UserError("no such rate")

    with pytest.raises(UserError, match=r"the run bad failed \(error: no such rate\): see .*said.txt"):
        Running("bad", fail, tmp_path / "said.txt").conclude()
    slow = Running("slow", lambda: time.sleep(60), tmp_path / "slow")
    while not (tmp_path / "slow").exists():
        time.sleep(0.01)
    good = Running("good", lambda: 0, tmp_path / "good")
    assert first_to_end([slow, good]) is good
    assert good.conclude() < 30
    again = Running("good", lambda: time.sleep(0.2), tmp_path / "good")
    assert again.conclude() == pytest.approx(good.conclude())
    assert again.conclude() >= 0.2
    interrupt([slow])
    assert "interrupted" in (tmp_path / "slow").read_text()
    with pytest.raises(UserError, match="the run slow failed"):
        slow.conclude()


def test_a_run_ends_with_a_study_that_is_killed(tmp_path):
    def be_the_study():
        inner = Running("inner", lambda: time.sleep(60), tmp_path / "inner")
        (tmp_path / "pid").write_text(str(inner.process.pid))
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError):
        Running("study", be_the_study, tmp_path / "study").conclude()
    pid, until = int((tmp_path / "pid").read_text()), time.monotonic() + 10
    while time.monotonic() < until and alive(pid):
        time.sleep(0.01)
    assert not alive(pid)


def alive(pid):
    """Whether a process runs; one that has ended may still wait to be asked."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_torn_line_costs_no_other(tmp_path):
    path = tmp_path / "results.jsonl"
    cells = [plan.training(CHARACTERS, NEW, 3, rate) for rate in RATES[NEW]]
    append_result(path, {"kind": "Training", **cells[0]._asdict(), "accuracy": 0.1})
    with path.open("a") as file:
        file.write('{"kind": "Trai')
    for accuracy, cell in ((0.2, cells[1]), (0.9, cells[0])):
        append_result(path, {"kind": "Training", **cell._asdict(), "accuracy": accuracy})
    assert {cell: row["accuracy"] for cell, row in study.read(path).items()} == {cells[0]: 0.1, cells[1]: 0.2}


def test_new_weights_with_more_steps_are_an_arm_of_their_own_in_the_report():
    short = Training(CHARACTERS, NEW, 3, 1e-3, 0, plan.STEPS[CHARACTERS][3], TEST)
    accuracies = {short: 0.1, short._replace(seed=1): 0.2, short._replace(steps=4 * short.steps): 0.3}
    accuracies |= {short._replace(arm="hog", seed=seed): 0.45 for seed in (0, 1)}
    lines = report.tested_table({cell: {"accuracy": value} for cell, value in accuracies.items()}).splitlines()[2:]
    assert lines == [
        "| characters | 3 | new weights | 15.0 ± 7.1 (2 seeds) |  | -20.0 ± 0.0 (-20.0) |",
        "| characters | 3 | new weights, 4 times the steps | 30.0 ± 0.0 (1 seeds) | +20.0 ± 0.0 (+20.0) |  |",
        "| characters | 3 | hog | 45.0 ± 0.0 (2 seeds) | +30.0 ± 7.1 (+35.0, +25.0) | +15.0 ± 0.0 (+15.0) |",
    ]


def test_an_encoder_that_is_another_one_when_made_again_is_told():
    made = {"heldout_loss": 0.6, "interpolation_error": 0.7, "probes": [(2, [0.1, 0.2])], "weights": "a"}
    assert study.told(made, made) == "held-out loss 0.6000 (interpolation 0.7000), linear probe 10.0, 20.0 %"
    assert study.told(made, made | {"weights": "b"}).endswith("NOT the bits of the first time")


def test_fonts_need_a_new_folder(tmp_path):
    with pytest.raises(UserError, match="is there already"):
        fonts.unpack(tmp_path)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A study of a few steps and one rate, its characters drawn with the fonts that matplotlib ships."""
    monkeypatch.setattr(plan, "PRETRAINING_STEPS", {CHARACTERS: 2, TILES: 2})
    monkeypatch.setattr(plan, "STEPS", {CHARACTERS: {3: 3}, TILES: {30: 2}})
    monkeypatch.setattr(plan, "CHOSEN_BY", {CHARACTERS: (3,), TILES: (30,)})
    monkeypatch.setattr(plan, "TARGETS", ("normalized",))
    monkeypatch.setattr(plan, "one_beyond", lambda rates, score_of: tuple(rates))
    monkeypatch.setattr(plan, "PRETRAINING_RATES", {CHARACTERS: (1e-3,), TILES: (1e-3,)})
    monkeypatch.setattr(plan, "SHORT_STEPS", {CHARACTERS: 3, TILES: 3})
    monkeypatch.setattr(plan, "grid", lambda images, arm, found: (1e-3,))  # what is tried with labels
    monkeypatch.setattr(runs, "WARMUP", "1 steps")
    words = ["--classes", "3", "--unlabelled", "150", "--each", "4", "--size", "32", "--block", "41-5A"]
    monkeypatch.setattr(study, "DRAWN", words)
    (tmp_path / "work" / "characters" / "half").mkdir(parents=True)  # drawing was interrupted
    (tmp_path / "work" / "fonts").symlink_to(FONTS)
    return tmp_path


def rows_of(folder):
    return [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]


def test_a_session_goes_on_where_it_was(small, monkeypatch, capsys):
    arms = ("normalized", CONVNET)
    monkeypatch.setattr(plan, "chosen_pretraining", lambda images, target, found: 1e-3)
    monkeypatch.setitem(SESSIONS, "A", lambda found: plan.choosing(CHARACTERS, arms, found))
    command = ["A", "--out", str(small / "out"), "--work", str(small / "work")]
    study.main(command)
    rows = {(row["kind"], row["arm"]): row for row in rows_of(small)}
    assert rows.keys() == {("Pretraining", "normalized"), ("Training", "normalized"), ("Training", CONVNET)}
    made, lost = rows["Pretraining", "normalized"], rows["Training", "normalized"]
    assert (lost["starts_from"], rows["Training", CONVNET]["starts_from"]) == ([made["weights"]], [])
    assert [step for step, _ in lost["curve"]] == [step for step, _ in rows["Training", CONVNET]["curve"]] == [1, 2, 3]
    assert "[3/3, eta 0:00]" in capsys.readouterr().out
    with Image.open(small / "out" / "pretraining-study.png") as picture:
        assert picture.width == 560  # without a panel of test pictures, which nobody has looked at
    assert "| characters | normalized | 0.001 | 0 | 2 |" in (small / "out" / "table.md").read_text()
    assert list((small / "work" / "cells").iterdir()) == []
    assert not (small / "work" / "characters" / "half").exists()

    # a run is lost, and the encoder too: it is made again, to the bit, and only what is lost
    for row in rows_of(small):
        if row != lost:
            append_result(small / "out" / "left", row)
    (small / "out" / "left").replace(small / "out" / "results.jsonl")
    shutil.rmtree(small / "work" / "pretrained")
    study.main(command)
    again = rows_of(small)[2:]
    assert [row["kind"] for row in again] == ["Pretraining", "Training"]
    assert again[0]["weights"] == made["weights"]
    assert (again[1]["starts_from"], again[1]["curve"]) == (lost["starts_from"], lost["curve"])


@pytest.mark.slow
def test_all_arms_run(small):
    """Sessions A and B, with a teacher, heads of every stage and the convolutional network, then C on test images."""
    for session in ("A", "B", "B", "C"):
        study.main([session, "--out", str(small / "out"), "--work", str(small / "work")])
    rows = rows_of(small)
    added = {"normalized stages", "normalized teacher", "normalized longer"}
    assert {row["arm"] for row in rows} == {NEW, CONVNET, "normalized", *added}
    assert {row["steps"] for row in rows if (row["kind"], row["arm"]) == ("Pretraining", "normalized longer")} == {4}
    assert {row["seed"] for row in rows if row.get("split") == TEST} == set(range(plan.SEEDS[3]))
    assert all(row["curve"] == [] for row in rows if row.get("split") == TEST)
