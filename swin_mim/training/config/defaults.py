"""Where the settings come from that a command does not give: which shipped config, and what the run is called."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from swin_mim.redaction import public_url, without_home, without_tokens

EMBEDDED = "blue_marble"
"""The source of the demos; every other one is the user's own."""

PROFILE = "data.color_profile"

_SPLITS = {"train", "training", "val", "valid", "validation", "test"}


@dataclass(frozen=True)
class Defaults:
    """What a recipe takes where nothing is said. Every `config` is the name of a shipped one."""

    config: str
    """Of the embedded images."""
    own: str
    """Of one's own images."""
    prefix: str = ""
    """Before the name of the source, in the name of a run on one's own images."""

    def __str__(self) -> str:
        return self.config if self.own == self.config else f"{self.config}, or {self.own} for images of one's own"

    def of(self, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """(config, settings over it) for a command without a config; `given` are its settings, by key.

        A run that an earlier version named after its config goes on under that name.
        """
        source = given.get("data.source", EMBEDDED)
        if source == EMBEDDED or self._began_before(given):
            return self.config, {}
        return self.own, {"run.name": self.name(given)}

    def remarks(self, config: str, given: Mapping[str, Any]) -> Iterator[str]:
        """What a command that took `config` for want of one has to say about it."""
        if given.get("data.source", EMBEDDED) == EMBEDDED or given.get("evaluate"):
            return
        if config != self.config:
            yield f"no --config: the settings are those of {config}, which --print-config shows"
        elif "run.name" not in given and self._began_before(given):
            run = _root(given) / self.config
            yield f"{run} holds a run of these images and goes on; --run.name starts another one"

    def completed(self, settings: dict[str, Any]) -> dict[str, Any]:
        """All settings that were given, with a name for the run if they have none, and colours as the run began.

        Pixels stay what they are in a run: one without the setting began when profiles were ignored.
        """
        if "run.name" not in settings and "data.source" in settings:
            settings = settings | {"run.name": self.name(settings)}
        folder = _root(settings) / str(settings.get("run.name", ""))
        if PROFILE in settings or not _has_checkpoints(folder):
            return settings
        began = _settings_of(folder)
        return settings if began is None else settings | {PROFILE: _setting(began, *PROFILE.split(".")) or "ignore"}

    def name(self, given: Mapping[str, Any]) -> str:
        """Name of a run that has none: its source's; of an evaluation of a model that is no such run, with a prefix."""
        source = str(given.get("data.source", EMBEDDED))
        run = self.prefix + source_name(source)
        if not given.get("evaluate"):
            return run
        began = _settings_of(_root(given) / run)
        start = given.get("model.pretrained")
        own = began is not None and (start is None or _plain(start) == _setting(began, "model", "pretrained"))
        return run if own else f"evaluate_{source_name(str(given.get('data.validation') or source))}"

    def _began_before(self, given: Mapping[str, Any]) -> bool:
        root = _root(given)
        if "run.name" in given or _has_checkpoints(root / self.name(given)):
            return False
        began = _settings_of(root / self.config) if _has_checkpoints(root / self.config) else None
        return began is not None and _setting(began, "data", "source") == _plain(given["data.source"])


def source_name(source: str) -> str:
    """Name of a source for a folder: the last part of a path, a table's without its suffix, a Hub data set's without
    its user; that of the folder above where the last part only says which split it is, or is a pattern."""
    address = public_url(source)
    path = address.partition("://")[2] if "://" in address else str(Path(os.path.expanduser(address)).absolute())
    parts = [part for part in os.path.normpath(path).split("/") if part]
    if parts and (suffix := re.search(r"(\.[A-Za-z]\w{1,8}){1,2}$", parts[-1])):
        parts[-1] = parts[-1][: suffix.start()] if "://" in address or Path(path).is_file() else parts[-1]
    telling = [part for part in parts if part.lower() not in _SPLITS and not set(part) & set("*?[{")]
    name = re.sub(r"[^\w.-]+", "_", telling[-1] if telling else "").strip("._-")
    return name or "images"


def _root(given: Mapping[str, Any]) -> Path:
    return Path(given.get("run.root", "runs")).expanduser()


def _has_checkpoints(run: Path) -> bool:
    return any(run.glob("checkpoints/step_*"))


def _settings_of(run: Path) -> Mapping[str, Any] | None:
    """The settings that a run's folder holds; None: it is no run, or not to be read."""
    try:
        held = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return held if isinstance(held, Mapping) else None


def _setting(settings: Mapping[str, Any], section: str, key: str) -> Any:
    held = settings.get(section)
    return held.get(key) if isinstance(held, Mapping) else None


def _plain(value: Any) -> str:
    """A setting as a run's folder holds it."""
    return without_home(without_tokens(str(value)))
