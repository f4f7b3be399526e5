"""The cost of attention in windows and over all tokens against the size of the image: `tools.bench scaling`.

A layer is attention with its norm, of one width C on one grid of h x w tokens: ours in shifted windows of M x M tokens,
and timm's over all tokens, with torch's fused kernel and without. The Swin paper (arXiv 2103.14030, section 3.1) counts
their multiply-adds:

    in windows    4hwC^2 + 2M^2hwC     linear in the number of tokens
    over all      4hwC^2 + 2(hw)^2C    quadratic

Besides, two whole networks: the Swin, and a ViT whose layers are all like the Swin's stage of stride 16. A point is the
forward and backward of one image in a process of its own, as a high-water mark of memory never falls.
"""

import json
import math
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from swin_mim.architecture import SwinConfig, as_pair, nearest_multiple
from swin_mim.cli.options import text_stream, write_json
from swin_mim.errors import UserError
from swin_mim.models.blocks.v1 import WindowAttention
from swin_mim.models.blocks.window_attention import Backend, resolve_backend
from swin_mim.models.swin import Swin, initialise
from tools.bench.memory import resident_peak_gb
from tools.bench.report import describe, number, print_machine, print_table
from tools.bench.settings import FIT_FROM, LAYERS, Precision, ScalingSettings, check
from tools.bench.timing import Failed, attempt, autocast, seconds_per_call, synchronize, times
from tools.clone import environment

START_SECONDS = 60
"""That a process may take besides its calls."""
WARM = 64
"""Pixels of the image before the one that counts: what libraries allocate once is no memory of a layer."""
VIT_STAGE = 2
"""The stage of the Swin that every layer of the ViT is like."""


# The command.


def scaling(settings: ScalingSettings) -> None:
    """Measure every series from the smallest image to the largest, print the tables, and write the JSON as it grows."""
    out = text_stream(settings.json)
    settings = replace(settings, image_sizes=tuple(sorted(settings.image_sizes)))
    report = describe(settings, check_scaling(settings)) | {"points": [], "exponents": {}}
    print_machine(report, out)
    for series in settings.series:
        points: list[dict[str, Any]] = []
        for size in settings.image_sizes:
            print(f"{series}, {size} px ...", file=sys.stderr, flush=True)
            points.append(point(series, size, points, settings))
            report["points"].append(points[-1])
            if settings.json != "-":
                write_json(report, settings.json)
        report["exponents"][series] = exponents(points)
        print_series(points, report["exponents"][series], settings, out)
    print_legend(out)
    write_json(report, settings.json)


def check_scaling(settings: ScalingSettings) -> torch.device:
    device = check(settings)
    multiple = config_of(settings.image_sizes[0], settings).patch_size * settings.window_size
    for size in settings.image_sizes:
        if size % multiple:
            raise UserError(
                f"--image-sizes {size} must be a multiple of {multiple}, the patch times --window-size, so that no "
                f"window is padded: use {nearest_multiple(size, multiple)}"
            )
    return device


def config_of(size: int, settings: ScalingSettings) -> SwinConfig:
    return SwinConfig.named(settings.model, image_size=size, window_size=settings.window_size)


# What it should cost.


def multiply_adds(series: str, config: SwinConfig) -> int:
    """Of the forward pass of one image: a layer's by the formula, a network's as torch counts them."""
    tokens, channels = math.prod(config.stage_grid(0)), config.embed_dim
    if series == "window":
        return window_multiply_adds(tokens, channels, math.prod(as_pair(config.window_size)))
    return global_multiply_adds(tokens, channels) if series in LAYERS else counted(series, config)


def window_multiply_adds(tokens: int, channels: int, window_tokens: int) -> int:
    """4hwC^2 + 2M^2hwC, of hw tokens in windows of M^2."""
    return 4 * tokens * channels**2 + 2 * window_tokens * tokens * channels


def global_multiply_adds(tokens: int, channels: int) -> int:
    """4hwC^2 + 2(hw)^2C, of hw tokens."""
    return 4 * tokens * channels**2 + 2 * tokens**2 * channels


def counted(series: str, config: SwinConfig) -> int:
    """Multiply-adds of the forward pass by torch's counter. Computes and allocates nothing."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        without_fused_attention(model_of(series, config, "reference"))(torch.empty(shape_of(series, config)))
    return counter.get_total_flops() // 2


# What is measured.


def model_of(series: str, config: SwinConfig, attention: Backend = "auto") -> nn.Module:
    """A layer or network on torch's default device. `attention`: backend of ours."""
    if series == "window":
        return WindowLayer(config, attention)
    if series == "swin":
        return Swin(config, attention=attention)
    return vit(config) if series == "vit" else global_layer(config, fused=series == "global")


class WindowLayer(nn.Module):
    """The attention of a shifted block of ours in the first stage, which does its norm too."""

    def __init__(self, config: SwinConfig, attention: Backend) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.embed_dim)
        self.attn = WindowAttention(config, 0, shifted=True, backend=attention)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        return self.attn(x, self.norm)


