"""The segmentation recipe as a user meets it; however a run is cut up or interrupted, it is the same one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Recipe
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from swin_mim import Swin
from swin_mim.models.dense.segmenter import SwinSegmenter

COLOURS = np.array([[40, 60, 200], [60, 190, 60], [200, 90, 50]])
HALF = ("--train.micro_batch", "8")


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures with masks of three classes, whose colours tell most of them, and 5 to evaluate on.

    The first rows have no label.
    """
    folder, rng = tmp_path_factory.mktemp("masked"), np.random.default_rng(0)
    for part in ("train/images", "train/masks", "val/images", "val/masks"):
        (folder / part).mkdir(parents=True)
    for number in range(29):
        split = "train" if number < 24 else "val"
        mask = rng.integers(0, 3, (3, 4), dtype=np.uint8).repeat(14, axis=0).repeat(14, axis=1)
        noise = rng.normal(0, 25, (*mask.shape, 3))
        Image.fromarray((COLOURS[mask] + noise).clip(0, 255).astype(np.uint8)).save(
            folder / f"{split}/images/{number:02d}.jpg"
        )
        mask[:3] = 255
        Image.fromarray(mask).save(folder / f"{split}/masks/{number:02d}.png")
    (folder / "names.txt").write_text("water\nforest\ntown\n")
    return folder


@pytest.fixture(scope="session")
def segment(tmp_path_factory: pytest.TempPathFactory, masked: Path) -> Recipe:
    """Trains the tiny segmenter, from new weights, with everything that is random."""
    settings = {
        "run": {"name": "tiny"},
        "data": {
            "workers": 0,
            "source": str(masked / "train"),
            "validation": str(masked / "val"),
            "class_names": str(masked / "names.txt"),
        },
        "model": {
            **TINY["model"],
            "embed_dim": 8,
            "depths": [1, 1],
            "drop_path_rate": 0.0,
            "head_channels": 16,
            "head_norm": "group",
            "head_dropout": 0.0,
        },
        "augment": {"photometric": True, "flips": "dihedral"},
        "optim": {"base_lr": 0.1, "warmup": "2 steps", "schedule": "poly"},
        "train": {**TINY["train"], "ema": 0.8},
        "log": {"every": "1 step", "evaluate_every": "5 steps", "trackers": []},
        "save": {"every": "5 steps"},
    }
    return Recipe("segment.py", tmp_path_factory.mktemp("segment"), settings)


@pytest.fixture(scope="session")
def whole_segment(segment: Recipe) -> str:
    """Ten steps at one go, by one process."""
    segment.run("whole", "--predictions", str(segment.folder / "masks"))
    return "whole"


def test_a_run_leaves_its_best_model_and_what_it_measured(segment: Recipe, whole_segment: str, masked: Path) -> None:
    folder = segment.path(whole_segment)
    losses = segment.losses(whole_segment)
    assert losses[-1] < losses[0]
    rows = [row for row in segment.metrics(whole_segment) if "mean_iou" in row]
    best = max(rows, key=lambda row: (row["mean_iou"], row["step"]))
    report = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert (report["step"], report["metrics"]["mean_iou"]) == (best["step"], best["mean_iou"])
    assert [entry["name"] for entry in report["classes"]] == ["water", "forest", "town"]
    model = SwinSegmenter.from_pretrained(folder / "export")
    assert model.labels == ("water", "forest", "town")
    step = folder / "checkpoints" / f"step_{best['step']:010d}"
    published = load_file(step / "average.safetensors")
    assert all(torch.equal(value, published[key]) for key, value in model.state_dict().items())
    (iou, *_) = ModelCard.load(folder / "export" / "README.md").data.eval_results
    assert (iou.metric_type, iou.metric_value) == ("mean_iou", pytest.approx(best["mean_iou"], abs=1e-6))
    for picture in (
        "evaluation/overlays.png",
        "evaluation/confusion.png",
        "plots/loss.png",
        "export/card_overlays.png",
    ):
        Image.open(folder / picture).verify()
    counts, files = np.zeros((3, 3), dtype=int), sorted((segment.folder / "masks").glob("*.png"))
    for file in files:
        found, truth = (np.asarray(Image.open(path)) for path in (file, masked / "val/masks" / file.name))
        np.add.at(counts, (truth[truth < 3], found[truth < 3]), 1)
    assert len(files) == 5
    assert counts.tolist() == report["confusions"]
    assert Swin.from_pretrained(folder / "export").config.embed_dim == 8


# UperNet's group norms of two channels of one cell, as so few channels have them, know only which is larger
FPN = ("--model.head", "fpn")
FSDP = ("--train.fsdp", "true")


