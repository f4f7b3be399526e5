"""Tables of file names and labels: CSV, TSV, JSON lines, parquet and arrow files, read into columns."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from swin_mim.errors import UserError

MAX_BYTES = 250_000_000
"""Max size of a table of names; several million rows."""
Columns = dict[str, list[Any]]
"""Values of each column, all of one length. What a CSV file leaves empty is None, everything else there a text."""

_DELIMITERS = (",", ";", "\t", "|")
_MAX_COLUMNS = 10_000
_MAX_VALUES = 2 * MAX_BYTES  # of parquet and arrow files, which may be compressed
_ROWS = 1024  # of them that are read at a time


def read_columns(path: Path) -> Columns:
    """Read a table of names, by its suffix. Texts are without spaces around them.

    Raises:
        UserError: it cannot be read, is too large, or is no table.
    """
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise UserError(f"the table {str(path)!r} does not exist or is no file")
        if size > MAX_BYTES:
            raise UserError(f"the table {str(path)!r} has {size:,} bytes, more than {MAX_BYTES:,}: {_WAY_OUT}")
        suffix = path.suffix.lower()
        if suffix in (".parquet", ".arrow"):
            columns = _arrow_columns(path)
        else:
            text = _text(path)
            columns = _json_lines(path, text) if suffix in (".jsonl", ".ndjson") else _csv(path, text)
    except UserError:
        raise
    except (OSError, ValueError, csv.Error, RecursionError) as error:  # also what pyarrow raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the table {str(path)!r} cannot be read: {reason}") from error
    if not columns or not next(iter(columns.values())):
        raise UserError(f"the table {str(path)!r} has no rows")
    return columns


_WAY_OUT = "make a data set of it with the datasets library (save_to_disk) and give that as data.source"


def holds_images(path: Path) -> bool:
    """Whether a parquet or arrow file has a column of bytes, or cannot be read, so that nobody knows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            schema = pq.read_schema(path)
        else:
            with pa.OSFile(str(path)) as file:
                schema = _reader(file).schema
    except (OSError, ValueError):  # pyarrow's errors are among these
        return True
    return any(_has_bytes(field.type) for field in schema)


def _has_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return any(field.name == "bytes" or _has_bytes(field.type) for field in fields)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _has_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _reader(file: Any) -> Any:
    """Of an arrow file or an arrow stream."""
    import pyarrow as pa

    magic = file.read(6)
    file.seek(0)
    return pa.ipc.open_file(file) if magic == b"ARROW1" else pa.ipc.open_stream(file)


def _arrow_columns(path: Path) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if holds_images(path):
        raise UserError(f"the table {str(path)!r} holds images itself, or is damaged: give its folder as data.source")
    columns: Columns = {}
    total = 0
    with pa.OSFile(str(path)) as file:
        for batch in _batches(pq.ParquetFile(file) if path.suffix.lower() == ".parquet" else _reader(file)):
            # a few bytes of a file may stand for any number of rows
            total += batch.nbytes
            if total > _MAX_VALUES:
                raise UserError(f"the table {str(path)!r} has values of more than {_MAX_VALUES:,} bytes: {_WAY_OUT}")
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                columns.setdefault(name, []).extend(map(_stripped, column.to_pylist()))
    return columns


def _batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "iter_batches"):
        yield from reader.iter_batches(batch_size=_ROWS)
    elif hasattr(reader, "num_record_batches"):
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        yield from reader


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _text(path: Path) -> str:
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise UserError(f"the table {str(path)!r} is no UTF-8 text: save it as CSV in UTF-8") from None


def _csv(path: Path, text: str) -> Columns:
    head = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
    bare = "".join(head.split('"')[::2])  # outside of quotes
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=bare.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    names = _names(path, next((row for row in rows if any(row)), []))
    columns: list[list[Any]] = [[] for _ in names]
    known: dict[str, str] = {}  # most cells repeat each other
    for row in rows:
        if len(row) != len(names):
            if not any(cell.strip() for cell in row):
                continue
            raise UserError(
                f"the table {str(path)!r} has {len(row)} cells in line {rows.line_num} and {len(names)} in its first "
                "line: put cells that hold a comma in quotes"
            )
        for column, cell in zip(columns, row, strict=True):
            value = cell.strip()
            column.append(known.setdefault(value, value) if value else None)
    return dict(zip(names, columns, strict=True))


def _names(path: Path, header: Sequence[str]) -> list[str]:
    """The columns' names; pandas leaves that of its index empty."""
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(header, 1)]
    twice = next((name for name in names if names.count(name) > 1), None) if len(names) <= _MAX_COLUMNS else ""
    if twice is not None:
        found = f"a column {twice!r} twice" if twice else f"{len(names):,} columns, more than {_MAX_COLUMNS:,}"
        raise UserError(f"the table {str(path)!r} has {found}: correct its first line")
    return names


def _json_lines(path: Path, text: str) -> Columns:
    columns: Columns = {}
    count = 0
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"the table {str(path)!r} has no JSON in line {number}: {error}") from None
        if not isinstance(row, dict) or len(row.keys() | columns.keys()) > _MAX_COLUMNS:
            raise UserError(
                f"the table {str(path)!r} has no object of at most {_MAX_COLUMNS:,} fields in line {number}"
            )
        for name in [name for name in row if name not in columns]:
            columns[name] = [None] * count
        for name, values in columns.items():
            values.append(_stripped(row.get(name)))
        count += 1
    return columns
