"""The objects in every image of a source, as one JSON file of COCO's."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swin_mim.architecture import as_pair
from swin_mim.data.decoding.raster import Raster
from swin_mim.data.dense.box_transforms import EvaluationBoxes
from swin_mim.data.dense.boxes import no_objects
from swin_mim.data.sources.base import Source
from swin_mim.evaluation.dense.detection import found_in, results, written
from swin_mim.evaluation.outputs.collect import Rows
from swin_mim.evaluation.outputs.dense import DenseOutputs, computing, part_of, rows, whole_batches
from swin_mim.evaluation.outputs.embeddings import data_config
from swin_mim.evaluation.outputs.images import open_images
from swin_mim.evaluation.outputs.job import Job, parts_beside
from swin_mim.evaluation.outputs.parts import digest
from swin_mim.evaluation.reader import read_of
from swin_mim.models.dense.detector import SwinDetector
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training.config.pretrain import DataConfig

_FIRST = 1  # ids of COCO's files count from 1: pycocotools takes 0 for none


@dataclass(frozen=True)
class Looking:
    """An image at the size in which a detector looks for objects."""

    fit: EvaluationBoxes

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) that it is made to fit into."""
        return self.fit.size

    def __call__(self, image: Image.Image | Raster) -> tuple[Tensor, dict[str, Tensor]]:
        """As `EvaluationBoxes`, of an image of which nobody says what is in it."""
        return self.fit((image, no_objects()))


@dataclass(frozen=True)
class Detecting:
    """Finds the objects in images.

    Args:
        batch: images of one forward.
        min_score: what is found less surely is left out.
    """

    model: SwinDetector
    source: Source
    data: DataConfig
    batch: int
    min_score: float

    def __call__(self, starts: Sequence[int], dtype: torch.dtype, take: Callable[[Rows], None]) -> None:
        known, device = self.model.preprocessing, next(self.model.parameters()).device
        preprocess = Preprocessor(known, device)
        fit = EvaluationBoxes(as_pair(self.model.encoder.config.image_size), known.interpolation)
        how: dict[str, Any] = {"data": self.data, "device": device, "pixel_bytes": preprocess.pixel_bytes}
        with computing(self.model, device, dtype):
            for batch in whole_batches(self.source, Looking(fit), starts, batch=self.batch, **how):
                read, reasons = read_of(batch), iter([broken.reason for broken in batch.broken])
                errors = [None if there else next(reasons) for there in read.tolist()]
                columns: dict[str, list[Any]] = {name: [None] * len(errors) for name in _COLUMNS}
                targets = [target for target in batch.targets if target is not None]
                places = read.nonzero()[:, 0].tolist()
                if places:
                    pixels = preprocess(batch.images[read])
                    for found in found_in(self.model, pixels, targets, places):
                        columns["height"][found.image], columns["width"][found.image] = found.size
                        columns["objects"][found.image] = json.dumps(self._kept(results([found], "segm")))
                take(rows(batch.start, list(columns.values()), errors))

    def _kept(self, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"category_id": each["category_id"] + _FIRST, **written(each), "area": round(each["area"], 3), "iscrowd": 0}
            for each in found
            if each["score"] >= self.min_score
        ]


_COLUMNS = ("height", "width", "objects")


def object_table(number: int, known: dict[str, Any], values: dict[str, np.ndarray]) -> Any:
    """A part as a `pyarrow.Table`: image, height, width, objects as JSON, error."""
    import pyarrow as pa

    kinds = dict(zip(_COLUMNS, (pa.int64(), pa.int64(), pa.string()), strict=True))
    columns = {name: pa.array(values[name].tolist(), kind) for name, kind in kinds.items()}
    return pa.table({"image": known["image"], **columns, "error": known["error"]})


def coco_writer(names: Sequence[str]) -> Callable[[Path, Callable[[], Iterator[Any]]], None]:
    """A function that writes parts as a file of COCO's instances, never all of it in memory.

    It has categories, images, those that cannot be read as unreadable with the reason, and annotations, each with its
    score: what a training reads, and what pycocotools' `loadRes` takes.
    """

    def write(path: Path, tables: Callable[[], Iterator[Any]]) -> None:
        with path.open("w", encoding="utf-8") as file:
            categories = [{"id": number, "name": name} for number, name in enumerate(names, _FIRST)]
            file.write(f'{{"categories": {json.dumps(categories, ensure_ascii=False)}')
            for key, entries in (("images", _images), ("unreadable", _unreadable), ("annotations", _annotations)):
                file.write(f',\n"{key}": [')
                for place, entry in enumerate(entries(tables())):
                    file.write(f"{',' if place else ''}\n{json.dumps(entry, ensure_ascii=False)}")
                file.write("]")
            file.write("}\n")

    return write


def _images(tables: Iterator[Any]) -> Iterator[dict[str, Any]]:
    for identity, row in _rows(tables):
        if row["error"] is None:
            yield {"id": identity, "file_name": row["image"], "height": row["height"], "width": row["width"]}


def _unreadable(tables: Iterator[Any]) -> Iterator[dict[str, Any]]:
    for _, row in _rows(tables):
        if row["error"] is not None:
            yield {"file_name": row["image"], "error": row["error"]}


def _annotations(tables: Iterator[Any]) -> Iterator[dict[str, Any]]:
    number = _FIRST
    for identity, row in _rows(tables):
        for entry in json.loads(row["objects"] or "[]"):
            yield {"id": number, "image_id": identity, **entry}
            number += 1


def _rows(tables: Iterator[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with the ids of their images."""
    count = _FIRST
    for table in tables:
        for row in table.to_pylist():
            yield count, row
            count += 1


def object_job(
    model: SwinDetector,
    places: tuple[str, str, Path],
    given: dict[str, Any],
    *,
    min_score: float,
    batch: int,
    precision: str,
) -> Job:
    """Prepare what `swin-mim predict` does with a detector; arguments as of `embedding_job`.

    Raises:
        UserError: the source cannot be opened, or has other channels than the model takes.
    """
    name, spec, out = places
    names = model.labels or tuple(f"class_{number}" for number in range(model.num_classes))
    data = data_config(spec, model, name, given)
    source = open_images(data)
    about = {"model": digest(model), "preprocessing": repr(model.preprocessing), "classes": list(names)}
    return Job(
        out,
        parts_beside(out),
        images=data,
        source=source,
        outputs=DenseOutputs(model, dict.fromkeys(_COLUMNS, ()), Detecting(model, source, data, batch, min_score)),
        batch=batch,
        part=part_of(len(source), batch),
        precision=precision,
        about=about | {"min_score": min_score},
        labels=None,
        table_of=object_table,
        write=coco_writer(names),
    )
