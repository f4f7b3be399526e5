"""Start Python modules in processes that have torch imported already: seconds less for each of many runs.

A server imports what they need once and forks: each is a process of its own, with a start that costs nothing.
"""

import importlib
import multiprocessing
import os
import runpy
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

IMPORTED = [
    "swin_mim.training.loop.trainer",
    "swin_mim.training.distributed.processes",
    "swin_mim.evaluation.reconstruction_evaluator",
    "swin_mim.data.blue_marble.tiles",
    "swin_mim.training.models",
    "swin_mim.evaluation.measure",
    "swin_mim.evaluation.probes",
    "swin_mim.training.config.commands",
    "swin_mim.training.run.export",
    "jinja2",
    "timm.data",
    "matplotlib.pyplot",
]

READ_AT_IMPORT = ("huggingface_hub.constants", "datasets.config")
"""Modules that take the environment as it was when they were imported: a process with one of its own reads it again."""

_SERVED = multiprocessing.get_context("forkserver")
_SERVED.set_forkserver_preload(IMPORTED)


class End(NamedTuple):
    """How a process ended, and what it wrote to both outputs."""

    code: int
    """Exit code; negative: the signal that ended it."""
    said: str


class Started:
    """A process under way, with as much of `subprocess.Popen` as one needs to watch and to stop it.

    `stdout` is a pipe with both its outputs.
    """

    def __init__(self, process: ForkServerProcess, output: Connection) -> None:
        assert process.pid is not None
        self._process = process
        self.pid = process.pid
        self.stdout = os.fdopen(os.dup(output.fileno()), errors="replace")

    @property
    def returncode(self) -> int | None:
        """Exit code; negative: the signal that ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(self.pid, number)

    def communicate(self, timeout: float) -> tuple[str, None]:
        """Wait for its end -> what it said since the last line that was read.

        Raises:
            TimeoutError: it is killed after so many seconds.
        """
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._process.kill()

        alarm = threading.Timer(timeout, kill)
        alarm.start()
        with self.stdout:
            said = self.stdout.read()
        self._process.join()
        alarm.cancel()
        if late.is_set():
            raise TimeoutError(f"process {self.pid} took more than {timeout} s: {said}")
        return said, None


def start(
    words: Sequence[str], folder: Path, *, environment: Mapping[str, str], variables: Mapping[str, str] | None = None
) -> Started:
    """Start a module or script, as `run` does, and leave it running."""
    reader, writer = _SERVED.Pipe(duplex=False)
    with reader, writer:
        process = _served(words, folder, writer, environment, variables or {})
        return Started(process, reader)


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
    of_each = [shared | own for own in variables_of(processes)] if processes > 1 else [shared]
    outputs = [folder / f"output_{rank}.txt" for rank in range(processes)]
    started = [_served(words, folder, output, environment, own) for output, own in zip(outputs, of_each, strict=True)]
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


def variables_of(processes: int) -> list[dict[str, str]]:
    """What torchrun sets for each of the processes of a run on one machine."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _served(
    words: Sequence[str],
    folder: Path,
    output: Path | Connection,
    environment: Mapping[str, str],
    variables: Mapping[str, str],
) -> ForkServerProcess:
    process = _SERVED.Process(target=_become, args=(list(words), folder, output, variables))
    before = os.environ.copy()
    os.environ.clear()
    os.environ |= before | dict(environment)  # of the server, which starts with the first process
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ |= before
    return process


def _become(words: list[str], folder: Path, output: Path | Connection, variables: Mapping[str, str]) -> None:
    if isinstance(output, Path):
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    else:
        descriptor = os.dup(output.fileno())
        output.close()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)  # or the pipe would stay open in what closes its outputs
    os.chdir(folder)
    os.environ |= variables
    for name in READ_AT_IMPORT if variables else ():
        if name in sys.modules:
            importlib.reload(sys.modules[name])
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
