"""The settings of each recipe, from its command line or from Python. Needs no torch, so that `--help` is quick."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swin_mim.training.config import finetune_checks, pretrain_checks
from swin_mim.training.config.defaults import Defaults
from swin_mim.training.config.dense import detect_checks, segment_checks
from swin_mim.training.config.dense.detect import DetectConfig
from swin_mim.training.config.dense.segment import SegmentConfig
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.config.parsing import from_settings, load_config
from swin_mim.training.config.pretrain import PretrainConfig

_PRETRAIN: dict[str, Any] = {
    "default_config": Defaults("demo", own="demo"),
    "complete": pretrain_checks.with_packed_channels,
    "check": pretrain_checks.check,
}
_FINETUNE: dict[str, Any] = {
    "default_config": Defaults("finetune_demo", own="finetune_images", prefix="finetune_"),
    "check": finetune_checks.check,
}
_SEGMENT: dict[str, Any] = {
    "default_config": Defaults("segment_demo", own="segment_images", prefix="segment_"),
    "check": segment_checks.check,
}
_DETECT: dict[str, Any] = {
    "default_config": Defaults("detect_demo", own="detect_images", prefix="detect_"),
    "check": detect_checks.check,
}


def pretrain_config(arguments: Sequence[str] | None = None) -> PretrainConfig:
    """Read the settings of a pretraining from a command line; None takes that of the process.

    Raises:
        UserError: as `load_config`.
    """
    text = "Pretrain a Swin Transformer with SimMIM on images without labels."
    return load_config(PretrainConfig, arguments, prog="swin-mim pretrain", description=text, **_PRETRAIN)


def finetune_config(arguments: Sequence[str] | None = None) -> FinetuneConfig:
    """Read the settings of a fine-tuning, as `pretrain_config`."""
    text = "Fine-tune a Swin Transformer as a classifier, or measure one."
    return load_config(FinetuneConfig, arguments, prog="swin-mim finetune", description=text, **_FINETUNE)


def segment_config(arguments: Sequence[str] | None = None) -> SegmentConfig:
    """Read the settings of a semantic segmentation, as `pretrain_config`."""
    text = "Train a Swin Transformer to give every pixel a class, or measure one."
    return load_config(SegmentConfig, arguments, prog="swin-mim segment", description=text, **_SEGMENT)


def detect_config(arguments: Sequence[str] | None = None) -> DetectConfig:
    """Read the settings of an object detection, as `pretrain_config`."""
    text = "Train a Swin Transformer to find objects in images, or measure one."
    return load_config(DetectConfig, arguments, prog="swin-mim detect", description=text, **_DETECT)


def pretrain_settings(config: str | Path | Mapping[str, Any] | None, settings: Mapping[str, Any]) -> PretrainConfig:
    """A config and settings over it, such as {"train.duration": "10 epochs"} -> settings of a pretraining.

    Args:
        config: a YAML file, the name of a shipped one, or what such a file would hold; None: the demo.

    Raises:
        UserError: an unknown setting, a wrong type, or settings that cannot go together.
    """
    return from_settings(PretrainConfig, config, settings, **_PRETRAIN)
