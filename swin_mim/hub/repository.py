"""Repositories on the Hugging Face Hub: fetch the files of one commit, prove write access, push a folder as one commit.

The only code that talks to the Hub. The client is imported where it is used, so that `--help` does not wait for it.
"""

import errno
import logging
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from swin_mim.errors import UserError
from swin_mim.hub.exports import NAMES
from swin_mim.redaction import without_secrets

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError

_LOG = logging.getLogger(__name__)

OURS = (
    *("model.safetensors", "mim_head.safetensors", "dense_head.safetensors", "config.json", "README.md"),
    *(f"transformers/{name}" for name in ("model.safetensors", "config.json", "preprocessor_config.json")),
)
"""What a published model consists of, beside its pictures."""
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
"""What files that may hold pickles are called."""
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
FIRST_ANSWER = 10.0
"""Seconds that the Hub has for its first answer. What comes later may be an upload, and takes what it takes."""


def is_repo_name(text: str) -> bool:
    """Whether `text` is "user/name" by the Hub's rules, and no path that exists here."""
    return is_valid_name(text) and not Path(text).exists()


def is_valid_name(text: str) -> bool:
    """Whether `text` is "user/name" by the Hub's rules."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


def fetch(
    repo: str,
    names: Sequence[str],
    *,
    optional: Sequence[str] = (),
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Bring these files of one commit, and nothing else, into the cache that all tools of the ecosystem share.

    Args:
        repo: "user/name".
        names: must be there; `optional`: may be missing.
        revision: branch, tag or commit; resolved once, so that all files are of the same commit.
        token: in place of the one from `hf auth login` or HF_TOKEN.
        cache_dir: in place of HF_HOME's.
        local_files_only: use the cache alone. Optional files that it does not hold count as missing.

    Returns:
        The folder that holds the files.

    Raises:
        UserError: the repository, revision or a file does not exist or may not be read; no connection; no space.
    """
    assert names, "a snapshot is found by a file that it must have"
    paths = {name: _inside(name) for name in (*names, *optional)}
    with _one_line(f"cannot load {', '.join(names)} of {repo}", repo, token), _bars_only_on_a_terminal():
        no_hub = "local_files_only is true" if local_files_only else _unreachable(repo, revision, token)
        source = _Source(repo, revision, token, cache_dir, no_hub)
        first = source.required(paths[names[0]])
        commit = first.parents[len(PurePosixPath(paths[names[0]]).parts) - 1].name
        source = source._replace(revision=commit)
        for name in names[1:]:
            source.required(paths[name])
        for name in optional:
            source.optional(paths[name])
    if no_hub and not local_files_only:
        _LOG.warning("%s: %s is loaded from the cache, as commit %s", no_hub, repo, commit)
    return first.parents[len(PurePosixPath(names[0]).parts) - 1]


def check_write_access(repo: str, *, private: bool = True, token: str | None = None) -> str:
    """Prove that a push will be let in, before hours are spent on what it is to push.

    Creates the repository if it does not exist. One that exists keeps its visibility.

    Args:
        repo: "user/name".
        private: visibility of a new repository; True refuses one that exists and is public.
        token: in place of the one from `hf auth login` or HF_TOKEN.

    Returns:
        The name of the user whose token it is.

    Raises:
        UserError: no token or a wrong one, no right to write, a public repository, no connection.
    """
    from huggingface_hub import HfApi

    with _one_line(f"cannot publish to {repo}", repo, token):
        api = HfApi(token=token)
        _make_writable(api, repo, private)
        caller = api.whoami()
        if caller.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(f"the token of {caller['name']} may only read: make one that may write, and {LOG_IN}")
        return str(caller["name"])


