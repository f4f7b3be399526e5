"""How much memory a process of a pretraining takes, from the network's cost: a model, which no run is needed for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.models.cost import (
    AUTOCAST,
    FP32,
    HALF,
    Peak,
    Storage,
    moments_of_backward,
    parameter_count,
    parts_of,
)
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import reads_rasters, swin_config
from swin_mim.weights.heads import head_outputs

if TYPE_CHECKING:
    from swin_mim.training.planning.taught import TeacherCost

Strategy = Literal["one process", "DDP", "ZeRO-1", "FSDP2"]

GPU_FIXED = 1.5e9
"""Bytes that a process takes on a GPU before its first tensor, and that libraries keep: assumed."""
LARGEST = 1024
"""Largest micro batch that is looked at: what a GPU loses between two steps is hidden long before."""
ZERO_BUCKET = 500_000_000
"""Numbers in each of the two buffers by which DeepSpeed reduces gradients: its default, which our files leave."""


@dataclass(frozen=True)
class Network:
    """What is trained: an encoder with its decoder on images."""

    swin: SwinConfig
    cells: int
    """Of the last stage that are decoded for each image."""
    pixel_bytes: int = 1
    """Bytes of a channel of a pixel, as the loader brings it."""
    heads: Mapping[int, int] = field(default_factory=dict)
    """Outputs of the heads besides the decoder, by stage."""
    teacher: "TeacherCost | None" = None

    @classmethod
    def of(cls, config: PretrainConfig) -> "Network":
        """The network of a config that passed its checks."""
        from swin_mim.masking import BlockMasks  # it brings torch
        from swin_mim.training.planning.taught import teacher_cost

        swin = swin_config(config.model)
        masks = BlockMasks.of(swin, unit=config.mask.unit, ratio=config.mask.ratio)
        teacher = teacher_cost(config)
        width = 0 if teacher is None else teacher.width
        heads = head_outputs(swin, config.model.target, config.model.supervise == "stages", width)
        return cls(swin, masks.cells, 4 if reads_rasters(config.data, config.model) else 1, heads, teacher)

    @property
    def parameters(self) -> int:
        return parameter_count(self.swin, self.heads)

    @property
    def image_bytes(self) -> int:
        """Of an image as the loader brings it."""
        height, width = as_pair(self.swin.image_size)
        return self.swin.in_channels * height * width * self.pixel_bytes


@dataclass(frozen=True)
class Training:
    """How it is trained, as far as memory goes."""

    strategy: Strategy = "one process"
    processes: int = 1
    checkpointing: bool = False
    accumulates: bool = False
    """Whether a step has several micro batches: gradients are there from the first one on."""
    half: bool = True
    """Products in bf16 or fp16, and not in fp32."""
    storage: Storage | None = None
    """What layers keep; None: as on a GPU with the fused attention."""
    fixed: float = GPU_FIXED

    @property
    def kept(self) -> Storage:
        if self.storage is not None:
            return self.storage
        return FP32 if not self.half else HALF if self.strategy == "ZeRO-1" else AUTOCAST


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the moment of a step at which most are in use."""

    weights: float
    """With all copies: in half precision, and of FSDP2 the gathered blocks and the full model for evaluations; and
    those of a teacher."""
    gradients: float
    moments: float
    """Of the optimizer, and ZeRO's own weights in fp32."""
    activations: float
    """Kept for the backward pass, and the images."""
    workspace: float
    """In use for a moment, buffers of communication, libraries."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.moments + self.activations + self.workspace


def memory_of(network: Network, training: Training, micro_batch: int) -> Memory:
    """Memory of a process with this micro batch.

    Weights and moments are there always. Gradients are there always with DDP, which keeps them in its buckets, and
    where a step accumulates; otherwise as far as the backward pass has come.
    """
    return max(_moments(network, training, micro_batch), key=lambda memory: memory.total)


def storage_on(training: Training, *, fused_attention: bool) -> Storage:
    """What layers keep on a GPU, with our fused attention or with torch's."""
    return training.kept if fused_attention else replace(training.kept, copies_bias=True)


def fitting_micro_batches(
    network: Network, training: Training, global_batch: int, memory_bytes: float
) -> Iterator[int]:
    """Micro batches that by the model of memory fit, the largest first.

    Args:
        training: whether it accumulates follows from each micro batch.
        global_batch: images of a step.
        memory_bytes: that one process may use.
    """
    for batch in micro_batches(global_batch, training.processes):
        accumulating = replace(training, accumulates=batch * training.processes < global_batch)
        if memory_of(network, accumulating, batch).total <= memory_bytes:
            yield batch


def micro_batches(global_batch: int, processes: int) -> Iterator[int]:
    """Micro batches up to `LARGEST` with which processes x micro batch x accumulation is the global batch, the largest
    first."""
    share, rest = divmod(global_batch, processes)
    if not rest:
        yield from (batch for batch in range(min(share, LARGEST), 0, -1) if share % batch == 0)


def _moments(network: Network, training: Training, micro_batch: int) -> Iterator[Memory]:
    weights, whole_gradients, moments, buffers = _held(network, training)
    weights += _teacher_bytes(network)
    always = training.strategy != "one process" or training.accumulates
    images = 2 * network.image_bytes  # the next batch is there already
    network_and_storage = network.swin, training.kept, network.cells, training.checkpointing, network.heads
    peaks = list(moments_of_backward(*network_and_storage))
    for peak in (*peaks, Peak(0, 0, network.parameters)):  # the last is the update
        share = 1.0 if always else peak.gradients / network.parameters
        yield Memory(
            weights,
            whole_gradients * share,
            moments,
            micro_batch * (peak.activations + images),
            micro_batch * peak.transient + buffers + training.fixed,
        )
    if network.teacher is not None:  # it is asked before the forward pass
        passing = micro_batch * network.teacher.peak_bytes + buffers + training.fixed
        yield Memory(weights, whole_gradients * always, moments, micro_batch * images, passing)


def _teacher_bytes(network: Network) -> int:
    return 0 if network.teacher is None else 4 * network.teacher.parameters


def _held(network: Network, training: Training) -> tuple[float, float, float, float]:
    """Bytes of weights, of all gradients, of moments, and of buffers of communication."""
    number, processes, each = network.parameters, training.processes, 2 if training.half else 4
    if training.strategy == "ZeRO-1":
        return each * number, each * number, 12 * number / processes, 2 * ZERO_BUCKET * each
    if training.strategy == "FSDP2":
        blocks = [part.parameters for part in parts_of(network.swin) if part.kind == "block"]
        largest, rest = max(blocks), number - sum(blocks)
        gathered = each * (rest + 2 * largest)  # the next block comes while one is computed
        # gradients of the rest and of a block before they are shared out, and in fp32 on their way
        passing = each * (rest + largest) + 4 * largest
        return 4 * number / processes + 4 * number + gathered, 4 * number / processes, 8 * number / processes, passing
    copies = 2 * number if training.half else 0
    return 4 * number + copies, 4 * number, 8 * number, 0
