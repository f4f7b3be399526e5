"""The systems that `tools.bench` measures: each built with the weights of one SimMIM, given under our names.

timm and torchvision have no SimMIM: their encoder gets our mask token, decoder and loss. transformers and microsoft
bring their own.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swin_mim.architecture import SwinConfig
from swin_mim.cli.convert import libraries
from swin_mim.cli.convert.libraries import NotBuilt
from swin_mim.errors import UserError
from swin_mim.hub import saved
from swin_mim.models.simmim import SimMIM
from swin_mim.models.targets.pixels import PixelDecoder, masked_l1
from swin_mim.training.loop.optim import UNDECAYED
from swin_mim.weights.config_json import Description, Kind
from swin_mim.weights.formats import Format, key_map, to_ours
from tools.bench.settings import PeerSettings, cells_of
from tools.bench.timing import Failed

Weights = dict[str, Tensor]


class Attention(NamedTuple):
    """Window attention of one block."""

    call: Callable[[Tensor], Tensor]
    """Tokens (B, h, w, D) in raster order -> the same. Without projections: (B, h, w, 3D) -> (B, h, w, D)."""
    module: nn.Module
    """With the parameters."""


class System(NamedTuple):
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    """Images (B, C, H, W) and mask bool (B, h, w) to the loss ()."""


def build(
    config: SwinConfig, weights: Weights, settings: PeerSettings, device: torch.device
) -> tuple[dict[str, System], dict[str, Failed]]:
    """The systems that can take part, with equal weights, and why the others cannot."""
    systems, failed = {}, {}
    for name in settings.systems:
        try:
            system = BUILDERS[name](config, weights, settings)
        except NotBuilt as reason:
            failed[name] = Failed(str(reason))
        else:
            system.model.to(device).train()
            systems[name] = system
    return systems, failed


def random_weights(config: SwinConfig) -> Weights:
    """Weights of a trained model's size: at initialisation attention hardly matters, and parity would not see it."""
    torch.manual_seed(0)
    weights = SimMIM(config).state_dict()
    for key, value in weights.items():
        if value.ndim == 1 or not UNDECAYED.isdisjoint(key.split(".")):
            value += 0.3 * torch.randn(value.shape)
        elif value.ndim == 2:
            value *= 5
    return weights


# Each with the weights of one SimMIM, as it has them in memory.


def build_ours(config: SwinConfig, weights: Weights, settings: PeerSettings) -> System:
    checkpointing = settings.activation_checkpointing
    model = SimMIM(config, attention=settings.attention, activation_checkpointing=checkpointing)
    model.load_state_dict(weights)
    cells = cells_of(config)
    return System(model, lambda images, mask: model(images, mask, cells).loss)


def build_timm(config: SwinConfig, weights: Weights, settings: PeerSettings) -> System:
    encoder = peer("timm", "Swin", config, weights, settings)
    encoder.set_grad_checkpointing(settings.activation_checkpointing)
    model = PeerSimMIM(config, weights, encoder.patch_embed, nn.Sequential(encoder.layers, encoder.norm))
    return System(model, model)


def build_transformers(config: SwinConfig, weights: Weights, settings: PeerSettings) -> System:
    model = peer("transformers", "SimMIM", config, weights, settings)
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable()
    return System(model, lambda images, mask: model(images, bool_masked_pos=mask.flatten(1)).loss)


def build_torchvision(config: SwinConfig, weights: Weights, settings: PeerSettings) -> System:
    if settings.activation_checkpointing:
        raise NotBuilt("has no activation checkpointing")
    encoder = peer("torchvision", "Swin", config, weights, settings)
    embed, *stages = encoder.features
    model = PeerSimMIM(config, weights, embed, nn.Sequential(*stages, encoder.norm))
    return System(model, model)


def build_microsoft(config: SwinConfig, weights: Weights, settings: PeerSettings) -> System:
    model = peer("microsoft", "SimMIM", config, weights, settings)
    for layer in model.encoder.layers:
        layer.use_checkpoint = settings.activation_checkpointing
    return System(model, lambda images, mask: model(images, mask.long()))


BUILDERS: dict[str, Callable[[SwinConfig, Weights, PeerSettings], System]] = {
    "ours": build_ours,
    "timm": build_timm,
    "transformers": build_transformers,
    "torchvision": build_torchvision,
    "microsoft": build_microsoft,
}


