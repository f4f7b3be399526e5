"""Shards on the local disk for as long as they are needed, never more than a given number of bytes.

A shard is brought by one process of this machine, checked against what was listed, rewritten to a `cache_file`, and
given its name at the end; the others wait. The least recently used ones go. All processes of a machine share
the folder, and any of them may be killed at any time.
"""

import errno
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple, Protocol

from swin_mim.counts import counted
from swin_mim.data.decoding.decode_limits import MAX_PIXELS
from swin_mim.data.streaming import storage
from swin_mim.data.streaming.cache_file import Damaged, read_image, table_bytes, write_images
from swin_mim.data.streaming.formats import Layout, explain, images_of
from swin_mim.data.streaming.storage import (
    DIGESTS,
    Interrupted,
    StoredFile,
    changed,
    check_unchanged,
    is_local,
    local_path,
    one_line,
    store_of,
    with_retries,
)
from swin_mim.data.streaming.tar_index import Unusable
from swin_mim.errors import CANNOT_WRITE, UNAVAILABLE, UserError
from swin_mim.files import LockHeld, lock, replacing, sha256
from swin_mim.redaction import public_url

BLOCK = 16 * 2**20
"""Bytes of one request."""
CONNECTIONS = 4
"""Requests at the same time, of one shard."""

_READY, _BROUGHT, _WRITTEN = ".images", ".part", ".new"
_LOCK, _COUNTING, _ROWS, _AWAY = "lock", "rows.lock", "rows.jsonl", "unreachable"
_OWN = re.compile(rf"[0-9a-f]{{40}}({_READY}|{_BROUGHT}|{_WRITTEN})".replace(".", r"\."))
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ROWS_OF_TARS = 2
"""Version of what counts as a row of a tar: 1 were samples, also without an image, and 2 are images."""
_log = logging.getLogger(__name__)


class CancelToken(Protocol):
    """Whether something is no longer wanted, as a `threading.Event`."""

    def is_set(self) -> bool: ...


class Shard(NamedTuple):
    """A file of images, one for each row."""

    file: StoredFile
    layout: Layout
    name: str
    """What messages call it: its path below the folder that all shards share."""
    rows: int = -1
    """-1: not yet known."""

    @property
    def key(self) -> str:
        """Name of its images in a cache: another one for any other content. A digest tells that, whatever the place."""
        return _key(self.file, self.layout)


@lru_cache(2**16)  # asked for with every image
def _key(file: StoredFile, layout: Layout) -> str:
    digest = file.version if file.version.startswith(DIGESTS) else ""
    place = public_url(file.url) if file.version else file.url  # a query may name another file
    parts = [digest or (place, file.version), file.size, layout.kind, layout.column]
    if layout.kind == ".tar":  # other rows than an earlier version may have counted under the same key
        parts += [_ROWS_OF_TARS, layout.rasters]
    return sha256([json.dumps(parts).encode()])[:40]


class Counted(NamedTuple):
    """What was found when a shard was counted."""

    rows: int
    left_out: Counter[str]
    """Suffixes of what a tar has besides images."""


