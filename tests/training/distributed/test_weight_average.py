from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from swin_mim.training.distributed.weight_average import WeightAverage
from swin_mim.weights.safetensors_writer import write_tensors


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2)).to(dtype)


def move(model: nn.Module) -> None:
    """A step of training: every weight that learns changes."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape).to(weight.dtype)


def weights(model: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_equals_a_loop_by_hand(decay: float) -> None:
    """After update t it keeps min(decay, (1 + t) / (10 + t)) of what it was, in float64."""
    model = network()
    average = WeightAverage(model, decay)
    expected = [weight.double() for weight in weights(model)]
    for step in range(120):
        move(model)
        average.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        expected = [kept * old + (1 - kept) * new.double() for old, new in zip(expected, weights(model), strict=True)]
    for found, wanted in zip(average.state().values(), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("step", "kept"), [(0, 0.1), (1, 2 / 11), (8, 0.5), (90, 0.9), (10**6, 0.9)])
def test_a_short_run_is_not_dominated_by_its_start(step: int, kept: float) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    average = WeightAverage(model, 0.9)
    nn.init.zeros_(model.weight)
    average.update(step)
    assert float(average.state()["weight"]) == pytest.approx(kept)


def test_an_average_starts_from_the_weights_and_never_touches_them() -> None:
    model = network()
    before = weights(model)
    average = WeightAverage(model, 0.99)
    for found, weight in zip(average.state().values(), before, strict=True):
        assert torch.equal(found, weight)
    move(model)
    moved = weights(model)
    average.update(0)
    average.update(1)
    for weight, old in zip(model.parameters(), moved, strict=True):
        assert torch.equal(weight, old)
        assert weight.grad is None
    for found in average.state().values():
        assert not found.requires_grad


def test_frozen_weights_stay_as_they_are_to_the_last_bit() -> None:
    model = network()
    model[0].requires_grad_(False)
    frozen = [weight.clone() for weight in model[0].parameters()]
    average = WeightAverage(model, 0.9999)
    for step in range(200):
        move(model)
        average.update(step)
    state = average.state()
    assert torch.equal(state["0.weight"], frozen[0])
    assert torch.equal(state["0.bias"], frozen[1])
    assert not torch.equal(state["2.weight"], model[2].weight)


def test_bf16_weights_are_averaged_in_fp32() -> None:
    """Steps of a ten-thousandth are lost in bf16."""
    model = network(torch.bfloat16)
    average = WeightAverage(model, 0.9999)
    start = [value.clone() for value in average.state().values()]
    move(model)
    for step in range(10**6, 10**6 + 50):
        average.update(step)
    for found, old, weight in zip(average.state().values(), start, model.parameters(), strict=True):
        assert found.dtype == torch.float32
        wanted = weight.double() + 0.9999**50 * (old.double() - weight.double())
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=5e-6)
        assert not torch.equal(found, old)
    with average.in_place():
        for weight, found in zip(model.parameters(), average.state().values(), strict=True):
            assert weight.dtype == torch.bfloat16
            assert torch.equal(weight, found.bfloat16())


def test_in_place_the_model_is_the_average_and_then_itself_again() -> None:
    model, images = network().eval(), torch.randn(4, 3)
    average = WeightAverage(model, 0.9)
    move(model)
    average.update(3)
    own, parameters = weights(model), list(model.parameters())
    other = network().eval()
    other.load_state_dict(average.state())
    with average.in_place():
        assert torch.equal(model(images), other(images))
        assert not torch.equal(model[0].weight, own[0])
    for weight, old in zip(model.parameters(), own, strict=True):
        assert torch.equal(weight, old)
    assert all(weight is old for weight, old in zip(model.parameters(), parameters, strict=True))
    for found, weight in zip(average.state().values(), other.parameters(), strict=True):
        assert torch.equal(found, weight)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_weights_come_back_after_an_error(error: type[BaseException]) -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    move(model)
    own = weights(model)
    with pytest.raises(error), average.in_place():
        raise error("oh")
    for weight, old in zip(model.parameters(), own, strict=True):
        assert torch.equal(weight, old)


def test_training_goes_on_after_an_evaluation_in_place() -> None:
    """Gradients and the optimizer's weights are those of before."""
    model, images = network(), torch.randn(4, 3)
    average = WeightAverage(model, 0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    move(model)
    twin = network()
    twin.load_state_dict(model.state_dict())
    with average.in_place(), torch.no_grad():
        model(images)
    model(images).square().sum().backward()
    twin(images).square().sum().backward()
    optimizer.step()
    for weight, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(weight, other - 0.1 * other.grad, rtol=0, atol=1e-7)


def test_a_saved_average_goes_on_as_if_never_saved(tmp_path: Path) -> None:
    model = network()
    average = WeightAverage(model, 0.99)
    for step in range(5):
        move(model)
        average.update(step)
    state = average.state()
    assert list(state) == [name for name, _ in model.named_parameters()]
    write_tensors(state, tmp_path / "average.safetensors")
    twin = network()
    twin.load_state_dict(model.state_dict())
    again = WeightAverage(twin, 0.99)
    again.load(load_file(tmp_path / "average.safetensors"))
    move(model)
    twin.load_state_dict(model.state_dict())
    for each in (average, again):
        each.update(5)
    for one, other in zip(average.state().values(), again.state().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("change", ["lacks", "has more", "is of another shape"])
def test_a_state_of_another_model_is_refused(change: str) -> None:
    average = WeightAverage(network(), 0.9)
    state = {name: value.clone() for name, value in average.state().items()}
    if change == "lacks":
        del state["0.bias"]
    elif change == "has more":
        state["3.bias"] = torch.zeros(2)
    else:
        state["0.bias"] = torch.zeros(7)
    with pytest.raises((AssertionError, RuntimeError)):
        average.load(state)
