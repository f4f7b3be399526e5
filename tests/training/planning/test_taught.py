"""A teacher in the planner: its own parameters and operations, the memory that it adds, the time that it takes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from swin_mim import Swin, SwinConfig
from swin_mim.errors import UserError
from swin_mim.models.cost import parts_of
from swin_mim.models.targets.teacher import open_teacher
from swin_mim.training.config.commands import pretrain_config
from swin_mim.training.planning.hardware import cluster_of
from swin_mim.training.planning.memory import Network, Training, memory_of
from swin_mim.training.planning.plan import plan_of
from swin_mim.training.planning.step_time import passes_of
from swin_mim.training.planning.taught import _Living, teacher_cost

SIZES = {"embed_dim": 24, "depths": (2, 2, 1), "num_heads": (1, 2, 4), "window_size": 6}
VIT = "timm:vit_tiny_patch16_224"


@pytest.fixture
def swin(tmp_path):
    """A teacher made for 48 px, where images have 96."""
    return Swin(SwinConfig(48, **SIZES)).save_pretrained(tmp_path / "teacher")


def config_of(*flags: str):
    small = (
        "--model.name",
        "swin_nano",
        "--model.image_size",
        "96",
        "--train.global_batch",
        "64",
        "--train.micro_batch",
        "64",
    )
    return pretrain_config(["--config", "simmim_swin_tiny_192_100ep", "--data.source", ".", *small, *flags])


def test_a_swin_costs_what_its_stages_up_to_the_one_before_the_last_do(swin):
    cost = teacher_cost(config_of("--teacher.model", str(swin)))
    used = parts_of(SwinConfig(96, **SIZES))
    last = max(place for place, part in enumerate(used) if part.kind == "merging")
    assert cost.flops == sum(part.forward_flops for part in used[:last])
    known = config_of().data
    teacher = open_teacher(str(swin), Swin(SwinConfig(48, **SIZES)).preprocessing, None)
    assert cost.width == teacher.width == 48
    assert cost.parameters == sum(parameter.numel() for parameter in teacher.parameters())
    assert len(known.mean) == 3
    largest = max(4 * part.tokens * max(part.hidden, part.channels) for part in used[:last])
    assert largest < cost.peak_bytes < 8 * largest


def test_timms_network_is_built_without_its_weights():
    import timm

    cost = teacher_cost(config_of("--teacher.model", VIT))
    network = timm.create_model(VIT.removeprefix("timm:"), features_only=True, out_indices=(-2,))
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert cost.width == 192
    # 11 of 12 blocks on 197 tokens: 12 x width^2 numbers of products and twice tokens x width of attention each
    block = 2 * 197 * (12 * 192**2 + 2 * 197 * 192)
    assert cost.flops == pytest.approx(11 * block + 2 * 196 * 768 * 192, rel=1e-3)
    with pytest.raises(UserError, match="timm cannot give features of it"):
        teacher_cost(config_of("--teacher.model", "timm:no_such_network"))
    assert teacher_cost(config_of()) is None


def test_what_lives_is_counted_while_it_does():
    network = nn.Sequential(nn.Linear(10, 1000), nn.Identity(), nn.Linear(1000, 10)).to("meta")
    images = torch.empty(3, 10, device="meta")
    with torch.no_grad(), _Living() as living:
        network(images)
    assert 4 * 3 * 1000 <= living.peak <= 4 * 3 * 1020
    with torch.no_grad(), _Living() as living:
        kept = [images + 1 for _ in range(5)]
    assert living.peak == 5 * kept[0].nbytes


def test_a_plan_has_its_weights_and_its_time():
    plain, taught = Network.of(config_of()), Network.of(config_of("--teacher.model", VIT))
    training = Training("DDP", 8)
    small, large = (memory_of(network, training, 8) for network in (plain, taught))
    own = taught.parameters - plain.parameters
    assert own == taught.swin.stage_dim(taught.swin.num_stages - 2) * 192 + 192, "the projection"
    assert large.weights - small.weights == pytest.approx(4 * taught.teacher.parameters + 6 * own)
    gpu = cluster_of("h100").gpu
    times = [passes_of(network, training, gpu, 1024, compiled=True) for network in (plain, taught)]
    assert times[1].forward - times[0].forward == pytest.approx(
        1024 * taught.teacher.flops / (gpu.product_share * gpu.half_tflops * 1e12), rel=0.1
    )
    # one that is far larger than what is trained decides the memory
    huge = replace(taught, teacher=replace(taught.teacher, peak_bytes=10**9))
    assert memory_of(huge, training, 8).workspace >= 8e9
    plans = [plan_of(config_of(*flags), cluster_of("h100"), 10_000) for flags in ((), ("--teacher.model", VIT))]
    assert plans[1].candidates[0].images_per_second < plans[0].candidates[0].images_per_second
