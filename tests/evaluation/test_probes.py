from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.optimize import minimize
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from swin_mim import Swin
from swin_mim.data.decoding.raster import Raster
from swin_mim.data.decoding.rgb import BrokenImage
from swin_mim.data.labels import Labelled
from swin_mim.data.loading.loader import LoaderOptions
from swin_mim.data.sources.base import Source
from swin_mim.data.transforms.crops import EvaluationTransform, normalize
from swin_mim.errors import UserError
from swin_mim.evaluation import probes
from swin_mim.evaluation.probes import (
    Prober,
    Score,
    accuracies,
    as_metrics,
    colour_histogram,
    colours_of,
    features,
    linear_probe,
    nearest_neighbours,
    score,
    value_histogram,
)
from swin_mim.evaluation.reader import Reader
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.models.saving import Preprocessing

SEEN = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
pytestmark = pytest.mark.usefixtures("one_thread")
BROKEN = frozenset({0, 4, 10})
NAMES = ("a", "b", "c")


class Noise(Source):
    """`n` different pictures; those in `broken` cannot be read."""

    fingerprint = "noise"

    def __init__(self, n, broken=frozenset()):
        self._n, self._broken = n, broken

    def __len__(self):
        return self._n

    def name(self, index):
        return f"image {index}"

    def image(self, index):
        if index in self._broken:
            raise BrokenImage(f"no good: {index}")
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (70, 66, 3), dtype=np.uint8))


def labelled(n, broken=frozenset()):
    return Labelled(Noise(n, broken), NAMES, np.arange(n) % 3)


def reader(reduce=lambda rows: rows, rank=0, world=1, batch=4):
    options = LoaderOptions(rank, world)
    preprocess = Preprocessor(SEEN, torch.device("cpu"))
    return Reader(preprocess, (64, 64), reduce, lambda batches: batches, batch, options)


