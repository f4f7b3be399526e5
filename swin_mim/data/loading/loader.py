"""Batches of this process, decoded and cropped by workers ahead of the training loop.

Which images and crops a batch holds is a function of (source, seed, positions): neither the number of workers nor
the number of processes nor the size of a micro batch changes a sample.
"""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import chain
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from swin_mim.data.decoding.raster import Raster
from swin_mim.data.decoding.rgb import BrokenImage, Decoded
from swin_mim.data.loading.workers import PREFETCH, load_batches
from swin_mim.data.sampling import Place, positions, sample_generator
from swin_mim.data.sources.open import Source, smaller_image
from swin_mim.data.streaming.source import ShardPrefetcher, StreamStatus, near, order_of
from swin_mim.data.timing import LoadingTime, Stopwatch, together
from swin_mim.data.transforms.crops import EvaluationTransform, FinetuneTransform, PretrainTransform
from swin_mim.errors import MISTAKE, UserError

ATTEMPTS = 8
"""Images that are tried for one position: the one drawn, and its replacements."""
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
    """int64 (B,): which image of the source each one is. That of a broken one is its replacement's."""
    seconds: LoadingTime = LoadingTime()
    """What loading it took."""
    valid: Tensor | None = None
    """Of rasters, bool (B, H, W): the pixels that are there; the others are NaN. None: all are."""

    def first(self, count: int) -> "Batch":
        """The batch without what is behind its first images."""
        valid = None if self.valid is None else self.valid[:count]
        return self._replace(images=self.images[:count], indices=self.indices[:count], valid=valid)


class Order(Protocol):
    """Which image of the source stands at a position."""

    def index(self, position: int) -> int: ...


def training_batches(
    source: Source,
    transform: PretrainTransform | FinetuneTransform,
    *,
    seed: int,
    samples_seen: int,
    global_batch: int,
    micro_batch: int,
    rank: int,
    world: int,
    workers: int,
    order: Order | None = None,
    pin_memory: bool = False,
    pixel_bytes: int = 3,
    supply: StreamStatus | None = None,
) -> Iterator[Batch]:
    """The micro batches of one process, endlessly, from the position `samples_seen` on.

    Closing or dropping the iterator ends its workers.

    Args:
        order: of the images; None visits all of them, epoch after epoch, those of a streamed source by its shards.
        pixel_bytes: of a pixel in a batch, such as 3 of RGB.
        supply: is told why no more images of a streamed source come, some steps before they run out.

    Raises:
        UserError: while iterating, when 8 images in a row cannot be read, or a shard cannot, and as `load_batches`.
    """
    visits = order or order_of(source, seed)

    def micro_batches() -> Iterator[list[Place]]:
        for first in positions(samples_seen, global_batch, micro_batch, rank, world):
            yield [Place(position, visits.index(position)) for position in range(first, first + micro_batch)]

    def read(index: int, position: int) -> Image.Image | Decoded | Raster:
        if isinstance(transform, FinetuneTransform):
            return source.image(index)
        # the crop is drawn here too, from a generator of its own, to know how large the image must be
        return smaller_image(source, index, lambda size: transform.shrink(size, sample_generator(seed, position)))

    def crop(image: Any, position: int) -> Tensor:
        return transform(image, sample_generator(seed, position))

    size = micro_batch * pixel_bytes * math.prod(transform.size)
    underway = (AHEAD + 1) * global_batch + PREFETCH * workers * micro_batch * world
    ahead = AHEAD * global_batch // (micro_batch * world)
    places = ShardPrefetcher(source, micro_batches(), seed, underway, ahead, supply)
    return _batches(_Samples(source, read, crop, seed), places, workers, size, pin_memory)


