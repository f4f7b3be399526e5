"""Published recipes as steps and rates: the YAML file, the schedule and the parameter groups together."""

from dataclasses import replace
from pathlib import Path

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
