"""The processes that load batches ahead of the training loop, over PyTorch's DataLoader; those that die are replaced.

A batch is a function of its places alone, so that what lost workers have not delivered is loaded again by others.
"""

import atexit
import logging
import os
import shutil
import signal
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import cache
from multiprocessing.connection import wait
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from swin_mim.data.loading.cores import processes_here, usable_cores
from swin_mim.data.sampling import Place
from swin_mim.errors import UserError

PREFETCH = 4
"""Batches that each worker prepares ahead, where shared memory holds them."""
HELD = 2
"""Batches that the training holds: the one it works on, and the next one while it gives that back."""
RESTARTS = 3
"""How often lost workers are replaced without a batch in between."""
PATIENCE = 300.0
"""Seconds without a batch after which workers count as lost: less than the ten minutes that other processes wait for
this one, more than a batch takes (128 photographs of 12 Mpx on one core: half a minute)."""
SHARED_MEMORY = "/dev/shm"
"""Through which batches leave the workers, on Linux."""

_LOOK = 1.0  # seconds between two looks at whether the workers live
_OFTEN_BECAUSE: dict[int, str] = {
    signal.SIGKILL: ", as when memory runs out",
    signal.SIGBUS: f", as when {SHARED_MEMORY} is full",
    signal.SIGSEGV: ", as when a damaged image crashes a decoder",
}
_running: "WeakSet[Generator[Any, None, None]]" = WeakSet()
_log = logging.getLogger(__name__)


def load_batches(
    dataset: Dataset[Any],
    places: Iterable[list[Place]],
    collate: Callable[[list[Any]], Any],
    *,
    workers: int,
    batch_bytes: int,
    pin_memory: bool = False,
    automatic: bool = False,
) -> Generator[Any, None, None]:
    """`collate` of the samples of each list of places, in order.

    Closing or dropping the generator ends its workers.

    Args:
        dataset: `dataset[place]` is a function of the place alone.
        workers: how many; 0 loads in this process.
        batch_bytes: what a batch takes in shared memory.
        automatic: nobody asked for so many workers: fewer, or none, where shared memory does not hold their batches.

    Raises:
        UserError: while iterating, when workers die or hang again and again, or shared memory does not hold a batch
            of each.
    """
    batches = _load(dataset, places, collate, workers, batch_bytes, pin_memory, automatic)
    _running.add(batches)
    return batches


class _Loader(DataLoader[Any]):
    def check_worker_number_rationality(self) -> None:
        """Nothing: torch would say twice in three lines, with a path, what `warn_if_more_than_cores` says."""


