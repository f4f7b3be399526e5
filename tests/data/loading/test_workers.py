import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_loader import CROP, Noise, assert_equal, by_position
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from swin_mim.data.loading import workers
from swin_mim.data.loading.cores import processes_here, usable_cores
from swin_mim.data.loading.loader import Batch, LoaderOptions, TrainingLoader, heldout_batches
from swin_mim.data.loading.workers import affordable_prefetch, affordable_workers
from swin_mim.data.sampling import Place, SampleOrder
from swin_mim.data.transforms.crops import EvaluationTransform
from swin_mim.errors import UserError

MIB = 2**20


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LOOK", 0.1)


def stream(count: int, source: Noise | None = None) -> Iterator[Batch]:
    """Batches of positions 0-3, 4-7, ... by `count` workers."""
    options = LoaderOptions(workers=count)
    loader = TrainingLoader(source or Noise(17), CROP, seed=3, global_batch=4, micro_batch=4, options=options)
    return loader.batches(0)


@pytest.fixture(scope="module")
def undisturbed() -> dict[int, torch.Tensor]:
    """Positions 0 to 119, by no worker at all."""
    return by_position(list(islice(stream(0), 30)))


def kill(worker: multiprocessing.Process, number: int = signal.SIGKILL) -> None:
    os.kill(worker.pid, number)
    worker.join()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
@pytest.mark.parametrize("after", [1, 2, 7])
@pytest.mark.parametrize("victims", [1, 3])
def test_killed_workers_are_replaced_and_no_batch_changes(
    undisturbed: dict[int, torch.Tensor],
    caplog: pytest.LogCaptureFixture,
    victims: int,
    after: int,
    number: int,
) -> None:
    batches = stream(3)
    received = list(islice(batches, after))
    before = multiprocessing.active_children()
    for worker in before[:victims]:
        kill(worker, number)
    received += islice(batches, 30 - after)
    assert [batch.start for batch in received] == list(range(0, 120, 4))
    assert_equal(by_position(received), undisturbed)
    children = multiprocessing.active_children()
    assert len(children) == 3
    assert not {worker.pid for worker in before} & {worker.pid for worker in children}
    warning = "\n".join(caplog.messages)
    assert f"died of signal {int(number)}" in warning
    assert "give the job more memory, or lower data.workers, which is 3 (0 decodes" in warning
    batches.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


