"""Pixels less the mean and over the std of their neighbourhood: the target of the Swin V2 recipe."""

import torch
import torch.nn.functional as F
from torch import Tensor

NORMALIZATION_WINDOW = 47
"""Pixels along the side of the neighbourhood that normalises a target (the SwinV2 recipe)."""


def local_statistics(
    images: Tensor, window: int = NORMALIZATION_WINDOW, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute mean and std of the odd window around each pixel; at a border, of its part inside the image.

    Args:
        images: float (B, C, H, W).
        valid: bool (B, H, W): the pixels that count; None: all. Where none of a window does, the mean is the image's.

    Returns:
        mean and sqrt(unbiased variance + 1e-6), each fp32 (B, C, H, W).
    """
    images = images.float()
    if valid is None:
        mean, square = _window_mean(images, window), _window_mean(images.square(), window)
        count = _window_sum(torch.ones_like(images[:1, :1]), window)  # (1, 1, H, W)
    else:
        count = _window_sum(valid[:, None].float(), window)  # (B, 1, H, W)
        images = images.where(valid[:, None], 0)
        # values of any units may lie far from 0, where a difference of squares has no digits left
        level = images.sum((2, 3), keepdim=True) / valid.sum((1, 2)).clamp(min=1).view(-1, 1, 1, 1)  # (B, C, 1, 1)
        images = (images - level).where(valid[:, None], 0)
        mean, square = (_window_sum(x, window) / count.clamp(min=1) for x in (images, images.square()))
    variance = (square - mean.square()) * count / (count - 1).clamp(min=1)
    std = (variance.clamp(min=0) + 1e-6).sqrt()
    return mean if valid is None else mean + level, std


def _window_mean(x: Tensor, window: int) -> Tensor:
    """Mean over the window, of its part inside the image; separable, so one pass per dimension."""
    pad = window // 2
    x = F.avg_pool2d(x, (window, 1), stride=1, padding=(pad, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, window), stride=1, padding=(0, pad), count_include_pad=False)


def _window_sum(x: Tensor, window: int) -> Tensor:
    pad = window // 2
    x = F.avg_pool2d(x, (window, 1), stride=1, padding=(pad, 0), divisor_override=1)
    return F.avg_pool2d(x, (1, window), stride=1, padding=(0, pad), divisor_override=1)
