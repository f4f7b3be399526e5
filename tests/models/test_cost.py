"""The cost of a network as counted beside the real network."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from swin_mim.architecture import NAMED, SwinConfig, as_pair
from swin_mim.kernels.chunked_mlp import again
from swin_mim.kernels.product import onednn_is_faster
from swin_mim.masking import BlockMasks
from swin_mim.models.cost import (
    AUTOCAST,
    CPU_MKL,
    CPU_ONEDNN,
    FP32,
    HALF,
    Storage,
    kept_bytes,
    moments_of_backward,
    parameter_count,
    parts_of,
)
from swin_mim.models.simmim import SimMIM
from swin_mim.weights.heads import head_outputs

ODD: dict[str, Any] = {"embed_dim": 24, "depths": (1, 2, 3), "num_heads": (1, 2, 4), "mlp_ratio": 2.5, "patch_size": 2}
CONFIGS = [
    SwinConfig.named("swin_tiny", image_size=192, window_size=6),
    SwinConfig.named("swin_nano", image_size=(96, 160), window_size=(6, 5), in_channels=5),
    SwinConfig(72, window_size=7, qkv_bias=False, **ODD),
    SwinConfig.named("swinv2_tiny", image_size=192, window_size=12),
    SwinConfig(72, window_size=7, version=2, extra_norm_period=2, **ODD),
]


def on_meta(config: SwinConfig, **options: Any) -> SimMIM:
    with torch.device("meta"):
        return SimMIM(config, **options).train()


def inputs(config: SwinConfig, batch: int, device: str) -> tuple[Tensor, Tensor]:
    images = torch.empty(batch, config.in_channels, *as_pair(config.image_size), device=device)
    return images, torch.empty(batch, *config.stage_grid(0), dtype=torch.bool, device=device)


def cells_of(config: SwinConfig) -> int:
    return BlockMasks.of(config, unit=config.stride, ratio=0.6).cells


@pytest.mark.parametrize("name", NAMED)
def test_every_named_size_has_its_parameters(name: str) -> None:
    config = SwinConfig.named(name, image_size=224, window_size=7)
    assert parameter_count(config) == sum(parameter.numel() for parameter in on_meta(config).parameters())


def bias_networks(config: SwinConfig) -> Iterator[tuple[int, int]]:
    """What the two layers of V2's position bias compute in each stage, however many images there are."""
    for stage, depth in enumerate(config.depths):
        height, width = config.stage_window(stage)
        entries = depth * (2 * height - 1) * (2 * width - 1) if config.version == 2 else 0
        yield 2 * entries * 512 * 2, 2 * entries * 512 * config.num_heads[stage]


def bias_bytes(config: SwinConfig, stage: int) -> int:
    """At most what a block keeps of its position bias, which does not depend on the number of images."""
    height, width = config.stage_window(stage)
    entries = (2 * height - 1) * (2 * width - 1)
    network = entries * 4 * (512 + 3 * config.num_heads[stage] + 2) if config.version == 2 else 0
    side = max(64, 2 ** math.ceil(math.log2(height * width)))  # as the kernels' tiles are padded
    return network + 4 * config.num_heads[stage] * side**2


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_and_operations_are_those_of_the_network(config: SwinConfig) -> None:
    model, cells = on_meta(config, attention="reference"), cells_of(config)
    with FlopCounterMode(display=False) as forward:
        loss = model(*inputs(config, 1, "meta"), cells).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    parts = parts_of(config, cells)
    assert parameter_count(config) == sum(parameter.numel() for parameter in model.parameters())
    first, second = (sum(column) for column in zip(*bias_networks(config), strict=True))
    assert sum(part.forward_flops for part in parts) == forward.get_total_flops() - first - second
    assert sum(part.backward_flops for part in parts) == backward.get_total_flops() - first - 2 * second


HEADS = [("pixels", True), ("hog", False), ("hog", True)]
SMALL = SwinConfig(64, embed_dim=16, depths=(1, 1, 1), num_heads=(1, 2, 4), window_size=4, in_channels=5)


