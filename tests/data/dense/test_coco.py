"""Files of COCO's instances: what is read, and what is refused."""

import json

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as tools

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.dense import coco
from swin_mim.data.dense.box_columns import objects_of_table
from swin_mim.data.dense.boxes import PicturesWithObjects, drawn_runs, some_images, split_images, with_classes
from swin_mim.data.dense.coco import BoxRules, open_coco, read_shape
from swin_mim.data.sources.open import open_files
from swin_mim.errors import UserError

POLYGON = [10, 10, 30, 10, 30, 25, 10, 25]


def document():
    runs = np.zeros((40, 50), np.uint8)
    runs[5:20, 3:13] = 1
    packed = tools.encode(np.asfortranarray(runs))
    whole = [3 * 40 + 5, *[15, 25] * 9, 15, 40 * 50 - 13 * 40 + 20]
    box = {"category_id": 7, "bbox": [3, 5, 10, 15]}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 50} for i in (4, 2, 9)],
        "categories": [{"id": 9, "name": "lake"}, {"id": 7, "name": "island"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 4,
                "category_id": 9,
                "bbox": [10, 10, 20, 15],
                "segmentation": [POLYGON],
                "area": 300,
            },
            {"id": 2, "image_id": 4, **box, "segmentation": {"size": [40, 50], "counts": packed["counts"].decode()}},
            {"id": 3, "image_id": 2, **box, "segmentation": {"size": [40, 50], "counts": whole}, "iscrowd": 1},
        ],
    }


@pytest.fixture
def folder(tmp_path):
    for i in (4, 2, 9):
        Image.new("RGB", (50, 40), (i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture
def write(folder):
    def written(content):
        path = folder / "objects.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return written


def test_boxes_shapes_classes_and_images(write):
    found = open_coco(write(document()))
    assert found.names == ("island", "lake")
    assert (found.identities, found.categories) == ((4, 2, 9), (7, 9))
    assert [len(each) for each in found.objects] == [2, 1, 0]
    first, second, _ = found.objects
    assert first.boxes.tolist() == [[10, 10, 30, 25], [3, 5, 13, 20]]
    assert first.labels.tolist() == [1, 0]
    assert first.areas.tolist() == [300, 150]
    assert second.crowd.tolist() == [True]
    assert drawn_runs(second.shapes[0]).tolist() == drawn_runs(first.shapes[1]).tolist()
    assert found.have_shapes
    assert found.counts().tolist() == [1, 1]
    picture, objects = PicturesWithObjects(found).image(0)
    assert picture.size == (50, 40)
    assert objects is first


def test_predictions_have_the_ids_of_the_file_whatever_the_classes_are_called(write):
    found = with_classes(open_coco(write(document())), ["water", "lake", "island"])
    assert found.objects[0].labels.tolist() == [1, 2]
    assert [found.category(label) for label in range(3)] == [10, 9, 7]
    with pytest.raises(UserError, match="does not know: island"):
        with_classes(open_coco(write(document())), ["lake"])


def test_parts_are_nested_and_leave_nothing_out(write, folder):
    content = document()
    content["images"] = [{**content["images"][0], "id": i} for i in range(40)]
    content["annotations"] = [{"id": 1, "image_id": 3, "category_id": 7, "bbox": [1, 1, 5, 5]}]
    found = open_coco(write(content))
    training, held = split_images(found, 0, 0)
    assert sorted((*training.identities, *held.identities)) == list(range(40))
    assert len(held) == 4
    assert set(some_images(found, 5, 1).identities) < set(some_images(found, 9, 1).identities)
    assert found.fingerprint != with_classes(found, ["lake", "island"]).fingerprint


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 60), st.floats(0, 1))
def test_packed_run_lengths_are_read_as_they_are_drawn(seed, height, width, share):
    shape = np.random.default_rng(seed).random((height, width)) < share
    packed = tools.encode(np.asfortranarray(shape.astype(np.uint8)))
    found = read_shape({"size": [height, width], "counts": packed["counts"].decode()}, (height, width), "it")
    assert np.array_equal(drawn_runs(found), shape)
    lengths, flat = coco._unpacked(packed["counts"].decode()), shape.T.ravel()
    assert np.array_equal(np.repeat(np.arange(len(lengths)) % 2, lengths), flat)


def change(**fields):
    def changed(content):
        content["annotations"][0].update(fields)

    return changed


def rename(content):
    content["images"][1]["file_name"] = "there.png"


def escape(content):
    content["images"][1]["file_name"] = "../4.png"


