"""Models whose weights are shared out among the processes: FSDP2 (`train.fsdp`) and DeepSpeed's ZeRO-3.

Each process holds a part of every weight, and what is done with whole weights needs them put together: checkpoints,
evaluations, the model that is published. All processes do that together.
"""

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from swin_mim.models.swin import Swin

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def zero_stage(accelerator: Accelerator) -> int:
    """Stage of DeepSpeed's ZeRO; 0 without it."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return 0
    return int(accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage"])


def is_of_zero3(parameter: Tensor) -> bool:
    """Whether DeepSpeed shares this parameter out."""
    return hasattr(parameter, "ds_id")


def is_of_fsdp(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether FSDP2 shares this tensor out.

    Importing its module takes a quarter of a recipe's start, and few runs need it: before it is imported there is none.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only a part of each weight."""
    return any(is_of_fsdp(parameter) or is_of_zero3(parameter) for parameter in model.parameters())


def full_tensors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and full tensors, one after the other. All processes go through all of them together.

    Args:
        tensors: as a model or optimizer has them; parameters themselves, as ZeRO-3 has no other handle on them.
    """
    for name, tensor in tensors.items():
        with _gathered(tensor):
            yield name, full_tensor_of(tensor.detach())


def full_tensor_of(tensor: Tensor) -> Tensor:
    """A tensor of FSDP2 put together from the parts of all processes, which call it together; others as they are."""
    return tensor.full_tensor() if is_of_fsdp(tensor) else tensor


def part(value: Tensor, like: Tensor) -> Tensor:
    """What this process holds of a whole tensor that every process has, if it is shared out like `like` with FSDP2."""
    if not is_of_fsdp(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Share the weights out with FSDP2, one block at a time.

    Parts stay fp32, and so do sums of gradients. In bf16 the weights are gathered as such, which halves that traffic;
    what passes between the blocks keeps its precision, as with autocast alone.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if accelerator.mixed_precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # of our outputs, with which nothing is done in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for encoder in (module for module in model.modules() if isinstance(module, Swin)):
        for layer in encoder.layers:
            for block in cast(Any, layer).blocks:
                fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


@contextmanager
def _gathered(tensor: Tensor) -> Iterator[None]:
    """Put a parameter together for as long as it is read, by the methods that ZeRO-3 gives to its parameters."""
    if not is_of_zero3(tensor):
        yield
        return
    parameter = cast(Any, tensor)
    parameter.all_gather()
    try:
        yield
    finally:
        parameter.partition()
