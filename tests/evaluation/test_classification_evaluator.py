import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from swin_mim import SwinClassifier, SwinConfig
from swin_mim.data.labels import Labelled, open_labelled
from swin_mim.data.loading.loader import LoaderOptions
from swin_mim.data.transforms.crops import EvaluationTransform, normalize
from swin_mim.evaluation.classification import confusions, metrics, report
from swin_mim.evaluation.classification_evaluator import PICTURE, REPORT, WORST, ClassificationEvaluator, last_report
from swin_mim.evaluation.reader import Reader
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.models.saving import Preprocessing

NAMES = ("ant", "bee", "cow")
SIZES = [(70, 50), (40, 90), (64, 64), (33, 47), (128, 100)]
CONFIG = SwinConfig((32, 64), embed_dim=16, depths=(2, 1), num_heads=(1, 2), window_size=4)
SEEN = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), interpolation="bicubic", crop_pct=0.7)


@pytest.fixture
def images(tmp_path):
    """Eleven noisy pictures of different sizes in three class folders."""
    rng = np.random.default_rng(0)
    for number in range(11):
        width, height = SIZES[number % len(SIZES)]
        folder = tmp_path / "images" / NAMES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).resize((width, height))
        noise = rng.integers(-40, 41, (height, width, 3))
        pixels = np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return open_labelled(str(tmp_path / "images"))


@pytest.fixture
def model():
    model = SwinClassifier(CONFIG, num_classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model.train()


def reader(seen=SEEN, watch=lambda batches: batches, reduce=lambda rows: rows, rank=0, world=1):
    return Reader(Preprocessor(seen, torch.device("cpu")), (32, 64), reduce, watch, 4, LoaderOptions(rank, world))


def by_hand(model, images, seen):
    """Logits of one image after the other, float64 (n, classes)."""
    transform = EvaluationTransform((32, 64), seen.interpolation, seen.crop_pct)
    model.eval()
    with torch.no_grad():
        rows = [
            model(normalize(transform(images.images.image(index))[None], seen.mean, seen.std))[0].double()
            for index in range(len(images))
        ]
    model.train()
    return torch.stack(rows)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.6])
def test_the_outcome_is_a_loop_by_hand(model, images, interpolation, crop_pct):
    """And no other interpolation, crop or normalisation than those of the preprocessing makes it."""
    seen = Preprocessing(SEEN.mean, SEEN.std, interpolation=interpolation, crop_pct=crop_pct)
    found = ClassificationEvaluator(images, reader(seen)).outcome(model)
    logits = by_hand(model, images, seen)
    probabilities = logits.softmax(dim=1)
    assert probabilities.std(dim=0).min() > 0.01, "all images look alike to this model"
    top = probabilities.sort(dim=1, descending=True)
    assert np.array_equal(found.top, top.indices)
    np.testing.assert_allclose(found.probabilities, top.values, atol=1e-4)
    losses = F.cross_entropy(logits, torch.from_numpy(images.targets), reduction="none")
    np.testing.assert_allclose(found.loss, losses, atol=1e-4)
    assert np.array_equal(found.targets, images.targets)
    assert model.training
    others = [
        Preprocessing(SEEN.mean, SEEN.std, interpolation="bicubic", crop_pct=0.9),
        Preprocessing(SEEN.mean, SEEN.std, interpolation="bilinear", crop_pct=0.9),
        Preprocessing(interpolation=interpolation, crop_pct=crop_pct),
    ]
    for other in others:
        assert np.abs(ClassificationEvaluator(images, reader(other)).outcome(model).loss - found.loss).max() > 1e-3


def test_every_process_gets_the_result_of_one_process(model, images):
    whole = ClassificationEvaluator(images, reader()).outcome(model)
    brought = []

    def collect(rows):
        brought.append(rows.clone())
        return torch.ones_like(rows)

    for rank in range(2):
        ClassificationEvaluator(images, reader(reduce=collect, rank=rank, world=2)).outcome(model)
    for rank in range(2):
        together = reader(reduce=lambda rows: brought[0] + brought[1], rank=rank, world=2)
        outcome = ClassificationEvaluator(images, together).outcome(model)
        assert np.array_equal(outcome.loss, whole.loss)
        assert np.array_equal(outcome.probabilities, whole.probabilities)


def test_reading_goes_through_watch_and_broken_images_are_left_out(model, images, tmp_path):
    (tmp_path / "images" / "bee" / "1.png").write_bytes(b"no picture")
    seen = []

    def watch(batches):
        for batch in batches:
            seen.append((batch.start, len(batch.images), [name for name, _ in batch.broken]))
            yield batch

    outcome = ClassificationEvaluator(images, reader(watch=watch)).outcome(model)
    assert [(start, count) for start, count, _ in seen] == [(0, 4), (4, 4), (8, 3)]
    assert {name for *_, names in seen for name in names} == {"bee/1.png"}
    assert outcome.missing == 1
    assert [images.images.name(index) for index in range(11) if index not in outcome.images] == ["bee/1.png"]


def test_prepare_normalises_each_channel():
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SEEN.mean, SEEN.std))
    for _ in range(2):
        found = reader().preprocess(pixels)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, (pixels / 255 - mean) / std)


@pytest.mark.parametrize("step", [1200, None])
def test_the_report_is_read_back_with_its_step(model, images, tmp_path, step):
    evaluator, folder = ClassificationEvaluator(images, reader()), tmp_path / "run" / "evaluation"
    outcome = evaluator.outcome(model)
    assert last_report(folder) == {}
    evaluator.write(folder, outcome, step=7)
    evaluator.write(folder, outcome, step=step)
    assert sorted(os.listdir(folder)) == [PICTURE, REPORT, WORST] == ["confusion.png", "metrics.json", "worst.json"]
    assert last_report(folder) == json.loads(json.dumps({"step": step, **report(outcome, NAMES)}))
    assert last_report(folder)["metrics"] == metrics(outcome)
    assert last_report(folder)["confusions"] == confusions(outcome).tolist()
    with Image.open(folder / PICTURE) as picture:
        picture.verify()


def test_several_labels_have_no_picture(model, images, tmp_path):
    targets = np.random.default_rng(0).random((11, 3)) < 0.5
    evaluator = ClassificationEvaluator(Labelled(images.images, NAMES, targets), reader())
    outcome = evaluator.outcome(model)
    assert outcome.multi_label
    np.testing.assert_allclose(outcome.probabilities, by_hand(model, images, SEEN).sigmoid(), atol=1e-4)
    evaluator.write(tmp_path / "evaluation", outcome, step=1)
    assert sorted(os.listdir(tmp_path / "evaluation")) == [REPORT, WORST]
    assert set(last_report(tmp_path / "evaluation")["metrics"]) == {
        "heldout_loss",
        "accuracy",
        "mean_average_precision",
    }


def test_predictions_have_the_names_of_images_and_classes(model, images, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images" / "ant" / "0.png").write_bytes(b"no picture")
    evaluator = ClassificationEvaluator(images, reader())
    outcome = evaluator.outcome(model)
    evaluator.write_predictions(Path("~/tables/predictions.csv"), outcome)
    head, *rows = [line.split(",") for line in (tmp_path / "tables" / "predictions.csv").read_text().splitlines()]
    assert head[:4] == ["image", "label", "predicted", "correct"]
    files = sorted(path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*.png"))
    assert [row[0] for row in rows] == [name for name in files if name != "ant/0.png"]
    assert [row[1] for row in rows] == [row[0].split("/")[0] for row in rows]
    assert [row[2] for row in rows] == [NAMES[top] for top in outcome.top[:, 0]]