def heldout_batches(
    source: Source,
    transform: EvaluationTransform,
    *,
    batch_size: int,
    rank: int,
    world: int,
    workers: int,
    pixel_bytes: int = 3,
) -> Iterator[Batch]:
    """One pass over a source: contiguous batches dealt to the processes in turn, each image once over all of them.

    The last batch may be smaller, and processes may get one batch more than others, or none.

    Raises:
        UserError: while iterating, as `training_batches`.
    """
    starts = range(0, len(source), batch_size)[rank::world]
    ranges = (range(start, min(start + batch_size, len(source))) for start in starts)
    places = ShardPrefetcher(source, ([Place(index, index) for index in batch] for batch in ranges))
    samples = _Samples(source, lambda index, _: source.image(index), lambda image, _: transform(image), seed=0)
    return _batches(samples, places, workers, batch_size * pixel_bytes * math.prod(transform.size))


class _Sample(NamedTuple):
    place: Place
    image: Tensor | None
    """None: the image and all its replacements are broken."""
    broken: list[Broken]
    taken: int
    """The index of the image in the source: the place's own, or its replacement's."""
    seconds: LoadingTime
    failure: UserError | None = None
    """What stops the run, other than a broken image."""


class _Samples(Dataset[_Sample]):
    """The pure function (position, index) -> sample, in the form that a `DataLoader` asks for."""

    def __init__(
        self, source: Source, read: Callable[[int, int], Any], crop: Callable[[Any, int], Tensor], seed: int
    ) -> None:
        """`read` takes the index of an image and the position at which it stands, `crop` what it gives and that."""
        self._source, self._read, self._crop, self._seed = source, read, crop, seed
        self._failure: UserError | None = None

    def __getitem__(self, place: Place) -> _Sample:
        broken: list[Broken] = []
        watch = Stopwatch()
        if self._failure is not None:  # the rest of the batch need not wait as long again
            watch.decoded()
            return _Sample(place, None, broken, place.image, watch.transformed(), self._failure)
        for index in chain([place.image], self._replacements(place)):
            try:
                image = self._read(index, place.position)
                watch.decoded()
                crop = self._crop(image, place.position)
            except BrokenImage as error:
                broken.append(Broken(self._source.name(index), str(error)))
            except UserError as error:
                self._failure = error
                return self[place]
            else:
                return _Sample(place, crop, broken, index, watch.transformed())
        watch.decoded()
        return _Sample(place, None, broken, place.image, watch.transformed())

    def _replacements(self, place: Place) -> Iterator[int]:
        among = near(self._source, place.image)
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
    images = [sample.image for sample in samples if sample.image is not None]
    failure = ""
    code = MISTAKE
    if stop := next((sample.failure for sample in samples if sample.failure), None):
        failure, code = str(stop), stop.code
    elif len(images) < len(samples):
        name, reason = next(sample.broken[-1] for sample in samples if sample.image is None)
        failure = f"{ATTEMPTS} images in a row cannot be read, the last: {name}: {reason}"
    stacked = torch.stack(images) if images else torch.empty(0, dtype=torch.uint8)
    valid = None
    if stacked.is_floating_point():
        valid = ~stacked[:, 0].isnan()
    indices = torch.tensor([sample.taken for sample in samples])
    seconds = together(sample.seconds for sample in samples)._replace(collate=perf_counter() - start)
    return _Collated(Batch(stacked, samples[0].place.position, broken, indices, seconds, valid), failure, code)


def _batches(
    samples: _Samples, places: ShardPrefetcher, workers: int, batch_bytes: int, pin_memory: bool = False
) -> Generator[Batch, None, None]:
    loaded = load_batches(samples, places, _collate, workers=workers, batch_bytes=batch_bytes, pin_memory=pin_memory)
    with closing(places), closing(loaded):
        for batch, failure, code in loaded:
            if failure:
                raise UserError(failure, local=True, code=code)
            yield batch
    places.check()


def owned(batch: Batch) -> Batch:
    """The batch in memory of this process, to be kept: shared memory, in which it comes from a worker, is small."""
    valid = None if batch.valid is None else batch.valid.clone()
    return batch._replace(images=batch.images.clone(), indices=batch.indices.clone(), valid=valid)
