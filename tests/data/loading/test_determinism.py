"""What a run sees is a function of source, seed and position: not of processes, workers, or where it was continued.

Each kind of source is held against itself, in one process without workers from the first position on: which image
stands at each position, its crop to the byte, and its mask. A new kind is one more row of `KINDS`.
"""

import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from swin_mim import files
from swin_mim.data.loading.loader import LoaderOptions, TrainingLoader
from swin_mim.data.packing.pack import PackOptions, pack
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.open import open_source
from swin_mim.data.streaming.source import CacheOptions, open_streamed
from swin_mim.data.transforms.crops import PretrainTransform
from swin_mim.masking import block_mask

COUNT = 41  # no multiple of anything
SEED = 3
GLOBAL, MICRO = 12, 2
STEPS = 5
"""Global batches of the run from the first position: an epoch and almost a half."""
RESUMED_STEPS = 2
TRANSFORM = PretrainTransform((8, 8), flips="dihedral")


def prepared(photos: Path, empty: Path) -> Source:
    pack(str(photos), empty, options=PackOptions(size=24, shard_mib=1, workers=0))
    return open_source(str(empty))


def streamed(photos: Path, empty: Path) -> Source:
    """Tars of seven photos, two at a time."""
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    for start in range(0, len(files), 7):
        with tarfile.open(empty / f"{start:02d}.tar", "w") as shard:
            for file in files[start : start + 7]:
                shard.add(file, file.name)
    return open_streamed(str(empty), cache=CacheOptions(str(empty / "cache"), 0.01), shards_at_once=2)


KINDS: dict[str, Callable[[Path, Path], Source]] = {
    "folder": lambda photos, empty: open_source(str(photos)),
    "prepared": prepared,
    "streamed": streamed,
}
"""Each opens the photos of a folder as a source, and may use an empty folder for what it makes of them."""
STARTS = {"from the start": 0, "within an epoch": GLOBAL, "over the end of an epoch": 3 * GLOBAL}


class Sample(NamedTuple):
    index: int
    crop: bytes
    mask: bytes


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes and formats, some turned by EXIF, all larger than the crops; in two folders."""
    root = tmp_path_factory.mktemp("determinism") / "photos"
    rng, sideways = np.random.default_rng(0), Image.Exif()
    sideways[0x0112] = 6
    for number in range(COUNT):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        image = coarse.resize((40 + 7 * (number % 5), 30 + 11 * (number % 3)))
        path = root / f"{number % 2}" / f"{number:02d}.{'png' if number % 4 == 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **({"exif": sideways} if number % 5 == 1 else {}))
    return root


@pytest.fixture(scope="module")
def sources(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "flush", lambda path: None)  # the disk may be slow
        return {kind: opens(photos, tmp_path_factory.mktemp(kind)) for kind, opens in KINDS.items()}


@pytest.fixture(scope="module")
def alone(sources: dict[str, Source]) -> dict[str, dict[int, Sample]]:
    """What each kind of source gives to one process without workers, from position 0 on."""
    return {kind: delivered(source, start=0, steps=STEPS) for kind, source in sources.items()}


def delivered(source: Source, *, start: int, steps: int, world: int = 1, workers: int = 0) -> dict[int, Sample]:
    """The samples at the positions of so many global batches, of all processes together."""
    found: dict[int, Sample] = {}
    for rank in range(world):
        options = LoaderOptions(rank, world, workers)
        loader = TrainingLoader(source, TRANSFORM, seed=SEED, global_batch=GLOBAL, micro_batch=MICRO, options=options)
        batches = loader.batches(start)
        for batch in islice(batches, steps * GLOBAL // (MICRO * world)):
            assert not batch.broken
            masks = block_mask(MICRO, (4, 4), 2, 0.6, seed=SEED, start=batch.start)
            for number, index in enumerate(batch.indices.tolist()):
                position = batch.start + number
                assert position not in found, "two processes saw the same one"
                crop, mask = batch.images[number].numpy(), masks[number].numpy()
                found[position] = Sample(index, crop.tobytes(), mask.tobytes())
        batches.close()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("workers", [0, 2], ids="{} workers".format)
@pytest.mark.parametrize("world", [1, 2, 3], ids="{} processes".format)
def test_a_position_has_one_image_one_crop_and_one_mask(
    sources: dict[str, Source],
    alone: dict[str, dict[int, Sample]],
    kind: str,
    start: int,
    workers: int,
    world: int,
) -> None:
    seen = delivered(sources[kind], start=start, steps=RESUMED_STEPS, world=world, workers=workers)
    assert sorted(seen) == list(range(start, start + RESUMED_STEPS * GLOBAL))
    for position, sample in seen.items():
        assert sample == alone[kind][position], f"position {position}"


def test_what_is_compared_differs_from_position_to_position(alone: dict[str, dict[int, Sample]]) -> None:
    """Otherwise the tests above would hold nothing."""
    for samples in alone.values():
        assert len(samples) == STEPS * GLOBAL
        assert {sample.index for sample in samples.values()} == set(range(COUNT))
        assert len({sample.crop for sample in samples.values()}) > 0.9 * len(samples)  # small images have few crops
        assert len({sample.mask for sample in samples.values()}) > 1


def test_prepared_images_come_in_the_order_of_their_folder(
    sources: dict[str, Source], alone: dict[str, dict[int, Sample]]
) -> None:
    """Under their names, in the same places, with the same masks; their pixels have been encoded anew."""
    folder, packed = sources["folder"], sources["prepared"]
    for position, sample in alone["folder"].items():
        other = alone["prepared"][position]
        assert folder.path(sample.index) == packed.path(other.index)  # type: ignore[attr-defined]
        assert (sample.index, sample.mask) == (other.index, other.mask)
        assert sample.crop != other.crop
