"""The losses of one training with several attention backends: `tools.bench curves`.

The same model from the same weights sees the same images and masks with every backend. The images are smooth random
fields: the hidden part can be guessed from what surrounds it, so the loss falls, and nothing has to be downloaded.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.cli.options import text_stream, write_json
from swin_mim.models.blocks.window_attention import Backend
from swin_mim.models.simmim import SimMIM
from tools.bench.peers import System
from tools.bench.report import describe, print_machine, print_table
from tools.bench.settings import CurveSettings, check, check_model
from tools.bench.training import enter, random_mask, train_step

COARSE = 16
"""Pixels from one random value of an image to the next; between them it is interpolated."""


def curves(settings: CurveSettings) -> None:
    """Train with each backend, print how far the losses differ, and write the JSON."""
    out = text_stream(settings.json)
    device, config = check(settings), check_model(settings)
    report = describe(settings, device)
    print_machine(report, out)
    batch = settings.batch[0]
    losses: dict[str, list[float]] = {
        backend: curve(config, backend, batch, settings.steps, settings.precision, device)
        for backend in settings.backends
    }
    first = settings.backends[0]
    differences = {name: difference(values, losses[first]) for name, values in losses.items() if name != first}
    report |= {"losses": losses, "differences": differences}
    print(f"curves    {settings.model}, {settings.steps} steps of {batch}, {settings.precision}\n", file=out)
    print_table(("backend", "first loss", "last loss", "max difference", "mean difference"), rows(report, first), out)
    write_json(report, settings.json)


def curve(
    config: SwinConfig, backend: Backend, batch: int, steps: int, precision: str, device: torch.device
) -> list[float]:
    """The loss before each of the first steps of a training."""
    torch.manual_seed(0)
    model = SimMIM(config, attention=backend).to(device).train()
    contestant = enter(System(model, lambda images, mask: model(images, mask).loss), "eager")
    losses = [train_step(contestant, smooth_batch(config, batch, number, device), precision) for number in range(steps)]
    return torch.stack(losses).tolist()


def smooth_batch(config: SwinConfig, batch: int, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and mask (B, h, w) of one step."""
    generator = torch.Generator().manual_seed(number)
    size = as_pair(config.image_size)
    coarse = torch.randn(batch, config.in_channels, *(side // COARSE + 1 for side in size), generator=generator)
    images = F.interpolate(coarse.to(device), size, mode="bilinear", align_corners=True)
    return images, random_mask(config, batch, number, device)


def difference(losses: Sequence[float], expected: Sequence[float]) -> dict[str, float]:
    apart = [abs(a - b) for a, b in zip(losses, expected, strict=True)]
    return {"max": max(apart), "mean": statistics.mean(apart), "max_relative": max(apart) / min(expected)}


def rows(report: Mapping[str, Any], first: str) -> list[list[str]]:
    return [
        [name, f"{values[0]:.5f}", f"{values[-1]:.5f}"]
        + (["-", "-"] if name == first else [f"{report['differences'][name][key]:.2e}" for key in ("max", "mean")])
        for name, values in report["losses"].items()
    ]
