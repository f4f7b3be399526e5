"""Parameter groups and AdamW."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from swin_mim.models.swin import Swin

UNDECAYED = {"relative_position_bias_table", "mask_token", "logit_scale", "cpb_mlp"}
"""Parameters and networks that are no weight matrices, by a part of their name, as in the official code of V1 and V2;
everything with one dimension is exempt too."""


def parameter_groups(model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups of one weight decay and one scale of the learning rate ("lr_scale"); frozen parameters are in none.

    Without layer decay there are two: what is decayed, and what is not (norms, biases, bias tables, the mask token; of
    V2 the scales and networks of the attention).
    The official code meant the same, but a prefix in its names made it decay the bias tables in pretraining.

    Args:
        layer_decay: factor of the learning rate from each block to the one below it, for a model with an `encoder`:
            1 for the final norm and the head, layer_decay^(blocks + 1) for the embedding.
    """
    depths = _depths(model)
    top = sum(depths) + 1
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, parameter in named:
        decayed = parameter.ndim >= 2 and UNDECAYED.isdisjoint(name.split("."))
        layer = top if layer_decay == 1 else layer_of(name, depths)
        groups.setdefault((layer, not decayed), []).append(parameter)
    assert sum(map(len, groups.values())) == len(named), "a parameter is in no group or in several"
    return [
        {"params": members, "weight_decay": 0.0 if exempt else weight_decay, "lr_scale": layer_decay ** (top - layer)}
        for (layer, exempt), members in sorted(groups.items(), key=lambda entry: entry[0])
    ]


def layer_of(name: str, depths: Sequence[int]) -> int:
    """The layer that a parameter belongs to: 0 is the embedding, then the blocks, then norm and head together.

    Patch merging belongs to the block before it: in the official code, where these numbers are from
    (`get_swin_layer` of microsoft/SimMIM), it ends a stage; in ours it begins the next one.
    """
    parts = name.removeprefix("encoder.").split(".")
    if parts[0] in ("patch_embed", "mask_token"):
        return 0
    if parts[0] != "layers":
        return sum(depths) + 1
    before = sum(depths[: int(parts[1])])
    return before if parts[2] == "downsample" else before + int(parts[3]) + 1


def adamw(
    model: nn.Module,
    *,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW whose rate the schedule sets before every step.

    Fused, because only that one skips an update of non-finite gradients without asking the device.
    """
    groups = parameter_groups(model, weight_decay=weight_decay, layer_decay=layer_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)


def _depths(model: nn.Module) -> tuple[int, ...]:
    encoder = getattr(model, "encoder", None)
    return encoder.config.depths if isinstance(encoder, Swin) else ()
