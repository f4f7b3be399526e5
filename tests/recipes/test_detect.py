"""The detection recipe as a user meets it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import run_recipe
from conftest import TINY, Recipe
from huggingface_hub import ModelCard
from PIL import Image, ImageDraw

from swin_mim.data.dense.boxes import drawn_runs
from swin_mim.models.dense.detector import SwinDetector

TINY_DETECT = {
    "run": {"name": "tiny"},
    "data": {"workers": 0},
    "model": {**TINY["model"], "embed_dim": 8, "image_size": 64, "drop_path_rate": 0.1, "head_channels": 8},
    "augment": {"scale": [0.5, 1.5], "copy_paste": 0.5},
    "optim": {"base_lr": 0.05, "warmup": "2 steps"},
    "train": {**TINY["train"], "global_batch": 4, "micro_batch": 2, "ema": 0.5},
    "log": {"every": "1 step", "evaluate_every": "5 steps", "trackers": []},
    "save": {"every": "5 steps"},
}


NO_ARCHITECTURE = [
    word
    for key in ("name", "embed_dim", "depths", "num_heads", "image_size", "window_size")
    for word in (f"--model.{key}", "None")
]
LOSSES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")


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
    """Trains the tiny detector with all that is random: jitter, flips, copy-paste, sampling, stochastic depth, EMA."""
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
    for row in (row for row in detect.metrics(whole_detect) if "loss" in row):
        assert sum(row[key] for key in LOSSES) == pytest.approx(row["loss"], rel=1e-5)
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


FSDP = ("--train.fsdp", "true")
STOP = ("--train.stop_after", "4 steps")


def interrupted(recipe, name, *flags, zero=0):
    recipe.launch(name, *flags, *STOP, zero=zero)
    assert "resumed at step 4" in recipe.launch(name, *flags, zero=zero)


WAYS = {
    "processes_2": lambda recipe, name: recipe.launch(name),
    "workers_2": lambda recipe, name: recipe.run(name, "--data.workers", "2"),
    "zero_1": lambda recipe, name: recipe.launch(name, zero=1),
    "zero_2_interrupted": lambda recipe, name: interrupted(recipe, name, zero=2),
    "fsdp_interrupted": lambda recipe, name: interrupted(recipe, name, *FSDP),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_metrics_are_those_of_one_process_that_accumulates(way, detect, whole_detect):
    """All losses, gradients and precisions: 10 steps of 2 x 2 images, and 5 images to evaluate on."""
    WAYS[way](detect, way)
    exact = way.startswith("workers")
    for a, b in zip(detect.metrics(whole_detect), detect.metrics(way), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            tolerance = {"abs": 0, "rel": 0} if exact else {"abs": 1e-4, "rel": 1e-3}
            assert b[key] == pytest.approx(a[key], **tolerance), key


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2])
def test_bf16_is_near(zero, detect, whole_detect):
    """With autocast, and as DeepSpeed has it, which holds the weights of the heads in bf16 too."""
    name = f"bf16_{zero}"
    detect.launch(name, "--train.precision", "bf16", zero=zero)
    found, expected = detect.losses(name), detect.losses(whole_detect)
    assert found != expected
    assert found == pytest.approx(expected, abs=0.15)


@pytest.mark.slow
def test_a_replayed_step_has_the_losses_of_the_run(detect, whole_detect):
    code, said = run_recipe.command("replay", str(detect.path(whole_detect)), "7", folder=detect.folder)
    assert code == 0, said
    assert "not finite: the gradients of 0 of" in said
    row = next(row for row in detect.metrics(whole_detect) if row["step"] == 7)
    for key in ("loss", *LOSSES):
        parts = [float(value) for value in re.findall(rf"(?:run: |, ){key} ([\d.e-]+)", said)]
        assert len(parts) == 2, "two micro batches"
        assert sum(parts) / 2 == pytest.approx(row[key], rel=1e-4)


@pytest.mark.slow
def test_evaluating_alone_on_one_and_two_processes(detect, whole_detect, tmp_path):
    """A published detector on images that nobody knows: all it finds is in a file, the same for both."""
    export = detect.path(whole_detect) / "export"
    results = []
    for processes in (1, 2):
        file = tmp_path / f"found_{processes}.json"
        flags = ["--evaluate", "--model.pretrained", str(export), *NO_ARCHITECTURE, "--predictions", str(file)]
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


@pytest.mark.slow
def test_smaller_anchors_go_with_the_run_and_its_weights(detect, whole_detect):
    """From a detector with the usual ones: told, kept by a resumed run and its export, and not exchanged afterwards."""
    start = ["--model.pretrained", str(detect.path(whole_detect) / "export"), *NO_ARCHITECTURE]
    command = ("anchors", *start, "--model.head_channels", "None", "--model.smallest_anchor", "16")
    said = detect.run(*command, "--train.stop_after", "4 steps")
    assert "proposes objects by anchors of 32 pixels and more, now of 16" in said
    other = [*command[:-1], "12"]
    assert "model.smallest_anchor: 16 -> 12" in detect.run(*other, expect=2)
    assert "resumed at step 4" in detect.run(*command)
    export = detect.path("anchors") / "export"
    assert SwinDetector.from_pretrained(export).anchors() == (16, 32, 64)
    judged = ["--evaluate", "--model.pretrained", str(export), *NO_ARCHITECTURE]
    detect.run("judged_anchors", *judged)
    assert report(detect, "judged_anchors")["metrics"] == report(detect, "anchors")["metrics"]
    said = detect.run("other_anchors", *judged, "--model.smallest_anchor", "8", expect=2)
    assert "model.smallest_anchor is 8 and that of the weights 16: leave it out" in said


@pytest.mark.slow
def test_a_run_with_objects_that_no_anchor_matches_says_what_would(detect):
    flags = ["--model.image_size", "16", "--train.duration", "1 step", "--optim.warmup", "0 steps"]
    assert "use --model.smallest_anchor 6" in detect.run("too_small", *flags, "--model.window_size", "2")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.source", "nowhere.json"], "nowhere.json does not exist or is no file"),
        (["--data.channels", "1", "2"], "data.mean None is needed for data.channels"),
        (["--data.nodata", "0"], "is for images that are not read as RGB: set data.channels"),
        (["--augment.copy_paste", "1.5"], "must be at least 0 and at most 1"),
        (["--save.best_by", "mask_AP", "--model.masks", "false"], "is of shapes, and model.masks is false"),
        (["--model.smallest_anchor", "3"], "model.smallest_anchor 3 must be at least 4 pixels"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, message, detect):
    output = detect.run("mistake", *flags, expect=2)
    assert message in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_images_of_three_of_four_channels_with_gaps(detect, tmp_path):
    """Trained, resumed to the bit, measured on its own; what marks the gaps goes into the published model."""
    file = objects(tmp_path, "bands", 10, 3)
    text = Path(file).read_text()
    for picture in tmp_path.glob("*.png"):
        values = np.asarray(Image.open(picture)).astype(np.int16) * 20
        values = np.concatenate([values, values[..., :1]], axis=2)
        values[:6] = -1
        np.save(picture.with_suffix(".npy"), values)
    Path(file).write_text(text.replace(".png", ".npy"))
    bands = ["--data.channels", "4", "2", "3", "--data.nodata", "-1"]
    statistics = ["--data.mean", "2200", "2200", "2200", "--data.std", "1000", "1000", "1000"]
    flags = ["--data.source", file, "--data.validation", file, *bands, *statistics, "--train.micro_batch", "4"]
    detect.run("bands", *flags)
    command = ("bands_stopped", *flags, "--train.stop_after", "7 steps")
    detect.run(*command)
    assert "resumed at step 7" in detect.run(*command)
    detect.assert_same_run("bands", "bands_stopped")
    Image.open(detect.path("bands") / "evaluation" / "detections.png").verify()
    model = SwinDetector.from_pretrained(detect.path("bands") / "export")
    known = model.preprocessing
    assert (known.channels, known.scale, known.nodata) == (("4", "2", "3"), 1, -1)
    assert model.encoder.config.in_channels == 3
    data = ["--data.source", file, "--data.validation", file]
    judged = ["--evaluate", "--model.pretrained", str(detect.path("bands") / "export"), *NO_ARCHITECTURE, *data]
    assert "images are read as RGB" in detect.run("rgb", *judged, expect=2)
    detect.run("bands_judged", *judged, *bands)
    assert report(detect, "bands_judged")["metrics"] == report(detect, "bands")["metrics"]


@pytest.mark.slow
def test_64_images_are_learned_by_heart(detect, tmp_path):
    """Boxes and shapes: nothing of the data, the losses or the heads is in the way of it."""
    file = objects(tmp_path, "heart", 64, 2)
    flags = ["--data.source", file, "--data.validation", file, "--augment.scale", "1", "1", "--augment.flips", "none"]
    flags += ["--augment.copy_paste", "0", "--train.ema", "0", "--model.drop_path_rate", "0"]
    flags += ["--model.embed_dim", "16", "--model.head_channels", "16", "--train.global_batch", "8"]
    flags += ["--train.micro_batch", "8", "--train.duration", "150 steps", "--optim.warmup", "20 steps"]
    flags += ["--optim.base_lr", "0.2", "--log.evaluate_every", "150 steps", "--save.every", "150 steps"]
    detect.run("heart", *flags, "--data.empty", "true")
    found = report(detect, "heart")
    assert found["evaluated"] == 64
    assert found["metrics"]["AP50"] > 0.9
    assert found["metrics"]["mask_AP50"] > 0.9