@pytest.fixture
def in_time() -> Iterator[None]:
    """A wait for ever is a failure."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("noticed", [True, False])
def test_a_worker_that_dies_with_a_lock_in_its_hands(noticed: bool) -> None:
    """As happens to one that is killed while it looks whether it shall end."""
    numbers = range(10_000)  # a data set too
    loader = DataLoader(numbers, batch_size=1, num_workers=2, timeout=1, multiprocessing_context="fork")
    loaded = workers._start_workers(loader)
    workers._next(loaded)
    assert loaded._workers_done_event._cond.acquire()
    kill(loaded._workers[0])
    if noticed:
        with pytest.raises(workers._WorkersLost, match="died of signal 9"):
            list(iter(partial(workers._next, loaded), None))
        workers._abandon_workers(loaded)
    workers._end_workers(loaded)
    assert not multiprocessing.active_children()


def test_workers_may_die_any_number_of_times_if_batches_come_in_between(undisturbed: dict[int, torch.Tensor]) -> None:
    batches = stream(2)
    received = []
    for _ in range(6):
        received += islice(batches, 5)
        for worker in multiprocessing.active_children():
            kill(worker)
    batches.close()  # type: ignore[attr-defined]
    assert_equal(by_position(received), undisturbed)


def test_held_out_images_come_once_though_workers_die() -> None:
    source, transform = Noise(23), EvaluationTransform((8, 8))
    batches = heldout_batches(source, transform, 2, LoaderOptions(workers=2))
    received = list(islice(batches, 2))
    for worker in multiprocessing.active_children():
        kill(worker)
    received += batches
    assert [batch.start for batch in received] == list(range(0, 23, 2))
    assert_equal(by_position(received), {i: transform(source.image(i)) for i in range(23)})


@pytest.fixture
def torchs_handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As after the use of another DataLoader."""
    before = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    assert list(DataLoader(range(2), num_workers=1, multiprocessing_context="fork"))
    assert signal.getsignal(signal.SIGCHLD) != before
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("fixtures", [(), ("torchs_handler",)], ids=["alone", "beside torch's"])
def test_the_death_of_a_worker_does_not_interrupt_what_the_training_process_does(
    fixtures: tuple[str, ...], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    for fixture in fixtures:
        request.getfixturevalue(fixture)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = stream(2)
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == handler
    children = multiprocessing.active_children()
    for worker in children:
        os.kill(worker.pid, signal.SIGKILL)
    for worker in children:
        assert wait([worker.sentinel], timeout=60)
    assert sum(range(10**6)) > 0  # signals are handled between any two steps of Python
    assert next(batches).start == 4
    batches.close()  # type: ignore[attr-defined]


class Deadly(Noise):
    """The image at position 16 of the stream is the end of the process that decodes it."""

    def __init__(self, number: int) -> None:
        super().__init__(400)
        self._number = number

    def image(self, index: int) -> Image.Image:
        if index == SampleOrder(400, seed=3).index(16):
            if self._number:
                os.kill(os.getpid(), self._number)
            os._exit(3)
        return super().image(index)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, r"died of signal 9 \(Killed, as when memory runs out\)"),
        (signal.SIGSEGV, r"died of signal 11 \(Segmentation fault, as when a damaged image crashes a decoder\)"),
        (0, "ended by itself, with exit code 3"),
    ],
)
def test_an_image_that_kills_every_worker_ends_the_run_with_its_position(
    number: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    batches = stream(2, Deadly(number))
    assert [next(batches).start for _ in range(4)] == [0, 4, 8, 12]
    with pytest.raises(UserError, match=rf"^a data worker {reason}, 4 times in a row at position 16: give") as error:
        next(batches)
    assert "data.workers, which is 2" in str(error.value)
    assert error.value.local
    assert not multiprocessing.active_children()
    assert caplog.messages[-1].startswith("a data worker")


class Forgetful(Noise):
    """The first process that decodes the image at position 16 does not come back from it."""

    def __init__(self, memory: Path) -> None:
        super().__init__(17)
        self._memory = memory

    def image(self, index: int) -> Image.Image:
        if index == SampleOrder(17, seed=3).index(16) and not self._memory.exists():
            self._memory.touch()
            while True:
                signal.pause()
        return super().image(index)


def test_workers_that_hang_are_replaced(
    undisturbed: dict[int, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 3.0)
    batches = stream(2, Forgetful(tmp_path / "been here"))
    assert_equal(by_position(list(islice(batches, 30))), undisturbed)
    batches.close()  # type: ignore[attr-defined]
    assert "no batch came from the data workers for 3 s" in caplog.messages[0]
    assert len(caplog.messages) == 1


def test_more_workers_than_cores_are_told_where_a_run_begins(caplog: pytest.LogCaptureFixture) -> None:
    cores = max(1, usable_cores() // processes_here())
    next(stream(cores + 1))  # nor does torch, whose warning would be an error here
    assert not caplog.records
    for number in (cores, cores + 1):
        workers.warn_if_more_than_cores(number)
    text = f"data.workers {cores + 1} is more than the {cores} core"
    assert [record.getMessage().startswith(text) for record in caplog.records] == [True]


# shared memory


def test_shared_memory_that_holds_all_batches_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert affordable_prefetch(8, 14 * MIB, (8 * 4 + 2) * 14 * MIB) == 4
        assert affordable_prefetch(8, 14 * MIB, None) == 4
    assert not caplog.messages


@pytest.mark.parametrize(("free", "prefetch"), [(475, 3), (364, 3), (363, 2), (140, 1)])
def test_less_shared_memory_holds_fewer_batches(free: int, prefetch: int, caplog: pytest.LogCaptureFixture) -> None:
    assert affordable_prefetch(8, 14 * MIB, free * MIB) == prefetch
    (text,) = caplog.messages
    assert f"/dev/shm has {free}.0 MiB free, and 8 data.workers with batches of 14.0 MiB take 140.0 MiB" in text
    assert f"{prefetch} instead of 4" in text
    assert "--shm-size" in text


def test_shared_memory_that_holds_no_batch_of_each_worker_is_refused() -> None:
    with pytest.raises(UserError, match=r"has 64\.0 MiB free, and 8 data\.workers .* take 140\.0 MiB: .*--shm-size"):
        affordable_prefetch(8, 14 * MIB, 64 * MIB)
    with pytest.raises(UserError, match=r"has 139\.0 MiB free"):  # of each worker one, and none for the training
        affordable_prefetch(8, 14 * MIB, 139 * MIB)


@pytest.mark.parametrize(
    ("free", "count"),
    [
        (15 * 14 * 4 + 28, 15),
        (15 * 28 + 28, 15),
        (14 * 28 + 28 + 27, 14),
        (28 + 28, 1),
        (28 + 14, 1),
        (28 + 13, 0),
        (0, 0),
    ],
)
def test_workers_that_nobody_asked_for_are_as_many_as_shared_memory_holds(
    free: int, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    workers._warn_of_fewer.cache_clear()
    for _ in range(2):  # said once
        assert affordable_workers(15, 14 * MIB, free * MIB) == count
    said = (
        f"data.workers auto is {count} and not 15: /dev/shm does not hold two batches of 14.0 MiB ahead of each, which "
        "may be slower; run a container with a larger --shm-size"
    )
    assert caplog.messages == [said] * (count < 15)


@pytest.mark.parametrize(("free", "count"), [(1000, 2), (4 * 48, 1), (40, 0)])
def test_batches_are_the_same_however_many_workers_shared_memory_holds(
    free: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    loader_of = workers._Loader

    def counted(*args: object, **values: object) -> object:
        started.append(values["num_workers"])  # type: ignore[arg-type]
        return loader_of(*args, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "_Loader", counted)
    monkeypatch.setattr(workers, "_free_shared_memory", lambda: free)
    places = [[Place(number, number)] for number in range(5)]
    dataset = Squares()
    loaded = workers.load_batches(dataset, places, list, workers=2, batch_bytes=48, automatic=True)
    assert list(loaded) == [[number * number] for number in range(5)]
    assert started == [count]


class Squares(Dataset[int]):
    def __getitem__(self, place: Place) -> int:
        return place.image**2


SMALL = """
import sys, time
from itertools import islice
from test_loader import Noise
from swin_mim.data.loading.loader import LoaderOptions, TrainingLoader
from swin_mim.data.transforms.crops import PretrainTransform

loader = TrainingLoader(Noise(17), PretrainTransform((256, 256)), seed=3, global_batch=4, micro_batch=4,
    options=LoaderOptions(workers=2))
batches = loader.batches(0)
starts = []
for batch in islice(batches, 20):  # a loop that is slower than the workers, and holds a batch while the next one comes
    starts.append(batch.start)
    time.sleep(0.1)
print(starts == list(range(0, 80, 4)))
"""


@pytest.mark.parametrize("size", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_small_dev_shm(size: int) -> None:
    """Two workers whose batches are of 0.75 MiB."""
    mount = f"mount -t tmpfs -o size={size}m tmpfs /dev/shm && exec "
    inside = ["unshare", "-m", "sh", "-c", mount + '"$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    done = subprocess.run(
        [*inside, sys.executable, "-c", SMALL],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if size == 1:
        assert "UserError: /dev/shm has 1.0 MiB free, and 2 data.workers with batches of 0.8 MiB" in done.stderr
    else:
        assert done.stdout == "True\n", done.stderr
        assert "1 instead of 4" in done.stderr
