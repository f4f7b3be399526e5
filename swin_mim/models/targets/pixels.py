"""Predicting pixels: the decoder, and the mean absolute error of what is masked."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_mim.architecture import SwinConfig
from swin_mim.kernels.product import linear
from swin_mim.masking import pixel_mask


class MimOutput(NamedTuple):
    loss: Tensor
    """(), the mean absolute error over the masked pixels."""
    pixels: Tensor
    """(B, C, H, W), the prediction for every pixel, in the units of the target; (B, cells, C, s, s) if only so many
    cells of s x s pixels were decoded."""


class HeadsOutput(NamedTuple):
    """Of a model with heads besides the decoder."""

    loss: Tensor
    """(), the sum that is trained."""
    pixels: Tensor
    """As of `MimOutput`."""
    parts: dict[str, Tensor]
    """Every () that was measured, without gradients, by name."""


def decoded(
    decoder: nn.Module,
    masked_cells: nn.Module,
    features: Tensor,
    target: Tensor,
    mask: Tensor,
    cells: int | None,
    valid: Tensor | None,
) -> MimOutput:
    """Loss and prediction from the features of a stage (B, h, w, D), of all cells or of so many masked ones.

    Args:
        decoder, masked_cells: of the stage.
        target: (B, C, H, W); the others as in `SimMIM.forward`.
    """
    if cells is not None:
        return masked_cells(decoder, features, target, mask, cells, valid)
    pixels = decoder(features)[..., : target.shape[2], : target.shape[3]]
    return MimOutput(masked_l1(pixels, target, mask, valid), pixels)


class MaskedCells(nn.Module):
    """Loss and prediction of the cells of a stage in which anything is masked.

    A module, though without weights, since a module can be compiled by itself.

    Args:
        stride: pixels along the side of a cell.
        patch: pixels along the side of a token.
    """

    def __init__(self, stride: int, patch: int) -> None:
        super().__init__()
        self.stride, self.patch = stride, patch

    def forward(
        self, decoder: nn.Module, features: Tensor, target: Tensor, mask: Tensor, cells: int, valid: Tensor | None
    ) -> MimOutput:
        """features of the stage (B, h, w, D), or of the `chosen` cells alone (B, cells, D), target (B, C, H, W), the
        others as in `SimMIM.forward`; `decoder` as `PixelDecoder`."""
        stride, patch = self.stride, self.patch
        masks = self._masks(mask)  # (B G, s/p, s/p), G cells of an image
        chosen = self.chosen(mask, cells)
        cells = chosen.shape[1]
        chosen = (chosen + torch.arange(len(mask), device=mask.device)[:, None] * self._count(mask)).flatten()
        if features.ndim == 4:
            features = features.flatten(0, 2).index_select(0, chosen)
        pixels = decoder(features.flatten(0, -2))  # (B cells, C, s, s)
        error = (_by_cell(target, stride)[chosen].float() - pixels.float()).abs().mean(dim=1, keepdim=True)
        masks, total = masks[chosen], mask.sum()
        if valid is None:
            error = _by_cell(error, patch).mean(dim=(1, 2, 3)).view(-1, stride // patch, stride // patch)
            loss = (error * masks).sum() / total.clamp(min=1)
        else:
            counted = _by_cell(valid[:, None], stride)[chosen, 0] & pixel_mask(masks, patch)  # (B cells, s, s)
            loss = _mean_of_images(error[:, 0], counted, len(mask))
        return MimOutput(
            torch.where(masks.sum() == total, loss, torch.nan), pixels.view(len(mask), cells, *pixels.shape[1:])
        )

    def chosen(self, mask: Tensor, cells: int) -> Tensor:
        """int64 (B, cells or all that there are): in each image those with anything masked first."""
        masked = self._masks(mask).flatten(1).any(1).view(len(mask), self._count(mask))
        return masked.byte().argsort(dim=1, descending=True, stable=True)[:, :cells]

    def _count(self, mask: Tensor) -> int:
        """G, the cells of an image."""
        side = self.stride // self.patch
        return -(-mask.shape[1] // side) * -(-mask.shape[2] // side)

    def _masks(self, mask: Tensor) -> Tensor:
        """(B, h, w) -> (B G, s/p, s/p)."""
        return _by_cell(mask[:, None], self.stride // self.patch)[..., 0, :, :]


class PixelDecoder(nn.Sequential):
    """1x1 convolution to all the pixels of a cell, then PixelShuffle. Names as in the official checkpoints."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__(
            nn.Conv2d(config.num_features, config.stride**2 * config.in_channels, kernel_size=1),
            nn.PixelShuffle(config.stride),
        )
        self.stride = config.stride

    def forward(self, features: Tensor) -> Tensor:
        """(B, h/8, w/8, 8D) -> (B, C, H, W) with four stages; or of some cells alone (n, 8D) -> (n, C, s, s)."""
        if features.ndim == 2:
            return self._cells(features)
        return self._cells(features).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def _cells(self, features: Tensor) -> Tensor:
        """(..., 8D) -> (..., C, s, s), the pixels of each cell.

        The two modules in one product, as the features are channels-last.
        """
        conv = self[0]
        assert isinstance(conv, nn.Conv2d)
        pixels = linear(features, conv.weight.flatten(1), conv.bias)
        return pixels.unflatten(-1, (-1, self.stride, self.stride))


def _by_cell(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B G, C, side, side): the G squares of each image, padded at the bottom and right with zeros."""
    right, bottom = -x.shape[3] % side, -x.shape[2] % side
    if right or bottom:  # by nothing at all F.pad would copy it
        x = F.pad(x, (0, right, 0, bottom))
    x = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, C, h, side, w, side)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def masked_l1(pixels: Tensor, target: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of |target - pixels| over masked pixels and channels, in fp32.

    With pixels that are not there, it is the mean over the images of their own means. Where all are there that is the
    same number, and in this form no image's part depends on the gaps of those that happen to share its micro batch.

    Args:
        pixels, target: (B, C, H, W).
        mask: bool (B, H/p, W/p), True = masked.
        valid: bool (B, H, W): the pixels that count; None: all.

    Returns:
        (); 0 if nothing is masked, and so is the part of an image in which nothing is.
    """
    error = (target.float() - pixels.float()).abs().mean(dim=1)  # (B, H, W)
    patch = error.shape[1] // mask.shape[1]
    if valid is not None:
        return _mean_of_images(error, valid & pixel_mask(mask, patch), len(mask))
    error = error.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).mean(dim=(2, 4))  # (B, h, w)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def _mean_of_images(error: Tensor, counted: Tensor, images: int) -> Tensor:
    """Mean over the images of the mean error of each where `counted`, both (n, H, W), n a multiple of the images."""
    error, counted = error.where(counted, 0).view(images, -1), counted.view(images, -1)
    return (error.sum(1) / counted.sum(1).clamp(min=1)).mean()
