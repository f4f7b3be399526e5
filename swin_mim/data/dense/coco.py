"""Reads the JSON files of COCO's instances: images, classes, and a box and perhaps a shape of each object.

What is wrong in a file is told in one line that names the annotation and the image: nothing is guessed or left out.
"""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.decoding.options import USUAL, DecodeOptions
from swin_mim.data.dense.boxes import ImagesWithObjects, Objects, Shape, coco_masks, no_objects
from swin_mim.data.sources.folder import FolderSource
from swin_mim.errors import UserError

MAX_BYTES = 2**31
"""Max size of such a file; that of COCO's 118,287 training images has 470 million bytes."""
SLACK = 1.0
"""Pixels that a box may reach beyond its image: files are rounded. It is cut there."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoxRules:
    """What to do with boxes that no object can have."""

    leave_out: bool = False
    """Leave them out, with their number in the log, instead of refusing the file."""


def is_coco_file(spec: str) -> bool:
    """Whether a source is called like a file of COCO's."""
    return spec.lower().endswith(".json")


def open_coco(
    file: str, images: str | None = None, *, rules: BoxRules | None = None, decoding: DecodeOptions = USUAL
) -> ImagesWithObjects:
    """Open a file of COCO's instances, and the folder of its images.

    Classes are numbered in the order of their ids; images keep the order of the file, also those without any object.

    Args:
        images: the folder that the names of images are relative to; None: that of the file.
        rules: for boxes that are empty or outside of their image.

    Raises:
        UserError: the file cannot be read, says something impossible, or an image is missing.
    """
    path = Path(os.path.expanduser(file))
    document = read_document(path)
    folder = path.parent if images is None else Path(os.path.expanduser(images))
    entries = by_id(path, document, "images")
    categories = by_id(path, document, "categories")
    names = category_names(path, categories)
    if not entries or not categories:
        raise UserError(f"{path}: has {counted(len(entries), 'image')} and {len(categories)} categories: nothing to do")
    number = {identity: place for place, identity in enumerate(sorted(categories))}
    reader = _Reader(path, entries, number, rules or BoxRules())
    objects = reader.objects(document["annotations"])
    files = [_file(path, folder, identity, entry) for identity, entry in entries.items()]
    source = FolderSource(folder, files)
    source.decoding = decoding
    sizes = np.array([reader.size(identity) for identity in entries], dtype=np.int64)
    return ImagesWithObjects(
        source,
        names,
        tuple(objects[identity] for identity in entries),
        sizes,
        tuple(entries),
        tuple(sorted(categories)),
    )


def collected(found: Sequence[tuple[np.ndarray, int, Shape | None, bool, float]]) -> Objects:
    """Objects of (box float32 (4,), class, shape, whether it is a crowd, area)."""
    if not found:
        return no_objects()
    boxes, labels, shapes, crowd, areas = zip(*found, strict=True)
    return Objects(
        np.stack(boxes).astype(np.float32), np.array(labels, np.int64), shapes, np.array(crowd), np.array(areas, float)
    )


def checked_box(box: Any, size: tuple[int, int] | None, what: str) -> np.ndarray:
    """(left, top, width, height) -> float32 (4,): left, top, right, bottom, cut to the image.

    Args:
        size: (H, W) of the image; None: nobody says.
        what: it is, for messages.

    Raises:
        UserError: it is no box, is empty, or is not in the image.
    """
    if not isinstance(box, Sequence | np.ndarray) or len(box) != 4 or not all(map(_is_number, box)):
        raise UserError(f"{what} has the box {str(box)[:60]}: expected left, top, width and height")
    left, top, width, height = map(float, box)
    if width <= 0 or height <= 0:
        raise UserError(f"{what} has a box of {width:g} x {height:g} pixels: width and height must be above 0")
    right, bottom = left + width, top + height
    if size is not None:
        high, wide = size
        if left < -SLACK or top < -SLACK or right > wide + SLACK or bottom > high + SLACK:
            raise UserError(
                f"{what} has a box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}), outside of its image of "
                f"{wide} x {high} pixels"
            )
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, wide), min(bottom, high)
        if right <= left or bottom <= top:
            raise UserError(f"{what} has a box that lies beside its image of {wide} x {high} pixels")
    return np.array([left, top, right, bottom], np.float32)