def clouds(n, classes, width, spread, seed=0):
    """Features around a centre for each class, float64 (n, width), and int64 (n,) the classes in a mixed order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    centres = np.random.default_rng(1000).normal(size=(classes, width))
    return torch.from_numpy(centres[labels] + spread * rng.normal(size=(n, width))), labels


# ---- nearest neighbours ---------------------------------------------------------------------------------------


def vote_by_hand(known, labels, image, classes):
    """The class of the largest sum of exp(cosine / 0.07) over the 20 most similar images."""
    cosines = [float(image @ row / (image.norm() * row.norm())) for row in known]
    nearest = sorted(range(len(known)), key=lambda index: -cosines[index])[:20]
    votes = [0.0] * classes
    for index in nearest:
        votes[labels[index]] += np.exp(cosines[index] / 0.07)
    return votes.index(max(votes))


@pytest.mark.parametrize(("n", "spread"), [(70, 1.5), (70, 0.5), (20, 1.0), (7, 1.0), (1, 1.0)])
def test_nearest_neighbours_are_a_slow_loop(n, spread):
    known, labels = clouds(n, 4, 5, spread)
    others, _ = clouds(50, 4, 5, spread, seed=1)
    found = nearest_neighbours(known, torch.from_numpy(labels), others, 4)
    assert found.tolist() == [vote_by_hand(known, labels, image, 4) for image in others]


def test_many_images_are_compared_in_parts():
    known, labels = clouds(30, 3, 3, 1.0)
    others, _ = clouds(1030, 3, 3, 1.0, seed=1)
    found = nearest_neighbours(known, torch.from_numpy(labels), others, 3)
    assert len(found) == 1030
    for index in (0, 1023, 1024, 1029):
        assert found[index] == vote_by_hand(known, labels, others[index], 3)


def test_a_near_neighbour_outweighs_several_far_ones():
    angles = torch.tensor([0.1, 1.0, 1.1, 1.2], dtype=torch.float64)
    known = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = nearest_neighbours(known, torch.tensor([0, 1, 1, 1]), torch.tensor([[5.0, 0.0]], dtype=torch.float64), 2)
    assert found.tolist() == [0]


def test_twenty_neighbours_vote_and_no_more():
    """Nine of class 0, then eleven of class 1, then many of class 0 again, all almost equally near."""
    labels = torch.tensor([0] * 9 + [1] * 11 + [0] * 30)
    angles = 0.001 * torch.arange(1, 51, dtype=torch.float64)
    known = torch.stack([angles.cos(), angles.sin()], dim=1)
    order = torch.randperm(50)
    found = nearest_neighbours(known[order], labels[order], torch.tensor([[1.0, 0.0]], dtype=torch.float64), 2)
    assert found.tolist() == [1]


# ---- the linear probe -----------------------------------------------------------------------------------------


def objective(parameters, known, labels, classes, penalty):
    """Cross-entropy + penalty / 2 |weights|^2 and its gradient, in numpy."""
    weight, bias = np.split(parameters, [known.shape[1] * classes])
    weight = weight.reshape(known.shape[1], classes)
    logits = known @ weight + bias
    logits -= logits.max(axis=1, keepdims=True)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    value = -np.log(shares[np.arange(len(labels)), labels]).mean() + penalty / 2 * (weight**2).sum()
    error = (shares - np.eye(classes)[labels]) / len(labels)
    return value, np.concatenate([(known.T @ error + penalty * weight).ravel(), error.sum(axis=0)])


def by_scipy(known, labels, classes, penalty):
    """features -> logits, by the weights that scipy finds."""
    start = np.zeros((known.shape[1] + 1) * classes)
    options = {"maxiter": 10000, "gtol": 1e-9}
    arguments = (known.numpy(), labels, classes, penalty)
    found = minimize(objective, start, arguments, jac=True, method="BFGS", options=options).x
    weight, bias = np.split(found, [known.shape[1] * classes])
    return lambda values: values.numpy() @ weight.reshape(-1, classes) + bias


@pytest.mark.parametrize("penalty", probes.PENALTIES)
@pytest.mark.parametrize(("classes", "spread"), [(2, 0.4), (4, 1.0)])
def test_the_regression_is_the_minimum_that_scipy_finds(classes, spread, penalty):
    known, labels = clouds(80, classes, 6, spread)
    others, _ = clouds(30, classes, 6, spread, seed=1)
    ours = probes._regression(known, torch.from_numpy(labels), classes, penalty)
    theirs = torch.from_numpy(by_scipy(known, labels, classes, penalty)(others))
    torch.testing.assert_close(ours(others).softmax(dim=1), theirs.softmax(dim=1), rtol=0, atol=1e-3)
    bias = ours(torch.zeros(1, 6, dtype=torch.float64))[0]
    weight = ours(torch.eye(6, dtype=torch.float64)) - bias
    parameters = np.concatenate([weight.numpy().ravel(), bias.numpy()])
    _, gradient = objective(parameters, known.numpy(), labels, classes, penalty)
    assert np.abs(gradient).max() < 1e-5


def every_fifth_of_its_class(labels):
    seen = {}
    fifth = []
    for label in labels.tolist():
        seen[label] = seen.get(label, 0) + 1
        fifth.append(seen[label] % 5 == 0)
    return np.array(fifth)


def test_the_penalty_is_chosen_on_every_fifth_image_of_a_class(monkeypatch):
    """Candidates learn from the other images and are compared on these; the best one learns from all."""
    known, labels = clouds(63, 3, 4, 1.5)
    fifth = every_fifth_of_its_class(labels)
    assert fifth.sum() == 3 * (21 // 5)
    assert not np.array_equal(fifth, np.arange(63) % 5 == 4), "every fifth of all would do as well"
    learnt, asked = [], []
    right = {1e-4: 0.1, 1e-3: 0.5, 1e-2: 2.0, 1e-1: 3.0, 1.0: 1.0}  # the best one is neither the first nor the last

    def regression(known, labels, classes, penalty):
        learnt.append((known, labels, penalty))

        def logits(values):
            asked.append(values)
            return right[penalty] * F.one_hot(torch.from_numpy(wanted[len(values)]), classes).double()

        return logits

    wanted = {int(fifth.sum()): labels[fifth], 2: np.array([2, 1])}
    monkeypatch.setattr(probes, "_regression", regression)
    found = linear_probe(known, torch.from_numpy(labels), torch.zeros(2, 4, dtype=torch.float64), 3)
    assert found.tolist() == [2, 1]
    assert [penalty for *_, penalty in learnt] == [*probes.PENALTIES, 1e-1]
    for rows, classes, _ in learnt[:-1]:
        assert torch.equal(rows, known[~fifth])
        assert classes.tolist() == labels[~fifth].tolist()
    for rows in asked[:-1]:
        assert torch.equal(rows, known[fifth])
    assert torch.equal(learnt[-1][0], known)
    assert learnt[-1][1].tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("n", "width", "spread", "chosen"), [(100, 5, 1.0, 1e-4), (40, 5, 1.5, 1e-1), (100, 12, 2.0, 1.0)]
)
def test_the_probe_is_the_choice_and_the_regression_of_scipy(n, width, spread, chosen):
    """On images of which every other penalty would get some differently."""
    known, labels = clouds(n, 3, width, spread)
    others, _ = clouds(200, 3, width, spread, seed=1)
    fifth = every_fifth_of_its_class(labels)
    losses, predicted = [], {}
    for penalty in probes.PENALTIES:
        logits = torch.from_numpy(by_scipy(known[~fifth], labels[~fifth], 3, penalty)(known[fifth]))
        losses.append(float(F.cross_entropy(logits, torch.from_numpy(labels[fifth]))))
        predicted[penalty] = by_scipy(known, labels, 3, penalty)(others).argmax(axis=1).tolist()
    assert chosen == probes.PENALTIES[int(np.argmin(losses))]
    assert linear_probe(known, torch.from_numpy(labels), others, 3).tolist() == predicted[chosen]
    assert [penalty for penalty, labels in predicted.items() if labels == predicted[chosen]] == [chosen]


@pytest.mark.parametrize(("counts", "lengths"), [([1, 6], [5, 6]), ([4, 4], None), ([1, 1], None)])
def test_classes_of_few_images_learn_from_all_they_have(monkeypatch, counts, lengths):
    learnt = []
    regression = probes._regression

    def noted(known, *rest):
        learnt.append((len(known), rest[-1]))
        return regression(known, *rest)

    monkeypatch.setattr(probes, "_regression", noted)
    labels = np.repeat([0, 1], counts)
    known = torch.from_numpy(np.random.default_rng(0).normal(size=(len(labels), 3)) + 4 * labels[:, None])
    found = linear_probe(known, torch.from_numpy(labels), known, 2)
    assert found.tolist() == labels.tolist()
    candidates, (last, penalty) = learnt[:-1], learnt[-1]
    assert last == len(labels)
    if lengths is None:
        assert (candidates, penalty) == ([], 1e-2)
    else:
        assert [length for length, _ in candidates] == [sum(counts) - 1] * 5


# ---- scores ---------------------------------------------------------------------------------------------------


def test_accuracies_against_a_loop():
    rng = np.random.default_rng(0)
    truth, predicted = rng.choice(5, 200, p=[0.6, 0.2, 0.1, 0.1, 0]), rng.integers(5, size=200)
    right = [[p == t for p, t in zip(predicted, truth, strict=True) if t == k] for k in range(4)]
    expected = sum(map(sum, right)) / 200, np.mean([sum(hits) / len(hits) for hits in right])
    assert accuracies(predicted, truth) == pytest.approx(expected)
    assert accuracies(np.zeros(100), np.array([0] * 98 + [1] * 2)) == (0.98, 0.5)


def test_what_can_be_told_apart_is_told_apart():
    known, labels = clouds(60, 3, 8, 0.05)
    others, truth = clouds(40, 3, 8, 0.05, seed=1)
    assert score(known, labels, others, truth, 3) == Score(1, 1, 1, 1)


def test_labels_by_lot_are_guessed_by_chance():
    rng = np.random.default_rng(0)
    known, others = torch.from_numpy(rng.normal(size=(300, 6))), torch.from_numpy(rng.normal(size=(1000, 6)))
    found = score(known, rng.integers(4, size=300), others, rng.integers(4, size=1000), 4)
    assert all(abs(value - 0.25) < 0.06 for value in found), found


def test_a_score_is_of_standardised_features_and_balanced_beside_plain():
    known, labels = clouds(90, 3, 6, 1.0)
    others, truth = clouds(200, 3, 6, 1.0, seed=1)
    others, truth = others[(truth != 2) | (np.arange(200) < 30)], truth[(truth != 2) | (np.arange(200) < 30)]
    mean, std = known.numpy().mean(axis=0), known.numpy().std(axis=0)
    first, second = (torch.from_numpy((values.numpy() - mean) / std) for values in (known, others))
    linear = linear_probe(first, torch.from_numpy(labels), second, 3).numpy()
    near = nearest_neighbours(first, torch.from_numpy(labels), second, 3).numpy()
    expected = Score(*accuracies(linear, truth), *accuracies(near, truth))
    assert score(known, labels, others, truth, 3) == expected
    assert len(set(expected)) == 4
    moved = score(known * 1e3 + 50, labels, others * 1e3 + 50, truth, 3)
    assert moved == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("value", "noise"), [(0.0, 0), (-3e7, 0), (0.1, 1e-15), (-3e7, 1e-15)])
def test_a_constant_feature_does_no_harm(value, noise):
    """Nor one that changes in the last bit only."""
    known, labels = clouds(60, 3, 6, 1.0)
    others, truth = clouds(100, 3, 6, 1.0, seed=1)
    expected = score(known, labels, others, truth, 3)
    constant = value * (1 + noise * torch.randn(60, 2, dtype=torch.float64))
    moved = torch.full((100, 2), value + 1e6, dtype=torch.float64)
    found = score(torch.cat([constant, known], 1), labels, torch.cat([moved, others], 1), truth, 3)
    assert np.isfinite(found).all()
    assert found == expected


def test_features_that_say_nothing_at_all_are_no_failure():
    labels, truth = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 2])
    found = score(torch.ones(6, 4, dtype=torch.float64), labels, torch.zeros(3, 4, dtype=torch.float64), truth, 3)
    assert found == pytest.approx([1 / 3] * 4)


def test_a_class_with_a_single_image_can_be_found():
    known, labels = clouds(40, 2, 6, 0.05)
    alone = known.mean(dim=0, keepdim=True) + 5
    known, labels = torch.cat([known, alone]), np.append(labels, 2)
    assert score(known, labels, alone + 0.01, np.array([2]), 3).linear == 1


def test_scores_as_metrics():
    scores = [Score(0.1, 0.2, 0.3, 0.4), Score(0.5, 0.6, 0.7, 0.8)]
    assert as_metrics(scores, "random_") == {
        "random_linear_stage1": 0.1,
        "random_linear_balanced_stage1": 0.2,
        "random_knn_stage1": 0.3,
        "random_knn_balanced_stage1": 0.4,
        "random_linear_stage2": 0.5,
        "random_linear_balanced_stage2": 0.6,
        "random_knn_stage2": 0.7,
        "random_knn_balanced_stage2": 0.8,
    }
    assert list(as_metrics(scores[:1])) == [
        "linear_stage1",
        "linear_balanced_stage1",
        "knn_stage1",
        "knn_balanced_stage1",
    ]


# ---- features of images ---------------------------------------------------------------------------------------


def brightness(images):
    """uint8 (B, 3, H, W) -> (B, 4)."""
    pixels = images.float().flatten(2)
    return torch.cat([pixels.mean(dim=2), pixels[:, 0].std(dim=1, keepdim=True)], dim=1)


def brightness_by_hand(index):
    return brightness(EvaluationTransform((64, 64))(Noise(20).image(index))[None])[0].double()


@pytest.mark.parametrize("broken", [frozenset(), BROKEN], ids=["whole", "broken"])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [11, 7])
def test_features_are_the_same_on_any_number_of_processes(n, world, broken):
    images = labelled(n, broken)
    brought = []

    def collect(rows):
        brought.append(rows.clone())
        return torch.ones_like(rows)

    for rank in range(world):
        features(images, reader(collect, rank, world), brightness, 4)
    assert len(brought) == world, "every process calls reduce exactly once"
    rest = [index for index in range(n) if index not in broken]
    for rank in range(world):
        together = reader(lambda rows: torch.stack(brought).sum(0), rank, world)
        found, labels = features(images, together, brightness, 4)
        assert found.dtype == torch.float64
        assert labels.tolist() == [index % 3 for index in rest]
        expected = torch.stack([brightness_by_hand(index) for index in rest])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)
        assert torch.equal(found, features(images, reader(), brightness, 4)[0])


def test_nothing_to_read_is_an_error():
    images = labelled(5).take(np.array([], dtype=np.int64))
    with pytest.raises(UserError, match="no image to probe on that can be read"):
        features(images, reader(), brightness, 4)


@pytest.fixture
def encoder(tiny):
    encoder = Swin(tiny)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return encoder


def test_every_stage_has_the_score_of_its_pooled_features(encoder, monkeypatch):
    monkeypatch.setattr(probes, "PENALTIES", (1e-1, 1.0))  # the others take long
    training, judged = labelled(14, frozenset({3})), labelled(9, frozenset({0}))
    found = Prober(training, judged, reader()).stages(encoder)
    parts = []
    for images, broken in ((training, 3), (judged, 0)):
        rest = [index for index in range(len(images)) if index != broken]
        crops = torch.stack([EvaluationTransform((64, 64))(images.images.image(index)) for index in rest])
        with torch.no_grad():
            maps = encoder.eval().pyramid(normalize(crops, SEEN.mean, SEEN.std))
        parts.append(([each.mean(dim=(2, 3)).double() for each in maps], images.targets[rest]))
    (known, labels), (others, truth) = parts
    assert [each.shape[1] for each in known] == [16, 32, 64, 128]
    assert found == [score(one, labels, other, truth, 3) for one, other in zip(known, others, strict=True)]


@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_comes_back_in_its_mode_and_without_gradients(encoder, training):
    encoder.train(training)
    encoder.layers[0].eval()
    modes = [module.training for module in encoder.modules()]
    seen = []

    def watched(images):
        seen.append((encoder.training, torch.is_grad_enabled()))
        return Swin.pyramid(encoder, images)

    encoder.pyramid = watched
    before = [parameter.clone() for parameter in encoder.parameters()]
    state = torch.get_rng_state()
    Prober(labelled(8), labelled(5), reader()).stages(encoder)
    assert set(seen) == {(False, False)}
    assert [module.training for module in encoder.modules()] == modes
    assert torch.is_grad_enabled()
    for parameter, old in zip(encoder.parameters(), before, strict=True):
        assert parameter.grad is None
        assert parameter.requires_grad
        assert torch.equal(parameter, old)
    assert torch.equal(torch.get_rng_state(), state), "the run's random numbers go on as without a probe"


# ---- colours --------------------------------------------------------------------------------------------------


def test_a_colour_histogram_is_numpys():
    images = torch.randint(0, 256, (3, 3, 16, 12), dtype=torch.uint8)
    images[1, :, :8] = 255
    found = colour_histogram(images)
    assert (found.dtype, found.shape) == (torch.float64, (3, 3 * 32 + 8**3))
    for image, row in zip(images.numpy(), found.numpy(), strict=True):
        pixels = image.reshape(3, -1)
        channels = [np.histogram(pixels[channel], bins=32, range=(0, 256))[0] for channel in range(3)]
        joint, _ = np.histogramdd(pixels.T, bins=(8, 8, 8), range=[(0, 256)] * 3)
        expected = np.concatenate([*channels, joint.ravel()]) / (16 * 12)
        np.testing.assert_allclose(row, np.sqrt(expected), rtol=1e-12)
        np.testing.assert_allclose([(part**2).sum() for part in np.split(row, [32, 64, 96])], 1)


def test_a_colour_histogram_does_not_know_where_a_pixel_is():
    images = torch.randint(0, 256, (2, 3, 16, 12), dtype=torch.uint8)
    shuffled = images.flatten(2)[:, :, torch.randperm(16 * 12)].view_as(images)
    assert torch.equal(colour_histogram(shuffled), colour_histogram(images))
    assert not torch.equal(colour_histogram(images.flip(1)), colour_histogram(images))


class Tinted(Noise):
    """Noise whose colour tells the class."""

    def image(self, index):
        pixels = np.asarray(super().image(index)) // 2
        pixels[..., index % 3] += 127
        return Image.fromarray(pixels)


def by_colours(training, judged, reader):
    (train, labels), (test, truth) = (colours_of(images, reader) for images in (training, judged))
    return score(train, labels, test, truth, len(training.names))


def test_colours_alone_solve_what_colours_tell():
    training, judged = (Labelled(Tinted(n), NAMES, np.arange(n) % 3) for n in (18, 9))
    assert by_colours(training, judged, reader()) == Score(1, 1, 1, 1)
    found, labels = colours_of(training, reader())
    crops = torch.stack([EvaluationTransform((64, 64))(training.images.image(index)) for index in range(18)])
    assert torch.equal(found, colour_histogram(crops)), "of the pixels as they are, not normalised"
    assert np.array_equal(labels, training.targets)


def test_a_histogram_of_values_is_numpys_and_leaves_gaps_out():
    values = torch.randn(3, 4, 9, 7) * 2
    values[0, :, :3] = float("nan")
    values[1, 2] = float("nan")
    values[2, 1, 0, 0] = float("inf")
    found = value_histogram(values)
    assert (found.dtype, found.shape) == (torch.float64, (3, 4 * 32))
    for image, row in zip(values.numpy(), found.view(3, 4, 32).numpy(), strict=True):
        for channel, shares in zip(image, row, strict=True):
            there = channel[~np.isnan(channel)]
            inside = np.histogram(there.clip(-3, 3 - 1e-6), bins=32, range=(-3, 3))[0]
            np.testing.assert_allclose(shares**2, inside / max(len(there), 1), atol=1e-12)


class NoFloat64OnMps(TorchDispatchMode):
    """What a device of that kind would refuse; fake tensors have no such limit."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, torch.Tensor) and each.device.type == "mps":
                assert each.dtype != torch.float64, function
        return found


