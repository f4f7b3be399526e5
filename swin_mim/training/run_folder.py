"""The folder of a run: whose it is, how it stands, and which images it could not read."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from swin_mim.data.loader import Batch
from swin_mim.errors import UserError
from swin_mim.training import checkpoint
from swin_mim.training.config import FinetuneConfig, PretrainConfig, from_mapping, frozen_differences, to_yaml
from swin_mim.training.json_lines import append_line, whole_lines
from swin_mim.training.run_state import RunState

CONFIG = "config.yaml"
STATUS = "run_status.json"

_LOG = logging.getLogger(__name__)


def claim(folder: Path, config: PretrainConfig | FinetuneConfig, *, write: bool = True) -> None:
    """Make sure that the settings continue the run that is there, if any, and write them down.

    Raises:
        UserError: the folder has checkpoints of a run with other settings; names each of them.
    """
    path = folder / CONFIG
    if path.exists() and checkpoint.steps_on_disk(folder / "checkpoints"):
        saved = _saved(path, config)
        differences = frozen_differences(saved, config)
        if differences:
            raise UserError(
                f"{folder} holds a run with other settings ({'; '.join(differences)}): "
                "start another run with --run.name, or continue this one with its own settings"
            )
    if not write:
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(to_yaml(config))
    temporary.replace(path)


def _saved(path: Path, config: PretrainConfig | FinetuneConfig) -> PretrainConfig | FinetuneConfig:
    try:
        return from_mapping(type(config), yaml.safe_load(path.read_text()), where=str(path))
    except UserError as error:
        raise UserError(
            f"{path.parent} holds a run of another kind or version ({error}): start another one with --run.name"
        ) from None


@contextmanager
def reported(folder: Path, state: RunState, total_steps: int, *, main: bool) -> Iterator[None]:
    """Keep run_status.json true: "running", then "finished", "stopped" (the run can be continued) or "failed"."""

    def write(status: str) -> None:
        if main:
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            values = {"status": status, "step": state.step, "total_steps": total_steps, "time": now}
            checkpoint.write_json(folder / STATUS, values)

    write("running")
    try:
        yield
    except BaseException:
        write("failed")
        raise
    write("finished" if state.step >= total_steps else "stopped")


class BrokenImages:
    """The list of images that could not be read, in the run's folder; a process names each but once."""

    def __init__(self, path: Path) -> None:
        self._path = path
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
        _LOG.warning("cannot read %s (%s): another image takes its place", name, reason)
        append_line(self._path, {"name": name, "reason": reason})
