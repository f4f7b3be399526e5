"""Where the images of a tar are: samples as WebDataset names them, and what users' tars hold besides.

A name up to its first dot is the sample, what follows is the field. Members of a sample need not be side by side, as
only their image is read: hidden ones are not looked at, what belongs to no image is counted and left out.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from swin_mim.data.decoding.decode_limits import MAX_BYTES
from swin_mim.data.decoding.kinds import HEAD, IMAGE_SUFFIXES, KINDS, RASTER_SUFFIXES, kind_of

ALL = "*"
"""As a column: every image is a sample of its own."""

MAX_MEMBERS = 2 * 2**20
"""Members of a tar: about 400 bytes of memory each."""
MAX_HEADER = 2**20
"""Bytes of a long name, or of other data about a member: tarfile takes them into memory."""

_ENDED = 2**16
"""Bytes behind the mark of the end in which another archive would begin: the mark is filled up to 10240 most often."""
_RGB_KINDS, _RGB_SUFFIXES = {kind.name for kind in KINDS if kind.rgb}, frozenset(IMAGE_SUFFIXES)
_ABOUT = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class Unusable(Exception):
    """What is wrong with a shard, and the way out; does not name the shard."""


class TarImage(NamedTuple):
    """A member with an image."""

    place: int
    """Byte at which its header begins."""
    field: str
    offset: int
    """Byte at which its content begins."""
    size: int
    stored: tuple[tuple[int, int], ...] | None
    """(offset, size) of the parts of a member whose holes are not stored; None: all of it is."""


class TarIndex(NamedTuple):
    images: list[TarImage]
    """In the order of the tar."""
    left_out: Counter[str]
    """How many visible members belong to no image, by suffix."""


def index_tar(file: Any, column: str | None, *, rasters: bool = False) -> TarIndex:
    """Find the images of a tar: of each sample the only one.

    Args:
        file: seekable and binary, at its beginning.
        column: field of the image, or several with ; between them, or `ALL`. None: the field with a suffix of images
            that are read as RGB; of a sample without one, what begins as an image.
        rasters: images of any channels, arrays too.

    Raises:
        Unusable: a sample has several images; the tar is too large to be indexed, or goes on behind its end.
        tarfile.ReadError: it is not whole.
    """
    samples = _Samples(column, rasters)
    links: list[tuple[str, int, str]] = []
    for member in _members(file):
        path = _relative(member.name)
        if _is_hidden(path):
            continue
        if member.islnk():
            links.append((path, member.offset, _relative(member.linkname)))
        elif member.isfile():
            samples.add(path, _image(member, path))
    if links:
        targets = _located(file, {target for *_, target in links})
        for path, place, target in links:
            if target in targets:
                samples.add(path, _image(targets[target], path)._replace(place=place))
    return samples.index(file)


def read_member(file: Any, image: TarImage) -> bytes:
    """The content of a member, of one with holes no more than is too much for any image."""
    file.seek(image.offset)
    if image.stored is None:
        whole: bytes = file.read(image.size)
        return whole
    content = bytearray(min(image.size, MAX_BYTES + 1))
    for offset, size in image.stored:
        part = file.read(max(0, min(size, len(content) - offset)))
        if offset < 0 or len(part) < size:  # no map of this member, or too much for any image
            break
        content[offset : offset + size] = part
    return bytes(content)


class _Samples:
    """Images by their samples, and the members of samples without one as yet."""

    def __init__(self, column: str | None, rasters: bool) -> None:
        self._fields = column.lower().split(";") if column not in (None, ALL) else None
        self._all, self._rasters = column == ALL, rasters
        self._images: dict[str, TarImage] = {}
        self._others: dict[str, list[TarImage]] = {}

    def add(self, path: str, image: TarImage) -> None:
        key = path if self._all else path[: len(path) - len(image.field)].rstrip(".")
        if self._is_named(image.field):
            self._others.pop(key, None)
            self._take(key, image)
        elif key not in self._images:
            self._others.setdefault(key, []).append(image)

    def index(self, file: Any) -> TarIndex:
        """Look into what has no name of an image, where its sample has no other."""
        left_out: Counter[str] = Counter()
        for key, members in self._others.items():
            for member in members:
                if self._fields is None and self._begins_as_image(file, member):
                    self._take(key, member)
            if key not in self._images:
                left_out.update(_suffix(member.field) or "no suffix" for member in members)
        return TarIndex(sorted(self._images.values()), left_out)

    def _take(self, key: str, image: TarImage) -> None:
        before = self._images.get(key)
        if before is not None and before.field != image.field:
            raise Unusable(
                f"sample {key!r} has several images, {before.field}, {image.field}: set data.column to one of them, or "
                f"to {ALL!r} to take each"
            )
        # of two members of one name the later one is what the archive has, as for tar -x
        self._images[key] = image if before is None else image._replace(place=before.place)

    def _is_named(self, field: str) -> bool:
        return _suffix(field) in _RGB_SUFFIXES if self._fields is None else field.lower() in self._fields

    def _begins_as_image(self, file: Any, member: TarImage) -> bool:
        if self._rasters and _suffix(member.field) in RASTER_SUFFIXES:
            return True
        kind = kind_of(read_member(file, member._replace(size=min(HEAD, member.size))))
        return kind is not None and (self._rasters or kind in _RGB_KINDS)


class _Header(tarfile.TarInfo):
    """A header that says nothing by which reading the archive would take very much memory or no end."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _ABOUT and header.size > MAX_HEADER):
            raise tarfile.ReadError(f"a header of type {header.type!r} says {header.size} bytes")
        return header


