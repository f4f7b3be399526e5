"""Published recipes as steps and rates: the YAML file, the schedule and the parameter groups together."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from swin_mim import SwinClassifier, SwinConfig
from swin_mim.errors import UserError
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.config.parsing import from_mapping
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.yaml_file import read_yaml
from swin_mim.training.loop.optim import parameter_groups
from swin_mim.training.loop.schedule import TrainingSchedule

CONFIGS = Path(__file__).parents[3] / "recipes" / "configs"
IMAGENET = 1_281_167
STEPS_PER_EPOCH = IMAGENET / 2048
FINETUNE = {
    "finetune_swin_base_192": 0.9,
    "finetune_swin_base_224": 0.9,
    "finetune_swin_base_224_800ep": 0.8,
    "finetune_swin_large_224_800ep": 0.7,
    "finetune_swin_tiny_192": 0.9,
    "finetune_swinv2_base_224_800ep": 0.75,
}
"""Recipe -> layer decay."""


def pretraining(name: str) -> PretrainConfig:
    return from_mapping(PretrainConfig, read_yaml(CONFIGS / f"{name}.yaml"), name)


def fine_tuning(name: str) -> FinetuneConfig:
    return from_mapping(FinetuneConfig, read_yaml(CONFIGS / f"{name}.yaml"), name)


@pytest.mark.parametrize(("name", "decay"), FINETUNE.items())
def test_fine_tuning_rates_of_every_group_are_those_of_timms_scheduler(name: str, decay: float) -> None:
    """The official code gives timm's cosine groups of base rate x scale; every rate, over the whole run."""
    from timm.scheduler import CosineLRScheduler

    config = fine_tuning(name)
    assert config.optim.layer_decay == decay
    plan = TrainingSchedule.from_config(config, images=IMAGENET, accumulation=1)
    assert plan.total_steps == pytest.approx(100 * STEPS_PER_EPOCH, abs=1)
    with torch.device("meta"):
        model = SwinClassifier(SwinConfig.named(str(config.model.name)), 1000)
    groups = parameter_groups(model, weight_decay=config.optim.weight_decay, layer_decay=decay)
    rate = plan.learning_rate
    theirs = torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 5e-3 * group["lr_scale"]} for group in groups], lr=1.0
    )
    warmup = plan.steps("20 epochs")
    scheduler = CosineLRScheduler(
        theirs, t_initial=plan.total_steps, lr_min=1e-6, warmup_lr_init=1e-6, warmup_t=warmup, t_in_epochs=False
    )
    for step in [*range(0, plan.total_steps, 4999), warmup - 1, warmup, plan.total_steps - 1]:
        scheduler.step_update(step)
        found = [rate(step, group["lr_scale"]) for group in groups]
        assert found == pytest.approx([group["lr"] for group in theirs.param_groups], rel=1e-9), step
    assert rate(0, decay**25) == pytest.approx(1e-6)


def test_pretraining_with_a_cosine_is_that_of_timm() -> None:
    from timm.scheduler import CosineLRScheduler

    config = pretraining("simmim_swin_base_192_100ep")
    plan = TrainingSchedule.from_config(config, images=IMAGENET, accumulation=1)
    rate = plan.learning_rate
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=8e-4)
    scheduler = CosineLRScheduler(
        theirs,
        t_initial=plan.total_steps,
        lr_min=4e-5,
        warmup_lr_init=4e-6,
        warmup_t=plan.steps("10 epochs"),
        t_in_epochs=False,
    )
    for step in range(0, plan.total_steps, 2503):
        scheduler.step_update(step)
        assert rate(step, 1.0) == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("simmim_*_800ep.yaml")))
def test_pretraining_with_milestones_by_hand(name: str) -> None:
    """2e-6 to 4e-4 over 10 epochs, a tenth of it from epoch 700 on."""
    config = pretraining(name)
    plan = TrainingSchedule.from_config(config, images=IMAGENET, accumulation=1)
    rate = plan.learning_rate
    warmup = plan.steps("10 epochs")
    for step in range(0, plan.total_steps, 5003):
        epoch = step / STEPS_PER_EPOCH
        rising = 2e-6 + (4e-4 - 2e-6) * step / warmup
        expected = rising if step < warmup else 4e-4 if epoch < 700 else 4e-5
        assert rate(step, 1.0) == pytest.approx(expected, rel=1e-9), epoch


