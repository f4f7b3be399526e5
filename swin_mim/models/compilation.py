"""torch.compile for training: part by part, each a small graph that is compiled once."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from swin_mim.kernels.product import onednn_is_faster
from swin_mim.kernels.window_plan import MOST_TOKENS
from swin_mim.models.blocks.window_attention import resolve_backend
from swin_mim.models.swin import Block, PatchEmbed, PatchMerging, Swin
from swin_mim.models.targets.hog import Hog
from swin_mim.models.targets.pixels import MaskedCells

PARTS = (PatchEmbed, PatchMerging, Block, MaskedCells, Hog)
"""Modules that are compiled, besides the final norm. What is between them is one operation at most."""

_LOG = logging.getLogger(__name__)


def is_compiled(setting: bool | Literal["auto"], encoder: Swin, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a model with this encoder is to be compiled, trained on a device with products in `dtype`.

    `auto` is true where `resolve_backend` takes the fused kernel: there Triton, which the compiler needs, has just
    compiled something that gave the right numbers, on a GPU on which that is fast.
    """
    if setting != "auto":
        return setting
    if device.type != "cuda":
        return False
    tokens = min(math.prod(next(encoder.blocks()).attn.window), MOST_TOKENS)
    return resolve_backend("auto", device, tokens, dtype=dtype) == "triton"


def compile_model(model: nn.Module, device: torch.device, **options: Any) -> None:
    """Compile the parts of a model in place, each at its first call; the keys of its state dict stay.

    Blocks of a stage share a graph: one for those that are shifted and one for the others, whatever their rates of
    stochastic depth.

    Args:
        model: with a `Swin` somewhere.
        device: where it is going to be trained.
        options: of `torch.compile`.
    """
    if device.type == "cpu" and onednn_is_faster():
        _LOG.warning("compiled blocks use the slower of this processor's products: without train.compile it is faster")
    parts = [module for module in model.modules() if isinstance(module, PARTS)]
    norms = [module.norm for module in model.modules() if isinstance(module, Swin)]
    settings: Any = torch._dynamo.config
    # All modules of a kind share one piece of code, and torch gives up on code that it compiled more often than this.
    settings.recompile_limit = max(settings.recompile_limit, len(parts))
    # DistributedDataParallel would have graphs of over 25 MB of weights cut up, for its sums to begin earlier; of
    # parts as small as ours they begin with each part anyway.
    settings.optimize_ddp = False
    for module in (*parts, *norms):
        module.compile(dynamic=False, **options)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Call what was compiled as it was written, for batches of other sizes, of which each would be compiled again."""
    compiled = {module: module._compiled_call_impl for module in model.modules() if module._compiled_call_impl}
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call
