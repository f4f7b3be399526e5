"""The published segmenter or detector of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swin_mim.counts import counted
from swin_mim.data.dense.boxes import ImagesWithObjects
from swin_mim.data.dense.pairs import Pairs
from swin_mim.hub.about import Picture
from swin_mim.models.dense.detector import SwinDetector
from swin_mim.models.dense.segmenter import SwinSegmenter
from swin_mim.training.checkpoints.state import RunState
from swin_mim.training.config.dense.detect import DetectConfig
from swin_mim.training.config.dense.segment import SegmentConfig
from swin_mim.training.run.labelled_export import Learned, Task, export_labelled, place
from swin_mim.training.run.publishing import Origin
from swin_mim.training.run.run import Run

_OVERLAYS = "Images that it did not learn from: the image, its mask, the prediction."
_DRAWN = "Images that it did not learn from: on the left the objects that are there, on the right what it found."

SEGMENTATION = Task(
    SwinSegmenter,
    "segment",
    {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"},
    Picture(Path("overlays.png"), "card_overlays.png", _OVERLAYS),
    "Loss and mean IoU over the steps.",
)
DETECTION = Task(
    SwinDetector,
    "detect",
    {
        "AP": "average precision of boxes",
        "AP50": "average precision of boxes at IoU 0.5",
        "mask_AP": "average precision of shapes",
    },
    Picture(Path("detections.png"), "card_detections.png", _DRAWN),
    "Loss and average precision over the steps.",
)


def export_segmenter(run: Run, state: RunState, origin: Origin | None, pairs: Pairs, report: Mapping[str, Any]) -> None:
    """Write the export of a segmentation that learned from `pairs`; see `export_labelled`."""
    config = run.config
    assert isinstance(config, SegmentConfig)
    where = place(config, origin)
    if config.data.source == "blue_marble":
        where += ", with land cover after Koeppen"
    data = f"{len(pairs)} labelled {where}, in {counted(len(pairs.names), 'class', 'classes')} of pixels"
    head = {"Head": f"{config.model.head}, {config.model.head_norm} norms"}
    export_labelled(SEGMENTATION, run, state, origin, Learned(data, head), report)


def export_detector(
    run: Run, state: RunState, origin: Origin | None, images: ImagesWithObjects, report: Mapping[str, Any]
) -> None:
    """Write the export of a detection that learned from `images`; see `export_labelled`."""
    config = run.config
    assert isinstance(config, DetectConfig)
    objects = counted(int(images.counts().sum()), "object")
    classes = counted(len(images.names), "class", "classes")
    data = f"{len(images)} {place(config, origin)} with {objects} of {classes}"
    export_labelled(DETECTION, run, state, origin, Learned(data), report)
