"""A training step of our segmenter and detector, beside the same networks of others: `tools.bench dense`.

segment  UperNet with its auxiliary head: ours, and transformers' UperNetForSemanticSegmentation
detect   Mask R-CNN with a feature pyramid: ours, and torchvision's MaskRCNN on the stages of its own SwinTransformer

Forward, losses, backward, clipping at 5.0, AdamW. Both start from the same weights and get the same images and labels;
one whose losses or gradient are not ours does other work and is not timed. They take turns, repeat by repeat.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor, nn

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.cli.convert import libraries
from swin_mim.cli.convert.libraries import NotBuilt
from swin_mim.cli.options import text_stream, write_json
from swin_mim.errors import UserError
from swin_mim.hub import saved
from swin_mim.models.dense.detector import SwinDetector
from swin_mim.models.dense.segmenter import SwinSegmenter, segmentation_loss
from tools.bench.commands.step import Probe, probe
from tools.bench.peers import System, random_weights
from tools.bench.report import describe, number, print_machine, print_table
from tools.bench.settings import DenseSettings, check, check_model
from tools.bench.timing import Failed, attempt, seconds_per_call, take_turns, times
from tools.bench.training import Contestant, enter, train_step

CLASSES = {"segment": 150, "detect": 80}
"""As many as ADE20K and COCO have."""
OBJECTS = 8
"""In each image; COCO has 7 on average."""
TOLERANCE = Probe(loss=1e-4, gradient_norm=1e-2)
"""The largest relative differences that are rounding: a detector sums gradients of many overlapping boxes."""
Batch = tuple[Tensor, Tensor]


class Task(NamedTuple):
    build: Callable[[SwinConfig], tuple[System, Callable[[], System]]]
    """Ours, and what builds the other one with the same weights, which may raise NotBuilt or UserError."""
    peer: str
    batch: Callable[[SwinConfig, int, int], Batch]
    """Of a number of images, and a number of the repeat."""


def dense(settings: DenseSettings) -> None:
    """Measure, print a table for each task and batch size, and write the JSON."""
    out = text_stream(settings.json)
    device, config = check(settings), check_model(settings)
    report = describe(settings, device)
    print_machine(report, out)
    print(
        f"step      {settings.model}, {settings.image_size} px, window {settings.window_size}, {settings.precision}, "
        f"{settings.repeats} repeats",
        file=out,
        flush=True,
    )
    tables = []
    for name in settings.tasks:
        contestants, failed, probes = enter_both(TASKS[name], config, device)
        for batch in settings.batch:
            tables.append(measure(name, batch, contestants, settings, device))
            tables[-1] |= {
                "parity": {row: seen._asdict() for row, seen in probes.items()},
                "not_measured": {row: reason for row, (reason,) in failed.items()} | tables[-1]["not_measured"],
            }
            print_task(tables[-1], out)
    write_json(report | {"tasks": tables}, settings.json)
    print("\nimages/s and s/step: median of the repeats. spread: (slowest - fastest) / median.", file=out)


def enter_both(
    task: Task, config: SwinConfig, device: torch.device
) -> tuple[dict[str, Contestant], dict[str, Failed], dict[str, Probe]]:
    """Contestants with equal weights, why the other one is none, and what each computes."""
    ours, build_peer = task.build(config)
    systems, failed = {"ours": ours}, {}
    try:
        systems[task.peer] = build_peer()
    except (NotBuilt, UserError) as reason:  # it is not there, or cannot hold this network
        failed[task.peer] = Failed(str(reason))
    images, labels = (part.to(device) for part in task.batch(config, 2, 0))
    probes = {}
    for name, system in systems.items():
        system.model.to(device).train()
        probes[name] = probe(system, (images, labels))
    if task.peer in probes and (difference := other_work(probes[task.peer], probes["ours"])):
        failed[task.peer] = Failed(difference)
        del systems[task.peer]
    return {name: enter(system, "eager") for name, system in systems.items()}, failed, probes


def other_work(theirs: Probe, ours: Probe) -> str | None:
    """Why the other one computes something else, or None."""
    for quantity, a, b, tolerance in zip(Probe._fields, theirs, ours, TOLERANCE, strict=True):
        if not abs(a - b) <= tolerance * abs(b):
            return f"not the same work: {quantity} {a:.6f}, ours {b:.6f} with the same weights"
    return None


def measure(
    task: str, batch: int, contestants: Mapping[str, Contestant], settings: DenseSettings, device: torch.device
) -> dict[str, Any]:
    """What the JSON says of one task at one batch size."""
    config = check_model(settings)
    failed: dict[str, Failed] = {}
    for name, contestant in contestants.items():
        found = attempt(partial(steps, contestant, task, (config, batch, 0), settings, device, settings.warmup))
        if isinstance(found, Failed):
            failed[name] = found
    turns = {
        name: lambda repeat, contestant=contestant: steps(
            contestant, task, (config, batch, repeat), settings, device, settings.steps
        )
        for name, contestant in contestants.items()
        if name not in failed
    }
    seconds, later = take_turns(turns, settings.repeats)
    timed = {name: times(values) for name, values in seconds.items()}
    ours = timed.get("ours")
    results = {
        name: {
            "images_per_second": batch / seen.median,
            "times_as_fast_as_ours": ours and ours.median / seen.median,
            "seconds_per_step": seen.median,
            "seconds": seen.seconds,
            "spread": seen.spread,
            "parameters": sum(p.numel() for p in contestants[name].system.model.parameters()),
        }
        for name, seen in timed.items()
    }
    reasons = {name: reason for name, (reason,) in (failed | later).items()}
    return {"task": task, "batch": batch, "not_measured": reasons, "results": results}


def steps(
    contestant: Contestant,
    task: str,
    batch: tuple[SwinConfig, int, int],
    settings: DenseSettings,
    device: torch.device,
    count: int,
) -> float:
    """Seconds of one of so many steps."""
    images, labels = (part.to(device) for part in TASKS[task].batch(*batch))
    return (
        seconds_per_call(lambda: train_step(contestant, (images, labels), settings.precision), count, device)
        if count
        else 0.0
    )


def print_task(table: Mapping[str, Any], out: TextIO) -> None:
    parity = (f"{name} {seen['loss']:.6f} {seen['gradient_norm']:.6f}" for name, seen in table["parity"].items())
    print(f"\n{table['task']}, batch {table['batch']}", file=out)
    print(f"parity    loss and gradient norm with the same weights: {', '.join(parity)}", file=out)
    rows: list[Sequence[str]] = [
        [
            name,
            f"{seen['images_per_second']:.2f}",
            number(seen["times_as_fast_as_ours"], ".2f"),
            f"{seen['seconds_per_step']:.3f}",
            f"{seen['spread']:.0%}",
            f"{seen['parameters'] / 1e6:.2f}",
        ]
        for name, seen in table["results"].items()
    ]
    rows += [[name, f"not measured: {reason}"] for name, reason in table["not_measured"].items()]
    print_table(("system", "images/s", "of ours", "s/step", "spread", "M params"), rows, out)
    out.flush()


# The networks.


def encoder_weights(config: SwinConfig) -> dict[str, Tensor]:
    """Weights of a trained model's size under the names of a Swin."""
    weights = random_weights(config)
    return {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}


