"""The processes of a run: their number, their device and precision, their trackers."""

import atexit
import gc
import logging
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    parse_flag_from_env,
)

from swin_mim.data.loading.cores import share_of_cores
from swin_mim.errors import UserError
from swin_mim.kernels.product import product
from swin_mim.training.distributed.sharding import zero_stage

FAST_FP16 = (7, 0)
"""Compute capability from which on GPUs multiply matrices in fp16 faster than in fp32: V100, T4 and later."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_LOG = logging.getLogger(__name__)


def world_size() -> int:
    """Processes of this launch, known before any of them is connected."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def set_threads(threads: int) -> int:
    """Let torch use this many CPU threads, or with 0 this process's share of the cores -> how many that is.

    The launchers set OMP_NUM_THREADS to 1 on their own, which leaves all cores but one idle.
    """
    threads = threads or share_of_cores()
    torch.set_num_threads(threads)
    return threads


def start_accelerator(
    folder: Path,
    *,
    precision: str,
    accumulation: int,
    micro_batch: int,
    clip_norm: float,
    fsdp: bool,
    trackers: Sequence[str],
) -> Accelerator:
    """Connect the processes and choose device and precision.

    Args:
        folder: the run's folder; made if it is missing.
        precision: as `resolve_precision` takes it.
        fsdp: the weights are going to be shared out by `prepare`.
        trackers: names that accelerate knows, to be started by `start_trackers`.

    Raises:
        UserError: a precision that the device lacks, or a tracker that is not installed.
    """
    cuda = uses_gpu()
    precision = resolve_precision(precision)
    check_trackers(trackers)
    _warn_of_restarts()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run's folder {folder}: {error.strerror}; choose another run.root") from None
    handlers: list[Any] = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if world_size() > 1:
        _end_collectives_with_the_process()
        if not cuda:
            handlers.append(InitProcessGroupKwargs(backend="gloo"))
    if fsdp:  # of the full model, in evaluations, autocast would keep all weights in bf16 too until a forward's end
        handlers.append(AutocastKwargs(cache_enabled=False))
    accelerator = Accelerator(
        gradient_accumulation_steps=accumulation,
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / "tensorboard")),
        kwargs_handlers=handlers,
        step_scheduler_with_optimizer=False,
    )
    check_strategy(accelerator)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # DeepSpeed calls functions of torch by their old names, in every step
        warnings.filterwarnings("ignore", message="`torch.distributed.*is deprecated", category=FutureWarning)
        # accelerate reads these off a prepared loader, and there is none: the order of samples is ours
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = micro_batch
        settings["gradient_clipping"] = clip_norm
    return accelerator


def uses_gpu() -> bool:
    """Whether a run would compute on CUDA."""
    return torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")


def resolve_precision(precision: str) -> str:
    """ "auto" -> "bf16" on a GPU that has it and "fp32" elsewhere; others stay.

    Raises:
        UserError: the device lacks it.
    """
    cuda = uses_gpu()
    if precision == "auto":
        precision = "bf16" if cuda and _has_bf16() else "fp32"
    if precision == "fp16" and not cuda:
        raise UserError("train.precision fp16 needs a GPU: use fp32, or bf16 where the processor is fast at it")
    if precision == "bf16" and not cuda and (gain := bf16_gain()) < 0.8:
        _LOG.warning("train.precision bf16: its products take %.1f times as long as fp32 on this processor", 1 / gain)
    if precision == "bf16" and cuda and not _has_bf16():
        _LOG.warning("train.precision bf16 is emulated on %s, which is slow: its half precision is fp16", _gpu_name())
    return precision


