"""Measure a finished classifier, or let it predict, without training."""

import logging
from pathlib import Path

from swin_mim.architecture import as_pair
from swin_mim.counts import counted
from swin_mim.data.labels import Labelled, NoLabels, labels_per_class, split_labelled, with_classes
from swin_mim.errors import UserError
from swin_mim.evaluation.classification import metrics
from swin_mim.evaluation.classification_evaluator import ClassificationEvaluator
from swin_mim.evaluation.finished import metrics_text, published_model, result_folder, say, unseen
from swin_mim.evaluation.reader import Reader
from swin_mim.evaluation.unlabelled import is_image_file, open_unlabelled
from swin_mim.models.classifier import SwinClassifier
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training.config.common_checks import has_images_to_evaluate
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.labelled_images import HELDOUT_SEED, to_evaluate
from swin_mim.training.models import class_names
from swin_mim.training.run.run import Run, open_run

_LOG = logging.getLogger(__name__)


def measure(config: FinetuneConfig) -> int:
    """Evaluate the run's published weights, or those of model.pretrained where it has none -> exit code.

    With `predictions`, images without labels are predicted, and nothing is measured.

    Raises:
        UserError: there is nothing to evaluate, or images and classifier do not fit.
    """
    with open_run(config, trains=False) as run:
        step, model = published_model(SwinClassifier, run, config)
        images, labelled = _images(config, model, run)
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
        say(run, config, step, said)
    return 0


def _images(config: FinetuneConfig, model: SwinClassifier, run: Run) -> tuple[Labelled, bool]:
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
    if run.newest is not None and not has_images_to_evaluate(data):
        training, heldout = split_labelled(images, data.heldout, HELDOUT_SEED)
        if data.labels_per_class:
            training = labels_per_class(training, data.labels_per_class, data.subset_seed)
        images = unseen(run, (training.fingerprint, heldout), (images.fingerprint, images), data)
    return with_classes(images, names), True
