"""What a detector finds in every evaluation image, and the average precisions of that, as COCO defines them.

Exact over any number of processes: every image is looked at once, what is found is gathered and sorted by image, and
every process computes all numbers from the whole with pycocotools.
"""

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swin_mim.data.dense.boxes import ImagesWithObjects, Objects, coco_masks, missing_package
from swin_mim.data.loading.loader import Batch
from swin_mim.errors import UserError
from swin_mim.evaluation.reader import read_of
from swin_mim.evaluation.validation import evaluation_mode
from swin_mim.files import replacing

THRESHOLD = 0.5
"""From which value on a pixel belongs to an object."""
AREAS = ("all", "small", "medium", "large")
"""Sizes of objects as pycocotools numbers them: small is below 32 x 32 pixels, large above 96 x 96."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Found:
    """What was found in one image, best first."""

    image: int
    """Its index in the source."""
    size: Size
    """(H, W) of the image, in which the boxes are."""
    boxes: np.ndarray
    """float32 (n, 4): left, top, right, bottom."""
    labels: np.ndarray
    """int64 (n,)."""
    scores: np.ndarray
    """float64 (n,), from 0 to 1."""
    shapes: tuple[dict[str, Any], ...] | None
    """Run-length encodings of pycocotools; None: the detector has no masks."""


@dataclass(frozen=True)
class Outcome:
    """What was found in every image that could be read, in the order of the source; the same on all processes."""

    found: tuple[Found, ...]
    truth: ImagesWithObjects
    """All images, and what is in them."""

    @cached_property
    def precisions(self) -> "dict[str, Precision]":
        """Of boxes, and of shapes where some were found: computed once."""
        kinds = ("bbox",) if self.found[0].shapes is None else ("bbox", "segm")
        return {kind: Precision.of(self.found, self.truth, kind) for kind in kinds}


def detect(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    truth: ImagesWithObjects,
    prepare: Callable[[Tensor], Tensor],
    gather: Callable[[list[Found]], list[Found]],
) -> Outcome:
    """Look for objects in the images of all processes, in their order. The model comes back in the mode it was in.

    Args:
        model: a `SwinDetector`. The bare model: one wrapped for distributed training may wait for others.
        batches: this process's share of the images, whose targets say their size and that of the image.
        truth: what is in the images of all processes.
        prepare: uint8 (B, C, H, W) -> normalised float on the model's device.
        gather: the lists of all processes in one; every process calls it exactly once.

    Raises:
        UserError: no image could be read, or pycocotools is not installed.
    """
    mine: list[Found] = []
    with evaluation_mode(model):
        for batch in batches:
            read = read_of(batch).tolist()
            found = found_in(model, prepare(batch.images), batch.targets, batch.indices.tolist())
            mine += [each for each, wanted in zip(found, read, strict=True) if wanted]
    everything = sorted(gather(mine), key=lambda found: found.image)
    if not everything:
        raise UserError("there is no image to evaluate on that can be read")
    return Outcome(tuple(everything), truth)


def found_in(
    model: nn.Module, pixels: Tensor, targets: Sequence[dict[str, Tensor]], indices: Sequence[int]
) -> list[Found]:
    """Look for objects in the images of a batch.

    Args:
        model: a `SwinDetector` in evaluation mode.
        pixels: normalised float (B, C, H, W).
        targets: say the size of each, and that of the image it was made of.
        indices: of the images in their source.
    """
    sizes = [_original(each) for each in targets]
    found = model(views(pixels, targets), sizes=sizes)
    return [_found(*each) for each in zip(indices, sizes, found, strict=True)]


def views(pixels: Tensor, targets: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """(B, C, H, W) -> of each image the part that is no padding, (C, h, w), as its target says."""
    sizes = [target["size"].tolist() for target in targets]
    return [image[:, :height, :width] for image, (height, width) in zip(pixels, sizes, strict=True)]


def metrics(outcome: Outcome) -> dict[str, float]:
    """The numbers to follow while a model learns, from 0 to 1: "AP", "AP50", "AP75"; of masks with "mask_" before.

    AP is the mean over the classes that have objects and over overlaps (IoU) of 0.5, 0.55, ... 0.95; AP50 and AP75 are
    at one overlap. "AP_small", "AP_medium", "AP_large" are of objects of these sizes, where there are any.
    """
    return {key: value for precision in outcome.precisions.values() for key, value in precision.numbers().items()}


def report(outcome: Outcome) -> dict[str, Any]:
    """All that is measured, as JSON: the metrics, and each class by itself."""
    truth, counts = outcome.truth, outcome.truth.counts()
    classes: list[dict[str, Any]] = [
        {"name": name, "objects": int(counts[number])} for number, name in enumerate(truth.names)
    ]
    for precision in outcome.precisions.values():
        for number, entry in enumerate(classes):
            if (value := precision.of_class(number)) is not None:
                entry[f"{precision.prefix}AP"] = value
    return {
        "metrics": metrics(outcome),
        "evaluated": len(outcome.found),
        "unreadable": len(truth) - len(outcome.found),
        "found": sum(len(each.labels) for each in outcome.found),
        "classes": classes,
    }


@dataclass(frozen=True)
class Precision:
    """Precisions that pycocotools found, of boxes or of shapes."""

    prefix: str
    values: np.ndarray
    """float64 (10 overlaps, 101 recalls, classes, 4 areas); -1 where there are no objects."""

    @classmethod
    def of(cls, found: Sequence[Found], truth: ImagesWithObjects, kind: str) -> "Precision":
        """Compare what was found with what there is; `kind` is "bbox" or "segm".

        Raises:
            UserError: pycocotools is not installed.
        """
        try:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        except ImportError:
            raise missing_package("average precision") from None
        there, here = COCO(), COCO()
        images = [{"id": each.image, "height": each.size[0], "width": each.size[1]} for each in found]
        categories = [{"id": number, "name": name} for number, name in enumerate(truth.names)]
        with contextlib.redirect_stdout(io.StringIO()):
            annotations = _annotations(found, truth, shapes=kind == "segm")
            there.dataset = {"images": images, "categories": categories, "annotations": annotations}
            there.createIndex()
            here.dataset = {"images": images, "categories": categories, "annotations": results(found, kind)}
            here.createIndex()
            evaluation = COCOeval(there, here, kind)
            evaluation.evaluate()
            evaluation.accumulate()
        return cls("mask_" if kind == "segm" else "", evaluation.eval["precision"][..., -1])

    def numbers(self) -> dict[str, float]:
        """AP, AP50, AP75 and those of the sizes, by name; what no object has is left out, but AP is 0 then."""
        values = {"AP": _mean(self.values[..., 0]), "AP50": _mean(self.values[0, ..., 0])}
        values |= {"AP75": _mean(self.values[5, ..., 0])}
        values |= {f"AP_{area}": _mean(self.values[..., place]) for place, area in enumerate(AREAS) if place}
        main = ("AP", "AP50", "AP75")
        return {
            f"{self.prefix}{key}": value or 0.0 for key, value in values.items() if value is not None or key in main
        }

    def of_class(self, number: int) -> float | None:
        """AP of one class; None: it has no objects."""
        return _mean(self.values[:, :, number, 0])


def write_predictions(path: Path, outcome: Outcome) -> None:
    """Write what was found as COCO's results: image_id, category_id, bbox (left, top, width, height), score, and with
    masks segmentation. Images and classes have the ids of the file that they are from; images without ids, their names.

    Raises:
        UserError: the file cannot be written.
    """
    truth = outcome.truth
    entries = [
        {
            "image_id": truth.identity(each["image_id"]),
            "category_id": truth.category(each["category_id"]),
            **written(each),
            **({} if truth.identities else {"file_name": truth.images.name(each["image_id"])}),
        }
        for each in results(outcome.found, "segm")
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(entries) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"predictions {path} cannot be written: {error.strerror or error}") from None


def written(result: Mapping[str, Any]) -> dict[str, Any]:
    """What files say of one of `results`, but for ids: bbox, score, and segmentation if it has one."""
    rounded = {"bbox": [round(value, 3) for value in result["bbox"]], "score": round(result["score"], 6)}
    return rounded | ({"segmentation": _text_of(result["segmentation"])} if "segmentation" in result else {})


def _original(target: dict[str, Tensor]) -> Size:
    height, width = target["original"].tolist()
    return height, width


def _found(index: int, size: Size, found: dict[str, Tensor]) -> Found:
    shapes = None
    if "masks" in found:
        tools = coco_masks("a detector with masks")
        drawn = (found["masks"] >= THRESHOLD).to(torch.uint8).cpu().numpy()
        shapes = tuple(tools.encode(np.asfortranarray(each)) for each in drawn)
    boxes, labels, scores = (found[key].cpu() for key in ("boxes", "labels", "scores"))
    return Found(index, size, boxes.float().numpy(), labels.numpy(), scores.double().numpy(), shapes)


def _annotations(found: Sequence[Found], truth: ImagesWithObjects, *, shapes: bool) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for each in found:
        objects = truth.objects[each.image]
        for place in range(len(objects)):
            entry = {
                "id": len(entries) + 1,  # pycocotools takes 0 for no match
                "image_id": each.image,
                "category_id": int(objects.labels[place]),
                "bbox": _corner_and_size(objects.boxes[place]),
                "area": float(objects.areas[place]),
                "iscrowd": int(objects.crowd[place]),
            }
            if shapes:
                entry["segmentation"] = encoded(objects, place, each.size)
            entries.append(entry)
    return entries


def encoded(objects: Objects, place: int, size: Size) -> dict[str, Any]:
    """Run lengths of an object's shape, of its box where a crowd has no shape."""
    tools, shape = coco_masks("a shape"), objects.shapes[place]
    if isinstance(shape, dict):
        return shape
    if shape is None:
        left, top, right, bottom = objects.boxes[place].tolist()
        shape = (np.array([[left, top], [right, top], [right, bottom], [left, bottom]]),)
    polygons = [polygon.astype(np.float64).ravel().tolist() for polygon in shape]
    return dict(tools.merge(tools.frPyObjects(polygons, *size)))


def results(found: Sequence[Found], kind: str) -> list[dict[str, Any]]:
    """What was found, as pycocotools takes it; `kind` is "bbox", or "segm" for shapes too if there are some."""
    entries: list[dict[str, Any]] = []
    for each in found:
        for place in range(len(each.labels)):
            box = _corner_and_size(each.boxes[place])
            entry: dict[str, Any] = {"id": len(entries) + 1, "image_id": each.image}
            entry |= {
                "category_id": int(each.labels[place]),
                "bbox": box,
                "score": float(each.scores[place]),
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            if kind == "segm" and each.shapes is not None:
                shape = each.shapes[place]
                entry |= {"segmentation": shape, "area": float(coco_masks("a shape").area(shape))}
            entries.append(entry)
    return entries


def _corner_and_size(box: np.ndarray) -> list[float]:
    left, top, right, bottom = map(float, box)
    return [left, top, right - left, bottom - top]


def _text_of(shape: dict[str, Any]) -> dict[str, Any]:
    return {"size": [int(side) for side in shape["size"]], "counts": shape["counts"].decode()}


def _mean(values: np.ndarray) -> float | None:
    there = values[values > -1]
    return float(there.mean()) if there.size else None
