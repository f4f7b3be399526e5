"""Recipes as functions: what a notebook, a script or a service calls instead of the command."""

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from swin_mim.errors import UserError
from swin_mim.recipes import pretrain as recipe
from swin_mim.training.config.commands import pretrain_settings
from swin_mim.training.distributed.processes import world_size
from swin_mim.training.run.export import EXPORT
from swin_mim.training.run.folder import STATUS
from swin_mim.training.run.tracking import read_metrics

_busy = threading.Lock()
"""Accelerate's state and the log are there once in a process."""


@dataclass(frozen=True)
class PretrainResult:
    """Where a pretraining is, and how it went."""

    run: Path
    """Folder of the run."""
    finished: bool
    """Whether it reached its end; if not, the same call continues it."""
    export: Path | None
    """Folder of the published model, for `from_pretrained`; None as long as the run is not finished."""
    metrics: list[dict[str, float]] = field(repr=False)
    """A row for each line of metrics.jsonl, such as `pandas.DataFrame` takes."""
    pictures: list[Image.Image] = field(repr=False)
    """The last picture of the held-out images (image, what the model sees, prediction, composite); none without any."""


def pretrain(
    source: str | os.PathLike[str], config: str | os.PathLike[str] | Mapping[str, Any] | None = None, **settings: Any
) -> PretrainResult:
    """Pretrain a Swin in this process, or continue what is left of the run: `swin-mim pretrain` as a function.

    It may be called any number of times one after the other, from a notebook and from a thread. In a thread that is not
    the main one signals are left alone, and a warning says so.

    Args:
        source: data.source: a folder of images, a data set on the Hugging Face Hub, or "blue_marble".
        config: a YAML file, the name of a shipped one such as "simmim_swin_tiny_192_100ep", or a mapping of sections;
            None: the small network of the demo.
        settings: by their dotted names: **{"run.name": "mine", "train.duration": "10 epochs"}. Without a name the run
            is called after its source.

    Raises:
        UserError: a `ValueError` with the one line that the command would print.
    """
    named = config if config is None or isinstance(config, Mapping) else os.fspath(config)
    made = pretrain_settings(named, {"data.source": os.fspath(source)} | settings)
    if world_size() > 1:
        raise UserError(
            "swin_mim.pretrain trains in one process: for several use accelerate launch -m swin_mim.recipes.pretrain"
        )
    if not _busy.acquire(blocking=False):
        raise UserError("swin_mim.pretrain runs in another thread of this process: wait for its end")
    try:
        with _left_as_found():
            recipe.main(made)
    finally:
        _busy.release()
    folder = Path(made.run.root).expanduser() / made.run.name
    finished = json.loads((folder / STATUS).read_text())["status"] == "finished"
    pictures = sorted((folder / "samples").glob("step_*.png"))[-1:]
    return PretrainResult(
        run=folder,
        finished=finished,
        export=folder / EXPORT if finished else None,
        metrics=read_metrics(folder),
        pictures=[_loaded(path) for path in pictures],
    )


def _loaded(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture.copy()


@contextmanager
def _left_as_found() -> Iterator[None]:
    """Give accelerate's state, the log, torch's threads and its generator back as they were."""
    log, threads = logging.getLogger("swin_mim"), torch.get_num_threads()
    level, propagate, handlers = log.level, log.propagate, list(log.handlers)
    log.handlers[:] = []
    shared = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in shared]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        for state in shared:
            state.clear()
        try:
            yield
        finally:
            for state, values in zip(shared, before, strict=True):
                state.clear()
                state.update(values)
            for handler in list(log.handlers):
                log.removeHandler(handler)
                handler.close()
            log.handlers[:], log.propagate = handlers, propagate
            log.setLevel(level)
            torch.set_num_threads(threads)
