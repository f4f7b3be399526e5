import re

import pytest
import torch
from torch.testing import assert_close

from swin_mim import SimMIM, Swin, SwinConfig, block_mask
from swin_mim.kernels import chunked_mlp, cpu_attention, product
from swin_mim.masking import masked_cells
from swin_mim.models.targets.normalized import local_statistics
from swin_mim.models.targets.pixels import masked_l1
from swin_mim.training.loop import replay


def naive_loss(pixels, target, mask):
    """Pixel by pixel."""
    patch = pixels.shape[2] // mask.shape[1]
    errors = [
        abs(float(target[b, c, y, x]) - float(pixels[b, c, y, x]))
        for b in range(pixels.shape[0])
        for c in range(pixels.shape[1])
        for y in range(pixels.shape[2])
        for x in range(pixels.shape[3])
        if mask[b, y // patch, x // patch]
    ]
    return sum(errors) / len(errors)


def test_masked_l1_equals_the_definition():
    pixels, target = torch.randn(2, 3, 8, 12), torch.randn(2, 3, 8, 12)
    mask = block_mask(2, (4, 6), 2, 0.5, seed=0)
    assert masked_l1(pixels, target, mask).item() == pytest.approx(naive_loss(pixels, target, mask), abs=1e-6)


def test_nothing_masked_is_no_loss():
    assert masked_l1(torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 2, dtype=torch.bool)) == 0


def test_the_model_sees_no_masked_pixel(tiny):
    model = SimMIM(tiny)
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    mask = block_mask(2, (16, 16), 4, 0.6, seed=0)
    out = model(images, mask)
    (gradient,) = torch.autograd.grad(out.pixels.square().sum(), images)
    masked = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand_as(images)
    assert not gradient[masked].any()
    assert gradient[~masked].any()
    assert out.pixels.shape == images.shape
    assert out.loss.item() == pytest.approx(naive_loss(out.pixels.detach(), images.detach(), mask), abs=1e-5)


def test_the_loss_has_no_gradient_outside_the_mask(tiny):
    mask = block_mask(2, (16, 16), 4, 0.6, seed=0)
    pixels = torch.randn(2, 3, 64, 64, requires_grad=True)
    masked_l1(pixels, torch.zeros_like(pixels), mask).backward()
    masked = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand_as(pixels)
    assert (pixels.grad[masked].abs() == 1 / (3 * 16 * mask.sum())).all()
    assert not pixels.grad[~masked].any()


@pytest.mark.parametrize("target", ["pixels", "normalized"])
@pytest.mark.parametrize(("size", "unit"), [((64, 96), 8), ((64, 96), 4), ((64, 128), 16), ((72, 40), 2)])
def test_decoding_only_masked_cells_is_the_same_loss(tiny, size, unit, target):
    model = SimMIM(tiny, target=target)
    images, grid = torch.rand(3, 3, *size), (size[0] // 4, size[1] // 4)
    mask = block_mask(3, grid, unit, 0.5, seed=0)
    cells = masked_cells(grid, unit, 0.5, 8)
    whole, part = model(images, mask), model(images, mask, cells)
    assert part.pixels.shape == (3, cells, 3, 32, 32)
    assert_close(part.loss, whole.loss, atol=1e-6, rtol=0)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(out.loss, parameters) for out in (whole, part)]
    for expected, ours in zip(*gradients, strict=True):
        assert_close(ours, expected, atol=1e-6, rtol=1e-4)


def test_masked_cells_are_where_something_is_masked():
    for unit in (2, 4, 8, 16):
        mask = block_mask(50, (32, 48), unit, 0.3, seed=1)
        touched = mask.unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).any(4).any(2).flatten(1).sum(1)
        assert touched.max() <= masked_cells((32, 48), unit, 0.3, 8) <= 24
    assert masked_cells((48, 48), 8, 0.6, 8) == 22
    assert masked_cells((48, 48), 12, 0.6, 8) == 36, "units that cut through cells may touch all"


def test_too_few_cells_are_no_loss(tiny):
    mask = block_mask(2, (16, 16), 8, 0.6, seed=0)
    assert SimMIM(tiny)(torch.rand(2, 3, 64, 64), mask, 2).loss.isnan()


