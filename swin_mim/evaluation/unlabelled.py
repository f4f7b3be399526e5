"""Images without labels, for a classifier that only predicts."""

import os
from pathlib import Path

import numpy as np

from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.labels import Labelled
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.folder import FolderSource
from swin_mim.data.sources.open import as_rasters, open_source
from swin_mim.models.classifier import SwinClassifier
from swin_mim.training.config.finetune import LabelledDataConfig
from swin_mim.training.images import decode_options


def open_unlabelled(data: LabelledDataConfig, model: SwinClassifier) -> Labelled:
    """Images of a folder of any depth, of a table, or one image file, each with the model's first class.

    Classes that the model does not name are called by their numbers, from 0.

    Raises:
        UserError: they cannot be opened.
    """
    images = _source(data)
    names = model.labels or tuple(map(str, range(model.get_parameter("head.fc.bias").numel())))
    if data.multi_label:
        return Labelled(images, names, np.zeros((len(images), len(names)), dtype=bool))
    return Labelled(images, names, np.zeros(len(images), dtype=np.int64))


def is_image_file(spec: str) -> bool:
    """Whether a source is one file, which no folder and no table is."""
    path = Path(os.path.expanduser(spec))
    return path.is_file() and path.suffix.lower() not in (".csv", ".tsv", ".parquet", ".jsonl", ".json", ".arrow")


def _source(data: LabelledDataConfig) -> Source:
    spec, bands = data.validation or data.source, None
    if data.channels:
        bands = ChannelSpec(len(data.channels), data.channels, data.nodata, data.mask_channel, data.max_pixels)
    if not is_image_file(spec):
        return open_source(
            spec,
            config=data.config,
            split=data.validation_split or ("train" if data.validation else data.split),
            column=data.column,
            bands=bands,
            stack=data.stack,
            decoding=decode_options(data),
        )
    path = Path(os.path.expanduser(spec))
    image = FolderSource(path.parent, [(path.name, path.stat().st_size)])
    image.decoding = decode_options(data)
    return image if bands is None else as_rasters(image, spec, None, bands)
