import math

import pytest
import torch
from torch import nn

from swin_mim import SimMIM, block_mask
from swin_mim.data.loading.loader import Batch
from swin_mim.data.transforms.crops import normalize
from swin_mim.errors import UserError
from swin_mim.evaluation.hole_filling import laplace_inpaint
from swin_mim.evaluation.validation import baseline_errors, evaluate
from swin_mim.masking import pixel_mask
from swin_mim.models.targets.normalized import local_statistics
from swin_mim.models.targets.pixels import MimOutput, masked_l1

GRID, PATCH = (16, 16), 4


def prepare(images):
    return normalize(images, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def masks(count, start):
    return block_mask(count, GRID, 4, 0.6, seed=5, start=start)


def draw_mask(batch):
    return masks(len(batch.images), batch.start)


@pytest.fixture
def images():
    return torch.randint(0, 256, (11, 3, 64, 64), dtype=torch.uint8)


@pytest.fixture
def model(tiny):
    return SimMIM(tiny)


def cut(images, *sizes):
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        Batch(part, start, [], torch.arange(start, start + len(part)))
        for part, start in zip(images.split(sizes), starts, strict=True)
    ]


def alone(total):
    return total


def over_processes(run, shares):
    """run(share, reduce) of every process, where reduce adds up what all of them bring."""
    brought = []

    def collect(total):
        brought.append(total)
        return torch.ones_like(total)

    for share in shares:
        run(share, collect)
    assert len(brought) == len(shares), "every process calls reduce exactly once"
    assert {total.dtype for total in brought} == {torch.float64}
    return [run(share, lambda total: torch.stack(brought).sum(0)) for share in shares]


def test_the_evaluation_is_the_loss_of_one_big_batch(model, images):
    with torch.no_grad():
        expected = float(model.eval()(prepare(images), masks(11, 0)).loss)
    for sizes in ((11,), (4, 4, 3), (1, 10), (10, 1)):
        got = evaluate(model, cut(images, *sizes), prepare=prepare, draw_mask=draw_mask, reduce=alone)
        assert got == pytest.approx(expected, rel=1e-5), sizes


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_process_gets_the_result_of_one_process(model, images, world):
    whole = cut(images, 3, 3, 3, 2)

    def run(share, reduce):
        return evaluate(model, share, prepare=prepare, draw_mask=draw_mask, reduce=reduce)

    results = over_processes(run, [whole[rank::world] for rank in range(world)])
    assert len(set(results)) == 1
    assert results[0] == pytest.approx(run(whole, alone), rel=1e-12)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_baselines_are_the_same_on_any_number_of_processes(images, world):
    whole = cut(images, 3, 3, 3, 2)

    def run(share, reduce):
        return baseline_errors(share, prepare=prepare, draw_mask=draw_mask, patch=PATCH, reduce=reduce)

    results = over_processes(run, [whole[rank::world] for rank in range(world)])
    assert all(result == pytest.approx(run(whole, alone), rel=1e-12) for result in results)


def test_each_image_counts_the_same():
    """A loss that is the brightness of the batch: its mean over images, not over batches."""

    class Brightness(nn.Module):
        def forward(self, images, mask):
            return MimOutput(images.mean(), images)

    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 8, 8)
    batches = cut(images, 4, 1)
    options = {"draw_mask": draw_mask, "reduce": alone}
    assert evaluate(Brightness(), batches, prepare=lambda x: x.float(), **options) == 2


def test_masks_are_asked_for_by_position(model, images):
    asked = []

    def note(batch):
        asked.append((len(batch.images), batch.start))
        return draw_mask(batch)

    evaluate(model, cut(images, 4, 4, 3), prepare=prepare, draw_mask=note, reduce=alone)
    baseline_errors(cut(images, 4, 7), prepare=prepare, draw_mask=note, patch=PATCH, reduce=alone)
    assert asked == [(4, 0), (4, 4), (3, 8), (4, 0), (7, 4)]


def test_no_image_anywhere_is_an_error_that_names_the_setting(model):
    with pytest.raises(UserError, match=r"data\.heldout"):
        evaluate(model, [], prepare=prepare, draw_mask=draw_mask, reduce=alone)
    with pytest.raises(UserError, match=r"data\.heldout"):
        baseline_errors([], prepare=prepare, draw_mask=draw_mask, patch=PATCH, reduce=alone)


def test_a_loss_that_is_not_finite_is_seen(images):
    class Broken(nn.Module):
        def forward(self, images, mask):
            return MimOutput(torch.tensor(torch.nan), images)

    assert math.isnan(evaluate(Broken(), cut(images, 11), prepare=prepare, draw_mask=draw_mask, reduce=alone))


