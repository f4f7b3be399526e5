"""Images without labels, for a classifier that only predicts."""

import os
from pathlib import Path

import numpy as np

from swin_mim.data.decoding.options import DecodeOptions
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.labels import Labelled
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.folder import FolderSource
from swin_mim.data.sources.open import as_rasters, open_source
from swin_mim.models.classifier import SwinClassifier
from swin_mim.training.config.common_checks import has_images_to_evaluate
from swin_mim.training.config.finetune import LabelledDataConfig
from swin_mim.training.images import decode_options, named_channels


def open_unlabelled(data: LabelledDataConfig, model: SwinClassifier) -> Labelled:
    """Images of a folder of any depth, of a table, or one image file, each with the model's first class.

    Classes that the model does not name are called by their numbers, from 0.

    Raises:
        UserError: they cannot be opened.
    """
    images = _source(data)
    names = names_of(model)
    if data.multi_label:
        return Labelled(images, names, np.zeros((len(images), len(names)), dtype=bool))
    return Labelled(images, names, np.zeros(len(images), dtype=np.int64))


def names_of(model: SwinClassifier) -> tuple[str, ...]:
    """Names of a classifier's classes; their numbers, from 0, where it does not name them."""
    return model.labels or tuple(map(str, range(model.get_parameter("head.fc.bias").numel())))


def is_image_file(spec: str) -> bool:
    """Whether a source is one file, which no folder and no table is."""
    path = Path(os.path.expanduser(spec))
    return path.is_file() and path.suffix.lower() not in (".csv", ".tsv", ".parquet", ".jsonl", ".json", ".arrow")


def _source(data: LabelledDataConfig) -> Source:
    spec, bands = data.validation or data.source, named_channels(data)
    if not is_image_file(spec):
        return open_source(
            spec,
            config=data.config,
            split=data.validation_split or ("train" if data.validation else data.split),
            column=data.column,
            bands=bands,
            stack=data.stack,
            decoding=decode_options(data),
            exclude=None if has_images_to_evaluate(data) else data.exclude,
        )
    return open_image_file(spec, bands, decode_options(data))


def open_image_file(spec: str, bands: ChannelSpec | None, decoding: DecodeOptions) -> Source:
    """Open one image file as a source.

    Raises:
        UserError: it has other channels than `bands` says.
    """
    path = Path(os.path.expanduser(spec))
    image = FolderSource(path.parent, [(path.name, path.stat().st_size)])
    image.decoding = decoding
    return image if bands is None else as_rasters(image, spec, None, bands)
