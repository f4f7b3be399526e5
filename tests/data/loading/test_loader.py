import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swin_mim.data import timing
from swin_mim.data.decoding.rgb import BrokenImage
from swin_mim.data.loading import loader
from swin_mim.data.loading.loader import Batch, LoaderOptions, TrainingLoader, heldout_batches
from swin_mim.data.sampling import SampleOrder, sample_generator
from swin_mim.data.sources import base, folder
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.open import open_source
from swin_mim.data.timing import LoadingTime
from swin_mim.data.transforms.crops import EvaluationTransform, PretrainTransform
from swin_mim.errors import UserError

CROP, CENTRE = PretrainTransform((8, 8)), EvaluationTransform((8, 8))


class Noise(Source):
    """`n` different pictures; those in `broken` cannot be read."""

    fingerprint = "noise"

    def __init__(self, n: int, broken: frozenset[int] = frozenset()) -> None:
        self._n, self._broken = n, broken

    def __len__(self) -> int:
        return self._n

    def name(self, index: int) -> str:
        return f"image {index}"

    def image(self, index: int) -> Image.Image:
        if index in self._broken:
            raise BrokenImage(f"no good: {index}")
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (12, 14, 3), dtype=np.uint8))


def take(
    source: Noise, steps: int, *, start: int = 0, micro: int = 4, rank: int = 0, world: int = 1, workers: int = 0
) -> list[Batch]:
    """The micro batches of `steps` global batches of 12 images."""
    options = LoaderOptions(rank, world, workers)
    loader = TrainingLoader(source, CROP, seed=3, global_batch=12, micro_batch=micro, options=options)
    return list(islice(loader.batches(start), steps * 12 // (micro * world)))


def by_position(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {batch.start + i: image for batch in batches for i, image in enumerate(batch.images)}


def assert_equal(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[position], other[position]) for position in one)


@pytest.fixture(scope="module")
def stream() -> dict[int, torch.Tensor]:
    """Positions 0..71: epochs of 17 samples, no multiple of anything."""
    return by_position(take(Noise(17), steps=6))


def test_a_sample_is_what_its_definition_says(stream: dict[int, torch.Tensor]) -> None:
    assert list(stream) == list(range(72))
    source, order = Noise(17), SampleOrder(17, seed=3)
    for position, image in stream.items():
        expected = CROP(source.image(order.index(position)), sample_generator(3, position))
        assert torch.equal(image, expected)
        assert (image.dtype, image.shape) == (torch.uint8, (3, 8, 8))


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_nothing(stream: dict[int, torch.Tensor], workers: int) -> None:
    batches = take(Noise(17), steps=6, workers=workers)
    assert [batch.start for batch in batches] == list(range(0, 72, 4))
    assert_equal(by_position(batches), stream)


@pytest.mark.parametrize(("world", "micro"), [(1, 12), (1, 1), (2, 6), (2, 2), (3, 4)])
def test_processes_and_accumulation_change_nothing(stream: dict[int, torch.Tensor], world: int, micro: int) -> None:
    parts = [by_position(take(Noise(17), 6, micro=micro, rank=rank, world=world)) for rank in range(world)]
    assert sum(map(len, parts)) == 72
    assert_equal(dict(sorted((position, image) for part in parts for position, image in part.items())), stream)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_in_an_epoch_gives_the_tail(stream: dict[int, torch.Tensor], workers: int) -> None:
    resumed = by_position(take(Noise(17), steps=3, start=36, micro=3, workers=workers))
    assert_equal(resumed, {position: stream[position] for position in range(36, 72)})


def test_the_same_image_is_cropped_anew_in_another_epoch(stream: dict[int, torch.Tensor]) -> None:
    order = SampleOrder(17, seed=3)
    first = {order.index(position): stream[position] for position in range(17)}
    second = {order.index(position): stream[position] for position in range(17, 34)}
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[index], second[index]) for index in first)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_models_random_state_is_not_touched(workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    take(Noise(17), steps=1, workers=workers)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


BROKEN = frozenset({0, 3, 5, 6, 11})


def test_broken_images_are_replaced_and_reported(stream: dict[int, torch.Tensor]) -> None:
    batches, order = take(Noise(17, BROKEN), steps=6), SampleOrder(17, seed=3)
    damaged = by_position(batches)
    assert damaged.keys() == stream.keys()
    for position, image in damaged.items():
        is_broken = order.index(position) in BROKEN
        assert torch.equal(image, stream[position]) != is_broken
    reported = [entry for batch in batches for entry in batch.broken]
    drawn = [order.index(position) for position in range(72) if order.index(position) in BROKEN]
    assert len(reported) >= len(drawn) > 15  # a replacement may be broken too
    assert {name for name, _ in reported} == {f"image {index}" for index in BROKEN}
    assert all(reason == f"no good: {name.split()[1]}" for name, reason in reported)
    assert all(batch.broken for batch in batches if any(order.index(batch.start + i) in BROKEN for i in range(4)))


def test_replacements_are_the_same_everywhere() -> None:
    source = Noise(17, BROKEN)
    alone = by_position(take(source, 3))
    assert_equal(by_position(take(source, 3, micro=6, workers=2)), alone)
    parts = [by_position(take(source, 3, micro=3, rank=rank, world=2)) for rank in (0, 1)]
    assert_equal(dict(sorted((parts[0] | parts[1]).items())), alone)
    assert_equal(by_position(take(source, 2, start=12)), {position: alone[position] for position in range(12, 36)})


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_broken_images_stops_with_a_clean_text(workers: int) -> None:
    with pytest.raises(UserError, match=r"^8 images in a row cannot be read, the last: image \d+: no good: \d+$"):
        take(Noise(5, frozenset(range(5))), steps=1, workers=workers)
    with pytest.raises(UserError, match="8 images in a row"):
        list(heldout_batches(Noise(1, frozenset({0})), CENTRE, 1, LoaderOptions(workers=workers)))


def test_what_comes_before_a_hopeless_image_is_still_delivered() -> None:
    good = {SampleOrder(400, seed=3).index(position) for position in range(12)}
    source = Noise(400, frozenset(range(400)) - good)
    assert len(take(source, steps=1, workers=2)) == 3
    with pytest.raises(UserError):
        take(source, steps=2, workers=2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_held_out_images_come_once_over_all_processes(world: int, workers: int) -> None:
    source = Noise(23)
    seen: dict[int, torch.Tensor] = {}
    for rank in range(world):
        batches = heldout_batches(source, CENTRE, 5, LoaderOptions(rank, world, workers))
        for batch in batches:
            assert batch.start % 5 == 0
            assert len(batch.images) == min(5, 23 - batch.start)
            assert not seen.keys() & by_position([batch]).keys()
            seen |= by_position([batch])
    assert_equal(dict(sorted(seen.items())), {i: CENTRE(source.image(i)) for i in range(23)})


def test_held_out_images_that_are_broken_are_replaced_by_the_same_ones() -> None:
    source = Noise(23, BROKEN)
    runs = [list(heldout_batches(source, CENTRE, size)) for size in (4, 23)]
    assert_equal(by_position(runs[0]), by_position(runs[1]))
    assert {name for batch in runs[0] for name, _ in batch.broken} == {f"image {index}" for index in BROKEN}


def test_a_process_may_have_no_held_out_images() -> None:
    assert not list(heldout_batches(Noise(3), CENTRE, 5, LoaderOptions(rank=1, world=2)))
    assert not list(heldout_batches(Noise(0), CENTRE, 5))


def running(source: Noise | None = None) -> Iterator[Batch]:
    """A stream with two workers, of which one batch has been taken."""
    options = LoaderOptions(workers=2)
    batches = TrainingLoader(source or Noise(17), CROP, seed=0, global_batch=4, micro_batch=4, options=options).batches(
        0
    )
    next(batches)
    return batches


def test_closing_and_dropping_the_iterator_ends_its_workers() -> None:
    batches, others = running(), running()
    assert len(multiprocessing.active_children()) == 4
    batches.close()  # type: ignore[attr-defined]
    assert len(multiprocessing.active_children()) == 2
    assert next(others).start == 4
    del others
    gc.collect()
    assert not multiprocessing.active_children()


def test_workers_outlive_the_signals_of_a_process_group() -> None:
    batches = running()
    next(batches)  # of the second worker, which may only now have begun
    children = {child.pid: child for child in multiprocessing.active_children()}
    for child in children.values():
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGUSR1)
    assert [batch.start for batch in islice(batches, 30)] == list(range(8, 128, 4))  # more than was prefetched
    assert {child.pid for child in multiprocessing.active_children()} == set(children)  # none had to be replaced
    batches.close()  # type: ignore[attr-defined]


class Hanging(Noise):
    """One image hangs in its decoder."""

    def image(self, index: int) -> Image.Image:
        if index == SampleOrder(17, seed=0).index(16):
            signal.pause()
        return super().image(index)


def test_a_worker_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    running(Hanging(17)).close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


class Faulty(Noise):
    """A source with a bug."""

    def image(self, index: int) -> Image.Image:
        raise ZeroDivisionError("a bug")


def test_a_bug_in_a_source_keeps_its_traceback_and_leaves_no_worker() -> None:
    with pytest.raises(ZeroDivisionError, match=r"(?s)Caught.*in DataLoader worker process.*a bug") as error:
        running(Faulty(17))
    assert not multiprocessing.active_children()
    assert error.tb is not None  # it holds the frames, and they the iterator


def test_an_error_in_the_training_loop_ends_the_process() -> None:
    code = "import test_loader\nbatches = test_loader.running()\nprint(next(batches).start)\nraise KeyError('mine')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "4\n")
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("KeyError: 'mine'\n")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_says_what_loading_it_took(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        Noise(12).image(number).save(tmp_path / f"{number}.png")
    read, opened = folder.read_file, base.open_image
    clock = [0.0]

    def later(seconds: float, what: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any) -> Any:
            clock[0] += seconds
            return what(*arguments)

        return act

    monkeypatch.setattr(folder, "read_file", later(0.25, read))
    monkeypatch.setattr(base, "open_image", later(0.5, opened))
    monkeypatch.setattr(timing, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(loader, "perf_counter", lambda: clock[0])
    source = open_source(str(tmp_path))
    transform = PretrainTransform((8, 8))
    monkeypatch.setattr(PretrainTransform, "__call__", later(1.0, PretrainTransform.__call__))
    options = LoaderOptions(workers=workers)
    batches = TrainingLoader(source, transform, seed=0, global_batch=4, micro_batch=4, options=options).batches(0)
    for batch in islice(batches, 3):
        assert batch.seconds == LoadingTime(read=1.0, decode=2.0, transform=4.0, collate=0.0)


def test_what_others_read_is_not_in_a_sample(tmp_path: Path) -> None:
    with timing.reading():
        pass
    before = timing.seconds_spent("read")
    watch = timing.Stopwatch()
    assert watch.passed().read == 0.0
    assert timing.seconds_spent("read") == before > 0


def test_the_time_of_broken_images_counts() -> None:
    (batch,) = take(Noise(5, broken=frozenset({1, 3})), steps=1, micro=12)
    assert batch.broken
    assert batch.seconds.read == 0.0
    assert min(batch.seconds.decode, batch.seconds.transform, batch.seconds.collate) > 0
    assert batch.seconds.total == pytest.approx(sum(batch.seconds))
    assert timing.together([batch.seconds, batch.seconds]).decode == 2 * batch.seconds.decode
