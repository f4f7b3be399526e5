"""How long a step takes on GPUs that are not here: a roofline of every part, and what the processes send each other.

A model of assumed shares of data sheets (`hardware.Gpu`). None of it was compared with a GPU.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from swin_mim.models.cost import Part, Product, Storage, parts_of
from swin_mim.training.planning.hardware import Cluster, Gpu
from swin_mim.training.planning.memory import ZERO_BUCKET, Network, Training
from swin_mim.training.planning.moved import moved_bytes

HOST_SECONDS = {False: 0.8e-3, True: 0.5e-3}
"""Time in which Python starts the kernels of a block, forward and backward, without and with torch.compile. Half of it
is the attention's, measured on a CPU without launches (0.42 ms); the rest is assumed."""
KERNELS = {False: 53, True: 30}
"""Of a block, forward and backward, without and with torch.compile: counted by tracing Swin-B, and assumed."""
GAP = 3e-6
"""Seconds between two kernels in which a GPU is not full: assumed."""
OVERLAP = 0.85
"""Share of the time of a pass that communication can hide behind: assumed."""
DDP_BUCKET = 25 << 20
"""Bytes of gradients that DDP sums at a time: torch's default."""
HOP, ROUND = 3e-6, 20e-6
"""Seconds that a message takes from GPU to GPU in a node, and from node to node: assumed."""
UPDATE_BYTES = 40
"""Of a parameter in an update: AdamW reads and writes 28, the norm of the gradients and its limit 12."""
CAST_BYTES = {True: 6, False: 18}
"""Of a parameter in a micro batch, with weights in half precision and in fp32: gradients are added up, and of fp32
weights there are copies."""


class Passes(NamedTuple):
    """Seconds of a micro batch."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True)
class Communication:
    """What one process sends in a step."""

    megabytes: float
    seconds: float
    hideable: float
    """Seconds of computing that it could hide behind."""
    exposed: float
    """Seconds for which the GPU waits."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step: what adds up to it."""

    compute: float
    communication: Communication
    update: float

    @property
    def total(self) -> float:
        return self.compute + self.communication.exposed + self.update


def step_time(
    network: Network, training: Training, cluster: Cluster, micro_batch: int, accumulation: int, *, compiled: bool
) -> StepTime:
    """The time of a step, without loading, evaluations and checkpoints.

    Args:
        training: its processes are those of the cluster.
        accumulation: micro batches of each process in a step.
        compiled: by torch.compile.
    """
    gpu, number = cluster.gpu, network.parameters
    passes = passes_of(network, training, gpu, micro_batch, compiled=compiled)
    share = training.processes if training.strategy in ("ZeRO-1", "FSDP2") else 1
    moved = UPDATE_BYTES * number / share + CAST_BYTES[training.kept.stream == 2] * number * accumulation
    return StepTime(
        compute=accumulation * passes.total,
        communication=communication_of(network, training, cluster, passes, accumulation),
        update=moved / (gpu.memory_share * gpu.memory_gb_s * 1e9),
    )


def passes_of(network: Network, training: Training, gpu: Gpu, micro_batch: int, *, compiled: bool) -> Passes:
    """Forward and backward pass of a micro batch; with checkpointing, the second forward is in the backward pass.

    Of a teacher the operations alone are counted, at the share of the peak that products reach.
    """
    forward, backward = _teacher_seconds(network, training, gpu), 0.0
    parts, storage = parts_of(network.swin, network.cells, network.heads), training.kept
    for part in parts:
        ahead, back = _image_seconds(part, storage, gpu, half=training.half, compiled=compiled)
        forward += ahead
        backward += back + (ahead if training.checkpointing and part.kind == "block" else 0.0)
    blocks = sum(part.kind == "block" for part in parts)
    gaps, host = blocks * KERNELS[compiled] * GAP, blocks * HOST_SECONDS[compiled]
    if training.checkpointing:
        gaps, host = gaps * 4 / 3, host * 4 / 3
    on_gpu = micro_batch * (forward + backward) + gaps
    longer = max(on_gpu, host) / (forward + backward)  # whichever limits, both passes share it
    return Passes(forward * longer, backward * longer)


def _teacher_seconds(network: Network, training: Training, gpu: Gpu) -> float:
    """Of one image."""
    peak = 1e12 * (gpu.half_tflops if training.half else gpu.fp32_tflops)
    return 0.0 if network.teacher is None else network.teacher.flops / (gpu.product_share * peak)