def with_heads(config: SwinConfig, target: Any, every_stage: bool, **options: Any) -> tuple[dict[str, Any], Any]:
    """Arguments of a model, and what its cost is counted with."""
    weights = (1.0,) * config.num_stages * every_stage
    return {"target": target, "stage_weights": weights, **options}, head_outputs(config, target, every_stage)


@pytest.mark.parametrize(("target", "every_stage"), HEADS)
def test_parameters_and_operations_of_other_heads(target: str, every_stage: bool) -> None:
    config = SMALL
    options, heads = with_heads(config, target, every_stage, attention="reference")
    model, cells = on_meta(config, **options), cells_of(config)
    with FlopCounterMode(display=False) as forward:
        model(*inputs(config, 1, "meta"), cells)
    parts = parts_of(config, cells, heads)
    assert parameter_count(config, heads) == sum(parameter.numel() for parameter in model.parameters())
    assert sum(part.forward_flops for part in parts) == forward.get_total_flops()


def kept(model: SimMIM, images: Tensor, mask: Tensor, cells: int) -> int:
    """Bytes that the network keeps for the backward pass, every piece of memory once, without the parameters."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(images, mask, cells).loss
    assert loss.requires_grad  # it holds on to the graph, so that no memory is used twice
    return sum(found.values())


def kept_on_a_gpu(config: SwinConfig, batch: int, half: bool, **options: Any) -> int:
    """With the fused attention on a CUDA device that is not there."""
    model = on_meta(config, attention="triton", **options)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device="cuda")))
        # torch.autocast refuses a device that is not there
        torch.set_autocast_enabled("cuda", half)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            return kept(model, *inputs(config, batch, "cuda"), cells_of(config))
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()


@pytest.mark.parametrize(
    ("config", "storage"), [(CONFIGS[0], AUTOCAST), (CONFIGS[1], FP32), (CONFIGS[3], AUTOCAST), (CONFIGS[4], FP32)]
)
def test_what_a_gpu_keeps_of_an_image_is_what_the_layers_save(config: SwinConfig, storage: Storage) -> None:
    half = storage is AUTOCAST
    three, one = (kept_on_a_gpu(config, batch, half) for batch in (3, 1))
    expected = sum(kept_bytes(part, storage) for part in parts_of(config, cells_of(config)))
    assert (three - one) / 2 == pytest.approx(expected, rel=0.005)
    weights = one - (three - one) / 2
    biases = sum(depth * bias_bytes(config, stage) for stage, depth in enumerate(config.depths))
    assert 0 <= weights - (2 * parameter_count(config) if half else 0) <= 1.1 * biases + 1e4


@pytest.mark.parametrize(("target", "every_stage"), HEADS)
def test_what_a_gpu_keeps_for_other_heads(target: str, every_stage: bool) -> None:
    config, storage = SMALL, FP32
    options, heads = with_heads(config, target, every_stage)
    three, one = (kept_on_a_gpu(config, batch, False, **options) for batch in (3, 1))
    expected = sum(kept_bytes(part, storage) for part in parts_of(config, cells_of(config), heads))
    assert (three - one) / 2 == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("version", [1, 2])
def test_what_a_cpu_keeps_of_an_image(version: int) -> None:
    config = SwinConfig(192, embed_dim=96, depths=(1, 1), num_heads=(3, 6), window_size=6, version=version)
    model, cells = SimMIM(config), cells_of(config)
    for block in model.encoder.blocks():  # whoever looks on sees all of it
        block.register_forward_hook(lambda *_: None)
    more, few = (kept(model, *inputs(config, batch, "cpu"), cells) for batch in (7, 6))
    storage = replace(CPU_ONEDNN, again=again()) if onednn_is_faster() else CPU_MKL
    assert more - few == pytest.approx(sum(kept_bytes(part, storage) for part in parts_of(config, cells)), rel=0.005)


def test_checkpointing_keeps_inputs_and_one_block() -> None:
    config = CONFIGS[0]
    kept_all, few = (
        max(peak.activations for peak in moments_of_backward(config, AUTOCAST, None, again)) for again in (False, True)
    )
    first = next(part for part in parts_of(config) if part.kind == "block")
    assert few < kept_all / 4
    assert few > kept_bytes(first, AUTOCAST)
    assert sum(kept_bytes(part, HALF) for part in parts_of(config)) < kept_all