def global_layer(config: SwinConfig, *, fused: bool) -> nn.Module:
    """timm's attention as in its ViT, behind a norm. (B, hw, C) -> (B, hw, C)."""
    from timm.layers import Attention

    layer = Attention(config.embed_dim, config.num_heads[0], qkv_bias=True)
    return nn.Sequential(nn.LayerNorm(config.embed_dim), layer if fused else without_fused_attention(layer))


def vit(config: SwinConfig) -> nn.Module:
    """timm's ViT with the patch, width and heads of the Swin's stage of stride 16, and as many blocks as the Swin."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=as_pair(config.image_size),
        patch_size=config.patch_size * 2**VIT_STAGE,
        embed_dim=config.stage_dim(VIT_STAGE),
        depth=sum(config.depths),
        num_heads=config.num_heads[VIT_STAGE],
        num_classes=0,
        class_token=False,
        global_pool="avg",
        dynamic_img_size=True,
    )


def without_fused_attention(model: nn.Module) -> nn.Module:
    """The same, with timm's attention in plain operations, which keep all scores."""
    module: Any
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def shape_of(series: str, config: SwinConfig) -> tuple[int, ...]:
    """Of the input: one image, or its tokens."""
    grid = config.stage_grid(0)
    if series == "window":
        return 1, *grid, config.embed_dim
    return (1, math.prod(grid), config.embed_dim) if series in LAYERS else (1, 3, *as_pair(config.image_size))


# One point.


def point(series: str, size: int, smaller: Sequence[dict[str, Any]], settings: ScalingSettings) -> dict[str, Any]:
    """What the JSON says of one size, after those of the smaller ones."""
    config = config_of(size, settings)
    work = multiply_adds(series, config)
    head = {"series": series, "image_size": size, "tokens": math.prod(config.stage_grid(0)), "multiply_adds": work}
    reason = reason_to_stop(work, smaller, settings.max_seconds)
    seen = Failed(reason) if reason else in_a_process(series, size, settings)
    return head | ({"not_measured": seen.reason} if isinstance(seen, Failed) else seen)


def reason_to_stop(work: int, smaller: Sequence[dict[str, Any]], max_seconds: float) -> str | None:
    """Why a point is not tried: a smaller one was not measured, or by the time of the last one it takes too long."""
    if not smaller:
        return None
    last = smaller[-1]
    if "not_measured" in last:
        return f"as {last['image_size']} px was not"
    expected = last["seconds"] * work / last["multiply_adds"]
    return f"about {expected:.0f} s, over --max-seconds {max_seconds:g}" if expected > max_seconds else None


def in_a_process(series: str, size: int, settings: ScalingSettings) -> dict[str, Any] | Failed:
    """What `measure` finds in a process that does nothing else."""
    order = json.dumps({"series": series, "size": size, "settings": asdict(settings)})
    command = [sys.executable, "-c", "from tools.bench.commands.scaling import obey; obey()"]
    limit = START_SECONDS + 2 * settings.max_seconds  # all calls together take one, or the only one is slower than that
    try:
        done = subprocess.run(command, env=environment(), input=order, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return Failed(f"over {limit:.0f} s, by --max-seconds {settings.max_seconds:g}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Failed(f"its process failed: {last}")
    seen = json.loads(done.stdout)
    return Failed(seen["not_measured"]) if "not_measured" in seen else seen


def obey() -> None:
    """Be such a process: the order on the input, the result on the output."""
    order = json.load(sys.stdin)
    # JSON knows no tuples
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in order["settings"].items()}
    settings = ScalingSettings(**values)
    limit_memory(settings)
    seen = attempt(partial(measure, order["series"], order["size"], settings))
    if isinstance(seen, Failed):
        seen = {"not_measured": f"over --max-gb {settings.max_gb:g}"}  # any other error has ended this process
    print(json.dumps(seen))


def limit_memory(settings: ScalingSettings) -> None:
    """Let allocations fail, before the system has to choose a process to end."""
    size = int(settings.max_gb * 1e9)
    if settings.device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    else:
        device = torch.device(settings.device)
        there = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, size / there), device)


def measure(series: str, size: int, settings: ScalingSettings) -> dict[str, Any]:
    """Seconds and memory of a forward and backward of one image, and the kernel of the attention."""
    device, config = check(settings), config_of(size, settings)
    torch.manual_seed(0)
    with device:
        model = model_of(series, config).train()
        warm, images = (torch.randn(shape_of(series, replace(config, image_size=side))) for side in (WARM, size))
    for x in (warm, images):
        x.requires_grad_(series in LAYERS)  # as inside a network; an image needs none
    forward_backward(model, warm, settings.precision)
    before = peak_gb(device)
    call = partial(forward_backward, model, images, settings.precision)
    with FusedAttention() as fused:
        seconds = [seconds_per_call(call, 1, device)]
    while len(seconds) <= settings.repeats and sum(seconds) + seconds[-1] < settings.max_seconds:
        seconds.append(seconds_per_call(call, 1, device))
    taken = times(seconds[1:] or seconds)  # the first is slower, which does not matter where it takes minutes
    return {
        "seconds": taken.median,
        "spread": taken.spread,
        "repeats": taken.seconds,
        "memory_gb": peak_gb(device) - before,
        "kernel": own_kernel(config, settings, device) if series in ("window", "swin") else fused.text(),
    }


