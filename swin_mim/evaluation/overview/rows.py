"""What an embedding found out of every image, read from its file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.sources.base import Source
from swin_mim.errors import UserError


@dataclass(frozen=True)
class FeatureRows:
    """The rows of a finished file of features."""

    names: list[str]
    labels: list[str | None] | None
    errors: dict[int, str]
    """Why images cannot be read, by row."""
    read: np.ndarray
    """int64 (n,), ascending: rows of the others."""
    features: np.ndarray
    """float32 (n, D) of these; of several stages side by side."""
    widths: tuple[int, ...]
    """D of each stage."""
    hashes: np.ndarray | None
    """uint64 (N, 2) of all rows, pixels and look; None: there are none in the file."""

    def __len__(self) -> int:
        return len(self.names)

    def row_of(self, name: str) -> int:
        """Row of the first image of this name.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        check_names([name], self.names)
        row = self.names.index(name)
        if row in self.errors:
            raise UserError(f"{name!r} cannot be read: {self.errors[row]}")
        return row

    def check_finite(self) -> None:
        """Raise a `UserError` that names the first row whose features are NaN or infinite."""
        finite = np.isfinite(self.features).all(axis=1)
        if not finite.all():
            row, others = int(self.read[finite.argmin()]), int((~finite).sum()) - 1
            more = f", and those of {counted(others, 'other image')}" if others else ""
            raise UserError(
                f"the features of {self.names[row]!r}, row {row},{more.removeprefix(',')} are not finite: compute them"
                " with --overwrite --precision fp32; if that does not help, its values or the weights are too large"
            )


def check_names(chosen: Sequence[str], names: Sequence[str]) -> None:
    """Raise a `UserError` where a chosen name is not among those of the images."""
    known = set(names)
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(f"no image is called {unknown[0]!r}: names are as {names[0]!r}")


def read_rows(path: Path) -> FeatureRows:
    """Read a finished file of features, group by group of its rows."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    columns = file.schema_arrow.names
    stages = [name for name in columns if name.startswith("embedding")]
    plain = file.read([name for name in ("image", "label", "error", "pixels", "look") if name in columns])
    read = np.flatnonzero(pc.is_null(plain["error"]).to_numpy())
    errors = {row: plain["error"][row].as_py() for row in np.setdiff1d(np.arange(len(plain)), read).tolist()}
    widths = tuple(file.schema_arrow.field(name).type.list_size for name in stages)
    features, start = np.empty((len(read), sum(widths)), np.float32), 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=stages)
        values = [_matrix(table[name].combine_chunks()) for name in stages]
        np.concatenate(values, axis=1, out=features[start : start + len(values[0])])
        start += len(values[0])
    hashes = None
    if "pixels" in columns:
        hashes = np.stack([plain[name].to_numpy() for name in ("pixels", "look")], axis=1)
    labels = plain["label"].to_pylist() if "label" in columns else None
    return FeatureRows(plain["image"].to_pylist(), labels, errors, read, features, widths, hashes)


def _matrix(column: Any) -> np.ndarray:
    """float32 (n, D) of a column of lists, without those that are null."""
    return column.drop_null().flatten().to_numpy().reshape(-1, column.type.list_size)


def listed_names(names: Sequence[str], source: Source) -> list[str]:
    """What a list for data.exclude calls each image: its name, or its place where several have it."""
    often = Counter(names)
    return [
        name if often[name] == 1 and "\n" not in name and "\r" not in name else source.name(row)
        for row, name in enumerate(names)
    ]