def interrupted(recipe: Recipe, name: str, *flags: str, zero: int = 0) -> None:
    recipe.launch(name, *FPN, *HALF, *flags, "--train.stop_after", "4 steps", zero=zero)
    assert "resumed at step 4" in recipe.launch(name, *FPN, *HALF, *flags, zero=zero)


WAYS = {
    "accumulation": lambda recipe, name: recipe.run(name, *FPN, *HALF),
    "workers_2": lambda recipe, name: recipe.run(name, *FPN, "--data.workers", "2"),
    "processes_2": lambda recipe, name: recipe.launch(name, *FPN, *HALF),
    "zero_1": lambda recipe, name: recipe.launch(name, *FPN, *HALF, zero=1),
    "zero_2_accumulation": lambda recipe, name: recipe.launch(name, *FPN, "--train.micro_batch", "4", zero=2),
    "zero_2_interrupted": lambda recipe, name: interrupted(recipe, name, zero=2),
    "fsdp": lambda recipe, name: recipe.launch(name, *FPN, *HALF, *FSDP),
    "fsdp_interrupted": lambda recipe, name: interrupted(recipe, name, *FSDP),
}


@pytest.fixture(scope="module")
def whole_fpn(segment: Recipe) -> str:
    """The same with the light head."""
    segment.run("fpn", *FPN)
    return "fpn"


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_metrics_are_those_of_one_process(way: str, segment: Recipe, whole_fpn: str) -> None:
    WAYS[way](segment, way)
    expected, found = segment.metrics(whole_fpn), segment.metrics(way)
    assert len(expected) == 12
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            tolerance = 0 if way.startswith("workers") else 2e-5
            # a pixel on the border of two classes may fall to the other side
            wide = {"grad_norm": 10, "mean_iou": 100, "pixel_accuracy": 100}.get(key, 1)
            assert b[key] == pytest.approx(a[key], abs=tolerance * wide, rel=tolerance * wide), key


def write_panoptic(file: Path, masks: Path) -> None:
    """Write masks of class numbers as a file of COCO's panoptic segmentation, in other numbers, and its PNGs."""
    images, annotations = [], []
    file.with_suffix("").mkdir(parents=True)
    for number, path in enumerate(sorted(masks.glob("*.png"))):
        mask = np.asarray(Image.open(path)).astype(int)
        ids = np.where(mask == 255, 0, 70000 * mask + number + 1)
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2)
        Image.fromarray(colours.astype(np.uint8)).save(file.with_suffix("") / path.name)
        segments = [{"id": 70000 * label + number + 1, "category_id": 11 * label + 3} for label in range(3)]
        images.append({"id": 100 - number, "file_name": f"{path.stem}.jpg"})
        annotations.append({"image_id": 100 - number, "file_name": path.name, "segments_info": segments})
    names = [{"id": 25, "name": "town"}, {"id": 3, "name": "water"}, {"id": 14, "name": "forest"}]
    file.write_text(json.dumps({"images": images, "categories": names, "annotations": annotations}))


@pytest.mark.slow
def test_a_panoptic_file_is_learned_from_as_masks_are(
    segment: Recipe, whole_segment: str, masked: Path, tmp_path: Path
) -> None:
    """To the last bit: the same classes of the same pixels, in a file's own numbers."""
    flags = ["--data.class_names", "None"]
    for part, prefix in (("train", ""), ("val", "validation_")):
        write_panoptic(tmp_path / f"{part}.json", masked / part / "masks")
        flags += [f"--data.{'validation' if prefix else 'source'}", str(masked / part / "images")]
        flags += [f"--data.{prefix}masks", str(tmp_path / f"{part}.json")]
    segment.run("panoptic", *flags)
    segment.assert_same_run(whole_segment, "panoptic")
    model = SwinSegmenter.from_pretrained(segment.path("panoptic") / "export")
    assert model.labels == ("water", "forest", "town")
    bad = segment.run("panoptic_bad", *flags, "--data.num_classes", "3", expect=2)
    assert "data.num_classes 3 is for masks of class numbers" in bad


