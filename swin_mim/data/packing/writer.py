"""The files of a packing as they are written: whole or not at all, and through to the disk."""

import errno
import fcntl
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from swin_mim.data.sources.packed import IMAGE, Shard
from swin_mim.errors import CANNOT_WRITE, UserError

STAGING = ".shard.tmp"
"""Name of the shard that is being written."""

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
        self._writer.close()
        size, digest = self._file.finish()
        os.replace(self._path, folder / name)
        sync_folder((folder / name).parent)
        return Shard(name, self._rows, size, digest)

    def discard(self) -> None:
        with suppress(OSError):  # of a full disk, which was told already
            self._file.close()
        self._path.unlink(missing_ok=True)


class _HashingFile(io.RawIOBase):
    """A new file that hashes what is written to it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest, self._size = hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)
        return len(data)

    def finish(self) -> tuple[int, str]:
        """(size, sha256 in hex), after all of it is on the disk."""
        self._file.flush()
        sync(self._file.fileno())
        self.close()
        return self._size, self._digest.hexdigest()

    def close(self) -> None:
        self._file.close()
        super().close()


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all, through to the disk."""
    staging = path.with_name(path.name + ".tmp")
    with staging.open("w") as file:
        file.write(text)
        file.flush()
        sync(file.fileno())
    os.replace(staging, path)
    sync_folder(path.parent)


def sync(descriptor: int) -> None:
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A disk that does not take it: a `UserError`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        way_out = "make room, the same command goes on behind the whole shards" if full else "name another folder"
        message = f"cannot write {folder}: {error.strerror or error}: {way_out}"
        raise UserError(message, code=CANNOT_WRITE) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One packing at a time in a folder; the system lets go of it with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{folder} is being packed by another process: wait for it, or name another folder") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(descriptor)
