"""Files that lie elsewhere: which there are, and their bytes by range. Folders, http(s), and what fsspec opens.

Whatever is read is checked against what was listed, so that two versions of a file are never mixed.
"""

import http.client
import io
import logging
import os
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product
from typing import Any, NamedTuple, Protocol, TypeVar

from swin_mim.errors import UNAVAILABLE, UserError
from swin_mim.files import sha256
from swin_mim.redaction import public_url

PATIENCE = 240.0
"""Seconds for which what may pass is tried again: less than data workers may take for a batch."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
"""Seconds between two tries: twice as long each time."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as lost."""
THREADS = 16
"""Files that are asked about at the same time."""

DIGESTS = ("sha256:", "git:")
"""Kinds of versions that are digests, against which what was brought is checked."""

_TRANSIENT = {"TransportError", "HTTPClientError", "ClientConnectionError", "ClientPayloadError", "ServerTimeoutError"}
"""Names of what httpx, botocore and aiohttp raise for a connection, and which is no OSError."""
_PART = 2**14  # bytes
_BRACES = re.compile(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}")
_log = logging.getLogger(__name__)
_S = TypeVar("_S")
_T = TypeVar("_T")


class Interrupted(Exception):
    """What is read is no longer wanted."""


class StoredFile(NamedTuple):
    """A file as it was when it was listed."""

    url: str
    size: int
    version: str
    """What changes with its content, as "kind:value"; "" if the store tells nothing."""
    sample: str = ""
    """sha256 in hex of some of its bytes, where the version is no matter of the content alone: see `sampled`."""

    @property
    def content(self) -> str:
        """The version, where it is one of the content and not of the copy that lies here: no time, no weak ETag."""
        return self.version if self.version.startswith((*DIGESTS, "etag:", 'tag:"')) else self.sample


class Store(Protocol):
    """Where files lie."""

    def find(self, pattern: str) -> list[StoredFile]:
        """The files that a pattern names. Raises what `with_retries` knows."""

    def describe(self, url: str) -> StoredFile:
        """A file as it is now. Raises what `with_retries` knows."""

    def read(self, file: StoredFile, start: int, end: int) -> bytes:
        """Its bytes from start to end, both inside it. Raises a `UserError` if it has changed."""


def store_of(url: str) -> Store:
    """Where a URL or a path leads."""
    protocol = url.split("://")[0] if "://" in url else "file"
    if protocol == "file":
        return LocalStore()
    return HttpStore() if protocol in ("http", "https") else _fsspec_store(protocol)


def find_files(pattern: str) -> list[StoredFile]:
    """What a pattern names: ranges {000..127} and choices {a,b}, and * ? [ ] where the store can list.

    Raises:
        UserError: there is nothing, or it cannot be listed.
    """
    store = store_of(pattern)
    # what is asked for by itself is one request each
    found = in_threads(
        lambda each, over: with_retries(lambda: store.find(each), public_url(each), over), expand(pattern)
    )
    return [file for files in found for file in files]


