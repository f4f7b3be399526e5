"""The detection recipe as a user meets it."""

import json

import numpy as np
import pytest
from conftest import TINY, Recipe
from huggingface_hub import ModelCard
from PIL import Image, ImageDraw

from swin_mim.data.dense.boxes import drawn_runs
from swin_mim.models.dense.detector import SwinDetector

TINY_DETECT = {
    "run": {"name": "tiny"},
    "data": {"workers": 0},
    "model": {**TINY["model"], "embed_dim": 8, "image_size": 64, "drop_path_rate": 0.1, "head_channels": 8},
    "augment": {"scale": [0.5, 1.5]},
    "optim": {"base_lr": 0.05, "warmup": "2 steps"},
    "train": {**TINY["train"], "global_batch": 4, "micro_batch": 2, "ema": 0.5},
    "log": {"every": "1 step", "evaluate_every": "5 steps", "trackers": []},
    "save": {"every": "5 steps"},
}


def objects(folder, name, count, seed):
    """Pictures of red and blue rectangles on grey, and their file."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for i in range(count):
        width, height = int(rng.integers(48, 80)), int(rng.integers(48, 80))
        picture = Image.fromarray(rng.integers(90, 130, (height, width, 3), dtype=np.uint8))
        for k in range(1 + i % 2 if i else 0):  # there is nothing in the first
            w, h = rng.integers(16, 30, 2).tolist()
            left, top = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            ImageDraw.Draw(picture).rectangle(
                (left, top, left + w - 1, top + h - 1), fill=((220, 30, 30), (30, 30, 220))[k]
            )
            points = [left, top, left + w, top, left + w, top + h, left, top + h]
            entry = {"id": len(annotations), "image_id": i, "category_id": k + 1, "bbox": [left, top, w, h]}
            annotations.append(entry | {"segmentation": [points], "area": w * h, "iscrowd": 0})
        picture.save(folder / f"{name}_{i}.png")
        images.append({"id": i, "file_name": f"{name}_{i}.png", "height": height, "width": width})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(file)


@pytest.fixture(scope="module")
def detect(tmp_path_factory):
    """Trains the tiny detector with all that is random: jitter, flips, sampling, stochastic depth, EMA."""
    folder = tmp_path_factory.mktemp("objects")
    files = {"source": objects(folder, "train", 10, 0), "validation": objects(folder, "val", 5, 1)}
    settings = TINY_DETECT | {"data": {**TINY_DETECT["data"], **files}}
    return Recipe("detect.py", tmp_path_factory.mktemp("detect"), settings)


@pytest.fixture(scope="module")
def whole_detect(detect):
    detect.run("whole")
    return "whole"


def report(recipe, name):
    return json.loads((recipe.path(name) / "evaluation" / "metrics.json").read_text())


def test_a_run_leaves_its_detector_and_what_it_measured(detect, whole_detect):
    folder = detect.path(whole_detect)
    found = report(detect, whole_detect)
    assert {"AP", "AP50", "mask_AP"} <= found["metrics"].keys()
    assert found["evaluated"] == 5
    assert [entry["name"] for entry in found["classes"]] == ["red", "blue"]
    losses = detect.losses(whole_detect)
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    model = SwinDetector.from_pretrained(folder)
    assert (model.labels, model.masks, model.head_channels) == (("red", "blue"), True, 8)
    card = ModelCard.load(folder / "export" / "README.md")
    assert card.data.pipeline_tag == "object-detection"
    assert card.data.eval_results[0].metric_value == pytest.approx(found["metrics"]["AP"], abs=1e-6)
    for picture in ("evaluation/detections.png", "plots/loss.png", "export/card_detections.png"):
        Image.open(folder / picture).verify()


@pytest.mark.slow
def test_continued_equals_uninterrupted(detect, whole_detect):
    """To the last bit: weights, moments, averages, and all draws of jitter, anchors and proposals."""
    command = ("stopped", "--train.stop_after", "7 steps")
    assert "the same command continues the run" in detect.run(*command)
    assert "resumed at step 7" in detect.run(*command)
    detect.assert_same_run(whole_detect, "stopped")


@pytest.mark.slow
def test_two_processes_are_one_that_accumulates(detect, whole_detect):
    """Losses, gradients and precisions: 10 steps of 2 x 2 images, and 5 images to evaluate on."""
    detect.launch("two")
    for a, b in zip(detect.metrics(whole_detect), detect.metrics("two"), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert b[key] == pytest.approx(a[key], abs=1e-4, rel=1e-3), key


@pytest.mark.slow
def test_evaluating_alone_on_one_and_two_processes(detect, whole_detect, tmp_path):
    """A published detector on images that nobody knows: all it finds is in a file, the same for both."""
    export = detect.path(whole_detect) / "export"
    none = [word for key in ("name", "embed_dim", "depths", "num_heads", "image_size", "window_size") for word in
            (f"--model.{key}", "None")]  # fmt: skip
    results = []
    for processes in (1, 2):
        file = tmp_path / f"found_{processes}.json"
        flags = ["--evaluate", "--model.pretrained", str(export), *none, "--predictions", str(file)]
        detect.launch("judged", *flags, processes=processes)
        results.append(json.loads(file.read_text()))
    assert results[0] == results[1]
    assert results[0]
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} == results[0][0].keys()
    assert drawn_runs(results[0][0]["segmentation"]).ndim == 2
    assert report(detect, "judged")["metrics"] == report(detect, whole_detect)["metrics"]


@pytest.mark.slow
def test_boxes_alone_of_few_images(detect):
    flags = ["--model.masks", "false", "--data.images", "4", "--train.duration", "2 steps", "--save.best_by", "AP50"]
    output = detect.run("boxes", *flags, "--log.evaluate_every", "2 steps", "--optim.warmup", "0 steps")
    assert "4 images and 5 to evaluate on" in output or "3 images and 5 to evaluate on" in output
    assert "boxes of 2 classes" in output
    assert not SwinDetector.from_pretrained(detect.path("boxes")).masks
    assert "mask_AP" not in report(detect, "boxes")["metrics"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.source", "nowhere.json"], "nowhere.json does not exist or is no file"),
        (["--data.channels", "1", "2"], "a detector takes RGB"),
        (["--save.best_by", "mask_AP", "--model.masks", "false"], "is of shapes, and model.masks is false"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, message, detect):
    output = detect.run("mistake", *flags, expect=2)
    assert message in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_few_images_are_learned_by_heart(detect, tmp_path):
    file = objects(tmp_path, "heart", 8, 2)
    flags = ["--data.source", file, "--data.validation", file, "--augment.scale", "1", "1", "--augment.flips", "none"]
    flags += ["--train.duration", "40 steps", "--optim.base_lr", "0.5", "--train.ema", "0", "--model.embed_dim", "16"]
    flags += ["--model.drop_path_rate", "0", "--model.head_channels", "32", "--log.evaluate_every", "40 steps"]
    detect.run("heart", *flags, "--save.every", "40 steps", "--optim.warmup", "5 steps")
    assert report(detect, "heart")["metrics"]["AP50"] > 0.9
    assert report(detect, "heart")["metrics"]["mask_AP50"] > 0.9
