"""The segmenter that a run starts from."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.models.dense.convolutions import initialise_head
from swin_mim.models.dense.segmenter import SwinSegmenter
from swin_mim.training.config.dense.segment import MaskedDataConfig, SegmenterConfig
from swin_mim.training.config.finetune_checks import check_architecture, new_encoder, sizes
from swin_mim.training.starting import make_ready

_LOG = logging.getLogger(__name__)


def build_segmenter(
    model: SegmenterConfig,
    data: MaskedDataConfig,
    names: Sequence[str],
    *,
    checkpoint: Path | None = None,
    **options: Any,
) -> SwinSegmenter:
    """Build a segmenter in training mode, with one output for each class.

    Args:
        data: how images become its input; what is None there is as in the pretrained model.
        names: of the classes. A head for other classes than these is drawn anew.
        checkpoint: of this run: what it holds was started from, whatever `model` says of the start.
        options: attention, activation_checkpointing.

    Raises:
        UserError: the weights cannot be read, or are of another architecture than the settings name.
    """
    head = {"head": model.head, "head_channels": model.head_channels, "head_norm": model.head_norm}
    options |= {**head, "head_dropout": model.head_dropout}
    if checkpoint is not None:
        built = SwinSegmenter.from_pretrained(checkpoint, drop_path_rate=model.drop_path_rate, **options)
    elif model.pretrained is not None:
        built = _pretrained(model, names, **options)
    else:
        built = SwinSegmenter(new_encoder(model, data.channels), len(names), **options)
    make_ready(built, model, data, names, resumed=checkpoint is not None, interpolation="bilinear")
    return built


def names_of(model: SwinSegmenter, names: Sequence[str] | None) -> tuple[str, ...]:
    """The model's classes; where it does not name them, the given names, or numbers.

    Raises:
        UserError: it has another number of them.
    """
    if model.labels is not None:
        return model.labels
    if names is None:
        return tuple(f"class_{number}" for number in range(model.num_classes))
    if len(names) != model.num_classes:
        raise UserError(
            f"the model has {counted(model.num_classes, 'class', 'classes')} without names, and data.class_names "
            f"{len(names)}: they do not match"
        )
    return tuple(names)


def _pretrained(model: SegmenterConfig, names: Sequence[str], **options: Any) -> SwinSegmenter:
    assert model.pretrained is not None
    built = SwinSegmenter.from_pretrained(
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
        if built.labels is not None:
            _LOG.info("the head is new: %s was not made for these classes", model.pretrained)
        initialise_head(built.decode_head)
        if built.auxiliary_head is not None:
            initialise_head(built.auxiliary_head)
    return built
