"""The study of pretraining: what it decides and in which order, its network, its pictures, and a small session from
end to end."""

import gzip
import json
import os
import shutil
import signal
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from swin_mim.errors import UserError
from swin_mim.training.config.commands import finetune_config, pretrain_config
from tools.pretraining_study import __main__ as study
from tools.pretraining_study import convnet, pictures, plan, report, runs
from tools.pretraining_study.plan import (
    CONVNET,
    NEW,
    PRETRAINED_RATES,
    RATES,
    SESSIONS,
    TARGETS,
    TEST,
    VALIDATION,
    Pretraining,
    Training,
)
from tools.side_by_side import Running, append_result, first_to_end, interrupt

CLOTHES, DIGITS = plan.SETS


def done(session, accuracy_of, found=None):
    """The results of a session with made-up accuracies."""
    found = dict(found or {})
    while open_cells := [cell for cell in SESSIONS[session](CLOTHES, found) if cell not in found]:
        for cell in open_cells:
            found[cell] = {} if isinstance(cell, Pretraining) else {"accuracy": accuracy_of(cell)}
    return found


def is_long(cell):
    return isinstance(cell, Training) and cell.steps > plan.steps_of(cell.arm, cell.labels)


def by_arm(cell):
    """Normalised pixels with heads of every stage are best, at the middle rate."""
    arms = {NEW: 0.1, CONVNET: 0.2, "pixels": 0.3, "hog": 0.4, "normalized": 0.5, "normalized stages": 0.6}
    rates = RATES.get(cell.arm, PRETRAINED_RATES)
    return arms.get(cell.arm, 0.45) + 0.01 * (cell.rate == rates[1])


def test_rates_go_one_beyond_an_end_that_is_best():
    arm, (low, middle, high) = NEW, RATES[NEW]

    def found(best):
        accuracies = {rate: 0.3 if rate == best else 0.2 for rate in (low, middle, high)}
        return {
            plan.training(CLOTHES, arm, labels, rate): {"accuracy": accuracy}
            for labels in (3, 30)
            for rate, accuracy in accuracies.items()
        }

    assert plan.grid(CLOTHES, arm, {}) == (low, middle, high)
    assert plan.grid(CLOTHES, arm, found(middle)) == (low, middle, high)
    assert plan.grid(CLOTHES, arm, found(high)) == (low, middle, high, 2 * high)
    assert plan.grid(CLOTHES, arm, found(low)) == (low, middle, high, low / 2)
    assert plan.chosen(CLOTHES, arm, found(high)) is None
    assert plan.chosen(CLOTHES, arm, found(middle)) == (middle, pytest.approx(0.3))


def test_sessions_follow_one_another():
    first = done("choose", by_arm)
    assert [cell.arm for cell in first if isinstance(cell, Pretraining)] == list(TARGETS)
    assert {cell.arm for cell in first} == {NEW, CONVNET, *TARGETS}
    longer = [cell for cell in first if is_long(cell)]
    assert {(cell.arm, cell.rate, cell.labels) for cell in longer} == {(NEW, RATES[NEW][1], n) for n in (3, 30)}
    assert {cell.split for cell in first if isinstance(cell, Training)} == {VALIDATION}

    second = done("add", by_arm, first)
    assert {cell.arm for cell in second.keys() - first.keys()} == {"normalized stages", "normalized teacher"}
    for before, winner in ((first, "normalized"), (second, "normalized stages")):
        third = {cell for cell in done("measure", by_arm, before) if cell not in before}
        assert {cell.arm for cell in third} == {NEW, CONVNET, winner}
        assert {cell.split for cell in third if isinstance(cell, Training)} == {TEST}
        for arm in (NEW, CONVNET, winner):
            assert Counter(cell.labels for cell in third if cell.arm == arm) == plan.SEEDS
        assert {cell.rate for cell in third if cell.arm == CONVNET} == {RATES[CONVNET][1]}
        order = [cell.seed % 2 if cell.arm == winner else "none" for cell in plan.measure(CLOTHES, before)]
        assert [*dict.fromkeys(order)] == [0, 1, "none"]  # encoders are lost with the machine
        assert sorted(order, key=str) == order


@pytest.mark.parametrize(("gain", "count"), [(0.009, 0), (0.011, 2 * plan.LONG_SEEDS)])
def test_new_weights_are_measured_for_longer_where_they_gain_by_it(gain, count):
    def accuracy(cell):
        return by_arm(cell) + gain * is_long(cell)

    cells = done("measure", accuracy, done("choose", accuracy))
    found = [cell for cell in cells if is_long(cell) and cell.split == TEST]
    assert len(found) == count
    assert {cell.arm for cell in found} <= {NEW}


