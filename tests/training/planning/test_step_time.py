"""The model of time: what must hold whatever the GPUs really do."""

from dataclasses import replace
from typing import Any

import pytest

from swin_mim.architecture import SwinConfig
from swin_mim.models.cost import parts_of
from swin_mim.training.planning.hardware import Cluster, cluster_of
from swin_mim.training.planning.memory import Network, Training
from swin_mim.training.planning.step_time import OVERLAP, communication_of, passes_of, step_time

BASE = Network(SwinConfig.named("swin_base", image_size=192, window_size=6), cells=22)
MB = 1e6


def step_of(on: str, strategy: Any = "DDP", batch: int = 128, accumulation: int = 1, **options: Any):
    cluster = cluster_of(on)
    training = Training(strategy, cluster.processes, **options)
    return step_time(BASE, training, cluster, batch, accumulation, compiled=True)


def test_no_gpu_is_faster_than_its_peak_and_its_memory() -> None:
    cluster = cluster_of("h100")
    passes = passes_of(BASE, Training(), cluster.gpu, 256, compiled=True)
    flops = 256 * sum(part.forward_flops + part.backward_flops for part in parts_of(BASE.swin, BASE.cells))
    assert 0.1 < flops / passes.total / (cluster.gpu.half_tflops * 1e12) < cluster.gpu.product_share


def test_twice_the_gpu_is_twice_as_fast_where_only_it_limits() -> None:
    gpu = cluster_of("h100").gpu
    twice = replace(gpu, half_tflops=2 * gpu.half_tflops, memory_gb_s=2 * gpu.memory_gb_s)
    one, two = (passes_of(BASE, Training(), each, 1024, compiled=True).total for each in (gpu, twice))
    assert one / two == pytest.approx(2, rel=0.03)


def test_small_micro_batches_are_limited_by_the_processor_that_starts_the_kernels() -> None:
    gpu = cluster_of("h100").gpu
    one, two, many, more = (passes_of(BASE, Training(), gpu, n, compiled=True).total for n in (1, 2, 512, 1024))
    assert one == two
    assert more / many == pytest.approx(2, rel=0.02)


def test_checkpointing_computes_the_blocks_again() -> None:
    gpu = cluster_of("h100").gpu
    plain, again = (passes_of(BASE, Training(checkpointing=on), gpu, 512, compiled=True) for on in (False, True))
    assert again.forward == pytest.approx(plain.forward, rel=1e-3)
    assert 1.2 < again.total / plain.total < 1.34


@pytest.mark.parametrize(("strategy", "accumulation", "bytes_sent"), [
    ("DDP", 1, 2 * 4),
    ("DDP", 4, 2 * 4),
    ("ZeRO-1", 1, 2 * 2 + 2),
    ("FSDP2", 1, 2 * 2 + 4),
    ("FSDP2", 4, 4 * (2 * 2 + 4)),
])  # fmt: skip
def test_what_each_strategy_sends(strategy: str, accumulation: int, bytes_sent: int) -> None:
    """Sums that all have go around twice, and what is gathered or shared out once."""
    sent = step_of("8xh100", strategy, accumulation=accumulation).communication
    assert sent.megabytes == pytest.approx(7 / 8 * bytes_sent * BASE.parameters / MB)


def test_one_process_sends_nothing() -> None:
    assert step_of("h100", "one process").communication.seconds == 0


def test_gradients_hide_behind_the_backward_pass_until_there_are_too_many() -> None:
    fast, slow = step_of("8xh100", batch=256).communication, step_of("8xl40s", batch=4).communication
    assert fast.exposed < 0.15 * fast.seconds
    assert fast.hideable > fast.seconds
    assert slow.exposed == pytest.approx(slow.seconds - slow.hideable)
    assert slow.exposed > 0.5 * slow.seconds


def test_zero_hides_nothing_of_gradients_that_fit_its_bucket() -> None:
    sent = step_of("8xh100", "ZeRO-1", batch=256).communication
    assert sent.exposed == sent.seconds
    large = Network(
        SwinConfig(192, embed_dim=512, depths=(2, 2, 18, 2), num_heads=(16, 32, 64, 128), window_size=6), 22
    )
    cluster = cluster_of("8xh100")
    passes = passes_of(large, training := Training("ZeRO-1", 8), cluster.gpu, 64, compiled=True)
    assert 0 < communication_of(large, training, cluster, passes, 1).hideable <= OVERLAP * passes.backward


def test_nodes_are_slower_than_one_and_need_longer_the_more_they_are() -> None:
    seconds = [step_of(on).communication.seconds for on in ("8xh100", "16xh100", "128xh100", "1024xh100")]
    assert seconds == sorted(seconds)
    assert seconds[3] < 3 * seconds[1]


def test_a_known_sum() -> None:
    """8 GPUs around a ring, the gradients of 1e9 bytes twice 7/8, in 40 buckets with 7 hops each."""
    gpu = replace(cluster_of("h100").gpu, link_gb_s=100, link_share=0.5)
    network = BASE
    passes = passes_of(network, training := Training("DDP", 8), gpu, 256, compiled=True)
    sent = communication_of(network, training, Cluster("test", 1, 8, gpu), passes, 1)
    size = 4 * network.parameters
    buckets = -(-size // (25 << 20))
    assert sent.seconds == pytest.approx(2 * (7 / 8 * size / 50e9 + buckets * 7 * 3e-6))
