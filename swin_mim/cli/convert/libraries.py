"""Other people's Swins, built with given weights: timm, torchvision, transformers and microsoft; and ours like them.

Each is the library's own class, in evaluation mode, with every tensor loaded strictly. Without stochastic depth.
"""

import contextlib
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.hub import saved
from swin_mim.models.classifier import SwinClassifier
from swin_mim.models.dense.segmenter import SwinSegmenter
from swin_mim.models.simmim import SimMIM
from swin_mim.models.swin import Swin
from swin_mim.weights.config_json import Description, Kind, timm_arguments
from swin_mim.weights.layouts import Format
from swin_mim.weights.library_configs import transformers_documents

Weights = Mapping[str, Tensor]
Outputs = dict[str, Tensor]
"""What a network gives, of: features (B, h/8, w/8, 8D), normed; logits (B, classes); pixels (B, C, H, W);
maps of a detector."""


class NotBuilt(Exception):
    """Why a library's network is not there."""


class Different(NotBuilt):
    """The library is there, and its network has other tensors."""


class Peer(NamedTuple):
    model: nn.Module
    outputs: Callable[[Tensor, Tensor], Outputs]
    """Images (B, C, H, W) and mask bool (B, h, w), True = masked; only the pixels depend on the mask."""


def build(format: Format, description: Description, weights: Weights, *, microsoft: str | None = None) -> Peer:
    """The network of a library.

    Args:
        format: of the names of the weights, and whose class it is.
        weights: all that the library's model has, under its names (`saved.to_theirs`).
        microsoft: a checkout of github.com/microsoft/SimMIM, or of microsoft/Swin-Transformer, which has V2 too.

    Raises:
        NotBuilt: the library is not there.
        Different: a tensor is missing, unexpected or mis-shaped.
    """
    try:
        if format == "microsoft":
            return build_microsoft(description, weights, microsoft)
        if format not in BUILDERS:
            raise NotBuilt("not installed")
        return BUILDERS[format](description, weights)
    except ModuleNotFoundError as error:
        raise NotBuilt("not installed" if error.name == format else f"not installed: {error.name}") from None


def build_ours(description: Description, weights: Weights) -> Peer:
    """Weights under our published names."""
    state = saved.to_theirs("checkpoint", description, weights)
    ours: Any = our_class(description.kind)
    with torch.device("meta"):  # nothing is drawn: every tensor is given
        model = ours(description.config, **ours._arguments(description))
    load(model, state, assign=True)
    model.preprocessing, model.labels = description.preprocessing, description.labels
    encoder = getattr(model, "encoder", model)

    def outputs(images: Tensor, mask: Tensor) -> Outputs:
        found = {"features": encoder(images)}
        if description.kind == "SimMIM":
            found["pixels"] = model(images, mask).pixels
        if description.kind == "SwinClassifier":
            found["logits"] = model(images)
        if description.kind == "SwinSegmenter":
            found["logits"] = model(images).logits
        if description.kind == "SwinDetector":
            found |= {f"map {name}": each for name, each in model.maps(images).items()}
        return found

    return Peer(model.eval(), outputs)


def our_class(kind: Kind) -> Any:
    """The class whose weights are of a kind."""
    if kind == "SwinDetector":  # torchvision, which it imports, is not where tools.bench needs torch alone
        from swin_mim.models.dense.detector import SwinDetector

        return SwinDetector
    return next(each for each in (Swin, SimMIM, SwinClassifier, SwinSegmenter) if each.kind == kind)


def build_timm(description: Description, weights: Weights) -> Peer:
    """timm's network; only the encoder of a SimMIM."""
    import timm

    classes = description.num_classes
    arguments = timm_arguments(description.config) | {"num_classes": classes, "drop_path_rate": 0.0}
    theirs = {1: timm.models.SwinTransformer, 2: timm.models.SwinTransformerV2}[description.config.version]
    model = theirs(**arguments, global_pool="avg" if classes else "")
    load(model, weights)

    def outputs(images: Tensor, mask: Tensor) -> Outputs:
        features = model.forward_features(images)
        return {"features": features} | ({"logits": model.forward_head(features)} if classes else {})

    return Peer(model.eval(), outputs)


def build_torchvision(description: Description, weights: Weights) -> Peer:
    """torchvision's network; only the encoder of a SimMIM; without a head where the weights have none."""
    from torchvision.models import swin_transformer as theirs

    config, classes = description.config, description.num_classes
    parts = {1: {}, 2: {"block": theirs.SwinTransformerBlockV2, "downsample_layer": theirs.PatchMergingV2}}
    model = theirs.SwinTransformer(
        [config.patch_size] * 2,
        config.embed_dim,
        list(config.depths),
        list(config.num_heads),
        list(config.stage_window(0)),
        mlp_ratio=config.mlp_ratio,
        stochastic_depth_prob=0.0,
        num_classes=classes or 1,
        **parts[config.version],
    )
    if not classes:
        model.head = nn.Identity()
    load(model, weights)

    def outputs(images: Tensor, mask: Tensor) -> Outputs:
        features = model.norm(model.features(images))
        return {"features": features} | ({"logits": model(images)} if classes else {})

    return Peer(model.eval(), outputs)


