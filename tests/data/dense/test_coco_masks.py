"""Class numbers from JSON files of COCO's: which class each pixel gets, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as tools
from pycocotools.coco import COCO

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.dense.class_counts import class_pixels
from swin_mim.data.dense.open_pairs import Classes, open_pairs
from swin_mim.errors import UserError

SIZE = (40, 50)
CATEGORIES = [{"id": 90, "name": "tree"}, {"id": 3, "name": "lake"}, {"id": 17, "name": "house"}]
IMAGES = [{"id": 7, "file_name": "b.png"}, {"id": 2, "file_name": "deep/a.png"}, {"id": 5, "file_name": "c.png"}]
Document = dict[str, Any]

# of numpy 2, about pycocotools' own arrays
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """photos/ with the three images and one that no file names."""
    for number, name in enumerate(["b.png", "deep/a.png", "c.png", "other.png"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (number, 0, 0)).save(path)
    return tmp_path


def images() -> list[dict[str, Any]]:
    return [{**image, "height": SIZE[0], "width": SIZE[1]} for image in IMAGES]


def polygon(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def runs(rows: slice, columns: slice) -> dict[str, Any]:
    mask = np.zeros(SIZE, np.uint8)
    mask[rows, columns] = 1
    packed = tools.encode(np.asfortranarray(mask))
    return {"size": list(SIZE), "counts": packed["counts"].decode()}


def instances() -> Document:
    """In image 7 a house inside of a lake, drawn before it, over a crowd of trees; in image 2 a tree; in 5 nothing."""
    triangle = [5.5, 5.2, 30.7, 8.1, 12.3, 33.9]
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 17, "segmentation": [polygon(12, 12, 18, 20)]},
        {"id": 2, "image_id": 7, "category_id": 3, "segmentation": [polygon(8, 6, 26, 30), polygon(40, 2, 48, 9)]},
        {"id": 3, "image_id": 7, "category_id": 90, "segmentation": runs(slice(4, 38), slice(3, 44)), "iscrowd": 1},
        {"id": 4, "image_id": 2, "category_id": 90, "segmentation": [triangle]},
    ]
    return {"images": images(), "categories": CATEGORIES, "annotations": annotations}


def panoptic(folder: Path) -> Document:
    """Segments of ids that need three colours; void in the first row; image 5 has two lakes and a crowd of trees."""
    (folder / "panoptic").mkdir(exist_ok=True)
    listed = {7: [(5, 3), (70000, 17)], 2: [(256, 90)], 5: [(1, 3), (16000000, 3), (65536, 90)]}
    annotations = []
    for image, segments in listed.items():
        ids = np.zeros(SIZE, np.int64)
        for place, (number, _) in enumerate(segments):
            ids[1:, place * 10 : (place + 1) * 10] = number
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
        Image.fromarray(colours).save(folder / "panoptic" / f"{image}.png")
        info = [
            {"id": number, "category_id": category, "iscrowd": int(number == 65536)} for number, category in segments
        ]
        annotations.append({"image_id": image, "file_name": f"{image}.png", "segments_info": info})
    return {"images": images(), "categories": CATEGORIES, "annotations": annotations[::-1]}


def written(folder: Path, content: Document) -> str:
    path = folder / "panoptic.json"
    path.write_text(json.dumps(content))
    return str(path)


def opened(folder: Path, content: Document, classes: Classes | None = None, **options: Any) -> Any:
    file = written(folder, content)
    return open_pairs(str(folder / "photos"), classes or Classes(), masks=file, **options)


def test_instances_are_classes_and_the_smaller_is_on_top(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    pairs = opened(folder, instances())
    assert pairs.names == ("background", "lake", "house", "tree")
    assert [pairs.images.path(index) for index in range(3)] == ["b.png", "deep/a.png", "c.png"]
    assert "left out: 1 image of" in caplog.text, "the one that the file does not name"
    coco = COCO(str(folder / "panoptic.json"))
    drawn = {number: coco.annToMask(coco.anns[number]).astype(bool) for number in coco.anns}
    expected = np.zeros(SIZE, int)
    for number, label in ((3, 255), (2, 1), (1, 2)):  # the crowd lies below, and has no label
        expected[drawn[number]] = label
    picture, labels = pairs.images.image(0)
    assert picture.getpixel((0, 0)) == (0, 0, 0)
    assert np.array_equal(labels, expected)
    assert np.array_equal(pairs.labels(1), np.where(drawn[4], 3, 0))
    assert not pairs.labels(2).any()
    bare = opened(folder, instances(), uncovered="ignore")
    assert bare.names == ("lake", "house", "tree")
    assert np.array_equal(bare.labels(0), np.where(np.isin(expected, (0, 255)), 255, expected - 1))
    assert np.array_equal(class_pixels(bare)[:2], [(expected == 1).sum(), (expected == 2).sum()])


def test_a_category_that_is_called_background_is_it(folder: Path) -> None:
    content = instances()
    content["categories"] = [*CATEGORIES[:2], {"id": 17, "name": "background"}]
    pairs = opened(folder, content)
    assert pairs.names == ("lake", "background", "tree")
    assert set(np.unique(pairs.labels(2))) == {1}


def test_panoptic_segments_are_classes(folder: Path) -> None:
    pairs = opened(folder, panoptic(folder))
    assert pairs.names == ("lake", "house", "tree")
    expected = {0: [(0, 0), (1, 10)], 1: [(2, 0)], 2: [(0, 0), (0, 10), (255, 20)]}  # (class, first column)
    for index, columns in expected.items():
        labels = np.full(SIZE, 255)
        for label, first in columns:
            labels[1:, first : first + 10] = label
        assert np.array_equal(pairs.labels(index), labels), index
    with_background = opened(folder, panoptic(folder), uncovered="background")
    assert with_background.names == ("background", "lake", "house", "tree")
    assert set(np.unique(with_background.labels(2))) == {0, 1, 255}
    (folder / "panoptic").rename(folder / "elsewhere")
    moved = opened(
        folder, json.loads((folder / "panoptic.json").read_text()), panoptic_folder=str(folder / "elsewhere")
    )
    assert moved.fingerprint == pairs.fingerprint != with_background.fingerprint


def test_classes_of_a_model_number_the_pixels(folder: Path) -> None:
    known = ("tree", "street", "lake", "house")
    pairs = opened(folder, panoptic(folder), Classes(known=known))
    assert pairs.names == known
    assert set(np.unique(pairs.labels(0))) == {2, 3, 255}
    with pytest.raises(UserError, match=r"segment 70000 of image 7 is of the class 'house', which is none of tree, la"):
        opened(folder, panoptic(folder), Classes(known=("tree", "lake")))
    with pytest.raises(UserError, match=r"are of the class 'background', and the classes are tree.*uncovered ignore"):
        opened(folder, instances(), Classes(known=known))


def test_images_of_other_channels(folder: Path) -> None:
    for name in ("b.png", "deep/a.png", "c.png"):
        Image.new("RGBA", SIZE[::-1], (1, 2, 3, 4)).save(folder / "photos" / name)
    pairs = opened(folder, instances(), bands=ChannelSpec(2, ("4", "1")))
    image, labels = pairs.images.image(0)
    assert (image.values.shape, labels.shape) == ((*SIZE, 2), SIZE)
    assert image.values[0, 0].tolist() == [4, 1]


def change(place: str, number: int, **entries: Any) -> Callable[[Document], None]:
    def changed(content: Document) -> None:
        content[place][number] |= entries

    return changed


def two_of_a_name(content: Document) -> None:
    content["images"][2]["file_name"] = "b.png"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change("annotations", 0, image_id=1), "annotation 1 is of image 1, which the file does not have"),
        (change("annotations", 0, category_id=4), "annotation 1 of 'b.png' is of category 4, which the file does not"),
        (change("annotations", 0, id=2), "two annotations have the id 2"),
        (change("annotations", 0, segmentation=[]), "annotation 1 of 'b.png' has no segmentation, and masks need"),
        (change("annotations", 0, segmentation=[[1, 2]]), "no list of polygons of 3 points or more"),
        (change("annotations", 2, segmentation=runs(slice(1), slice(1)) | {"size": [4, 4]}), "run lengths of size [4,"),
        (change("images", 0, height=None), "image 7 has height None"),
        (change("images", 0, file_name="../b.png"), "image 7 has the file_name '../b.png'"),
        (change("images", 0, file_name="z.png"), "the image z.png is not in data.source"),
        (change("images", 1, height=41), "mask of deep/a.png in"),
        (two_of_a_name, "1 image of it is listed twice"),
        (lambda content: content.update(annotations=[]), "3 images, 3 categories, 0 annotations: there is nothing"),
        (lambda content: content.update(categories=3), "it must have the lists"),
    ],
)
def test_bad_instances_are_one_line(changed: Callable[[Document], None], message: str, folder: Path) -> None:
    content = instances()
    changed(content)
    with pytest.raises(UserError) as caught:
        opened(folder, content).images.image(1)
    said = str(caught.value)
    assert message in said
    assert "panoptic.json" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda content: content["annotations"].pop(), "image 7, 'b.png', has no annotation"),
        (change("annotations", 1, image_id=7), "two annotations are of the image 7"),
        (change("annotations", 2, file_name="gone.png"), "the mask 'gone.png' is not in"),
        (change("annotations", 2, file_name=None), "the annotation of image 7 has the file_name None"),
        (change("annotations", 2, segments_info=[{"id": 5, "category_id": 3}]), "7.png shows the segment 70000, which"),
        (change("annotations", 2, segments_info=[{"id": 5, "category_id": 4}]), "segment 5 of image 7 is of category"),
        (change("annotations", 2, segments_info=[{"id": 0, "category_id": 3}]), "id outside of 1 to 16777215"),
        (
            change("annotations", 2, segments_info=2 * [{"id": 5, "category_id": 3}]),
            "segment 5 of image 7 is there twi",
        ),
        (change("annotations", 2, segments_info=None), "annotation of image 7 has no list of segments_info"),
    ],
)
def test_bad_panoptic_files_are_one_line(changed: Callable[[Document], Any], message: str, folder: Path) -> None:
    content = panoptic(folder)
    changed(content)
    with pytest.raises(UserError) as caught:
        opened(folder, content).images.image(0)
    said = str(caught.value)
    assert message in said
    assert "panoptic.json" in said
    assert "\n" not in said


def test_bad_pictures_of_segments(folder: Path) -> None:
    content = panoptic(folder)
    Image.new("RGB", (50, 39)).save(folder / "panoptic" / "7.png")
    Image.new("L", (50, 40)).save(folder / "panoptic" / "2.png")
    (folder / "panoptic" / "5.png").write_bytes((folder / "panoptic" / "5.png").read_bytes()[:60])
    pairs = opened(folder, content)
    with pytest.raises(UserError, match=r"mask 7\.png has 50 x 39 pixels and its image b\.png 50 x 40"):
        pairs.images.image(0)
    with pytest.raises(UserError, match=r"mask 2\.png is no picture of 8-bit RGB"):
        pairs.images.image(1)
    with pytest.raises(BrokenImage, match=r"its mask 5\.png"):
        pairs.images.image(2)


def test_what_goes_with_such_a_file(folder: Path) -> None:
    file = written(folder, instances())
    with pytest.raises(UserError, match=r"data\.panoptic_folder goes with data\.masks FILE\.json"):
        open_pairs(str(folder / "photos"), Classes(count=2), masks=str(folder), panoptic_folder=str(folder))
    with pytest.raises(UserError, match=r"panoptic segmentation, and .* is one of instances: leave it out"):
        open_pairs(str(folder / "photos"), Classes(), masks=file, panoptic_folder=str(folder))
    table = datasets.Dataset.from_dict({"image": [str(folder / "photos/b.png")]})
    table.cast_column("image", datasets.Image()).save_to_disk(folder / "table")
    with pytest.raises(UserError, match=r"goes with image files, and data\.source .* is a table"):
        open_pairs(str(folder / "table"), Classes(), masks=file)
    (folder / "list.csv").write_text("image\nphotos/b.png\nphotos/deep/a.png\nphotos/c.png\n")
    content = instances()
    for image in content["images"]:
        image["file_name"] = f"photos/{image['file_name']}"
    pairs = open_pairs(str(folder / "list.csv"), Classes(), masks=written(folder, content))
    assert [pairs.images.image(index).image.getpixel((0, 0))[0] for index in range(3)] == [0, 1, 2]
