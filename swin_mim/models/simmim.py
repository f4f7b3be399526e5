"""SimMIM: masked image modelling with a full encoder and a one-layer decoder (arXiv 2111.09886)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_mim.errors import UserError
from swin_mim.models import masked_windows
from swin_mim.models.blocks.linear import Linear
from swin_mim.models.blocks.window_attention import Backend
from swin_mim.models.saving import Pretrained
from swin_mim.models.swin import Swin, SwinConfig
from swin_mim.models.targets.hog import Hog, masked_l2
from swin_mim.models.targets.normalized import local_statistics
from swin_mim.models.targets.pixels import HeadsOutput, MaskedCells, MimOutput, PixelDecoder, decoded
from swin_mim.models.targets.stages import check_stage_weights, stage_heads
from swin_mim.weights.config_json import Description
from swin_mim.weights.heads import Target, hog_cell, is_head, taught_stage

__all__ = ["HeadsOutput", "MimOutput", "SimMIM"]


class SimMIM(Pretrained):
    """Predict the masked pixels of an image from the others. Has a Swin, is not one.

    Args:
        config: architecture of the encoder.
        target: "pixels"; "normalized": pixels less the mean and over the std of their neighbourhood; or "hog":
            histograms of oriented gradients (`targets.hog`). Then the decoder still predicts pixels, for pictures,
            and learns without touching the encoder.
        stage_weights: of the losses of the stages, each of which predicts the target; empty: the last alone does.
        teacher_width: features of a teacher that the stage before the last predicts too; 0: none.
        teacher_weight: of the loss of these features, which counts in training alone.
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
        stage_weights: Sequence[float] = (),
        teacher_width: int = 0,
        teacher_weight: float = 1.0,
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
        self.masked_cells = MaskedCells(config.stride, config.patch_size)
        check_stage_weights(stage_weights, config.num_stages)
        self.stage_weights = tuple(map(float, stage_weights))
        self.stage_heads = stage_heads(config, target, bool(stage_weights))
        strides = {stage: config.patch_size * 2 ** int(stage) for stage in self.stage_heads}
        hog = target == "hog"
        self.stage_cells = nn.ModuleDict(
            {} if hog else {stage: MaskedCells(stride, config.patch_size) for stage, stride in strides.items()}
        )
        self.teacher_width, self.teacher_weight = teacher_width, teacher_weight
        width = config.stage_dim(taught_stage(config))
        self.teacher_head = Linear(width, teacher_width) if teacher_width else None
        self.hog = Hog([hog_cell(stride) for stride in strides.values()]) if hog else None

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        cells: int | None = None,
        valid: Tensor | None = None,
        taught: Tensor | None = None,
    ) -> MimOutput | HeadsOutput:
        """Loss and prediction.

        Args:
            images: float (B, C, H, W), normalised.
            mask: bool (B, H/p, W/p), True = masked.
            valid: bool (B, H, W), True = there is such a pixel. The others are neither seen, whatever they hold (the
                encoder gets 0, the mean of normalised data), nor part of a target or of the loss. None: all are.
            cells: decode only so many cells of the last stage per image, those with anything masked first: the same
                loss for less (`masking.masked_cells` knows how many there are). If an image has more, the loss is
                NaN: to find out in time would make a GPU wait. None: all.
            taught: fp32 (B, teacher_width), what a teacher says of the images; None: there is nothing to learn of it.
        """
        if valid is not None:
            _check_valid(valid, images)
            images = images.where(valid[:, None], 0)
        stages = self.encode(images, mask, cells)
        out = self._predicted(images, stages, mask, cells, valid)
        return out if taught is None else self._taught(out, stages[taught_stage(self.encoder.config)], taught)

    def encode(self, images: Tensor, mask: Tensor, cells: int | None = None) -> list[Tensor]:
        """(B, h_i, w_i, D_i) of each stage, the final norm applied to the last; the arguments as of `forward`.

        On a CPU of the last one only the cells that are decoded, (B, cells, D), if nothing else reads it.
        """
        begun = masked_windows.first_block(self.encoder, images, mask, self.mask_token)
        tokens = self._masked(images, mask) if begun is None else begun
        *_, last = self.encoder.blocks()
        read = self.hog is not None or (self.teacher_width and self.encoder.config.num_stages == 1)
        some = cells is not None and not read and mask.device.type == "cpu" and not masked_windows.observed(last)
        chosen = self.masked_cells.chosen(mask, cells) if some and cells is not None else None
        return self.encoder.encode_stages(tokens, begun=begun is not None, cells=chosen)

    def _masked(self, images: Tensor, mask: Tensor) -> Tensor:
        """(B, h, w, D), the encoder's tokens, with one vector in place of those that are masked."""
        tokens = self.encoder.embed(images)
        if mask.dtype != torch.bool or mask.shape != tokens.shape[:3]:
            raise UserError(f"mask must be bool {tuple(tokens.shape[:3])}, not {mask.dtype} {tuple(mask.shape)}")
        return torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)

    def _predicted(
        self, images: Tensor, stages: Sequence[Tensor], mask: Tensor, cells: int | None, valid: Tensor | None
    ) -> MimOutput | HeadsOutput:
        """The decoder's pixels, and the losses of all heads that predict the target."""
        target = self.targets(images, valid)
        # of a target that is not pixels the decoder only looks on
        last = stages[-1] if self.hog is None else stages[-1].detach()
        pixels = decoded(self.decoder, self.masked_cells, last, target, mask, cells, valid)
        if not self.stage_heads:
            return pixels
        if self.hog is None:
            losses = self._pixel_losses(stages, target, mask, cells, valid) | {len(stages) - 1: pixels.loss}
            return self._together(pixels, losses)
        together = self._together(pixels, self._hog_losses(stages, images, mask, valid))
        return together._replace(loss=together.loss + pixels.loss)

    def _taught(self, out: MimOutput | HeadsOutput, features: Tensor, taught: Tensor) -> HeadsOutput:
        """With 1 less the cosine between a teacher's features and the projected mean of those of a stage."""
        if self.teacher_head is None:
            raise UserError("this model has no head for a teacher's features: make it with teacher_width")
        said = self.teacher_head(features.mean((1, 2))).float()
        loss = (1 - F.cosine_similarity(said, taught, dim=1)).mean()
        parts = out.parts if isinstance(out, HeadsOutput) else {"loss": out.loss.detach()}
        return HeadsOutput(out.loss + self.teacher_weight * loss, out.pixels, parts | {"teacher_loss": loss.detach()})

    def _pixel_losses(
        self, stages: Sequence[Tensor], target: Tensor, mask: Tensor, cells: int | None, valid: Tensor | None
    ) -> dict[int, Tensor]:
        """Loss of the head of each stage but the last, whose head is the decoder."""
        losses = {}
        for name, head in self.stage_heads.items():
            stage = int(name)
            finer = None if cells is None else cells * 4 ** (len(stages) - 1 - stage)
            losses[stage] = decoded(head, self.stage_cells[name], stages[stage], target, mask, finer, valid).loss
        return losses

    def _hog_losses(
        self, stages: Sequence[Tensor], images: Tensor, mask: Tensor, valid: Tensor | None
    ) -> dict[int, Tensor]:
        """Loss of the head of each stage, or of the last."""
        assert self.hog is not None
        histograms, patch = self.hog(images, valid), self.encoder.config.patch_size
        losses = {}
        for name, head in self.stage_heads.items():
            target = histograms[hog_cell(patch * 2 ** int(name))]
            predicted = head(stages[int(name)])[..., : target.shape[2], : target.shape[3]]
            losses[int(name)] = masked_l2(predicted, target, mask, valid)
        return losses

    def _together(self, pixels: MimOutput, losses: Mapping[int, Tensor]) -> HeadsOutput:
        """With the weighted sum of the stages' losses, and everything that is measured by name."""
        weighted = [self.stage_weights[stage] * loss if self.stage_weights else loss for stage, loss in losses.items()]
        loss = torch.stack(weighted).sum()
        measured = [pixels.loss, *(losses[int(stage)] for stage in self.stage_heads)]
        parts = {name: value.detach() for name, value in zip(self.part_names, measured, strict=True)}
        return HeadsOutput(loss, pixels.pixels, parts)

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of `HeadsOutput.parts`: the losses of the decoder and of each head, by stage from 1; or ()."""
        if not self.stage_heads:
            return ()
        kind = "loss" if self.hog is None else "hog_loss"
        if not self.stage_weights:
            return ("loss", kind)
        return ("loss", *(f"stage{int(stage) + 1}_{kind}" for stage in self.stage_heads))

    def targets(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), what the decoder is to predict; `valid` as in `forward`."""
        if self.target != "normalized":
            return images
        mean, std = local_statistics(images, valid=valid)
        return (images - mean) / std

    def to_images(self, pixels: Tensor, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """Bring a prediction into the units of the images, both (B, C, H, W); `valid` as in `forward`.

        For a normalised target the mean and std are those of the true image: such a picture shows more than
        the model knew.
        """
        if self.target != "normalized":
            return pixels
        mean, std = local_statistics(images, valid=valid)
        return pixels * std + mean

    def description(self) -> Description:
        """What config.json says of this model."""
        heads: dict[str, Any] = {"stage_weights": self.stage_weights, "teacher_width": self.teacher_width}
        return replace(super().description(), target=self.target, **heads)

    @classmethod
    def _arguments(cls, description: Description) -> dict[str, Any]:
        heads = {"stage_weights": description.stage_weights, "teacher_width": description.teacher_width}
        return {"target": description.target, **heads}

    @classmethod
    def _of_head(cls, name: str) -> bool:
        return super()._of_head(name) or is_head(name)

    def _outputs(self, images: Tensor) -> list[Tensor]:
        grid = [side // self.encoder.config.patch_size for side in images.shape[2:]]
        mask = (torch.arange(math.prod(grid)).view(grid) % 3 > 0).expand(len(images), -1, -1)
        out = self(images, mask)
        return [out.loss, out.pixels, *(out.parts.values() if isinstance(out, HeadsOutput) else ())]


def _check_valid(valid: Tensor, images: Tensor) -> None:
    if valid.dtype != torch.bool or valid.shape != (len(images), *images.shape[2:]):
        raise UserError(
            f"valid must be bool {(len(images), *images.shape[2:])}, not {valid.dtype} {tuple(valid.shape)}"
        )
