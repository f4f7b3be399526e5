"""Images with a label for each pixel."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image

from swin_mim.data.decoding.raster import NamedFile, Raster
from swin_mim.data.dense.masks import ClassNumbers, Masks
from swin_mim.data.sampling import HELDOUT_EPOCH, epoch_order
from swin_mim.data.sources.base import Source, Subset
from swin_mim.errors import UserError
from swin_mim.files import sha256


class Pair(NamedTuple):
    """An image and the labels of its pixels."""

    image: Image.Image | Raster
    labels: np.ndarray
    """uint8 or uint16 (H, W), as `ClassNumbers` has them. Pixels that are not there are not labelled."""


class PairSource(Source):
    """Images of a source with their labels: `image` gives a `Pair`."""

    def __init__(self, images: Source, masks: Masks | None, numbers: ClassNumbers) -> None:
        """`masks` are those of the images in their order; None: nothing is labelled."""
        self._images, self._masks, self._numbers = images, masks, numbers
        self.channels, self.unit = images.channels, images.unit
        known = "" if masks is None else masks.fingerprint
        self.fingerprint = sha256([images.fingerprint.encode(), known.encode(), repr(numbers).encode()])

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return self._images.name(index)

    def path(self, index: int) -> str | None:
        return self._images.path(index)

    def each_path(self) -> Iterator[str | None]:
        return self._images.each_path()

    def files(self, index: int) -> Sequence[NamedFile]:
        return self._images.files(index)

    def inventory(self) -> Iterator[tuple[str, int]]:
        return self._images.inventory()

    def image(self, index: int) -> Pair:
        """Decode an image and its labels.

        Raises:
            BrokenImage: one of both cannot be decoded.
            UserError: the mask is none, or of another size.
        """
        image = self._images.image(index)
        size = image.values.shape[:2] if isinstance(image, Raster) else image.size[::-1]
        if self._masks is None:
            labels = np.full(size, self._numbers.unlabelled, self._numbers.dtype)
        else:
            labels = self.labels(index)
            if labels.shape != size:
                raise UserError(
                    f"mask {self._masks.name(index)} has {labels.shape[1]} x {labels.shape[0]} pixels and its image "
                    f"{self.name(index)} {size[1]} x {size[0]}: they must be of the same size"
                )
        if isinstance(image, Raster) and image.valid is not None:
            labels = np.where(image.valid, labels, self._numbers.unlabelled).astype(labels.dtype)
        return Pair(image, labels)

    def labels(self, index: int) -> np.ndarray:
        """Decode the labels of an image alone. Raises as `image`."""
        assert self._masks is not None
        return self._masks.labels(index, self._numbers)


@dataclass(frozen=True)
class Pairs:
    """Some images with labels, and the names of the classes."""

    source: PairSource
    indices: np.ndarray
    """int64 (n,): which of the source."""
    names: tuple[str, ...]
    numbers: ClassNumbers

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def images(self) -> Source:
        """The images by index; each is a `Pair`."""
        return Subset(self.source, self.indices)

    @property
    def fingerprint(self) -> str:
        """Changes with the images, the masks, the numbers and the names."""
        return sha256([self.images.fingerprint.encode(), repr(self.names).encode()])

    def labels(self, index: int) -> np.ndarray:
        """Decode the labels of an image alone. Raises as `PairSource.image`."""
        return self.source.labels(int(self.indices[index]))

    def take(self, indices: np.ndarray) -> "Pairs":
        """Some of the images, in the given order."""
        return Pairs(self.source, self.indices[indices], self.names, self.numbers)

    def split(self, count: int, seed: int) -> "tuple[Pairs, Pairs]":
        """(training, held out): `count` images, 0 for a tenth and never more, chosen by (seed, their number) alone."""
        order = epoch_order(len(self), seed, HELDOUT_EPOCH)
        held = min(count or len(self), len(self) // 10)
        return self.take(np.sort(order[held:])), self.take(np.sort(order[:held]))

    def some(self, count: int, seed: int) -> "Pairs":
        """`count` images, chosen by (seed, number of images): a larger count has them too."""
        return self.take(np.sort(epoch_order(len(self), seed, 0)[:count]))
