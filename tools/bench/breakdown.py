"""Where a step of ours goes: each part of the model timed alone, forward and backward, against its roofline.

A part is a real module of the model with inputs of the shape and type that it gets in a step, times the number of its
occurrences. What the step takes beyond the sum (residual additions, sums of gradients, casts, waits) is the rest; it is
negative where the parts together are faster than one by one. The MLP of V1 has its norm with it; the others are a part
of their own, though a layer may do them on its way. What V2 does to make cosines and the position bias is in its window
attention.

Bytes are the minimum that a part must move: its input, output and weights once in the forward pass, and these and their
gradients once in the backward pass; what it makes in between could stay on the chip.
"""

import copy
import inspect
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from swin_mim.models.blocks import v1, v2
from swin_mim.models.simmim import SimMIM
from swin_mim.models.swin import Block, PatchMerging, Stage
from tools.bench.ceilings import Ceilings
from tools.bench.report import print_table
from tools.bench.settings import MAX_GRAD_NORM, Mode, ModelSettings, StepSettings, cells_of
from tools.bench.timing import autocast, seconds_per_call, times

OPTIMIZER_BYTES = 8 * 4
"""Bytes of AdamW and the clipping for each parameter: weight, gradient and two moments read, all but the gradient
written, and the gradient read once before for its norm."""


@dataclass(frozen=True)
class Part:
    name: str
    stage: int | None
    """From 0; None: there is one for the whole model."""
    count: int
    """How often it occurs in a step."""
    module: nn.Module
    """Takes one tensor."""
    input: Tensor
    """Has the shape and type that it has in a step; it may hold anything."""
    needs_gradient: bool = True
    """Whether the input needs a gradient."""


@dataclass(frozen=True)
class Cost:
    """Cost of all occurrences of a part in one step, forward and backward."""

    seconds: float
    flops: int
    bytes: int


def breakdown(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    settings: StepSettings,
    mode: Mode,
    step_seconds: float,
    ceilings: Ceilings,
) -> dict[str, Any]:
    """What the JSON says: every part of the places that are asked for, the sums over the stages by time, and the rest.

    Args:
        batch: images (B, C, H, W) and mask (B, h, w).
        step_seconds: of the whole step in this mode, as it was measured.
    """
    assert isinstance(model, SimMIM)
    with autocast(batch[0].device, settings.precision):
        parts = list(parts_of(model, batch))
    costs = [
        (
            named(part),
            Cost(seconds_of(part, settings, mode), flops_of(twin), part.count * bytes_of(part, settings.precision)),
        )
        for part, twin in zip(parts, meta_parts(model, batch), strict=True)
        if place_of(part) in settings.places
    ]
    update = Part("optimizer, clip", None, 1, model, batch[0])
    if place_of(update) in settings.places:
        costs.append((named(update), optimizer_cost(model, optimizer, settings.repeats)))
    return {"places": list(settings.places), **summed(costs, step_seconds, ceilings)}


def place_of(part: Part) -> str:
    """One of `PLACES`."""
    return "rest" if part.stage is None else f"stage{part.stage + 1}"


def named(part: Part) -> dict[str, Any]:
    return {"part": part.name, "stage": part.stage, "count": part.count}


def summed(costs: Sequence[tuple[Mapping[str, Any], Cost]], step_seconds: float, ceilings: Ceilings) -> dict[str, Any]:
    by_name: dict[str, list[Cost]] = defaultdict(list)
    by_stage: list[dict[str, Any]] = []
    for about, cost in costs:
        by_name[about["part"]].append(cost)
        by_stage.append({**about, **judged(cost, step_seconds, ceilings)})
    together = {name: judged(added(members), step_seconds, ceilings) for name, members in by_name.items()}
    rest = step_seconds - sum(part["seconds"] for part in together.values())
    return {
        "step_seconds": step_seconds,
        "parts": dict(sorted(together.items(), key=lambda entry: -entry[1]["seconds"])),
        "rest": {"seconds": rest, "share_of_step": rest / step_seconds},
        "by_stage": sorted(by_stage, key=lambda row: -row["seconds"]),
    }


