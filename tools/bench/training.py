"""One training step as `tools.bench` measures it: the system with its optimizer, its batch, the step, its FLOPs."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.masking import block_mask
from swin_mim.models.compilation import compile_model
from swin_mim.models.simmim import SimMIM
from swin_mim.training.loop.optim import adamw
from tools.bench.peers import System
from tools.bench.settings import LEARNING_RATE, MASK_RATIO, MAX_GRAD_NORM, Mode, cells_of
from tools.bench.timing import autocast


class Contestant(NamedTuple):
    system: System
    optimizer: torch.optim.Optimizer
    mode: Mode


def enter(system: System, mode: Mode) -> Contestant:
    optimizer = adamw(system.model)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    if mode == "compiled":
        compile_system(system.model)
    return Contestant(system, optimizer, mode)


def compile_system(model: nn.Module) -> None:
    """Ours as training does it, part by part; others as a whole. Nothing is compiled before the first step."""
    if isinstance(model, SimMIM):
        compile_model(model, next(model.parameters()).device)
    else:
        model.compile(dynamic=False)


def train_step(
    contestant: Contestant, batch: tuple[Tensor, Tensor], precision: str, *, accumulation: int = 1
) -> Tensor:
    """The loss before the update, (). `accumulation` is how often the batch makes a gradient for one update."""
    (model, loss_of), optimizer, _ = contestant
    for _ in range(accumulation):
        with autocast(batch[0].device, precision):
            loss = loss_of(*batch)
        (loss / accumulation if accumulation > 1 else loss).backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def random_batch(config: SwinConfig, batch: int, repeat: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and mask (B, h, w) of one repeat, the same for every system."""
    generator = torch.Generator().manual_seed(repeat)
    images = torch.randn(batch, config.in_channels, *as_pair(config.image_size), generator=generator)
    return images.to(device), random_mask(config, batch, repeat, device)


def random_mask(config: SwinConfig, batch: int, repeat: int, device: torch.device) -> Tensor:
    unit = config.stride // config.patch_size
    return block_mask(batch, config.stage_grid(0), unit, MASK_RATIO, seed=0, start=repeat * batch).to(device)


def flops_per_step(config: SwinConfig, batch: int) -> int:
    """Floating-point operations of our forward and backward, by torch's counter. Computes and allocates nothing.

    Of the reference backend: the work is the same for all, however a fused kernel does it.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        images = torch.empty(batch, config.in_channels, *as_pair(config.image_size))
        mask = torch.empty(batch, *config.stage_grid(0), dtype=torch.bool)
        SimMIM(config, attention="reference")(images, mask, cells_of(config)).loss.backward()
    return counter.get_total_flops()
