"""What kernels move, as counted of the real network in a FakeTensor."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from swin_mim.architecture import SwinConfig
from swin_mim.models.cost import AUTOCAST, HALF, Storage, parts_of
from swin_mim.models.simmim import SimMIM
from swin_mim.training.planning.moved import moved_bytes

CONFIG = SwinConfig(192, embed_dim=96, depths=(2, 2), num_heads=(3, 6), window_size=6)
SECOND = replace(CONFIG, version=2)
CELLS = 346


class Counter(TorchDispatchMode):
    """Adds up what every operation reads and writes, but for those that only look at memory in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        known = {leaf.untyped_storage()._cdata for leaf in inputs}
        if any(leaf.untyped_storage()._cdata not in known for leaf in outputs):
            # a GPU has one kernel for the gradient of what is normalised, and one for those of weight and bias
            reads = 2 if func.name() == "aten::native_layer_norm_backward" else 1
            self.bytes += reads * sum(leaf.nbytes for leaf in inputs) + sum(leaf.nbytes for leaf in outputs)
        return out


def counted(config: SwinConfig, batch: int, device: str) -> tuple[float, float]:
    """(bytes forward, bytes backward) of a micro batch in bf16 by autocast. A GPU that is not there can do no backward
    pass, and a CPU's autocast leaves bf16 between the blocks."""
    with torch.device("meta"):
        model = SimMIM(config, attention="triton").train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device=device)))
        images = torch.empty(batch, 3, 192, 192, device=device)
        mask = torch.empty(batch, 48, 48, dtype=torch.bool, device=device)
        torch.set_autocast_enabled(device, True)  # torch.autocast refuses a device that is not there
        torch.set_autocast_dtype(device, torch.bfloat16)
        try:
            with Counter() as forward:
                loss = model(images, mask, CELLS).loss
        finally:
            torch.set_autocast_enabled(device, False)
            torch.clear_autocast_cache()
        with Counter() as backward:
            if device == "cpu":
                loss.backward()
    return forward.bytes, backward.bytes


def of_an_image(config: SwinConfig, device: str) -> tuple[float, float]:
    three, one = counted(config, 3, device), counted(config, 1, device)
    return (three[0] - one[0]) / 2, (three[1] - one[1]) / 2


def expected(config: SwinConfig, storage: Storage) -> tuple[float, float]:
    forward = backward = 0
    for part in parts_of(config, CELLS):
        moved, inner = moved_bytes(part, storage, compiled=False), storage.inner
        products = sum(product.rows * (product.inner + product.columns) for product in part.products) * inner
        numbers = part.padded_tokens * part.channels * inner  # of q, k, v and the output; and of their gradients
        forward += moved.forward + products + 4 * numbers
        backward += moved.backward + (1 if part.kind == "embedding" else 2) * products + 8 * numbers
    return forward, backward


@pytest.mark.parametrize("config", [CONFIG, SECOND])
def test_one_operation_after_the_other_on_a_gpu(config: SwinConfig) -> None:
    forward, _ = of_an_image(config, "cuda")
    assert forward == pytest.approx(expected(config, AUTOCAST)[0], rel=0.1)


@pytest.mark.parametrize("config", [CONFIG, SECOND])
def test_one_operation_after_the_other_forward_and_backward(config: SwinConfig) -> None:
    assert of_an_image(config, "cpu") == pytest.approx(expected(config, HALF), rel=0.1)


@pytest.mark.parametrize("config", [CONFIG, SECOND])
@pytest.mark.parametrize("storage", [AUTOCAST, HALF])
def test_compiled_kernels_move_less(config: SwinConfig, storage: Storage) -> None:
    for part in parts_of(config, CELLS):
        eager, compiled = (moved_bytes(part, storage, compiled=each) for each in (False, True))
        assert sum(compiled) <= sum(eager)
        if part.kind == "block":
            assert sum(compiled) < 0.9 * sum(eager)
