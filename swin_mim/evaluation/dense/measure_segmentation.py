"""Measure a finished segmenter, or let it predict, without training."""

import logging
from pathlib import Path

from swin_mim.architecture import as_pair
from swin_mim.counts import counted
from swin_mim.data.dense.open_pairs import NoMasks, read_names
from swin_mim.data.dense.pairs import Pairs
from swin_mim.errors import UserError
from swin_mim.evaluation.dense.segmentation import Inference, metrics
from swin_mim.evaluation.dense.segmentation_evaluator import SegmentationEvaluator
from swin_mim.evaluation.finished import metrics_text, published_model, result_folder, say, unseen
from swin_mim.models.dense.segmenter import SwinSegmenter
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training.config.common_checks import has_images_to_evaluate
from swin_mim.training.config.dense.segment import SegmentConfig
from swin_mim.training.dense.pairs import to_evaluate, to_predict
from swin_mim.training.dense.segmenter import names_of
from swin_mim.training.labelled_images import HELDOUT_SEED
from swin_mim.training.run.run import Run, open_run

_LOG = logging.getLogger(__name__)


def evaluator_of(config: SegmentConfig, run: Run, model: SwinSegmenter, pairs: Pairs) -> SegmentationEvaluator:
    """What measures segmenters as the settings say."""
    size = as_pair(model.encoder.config.image_size)
    return SegmentationEvaluator(
        pairs,
        Inference(config.data.resize, size if config.data.window == "slide" else None),
        Preprocessor(model.preprocessing, run.device),
        size,
        run.reduce,
        run.watch,
        run.loader_options(),
        shown=config.log.pictures,
        channels=config.log.picture_channels,
    )


def measure(config: SegmentConfig) -> int:
    """Evaluate the run's published weights, or those of model.pretrained where it has none -> exit code.

    With `predictions`, images without masks are predicted, and nothing is measured.

    Raises:
        UserError: there is nothing to evaluate, or images and segmenter do not fit.
    """
    with open_run(config, trains=False) as run:
        step, model = published_model(SwinSegmenter, run, config)
        pairs, labelled = _pairs(config, model, run)
        evaluator = evaluator_of(config, run, model, pairs)
        prepared = run.accelerator.prepare_model(model, evaluation_mode=True)
        outcome = evaluator.outcome(prepared, Path(config.predictions) if config.predictions else None)
        said = [counted(outcome.images, "image")]
        if outcome.missing:
            said.append(f"{outcome.missing} more could not be read")
        if labelled:
            said.insert(0, metrics_text(metrics(outcome)))
            folder, about = result_folder(run, pairs.images.fingerprint, str(config.model.pretrained))
            if run.is_main:
                evaluator.write(folder, outcome, prepared, step=step, about=about)
            said.append(f"see {folder}")
        if config.predictions:
            said.append(f"masks in {config.predictions}")
        say(run, config, step, said)
    return 0


def _pairs(config: SegmentConfig, model: SwinSegmenter, run: Run) -> tuple[Pairs, bool]:
    """The images to evaluate on, and whether they have masks."""
    data = config.data
    given = None if data.class_names is None else read_names(Path(data.class_names).expanduser())
    names = names_of(model, given)
    try:
        pairs = to_evaluate(data, names)
    except NoMasks as error:
        if not config.predictions:
            raise UserError(f"{error}; or --predictions FOLDER for predictions without masks") from None
        _LOG.info("no masks, so predictions only and nothing measured (%s)", error)
        return to_predict(data, names), False
    if run.newest is not None and not has_images_to_evaluate(data):
        training, heldout = pairs.split(data.heldout, HELDOUT_SEED)
        if data.images:
            training = training.some(data.images, data.subset_seed)
        everything = (pairs.images.fingerprint, pairs)
        pairs = unseen(run, (training.images.fingerprint, heldout), everything, data)
    return pairs, True
