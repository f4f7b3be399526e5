"""Images with objects: where each lies, its class, and its shape if somebody drew it.

A class is its number in training and its name everywhere else.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import NamedFile, Raster
from swin_mim.data.sampling import HELDOUT_EPOCH, epoch_order
from swin_mim.data.sources.base import Source, Subset
from swin_mim.errors import UserError
from swin_mim.files import sha256

Shape = tuple[np.ndarray, ...] | dict[str, Any]
"""Of an object: polygons float32 (k, 2) of (x, y) in pixels, or a run-length encoding as pycocotools has it,
{"size": [H, W], "counts": bytes}."""


@dataclass(frozen=True)
class Objects:
    """The objects of one image."""

    boxes: np.ndarray
    """float32 (n, 4): left, top, right, bottom in pixels."""
    labels: np.ndarray
    """int64 (n,): classes from 0."""
    shapes: tuple[Shape | None, ...]
    """Of each; None: it has only a box."""
    crowd: np.ndarray
    """bool (n,): a box around many, of which nobody said where each is: not learned, and no mistake to find."""
    areas: np.ndarray
    """float64 (n,): what makes an object a small, medium or large one, in pixels."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: np.ndarray) -> "Objects":
        """Some of them, by index or as bool (n,)."""
        indices = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        shapes = tuple(self.shapes[index] for index in indices)
        return Objects(self.boxes[indices], self.labels[indices], shapes, self.crowd[indices], self.areas[indices])


def no_objects() -> Objects:
    """Nothing in an image."""
    empty = np.zeros(0)
    return Objects(np.zeros((0, 4), np.float32), empty.astype(np.int64), (), empty.astype(bool), empty)


