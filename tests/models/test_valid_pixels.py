"""Pixels that are not there: neither seen, nor targets, nor part of a loss."""

import pytest
import torch
from torch.testing import assert_close

from swin_mim import SimMIM, block_mask
from swin_mim.errors import UserError
from swin_mim.masking import masked_cells, pixel_mask
from swin_mim.models.targets.normalized import local_statistics
from swin_mim.models.targets.pixels import masked_l1

CELLS = masked_cells((16, 16), 4, 0.6, 8)
TARGETS = pytest.mark.parametrize("target", ["pixels", "normalized"])
DECODED = pytest.mark.parametrize("cells", [None, CELLS])


@pytest.fixture
def valid():
    """Four images: whole, with a gap through units, with a whole half missing, with one unit left."""
    there = torch.ones(4, 64, 64, dtype=torch.bool)
    there[1, 5:40, 3:21] = False
    there[2, :, 30:] = False
    there[3] = False
    there[3, 16:32, 48:64] = True
    return there


@pytest.fixture
def mask(valid):
    return block_mask(4, (16, 16), 4, 0.6, seed=0, valid=valid)


@pytest.fixture
def images():
    return torch.randn(4, 3, 64, 64)


@TARGETS
@DECODED
@pytest.mark.parametrize("filler", [0.0, 1e30, float("nan")])
def test_what_is_not_there_changes_nothing(tiny, images, mask, valid, target, cells, filler):
    model = SimMIM(tiny, target=target)
    other = images.where(valid[:, None], filler)
    one, two = (model(x, mask, cells, valid) for x in (images, other))
    assert torch.equal(one.loss, two.loss)
    assert torch.equal(one.pixels, two.pixels)
    assert one.loss.isfinite()


@TARGETS
@DECODED
def test_the_loss_is_the_mean_over_images_of_their_masked_valid_pixels(tiny, images, mask, valid, target, cells):
    model = SimMIM(tiny, target=target)
    out = model(images, mask, cells, valid)
    whole = model(images, mask, None, valid)
    error = (model.targets(images, valid) - whole.pixels).abs().mean(1)
    each = [error[i][pixel_mask(mask, 4)[i] & valid[i]].mean() for i in range(4)]
    assert_close(out.loss, torch.stack(each).mean())


@DECODED
def test_the_loss_does_not_depend_on_how_a_batch_is_cut(tiny, images, mask, valid, cells):
    """As accumulation and processes cut it."""
    model = SimMIM(tiny)
    parts = [model(images[i : i + 1], mask[i : i + 1], cells, valid[i : i + 1]).loss for i in range(4)]
    assert_close(model(images, mask, cells, valid).loss, torch.stack(parts).mean())


@TARGETS
@DECODED
def test_with_all_pixels_there_it_is_the_usual_loss(tiny, images, target, cells):
    model, mask = SimMIM(tiny, target=target), block_mask(4, (16, 16), 4, 0.6, seed=0)
    all_there = torch.ones(4, 64, 64, dtype=torch.bool)
    usual, other = model(images, mask, cells), model(images, mask, cells, all_there)
    assert_close(other.loss, usual.loss)
    assert_close(other.pixels, usual.pixels)


def test_no_gradient_comes_from_a_gap(images, mask, valid):
    pixels = torch.zeros_like(images, requires_grad=True)
    masked_l1(pixels, images, mask, valid).backward()
    counted = (pixel_mask(mask, 4) & valid)[:, None].expand_as(pixels)
    assert pixels.grad[counted].all()
    assert not pixels.grad[~counted].any()


def test_an_image_with_nothing_to_predict_adds_nothing(images, valid):
    nothing = torch.zeros(4, 16, 16, dtype=torch.bool)
    assert masked_l1(images, images + 1, nothing, valid) == 0


def test_local_statistics_are_those_of_the_pixels_that_are_there(images, valid):
    mean, std = local_statistics(images, window=5, valid=valid)
    for b, y, x in ((0, 0, 0), (1, 6, 20), (1, 40, 21), (2, 63, 29), (3, 15, 50)):
        rows, columns = slice(max(0, y - 2), y + 3), slice(max(0, x - 2), x + 3)
        near = images[b, :, rows, columns][:, valid[b, rows, columns]]
        assert_close(mean[b, :, y, x], near.mean(1))
        assert_close(std[b, :, y, x], (near.var(1) + 1e-6).sqrt(), atol=1e-5, rtol=1e-5)


def test_local_statistics_keep_their_digits_far_from_0(valid):
    images = 300 + 0.1 * torch.randn(4, 3, 64, 64)
    _, std = local_statistics(images, valid=valid)
    _, expected = local_statistics(images.double().sub(300).float(), valid=valid)
    seen = valid[:, None].expand_as(images)
    assert_close(std[seen], expected[seen], rtol=0.02, atol=0)


def test_gaps_of_another_shape_are_refused(tiny, images, mask):
    with pytest.raises(UserError, match=r"valid must be bool \(4, 64, 64\), not torch.float32 \(4, 64, 64\)"):
        SimMIM(tiny)(images, mask, None, torch.ones(4, 64, 64))
    with pytest.raises(UserError, match=r"not torch.bool \(4, 32, 64\)"):
        SimMIM(tiny)(images, mask, None, torch.ones(4, 32, 64, dtype=torch.bool))