def joined(pieces: Sequence[tuple[Mapping[str, Any], Ceilings]]) -> dict[str, Any]:
    """One breakdown of several of different places of the same model, each with the ceilings that it was held against.

    The step is the median of theirs, a ceiling the highest.
    """
    first, _ = pieces[0]
    costs = [
        ({key: row[key] for key in ("part", "stage", "count")}, Cost(row["seconds"], row["flops"], row["bytes"]))
        for piece, _ in pieces
        for row in piece["by_stage"]
    ]
    step_seconds = statistics.median(piece["step_seconds"] for piece, _ in pieces)
    matmul = max((ceilings for _, ceilings in pieces), key=lambda ceilings: ceilings.matmul_tflops)
    ceilings = matmul._replace(copy_gb_per_second=max(ceilings.copy_gb_per_second for _, ceilings in pieces))
    places = [place for piece, _ in pieces for place in piece["places"]]
    about = {"mode": first["mode"], "batch": first["batch"], "places": places}
    return {**about, **summed(costs, step_seconds, ceilings)}


def judged(cost: Cost, step_seconds: float, ceilings: Ceilings) -> dict[str, float]:
    roofline = ceilings.seconds(cost.flops, cost.bytes)
    return {
        **asdict(cost),
        "tflops": cost.flops / cost.seconds / 1e12,
        "gb_per_second": cost.bytes / cost.seconds / 1e9,
        "roofline_seconds": roofline,
        "share_of_roofline": roofline / cost.seconds,
        "share_of_step": cost.seconds / step_seconds,
    }


def added(costs: list[Cost]) -> Cost:
    return Cost(*(sum(values) for values in zip(*map(astuple, costs), strict=True)))


# The parts.


def parts_of(model: SimMIM, batch: tuple[Tensor, Tensor]) -> Iterator[Part]:
    """All parts of a step but the optimizer. Together they hold every parameter."""
    images, _ = batch
    encoder, calls = model.encoder, calls_in(model, batch)
    yield Part("patch embedding, mask", None, 1, Embedding(model, batch), images, needs_gradient=False)
    for number, stage in enumerate(encoder.layers):
        assert isinstance(stage, Stage)
        if isinstance(stage.downsample, PatchMerging):
            yield called("patch merging", number, 1, stage.downsample, calls)
        blocks = [block for block in stage.blocks if isinstance(block, Block)]
        depth, first = len(blocks), blocks[0]
        yield called("qkv", number, depth, first.attn.qkv, calls)
        for parity, block in enumerate(blocks[:2]):  # every other one is shifted
            projected = calls[block.attn.qkv].output
            count = len(blocks[parity::2])
            yield Part("window attention", number, count, without_projections(block.attn), projected)
        yield called("proj", number, depth, first.attn.proj, calls)
        yield called("MLP", number, depth, first.mlp, calls)
        yield norms(number, blocks, calls)
    yield called("norms", None, 1, encoder.norm, calls)
    yield Part("decoder, loss", None, 1, Decoding(model, batch), calls[encoder.norm].output)


class Call(NamedTuple):
    """What a module got and gave: tensors like them, with other contents."""

    input: Tensor
    further: tuple[Any, ...]
    """Arguments besides the input, such as a norm to be applied to it."""
    output: Tensor


def calls_in(model: SimMIM, batch: tuple[Tensor, Tensor]) -> dict[nn.Module, Call]:
    """The modules below that were called with a tensor, in one forward pass."""
    calls: dict[nn.Module, Call] = {}

    def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
        if given and isinstance(given[0], Tensor) and isinstance(result, Tensor):
            calls[module] = Call(empty_like(given[0]), (*given[1:], *named.values()), empty_like(result))

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in model.modules()]
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model(*batch)
    for hook in hooks:
        hook.remove()
    return calls


def called(name: str, stage: int | None, count: int, module: nn.Module, calls: Mapping[nn.Module, Call]) -> Part:
    """A part that is the module as the model calls it."""
    call = calls[module]
    normed = any(isinstance(each, nn.LayerNorm) for each in call.further)
    whole = OfOneTensor(module, call.further) if call.further else module
    return Part(f"norm, {name}" if normed else name, stage, count, whole, call.input)


