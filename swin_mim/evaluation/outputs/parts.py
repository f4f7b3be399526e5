"""A result that is computed in parts: each is a file, whole or not at all, and at the end they become one.

manifest.json   of which model, source and settings the parts are: others are refused
written.jsonl   files that belong to rows and lie elsewhere, also of a part that is not finished
000000.parquet  a row for each image of the first part, in the order of the source, and so on
"""

import csv
import glob
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from swin_mim.errors import UserError
from swin_mim.files import LockHeld, lock, replace_json, replacing, sha256, writing

MANIFEST, LOCK, JOURNAL = "manifest.json", "lock", "written.jsonl"
METADATA = b"swin_mim"
"""Key of the manifest in a finished parquet file."""

_GROUP = 16_384  # rows of a finished file that are in memory at a time

_KILLED = (".*.tmp",)  # what a process that was killed left
_NUMBER = "[0-9]" * 6
_PARTS = (f"{_NUMBER}.parquet", JOURNAL, MANIFEST)
_FINISHED = "images.parquet"  # of maps, which lie in the folder of their parts
_WRITTEN = (*_PARTS, f"{_NUMBER}.safetensors", f"embedding*_{_NUMBER}.npy", _FINISHED)

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The parts of a result in a folder.

    Args:
        images: of the source.
        size: images of a part; the last one may have fewer.
    """

    folder: Path
    images: int
    size: int

    def missing(self) -> list[int]:
        """Numbers of those that are not computed yet."""
        return [number for number in range(-(-self.images // self.size)) if not self.path(number).exists()]

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"

    def range(self, number: int) -> range:
        """Images of a part."""
        return range(number * self.size, min((number + 1) * self.size, self.images))

    def write(self, number: int, table: Any) -> None:
        """Write the `pyarrow.Table` of a part."""
        import pyarrow.parquet as pq

        with writing(self.folder), replacing(self.path(number), durable=True) as temporary:
            pq.write_table(table, temporary, compression="none", use_dictionary=False)

    def tables(self) -> Iterator[Any]:
        """Yield the rows of all parts in order, some thousands at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        held: list[Any] = []
        for number in range(-(-self.images // self.size)):
            held.append(pq.read_table(self.path(number), memory_map=True))
            if sum(len(table) for table in held) >= _GROUP:
                yield pa.concat_tables(held).combine_chunks()
                held = []
        if held:
            yield pa.concat_tables(held).combine_chunks()

    def errors(self) -> list[tuple[str, str]]:
        """(name, reason) of the images that could not be read."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        found = []
        for number in range(-(-self.images // self.size)):
            table = pq.read_table(self.path(number), columns=["image", "error"])
            broken = table.filter(pc.is_valid(table["error"]))
            found += list(zip(broken["image"].to_pylist(), broken["error"].to_pylist(), strict=True))
        return found

    def remove(self) -> None:
        """Remove the files of all parts, the manifest and the lock, and the folder if nothing else is in it."""
        _remove(self.folder, (*_PARTS, LOCK))
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def digest(model: nn.Module) -> str:
    """SHA-256 in hex of the weights."""
    return sha256(name.encode() + value.cpu().numpy().tobytes() for name, value in model.state_dict().items())


@contextmanager
def held(folder: Path, manifest: Manifest, *, discard: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep a folder of parts to one process, and to one model, source and settings.

    Args:
        discard: what earlier commands wrote there is removed first, and before that this is called, which may need it
            to remove what lies elsewhere; None: it stays.

    Raises:
        UserError: another process has it, or it holds parts of something else.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock_of_folder = lock(folder / LOCK)
        except LockHeld:
            raise UserError(
                f"{folder} is being written by another process: wait for it, or name another --out"
            ) from None
    try:
        there = begun_manifest(folder)
        if there is None and (discard is None or finished_manifest(folder / _FINISHED) is None):
            _check_empty(folder)
        if discard is not None:
            discard()
            _remove(folder, _WRITTEN)
        elif there is not None:
            check_same(there, manifest, f"{folder} holds parts")
        with writing(folder):
            replace_json(folder / MANIFEST, manifest)
        _remove(folder, _KILLED)
        yield
    finally:
        lock_of_folder.release()


def _remove(folder: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()


def _check_empty(folder: Path) -> None:
    if others := sorted(each.name for each in folder.iterdir() if each.name != LOCK and each.name[0] != "."):
        (folder / LOCK).unlink()
        raise UserError(f"{folder} holds something else, such as {others[0]}: name another --out")


def check_same(there: Manifest, manifest: Manifest, what: str) -> None:
    """Raise a `UserError` where a result is of another model or source or has other settings; `what` begins it."""
    for key, value in manifest.items():
        if there.get(key) != value:
            shown = "" if key in ("model", "source", "labels") else f" {there.get(key)!r} in place of {value!r}"
            shown += ", or its files or --exclude have changed" if key == "source" else ""
            raise UserError(f"{what} of another {key}{shown}: name another --out, or give --overwrite to begin anew")


def begun_manifest(folder: Path) -> Manifest | None:
    """What the parts in a folder are of; None: there are none, also where a file of another kind is called so."""
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= {"model", "source"} else None


def finished_manifest(path: Path) -> Manifest | None:
    """What a finished parquet file says of itself; None: nothing."""
    import pyarrow.parquet as pq

    if path.suffix.lower() != ".parquet":
        return None
    try:
        found = (pq.read_schema(path).metadata or {}).get(METADATA)
    except (OSError, ValueError):  # also what pyarrow raises of a file that is none
        return None
    return None if found is None else json.loads(found)


def join(
    parts: Parts,
    path: Path,
    manifest: Manifest,
    finish: Callable[[Any], Any],
    write: Callable[[Path, Callable[[], Iterator[Any]]], None] | None = None,
) -> None:
    """Make one file of all parts, .parquet or .csv, or what `write` makes of a function that reads their tables.

    Args:
        finish: `pyarrow.Table` of parts -> that of the file.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(path.parent, (f".{glob.escape(path.name)}.*.tmp",))  # of a process that was killed here
        with replacing(path, durable=True) as temporary:
            tables = (finish(table) for table in parts.tables())
            if write is not None:
                write(temporary, parts.tables)
            elif path.suffix.lower() == ".csv":
                _write_csv(temporary, tables)
            else:
                _write_parquet(temporary, tables, manifest)


def _write_parquet(path: Path, tables: Iterator[Any], manifest: Manifest) -> None:
    import pyarrow.parquet as pq

    writer = None
    try:
        for table in tables:
            if writer is None:
                schema = table.schema.with_metadata({METADATA: json.dumps(manifest)})
                writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["label"])
            writer.write_table(table.cast(schema))
    finally:
        if writer is not None:
            writer.close()


def _write_csv(path: Path, tables: Iterator[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for place, table in enumerate(tables):
            if not place:
                writer.writerow(table.column_names)
            writer.writerows(zip(*table.to_pydict().values(), strict=True))


def check_any_read(parts: Parts, source: str) -> list[tuple[str, str]]:
    """The images that could not be read, as `Parts.errors`.

    Raises:
        UserError: these are all; the parts are gone then.
    """
    errors = parts.errors()
    if len(errors) == parts.images:
        parts.remove()
        raise none_read(parts.images, source, errors[0])
    return errors


def none_read(images: int, source: str, first: tuple[str, str]) -> UserError:
    """What is said of a source of which no image could be read; `first`: name and reason."""
    name, reason = first
    if images == 1:
        return UserError(f"the image {name} cannot be read: {reason}")
    return UserError(f"none of the {images} images of {source!r} can be read, the first: {name}: {reason}")
