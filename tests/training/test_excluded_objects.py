"""A list of names leaves images with masks or boxes out of what is trained on and held out."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from swin_mim.training.config.dense.detect import BoxedDataConfig
from swin_mim.training.config.dense.segment import MaskedDataConfig
from swin_mim.training.dense import images_with_objects, pairs

COUNT = 30
OUT = [0, 1, 9, 17]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """images/ and masks/ of thirty pictures, objects.json with a box in each, and list.txt."""
    images, annotations = [], []
    for number in range(COUNT):
        for part, shape in (("images", (12, 16, 3)), ("masks", (12, 16))):
            path = tmp_path / part / f"{number:02}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full(shape, number % 2, np.uint8)).save(path)
        images.append({"id": 100 + number, "file_name": f"{number:02}.png", "width": 16, "height": 12})
        box = [number % 5, 2, 8, 6]
        annotations.append({"id": number + 1, "image_id": 100 + number, "category_id": 1, "bbox": box, "area": 48})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "images/objects.json").write_text(json.dumps(content))
    (tmp_path / "list.txt").write_text("".join(f"{number:02}.png\n" for number in OUT))
    return tmp_path


def test_images_with_masks(folder: Path) -> None:
    data = MaskedDataConfig(source=str(folder), exclude=str(folder / "list.txt"), class_names=None, num_classes=2)
    training, heldout = pairs.to_train_and_evaluate(data)
    names = [part.images.name(index) for part in (training, heldout) for index in range(len(part))]
    assert sorted(names) == [f"{number:02}.png" for number in range(COUNT) if number not in OUT]
    for part in (training, heldout):
        for index in range(len(part)):
            _, labels = part.images.image(index)
            assert (labels == int(part.images.name(index)[:2]) % 2).all()
    assert len(pairs.to_evaluate(data, training.names)) == COUNT - len(OUT)
    assert len(pairs.to_predict(data, training.names)) == COUNT - len(OUT)
    other = replace(data, validation=str(folder / "images"), validation_masks=str(folder / "masks"))
    assert len(pairs.to_evaluate(other, training.names)) == COUNT


def test_images_with_boxes(folder: Path) -> None:
    source = str(folder / "images/objects.json")
    data = BoxedDataConfig(source=source, exclude=str(folder / "list.txt"))
    training, heldout = images_with_objects.to_train_and_evaluate(data)
    found = {
        part.images.name(index): (part.objects[index].boxes[0, 0], part.identity(index))
        for part in (training, heldout)
        for index in range(len(part))
    }
    assert found == {f"{n:02}.png": (n % 5, 100 + n) for n in range(COUNT) if n not in OUT}
    assert len(images_with_objects.to_evaluate(data)) == COUNT - len(OUT)
    assert len(images_with_objects.to_evaluate(replace(data, validation=source))) == COUNT
    unlabelled = replace(data, source=str(folder / "images"))
    assert len(images_with_objects.without_objects(unlabelled, ["thing"])) == COUNT - len(OUT)


def test_what_is_left_out_need_not_fit(folder: Path) -> None:
    """Its mask may be missing, or of more classes, and its channels others: as if it had been deleted."""
    for number in (0, 1):
        Image.new("L", (16, 12), 3).save(folder / f"images/{number:02}.png")
    Image.fromarray(np.full((12, 16), 9, np.uint8)).save(folder / "masks/01.png")
    (folder / "masks/00.png").unlink()
    Image.new("RGB", (16, 12)).save(folder / "images/09.bmp")
    (folder / "list.txt").write_text("00.png\n01.png\n09.bmp\n")
    channels = ("1", "2", "3")
    data = MaskedDataConfig(source=str(folder), exclude=str(folder / "list.txt"), channels=channels)
    training, heldout = pairs.to_train_and_evaluate(data, folder / "counts.json")
    assert training.numbers.count == 2
    assert len(training) + len(heldout) == COUNT - 2
    for index in range(len(training)):
        _, labels = training.images.image(index)
        assert (labels == int(training.images.name(index)[:2]) % 2).all()
    (folder / "masks/00.png").write_bytes((folder / "masks/02.png").read_bytes())
    (folder / "list.txt").write_text("00.png\n09.bmp\n")
    training, _ = pairs.to_train_and_evaluate(replace(data, channels=None), folder / "counts.json")
    assert training.numbers.count == 10  # what was counted before was of other masks
    boxed = BoxedDataConfig(source=str(folder / "images/objects.json"), exclude=data.exclude, channels=channels)
    (folder / "list.txt").write_text("00.png\n01.png\n")
    found, heldout_objects = images_with_objects.to_train_and_evaluate(boxed)
    assert len(found) + len(heldout_objects) == COUNT - 2


def test_rows_of_a_table(folder: Path) -> None:
    """Images and masks of a table stay together."""
    files = [[str(folder / part / f"{number:02}.png") for number in range(COUNT)] for part in ("images", "masks")]
    table = datasets.Dataset.from_dict({"image": files[0], "mask": files[1]})
    table = table.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    table.save_to_disk(folder / "table")
    data = MaskedDataConfig(source=str(folder / "table"), exclude=str(folder / "list.txt"), num_classes=2)
    training, heldout = pairs.to_train_and_evaluate(data)
    assert len(training) + len(heldout) == COUNT - len(OUT)
    for part in (training, heldout):
        for index in range(len(part)):
            image, labels = part.images.image(index)
            assert (labels == image.getpixel((0, 0))[0]).all()
