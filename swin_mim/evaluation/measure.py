"""Measure a finished classifier, or let it predict, without training."""

import json
import logging
import os
import re
from itertools import count
from pathlib import Path
from typing import Any

from swin_mim.architecture import as_pair
from swin_mim.counts import counted
from swin_mim.data.labels import Labelled, NoLabels, labels_per_class, split_labelled, with_classes
from swin_mim.errors import UserError
from swin_mim.evaluation.classification import metrics
from swin_mim.evaluation.classification_evaluator import ClassificationEvaluator, last_report
from swin_mim.evaluation.reader import Reader
from swin_mim.evaluation.unlabelled import is_image_file, open_unlabelled
from swin_mim.models.classifier import SwinClassifier
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.redaction import without_home
from swin_mim.training.channels import check_channels, warn_of_other_gaps
from swin_mim.training.checkpoints.state import TRAINER, published_step, read_state
from swin_mim.training.checkpoints.store import path_of
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.labelled_images import HELDOUT_SEED, to_evaluate
from swin_mim.training.models import class_names, load_published, open_classifier
from swin_mim.training.run.run import Run, open_run

EVALUATION = "evaluation"

_LOG = logging.getLogger(__name__)


def measure(config: FinetuneConfig) -> int:
    """Evaluate the run's published weights, or those of model.pretrained where it has none -> exit code.

    With `predictions`, images without labels are predicted, and nothing is measured.

    Raises:
        UserError: there is nothing to evaluate, or images and classifier do not fit.
    """
    with open_run(config, trains=False) as run:
        step = None
        if run.newest:
            step = published_step(read_state(run.newest), config.save.export, run.checkpoints)
        model = _model(config, run, step)
        images, labelled = _images(config, model, run.newest)
        preprocess, size = Preprocessor(model.preprocessing, run.device), as_pair(model.encoder.config.image_size)
        reader = Reader(preprocess, size, run.reduce, run.watch, config.train.micro_batch, run.loader_options())
        evaluator = ClassificationEvaluator(images, reader)
        outcome = evaluator.outcome(run.accelerator.prepare_model(model, evaluation_mode=True))
        said = [counted(len(outcome.images), "image")]
        if outcome.missing:
            said.append(f"{outcome.missing} more could not be read")
        if labelled:
            said.insert(0, metrics_text(metrics(outcome)))
            folder, about = result_folder(run, images.fingerprint, str(config.model.pretrained))
            if run.is_main:
                evaluator.write(folder, outcome, step=step, about=about)
            said.append(f"see {folder}")
        if config.predictions:
            if run.is_main:
                evaluator.write_predictions(Path(config.predictions), outcome, labelled=labelled)
            said.append(f"predictions in {config.predictions}")
        where = config.model.pretrained if step is None else f"step {step} of {config.run.name}"
        run.log_info(f"{where}: {', '.join(said)}")
    return 0


def metrics_text(measured: dict[str, float]) -> str:
    """ "accuracy 0.8123  heldout_loss 0.6420" """
    return "  ".join(f"{key} {value:.4f}" for key, value in measured.items())


def _model(config: FinetuneConfig, run: Run, step: int | None) -> SwinClassifier:
    attention, data, pretrained = config.train.attention, config.data, str(config.model.pretrained)
    if step is not None:
        return load_published(path_of(run.checkpoints, step), attention=attention)
    model = open_classifier(config.model, attention=attention)
    check_channels(model.preprocessing, data.channels, pretrained)
    warn_of_other_gaps(model.preprocessing, data.nodata, data.mask_channel, pretrained)
    return model


def _images(config: FinetuneConfig, model: SwinClassifier, checkpoint: Path | None) -> tuple[Labelled, bool]:
    """The images to evaluate on, with the model's classes, and whether they have labels."""
    data = config.data
    spec = data.validation or data.source
    try:
        if is_image_file(spec):
            raise NoLabels(f"{spec} is one file: labels come with a folder for each class, or with a table")
        images = to_evaluate(data)
        names = class_names(model, images.names)
        if config.predictions and not set(names) & set(images.names):
            raise NoLabels(f"no folder or label of {spec} is a class of the model, but {', '.join(images.names[:3])}")
    except NoLabels as error:
        if not config.predictions:
            raise UserError(f"{error}; or --predictions FILE.csv for predictions without labels") from None
        _LOG.info("no labels, so predictions only and nothing measured (%s)", error)
        return open_unlabelled(data, model), False
    separate = data.validation is not None or data.validation_split is not None or data.source == "blue_marble"
    if checkpoint is not None and not separate:
        training, heldout = split_labelled(images, data.heldout, HELDOUT_SEED)
        if data.labels_per_class:
            training = labels_per_class(training, data.labels_per_class, data.subset_seed)
        learned = facts_of(checkpoint)["images"]
        if training.fingerprint == learned:
            return with_classes(heldout, names), True
        if images.fingerprint == learned:
            _LOG.warning("the run learned from these images: what is measured says nothing about others")
        else:
            _LOG.info("the run did not learn from data.source %r: all of it is evaluated", data.source)
    return with_classes(images, names), True


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says that its run must have the same."""
    return dict(json.loads((checkpoint / TRAINER).read_text())["facts"])


def result_folder(run: Run, fingerprint: str, pretrained: str) -> tuple[Path, dict[str, str]]:
    """(where the results go, what is written with them): nothing replaces what was measured of another model or images.

    `fingerprint` is that of the images.

    What a run measured itself is in evaluation/; of other models and images the first results may be there too, the
    next ones are in evaluation_MODEL/, then evaluation_MODEL_2/ and so on.
    """
    about: dict[str, str] = {}
    if run.newest is None or facts_of(run.newest).get("evaluation images", fingerprint) != fingerprint:
        model = pretrained if run.newest is None else f"{run.folder}"
        about = {"model": without_home(model), "images": fingerprint}
    name = _model_name(about.get("model", str(run.folder)))
    for number in count():
        tail = "" if not number else f"_{name}" if number == 1 else f"_{name}_{number}"
        folder = run.folder / f"{EVALUATION}{tail}"
        there = last_report(folder)
        # what an earlier version wrote names no model: it is of the run itself if it is of a step
        same = all(there.get(key) == about.get(key) for key in ("model", "images"))
        if not there or (same and (about or there.get("step") is not None)):
            return folder, about
    raise AssertionError("count() has no end")


def _model_name(model: str) -> str:
    """ "runs/mine/export" -> "mine"."""
    parts = Path(os.path.normpath(model)).expanduser().parts
    telling = [part for part in parts if part not in ("export", "checkpoints") and not part.startswith("step_")]
    return re.sub(r"[^\w.-]+", "_", telling[-1] if telling else "model").removesuffix(".safetensors")
