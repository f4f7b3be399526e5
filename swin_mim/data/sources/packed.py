"""Packed images on disk, as `packing` leaves them: arrow shards in data/, and packed.json that says what they are.

    packed.json           what was packed and how, and of every shard its rows, its size and its sha256
    data/train-00000.arrow, ...
    broken_images.jsonl   what could not be read, if anything

Why arrow and not parquet: a row is found by memory map, where the file lies. The `datasets` library reads parquet only
after it has written all of it once more, as arrow, into its cache; and a row of parquet costs the decoding of its whole
row group.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from swin_mim.counts import counted
from swin_mim.data.statistics import Statistics, rounded
from swin_mim.errors import UserError
from swin_mim.files import sha256_of_file

MANIFEST = "packed.json"
BROKEN = "broken_images.jsonl"
SHARDS = "data"
IMAGE = "image"
"""The column of the images."""


@dataclass(frozen=True)
class Shard:
    """An arrow file of whole rows."""

    file: str
    """Relative to the folder."""
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Packed:
    """What packed.json holds."""

    source: dict[str, Any]
    """What was packed: `source`, `config`, `split`, `column` as they were given, `images` and `fingerprint`."""
    settings: dict[str, Any]
    """What decides the bytes of the shards."""
    made_with: dict[str, str]
    """Versions of what made these bytes."""
    shards: tuple[Shard, ...] = ()
    read: int = 0
    """Images of the source that are in the shards or listed as broken: its first ones."""
    broken: int = 0
    pixels: int = 0
    sums: tuple[int, ...] = (0, 0, 0)
    """Sums of the values 0..255 of each channel, over all pixels of the packed images before compression; exact."""
    squares: tuple[int, ...] = (0, 0, 0)
    """Sums of these values squared."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, of values from 0 to 1; None before the end."""
    std: tuple[float, ...] | None = None
    rasters: dict[str, Any] | None = None
    """For images of any channels: `channels`, their names; `dtypes`, how many images are of which; `statistics`, over
    the valid pixels, of what `sums` and `squares` say of RGB images. In the units of the files, as `mean` and `std` are
    then."""
    fingerprint: str | None = None
    """Fingerprint of the packed images as a source of training; None before the end: it tells that all is there."""

    def with_raster(self, statistics: Statistics, dtype: str) -> "Packed":
        """With one raster more."""
        assert self.rasters is not None
        before, dtypes = self.rasters["statistics"], self.rasters["dtypes"]
        all_of_them = Statistics.from_json(before).merge(statistics) if before else statistics
        counted = dtypes | {dtype: dtypes.get(dtype, 0) + 1}
        rasters = self.rasters | {"dtypes": counted, "statistics": all_of_them.as_json()}
        return replace(self, pixels=self.pixels + statistics.pixels, rasters=rasters)

    @property
    def images(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def complete(self) -> bool:
        return self.fingerprint is not None

    def finished(self, fingerprint: str) -> "Packed":
        """Add its statistics: population mean and std over all pixels, of rasters over the valid ones."""
        if self.rasters is not None:
            statistics = Statistics.from_json(self.rasters["statistics"])
            mean, std = rounded(statistics.mean), rounded(statistics.std)
            return replace(self, mean=mean, std=std, fingerprint=fingerprint)
        means = [total / self.pixels for total in self.sums]
        # a difference of large numbers, which are whole: no digit is lost before the root
        variance = [
            (self.pixels * square - total * total) / self.pixels**2
            for total, square in zip(self.sums, self.squares, strict=True)
        ]
        return replace(
            self,
            mean=tuple(round(each / 255, 6) for each in means),
            std=tuple(round(each**0.5 / 255, 6) for each in variance),
            fingerprint=fingerprint,
        )

    def text(self) -> str:
        """As JSON."""
        fields = asdict(self)
        if self.rasters is None:
            del fields["rasters"]
        return json.dumps(fields, indent=1) + "\n"


def read_packed(folder: Path) -> Packed | None:
    """What the manifest of a folder says; None: it has none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        fields["shards"] = [Shard(**shard) for shard in fields["shards"]]
        for key, value in fields.items():
            fields[key] = tuple(value) if isinstance(value, list) else value  # as it was before it was written
        return Packed(**fields)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): pack the images again into a new folder") from error


class PackedRasters(NamedTuple):
    """What a folder of packed rasters says of itself."""

    channels: tuple[str, ...]
    """Names."""
    mean: tuple[float, ...]
    """Mean of each channel over its valid pixels, in the units of the files."""
    std: tuple[float, ...]
    nodata: float | None
    """What marked the gaps in the files, beside what these said; what is packed says itself which pixels are valid."""
    mask_channel: str | None


def packed_rasters(folder: Path) -> PackedRasters | None:
    """What `folder` says of its channels; None: these are no packed rasters, or their packing has not ended.

    Raises:
        UserError: the manifest is damaged.
    """
    packed = read_packed(folder)
    if packed is None or packed.rasters is None or packed.mean is None or packed.std is None:
        return None
    nodata, mask = packed.settings.get("nodata"), packed.settings.get("mask_channel")
    nodata = None if nodata is None else float(nodata)
    return PackedRasters(tuple(packed.rasters["channels"]), packed.mean, packed.std, nodata, mask)


def text_if_nan(value: float | None) -> float | str | None:
    """A value that equals itself after JSON."""
    return "nan" if value is not None and math.isnan(value) else value


def load_packed(folder: Path) -> Any:
    """All rows as a `datasets.Dataset` over the memory map of the shards; nothing is copied.

    Raises:
        ValueError: the packing has not ended, or a shard is missing or has another size.
    """
    packed = read_packed(folder)
    if packed is None or not packed.complete:
        raise ValueError("its packing was interrupted: the same swin-mim prepare command again finishes it")
    return load_shards(folder, packed.shards)


def load_shards(folder: Path, shards: Sequence[Shard]) -> Any:
    """As `load_packed`, but only these."""
    import datasets

    check_sizes(folder, shards)
    opened = [datasets.Dataset.from_file(str(folder / shard.file), split=datasets.Split.TRAIN) for shard in shards]
    return datasets.concatenate_datasets(opened) if len(opened) > 1 else opened[0]


def check_sizes(folder: Path, shards: Sequence[Shard]) -> None:
    """Raises ValueError for a shard that is missing or of another size."""
    for shard in shards:
        path = folder / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes instead of {shard.bytes}"
            raise ValueError(f"{shard.file} {found}: pack the images again into a new folder")


def verify(folder: Path) -> Packed:
    """Check the sha256 of every shard.

    Raises:
        UserError: there is nothing packed, the packing has not ended, or shards are missing or damaged.
    """
    packed = read_packed(folder)
    if packed is None:
        found = f"holds no {MANIFEST}" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {found}: there are no packed images to verify")
    damaged = [shard.file for shard in packed.shards if not _is_whole(folder / shard.file, shard.sha256)]
    if damaged:
        shown = ", ".join(damaged[:5]) + (f" and {len(damaged) - 5} more" if len(damaged) > 5 else "")
        raise UserError(
            f"{len(damaged)} of {counted(len(packed.shards), 'shard')} of {folder} missing or damaged ({shown}): "
            "pack the images again into a new folder"
        )
    if not packed.complete:
        shards = counted(len(packed.shards), "shard is", "shards are")
        raise UserError(
            f"{folder}: its {shards} whole, but the packing was interrupted after {packed.read} of "
            f"{packed.source['images']} images: the same swin-mim prepare command again finishes it"
        )
    return packed


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return sha256_of_file(path) == digest
    except OSError:  # missing, or a disk that does not read it
        return False
