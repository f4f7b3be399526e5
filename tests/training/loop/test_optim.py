import re

import pytest
import torch
from torch import Tensor, nn

from swin_mim import SimMIM, SwinClassifier, SwinConfig
from swin_mim.models.swin import freeze
from swin_mim.training.loop.optim import adamw, parameter_groups

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


def official_layer(name: str, depths: tuple[int, ...]) -> int:
    """The layer of a parameter in the fine-tuning of microsoft/SimMIM, by its rules and under its names.

    The embedding is 0 and block n of all blocks is n + 1; the patch merging that ends a stage has the number of the
    stage's last block; whatever comes after the stages is one more.
    """
    if name.startswith("patch_embed."):
        return 0
    if merging := re.fullmatch(r"layers\.(\d)\.downsample\..+", name):
        return sum(depths[: int(merging[1]) + 1])
    if block := re.fullmatch(r"layers\.(\d)\.blocks\.(\d+)\..+", name):
        return sum(depths[: int(block[1])]) + int(block[2]) + 1
    return sum(depths) + 1


def official_name(name: str) -> str:
    """Our name -> microsoft's, where patch merging ends a stage instead of beginning one."""
    name = name.removeprefix("encoder.")
    merging = re.fullmatch(r"layers\.(\d)\.downsample\.(.+)", name)
    return f"layers.{int(merging[1]) - 1}.downsample.{merging[2]}" if merging else name


def official_decays(name: str, ndim: int) -> bool:
    return not (ndim == 1 or name.endswith(".bias") or "relative_position_bias_table" in name)


@pytest.mark.parametrize(("size", "decay"), [("swin_base", 0.9), ("swin_base", 0.8), ("swin_large", 0.7)])
def test_groups_of_the_official_fine_tuning(size: str, decay: float) -> None:
    """Every parameter in exactly one group, with the scale and the weight decay of the official code."""
    with torch.device("meta"):
        model = SwinClassifier(SwinConfig.named(size), num_classes=1000)
    depths = model.encoder.config.depths
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=decay)
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    scales = [decay**power for power in range(sum(depths) + 1, -1, -1)]
    for name, parameter in model.named_parameters():
        theirs = official_name(name)
        expected = scales[official_layer(theirs, depths)], 0.05 if official_decays(theirs, parameter.ndim) else 0.0
        assert found[id(parameter)] == expected, name
    assert len({(group["lr_scale"], group["weight_decay"]) for group in groups}) == len(groups) == 2 * (sum(depths) + 2)
    assert scales[0] == pytest.approx(decay**25)


def test_no_layer_decay_is_two_groups(tiny: SwinConfig) -> None:
    groups = parameter_groups(SwinClassifier(tiny, 3), weight_decay=0.05)
    assert [(group["weight_decay"], group["lr_scale"]) for group in groups] == [(0.05, 1.0), (0.0, 1.0)]


def test_frozen_stages_are_in_no_group(tiny: SwinConfig) -> None:
    model = SwinClassifier(tiny, 3)
    freeze(model.encoder, 2)
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = {names[id(parameter)] for group in groups for parameter in group["params"]}
    assert all(name.startswith(("encoder.layers.2", "encoder.layers.3", "encoder.norm", "head")) for name in kept)
    assert "encoder.layers.2.downsample.norm.weight" in kept
    assert max(group["lr_scale"] for group in groups) == 1.0
    assert min(group["lr_scale"] for group in groups) == 0.5**3  # the patch merging before the third stage
