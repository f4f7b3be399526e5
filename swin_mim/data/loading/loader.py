"""Batches of this process, decoded and cropped by workers ahead of the training loop.

Which images and crops a batch holds is a function of (source, seed, positions): neither the number of workers nor
the number of processes nor the size of a micro batch changes a sample.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass
from itertools import chain
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.loading.workers import PREFETCH, load_batches
from swin_mim.data.sampling import Place, positions, sample_generator
from swin_mim.data.sources.base import Lookahead, Order, Source, StreamStatus
from swin_mim.data.timing import LoadingTime, Stopwatch, decoding, together
from swin_mim.data.transforms.crops import PretrainTransform
from swin_mim.errors import MISTAKE, UserError

ATTEMPTS = 8
"""Images that are tried for one position: the one drawn, and its replacements."""
NOTHING = -1
"""Index of an image that cannot be read and that no other one replaces."""
AHEAD = 2
"""Steps for which the images of a streamed source are here before they are loaded: so many it takes, on a GPU, until
all processes know that one has no more, and have agreed on a checkpoint."""


class Broken(NamedTuple):
    """An image that could not be read and was replaced by another one."""

    name: str
    reason: str


class Batch(NamedTuple):
    """Images of the contiguous positions start, start + 1, ..."""

    images: Tensor
    """uint8 (B, 3, H, W); of rasters float32 (B, C, H, W)."""
    start: int
    """Position of the first image in training; its index in the held-out images."""
    broken: list[Broken]
    indices: Tensor
    """int64 (B,): which image of the source each one is. That of a broken one is its replacement's, or `NOTHING`."""
    seconds: LoadingTime = LoadingTime()
    """What loading it took."""
    valid: Tensor | None = None
    """bool (B, H, W) of rasters: the pixels that are there; the others are NaN. None: all are."""
    targets: tuple[Any, ...] = ()
    """Of each image what the transform gave besides it, such as the objects in it; of most there is nothing."""

    def first(self, count: int) -> "Batch":
        """The batch without what is behind its first images."""
        valid = None if self.valid is None else self.valid[:count]
        targets = self.targets[:count]
        return self._replace(images=self.images[:count], indices=self.indices[:count], valid=valid, targets=targets)

    def valid_on(self, device: torch.device) -> dict[str, Tensor]:
        """{"valid": on that device}, an argument of models and masks; empty where all pixels are there."""
        return {} if self.valid is None else {"valid": self.valid.to(device, non_blocking=True)}


@dataclass(frozen=True)
class LoaderOptions:
    """How this process takes part in loading, whatever the images are."""

    rank: int = 0
    """Number of this process, from 0."""
    world: int = 1
    """Processes that the images are dealt to."""
    workers: int = 0
    """Processes that load for this one; 0: it loads by itself."""
    automatic: bool = False
    """Have fewer workers where shared memory does not hold the batches of so many."""
    pixel_bytes: int = 3
    """Bytes of a pixel in a batch, such as 3 of RGB."""
    pin_memory: bool = False
    """Put batches into page-locked memory, from which a GPU copies them without waiting."""


class TrainingTransform(Protocol):
    """Makes one tensor of what a source gives, by the image and the random numbers of its position alone; perhaps with
    a target, which goes into `Batch.targets`."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the result."""

    def __call__(self, image: Any, rng: np.random.Generator, /) -> Tensor | tuple[Tensor, Any]: ...


class WholeTransform(Protocol):
    """Makes one tensor of what a source gives, perhaps with a target."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the result."""

    def __call__(self, image: Any, /) -> Tensor | tuple[Tensor, Any]: ...


