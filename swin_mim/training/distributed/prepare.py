"""A model and its optimizer, spread over the processes of a run; and the full model for all besides training."""

import atexit
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from swin_mim.errors import UserError
from swin_mim.training.distributed.sharding import full_tensors, shard, zero_stage
from swin_mim.training.distributed.weight_average import WeightAverage

Model = TypeVar("Model", bound=nn.Module)


class FullModel(Generic[Model]):
    """A model with full weights in every process, for all that is done with it besides training.

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
            for name, tensor in full_tensors(self.trained.state_dict(keep_vars=True)):
                own[name].copy_(tensor)
        return self.model


class PreparedModel(NamedTuple, Generic[Model]):
    """A model and its optimizer, spread over the processes."""

    model: Any
    """To train: its forward is the distributed one."""
    optimizer: Any
    full: FullModel[Model]
    average: WeightAverage | None = None
    """A running average of the weights, which follows every step."""


def prepare(
    accelerator: Accelerator,
    model: Model,
    optimizer_of: Callable[[Model], torch.optim.Optimizer],
    *,
    fsdp: bool,
) -> PreparedModel[Model]:
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
        shard(prepared, accelerator)
        copy = accelerator.prepare_model(copy, evaluation_mode=True)
        return PreparedModel(prepared, accelerator.prepare(optimizer_of(prepared)), FullModel(prepared, copy))
    prepared, optimizer = accelerator.prepare(model, optimizer_of(model))
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        prepared.optimizer.check_grad_overflow = True  # in fp32 too, as ZeRO-3 does anyway
    return PreparedModel(prepared, optimizer, FullModel(model, copy.to(accelerator.device) if copy else None))
