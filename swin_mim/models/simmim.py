"""SimMIM: masked image modelling with a full encoder and a one-layer decoder (arXiv 2111.09886)."""

import math
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_mim.errors import UserError
from swin_mim.kernels.product import linear
from swin_mim.masking import pixel_mask
from swin_mim.models.saving import Pretrained
from swin_mim.models.swin import Swin, SwinConfig
from swin_mim.models.window_attention import Backend
from swin_mim.weights.config_json import Description, Target

NORMALIZATION_WINDOW = 47
"""Pixels along the side of the neighbourhood that normalises a target (the SwinV2 recipe)."""


class MimOutput(NamedTuple):
    loss: Tensor
    """(), the mean absolute error over the masked pixels."""
    pixels: Tensor
    """(B, C, H, W), the prediction for every pixel, in the units of the target; (B, cells, C, s, s) if only so many
    cells of s x s pixels were decoded."""


class SimMIM(Pretrained):
    """Predict the masked pixels of an image from the others. Has a Swin, is not one.

    Args:
        config: architecture of the encoder.
        target: "pixels", or "normalized": pixels less the mean and over the std of their neighbourhood.
        attention, activation_checkpointing: as in `Swin`.
    """

    kind = "SimMIM"
    _head = ("mask_token", "decoder.0.weight", "decoder.0.bias")
    _way_out = "it was saved without its decoder, or never had one; new_decoder=True draws a new one"

    def __init__(
        self,
        config: SwinConfig,
        *,
        target: Target = "pixels",
        attention: Backend = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if target not in get_args(Target):
            raise UserError(f"target is {target!r}: expected one of {', '.join(get_args(Target))}")
        self.target: Target = target
        self.encoder = Swin(config, attention=attention, activation_checkpointing=activation_checkpointing)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.decoder = PixelDecoder(config)
        self.masked_cells = MaskedCells(config)

    def forward(self, images: Tensor, mask: Tensor, cells: int | None = None, valid: Tensor | None = None) -> MimOutput:
        """Loss and prediction.

        Args:
            images: float (B, C, H, W), normalised.
            mask: bool (B, H/p, W/p), True = masked.
            valid: bool (B, H, W), True = there is such a pixel. The others are neither seen, whatever they hold (the
                encoder gets 0, the mean of normalised data), nor part of a target or of the loss. None: all are.
            cells: decode only so many cells of the last stage per image, those with anything masked first: the same
                loss for less (`masking.masked_cells` knows how many there are). If an image has more, the loss is
                NaN: to find out in time would make a GPU wait. None: all.
        """
        if valid is not None:
            _check_valid(valid, images)
            images = images.where(valid[:, None], 0)
        tokens = self.encoder.embed(images)
        if mask.dtype != torch.bool or mask.shape != tokens.shape[:3]:
            raise UserError(f"mask must be bool {tuple(tokens.shape[:3])}, not {mask.dtype} {tuple(mask.shape)}")
        tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        features = self.encoder.encode(tokens)
        if cells is not None:
            return self.masked_cells(self.decoder, features, self.targets(images, valid), mask, cells, valid)
        pixels = self.decoder(features)[..., : images.shape[2], : images.shape[3]]
        return MimOutput(masked_l1(pixels, self.targets(images, valid), mask, valid), pixels)

    def targets(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), what the decoder is to predict; `valid` as in `forward`."""
        if self.target == "pixels":
            return images
        mean, std = local_statistics(images, valid=valid)
        return (images - mean) / std

    def to_images(self, pixels: Tensor, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """Bring a prediction into the units of the images, both (B, C, H, W); `valid` as in `forward`.

        For a normalised target the mean and std are those of the true image: such a picture shows more than
        the model knew.
        """
        if self.target == "pixels":
            return pixels
        mean, std = local_statistics(images, valid=valid)
        return pixels * std + mean

    def description(self) -> Description:
        """What config.json says of this model."""
        return replace(super().description(), target=self.target)

    @classmethod
    def _arguments(cls, description: Description) -> dict[str, Any]:
        return {"target": description.target}

    def _outputs(self, images: Tensor) -> list[Tensor]:
        grid = [side // self.encoder.config.patch_size for side in images.shape[2:]]
        mask = (torch.arange(math.prod(grid)).view(grid) % 3 > 0).expand(len(images), -1, -1)
        return list(self(images, mask))


class MaskedCells(nn.Module):
    """Loss and prediction of the cells of the last stage in which anything is masked.

    A module, though without weights, since a module can be compiled by itself.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.stride, self.patch = config.stride, config.patch_size

    def forward(
        self, decoder: nn.Module, features: Tensor, target: Tensor, mask: Tensor, cells: int, valid: Tensor | None
    ) -> MimOutput:
        """features (B, h/8, w/8, 8D), target (B, C, H, W), the others as in `SimMIM.forward`."""
        stride, patch = self.stride, self.patch
        masks = _by_cell(mask[:, None], stride // patch)[..., 0, :, :]  # (B G, s/p, s/p), G cells of an image
        masked = masks.flatten(1).any(1).view(len(mask), features.shape[1] * features.shape[2])  # (B, G)
        cells = min(cells, masked.shape[1])
        chosen = masked.byte().argsort(dim=1, descending=True, stable=True)[:, :cells]
        chosen = (chosen + torch.arange(len(mask), device=mask.device)[:, None] * masked.shape[1]).flatten()
        pixels = decoder(features, chosen)  # (B cells, C, s, s)
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


class PixelDecoder(nn.Sequential):
    """1x1 convolution to all the pixels of a cell, then PixelShuffle. Names as in the official checkpoints."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__(
            nn.Conv2d(config.num_features, config.stride**2 * config.in_channels, kernel_size=1),
            nn.PixelShuffle(config.stride),
        )
        self.stride = config.stride

    def forward(self, features: Tensor, chosen: Tensor | None = None) -> Tensor:
        """(B, h/8, w/8, 8D) -> (B, C, H, W) with four stages; or of all cells the `chosen` (n,) -> (n, C, s, s)."""
        if chosen is not None:
            return self._cells(features.flatten(0, 2).index_select(0, chosen))
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


def _check_valid(valid: Tensor, images: Tensor) -> None:
    if valid.dtype != torch.bool or valid.shape != (len(images), *images.shape[2:]):
        raise UserError(
            f"valid must be bool {(len(images), *images.shape[2:])}, not {valid.dtype} {tuple(valid.shape)}"
        )


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
