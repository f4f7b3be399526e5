"""What a shard holds: the images of a parquet file or of a tar, as bytes."""

import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from swin_mim.data.streaming.tar_index import Unusable, index_tar, read_member

KINDS = (".parquet", ".tar")
"""Suffixes of shards."""

_PIECE = re.compile(
    r"(\.(?:tar|tgz|tar\.\w+)\.(?:part|split)[-_.]?)(?:\d+|[a-z]{2,4})$|(\.(?:tar|tgz|tar\.\w+)\.)(?:\d{2,}|a[a-z])$"
)
"""A name of one of the pieces that `split` makes."""
_BATCH = 32  # rows of a parquet file in memory
_BUFFER = 2**20


class Layout(NamedTuple):
    """Where a shard has its images."""

    kind: str
    """Its suffix: .parquet or .tar."""
    column: str | None
    """Column of a parquet file; of a tar as `index_tar` takes it."""
    rasters: bool = False
    """Whether images are of any channels."""


class Compression(NamedTuple):
    """A way in which tars are compressed, so that no image of them can be read without all before it."""

    suffixes: tuple[str, ...]
    begins: bytes
    command: str
    """What unpacks a file."""


COMPRESSIONS = (
    Compression((".tar.gz", ".tgz"), b"\x1f\x8b", "gunzip"),
    Compression((".tar.zst", ".tzst"), b"\x28\xb5\x2f\xfd", "zstd -d"),
    Compression((".tar.xz", ".txz"), b"\xfd7zXZ\0", "unxz"),
    Compression((".tar.bz2", ".tbz2", ".tbz"), b"BZh", "bunzip2"),
    Compression((".tar.lz4",), b"\x04\x22\x4d\x18", "unlz4"),
)


def kind_of(name: str) -> str:
    """ ".parquet" or ".tar"; "" if it is no shard."""
    suffix = os.path.splitext(name.lower())[1]
    return suffix if suffix in KINDS else ""


def suffix_of(name: str) -> str:
    """The suffix of a file, that of a compressed tar whole, of a piece of an archive with * at its end; "no suffix"."""
    if piece := _PIECE.search(name.lower()):
        return f"{piece[1] or piece[2]}*"
    packed = (suffix for each in COMPRESSIONS for suffix in each.suffixes if name.lower().endswith(suffix))
    return next(packed, os.path.splitext(name.lower())[1]) or "no suffix"


def count_rows(layout: Layout, file: BinaryIO | io.RawIOBase, left_out: Counter[str]) -> int:
    """How many images a shard has: from the footer of a parquet file, from the headers of a tar.

    Args:
        left_out: is told the suffixes of what a tar has besides.

    Raises:
        Unusable: it cannot be read by its samples.
    """
    if layout.kind == ".parquet":
        return int(_parquet(file).metadata.num_rows)
    index = index_tar(file, layout.column, rasters=layout.rasters)
    left_out.update(index.left_out)
    return len(index.images)


def images_of(layout: Layout, file: BinaryIO, left_out: Counter[str]) -> Iterator[bytes]:
    """The bytes of every image, in order; b"" of a row of a parquet file that has none. Otherwise as `count_rows`."""
    if layout.kind == ".parquet":
        yield from _of_parquet(file, layout.column or "")
        return
    index = index_tar(file, layout.column, rasters=layout.rasters)
    left_out.update(index.left_out)
    for image in index.images:
        yield read_member(file, image)


def explain(head: bytes) -> str | None:
    """What a file is that begins so and is no shard, and the way out; None: nobody knows."""
    for each in COMPRESSIONS:
        if head.startswith(each.begins):
            return f"it is compressed: unpack it, as {each.command} does"
    if head.startswith(b"PK\3\4"):
        return "it is a zip file: unpack it to a folder, and give that as data.source without data.streaming"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS in the place of the file: bring it by git lfs pull"
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "it is a page of a web server in the place of the file: bring it again"
    return None


def features_of(file: io.RawIOBase) -> Any:
    """The columns of a parquet file, as `datasets.Features`."""
    import datasets

    return datasets.Features.from_arrow_schema(_parquet(file).schema_arrow)


def _parquet(file: Any) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file)


def _of_parquet(file: BinaryIO, column: str) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # not the whole of a row group, which may be gigabytes
    opened = pq.ParquetFile(file, buffer_size=_BUFFER)
    if column not in opened.schema_arrow.names:
        raise Unusable(f"it has no column {column!r}")
    kind = opened.schema_arrow.field(column).type
    inside = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not _is_bytes(kind.field("bytes").type if inside else kind):
        raise Unusable(f"its column {column!r} holds no bytes of images, but {kind}: store these, one image a row")
    found = False
    for batch in opened.iter_batches(_BATCH, columns=[column], use_threads=False):
        cells = batch.column(0)
        for cell in cells.field("bytes") if inside else cells:
            content = cell.as_py() or b""
            found = found or bool(content)
            yield content
    if not found:
        raise Unusable(
            f"its column {column!r} has the bytes of no image, at most names of files: embed these, as push_to_hub of "
            "the datasets library does, or give their folder as data.source, not streamed"
        )


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    # of nulls only: what says so reads them
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)