class _Reader:
    """Reads annotations of one file."""

    def __init__(self, path: Path, entries: Mapping[int, Any], number: Mapping[int, int], rules: BoxRules) -> None:
        self._path, self._entries, self._number, self._rules = path, entries, number, rules

    def size(self, identity: int) -> tuple[int, int]:
        """(H, W) of an image."""
        return image_size(self._path, identity, self._entries[identity])

    def objects(self, annotations: Any) -> dict[int, Objects]:
        """Objects by the id of their image."""
        found: dict[int, list[tuple[np.ndarray, int, Shape | None, bool, float]]] = {key: [] for key in self._entries}
        left_out: list[str] = []
        seen: set[int] = set()
        for place, annotation in enumerate(annotations):
            if not isinstance(annotation, dict):
                raise UserError(f"{self._path}: annotation number {place} is {str(annotation)[:40]}, not an object")
            identity = annotation.get("id", place)
            if identity_of(self._path, identity) in seen:
                raise UserError(f"{self._path}: two annotations have the id {identity}")
            seen.add(identity)
            image, what = self._image_of(annotation, identity)
            category: Any = annotation.get("category_id")
            label = self._number.get(category, -1) if isinstance(category, int) else -1
            if label < 0:
                raise UserError(f"{what} is of category {category!r}, which the file does not have")
            try:
                box = checked_box(annotation.get("bbox"), self.size(image), what)
            except UserError as error:
                if not self._rules.leave_out:
                    raise UserError(
                        f"{error}. Correct it, or leave such boxes out: --data.bad_boxes leave_out"
                    ) from None
                left_out.append(str(error))
                continue
            shape, said = self._shape(annotation, image, what), annotation.get("area")
            area = float((box[2] - box[0]) * (box[3] - box[1])) if said is None or not _is_number(said) else float(said)
            found[image].append((box, label, shape, bool(annotation.get("iscrowd", 0)), area))
        if left_out:
            _log.warning("%s left out, the first: %s", counted(len(left_out), "box", "boxes"), left_out[0])
        return {image: collected(each) for image, each in found.items()}

    def _image_of(self, annotation: Mapping[str, Any], identity: Any) -> tuple[int, str]:
        image: Any = annotation.get("image_id")
        if not isinstance(image, int) or image not in self._entries:
            raise UserError(f"{self._path}: annotation {identity} is of image {image!r}, which the file does not have")
        return image, f"{self._path}: annotation {identity} of {self._entries[image].get('file_name')!r}"

    def _shape(self, annotation: Mapping[str, Any], image: int, what: str) -> Shape | None:
        drawn = annotation.get("segmentation")
        return read_shape(drawn, self.size(image), what) if drawn else None


def identity_of(path: Path, identity: Any) -> int | str:
    """The id of an annotation. Raises `UserError`: it is neither a number nor a text."""
    if not isinstance(identity, int | str):
        raise UserError(f"{path}: an annotation has the id {str(identity)[:40]}: give a number")
    return identity


def read_shape(drawn: Any, size: tuple[int, int], what: str) -> Shape:
    """What an annotation's segmentation draws: polygons, or run lengths of an image of `size` (H, W).

    Args:
        what: it is, for messages.

    Raises:
        UserError: it is neither, or of an image of another size.
    """
    if isinstance(drawn, dict):
        return _run_lengths(drawn, size, what)
    if not isinstance(drawn, list) or not all(_is_polygon(each) for each in drawn):
        raise UserError(f"{what} has a segmentation that is no list of polygons of 3 points or more, nor run lengths")
    return tuple(np.array(each, np.float32).reshape(-1, 2) for each in drawn)


