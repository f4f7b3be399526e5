"""Swin Transformer, V1 (arXiv 2103.14030) and V2 (arXiv 2111.09883).

Dimension letters, here and in the other model files:
    B images   C image channels   H, W image height and width in pixels   p patch size
    h, w token grid   D channels of a token   heads, d attention heads and their channels
Images are (B, C, H, W); tokens are channels-last, (B, h, w, D), throughout.
Module names are timm's: what we save, timm loads.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swin_mim.architecture import SwinConfig, nearest_multiple
from swin_mim.errors import UserError
from swin_mim.kernels.graph_windows import is_exporting
from swin_mim.kernels.product import linear
from swin_mim.models.blocks import v1, v2
from swin_mim.models.blocks.window_attention import Backend, resolve_backend
from swin_mim.models.saving import Pretrained

__all__ = ["Swin", "SwinConfig", "attention_text", "freeze", "initialise"]

Block = v1.Block | v2.Block
PatchMerging = v1.PatchMerging | v2.PatchMerging
_PARTS: dict[int, tuple[type[Block], type[PatchMerging]]] = {
    1: (v1.Block, v1.PatchMerging),
    2: (v2.Block, v2.PatchMerging),
}


class Swin(Pretrained):
    """The encoder: images to a grid of features.

    Works at any image size whose sides are multiples of the patch, square or not; a forward never changes the module.

    Args:
        config: the architecture.
        attention: backend of `window_attention`.
        activation_checkpointing: recompute every block in the backward pass instead of keeping its activations.
    """

    kind = "Swin"

    def __init__(
        self, config: SwinConfig, *, attention: Backend = "auto", activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.patch_embed = PatchEmbed(config)
        self.dropout = nn.Dropout(config.drop_rate)
        drop_paths = iter(torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist())
        self.layers = nn.ModuleList(
            Stage(config, stage, [next(drop_paths) for _ in range(depth)], attention)
            for stage, depth in enumerate(config.depths)
        )
        self.norm = nn.LayerNorm(config.num_features)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images, normalised float (B, C, H, W) -> (B, h/8, w/8, 8D) with four stages, the final norm applied.

        Raises:
            UserError: they are integers, for which there is `preprocess`; other channels, or sides that the patch does
                not divide.
        """
        return self.encode(self.embed(images))

    def embed(self, images: Tensor) -> Tensor:
        """Images, normalised float (B, C, H, W) -> (B, h, w, D)."""
        return self.patch_embed(images)

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, h/8, w/8, 8D) with four stages, the final norm applied."""
        *_, last = self.stage_outputs(tokens)
        return self.norm(last)

    def encode_stages(self, tokens: Tensor, *, begun: bool = False, cells: Tensor | None = None) -> list[Tensor]:
        """(B, h, w, D) -> (B, h_i, w_i, D_i) of each stage; the last is that of `encode`, the others have no norm.

        `begun` and `cells` as in `stage_outputs`.
        """
        *stages, last = self.stage_outputs(tokens, begun=begun, cells=cells)
        return [*stages, self.norm(last)]

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Images, normalised float (B, C, H, W) -> one map (B, D_i, h_i, w_i) per stage, without the final norm."""
        return [x.permute(0, 3, 1, 2).contiguous() for x in self.stage_outputs(self.embed(images))]

    def blocks(self) -> Iterator[Block]:
        """All blocks, from the input to the output."""
        return (block for block in self.modules() if isinstance(block, Block))

    def stage_outputs(self, x: Tensor, *, begun: bool = False, cells: Tensor | None = None) -> Iterator[Tensor]:
        """(B, h, w, D) -> (B, h_i, w_i, D_i) of each stage, without the final norm.

        Args:
            begun: x is what `first_block` gave.
            cells: int64 (B, n): of the last stage only these cells of each image, (B, n, D_i); None: all.
        """
        if not x.is_floating_point():
            raise UserError(f"tokens are {_dtype(x)}: they must be floating-point numbers, as `embed` gives them")
        x = x if begun else self.dropout(x)
        *_, last = self.blocks()
        for stage in self.layers:
            assert isinstance(stage, Stage)
            x = stage.downsample(x)
            for block in list(stage.blocks)[begun and stage is self.layers[0] :]:
                x = self._called(block, x, *([] if cells is None or block is not last else [cells]))
            yield x

    def first_block(self, tokens: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, h, w, D)."""
        return self._called(next(self.blocks()), self.dropout(tokens))

    def _called(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        return checkpoint(block, *inputs, use_reentrant=False) if self.activation_checkpointing else block(*inputs)


def attention_text(encoder: Swin, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """What the stages' window attentions are on a device in a dtype: "triton", or "sdpa, triton" if they differ."""
    found = set()
    for block in encoder.blocks():
        attention = block.attn
        tokens, channels = math.prod(attention.window), attention.proj.in_features // attention.num_heads
        found.add(resolve_backend(attention.backend, device, tokens, channels, dtype))
    return ", ".join(sorted(found))