def build_transformers(description: Description, weights: Weights) -> Peer:
    """Weights under the names of their files, which `from_pretrained` turns into those of the installed version."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    document = transformers_documents(description)["config.json"] | {"drop_path_rate": 0.0}
    theirs: Any = getattr(transformers, document["architectures"][0])
    model, loaded = theirs.from_pretrained(
        None,
        config=theirs.config_class.from_dict(document),
        state_dict=dict(weights),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[problem]:
            raise Different(f"not the same network: {len(loaded[problem])} {problem.replace('_', ' ')}")
    encoder, segments = model.base_model, description.kind == "SwinSegmenter"
    last = description.config.stage_grid(description.config.num_stages - 1)

    def outputs(images: Tensor, mask: Tensor) -> Outputs:
        if segments:
            return {"logits": model(images).logits}
        found = {"features": encoder(images).last_hidden_state.unflatten(1, last)}
        if description.kind == "SimMIM":
            found["pixels"] = model(images, bool_masked_pos=mask.flatten(1)).reconstruction
        if description.kind == "SwinClassifier":
            found["logits"] = model(images).logits
        return found

    return Peer(model.eval(), outputs)


def build_microsoft(description: Description, weights: Weights, checkout: str | None) -> Peer:
    """Their SimMIM with its decoder, or their Swin with or without a head."""
    config = description.config
    repository, module, suffix = _MICROSOFT[config.version]
    if checkout is None or not Path(checkout, "models", f"{module}.py").is_file():
        raise NotBuilt(f"name a checkout of github.com/microsoft/{repository} with --microsoft")
    height, width = as_pair(config.image_size)
    arguments = {
        "img_size": height if height == width else (height, width),
        "patch_size": config.patch_size,
        "in_chans": config.in_channels,
        "num_classes": description.num_classes,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.stage_window(0)[0],
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "drop_path_rate": 0.0,
        **({"pretrained_window_sizes": config.pretrained_window_sizes} if config.version > 1 else {}),
    }
    if description.kind == "SimMIM":
        theirs = import_microsoft(checkout, "simmim")
        encoder = getattr(theirs, f"SwinTransformer{suffix}ForSimMIM")(**arguments)
        model = theirs.SimMIM(**_arguments_of_simmim(theirs.SimMIM, encoder, config))
    else:
        model = getattr(import_microsoft(checkout, module), f"SwinTransformer{suffix}")(**arguments)
    load(model, weights)
    last = config.stage_grid(config.num_stages - 1)

    def outputs(images: Tensor, mask: Tensor) -> Outputs:
        if description.kind == "SimMIM":
            features, masked = (model.encoder(images, m.long()) for m in (torch.zeros_like(mask), mask))
            return {"features": features.permute(0, 2, 3, 1), "pixels": model.decoder(masked)}
        tokens = model.pos_drop(model.patch_embed(images))
        for layer in model.layers:
            tokens = layer(tokens)
        logits = {"logits": model(images)} if description.num_classes else {}
        return {"features": model.norm(tokens).unflatten(1, last)} | logits

    return Peer(model.eval(), outputs)


def _arguments_of_simmim(theirs: type, encoder: nn.Module, config: SwinConfig) -> dict[str, Any]:
    """Those of either repository's class: the younger one takes more."""
    plain = types.SimpleNamespace(NORM_TARGET=types.SimpleNamespace(ENABLE=False))
    every = {
        "config": plain,
        "encoder": encoder,
        "encoder_stride": config.stride,
        "in_chans": config.in_channels,
        "patch_size": config.patch_size,
    }
    return {name: every[name] for name in inspect.signature(theirs).parameters}


_MICROSOFT = {1: ("SimMIM", "swin_transformer", ""), 2: ("Swin-Transformer", "swin_transformer_v2", "V2")}
"""Version -> their repository, the module in its models/, and what its class is called besides SwinTransformer."""

BUILDERS: dict[str, Callable[[Description, Weights], Peer]] = {
    "swin_mim": build_ours,
    "timm": build_timm,
    "torchvision": build_torchvision,
    "transformers": build_transformers,
}
"""Those that need no checkout."""


def import_microsoft(checkout: str, module: str) -> types.ModuleType:
    """One module of their models/, under a package name that shadows nobody's `models`."""
    package = types.ModuleType("microsoft_simmim")
    package.__path__ = [str(Path(checkout, "models"))]
    sys.modules[package.__name__] = package
    with contextlib.redirect_stdout(sys.stderr):  # it prints that a kernel is not there, and stdout may be JSON
        return importlib.import_module(f"microsoft_simmim.{module}")


def load(model: nn.Module, weights: Weights, *, assign: bool = False) -> None:
    """Every tensor of the model's state from the weights; Different unless names and shapes are the same."""
    try:
        model.load_state_dict(dict(weights), assign=assign)
    except RuntimeError as error:
        reason = " ".join(str(error).split(":", 1)[-1].split())
        raise Different(f"not the same network: {reason[:300]}") from None
