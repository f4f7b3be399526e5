"""Metrics of pixels: exact, whoever computed which image."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

from swin_mim import SwinConfig
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.dense.masks import ClassNumbers, decode_mask
from swin_mim.data.dense.open_pairs import Classes, open_pairs
from swin_mim.data.dense.pairs import Pairs
from swin_mim.data.loading.loader import LoaderOptions
from swin_mim.evaluation.dense.mask_files import mask_stems, place_of, write_mask
from swin_mim.evaluation.dense.overlays import palette
from swin_mim.evaluation.dense.segmentation import Inference, Outcome, class_ious, metrics
from swin_mim.evaluation.dense.segmentation_evaluator import SegmentationEvaluator
from swin_mim.models.dense.segmenter import SwinSegmenter
from swin_mim.models.preprocessing import Preprocessor

SIZES = ((24, 40), (33, 17), (24, 40), (64, 48), (20, 90))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Five pictures of several sizes with classes 0, 1 and 3 of four, some pixels without a label; one is broken."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(2)
    for number, size in enumerate(SIZES):
        image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        mask = rng.choice(np.array([0, 1, 3, 255], dtype=np.uint8), size)
        for part, array in (("images", image), ("masks", mask)):
            (folder / part).mkdir(exist_ok=True)
            Image.fromarray(array).save(folder / part / f"{number}.png")
    for part in ("images", "masks"):
        (folder / part / "9.png").write_bytes((folder / part / "0.png").read_bytes())
    (folder / "images" / "9.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return open_pairs(str(folder), Classes(count=4))


@pytest.fixture(scope="module")
def model() -> SwinSegmenter:
    torch.manual_seed(0)
    config = SwinConfig(image_size=32, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2))
    built = SwinSegmenter(config, 4, head="fpn", head_channels=8, head_norm="group").eval()
    with torch.no_grad():
        for parameter in built.decode_head.parameters():
            parameter.mul_(8)
    return built


def evaluator(
    pairs: Pairs, model: SwinSegmenter, reduce: Callable[[Tensor], Tensor], rank: int = 0, world: int = 1
) -> SegmentationEvaluator:
    preprocess = Preprocessor(model.preprocessing, torch.device("cpu"))
    options = LoaderOptions(rank, world)
    return SegmentationEvaluator(pairs, Inference(resize=32), preprocess, (32, 32), reduce, lambda each: each, options)


def outcome_of(pairs: Pairs, model: SwinSegmenter, world: int) -> Outcome:
    """That of the last of so many processes, each of which adds what the ones before it found."""
    parts: list[Tensor] = []

    def reduce(values: Tensor) -> Tensor:
        parts.append(values)
        return torch.stack(parts).sum(dim=0)

    return [evaluator(pairs, model, reduce, rank, world).outcome(model) for rank in range(world)][-1]


def test_equal_to_numpy_on_predicted_masks(pairs: Pairs, model: SwinSegmenter, tmp_path: Path) -> None:
    """Every number once more, one pixel after the other, from the masks that are written."""
    outcome = evaluator(pairs, model, lambda values: values).outcome(model, tmp_path)
    truth, predicted = [], []
    for index, size in enumerate(SIZES):
        found = decode_mask((tmp_path / f"{index}.png").read_bytes())
        assert found.shape == size
        labels = pairs.labels(index)
        truth.append(labels[labels != 255])
        predicted.append(found[labels != 255])
    a, b = np.concatenate(truth), np.concatenate(predicted)
    measured = metrics(outcome)
    ious = [((a == k) & (b == k)).sum() / ((a == k) | (b == k)).sum() for k in range(4) if ((a == k) | (b == k)).any()]
    assert len(np.unique(b)) >= 2
    assert measured["mean_iou"] == pytest.approx(np.mean(ious), abs=1e-12)
    assert measured["pixel_accuracy"] == pytest.approx((a == b).mean(), abs=1e-12)
    assert (outcome.images, outcome.missing) == (5, 1)
    assert outcome.confusions.sum() == len(a)
    assert not (tmp_path / "9.png").exists()


def test_the_loss_is_that_of_labelled_pixels(pairs: Pairs, model: SwinSegmenter) -> None:
    total, count = 0.0, 0
    for index in range(5):
        image, labels = pairs.images.image(index)
        pixels = Preprocessor(model.preprocessing, torch.device("cpu"))(
            torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None]
        )
        logits = Inference(resize=32)(model, pixels)[0].double()
        assert logits.shape[1:] == labels.shape
        rows, columns = np.nonzero(labels != 255)
        total -= logits.log_softmax(dim=0)[labels[rows, columns].astype(int), rows, columns].sum().item()
        count += len(rows)
    assert outcome_of(pairs, model, 1).loss == pytest.approx(total / count, rel=1e-6)


@pytest.mark.parametrize("world", [2, 4])
def test_the_same_on_several_processes(world: int, pairs: Pairs, model: SwinSegmenter) -> None:
    one, several = outcome_of(pairs, model, 1), outcome_of(pairs, model, world)
    assert np.array_equal(one.confusions, several.confusions)
    assert (one.loss, one.images, one.missing) == (several.loss, several.images, several.missing)


def test_classes_that_are_nowhere_do_not_count() -> None:
    counts = np.zeros((3, 3), dtype=np.int64)
    counts[0, 0], counts[0, 1] = 3, 1
    assert class_ious(counts)[:2].tolist() == [0.75, 0.0]
    assert np.isnan(class_ious(counts)[2])
    assert metrics(Outcome(counts, 0.5, 1, 0))["mean_iou"] == 0.375
    nothing = metrics(Outcome(np.zeros((3, 3), dtype=np.int64), float("nan"), 1, 0))
    assert np.isnan(list(nothing.values())).all()


def test_windows_of_an_image(pairs: Pairs, model: SwinSegmenter) -> None:
    """A window that holds all of an image gives what the image whole gives; smaller ones give something near."""
    pixels = torch.randn(1, 3, 30, 41, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = Inference()(model, pixels)
        assert torch.allclose(Inference(window=(30, 41))(model, pixels), whole, atol=1e-5)
        assert Inference(window=(16, 16))(model, pixels).shape == whole.shape


def test_what_is_written(pairs: Pairs, model: SwinSegmenter, tmp_path: Path) -> None:
    measuring = evaluator(pairs, model, lambda values: values)
    outcome = measuring.outcome(model)
    measuring.write(tmp_path, outcome, model, step=7)
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["step"] == 7
    assert report["evaluated"] == 5
    assert report["confusions"] == outcome.confusions.tolist()
    assert [entry["name"] for entry in report["classes"]] == list(pairs.names)
    assert report["classes"][2]["pixels"] == 0
    assert "accuracy" not in report["classes"][2]
    Image.open(tmp_path / "confusion.png").verify()
    with Image.open(tmp_path / "overlays.png") as picture:
        colours = {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    shown = palette(4)
    assert tuple(shown[0]) in colours, "the legend has the classes that are there"
    assert tuple(shown[3]) in colours


def test_a_geotiff_keeps_its_place(tmp_path: Path) -> None:
    place = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 5e5, 4e6, 0.0), True)]
    keys = [(34735, 3, 8, (1, 1, 0, 1, 3072, 0, 1, 32632), True)]
    for part in ("images", "masks"):
        (tmp_path / part / "north").mkdir(parents=True)
    scene = np.random.default_rng(0).integers(0, 9999, (12, 15, 2), dtype=np.uint16)
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "images/north/scene.tif", scene, **options, extratags=place + keys)
    tifffile.imwrite(tmp_path / "masks/north/scene.tif", np.ones((12, 15), np.uint8), photometric="minisblack")
    pairs = open_pairs(str(tmp_path), Classes(count=300, ignore=65535), bands=ChannelSpec(2, ("1", "2")))
    classes = np.arange(180).reshape(12, 15) + 100
    path = write_mask(tmp_path / "out", mask_stems(pairs.images)[0], classes, pairs.numbers, place_of(pairs.images, 0))
    assert path == tmp_path / "out/north/scene.tif"
    with tifffile.TiffFile(io.BytesIO(path.read_bytes())) as file:
        tags = file.pages[0].tags
        assert tags.valueof(33550) == (10.0, 10.0, 0.0)
        assert tags.valueof(33922) == (0.0, 0.0, 0.0, 5e5, 4e6, 0.0)
        assert tags.valueof(34735) == (1, 1, 0, 1, 3072, 0, 1, 32632)
        assert tags.valueof(42113) == "65535", "GIS programs show what is not labelled as missing"
        assert np.array_equal(file.asarray(), classes)
    assert pairs.images.image(0).labels.dtype == np.uint16


def test_colours_of_many_classes_differ() -> None:
    assert len({tuple(colour) for colour in palette(150)}) == 150
    assert np.array_equal(palette(5), palette(150)[:5])
    assert ClassNumbers(4).numbers(np.array([[0, 3, 255]])).dtype == np.uint8
