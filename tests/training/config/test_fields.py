from dataclasses import is_dataclass

import pytest

from swin_mim.training.config.fields import RENAMED, kinds, leaf_kinds, leaves, texts
from swin_mim.training.config.finetune import FinetuneConfig, FinetuneOptimConfig
from swin_mim.training.config.pretrain import OptimConfig, PretrainConfig, RunConfig


@pytest.mark.parametrize("config", [PretrainConfig, FinetuneConfig])
def test_every_setting_has_a_text(config: type) -> None:
    sections = {"": config} | {f"{name}.": kind for name, kind in kinds(config).items() if is_dataclass(kind)}
    explained = {prefix + name for prefix, section in sections.items() for name, text in texts(section).items() if text}
    assert {key for key, _ in leaf_kinds(config)} == explained


def test_a_text_is_that_of_the_nearest_class() -> None:
    assert texts(OptimConfig)["base_lr"] == "Learning rate after the warm-up, per 512 images."
    assert texts(FinetuneOptimConfig)["base_lr"] == "Learning rate after the warm-up, per 512 images, of the head."
    assert texts(FinetuneOptimConfig)["gamma"] == texts(OptimConfig)["gamma"]


def test_leaves_are_in_the_order_of_the_fields() -> None:
    config = PretrainConfig(RunConfig("x"))
    assert [key for key, _ in leaves(config)] == [key for key, _ in leaf_kinds(PretrainConfig)]
    assert dict(leaves(config))["run.name"] == "x"


def test_old_names_are_no_settings_and_the_new_ones_are() -> None:
    known = {key for config in (PretrainConfig, FinetuneConfig) for key, _ in leaf_kinds(config)}
    assert RENAMED.keys() & known == set()
    assert set(RENAMED.values()) <= known
