"""What a shard holds: the images of a parquet file or of a tar in the order of WebDataset, as bytes."""

import io
import os
import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from swin_mim.data.decoding.kinds import IMAGE_SUFFIXES
from swin_mim.errors import UserError

KINDS = (".parquet", ".tar")
"""Suffixes of shards."""

_BATCH = 32  # rows of a parquet file in memory
_MEMBER = re.compile(r"((?:.*/|)[^./][^.]*)\.([^/]*)")  # as WebDataset parts a name: sample, and field
_BUFFER = 2**20


def kind_of(name: str) -> str:
    """ ".parquet" or ".tar"; "" if it is no shard."""
    suffix = os.path.splitext(name.lower())[1]
    return suffix if suffix in KINDS else ""


def count_rows(kind: str, file: io.RawIOBase) -> int:
    """How many samples a shard has: from the footer of a parquet file, from the headers of a tar."""
    if kind == ".parquet":
        return int(_parquet(file).metadata.num_rows)
    buffered = io.BufferedReader(file, 4096)  # what is between two headers is skipped
    return sum(1 for _ in _samples(buffered))


def images_of(kind: str, file: BinaryIO, column: str | None) -> Iterator[bytes]:
    """The bytes of the image of every sample, in order; b"" if it has none.

    Raises:
        UserError: there is no such column, or not one image; does not name the shard.
    """
    return _of_parquet(file, column or "") if kind == ".parquet" else _of_tar(file, column)


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
        raise UserError(f"it has no column {column!r}")
    kind = opened.schema_arrow.field(column).type
    inside = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not _is_bytes(kind.field("bytes").type if inside else kind):
        raise UserError(f"its column {column!r} holds no bytes, but {kind}")
    for batch in opened.iter_batches(_BATCH, columns=[column], use_threads=False):
        cells = batch.column(0)
        for cell in cells.field("bytes") if inside else cells:
            yield cell.as_py() or b""


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _of_tar(file: BinaryIO, column: str | None) -> Iterator[bytes]:
    for key, fields, archive in _samples(file):
        chosen = [name for name in fields if _is_image(name, column)]
        if len(chosen) > 1:
            raise UserError(f"sample {key!r} has several images, {', '.join(chosen)}: set data.column to one of them")
        member = archive.extractfile(fields[chosen[0]]) if chosen else None
        yield member.read() if member else b""


def _is_image(field: str, column: str | None) -> bool:
    return field == column if column else f".{field.rsplit('.', 1)[-1].lower()}" in IMAGE_SUFFIXES


def _samples(file: Any) -> Iterator[tuple[str, dict[str, tarfile.TarInfo], tarfile.TarFile]]:
    """(name, members by field, the archive) of each run of members with one name."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        key, fields = "", dict[str, tarfile.TarInfo]()
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            parts = _MEMBER.fullmatch(member.name)
            if not parts or not member.isfile():
                continue
            if fields and parts[1] != key:
                yield key, fields, archive
                fields = {}
            key = parts[1]
            fields[parts[2]] = member
        if fields:
            yield key, fields, archive
        # a header that is none ends the reading without a word, and so does the end of what is left of the file
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"byte {archive.offset} begins neither a member nor the mark of the end")
