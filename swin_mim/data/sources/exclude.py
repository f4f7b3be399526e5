"""Images that a list leaves out: a text file of names, one a line, as `swin-mim embed` writes them."""

import logging
import os
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.listing import warn_once
from swin_mim.errors import UserError

_log = logging.getLogger(__name__)


def read_excluded(file: str) -> list[str]:
    """Read the names of a list, in its order, each once; empty lines mean nothing.

    Raises:
        UserError: it cannot be read, or names nothing.
    """
    path = Path(os.path.expanduser(file))
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"data.exclude {file!r} is no UTF-8 text: give a text file of names, one a line") from None
    except OSError as error:
        raise UserError(f"data.exclude {file!r} cannot be read: {error.strerror}") from None
    names = list(dict.fromkeys(line.removesuffix("\r") for line in text.split("\n")))
    if names := [name for name in names if name]:
        return names
    raise UserError(f"data.exclude {file!r} names no image: leave it out, or write names, one a line")


def kept_indices(source: Source, file: str) -> np.ndarray:
    """int64, ascending: the images of a source that a list does not name, by `Source.path` or `Source.name`.

    How many are left out is told in the log, and names that no image has.

    Raises:
        UserError: the list cannot be read, none of its names is in the source, or it leaves nothing.
    """
    names = read_excluded(file)
    found = source.find(names)
    missing = [name for name in names if name not in found]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        many = "is its name" if len(names) == 1 else f"{verb} {len(missing)} of its {counted(len(names), 'name')}"
        text = f"data.exclude {file!r}: not in the data {many}, the first {missing[0]!r}"
        if not found:
            shown = source.path(0) or source.name(0)
            raise UserError(f"{text}: write names as swin-mim embed does, such as {shown!r}")
        warn_once(text)
    left_out = np.unique(np.concatenate([np.asarray(indices, dtype=np.int64) for indices in found.values()]))
    if len(left_out) == len(source):
        raise UserError(f"data.exclude {file!r} names all of the {counted(len(source), 'image')}: nothing is left")
    _log.info("data.exclude %r leaves out %d of %s", file, len(left_out), counted(len(source), "image"))
    return np.delete(np.arange(len(source)), left_out)


class _Part(Protocol):
    """Some images, and what is known of each."""

    @property
    def images(self) -> Source: ...

    def take(self, indices: np.ndarray) -> Self: ...


T = TypeVar("T", bound=_Part)


def part_without_excluded(found: T, file: str | None) -> T:
    """What is known of the images that a list does not name; None: of all. Raises `UserError` as `kept_indices`."""
    return found if file is None else found.take(kept_indices(found.images, file))


def without_excluded(source: Source, file: str | None) -> Source:
    """The images of a source that a list does not name; None: all. Raises `UserError` as `kept_indices`."""
    return source if file is None else source.without(kept_indices(source, file))
