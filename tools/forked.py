"""Start Python modules in processes that have torch imported already: seconds less for each of many runs.

A server imports what they need once and forks: each is a process of its own, with a start that costs nothing.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

IMPORTED = [
    "swin_mim.training.loop.trainer",
    "swin_mim.training.distributed.processes",
    "swin_mim.evaluation.reconstruction_evaluator",
    "swin_mim.data.blue_marble.tiles",
    "swin_mim.training.models",
    "swin_mim.evaluation.measure",
    "timm.data",
    "matplotlib.pyplot",
]

_SERVED = multiprocessing.get_context("forkserver")
_SERVED.set_forkserver_preload(IMPORTED)


class End(NamedTuple):
    """How a process ended, and what it wrote to both outputs."""

    code: int
    """Exit code; negative: the signal that ended it."""
    said: str


def run(
    words: Sequence[str],
    folder: Path,
    *,
    environment: Mapping[str, str],
    processes: int = 1,
    variables: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> list[End]:
    """Run a module or script in one process, or as the processes of one run -> the end of each.

    Args:
        words: path of a script, or `-m` and a module, and their arguments.
        folder: the working directory. The outputs are written there.
        environment: of the server, for all runs alike: the first one counts.
        processes: more than one get the variables that torchrun sets.
        variables: of these processes, besides.
    """
    shared = dict(variables or {})
    of_each = [shared]
    if processes > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        of_each = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    outputs = [folder / f"output_{rank}.txt" for rank in range(processes)]
    before = os.environ.copy()
    os.environ.clear()
    os.environ |= before | dict(environment)  # of the server, which starts with the first process
    try:
        started = [
            _SERVED.Process(target=_become, args=(list(words), folder, output, own))
            for output, own in zip(outputs, of_each, strict=True)
        ]
        for process in started:
            process.start()
    finally:
        os.environ.clear()
        os.environ |= before
    end = time.monotonic() + timeout
    for process in started:
        process.join(max(0, end - time.monotonic()))
    late = [process for process in started if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    ends = [
        End(int(process.exitcode or 0), output.read_text()) for process, output in zip(started, outputs, strict=True)
    ]
    if late:
        raise TimeoutError(f"{' '.join(words)} took more than {timeout} s: {ends}")
    return ends


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _become(words: list[str], folder: Path, output: Path, variables: Mapping[str, str]) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    os.environ |= variables
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
