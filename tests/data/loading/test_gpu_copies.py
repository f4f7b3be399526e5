"""Copies beside the computation, without a GPU: order on a CPU, and the events on streams that are played.

The player holds what CUDA promises of streams and events, and runs what they leave open in any order. Only a GPU can
show that copies run beside kernels and what that saves, that page-locked memory lives until they are done, and that the
compute stream is through with new memory before it is written to.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from swin_mim.data.loading import gpu_copies
from swin_mim.data.loading.gpu_copies import copied_beside
from swin_mim.data.loading.loader import Batch

CPU = torch.device("cpu")


def batch(number: int, size: int = 3, *, valid: bool = False) -> Batch:
    images = torch.full((size, 2), number, dtype=torch.uint8)
    gaps = torch.full((size, 2), number % 3 == 0) if valid else None
    return Batch(images, size * number, [], torch.arange(size), valid=gaps)


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_elsewhere_batches_are_as_they_were(kind: str) -> None:
    batches = iter([batch(0), batch(1)])
    assert copied_beside(batches, torch.device(kind)) is batches


class Event:
    reached = False


class Player:
    """Streams as CUDA has them: first in, first out; between two of them only events order anything."""

    def __init__(self, seed: int) -> None:
        self._choose, self._queues = random.Random(seed), list[list[tuple[Event | None, Callable[[], None]]]]()
        self.compute = self.Stream()
        self._current = self.compute

    def Stream(self, device: torch.device = CPU) -> SimpleNamespace:
        queue: list[tuple[Event | None, Callable[[], None]]] = []
        self._queues.append(queue)

        def record_event() -> Event:
            event = Event()
            queue.append((None, lambda: setattr(event, "reached", True)))
            return event

        def wait_event(event: Event) -> None:
            queue.append((event, lambda: None))

        return SimpleNamespace(
            add=lambda work: queue.append((None, work)),
            record_event=record_event,
            wait_event=wait_event,
            wait_stream=lambda other: wait_event(other.record_event()),
        )

    def current_stream(self, device: torch.device) -> SimpleNamespace:
        return self._current

    @contextmanager
    def stream(self, stream: SimpleNamespace) -> Iterator[None]:
        before, self._current = self._current, stream
        yield
        self._current = before

    def copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        self._current.add(lambda: to.copy_(source))

    def play(self, steps: int) -> None:
        """Some of what is enqueued, of whatever stream can go on."""
        for _ in range(steps):
            ready = [queue for queue in self._queues if queue and (queue[0][0] is None or queue[0][0].reached)]
            if not ready:
                return
            self._choose.choice(ready).pop(0)[1]()


@pytest.fixture(params=range(20))
def player(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Player:
    player = Player(request.param)
    monkeypatch.setattr(gpu_copies, "cuda", player)
    monkeypatch.setattr(gpu_copies, "_copy", player.copy)
    return player


@pytest.mark.parametrize("valid", [False, True])
def test_every_batch_is_whole_while_the_computation_reads_it(player: Player, valid: bool) -> None:
    """Also where the last batch is smaller, and however far the host is ahead."""
    sizes = [3] * 7 + [2]
    numbers, seen = iter(range(len(sizes))), list[tuple[list[int], list[bool]]]()
    asked = [batch(number, sizes[number], valid=valid) for number in numbers]
    taken, hurry = 0, random.Random(0)

    def loaded() -> Iterator[Batch]:
        nonlocal taken
        for each in asked:
            taken += 1
            yield each

    def read(images: torch.Tensor, gaps: torch.Tensor | None) -> None:
        seen.append((images.flatten().tolist(), [] if gaps is None else gaps.flatten().tolist()))

    for number, each in enumerate(gpu_copies._copied(loaded(), CPU)):
        assert taken == number + 1, "a batch was taken before it was asked for"
        assert (each.start, len(each.indices)) == (asked[number].start, len(asked[number].indices))
        for _ in range(3):  # forward, backward, update
            player.compute.add(lambda each=each: read(each.images, each.valid))
        player.play(hurry.randrange(12))
    player.play(1000)
    wanted = [(each.images.flatten().tolist(), each.valid.flatten().tolist() if valid else []) for each in asked]
    assert seen == [each for each in wanted for _ in range(3)]


def test_a_batch_can_be_copied_while_the_one_before_it_is_computed(player: Player) -> None:
    """The point of it: nothing of the batch that is computed with holds its copy back."""
    copied = gpu_copies._copied((batch(number) for number in range(4)), CPU)
    next(copied)
    player.play(1000)
    second = next(copied)
    player.play(1000)
    never = Event()
    player.compute.wait_event(never)  # the computation with the second batch takes for ever
    third = next(copied)
    player.play(1000)
    assert second.images.unique().tolist() == [1]
    assert third.images.unique().tolist() == [2]