@pytest.mark.parametrize(("size", "channels"), [((64, 96), 1), ((72, 40), 5)])
def test_any_size_and_channels(size, channels):
    config = SwinConfig(size, in_channels=channels, embed_dim=16, depths=(2, 1, 1, 1), num_heads=(1, 2, 4, 8))
    out = SimMIM(config)(torch.randn(1, channels, *size), block_mask(1, (size[0] // 4, size[1] // 4), 2, 0.6, seed=0))
    assert out.pixels.shape == (1, channels, *size)
    out.loss.backward()


def brute_force_statistics(images, window):
    """Mean and unbiased std of every clipped neighbourhood, in float64."""
    pad = window // 2
    images = images.double()
    mean, std = torch.empty_like(images), torch.empty_like(images)
    for y in range(images.shape[2]):
        for x in range(images.shape[3]):
            part = images[:, :, max(0, y - pad) : y + pad + 1, max(0, x - pad) : x + pad + 1].flatten(2)
            mean[:, :, y, x], std[:, :, y, x] = part.mean(2), (part.var(2) + 1e-6).sqrt()
    return mean, std


@pytest.mark.parametrize("window", [5, 47])
def test_local_statistics_equal_brute_force(window):
    images = torch.randn(2, 3, 20, 31) * 2 + 1
    for ours, expected in zip(local_statistics(images, window), brute_force_statistics(images, window), strict=True):
        assert_close(ours.double(), expected, atol=1e-5, rtol=0)


def test_normalized_target(tiny):
    model = SimMIM(tiny, target="normalized")
    images, mask = torch.randn(2, 3, 64, 64), block_mask(2, (16, 16), 4, 0.6, seed=0)
    mean, std = brute_force_statistics(images, 47)
    out = model(images, mask)
    expected = masked_l1(out.pixels, (images - mean) / std, mask)
    assert_close(out.loss, expected, atol=1e-5, rtol=0)
    assert_close(model.to_images(model.targets(images), images), images, atol=1e-5, rtol=0)


def test_the_encoder_is_a_plain_swin(tiny):
    model = SimMIM(tiny)
    assert type(model.encoder) is Swin
    Swin(tiny).load_state_dict(model.encoder.state_dict())
    heads = [name for name in model.state_dict() if not name.startswith("encoder.")]
    assert heads == ["mask_token", "decoder.0.weight", "decoder.0.bias"]


def test_bf16_autocast_keeps_the_loss_in_fp32(tiny):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = SimMIM(tiny)(torch.randn(1, 3, 64, 64), block_mask(1, (16, 16), 4, 0.6, seed=0))
    assert out.loss.dtype == torch.float32
    assert out.pixels.dtype == torch.bfloat16


def test_an_empty_batch_has_no_loss(tiny):
    out = SimMIM(tiny)(torch.rand(0, 3, 64, 64), torch.zeros(0, 16, 16, dtype=torch.bool), 2)
    assert out.loss == 0
    assert out.pixels.shape == (0, 2, 3, 32, 32)


def test_after_a_look_in_inference_mode_it_still_trains(tiny):
    model, images = SimMIM(tiny), torch.rand(2, 3, 64, 64)
    mask = block_mask(2, (16, 16), 8, 0.6, seed=0)
    cpu_attention._buffers.__dict__.clear()
    with torch.inference_mode():
        seen = model(images, mask).loss
    loss = model(images, mask, 3).loss
    loss.backward()
    assert_close(loss, seen, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "weight",
    [
        *("encoder.layers.0.blocks.1.norm1.weight", "encoder.layers.0.blocks.0.norm2.weight"),
        *("encoder.layers.1.blocks.0.attn.qkv.weight", "encoder.layers.0.blocks.0.mlp.fc1.weight"),
        *("encoder.layers.1.downsample.norm.weight", "encoder.norm.weight", "decoder.0.weight"),
    ],
)
def test_replay_names_the_module_that_breaks(weight, monkeypatch):
    """Though the fast paths call several modules as one."""
    monkeypatch.setattr(product, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(chunked_mlp, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(product, "WORTH", 0)
    monkeypatch.setattr(chunked_mlp, "WORTH", 0)
    model = SimMIM(SwinConfig(32, embed_dim=16, depths=(2, 1), num_heads=(1, 2), window_size=4))
    model.get_parameter(weight).data.view(-1)[0] = torch.inf
    mask = block_mask(1, (8, 8), 2, 0.5, seed=0)
    with replay._watched(model) as findings:
        model(torch.rand(1, 3, 32, 32), mask, 8).loss.backward()
    module = weight.removesuffix(".0.weight" if weight.startswith("decoder") else ".weight")
    assert re.match(rf"output not finite first in {re.escape(module)} \(.*what it came from is finite", findings[0])
