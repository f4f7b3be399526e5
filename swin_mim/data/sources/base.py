"""What every source of images can do: random access to images that are decoded on demand.

A source holds no open file and no lock, so that forked workers share it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from swin_mim.data.decoding.options import USUAL
from swin_mim.data.decoding.raster import NamedFile, Raster
from swin_mim.data.decoding.rgb import Decoded, EncodedJpeg, decode_image, open_image
from swin_mim.data.sampling import HELDOUT_EPOCH, Place, SampleOrder, epoch_order
from swin_mim.errors import UserError
from swin_mim.files import sha256


class Order(Protocol):
    """Which image of a source stands at a position."""

    def index(self, position: int) -> int: ...


@dataclass
class StreamStatus:
    """What a training and the images that are brought for it tell each other."""

    stopped: Callable[[], bool] = lambda: False
    """Whether the training was asked to stop: nothing is waited for any more."""
    failure: UserError | None = None
    """Why there will be no more images; known some steps before they run out."""

    def is_set(self) -> bool:
        """Answer as a `CancelToken` of the cache."""
        return self.stopped()


@dataclass(frozen=True)
class Lookahead:
    """How far a loader is ahead of the training, for sources that have to bring what it will read."""

    seed: int | None = None
    """The lists of places follow `order(seed)`; None: no order."""
    underway: int = 0
    """Max positions that are given out and not loaded."""
    ahead: int = 0
    """Lists of which all is here before the one in front of them is given out."""


class Source(ABC):
    """Images by index, 0 <= index < len."""

    fingerprint: str
    """sha256 in hex of the names or rows and their sizes: changes with them, and not with the place of the data."""
    channels: tuple[str, ...] | None = None
    """Names of the channels of an image; None: RGB, or what the files say."""
    unit = "images"
    """What `inventory` names."""
    decoding = USUAL
    """How its files are decoded, where an image is one; whoever opens it sets it."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What a message calls the image: a relative path, or a row."""

    @abstractmethod
    def image(self, index: int) -> Any:
        """Decode an image: loaded, mode "RGB"; of sources that were opened with bands a `Raster`.

        Raises:
            BrokenImage: it cannot be used.
        """

    def open(self, index: int) -> Decoded | EncodedJpeg | Raster:
        """Open an image whose pixels may be decoded later, once it is known how many are needed; rasters are whole.

        Raises:
            BrokenImage: it cannot be used.
        """
        image = self.image(index)
        return image if isinstance(image, Raster) else Decoded.whole(image)

    def files(self, index: int) -> Sequence[NamedFile]:
        """(channel or None, content) of the files of an image; none where images are made in memory.

        Raises:
            BrokenImage: one cannot be read.
        """
        return ()

    def path(self, index: int) -> str | None:
        """What the data set calls the image: a relative path or the name of a file, as text; None: nothing."""
        return None

    def each_path(self) -> Iterator[str | None]:
        """Yield `path` of every image; sources that can tell it without reading the images do."""
        return (self.path(index) for index in range(len(self)))

    def inventory(self) -> Iterator[tuple[str, int]]:
        """Yield (name, size) of every image of the data set, also of those that a part of it leaves out."""
        raise NotImplementedError(f"{type(self).__name__} does not list its {self.unit}")

    def find(self, names: Collection[str]) -> dict[str, list[int]]:
        """Indices of the images that have one of `names` as their path or name, by it."""
        wanted, found = set(names), dict[str, list[int]]()
        for index, path in enumerate(self.each_path()):
            for called in wanted & {path or "", self.name(index)}:
                found.setdefault(called, []).append(index)
        return found

    def without(self, kept: np.ndarray) -> "Source":
        """The data set of these images alone, int64 ascending: the others are no part of it any more."""
        return Kept(self, kept)

    def split(self, count: int, seed: int) -> "tuple[Source, Source]":
        """(training, held out): `count` images, at most a tenth of all, chosen by (seed, number of images) alone."""
        order = epoch_order(len(self), seed, HELDOUT_EPOCH)
        held = min(count, len(self) // 10)
        return Subset(self, np.sort(order[held:])), Subset(self, np.sort(order[:held]))

    def near(self, index: int) -> range:
        """Indices of what may take the place of a broken image: any one."""
        return range(len(self))

    def order(self, seed: int) -> Order:
        """The order in which training visits the images: all of them, epoch after epoch."""
        return SampleOrder(len(self), seed)

    def prefetch(
        self, lists: Generator[list[Place], None, None], status: StreamStatus, lookahead: Lookahead
    ) -> Generator[list[Place], None, None]:
        """Lists of places, each once its images are here, as they always are unless a source says otherwise.

        Args:
            status: is told why the lists end early, if they do.
        """
        return lists


class FileSource(Source):
    """A source of which an image is a file."""

    @abstractmethod
    def content(self, index: int) -> bytes:
        """The bytes of an image file. Raises `BrokenImage`, also for too many or none."""

    def files(self, index: int) -> list[NamedFile]:
        return [(None, self.content(index))]

    def image(self, index: int) -> Any:
        return decode_image(self.content(index), self.decoding)

    def open(self, index: int) -> Decoded | EncodedJpeg:
        return open_image(self.content(index), self.decoding)


class Subset(Source):
    """Some images of a source, in the given order."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray) -> None:
        self._source, self._indices = source, np.asarray(indices, dtype=np.int64)
        self.channels, self.unit, self.decoding = source.channels, source.unit, source.decoding
        self.fingerprint = sha256([source.fingerprint.encode(), self._indices.astype("<i8").tobytes()])

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def image(self, index: int) -> Any:
        return self._source.image(int(self._indices[index]))

    def open(self, index: int) -> Decoded | EncodedJpeg | Raster:
        return self._source.open(int(self._indices[index]))

    def files(self, index: int) -> Sequence[NamedFile]:
        return self._source.files(int(self._indices[index]))

    def path(self, index: int) -> str | None:
        return self._source.path(int(self._indices[index]))

    def each_path(self) -> Iterator[str | None]:
        paths = list(self._source.each_path())
        return (paths[index] for index in self._indices)

    def inventory(self) -> Iterator[tuple[str, int]]:
        return self._source.inventory()


class Kept(Subset):
    """A data set of some images of a source, the others left out for good. Made by `Source.without`."""

    def __init__(self, source: Source, kept: np.ndarray) -> None:
        super().__init__(source, kept)
        self.whole, self.kept = source, kept

    def inventory(self) -> Iterator[tuple[str, int]]:
        kept = set(self.kept.tolist())
        return (entry for index, entry in enumerate(self.whole.inventory()) if index in kept)