@dataclass(frozen=True)
class ImagesWithObjects:
    """Images, and the objects in each."""

    images: Source
    names: tuple[str, ...]
    """Names of the classes, in the order of their numbers."""
    objects: tuple[Objects, ...]
    sizes: np.ndarray | None = None
    """int64 (n, 2): height and width of each image as the boxes mean it; None: nobody says."""
    identities: tuple[int, ...] = ()
    """What the file calls each image, for predictions that others are to read; empty: its place."""
    categories: tuple[int, ...] = ()
    """What it calls each class, likewise."""

    def __len__(self) -> int:
        return len(self.objects)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the images, the names and the objects."""
        return sha256([self.images.fingerprint.encode(), repr(self.names).encode(), *map(_bytes_of, self.objects)])

    @cached_property
    def have_shapes(self) -> bool:
        """Whether every object that can be learned has a shape, and there is one."""
        learned = [
            shape for each in self.objects for shape, crowd in zip(each.shapes, each.crowd, strict=True) if not crowd
        ]
        return bool(learned) and all(shape is not None for shape in learned)

    def counts(self) -> np.ndarray:
        """int64 (classes,): objects of each class, without crowds."""
        labels = [each.labels[~each.crowd] for each in self.objects]
        return np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=len(self.names))

    def identity(self, index: int) -> int:
        """What predictions call an image."""
        return self.identities[index] if self.identities else index

    def category(self, label: int) -> int:
        """What predictions call a class."""
        return self.categories[label] if self.categories else label

    def take(self, indices: np.ndarray) -> "ImagesWithObjects":
        """Some of the images, in the given order; the classes stay."""
        return replace(
            self,
            images=Subset(self.images, indices),
            objects=tuple(self.objects[index] for index in indices),
            sizes=None if self.sizes is None else self.sizes[indices],
            identities=tuple(self.identities[index] for index in indices) if self.identities else (),
        )


class PicturesWithObjects(Source):
    """A source whose image is the picture and what is in it, for augmentations that change both."""

    def __init__(self, labelled: ImagesWithObjects) -> None:
        self._labelled, self._source = labelled, labelled.images
        self.fingerprint = labelled.fingerprint
        self.channels, self.unit = labelled.images.channels, labelled.images.unit

    def __len__(self) -> int:
        return len(self._labelled)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def image(self, index: int) -> tuple[Any, Objects]:
        """(the picture, its objects).

        Raises:
            BrokenImage: it cannot be decoded, or is of another size than the objects were drawn on.
        """
        picture, sizes = self._source.image(index), self._labelled.sizes
        if sizes is not None and size_of(picture) != tuple(sizes[index]):
            height, width = size_of(picture)
            raise BrokenImage(
                f"has {width} x {height} pixels, and its boxes are for {sizes[index][1]} x {sizes[index][0]}"
            )
        return picture, self._labelled.objects[index]

    def path(self, index: int) -> str | None:
        return self._source.path(index)

    def each_path(self) -> Iterator[str | None]:
        return self._source.each_path()

    def files(self, index: int) -> Sequence[NamedFile]:
        return self._source.files(index)

    def inventory(self) -> Iterator[tuple[str, int]]:
        return self._source.inventory()


def size_of(picture: Image.Image | Raster) -> tuple[int, int]:
    """(H, W) in pixels."""
    if isinstance(picture, Raster):
        return picture.values.shape[0], picture.values.shape[1]
    return picture.height, picture.width


def some_images(labelled: ImagesWithObjects, count: int, seed: int) -> ImagesWithObjects:
    """`count` images chosen by (seed, number of images) alone: a larger count has those of a smaller one too."""
    if count >= len(labelled):
        return labelled
    return labelled.take(np.sort(epoch_order(len(labelled), seed, 0)[:count]))


def split_images(labelled: ImagesWithObjects, count: int, seed: int) -> tuple[ImagesWithObjects, ImagesWithObjects]:
    """(training, held out): `count` images, 0 for a tenth and never more, chosen by (seed, number of images) alone."""
    most = len(labelled) // 10
    held = min(count or most, most)
    order = epoch_order(len(labelled), seed, HELDOUT_EPOCH)
    return labelled.take(np.sort(order[held:])), labelled.take(np.sort(order[:held]))


def with_classes(labelled: ImagesWithObjects, names: Sequence[str]) -> ImagesWithObjects:
    """The same images with the class numbers of `names`, which a model was or will be trained for.

    Raises:
        UserError: there is an object of a class that is none of them.
    """
    number = {name: place for place, name in enumerate(names)}
    present = {labelled.names[label] for each in labelled.objects for label in each.labels}
    if unknown := sorted(present - number.keys()):
        raise UserError(
            f"the images to evaluate on have classes that the model does not know: {', '.join(unknown[:3])}; "
            f"it knows {', '.join(names[:3])}{'' if len(names) <= 3 else f' and {len(names) - 3} more'}"
        )
    moved = np.array([number.get(name, -1) for name in labelled.names], dtype=np.int64)
    objects = tuple(replace(each, labels=moved[each.labels]) for each in labelled.objects)
    known = dict(zip(labelled.names, labelled.categories, strict=True)) if labelled.categories else {}
    spare = max(known.values(), default=0) + 1
    categories = tuple(known.get(name, spare + place) for place, name in enumerate(names)) if known else ()
    return replace(labelled, names=tuple(names), objects=objects, categories=categories)


def missing_package(setting: str) -> UserError:
    """Tell how to get pycocotools, which reads and measures shapes."""
    return UserError(f"{setting} needs the package pycocotools, which is not installed: pip install 'swin-mim[dense]'")


def coco_masks(setting: str = "detection") -> Any:
    """The module of pycocotools that knows run-length encodings.

    Raises:
        UserError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise missing_package(setting) from None
    return mask


def drawn_runs(runs: dict[str, Any]) -> np.ndarray:
    """A run-length encoding as pycocotools has it -> uint8 (H, W), 1 inside.

    Raises:
        UserError: pycocotools is not installed.
    """
    tools = coco_masks("a shape")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of numpy 2, about its own arrays
        return np.asarray(tools.decode(runs))


def _bytes_of(objects: Objects) -> bytes:
    parts = [objects.boxes.astype("<f4"), objects.labels.astype("<i8"), objects.crowd]
    shapes = [
        polygon.astype("<f4").tobytes() for shape in objects.shapes if isinstance(shape, tuple) for polygon in shape
    ]
    runs = [shape["counts"] for shape in objects.shapes if isinstance(shape, dict)]
    return b"".join([*(part.tobytes() for part in parts), *shapes, *runs])
