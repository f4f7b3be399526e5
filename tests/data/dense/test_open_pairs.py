"""Images and masks that belong together, and what does not fit."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.options import DecodeOptions
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.dense.class_counts import class_pixels, pixel_weights
from swin_mim.data.dense.open_pairs import Classes, NoMasks, open_pairs, open_unlabelled
from swin_mim.errors import UserError

COUNT = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """images/ and masks/ of twelve pictures, two of them in a folder inside; class 0 to 2."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        name = f"more/{number:02d}" if number > 9 else f"{number:02d}"
        image = rng.integers(0, 255, (10, 14, 3), dtype=np.uint8)
        mask = rng.integers(0, 3, (10, 14), dtype=np.uint8)
        mask[0] = 255
        for part, array in (("images", image), ("masks", mask)):
            path = tmp_path / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return tmp_path


def refusal(spec: Path, classes: Classes | None = None, **options: object) -> str:
    def read_all() -> None:
        pairs = open_pairs(str(spec), classes or Classes(), **options)  # type: ignore[arg-type]
        for index in range(len(pairs)):
            pairs.images.image(index)

    with pytest.raises(UserError) as caught:
        read_all()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_masks_have_the_limits_of_the_images(folder: Path) -> None:
    pairs = open_pairs(str(folder), Classes(count=3), decoding=DecodeOptions(max_pixels=139))
    for index in range(COUNT):
        for read in (pairs.source._images.image, pairs.source._masks.read):  # type: ignore[attr-defined]
            with pytest.raises(BrokenImage, match="140 pixels"):
                read(index)


def test_a_folder_of_both(folder: Path) -> None:
    pairs = open_pairs(str(folder), Classes(), counts=folder / "counts.json")
    assert (len(pairs), pairs.names) == (COUNT, ("class_0", "class_1", "class_2"))
    image, labels = pairs.images.image(11)
    assert pairs.images.name(11) == "more/11.png"
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(folder / "images/more/11.png")))
    assert np.array_equal(labels, np.asarray(Image.open(folder / "masks/more/11.png")))
    apart = open_pairs(str(folder / "images"), Classes(count=3), masks=str(folder / "masks"))
    assert apart.images.fingerprint == pairs.images.fingerprint


def test_all_masks_are_read_once_to_count_classes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = folder / "counts.json"
    pairs = open_pairs(str(folder), Classes(), counts=cache)
    pixels = class_pixels(pairs, cache)
    every = np.concatenate([np.asarray(Image.open(path)).ravel() for path in (folder / "masks").rglob("*.png")])
    assert pixels.tolist() == np.bincount(every)[:3].tolist()
    assert float((pixel_weights(pixels) * pixels).sum() / pixels.sum()) == pytest.approx(1)
    kept = json.loads(cache.read_text())
    cache.write_text(json.dumps({key: [0, 7] if value == [0, 1, 2, 255] else value for key, value in kept.items()}))
    assert len(open_pairs(str(folder), Classes(), counts=cache).names) == 8, "what is kept is not counted again"


def test_names_from_a_file(folder: Path) -> None:
    (folder / "names.txt").write_text("sky\n\nearth \nsea\n")
    pairs = open_pairs(str(folder), Classes(names=str(folder / "names.txt")))
    assert pairs.names == ("sky", "earth", "sea")
    (folder / "names.txt").write_text("sky\nsky\n")
    assert "has 'sky' twice" in refusal(folder, Classes(names=str(folder / "names.txt")))
    (folder / "names.txt").write_text("sky\n")
    assert "data.num_classes is 3 and" in refusal(folder, Classes(names=str(folder / "names.txt"), count=3))


def test_what_does_not_fit_is_named(folder: Path) -> None:
    classes = Classes(count=3)
    (folder / "masks/03.png").rename(folder / "masks/03.bak")
    assert "image 03 has no mask in" in refusal(folder, classes)
    (folder / "masks/03.bak").rename(folder / "masks/03.png")
    Image.new("L", (14, 10)).save(folder / "masks/99.png")
    assert "mask 99 has no image in" in refusal(folder, classes)
    (folder / "masks/99.png").unlink()
    Image.new("L", (14, 10)).save(folder / "masks/05.tif")
    assert "several files of the name 05" in refusal(folder, classes)
    (folder / "masks/05.tif").unlink()
    assert "mask 00.png has the class number 2, and 2 classes have the numbers 0 to 1" in refusal(
        folder, Classes(count=2)
    )
    assert "255 is the number of one of 300 classes" in refusal(folder, Classes(count=300))
    Image.new("L", (10, 14)).save(folder / "masks/05.png")
    assert "mask 05.png has 10 x 14 pixels and its image 05.png 14 x 10" in refusal(folder, classes)
    Image.new("RGB", (14, 10)).save(folder / "masks/05.png")
    assert "mask 05.png has colours" in refusal(folder, classes)
    assert "mask 05.png has colours" in refusal(folder)
    with pytest.raises(NoMasks, match="has no masks: name their folder"):
        open_pairs(str(folder / "images"), classes)
    assert "is no folder" in refusal(folder / "images", classes, masks=str(folder / "none"))