def sampled(file: StoredFile, over: threading.Event) -> StoredFile:
    """The file with a digest of three of its parts, unless its version tells its content: enough to notice a change."""
    if file.content or not file.size:
        return file
    store = store_of(file.url)

    def part(start: int) -> bytes:
        end = min(start + _PART, file.size)
        return with_retries(lambda: store.read(file, start, end), public_url(file.url), over)

    starts = sorted({0, max(0, file.size // 2 - _PART // 2), max(0, file.size - _PART)})
    return file._replace(sample=sha256(map(part, starts)))


def in_threads(act: Callable[[_S, threading.Event], _T], items: Iterable[_S]) -> list[_T]:
    """`act(item, over)` of each, some at the same time. The first that fails ends the others, by setting `over`."""
    pool, over = ThreadPoolExecutor(THREADS), threading.Event()
    try:
        return list(pool.map(lambda item: act(item, over), items))
    finally:
        over.set()
        pool.shutdown(cancel_futures=True)


def expand(pattern: str) -> Iterator[str]:
    """ "train-{00..11}.tar" -> "train-00.tar", ..., as a shell does it."""
    parts = _BRACES.split(pattern)
    yield from map("".join, product(*(_choices(part) if number % 2 else [part] for number, part in enumerate(parts))))


def _choices(braces: str) -> list[str]:
    if ".." not in braces:
        return braces.split(",")
    first, last = braces.split("..")
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


class LocalStore:
    """Files of this machine, by path."""

    def find(self, pattern: str) -> list[StoredFile]:
        import glob

        pattern = local_path(pattern)
        paths = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
        return [self.describe(path) for path in paths]

    def describe(self, url: str) -> StoredFile:
        return _described(url, os.stat(local_path(url)))

    def read(self, file: StoredFile, start: int, end: int) -> bytes:
        with open(local_path(file.url), "rb") as stream:
            check_same(file, _described(file.url, os.fstat(stream.fileno())))
            return _whole(os.pread(stream.fileno(), end - start, start), end - start)


def local_path(url: str) -> str:
    """The path of a file of this machine."""
    return os.path.expanduser(url.removeprefix("file://"))


def _described(url: str, status: os.stat_result) -> StoredFile:
    return StoredFile(url, status.st_size, f"modified:{status.st_mtime_ns}")


class HttpStore:
    """Files of a web server that answers requests for ranges. It cannot be asked what it has."""

    def find(self, pattern: str) -> list[StoredFile]:
        if "*" in pattern:
            raise UserError(
                f"data.source {public_url(pattern)!r}: a web server cannot be asked which files match *: "
                "name them by a range such as {000..127}"
            )
        return [self.describe(pattern)]

    def describe(self, url: str) -> StoredFile:
        # the first byte, as servers of signed addresses refuse HEAD
        with self._open(url, 0, 1) as reply:
            return self._described(url, reply, 0, 1)

    def read(self, file: StoredFile, start: int, end: int) -> bytes:
        with self._open(file.url, start, end) as reply:
            check_same(file, self._described(file.url, reply, start, end))
            return _whole(reply.read(end - start), end - start)

    def _open(self, url: str, start: int, end: int) -> Any:
        # gzip on the way would change the numbers of the bytes
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity", "User-Agent": "swin_mim"}
        url = urllib.parse.quote(url, safe="%/:?#[]@!$&'()*+,;=~-._")  # spaces, and what is not ASCII
        try:
            return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()  # it holds the connection
            raise

    def _described(self, url: str, reply: Any, start: int, end: int) -> StoredFile:
        sent = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", reply.headers.get("Content-Range") or "")
        if reply.status != 206 or sent is None:
            raise UserError(
                f"{public_url(url)} cannot be read in parts: its server ignores requests for ranges: "
                "download the shards, and give their folder as data.source"
            )
        if int(sent[1]) != start or int(sent[2]) >= end:
            raise ConnectionError(f"bytes {sent[1]} to {sent[2]} came instead of {start} to {end - 1}")
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            raise UserError(f"{public_url(url)} is sent in another encoding than it has: store it uncompressed")
        tag, modified = reply.headers.get("ETag"), reply.headers.get("Last-Modified")
        version = f"tag:{tag}" if tag else f"modified:{modified}" if modified else ""
        return StoredFile(url, int(sent[3]), version)


class FsspecStore:
    """Files of a file system of fsspec: hf://, s3://, gs://, az://, ..."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        self._process = os.getpid()
        self._system = self._make()

    def find(self, pattern: str) -> list[StoredFile]:
        if not any(character in pattern for character in "*?["):
            return [self.describe(pattern)]
        found = self._here().glob(_inside(pattern), detail=True)
        # hidden ones, as of macOS, are not what * means in a folder either
        shown = {path: info for path, info in found.items() if not path.rpartition("/")[2].startswith(".")}
        return [self._described(f"{self._protocol}://{path}", info) for path, info in shown.items()]

    def describe(self, url: str) -> StoredFile:
        system = self._here()
        if getattr(system, "protocol", "") != "hf":  # whose revisions do not change
            system.invalidate_cache()
        return self._described(url, system.info(_inside(url)))

    def read(self, file: StoredFile, start: int, end: int) -> bytes:
        system = self._here()
        with system.open(_inside(file.url), "rb", block_size=end - start, cache_type="none") as stream:
            stream.seek(start)
            return _whole(stream.read(end - start), end - start)

    def _described(self, url: str, info: dict[str, Any]) -> StoredFile:
        return StoredFile(url, int(info.get("size") or 0), _version(info))

    def _here(self) -> Any:
        """The file system of this process: most have a thread and connections, which a forked worker has not."""
        if os.getpid() != self._process and getattr(self._system, "async_impl", False):
            self._system, self._process = self._make(), os.getpid()
        return self._system

    def _make(self) -> Any:
        import fsspec

        try:
            return fsspec.filesystem(self._protocol, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"data.source {self._protocol}:// cannot be opened: {one_line(error)}: install what it names, or give "
                "a folder, a Hub data set or https://"
            ) from error


@cache
def _fsspec_store(protocol: str) -> FsspecStore:
    return FsspecStore(protocol)


def _inside(url: str) -> str:
    return url.split("://", 1)[1]


def _version(info: dict[str, Any]) -> str:
    """What the stores of fsspec say of a file's content, or else of its copy."""
    if info.get("lfs"):
        return f"sha256:{info['lfs']['sha256']}"
    for key, kind in (
        ("blob_id", "git"),
        ("xet_hash", "etag"),
        ("ETag", "etag"),
        ("etag", "etag"),
        ("md5Hash", "etag"),
    ):
        if info.get(key):
            return f"{kind}:{str(info[key]).strip(chr(34))}"
    times = (info[key] for key in ("mtime", "LastModified", "last_modified", "created") if info.get(key))
    # a list of files and a single one may say the same time as different types
    seconds = (each.timestamp() if hasattr(each, "timestamp") else each for each in times)
    return next((f"modified:{each}" for each in seconds), "")


def check_same(listed: StoredFile, now: StoredFile) -> None:
    """Raises a `UserError` for a file that is no longer what was listed."""
    if (listed.size, listed.version) != (now.size, now.version):
        raise changed(listed, f"{now.size} bytes, {now.version or 'no version'}")


def check_unchanged(file: StoredFile) -> None:
    """Ask for a file again. Raises a `UserError` if it is no longer what was listed, or cannot be asked for."""
    store = store_of(file.url)
    check_same(file, with_retries(lambda: store.describe(file.url), public_url(file.url)))


def changed(listed: StoredFile, found: str) -> UserError:
    """Says that a file is not what was listed."""
    return UserError(
        f"{public_url(listed.url)} has changed: it had {listed.size} bytes, {listed.version or 'no version'}, and has "
        f"now {found}: bring the old one back to continue this run, or start a new run (run.name)",
        local=True,
    )


def _whole(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise ConnectionError(f"{len(content)} bytes came instead of {size}")
    return content


class RangeFile(io.RawIOBase):
    """A stored file as Python's and pyarrow's readers take it: every read is a request, tried again while it may."""

    def __init__(self, file: StoredFile, over: threading.Event | None = None) -> None:
        """`over`: as of `with_retries`."""
        self._file, self._store, self._at, self._over = file, store_of(file.url), 0, over

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        end = min(self._at + len(view), self._file.size)
        if end <= self._at:
            return 0
        content = with_retries(
            lambda: self._store.read(self._file, self._at, end), public_url(self._file.url), self._over
        )
        view[: len(content)] = content
        self._at = end
        return len(content)


def with_retries(
    act: Callable[[], _T], what: str, over: threading.Event | None = None, patience: float | None = None
) -> _T:
    """`act()`, again and again while what stops it may pass: a server that is away, a connection that breaks.

    Args:
        what: its name in messages.
        over: set by another thread, ends it with `Interrupted`.
        patience: seconds; None: `PATIENCE`.

    Raises:
        UserError: it does not pass, or has not for so long; then with the code `UNAVAILABLE`.
    """
    since, wait, over = time.monotonic(), FIRST_WAIT, over or threading.Event()
    patience = PATIENCE if patience is None else patience
    while not over.is_set():
        try:
            return act()
        except Exception as error:
            if not _is_outside(error):
                raise  # said already, or a bug, whose traceback is needed
            waited = time.monotonic() - since
            if not may_pass(error) or waited >= patience:
                raise _cannot_read(what, error, waited if patience else None) from error
            if wait == FIRST_WAIT:
                text = "%s cannot be read for now (%s): trying again for %.0f s"
                _log.warning(text, what, _reason(error), patience)
        over.wait(wait)
        wait = min(2 * wait, LONGEST_WAIT)
    raise Interrupted


def _cannot_read(what: str, error: Exception, waited: float | None) -> UserError:
    """`waited` None: it was not waited for."""
    if not may_pass(error):
        return UserError(f"{what} cannot be read: {_reason(error)}: {_way_out(error)}", local=True)
    since = "cannot be read now" if waited is None else f"could not be read for {waited:.0f} s"
    return UserError(
        f"{what} {since}: {_reason(error)}: the same command goes on when it can be reached again",
        local=True,
        code=UNAVAILABLE,
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _is_outside(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, OSError | http.client.HTTPException) or bool(names & _TRANSIENT)


def may_pass(error: Exception) -> bool:
    """Whether the same request may do better a while later."""
    if (status := _status(error)) is not None:
        return status in (408, 425, 429) or status >= 500
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return cause.errno != socket.EAI_NONAME
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ssl.SSLCertVerificationError)
    if isinstance(cause, (*lasting, http.client.InvalidURL)):
        return False
    return type(cause).__name__ != "OfflineModeIsEnabled"


def _status(error: Exception) -> int | None:
    """The HTTP status of an error."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code
    return getattr(getattr(error, "response", None), "status_code", None)


def _way_out(error: Exception) -> str:
    if isinstance(error, PermissionError) or _status(error) in (401, 403):
        return "log in with an account that may read it, or bring an address that has not expired"
    return "check data.source, and that it is still there"


def one_line(error: BaseException) -> str:
    """What an error says, in one line and without a full stop at its end."""
    return " ".join(str(error).split()).rstrip(".")