def segmenters(config: SwinConfig) -> tuple[System, Callable[[], System]]:
    """Ours with new heads, and transformers' with the same weights."""
    model = SwinSegmenter(config, CLASSES["segment"])
    model.encoder.load_state_dict(encoder_weights(config))
    weights = {name: value.clone() for name, value in model._tensors().items()}
    description = model.description()

    def build_peer() -> System:
        theirs = saved.to_theirs("transformers", description, weights)
        peer = libraries.build("transformers", description, theirs).model
        return System(peer, lambda images, labels: peer(images, labels=labels).loss)

    return System(model, lambda images, labels: segmentation_loss(model(images), labels)), build_peer


def labelled_pixels(config: SwinConfig, batch: int, repeat: int) -> Batch:
    """Images (B, C, H, W), and int64 (B, H, W): a class for every pixel."""
    generator = torch.Generator().manual_seed(repeat)
    size = as_pair(config.image_size)
    images = torch.randn(batch, config.in_channels, *size, generator=generator)
    return images, torch.randint(CLASSES["segment"], (batch, *size), generator=generator)


def detectors(config: SwinConfig) -> tuple[System, Callable[[], System]]:
    """Ours with new heads, and torchvision's with the same weights."""
    model = SwinDetector(config, CLASSES["detect"])
    model.encoder.load_state_dict(encoder_weights(config))

    def loss(images: Tensor, boxes: Tensor) -> Tensor:
        torch.manual_seed(0)  # which anchors and proposals are compared is drawn
        return summed(model(images, objects(boxes, images, first_class=0)))

    def build_peer() -> System:
        peer = torchvision_detector(model)

        def its_loss(images: Tensor, boxes: Tensor) -> Tensor:
            torch.manual_seed(0)
            return summed(peer(list(images), objects(boxes, images, first_class=1)))

        return System(peer, its_loss)

    return System(model, loss), build_peer


