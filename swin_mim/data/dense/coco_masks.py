"""Class numbers of pixels from the JSON files of COCO: of panoptic segmentation, and of instances.

Classes are the file's categories in the order of their ids, after a class "background" where pixels that no annotation
covers are that. Regions of crowds (iscrowd) have no label, as their outlines are rough.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.multichannel import open_channels
from swin_mim.data.decoding.options import USUAL, DecodeOptions
from swin_mim.data.dense.boxes import Shape, coco_masks, drawn_runs
from swin_mim.data.dense.coco import by_id, category_names, identity_of, image_size, read_document, read_shape
from swin_mim.data.dense.limits import MAX_NUMBER
from swin_mim.data.dense.masks import Masks
from swin_mim.data.sources.folder import FolderSource
from swin_mim.errors import UserError
from swin_mim.files import sha256

BACKGROUND = "background"
"""Name of the class of pixels that no annotation covers; a category of this name is that class too."""

Uncovered = Literal["auto", "background", "ignore"]
"""What pixels are that no annotation covers; auto: background of instances, and without a label of panoptic files, in
which annotators left them out."""


@dataclass(frozen=True)
class MaskRules:
    """How a file becomes class numbers."""

    uncovered: Uncovered = "auto"
    folder: str | None = None
    """Of the PNGs of a panoptic file; None: the one of the file's name beside it."""
    known: tuple[str, ...] | None = None
    """Classes that pixels are numbered by; None: the file's own."""
    decoding: DecodeOptions = USUAL
    """Of these PNGs."""


class CocoMasks(NamedTuple):
    """What a file says."""

    paths: tuple[str, ...]
    """Of the images, as the file names them."""
    names: tuple[str, ...]
    """Of the classes."""
    ignore: int
    """Number of pixels without a label."""
    masks: Masks
    """Of the images in this order, in numbers from 0."""


def open_coco_masks(file: str, rules: MaskRules | None = None) -> CocoMasks:
    """Open a JSON file of COCO's panoptic segmentation or instances; which it is, its annotations say.

    Raises:
        UserError: it cannot be read, contradicts itself, or has classes that are not among the known ones.
    """
    path, rules = Path(os.path.expanduser(file)), rules or MaskRules()
    document = read_document(path)
    entries, categories = by_id(path, document, "images"), by_id(path, document, "categories")
    annotations = _annotations(path, document, entries)
    if not entries or not categories or not annotations:
        found = f"{counted(len(entries), 'image')}, {len(categories)} categories, {len(annotations)} annotations"
        raise UserError(f"{path} has {found}: there is nothing to learn from")
    paths = tuple(_image_path(path, identity, entry) for identity, entry in entries.items())
    panoptic = "segments_info" in annotations[0]
    uncovered = rules.uncovered if rules.uncovered != "auto" else "ignore" if panoptic else BACKGROUND
    names = rules.known or _names(path, categories, uncovered)
    ignore = 255 if len(names) < 256 else MAX_NUMBER
    numbers = _Numbers(path, categories, names, uncovered, ignore)
    if panoptic:
        masks: Masks = _panoptic(path, entries, annotations, numbers, rules)
    else:
        if rules.folder is not None:
            raise UserError(
                f"data.panoptic_folder {rules.folder!r} is of a file of COCO's panoptic segmentation, and {path} is "
                "one of instances: leave it out"
            )
        masks = _instances(path, entries, annotations, numbers)
    return CocoMasks(paths, names, ignore, masks)


class _Numbers:
    """Class numbers of a file's categories."""

    def __init__(
        self, path: Path, categories: Mapping[int, Mapping[str, Any]], names: Sequence[str], uncovered: str, ignore: int
    ) -> None:
        self._path, self._names, self.ignore = path, names, ignore
        self._called = dict(zip(sorted(categories), category_names(path, categories), strict=True))
        if uncovered == BACKGROUND and BACKGROUND not in names:
            raise UserError(
                f"{path}: pixels without an annotation are of the class {BACKGROUND!r}, and the classes are "
                f"{_some(names)}: leave these pixels out with --data.uncovered ignore"
            )
        self.uncovered = names.index(BACKGROUND) if uncovered == BACKGROUND else ignore
        self.fingerprint = repr((tuple(names), self._called, self.uncovered, ignore)).encode()

    def of(self, category: Any, what: str) -> int:
        """The number of a category. Raises `UserError` for one that is not in the file, or of no known class."""
        name = self._called.get(category) if isinstance(category, int) else None
        if name is None:
            raise UserError(f"{what} is of category {category!r}, which the file does not have")
        if name not in self._names:
            raise UserError(f"{what} is of the class {name!r}, which is none of {_some(self._names)}")
        return self._names.index(name)


