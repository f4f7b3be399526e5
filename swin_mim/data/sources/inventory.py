"""What images a run began with, by name and size: a fingerprint tells that a data set changed, this tells how."""

import gzip
import zlib
from collections.abc import Collection
from itertools import islice
from pathlib import Path

from swin_mim.counts import counted
from swin_mim.data.sources.base import Source
from swin_mim.files import replacing

_SHOWN = 3
_FIRST_KINDS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".npy", ".npz")
_MORE_KINDS = "earlier versions did not read files of these suffixes, move them to another folder to go on"


def save_inventory(path: Path, source: Source) -> None:
    """Write a line for each image of the data set: its size in bytes and its name. Compressed; whole or not at all."""
    # neither a name nor a time inside: the same images, the same file
    with (
        replacing(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file,
    ):
        file.writelines(f"{size} {name}\n".encode() for name, size in source.inventory())


def explain_change(path: Path, source: Source) -> str:
    """How a source differs from what `save_inventory` wrote, as the end of a sentence.

    Raises:
        OSError: there is no such file, or it is damaged.
    """
    before, what = _load(path), source.unit.removesuffix("s")
    now = dict(source.inventory())
    parts = [
        _some("new", [name for name in now if name not in before]),
        _some("gone", [name for name in before if name not in now]),
        _some("of another size", [name for name, size in now.items() if before.get(name, size) != size]),
    ]
    if not any(parts):
        counts = counted(len(now), what)
        return f"its {counts} have the names and sizes they had: others of them are held out, or others chosen"
    change = f"of {counted(len(before), what)} then and {len(now)} now, {', '.join(filter(None, parts))}"
    more = not any(parts[1:]) and _has_first_kinds(before) and not _has_first_kinds(now.keys() - before.keys())
    return f"{change}: {_MORE_KINDS}" if more else change


def _has_first_kinds(names: Collection[str]) -> bool:
    return any(name.lower().endswith(_FIRST_KINDS) for name in names)


def _load(path: Path) -> dict[str, int]:
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            entries = (line.rstrip("\n").split(" ", 1) for line in file)
            listed = {name: int(size) for size, name in entries}
    except (EOFError, ValueError, zlib.error) as error:
        raise OSError(f"{path} is damaged: {error}") from error
    if not listed:
        raise OSError(f"{path} is damaged: it names no image")
    return listed


def _some(what: str, names: Collection[str]) -> str:
    shown = [*islice(names, _SHOWN), *(["..."] if len(names) > _SHOWN else [])]
    return f"{len(names)} {'is' if len(names) == 1 else 'are'} {what} ({', '.join(shown)})" if names else ""