def warn_if_more_than_cores(workers: int) -> None:
    """Warn of more workers than this process has cores."""
    cores = max(1, usable_cores() // processes_here())
    if workers > cores:
        text = "data.workers %d is more than the %d core%s here: that helps only while they wait for a disk or network"
        _log.warning(text, workers, cores, "" if cores == 1 else "s")


def _load(
    dataset: Dataset[Any],
    places: Iterable[list[Place]],
    collate: Callable[[list[Any]], Any],
    workers: int,
    batch_bytes: int,
    pin_memory: bool,
    automatic: bool,
) -> Generator[Any, None, None]:
    wished, free = workers, _free_shared_memory() if workers else None
    if automatic and free is not None:
        free //= processes_here()  # the others of this launch look at the same moment
        workers = affordable_workers(wished, batch_bytes, free)
    warns = workers == wished
    prefetch = affordable_prefetch(workers, batch_bytes, free, warns=warns) if workers else None
    again, owed = deque[list[Place]](), deque[list[Place]]()
    to_come, losses = iter(places), 0
    while True:
        loader = _Loader(
            dataset,
            batch_sampler=_handed_out(again, to_come, owed),
            collate_fn=collate,
            num_workers=workers,
            pin_memory=pin_memory,
            # after two losses in a row no batch is risked for one that comes later, and memory may be short
            prefetch_factor=prefetch if losses < 2 else 1,
            timeout=_LOOK if workers else 0,
            # not the default everywhere: fork shares the source (file names, decoded composites), needs no pickling
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # the default one would advance the state that the model's dropout draws from
        )
        try:
            with closing(_by_workers(loader) if workers else _here(loader)) as batches:
                for batch in batches:
                    owed.popleft()
                    losses = 0
                    yield batch
            return
        except _WorkersLost as loss:
            again.extendleft(reversed(owed))
            owed.clear()
            losses += 1
            _warn(loss, losses, workers, again[0][0].position)


def _handed_out(
    again: "deque[list[Place]]", to_come: Iterator[list[Place]], owed: "deque[list[Place]]"
) -> Iterator[list[Place]]:
    """First what `again` holds, then what is to come; in `owed` until the batch is there."""
    while again:
        owed.append(again.popleft())
        yield owed[-1]
    for each in to_come:
        owed.append(each)
        yield each


def _warn(loss: "_WorkersLost", losses: int, workers: int, position: int) -> None:
    way_out = f"give the job more memory, or lower data.workers, which is {workers} (0 decodes in the training process)"
    if losses > RESTARTS:
        raise UserError(f"{loss}, {losses} times in a row at position {position}: {way_out}", local=True) from loss
    _log.warning("%s: starting all workers anew at position %d; if it recurs, %s", loss, position, way_out)


class _WorkersLost(Exception):
    """Workers died, or hang; the message says which of it."""


def _here(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    yield from loader


def _by_workers(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """The batches of one set of workers. Raises `_WorkersLost`."""
    loaded = _start_workers(loader)
    try:
        while True:
            try:
                batch = _next(loaded)
            except StopIteration:
                return
            yield batch
    except _WorkersLost:
        _abandon_workers(loaded)
        raise
    finally:
        _end_workers(loaded)


def _start_workers(loader: DataLoader[Any]) -> Any:
    # Torch meets the death of a worker with an error in whatever the main thread does at that moment, be it in the
    # middle of an update. `_next` notices in time, so that torch needs neither a handler nor the names of the workers.
    signal_handling._SIGCHLD_handler_set = True
    with warnings.catch_warnings():
        # Python 3.12 warns of fork beside threads, for the locks that they may hold. Torch starts threads in every
        # process; the workers use none of torch's pools and no device, only Pillow and numpy.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        loaded: Any = iter(loader)
    signal_handling._remove_worker_pids(id(loaded))
    loaded._worker_pids_set = False
    # When torch finds a worker dead, it asks an event whose lock that worker may have held: it would wait for ever.
    # What it would do then, to spare the dead one further work, is of no use here, where all are started anew.
    mark = loaded._mark_worker_as_unavailable
    loaded._mark_worker_as_unavailable = lambda number, shutdown=False: mark(number, shutdown) if shutdown else None
    return loaded


def _next(loaded: Any) -> Any:
    waited = 0.0
    while True:
        try:
            return next(loaded)
        except StopIteration:
            raise
        except Exception as error:
            late = str(error).startswith("DataLoader timed out")  # it may be asked again
            # what a worker had sent before it died cannot be received, and fails in many ways
            if dead := wait([worker.sentinel for worker in loaded._workers], timeout=0 if late else 1):
                raise _WorkersLost(_death(next(w for w in loaded._workers if w.sentinel in dead))) from error
            if not late:
                raise
            waited += _LOOK
            if waited >= PATIENCE:
                raise _WorkersLost(
                    f"no batch came from the data workers for {waited:.0f} s, as happens when a file system or a "
                    f"decoder hangs, or {SHARED_MEMORY} is full"
                ) from error


def _death(worker: Any) -> str:
    worker.join()
    if worker.exitcode >= 0:
        return f"a data worker ended by itself, with exit code {worker.exitcode}"
    number = -worker.exitcode
    return f"a data worker died of signal {number} ({signal.strsignal(number)}{_OFTEN_BECAUSE.get(number, '')})"


def _abandon_workers(loaded: Any) -> None:
    """End workers of which one is lost. Torch's own way waits for the locks that it may have held."""
    loaded._shutdown = True
    for worker in loaded._workers:
        worker.kill()
        worker.join()
    for queue in loaded._index_queues:
        queue.cancel_join_thread()
        queue.close()
    if hasattr(loaded, "_pin_memory_thread"):
        loaded._pin_memory_thread_done_event.set()  # it looks every 5 s


def _end_workers(loaded: Any) -> None:
    if not all(worker.is_alive() for worker in loaded._workers):
        _abandon_workers(loaded)
    # by itself torch ends them with the last reference to its iterator, which an error's traceback may hold
    loaded._shutdown_workers()  # waits 5 s for each
    for worker in loaded._workers:
        worker.kill()  # one that hangs in a decoder; the others have ended
        worker.join()


@atexit.register
def _close_running() -> None:
    # the workers ignore SIGTERM, by which multiprocessing, next at exit, would have them end: it would wait for ever
    for batches in list(_running):
        batches.close()


def _start_worker(_: int) -> None:
    # a terminal or a scheduler signals the whole process group: the training process decides when workers end
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def affordable_workers(wished: int, batch_bytes: int, free: int) -> int:
    """How many workers shared memory allows: those that are wished, or fewer, each with two batches ahead.

    One that can only have one ahead is better than none; 0: not even that. Fewer than are wished are said once.

    Args:
        free: bytes of shared memory.
    """
    room = max(0, free // batch_bytes - HELD)
    workers = min(wished, max(room // 2, min(room, 1)))
    if workers < wished:
        _warn_of_fewer(workers, wished, batch_bytes)
    return workers


@cache
def _warn_of_fewer(workers: int, wished: int, batch_bytes: int) -> None:
    _log.warning(
        "data.workers auto is %d and not %d: %s does not hold two batches of %s ahead of each, which may be slower; "
        "run a container with a larger --shm-size",
        *(workers, wished, SHARED_MEMORY, _mib(batch_bytes)),
    )


def affordable_prefetch(workers: int, batch_bytes: int, free: int | None, *, warns: bool = True) -> int:
    """How many batches each worker may prepare ahead: `PREFETCH`, or what `free` bytes hold.

    Fewer than `PREFETCH` are slower, not different: better that than no run.

    Args:
        free: of shared memory; None: it has no limit of its own.
        warns: of fewer than `PREFETCH`.

    Raises:
        UserError: not even one.
    """
    if free is None or free >= (workers * PREFETCH + HELD) * batch_bytes:
        return PREFETCH
    prefetch = max(0, free - HELD * batch_bytes) // (workers * batch_bytes)
    need = f"{workers} data.workers with batches of {_mib(batch_bytes)} take {_mib((workers + HELD) * batch_bytes)}"
    way_out = "run a container with a larger --shm-size, or lower data.workers (0 needs none)"
    if not prefetch:
        raise UserError(f"{SHARED_MEMORY} has {_mib(free)} free, and {need}: {way_out}", local=True)
    if warns:
        _log.warning(
            "%s has %s free, and %s with one batch of each prepared ahead: %d instead of %d, which may be slower; %s",
            *(SHARED_MEMORY, _mib(free), need, prefetch, PREFETCH, way_out),
        )
    return prefetch


def _free_shared_memory() -> int | None:
    return shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else None


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
