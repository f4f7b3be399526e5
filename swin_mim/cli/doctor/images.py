"""What a source of images holds: formats, channels, sizes, and what is wrong with them. For `swin-mim doctor`."""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from torch.utils.data import Dataset
from tqdm import tqdm

from swin_mim.cli.doctor.rasters import Channels
from swin_mim.data.decoding.array_files import is_npy, is_npz
from swin_mim.data.decoding.channel_reader import numbers
from swin_mim.data.decoding.decode_limits import BrokenImage, check_metadata
from swin_mim.data.decoding.kinds import IMAGE_SUFFIXES, RASTER_SUFFIXES
from swin_mim.data.decoding.rgb import FORMATS, decode_image
from swin_mim.data.decoding.tiff_files import is_tiff
from swin_mim.data.loading.workers import load_batches
from swin_mim.data.sampling import Place
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.folder import TABLE_SUFFIXES, FolderSource
from swin_mim.data.sources.multichannel import RasterSource
from swin_mim.data.statistics import Statistics, spread_indices
from swin_mim.files import sha256

FLAT = 2.0
"""Standard deviation, of values from 0 to 255, up to which a picture shrunk to 32 x 32 counts as near-empty."""
READABLE = "grey, RGB, palette and CMYK, with or without transparency"

_SHRUNK = (32, 32)
_TOGETHER = 8
_FIRST = 5  # names that are listed
_PIXELS = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with transparency",
    "La": "grey with transparency",
    "P": "palette",
    "PA": "palette with transparency",
    "RGB": "RGB",
    "RGBA": "RGB with transparency",
    "RGBX": "RGB",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "LAB": "Lab",
}
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL = 258, 277  # TIFF tags


class Look(NamedTuple):
    """What one image is."""

    name: str
    format: str = ""
    pixels: str = ""
    """ "RGB 8 bit"."""
    size: tuple[int, int] = (0, 0)
    """Width and height, upright."""
    digest: str = ""
    """sha256 of its bytes."""
    flat: bool = False
    reason: str = ""
    """Why it cannot be read; empty if it can."""
    channels: int = 0
    """Known of a raster, or of a TIFF that cannot be read."""
    dtype: str = ""
    """Known of a raster."""
    statistics: Statistics | None = None
    """Known of a raster."""


@dataclass(frozen=True)
class Broken:
    name: str
    reason: str


@dataclass(frozen=True)
class Images:
    """What was found; counts are of the images that were looked at."""

    total: int
    looked_at: int
    formats: dict[str, int]
    pixels: dict[str, int]
    smallest: tuple[int, int] | None
    """Width and height, as of the next two; None if no image can be read."""
    median: tuple[int, int] | None
    largest: tuple[int, int] | None
    too_small: int
    """Smaller than the training size on a side."""
    broken: int
    first_broken: tuple[Broken, ...]
    too_many_channels: dict[int, int]
    """Broken TIFF files that have more channels than are read."""
    near_empty: int
    first_near_empty: tuple[str, ...]
    copies: int
    """Files that are byte for byte equal to one before."""
    first_copies: tuple[tuple[str, ...], ...]
    """Names that are the same image."""
    folders: dict[str, int]
    """Images in each folder at the top."""
    other_files: dict[str, int]
    """Files that are not read, by suffix."""
    channels: Channels | None = None
    """Known of rasters."""

    @property
    def broken_share(self) -> float:
        return self.broken / self.looked_at


def look_at_all(source: Source, folder: Path | None, most: int, size: tuple[int, int], workers: int) -> Images:
    """Decode up to `most` images, evenly spread and the same ones each time.

    Args:
        folder: that the source is, if it is one.
        size: (H, W) of training.
        workers: processes that decode.

    Raises:
        UserError: decoders die again and again.
    """
    indices = spread_indices(len(source), most)
    each = [Place(index, index) for index in indices]
    places = [each[start : start + _TOGETHER] for start in range(0, len(each), _TOGETHER)]
    looks: list[Look] = []
    loaded = load_batches(_Looks(source), places, list, workers=min(workers, len(places)), batch_bytes=1)
    with tqdm(total=len(indices), desc="images", unit="", file=sys.stderr, disable=None, leave=False) as bar:
        for batch in loaded:
            looks += batch
            bar.update(len(batch))
    files = source.source if isinstance(source, RasterSource) else source
    paths = files.paths if isinstance(files, FolderSource) else []
    folders = Counter(path.split(os.sep)[0] for path in paths if os.sep in path)
    read = IMAGE_SUFFIXES if files is source else RASTER_SUFFIXES
    found = summary(looks, len(source), size, dict(folders), other_files(folder, read) if folder else {})
    return replace(found, channels=_channels(looks, source.channels)) if isinstance(source, RasterSource) else found


def _channels(looks: Sequence[Look], names: Sequence[str]) -> Channels | None:
    """None: no image can be read."""
    counts = Counter(look.channels for look in looks if look.channels)
    measured = [look.statistics for look in looks if look.statistics is not None]
    if not measured:
        return None
    dtypes = _counted(look.dtype for look in looks if look.dtype)
    return Channels.of(names, dict(counts.most_common()), dtypes, reduce(Statistics.merge, measured))


