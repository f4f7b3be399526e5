"""What the files of a run's folder say, for its page. Needs no torch, and computes nothing anew."""

import gzip
import json
import re
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from swin_mim.errors import UserError
from swin_mim.training.checkpoints import store
from swin_mim.training.run.jsonl import whole_lines
from swin_mim.training.run.lock import is_held

FACTS = "data_facts.json"
"""What the doctor found in the images, where somebody asked for it."""
LARGEST_INVENTORY = 64_000_000
"""Bytes of images.gz up to which its sizes are counted: some ten million images."""

_PICTURE = re.compile(r"step_[0-9]+\.png")
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,7}")
_KINDS = {
    "mask": "pretraining",
    "data.masks": "segmentation",
    "data.image_folder": "detection",
    "augment": "fine-tuning",
}
"""A setting that only runs of one kind have, the first that is there decides."""


@dataclass(frozen=True)
class Inventory:
    """The images that a run began with, or its shards where it streams, the held-out ones among them."""

    images: int
    suffixes: dict[str, int]
    """Number of the names that end so, the most frequent first; "" are those that are no names of files."""
    folders: int
    sizes: tuple[int, int, int] | None
    """Min, median and max in bytes; None: the source knows none."""


@dataclass(frozen=True)
class RunFiles:
    """One run, as its folder tells it. What a run does not write is empty."""

    folder: Path
    settings: Mapping[str, Any]
    """config.yaml: sections of settings."""
    metrics: list[dict[str, Any]]
    """metrics.jsonl, ordered by step."""
    status: dict[str, Any] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    broken: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    """evaluation/metrics.json: metrics, classes, confusions."""
    worst: list[dict[str, Any]] = field(default_factory=list)
    """evaluation/worst.json: the images that cost most, with pictures."""
    facts: dict[str, Any] = field(default_factory=dict)
    """data_facts.json: what `swin-mim doctor` finds in the images."""
    held: bool | None = None
    """Whether a process has the run; None: nobody can tell here."""

    @classmethod
    def read(cls, folder: Path) -> "RunFiles":
        """Read whatever is there; lines that a killed process left torn are not.

        Raises:
            UserError: it is no run's folder, or a file of it cannot be read.
        """
        path, metrics = folder / "config.yaml", folder / "metrics.jsonl"
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file: name the folder of a run, such as runs/demo")
        if not folder.is_dir():
            raise UserError(f"the run {folder} does not exist: name the folder of a run, such as runs/demo")
        if not path.is_file() and not metrics.is_file():
            raise UserError(f"{folder} is not a run: it has neither config.yaml nor metrics.jsonl")
        try:
            rows = [row for row in whole_lines(metrics) if isinstance(row, dict) and "step" in row]
            held = is_held(folder)  # before the status: a run that ends now has the lock until it has written that
            return cls(
                folder,
                _settings(path),
                sorted(rows, key=lambda row: row["step"]),
                status=_json(folder / "run_status.json"),
                starts=whole_lines(folder / "starts.jsonl"),
                changes=whole_lines(folder / "config_changes.jsonl"),
                skipped=whole_lines(folder / "skipped_steps.jsonl"),
                broken=whole_lines(folder / "broken_images.jsonl"),
                evaluation=_json(folder / "evaluation" / "metrics.json"),
                worst=_json(folder / "evaluation" / "worst.json").get("images", []),
                facts=_json(folder / FACTS),
                held=held,
            )
        except OSError as error:
            raise UserError(f"{folder}: {error.filename} cannot be read: {error.strerror}") from None

    @property
    def name(self) -> str:
        return str(self.setting("run.name") or self.folder.absolute().name)

    @property
    def kind(self) -> str:
        """ "pretraining", "fine-tuning", "segmentation", "detection", or "run" where nothing says it."""
        return next((kind for key, kind in _KINDS.items() if self.setting(key, missing=True)), "run")

    def setting(self, key: str, *, missing: bool = False) -> Any:
        """The value of "section.key", None where it is not there; with `missing` whether it is."""
        held: Any = self.settings
        for part in key.split("."):
            if not isinstance(held, Mapping) or part not in held:
                return False if missing else None
            held = held[part]
        return True if missing else held

    def last(self, key: str) -> float | None:
        """The newest value of a metric."""
        return next((row[key] for row in reversed(self.metrics) if row.get(key) is not None), None)

    def first(self, key: str) -> float | None:
        """The oldest value of a metric."""
        return next((row[key] for row in self.metrics if row.get(key) is not None), None)

    @property
    def step(self) -> int:
        """The newest step that anything tells of."""
        told = self.status.get("step", 0) if self.status.get("status") != "running" else 0
        return max([told, *(row["step"] for row in self.metrics[-1:])])

    @property
    def lost(self) -> bool:
        """Whether it ended without a word: killed, or its machine is gone."""
        return self.status.get("status") == "running" and self.held is False

    @property
    def checkpoint(self) -> int | None:
        """Step of the newest checkpoint; None: there is none."""
        return max(map(store.step_of, store.steps_on_disk(self.folder / "checkpoints")), default=None)

    @property
    def written(self) -> str:
        """When the newest of the files was written that a run writes all the time, as `timestamp` has it."""
        names = ("metrics.jsonl", "train.log", "run_status.json")
        newest = max((path.stat().st_mtime for name in names if (path := self.folder / name).is_file()), default=None)
        return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(newest)) if newest is not None else ""

    @property
    def pictures(self) -> list[Path]:
        """samples/step_*.png, oldest first."""
        return sorted(path for path in (self.folder / "samples").glob("*.png") if _PICTURE.fullmatch(path.name))

    @property
    def inventory(self) -> Inventory | None:
        """What images.gz lists; None: there is none, it is damaged, or larger than anybody wants to wait for."""
        path = self.folder / "images.gz"
        if not path.is_file() or (stat := path.stat()).st_size > LARGEST_INVENTORY:
            return None
        return _inventory(path, stat.st_mtime_ns)


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    return held if isinstance(held, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}: a page without it needs it removed") from None
    return held if isinstance(held, dict) else {}


@lru_cache(maxsize=8)
def _inventory(path: Path, changed: int) -> Inventory | None:
    """Counted once for each version of the file, which `changed` tells apart."""
    sizes: list[int] = []
    suffixes: Counter[str] = Counter()
    folders: set[str] = set()
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                size, name = line.rstrip("\n").split(" ", 1)
                sizes.append(int(size))
                place = PurePosixPath(name)
                suffixes[place.suffix.lower() if _SUFFIX.fullmatch(place.suffix) else ""] += 1
                folders.add(place.parent.as_posix())
    except (OSError, EOFError, ValueError, zlib.error):
        return None  # a resume says so itself
    if not sizes:
        return None
    sizes.sort()
    spread = (sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes[-1] > 0 else None
    return Inventory(len(sizes), dict(suffixes.most_common()), len(folders), spread)