def _members(file: Any) -> Iterator[tarfile.TarInfo]:
    """The members in order, also the hidden ones."""
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as archive:
        for number, member in enumerate(archive):
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            if archive.offset <= member.offset:
                raise tarfile.ReadError(f"byte {member.offset} begins a member that ends before it")
            if number == MAX_MEMBERS:
                raise Unusable(f"it has more than {MAX_MEMBERS} members: pack them into several tars")
            yield member
        _check_end(file, archive.offset)


def _check_end(file: Any, end: int) -> None:
    """A header that is none ends tarfile's reading without a word, and so does the end of what is left of the file."""
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"byte {end} begins neither a member nor the mark of the end")
    rest = file.read(_ENDED)
    for start in range(0, len(rest) - tarfile.BLOCKSIZE + 1, tarfile.BLOCKSIZE):
        block = rest[start : start + tarfile.BLOCKSIZE]
        if any(block):
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.TarError:
                return  # old programs leave anything there
            raise Unusable(
                "another tar begins behind its end, as after cat a.tar b.tar: unpack it (tar -xif TAR -C FOLDER), and "
                "pack it again (tar --sort=name -cf TAR -C FOLDER .)"
            )


def _located(file: Any, names: set[str]) -> dict[str, tarfile.TarInfo]:
    """The regular members of these names: what hard links lead to, hidden or not."""
    return {path: member for member in _members(file) if member.isfile() and (path := _relative(member.name)) in names}


def _image(member: tarfile.TarInfo, path: str) -> TarImage:
    field = path.rpartition("/")[2].partition(".")[2]
    sparse: Any = member.sparse  # pairs of numbers, or None
    parts = None if sparse is None else tuple((offset, size) for offset, size in sparse)
    return TarImage(member.offset, field, member.offset_data, member.size, parts)


def _relative(path: str) -> str:
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path


def _is_hidden(path: str) -> bool:
    """As in folders; and what macOS puts beside files, at any depth."""
    if "/." not in path and not path.startswith((".", "__MACOSX")) and "/__MACOSX" not in path:
        return False
    parts = path.split("/")
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in parts)


def _suffix(field: str) -> str:
    return f".{field.rpartition('.')[2].lower()}" if field else ""
