"""A Hugging Face Hub in memory, on loopback, for the true clients. `python loopback_hub.py PORT [FOLDER]` serves one,
with a data set for each FOLDER/user/name.

It keeps repositories as lists of commits, checks tokens, answers errors with the Hub's codes, and breaks connections on
request. With `xet=FOLDER` files go through Xet, whose client takes a folder in place of its storage service.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".png", ".bin", ".pth", ".parquet", ".tar", ".h5", ".msgpack", ".onnx")
"""Names that go to large file storage, whatever their size, as .gitattributes says on the Hub."""
FIRST_FILE = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
XET_EXPIRES = 4102444800
DATE = "2025-01-01T00:00:00.000Z"
FOREIGN = "stranger"
"""A user whose repositories no token here may write, nor read if they are private."""


class Reply(NamedTuple):
    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})


class Refused(Exception):
    """An error of the Hub: the client tells them apart by `code`."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = Reply(json.dumps({"error": message}).encode(), status, headers)


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    kind: str  # models, datasets or spaces
    name: str  # user/name
    private: bool
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], message: str, branch: str = "main") -> Commit:
        oid = hashlib.sha1(f"{self.kind}/{self.name} {len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append(Commit(oid, message, files))
        self.branches[branch] = oid
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        for commit in self.commits:
            if commit.oid == oid:
                return commit
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def answer(value: Any, **headers: str) -> Reply:
    return Reply(json.dumps(value).encode(), 200, {"Content-Type": "application/json"} | headers)


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else git_hash(content)


def entry(path: str, content: bytes) -> dict[str, Any]:
    large = {"oid": etag(path, content), "sha256": etag(path, content), "size": len(content), "pointerSize": 130}
    described = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    return described | ({"lfs": large} if path.endswith(LARGE) else {})


ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = []
API = "/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
PLAIN = "/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)"


def route(methods: str, pattern: str) -> Callable[[Callable[..., Reply]], Callable[..., Reply]]:
    def keep(function: Callable[..., Reply]) -> Callable[..., Reply]:
        ROUTES.append((methods, re.compile(pattern), function))
        return function

    return keep


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class LoopbackHub:
    """A server on a free port, in a thread, from `with` to its end.

    Attributes:
        url, user, token, readonly_token: where it is, who calls, and with what.
        requests: (method, path, headers) of everything asked so far.
        down: True drops every connection.
        before_commit: called once, before the next commit is checked: a race, at the place where it hurts.
    """

    def __init__(self, port: int = 0, xet: Path | None = None) -> None:
        self.user = "ada"
        self.token = "hf_LoopbackCanaryWrite0123456789abcdef"
        self.readonly_token = "hf_LoopbackCanaryRead00123456789abcdef"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.xet_hashes: dict[str, str] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.down = False
        self.before_commit: Callable[[], object] | None = None
        self.xet = xet
        self._writes_left = 0
        self._carried_out = False
        self._lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.down = True
        self._server.shutdown()
        self._server.server_close()

    def serve_forever(self) -> None:
        self._server.serve_forever(poll_interval=0.01)

    # What tests set and ask.

    def environment(self, home: Path) -> dict[str, str]:
        """For a process of its own: the client reads these when it is imported, and tests/conftest.py came first."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }

    def fail_after(self, writes: int, *, carried_out: bool = False) -> None:
        """Drop the connection at that write request from now (1 is the next), before or after carrying it out."""
        self._writes_left, self._carried_out = writes, carried_out

    @property
    def failure_is_due(self) -> bool:
        return self._writes_left > 0

    def write(
        self, name: str, files: dict[str, bytes], *, private: bool = False, branch: str = "main", kind: str = "models"
    ) -> str:
        """A commit that adds files, without a client, and creates the repository if need be. Any name goes."""
        with self._lock:
            repo = self.repos.get((kind, name)) or self.create(kind, name, private)
            return repo.commit(repo.at(branch).files | files, "Written by hand", branch).oid

    def repo(self, name: str) -> Repo:
        return self.repos["models", name]

    def commits(self, name: str) -> list[tuple[str, dict[str, bytes]]]:
        """(oid, all files at that commit), oldest first; the first is the empty repository."""
        repo = self.repos.get(("models", name))
        return [(commit.oid, dict(commit.files)) for commit in repo.commits] if repo else []

    def create(self, kind: str, name: str, private: bool) -> Repo:
        repo = self.repos[kind, name] = Repo(kind, name, private)
        repo.commit(dict(FIRST_FILE), "initial commit")
        return repo

    # How a request is answered.

    def handle(self, request: Request) -> Reply | None:
        """The reply; None breaks the connection."""
        with self._lock:
            self.requests.append((request.method, request.path, request.headers))
            if self.down:
                return None
            fails = False
            if request.method not in ("GET", "HEAD"):
                fails = self._writes_left == 1
                self._writes_left = max(0, self._writes_left - 1)
            if fails and not self._carried_out:
                return None
            reply = self._reply(request)
            return None if fails else reply

    def _reply(self, request: Request) -> Reply:
        for methods, pattern, function in ROUTES:
            match = pattern.fullmatch(request.path)
            if match and request.method in methods.split():
                names = {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
                try:
                    return function(self, request, **names)
                except Refused as refused:
                    return refused.reply
        return Refused(404, "Sorry, we can't find the page you are looking for.").reply

    def role(self, request: Request) -> str | None:
        """ "write", "read", or None without a token."""
        given = request.headers.get("authorization")
        roles = {f"Bearer {self.token}": "write", f"Bearer {self.readonly_token}": "read"}
        if given is not None and given not in roles:
            raise Refused(401, "Invalid credentials in Authorization header")
        return roles[given] if given is not None else None

    def check_write(self, request: Request, name: str) -> None:
        role = self.role(request)
        if role is None:
            raise Refused(401, "Invalid username or password.")
        if role != "write" or name.startswith(FOREIGN + "/"):
            # More talkative than the Hub, so that tests see whether a message is passed on as it is.
            given = request.headers["authorization"]
            raise Refused(403, f"Forbidden: {given} must be a write token to upload to this repository.")

    def find(self, request: Request, kind: str, name: str, *, write: bool = False, content: bool = False) -> Repo:
        """The repository, if this token may see it (and write it, and read the content of a gated one)."""
        role = self.role(request)
        repo = self.repos.get((kind, name))
        hidden = repo is not None and repo.private and (role is None or name.startswith(FOREIGN + "/"))
        if repo is None or hidden:
            raise Refused(404 if role else 401, "Repository not found", "RepoNotFound")
        if write:
            self.check_write(request, name)
        if content and repo.gated:
            message = f"Access to model {name} is restricted and you are not in the authorized list."
            raise Refused(403 if role else 401, message, "GatedRepo")
        return repo


@route("GET", "/api/whoami-v2")
def whoami(hub: LoopbackHub, request: Request) -> Reply:
    role = hub.role(request)
    if role is None:
        raise Refused(401, "Invalid username or password.")
    access = {"accessToken": {"displayName": "test", "role": role}}
    return answer({"type": "user", "name": hub.user, "fullname": hub.user, "orgs": [], "auth": access})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: LoopbackHub, request: Request) -> Reply:
    content = request.json()["content"]
    if content.startswith("---\n") and "\n---\n" not in content[3:]:
        errors = [{"message": "The front matter has no end"}, {"message": "So it cannot be read"}]
        return Reply(json.dumps({"error": "Invalid YAML", "errors": errors, "warnings": []}).encode(), 400)
    return answer({"errors": [], "warnings": []})


@route("POST", "/api/repos/create")
def create_repo(hub: LoopbackHub, request: Request) -> Reply:
    wanted = request.json()
    kind, name = wanted.get("type", "model") + "s", f"{wanted['organization'] or hub.user}/{wanted['name']}"
    hub.check_write(request, name)
    there = (kind, name) in hub.repos
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    if not there:
        hub.create(kind, name, private)
    url = f"{hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
    described = {"url": url, "name": name, "id": name}
    if there:
        message = {"error": "You already created this model repo"} | described
        return Reply(json.dumps(message).encode(), 409)
    return answer(described)


@route("DELETE", "/api/repos/delete")
def delete_repo(hub: LoopbackHub, request: Request) -> Reply:
    wanted = request.json()
    repo = hub.find(
        request, wanted.get("type", "model") + "s", f"{wanted['organization']}/{wanted['name']}", write=True
    )
    del hub.repos[repo.kind, repo.name]
    return Reply()


@route("GET", API + "/auth-check(?P<write>/write)?")
def auth_check(hub: LoopbackHub, request: Request, kind: str, name: str, write: str = "") -> Reply:
    hub.find(request, kind, name, write=bool(write), content=not write)
    return Reply()


@route("GET", API + "(?:/revision/(?P<revision>[^/]+))?")
def info(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str = "main") -> Reply:
    repo = hub.find(request, kind, name)
    commit = repo.at(revision)
    files = [
        {"rfilename": path, "blobId": git_hash(content)} | entry(path, content)
        for path, content in sorted(commit.files.items())
    ]
    about = {"id": name, "modelId": name, "author": name.split("/")[0], "sha": commit.oid, "siblings": files}
    state = {"private": repo.private, "gated": "manual" if repo.gated else False, "disabled": False}
    return answer(about | state | {"downloads": 0, "likes": 0, "tags": [], "createdAt": DATE, "lastModified": DATE})


@route("POST", API + "/preupload/(?P<revision>[^/]+)")
def preupload(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    there = hub.find(request, kind, name, write=True).at(revision).files
    return answer({"files": [_upload_mode(file["path"], there) for file in request.json()["files"]]})


def _upload_mode(path: str, there: dict[str, bytes]) -> dict[str, Any]:
    oid = etag(path, there[path]) if path in there else None
    mode = "lfs" if path.endswith(LARGE) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}


@route("POST", PLAIN + r"\.git/info/lfs/objects/batch")
def lfs_batch(hub: LoopbackHub, request: Request, name: str, kind: str = "models") -> Reply:
    hub.find(request, kind, name, write=True)
    objects = []
    for wanted in request.json()["objects"]:
        upload = {"href": f"{hub.url}/storage/{wanted['oid']}", "header": {}}
        verify = {"href": f"{hub.url}/api/{kind}/{name}/verify"}
        missing = {} if wanted["oid"] in hub.objects else {"actions": {"upload": upload, "verify": verify}}
        objects.append({"oid": wanted["oid"], "size": wanted["size"]} | missing)
    return answer({"transfer": "basic", "objects": objects})


@route("PUT", "/storage/(?P<oid>[0-9a-f]{64})")
def lfs_upload(hub: LoopbackHub, request: Request, oid: str) -> Reply:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refused(400, "The content is not what its hash says")
    hub.objects[oid] = request.body
    return Reply()


@route("POST", API + "/verify")
def lfs_verify(hub: LoopbackHub, request: Request, kind: str, name: str) -> Reply:
    wanted = request.json()
    if len(hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
        raise Refused(404, "Object not found")
    return Reply()


@route("POST", API + "/commit/(?P<revision>[^/]+)")
def commit(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    if hub.before_commit is not None:
        first, hub.before_commit = hub.before_commit, None
        first()
    repo = hub.find(request, kind, name, write=True)
    if revision not in repo.branches:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit") not in (None, repo.branches[revision]):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    files = dict(repo.at(revision).files)
    for line in lines:
        _apply(hub, files, line["key"], line["value"])
    made = repo.commit(files, header["summary"], revision)
    url = f"{hub.url}/{'' if kind == 'models' else kind + '/'}{name}/commit/{made.oid}"
    return answer({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})


def _apply(hub: LoopbackHub, files: dict[str, bytes], key: str, value: dict[str, Any]) -> None:
    if key == "file":
        files[value["path"]] = base64.b64decode(value["content"])
    elif key == "lfsFile":
        if hub.xet is not None:
            fetch_xet(hub, value["oid"])
        if value["oid"] not in hub.objects:
            raise Refused(400, f"LFS pointer to a file that was not uploaded: {value['path']}")
        files[value["path"]] = hub.objects[value["oid"]]
    elif key == "deletedFile":
        if files.pop(value["path"], None) is None:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
    elif key == "deletedFolder":
        for path in [path for path in files if path.startswith(value["path"].rstrip("/") + "/")]:
            del files[path]


@route("GET", API + "/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?")
def tree(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str, folder: str = "") -> Reply:
    files = hub.find(request, kind, name).at(revision).files
    recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    start = folder.rstrip("/") + "/" if folder else ""
    inside = {path[len(start) :]: content for path, content in files.items() if path.startswith(start)}
    if folder and not inside:
        raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
    folders = sorted({start + path.split("/")[0] for path in inside if "/" in path})
    listed = [{"type": "directory", "path": path, "oid": git_hash(path.encode()), "size": 0} for path in folders]
    listed += [entry(start + path, text) for path, text in sorted(inside.items()) if recursive or "/" not in path]
    return answer(listed)


@route("POST", API + "/paths-info/(?P<revision>[^/]+)")
def paths_info(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    files = hub.find(request, kind, name).at(revision).files
    form = "form" in request.headers.get("content-type", "")
    paths = parse_qs(request.body.decode())["paths"] if form else request.json()["paths"]
    return answer([entry(path, files[path]) for path in paths if path in files])


@route("GET", API + "/refs")
def refs(hub: LoopbackHub, request: Request, kind: str, name: str) -> Reply:
    repo = hub.find(request, kind, name)
    heads = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in repo.branches.items()]
    tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in repo.tags.items()]
    return answer({"branches": heads, "tags": tags, "converts": []})


@route("POST DELETE", API + "/branch/(?P<branch>[^/]+)")
def branch(hub: LoopbackHub, request: Request, kind: str, name: str, branch: str) -> Reply:
    repo = hub.find(request, kind, name, write=True)
    if request.method == "DELETE":
        del repo.branches[branch]
    elif branch in repo.branches:
        raise Refused(409, "Reference already exists")
    else:
        start = request.json() if request.body else {}
        repo.branches[branch] = repo.at(start.get("startingPoint") or "main").oid
    return Reply()


@route("POST DELETE", API + "/tag/(?P<revision>[^/]+)")
def tag(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    repo = hub.find(request, kind, name, write=True)
    if request.method == "DELETE":
        del repo.tags[revision]
    elif request.json()["tag"] in repo.tags:
        raise Refused(409, "Reference already exists")
    else:
        repo.tags[request.json()["tag"]] = repo.at(revision).oid
    return Reply()


@route("GET", API + "/commits/(?P<revision>[^/]+)")
def commits(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    repo = hub.find(request, kind, name)
    until = repo.commits[: repo.commits.index(repo.at(revision)) + 1]
    authors = [{"user": hub.user}]
    return answer(
        [{"id": c.oid, "title": c.message, "message": "", "date": DATE, "authors": authors} for c in reversed(until)]
    )


@route("GET HEAD", PLAIN + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(hub: LoopbackHub, request: Request, name: str, revision: str, path: str, kind: str = "models") -> Reply:
    found = hub.find(request, kind, name, content=True).at(revision)
    headers = {"X-Repo-Commit": found.oid, "Accept-Ranges": "bytes"}
    if path not in found.files:
        reply = Refused(404, "Entry not found", "EntryNotFound").reply
        return reply._replace(headers={**reply.headers, **headers})
    content = found.files[path]
    headers["ETag"] = f'"{etag(path, content)}"'
    if path.endswith(LARGE):
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        headers |= _xet_headers(hub, f"{kind}/{name}", found.oid, etag(path, content))
    return _part(content, headers, request.headers.get("range"))


def _part(content: bytes, headers: dict[str, str], wanted: str | None) -> Reply:
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if not match or match.groups() == ("", ""):
        return Reply(content, 200, headers)
    first, last = match.groups()
    start = int(first) if first else max(0, len(content) - int(last))
    end = min(len(content), int(last) + 1) if first and last else len(content)
    if start >= len(content):
        return Reply(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
    return Reply(content[start:end], 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})


@route("GET", "/loopback/fail-after/(?P<writes>[0-9]+)/(?P<carried_out>[01])")
def fail_after(hub: LoopbackHub, request: Request, writes: str, carried_out: str) -> Reply:
    """For a client that makes several calls: sets the next fault, says whether the last one is still to come."""
    was_due = hub.failure_is_due
    hub.fail_after(int(writes), carried_out=carried_out == "1")
    hub.objects.clear()  # so that all is uploaded again
    return answer(was_due)


# Xet.


@route("GET", API + "/xet-(?P<access>read|write)-token/(?P<revision>[^/]+)")
def xet_token(hub: LoopbackHub, request: Request, kind: str, name: str, access: str, revision: str) -> Reply:
    if hub.xet is None:
        raise Refused(404, "This Hub has no Xet storage")
    hub.find(request, kind, name, write=access == "write", content=access == "read")
    folder = hub.xet if access == "write" else _copy_of_store(hub.xet)
    store, key, expires = f"local://{folder}", "xet-key", XET_EXPIRES
    headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": key, "X-Xet-Token-Expiration": str(expires)}
    return answer({"casUrl": store, "accessToken": key, "exp": expires}, **headers)


def _xet_headers(hub: LoopbackHub, repo: str, oid: str, sha256: str) -> dict[str, str]:
    if hub.xet is None or sha256 not in hub.xet_hashes:
        return {}
    link = f'<{hub.url}/api/{repo}/xet-read-token/{oid}>; rel="xet-auth"'
    return {"X-Xet-Hash": hub.xet_hashes[sha256], "Link": link}


def fetch_xet(hub: LoopbackHub, sha256: str) -> None:
    """Bring a file that the client has put into Xet storage to where the files are, and remember its Xet hash."""
    assert hub.xet is not None
    shards = [path.read_bytes() for path in sorted(hub.xet.rglob("xorbs/shards/*.mdb"))]
    found = {file.sha256: file for shard in shards for file in files_of_shard(shard)}
    if sha256 in found and sha256 not in hub.xet_hashes:
        from hf_xet import XetFileInfo, XetSession  # type: ignore[import-untyped]

        copy = _copy_of_store(hub.xet)
        group = XetSession().new_file_download_group(
            endpoint=f"local://{copy}", token="xet-key", token_expiry_unix_secs=XET_EXPIRES
        )
        with group:
            group.start_download_file(XetFileInfo(found[sha256].hash, found[sha256].size), str(copy / "file"))
        hub.objects[sha256] = (copy / "file").read_bytes()
        assert hashlib.sha256(hub.objects[sha256]).hexdigest() == sha256
        hub.xet_hashes[sha256] = found[sha256].hash


class ShardFile(NamedTuple):
    sha256: str
    hash: str
    size: int


def files_of_shard(shard: bytes) -> Iterator[ShardFile]:
    """The list of files in a shard of Xet's: 48 bytes of header, then records of 48 bytes until one of all ones."""
    at = 48
    while shard[at : at + 32] != b"\xff" * 32:
        name, flags, parts = struct.unpack_from("<32sII", shard, at)
        sizes = [struct.unpack_from("<I", shard, at + 48 * part + 36)[0] for part in range(1, parts + 1)]
        at += 48 * (1 + parts)
        if flags & 1 << 31:  # a check of every part
            at += 48 * parts
        if flags & 1 << 30:  # the digest of the whole
            yield ShardFile(_hex(shard[at : at + 32]), _hex(name), sum(sizes))
            at += 48


def _hex(digest: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))


def _copy_of_store(store: Path) -> Path:
    """A client locks the folder that it works in, so each gets its own."""
    return Path(shutil.copytree(store, Path(tempfile.mkdtemp(dir=store.parent)) / "store"))


class _Handler(BaseHTTPRequestHandler):
    """Bytes in, bytes out."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer_one(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub: LoopbackHub = self.server.hub  # type: ignore[attr-defined]
        reply = hub.handle(Request(self.command, parts.path, parse_qs(parts.query), headers, body))
        if reply is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(reply.status)
        for name, value in ({"Content-Type": "application/octet-stream"} | dict(reply.headers)).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer_one

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, format: str, *arguments: object) -> None:
        """Tests read `LoopbackHub.requests`."""


if __name__ == "__main__":
    served = LoopbackHub(port=int(sys.argv[1]))
    for folder in Path(sys.argv[2]).glob("*/*") if len(sys.argv) > 2 else ():
        content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
        served.write(f"{folder.parent.name}/{folder.name}", content, kind="datasets")
    print(f"HF_ENDPOINT={served.url} HF_TOKEN={served.token} HF_HUB_DISABLE_XET=1", flush=True)
    served.serve_forever()
