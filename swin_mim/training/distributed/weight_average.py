"""A running average of the weights while they are trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from swin_mim.errors import UserError
from swin_mim.training.distributed.sharding import is_of_zero3, part


class WeightAverage:
    """The exponential moving average of all weights, in fp32 on their device (Polyak averaging).

    After update t (from 0) it moves by 1 - min(decay, (1 + t) / (10 + t)) towards the weights: a short run is not
    dominated by the weights that it started from.

    Args:
        model: the bare model whose weights are averaged.
        decay: at least 0 and less than 1; 0.9999 averages over about 10,000 updates.

    Raises:
        UserError: the weights are shared out by DeepSpeed's ZeRO-3, which shows them only while they are used.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if any(is_of_zero3(weight) for weight in model.parameters()):
            raise UserError(
                f"train.ema {decay} cannot average weights that ZeRO-3 shares out: set train.ema 0, or share them out "
                "with --train.fsdp true or only the moments with ZeRO-2 (swin-mim copy zero2.yaml)"
            )
        self._model, self._decay = model, decay
        self._averages = [weight.detach().float().clone() for weight in model.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights after update number `step`, which counts from 0."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        weights = [weight.detach().to(torch.float32) for weight in self._model.parameters()]
        torch._foreach_lerp_(self._averages, weights, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages inside, and its own weights again afterwards."""
        own = [weight.detach().clone() for weight in self._model.parameters()]
        self._put(self._averages)
        try:
            yield
        finally:
            self._put(own)

    def state(self) -> dict[str, Tensor]:
        """The averages by the names of the parameters."""
        names = (name for name, _ in self._model.named_parameters())
        return dict(zip(names, self._averages, strict=True))

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`: strictly, every name and no other."""
        assert state.keys() == self.state().keys(), "other parameters than the model's"
        for name, average in self.state().items():
            average.copy_(part(state[name], average))

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._model.parameters(), values, strict=True):
            weight.copy_(value)