def test_values_of_rasters_are_counted_on_mps_without_float64():
    with FakeTensorMode(), NoFloat64OnMps():
        values = torch.empty(2, 4, 8, 8, device="mps")
        found = value_histogram(values)
    assert (found.device.type, found.dtype, found.shape) == ("cpu", torch.float64, (2, 4 * 32))


class ChannelSpec(Noise):
    """Two channels of noise with gaps; the mean of the second tells the class."""

    def image(self, index):
        values = np.random.default_rng(index).normal(100, 10, (70, 66, 2)).astype(np.float32)
        values[..., 1] += index % 3 * 15
        return Raster(values, np.random.default_rng(index).random((70, 66)) > 0.2)


def test_values_alone_solve_what_values_tell():
    known = Preprocessing((100.0, 115.0), (10.0, 15.0), ("a", "b"), scale=1)
    seen = replace(reader(), preprocess=Preprocessor(known, torch.device("cpu")))
    training, judged = (Labelled(ChannelSpec(n), NAMES, np.arange(n) % 3) for n in (18, 9))
    assert by_colours(training, judged, seen) == Score(1, 1, 1, 1)
    found, _ = colours_of(training, seen)
    assert found.shape == (18, 64)
    np.testing.assert_allclose(found.view(18, 2, 32).square().sum(dim=2), 1)
