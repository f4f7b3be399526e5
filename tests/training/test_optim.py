import re

import pytest
import torch
from torch import Tensor, nn

from swin_mim import SimMIM, SwinConfig
from swin_mim.training.optim import adamw, parameter_groups

DECAYED = re.compile(
    r"encoder\.patch_embed\.proj\.weight"
    r"|encoder\.layers\.\d+\.downsample\.reduction\.weight"
    r"|encoder\.layers\.\d+\.blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.weight"
    r"|decoder\.0\.weight"
)
EXEMPT = re.compile(
    r"mask_token"
    r"|encoder\.patch_embed\.(proj\.bias|norm\.weight|norm\.bias)"
    r"|encoder\.layers\.\d+\.downsample\.norm\.(weight|bias)"
    r"|encoder\.layers\.\d+\.blocks\.\d+\.(norm[12]\.(weight|bias)|(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.bias)"
    r"|encoder\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table"
    r"|encoder\.norm\.(weight|bias)"
    r"|decoder\.0\.bias"
)


def group_names(model: nn.Module, weight_decay: float = 0.05) -> dict[float, list[str]]:
    """Weight decay -> names of the parameters that have it, as often as they occur."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=weight_decay)
    return {group["weight_decay"]: [names[parameter] for parameter in group["params"]] for group in groups}


def test_every_parameter_is_in_one_group_and_in_the_right_one(tiny: SwinConfig) -> None:
    model = SimMIM(tiny)
    groups = group_names(model)
    assert set(groups) == {0.05, 0.0}
    every = [name for name, _ in model.named_parameters()]
    assert sorted(groups[0.05] + groups[0.0]) == sorted(every)
    for name in every:
        assert bool(DECAYED.fullmatch(name)) != bool(EXEMPT.fullmatch(name)), f"{name}: say here what it is"
        assert (name in groups[0.05]) == bool(DECAYED.fullmatch(name)), name
    assert len(groups[0.05]) == 1 + 3 + 4 * sum(tiny.depths) + 1


def test_frozen_parameters_are_left_out(tiny: SwinConfig) -> None:
    model = SimMIM(tiny)
    model.encoder.requires_grad_(False)
    assert group_names(model) == {0.05: ["decoder.0.weight"], 0.0: ["mask_token", "decoder.0.bias"]}


def test_settings_reach_the_optimizer(tiny: SwinConfig) -> None:
    optimizer = adamw(SimMIM(tiny), weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"], group["fused"]) == ((0.8, 0.9), 1e-6, 0.0, True)


def test_a_step_is_adamw_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = adamw(model, weight_decay=0.05)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step in range(1, 5):
        for name, parameter in model.named_parameters():
            gradient = torch.randn(parameter.shape)
            parameter.grad = gradient
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient.double() ** 2
            decay = 0.05 if name == "weight" else 0.0
            update = (first[name] / (1 - 0.9**step)) / ((second[name] / (1 - 0.999**step)).sqrt() + 1e-8)
            weights[name] = weights[name] * (1 - 0.1 * decay) - 0.1 * update
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), weights[name], rtol=1e-5, atol=1e-6)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of weights, moments and step counts."""
    moments = [value for parameter in model.parameters() for _, value in sorted(optimizer.state[parameter].items())]
    return [value.detach().clone() for value in [*model.parameters(), *moments]]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30, 0.5])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_step_with_found_inf_changes_nothing(poison: float, steps_before: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7))
    optimizer = adamw(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.1

    def step(found_inf: float, gradient: float | None = None) -> None:
        for parameter in model.parameters():
            value = torch.randn_like(parameter)
            parameter.grad = value if gradient is None else torch.full_like(parameter, gradient)
        optimizer.found_inf = torch.tensor(found_inf)  # type: ignore[attr-defined]
        optimizer.step()

    for _ in range(steps_before):
        step(0.0)
    before = everything(model, optimizer)
    step(1.0, poison)
    after = everything(model, optimizer)
    if not steps_before:  # the first step makes the moments, all zero
        assert not any(value.any() for value in after[len(before) :])
    for old, new in zip(before, after, strict=bool(steps_before)):
        assert torch.equal(old, new)

    step(0.0)
    counts = {float(optimizer.state[parameter]["step"]) for parameter in model.parameters()}
    assert counts == {steps_before + 1.0}, "the step that was left out does not count"
    assert not any(torch.equal(old, new) for old, new in zip(before, everything(model, optimizer), strict=False))
