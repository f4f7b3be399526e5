import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swin_mim.models.classifier import classification_loss


def softmax(row):
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def cross_entropy(logits, targets, weights):
    """The formula, number by number."""
    images = zip(logits.tolist(), targets.tolist(), strict=True)
    return sum(
        -weight * target * math.log(probability)
        for row, wanted in images
        for weight, target, probability in zip(weights, wanted, softmax(row), strict=True)
    ) / len(logits)


def binary_cross_entropy(logits, targets):
    """The formula, number by number."""
    pairs = list(zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True))
    chances = [(1 / (1 + math.exp(-value)), target) for value, target in pairs]
    return -sum(t * math.log(p) + (1 - t) * math.log(1 - p) for p, t in chances) / len(pairs)


def soft(batch, classes):
    return torch.rand(batch, classes).softmax(dim=1)


def test_one_label_each():
    """Against numbers that anybody can check."""
    assert classification_loss(torch.zeros(3, 4), torch.eye(4)[:3]).item() == pytest.approx(math.log(4))
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()  # probabilities 3/4 and 1/4, 1/2 and 1/2
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert classification_loss(logits, targets).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    weights = torch.tensor([5.0, 0.5])
    expected = (5 * math.log(4 / 3) + 0.5 * math.log(2)) / 2
    assert classification_loss(logits, targets, weights).item() == pytest.approx(expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_soft_targets(weighted):
    logits, targets = 3 * torch.randn(5, 7), soft(5, 7)
    weights = torch.rand(7) + 0.1 if weighted else None
    expected = cross_entropy(logits, targets, [1.0] * 7 if weights is None else weights.tolist())
    assert classification_loss(logits, targets, weights).item() == pytest.approx(expected, rel=1e-5)


def test_any_number_of_labels():
    logits, targets = 3 * torch.randn(5, 7), (torch.rand(5, 7) < 0.3).float()
    targets[0] = 0
    targets[1] = 1
    targets[2] = 0.1  # smoothed
    expected = binary_cross_entropy(logits, targets)
    assert classification_loss(logits, targets, multi_label=True).item() == pytest.approx(expected, rel=1e-5)
    even = torch.zeros(2, 3)
    assert classification_loss(even, targets[:2, :3], multi_label=True).item() == pytest.approx(math.log(2))
    assert classification_loss(logits, targets.bool(), multi_label=True).isfinite()


def test_classes_are_not_weighed_where_images_have_any_number_of_them():
    with pytest.raises(AssertionError, match="classes are weighed where an image has one"):
        classification_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3), multi_label=True)


@given(
    micro=st.sampled_from([1, 2, 3, 4, 6, 12]),
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["plain", "weighted", "several"]),
)
def test_the_mean_over_micro_batches_is_the_loss_of_the_batch(micro, seed, kind):
    """The weights of the classes in a micro batch must not decide how much it counts."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(12, 5, generator=generator, dtype=torch.float32)
    labels = torch.randint(0, 5, (12,), generator=generator)
    targets = torch.eye(5)[labels] * 0.9 + 0.02
    options = {"multi_label": kind == "several"}
    if kind == "weighted":
        options["class_weights"] = torch.tensor([100.0, 10.0, 1.0, 0.1, 0.01])
    whole = classification_loss(logits, targets, **options)
    parts = [
        classification_loss(x, y, **options) for x, y in zip(logits.split(micro), targets.split(micro), strict=True)
    ]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_left_before_the_loss(dtype, several):
    logits, targets = (4 * torch.randn(64, 9)).to(dtype), soft(64, 9)
    loss = classification_loss(logits, targets, multi_label=several)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, classification_loss(logits.float(), targets, multi_label=several))
    assert loss.item() != loss.to(dtype).item(), "a number that half precision cannot hold"
    assert torch.equal(loss, classification_loss(logits, targets.double(), multi_label=several))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss, classification_loss(logits, targets, multi_label=several))


def test_the_gradient_reaches_logits_of_half_precision():
    logits = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    classification_loss(logits, torch.eye(4)[:2]).backward()
    assert logits.grad.dtype == torch.bfloat16
    assert logits.grad.tolist() == [[-0.375, 0.125, 0.125, 0.125], [0.125, -0.375, 0.125, 0.125]]