def test_a_plan_is_in_steps() -> None:
    recipe = fine_tuning("finetune_swin_base_224")
    train = replace(recipe.train, duration="3 epochs", global_batch=32, stop_after="7 steps")
    config = replace(recipe, train=train, log=replace(recipe.log, every="64 images"))
    with pytest.raises(UserError, match="the warm-up must be shorter"):
        TrainingSchedule.from_config(config, images=100, accumulation=4)
    config = replace(config, optim=replace(config.optim, warmup="2 steps"))
    plan = TrainingSchedule.from_config(config, images=100, accumulation=4)
    assert (plan.total_steps, plan.log_every, plan.stop_after, plan.accumulation) == (10, 2, 7, 4)
    assert plan.steps("0.5 epochs") == 2
    assert plan.ends_early_at(7)
    assert not plan.ends_early_at(8)


def extended(*lengths: str, **optim: Any) -> TrainingSchedule:
    recipe = fine_tuning("finetune_swin_base_224")
    train = replace(recipe.train, duration=lengths[-1], extended=lengths[:-1], global_batch=512)
    config = replace(recipe, train=train, optim=replace(recipe.optim, warmup="20 steps", **optim))
    return TrainingSchedule.from_config(config, images=512, accumulation=1)


def test_an_extension_leaves_what_was_before_and_has_the_schedule_once_more() -> None:
    """Twice longer: a warm-up from the rate at the end, then timm's cosine of the run over the steps that are added."""
    from timm.scheduler import CosineLRScheduler

    short, plan = extended("100 steps"), extended("100 epochs", "300 steps")
    assert (plan.total_steps, plan.restarts, short.restarts) == (300, (100,), ())
    assert [plan.end(step) for step in (1, 99, 100, 101, 300)] == [100, 100, 100, 300, 300]
    assert short.end(1) == 100
    for scale in (1.0, 0.1):
        rates = [plan.learning_rate(step, scale) for step in range(300)]
        assert rates[:100] == [short.learning_rate(step, scale) for step in range(100)]
        theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.25e-3 * scale)
        scheduler = CosineLRScheduler(theirs, t_initial=200, lr_min=2.5e-7, warmup_lr_init=rates[99], warmup_t=20)
        for step in range(200):
            scheduler.step(step)
            assert rates[100 + step] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9), step
    assert "ended after 100 steps" in plan.extension_text()
    assert "to 1.25e-03 until step 120" in plan.extension_text()
    assert plan.extension_text().endswith("until step 300")


def test_extensions_of_an_extension_are_short_or_long() -> None:
    """The warm-up is at most a tenth; each begins where the one before it ended, and a constant rate stays."""
    plan = extended("100 steps", "130 steps", "131 steps", "331 steps")
    rates = [plan.learning_rate(step, 1.0) for step in range(331)]
    assert rates[100] == rates[99]
    assert rates[99] < rates[101] < rates[102]
    assert rates[103] == pytest.approx(2.5e-7 + (1.25e-3 - 2.5e-7) * 0.5 * (1 + math.cos(math.pi * 3 / 30)))
    assert rates[130] == rates[129] == rates[131]
    constant = extended("100 steps", "130 steps", schedule="constant")
    assert {constant.learning_rate(step, scale) / scale for scale in (1.0, 0.5) for step in range(20, 130)} == {1.25e-3}


def test_milestones_of_an_extension_are_at_the_same_fractions() -> None:
    plan = extended("100 steps", "150 steps", schedule="multistep", milestones=("80 steps",))
    rates = [plan.learning_rate(step, 1.0) for step in range(150)]
    assert rates[79:81] == rates[139:141] == [1.25e-3, pytest.approx(1.25e-4)]
    assert rates[99] == rates[100] == pytest.approx(1.25e-4)
    assert rates[105:140] == [1.25e-3] * 35


def test_an_extension_is_longer() -> None:
    for lengths in (("100 steps", "100 epochs"), ("100 steps", "120 steps", "110 steps")):
        with pytest.raises(
            UserError, match=r"train\.duration .* the run already had .* give a longer one to extend it"
        ):
            extended(*lengths)