class PeerSimMIM(nn.Module):
    """A peer's encoder between our mask token, decoder and loss.

    Args:
        embed: images (B, C, H, W) -> tokens (B, h, w, D).
        encode: tokens -> features (B, h/8, w/8, 8D), normed.
    """

    def __init__(self, config: SwinConfig, weights: Weights, embed: nn.Module, encode: nn.Module) -> None:
        super().__init__()
        self.embed, self.encode = embed, encode
        self.mask_token = nn.Parameter(weights["mask_token"].clone())
        self.decoder = PixelDecoder(config)
        self.decoder.load_state_dict({name: weights[f"decoder.{name}"] for name in ("0.weight", "0.bias")})

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        tokens = self.embed(images)
        tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        return masked_l1(self.decoder(self.encode(tokens)), images, mask)


def peer(format: Format, kind: Kind, config: SwinConfig, weights: Weights, settings: PeerSettings) -> Any:
    """A library's own module with a copy of these weights of a SimMIM, or of its encoder.

    Raises:
        NotBuilt: the library is not there, or cannot hold this network.
    """
    description = Description(kind, config)
    published = to_ours({name: tensor.clone() for name, tensor in weights.items()}, key_map(weights, "checkpoint"))
    try:
        theirs = saved.to_theirs(format, description, published)
    except UserError as reason:
        raise NotBuilt(str(reason)) from None
    return libraries.build(format, description, theirs, microsoft=settings.microsoft).model


# Window attention alone: of a system's model that of block `block` in stage `stage`, with all that comes between
# raster order and windows, as the library does it.


def ours_attention(model: Any, stage: int, block: int) -> Attention:
    """The module itself, which may take a norm besides."""
    module = model.encoder.layers[stage].blocks[block].attn
    return Attention(module, module)


def timm_attention(model: Any, stage: int, block: int) -> Attention:
    layer = model.encode[0][stage].blocks[block]
    return Attention(layer._attn, layer.attn)


def torchvision_attention(model: Any, stage: int, block: int) -> Attention:
    module = model.encode[2 * stage][block].attn  # a merging stands between two stages
    return Attention(module, module)


def transformers_attention(model: Any, stage: int, block: int) -> Attention:
    """The middle of SwinLayer's or Swinv2Layer's forward, in its own functions."""
    layer = model.base_model.encoder.layers[stage].blocks[block]
    theirs = sys.modules[type(layer).__module__]

    def attend(x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        if hasattr(layer, "set_shift_and_window_size"):  # V2's layers are made for one size
            layer.set_shift_and_window_size((height, width))
        x, _ = layer.maybe_pad(x, height, width)
        padded, side, shift = x.shape[1:3], layer.window_size, layer.shift_size
        rolled = torch.roll(x, (-shift, -shift), (1, 2)) if shift else x
        windows = theirs.window_partition(rolled, side).view(-1, side * side, x.shape[3])
        mask = layer.get_attn_mask(*padded, dtype=x.dtype, device=x.device)
        windows = layer.attention(windows, mask)[0].view(-1, side, side, x.shape[3])
        x = theirs.window_reverse(windows, side, *padded)
        x = torch.roll(x, (shift, shift), (1, 2)) if shift else x
        return x[:, :height, :width].contiguous()

    return Attention(attend, layer.attention)


def microsoft_attention(model: Any, stage: int, block: int) -> Attention:
    """The middle of their block's forward, in their own functions. They pad nothing."""
    layer = model.encoder.layers[stage].blocks[block]
    theirs = sys.modules[type(layer).__module__]

    def attend(x: Tensor) -> Tensor:
        side, shift = layer.window_size, layer.shift_size
        rolled = torch.roll(x, (-shift, -shift), (1, 2)) if shift else x
        windows = theirs.window_partition(rolled, side).view(-1, side * side, x.shape[3])
        windows = layer.attn(windows, mask=layer.attn_mask).view(-1, side, side, x.shape[3])
        whole = theirs.window_reverse(windows, side, *x.shape[1:3])
        return torch.roll(whole, (shift, shift), (1, 2)) if shift else whole

    return Attention(attend, layer.attn)


ATTENTION: dict[str, Callable[[Any, int, int], Attention]] = {
    "ours": ours_attention,
    "timm": timm_attention,
    "transformers": transformers_attention,
    "torchvision": torchvision_attention,
    "microsoft": microsoft_attention,
}