def forward_backward(model: nn.Module, x: Tensor, precision: Precision) -> None:
    with autocast(x.device, precision):
        y = model(x)
    y.backward(torch.ones_like(y))
    x.grad = None
    model.zero_grad()


def peak_gb(device: torch.device) -> float:
    """The most memory until now: of the process, on a GPU of its tensors."""
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else resident_peak_gb()


def own_kernel(config: SwinConfig, settings: ScalingSettings, device: torch.device) -> str:
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    return resolve_backend(
        "auto", device, math.prod(config.stage_window(0)), config.embed_dim // config.num_heads[0], dtype
    )


class FusedAttention(TorchDispatchMode):
    """Notes which of torch's fused attentions are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if "scaled_dot_product" in name and not name.endswith("backward"):
            self.names.add(name)
        return func(*args, **(kwargs or {}))

    def text(self) -> str:
        return ", ".join(sorted(self.names)) or "plain operations"


# The report.


def exponents(points: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """How each quantity grows: the slopes of their logarithms over that of the tokens, from `FIT_FROM` pixels on.

    None with fewer than two points.
    """
    fitted = [p for p in points if p["image_size"] >= FIT_FROM and "seconds" in p]
    if len(fitted) < 2:
        return None
    tokens = [math.log(p["tokens"]) for p in fitted]
    slopes = {
        name: statistics.linear_regression(tokens, [math.log(p[name]) for p in fitted]).slope
        for name in ("multiply_adds", "seconds", "memory_gb")
    }
    return slopes | {"points": len(fitted)}


TITLES = {
    "window": "attention in windows: a layer of swin_mim",
    "global": "attention over all tokens: a layer of timm",
    "global-plain": "attention over all tokens: a layer of timm without the fused kernel",
    "swin": "a whole Swin of swin_mim",
    "vit": "a whole ViT of timm",
}
COLUMNS = ("image px", "tokens", "10^9 multiply-adds", "s", "spread", "repeats", "GB", "GFLOP/s")


def print_series(
    points: Sequence[dict[str, Any]], grown: dict[str, float] | None, settings: ScalingSettings, out: TextIO
) -> None:
    series = points[0]["series"]
    kernel = next((p["kernel"] for p in points if "kernel" in p), None)
    print(f"\n{TITLES[series]}, {what(series, settings)}" + (f"; kernel: {kernel}" if kernel else ""), file=out)
    rows: list[Sequence[str]] = []
    for p in points:
        name, cells = str(p["image_size"]), [str(p["tokens"]), f"{p['multiply_adds'] / 1e9:.3f}"]
        if "not_measured" in p:
            rows.append([name, f"{'  '.join(cells)}  not measured: {p['not_measured']}"])
            continue
        # two operations a multiply-add, and twice as many in the backward pass
        rate = 6 * p["multiply_adds"] / p["seconds"] / 1e9
        cells += [f"{p['seconds']:.4f}", f"{p['spread']:.0%}", str(len(p["repeats"]))]
        rows.append([name, *cells, f"{p['memory_gb']:.3f}", f"{rate:.1f}"])
    print_table(COLUMNS, rows, out)
    powers = (number(grown[name] if grown else None, ".2f") for name in ("multiply_adds", "seconds", "memory_gb"))
    words = "multiply-adds {}, seconds {}, memory {}".format(*powers)
    print(f"grow with the number of tokens to the power of, from {FIT_FROM} px on: {words}", file=out, flush=True)


def what(series: str, settings: ScalingSettings) -> str:
    config = config_of(settings.image_sizes[0], settings)
    window = f", windows of {settings.window_size} x {settings.window_size}"
    if series in LAYERS:
        text = f"C = {config.embed_dim}, {config.num_heads[0]} heads"
        return text + window if series == "window" else text
    if series == "swin":
        return settings.model + window
    return (
        f"{sum(config.depths)} blocks, C = {config.stage_dim(VIT_STAGE)}, {config.num_heads[VIT_STAGE]} heads, patch "
        f"{config.patch_size * 2**VIT_STAGE}"
    )


def print_legend(out: TextIO) -> None:
    print(
        "\ntokens: those of the first stage. multiply-adds: of a forward pass, of a layer 4hwC^2 + 2M^2hwC in windows "
        "and 4hwC^2 + 2(hw)^2C over all tokens, of a network as torch counts them. s: forward and backward of one "
        "image, median of the repeats. GB: what they add to the peak of the process. GFLOP/s: 6 a multiply-add.",
        file=out,
    )
