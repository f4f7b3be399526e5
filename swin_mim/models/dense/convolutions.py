"""What the heads for dense tasks are made of: a convolution, a norm, a ReLU. Maps are (B, D, h, w) here."""

from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from swin_mim.errors import UserError
from swin_mim.kernels.graph_windows import is_exporting

Norm = Literal["batch", "group"]
"""Batch normalisation, as published; group normalisation, in which no image depends on another."""

MOST_GROUPS, LEAST_CHANNELS = 32, 8
"""Groups of a group norm, as published (arXiv 1803.08494), and channels of each. Of a map of one cell, which pooling
makes, two channels would become 1 and -1, whatever they were."""


class ConvNorm(nn.Module):
    """A convolution that keeps the size, without a bias, then a norm and a ReLU.

    Args:
        into, out: channels.
        kernel: side, odd.
        norm: kind of the norm, which is called `batch_norm` or `group_norm`.
    """

    def __init__(self, into: int, out: int, kernel: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, kernel, padding=kernel // 2, bias=False)
        self.kind = f"{norm}_norm"
        self.add_module(self.kind, BatchNorm(out) if norm == "batch" else nn.GroupNorm(groups_of(out), out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, into, h, w) -> (B, out, h, w)."""
        return F.relu(self.get_submodule(self.kind)(self.conv(x)))


class BatchNorm(nn.Module):
    """Batch normalisation by the statistics of the micro batches of all processes together.

    As torch's SyncBatchNorm, on any device; with one process as torch's BatchNorm2d. All processes must have micro
    batches of the same size and call it together while training. In evaluation it uses its running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D, h, w).

        Raises:
            UserError: there is one value of each channel to take a mean of, while training.
        """
        several = self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if several:
            return self._of_all_processes(x)
        if self.training and x.numel() == x.shape[1]:
            raise UserError(
                "batch normalisation needs more than one image to learn from: give a micro batch of at least 2, or "
                'choose head_norm "group"'
            )
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)

    def _of_all_processes(self, x: Tensor) -> Tensor:
        values = x.float()
        mean = _mean_of_processes(values.mean((0, 2, 3)))
        centred = values - mean[:, None, None]
        variance = _mean_of_processes(centred.square().mean((0, 2, 3)))
        count = dist.get_world_size() * x.numel() // x.shape[1]
        with torch.no_grad():
            for running, now in ((self.running_mean, mean), (self.running_var, variance * (count / (count - 1)))):
                running.lerp_(now.to(running.dtype), self.momentum)
        scale = self.weight.float() * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias.float()[:, None, None]).to(x.dtype)


class _SumOfProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _mean_of_processes(x: Tensor) -> Tensor:
    total: Tensor = _SumOfProcesses.apply(x)
    return total / dist.get_world_size()


def groups_of(channels: int) -> int:
    """Groups of a group norm: at most 32, of at least 8 channels each where there are as many."""
    return next(
        count for count in range(max(1, min(MOST_GROUPS, channels // LEAST_CHANNELS)), 0, -1) if channels % count == 0
    )


def check_head(channels: int, norm: Norm) -> None:
    """Raise a UserError where no head can be built with so many channels inside, or with such norms."""
    if norm not in get_args(Norm):
        raise UserError(f"head_norm is {norm!r}: expected one of {', '.join(get_args(Norm))}")
    if channels < 4:
        raise UserError(f"head_channels is {channels}: expected at least 4")


def resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """(B, D, h, w) -> (B, D, *size), linear between the centres of cells."""
    if not is_exporting() and x.shape[2:] == torch.Size(size):  # a graph's sizes are not compared
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def initialise_head(head: nn.Module) -> None:
    """Draw new weights as the published heads do, for a module and all below it.

    convolutions    normal, std sqrt(2 / (channels out x kernel^2)) (kaiming, fan out)
    `classifier`    normal, std 0.01
    norms           weight ones
    biases          zeros
    """
    for name, module in head.named_modules():
        if not isinstance(module, nn.Conv2d) or module.weight.is_meta:  # to draw there takes seconds of imports
            continue
        if name.rpartition(".")[2] == "classifier":
            nn.init.normal_(module.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
