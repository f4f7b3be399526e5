"""The files of a packing as they are written: whole or not at all, and through to the disk."""

import hashlib
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from swin_mim.data.sources.packed import IMAGE, Shard
from swin_mim.errors import UserError
from swin_mim.files import replacing

STAGING = ".shard.tmp"
"""Name of the shard that is being written."""

_log = logging.getLogger(__name__)
_BATCH_ROWS, _BATCH_BYTES = 256, 2**24  # of a record batch: what is in memory before it is written


class ShardFile:
    """A shard that is being written, under a name that nothing reads."""

    def __init__(self, path: Path, schema: Any, columns: Any) -> None:
        import pyarrow as pa

        self._path, self._schema, self._columns = path, schema, columns
        self._file = _HashingFile(path)
        self._writer = pa.ipc.new_stream(self._file, schema)
        self._pending: list[tuple[int, bytes, str | None]] = []
        self._waiting = self._rows = self.content = 0

    def add(self, index: int, content: bytes, path: str | None) -> None:
        """Add the image of this index in the source. `self.content` counts the bytes of all."""
        self._pending.append((index, content, path))
        self._waiting += len(content)
        self.content += len(content)
        if len(self._pending) >= _BATCH_ROWS or self._waiting >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        indices, contents, paths = zip(*self._pending, strict=True)
        kind = self._schema.field(IMAGE).type
        cells = [
            pa.array(contents, kind.field("bytes").type),
            pa.array(paths, kind.field("path").type),
        ]
        arrays = {IMAGE: pa.StructArray.from_arrays(cells, fields=[kind.field("bytes"), kind.field("path")])}
        if self._columns is not None:
            others = self._columns[list(indices)]
            arrays |= {name: others.column(name).combine_chunks() for name in others.column_names}
        ordered = [arrays[name] for name in self._schema.names]
        self._writer.write_batch(pa.RecordBatch.from_arrays(ordered, schema=self._schema))
        self._rows += len(indices)
        self._pending, self._waiting = [], 0

    def close(self, folder: Path, name: str) -> Shard:
        """Write it through to the disk, then give it its name."""
        if self._pending:
            self._flush()
        with replacing(folder / name, temporary=self._path, durable=True):
            self._writer.close()
            self._file.close()
        return Shard(name, self._rows, self._file.size, self._file.digest.hexdigest())

    def discard(self) -> None:
        with suppress(OSError):  # of a full disk, which was told already
            self._file.close()
        self._path.unlink(missing_ok=True)


class _HashingFile(io.RawIOBase):
    """A new file that hashes what is written to it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.digest, self.size = hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder to one packing at a time; the system lets go of it with the process.

    The folder itself is locked, not a file in it: what is packed is published as it is.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            alone = lock_descriptor(descriptor, blocking=False)
        except OSError as error:
            _log.warning("%s cannot be locked (%s): nothing keeps two packings out of it", folder, error.strerror)
            alone = True
        if not alone:
            raise UserError(f"{folder} is being packed by another process: wait for it, or name another folder")
        yield
    finally:
        os.close(descriptor)


def check_apart(source: Path, folder: Path) -> None:
    """Raises `UserError` for a folder that is written inside the one that is read, or around it."""
    if not source.is_dir():
        return
    here, there = source.resolve(), folder.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"{folder} and the source {source} lie inside each other: name a folder outside of it")