def communication_of(
    network: Network, training: Training, cluster: Cluster, passes: Passes, accumulation: int
) -> Communication:
    """What the processes send in a step, and how much of it does not hide behind computing."""
    number, half = network.parameters, 2 if training.half else 4
    if training.processes == 1:
        return Communication(0.0, 0.0, 0.0, 0.0)
    if training.strategy == "DDP":  # sums of fp32 gradients in the backward pass of the last micro batch
        buckets = math.ceil(4 * number / DDP_BUCKET)
        sent, seconds = _collective(cluster, 4 * number, rounds=2, number=buckets)
        hideable = OVERLAP * passes.backward
        return Communication(sent, seconds, hideable, max(seconds - hideable, seconds / buckets))
    if training.strategy == "ZeRO-1":  # sums of gradients in half precision, then the new weights
        sums, summing = _collective(cluster, half * number, rounds=2, number=math.ceil(number / ZERO_BUCKET))
        weights, gathering = _collective(cluster, half * number, rounds=1, number=1)
        full = number // ZERO_BUCKET * ZERO_BUCKET / number  # only a full bucket leaves before the backward pass ends
        hideable = min(OVERLAP * passes.backward, full * summing)
        return Communication(sums + weights, summing + gathering, hideable, summing + gathering - hideable)
    # FSDP2, in every micro batch: weights for the forward and for the backward pass, and sums of fp32 gradients
    blocks = sum(part.kind == "block" for part in parts_of(network.swin)) + 1
    weights, gathering = _collective(cluster, half * number, rounds=1, number=blocks)
    sums, summing = _collective(cluster, 4 * number, rounds=1, number=blocks)
    sent, seconds, hideable = 2 * weights + sums, 2 * gathering + summing, OVERLAP * passes.total
    exposed = max(seconds - hideable, (gathering + summing) / blocks)
    return Communication(*(accumulation * value for value in (sent, seconds, hideable, exposed)))


def _collective(cluster: Cluster, size: float, *, rounds: int, number: int) -> tuple[float, float]:
    """(MB that a process sends, seconds) of collectives over so many bytes in all.

    Args:
        rounds: 1 to gather or to share out sums, 2 for sums that all have.
        number: of collectives.
    """
    gpu, everywhere = cluster.gpu, cluster.processes
    inside = (cluster.gpus - 1) / cluster.gpus * size / (gpu.link_share * gpu.link_gb_s * 1e9)
    between = (cluster.nodes - 1) / cluster.nodes * size / (gpu.network_share * gpu.network_gb_s * 1e9)
    latency = (cluster.gpus - 1) * HOP + math.ceil(math.log2(cluster.nodes)) * ROUND
    seconds = rounds * (max(inside, between) + number * latency)  # a node sends while its GPUs add up
    return rounds * (everywhere - 1) / everywhere * size / 1e6, seconds


def _image_seconds(part: Part, storage: Storage, gpu: Gpu, *, half: bool, compiled: bool) -> tuple[float, float]:
    """Forward and backward of one image in one part."""
    peak = 1e12 * (gpu.half_tflops if half else gpu.fp32_tflops)
    bandwidth = gpu.memory_share * gpu.memory_gb_s * 1e9

    def product_seconds(product: Product) -> float:
        moved = product.rows * (product.inner + product.columns) * storage.inner
        return max(product.flops / (gpu.product_share * peak), moved / bandwidth)

    products = sum(map(product_seconds, part.products))
    moved = moved_bytes(part, storage, compiled)
    forward, backward = products + moved.forward / bandwidth, products + moved.backward / bandwidth
    if part.kind == "embedding":  # no gradient of the images
        return forward, backward
    if part.kind != "block":
        return forward, backward + products
    numbers = part.padded_tokens * part.channels * storage.inner
    flops = part.attention_flops * (_tile(part.window_tokens) / part.window_tokens) ** 2 / (gpu.attention_share * peak)
    bias = copies = 0
    if storage.copies_bias:  # written out for every window and read again; q, k, v and the output are put in order
        bias, copies = 2 * part.padded_tokens * part.window_tokens * part.heads * storage.inner, 8 * numbers
    attention = max(flops, (4 * numbers + bias) / bandwidth) + copies / bandwidth
    attention_back = max(2.5 * flops, (8 * numbers + 2 * bias) / bandwidth) + copies / bandwidth
    return forward + attention, backward + products + attention_back


def _tile(tokens: int) -> int:
    """Tokens of a window as the kernel multiplies them."""
    return max(16, 1 << (tokens - 1).bit_length()) if tokens <= 64 else -(-tokens // 64) * 64
