"""The systems that `bench.py` measures: each built with the weights of one SimMIM, given under our names.

timm and torchvision have no SimMIM: their encoder gets our mask token, decoder and loss. transformers and microsoft
bring their own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import peers
import torch
from peers import NotBuilt
from torch import Tensor, nn

from swin_mim.errors import UserError
from swin_mim.hub import pretrained
from swin_mim.hub.config_json import Description, Kind
from swin_mim.hub.formats import Format, key_map, to_ours
from swin_mim.models.simmim import PixelDecoder, SimMIM, masked_l1
from swin_mim.models.swin_config import SwinConfig
from swin_mim.models.window_attention import Backend

Precision = Literal["fp32", "bf16"]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """The options of `step`; their meaning is in `parse`."""

    model: str
    image_size: int
    window_size: int
    batch: int
    repeats: int
    warmup: int
    steps: int | None
    precision: Precision
    compile: bool
    attention: Backend
    activation_checkpointing: bool
    threads: int | None
    device: str
    systems: tuple[str, ...]
    microsoft: str | None
    memory: bool
    json: str | None


class System(NamedTuple):
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    """Images (B, C, H, W) and mask bool (B, h, w) to the loss ()."""


# The systems: each is built with the weights of one SimMIM, as it has them in memory.


def build_ours(config: SwinConfig, weights: Weights, settings: Settings) -> System:
    checkpointing = settings.activation_checkpointing
    model = SimMIM(config, attention=settings.attention, activation_checkpointing=checkpointing)
    model.load_state_dict(weights)
    return System(model, lambda images, mask: model(images, mask).loss)


def build_timm(config: SwinConfig, weights: Weights, settings: Settings) -> System:
    encoder = peer("timm", "Swin", config, weights, settings)
    encoder.set_grad_checkpointing(settings.activation_checkpointing)
    model = PeerSimMIM(config, weights, encoder.patch_embed, nn.Sequential(encoder.layers, encoder.norm))
    return System(model, model)


def build_transformers(config: SwinConfig, weights: Weights, settings: Settings) -> System:
    model = peer("transformers", "SimMIM", config, weights, settings)
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable()
    return System(model, lambda images, mask: model(images, bool_masked_pos=mask.flatten(1)).loss)


def build_torchvision(config: SwinConfig, weights: Weights, settings: Settings) -> System:
    if settings.activation_checkpointing:
        raise NotBuilt("has no activation checkpointing")
    encoder = peer("torchvision", "Swin", config, weights, settings)
    embed, *stages = encoder.features
    model = PeerSimMIM(config, weights, embed, nn.Sequential(*stages, encoder.norm))
    return System(model, model)


def build_microsoft(config: SwinConfig, weights: Weights, settings: Settings) -> System:
    model = peer("microsoft", "SimMIM", config, weights, settings)
    for layer in model.encoder.layers:
        layer.use_checkpoint = settings.activation_checkpointing
    return System(model, lambda images, mask: model(images, mask.long()))


BUILDERS: dict[str, Callable[[SwinConfig, Weights, Settings], System]] = {
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


def peer(format: Format, kind: Kind, config: SwinConfig, weights: Weights, settings: Settings) -> Any:
    """A library's own module with a copy of these weights of a SimMIM, or of its encoder.

    Raises:
        NotBuilt: the library is not there, or cannot hold this network.
    """
    description = Description(kind, config)
    published = to_ours({name: tensor.clone() for name, tensor in weights.items()}, key_map(weights, "checkpoint"))
    try:
        theirs = pretrained.to_theirs(format, description, published)
    except UserError as reason:
        raise NotBuilt(str(reason)) from None
    return peers.build(format, description, theirs, microsoft=settings.microsoft).model