class InstanceMasks(Masks):
    """Class numbers of instances: smaller ones over larger ones, of as many pixels the later one in the file."""

    def __init__(self, path: Path, names: Sequence[str], numbers: _Numbers) -> None:
        """`names` are those of the images."""
        self._path, self._names, self._numbers = path, names, numbers
        self.sizes: list[tuple[int, int]] = []
        self.shapes: list[list[tuple[int, Shape]]] = [[] for _ in names]
        """Of each image (number, shape) in the order of the file."""
        self.fingerprint = sha256([b"instances", path.read_bytes(), numbers.fingerprint])

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return f"of {self._names[index]} in {self._path}"

    def read(self, index: int) -> np.ndarray:
        height, width = self.sizes[index]
        drawn = [(number, _drawn(shape, (height, width))) for number, shape in self.shapes[index]]
        # crowds lie below all others, and of these the smallest on top; sorting keeps the order of equal ones
        drawn.sort(key=lambda each: (each[0] != self._numbers.ignore, -int(each[1].sum())))
        dtype = np.uint8 if self._numbers.ignore < 256 else np.uint16
        mask = np.full((height, width), self._numbers.uncovered, dtype)
        for number, inside in drawn:
            mask[inside] = number
        return mask


class PanopticMasks(Masks):
    """Class numbers of PNGs in which red + 256 green + 65536 blue is the id of a segment, and 0 none."""

    def __init__(self, path: Path, files: FolderSource, segments: list[dict[int, int]], numbers: _Numbers) -> None:
        """`segments` of each file: numbers by ids."""
        self._path, self._files, self._segments, self._numbers = path, files, segments, numbers
        self.fingerprint = sha256(
            [b"panoptic", path.read_bytes(), files.fingerprint.encode(), numbers.fingerprint]  # of names and sizes
        )

    def __len__(self) -> int:
        return len(self._segments)

    def name(self, index: int) -> str:
        return self._files.name(index)

    def read(self, index: int) -> np.ndarray:
        try:
            pixels = _colours(self._files.content(index), self._files.decoding.max_pixels)
        except BrokenImage as error:
            raise BrokenImage(f"its mask {self.name(index)}: {error}") from error
        if pixels is None:
            raise UserError(
                f"mask {self.name(index)} is no picture of 8-bit RGB, which PNGs of COCO's panoptic segmentation are"
            )
        ids = (pixels.astype(np.int64) * (1, 256, 65536)).sum(axis=2)
        known = {0: self._numbers.uncovered} | self._segments[index]
        found, places = np.unique(ids, return_inverse=True)
        if unknown := [number for number in found.tolist() if number not in known]:
            raise UserError(
                f"mask {self.name(index)} shows the segment {unknown[0]}, which {self._path} does not list for it"
            )
        dtype = np.uint8 if self._numbers.ignore < 256 else np.uint16
        return np.array([known[number] for number in found.tolist()], dtype)[places].reshape(ids.shape)


def _instances(
    path: Path, entries: Mapping[int, Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], numbers: _Numbers
) -> InstanceMasks:
    masks = InstanceMasks(path, [entry["file_name"] for entry in entries.values()], numbers)
    masks.sizes = [image_size(path, identity, entry) for identity, entry in entries.items()]
    places, seen = {identity: place for place, identity in enumerate(entries)}, set()
    for count, annotation in enumerate(annotations):
        identity, image = annotation.get("id", count), annotation["image_id"]
        if identity_of(path, identity) in seen:
            raise UserError(f"{path}: two annotations have the id {identity}")
        seen.add(identity)
        what = f"{path}: annotation {identity} of {entries[image]['file_name']!r}"
        number, drawn = numbers.of(annotation.get("category_id"), what), annotation.get("segmentation")
        if not drawn:
            raise UserError(f"{what} has no segmentation, and masks need the shape of every object: draw or remove it")
        shape = read_shape(drawn, masks.sizes[places[image]], what)
        masks.shapes[places[image]].append((numbers.ignore if annotation.get("iscrowd") else number, shape))
    return masks


