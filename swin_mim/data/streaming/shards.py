"""Which shards a data set has, and their rows: a Hub data set, a folder, or addresses of parquet or tar files."""

import glob
import json
import logging
import os
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

from swin_mim.counts import counted
from swin_mim.data.decoding.kinds import RASTER_SUFFIXES
from swin_mim.data.sources.folder import files_below
from swin_mim.data.sources.tables import image_column
from swin_mim.data.streaming.cache import Counted, Shard, ShardCache
from swin_mim.data.streaming.formats import COMPRESSIONS, KINDS, Layout, count_rows, explain, features_of, suffix_of
from swin_mim.data.streaming.storage import (
    RangeFile,
    StoredFile,
    check_unchanged,
    expand,
    find_files,
    in_threads,
    is_local,
    local_path,
    one_line,
    sampled,
    store_of,
    with_retries,
)
from swin_mim.data.streaming.tar_index import Unusable
from swin_mim.errors import UNAVAILABLE, UserError
from swin_mim.redaction import public_url

SIZES = "sizes.json"
"""Beside the tars of a WebDataset: how many samples each has."""

_HUB = re.compile(
    r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?/(?P<pattern>.+)"
)
_TOLD_EVERY = 30.0  # seconds
_log = logging.getLogger(__name__)


def list_shards(spec: str, config: str | None, split: str, column: str | None, *, rasters: bool = False) -> list[Shard]:
    """The shards by name, their rows not counted.

    Args:
        rasters: the images are of any channels.

    Raises:
        UserError: there are none, they cannot be listed, are not all parquet or all tar, or have no such column.
    """
    files = _files(spec, config, split)
    kinds = Counter(suffix_of(public_url(file.url)) for file in files)
    if len(kinds) != 1 or not set(kinds) <= set(KINDS):
        raise _no_shards(spec, kinds)
    if empty := [file for file in files if not file.size]:
        raise UserError(
            f"data.source {public_url(spec)!r}: {public_url(empty[0].url)} is empty: bring it again, or leave it out"
        )
    (kind,) = kinds
    if kind == ".parquet":
        column = image_column(public_url(spec), _features(files[0]), column)
    if silent := [file for file in files if not file.version]:
        others = f" and {counted(len(silent) - 1, 'other')}" if len(silent) > 1 else ""
        versions = "their versions" if others else "its version"
        text = "%s%s: nothing tells %s: a change of the same size may go unnoticed during a run"
        _log.warning(text, public_url(silent[0].url), others, versions)
    files = in_threads(sampled, files)
    layout = Layout(kind, column, rasters)
    shards = [Shard(file, layout, name) for file, name in zip(files, _names(spec, files), strict=True)]
    return sorted(shards, key=lambda shard: shard.name)


def count_all(spec: str, shards: Sequence[Shard], cache: ShardCache) -> list[Shard]:
    """The shards with their rows: as counted before, or from footers, from a sizes.json, or by passing over each.

    What tars have besides images is told in the log.

    Raises:
        UserError: a shard cannot be read, or none has an image.
    """
    with cache.counting():  # the other processes of this machine find it counted
        known = cache.known_rows()
        missing = [shard for shard in shards if shard.key not in known]
        given = _given_rows(missing)
        quick = [
            each
            for each in missing
            if each.name not in given and (each.layout.kind != ".tar" or is_local(each.file.url))
        ]
        for start in range(0, len(quick), 256):  # an interrupted count goes on behind the last ones
            cache.remember_rows(in_threads(_counted, quick[start : start + 256]))
        slow = [each for each in missing if each.name not in given and each not in quick]
        _count_by_bringing(slow, cache)
        known = cache.known_rows()
        known |= {shard.key: Counted(given[shard.name], Counter()) for shard in missing if shard.name in given}
    left_out = sum((known[shard.key].left_out for shard in shards), Counter[str]())
    _tell_left_out(spec, left_out)
    if not any(known[shard.key].rows for shard in shards):
        raise _no_images(spec, shards[0].layout, left_out)
    return [shard._replace(rows=known[shard.key].rows) for shard in shards]


def _tell_left_out(spec: str, left_out: Counter[str]) -> None:
    if count := left_out.total():
        text = "data.source %r: %s of its tars %s: %s"
        end = "belongs to no image and is left out" if count == 1 else "belong to no image and are left out"
        _log.warning(text, public_url(spec), counted(count, "file"), end, _counts(left_out))


