"""The systems that `bench.py` measures: each built with the weights of one SimMIM, given under our names.

timm and torchvision have no SimMIM: their encoder gets our mask token, decoder and loss. transformers and microsoft
bring their own.
"""

import importlib
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from swin_mim.models.simmim import PixelDecoder, SimMIM, masked_l1
from swin_mim.models.swin_config import SwinConfig
from swin_mim.models.window_attention import Backend

Precision = Literal["fp32", "bf16"]
Weights = dict[str, Tensor]
Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Pattern and replacement, of keys."""


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


class NotMeasured(Exception):
    """Why a system takes no part."""


class System(NamedTuple):
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    """Images (B, C, H, W) and mask bool (B, h, w) to the loss ()."""


# The systems: each is built with the weights of one SimMIM, given under our names.


def build_ours(config: SwinConfig, weights: Weights, settings: Settings) -> System:
    checkpointing = settings.activation_checkpointing
    model = SimMIM(config, attention=settings.attention, activation_checkpointing=checkpointing)
    model.load_state_dict(weights)
    return System(model, lambda images, mask: model(images, mask).loss)


def build_timm(config: SwinConfig, weights: Weights, settings: Settings) -> System:
    import timm

    shape = architecture(config, settings) | {"img_size": settings.image_size, "num_classes": 0, "global_pool": ""}
    encoder = timm.models.SwinTransformer(**shape)
    copy_weights(encoder, below("encoder.", weights))
    encoder.set_grad_checkpointing(settings.activation_checkpointing)
    model = PeerSimMIM(config, weights, encoder.patch_embed, nn.Sequential(encoder.layers, encoder.norm))
    return System(model, model)


def build_transformers(config: SwinConfig, weights: Weights, settings: Settings) -> System:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    shape = architecture(config, settings) | {"image_size": settings.image_size, "encoder_stride": config.stride}
    theirs: Any = transformers.SwinForMaskedImageModeling
    model, loaded = theirs.from_pretrained(
        None,
        config=transformers.SwinConfig(**shape),
        state_dict=to_transformers(weights),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[problem]:
            raise NotMeasured(f"not the same network: {len(loaded[problem])} {problem.replace('_', ' ')}")
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable()
    return System(model, lambda images, mask: model(images, bool_masked_pos=mask.flatten(1)).loss)


def build_torchvision(config: SwinConfig, weights: Weights, settings: Settings) -> System:
    import torchvision

    if settings.activation_checkpointing:
        raise NotMeasured("has no activation checkpointing")
    sizes = [list(config.depths), list(config.num_heads), [settings.window_size] * 2]
    encoder = torchvision.models.SwinTransformer([4, 4], config.embed_dim, *sizes, stochastic_depth_prob=0.0)
    encoder.head = nn.Identity()
    copy_weights(encoder, to_torchvision(below("encoder.", weights)))
    embed, *stages = encoder.features
    model = PeerSimMIM(config, weights, embed, nn.Sequential(*stages, encoder.norm))
    return System(model, model)


def build_microsoft(config: SwinConfig, weights: Weights, settings: Settings) -> System:
    if settings.microsoft is None:
        raise NotMeasured("not installed: name a checkout of github.com/microsoft/SimMIM with --microsoft")
    theirs = import_microsoft(settings.microsoft)
    shape = architecture(config, settings) | {"img_size": settings.image_size, "num_classes": 0}
    encoder = theirs.SwinTransformerForSimMIM(**shape, use_checkpoint=settings.activation_checkpointing)
    model = theirs.SimMIM(encoder, encoder_stride=config.stride)
    copy_weights(model, to_microsoft(weights))
    return System(model, lambda images, mask: model(images, mask.long()))


def architecture(config: SwinConfig, settings: Settings) -> dict[str, Any]:
    """What timm, transformers and microsoft call the same."""
    names = {"embed_dim": config.embed_dim, "depths": list(config.depths), "num_heads": list(config.num_heads)}
    return names | {"window_size": settings.window_size, "drop_path_rate": 0.0}


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
        self.decoder.load_state_dict(below("decoder.", weights))

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        tokens = self.embed(images)
        tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        return masked_l1(self.decoder(self.encode(tokens)), images, mask)


def import_microsoft(checkout: str) -> types.ModuleType:
    """Their models/simmim.py, under a package name that shadows nobody's `models`."""
    package = types.ModuleType("microsoft_simmim")
    package.__path__ = [str(Path(checkout, "models"))]
    sys.modules[package.__name__] = package
    return importlib.import_module("microsoft_simmim.simmim")


# The same weights under the names of others.


def below(prefix: str, weights: Weights) -> Weights:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def copy_weights(model: nn.Module, weights: Weights) -> None:
    """Every parameter of the model from the weights, under the same names and of the same shapes."""
    parameters = dict(model.named_parameters())
    for name in sorted(parameters.keys() ^ weights.keys()):
        raise NotMeasured(f"not the same network: {name} exists on one side only")
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            shapes = f"{tuple(parameter.shape)}, not {tuple(weights[name].shape)}"
            raise NotMeasured(f"not the same network: {name} has shape {shapes}")
        parameter.data.copy_(weights[name])


def renamed(weights: Weights, rules: Rules) -> Weights:
    state = {}
    for key, value in weights.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    return state


def to_microsoft(weights: Weights) -> Weights:
    """Theirs halve the resolution at the end of a stage, ours at the start of the next."""
    weights = {key.replace("mask_token", "encoder.mask_token"): value for key, value in weights.items()}
    return renamed(weights, [(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample")])


def to_torchvision(weights: Weights) -> Weights:
    """Encoder weights. Theirs number stages and downsamplings in one list."""
    rules: Rules = [
        (r"^patch_embed\.proj", "features.0.0"),
        (r"^patch_embed\.norm", "features.0.2"),
        (r"^layers\.(\d+)\.blocks", lambda m: f"features.{2 * int(m[1]) + 1}"),
        (r"^layers\.(\d+)\.downsample", lambda m: f"features.{2 * int(m[1])}"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.3"),
    ]
    return renamed(weights, rules)


def to_transformers(weights: Weights) -> Weights:
    """The names of their files, which `from_pretrained` turns into those of the installed version."""
    rules: Rules = [
        (r"^encoder\.mask_token", "swin.embeddings.mask_token"),
        (r"^encoder\.patch_embed\.proj", "swin.embeddings.patch_embeddings.projection"),
        (r"^encoder\.patch_embed\.norm", "swin.embeddings.norm"),
        (r"^encoder\.norm", "swin.layernorm"),
        (r"^encoder\.layers", "swin.encoder.layers"),
        (r"\.norm1", ".layernorm_before"),
        (r"\.norm2", ".layernorm_after"),
        (r"attn\.proj", "attention.output.dense"),
        (r"attn\.relative", "attention.self.relative"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    ]
    state: Weights = {}
    for key, value in renamed(to_microsoft(weights), rules).items():
        if ".attn.qkv." in key:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[key.replace("attn.qkv", f"attention.self.{part}")] = piece.contiguous()
        else:
            state[key] = value
    return state