def _panoptic(
    path: Path,
    entries: Mapping[int, Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    numbers: _Numbers,
    rules: MaskRules,
) -> PanopticMasks:
    folder = path.with_suffix("") if rules.folder is None else Path(os.path.expanduser(rules.folder))
    of_image: dict[int, Mapping[str, Any]] = {}
    for annotation in annotations:
        if annotation["image_id"] in of_image:
            raise UserError(f"{path}: two annotations are of the image {annotation['image_id']}")
        of_image[annotation["image_id"]] = annotation
    files, segments = [], []
    for identity, entry in entries.items():
        if identity not in of_image:
            raise UserError(f"{path}: image {identity}, {entry['file_name']!r}, has no annotation")
        name = of_image[identity].get("file_name")
        if not _is_below(name):
            raise UserError(f"{path}: the annotation of image {identity} has the file_name {name!r}: expected a PNG's")
        try:
            files.append((str(name), (folder / str(name)).stat().st_size))
        except (OSError, ValueError):
            raise UserError(
                f"{path}: the mask {name!r} is not in {folder}: name the folder of the PNGs with data.panoptic_folder"
            ) from None
        segments.append(_segments(path, identity, of_image[identity], numbers))
    source = FolderSource(folder, files)
    source.decoding = rules.decoding
    return PanopticMasks(path, source, segments, numbers)


def _segments(path: Path, identity: int, annotation: Mapping[str, Any], numbers: _Numbers) -> dict[int, int]:
    """Class numbers by the ids of an image's segments."""
    found: dict[int, int] = {}
    listed = annotation.get("segments_info")
    if not isinstance(listed, list) or not all(isinstance(segment, dict) for segment in listed):
        raise UserError(f"{path}: the annotation of image {identity} has no list of segments_info")
    for segment in listed:
        number, what = segment.get("id"), f"{path}: segment {segment.get('id')!r} of image {identity}"
        if not isinstance(number, int) or not 0 < number < 2**24 or number in found:
            why = "is there twice" if number in found else "has an id outside of 1 to 16777215"
            raise UserError(f"{what} {why}")
        label = numbers.of(segment.get("category_id"), what)
        found[number] = numbers.ignore if segment.get("iscrowd") else label
    return found


def _annotations(path: Path, document: Mapping[str, Any], entries: Mapping[int, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["annotations"]
    for place, annotation in enumerate(found):
        if not isinstance(annotation, dict):
            raise UserError(f"{path}: annotation number {place} is {str(annotation)[:40]}, not an object")
        image: Any = annotation.get("image_id")
        if not isinstance(image, int) or image not in entries:
            which = annotation.get("id", f"number {place}")
            raise UserError(f"{path}: annotation {which} is of image {image!r}, which the file does not have")
    return found


def _names(path: Path, categories: Mapping[int, Mapping[str, Any]], uncovered: str) -> tuple[str, ...]:
    names = category_names(path, categories)
    return (BACKGROUND, *names) if uncovered == BACKGROUND and BACKGROUND not in names else names


def _image_path(path: Path, identity: int, entry: Mapping[str, Any]) -> str:
    name = entry.get("file_name")
    if not _is_below(name):
        raise UserError(f"{path}: image {identity} has the file_name {name!r}: expected a path below data.source")
    return os.path.normpath(str(name))


def _is_below(name: Any) -> bool:
    return isinstance(name, str) and bool(name) and not os.path.isabs(name) and ".." not in Path(name).parts


def _drawn(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    """bool (H, W): inside of it, as pycocotools draws."""
    if isinstance(shape, dict):
        return drawn_runs(shape).astype(bool)
    tools, polygons = coco_masks("a shape"), [polygon.ravel().tolist() for polygon in shape]
    return drawn_runs(tools.merge(tools.frPyObjects(polygons, *size))).astype(bool)


def _colours(data: bytes, max_pixels: int) -> np.ndarray | None:
    """uint8 (H, W, 3) as they are stored; None: it has others. Raises `BrokenImage`."""
    try:
        file = open_channels(data, None, max_pixels)
        pixels = file.read([0, 1, 2]) if len(file.names) == 3 and file.dtype == np.uint8 else None
    except (BrokenImage, UserError):
        raise
    except Exception as error:  # damaged files raise ValueError, struct.error, zlib.error, MemoryError and more
        raise BrokenImage(f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]) from error
    return pixels


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ("" if len(names) <= 3 else f" and {len(names) - 3} more")
