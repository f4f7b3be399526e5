"""The page of runs that go on, for a browser on this machine: a server on the loopback address, with a secret path."""

import hashlib
import hmac
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from swin_mim import __version__
from swin_mim.errors import UserError
from swin_mim.evaluation.report.page import body, render
from swin_mim.training.run.lock import is_held

LOOPBACK = "127.0.0.1"
_REFUSAL = "403: this address has no report\n"
_WATCHED = ("*.json", "*.jsonl", "*.yaml", "samples/*.png", "evaluation/*.json", "evaluation/*.png")


class ReportServer(ThreadingHTTPServer):
    """Answers to its own address alone, which holds a random token; to everything else it says 403.

    Args:
        folders: of the runs.
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, folders: Sequence[Path], port: int = 0) -> None:
        self.folders, self.token = list(folders), secrets.token_urlsafe(24)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise UserError(
                f"port {port} cannot be served: {error.strerror}; leave --port out for a free one"
            ) from None

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}/{self.token}/"

    def version(self) -> str:
        """Changes with the files that a page is made of, and with whether a process has the runs."""
        known = [*_stamps(self.folders), *map(is_held, self.folders)]
        return hashlib.sha256(repr(known).encode()).hexdigest()[:32]


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version, sys_version = f"swin-mim/{__version__}", ""

    def do_GET(self) -> None:
        self._answer(send=True)

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_POST(self) -> None:
        """Nothing can be changed from here."""
        self._send(HTTPStatus.FORBIDDEN, _REFUSAL, "text/plain", send=True)

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST

    def _answer(self, *, send: bool) -> None:
        page, changing = f"/{self.server.token}/", f"/{self.server.token}/body"
        asked = self.path.encode("utf-8", "replace")
        is_page, is_body = (hmac.compare_digest(asked, known.encode()) for known in (page, changing))
        if not (is_page or is_body):
            self._send(HTTPStatus.FORBIDDEN, _REFUSAL, "text/plain", send=send)
            return
        version = self.server.version()
        if is_body and self.headers.get("If-None-Match") == version:
            self._send(HTTPStatus.NOT_MODIFIED, "", "text/html", version, send=False)
            return
        try:
            text = render(self.server.folders, live=version) if is_page else body(self.server.folders)
        except (UserError, OSError) as error:  # a file may be half written, or a run be removed
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n", "text/plain", send=send)
            return
        self._send(HTTPStatus.OK, text, "text/html", version, send=send)

    def _send(self, status: HTTPStatus, text: str, kind: str, version: str = "", *, send: bool) -> None:
        content = text.encode()
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in (headers | ({"ETag": version} if version else {})).items():
            self.send_header(name, value)
        self.end_headers()
        if send:
            self.wfile.write(content)

    def handle(self) -> None:
        """A browser that is gone before it has its answer is nobody's mistake."""
        with suppress(ConnectionError):
            super().handle()

    def finish(self) -> None:
        """What it did not take is not sent again."""
        with suppress(ConnectionError):
            super().finish()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the terminal is for the address, and a log would hold the token."""


def _stamps(folders: Sequence[Path]) -> Iterator[tuple[str, int, int]]:
    for folder in folders:
        for path in sorted(path for pattern in _WATCHED for path in folder.glob(pattern)):
            try:
                stat = path.stat()
            except OSError:  # it was replaced just now
                continue
            yield str(path), stat.st_size, stat.st_mtime_ns
