"""How `tools.bench` takes times: after a wait for the device, in turns, and past what fails."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple, TypeVar

import torch

from swin_mim.errors import UserError

Result = TypeVar("Result")


class Failed(NamedTuple):
    reason: str


class Times(NamedTuple):
    """Times of the repeats of one thing, in seconds."""

    median: float
    spread: float
    """(slowest - fastest) / median"""
    seconds: list[float]


def times(seconds: Sequence[float]) -> Times:
    median = statistics.median(seconds)
    return Times(median, (max(seconds) - min(seconds)) / median, list(seconds))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def exact() -> AbstractContextManager[object]:
    """Convolutions in whole fp32. On a GPU torch rounds their factors to TF32: no difference between systems."""
    return torch.backends.cudnn.flags(allow_tf32=False)


def seconds_per_call(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds of one of several calls without a wait in between, as in training."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def take_turns(
    turns: Mapping[str, Callable[[int], float]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, Failed]]:
    """What each turn returns in every repeat, the numbered turns of all before the next repeat; and what failed."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    failed: dict[str, Failed] = {}
    for repeat in range(repeats):
        for name, turn in turns.items():
            if name in failed:
                continue
            result = attempt(partial(turn, repeat))
            if isinstance(result, Failed):
                failed[name] = result
                del seconds[name]
            else:
                seconds[name].append(result)
    return seconds, failed


def attempt(call: Callable[[], Result], *, otherwise: str | None = None) -> Result | Failed:
    """The result, or why there is none: too little memory, and under the words `otherwise` any other error."""
    try:
        return call()
    except torch.OutOfMemoryError as error:
        failed = Failed(f"out of memory: {first_line(error)}")
    except Exception as error:
        words = "out of memory" if "allocate memory" in str(error) else otherwise  # a RuntimeError on a CPU
        if words is None:
            raise
        failed = Failed(str(error) if isinstance(error, UserError) else f"{words}: {first_line(error)}")
    free()  # only here, without the error, whose frames hold tensors
    return failed


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