def summed(losses: Mapping[str, Tensor]) -> Tensor:
    """All losses of a detector, (): each is weighed 1."""
    return torch.stack(list(losses.values())).sum()


class TorchvisionStages(nn.Module):
    """The stages of torchvision's own Swin, a norm on each, and its feature pyramid."""

    def __init__(self, model: SwinDetector) -> None:
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        super().__init__()
        encoder, config = model.encoder, model.encoder.config
        weights = {name: value.clone() for name, value in encoder.state_dict().items()}
        theirs = saved.to_theirs("torchvision", encoder.description(), weights)
        swin: Any = libraries.build("torchvision", encoder.description(), theirs).model
        self.features: nn.Sequential = swin.features
        dims = [config.stage_dim(stage) for stage in range(config.num_stages)]
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        for norm, same in zip(self.norms, (*model.norms, encoder.norm), strict=True):
            norm.load_state_dict(same.state_dict())
        self.fpn = FeaturePyramidNetwork(dims, model.head_channels, LastLevelMaxPool())
        self.fpn.load_state_dict(model.fpn.state_dict())
        self.out_channels = model.head_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        embed, *rest = self.features.children()
        x, maps = embed(images), OrderedDict()
        for place, layer in enumerate(rest):
            x = layer(x)
            if place % 2 == 0:  # a merging stands between two stages
                stage = place // 2
                maps[str(stage)] = self.norms[stage](x).permute(0, 3, 1, 2)
        found: dict[str, Tensor] = self.fpn(maps)
        return found


def torchvision_detector(model: SwinDetector) -> nn.Module:
    """Mask R-CNN as torchvision builds it by itself, with the weights of ours."""
    from torchvision.models.detection import MaskRCNN

    config = model.encoder.config
    size = as_pair(config.image_size)
    peer = MaskRCNN(
        TorchvisionStages(model),
        num_classes=CLASSES["detect"] + 1,
        min_size=min(size),
        max_size=max(size),
        image_mean=[0.0] * config.in_channels,
        image_std=[1.0] * config.in_channels,
        rpn_anchor_generator=model.rpn.anchor_generator,
        _skip_resize=True,
    )
    peer.rpn.load_state_dict(model.rpn.state_dict())
    peer.roi_heads.load_state_dict(model.roi_heads.state_dict())
    built: nn.Module = peer
    return built


def boxed_images(config: SwinConfig, batch: int, repeat: int) -> Batch:
    """Images (B, C, H, W), and float (B, N, 4): left, top, right, bottom in pixels."""
    generator = torch.Generator().manual_seed(repeat)
    height, width = as_pair(config.image_size)
    images = torch.randn(batch, config.in_channels, height, width, generator=generator)
    sides = torch.tensor([width, height], dtype=torch.float32)
    start = torch.rand(batch, OBJECTS, 2, generator=generator) * 0.6
    extent = 0.1 + torch.rand(batch, OBJECTS, 2, generator=generator) * 0.3
    return images, torch.cat([start * sides, (start + extent) * sides], dim=2)


def objects(boxes: Tensor, images: Tensor, *, first_class: int) -> list[dict[str, Tensor]]:
    """The boxes of each image as objects that fill them, of classes from `first_class` on."""
    height, width = images.shape[2:]
    rows, columns = (torch.arange(side, device=images.device) + 0.5 for side in (height, width))
    left, top, right, bottom = (edge[..., None, None] for edge in boxes.unbind(2))
    inside = (rows[:, None] >= top) & (rows[:, None] < bottom) & (columns >= left) & (columns < right)
    labels = torch.arange(boxes.shape[1], device=images.device) % CLASSES["detect"] + first_class
    return [
        {"boxes": each, "labels": labels, "masks": masks.to(torch.uint8)}
        for each, masks in zip(boxes, inside, strict=True)
    ]


TASKS = {
    "segment": Task(segmenters, "transformers", labelled_pixels),
    "detect": Task(detectors, "torchvision", boxed_images),
}