def twice(key):
    def changed(content):
        content[key].append(content[key][0])

    return changed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(image_id=5), "annotation 1 is of image 5, which the file does not have"),
        (change(category_id=5), "annotation 1 of '4.png' is of category 5, which"),
        (
            change(bbox=[10, 10, 0, 15]),
            "'4.png' has a box of 0 x 15 pixels: .*--data.bad_boxes leave_out",
        ),
        (change(bbox=[10, 10, 5, -3]), "has a box of 5 x -3 pixels"),
        (change(bbox=[40, 10, 20, 15]), r"from \(40, 10\) to \(60, 25\), outside of its image of 50 x 40 pixels"),
        (change(bbox=[10, 10, 5]), r"has the box \[10, 10, 5\]: expected"),
        (change(bbox=[10, 10, float("nan"), 5]), "has the box"),
        (change(bbox=None), "has the box None"),
        (change(segmentation=[[1, 2, 3]]), "no list of polygons"),
        (change(segmentation={"size": [1, 2], "counts": []}), r"run lengths of size \[1, 2\]"),
        (change(segmentation={"size": [40, 50], "counts": [7]}), "run lengths of 7 pixels in all, not 2000"),
        (change(image_id=[4]), r"annotation 1 is of image \[4\], which the file does not have"),
        (change(category_id=[9]), r"annotation 1 of '4.png' is of category \[9\], which"),
        (change(id=[1]), r"an annotation has the id \[1\]: give a number"),
        (change(segmentation={"size": 40, "counts": [2000]}), "run lengths of size 40"),
        (change(segmentation={"size": [40, 50], "counts": [-100, 2100]}), "run lengths that are no numbers from 0"),
        (change(segmentation={"size": [40, 50], "counts": ["a"]}), "run lengths that are no numbers from 0"),
        (change(segmentation={"size": [40, 50], "counts": "0"}), "run lengths of 0 pixels in all, not 2000"),
        (change(segmentation={"size": [40, 50], "counts": "~"}), "run lengths that are damaged"),
        (change(segmentation={"size": [40, 50], "counts": "P"}), "run lengths that are damaged"),
        (rename, "the image 'there.png' is not in .*data.image_folder"),
        (escape, "expected a path below"),
        (twice("images"), "two images have the id 4"),
        (twice("categories"), "two categories have the id 9"),
        (twice("annotations"), "two annotations have the id 1"),
        (lambda content: content["categories"][0].update(name="island"), "two categories are called 'island'"),
        (lambda content: content["images"][0].pop("height"), "image 4 has height None"),
        (lambda content: content.pop("annotations"), "must have the lists"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(spoil, message, write):
    content = document()
    spoil(content)
    with pytest.raises(UserError, match=message) as raised:
        open_coco(write(content))
    assert "objects.json" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["", "[1]", '{"images": 3}'])
def test_other_files_are_no_instances(content, write):
    with pytest.raises(UserError, match=r"objects\.json is no"):
        open_coco(write(content))


def test_bad_boxes_are_left_out_where_that_is_wanted(write, caplog):
    content = document()
    content["annotations"][0]["bbox"] = [10, 10, 0, 15]
    found = open_coco(write(content), rules=BoxRules(leave_out=True))
    assert [len(each) for each in found.objects] == [1, 1, 0]
    assert "1 box left out, the first: " in caplog.text
    content["annotations"][0]["bbox"] = [39.5, 10, 11, 30.4]  # rounded, and cut to the image
    assert open_coco(write(content)).objects[0].boxes[0].tolist() == [39.5, 10, 50, 40]


def test_an_image_of_another_size_than_its_boxes_is_broken(write, folder):
    Image.new("RGB", (40, 50)).save(folder / "4.png")
    with pytest.raises(BrokenImage, match="has 40 x 50 pixels, and its boxes are for 50 x 40"):
        PicturesWithObjects(open_coco(write(document()))).image(0)


def test_a_column_of_boxes(tmp_path):
    """As data sets of the Hub have it, one dictionary of lists or a list of dictionaries in a row."""
    names = datasets.ClassLabel(names=["mask", "glove"])
    kind = {"bbox": datasets.Sequence(datasets.Value("float32"), 4), "category": names}
    boxes = [[[1, 2, 3, 4], [5, 5, 10, 10]], []]
    for objects, values in (
        (datasets.Sequence(kind), [{"bbox": each, "category": [1, 0][: len(each)]} for each in boxes]),
        ([kind], [[{"bbox": box, "category": 1 - i} for i, box in enumerate(each)] for each in boxes]),
    ):
        features = datasets.Features({"image": datasets.Image(), "objects": objects})
        rows = {"image": [Image.new("RGB", (20, 20))] * 2, "objects": values}
        folder = tmp_path / str(type(objects).__name__)
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
        found = objects_of_table(open_files(str(folder)), None, None)
        assert found.names == ("mask", "glove")
        assert found.objects[0].boxes.tolist() == [[1, 2, 4, 6], [5, 5, 15, 15]]
        assert found.objects[0].labels.tolist() == [1, 0]
        assert len(found.objects[1]) == 0
        assert not found.have_shapes
    with pytest.raises(UserError, match=r"data.objects_column 'boxes' is not in"):
        objects_of_table(open_files(str(folder)), "boxes", None)
