import csv
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from swin_mim.data.decoding.rgb import BrokenImage
from swin_mim.data.loading.loader import Batch, LoaderOptions, heldout_batches
from swin_mim.data.sources.base import Source
from swin_mim.data.transforms.crops import EvaluationTransform, normalize
from swin_mim.errors import UserError
from swin_mim.evaluation import classification
from swin_mim.evaluation.classification import (
    Outcome,
    average_precision,
    confusions,
    metrics,
    predict,
    report,
    write_predictions,
)
from swin_mim.evaluation.reader import read_of

CLASSES = 7
BROKEN = frozenset({0, 4, 10})
CENTRE = EvaluationTransform((8, 8))


class Noise(Source):
    """`n` different pictures; those in `broken` cannot be read."""

    fingerprint = "noise"

    def __init__(self, n, broken=frozenset()):
        self._n, self._broken = n, broken

    def __len__(self):
        return self._n

    def name(self, index):
        return f"image {index}"

    def image(self, index):
        if index in self._broken:
            raise BrokenImage(f"no good: {index}")
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (12, 14, 3), dtype=np.uint8))


def prepare(images):
    return normalize(images, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.fixture
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))


def single(n):
    return np.random.default_rng(5).integers(CLASSES, size=n)


def several(n):
    return np.random.default_rng(5).random((n, CLASSES)) < 0.3


def share_of(source, rank=0, world=1, batch_size=3):
    return heldout_batches(source, CENTRE, batch_size, LoaderOptions(rank, world))


def alone(rows):
    return rows


def over_processes(run, world):
    """run(rank, reduce) of every process, where reduce adds up what all of them bring."""
    brought = []

    def collect(rows):
        brought.append(rows.clone())
        return torch.ones_like(rows)

    for rank in range(world):
        run(rank, collect)
    assert len(brought) == world, "every process calls reduce exactly once"
    assert {rows.dtype for rows in brought} == {torch.float64}
    return [run(rank, lambda rows: torch.stack(brought).sum(0)) for rank in range(world)]


def assert_same(one, other):
    for field in dataclasses.fields(Outcome):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert np.array_equal(a, b), field.name
        assert getattr(a, "dtype", type(a)) == getattr(b, "dtype", type(b)), field.name


def evaluated(model, n, targets, broken=frozenset(), **share):
    source = Noise(n, broken)
    return predict(model, share_of(source, **share), targets, classes=CLASSES, prepare=prepare, reduce=alone)


