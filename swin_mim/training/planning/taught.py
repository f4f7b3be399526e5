"""What a teacher costs a pretraining: a network without gradients, counted on torch's device without memory."""

from dataclasses import dataclass, replace
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from swin_mim.architecture import as_pair
from swin_mim.errors import UserError
from swin_mim.models.saving import Preprocessing
from swin_mim.models.swin import Swin
from swin_mim.models.targets.teacher import TIMM, Teacher, timm_features
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import swin_config
from swin_mim.weights.heads import taught_stage


@dataclass(frozen=True)
class TeacherCost:
    """A frozen network as it is on every process."""

    width: int
    """Features of an image."""
    parameters: int
    """In fp32, whatever the precision of the run."""
    flops: int
    """Of an image, forward."""
    peak_bytes: int
    """Of the tensors of an image that are there together, in fp32, with all scores of the attention: at most."""


def teacher_cost(config: PretrainConfig) -> TeacherCost | None:
    """The cost of teacher.model; None without one. Weights that timm would fetch are not fetched.

    Raises:
        UserError: it cannot be opened.
    """
    source = config.teacher.model
    if source is None:
        return None
    sides = as_pair(swin_config(config.model).image_size)
    if source.startswith(TIMM):
        with torch.device("meta"):
            network = timm_features(source.removeprefix(TIMM), pretrained=False)
        (width,), channels = network.feature_info.channels(), len(network.pretrained_cfg["mean"])
        parameters = _parameters(network)
    else:
        given = Swin.from_pretrained(source, pickles=True)
        opened, parameters = given.config, _parameters(given)
        size = sides[0] if sides[0] == sides[1] else sides
        with torch.device("meta"):
            network = Swin(replace(opened, image_size=size), attention="reference")
        width, channels = opened.stage_dim(taught_stage(opened)), opened.in_channels
    known = Preprocessing((0.0,) * channels, (1.0,) * channels)
    teacher = Teacher(network, width, known, known, range(channels), digest="")
    images = torch.empty(1, channels, *sides, device="meta")
    with FlopCounterMode(display=False) as counted, _Living() as living:
        try:
            teacher.to("meta")(images)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(f"teacher.model {source} does not take images of {sides[0]}x{sides[1]}: {error}") from None
    return TeacherCost(width, parameters, counted.get_total_flops(), living.peak)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class _Living(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside, and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()
        self._outside: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        # of weights there are views, which are no memory of their own
        self._outside |= {tensor.untyped_storage()._cdata for tensor in given} - self._known
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.bytes)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known and key not in self._outside:
            self._known.add(key)
            self.bytes += size
            finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size
