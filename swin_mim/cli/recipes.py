"""swin-mim pretrain, finetune, segment and detect: the recipes, in one process.

The command line is read before torch is loaded.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from swin_mim.errors import one_line_errors
from swin_mim.training.config.commands import detect_config, finetune_config, pretrain_config, segment_config


def pretrain(arguments: Sequence[str] | None = None) -> int:
    return _run("pretrain", pretrain_config, arguments)


def finetune(arguments: Sequence[str] | None = None) -> int:
    return _run("finetune", finetune_config, arguments)


def segment(arguments: Sequence[str] | None = None) -> int:
    return _run("segment", segment_config, arguments)


def detect(arguments: Sequence[str] | None = None) -> int:
    return _run("detect", detect_config, arguments)


def _run(name: str, parse: Callable[[Sequence[str] | None], Any], arguments: Sequence[str] | None) -> int:
    with one_line_errors():
        config = parse(arguments)
        return int(import_module(f"swin_mim.recipes.{name}").main(config))
