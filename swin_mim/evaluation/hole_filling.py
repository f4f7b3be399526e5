"""Fills holes from their surroundings, with nothing learned: the inpainting baselines that a model has to beat."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 4
"""Images solved together: their work arrays stay in the processor's cache, and each chunk stops when it is done."""


def mean_fill(images: Tensor, mask: Tensor) -> Tensor:
    """Fill masked pixels with the mean over the visible pixels of their image, channel by channel.

    Args:
        images: (B, C, H, W) float; what lies under the mask is never read, not even NaN.
        mask: (B, H, W) bool, True = masked.

    Returns:
        (B, C, H, W) of the same dtype; an image without a visible pixel is all 0, the mean of normalised data.
    """
    visible = _visible(images, mask)
    return torch.where(visible, images, _visible_mean(images, visible).to(images.dtype))


def laplace_inpaint(images: Tensor, mask: Tensor, *, tolerance: float = 3e-5) -> Tensor:
    """Inpaint masked pixels so that each is the mean of its neighbours.

    This is the solution of the discrete Laplace equation with the visible pixels as boundary values; beyond the border
    of the image each border pixel repeats. Nothing overshoots: every value lies between the min and the max of the
    visible pixels of its channel.

    Args:
        images: (B, C, H, W) float; what lies under the mask is never read, not even NaN.
        mask: (B, H, W) bool, True = masked.
        tolerance: max difference of a masked pixel's four-neighbour sum from four times its value, as a fraction
            of the range of the visible pixels. The default leaves errors of about 1e-4 of that range where holes
            are up to 100 pixels wide.

    Returns:
        (B, C, H, W) of the same dtype; an image without a visible pixel is all 0, the mean of normalised data.
    """
    visible = _visible(images, mask)
    level = _visible_mean(images, visible)  # taken off, so that rounding errors are a part of the range
    known = (images - level).masked_fill(~visible, 0)
    chunks = zip(known.split(CHUNK), visible.split(CHUNK), strict=True)
    with _one_thread():
        filled = torch.cat([_solve(*chunk, tolerance) for chunk in chunks]) + level
    return torch.where(visible, images, filled.to(images.dtype))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the solver, which is thousands of small operations, to one thread.

    Two are hardly faster, and up to fifty times slower where data workers take the cores, because every operation waits
    for the slower thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _visible(images: Tensor, mask: Tensor) -> Tensor:
    """(B, H, W) True = masked -> (B, 1, H, W) True = visible."""
    batch, _, height, width = images.shape
    assert mask.shape == (batch, height, width), f"mask {tuple(mask.shape)} for images {tuple(images.shape)}"
    assert mask.dtype == torch.bool, mask.dtype
    return ~mask[:, None]


def _visible_mean(images: Tensor, visible: Tensor) -> Tensor:
    """(B, C, 1, 1), at least fp32; 0 where nothing is visible."""
    known = images.masked_fill(~visible, 0).to(torch.promote_types(images.dtype, torch.float32))
    return known.sum((-2, -1), keepdim=True) / visible.sum((-2, -1), keepdim=True).clamp_min(1)


def _solve(known: Tensor, visible: Tensor, tolerance: float) -> Tensor:
    """Conjugate gradients, one independent system per image and channel; masked pixels of `known` are 0."""
    limit = _limit(known, visible, tolerance)
    hole = (~visible).to(known.dtype)
    filled = _pull_push(known, visible.to(known.dtype))
    residual = _laplacian(filled) * hole
    direction = torch.zeros_like(filled)
    former = torch.ones_like(_dot(residual, residual))
    steps = 0
    while (residual.abs() > limit).any():
        assert steps < 16 * sum(known.shape[-2:]), "the solver did not converge"
        for _ in range(4):  # a look at the residual makes an accelerator wait
            smooth = _coarse_and_fine(residual) * hole
            energy = _dot(residual, smooth)
            direction = torch.addcmul(smooth, direction, _ratio(energy, former))
            pull = _laplacian(direction) * hole
            length = _ratio(energy, -_dot(direction, pull))
            filled = torch.addcmul(filled, length, direction)
            residual = torch.addcmul(residual, length, pull)
            former = energy
            steps += 1
    return filled


def _limit(known: Tensor, visible: Tensor, tolerance: float) -> Tensor:
    """(B, C, 1, 1): the residual to reach; never below what rounding leaves, so that a constant image converges."""
    high = known.masked_fill(~visible, -torch.inf).amax((-2, -1), keepdim=True)
    low = known.masked_fill(~visible, torch.inf).amin((-2, -1), keepdim=True)
    rounding = 16 * torch.finfo(known.dtype).eps * known.abs().amax((-2, -1), keepdim=True)
    return torch.maximum(tolerance * (high - low), rounding)


def _laplacian(pixels: Tensor) -> Tensor:
    """Sum of the four neighbours minus four times the pixel."""
    wide = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    total = wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1]
    total += wide[..., 1:-1, :-2]
    total += wide[..., 1:-1, 2:]
    return total.sub_(pixels, alpha=4)


def _coarse_and_fine(residual: Tensor) -> Tensor:
    """An approximate inverse of the Laplacian (BPX preconditioner): what each 1x1, 2x2, 4x4... block asks for.

    Without it the number of iterations grows with the size of the holes. A block's self-energy is the length of its
    outline, hence the half at every doubling.
    """
    height, width = residual.shape[-2:]
    if max(height, width) <= 2:
        return residual
    sums = F.avg_pool2d(residual, 2, ceil_mode=True, divisor_override=1)
    return residual.add(_doubled(_coarse_and_fine(sums), height, width, "nearest"), alpha=0.5)


def _pull_push(known: Tensor, weight: Tensor) -> Tensor:
    """A start for the iteration: averages of the visible pixels over the smallest blocks that have some."""
    height, width = known.shape[-2:]
    if max(height, width) == 1:
        return known
    coarse_weight = F.avg_pool2d(weight, 2, ceil_mode=True)
    coarse = F.avg_pool2d(known * weight, 2, ceil_mode=True) / coarse_weight.clamp_min(1e-6)
    pushed = _doubled(_pull_push(coarse, (coarse_weight > 0).to(weight.dtype)), height, width, "bilinear")
    return known * weight + pushed * (1 - weight)


def _doubled(coarse: Tensor, height: int, width: int, mode: str) -> Tensor:
    return F.interpolate(coarse, scale_factor=2, mode=mode)[..., :height, :width]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B, C, 1, 1)"""
    return (a * b).sum((-2, -1), keepdim=True)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where a system is solved already and both vanish."""
    return torch.where(b > 0, a / b, 0)