def norms(stage: int, blocks: Sequence[Block], calls: Mapping[nn.Module, Call]) -> Part:
    """Of the blocks of a stage: in V1 those in front of the attention, in V2 all, which are alike."""
    first = blocks[0]
    if isinstance(first, v1.Block):
        return Part("norms", stage, len(blocks), first.norm1, calls[first.attn].input)
    count = sum(isinstance(module, nn.LayerNorm) for block in blocks for module in block.children())
    return called("norms", stage, count, first.norm1, calls)


def empty_like(x: Tensor) -> Tensor:
    """Without memory, until it is used."""
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def meta_parts(model: SimMIM, batch: tuple[Tensor, Tensor]) -> list[Part]:
    """The same parts of the same model with the reference attention, where nothing is computed."""
    with torch.device("meta"):
        twin = SimMIM(model.encoder.config, target=model.target, attention="reference")
        return list(parts_of(twin, (batch[0].to("meta"), batch[1].to("meta"))))


class Embedding(nn.Module):
    """What a SimMIM does before its encoder's blocks."""

    def __init__(self, model: SimMIM, batch: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.patch_embed, self.mask_token = model.encoder.patch_embed, model.mask_token
        self.mask = nn.Buffer(batch[1])

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(images)
        return torch.where(self.mask[..., None], self.mask_token.to(tokens.dtype), tokens)


class Decoding(nn.Module):
    """What a SimMIM does after its encoder: the model itself, which is handed the features of the last stage."""

    def __init__(self, model: SimMIM, batch: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.decoder = model.decoder
        alone = with_children(model)
        alone.__dict__["encode"] = lambda *_: [self.features]
        self.__dict__["model"] = alone  # not registered: its encoder and mask token are no part of it
        self.images, self.mask = nn.Buffer(batch[0]), nn.Buffer(batch[1])
        self.cells = cells_of(model.encoder.config)

    def forward(self, features: Tensor) -> Tensor:
        self.features = features
        return self.__dict__["model"](self.images, self.mask, self.cells).loss


class OfOneTensor(nn.Module):
    """A module with its further arguments."""

    def __init__(self, module: nn.Module, further: tuple[Any, ...]) -> None:
        super().__init__()
        self.module, self.further = module, further
        self.others = nn.ModuleList(each for each in further if isinstance(each, nn.Module))  # their parameters count

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x, *self.further)


def without_norm(module: nn.Module) -> OfOneTensor:
    """A module whose further arguments do nothing: its input is normed already, and all cells are wanted."""
    _, *further = inspect.signature(module.forward).parameters
    return OfOneTensor(module, tuple(nn.Identity() if name == "norm" else None for name in further))


def without_projections(attention: v1.WindowAttention | v2.WindowAttention) -> nn.Module:
    """The window attention between its two projections: (B, h, w, 3D) -> (B, h, w, D), by the module's own code."""
    if isinstance(attention, v2.WindowAttention):
        return Attending(with_children(attention, qkv=nn.Identity(), proj=nn.Identity()))
    return without_norm(with_children(attention, qkv=Through(attention.qkv.bias), proj=nn.Identity()))


class Attending(nn.Module):
    """Window attention of V2 on what its first projection gave, the bias included."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, qkv: Tensor) -> Tensor:
        attention: Any = self.attention
        return attention.attend(qkv, attention._bias())


class Through(nn.Module):
    """In the place of a projection whose result is already there. Its bias is what padded positions hold."""

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.__dict__["bias"] = bias  # not registered: it belongs to the projection

    def forward(self, x: Tensor, *further: Any) -> Tensor:
        return x


def with_children(module: nn.Module, **children: nn.Module) -> nn.Module:
    """A copy that shares everything with the module but these children."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **children}
    return twin


# What a part costs.


def seconds_of(part: Part, settings: ModelSettings, mode: Mode) -> float:
    """Seconds of all its occurrences in a step."""
    device = next(part.module.parameters()).device
    x = real(part, device)
    torch.compiler.reset()  # one piece of code for all stages would pass the limit of recompilations
    module: Any = torch.compile(part.module, dynamic=False) if mode == "compiled" else part.module
    run = partial(forward_backward, module, x, settings.precision)
    run()
    calls = 10 if device.type == "cuda" else 1
    return part.count * times([seconds_per_call(run, calls, device) for _ in range(settings.repeats)]).median


def forward_backward(module: nn.Module, x: Tensor, precision: str) -> None:
    """All gradients, for one of what comes out: any other would have to be made."""
    wanted = [*module.parameters(), *([x] if x.requires_grad else [])]
    with autocast(x.device, precision):  # each time anew, because it keeps the weights that it has cast
        y = module(x)
    torch.autograd.grad(y, wanted, y.detach())


def real(part: Part, device: torch.device) -> Tensor:
    if part.input.device.type == "meta" and device.type != "meta":
        x = torch.randn(part.input.shape, device=device).to(part.input.dtype)
    else:
        x = part.input
    return x.detach().requires_grad_(part.needs_gradient)


def flops_of(part: Part) -> int:
    """FLOPs of all its occurrences in a step; of a part on the meta device."""
    x = part.input.detach().requires_grad_(part.needs_gradient)
    with FlopCounterMode(display=False) as counter:
        out = part.module(x)
        out.backward(torch.ones_like(out))
    return part.count * counter.get_total_flops()


def bytes_of(part: Part, precision: str) -> int:
    """Min of one occurrence."""
    device = next(part.module.parameters()).device
    with torch.no_grad(), autocast(device, precision):
        result = part.module(real(part, device))
    weights = sum(p.nbytes for p in part.module.parameters())
    given = part.input.nbytes
    forward = given + weights + result.nbytes
    backward = result.nbytes + given + 2 * weights + (given if part.needs_gradient else 0)
    return forward + backward


def optimizer_cost(model: nn.Module, optimizer: torch.optim.Optimizer, repeats: int) -> Cost:
    """With gradients of zeros."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    device = parameters[0].device

    def update() -> None:
        nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()

    update()
    calls = 10 if device.type == "cuda" else 1
    seconds = times([seconds_per_call(update, calls, device) for _ in range(repeats)]).median
    optimizer.zero_grad()
    return Cost(seconds, 0, OPTIMIZER_BYTES * sum(p.numel() for p in parameters))


# The table.

COLUMNS = ("part", "ms", "of step", "TFLOP/s", "GB/s", "roofline ms", "of roofline")


def print_breakdown(found: Mapping[str, Any], out: TextIO) -> None:
    print(f"\nwhere a step of ours goes, {found['mode']}, batch {found['batch']}", file=out)
    rows = [cells(name, judgement) for name, judgement in found["parts"].items()]
    rest = found["rest"]
    rows.append(["rest", f"{1e3 * rest['seconds']:.2f}", f"{rest['share_of_step']:.1%}", *["-"] * 4])
    rows.append(["step", f"{1e3 * found['step_seconds']:.2f}", f"{1:.1%}", *["-"] * 4])
    print_table(COLUMNS, rows, out)
    largest = found["by_stage"][:8]
    print("\nthe largest of single stages", file=out)
    rows = [cells(f"{row['part']}, {stage_text(row['stage'])} ({row['count']})", row) for row in largest]
    print_table(COLUMNS, rows, out)


def stage_text(stage: int | None) -> str:
    return "whole model" if stage is None else f"stage {stage + 1}"


def cells(name: str, judgement: Mapping[str, float]) -> list[str]:
    return [
        name,
        f"{1e3 * judgement['seconds']:.2f}",
        f"{judgement['share_of_step']:.1%}",
        f"{judgement['tflops']:.3f}",
        f"{judgement['gb_per_second']:.1f}",
        f"{1e3 * judgement['roofline_seconds']:.2f}",
        f"{judgement['share_of_roofline']:.0%}",
    ]
