"""Weights and moments of a model and its optimizer, by name, into and out of checkpoints."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from swin_mim.errors import UserError
from swin_mim.training.distributed.sharding import part


def load_model(model: nn.Module, path: Path) -> None:
    """Strictly: every parameter and no other key."""
    own = model.state_dict()
    model.load_state_dict({name: part(value, own.get(name, value)) for name, value in load_file(path).items()})


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The moments of every parameter under `<moment>/<parameter>`."""
    return {
        f"{moment}/{name}": value
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state.get(parameter, {}).items()  # a frozen one has none, and [] would make one
    }


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, path: Path) -> None:
    """The inverse of `optimizer_tensors`, from a file; moments are put where their parameters are."""
    named = dict(model.named_parameters())
    index = {parameter: i for i, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        moment, name = key.split("/", 1)
        if name not in named:
            raise UserError(f"{path}: {key} belongs to no parameter of this model")
        state.setdefault(index[named[name]], {})[moment] = part(value, named[name])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