def test_a_later_session_first_does_what_an_earlier_one_left():
    first = plan.choose(DIGITS, {})
    assert {cell.images for cell in first} == {DIGITS}
    assert plan.measure(DIGITS, {}) == plan.add(DIGITS, {}) == first
    chosen = done("choose", by_arm)
    begun = {**chosen, plan.pretraining(CLOTHES, "normalized teacher"): {}}
    assert plan.measure(CLOTHES, begun) == plan.add(CLOTHES, begun)  # what has begun is not left out
    with pytest.raises(UserError, match="the test pictures of clothes have been looked at: no arm is added"):
        plan.add(CLOTHES, done("measure", by_arm, chosen))
    half = {cell: {"accuracy": by_arm(cell)} for cell in first if isinstance(cell, Training) and cell.arm != CONVNET}
    assert not {cell.split for cell in plan.measure(DIGITS, half) if isinstance(cell, Training)} & {TEST}


def test_encoders_are_made_before_what_starts_from_them_and_again_where_they_are_gone():
    teacher = plan.pretraining(CLOTHES, "pixels teacher", 1)
    base = plan.pretraining(CLOTHES, "pixels", 1)
    run = Training(CLOTHES, "pixels teacher", 3, 1e-3, 1, 10, TEST)
    new = run._replace(arm=NEW)
    assert plan.missing([run, new], {}, lambda cell: False) == [base, teacher, run, new]
    made = {base: {}, teacher: {}}
    assert plan.missing([run, new], made, lambda cell: False) == [base, teacher, run, new]
    assert plan.missing([run, new], made, lambda cell: cell == teacher) == [run, new]
    assert plan.missing([run, new], {**made, run: {}, new: {}}, lambda cell: False) == []
    todo = plan.missing([new, run], {}, lambda cell: False)
    assert plan.startable(todo, [], lambda cell: False) == base
    assert plan.startable(todo, [base], lambda cell: False) == new
    assert plan.startable(todo, [base, new], lambda cell: False) is None
    assert plan.startable(todo[2:], [new], lambda cell: cell == base) == teacher
    assert plan.all_needs(run) == [base, teacher]
    # the seed of a run decides which pretraining it starts from
    assert [plan.needs(run._replace(seed=seed))[0].seed for seed in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize("images", plan.SETS)
def test_arms_differ_in_their_start_and_rates_alone(tmp_path, images):
    folders = runs.Folders(tmp_path)

    def settings(arm):
        config = asdict(finetune_config(runs.training_words(plan.training(images, arm, 30, 1e-3), folders)))
        parts = {part: values if isinstance(values, dict) else {"": values} for part, values in config.items()}
        parts["run"].pop("name")
        return parts

    def differing(one, other):
        return {f"{part}.{key}" for part in one for key in one[part] if one[part][key] != other[part][key]}

    new, pretrained, other = (settings(arm) for arm in (NEW, "hog", CONVNET))
    apart = differing(new, pretrained)
    assert {key for key in apart if not key.startswith("model.")} == {"optim.layer_decay"}
    assert differing(new, other) == {"train.duration", "optim.warmup", "save.every", "log.evaluate_every"}
    assert new["augment"]["mixup"] == 0.8
    pretrain_config(runs.pretraining_words(plan.pretraining(images, "pixels"), folders))


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


def test_the_network_learns_from_mixed_pictures(tmp_path, monkeypatch):
    """Its first batch is what the fine-tuning of a Swin would have seen: pairs mixed by seed and position."""
    package_of(tmp_path / "package", "")
    monkeypatch.setattr(pictures, "VALIDATION", 30)
    monkeypatch.setattr(plan, "STEPS", {3: 4})
    monkeypatch.setattr(runs, "WARMUP", 1)
    pictures.write(tmp_path / "package", tmp_path / CLOTHES)
    folders, seen = runs.Folders(tmp_path), []
    config = finetune_config(runs.training_words(plan.training(CLOTHES, CONVNET, 3, 1e-3), folders))

    def loss(logits, wanted):
        seen.append(wanted)
        return F.cross_entropy(logits, wanted)

    monkeypatch.setattr(convnet, "classification_loss", loss)
    (tmp_path / "out").mkdir()
    convnet.train(config, tmp_path / "out")
    assert (seen[0].amax(1) < 0.9).float().mean() > 0.3  # smoothing alone leaves 0.93
    torch.testing.assert_close(seen[0].sum(1), torch.ones(len(seen[0])))


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
    cells = [plan.training(CLOTHES, NEW, 3, rate) for rate in RATES[NEW]]
    append_result(path, {"kind": "Training", **cells[0]._asdict(), "accuracy": 0.1})
    with path.open("a") as file:
        file.write('{"kind": "Trai')
    for accuracy, cell in ((0.2, cells[1]), (0.9, cells[0])):
        append_result(path, {"kind": "Training", **cell._asdict(), "accuracy": accuracy})
    assert {cell: row["accuracy"] for cell, row in study.read(path).items()} == {cells[0]: 0.1, cells[1]: 0.2}


def test_new_weights_with_more_steps_are_an_arm_of_their_own_in_the_report():
    short = Training(CLOTHES, NEW, 3, 1e-3, 0, plan.STEPS[3], TEST)
    accuracies = {short: 0.1, short._replace(seed=1): 0.2, short._replace(steps=4 * short.steps): 0.3}
    accuracies |= {short._replace(arm="hog", seed=seed): 0.45 for seed in (0, 1)}
    lines = report.tested_table({cell: {"accuracy": value} for cell, value in accuracies.items()}).splitlines()[2:]
    assert lines == [
        "| clothes | 3 | new weights | 15.0 ± 7.1 (2 seeds) |  | -20.0 ± 0.0 (-20.0) |",
        "| clothes | 3 | new weights, 4 times the steps | 30.0 ± 0.0 (1 seeds) | +20.0 ± 0.0 (+20.0) |  |",
        "| clothes | 3 | hog | 45.0 ± 0.0 (2 seeds) | +30.0 ± 7.1 (+35.0, +25.0) | +15.0 ± 0.0 (+15.0) |",
    ]


def test_an_encoder_that_is_another_one_when_made_again_is_told():
    made = {"heldout_loss": 0.6, "interpolation_error": 0.7, "probes": [(2, [0.1, 0.2])], "weights": "a"}
    assert study.told(made, made) == "held-out loss 0.6000 (interpolation 0.7000), linear probe 10.0, 20.0 %"
    assert study.told(made, made | {"weights": "b"}).endswith("NOT the bits of the first time")


def idx_file(path, numbers):
    """A file of MNIST's format, gzipped where its name says so."""
    sizes = np.array(numbers.shape, ">u4").tobytes()
    data = bytes([0, 0, 8, numbers.ndim]) + sizes + numbers.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def package_of(folder, suffix):
    """Few pictures in the files of such a package."""
    inner, rng = folder / "deep" / "within", np.random.default_rng(0)
    inner.mkdir(parents=True)
    for name, count in (("train", 90), ("t10k", 12)):
        labels = (np.arange(count) % 3).astype(np.uint8)
        images = rng.integers(0, 100, (count, 28, 28), np.uint8) + 70 * labels[:, None, None]
        idx_file(inner / f"{name}-images-idx3-ubyte{suffix}", images)
        idx_file(inner / f"{name}-labels-idx1-ubyte{suffix}", labels)
    return inner


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_pictures_are_those_of_the_package(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(pictures, "VALIDATION", 30)
    inner = package_of(tmp_path / "package", suffix)
    pictures.write(tmp_path / "package", tmp_path / "out")
    found = {split: sorted((tmp_path / "out" / split).rglob("*.png")) for split in ("train", "validation", "test")}
    assert {split: len(paths) for split, paths in found.items()} == {"train": 60, "validation": 30, "test": 12}
    assert {int(path.stem) for path in found["validation"]} == set(range(60, 90))  # the last ones
    images = pictures.idx(inner, "train-images*")
    for path in (*found["train"], *found["validation"]):
        assert path.parent.name == str(int(path.stem) % 3)
        assert np.array_equal(np.asarray(Image.open(path)), images[int(path.stem)])


def test_a_package_that_is_not_what_it_was_is_said(tmp_path):
    inner = package_of(tmp_path / "package", "")
    labels = inner / "train-labels-idx1-ubyte"
    whole = labels.read_bytes()
    for data, said in ((whole[:-1], "has 89 bytes of numbers"), (b"\0\0\x0d" + whole[3:], "does not begin with 0 0 8")):
        labels.write_bytes(data)
        with pytest.raises(UserError, match=said):
            pictures.write(tmp_path / "package", tmp_path / "out")
    for data in (whole[:2], whole[:6]):
        labels.write_bytes(data)
        with pytest.raises(UserError, match=r"does not begin with|bytes of numbers"):
            pictures.write(tmp_path / "package", tmp_path / "out")
    labels.write_bytes(gzip.compress(whole)[:-4])
    with pytest.raises(UserError, match="is cut off or damaged"):
        pictures.write(tmp_path / "package", tmp_path / "out")
    idx_file(labels, np.zeros(80, np.uint8))
    with pytest.raises(UserError, match="90 pictures and 80 labels of train"):
        pictures.write(tmp_path / "package", tmp_path / "out")
    labels.unlink()
    with pytest.raises(UserError, match=r"has 0 files train-labels-idx1-ubyte\*: expected one"):
        pictures.write(tmp_path / "package", tmp_path / "out")
    with pytest.raises(UserError, match="is there already"):
        pictures.make(CLOTHES, tmp_path)
    with pytest.raises(UserError, match="no-such-program is not there"):
        pictures._run(["no-such-program"], tmp_path, "")


@pytest.mark.parametrize(
    ("words", "said"), [(["choose"], "choose needs one of clothes, digits"), (["report", CLOTHES], "report has all")]
)
def test_a_session_needs_a_set_and_a_report_has_all(words, said):
    with pytest.raises(UserError, match=said):
        study.parse([*words, "--out", "o"])


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A study of a few steps and one rate, on few pictures."""
    monkeypatch.setattr(plan, "PRETRAINING_STEPS", 2)
    monkeypatch.setattr(plan, "STEPS", {3: 6})
    monkeypatch.setattr(plan, "SEEDS", {3: 2})
    monkeypatch.setattr(plan, "CHOSEN_BY", (3,))
    monkeypatch.setattr(plan, "TARGETS", ("normalized",))
    monkeypatch.setattr(plan, "grid", lambda images, arm, found: (1e-3,))
    monkeypatch.setattr(runs, "WARMUP", 1)
    monkeypatch.setattr(runs, "PRETRAINING_WARMUP", 1)
    monkeypatch.setattr(pictures, "VALIDATION", 30)
    package_of(tmp_path / "package", "")
    pictures.write(tmp_path / "package", tmp_path / "work" / CLOTHES)
    return tmp_path


def rows_of(folder):
    return [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]


def test_a_session_goes_on_where_it_was(small, monkeypatch, capsys):
    arms = ("normalized", CONVNET)
    monkeypatch.setitem(SESSIONS, "choose", lambda images, found: plan.choosing(images, arms, found))
    command = ["choose", CLOTHES, "--out", str(small / "out"), "--work", str(small / "work")]
    study.main(command)
    rows = {(row["kind"], row["arm"]): row for row in rows_of(small)}
    assert rows.keys() == {("Pretraining", "normalized"), ("Training", "normalized"), ("Training", CONVNET)}
    made, lost, other = rows["Pretraining", "normalized"], rows["Training", "normalized"], rows["Training", CONVNET]
    assert (lost["starts_from"], other["starts_from"]) == ([made["weights"]], [])
    assert [step for step, _ in lost["curve"]] == [2, 4, 6]
    assert [step for step, _ in other["curve"]] == [1, 2, 3]
    assert "[3/3, eta 0:00]" in capsys.readouterr().out
    with Image.open(small / "out" / "pretraining-gain.png") as picture:
        assert picture.width == 560  # without a panel of test pictures, which nobody has looked at
    assert "| clothes | normalized | 0.002 | 0 | 2 |" in (small / "out" / "table.md").read_text()
    assert list((small / "work" / "cells").iterdir()) == []

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
    """All sessions, with a teacher, heads of every stage and the convolutional network, to the test pictures."""
    for session in ("choose", "add", "measure"):
        study.main([session, CLOTHES, "--out", str(small / "out"), "--work", str(small / "work")])
    rows = rows_of(small)
    assert {row["arm"] for row in rows} == {NEW, CONVNET, "normalized", "normalized stages", "normalized teacher"}
    tested = [row for row in rows if row.get("split") == TEST]
    assert {row["seed"] for row in tested} == {0, 1}
    assert len({row["arm"] for row in tested}) == 3
    assert all(row["curve"] == [] for row in tested)
    assert "| clothes | 3 | convnet |" in (small / "out" / "table.md").read_text()
