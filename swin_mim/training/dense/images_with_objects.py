"""The images with objects that a run's settings name: to train on, and to evaluate on."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.dense.box_columns import objects_of_table
from swin_mim.data.dense.box_transforms import DetectionTransform
from swin_mim.data.dense.boxes import (
    ImagesWithObjects,
    PicturesWithObjects,
    no_objects,
    some_images,
    split_images,
    with_classes,
)
from swin_mim.data.dense.coco import BoxRules, is_coco_file, open_coco
from swin_mim.data.dense.copy_paste import CopyPaste
from swin_mim.data.dense.islands import open_islands
from swin_mim.data.sources.exclude import part_without_excluded
from swin_mim.data.sources.open import as_rasters, kept_of, open_files, open_source
from swin_mim.data.sources.tables import Table
from swin_mim.errors import UserError
from swin_mim.training.config.common_checks import has_images_to_evaluate
from swin_mim.training.config.dense.detect import BoxedDataConfig, DetectConfig
from swin_mim.training.images import decode_options, named_channels
from swin_mim.training.labelled_images import HELDOUT_SEED
from swin_mim.weights.config_json import Preprocessing

_LOG = logging.getLogger(__name__)


class NoObjects(UserError):
    """Nothing says what is in the images."""


def to_train_and_evaluate(data: BoxedDataConfig) -> tuple[ImagesWithObjects, ImagesWithObjects]:
    """Those of data.source, and those of data.validation or the split data.validation_split: with the same classes.

    Without these two a part of data.source is held out; blue_marble has tiles for it. Images without any object are
    not trained on unless data.empty, and always evaluated.

    Raises:
        UserError: they cannot be opened, there is nothing in them, or the second ones have classes that the first ones
            lack.
    """
    training = _opened(data, data.source, data.split, data.image_folder, data.exclude)
    if not has_images_to_evaluate(data):
        training, evaluated = split_images(training, data.heldout, HELDOUT_SEED)
        if not len(evaluated):
            raise UserError(
                f"data.source {data.source!r} has too few images to hold some out: name others with data.validation"
            )
    else:
        evaluated = with_classes(to_evaluate(data), training.names)
    if data.images:
        training = some_images(training, data.images, data.subset_seed)
    return to_learn_from(training, data), evaluated


def to_evaluate(data: BoxedDataConfig) -> ImagesWithObjects:
    """All images of data.validation, or else of data.source; of the split data.validation_split where that is given.

    Raises:
        UserError: they cannot be opened.
    """
    usual = "train" if data.validation else data.split
    if (data.validation or data.source) == "blue_marble" and usual == "train":
        usual = "validation"  # tiles overlap: none of those to train on can be held out
    folder = data.validation_folder if data.validation else data.image_folder
    try:
        split, exclude = data.validation_split or usual, None if has_images_to_evaluate(data) else data.exclude
        return _opened(data, data.validation or data.source, split, folder, exclude)
    except UserError as error:
        if data.validation is None:
            raise
        text = str(error).replace("data.source", "data.validation")
        raise type(error)(text.replace("data.image_folder", "data.validation_folder")) from None


def without_objects(data: BoxedDataConfig, names: Sequence[str]) -> ImagesWithObjects:
    """The images of data.validation, or else of data.source, of which nobody knows what is in them.

    Raises:
        UserError: they cannot be opened.
    """
    exclude = None if has_images_to_evaluate(data) else data.exclude
    options: dict[str, Any] = {"bands": named_channels(data), "decoding": decode_options(data)}
    images = open_source(data.validation or data.source, **options, exclude=exclude)
    return ImagesWithObjects(images, tuple(names), tuple(no_objects() for _ in range(len(images))))


def detection_transform(
    config: DetectConfig,
    preprocessing: Preprocessing,
    size: tuple[int, int],
    pictures: PicturesWithObjects,
    *,
    masks: bool,
) -> DetectionTransform | CopyPaste:
    """The augmentation that the settings describe, for images that fit into (H, W).

    Args:
        pictures: the images to learn from, whose objects are pasted.
        masks: give shapes too.
    """
    augment = config.augment
    jitter = DetectionTransform(
        size,
        scale=augment.scale,
        flips=augment.flips,
        masks=masks,
        interpolation=preprocessing.interpolation,
        fill=tuple(round(255 * value) for value in preprocessing.mean) if preprocessing.scale == 255 else (),
    )
    return CopyPaste(jitter, pictures, augment.copy_paste) if augment.copy_paste else jitter


def _opened(data: BoxedDataConfig, spec: str, split: str, folder: str | None, exclude: str | None) -> ImagesWithObjects:
    rules, decoding = BoxRules(leave_out=data.bad_boxes == "leave_out"), decode_options(data)
    bands = named_channels(data)
    if spec == "blue_marble":
        return part_without_excluded(open_islands(split), exclude)
    if is_coco_file(spec):
        found = open_coco(spec, folder, rules=rules, decoding=decoding)
        found = part_without_excluded(found, exclude)
        return found if bands is None else replace(found, images=as_rasters(found.images, spec, None, bands))
    if folder is not None:
        raise UserError(
            f"data.image_folder {folder!r} goes with a JSON file of COCO's, and data.source {spec!r} is none"
        )
    path = Path(os.path.expanduser(spec))
    named = [file for file in sorted(path.glob("*.json")) if file.name not in ("state.json", "dataset_dict.json")]
    if named and not (path / "state.json").exists():
        raise NoObjects(f"data.source {spec!r} is a folder: name the JSON file of its objects, such as {named[0]}")
    opened = open_files(spec, config=data.config, split=split, column=data.column, bands=bands, decoding=decoding)
    if not isinstance(opened, Table):
        raise NoObjects(
            f"data.source {spec!r} is a folder of images, and nothing says what is in them: name a JSON file of COCO's"
        )
    found = objects_of_table(opened, data.objects_column, data.column)
    if bands is None:
        return part_without_excluded(found, exclude)
    kept = kept_of(opened, spec, data.column, exclude)
    found = found if kept is None else found.take(kept)
    return replace(found, images=as_rasters(opened, spec, data.column, bands, kept))


def to_learn_from(training: ImagesWithObjects, data: BoxedDataConfig) -> ImagesWithObjects:
    """Those that have an object, and with data.empty all.

    Raises:
        UserError: there is no object.
    """
    learned = np.array([bool((~each.crowd).any()) for each in training.objects], dtype=bool)
    if not learned.any():
        raise UserError(f"data.source {data.source!r} has no object to learn in its {counted(len(training), 'image')}")
    if data.empty or learned.all():
        return training
    _LOG.info("left out of training: %s without any object (--data.empty)", counted(int((~learned).sum()), "image"))
    return training.take(np.flatnonzero(learned))
