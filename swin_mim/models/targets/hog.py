"""Histograms of oriented gradients as a target (MaskFeat, arXiv 2112.09133), of each channel.

Gradients are differences of the two neighbours of a pixel, 0 at a border. A pixel votes with the length of its gradient
for one of 9 orientations in 180 degrees, and the votes of a square are divided by their L2 norm. That is scikit-image's
`hog` of one channel with cells_per_block=(1, 1), block_norm="L2"; and MaskFeat's code, which does not normalise over
neighbouring squares either, but for its 3x3 Sobel filter.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_mim.errors import UserError
from swin_mim.masking import pixel_mask
from swin_mim.weights.heads import BINS

EPSILON = 1e-5
"""Added to the norm of a square's votes, as scikit-image does: a square without gradients has zeros."""


class Hog(nn.Module):
    """Histograms of oriented gradients of squares of several sizes.

    A module, though without weights, since a module can be compiled by itself.

    Args:
        cells: sides of the squares in pixels; the smallest divides the others.
    """

    def __init__(self, cells: Sequence[int]) -> None:
        super().__init__()
        self.cells = tuple(sorted(set(cells)))

    @torch.no_grad()
    def forward(self, images: Tensor, valid: Tensor | None = None) -> dict[int, Tensor]:
        """Images of any float dtype (B, C, H, W) -> for each side fp32 (B, 9 C, H / side, W / side), from 0 to 1.

        Args:
            valid: bool (B, H, W), the pixels that are there; None: all. The others do not vote, and a difference in
                which one takes part is 0, as at the border of the image.

        Raises:
            UserError: the images cannot be cut into such squares.
        """
        for side in images.shape[2:]:
            if side % self.cells[-1]:
                raise UserError(
                    f"image side {side} is not a multiple of {self.cells[-1]}, the side of the squares of target hog: "
                    f"resize or pad it to {-(-side // self.cells[-1]) * self.cells[-1]}"
                )
        down, right = gradients(images.float(), valid)
        votes = histograms(down, right, self.cells[0])
        found = {}
        for cell in self.cells:
            pooled = F.avg_pool2d(votes.flatten(1, 2), cell // self.cells[0]).unflatten(1, (-1, BINS))
            norm = (pooled.square().sum(2, keepdim=True) + EPSILON**2).sqrt()
            found[cell] = (pooled / norm).flatten(1, 2)
        return found


def gradients(images: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Differences of the neighbours below and above, and of those right and left, both (B, C, H, W).

    0 where there is no such neighbour, or where `valid`, bool (B, H, W), says that one or the pixel itself is missing.
    """
    if valid is None:
        return (
            F.pad(images[:, :, 2:] - images[:, :, :-2], (0, 0, 1, 1)),
            F.pad(images[..., 2:] - images[..., :-2], (1, 1)),
        )
    there = valid[:, None]
    down, right = gradients(images.where(there, 0))
    both_down = F.pad(there[:, :, 2:] & there[:, :, :-2], (0, 0, 1, 1)) & there
    both_right = F.pad(there[..., 2:] & there[..., :-2], (1, 1)) & there
    return down.where(both_down, 0), right.where(both_right, 0)


def histograms(down: Tensor, right: Tensor, cell: int) -> Tensor:
    """Mean votes of the pixels of each square for each orientation: (B, C, H, W) twice -> (B, C, 9, H / c, W / c).

    An orientation from 20 k degrees on and below 20 (k + 1) is that of bin k; 180 degrees are 0.
    """
    length = torch.hypot(down, right)
    # in the upper half plane no angle is lost by rounding it to just under 0 or to 180 degrees
    turned = (down < 0) | ((down == 0) & (right < 0))
    down, right = torch.where(turned, -down, down), torch.where(turned, -right, right)
    bins = (torch.atan2(down, right) * (BINS / math.pi)).floor().clamp(0, BINS - 1)
    pooled = [F.avg_pool2d(torch.where(bins == number, length, 0), cell) for number in range(BINS)]
    return torch.stack(pooled, 2)


def masked_l2(prediction: Tensor, target: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over the masked pixels of the squared error of the squares in which they lie, in fp32.

    With pixels that are not there it is the mean over the images of their own means, as of `masked_l1`.

    Args:
        prediction, target: (B, n, H / c, W / c).
        mask: bool (B, H/p, W/p), True = masked.
        valid: bool (B, H, W): the pixels that count; None: all.

    Returns:
        (); 0 if nothing is masked, and so is the part of an image in which nothing is.
    """
    error = (prediction.float() - target).square().mean(1)  # (B, H/c, W/c)
    share = masked_share(mask, valid, error.shape[1])
    if valid is None:
        return (error * share).sum() / share.sum().clamp(min=1e-6)
    share = share.flatten(1)
    return ((error.flatten(1) * share).sum(1) / share.sum(1).clamp(min=1e-6)).mean()


def masked_share(mask: Tensor, valid: Tensor | None, rows: int) -> Tensor:
    """How much of each square counts: mask and valid as of `masked_l2` -> fp32 (B, rows, W / c), from 0 to 1."""
    if valid is not None:
        mask = pixel_mask(mask, valid.shape[1] // mask.shape[1]) & valid
    if mask.shape[1] < rows:  # tokens of several squares
        return pixel_mask(mask, rows // mask.shape[1]).float()
    return F.avg_pool2d(mask.float(), mask.shape[1] // rows)
