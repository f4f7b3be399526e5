"""What a classifier makes of labelled images, and what is written about it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from swin_mim.data.labels import Labelled
from swin_mim.evaluation.classification import Outcome, confusions, predict, report, write_predictions
from swin_mim.evaluation.confusion import save_confusion
from swin_mim.evaluation.reader import Reader
from swin_mim.evaluation.worst_images import save_worst
from swin_mim.files import replace_json

REPORT, PICTURE, WORST = "metrics.json", "confusion.png", "worst.json"


@dataclass(frozen=True)
class ClassificationEvaluator:
    """Evaluates classifiers of the same classes on the same images.

    Args:
        images: with their labels, numbered as the classifier's outputs.
        reader: how they reach it.
    """

    images: Labelled
    reader: Reader

    def outcome(self, model: nn.Module) -> Outcome:
        """Collect what the model makes of every image; all processes call it together and get the same."""
        return predict(
            model,
            self.reader.batches(self.images.images),
            self.images.targets,
            classes=len(self.images.names),
            prepare=self.reader.preprocess,
            reduce=self.reader.reduce,
        )

    def write(
        self, folder: Path, outcome: Outcome, *, step: int | None, about: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Write metrics.json, worst.json, and with one label each confusion.png.

        Args:
            step: after which the weights were these; None: nobody knows.
            about: what else to write, such as which model it was.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if not outcome.multi_label:
            save_confusion(folder / PICTURE, confusions(outcome), self.images.names)
        save_worst(folder / WORST, outcome, self.images, step=step)
        replace_json(folder / REPORT, {"step": step, **about, **report(outcome, self.images.names)})

    def write_predictions(self, path: Path, outcome: Outcome, *, labelled: bool = True) -> None:
        """Write a row for each image; see `classification.write_predictions`."""
        source = self.images.images
        names = [source.name(index) for index in range(len(source))]
        write_predictions(path.expanduser(), outcome, self.images.names, names, labelled=labelled)


def last_report(folder: Path) -> dict[str, Any]:
    """Read what `ClassificationEvaluator.write` wrote there last; empty if nothing."""
    path = folder / REPORT
    return dict(json.loads(path.read_text())) if path.is_file() else {}
