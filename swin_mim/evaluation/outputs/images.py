"""The images of any source that a training reads, and their labels if there are any, for a finished model."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swin_mim.data.labels import NoLabels, labels_of_folder, open_labelled
from swin_mim.data.sources.base import Kept, Source
from swin_mim.data.sources.exclude import without_excluded
from swin_mim.data.sources.folder import FolderSource
from swin_mim.data.sources.listed import is_table_file, tables_beside
from swin_mim.data.sources.multichannel import RasterSource
from swin_mim.data.sources.stacks import StackSource
from swin_mim.data.sources.tables import TableSource
from swin_mim.errors import UserError
from swin_mim.evaluation.unlabelled import is_image_file, open_image_file
from swin_mim.training.config.pretrain import DataConfig
from swin_mim.training.images import decode_options, named_channels, open_source_of

_STREAMED = (".tar", ".tar.gz", ".tgz", ".tar.zst")
_log = logging.getLogger(__name__)


def is_streamed(spec: str) -> bool:
    """Whether a source can only be read shard by shard: addresses, tar files, and patterns of parquet files."""
    pattern = spec.lower().endswith(".parquet") and any(sign in spec for sign in "*?[{") and not os.path.exists(spec)
    return "://" in spec or spec.lower().endswith(_STREAMED) or pattern


def open_images(data: DataConfig) -> Source:
    """Open a source, or one image file, in its own order.

    Raises:
        UserError: it cannot be opened, or has other channels than the settings say.
    """
    if data.source == "blue_marble":
        return without_excluded(open_labelled(data.source, **_where(data)).images, data.exclude)
    if not data.streaming and is_image_file(data.source):
        image = open_image_file(data.source, named_channels(data), decode_options(data))
        return without_excluded(image, data.exclude)
    try:
        return open_source_of(data, named_channels(data))
    except UserError as error:
        text = "pretraining reads tar files with --data.streaming, for everything else unpack them"
        raise UserError(str(error).replace(text, "add --streaming"), local=error.local, code=error.code) from None


def image_name(source: Source, index: int) -> str:
    """What the data set calls an image: its path relative to the source, or its place there."""
    return source.path(index) or source.name(index)


def labels_of(data: DataConfig, source: Source, column: str | None) -> Sequence[str | None] | None:
    """The label of every image that `open_images` gave; None: nothing says labels.

    Class folders say it, or a table in the folder, or the column of a table of images.

    Args:
        column: of the labels; None: the one that is evident.

    Raises:
        UserError: a column was asked for, and it cannot be read or there can be none.
    """
    try:
        return _labels(data, source, column)
    except UserError as error:
        if column is not None:
            raise
        if not isinstance(error, NoLabels):
            _log.warning("no labels: %s", error)
        return None


def _labels(data: DataConfig, source: Source, column: str | None) -> Sequence[str | None] | None:
    files = source.source if isinstance(source, RasterSource) else source
    if isinstance(files, Kept):
        found = _labels(data, files.whole, column)
        return None if found is None else [found[index] for index in files.kept]
    where, spec = _where(data) | {"label_column": column}, data.source
    if spec == "blue_marble":
        labelled = open_labelled(spec, **where)
        return [labelled.names[number] for number in labelled.targets]
    if not isinstance(files, FolderSource | StackSource | TableSource) or is_image_file(spec):
        if column is not None:
            raise UserError(f"label column {column!r}: labels of a single file or of streamed shards are not read")
        return None
    if not isinstance(files, TableSource) and not is_table_file(spec):
        if column is None and (classes := labels_of_folder(files)):
            return [classes.names[number] for number in classes.targets]
        if column is None and not tables_beside(Path(os.path.expanduser(spec)), data.split):
            return None
    labelled = open_labelled(spec, **where)
    names = [labelled.names[number] for number in labelled.targets]
    if isinstance(files, TableSource):
        return names
    known = {labelled.images.path(index): name for index, name in enumerate(names)}
    return [known.get(files.path(index)) for index in range(len(files))]


def _where(data: DataConfig) -> dict[str, Any]:
    return {
        "config": data.config,
        "split": data.split,
        "column": data.column,
        "bands": named_channels(data),
        "stack": data.stack,
        "decoding": decode_options(data),
    }
