"""Measure a finished classifier, without training."""

from pathlib import Path

from swin_mim.architecture import as_pair
from swin_mim.data.labels import with_classes
from swin_mim.evaluation.classification import metrics
from swin_mim.evaluation.classification_evaluator import ClassificationEvaluator
from swin_mim.evaluation.reader import Reader
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training import labelled_images
from swin_mim.training.channels import check_channels, warn_of_other_gaps
from swin_mim.training.checkpoints.state import published_step, read_state
from swin_mim.training.checkpoints.store import path_of
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.models import class_names, load_published, open_classifier
from swin_mim.training.run.run import open_run


def measure(config: FinetuneConfig) -> int:
    """Evaluate the run's published weights, or those of model.pretrained where it has none -> exit code.

    Raises:
        UserError: there is nothing to evaluate, or images and classifier do not fit.
    """
    data, attention, pretrained = config.data, config.train.attention, str(config.model.pretrained)
    with open_run(config, trains=False) as run:
        step = None
        if run.newest:
            step = published_step(read_state(run.newest), config.save.export, run.checkpoints)
        if step is None:
            model = open_classifier(config.model, attention=attention)
            check_channels(model.preprocessing, data.channels, pretrained)
            warn_of_other_gaps(model.preprocessing, data.nodata, data.mask_channel, pretrained)
            images = labelled_images.to_evaluate(data)
            images = with_classes(images, class_names(model, images.names))
        else:
            model = load_published(path_of(run.checkpoints, step), attention=attention)
            _, images = labelled_images.to_train_and_evaluate(data)
        preprocess, size = Preprocessor(model.preprocessing, run.device), as_pair(model.encoder.config.image_size)
        reader = Reader(preprocess, size, run.reduce, run.watch, config.train.micro_batch, run.loader_options())
        evaluator = ClassificationEvaluator(images, reader)
        outcome = evaluator.outcome(run.accelerator.prepare_model(model, evaluation_mode=True))
        if run.is_main:
            evaluator.write(run.folder / "evaluation", outcome, step=step)
            if config.predictions:
                evaluator.write_predictions(Path(config.predictions), outcome)
        where = pretrained if step is None else f"step {step} of {config.run.name}"
        folder = run.folder / "evaluation"
        run.log_info(f"{where}: {metrics_text(metrics(outcome))}  {len(outcome.images)} images; see {folder}")
    return 0


def metrics_text(measured: dict[str, float]) -> str:
    """ "accuracy 0.8123  heldout_loss 0.6420" """
    return "  ".join(f"{key} {value:.4f}" for key, value in measured.items())
