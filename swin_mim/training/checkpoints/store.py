"""The run on disk: stage, hash, commit, discover, verify, prune.

A checkpoint is complete or absent. It is written into a staging folder; every file is hashed and flushed, the
manifest last; one rename makes it a checkpoint. The newest one whose digests hold wins, by step, never by date.
No pickle, except in DeepSpeed's own files.

    step_0000001000/
        MANIFEST.json           step, size and SHA-256 of every file, and a digest of itself
        trainer.json            counters and settings of the run
        config.json             the network, so that `from_pretrained` loads the folder
        model.safetensors
        optimizer.safetensors   <moment>/<parameter>; with DeepSpeed a folder of its own instead
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from errno import EIO
from pathlib import Path
from typing import Any

from swin_mim.files import flush, sha256, sha256_of_file

MANIFEST = "MANIFEST.json"
FORMAT = 1

_NAME = re.compile(r"step_(\d{10})")
_LOG = logging.getLogger(__name__)


def stage(folder: Path, step: int) -> Path:
    """A new empty folder to write a checkpoint into. What an interrupted save left behind is removed."""
    staging = staging_path(folder, step)
    for leftover in [*folder.glob(".staging_*"), *folder.glob(".trash_*")]:
        shutil.rmtree(leftover, ignore_errors=True)  # a trash that cannot be removed is no reason not to save
    staging.mkdir(parents=True)
    return staging


def step_of(path: Path) -> int:
    """The step that the name of a checkpoint tells."""
    return int(path.name.removeprefix("step_"))


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / _name(step)


def staging_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it is one."""
    return folder / f".staging_{_name(step)}"


def commit(staging: Path, step: int, meant: Mapping[str, str] | None = None) -> Path:
    """Make a staged folder the checkpoint of `step`. After it returns, the checkpoint survives a power cut.

    Args:
        meant: SHA-256 of what was to be written, of the files of which it is known.

    Raises:
        OSError: the disk did not take it all, or holds something else than what was meant.
    """
    files = {path.relative_to(staging).as_posix(): _flush_and_hash(path) for path in _files(staging)}
    for name, digest in (meant or {}).items():
        if name not in files or files[name]["sha256"] != digest:
            raise OSError(EIO, f"{name} is not on the disk as it was written")
    manifest: dict[str, Any] = {"format": FORMAT, "step": step, "files": files}
    manifest["digest"] = _digest(manifest)
    (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
    flush(staging / MANIFEST)
    for path in [*(p for p in staging.rglob("*") if p.is_dir()), staging]:
        flush(path)
    final = staging.parent / _name(step)
    if final.exists():  # a step that was done again, after a fall-back to an earlier one
        final.rename(final.with_name(f".trash_{final.name}"))
    staging.rename(final)
    flush(final.parent)
    flush(final.parent.parent)
    return final


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; broken ones on the way are set aside as `bad_...` and reported."""
    for path in sorted(steps_on_disk(folder), reverse=True):
        fault = verify(path)
        if not fault:
            return path
        aside = path.with_name(f"bad_{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        _LOG.warning("checkpoint %s is broken (%s): set aside as %s", path, fault, aside.name)
    return None


def set_aside(folder: Path) -> bool:
    """Whether there are checkpoints that were found broken."""
    return folder.is_dir() and any(folder.glob("bad_step_*"))


def verify(path: Path) -> str:
    """What is wrong with a checkpoint, in a few words; empty if every byte is as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read: {type(error).__name__}"
    if not isinstance(manifest, dict) or manifest.get("digest") != _digest(manifest):
        return f"{MANIFEST} was changed"
    if _name(manifest["step"]) != path.name:
        return f"{MANIFEST} is of step {manifest['step']}"
    for name, entry in manifest["files"].items():
        try:
            fault = _fault(path / name, entry)
        except OSError as error:
            fault = f"cannot be read: {error.strerror}"
        if fault:
            return f"{name} {fault}"
    return ""


def prune(folder: Path, keep: int, *, besides: int | None = None, every: int = 0) -> None:
    """Remove all but the newest `keep` checkpoints, that of the step `besides`, and those of every so many steps."""
    for path in sorted(steps_on_disk(folder))[:-keep]:
        if step_of(path) == besides or (every and step_of(path) % every == 0):
            continue
        trash = path.with_name(f".trash_{path.name}")  # half a deletion must not look like a checkpoint
        try:
            path.rename(trash)
            shutil.rmtree(trash)
        except OSError as error:
            _LOG.warning("the old checkpoint %s could not be removed: %s", path, error.strerror)


def steps_on_disk(folder: Path) -> list[Path]:
    """Committed checkpoints, whole or not, in no order."""
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []


def _name(step: int) -> str:
    return f"step_{step:010d}"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return sha256([json.dumps(rest, sort_keys=True).encode()])


def _fault(file: Path, entry: dict[str, Any]) -> str:
    if not file.is_file():
        return "is missing"
    if file.stat().st_size != entry["size"]:
        return f"has {file.stat().st_size} bytes, not {entry['size']}"
    return "" if sha256_of_file(file) == entry["sha256"] else "was changed"


def _flush_and_hash(path: Path) -> dict[str, Any]:
    """Size and digest of a file as the disk has it, and not the memory that it was written through."""
    flush(path)
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return {"size": path.stat().st_size, "sha256": sha256_of_file(path)}