def test_evaluation_knows_no_dropout_and_leaves_every_module_in_its_mode(images):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout, self.frozen = nn.Dropout(0.5), nn.BatchNorm2d(3)

        def forward(self, images, mask):
            assert not torch.is_grad_enabled()
            return MimOutput(self.dropout(self.frozen(images)).abs().mean(), images)

    model = Noisy().train()
    model.frozen.eval()
    options = {"prepare": prepare, "draw_mask": draw_mask, "reduce": alone}
    first, second = (evaluate(model, cut(images, 6, 5), **options) for _ in range(2))
    assert first == second
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    assert torch.is_grad_enabled()


def test_the_mode_comes_back_after_an_error(images):
    class Fails(nn.Module):
        def forward(self, images, mask):
            raise RuntimeError(f"training is {self.training}")

    model = Fails().train()
    with pytest.raises(RuntimeError, match="training is False"):
        evaluate(model, cut(images, 11), prepare=prepare, draw_mask=draw_mask, reduce=alone)
    assert model.training
    assert torch.is_grad_enabled()


def test_what_a_model_remembers_of_an_evaluation_can_be_trained_with(images):
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.known = nn.Parameter(torch.ones(())), {}

        def forward(self, images, mask):
            one = self.known.setdefault(images.shape[2:], torch.ones(images.shape[2:]))
            return MimOutput((images * (one * self.scale)).mean(), images)

    model = Remembers()
    evaluate(model, cut(images, 11), prepare=prepare, draw_mask=draw_mask, reduce=alone)
    model(prepare(images), masks(11, 0)).loss.backward()
    assert model.scale.grad is not None


def naive_errors(images, mask, fill, unit):
    """Sum over masked pixels of |x - fill| / unit, over masked pixels x channels."""
    total, count = 0.0, 0
    for b, y, x in mask.nonzero().tolist():
        total += float(((images[b, :, y, x] - fill[b, :, y, x]).abs() / unit[b, :, y, x]).sum())
        count += images.shape[1]
    return total / count


@pytest.mark.parametrize("normalized", [False, True])
def test_baselines_against_a_loop(images, normalized):
    def local_std(x):
        return local_statistics(x, 7)[1]

    images = images[:3]
    baselines = baseline_errors(
        cut(images, 2, 1),
        prepare=prepare,
        draw_mask=draw_mask,
        patch=PATCH,
        reduce=alone,
        std=local_std if normalized else None,
    )
    floats, hidden = prepare(images), pixel_mask(masks(3, 0), PATCH)
    unit = local_std(floats) if normalized else torch.ones_like(floats)
    mean = torch.stack([x[:, ~m].mean(1) for x, m in zip(floats, hidden, strict=True)])[..., None, None]
    inpainted = laplace_inpaint(floats, hidden)
    assert list(baselines) == ["mean_fill", "interpolation"]
    assert baselines["mean_fill"] == pytest.approx(naive_errors(floats, hidden, mean.expand_as(floats), unit), rel=1e-5)
    assert baselines["interpolation"] == pytest.approx(naive_errors(floats, hidden, inpainted, unit), rel=1e-5)


def test_a_baseline_is_the_loss_of_a_model_that_interpolates(images):
    class Membrane(nn.Module):
        def forward(self, images, mask):
            pixels = laplace_inpaint(images, pixel_mask(mask, PATCH))
            return MimOutput(masked_l1(pixels, images, mask), pixels)

    options = {"prepare": prepare, "draw_mask": draw_mask, "reduce": alone}
    loss = evaluate(Membrane(), cut(images, 5, 6), **options)
    baseline = baseline_errors(cut(images, 5, 6), patch=PATCH, **options)["interpolation"]
    assert loss == pytest.approx(baseline, rel=1e-9)


def test_interpolation_beats_the_mean_where_pictures_are_smooth():
    ramp = torch.arange(64, dtype=torch.uint8).expand(4, 3, 64, 64)
    errors = baseline_errors(cut(ramp, 4), prepare=lambda x: x.float(), draw_mask=draw_mask, patch=PATCH, reduce=alone)
    assert errors["interpolation"] < errors["mean_fill"] / 3


def test_pixel_mask_repeats_every_token():
    mask = torch.rand(3, 4, 5) < 0.5
    pixels = pixel_mask(mask, 3)
    assert pixels.shape == (3, 12, 15)
    assert pixels.dtype == torch.bool
    for y in range(12):
        for x in range(15):
            assert torch.equal(pixels[:, y, x], mask[:, y // 3, x // 3])
