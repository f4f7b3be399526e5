"""The plan of a pretraining on GPUs that are not here: every way to share it out, with memory, speed and traffic."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from swin_mim.architecture import nearest_multiple
from swin_mim.errors import UserError
from swin_mim.training.config.durations import to_steps
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.planning.hardware import Cluster, Gpu
from swin_mim.training.planning.memory import (
    Memory,
    Network,
    Strategy,
    Training,
    fitting_micro_batches,
    memory_of,
    storage_on,
)
from swin_mim.training.planning.step_time import StepTime, step_time

CLOSE = 0.15
"""Share of the speed that the model cannot tell apart: among ways to train so close the simplest is the best."""
CLOSE_BATCHES = 0.02
"""Share of the speed for which a smaller micro batch, with its smaller memory, is better."""


@dataclass(frozen=True)
class Candidate:
    """One way to train, with the micro batch that is best for it."""

    strategy: Strategy
    checkpointing: bool
    micro_batch: int
    accumulation: int
    memory: Memory
    """Of one GPU."""
    step: StepTime
    images_per_second: float
    """Of all GPUs together."""
    run_seconds: float


@dataclass(frozen=True)
class LeftOut:
    """A way to train that is not possible."""

    strategy: Strategy
    checkpointing: bool
    reason: str


@dataclass(frozen=True)
class Plan:
    """All ways to train on a cluster."""

    cluster: Cluster
    precision: str
    compiled: bool
    fused_attention: bool
    """Whether the attention is our kernel, or else torch's."""
    parameters: int
    global_batch: int
    steps: int
    """Of the whole run."""
    candidates: tuple[Candidate, ...]
    """The best first."""
    left_out: tuple[LeftOut, ...]


def plan_of(config: PretrainConfig, cluster: Cluster, images: int) -> Plan:
    """Compare all ways to train.

    Args:
        config: a pretraining that passed its checks.
        images: of an epoch.

    Raises:
        UserError: the GPUs do not divide the global batch, or lack the precision.
    """
    train, network = config.train, Network.of(config)
    precision = precision_on(cluster.gpu, train.precision, cluster.name)
    fused = has_fused_attention(cluster.gpu, train.attention)
    compiled = fused if train.compile == "auto" else train.compile
    batch, processes = train.global_batch, cluster.processes
    if batch % processes:
        raise UserError(
            f"train.global_batch {batch} is not a multiple of {processes} GPUs: use "
            f"--train.global_batch {nearest_multiple(batch, processes)}"
        )
    steps = to_steps(train.duration, dataset_size=images, global_batch=batch)
    found, left_out = [], []
    for training in _ways(cluster, half=precision != "fp32", fused=fused):
        best = _best(network, training, cluster, batch, steps, compiled=compiled)
        if training.strategy == "FSDP2" and precision == "fp16":
            reason = "it does not go with train.precision fp16"
        elif best is None:
            reason = f"one image takes {_of(network, training, batch, 1).total / 1e9:,.0f} GB"
        else:
            found.append(best)
            continue
        left_out.append(LeftOut(training.strategy, training.checkpointing, reason))
    ordered = tuple(_in_order(found))
    return Plan(cluster, precision, compiled, fused, network.parameters, batch, steps, ordered, tuple(left_out))


def precision_on(gpu: Gpu, precision: str, name: str) -> str:
    """What `train.precision` is on a GPU: "auto" is resolved.

    Raises:
        UserError: bf16 is emulated there, for which there is no model.
    """
    if precision == "auto":
        return "bf16" if gpu.bf16 else "fp32"
    if precision == "bf16" and not gpu.bf16:
        raise UserError(f"train.precision bf16 is emulated on {name}, which is slow: use fp16 or fp32")
    return precision


def has_fused_attention(gpu: Gpu, attention: str) -> bool:
    """Whether `train.attention` is our kernel on a GPU.

    Raises:
        UserError: it is neither that nor torch's fused one, for which there is a model.
    """
    if attention not in ("auto", "triton", "sdpa"):
        raise UserError(f"train.attention {attention} is not planned for on GPUs: use auto, triton or sdpa")
    return gpu.fused_attention and attention != "sdpa"


def _ways(cluster: Cluster, *, half: bool, fused: bool) -> Iterator[Training]:
    """The simplest first."""
    several: tuple[Strategy, ...] = ("DDP", "ZeRO-1", "FSDP2")
    for strategy in several if cluster.processes > 1 else ("one process",):
        for checkpointing in (False, True):
            training = Training(strategy, cluster.processes, checkpointing, half=half)
            yield replace(training, storage=storage_on(training, fused_attention=fused))


def _best(
    network: Network, training: Training, cluster: Cluster, global_batch: int, steps: int, *, compiled: bool
) -> Candidate | None:
    """With the smallest of the micro batches that fit and are about the fastest; None if none fits."""
    gpu, found = cluster.gpu, []
    for micro_batch in fitting_micro_batches(network, training, global_batch, gpu.usable * gpu.memory_gb * 1e9):
        accumulation = global_batch // (micro_batch * training.processes)
        step = step_time(network, training, cluster, micro_batch, accumulation, compiled=compiled)
        memory = _of(network, training, global_batch, micro_batch)
        rate, length = global_batch / step.total, steps * step.total
        found.append(
            Candidate(training.strategy, training.checkpointing, micro_batch, accumulation, memory, step, rate, length)
        )
    fast = _close_to_fastest(found, CLOSE_BATCHES)
    return min(fast, key=lambda candidate: candidate.micro_batch) if fast else None


def _of(network: Network, training: Training, global_batch: int, micro_batch: int) -> Memory:
    accumulates = micro_batch * training.processes < global_batch
    return memory_of(network, replace(training, accumulates=accumulates), micro_batch)


def _in_order(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The simplest of the fastest, then the others by speed."""
    if not candidates:
        return []
    best = _close_to_fastest(candidates, CLOSE)[0]
    others = (candidate for candidate in candidates if candidate is not best)
    return [best, *sorted(others, key=lambda candidate: -candidate.images_per_second)]


def _close_to_fastest(candidates: Sequence[Candidate], share: float) -> list[Candidate]:
    most = max((candidate.images_per_second for candidate in candidates), default=0.0)
    return [candidate for candidate in candidates if candidate.images_per_second >= (1 - share) * most]
