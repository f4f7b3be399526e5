import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import mixup as timm_mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor

from swin_mim.data.transforms.mixup import Mix, Mixing, multi_hot, soft_targets

MIXUP = Mixing(mixup=0.8, cutmix=0.0, probability=1.0, switch=0.5, seed=3)
CUTMIX = Mixing(mixup=0.0, cutmix=1.0, probability=1.0, switch=0.5, seed=3)
BOTH = Mixing(mixup=0.8, cutmix=1.0, probability=0.7, switch=0.4, seed=3)
PAIRS = 2000
ALL = {"mixup": MIXUP, "cutmix": CUTMIX, "both": BOTH}
seeds = st.integers(0, 2**64 - 1)
sides = st.integers(1, 300)


def batch(images: int, classes: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(images, 3, 12, 20), torch.randn(images, classes).softmax(dim=1)


def draws(mixing: Mixing, pairs: int = PAIRS) -> list[Mix]:
    """Mixes of the first pairs, of images of 40 x 60 pixels."""
    return [mixing.draw(2 * pair, 40, 60) for pair in range(pairs)]


def one_by_one(mixing: Mixing, images: Tensor, targets: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """What `Mixing` does, a pixel at a time."""
    mixed, labels = images.clone(), targets.clone()
    _, _, height, width = images.shape
    for index in range(len(images)):
        other = index + 1 if index % 2 == 0 else index - 1
        share, box = mixing.draw(start + index // 2 * 2, height, width)
        for row in range(height):
            for column in range(width):
                own, foreign = images[index, :, row, column], images[other, :, row, column]
                if box is None:
                    mixed[index, :, row, column] = share * own + (1 - share) * foreign
                elif box[0] <= row < box[1] and box[2] <= column < box[3]:
                    mixed[index, :, row, column] = foreign
        for number in range(targets.shape[1]):
            labels[index, number] = share * targets[index, number] + (1 - share) * targets[other, number]
    return mixed, labels


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("start", [0, 38])
def test_pairs_are_mixed_as_one_by_one(kind: str, start: int) -> None:
    images, targets = batch(8)
    before = images.clone(), targets.clone()
    mixed, labels = ALL[kind](images, targets, start)
    expected = one_by_one(ALL[kind], images, targets, start)
    assert torch.allclose(mixed, expected[0], atol=1e-6)
    assert torch.allclose(labels, expected[1], atol=1e-6)
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])


@pytest.mark.parametrize("kind", ALL)
def test_a_pair_is_mixed_as_timm_would(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mode "pair", told the share and the box; labels are numbers there, smoothed by 0.1."""
    mixing, kinds = ALL[kind], set()
    theirs = timm_mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode="pair", label_smoothing=0.1, num_classes=5)
    for position in range(0, 60, 2):
        (images, _), numbers = batch(2), torch.randint(5, (2,))
        share, box = mixing.draw(position, 12, 20)
        drawn = np.array([share], dtype=np.float32), np.array([box is not None])
        monkeypatch.setattr(theirs, "_params_per_elem", lambda _, drawn=drawn: drawn)
        monkeypatch.setattr(timm_mixup, "rand_bbox", lambda *_, box=box, **__: box)
        mixed, labels = mixing(images, soft_targets(numbers, 5, 0.1), position)
        expected = theirs(images.clone(), numbers)
        assert torch.allclose(mixed, expected[0], atol=1e-6)
        assert torch.allclose(labels, expected[1], atol=1e-6)
        kinds.add("cutmix" if box else "mixup" if share < 1 else "none")
    assert kinds == ({"none", "mixup", "cutmix"} if kind == "both" else {kind})


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(sorted(ALL)), start=st.integers(0, 1000), cuts=st.lists(st.integers(1, 4), min_size=1))
def test_how_a_stream_is_cut_changes_nothing(kind: str, start: int, cuts: list[int]) -> None:
    images, targets = batch(2 * sum(cuts))
    parts, first = [], 0
    for pairs in cuts:
        inside = slice(first, first + 2 * pairs)
        parts.append(ALL[kind](images[inside], targets[inside], 2 * start + first))
        first += 2 * pairs
    whole = ALL[kind](images, targets, 2 * start)
    for one, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(pieces))


def test_a_pair_is_not_cut_in_two() -> None:
    for images, start in ((3, 0), (4, 1), (3, 1)):
        with pytest.raises(AssertionError, match=f"even positions: {images} images from {start}"):
            BOTH(*batch(images), start)


def test_other_seeds_and_positions_are_mixed_otherwise() -> None:
    images, targets = batch(2)
    mixed = [MIXUP(images, targets, position)[0] for position in range(0, 100, 2)]
    mixed += [Mixing(0.8, 0.0, 1.0, 0.5, seed=seed)(images, targets, 0)[0] for seed in range(4, 54)]
    assert len({each.numpy().tobytes() for each in mixed}) == 100


def test_global_generators_are_neither_used_nor_changed() -> None:
    images, targets = batch(16)
    outs = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        outs.append(BOTH(images, targets, 0))
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        assert after == before
    assert torch.equal(outs[0][0], outs[1][0])
    assert torch.equal(outs[0][1], outs[1][1])


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(sorted(ALL)), start=st.integers(0, 2**40))
def test_labels_still_sum_to_one(kind: str, start: int) -> None:
    labels = ALL[kind](*batch(8), 2 * start)[1]
    assert labels.min() >= 0
    assert labels.sum(dim=1).tolist() == pytest.approx([1.0] * 8, abs=1e-6)


@settings(deadline=None)
@given(seed=seeds, height=st.integers(1, 40), width=st.integers(1, 40))
def test_cutmix_shares_labels_as_it_shares_pixels(seed: int, height: int, width: int) -> None:
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, height, width)
    mixed, labels = Mixing(0.0, 1.0, 1.0, 0.5, seed=seed)(images, torch.eye(2), 0)
    foreign = int(mixed[0].sum())
    assert set(mixed.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(mixed[0], 1 - mixed[1])
    assert labels[0, 0].item() == labels[1, 1].item() == np.float32(1 - foreign / (height * width))


def test_a_probability_of_zero_changes_nothing() -> None:
    images, targets = batch(64)
    mixed, labels = Mixing(0.8, 1.0, 0.0, 0.5, seed=3)(images, targets, 0)
    assert torch.equal(mixed, images)
    assert torch.equal(labels, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_and_types_stay(dtype: torch.dtype) -> None:
    images, targets = batch(6)
    mixed, labels = BOTH(images.to(dtype), targets, 0)
    assert (mixed.shape, mixed.dtype) == (images.shape, dtype)
    assert (labels.shape, labels.dtype) == (targets.shape, torch.float32)


# what is drawn


@pytest.mark.parametrize(
    ("mixup", "cutmix", "switch", "part_cut"),
    [(0.8, 1.0, 0.3, 0.3), (0.8, 1.0, 1.0, 1.0), (0.8, 1.0, 0.0, 0.0), (0.8, 0.0, 0.9, 0.0), (0.0, 1.0, 0.1, 1.0)],
)
@pytest.mark.parametrize("probability", [1.0, 0.6])
def test_kinds_are_as_frequent_as_asked(
    mixup: float, cutmix: float, switch: float, part_cut: float, probability: float
) -> None:
    mixes = draws(Mixing(mixup, cutmix, probability, switch, seed=0))
    mixed = [mix for mix in mixes if mix != (1.0, None)]
    cut = sum(mix.box is not None for mix in mixed)
    assert abs(len(mixed) - PAIRS * probability) <= 4.4 * math.sqrt(PAIRS * probability * (1 - probability))
    assert abs(cut - len(mixed) * part_cut) <= 4.4 * math.sqrt(len(mixed) * part_cut * (1 - part_cut))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 2.0])
def test_shares_of_mixup_are_of_the_beta_distribution(alpha: float) -> None:
    shares = np.array([mix.share for mix in draws(Mixing(alpha, 0.0, 1.0, 0.5, seed=0))])
    assert 0 <= shares.min() < shares.max() <= 1
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (8 * alpha + 4), rel=0.06)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_boxes_of_cutmix_are_as_large_as_those_of_timm(alpha: float) -> None:
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    shares = np.random.beta(alpha, alpha, size=PAIRS)  # noqa: NPY002
    theirs = np.array([timm_mixup.cutmix_bbox_and_lam((3, 40, 60), share)[1] for share in shares])
    np.random.set_state(state)  # noqa: NPY002
    ours = np.array([mix.share for mix in draws(Mixing(0.0, alpha, 1.0, 0.5, seed=0))])
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.03)
    assert ours.std() == pytest.approx(theirs.std(), abs=0.02)
    assert np.quantile(ours, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(theirs, [0.1, 0.5, 0.9]), abs=0.05)


def test_boxes_of_cutmix_have_the_aspect_of_the_image_and_lie_anywhere() -> None:
    boxes = np.array([mix.box for mix in draws(CUTMIX)])
    top, bottom, left, right = boxes.T
    whole = (top > 0) & (bottom < 40) & (left > 0) & (right < 60)
    assert whole.sum() > 200
    assert np.abs((bottom - top) / 40 - (right - left) / 60)[whole].max() <= 0.06  # both sides are even
    covered = np.zeros((40, 60))
    for box in boxes:
        covered[box[0] : box[1], box[2] : box[3]] += 1 / len(boxes)
    for turned in (covered[::-1], covered[:, ::-1]):
        assert np.abs(covered - turned).max() < 0.07
    assert 0.1 < covered.min() < covered.max() < 0.5


@settings(deadline=None)
@given(seed=seeds, height=sides, width=sides, pair=st.integers(0, 2**60))
def test_a_box_lies_in_the_image(seed: int, height: int, width: int, pair: int) -> None:
    share, box = Mixing(0.0, 0.5, 1.0, 0.5, seed=seed).draw(2 * pair, height, width)
    assert isinstance(box, tuple)
    top, bottom, left, right = box
    assert 0 <= top <= bottom <= height
    assert 0 <= left <= right <= width
    assert share == 1 - (bottom - top) * (right - left) / (height * width)


def test_images_of_another_size_are_mixed_by_the_same_kind() -> None:
    for pair in range(50):
        small, large = (BOTH.draw(2 * pair, side, side) for side in (20, 200))
        assert (small.box is None) == (large.box is None)
        if small.box is None:
            assert small == large
        else:
            assert small.share == pytest.approx(large.share, abs=0.2)


# targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_soft_targets_are_label_smoothing(smoothing: float) -> None:
    labels, logits = torch.randint(7, (20,)), torch.randn(20, 7)
    targets = soft_targets(labels, 7, smoothing)
    assert (targets.dtype, targets.shape) == (torch.float32, (20, 7))
    assert targets.sum(dim=1).tolist() == pytest.approx([1.0] * 20)
    assert torch.allclose(targets, timm_mixup.mixup_target(labels, 7, smoothing=smoothing))
    loss = SoftTargetCrossEntropy()(logits, targets).item()
    assert loss == pytest.approx(F.cross_entropy(logits, labels, label_smoothing=smoothing).item(), abs=1e-5)
    assert loss == pytest.approx(LabelSmoothingCrossEntropy(smoothing)(logits, labels).item(), abs=1e-5)


def test_without_smoothing_a_target_is_its_class() -> None:
    assert torch.equal(soft_targets(torch.tensor([2, 0]), 3, 0.0), torch.tensor([[0.0, 0, 1], [1, 0, 0]]))
    labels = torch.tensor([[True, False, True], [False, False, False]])
    assert torch.equal(multi_hot(labels, 3, 0.0), torch.tensor([[1.0, 0, 1], [0, 0, 0]]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_several_labels_are_smoothed_each_for_itself(smoothing: float) -> None:
    labels = torch.rand(4, 6) < 0.5
    targets = multi_hot(labels, 6, smoothing)
    assert (targets.dtype, targets.shape) == (torch.float32, (4, 6))
    assert targets[labels].tolist() == pytest.approx([1 - smoothing / 2] * int(labels.sum()))
    assert targets[~labels].tolist() == pytest.approx([smoothing / 2] * int((~labels).sum()))
    assert torch.allclose(targets, timm_mixup.mixup_target(labels, 6, smoothing=smoothing, multi_label=True))


def test_several_labels_of_other_classes_are_our_bug() -> None:
    with pytest.raises(AssertionError):
        multi_hot(torch.ones(2, 3, dtype=torch.bool), 4, 0.0)
