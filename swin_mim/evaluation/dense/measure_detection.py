"""Measure a finished detector, or let it look, without training."""

import logging
from pathlib import Path

from swin_mim.architecture import as_pair
from swin_mim.counts import counted
from swin_mim.data.dense.boxes import ImagesWithObjects, PicturesWithObjects, some_images, split_images, with_classes
from swin_mim.errors import UserError
from swin_mim.evaluation.dense.detection import metrics
from swin_mim.evaluation.dense.detection_evaluator import DetectionEvaluator
from swin_mim.evaluation.finished import metrics_text, published_model, result_folder, say, unseen
from swin_mim.evaluation.reader import Reader
from swin_mim.models.dense.detector import SwinDetector
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training.config.common_checks import has_images_to_evaluate
from swin_mim.training.config.dense.detect import DetectConfig
from swin_mim.training.dense.detectors import check_anchor, detector_names
from swin_mim.training.dense.images_with_objects import (
    NoObjects,
    to_evaluate,
    to_learn_from,
    without_objects,
)
from swin_mim.training.labelled_images import HELDOUT_SEED
from swin_mim.training.run.run import Run, open_run

_LOG = logging.getLogger(__name__)


def evaluator_of(config: DetectConfig, run: Run, model: SwinDetector, images: ImagesWithObjects) -> DetectionEvaluator:
    """What measures detectors on images, made to fit into the size of this one."""
    preprocess, size = Preprocessor(model.preprocessing, run.device), as_pair(model.encoder.config.image_size)
    reader = Reader(preprocess, size, run.reduce, run.watch, config.train.micro_batch, run.loader_options())
    return DetectionEvaluator(images, reader)


def measure(config: DetectConfig) -> int:
    """Evaluate the run's published weights, or those of model.pretrained where it has none -> exit code.

    With `predictions`, images without known objects are looked at, and nothing is measured.

    Raises:
        UserError: there is nothing to evaluate, or images and detector do not fit.
    """
    with open_run(config, trains=False) as run:
        step, model = published_model(SwinDetector, run, config)
        check_anchor(config.model, model)
        images, labelled = _images(config, model, run)
        evaluator = evaluator_of(config, run, model, images)
        outcome = evaluator.outcome(run.accelerator.prepare_model(model, evaluation_mode=True))
        said = [counted(len(outcome.found), "image")]
        if missing := len(images) - len(outcome.found):
            said.append(f"{missing} more could not be read")
        if labelled:
            said.insert(0, metrics_text(metrics(outcome)))
            fingerprint = PicturesWithObjects(images).fingerprint
            folder, about = result_folder(run, fingerprint, str(config.model.pretrained))
            if run.is_main:
                evaluator.write(folder, outcome, step=step, about=about)
            said.append(f"see {folder}")
        if config.predictions:
            if run.is_main:
                evaluator.write_predictions(Path(config.predictions), outcome)
            said.append(f"predictions in {config.predictions}")
        say(run, config, step, said)
    return 0


def _images(config: DetectConfig, model: SwinDetector, run: Run) -> tuple[ImagesWithObjects, bool]:
    """The images to look at, with the model's classes, and whether their objects are known."""
    data = config.data
    try:
        images = to_evaluate(data)
    except NoObjects as error:
        if not config.predictions:
            raise UserError(f"{error}; or --predictions FILE.json to look without known objects") from None
        _LOG.info("no objects are known, so predictions only and nothing measured (%s)", error)
        names = model.labels or tuple(f"class_{number}" for number in range(model.num_classes))
        return without_objects(data, names), False
    names = tuple(detector_names(model, images.names))
    if run.newest is not None and not has_images_to_evaluate(data):
        training, heldout = split_images(images, data.heldout, HELDOUT_SEED)
        if data.images:
            training = some_images(training, data.images, data.subset_seed)
        learned = PicturesWithObjects(to_learn_from(training, data)).fingerprint
        everything = (PicturesWithObjects(images).fingerprint, images)
        images = unseen(run, (learned, heldout), everything, data)
    return with_classes(images, names), True
