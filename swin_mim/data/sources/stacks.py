"""Images of which every channel is a file of its own, found by a pattern of their names."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from swin_mim.counts import counted
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.multichannel import listed
from swin_mim.data.decoding.raster import ChannelSpec, NamedFile
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.folder import FolderSource
from swin_mim.errors import UserError
from swin_mim.files import sha256

_FIELDS = ("{image}", "{channel}")
_SHOWN = 2  # names of files


class StackSource(Source):
    """Groups of files below a folder, sorted by what `{image}` is in their paths. Opened by `open_source`."""

    def __init__(self, folder: FolderSource, pattern: str, found: dict[str, dict[str, int]], names: Sequence[str]):
        """
        Args:
            folder: the files.
            found: for each image the indices of its files in `folder`, by channel.
            names: of the channels that every image has.
        """
        self._folder, self._pattern, self._found = folder, pattern, found
        self.paths = sorted(found)
        self.channels: tuple[str, ...] = tuple(names)
        self.fingerprint = sha256([f"{folder.fingerprint}\0{pattern}\0{self.channels}".encode()])

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        name = self.paths[index].encode(errors="surrogateescape").decode(errors="backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)

    def path(self, index: int) -> str | None:
        """What is `{image}` in the pattern, as text."""
        return self.name(index)

    def files(self, index: int) -> list[NamedFile]:
        """(channel, content) of each file of an image. Raises `BrokenImage` where one is missing."""
        image = self.paths[index]
        there = self._found[image]
        if missing := [channel for channel in self.channels if channel not in there]:
            file = self._pattern.replace("{image}", self.name(index)).replace("{channel}", missing[0])
            raise BrokenImage(f"its channel {missing[0]} is missing: there is no file {file}")
        return [(channel, self._folder.content(there[channel])) for channel in self.channels]

    def image(self, index: int) -> Any:
        raise NotImplementedError("the RasterSource around it knows which channels an image has")

    def inventory(self) -> Iterator[tuple[str, int]]:
        """Yield (name, size of all its files) of every image."""
        sizes = [size for _, size in self._folder.inventory()]
        for index, image in enumerate(self.paths):
            yield self.name(index), sum(sizes[file] for file in self._found[image].values())


def check_pattern(pattern: str) -> None:
    """Raises `UserError` for one that cannot name the files of images."""
    wrong = any(pattern.count(field) != 1 for field in _FIELDS) or pattern.startswith("/") or "}{" in pattern
    if wrong:
        raise UserError(
            f"data.stack {pattern!r} must be the path of a file below data.source with {{image}} and {{channel}} once "
            'each and a character between them, as "{image}_{channel}.tif" or "{image}/{channel}.tif"'
        )


def group(
    paths: Sequence[str], pattern: str, bands: ChannelSpec, spec: str
) -> tuple[dict[str, dict[str, int]], tuple[str, ...]]:
    """(for each image the indices of its files by channel, the channels that are read), of relative paths.

    Raises:
        UserError: no path is as the pattern says, or none has a channel of that name.
    """
    check_pattern(pattern)
    every = _matches(paths, pattern, "[^/]+")
    if not every:
        shown = ", ".join(paths[:_SHOWN])
        raise UserError(
            f"data.stack {pattern!r} matches none of the {counted(len(paths), 'image file')} in data.source {spec!r}, "
            f"such as {shown}: write the pattern of these"
        )
    present = sorted({channel for channels in every.values() for channel in channels})
    names = bands.channels or tuple(name for name in present if name != bands.mask)
    names += (bands.mask,) if bands.mask is not None and bands.mask not in names else ()
    # the names may tell where an image's ends, as B_02 does in a_B_02.tif
    found = _matches(paths, pattern, "|".join(map(re.escape, names)))
    in_use = {channel for channels in found.values() for channel in channels}
    if unknown := [name for name in names if name not in in_use]:
        raise UserError(
            f"data.source {spec!r} has no file of channel {unknown[0]!r} as data.stack {pattern!r} says: there are "
            f"{listed(present)}"
        )
    return found, names


def _matches(paths: Sequence[str], pattern: str, channel: str) -> dict[str, dict[str, int]]:
    """For each image the indices of its files by channel."""
    expression = re.escape(pattern).replace(re.escape("{image}"), "(?P<image>.+)")
    whole = re.compile(expression.replace(re.escape("{channel}"), f"(?P<channel>{channel})"), re.DOTALL)
    found: dict[str, dict[str, int]] = {}
    for index, path in enumerate(paths):
        if match := whole.fullmatch(path):
            found.setdefault(match["image"], {})[match["channel"]] = index
    return found