def push(
    folder: Path,
    repo: str,
    *,
    message: str,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Publish a folder as one commit: the repository holds all of it, or stays as it was.

    Files that a published model consists of (`is_published`) and that the folder lacks are deleted in the same commit;
    the repository's other files are left alone.

    Args:
        folder: every file in it is published; one that is no part of a published model is refused.
        repo: "user/name"; created if it does not exist.
        message: of the commit.
        private: visibility of a new repository; True refuses one that exists and is public.
        token: in place of the one from `hf auth login` or HF_TOKEN.
        revision: a branch that exists; the default one otherwise.

    Returns:
        The URL of the commit.

    Raises:
        UserError: why not, that the folder is kept, and the command to try again.
    """
    from huggingface_hub import HfApi

    names = _files_of(folder)
    again = push_command(folder, repo, private=private, revision=revision)
    kept = f"; {folder} is whole and kept, try again with: {again}"
    with _one_line(f"not pushed to {repo}", repo, token, way_out=kept), _bars_only_on_a_terminal():
        api = HfApi(token=token)
        _make_writable(api, repo, private)
        return str(_commit(api, repo, folder, names, message, revision).commit_url)


def push_command(folder: Path, repo: str, *, private: bool, revision: str | None = None) -> str:
    """The line to type that pushes a folder."""
    words = ["swin-mim", "push", str(folder), repo, *([] if private else ["--public"])]
    return shlex.join(words + ([] if revision is None else ["--revision", revision]))


def is_published(name: str) -> bool:
    """Whether a repository's file is part of a published model, so that the next push may replace or delete it."""
    pictures = r"(loss|reconstructions|card_[\w-]+)\.png"
    return name in OURS or any(re.fullmatch(pattern, name) for pattern in (pictures, NAMES))


# Fetching.


def _unreachable(repo: str, revision: str | None, token: str | None) -> str:
    """Why the Hub cannot be asked for a revision, or "". Whether the revision exists is the Hub's to say (raises).

    The client itself sets no limit of time to this question.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        commit = HfApi(token=token).model_info(repo, revision=revision, timeout=FIRST_ANSWER).sha
    except HTTPError as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
        return without_secrets(_why(error, repo), token)
    if not re.fullmatch("[0-9a-f]{40}", commit or ""):  # the client would make folders of that name
        raise UserError(f"{_endpoint()} names {commit!r} as its commit: that is none, and not the Hub's way")
    return ""


class _Source(NamedTuple):
    """Where files come from: a revision of a repository, or, if there is no Hub to ask, what the cache has of it."""

    repo: str
    revision: str | None
    token: str | None
    cache_dir: str | PathLike[str] | None
    no_hub: str

    def required(self, path: str) -> Path:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

        try:
            return self._download(path)
        except RemoteEntryNotFoundError:
            there = HfApi(token=self.token).list_repo_files(self.repo, revision=self.revision)
            raise UserError(_missing(path, there)) from None
        except LocalEntryNotFoundError:
            if not self.no_hub:
                raise
            where = _cache() if self.cache_dir is None else self.cache_dir
            way_out = "load it once with a connection"
            raise UserError(f"{self.no_hub}, and {where} does not hold {path}: {way_out}") from None

    def optional(self, path: str) -> None:
        from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

        try:
            self._download(path)
        except RemoteEntryNotFoundError:
            pass
        except LocalEntryNotFoundError:
            if not self.no_hub:  # the connection broke: it may well be there
                raise

    def _download(self, path: str) -> Path:
        from huggingface_hub import hf_hub_download

        here = hf_hub_download(
            self.repo,
            path,
            revision=self.revision,
            token=self.token,
            cache_dir=None if self.cache_dir is None else Path(self.cache_dir),
            local_files_only=bool(self.no_hub),
        )
        return Path(here)


def _missing(name: str, there: Sequence[str]) -> str:
    pickled = [path for path in there if path.endswith(PICKLES)]
    if name.endswith(".safetensors") and pickled:
        way_out = f"convert it: swin-mim convert {PurePosixPath(pickled[0]).name} FOLDER --to swin_mim"
        return f"it has no {name}, but {pickled[0]}, a pickle, which can run code: download and {way_out}"
    return f"it has no {name}, but {', '.join(sorted(there)[:10]) or 'nothing'}{' ...' if len(there) > 10 else ''}"


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise UserError(f"{str(path)!r} is no path inside a repository: give one like config.json, without ..")
    return str(path)


# Publishing.


def _make_writable(api: "HfApi", repo: str, private: bool) -> None:
    """Create the repository if need be, and ask whether this token may write to it."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if not is_valid_name(repo):
        raise UserError(f"{repo!r} is no name of a repository: give user/name, of letters, digits and -_.")
    if (api.token or get_token()) is None:
        raise UserError(f"there is no token: {LOG_IN}")
    try:
        info = api.model_info(repo, timeout=FIRST_ANSWER)
        if info.private and not private:
            _LOG.warning("%s is private and stays so: its settings on the Hub change that", repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private, exist_ok=True)
        info = api.model_info(repo)
    if private and not info.private:
        way_out = "agree with --hub.private false (swin-mim push: --public), make it private, or name another one"
        raise UserError(f"it is public there and private was asked for: {way_out}")
    api.auth_check(repo, write=True)


def _commit(
    api: "HfApi",
    repo: str,
    folder: Path,
    names: Sequence[str],
    message: str,
    revision: str | None,
    *,
    last_try: bool = False,
) -> "CommitInfo":
    """The commit on top of the branch as it is. If somebody else commits in between, once more on top of theirs.

    By `create_commit`, because `upload_folder` may split into several commits.
    """
    from huggingface_hub.errors import HfHubHTTPError

    head = api.model_info(repo, revision=revision)
    operations = _operations(folder, names, [sibling.rfilename for sibling in head.siblings or []])
    try:
        return api.create_commit(repo, operations, commit_message=message, revision=revision, parent_commit=head.sha)
    except HfHubHTTPError as error:
        if error.response.status_code != 412 or last_try:
            raise
    return _commit(api, repo, folder, names, message, revision, last_try=True)


def _operations(
    folder: Path, names: Sequence[str], there: Sequence[str]
) -> "list[CommitOperationAdd | CommitOperationDelete]":
    """What turns the files that are there into ours. Made anew for each try: they remember what they met."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if ".gitignore" in there:
        raise UserError("it holds a .gitignore, for which the Hub leaves files out of a commit: delete it there")
    stale = [name for name in there if is_published(name) and name not in names]
    added = [CommitOperationAdd(name, folder / name) for name in names]
    return [*added, *(CommitOperationDelete(name, is_folder=False) for name in stale)]


def _files_of(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the one that was exported")
    names = [
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    ]
    if not names:
        raise UserError(f"{folder} is empty: there is nothing to push")
    for name in names:
        path = folder / name
        if not is_published(name):
            raise UserError(f"{path} is no part of a published model, and would be published: move it elsewhere")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} leads out of the folder, to {path.resolve()}: put a copy in its place")
        if not path.is_file():
            raise UserError(f"{path} is no file: only files can be pushed")
    return sorted(names)


# What went wrong, in one line.


@contextmanager
def _one_line(failed: str, repo: str, token: str | None, way_out: str = "") -> Iterator[None]:
    """Turn the client's errors into a UserError: "FAILED: why, and what to do WAY_OUT".

    The cause is cut off (`from None`), because what a server sends back may hold the token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HTTPError

    # The client has no classes of its own for a card that the Hub refuses (ValueError), a broken upload to large
    # file storage, and most of what goes wrong in Xet (RuntimeError).
    expected = (HTTPError, OSError, ValueError, RuntimeError)
    try:
        yield
    except expected as error:
        raise UserError(without_secrets(f"{failed}: {_why(error, repo)}{way_out}", token, get_token())) from None


def _why(error: BaseException, repo: str) -> str:
    from huggingface_hub import errors

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, errors.GatedRepoError):
        return f"its owner has to let you in: ask at {_endpoint()}/{repo}, and {LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{_endpoint()} has no such repository, or it is private and this token may not read it: {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no such branch, tag or commit: see {_endpoint()}/{repo}/tree/main for those that it has"
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it"
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return _why(error.__cause__, repo)
    if isinstance(error, errors.HTTPError):
        return f"no connection to {_endpoint()} ({_text(error)}): see to the network, HF_ENDPOINT and HTTPS_PROXY"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full ({error.strerror}): make room in {_cache()}, or set HF_HOME"
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return f"{_text(error)} {_why(error.__cause__, repo)}"
    return _text(error)


def _refusal(error: "HfHubHTTPError") -> str:
    status, said = error.response.status_code, _shortened(error.server_message or error.response.reason_phrase)
    if status == 401:
        return f"{_endpoint()} does not know this token ({said}): {LOG_IN}"
    if status == 403:
        return f"this token may not do that ({said}): make one that may at {_endpoint()}/settings/tokens and {LOG_IN}"
    if status == 412:
        return "somebody else is pushing to it at the same time"
    return f"{_endpoint()} answers {status} ({said})"


def _text(error: BaseException) -> str:
    return _shortened(str(error)) or type(error).__name__


def _shortened(text: str) -> str:
    return " ".join(text.split())[:300]


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _cache() -> str:
    from huggingface_hub import constants

    return f"the cache {constants.HF_HUB_CACHE}"


@contextmanager
def _bars_only_on_a_terminal() -> Iterator[None]:
    """The client's bars for Xet are drawn into log files too."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silence = not sys.stderr.isatty() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    if silence and not are_progress_bars_disabled():
        disable_progress_bars()
        try:
            yield
        finally:
            enable_progress_bars()
    else:
        yield
