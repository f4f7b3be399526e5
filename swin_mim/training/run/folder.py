"""The folder of a run: whose it is, how it stands, and which images it could not read."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from swin_mim.data.loading.loader import Batch
from swin_mim.errors import PEER_LOST, UserError
from swin_mim.files import LockHeld, lock, replace_json, replace_text
from swin_mim.redaction import without_home, without_tokens
from swin_mim.training.checkpoints import store
from swin_mim.training.checkpoints.state import RunState
from swin_mim.training.config.common_checks import immutable_differences, mutable_differences
from swin_mim.training.config.dense.recipes import RecipeConfig
from swin_mim.training.config.parsing import from_mapping
from swin_mim.training.config.yaml_file import to_yaml
from swin_mim.training.distributed.processes import lost_peer
from swin_mim.training.run.jsonl import append_line, disk_may_fail, timestamp, whole_lines
from swin_mim.training.run.lock import LOCK

CONFIG = "config.yaml"
LOG = "train.log"
STATUS = "run_status.json"
CHANGES = "config_changes.jsonl"
MASK_COUNTS = "mask_counts.json"
"""What was counted in all masks."""
MOST_BROKEN_SAID = 20
"""Broken images that the log names one by one."""

_BEFORE = {CONFIG, LOCK, LOG, MASK_COUNTS}
"""What is there before a run begins."""
_LOG = logging.getLogger(__name__)


class Claimed(NamedTuple):
    """What `claim` finds."""

    config: RecipeConfig
    """The settings, with those that the run alone knows: how it was extended."""
    extends: bool
    """Whether they make a run longer that has ended. Then they are not written down yet."""


def claim(folder: Path, config: RecipeConfig, *, write: bool = True) -> Claimed:
    """Make sure that the settings continue the run that is there, if any, and write them down.

    Mutable settings that differ from before go to config_changes.jsonl, with the step that the run is continued from.

    Raises:
        UserError: the folder has checkpoints of a run with other settings; names each of them.
    """
    path, extends = folder / CONFIG, False
    if path.exists() and store.steps_on_disk(folder / "checkpoints"):
        saved = _saved(path, config)
        config, extends = _extended(folder, saved, config)
        current = _parsed(_text(config), config, path)
        if "color_profile" not in (yaml.safe_load(path.read_text()).get("data") or {}):
            if write:
                _LOG.info(_colours_text(current))
            data: Any = replace(saved.data, color_profile=current.data.color_profile)
            saved = replace(saved, data=data)
        _check_same(folder, saved, current, extends=extends)
        changes = mutable_differences(saved, current)
        if write and changes:
            _LOG.info("settings that changed since the last start: %s", "; ".join(changes))
            _note(folder, changes)
    if write and not extends:
        replace_text(path, _text(config))
    return Claimed(config, extends)


def write_extension(folder: Path, config: RecipeConfig) -> None:
    """Write down the settings of a run that are longer than before, once it is sure that it had ended."""
    duration, before = config.train.duration, config.train.extended[-1]
    _note(folder, [f"train.duration: {before} -> {duration}"])
    replace_text(folder / CONFIG, _text(config))


def _extended(folder: Path, saved: RecipeConfig, config: RecipeConfig) -> Claimed:
    """The settings, with how the run was extended before, and is now: told by another duration after its end."""
    train = config.train
    if not train.extended:
        train = replace(train, extended=saved.train.extended)
    extends = train.extended == saved.train.extended and train.duration != saved.train.duration and _ended(folder)
    if extends:
        train = replace(train, extended=(*train.extended, saved.train.duration))
    same: Any = train  # of the class that the recipe has
    return Claimed(replace(config, train=same), extends)


def _ended(folder: Path) -> bool:
    """Whether a run has a checkpoint of its last step, as far as its folder knows how long it is."""
    try:
        total = json.loads((folder / STATUS).read_text())["total_steps"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(max(map(store.step_of, store.steps_on_disk(folder / "checkpoints"))) >= total)


def _check_same(folder: Path, saved: RecipeConfig, current: RecipeConfig, *, extends: bool) -> None:
    if extends:
        train: Any = replace(saved.train, duration=current.train.duration, extended=current.train.extended)
        saved = replace(saved, train=train)
    differences = immutable_differences(saved, current)
    longer = any(line.startswith("train.duration:") for line in differences)
    if differences:
        raise UserError(
            f"{folder} holds a run with other settings ({'; '.join(differences)}): "
            "start another run with --run.name, or continue this one with its own settings"
            + ("; it can be made longer once it has ended" if longer else "")
        )


def _note(folder: Path, changes: list[str]) -> None:
    step = max(store.step_of(found) for found in store.steps_on_disk(folder / "checkpoints"))
    append_line(folder / CHANGES, {"step": step, "time": timestamp(), "changes": changes})


def _text(config: RecipeConfig) -> str:
    return without_home(without_tokens(to_yaml(config)))


@contextmanager
def removed_unless_begun(folder: Path) -> Iterator[None]:
    """Remove the new folder of a run, and those above it that are new, if a user's mistake ends it before it begins.

    What was there before stays, and so does a folder that holds more than its settings, its lock and its first lines.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    if folder.is_dir() and not any(folder.iterdir()):  # as another process of the run may have made it
        new = [folder]
    try:
        yield
    except UserError:
        begun = folder.is_dir() and {path.name for path in folder.iterdir()} - _BEFORE
        if new and not begun and os.environ.get("RANK", "0") == "0":
            _remove_unless_held(folder, new)
        raise


