"""The losses of one training whose JPEGs are decoded smaller where that is enough, and whole: `tools.bench decoders`.

For each seed both trainings begin with the same weights and see the same images, crops, flips and masks; only pixels
differ. What that changes is held against what another seed changes, which has other weights, order, crops and masks.
Afterwards both models are tried on the same held-out images, decoded whole.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import combinations, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from PIL import Image
from torch import Tensor

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.cli.options import text_stream, write_json
from swin_mim.data.decoding.rgb import decoder_text
from swin_mim.data.loading.loader import Batch, LoaderOptions, TrainingLoader, heldout_batches
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.open import open_source
from swin_mim.data.transforms.crops import EvaluationTransform, PretrainTransform, normalize
from swin_mim.errors import UserError
from swin_mim.masking import block_mask
from swin_mim.models.simmim import SimMIM
from tools.bench.commands.loader import MEAN, STD
from tools.bench.images import make_images, sizes_text
from tools.bench.peers import System
from tools.bench.report import describe, print_machine, print_table
from tools.bench.settings import MASK_RATIO, DecoderSettings, check, check_model
from tools.bench.timing import autocast
from tools.bench.training import enter, train_step

HELDOUT = 64
SMOOTH = 50
"""Steps over which a loss is averaged before it is compared: masks and images make a single one jump."""


class Whole(Source):
    """A source that decodes whole images only."""

    def __init__(self, source: Source) -> None:
        self._source, self.fingerprint = source, source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def image(self, index: int) -> Image.Image:
        return self._source.image(index)

    def inventory(self) -> Iterator[tuple[str, int]]:
        return self._source.inventory()


DECODERS: dict[str, Callable[[Source], Source]] = {"smaller": lambda source: source, "whole": Whole}


class Run(NamedTuple):
    losses: list[float]
    """Before each step."""
    heldout: float
    """After the last one."""


def decoders(settings: DecoderSettings) -> None:
    """Train with each decoder and seed, print how far the losses differ, and write the JSON."""
    out = text_stream(settings.json)
    device, config = check(settings), check_model(settings)
    if settings.steps < SMOOTH:
        raise UserError(f"--steps {settings.steps} must be at least {SMOOTH}, over which losses are averaged")
    report = describe(settings, device) | {"decoder": decoder_text()}
    print_machine(report, out)
    print(f"images    {settings.images} crops of Blue Marble, {sizes_text()}; {report['decoder']}", file=out)
    sizes = f"{settings.image_size} px, {settings.steps} steps of {settings.batch[0]}, {settings.precision}"
    print(f"training  {settings.model}, {sizes}\n", file=out, flush=True)
    with tempfile.TemporaryDirectory() as made:
        source = open_source(str(make_images(Path(made), settings.images)))
        train, held = source.split(HELDOUT, seed=0)
        runs = {
            (name, seed): training(config, opens(train), held, seed, settings, device)
            for seed in settings.seeds
            for name, opens in DECODERS.items()
        }
    report |= {"runs": [{"decoder": name, "seed": seed} | run._asdict() for (name, seed), run in runs.items()]}
    report |= {"differences": differences(runs, settings.seeds)}
    print_runs(report, out)
    write_json(report, settings.json)


def training(
    config: SwinConfig, train: Source, held: Source, seed: int, settings: DecoderSettings, device: torch.device
) -> Run:
    torch.manual_seed(seed)
    model = SimMIM(config).to(device).train()
    contestant = enter(System(model, lambda images, mask: model(images, mask).loss), "eager")
    size, transform = settings.batch[0], PretrainTransform(as_pair(config.image_size))
    options = LoaderOptions(workers=settings.workers)
    loader = TrainingLoader(train, transform, seed=seed, global_batch=size, micro_batch=size, options=options)
    with closing(loader.batches(0)) as batches:  # type: ignore[type-var]
        losses = [
            train_step(contestant, on_device(batch, config, seed, device), settings.precision)
            for batch in islice(batches, settings.steps)
        ]
    return Run(torch.stack(losses).tolist(), heldout_loss(model, config, held, settings, device))


@torch.no_grad()
def heldout_loss(
    model: SimMIM, config: SwinConfig, held: Source, settings: DecoderSettings, device: torch.device
) -> float:
    """The mean over held-out images, decoded whole, with the same masks for every model."""
    model.eval()
    transform = EvaluationTransform(as_pair(config.image_size))
    total = 0.0
    for batch in heldout_batches(held, transform, settings.batch[0]):
        with autocast(device, settings.precision):
            loss = model(*on_device(batch, config, 0, device)).loss
        total += loss.item() * len(batch.images)
    return total / len(held)


def on_device(batch: Batch, config: SwinConfig, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W), normalised, and the masks (B, h, w) of their positions."""
    unit = config.stride // config.patch_size
    mask = block_mask(len(batch.images), config.stage_grid(0), unit, MASK_RATIO, seed=seed, start=batch.start)
    return normalize(batch.images.to(device), MEAN, STD), mask.to(device)


# The comparison.


def differences(runs: Mapping[tuple[str, int], Run], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Differences between decoders with each seed, and between seeds with each decoder."""
    pairs = [((first, seed), (second, seed)) for seed in seeds for first, second in combinations(DECODERS, 2)]
    pairs += [((name, one), (name, other)) for name in DECODERS for one, other in combinations(seeds, 2)]
    return [
        {"of": run_name(*one), "and": run_name(*other)} | difference(runs[one], runs[other]) for one, other in pairs
    ]


def run_name(decoder: str, seed: int) -> str:
    return f"{decoder}, seed {seed}"


def difference(one: Run, other: Run) -> dict[str, float]:
    """Differences of the smoothed losses: mean, max, and mean with its sign; of the held-out loss, with its sign."""
    apart = [a - b for a, b in zip(smooth(one.losses), smooth(other.losses), strict=True)]
    return {
        "mean": statistics.mean(map(abs, apart)),
        "max": max(map(abs, apart)),
        "signed_mean": statistics.mean(apart),
        "heldout": one.heldout - other.heldout,
    }


def smooth(losses: Sequence[float]) -> list[float]:
    """The mean of each `SMOOTH` steps in a row."""
    return [statistics.mean(losses[start : start + SMOOTH]) for start in range(len(losses) - SMOOTH + 1)]


def print_runs(report: Mapping[str, Any], out: TextIO) -> None:
    last = f"mean of the last {SMOOTH}"
    rows = [
        [run_name(run["decoder"], run["seed"]), f"{run['losses'][0]:.4f}", f"{smooth(run['losses'])[-1]:.4f}"]
        + [f"{run['heldout']:.4f}"]
        for run in report["runs"]
    ]
    print_table(("decoder", "first loss", last, "held out, whole"), rows, out)
    print(f"\nDifferences of the losses, each the mean of {SMOOTH} steps:\n", file=out)
    rows = [
        [f"{entry['of']} - {entry['and']}", f"{entry['mean']:.4f}", f"{entry['max']:.4f}"]
        + [f"{entry['signed_mean']:+.4f}", f"{entry['heldout']:+.4f}"]
        for entry in report["differences"]
    ]
    print_table(("between", "mean", "max", "mean with sign", "held out"), rows, out)