def image_size(path: Path, identity: int, entry: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) of an image by its entry in the file. Raises `UserError`: it does not say them."""
    height, width = (entry.get(key) for key in ("height", "width"))
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
        raise UserError(f"{path}: image {identity} has height {height!r} and width {width!r}: give its pixels")
    return height, width  # type: ignore[return-value]


def category_names(path: Path, categories: Mapping[int, Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of the classes in the order of their ids. Raises `UserError`: two are the same."""
    names = tuple(str(categories[identity].get("name", identity)) for identity in sorted(categories))
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: two categories are called {twice!r}: give each a name of its own")
    return names


def _run_lengths(drawn: dict[str, Any], size: tuple[int, int], what: str) -> Shape:
    counts = drawn.get("counts")
    if drawn.get("size") != list(size):
        raise UserError(f"{what} has run lengths of size {drawn.get('size')}, and its image is {list(size)}")
    if isinstance(counts, list):
        if not all(isinstance(each, int) and each >= 0 for each in counts):
            raise UserError(f"{what} has run lengths that are no numbers from 0")
        if sum(counts) != size[0] * size[1]:
            raise UserError(f"{what} has run lengths of {sum(counts)} pixels in all, not {size[0] * size[1]}")
        return dict(coco_masks("a shape in run lengths").frPyObjects(drawn, *size))
    if not isinstance(counts, str):
        raise UserError(f"{what} has run lengths without counts")
    if (lengths := _unpacked(counts)) is None or sum(lengths) != size[0] * size[1]:
        found = "that are damaged" if lengths is None else f"of {sum(lengths)} pixels in all, not {size[0] * size[1]}"
        raise UserError(f"{what} has run lengths {found}")
    return {"size": list(size), "counts": counts.encode()}


def _unpacked(text: str) -> list[int] | None:
    """The run lengths of a text of pycocotools, which reads beyond the end of a torn one; None: it is none.

    Each is a number of 5 bits a character, the lowest first, from the third on the difference to the one but last.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (bits & 16) << (shift - 4)  # the sign
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return None if shift or min(lengths, default=-1) < 0 else lengths


def read_document(path: Path) -> dict[str, Any]:
    """Read a file of images, categories and annotations. Raises `UserError`: it is none."""
    try:
        if not path.is_file():
            raise UserError(f"{path} does not exist or is no file: give a JSON file of COCO's instances")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no JSON file that can be read: {' '.join(str(error).split())[:100]}") from None
    lists = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(key), list) for key in lists):
        raise UserError(f"{path} is no file of COCO's instances: it must have the lists {', '.join(lists)}")
    return document


def by_id(path: Path, document: Mapping[str, Any], key: str) -> dict[int, dict[str, Any]]:
    """Entries of one of its lists by their ids. Raises `UserError`: ids are missing, or there twice."""
    found: dict[int, dict[str, Any]] = {}
    for entry in document[key]:
        identity = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(identity, int):
            raise UserError(f"{path}: an entry of {key} has the id {identity!r}: expected a whole number")
        if identity in found:
            raise UserError(f"{path}: two {key} have the id {identity}")
        found[identity] = entry
    return found


def _file(path: Path, folder: Path, identity: int, entry: Mapping[str, Any]) -> tuple[str, int]:
    """(relative path, size) of an image."""
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or os.path.isabs(name) or ".." in Path(name).parts:
        raise UserError(f"{path}: image {identity} has the file_name {name!r}: expected a path below {folder}")
    try:
        return name, (folder / name).stat().st_size
    except (OSError, ValueError):
        raise UserError(
            f"{path}: the image {name!r} is not in {folder}: name the folder of the images with data.image_folder"
        ) from None


def _is_number(value: Any) -> bool:
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _is_polygon(points: Any) -> bool:
    return isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0 and all(map(_is_number, points))