class ShardCache:
    """A folder of at most `limit` bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.brought = 0
        """Shards that this process has brought."""
        self.left_out: dict[str, Counter[str]] = {}
        """Suffixes of what these had besides images, by the keys of the shards."""
        self._make_folder()

    def ensure(self, shard: Shard, *, unless: CancelToken | None = None, patience: float | None = None) -> int:
        """Bring a shard if it is not there, and count it as used now; its rows.

        Args:
            patience: seconds for which its store may be away; None: as `with_retries` has it, or none at all if another
                process has waited that long in vain just now.

        Raises:
            UserError: it cannot be brought, is not what was listed, or has other rows; or the disk does not take it.
            Interrupted: `unless` was set in the meantime.
        """
        path = self._path(shard)
        if shard.rows < 0 or not self._touch(path):
            with self._alone(unless=unless):
                if shard.rows >= 0 and self._touch(path):  # another process has brought it
                    return shard.rows
                return self._bring_or_tell(shard, path, unless, patience)
        return shard.rows

    def _bring_or_tell(self, shard: Shard, path: Path, unless: CancelToken | None, patience: float | None) -> int:
        """As `_bring`; that a store is away is told to the processes that wait for their turn."""
        away = self.folder / _AWAY
        if patience is None and away.exists() and time.time() - away.stat().st_mtime < storage.PATIENCE:
            patience = 0
        try:
            rows = self._bring(shard, path, unless, patience)
        except UserError as error:
            if error.code == UNAVAILABLE and patience != 0:
                away.touch()
            raise
        away.unlink(missing_ok=True)
        self.brought += 1
        return rows

    def read(self, shard: Shard, row: int, max_pixels: int = MAX_PIXELS) -> bytes:
        """The bytes of an image.

        Raises:
            BrokenImage: the row has none, or one that is too large.
            UserError: as `ensure`.
        """
        path = self._path(shard)
        for _ in range(3):
            try:
                return read_image(str(path), row, shard.rows, max_pixels)
            except FileNotFoundError:
                self.ensure(shard)
            except Damaged as error:
                _log.warning("%s: %s in the cache %s: bringing it again", shard.name, error, self.folder)
                path.unlink(missing_ok=True)
        raise UserError(
            f"{shard.name} cannot be kept in {self.folder}, from where it goes as soon as it is there: check the disk, "
            "or name another folder with data.cache",
            local=True,
        )

    @contextmanager
    def counting(self) -> Iterator[None]:
        """One process counts rows, while others may bring shards."""
        with self._alone(_COUNTING):
            yield

    def used(self) -> int:
        """Bytes in the folder."""
        return sum(size for _, size, _ in self._files())

    def known_rows(self) -> dict[str, Counted]:
        """What was counted before, by the keys of the shards."""
        path = self.folder / _ROWS
        known: dict[str, Counted] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(ValueError, KeyError, TypeError):  # a line that was cut off is counted again
                entry = json.loads(line)
                known[entry["key"]] = Counted(int(entry["rows"]), Counter(entry.get("left_out", {})))
        return known

    def remember_rows(self, counted: list[tuple[Shard, Counted]]) -> None:
        """Keep what was counted for the next start."""
        entries = [
            {"key": shard.key, "rows": found.rows, "name": shard.name}
            | ({"left_out": found.left_out} if found[1] else {})
            for shard, found in counted
        ]
        with self._alone(), self._writing(), (self.folder / _ROWS).open("a") as file:
            # behind a line that was cut off
            file.writelines(["\n", *(json.dumps(entry) + "\n" for entry in entries)])

    def _make_folder(self) -> None:
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)

    def _touch(self, path: Path) -> bool:
        """Count a shard as used now; whether it is there."""
        with self._writing():
            try:
                os.utime(path)
            except FileNotFoundError:
                return False
        return True

    def _path(self, shard: Shard) -> Path:
        return self.folder / (shard.key + _READY)

    def _bring(self, shard: Shard, path: Path, unless: CancelToken | None, patience: float | None) -> int:
        for leftover, *_ in self._files():
            if leftover.suffix != _READY:
                leftover.unlink(missing_ok=True)  # of a process that was killed: who writes one holds the lock
        brought = path.with_suffix(_BROUGHT)
        try:
            # under a name of its own, by which a leftover is known and counted
            with replacing(path, temporary=path.with_suffix(_WRITTEN)) as written:
                if is_local(shard.file.url):  # it need not be copied first
                    check_unchanged(shard.file)
                    rows = self._rewrite(shard, local_path(shard.file.url), written, unless)
                    check_unchanged(shard.file)
                else:
                    self._download(shard.file, brought, unless, patience)
                    rows = self._rewrite(shard, str(brought), written, unless)
                _check_rows(shard, rows)
        finally:
            brought.unlink(missing_ok=True)
        return rows

    def _download(self, file: StoredFile, path: Path, unless: CancelToken | None, patience: float | None) -> None:
        self._make_room(path, file.size)
        digest, expected = _digest(file)
        with self._writing(), path.open("wb") as target:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(target.fileno(), 0, file.size)  # a full disk is met now
            for block in _blocks(file, unless, patience):
                digest.update(block)
                target.write(block)
        if not expected:
            check_unchanged(file)
        elif digest.hexdigest() != expected:
            raise changed(file, f"{file.version.split(':')[0]}:{digest.hexdigest()}")

    def _rewrite(self, shard: Shard, source: str, target: Path, unless: CancelToken | None) -> int:
        self.left_out[shard.key] = left_out = Counter[str]()
        images = _images(shard, source, left_out)
        with self._writing():
            return write_images(target, self._with_room(target, shard.file.size, images, unless))

    def _with_room(self, path: Path, size: int, images: Iterator[bytes], unless: CancelToken | None) -> Iterator[bytes]:
        """The images, with room for them in a file: most often not more than the size of the shard they are from."""
        room, needed = 0, 0
        for number, image in enumerate(images, 1):
            if unless is not None and unless.is_set():
                raise Interrupted
            needed += len(image)
            if needed + table_bytes(number) > room:
                room = max(needed + table_bytes(number), size, room + size // 8)
                self._make_room(path, room)
            yield image

    def _make_room(self, new: Path, needed: int) -> None:
        """Remove the least recently used shards, until a file of `needed` bytes is within the limit."""
        files = [file for file in self._files() if file[0] != new]
        total = sum(size for _, size, _ in files) + needed
        for path, size, _ in sorted((each for each in files if each[0].suffix == _READY), key=lambda each: each[2]):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size
        if total > self.limit:
            raise UserError(
                f"data.cache_gb {self.limit / 1e9:g} does not hold a single shard, which has {needed / 1e9:.3g} GB "
                f"when it is unpacked: use {3 * total / 1e9:.2g} or more",
                local=True,
            )

    def _files(self) -> list[tuple[Path, int, int]]:
        """(path, bytes, time of the last use) of all shards in the folder, which may hold somebody's files too."""
        found = []
        for entry in os.scandir(self.folder):
            if not _OWN.fullmatch(entry.name):
                continue
            with suppress(FileNotFoundError):  # gone meanwhile
                status = entry.stat()
                found.append((Path(entry.path), status.st_size, status.st_mtime_ns))
        return found

    @contextmanager
    def _alone(self, name: str = _LOCK, unless: CancelToken | None = None) -> Iterator[None]:
        """One process, and one thread of it; the system lets go with the process. Raises `Interrupted`."""
        self._make_folder()  # it may have been removed meanwhile
        path = self.folder / name
        with self._writing():
            path.open("a").close()
        try:
            held = lock(path, cancelled=lambda: unless is not None and unless.is_set())
        except LockHeld:
            raise Interrupted from None
        except OSError as error:
            raise UserError(
                f"data.cache {self.folder} is on a file system without locks ({error.strerror}): name a folder "
                "of a local disk",
                local=True,
            ) from error
        try:
            yield
        finally:
            held.release()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A disk that does not take it: a `UserError`."""
        try:
            yield
        except OSError as error:
            full = error.errno in _FULL
            way_out = "lower data.cache_gb or make room" if full else "name another folder with data.cache"
            raise UserError(
                f"cannot write the cache of shards {self.folder}: {error.strerror or error}: {way_out}",
                local=True,
                code=CANNOT_WRITE,
            ) from error


def _images(shard: Shard, path: str, left_out: Counter[str]) -> Iterator[bytes]:
    """The images of a shard that lies here; whatever is wrong with it becomes a `UserError`."""
    head = b""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
            file.seek(0)
            yield from images_of(shard.layout, file, left_out)
    except Unusable as error:
        raise UserError(f"shard {shard.name}: {error}", local=True) from None
    except Exception as error:  # whatever pyarrow and tarfile raise
        if reason := explain(head):
            raise UserError(f"shard {shard.name} is no {shard.layout.kind} file: {reason}", local=True) from error
        raise UserError(
            f"shard {shard.name} is no whole {shard.layout.kind} file ({type(error).__name__}: {one_line(error)}): "
            "replace it where it comes from, and start a new run (run.name)",
            local=True,
        ) from error


def _check_rows(shard: Shard, rows: int) -> None:
    if shard.rows not in (-1, rows):
        raise UserError(
            f"shard {shard.name} has {counted(rows, 'row')}, and {shard.rows} were counted, or stand in the sizes.json "
            "beside it, where samples without an image are none: mend or remove that file, and start a new run "
            "(run.name)",
            local=True,
        )


def _digest(file: StoredFile) -> "tuple[hashlib._Hash, str]":
    """(digest to feed, what it must give), "" where the store tells no digest."""
    kind, _, value = file.version.partition(":")
    if kind == "git":
        return hashlib.sha1(b"blob %d\0" % file.size), value
    return hashlib.sha256(), value if kind == "sha256" else ""


def _blocks(file: StoredFile, unless: CancelToken | None, patience: float | None) -> Iterator[bytes]:
    """The content in order, some blocks of it on their way at the same time. Raises `Interrupted`."""
    store, over, ahead = store_of(file.url), threading.Event(), deque[Future[bytes]]()

    def block(start: int) -> bytes:
        end = min(start + BLOCK, file.size)
        return with_retries(lambda: store.read(file, start, end), public_url(file.url), over, patience)

    try:
        for start in range(0, file.size, BLOCK):
            ahead.append(_in_background(partial(block, start)))
            if len(ahead) == CONNECTIONS:
                yield _result(ahead.popleft(), unless)
        while ahead:
            yield _result(ahead.popleft(), unless)
    finally:
        over.set()


def _in_background(act: Callable[[], bytes]) -> Future[bytes]:
    """As of an executor, whose threads Python would wait for at its end: one may try again for minutes."""
    future: Future[bytes] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _result(block: Future[bytes], unless: CancelToken | None) -> bytes:
    while not wait([block], timeout=0.5).done:
        if unless is not None and unless.is_set():
            raise Interrupted
    return block.result()
