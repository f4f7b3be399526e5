"""What a detector finds in images with objects, and what is written about it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from accelerate.utils import gather_object
from torch import nn

from swin_mim.data.dense.box_transforms import EvaluationBoxes
from swin_mim.data.dense.boxes import ImagesWithObjects, PicturesWithObjects
from swin_mim.data.loading.loader import heldout_batches
from swin_mim.evaluation.dense.detection import Outcome, detect, report, write_predictions
from swin_mim.evaluation.dense.detection_pictures import save_pictures
from swin_mim.evaluation.reader import Reader
from swin_mim.files import replace_json

REPORT, PICTURE = "metrics.json", "detections.png"


@dataclass(frozen=True)
class DetectionEvaluator:
    """Evaluates detectors of the same classes on the same images.

    Args:
        images: with their objects, numbered as the detector's classes.
        reader: how they reach it; its size is what images are made to fit into.
    """

    images: ImagesWithObjects
    reader: Reader

    def outcome(self, model: nn.Module) -> Outcome:
        """Collect what the model finds in every image; all processes call it together and get the same."""
        reader, known = self.reader, self.reader.preprocess.preprocessing
        transform = EvaluationBoxes(reader.size, interpolation=known.interpolation)
        options = replace(reader.options, pixel_bytes=reader.preprocess.pixel_bytes)
        batches = heldout_batches(PicturesWithObjects(self.images), transform, reader.batch, options)
        return detect(model, reader.watch(batches), truth=self.images, prepare=reader.preprocess, gather=gather_object)

    def write(
        self,
        folder: Path,
        outcome: Outcome,
        *,
        step: int | None,
        about: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write metrics.json and detections.png.

        Args:
            step: after which the weights were these; None: nobody knows.
            about: what else to write, such as which model it was.
        """
        folder.mkdir(parents=True, exist_ok=True)
        save_pictures(folder / PICTURE, outcome)
        replace_json(folder / REPORT, {"step": step, **about, **report(outcome)})

    def write_predictions(self, path: Path, outcome: Outcome) -> None:
        """Write all that was found; see `detection.write_predictions`."""
        write_predictions(path.expanduser(), outcome)
