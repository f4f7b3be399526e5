"""Tables of the `datasets` library, and their column of images."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swin_mim.data.decoding.decode_limits import BrokenImage, check_length
from swin_mim.data.decoding.options import USUAL, DecodeOptions
from swin_mim.data.sources.base import FileSource
from swin_mim.data.sources.folder import read_below
from swin_mim.data.timing import reading
from swin_mim.errors import UserError
from swin_mim.files import sha256

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "tif", "tiff")
"""Names that mark the image column of a table where its type does not."""
_ROWS = 1024  # whose paths are in memory at a time


class Table:
    """Rows of the `datasets` library. Opened by `open_files`."""

    def __init__(self, name: str, dataset: Any, roots: Sequence[Path], decoding: DecodeOptions = USUAL) -> None:
        """`name` is for messages; `roots` are the folders in which the rows may name files."""
        self.name, self.dataset, self._roots, self._decoding = name, dataset, roots, decoding
        self._opened = dict[str, TableSource]()  # by column: a fingerprint reads all paths and sizes

    def images(self, column: str | None) -> "TableSource":
        """Its column of images: the given one, or the only one.

        Raises:
            UserError: there is no such column, or none that is evident.
        """
        import datasets

        column = image_column(self.name, self.dataset.features, column)
        if column in self._opened:
            return self._opened[column]
        rows = self.dataset.with_format(None).select_columns([column])
        try:
            undecoded = rows.cast_column(column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:  # also what pyarrow raises
            raise UserError(
                f"data.column {column!r} of data.source {self.name!r} holds no bytes of images ({error}): its columns "
                f"are {columns_text(self.dataset.features)}"
            ) from error
        images = TableSource(undecoded, column, self._roots)
        images.decoding = self._decoding
        self._opened[column] = images
        return images


class TableSource(FileSource):
    """A column of images in a `datasets.Dataset`. Opened by `open_source`.

    A row holds the bytes of a file, or the path of one, which is opened only below one of `roots`: a table from a
    stranger may name any file of this machine, or an address in its network.
    """

    def __init__(self, dataset: Any, column: str, roots: Sequence[Path]) -> None:
        """`dataset` has the undecoded image column, of type struct<bytes, path>."""
        self._dataset, self.column, self._roots = dataset, column, roots
        self.fingerprint = sha256(self._contents())

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        return f"row {index}"

    def content(self, index: int) -> bytes:
        with reading():
            content, path = self._cell(index)
            if content is not None:
                check_length(len(content), self.decoding.max_pixels)
                return content
            if path is None:
                raise BrokenImage("the cell is empty")
            return read_below(self._roots, path, self.decoding.max_pixels)

    def _cell(self, index: int) -> tuple[bytes | None, str | None]:
        cell = self._dataset[int(index)][self.column] or {}
        return cell.get("bytes"), cell.get("path")

    def path(self, index: int) -> str | None:
        """What the row calls the image: a relative path, or the name of a file; None: nothing."""
        return _shown(self._cell(index)[1])

    def each_path(self) -> Iterator[str | None]:
        import pyarrow.compute as pc

        # the paths alone: their cells have the bytes of all images beside them
        for rows in self._dataset.with_format("arrow").iter(batch_size=_ROWS):
            yield from map(_shown, pc.struct_field(rows[self.column], "path").to_pylist())

    def inventory(self) -> Iterator[tuple[str, int]]:
        sizes = (int(size) for lengths in self._lengths() for size in lengths)
        return ((self.name(index), size) for index, size in enumerate(sizes))

    def _lengths(self) -> Iterator[np.ndarray]:
        """int64: of the bytes in the cells of each chunk of the table."""
        import pyarrow.compute as pc

        for chunk in self._dataset.data.column(self.column).chunks:
            lengths = pc.fill_null(pc.binary_length(pc.struct_field(chunk, "bytes")), 0)
            yield lengths.to_numpy(zero_copy_only=False).astype("<i8")

    def _contents(self) -> Iterable[bytes]:
        """The length of every image and the content of 64: enough to notice a change without reading all."""
        yield from (lengths.tobytes() for lengths in self._lengths())
        for index in np.linspace(0, len(self) - 1, min(64, len(self))).astype(int):
            content, path = self._cell(index)
            # paths lead into a cache, which lies elsewhere on another machine
            yield content if content is not None else os.path.basename(path or "").encode()


def _shown(path: str | None) -> str | None:
    # whole paths lead into folders of this machine, which concern nobody
    return os.path.basename(path) if path and (os.path.isabs(path) or "://" in path) else path


def image_column(spec: str, features: Mapping[str, Any], column: str | None) -> str:
    """The column that holds images: the given one, else the only one by type, else the only one by name."""
    import datasets

    columns = f"its columns are {columns_text(features)}"
    if any(_can_hold_images(getattr(kind, "feature", None)) for kind in features.values()):
        columns += ": lists of images are not read, give each image a row of its own"
    if column is not None:
        if column not in features:
            raise UserError(f"data.column {column!r} is not in data.source {spec!r}: {columns}")
        if not _can_hold_images(features[column]):
            raise UserError(f"data.column {column!r} of data.source {spec!r} holds no images: {columns}")
        return column
    typed = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    named = [name for name in typed or features if name.lower() in IMAGE_COLUMNS]
    for choice in (typed, [name for name in named if _can_hold_images(features[name])]):
        if len(choice) == 1:
            return choice[0]
    raise UserError(f"data.source {spec!r} has no evident image column: set data.column, {columns}")


def columns_text(features: Mapping[str, Any]) -> str:
    """ "image (Image), label (ClassLabel)"."""
    return ", ".join(f"{name} ({_type(kind)})" for name, kind in features.items())


def _can_hold_images(kind: Any) -> bool:
    import datasets

    if isinstance(kind, datasets.Value):
        return kind.dtype in ("binary", "large_binary", "string", "large_string")
    return isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "bytes" in kind)


def _type(kind: Any) -> str:
    return kind.dtype if hasattr(kind, "_type") and kind._type == "Value" else type(kind).__name__
