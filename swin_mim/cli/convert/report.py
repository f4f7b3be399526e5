"""What a conversion did, as text and as JSON: every tensor of the source, and how far the outputs are apart."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.weights.dense_heads import is_dense_head

_IN_STAGE = re.compile(r"layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.")


@dataclass(frozen=True)
class Side:
    """One end of a conversion."""

    where: str
    format: str
    kind: str
    image_size: tuple[int, int]
    windows: tuple[tuple[int, int], ...]
    """One for each stage."""
    parameters: int
    num_classes: int
    channels: tuple[str, ...] | int
    target: str | None
    """What a SimMIM predicts: "pixels" or "normalized"."""
    size_is_guessed: bool = False
    """The image size is the smallest that the bias tables allow: the source does not say it."""


@dataclass(frozen=True)
class Row:
    """One tensor on its way."""

    source: tuple[str, ...]
    """Name in the source, or three of query, key and value."""
    ours: str
    target: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Left:
    """A tensor of the source that the target does not get."""

    name: str
    why: str


@dataclass(frozen=True)
class Comparison:
    """Outputs of two libraries on the same random images."""

    one: str
    other: str
    differences: dict[str, tuple[float, float]]
    """Output -> max absolute difference, max absolute value."""
    why_not: str = ""
    """Why there is none."""


@dataclass(frozen=True)
class Report:
    source: Side
    target: Side
    rows: tuple[Row, ...]
    left: tuple[Left, ...]
    added: tuple[str, ...]
    """Buffers in the target that the geometry decides."""
    changed: tuple[str, ...]
    comparisons: tuple[Comparison, ...]


def as_text(report: Report) -> str:
    """All keys by group, then the summary."""
    parts = [_keys(report), _left(report), _added(report), _summary(report)]
    return "\n\n".join(part for part in parts if part)


def write_json(report: Report, file: Path) -> None:
    """Everything, as asdict gives it."""
    try:
        with file.open("x") as out:
            out.write(json.dumps(asdict(report), indent=2) + "\n")
    except FileExistsError:
        raise UserError(f"--json {file} exists: name a new file") from None
    except OSError as error:
        raise UserError(f"--json {file} could not be written: {error.strerror}") from error


def place(name: str) -> tuple[int, int, int]:
    """Where one of our tensors stands on the way through the network, for sorting."""
    found = _IN_STAGE.match(name)
    if found:
        return 1, int(found[1]), -1 if found[2] is None else int(found[2])
    return (0 if name.startswith("patch_embed.") else 2), 0, 0


def group(name: str) -> str:
    """Part of the network that one of our tensors belongs to."""
    found = _IN_STAGE.match(name)
    if found:
        return f"stage {found[1]}, " + ("downsampling" if found[2] is None else f"block {found[2]}")
    parts = {"patch_embed": "patch embedding", "norm": "final norm", "head": "head", "mask_token": "mask token"}
    return "dense head" if is_dense_head(name) else parts.get(name.split(".")[0], "decoder")


# The text.


def _keys(report: Report) -> str:
    cells = [(_joined(row.source), row.ours, _joined(row.target), ", ".join(row.notes)) for row in report.rows]
    widths = [max((len(row[i]) for row in cells), default=0) for i in range(3)]
    lines = [f"keys: {report.source.format} -> ours -> {report.target.format}"]
    for part, rows in groupby(cells, key=lambda row: group(row[1])):
        lines.append(part)
        for source, ours, target, notes in rows:
            columns = f"  {source:<{widths[0]}} -> {ours:<{widths[1]}} -> {target:<{widths[2]}}"
            lines.append(f"{columns}  {notes}".rstrip())
    return "\n".join(lines)


def _left(report: Report) -> str:
    lines = []
    for why, names in groupby(report.left, key=lambda left: left.why):
        lines += [f"left, {why}", *(f"  {left.name}" for left in names)]
    return "\n".join(lines)


def _added(report: Report) -> str:
    return (
        "\n".join(["written besides, as the geometry decides it", *(f"  {name}" for name in report.added)])
        if report.added
        else ""
    )


def _summary(report: Report) -> str:
    lines = [*_side("source", report.source), *_side("target", report.target)]
    lines += _field("changed", report.changed or ["nothing"])
    lines += _field("keys", [", ".join(_counts(report))])
    lines += _field("outputs", [_compared(comparison) for comparison in report.comparisons] or ["not compared"])
    return "\n".join(lines)


def _field(name: str, lines: Sequence[str]) -> Iterator[str]:
    yield f"{name:<9}{lines[0]}"
    yield from (f"{'':<9}{line}" for line in lines[1:])


def _side(name: str, side: Side) -> Iterator[str]:
    yield from _field(name, [f"{side.where} ({side.format})", _described(side)])
    if side.size_is_guessed:
        by = _by(side.image_size)
        yield f"{'':<9}{by} px is the smallest that its bias tables allow: --source-image-size says another"


def _described(side: Side) -> str:
    windows = side.windows[:1] if len(set(side.windows)) == 1 else side.windows
    what = [side.kind, f"{_by(side.image_size)} px", "windows " + ", ".join(map(_by, windows))]
    if side.num_classes:
        what.append(counted(side.num_classes, "class", "classes"))
    channels = counted(side.channels, "channel") if isinstance(side.channels, int) else " ".join(side.channels)
    target = f", target {side.target}" if side.target else ""
    return f"{', '.join(what)}, {channels}{target}, {side.parameters:,} parameters"


def _counts(report: Report) -> Iterator[str]:
    yield f"{len(report.rows)} mapped"
    notes = [note for row in report.rows for note in row.notes]
    yield from (f"{notes.count(note)} {note}" for note in dict.fromkeys(notes))
    yield f"{len(report.left)} left"
    yield f"{len(report.added)} written besides"


def _compared(comparison: Comparison) -> str:
    pair = f"{comparison.one} and {comparison.other}"
    if comparison.why_not:
        return f"{pair}: not compared, {comparison.why_not}"
    each = (f"{name} differ by {apart:.1e} of {scale:.2g}" for name, (apart, scale) in comparison.differences.items())
    return f"{pair}: {', '.join(each)}"


def _joined(names: Sequence[str]) -> str:
    """`a.{query,key,value}.weight` for three names."""
    if len(names) == 1:
        return names[0]
    split = [name.split(".") for name in names]
    columns = [list(dict.fromkeys(column)) for column in zip(*split, strict=True)]
    return ".".join(column[0] if len(column) == 1 else "{" + ",".join(column) + "}" for column in columns)


def _by(pair: Sequence[int]) -> str:
    return f"{pair[0]}x{pair[1]}"
