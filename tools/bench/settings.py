"""The options of `tools.bench`'s commands, and what of them is checked for all. Their meaning is in `bench.parse`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from swin_mim.architecture import SwinConfig
from swin_mim.errors import UserError
from swin_mim.masking import masked_cells
from swin_mim.models.blocks.window_attention import Backend

Precision = Literal["fp32", "bf16"]
Mode = Literal["eager", "compiled"]

SYSTEMS = ("ours", "timm", "transformers", "torchvision", "microsoft")
"""Whose step and window attention are measured."""
LOADERS = ("torchvision", "datasets", "ours", "ours-jpeg", "ours-raw")
"""Whose way from JPEGs to batches is measured. The first one that is measured is what the others are compared to."""
EMBEDDERS = ("loop", "timm", "ours", "page")
"""Whose way from JPEGs to features is measured. The first one that is measured is what the others are compared to."""
LAYERS = ("window", "global", "global-plain")
NETWORKS = ("swin", "vit")
"""What `scaling` measures against the size of the image."""
FIT_FROM = 256
"""Pixels of the smallest image that counts for its exponents: of smaller ones the start of each operation is a part."""
SIZES = ((500, 375), (1600, 1200))
"""(W, H) of the JPEGs that are made, in turn: ImageNet's usual size, and a photograph's."""
LARGEST = (5000, 2500)
"""(W, H) that are cut from the composite, which has 5400 x 2700 pixels."""
DENSE = ("segment", "detect")
"""Tasks of `dense`."""
PLACES = ("stage1", "stage2", "stage3", "stage4", "rest")
"""Of the parts of a model: the rest are the embedding, the last norm, the decoder and the optimizer."""
MASK_RATIO = 0.6
MAX_GRAD_NORM = 5.0
LEARNING_RATE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of every command."""

    repeats: int
    threads: int | None
    device: str
    json: str | None


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Options of every command that names a model."""

    model: str
    image_size: int
    window_size: int
    batch: tuple[int, ...]
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class PeerSettings(ModelSettings):
    """Options of every command that builds other people's models; all of `attention`."""

    warmup: int
    steps: int | None
    systems: tuple[str, ...]
    microsoft: str | None
    ceilings: bool
    attention: Backend = "auto"
    activation_checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class StepSettings(PeerSettings):
    modes: tuple[Mode, ...]
    memory: bool
    breakdown: bool
    places: tuple[str, ...] = PLACES
    """Of the breakdown."""


@dataclass(frozen=True, kw_only=True)
class DenseSettings(ModelSettings):
    tasks: tuple[str, ...]
    warmup: int
    """Steps of each system before all turns, at each batch size."""
    steps: int
    """In a turn."""


@dataclass(frozen=True, kw_only=True)
class LoaderSettings(Settings):
    source: str | None
    images: int
    sizes: tuple[tuple[int, int], ...]
    """(W, H) of the images that are made."""
    image_size: int
    batch: int
    workers: tuple[int, ...]
    systems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EmbedSettings(ModelSettings):
    source: str | None
    images: int
    sizes: tuple[tuple[int, int], ...]
    """(W, H) of the images that are made."""
    workers: tuple[int, ...]
    systems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    steps: int
    warmup: int
    images: int | None
    """JPEGs that are made and trained on; None: the images that the config names."""
    overrides: tuple[str, ...]
    """Options of the recipe: what follows `--`."""


@dataclass(frozen=True, kw_only=True)
class CurveSettings(ModelSettings):
    steps: int
    backends: tuple[Backend, ...]


@dataclass(frozen=True, kw_only=True)
class DecoderSettings(ModelSettings):
    steps: int
    seeds: tuple[int, ...]
    images: int
    workers: int


@dataclass(frozen=True, kw_only=True)
class BusySettings(Settings):
    busy: tuple[int, ...]
    """Numbers of busy processes beside the training."""
    seconds: float
    """Of each measurement."""


@dataclass(frozen=True, kw_only=True)
class ScalingSettings(Settings):
    model: str
    """A named size: its first stage gives the width of the layers."""
    image_sizes: tuple[int, ...]
    window_size: int
    precision: Precision
    series: tuple[str, ...]
    max_seconds: float
    """Of one forward and backward."""
    max_gb: float
    """Of one process."""


MINIMA = {
    "busy": 0,
    "seconds": 0.1,
    "repeats": 1,
    "threads": 1,
    "batch": 1,
    "warmup": 0,
    "steps": 1,
    "images": 1,
    "image_size": 1,
    "image_sizes": 1,
    "max_seconds": 0.1,
    "max_gb": 0.1,
    "workers": 0,
}


def cells_of(config: SwinConfig) -> int:
    """How many cells of an image have something masked: training decodes no others."""
    cell = config.stride // config.patch_size
    return masked_cells(config.stage_grid(0), cell, MASK_RATIO, cell)


def check(settings: Settings) -> torch.device:
    """The device, with its number of threads set. Raises `UserError`."""
    for name, minimum in MINIMA.items():
        value = getattr(settings, name, None)
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None and each < minimum:
                raise UserError(f"--{name.replace('_', '-')} {each} must be at least {minimum}")
    device = checked_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return device


def check_model(settings: ModelSettings) -> SwinConfig:
    config = SwinConfig.named(settings.model, image_size=settings.image_size, window_size=settings.window_size)
    if settings.image_size % config.stride:
        raise UserError(f"--image-size {settings.image_size} must be a multiple of the masked unit, {config.stride} px")
    return config


def check_microsoft(checkout: str | None) -> None:
    if checkout is not None and not Path(checkout, "models", "simmim.py").is_file():
        raise UserError(
            f"--microsoft {checkout}: no models/simmim.py there; "
            "name the folder of a checkout of github.com/microsoft/SimMIM, or of microsoft/Swin-Transformer for Swin V2"
        )


def checked_device(name: str) -> torch.device:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device {name!r} must be cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here; use cpu")
    return device


def row_name(system: str, mode: Mode) -> str:
    return system if mode == "eager" else f"{system} {mode}"
