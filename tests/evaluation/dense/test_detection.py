"""Average precision is that of pycocotools, by another way than ours: through files, and its own summary."""

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from swin_mim.data.dense.coco import open_coco
from swin_mim.evaluation.dense.detection import Found, Outcome, metrics, report, write_predictions
from swin_mim.evaluation.dense.detection_pictures import save_pictures

SIZE = (120, 160)


def drawn(box):
    left, top, width, height = box
    shape = np.zeros(SIZE, np.uint8)
    shape[round(top) : round(top + height), round(left) : round(left + width)] = 1
    return dict(tools.encode(np.asfortranarray(shape)))


@pytest.fixture
def crafted(tmp_path):
    """Six images, three classes of which one has no object: near hits, misses, doubles, crowds, all sizes."""
    rng = np.random.default_rng(0)
    images = [{"id": 10 + i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(6)]
    categories = [{"id": 3, "name": "a"}, {"id": 5, "name": "b"}, {"id": 8, "name": "never"}]
    annotations, found = [], []
    for i in range(6):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{i}.png")
        boxes, labels, scores = [], [], []
        for k in range(5):
            side = (12, 20, 40, 60, 110)[k]
            box = [int(rng.integers(0, SIZE[1] - side)), int(rng.integers(0, SIZE[0] - side)), side, side]
            shape = drawn(box)
            entry = {"id": len(annotations), "image_id": 10 + i, "category_id": (3, 5)[k % 2], "bbox": box}
            entry |= {"segmentation": {"size": list(SIZE), "counts": shape["counts"].decode()}, "area": side**2 * 0.9}
            annotations.append({**entry, "iscrowd": int(k == 4 and i % 2)})
            for _ in range(int(rng.integers(0, 3))):
                shift = np.clip(np.array(box[:2]) + rng.integers(-4, 5, 2), 0, np.array(SIZE[::-1]) - side)
                boxes.append([*shift, *(shift + side)])
                labels.append(k % 2 if rng.random() < 0.8 else 1 - k % 2)
                scores.append(float(rng.random()))
        order = np.argsort(-np.array(scores), kind="stable")
        boxes = np.array(boxes, np.float32).reshape(-1, 4)[order]
        shapes = tuple(drawn([b[0], b[1], b[2] - b[0], b[3] - b[1]]) for b in boxes.tolist())
        found.append(Found(i, SIZE, boxes, np.array(labels, np.int64)[order], np.array(scores)[order], shapes))
    file = tmp_path / "objects.json"
    file.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return file, found


def by_pycocotools(file, results, kind):
    """Its twelve numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        content = json.loads(file.read_text())
        for entry in content["annotations"]:
            entry["id"] += 1  # of an object with the id 0 pycocotools says that it was missed
        (file.parent / "from_one.json").write_text(json.dumps(content))
        truth = COCO(str(file.parent / "from_one.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_it_is_what_pycocotools_says_of_the_files(crafted, tmp_path):
    file, found = crafted
    outcome = Outcome(tuple(found), open_coco(str(file)))
    write_predictions(tmp_path / "found.json", outcome)
    measured = metrics(outcome)
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        stats = by_pycocotools(file, tmp_path / "found.json", kind)
        for place, name in enumerate(("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")):
            assert measured[prefix + name] == pytest.approx(stats[place], abs=1e-5), (kind, name)
        assert 0.05 < measured[f"{prefix}AP"] < 0.9
    classes = report(outcome)["classes"]
    assert [entry["name"] for entry in classes] == ["a", "b", "never"]
    assert np.mean([entry["AP"] for entry in classes[:2]]) == pytest.approx(measured["AP"])
    assert "AP" not in classes[2]
    save_pictures(tmp_path / "detections.png", outcome)
    with Image.open(tmp_path / "detections.png") as picture:
        assert picture.width == 2 * 320 + 4
        places = [*map(int, picture.info["rows"].split())]
        assert picture.height == places[-1] + 4
        assert places == [edge for row in range(6) for edge in (244 * row, 244 * row + 240)]


@pytest.mark.parametrize("crowd", [True, False])
def test_of_what_is_there_crowds_are_not_drawn(crowd, crafted, tmp_path):
    truth = open_coco(str(crafted[0]))
    objects = tuple(replace(each, crowd=np.full(len(each), crowd)) for each in truth.objects)
    nothing = [Found(each.image, SIZE, each.boxes[:0], each.labels[:0], each.scores[:0], None) for each in crafted[1]]
    names = tuple(f"{name}\nof two lines" for name in truth.names)
    truth = replace(truth, objects=objects, names=names)
    save_pictures(tmp_path / "detections.png", Outcome(tuple(nothing), truth))
    drawn = np.asarray(Image.open(tmp_path / "detections.png"))
    assert np.array_equal(drawn[:, :320], drawn[:, 324:]) == crowd


def test_all_found_is_1_and_nothing_found_is_0(crafted):
    file, _ = crafted
    truth = open_coco(str(file))
    whole = [
        Found(i, SIZE, each.boxes, each.labels, np.ones(len(each)), None)
        for i, each in enumerate(objects.take(~objects.crowd) for objects in truth.objects)
    ]
    assert metrics(Outcome(tuple(whole), truth))["AP"] == 1
    empty = [Found(i, SIZE, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0), None) for i in range(6)]
    assert metrics(Outcome(tuple(empty), truth))["AP"] == 0
    assert "mask_AP" not in metrics(Outcome(tuple(empty), truth))
