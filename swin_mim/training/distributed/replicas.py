"""Whether all processes still have the same weights: a flipped bit in one of them is never averaged away unseen."""

from collections import Counter
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn

from swin_mim.errors import PEER_LOST, UserError
from swin_mim.training.distributed.sharding import is_sharded

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_replicas(accelerator: Any, model: nn.Module) -> None:
    """Compare the weights of all processes of a replicated run, by a sum over the bits of each parameter.

    Any single flipped bit changes the sum. All processes call it together.

    Raises:
        UserError: in all of them: they differ.
    """
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if accelerator.num_processes == 1 or deepspeed or is_sharded(model):
        return
    names, parameters = zip(*model.named_parameters(), strict=True)
    sums = accelerator.gather(torch.stack([_sum_of_bits(parameter) for parameter in parameters])[None])
    rows = [tuple(row) for row in sums.tolist()]
    usual, times = Counter(rows).most_common(1)[0]
    odd = [process for process, row in enumerate(rows) if row != usual]
    if odd:
        who = f"process {', '.join(map(str, odd))}" if times > len(odd) else "some process"
        name = next(
            name.removeprefix("module.") for name, a, b in zip(names, rows[odd[0]], usual, strict=True) if a != b
        )
        raise UserError(
            f"the weights of {who} are not those of the others ({name} is the first that differs): memory or a device "
            "made an error; start again to continue from the last checkpoint",
            code=PEER_LOST,
        )


def _sum_of_bits(parameter: Tensor) -> Tensor:
    return parameter.detach().contiguous().view(_INTEGERS[parameter.element_size()]).sum(dtype=torch.int64)