def random_outcome(n, classes, *, multi_label=False, seed=0):
    """Predictions with many ties, of a few classes that never occur."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(max(1, classes - 2), size=n)
    scores = rng.permuted(np.tile(np.arange(classes) / classes, (n, 1)), axis=1)
    top = np.argsort(-scores, axis=1)[:, :5]
    probabilities = np.take_along_axis(scores, top, axis=1)
    if multi_label:
        targets, probabilities = rng.random((n, classes)) < 0.3, rng.integers(5, size=(n, classes)) / 4
        targets[:, 1] = False
    return Outcome(np.arange(n), targets, rng.random(n), top, probabilities, 0, classes)


# ---- what a model makes of the images -------------------------------------------------------------------------


def forward_by_hand(model, n):
    images = torch.stack([CENTRE(Noise(n).image(index)) for index in range(n)])
    with torch.no_grad():
        return model.double()(prepare(images).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_label_each_is_one_forward_of_all_images(model, dtype):
    targets = single(11)

    class Cast(nn.Module):
        def forward(self, images):
            return model(images).to(dtype)

    found = evaluated(Cast(), 11, targets)
    logits = forward_by_hand(model, 11)
    tolerance = {"atol": 1e-5} if dtype == torch.float32 else {"atol": 0.03}
    assert found.images.tolist() == list(range(11))
    assert np.array_equal(found.targets, targets)
    assert (found.missing, found.classes, found.multi_label) == (0, CLASSES, False)
    expected = F.cross_entropy(logits, torch.from_numpy(targets), reduction="none")
    np.testing.assert_allclose(found.loss, expected, rtol=0, **tolerance)
    probabilities = logits.softmax(dim=1)
    assert found.top.shape == found.probabilities.shape == (11, 5)
    np.testing.assert_allclose(found.probabilities, probabilities.topk(5).values, rtol=0, **tolerance)
    if dtype == torch.float32:
        assert np.array_equal(found.top, probabilities.topk(5).indices)


def test_several_labels_are_one_forward_of_all_images(model):
    targets = several(11)
    found = evaluated(model, 11, targets)
    logits = forward_by_hand(model, 11)
    expected = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(targets).double(), reduction="none")
    np.testing.assert_allclose(found.loss, expected.mean(dim=1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.probabilities, logits.sigmoid(), rtol=0, atol=1e-5)
    assert np.array_equal(found.top, logits.topk(5).indices)
    assert np.array_equal(found.targets, targets)
    assert found.multi_label


@pytest.mark.parametrize("broken", [frozenset(), BROKEN], ids=["whole", "broken"])
@pytest.mark.parametrize("labels", [single, several])
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(("n", "batch_size"), [(11, 3), (7, 4)])
def test_every_process_gets_the_result_of_one_process(model, n, batch_size, world, labels, broken):
    """To the last bit, and so do their metrics."""
    source, targets = Noise(n, broken), labels(n)

    def run(rank, reduce, world=world):
        batches = share_of(source, rank, world, batch_size)
        return predict(model, batches, targets, classes=CLASSES, prepare=prepare, reduce=reduce)

    whole = run(0, alone, world=1)
    for outcome in over_processes(run, world):
        assert_same(outcome, whole)
        assert report(outcome, [str(k) for k in range(CLASSES)]) == report(whole, [str(k) for k in range(CLASSES)])


@pytest.mark.parametrize("labels", [single, several])
def test_what_cannot_be_read_is_left_out_and_counted(model, labels):
    targets = labels(11)
    whole, found = evaluated(model, 11, targets), evaluated(model, 11, targets, BROKEN)
    rest = np.array([index for index in range(11) if index not in BROKEN])
    assert found.missing == 3
    assert np.array_equal(found.images, rest)
    for field in ("targets", "loss", "top", "probabilities"):
        np.testing.assert_allclose(getattr(found, field), getattr(whole, field)[rest], rtol=1e-6, err_msg=field)


def test_a_replacement_is_recognised_by_its_index():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    batch = Batch(images, 20, [], torch.tensor([20, 5, 22, 21]))
    assert read_of(batch).tolist() == [True, False, True, False]
    assert read_of(Batch(images[:1], 0, [], torch.tensor([0]))).tolist() == [True]


def test_of_equal_logits_the_first_class_comes_first():
    class Equal(nn.Module):
        def forward(self, images):
            return torch.tensor([0.0, 1, 1, 0, 1, 0, 0]).expand(len(images), -1)

    assert evaluated(Equal(), 5, single(5)).top.tolist() == [[1, 2, 4, 0, 3]] * 5


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_of_few_classes_all_are_kept(classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))
    targets = np.zeros(4, dtype=np.int64)
    found = predict(model, share_of(Noise(4)), targets, classes=classes, prepare=prepare, reduce=alone)
    assert found.top.shape == (4, classes)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    assert "top5_accuracy" not in metrics(found)


@pytest.mark.parametrize("labels", [single, several])
def test_nothing_to_read_is_an_error(model, labels):
    with pytest.raises(UserError, match="no image to evaluate on that can be read"):
        evaluated(model, 0, labels(0))
    replaced = Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0, [], torch.tensor([1, 0]))
    with pytest.raises(UserError, match="no image to evaluate on that can be read"):
        predict(model, [replaced], labels(2), classes=CLASSES, prepare=prepare, reduce=alone)


def test_evaluation_knows_no_dropout_and_leaves_every_module_in_its_mode(model):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout, self.frozen, self.head = nn.Dropout(0.5), nn.BatchNorm2d(3), model

        def forward(self, images):
            assert not torch.is_grad_enabled()
            return self.head(self.dropout(self.frozen(images)))

    noisy = Noisy().train()
    noisy.frozen.eval()
    first, second = (evaluated(noisy, 11, single(11)) for _ in range(2))
    assert_same(first, second)
    assert (noisy.training, noisy.dropout.training, noisy.frozen.training) == (True, True, False)
    assert torch.is_grad_enabled()


def test_the_mode_comes_back_after_an_error():
    class Fails(nn.Module):
        def forward(self, images):
            raise RuntimeError(f"training is {self.training}")

    model = Fails().train()
    with pytest.raises(RuntimeError, match="training is False"):
        evaluated(model, 3, single(3))
    assert model.training
    assert torch.is_grad_enabled()


# ---- metrics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5, 6, 20])
def test_metrics_of_one_label_against_a_loop(classes):
    outcome = random_outcome(101, classes)
    found = metrics(outcome)
    right = {k: [] for k in range(classes)}
    among_five = 0
    for target, top in zip(outcome.targets.tolist(), outcome.top.tolist(), strict=True):
        right[target].append(top[0] == target)
        among_five += target in top
    recalls = [sum(hits) / len(hits) for hits in right.values() if hits]
    assert len(recalls) == max(1, classes - 2), "some classes have no images"
    expected = {
        "heldout_loss": sum(outcome.loss.tolist()) / 101,
        "accuracy": sum(sum(hits) for hits in right.values()) / 101,
        "balanced_accuracy": sum(recalls) / len(recalls),
    }
    if classes > 5:
        expected["top5_accuracy"] = among_five / 101
    assert found == pytest.approx(expected, rel=1e-12)
    assert {type(value) for value in found.values()} == {float}


def test_balanced_accuracy_does_not_follow_the_majority():
    targets, top = np.array([0] * 98 + [1, 2]), np.zeros((100, 1), dtype=np.int64)
    found = metrics(Outcome(np.arange(100), targets, np.ones(100), top, np.ones((100, 1)), 0, 3))
    assert found["accuracy"] == 0.98
    assert found["balanced_accuracy"] == pytest.approx(1 / 3)


def precision_by_definition(scores, positive):
    precisions = []
    for score, wanted in zip(scores, positive, strict=True):
        if wanted:
            at_least = [other for value, other in zip(scores, positive, strict=True) if value >= score]
            precisions.append(sum(at_least) / len(at_least))
    return sum(precisions) / len(precisions)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_average_precision_is_its_definition_with_ties(samples):
    scores, positive = np.array([score / 5 for score, _ in samples]), np.array([wanted for _, wanted in samples])
    positive[len(samples) // 2] = True
    expected = precision_by_definition(scores.tolist(), positive.tolist())
    assert average_precision(scores, positive) == pytest.approx(expected, rel=1e-12)
    order = np.random.default_rng(0).permutation(len(samples))
    assert average_precision(scores[order], positive[order]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([0.1, 0.2, 0.3], [1, 0, 0], 1 / 3),
        ([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 0], 0.25),
        ([0.5, 0.9, 0.5, 0.5], [1, 0, 1, 0], 0.5),
        ([2.0], [1], 1.0),
    ],
)
def test_average_precision_of_a_few_samples(scores, positive, expected):
    assert average_precision(np.array(scores), np.array(positive, dtype=bool)) == pytest.approx(expected)


def test_metrics_of_several_labels_against_a_loop():
    outcome = random_outcome(60, 8, multi_label=True)
    precisions, right = [], 0
    for k in range(8):
        if outcome.targets[:, k].any():
            precisions.append(precision_by_definition(outcome.probabilities[:, k], outcome.targets[:, k]))
    for probabilities, labels in zip(outcome.probabilities, outcome.targets, strict=True):
        right += all((probability > 0.5) == label for probability, label in zip(probabilities, labels, strict=True))
    assert len(precisions) == 7
    assert metrics(outcome) == pytest.approx(
        {
            "heldout_loss": sum(outcome.loss.tolist()) / 60,
            "accuracy": right / 60,
            "mean_average_precision": sum(precisions) / 7,
        },
        rel=1e-12,
    )


def test_a_perfect_prediction_of_several_labels():
    targets = several(40)
    outcome = Outcome(
        np.arange(40), targets, np.zeros(40), np.zeros((40, 5), np.int64), targets * 0.9 + 0.05, 0, CLASSES
    )
    assert metrics(outcome) == {"heldout_loss": 0, "accuracy": 1, "mean_average_precision": 1}


def test_images_without_any_label_have_no_average_precision():
    targets = np.zeros((3, 2), dtype=bool)
    outcome = Outcome(np.arange(3), targets, np.ones(3), np.zeros((3, 2), np.int64), np.full((3, 2), 0.1), 0, 2)
    assert metrics(outcome) == {"heldout_loss": 1, "accuracy": 1, "mean_average_precision": 0}


@pytest.mark.parametrize("classes", [2, 7, 30])
def test_confusions_count_every_image_once(classes):
    outcome = random_outcome(200, classes)
    counts = confusions(outcome)
    assert counts.shape == (classes, classes)
    assert np.array_equal(counts.sum(axis=1), np.bincount(outcome.targets, minlength=classes))
    for true, predicted in np.ndindex(classes, classes):
        pairs = zip(outcome.targets, outcome.top[:, 0], strict=True)
        assert counts[true, predicted] == sum(pair == (true, predicted) for pair in pairs)
    assert np.trace(counts) / 200 == pytest.approx(metrics(outcome)["accuracy"])


# ---- what is written ------------------------------------------------------------------------------------------


def test_the_report_has_every_class_by_itself():
    outcome = dataclasses.replace(random_outcome(50, 9), missing=4)
    names = [f"class {k}" for k in range(9)]
    whole = json.loads(json.dumps(report(outcome, names)))
    assert list(whole) == ["metrics", "evaluated", "unreadable", "classes", "confusions"]
    assert (whole["metrics"], whole["evaluated"], whole["unreadable"]) == (metrics(outcome), 50, 4)
    assert whole["confusions"] == confusions(outcome).tolist()
    assert [entry["name"] for entry in whole["classes"]] == names
    for k, entry in enumerate(whole["classes"]):
        hits = [top[0] == k for target, top in zip(outcome.targets, outcome.top, strict=True) if target == k]
        assert entry["images"] == len(hits)
        assert entry.get("accuracy") == (pytest.approx(sum(hits) / len(hits)) if hits else None)
    assert [entry["images"] for entry in whole["classes"]][7:] == [0, 0]


def test_the_report_of_several_labels():
    outcome = random_outcome(50, 6, multi_label=True)
    whole = json.loads(json.dumps(report(outcome, list("abcdef"))))
    assert list(whole) == ["metrics", "evaluated", "unreadable", "classes"]
    assert whole["classes"][1] == {"name": "b", "images": 0}
    for k in (0, 2, 3, 4, 5):
        entry = whole["classes"][k]
        assert entry["images"] == outcome.targets[:, k].sum()
        expected = precision_by_definition(outcome.probabilities[:, k], outcome.targets[:, k])
        assert entry["average_precision"] == pytest.approx(expected, rel=1e-12)


def test_confusions_of_very_many_classes_are_not_reported(monkeypatch):
    monkeypatch.setattr(classification, "CONFUSIONS", 8)
    for classes, said in ((8, True), (9, False)):
        assert ("confusions" in report(random_outcome(20, classes), [str(k) for k in range(classes)])) == said


ODD = ["plain", "a, b", 'the "best"', "two\nlines", "Schnee ❄ élan", "", ";"]
PICTURES = ["a/1.png", "b,c/2.png", "new\nline.png", "caf\\xe9 ❄.png", '"quoted".png', "=1+1.png", " x .png", "y.png"]


def read_table(path):
    """Column -> values, as text from a CSV file and with their types from parquet."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pydict()
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    return {name: [row[column] for row in rows] for column, name in enumerate(head)}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predictions_are_read_back_as_they_were(tmp_path, suffix):
    outcome = dataclasses.replace(random_outcome(5, 7), images=np.array([0, 2, 3, 4, 7]), missing=3)
    path = tmp_path / "new" / f"table{suffix}"
    write_predictions(path, outcome, ODD, PICTURES)
    assert os.listdir(path.parent) == [path.name]
    table = read_table(path)
    ranks = [f"{word}_{rank}" for rank in range(1, 6) for word in ("class", "probability")]
    assert list(table) == ["image", "label", "predicted", "correct", *ranks]
    assert table["image"] == [PICTURES[index] for index in (0, 2, 3, 4, 7)]
    assert table["label"] == [ODD[k] for k in outcome.targets]
    assert table["predicted"] == table["class_1"] == [ODD[k] for k in outcome.top[:, 0]]
    right = [bool(top[0] == target) for target, top in zip(outcome.targets, outcome.top, strict=True)]
    assert table["correct"] == (right if suffix == ".parquet" else [str(value) for value in right])
    for rank in range(5):
        assert table[f"class_{rank + 1}"] == [ODD[k] for k in outcome.top[:, rank]]
        found = [float(value) for value in table[f"probability_{rank + 1}"]]
        assert found == pytest.approx(outcome.probabilities[:, rank].tolist(), abs=5e-7)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predictions_of_several_labels(tmp_path, suffix):
    targets = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], dtype=bool)
    probabilities = np.array([[0.9, 0.5, 0.51], [0.1234567, 0.2, 0.3], [0.6, 0.7, 0.0]])
    outcome = Outcome(np.array([0, 1, 3]), targets, np.ones(3), np.zeros((3, 3), np.int64), probabilities, 1, 3)
    path = tmp_path / f"table{suffix}"
    write_predictions(path, outcome, ["tree", "a, b", "ö"], PICTURES)
    table = read_table(path)
    shares = {name: table.pop(f"probability of {name}") for name in ("tree", "a, b", "ö")}
    assert table == {
        "image": [PICTURES[index] for index in (0, 1, 3)],
        "labels": ["tree;ö", "", "a, b"],
        "predicted": ["tree;ö", "", "tree;a, b"],
    }
    for k, values in enumerate(shares.values()):
        assert [float(value) for value in values] == pytest.approx(probabilities[:, k].tolist(), abs=5e-7)


def error_of_writing(path):
    with pytest.raises(UserError) as caught:
        write_predictions(path, random_outcome(5, 7), ODD, PICTURES)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"predictions {path} cannot be written: ")
    return message


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_folder_in_the_way_is_one_line_and_nothing_is_left(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    path.mkdir()
    assert "directory" in error_of_writing(path)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("folder", ["file", "x" * 300], ids=["a file", "too long a name"])
def test_a_place_where_nothing_can_be_written_is_one_line(tmp_path, folder, suffix):
    (tmp_path / "file").write_text("no folder")
    error_of_writing(tmp_path / folder / f"table{suffix}")
    error_of_writing(tmp_path / f"{'x' * 300}{suffix}")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_write_that_fails_half_way_leaves_the_former_table(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"table{suffix}"
    write_predictions(path, random_outcome(5, 7, seed=1), ODD, PICTURES)
    former = path.read_bytes()

    def fails(self, target):
        assert self.stat().st_size > 0
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    assert error_of_writing(path).endswith("No space left on device")
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == former
