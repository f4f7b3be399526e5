"""A run as a published model: what its folder tells for the card, and pushing while training goes on."""

import json
import logging
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from swin_mim import __version__
from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.files import replace_json, writing
from swin_mim.hub import repository
from swin_mim.hub.about import About, Picture, Result, Training
from swin_mim.hub.card import card
from swin_mim.hub.saved import check_replaceable
from swin_mim.redaction import name_of, public_url, yaml_without_paths
from swin_mim.training.checkpoints.state import RunState
from swin_mim.training.config.dense.recipes import RecipeConfig
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.yaml_file import to_yaml
from swin_mim.training.loop.schedule import scaled
from swin_mim.training.run.tracking import baselines, duration_text, plot_losses, read_metrics
from swin_mim.weights.compatibility import unsupported_reason
from swin_mim.weights.config_json import Description

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where data and first weights are from, as seen when a run first starts: a folder may be gone when it ends."""

    data_on_hub: bool
    base_on_hub: bool
    base_is_simmim: bool
    """Whether the first weights are those of a masked image model."""

    @classmethod
    def of(cls, folder: Path, config: RecipeConfig, *, base_is_simmim: bool, resumed: bool) -> "Origin":
        """Written down in the run's folder when it starts; a resumed run reads it there."""
        path = folder / "origin.json"
        if resumed and path.is_file():
            return cls(**json.loads(path.read_text()))
        source, base = config.data.source, config.model.pretrained
        # what is streamed may also be at addresses, or named by a pattern
        named = source != "blue_marble" and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None
        data = named and not Path(source).expanduser().exists()
        origin = cls(data, base is not None and repository.is_repo_name(base), base_is_simmim)
        with writing(folder):
            replace_json(path, asdict(origin))
        return origin


@dataclass(frozen=True)
class RunFacts:
    """What a card tells of a run besides its settings."""

    folder: Path
    origin: Origin
    devices: str
    """On what it ran, as "8 x NVIDIA H100"."""
    precision: str
    """Name of its arithmetic, as "bf16"."""


def about_run(run: RunFacts, config: PretrainConfig, state: RunState, *, images: int, heldout: int) -> About:
    """What a pretraining run tells of itself: only what was measured, and the settings as they were.

    Args:
        state: where it stands.
        images, heldout: how many there were to train and to measure on.
    """
    caption = "Held-out images: the image, what the model sees of it, its prediction, the holes filled with that."
    drawn = sorted((run.folder / "samples").glob("step_*.png"))[-1:]
    pictures = [Picture(file, "reconstructions.png", caption) for file in drawn]
    caption = "Loss over the steps. The held-out images have the same masks each time."
    pictures.append(Picture(plot_losses(run.folder), "loss.png", caption))
    return replace(
        about_config(config, run.origin),
        training=Training(
            data=_data(config.data.source, run.origin, images, heldout),
            steps=state.step,
            images=state.samples_seen,
            facts=_method(config) | facts_of(run, config) | _comparisons(run.folder),
            config_yaml=recipe_yaml(config),
            command="accelerate launch -m swin_mim.recipes.pretrain --config recipe.yaml  # the recipe below as a file",
        ),
        results=_results(run.folder, config, heldout),
        pictures=tuple(pictures),
    )


def about_config(config: RecipeConfig, origin: Origin) -> About:
    """What the settings say of the model by themselves."""
    return About(
        name=config.hub.repo or config.run.name,
        repo=config.hub.repo,
        license=config.hub.license,
        base_model=config.model.pretrained if origin.base_on_hub else None,
        datasets=(config.data.source,) if origin.data_on_hub else (),
    )


def recipe_yaml(config: RecipeConfig) -> str:
    """The settings for a card, without anything private."""
    data: Any = replace(config.data, source=public_url(config.data.source))
    return yaml_without_paths(to_yaml(replace(config, data=data, hub=replace(config.hub, repo=None))))


def check(folder: Path, config: RecipeConfig, description: Description) -> None:
    """Refuse now what would be refused when the run ends: the place of the export, the card, the copy.

    Args:
        folder: of the run.
        description: of the model that will be trained.

    Raises:
        UserError: as `save_pretrained` and the card do.
    """
    check_replaceable(folder / "export")
    about = About(license=config.hub.license, repo=config.hub.repo)
    card(description, about, folder=config.run.name, parameters=0)
    reason = unsupported_reason("transformers", description) if config.hub.transformers else ""
    if reason:
        raise UserError(f"hub.transformers: {reason}; or leave the copy out")


def devices_text(device: torch.device, processes: int) -> str:
    """ "8 x NVIDIA H100 80GB HBM3", or the processor's name."""
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{counted(processes * torch.get_num_threads(), 'thread')} of {name}"