@dataclass(frozen=True)
class TrainingLoader:
    """The endless training images of one process, from any position on.

    Args:
        seed: of the order and the crops.
        global_batch: images of a step over all processes.
        micro_batch: images of a batch.
        order: of the images; None visits all of them, epoch after epoch, those of a streamed source by its shards.
        stream: is told why no more images of a streamed source come, some steps before they run out.
    """

    source: Source
    transform: TrainingTransform
    _: KW_ONLY
    seed: int
    global_batch: int
    micro_batch: int
    options: LoaderOptions = LoaderOptions()
    order: Order | None = None
    stream: StreamStatus | None = None

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        """Yield the micro batches of this process from the position `samples_seen` on, endlessly.

        Closing or dropping the iterator ends its workers.

        Raises:
            UserError: while iterating, when 8 images in a row cannot be read, or a shard cannot, and as `load_batches`.
        """
        options, per_process = self.options, self.micro_batch * self.options.world
        lookahead = Lookahead(
            self.seed,
            underway=(AHEAD + 1) * self.global_batch + PREFETCH * options.workers * per_process,
            ahead=AHEAD * self.global_batch // per_process,
        )
        # all others take whole images
        read = self.source.open if isinstance(self.transform, PretrainTransform) else self.source.image
        samples = _Samples(self.source, read, self._crop, self.seed)
        pixels, status = self.micro_batch * math.prod(self.transform.size), self.stream or StreamStatus()
        return _batches(samples, self._places(samples_seen), pixels, options, status, lookahead)

    def _places(self, samples_seen: int) -> Generator[list[Place], None, None]:
        """Yield the places of each micro batch."""
        order = self.order or self.source.order(self.seed)
        size, options = self.micro_batch, self.options
        for first in positions(samples_seen, self.global_batch, size, options.rank, options.world):
            yield [Place(position, order.index(position)) for position in range(first, first + size)]

    def _crop(self, image: Any, position: int) -> Tensor | tuple[Tensor, Any]:
        return self.transform(image, sample_generator(self.seed, position))


def heldout_batches(
    source: Source,
    transform: WholeTransform,
    batch_size: int,
    options: LoaderOptions = LoaderOptions(),
    *,
    starts: Sequence[int] | None = None,
    replaces: bool = True,
) -> Iterator[Batch]:
    """One pass over a source: contiguous batches dealt to the processes in turn, each image once over all of them.

    The last batch may be smaller, and processes may get one batch more than others, or none.

    Args:
        starts: first images of the batches that this process loads, multiples of `batch_size`; None: dealt in turn.
        replaces: another image takes the place of one that cannot be read. False: its index is -1 and its pixels are 0,
            NaN of rasters; a batch without any image that can be read has no pixels at all.

    Raises:
        UserError: while iterating, as `TrainingLoader.batches`.
    """
    if starts is None:
        starts = range(0, len(source), batch_size)[options.rank :: options.world]
    ranges = (range(start, min(start + batch_size, len(source))) for start in starts)
    places = ([Place(index, index) for index in batch] for batch in ranges)
    samples = _Samples(source, source.image, lambda image, _: transform(image), seed=0, replaces=replaces)
    return _batches(samples, places, batch_size * math.prod(transform.size), options, StreamStatus(), Lookahead())


class _Sample(NamedTuple):
    place: Place
    image: Tensor | None
    """None: the image and all its replacements are broken."""
    broken: list[Broken]
    taken: int
    """The index of the image in the source: the place's own, its replacement's, or `NOTHING`."""
    seconds: LoadingTime
    failure: UserError | None = None
    """What stops the run, other than a broken image."""
    target: Any = None
    """What the transform gave besides the image."""


class _Samples(Dataset[_Sample]):
    """The pure function (position, index) -> sample, in the form that a `DataLoader` asks for."""

    def __init__(
        self,
        source: Source,
        read: Callable[[int], Any],
        crop: Callable[[Any, int], Any],
        seed: int,
        *,
        replaces: bool = True,
    ) -> None:
        """`read` takes the index of an image, `crop` what it gives and the position at which the image stands."""
        self.source, self._read, self._crop, self._seed, self._replaces = source, read, crop, seed, replaces
        self._failure: UserError | None = None

    def __getitem__(self, place: Place) -> _Sample:
        broken: list[Broken] = []
        watch = Stopwatch()
        if self._failure is not None:  # the rest of the batch need not wait as long again
            return _Sample(place, None, broken, place.image, watch.passed(), self._failure)
        for index in chain([place.image], self._replacements(place) if self._replaces else ()):
            try:
                with decoding():
                    image = self._read(index)
                crop, target = _with_target(self._crop(image, place.position))
            except BrokenImage as error:
                broken.append(Broken(self.source.name(index), str(error)))
            except UserError as error:
                self._failure = error
                return self[place]
            else:
                return _Sample(place, crop, broken, index, watch.passed(), target=target)
        return _Sample(place, None, broken, place.image if self._replaces else NOTHING, watch.passed())

    def _replacements(self, place: Place) -> Iterator[int]:
        among = self.source.near(place.image)
        draws = sample_generator(self._seed, place.position, stream=1).random(ATTEMPTS - 1)
        yield from (among[int(draw * len(among))] for draw in draws)


