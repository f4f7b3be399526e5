"""The class of every pixel of every image of a source, as files of masks."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from swin_mim.architecture import as_pair
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.dense.joint import WholeImage
from swin_mim.data.dense.limits import MAX_NUMBER
from swin_mim.data.dense.masks import ClassNumbers
from swin_mim.data.packing.writer import check_apart
from swin_mim.data.scenes.georeference import Georeference
from swin_mim.data.scenes.scene import Window
from swin_mim.data.scenes.windows import SMALL, is_read_in_parts, open_windows
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.folder import FolderSource
from swin_mim.data.sources.multichannel import RasterSource
from swin_mim.errors import UserError
from swin_mim.evaluation.dense.mask_files import mask_stems, place_of, write_mask
from swin_mim.evaluation.dense.segmentation import Inference
from swin_mim.evaluation.outputs.collect import Rows
from swin_mim.evaluation.outputs.dense import DenseOutputs, computing, part_of, rows, whole_batches
from swin_mim.evaluation.outputs.embeddings import data_config
from swin_mim.evaluation.outputs.images import open_images
from swin_mim.evaluation.outputs.job import Job, parts_beside
from swin_mim.evaluation.outputs.parts import JOURNAL, Manifest, begun_manifest, digest, finished_manifest
from swin_mim.evaluation.reader import read_of
from swin_mim.models.dense.segmenter import SwinSegmenter
from swin_mim.models.dense.sliding import Band, Read, bands
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training.config.pretrain import DataConfig
from swin_mim.training.dense.segmenter import names_of
from swin_mim.training.images import named_channels
from swin_mim.training.run.jsonl import append_line, whole_lines

LISTED = "images.parquet"
"""A row for each image, in the folder of the masks."""
WHOLE_PIXELS = 2048**2
"""An image of more pixels goes through the model window by window, unless somebody says otherwise."""

Way = Literal["auto", "whole", "slide"]

_SAID_EVERY = 60.0  # seconds, where there is no terminal


@dataclass(frozen=True)
class MaskOptions:
    """How masks are made."""

    window: Way = "auto"
    """Images whole, or window by window with the logits averaged where windows overlap, a third of them; auto: the
    latter of images of more than `WHOLE_PIXELS`."""
    resize: int | None = None
    """Shorter side in pixels at which the model sees images; None: their own."""
    first_class: int = 0
    """Number of the first class in the files."""


@dataclass(frozen=True)
class Segmenting:
    """Writes the masks of images.

    Args:
        source: the images; `stems` are the names of their masks.
        folder: of the masks.
        numbers: of the classes in files.
    """

    model: SwinSegmenter
    source: Source
    data: DataConfig
    folder: Path
    stems: Sequence[str]
    numbers: ClassNumbers
    options: MaskOptions

    def __call__(self, starts: Sequence[int], dtype: torch.dtype, take: Callable[[Rows], None]) -> None:
        device = next(self.model.parameters()).device
        preprocess = Preprocessor(self.model.preprocessing, device)
        how: dict[str, Any] = {"data": self.data, "device": device, "batch": 1, "pixel_bytes": preprocess.pixel_bytes}
        decoded = [start for start in starts if start not in self.large]
        batches = whole_batches(self.source, WholeImage(self._size), decoded, **how)
        with computing(self.model, device, dtype):
            for index in starts:
                try:
                    if (path := self.large.get(index)) is not None:
                        found, place = self._by_parts(path, preprocess)
                    else:
                        batch = next(batches)
                        if not read_of(batch).all():
                            raise BrokenImage(batch.broken[0].reason)
                        found = self._classes(batch.images, preprocess, self.source.name(index))
                        place = place_of(self.source, index)
                except BrokenImage as error:
                    take(rows(index, [[None]] * 4, [str(error)]))
                    continue
                file = write_mask(self.folder, self.stems[index], found, self.numbers, place)
                mask = file.relative_to(self.folder).as_posix()
                append_line(parts_beside(self.folder) / JOURNAL, {"mask": mask})
                columns = [mask, *found.shape, pixels_of(found, self.numbers.count)]
                take(rows(index, [[value] for value in columns], [None]))

    @cached_property
    def large(self) -> dict[int, Path]:
        """Files by the index of their image that are not decoded whole, but read in parts."""
        files = self.source.source if isinstance(self.source, RasterSource) else self.source
        if not isinstance(files, FolderSource):
            return {}
        sizes = [size for _, size in files.inventory()]
        some = [index for index, size in enumerate(sizes) if size >= SMALL and is_read_in_parts(files.paths[index])]
        found: dict[int, Path] = {}
        for index in some:
            try:
                windows = open_windows(files.file(index), named_channels(self.data), self.data.max_pixels)
            except BrokenImage:  # said where it is to be predicted
                found[index] = files.file(index)
                continue
            if windows is not None:
                windows.close()
                found[index] = files.file(index)
        return found

    @property
    def _size(self) -> tuple[int, int]:
        return as_pair(self.model.encoder.config.image_size)

    def _classes(self, images: Tensor, preprocess: Preprocessor, name: str) -> np.ndarray:
        """One image (1, C, H, W) as it was decoded -> labels (H, W); pixels that are not there have none."""
        size = images.shape[2], images.shape[3]
        slides = self.options.window == "slide" or (self.options.window == "auto" and size[0] * size[1] > WHOLE_PIXELS)
        if slides and self.options.resize is None:

            def read(top: int, left: int, height: int, width: int) -> Tensor:
                return images[:, :, top : top + height, left : left + width]

            return self._slid(read, size, preprocess, name)
        logits = Inference(self.options.resize, self._size if slides else None)(self.model, preprocess(images))
        found = logits[0].argmax(dim=0).to("cpu", torch.int32).numpy().astype(self.numbers.dtype)
        if images.is_floating_point():
            found[images[0, 0].isnan().numpy()] = self.numbers.unlabelled
        return found

    def _by_parts(self, path: Path, preprocess: Preprocessor) -> tuple[np.ndarray, Georeference | None]:
        """Labels of the image in a file that is read window by window, and where it lies. Raises `BrokenImage`."""
        windows = open_windows(path, named_channels(self.data), self.data.max_pixels)
        if windows is None or self.options.window == "whole" or self.options.resize is not None:
            raise BrokenImage("it is too large to be decoded whole: leave --window whole and --resize out")
        rgb, transform = named_channels(self.data) is None, WholeImage(self._size)

        def read(top: int, left: int, height: int, width: int) -> Tensor:
            part = windows.read(Window(top, left, top + height, left + width))
            return transform(Image.fromarray(part.values) if rgb else part)[None]

        with closing(windows):
            return self._slid(read, windows.size, preprocess, path.name), windows.place

    def _slid(self, read: Read, size: tuple[int, int], preprocess: Preprocessor, name: str) -> np.ndarray:
        """Labels of an image that is read window by window; `read` gives parts (1, C, h, w) as they were decoded."""
        found, missing = np.empty(size, self.numbers.dtype), np.zeros(size, dtype=bool)

        def normalised(top: int, left: int, height: int, width: int) -> Tensor:
            part = read(top, left, height, width)
            if part.is_floating_point():
                missing[top : top + height, left : left + width] = part[0, 0].isnan().numpy()
            return preprocess(part)[0]

        for band in told(bands(self.model, normalised, size, self._size), name, size[0]):
            classes = band.logits.argmax(dim=0).to("cpu", torch.int32).numpy()
            found[band.top : band.top + len(classes)] = classes
        found[missing] = self.numbers.unlabelled
        return found


def pixels_of(classes: np.ndarray, count: int) -> list[int]:
    """How many pixels each of `count` classes has; strip by strip, as counting takes eight bytes for each."""
    total = np.zeros(count + 1, np.int64)
    for top in range(0, len(classes), 256):
        total += np.bincount(np.minimum(classes[top : top + 256], count).ravel(), minlength=count + 1)
    return total[:count].tolist()


def told(found: Iterator[Band], name: str, height: int) -> Iterator[Band]:
    """The bands of an image of `height`, with a bar on a terminal while there are many; elsewhere a line a minute."""
    said = time.monotonic()
    bar: dict[str, Any] = {"desc": name, "unit": " rows", "leave": False, "disable": None, "delay": 5}
    with tqdm(total=height, **bar) as progress:
        for band in found:
            yield band
            done = band.top + band.logits.shape[1]
            progress.update(done - progress.n)
            if not sys.stderr.isatty() and time.monotonic() - said > _SAID_EVERY:
                said = time.monotonic()
                print(f"{name}: {done} of {height} rows", file=sys.stderr, flush=True)


def mask_table(names: Sequence[str]) -> Callable[[int, dict[str, Any], dict[str, np.ndarray]], Any]:
    """A function that makes a part's rows a `pyarrow.Table`: image, mask, its path below the folder, height, width,
    "pixels of NAME" for each class, error."""

    def table(number: int, known: dict[str, Any], values: dict[str, np.ndarray]) -> Any:
        import pyarrow as pa

        columns = dict(known)
        error = columns.pop("error")
        for name, kind in (("mask", pa.string()), ("height", pa.int64()), ("width", pa.int64())):
            columns[name] = pa.array(values[name].tolist(), kind)
        for place, name in enumerate(names):
            counts = [None if each is None else each[place] for each in values["pixels"]]
            columns[f"pixels of {name}"] = pa.array(counts, pa.int64())
        return pa.table(columns | {"error": error})

    return table


def mask_job(
    model: SwinSegmenter,
    places: tuple[str, str, Path],
    given: dict[str, Any],
    *,
    options: MaskOptions,
    precision: str,
) -> Job:
    """Prepare what `swin-mim predict` does with a segmenter; arguments as of `embedding_job`.

    Raises:
        UserError: the source cannot be opened, has other channels than the model takes, or the folder of the masks
            holds something else or is that of the images.
    """
    name, spec, out = places
    names = names_of(model, None)
    data = data_config(spec, model, name, given)
    source = open_images(data)
    check_folder(out, spec)
    numbers = numbers_of(len(names), options.first_class)
    computed = Segmenting(model, source, data, out, mask_stems(source), numbers, options)
    about: Manifest = {"model": digest(model), "preprocessing": repr(model.preprocessing), "classes": list(names)}
    about |= {"window": options.window, "resize": options.resize, "first_class": options.first_class}
    return Job(
        out / LISTED,
        parts_beside(out),
        images=data,
        source=source,
        outputs=DenseOutputs(model, dict.fromkeys(("mask", "height", "width", "pixels"), ()), computed),
        batch=1,
        part=part_of(len(source), 1),
        precision=precision,
        about=about,
        labels=None,
        table_of=mask_table(names),
        discard=lambda: discard_masks(out),
    )


def numbers_of(count: int, first: int) -> ClassNumbers:
    """Numbers of so many classes in files, and 255 of pixels that are not there, or 65535 where a class has that.

    Raises:
        UserError: a number is too large for a file.
    """
    if first < 0 or first + count > MAX_NUMBER:
        raise UserError(f"--first_class {first} must be 0 to {MAX_NUMBER - count}, as there are {count} classes")
    return ClassNumbers(count, first, 255 if first > 255 or first + count <= 255 else MAX_NUMBER)


def check_folder(out: Path, spec: str) -> None:
    """Raise a `UserError` where masks would lie among the images, or among something that no `mask_job` wrote."""
    path = Path(spec).expanduser()
    if path.is_dir():
        check_apart(path, out)
    if not out.exists() or not any(out.iterdir()):
        return
    if not _is_of_masks(_manifest_of(out)):
        raise UserError(f"--out {out} holds something else, such as {min(out.iterdir()).name}: name a new folder")
    listed_masks(out)


def _manifest_of(out: Path) -> Manifest | None:
    return finished_manifest(out / LISTED) if (out / LISTED).exists() else begun_manifest(parts_beside(out))


def _is_of_masks(manifest: Manifest | None) -> bool:
    return manifest is not None and "first_class" in manifest


def listed_masks(out: Path) -> list[Path]:
    """Files of the masks that earlier commands wrote, by their finished list and the journal of one that is none yet.

    Raises:
        UserError: a list has no column of masks, or names what lies elsewhere.
    """
    import pyarrow.parquet as pq

    named, path = [], out / LISTED
    if path.exists():
        if "mask" not in pq.read_schema(path).names:
            raise UserError(f"{path} has no column mask: name another --out")
        named = [(path, mask) for mask in pq.read_table(path, columns=["mask"])["mask"].to_pylist() if mask is not None]
    if _is_of_masks(begun_manifest(parts_beside(out))):
        path = parts_beside(out) / JOURNAL
        named += [(path, line["mask"]) for line in whole_lines(path)]
    found, inside = [], out.resolve()
    for path, mask in named:
        if inside not in (file := (out / str(mask)).resolve()).parents:
            raise UserError(f"{path} names a mask {mask} that is not in {out}: name another --out")
        found.append(file)
    return found


def discard_masks(out: Path) -> None:
    """Remove the masks that earlier commands listed, and the finished list; errors of `listed_masks`."""
    for mask in listed_masks(out):
        mask.unlink(missing_ok=True)
    (out / LISTED).unlink(missing_ok=True)