def _remove_unless_held(folder: Path, new: Sequence[Path]) -> None:
    """Another process may have begun a run there since: then it has the lock."""
    try:
        held = lock(folder / LOCK) if folder.is_dir() else None
    except (LockHeld, OSError):
        return
    try:
        _remove(folder, new)
    finally:
        if held is not None:
            held.release()


def _remove(folder: Path, new: Sequence[Path]) -> None:
    try:
        for name in _BEFORE:
            (folder / name).unlink(missing_ok=True)
        for path in new:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
    except OSError as error:  # the mistake is what its reader has to know
        _LOG.warning("%s, where no run has begun, could not be removed: %s", folder, error.strerror or error)


def _colours_text(config: RecipeConfig) -> str:
    """What is said of a run that began before there was data.color_profile, when profiles were ignored."""
    if config.data.color_profile == "convert":
        return "colour profiles are converted from here on: until now this run ignored them"
    return "this run began when colour profiles were ignored and goes on so; --data.color-profile convert changes that"


def _saved(path: Path, config: RecipeConfig) -> RecipeConfig:
    try:
        return _parsed(without_home(without_tokens(path.read_text())), config, path)
    except UserError as error:
        raise UserError(
            f"{path.parent} holds a run of another kind or version ({error}): start another one with --run.name"
        ) from None


def _parsed(text: str, like: RecipeConfig, path: Path) -> RecipeConfig:
    return from_mapping(type(like), yaml.safe_load(text), where=str(path))


@contextmanager
def reported(folder: Path, state: RunState, total_steps: int, *, main: bool) -> Iterator[None]:
    """Keep run_status.json true: "running", then "finished", "stopped" (the run can be continued) or "failed".

    Raises:
        UserError: another process of the run is gone.
    """

    def write(status: str) -> None:
        if main:
            values = {"status": status, "step": state.step, "total_steps": total_steps, "time": timestamp()}
            with disk_may_fail(STATUS):
                replace_json(folder / STATUS, values)

    write("running")
    try:
        yield
    except BaseException as error:
        write("failed")
        if lost_peer(error):
            raise UserError(
                f"another process of the run is gone ({str(error).splitlines()[0]}): start again to continue from the "
                "last checkpoint; the log of that process, or the system's (out of memory?), says why it ended",
                local=True,
                code=PEER_LOST,
            ) from error
        raise
    write("finished" if state.step >= total_steps else "stopped")


class BrokenImages:
    """The list of images that could not be read, in the run's folder; a process names each but once.

    Args:
        instead: what happens to such an image, for the log.
    """

    def __init__(self, path: Path, instead: str = "another image takes its place") -> None:
        self._path, self._instead, self._said = path, instead, 0
        self._known = {entry["name"] for entry in whole_lines(path)}

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; what they report is written down."""
        for batch in batches:
            for name, reason in batch.broken:
                self._add(name, reason)
            yield batch

    def _add(self, name: str, reason: str) -> None:
        if name in self._known:
            return
        self._known.add(name)
        append_line(self._path, {"name": name, "reason": reason})
        self._said += 1
        if self._said <= MOST_BROKEN_SAID:
            _LOG.warning("cannot read %s (%s): %s", name, reason, self._instead)
        if self._said == MOST_BROKEN_SAID:
            _LOG.warning("further images that cannot be read are only listed, in %s", self._path)