class _Collated(NamedTuple):
    batch: Batch
    failure: str
    """Not empty: a sample could not be replaced. An exception would reach the user as a worker's traceback."""
    code: int = MISTAKE
    """The exit code for it."""


def _collate(samples: list[_Sample]) -> _Collated:
    start = perf_counter()
    broken = [entry for sample in samples for entry in sample.broken]
    there = next((sample.image for sample in samples if sample.image is not None), torch.empty(0))
    images = [_or_blank(sample, there) for sample in samples if sample.image is not None or sample.taken == NOTHING]
    failure = ""
    code = MISTAKE
    if stop := next((sample.failure for sample in samples if sample.failure), None):
        failure, code = str(stop), stop.code
    elif len(images) < len(samples):
        name, reason = next(sample.broken[-1] for sample in samples if sample.image is None)
        failure = f"{ATTEMPTS} images in a row cannot be read, the last: {name}: {reason}"
    stacked = _stacked(images) if there.numel() else torch.empty(0, dtype=torch.uint8)
    valid = None
    if stacked.is_floating_point():
        valid = ~stacked[:, 0].isnan()
    indices = torch.tensor([sample.taken for sample in samples])
    targets = () if all(sample.target is None for sample in samples) else tuple(sample.target for sample in samples)
    seconds = together(sample.seconds for sample in samples)._replace(collate=perf_counter() - start)
    return _Collated(Batch(stacked, samples[0].place.position, broken, indices, seconds, valid, targets), failure, code)


def _with_target(result: Any) -> tuple[Tensor, Any]:
    """The image that a transform gave, and what it gave besides."""
    return result if isinstance(result, tuple) else (result, None)


def _stacked(images: list[Tensor]) -> Tensor:
    """(C, H, W) each -> (B, C, H, W) of the largest sides; 0 where an image ends before."""
    sides = [max(image.shape[axis] for image in images) for axis in (1, 2)]
    if all([*image.shape[1:]] == sides for image in images):
        return torch.stack(images)
    together = images[0].new_zeros(len(images), len(images[0]), *sides)
    for place, image in zip(together, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return together


def _or_blank(sample: _Sample, like: Tensor) -> Tensor:
    """The image of a sample, or one of its shape without anything."""
    if sample.image is not None:
        return sample.image
    return torch.full_like(like, torch.nan if like.is_floating_point() else 0)


def _batches(
    samples: _Samples,
    lists: Generator[list[Place], None, None],
    pixels: int,
    options: LoaderOptions,
    status: StreamStatus,
    lookahead: Lookahead,
) -> Generator[Batch, None, None]:
    """Load lists of places; `pixels` are those of a batch."""
    places = samples.source.prefetch(lists, status, lookahead)
    loaded = load_batches(
        samples,
        places,
        _collate,
        workers=options.workers,
        batch_bytes=pixels * options.pixel_bytes,
        pin_memory=options.pin_memory,
        automatic=options.automatic,
    )
    with closing(places), closing(loaded):
        for batch, failure, code in loaded:
            if failure:
                raise UserError(failure, local=True, code=code)
            yield batch
    if status.failure is not None:
        raise status.failure


def owned(batch: Batch) -> Batch:
    """The batch in memory of this process, to be kept: shared memory, in which it comes from a worker, is small."""
    valid = None if batch.valid is None else batch.valid.clone()
    return batch._replace(images=batch.images.clone(), indices=batch.indices.clone(), valid=valid)
