"""The images with masks that a segmentation's settings name: to train on, and to evaluate on."""

from pathlib import Path
from typing import Any

from swin_mim.counts import counted
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.dense.joint import JointTransform
from swin_mim.data.dense.open_pairs import Classes, open_pairs, open_unlabelled
from swin_mim.data.dense.pairs import Pairs
from swin_mim.errors import UserError
from swin_mim.models.saving import Preprocessing
from swin_mim.training.config.common_checks import has_images_to_evaluate
from swin_mim.training.config.dense.segment import MaskedDataConfig, SegmentConfig
from swin_mim.training.images import decode_options
from swin_mim.training.labelled_images import HELDOUT_SEED

_OF_MASKS = ("masks", "mask_column", "panoptic_folder", "uncovered")  # what images without masks have no use for


def to_train_and_evaluate(data: MaskedDataConfig, counts: Path | None = None) -> tuple[Pairs, Pairs]:
    """Those of data.source, and those of data.validation or the split data.validation_split: with the same classes.

    Without these two a part of data.source is held out; blue_marble has tiles for it.

    Args:
        counts: a file that keeps what was read of all masks.

    Raises:
        UserError: they cannot be opened, or are too few.
    """
    options = _options(data, data.split)
    training = open_pairs(data.source, _classes(data), exclude=data.exclude, counts=counts, **options)
    if not has_images_to_evaluate(data):
        training, evaluated = training.split(data.heldout, HELDOUT_SEED)
        if not len(evaluated):
            raise UserError(
                f"data.source {data.source!r} has too few images to hold some out: name others with data.validation"
            )
    else:
        evaluated = to_evaluate(data, training.names)
    return training.some(data.images, data.subset_seed) if data.images else training, evaluated


def to_evaluate(data: MaskedDataConfig, names: tuple[str, ...]) -> Pairs:
    """All images of data.validation, or else of data.source; of the split data.validation_split where that is given.

    Args:
        names: of the classes.

    Raises:
        UserError: they cannot be opened.
    """
    spec, split = _evaluated(data)
    options = _options(data, split)
    if data.validation:
        options |= {"masks": data.validation_masks, "panoptic_folder": data.validation_panoptic_folder}
    known = None if spec == "blue_marble" else names
    classes = Classes(None, None if known is None else len(names), data.first_class, data.ignore_index, known)
    try:
        found = open_pairs(spec, classes, exclude=_excluded(data), **options)
    except UserError as error:
        if data.validation is None:
            raise
        raise type(error)(_as_validation(str(error))) from None
    if found.numbers.count != len(names):
        raise UserError(
            f"{spec} has {counted(found.numbers.count, 'class', 'classes')} of pixels and the model {len(names)}: they "
            "do not match"
        )
    return Pairs(found.source, found.indices, names, found.numbers)


def to_predict(data: MaskedDataConfig, names: tuple[str, ...]) -> Pairs:
    """The images of `to_evaluate`, without a look for masks. Raises `UserError`."""
    spec, split = _evaluated(data)
    classes = Classes(None, None, data.first_class, data.ignore_index)
    options = {key: value for key, value in _options(data, split).items() if key not in _OF_MASKS}
    return open_unlabelled(spec, names, classes, exclude=_excluded(data), **options)


def joint_transform(
    config: SegmentConfig, preprocessing: Preprocessing, size: tuple[int, int], pairs: Pairs
) -> JointTransform:
    """The augmentation that the settings describe, to crops of (H, W) pixels."""
    augment = config.augment
    return JointTransform(
        size,
        pairs.numbers.unlabelled,
        fill=tuple(255 * value for value in preprocessing.mean),
        resize=config.data.resize,
        scale=augment.scale,
        max_share=augment.max_share,
        flips=augment.flips,
        photometric=augment.photometric,
    )


def _excluded(data: MaskedDataConfig) -> str | None:
    """The list of what is left out of the images to evaluate on."""
    return None if has_images_to_evaluate(data) else data.exclude


def _evaluated(data: MaskedDataConfig) -> tuple[str, str]:
    """(source, split)"""
    spec, usual = data.validation or data.source, "train" if data.validation else data.split
    if spec == "blue_marble" and usual == "train":
        usual = "validation"  # tiles overlap: none of those to train on can be held out
    return spec, data.validation_split or usual


def _as_validation(text: str) -> str:
    for name in ("masks", "panoptic_folder"):
        text = text.replace(f"data.{name}", f"data.validation_{name}")
    return text.replace("data.source", "data.validation")


def _classes(data: MaskedDataConfig) -> Classes:
    return Classes(data.class_names, data.num_classes, data.first_class, data.ignore_index)


def _options(data: MaskedDataConfig, split: str) -> dict[str, Any]:
    return {
        "config": data.config,
        "split": split,
        "column": data.column,
        "masks": data.masks,
        "mask_column": data.mask_column,
        "panoptic_folder": data.panoptic_folder,
        "uncovered": data.uncovered,
        "bands": ChannelSpec(len(data.channels), data.channels, data.nodata, data.mask_channel, data.max_pixels)
        if data.channels
        else None,
        "stack": data.stack,
        "decoding": decode_options(data),
    }
