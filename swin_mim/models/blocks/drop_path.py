"""Stochastic depth."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drop the branch for some images, and scale up the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        # A number would be a constant of a compiled graph, and each rate a graph of its own. No buffer: it stays on
        # the CPU, in fp32, whatever becomes of the model.
        self.keep = torch.tensor(1 - rate, device="cpu") if rate else None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.keep is None:
            return x
        shape = (x.shape[0], *[1] * (x.ndim - 1))
        if torch.compiler.is_compiling():
            return x * (torch.rand(shape, device=x.device) < self.keep) / self.keep
        return x * x.new_empty(shape).bernoulli_(1 - self.rate) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"