def faster_precision(precision: str) -> str:
    """What this device is expected to be faster with than with what "auto" takes here, as a line; empty: nothing.

    Args:
        precision: as `resolve_precision` takes it; who names one is told nothing.
    """
    if precision != "auto":
        return ""
    if uses_gpu() and not _has_bf16() and torch.cuda.get_device_capability() >= FAST_FP16:
        return (
            f"train.precision auto is fp32 on {_gpu_name()}, which has no bf16: its half precision is "
            "--train.precision fp16, with a scaled loss"
        )
    if uses_gpu() or not has_amx():
        return ""
    return (
        "train.precision auto is fp32 on a CPU. This one has AMX, by which --train.precision bf16 is expected to be "
        "about twice as fast (Swin-T on 2 cores of an Intel Xeon: 8.8 and 18.2 images/s)"
    )


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies matrices of bf16 by AMX, as Intel's Xeons do since 2023."""
    return cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text().split()


def _has_bf16() -> bool:
    # without "emulation": older GPUs take bf16 and are slow at it
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _gpu_name() -> str:
    return torch.cuda.get_device_name()


def bf16_gain() -> float:
    """How many times as fast as in fp32 this processor multiplies matrices in bf16; a few milliseconds' measurement."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(768, 768, dtype=dtype)
        turns = []
        for _ in range(5):
            start = time.perf_counter()
            product(x, x)
            turns.append(time.perf_counter() - start)
        seconds.append(min(turns))
    return seconds[0] / seconds[1]


def lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process ended in the middle of a collective operation."""
    if isinstance(error, torch.distributed.DistError):
        return True
    # gloo has no error of its own: "[/.../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2"
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)


def precision_text(accelerator: Accelerator) -> str:
    """ "fp32", "bf16" or "fp16"."""
    return "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision


def compute_dtype(accelerator: Accelerator) -> torch.dtype:
    """What autocast multiplies in; fp32 without it."""
    return DTYPES[precision_text(accelerator)]


def strategy_text(accelerator: Accelerator, *, fsdp: bool) -> str:
    """ "one process", "DDP", "FSDP2" or "DeepSpeed ZeRO-2"."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"DeepSpeed ZeRO-{zero_stage(accelerator)}"
    if accelerator.num_processes == 1:
        return "one process"
    return "FSDP2" if fsdp else "DDP"


def start_trackers(accelerator: Accelerator, name: str, *, step: int) -> None:
    """Start the trackers; what TensorBoard has of steps after `step`, from a run that was cut off, it forgets."""
    accelerator.init_trackers(name, init_kwargs={"tensorboard": {"purge_step": step + 1}} if step else {})


def _end_collectives_with_the_process() -> None:
    # A thread of gloo that lets go of its last tensor while the interpreter is being taken down aborts the process
    # (https://github.com/pytorch/pytorch/pull/179291). The threads end with the last reference to the process group,
    # and after `accelerator.end_training()` two kinds are left: default arguments of this module, if it is imported
    # only after the group exists; and what the model holds, in cycles.
    import torch.distributed.nn  # noqa: F401

    atexit.register(gc.collect)


def _warn_of_restarts() -> None:
    # processes that torchrun starts again find the addresses of their dead predecessors in the store that it shares
    # with them: https://github.com/pytorch/pytorch/issues/135712
    environment = os.environ
    restarts = environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if restarts and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and environment.get("RANK") == "0":
        _LOG.warning(
            "restarts by torchrun (--max-restarts) fail now and then, as new processes look for old ones: start it "
            "with --rdzv-backend c10d or --standalone, and TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
        )


def check_strategy(accelerator: Accelerator) -> None:
    """Refuse what the launcher asked for and accelerate left out, which on a CPU it does without a word.

    Raises:
        UserError: DeepSpeed or FSDP was asked for.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise UserError("accelerate's FSDP was asked for: leave --use_fsdp out and give the recipe --train.fsdp true")
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") and accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise UserError(
            f"DeepSpeed was asked for and accelerate chose {accelerator.distributed_type.value}: leave out --cpu "
            "(ACCELERATE_USE_CPU), or DeepSpeed"
        )


def check_trackers(wanted: Sequence[str]) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        UserError: names the package.
    """
    # accelerate leaves out a tracker whose package is missing, with no more than a warning
    missing = set(wanted) - {tracker.value for tracker in get_available_trackers()}
    if missing:
        names = ", ".join(sorted(missing))
        raise UserError(f"log.trackers names {names}, not installed here: pip install {names}, or leave it out")
