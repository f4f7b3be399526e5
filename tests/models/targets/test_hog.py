"""Histograms of oriented gradients, beside scikit-image's, and the loss that predicts them."""

import numpy as np
import pytest
import torch
from skimage.feature import hog as reference
from torch.testing import assert_close

from swin_mim import SimMIM, SwinConfig, block_mask
from swin_mim.errors import UserError
from swin_mim.masking import masked_cells, pixel_mask
from swin_mim.models.targets.hog import Hog, histograms, masked_l2

CONFIG = SwinConfig(48, in_channels=2, embed_dim=16, depths=(1, 2), num_heads=(1, 2), window_size=4)


def pictures() -> torch.Tensor:
    """Noise, whole numbers with many equal neighbours, a slope, and nothing at all: (2, 4, 48, 64)."""
    noise, whole = torch.randn(2, 48, 64), torch.randint(0, 3, (2, 48, 64)).float()
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    slopes = torch.stack([y - 2 * x, -x])
    return torch.stack([noise, whole, slopes, torch.zeros(2, 48, 64)], 1)


@pytest.mark.parametrize("cell", [4, 8])
def test_it_is_that_of_scikit_image(cell):
    images = pictures()
    found = Hog([4, 8])(images)[cell].unflatten(1, (4, 9)).permute(0, 1, 3, 4, 2)  # (B, C, h, w, 9)
    squares = {"pixels_per_cell": (cell, cell), "cells_per_block": (1, 1), "block_norm": "L2"}
    for image, ours in zip(images.flatten(0, 1), found.flatten(0, 1), strict=True):
        expected = reference(image.double().numpy(), orientations=9, feature_vector=False, **squares)
        np.testing.assert_allclose(ours.numpy(), expected[:, :, 0, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("down", "right", "expected"),
    [
        *((0.0, 1.0, 0), (-0.0, 1.0, 0), (0.0, -1.0, 0), (-0.0, -1.0, 0), (1.0, 0.0, 4), (-1.0, 0.0, 4)),
        *((1e-9, -1.0, 8), (-1e-9, 1.0, 8), (1e-9, 1.0, 0), (1.0, 1.0, 2), (1.0, -1.0, 6), (-1.0, 1.0, 6)),
    ],
)
def test_orientations_at_the_edges_of_bins(down, right, expected):
    """180 degrees are 0, just under them is the last bin, and -0.0 is 0."""
    votes = histograms(torch.full((1, 1, 1, 1), down), torch.full((1, 1, 1, 1), right), 1).flatten()
    assert votes.nonzero().flatten().tolist() == [expected]
    assert votes[expected] == pytest.approx(np.hypot(down, right))


def test_a_gap_is_a_border():
    """What is beside a gap is as if the image ended there, whatever the gap holds."""
    images, valid = pictures(), torch.ones(2, 48, 64, dtype=torch.bool)
    valid[:, :, 40:] = False
    images[..., 40:] = torch.nan
    found, cut = Hog([8])(images, valid)[8], Hog([8])(images[..., :40].contiguous())[8]
    assert_close(found[..., :5], cut, atol=1e-6, rtol=0)
    assert not found[..., 5:].any()


def test_other_sizes_are_refused():
    with pytest.raises(UserError, match="image side 36 is not a multiple of 8, the side of the squares of target hog"):
        Hog([4, 8])(torch.rand(1, 1, 36, 48))


@pytest.mark.parametrize("token", [2, 4, 16])
def test_the_error_is_the_mean_over_masked_pixels_of_that_of_their_squares(token):
    prediction, target = torch.randn(3, 18, 4, 6), torch.rand(3, 18, 4, 6)
    mask, valid = block_mask(3, (32 // token, 48 // token), 1, 0.6, seed=0), torch.rand(3, 32, 48) > 0.3
    valid[2] = False
    valid[2, :7, :5] = True
    error = (prediction - target).square().mean(1).repeat_interleave(8, 1).repeat_interleave(8, 2)  # of each pixel
    masked = pixel_mask(mask, token)
    assert_close(masked_l2(prediction, target, mask), error[masked].mean())
    each = [error[i][masked[i] & valid[i]].sum() / max(1, int((masked[i] & valid[i]).sum())) for i in range(3)]
    assert_close(masked_l2(prediction, target, mask, valid), torch.stack(each).mean())
    assert masked_l2(prediction, target, torch.zeros_like(mask)) == 0


@pytest.mark.parametrize("stage_weights", [(), (0.25, 0.75)])
def test_the_encoder_learns_histograms_and_the_decoder_pixels(stage_weights):
    model, images = SimMIM(CONFIG, target="hog", stage_weights=stage_weights), torch.randn(2, 2, 48, 48)
    mask = block_mask(2, (12, 12), 2, 0.6, seed=0)
    out = model(images, mask, masked_cells((12, 12), 2, 0.6, 2))
    parameters = dict(model.named_parameters())
    alone = SimMIM(CONFIG)
    alone.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("stage_")})
    pixels = alone(images, mask)
    assert_close(out.parts["loss"], pixels.loss.detach())
    gradients = dict(zip(parameters, torch.autograd.grad(out.loss, list(parameters.values())), strict=True))
    for name in ("decoder.0.weight", "decoder.0.bias"):
        (expected,) = torch.autograd.grad(pixels.loss, alone.get_parameter(name), retain_graph=True)
        assert_close(gradients[name], expected, atol=1e-6, rtol=1e-4)
    histograms_alone = model(images, mask).loss - model(images, mask).parts["loss"]
    encoder = [name for name in parameters if name.startswith("encoder.")]
    expected_of_all = torch.autograd.grad(histograms_alone, [parameters[name] for name in encoder])
    for name, expected in zip(encoder, expected_of_all, strict=True):
        assert gradients[name].any(), name
        assert_close(gradients[name], expected, atol=1e-6, rtol=1e-4)
    weighed = [stage_weights[i] if stage_weights else 1 for i in range(len(out.parts) - 1)]
    of_heads = sum(w * value for w, value in zip(weighed, list(out.parts.values())[1:], strict=True))
    assert_close(out.loss.detach(), out.parts["loss"] + of_heads)
    names = ("stage1_hog_loss", "stage2_hog_loss") if stage_weights else ("hog_loss",)
    assert tuple(out.parts) == model.part_names == ("loss", *names)
