"""What a classifier says of every image of a source: the class, its probability, and those of all classes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swin_mim.architecture import as_pair
from swin_mim.errors import UserError
from swin_mim.evaluation.outputs.collect import Outputs
from swin_mim.evaluation.outputs.embeddings import data_config, pooled_table
from swin_mim.evaluation.outputs.images import open_images
from swin_mim.evaluation.outputs.job import PART_BYTES, Job, part_size, parts_beside
from swin_mim.evaluation.outputs.parts import digest
from swin_mim.evaluation.outputs.start import explained
from swin_mim.evaluation.unlabelled import names_of
from swin_mim.models.classifier import SwinClassifier
from swin_mim.training.config.finetune import ClassifierConfig
from swin_mim.training.finished import open_finished

LOGITS = "logits"


def class_outputs(model: SwinClassifier) -> Outputs:
    """Say what is wanted of a classifier: its logits."""
    classes = model.get_parameter("head.fc.bias").numel()
    size = as_pair(model.encoder.config.image_size)
    return Outputs(model, lambda images: [model(images)], {LOGITS: (classes,)}, model.preprocessing, size)


def prediction_table(names: Sequence[str], *, multi_label: bool) -> Callable[[Any], Any]:
    """A function from `pyarrow.Table` of logits to that of predictions, rounded to 6 digits.

    Columns are image, predicted, probability, "probability of NAME" for each class, error. With `multi_label` each
    class is by itself: predicted are those above one half, with ; between them, and there is no column probability.
    """

    def finish(table: Any) -> Any:
        import pyarrow as pa

        missing = table["error"].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
        # what is null is NaN here
        flat = table[LOGITS].combine_chunks().values.to_numpy(zero_copy_only=False)
        logits = flat.reshape(-1, len(names))
        values = torch.from_numpy(logits.astype(np.float64))
        chances = (values.sigmoid() if multi_label else values.softmax(dim=1)).numpy()
        columns: dict[str, Any] = {"image": table["image"]}
        if multi_label:
            said = [";".join(names[number] for number in np.flatnonzero(row).tolist()) for row in chances > 0.5]
        else:
            best = logits.argmax(axis=1)
            said = [names[number] for number in best.tolist()]
            columns["probability"] = _rounded(chances[np.arange(len(best)), best], missing)
        columns["predicted"] = pa.array(said, pa.string(), mask=missing)
        ordered: dict[str, Any] = {
            name: columns[name] for name in ("image", "predicted", "probability") if name in columns
        }
        for number, name in enumerate(names):
            ordered[f"probability of {name}"] = _rounded(chances[:, number], missing)
        return pa.table(ordered | {"error": table["error"]})

    return finish


def _rounded(values: np.ndarray, missing: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.array([round(value, 6) for value in values.tolist()], pa.float64(), mask=missing)


def load_classifier(source: str) -> SwinClassifier:
    """Load a classifier as `swin-mim finetune --evaluate` does.

    Raises:
        UserError: it is none, and what it is has another use.
    """
    try:
        return open_finished(SwinClassifier, ClassifierConfig(pretrained=source))
    except UserError as error:
        raise explained(error, source, "SwinClassifier") from None


def prediction_job(
    model: SwinClassifier,
    places: tuple[str, str, Path],
    given: dict[str, Any],
    *,
    multi_label: bool,
    batch: int,
    precision: str,
) -> Job:
    """Prepare what `swin-mim predict` does; arguments as of `embedding_job`.

    Raises:
        UserError: the source cannot be opened, or has other channels than the model takes.
    """
    name, spec, out = places
    outputs, names = class_outputs(model), names_of(model)
    data = data_config(spec, model, name, given)
    about = {"model": digest(model), "preprocessing": repr(model.preprocessing), "multi_label": multi_label}
    part = part_size(batch, 4 * len(names), most=PART_BYTES)
    return Job(
        out,
        parts_beside(out),
        images=data,
        source=open_images(data),
        outputs=outputs,
        batch=batch,
        part=part,
        precision=precision,
        about=about | {"classes": list(names)},
        labels=None,
        table_of=pooled_table,
        finish=prediction_table(names, multi_label=multi_label),
    )