class Publisher:
    """Pushes the export of a run, during training without holding it up.

    Args:
        folder: the export. While a push is under way, nobody else may write to it.
        write: writes the export anew.
        repo, private: as in `repository.push`.
    """

    def __init__(self, folder: Path, write: Callable[[], None], repo: str, *, private: bool) -> None:
        self._folder, self._write, self._repo, self._private = folder, write, repo, private
        self._push: Thread | None = None

    def offer(self, message: str) -> None:
        """Push in the background, unless a push is still under way. Whatever fails is a warning: training goes on."""
        if self._push is not None and self._push.is_alive():
            _LOG.warning("the last push to %s is still under way: %s is not pushed", self._repo, message)
            return
        try:
            self._write()
        except Exception as error:  # of pictures, disks and the Hub: none is worth the run
            _LOG.warning("%s is not pushed: %s", message, error)
            return
        self._push = Thread(target=self._quietly, args=(message,), name="push", daemon=True)
        self._push.start()

    def finish(self, message: str) -> str:
        """Wait for the push under way, write the export and push it -> the commit's address.

        Raises:
            UserError: the push failed or was interrupted; the export is there.
        """
        try:
            if self._push is not None and self._push.is_alive():
                _LOG.info("waiting for the last push to %s", self._repo)
                self._push.join()
            self._write()
            return repository.push(self._folder, self._repo, private=self._private, message=message)
        except KeyboardInterrupt:
            raise UserError(
                f"interrupted; nothing of the last step was pushed to {self._repo}: the same command again writes the "
                "export and pushes it"
            ) from None

    def leave(self) -> None:
        """Say of a push under way that it is given up: the repository stays as it was."""
        if self._push is not None and self._push.is_alive():
            _LOG.warning("a push to %s was under way and is given up", self._repo)

    def _quietly(self, message: str) -> None:
        try:
            address = repository.push(self._folder, self._repo, private=self._private, message=message)
        except Exception as error:
            _LOG.warning("%s", error)
        else:
            _LOG.info("pushed %s: %s", message, address)


def _data(source: str, origin: Origin, images: int, heldout: int) -> str:
    kept = f"; {heldout} more were held out to measure on" if heldout else ""
    if source == "blue_marble":
        return (
            f"{images} satellite tiles of land, cut from NASA's Blue Marble (public domain){kept}, "
            "from other longitudes, so that none touches a training tile."
        )
    where = f"the data set {source}" if origin.data_on_hub else f'a folder "{name_of(source)}"'
    if "://" in source:
        where = f"shards at {public_url(source)}"
    return f"{images} unlabelled images of {where}{kept}."


def _method(config: PretrainConfig) -> dict[str, str]:
    return {
        "Method": f"SimMIM, target {config.model.target}{', of every stage' * (config.model.supervise == 'stages')}",
        **({"Teacher": name_of(config.teacher.model)} if config.teacher.model else {}),
        "Mask": f"{config.mask.ratio:.0%} of squares of {config.mask.unit} pixels",
    }


def facts_of(run: RunFacts, config: RecipeConfig) -> dict[str, str]:
    """Rows of a card that any run has."""
    optim, train = config.optim, config.train
    facts = {
        "Global batch": str(train.global_batch),
        "Peak learning rate": f"{scaled(optim.base_lr, train.global_batch):.3g} (AdamW, {optim.schedule})",
        "Weight decay": str(optim.weight_decay),
        "Precision": run.precision,
        "Hardware": run.devices,
        "Software": f"swin_mim {__version__}, torch {torch.__version__}",
    }
    seconds = _seconds_of_steps(run.folder, train.global_batch)
    if seconds:
        facts["Time of the training steps"] = duration_text(seconds)
    if config.model.pretrained:
        facts["Started from"] = name_of(config.model.pretrained)
    return facts


def _comparisons(folder: Path) -> dict[str, str]:
    fillings = baselines(folder)
    if not fillings:
        return {}
    return {
        "For comparison: holes filled with the mean of the visible pixels": f"{fillings['mean_fill_error']:.4f}",
        "For comparison: holes interpolated": f"{fillings['interpolation_error']:.4f}",
    }


def _seconds_of_steps(folder: Path, global_batch: int) -> float:
    seconds, before = 0.0, 0.0
    for row in read_metrics(folder):
        if row.get("images_per_second"):
            seconds += (row["step"] - before) * global_batch / row["images_per_second"]
            before = row["step"]
    return seconds


def _results(folder: Path, config: PretrainConfig, heldout: int) -> tuple[Result, ...]:
    losses = [row["heldout_loss"] for row in read_metrics(folder) if "heldout_loss" in row]
    if not losses:
        return ()
    source = "Blue Marble" if config.data.source == "blue_marble" else name_of(public_url(config.data.source))
    return (
        Result(
            source, f"masked L1 on {heldout} held-out images, normalised pixels", "l1", round(losses[-1], 6), "held out"
        ),
    )
