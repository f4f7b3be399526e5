"""The detector that a run starts from."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

from swin_mim.counts import counted
from swin_mim.data.dense.boxes import ImagesWithObjects
from swin_mim.errors import UserError
from swin_mim.models.dense.detector import SwinDetector
from swin_mim.training.config.dense.detect import BoxedDataConfig, DetectConfig, DetectorConfig
from swin_mim.training.config.finetune_checks import check_architecture, new_encoder, sizes
from swin_mim.training.starting import make_ready

_LOG = logging.getLogger(__name__)


def finds_shapes(config: DetectConfig, images: ImagesWithObjects) -> bool:
    """Whether a detector of these settings learns shapes of these images.

    Raises:
        UserError: it is to learn them, to be judged by them, or objects are to be pasted, and an object has none.
    """
    model = config.model
    if config.augment.copy_paste and not images.have_shapes:
        raise UserError(
            f"augment.copy_paste {config.augment.copy_paste:g} pastes objects by their shapes, and not every object "
            "has one (segmentation): use 0"
        )
    if config.save.best_by == "mask_AP" and not images.have_shapes:
        raise UserError("save.best_by mask_AP is of shapes, and not every object has one (segmentation): use AP")
    if model.masks is True and not images.have_shapes:
        raise UserError(
            "model.masks is true, and not every object has a shape (segmentation): use auto, or false for boxes alone"
        )
    return model.masks is not False and images.have_shapes


def build_detector(
    model: DetectorConfig,
    data: BoxedDataConfig,
    names: Sequence[str],
    *,
    masks: bool,
    checkpoint: Path | None = None,
    **options: Any,
) -> SwinDetector:
    """Build a detector in training mode.

    Args:
        data: how images become its input; what is None there is as in the pretrained model.
        names: of the classes. What predicts other classes than these is drawn anew.
        masks: whether it finds shapes.
        checkpoint: of this run: what it holds was started from, whatever `model` says of the start.
        options: attention, activation_checkpointing.

    Raises:
        UserError: the weights cannot be read, or are of another architecture than the settings name.
    """
    heads: dict[str, Any] = {"masks": masks}
    for key in ("head_channels", "smallest_anchor"):
        if getattr(model, key) is not None:
            heads[key] = getattr(model, key)
    if checkpoint is not None:
        built = SwinDetector.from_pretrained(checkpoint, drop_path_rate=model.drop_path_rate, **options)
    elif model.pretrained is not None:
        built = _pretrained(model, names, heads, **options)
    else:
        built = SwinDetector(new_encoder(model, data.channels), len(names), **heads, **options)
    make_ready(built, model, data, names, resumed=checkpoint is not None, interpolation=data.interpolation)
    return built


def check_anchor(model: DetectorConfig, found: SwinDetector) -> None:
    """Raise a UserError for a finished detector with other anchors than the settings name.

    Raises:
        UserError: names both.
    """
    if model.smallest_anchor not in (None, found.smallest_anchor):
        raise UserError(
            f"model.smallest_anchor is {model.smallest_anchor} and that of the weights {found.smallest_anchor}: leave "
            "it out, the anchors come with the weights"
        )


def detector_names(model: SwinDetector, names: Sequence[str]) -> Sequence[str]:
    """The detector's classes; those of the images, in their order, where it has as many and does not name them.

    Raises:
        UserError: it has another number of them.
    """
    if model.labels is not None:
        return model.labels
    if model.num_classes != len(names):
        raise UserError(
            f"the model has {counted(model.num_classes, 'class', 'classes')} without names, and the images "
            f"{len(names)}: they do not match"
        )
    _LOG.warning("the model does not name its classes: taken to be those of the images, in their order")
    return names


def _pretrained(model: DetectorConfig, names: Sequence[str], heads: dict[str, Any], **options: Any) -> SwinDetector:
    assert model.pretrained is not None
    built = SwinDetector.from_pretrained(
        model.pretrained,
        **sizes(model),
        bias_tables=model.bias_tables,
        drop_path_rate=model.drop_path_rate,
        num_classes=len(names),
        pickles=True,
        **heads,
        **options,
    )
    check_architecture(model, built.encoder.config)
    if built.labels is not None and built.labels != tuple(names):
        # heads for as many classes may still be of other ones
        _LOG.info("what predicts classes is new: %s was not made for these", model.pretrained)
        forget_classes(built)
    return built


def forget_classes(model: SwinDetector) -> None:
    """Draw anew what of a detector belongs to single classes."""
    predictor = model.roi_heads.box_predictor
    model.roi_heads.box_predictor = FastRCNNPredictor(predictor.cls_score.in_features, predictor.cls_score.out_features)
    if model.masks:
        last = model.roi_heads.mask_predictor.mask_fcn_logits
        last.reset_parameters()
