"""What the doctor finds in the images of a run, kept in its folder for its page. For `swin-mim report --facts`."""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swin_mim.architecture import as_pair
from swin_mim.cli.doctor.command import IMAGES
from swin_mim.cli.doctor.images.expectation import lines
from swin_mim.cli.doctor.images.forecast import forecast_of
from swin_mim.cli.doctor.images.source import look_at_all
from swin_mim.cli.doctor.opened import open_images
from swin_mim.data.sources.base import Source
from swin_mim.errors import UserError
from swin_mim.evaluation.report.run_files import FACTS
from swin_mim.files import replace_json
from swin_mim.training.config.parsing import from_mapping
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import swin_config
from swin_mim.training.config.yaml_file import read_yaml
from swin_mim.training.images import channels_of_settings, open_source_of
from swin_mim.training.run.folder import CONFIG
from swin_mim.training.run.jsonl import timestamp


class _Sample(NamedTuple):
    """The images to look at: all, or those of one shard where looking at all would bring every shard."""

    source: Source
    training: Source
    images: int
    """To train on, all of them."""
    of_a_shard: bool


def keep_facts(folders: Sequence[Path], labelled: int | None = None) -> None:
    """Look at the images of pretrainings as the doctor does with their settings, and write data_facts.json of each.

    Of a source that is streamed these are the images of its first shard.

    Args:
        folders: of the runs; their data.source has to be there still.
        labelled: number of images with labels, if it is known.

    Raises:
        UserError: one is no pretraining, which is said before any image is looked at, or has images that cannot be.
    """
    for folder, config in [(folder, _config(folder)) for folder in folders]:
        _keep(folder, config, labelled)


def _keep(folder: Path, config: PretrainConfig, labelled: int | None) -> None:
    sample = _sample(config)
    size = as_pair(swin_config(config.model).image_size)
    images = look_at_all(sample.source, IMAGES, size, len(os.sched_getaffinity(0)))
    if images.broken == images.looked_at:
        first = images.first_broken[0]
        raise UserError(f"none of the images of {folder} can be read, the first: {first.name}: {first.reason}")
    forecast = forecast_of(config, sample.training, sample.source.channels, labelled)
    forecast = replace(forecast, unlabelled=sample.images)
    known: dict[str, Any] = {"time": timestamp(), "of_a_shard": sample.of_a_shard, "images": asdict(images)}
    try:
        replace_json(folder / FACTS, known | {"forecast": asdict(forecast), "expected": [*lines(forecast, config)]})
    except OSError as error:
        raise UserError(f"{folder / FACTS} cannot be written: {error.strerror or error}") from None


def _config(folder: Path) -> PretrainConfig:
    path = folder / CONFIG
    mapping = read_yaml(path)
    if "mask" not in mapping:
        raise UserError(f"{folder} is no pretraining, whose images alone swin-mim doctor looks at: leave --facts out")
    return from_mapping(PretrainConfig, mapping, path)


def _sample(config: PretrainConfig) -> _Sample:
    if not config.data.streaming:
        opened = open_images(config)
        return _Sample(opened.source, opened.training, len(opened.training), of_a_shard=False)
    source = open_source_of(config.data, channels_of_settings(config))
    training, _ = source.split(config.data.heldout, config.run.seed)
    shard = training.without(np.asarray(training.near(0)))
    return _Sample(shard, shard, len(training), of_a_shard=True)