def _no_images(spec: str, layout: Layout, left_out: Counter[str]) -> UserError:
    if layout.kind == ".parquet" or not left_out:
        return UserError(f"data.source {public_url(spec)!r} has no rows: choose another data.split")
    column = f" with data.column {layout.column!r}" if layout.column else ""
    return UserError(
        f"data.source {public_url(spec)!r} has no image{column} in its tars, but {_counts(left_out)}: check "
        "data.source and data.column"
    )


def _no_shards(spec: str, kinds: Counter[str]) -> UserError:
    """Says why files, by their suffixes, are no shards, and how they can be read."""
    found = f"data.source {public_url(spec)!r} has {_counts(kinds) or 'no files'}"
    (suffix, count), *_ = kinds.most_common(1) or [("", 0)]
    where = os.path.join(spec, f"*{suffix}") if os.path.isdir(spec) else public_url(spec)
    if suffix.endswith("*"):
        return UserError(f"{found}, which are pieces of archives: join those of each: cat {where} > NAME.tar")
    for each in COMPRESSIONS:
        if suffix in each.suffixes:
            return UserError(f"{found}, of which no image can be read by itself: unpack them: {each.command} {where}")
    if suffix in RASTER_SUFFIXES and count:
        return UserError(f"{found}, and what is streamed is .parquet or .tar: give a folder of images, not streamed")
    return UserError(
        f"{found}: what is streamed must be all .parquet or all .tar; not streamed, a data set is read as a whole"
    )


def _counts(suffixes: Counter[str]) -> str:
    """ "3 .txt, 2 .db"."""
    return ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))


def _files(spec: str, config: str | None, split: str) -> list[StoredFile]:
    folder = Path(os.path.expanduser(spec))
    by_pattern = "://" in spec or any(character in spec for character in "*?[{")
    if spec and (folder.is_dir() or not by_pattern):
        if folder.is_file():
            if config is not None or split != "train":
                raise UserError(
                    f"data.source {spec!r} is a file, which has no data.config {config!r} or data.split {split!r}: "
                    "leave them out"
                )
            return _described([str(folder)])
        if folder.is_dir():
            _check_folder(folder)
        elif spec.startswith((".", "~", "/")) or spec.count("/") > 1:
            raise UserError(
                f"data.source {spec!r} does not exist: give a folder of shards, or the name of a Hub data set"
            )
        return _described(_data_files(spec, str(folder.resolve()) if folder.is_dir() else spec, config, split))
    if config is not None or split != "train":
        raise UserError(
            f"data.source {public_url(spec)!r} names files, which have no data.config {config!r} or data.split "
            f"{split!r}: leave them out, and name the files of that split"
        )
    if match := _HUB.fullmatch(spec):
        # the files of one commit, which stay what they are
        patterns = list(expand(match["pattern"]))
        return _described(_data_files(spec, match["repo"], None, "train", match["revision"], patterns))
    return _found(spec)


def _check_folder(folder: Path) -> None:
    """Refuse what the `datasets` library would read otherwise than it is meant."""
    where = str(folder.resolve())
    if where != glob.escape(where):
        raise UserError(f"data.source {where!r} has characters of a pattern, * ? or [, in its name: rename it")
    kinds = Counter(suffix_of(path) for path, _ in files_below(folder, KINDS))
    if len(kinds) > 1:
        found = " and ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise UserError(
            f"data.source {where!r} holds {found} files: name those that you mean by a pattern, such as {where}/*.tar"
        )
    if not kinds:
        raise _no_shards(str(folder), Counter(suffix_of(path) for path, _ in files_below(folder, ("",))))


def _found(spec: str) -> list[StoredFile]:
    try:
        files = find_files(spec)
    except UserError:
        raise
    except Exception as error:  # whatever a file system raises
        raise _cannot_list(spec, error) from error
    if not files:
        raise UserError(f"data.source {public_url(spec)!r} names no file: check the pattern")
    return files


def _data_files(
    spec: str, path: str, config: str | None, split: str, revision: str | None = None, patterns: Sequence[str] = ()
) -> list[str]:
    """What the `datasets` library takes for a split: paths, or addresses of one commit of the Hub."""
    import datasets

    try:
        chosen = {"data_files": {"train": list(patterns)}} if patterns else {}
        builder = datasets.load_dataset_builder(path, config, revision=revision, **chosen)
        splits: dict[str, list[str]] = {
            str(name): list(files) for name, files in (builder.config.data_files or {}).items()
        }
    except Exception as error:  # whatever a builder, a file system or the network raises
        raise _cannot_list(spec, error) from error
    if split not in splits:
        raise UserError(
            f"data.split {split!r} is not in data.source {spec!r}: its splits are {', '.join(splits) or 'none'}"
        )
    return splits[split]