def summary(
    looks: Sequence[Look], total: int, size: tuple[int, int], folders: dict[str, int], others: dict[str, int]
) -> Images:
    readable, broken = [look for look in looks if not look.reason], [look for look in looks if look.reason]
    by_area = sorted((look.size for look in readable), key=lambda size: size[0] * size[1])
    flat = [look.name for look in readable if look.flat]
    same: dict[str, list[str]] = {}
    for look in looks:
        if look.digest:
            same.setdefault(look.digest, []).append(look.name)
    groups = [tuple(names) for names in same.values() if len(names) > 1]
    return Images(
        total=total,
        looked_at=len(looks),
        formats=_counted(look.format for look in readable),
        pixels=_counted(look.pixels for look in readable),
        smallest=by_area[0] if by_area else None,
        median=by_area[len(by_area) // 2] if by_area else None,
        largest=by_area[-1] if by_area else None,
        too_small=sum(width < size[1] or height < size[0] for width, height in by_area),
        broken=len(broken),
        first_broken=tuple(Broken(look.name, look.reason) for look in broken[:_FIRST]),
        too_many_channels=dict(Counter(look.channels for look in broken if look.channels > 4)),
        near_empty=len(flat),
        first_near_empty=tuple(flat[:_FIRST]),
        copies=sum(len(group) - 1 for group in groups),
        first_copies=tuple(group[:_FIRST] for group in groups[:_FIRST]),
        folders=folders,
        other_files=others,
    )


def other_files(folder: Path, read: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, int]:
    """Files below a folder that are neither read nor tables, by suffix, the most frequent first; no hidden ones."""
    found: Counter[str] = Counter()
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.update(os.path.splitext(name)[1].lower() or "without a suffix" for name in names if name[0] != ".")
    return {suffix: n for suffix, n in found.most_common() if suffix not in read + TABLE_SUFFIXES}


class _Looks(Dataset[Look]):
    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, place: Place) -> Look:
        return look_at(self._source, place.image)


def look_at(source: Source, index: int) -> Look:
    """Read and decode one image."""
    if isinstance(source, RasterSource):
        return _look_at_raster(source, index)
    look, data = Look(source.name(index)), b""
    try:
        if files := source.files(index):
            data = files[0][1]
            look = look._replace(digest=sha256([data]))
            image = decode_image(data)
            format, pixels = header(data)
            look = look._replace(format=format, pixels=pixels)
        else:
            image = source.image(index)
            look = look._replace(digest=sha256([image.tobytes()]))
            look = look._replace(format="crops of a picture in memory", pixels="RGB 8 bit")
    except BrokenImage as error:
        channels, bits = tiff_layout(data)
        reason = f"TIFF of {channels} channels of {bits} bit" if channels > 4 else str(error)
        return look._replace(reason=reason, channels=channels)
    return look._replace(size=image.size, flat=is_flat(image))


def _look_at_raster(source: RasterSource, index: int) -> Look:
    look = Look(source.name(index))
    try:
        files = source.files(index)
        digest = sha256(content for _, content in files)
        # known also of images that have others than are read
        mask, names = source.bands.mask, source.names_of(files)
        count = sum(mask not in (name, number) for name, number in zip(names, numbers(len(names)), strict=True))
        look = look._replace(digest=digest, channels=count)
        raster = source.decode(files)
    except BrokenImage as error:
        return look._replace(reason=str(error))
    format = raster_format(files[0][1]) if len(files) == 1 else f"of {len(files)} files"
    statistics = Statistics.of(raster)
    return look._replace(
        format=format,
        pixels=f"{plural_channels(raster.values.shape[2])} of {raster.values.dtype}",
        size=(raster.values.shape[1], raster.values.shape[0]),
        flat=statistics.min == statistics.max,
        dtype=raster.values.dtype.name,
        statistics=statistics,
    )


def plural_channels(count: int) -> str:
    return f"{count} channel{'' if count == 1 else 's'}"


def raster_format(data: bytes) -> str:
    """ "TIFF", of a file that can be decoded."""
    if is_npy(data) or is_npz(data):
        return "npy" if is_npy(data) else "npz"
    return "TIFF" if is_tiff(data) else header(data)[0]


def header(data: bytes) -> tuple[str, str]:
    """("JPEG", "RGB 8 bit") of a file that can be decoded."""
    with warnings.catch_warnings(action="ignore"), Image.open(BytesIO(data), formats=FORMATS) as image:
        kind = _PIXELS.get(image.mode, "grey")
        bits = {"1": "1 bit", "F": "floating point"}.get(image.mode) or f"{_bits(image, data)} bit"
        return ("JPEG" if image.format == "MPO" else image.format or ""), f"{kind} {bits}"


def _bits(image: Image.Image, data: bytes) -> int:
    # Pillow's mode knows of 16 bits in grey only
    by_mode = 16 if image.mode.startswith("I;16") else 32 if image.mode.startswith("I") else 8
    if image.format == "PNG":
        return max(data[24], by_mode) if image.mode != "P" else by_mode
    return max(by_mode, tiff_layout(data)[1])


def tiff_layout(data: bytes) -> tuple[int, int]:
    """(channels, bits of a channel) of a TIFF file; (0, 0) of any other."""
    if not data.startswith((b"II", b"MM")):
        return 0, 0
    try:
        check_metadata(data)
        tags = ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
        file = BytesIO(data)
        file.seek(tags.next)
        with warnings.catch_warnings(action="ignore"):
            tags.load(file)
        bits = tags.get(_BITS_PER_SAMPLE, (1,))
        return int(tags.get(_SAMPLES_PER_PIXEL, 1)), int(max(bits) if isinstance(bits, tuple) else bits)
    except Exception:  # a damaged header can raise anything, and then says nothing
        return 0, 0


def is_flat(image: Image.Image) -> bool:
    """Whether a picture is almost constant; noise does not count."""
    small = np.asarray(image.resize(_SHRUNK, Image.Resampling.BOX), dtype=np.float32)
    return bool(small.std(axis=(0, 1)).max() <= FLAT)


def _counted(values: Iterator[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())
