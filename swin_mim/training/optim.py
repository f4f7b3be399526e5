"""Parameter groups and AdamW."""

from typing import Any

import torch
from torch import nn

UNDECAYED = ("relative_position_bias_table", "mask_token")
"""Parameters with several dimensions that are no weight matrices; everything with one dimension is exempt too."""


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: what is decayed, and what is not (norms, biases, bias tables, the mask token).

    The official code meant the same, but a prefix in its names made it decay the bias tables.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    exempt = [p for name, p in named if p.ndim < 2 or name.split(".")[-1] in UNDECAYED]
    decayed = [p for name, p in named if p.ndim >= 2 and name.split(".")[-1] not in UNDECAYED]
    assert len(exempt) + len(decayed) == len(named), "a parameter is in no group or in both"
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]


def adamw(
    model: nn.Module, *, weight_decay: float = 0.05, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW whose rate the schedule sets before every step.

    Fused, because only that one skips an update of non-finite gradients without asking the device.
    """
    return torch.optim.AdamW(
        parameter_groups(model, weight_decay=weight_decay), lr=0.0, betas=betas, eps=eps, fused=True
    )