def _cannot_list(spec: str, error: Exception) -> UserError:
    pattern = f", or name its shards by a pattern, as {spec}/*.tar" if os.path.isdir(spec) else ""
    return UserError(
        f"data.source {public_url(spec)!r} cannot be listed: {type(error).__name__}: {one_line(error)}: check that it "
        f"exists and can be reached, and data.config{pattern}"
    )


def _described(urls: Sequence[str]) -> list[StoredFile]:
    # one at a time: the Hub tells of a folder at once, and keeps it
    return [with_retries(lambda url=url: store_of(url).describe(url), public_url(url)) for url in urls]  # type: ignore[misc]


def _names(spec: str, files: Sequence[StoredFile]) -> list[str]:
    """Paths below the folder that all share."""
    urls = [public_url(file.url) for file in files]
    paths = [url.split("/") for url in urls]
    depth = next(at for at, parts in enumerate(zip_longest(*paths)) if len(set(parts)) > 1 or at == len(paths[0]) - 1)
    names = ["/".join(path[depth:]) for path in paths]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"data.source {public_url(spec)!r} names {twice[0]} twice: name each shard once")
    return names


def _features(file: StoredFile) -> Any:
    try:
        return features_of(RangeFile(file))
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise _unreadable(public_url(file.url), file, error) from error


def _counted(shard: Shard, over: threading.Event) -> tuple[Shard, Counted]:
    left_out = Counter[str]()
    try:
        with _opened(shard.file, over) as file:
            return shard, Counted(count_rows(shard.layout, file, left_out), left_out)
    except Unusable as error:
        raise UserError(f"shard {shard.name}: {error}") from error
    except UserError:
        raise
    except (tarfile.TarError, ValueError, OSError) as error:
        raise _unreadable(shard.name, shard.file, error) from error


@contextmanager
def _opened(file: StoredFile, over: threading.Event) -> Iterator[BinaryIO | RangeFile]:
    """A stored file to be read; one of this machine without a request for each part of it."""
    if not is_local(file.url):
        yield RangeFile(file, over)
        return
    check_unchanged(file)
    # what is between two headers of a tar is skipped
    with open(local_path(file.url), "rb", buffering=4096) as opened:
        yield opened
    check_unchanged(file)


def _unreadable(name: str, file: StoredFile, error: Exception) -> UserError:
    if reason := explain(RangeFile(file).read(512) or b""):
        return UserError(f"shard {name} cannot be read: {reason}")
    return UserError(
        f"shard {name} cannot be read ({type(error).__name__}: {one_line(error)}): bring it again, or leave it out"
    )


def _given_rows(shards: Iterable[Shard]) -> dict[str, int]:
    """What the sizes.json files beside tars say, by the names of the shards."""
    given: dict[str, int] = {}
    tars = [shard for shard in shards if shard.layout.kind == ".tar"]
    for folder in sorted({shard.file.url.split("?")[0].rpartition("/")[0] for shard in tars}):
        sizes = _read_sizes(f"{folder}/{SIZES}")
        for shard in tars:
            parent, _, name = shard.file.url.split("?")[0].rpartition("/")
            if parent == folder and name in sizes:
                given[shard.name] = sizes[name]
    return given


def _read_sizes(url: str) -> dict[str, int]:
    try:
        file = with_retries(lambda: store_of(url).describe(url), public_url(url))
    except UserError as error:
        if error.code == UNAVAILABLE:
            raise
        return {}  # few have one
    content = RangeFile(file).readall() or b""
    try:
        return {str(name): int(rows) for name, rows in json.loads(content).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{public_url(url)} is no table of shards and their rows ({error}): mend or remove it"
        ) from error


def _count_by_bringing(shards: Sequence[Shard], cache: ShardCache) -> None:
    if not shards:
        return
    total = sum(shard.file.size for shard in shards) / 1e9
    whose, them = ("its", "it") if len(shards) == 1 else ("their", "them")
    _log.warning(
        "counting the rows of %s by reading all of %s %.3g GB once, as there is no %s beside %s",
        *(counted(len(shards), "tar"), whose, total, SIZES, them),
    )
    told = monotonic()
    for number, shard in enumerate(shards, 1):
        rows = cache.ensure(shard)
        cache.remember_rows([(shard, Counted(rows, cache.left_out[shard.key]))])
        if monotonic() - told > _TOLD_EVERY:
            told = monotonic()
            _log.warning("counted %d of %s", number, counted(len(shards), "tar"))