@pytest.mark.slow
def test_windows_of_large_images_are_the_same_on_one_process_and_on_two(
    segment: Recipe, whole_segment: str, tmp_path: Path
) -> None:
    """Masks byte for byte, and every number of the report."""
    rng, reports = np.random.default_rng(5), []
    for part in ("images", "masks"):
        (tmp_path / "scenes" / part).mkdir(parents=True)
    for number, size in enumerate([(131, 260), (300, 97), (40, 33), (200, 211), (7, 150)]):
        mask = rng.integers(0, 3, size, dtype=np.uint8)
        Image.fromarray(COLOURS[mask].astype(np.uint8)).save(tmp_path / "scenes" / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "scenes" / "masks" / f"{number}.png")
    flags = ["--evaluate", "--model.pretrained", str(segment.path(whole_segment) / "export")]
    flags += ["--data.source", str(tmp_path / "scenes"), "--data.validation", "None", "--data.window", "slide"]
    for key in ("name", "embed_dim", "depths", "num_heads", "image_size", "window_size"):
        flags += [f"--model.{key}", "None"]
    for processes in (1, 2):
        name = f"slid_{processes}"
        segment.launch(name, *flags, "--predictions", str(tmp_path / name), processes=processes)
        found = {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}
        assert list(found) == [f"{number}.png" for number in range(5)]
        reports.append((json.loads((segment.path(name) / "evaluation" / "metrics.json").read_text()), found))
    assert reports[0] == reports[1]
    assert reports[0][0]["evaluated"] == 5


@pytest.mark.slow
def test_continued_equals_uninterrupted(segment: Recipe, whole_segment: str) -> None:
    """To the last bit: weights, moments, averages, and all draws of the augmentation."""
    command = ("stopped", "--train.stop_after", "4 steps")
    assert "the same command continues the run" in segment.run(*command)
    assert "resumed at step 4" in segment.run(*command)
    segment.assert_same_run(whole_segment, "stopped")


@pytest.mark.slow
def test_few_images_of_more_classes_from_batch_norms(segment: Recipe, whole_segment: str) -> None:
    """Classes that nobody names, weights, batch norms and the other head, from a segmenter of other classes."""
    model = ["--model.pretrained", str(segment.path(whole_segment) / "export"), "--model.head_channels", "8"]
    model += [word for key in ("name", "embed_dim", "depths", "num_heads") for word in (f"--model.{key}", "None")]
    flags = ["--data.class_names", "None", "--data.images", "6", "--data.balance", "weights", "--train.ema", "0"]
    flags += ["--model.head_norm", "batch", "--train.duration", "2 steps", "--optim.warmup", "1 step"]
    output = segment.run("few", *model, *flags, "--data.subset_seed", "1", "--optim.layer_decay", "0.8")
    assert "6 images and 5 to evaluate on" in output
    assert "3 classes of pixels, upernet" in output
    found = SwinSegmenter.from_pretrained(segment.path("few") / "export")
    assert found.labels == ("class_0", "class_1", "class_2")
    assert any(key.endswith("running_var") for key in found.state_dict())
    again = segment.run("few", *model, *flags, "--data.subset_seed", "1", "--optim.layer_decay", "0.8", "--evaluate")
    report = json.loads((segment.path("few") / "evaluation" / "metrics.json").read_text())
    assert f"mean_iou {report['metrics']['mean_iou']:.4f}" in again, "what is published is what was measured"


@pytest.mark.slow
def test_evaluating_alone(segment: Recipe, whole_segment: str, masked: Path, tmp_path: Path) -> None:
    """A published model on a folder of images: measured with masks, predicted without; nothing is trained."""
    export = segment.path(whole_segment) / "export"
    flags = ["--evaluate", "--model.pretrained", str(export), "--data.validation", "None", "--data.class_names", "None"]
    for key in ("name", "embed_dim", "depths", "num_heads", "image_size", "window_size"):
        flags += [f"--model.{key}", "None"]
    output = segment.run("judged", *flags, "--data.window", "slide")
    report = json.loads((segment.path("judged") / "evaluation" / "metrics.json").read_text())
    assert report["evaluated"] == 24
    assert f"mean_iou {report['metrics']['mean_iou']:.4f}" in output
    bare = ["--data.source", str(masked / "train/images"), "--predictions", str(tmp_path / "out")]
    assert "masks in" in segment.run("bare", *flags, *bare)
    assert len(list((tmp_path / "out").glob("*.png"))) == 24
    assert "has no masks" in segment.run("none", *flags, *bare[:2], expect=2)
    over = ["--predictions", str(masked / "train/images")]
    assert "which predictions of the same names would replace" in segment.run(
        "none", *flags, *bare[:2], *over, expect=2
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data.class_names", "None", "--data.num_classes", "2"), "has the class number 2, and 2 classes"),
        (("--data.ignore_index", "1"), "data.ignore_index 1 is the number of one of 3 classes"),
        (("--augment.scale", "2", "0.5"), "augment.scale (2.0, 0.5) must be min and max"),
    ],
)
def test_bad_input_is_one_line(flags: tuple[str, ...], message: str, segment: Recipe) -> None:
    output = segment.run("bad", *flags, expect=2)
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert message in line
    assert "Traceback" not in output
