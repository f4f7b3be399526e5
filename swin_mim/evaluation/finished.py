"""Measuring without training: which weights, on which images, where the results go. The same for every task."""

import json
import logging
import os
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from swin_mim.errors import UserError
from swin_mim.evaluation.classification_evaluator import last_report
from swin_mim.models.saving import Pretrained
from swin_mim.redaction import without_home
from swin_mim.training.channels import check_channels, warn_of_other_gaps
from swin_mim.training.checkpoints.state import TRAINER, published_step, read_state
from swin_mim.training.checkpoints.store import path_of
from swin_mim.training.config.dense.detect import BoxedDataConfig, DetectConfig
from swin_mim.training.config.dense.segment import MaskedDataConfig, SegmentConfig
from swin_mim.training.config.finetune import FinetuneConfig, LabelledDataConfig
from swin_mim.training.config.yaml_file import read_yaml
from swin_mim.training.finished import load_published, open_finished
from swin_mim.training.run.folder import CONFIG
from swin_mim.training.run.run import Run

EVALUATION = "evaluation"
AnyConfig = FinetuneConfig | SegmentConfig | DetectConfig
AnyData = LabelledDataConfig | MaskedDataConfig | BoxedDataConfig
M = TypeVar("M", bound=Pretrained)
T = TypeVar("T")

_LOG = logging.getLogger(__name__)


def published_model(kind: type[M], run: Run, config: AnyConfig) -> tuple[int | None, M]:
    """(the step, the model) that a run would publish; (None, model.pretrained) of a run without a checkpoint.

    Raises:
        UserError: there is none, or it takes other channels than the images have.
    """
    attention, data = config.train.attention, config.data
    if run.newest:
        step = published_step(read_state(run.newest), config.save.export, run.checkpoints)
        return step, load_published(kind, path_of(run.checkpoints, step), attention=attention)
    model, pretrained = open_finished(kind, config.model, attention=attention), str(config.model.pretrained)
    check_channels(model.preprocessing, data.channels, pretrained)
    warn_of_other_gaps(model.preprocessing, data.nodata, data.mask_channel, pretrained)
    return None, model


def unseen(run: Run, learned: tuple[str, T], everything: tuple[str, T], data: AnyData) -> T:
    """The images of data.source that a run with a checkpoint did not learn from; all where these cannot be told.

    Args:
        learned: (fingerprint of the images that a run of these settings learns from, those that it leaves out).
        everything: (fingerprint of all images of the source, all of them).
        data: the settings.

    Raises:
        UserError: data.exclude is another one than that of the run, so that nothing tells what it learned from.
    """
    assert run.newest is not None
    there = facts_of(run.newest)["images"]
    if there == learned[0]:
        return learned[1]
    if there == everything[0]:
        _LOG.warning("the run learned from these images: what is measured says nothing about others")
    else:
        _check_exclude(run, data)
        _LOG.warning(
            "data.source %r as it is now is not what the run learned from: all of it is evaluated, also images that "
            "the run may have learned from",
            data.source,
        )
    return everything[1]


def _check_exclude(run: Run, data: AnyData) -> None:
    was = (read_yaml(run.folder / CONFIG).get("data") or {}).get("exclude")
    places = [None if file is None else Path(file).expanduser().resolve() for file in (was, data.exclude)]
    if places[0] != places[1]:
        raise UserError(
            f"data.exclude is {data.exclude!r} and that of the run {run.folder} {was!r}: which of the images of "
            f"data.source {data.source!r} the run learned from cannot be told; use the same list, or name other "
            "images with data.validation"
        )


def say(run: Run, config: AnyConfig, step: int | None, said: Sequence[str]) -> None:
    """Say in one line what was measured of which model; `step` as of `published_model`."""
    where = config.model.pretrained if step is None else f"step {step} of {config.run.name}"
    run.log_info(f"{where}: {', '.join(said)}")


def metrics_text(measured: dict[str, float]) -> str:
    """ "accuracy 0.8123  heldout_loss 0.6420" """
    return "  ".join(f"{key} {value:.4f}" for key, value in measured.items())


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says that its run must have the same."""
    return dict(json.loads((checkpoint / TRAINER).read_text())["facts"])


def result_folder(run: Run, fingerprint: str, pretrained: str) -> tuple[Path, dict[str, str]]:
    """(where the results go, what is written with them): nothing replaces what was measured of another model or images.

    `fingerprint` is that of the images.

    What a run measured itself is in evaluation/; of other models and images the first results may be there too, the
    next ones are in evaluation_MODEL/, then evaluation_MODEL_2/ and so on.
    """
    about: dict[str, str] = {}
    if run.newest is None or facts_of(run.newest).get("evaluation images", fingerprint) != fingerprint:
        model = pretrained if run.newest is None else f"{run.folder}"
        about = {"model": without_home(model), "images": fingerprint}
    name = _model_name(about.get("model", str(run.folder)))
    for number in count():
        tail = "" if not number else f"_{name}" if number == 1 else f"_{name}_{number}"
        folder = run.folder / f"{EVALUATION}{tail}"
        there = last_report(folder)
        # what an earlier version wrote names no model: it is of the run itself if it is of a step
        same = all(there.get(key) == about.get(key) for key in ("model", "images"))
        if not there or (same and (about or there.get("step") is not None)):
            return folder, about
    raise AssertionError("count() has no end")


def _model_name(model: str) -> str:
    """ "runs/mine/export" -> "mine"."""
    parts = Path(os.path.normpath(model)).expanduser().parts
    telling = [part for part in parts if part not in ("export", "checkpoints") and not part.startswith("step_")]
    return re.sub(r"[^\w.-]+", "_", telling[-1] if telling else "model").removesuffix(".safetensors")
