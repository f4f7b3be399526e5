"""Models whose weights are shared out among the processes: FSDP2 (`train.fsdp`) and DeepSpeed's ZeRO-3.

Each process holds a part of every weight, and what is done with whole weights needs them put together: checkpoints,
evaluations, the model that is published. All processes do that together.
"""

import atexit
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from swin_mim.errors import UserError
from swin_mim.models.swin import Swin

Model = TypeVar("Model", bound=nn.Module)


class FullModel(Generic[Model]):
    """A model with whole weights in every process, for all that is done with it besides training.

    A model that is not shared out is that itself. Beside one that is there is a copy in fp32, which has the weights of
    the last `gather`: 4 bytes a parameter in every process, against the 16 that are shared out.
    """

    def __init__(self, model: Model, copy: Model | None = None) -> None:
        self.trained = model
        self.model = copy or model

    @torch.no_grad()
    def gather(self) -> Model:
        """The model with its present weights. All processes call it together."""
        if self.model is not self.trained:
            own = self.model.state_dict()
            for name, tensor in whole(self.trained.state_dict(keep_vars=True)):
                own[name].copy_(tensor)
        return self.model


class Prepared(NamedTuple, Generic[Model]):
    """A model and its optimizer, spread over the processes."""

    model: Any
    """To train: its forward is the distributed one."""
    optimizer: Any
    whole: FullModel[Model]


def prepare(
    accelerator: Accelerator,
    model: Model,
    optimizer_of: Callable[[Model], torch.optim.Optimizer],
    *,
    fsdp: bool,
) -> Prepared[Model]:
    """Spread a model over the processes: the same weights in each (DDP, ZeRO-1, ZeRO-2), or a part of them.

    Args:
        optimizer_of: makes the optimizer of the parameters that a process is going to hold.
        fsdp: share the weights out with FSDP2, one block at a time. With one process there is nothing to share out. The
            gradients of every micro batch are shared out too, which is more traffic than DDP's where they accumulate.

    Raises:
        UserError: `fsdp` together with DeepSpeed or fp16.
    """
    if fsdp and accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UserError("train.fsdp and DeepSpeed both share the weights out: leave one of them")
    fsdp, zero3 = fsdp and accelerator.num_processes > 1, zero_stage(accelerator) == 3
    if fsdp and accelerator.scaler is not None:
        raise UserError(
            "train.fsdp does not go with train.precision fp16, whose scale each process finds for itself: leave "
            "train.fsdp out, or start another run with bf16"
        )
    if (fsdp or zero3) and accelerator.device.type == "cpu":
        # Both keep gloo's threads for good, which must have let go of their last tensors when the interpreter is taken
        # down (see processes.py): they get a moment without its lock.
        atexit.register(time.sleep, 0.2)
    copy = deepcopy(model) if fsdp or zero3 else None
    if fsdp:
        # autocast, and no DDP; the parts of the weights alone go to the device
        prepared = accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        _shard(prepared, accelerator)
        copy = accelerator.prepare_model(copy, evaluation_mode=True)
        return Prepared(prepared, accelerator.prepare(optimizer_of(prepared)), FullModel(prepared, copy))
    prepared, optimizer = accelerator.prepare(model, optimizer_of(model))
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        prepared.optimizer.check_grad_overflow = True  # in fp32 too, as ZeRO-3 does anyway
    return Prepared(prepared, optimizer, FullModel(model, copy.to(accelerator.device) if copy else None))


def zero_stage(accelerator: Accelerator) -> int:
    """Of DeepSpeed; 0 without it."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return 0
    return int(accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage"])


def is_of_zero3(parameter: Tensor) -> bool:
    """Whether DeepSpeed shares this parameter out."""
    return hasattr(parameter, "ds_id")


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only a part of each weight."""
    return any(isinstance(parameter, DTensor) or is_of_zero3(parameter) for parameter in model.parameters())


def whole(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and whole tensors, one after the other. All processes go through all of them together.

    Args:
        tensors: as a model or optimizer has them; parameters themselves, as ZeRO-3 has no other handle on them.
    """
    for name, tensor in tensors.items():
        with _gathered(tensor):
            yield name, whole_tensor(tensor.detach())


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor of FSDP2 put together from the parts of all processes, which call it together; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(value: Tensor, like: Tensor) -> Tensor:
    """What this process holds of a whole tensor that every process has, if it is shared out like `like` with FSDP2."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _shard(model: nn.Module, accelerator: Accelerator) -> None:
    # of our outputs, with which nothing is done in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for encoder in (module for module in model.modules() if isinstance(module, Swin)):
        for layer in encoder.layers:
            for block in cast(Any, layer).blocks:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _gathered(tensor: Tensor) -> Any:
    if not is_of_zero3(tensor):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([tensor])