def freeze(encoder: Swin, stages: int) -> None:
    """Keep the weights of the embedding and the first stages as they are, without stochastic depth; 0 keeps none.

    Raises:
        UserError: there are fewer stages.
    """
    count = encoder.config.num_stages
    if stages > count:
        raise UserError(f"model.freeze {stages} is more than the {count} stages of the encoder")
    if not stages:
        return
    kept = [encoder.patch_embed, encoder.dropout, *encoder.layers[:stages]]
    for module in [*kept, encoder.norm] if stages == count else kept:
        module.requires_grad_(False)
        module.eval()


def initialise(module: nn.Module) -> None:
    """Draw new weights for a module and all below it.

    linear weights       truncated normal, std 0.02
    linear biases        zeros
    norms                weight ones, bias zeros
    bias tables          truncated normal, std 0.02; of V2 there are networks of linear layers
    residual norms       of V2: weight and bias zeros, so that each block begins as the identity
    logit scales         of V2: log 10
    convolutions         torch's default (kaiming uniform)
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.LayerNorm | nn.Conv2d):
            child.reset_parameters()
        elif isinstance(child, v1.WindowAttention | v2.WindowAttention):
            child.initialise()


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each to a token."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.embed_dim, config.patch_size, stride=config.patch_size)
        self.norm = nn.LayerNorm(config.embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, D)."""
        return self.project(self.cut(images))

    def cut(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, C p p)."""
        patch, channels = self.proj.kernel_size[0], self.proj.in_channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise UserError(f"images must be (B, {channels}, H, W), not {tuple(images.shape)}")
        if not images.is_floating_point():
            raise UserError(f"images are {_dtype(images)}, not normalised floats: give model.preprocess(images)")
        for side in () if is_exporting() else images.shape[2:]:  # a graph's sides are no numbers
            if side % patch:
                nearest = nearest_multiple(side, patch)
                raise UserError(
                    f"image side {side} is not a multiple of patch_size {patch}: resize or pad it to {nearest}"
                )
        patches = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, h, p, w, p)
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3)

    def project(self, patches: Tensor) -> Tensor:
        """(..., C p p) -> (..., D)."""
        # One matrix product: faster than the convolution that it is, most of all backward. The cast is for
        # DeepSpeed, which keeps the weights themselves in bf16, without autocast.
        weight = self.proj.weight.flatten(1)
        return self.norm(linear(patches.to(weight.dtype), weight, self.proj.bias))


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


class Stage(nn.Module):
    """Blocks at one resolution, after halving that of the stage before."""

    def __init__(self, config: SwinConfig, stage: int, drop_paths: list[float], attention: Backend) -> None:
        super().__init__()
        block, merging = _PARTS[config.version]
        self.downsample = merging(config.stage_dim(stage - 1)) if stage else nn.Identity()
        self.blocks = nn.ModuleList(
            block(config, stage, place, drop_path=drop_path, attention=attention)
            for place, drop_path in enumerate(drop_paths)
        )