def test_numbers_of_instances_are_no_classes(folder: Path) -> None:
    Image.fromarray(np.full((10, 14), 26001, dtype=np.uint16)).save(folder / "masks/05.png")
    assert "the masks have the class number 26001" in refusal(folder)


def test_subsets_and_what_is_held_out(folder: Path) -> None:
    pairs = open_pairs(str(folder), Classes(count=3))
    training, held = pairs.split(0, 0)
    assert (len(training), len(held)) == (11, 1)
    assert set(training.indices) | set(held.indices) == set(range(COUNT))
    few, more = training.some(3, 1), training.some(5, 1)
    assert set(few.indices) < set(more.indices)
    assert set(few.indices) != set(training.some(3, 2).indices)
    assert np.array_equal(few.images.image(0).labels, pairs.images.image(int(few.indices[0])).labels)


def test_gaps_of_rasters_have_no_label(folder: Path) -> None:
    values = np.random.default_rng(0).normal(size=(10, 14, 2)).astype(np.float32)
    values[2:4] = np.nan
    (folder / "arrays").mkdir()
    np.save(folder / "arrays/00.npy", values)
    (folder / "one").mkdir()
    Image.fromarray(np.ones((10, 14), np.uint8)).save(folder / "one/00.png")
    options = {"masks": str(folder / "one"), "bands": ChannelSpec(2, ("1", "2"))}
    pair = open_pairs(str(folder / "arrays"), Classes(count=3), **options).images.image(0)  # type: ignore[arg-type]
    assert (pair.labels[2:4] == 255).all()
    assert (np.delete(pair.labels, [2, 3], axis=0) == 1).all()


def test_a_table_of_two_columns(folder: Path) -> None:
    def cells(part: str) -> list[dict[str, object]]:
        return [{"bytes": path.read_bytes(), "path": None} for path in sorted((folder / part).glob("*.png"))]

    kinds = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": cells("images"), "annotation": cells("masks")}, features=kinds)
    table.save_to_disk(str(folder / "table"))
    pairs = open_pairs(str(folder / "table"), Classes())
    assert (len(pairs), len(pairs.names)) == (10, 3)
    assert np.array_equal(pairs.images.image(4).labels, np.asarray(Image.open(folder / "masks/04.png")))
    table.remove_columns("annotation").save_to_disk(str(folder / "bare"))
    with pytest.raises(NoMasks, match="no evident column of masks besides 'image'"):
        open_pairs(str(folder / "bare"), Classes())
    three = table.add_column("depth", cells("masks"), feature=datasets.Image())
    three.save_to_disk(str(folder / "three"))
    assert len(open_pairs(str(folder / "three"), Classes()).names) == 3
    assert len(open_pairs(str(folder / "three"), Classes(), mask_column="depth").names) == 3


def test_images_to_be_predicted_need_no_masks(folder: Path) -> None:
    for spec in (folder, folder / "images"):
        pairs = open_unlabelled(str(spec), ("a", "b"), Classes())
        assert len(pairs) == COUNT
        assert (pairs.images.image(0).labels == 255).all()


@pytest.mark.slow
def test_land_cover_of_the_embedded_maps() -> None:
    train, test = (open_pairs("blue_marble", Classes(), split=split) for split in ("train", "validation"))
    assert train.names[0] == "water"
    assert (len(train), len(test)) == (1700, 79)
    labels = np.stack([test.labels(index) for index in range(len(test))])
    assert labels.shape == (79, 64, 64)
    assert np.unique(labels).tolist() == list(range(6))
    shares = np.stack([(labels == number).mean(axis=(1, 2)) for number in range(6)])
    assert shares[0].max() <= 0.8
    assert shares.max() <= 0.95
    assert "blue_marble has the classes water" in refusal(Path("blue_marble"), Classes(count=3))
