"""The models that runs start from: the masked image model of a pretraining, the classifier of a fine-tuning."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.models.classifier import SwinClassifier
from swin_mim.models.saving import Preprocessing
from swin_mim.models.simmim import SimMIM
from swin_mim.models.swin import initialise
from swin_mim.training.channels import warn_of_other_channels
from swin_mim.training.config.finetune import ClassifierConfig, LabelledDataConfig
from swin_mim.training.config.finetune_checks import check_architecture, new_encoder, sizes
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import stage_weights, swin_config
from swin_mim.training.starting import make_ready

_LOG = logging.getLogger(__name__)


def build_simmim(
    config: PretrainConfig, preprocessing: Preprocessing, *, resuming: bool = False, teacher_width: int = 0
) -> SimMIM:
    """Build the masked image model of a pretraining, in training mode, with weights that its seed decides.

    Args:
        preprocessing: how the images become its input.
        resuming: the weights will come from a checkpoint, whatever `model.pretrained` says.
        teacher_width: features of the teacher, 0 without one.

    Raises:
        UserError: model.pretrained cannot be read, or is of another architecture.
    """
    settings, train = config.model, config.train
    options: dict[str, Any] = {"attention": train.attention, "activation_checkpointing": train.activation_checkpointing}
    options |= {"target": settings.target, "stage_weights": stage_weights(settings)}
    options |= {"teacher_width": teacher_width, "teacher_weight": config.teacher.weight}
    swin = swin_config(settings)
    torch.manual_seed(config.run.seed)
    if settings.pretrained and not resuming:
        model = SimMIM.from_pretrained(settings.pretrained, config=swin, new_decoder=True, pickles=True, **options)
        warn_of_other_channels(model.preprocessing, preprocessing, settings.pretrained)
    else:
        model = SimMIM(swin, **options)
    model.preprocessing = preprocessing
    return model.train()


def build_classifier(
    model: ClassifierConfig,
    data: LabelledDataConfig,
    names: Sequence[str],
    *,
    checkpoint: Path | None = None,
    **options: Any,
) -> SwinClassifier:
    """Build a classifier in training mode, with one output for each class.

    Args:
        data: how images become its input; what is None there is as in the pretrained model.
        names: of the classes. A head for other classes than these is drawn anew.
        checkpoint: of this run: what it holds was started from, whatever `model` says of the start.
        options: attention, activation_checkpointing.

    Raises:
        UserError: the weights cannot be read, or are of another architecture than the settings name.
    """
    if checkpoint is not None:
        built = SwinClassifier.from_pretrained(checkpoint, drop_path_rate=model.drop_path_rate, **options)
    elif model.pretrained is not None:
        built = _pretrained(model, names, **options)
    else:
        built = SwinClassifier(new_encoder(model, data.channels), len(names), **options)
    make_ready(
        built,
        model,
        data,
        names,
        resumed=checkpoint is not None,
        interpolation=data.interpolation,
        crop_pct=data.crop_pct,
    )
    return built


def class_names(model: SwinClassifier, names: Sequence[str]) -> Sequence[str]:
    """The model's classes; those of the images, in their order, where it has as many and does not name them.

    Raises:
        UserError: it has another number of them.
    """
    if model.labels is not None:
        return model.labels
    count = model.get_parameter("head.fc.bias").numel()
    if count != len(names):
        raise UserError(
            f"the model has {counted(count, 'class', 'classes')} without names, and the images {len(names)}: "
            "they do not match"
        )
    _LOG.warning("the model does not name its classes: taken to be those of the images, in their order")
    return names


def _pretrained(model: ClassifierConfig, names: Sequence[str], **options: Any) -> SwinClassifier:
    assert model.pretrained is not None
    built = SwinClassifier.from_pretrained(
        model.pretrained,
        **sizes(model),
        bias_tables=model.bias_tables,
        drop_path_rate=model.drop_path_rate,
        num_classes=len(names),
        pickles=True,
        **options,
    )
    check_architecture(model, built.encoder.config)
    if built.labels != tuple(names):
        # a head of as many classes may still be of other ones; where there was none, that has been said
        if not built.from_simmim:
            _LOG.info("the head is new: %s was not made for these classes", model.pretrained)
        initialise(built.head)
    return built
