"""The starts of a run in its folder: when each was, on which machine and with which versions."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from swin_mim import __version__
from swin_mim.training.run.jsonl import append_line, timestamp

STARTS = "starts.jsonl"
_PACKAGES = ("torch", "torchvision", "accelerate", "timm", "numpy", "pillow")


def note_start(folder: Path, step: int, facts: Mapping[str, Any]) -> None:
    """Add a line: the time, the step that the run goes on from, what is known of the run, and the versions.

    Nothing in it names the machine or its user.
    """
    entry = {"time": timestamp(), "step": step, **facts, "system": platform.platform(), "versions": versions()}
    append_line(folder / STARTS, entry)


def versions() -> dict[str, str]:
    """Of this package, of Python, and of the packages that decide what a run computes."""
    found = {"swin_mim": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # on a path, without metadata
            continue
    return found | ({"CUDA": torch.version.cuda} if torch.version.cuda else {})
