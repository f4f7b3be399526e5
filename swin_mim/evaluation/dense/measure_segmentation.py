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
from swin_mim.evaluation.measure import facts_of, metrics_text, result_folder
from swin_mim.models.dense.segmenter import SwinSegmenter
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training.channels import check_channels, warn_of_other_gaps
from swin_mim.training.checkpoints.state import published_step, read_state
from swin_mim.training.checkpoints.store import path_of
from swin_mim.training.config.dense.segment import SegmentConfig
from swin_mim.training.dense.pairs import to_evaluate, to_predict
from swin_mim.training.dense.segmenter import load_segmenter, names_of, open_segmenter
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
        step = None
        if run.newest:
            step = published_step(read_state(run.newest), config.save.export, run.checkpoints)
        model = _model(config, run, step)
        pairs, labelled = _pairs(config, model, run.newest)
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
        where = config.model.pretrained if step is None else f"step {step} of {config.run.name}"
        run.log_info(f"{where}: {', '.join(said)}")
    return 0


def _model(config: SegmentConfig, run: Run, step: int | None) -> SwinSegmenter:
    attention, data, pretrained = config.train.attention, config.data, str(config.model.pretrained)
    if step is not None:
        return load_segmenter(path_of(run.checkpoints, step), attention=attention)
    model = open_segmenter(config.model, attention=attention)
    check_channels(model.preprocessing, data.channels, pretrained)
    warn_of_other_gaps(model.preprocessing, data.nodata, data.mask_channel, pretrained)
    return model


def _pairs(config: SegmentConfig, model: SwinSegmenter, checkpoint: Path | None) -> tuple[Pairs, bool]:
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
    separate = data.validation is not None or data.validation_split is not None or data.source == "blue_marble"
    if checkpoint is not None and not separate:
        training, heldout = pairs.split(data.heldout, HELDOUT_SEED)
        if data.images:
            training = training.some(data.images, data.subset_seed)
        learned = facts_of(checkpoint)["images"]
        if training.images.fingerprint == learned:
            return heldout, True
        if pairs.images.fingerprint == learned:
            _LOG.warning("the run learned from these images: what is measured says nothing about others")
        else:
            _LOG.info("the run did not learn from data.source %r: all of it is evaluated", data.source)
    return pairs, True
