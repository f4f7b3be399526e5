"""Images from JPEGs to normalised batches on the device, without training, ours and the others' way: `bench.py loader`.

ours                  `swin_mim.data`, as recipes/pretrain.py reads a folder: crops as uint8, normalised on the device
torchvision           as microsoft/SimMIM does it: ImageFolder, RandomResizedCrop, flip, ToTensor, Normalize
datasets              an image folder of the `datasets` library with its Image feature, and the same transforms

A turn has new workers and streams without end. The clock starts when there was a batch of each worker: starting them
does not count, and nothing is ready that was made before.
"""

import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from bench_report import describe, number, output, print_machine, print_table, write_json
from bench_settings import LoaderSettings, check
from bench_timing import Failed, take_turns, times
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from swin_mim.data.blue_marble import composite
from swin_mim.data.decode import decoder_text
from swin_mim.data.loader import training_batches
from swin_mim.data.sources import open_source
from swin_mim.data.transforms import PretrainTransform, normalize
from swin_mim.errors import UserError

SCALE = (0.67, 1.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = ((500, 375), (1600, 1200))
"""(W, H) of the JPEGs that are made: ImageNet's usual size, and a photograph's."""
QUALITY = 90
CLASSES = 2
"""Folders of a made data set: torchvision insists on some."""

Batches = Callable[[], Iterator[Tensor]]
"""Starts an endless stream of normalised images (B, 3, H, W) on the device."""


def loader(settings: LoaderSettings) -> None:
    """Measure, print the table and write the JSON."""
    out = output(settings)
    device = check(settings)
    least = (untimed_batches(max(settings.workers)) + 1) * settings.batch
    if settings.images < least:
        raise UserError(
            f"--images {settings.images} must be at least {least}, a batch of each worker and one to be timed"
        )
    report = describe(settings, device)
    print_machine(report, out)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(settings.source) if settings.source else make_images(Path(made, "images"), settings.images)
        report |= {"source": settings.source or f"{settings.images} crops of Blue Marble, {sizes_text()}"}
        report |= {"decoder": decoder_text()}
        print(f"loader    {report['source']}; {settings.image_size} px, batches of {settings.batch}", file=out)
        print(f"ours      decodes by {report['decoder']}\n", file=out)
        rows, failed = measure(folder, Path(made), settings, device)
    report |= {"results": rows, "not_measured": {name: reason for name, (reason,) in failed.items()}}
    print_rows(report, out)
    write_json(report, settings.json)


def sizes_text() -> str:
    return "JPEGs of " + " and ".join(f"{width} x {height} px" for width, height in SIZES)


def make_images(folder: Path, count: int) -> Path:
    """JPEGs cut from the composite of the demo data set, in class folders, the sizes in turn."""
    from PIL import Image

    picture = Image.fromarray(composite())
    rng = torch.Generator().manual_seed(0)
    for index in range(count):
        width, height = SIZES[index % len(SIZES)]
        left = int(torch.randint(picture.width - width, (), generator=rng))
        top = int(torch.randint(picture.height - height, (), generator=rng))
        file = folder / f"class{index % CLASSES}" / f"{index:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.crop((left, top, left + width, top + height)).save(file, quality=QUALITY)
    return folder


# The systems: each opens the folder and gives what starts a stream of batches.


def open_ours(folder: Path, cache: Path, workers: int, settings: LoaderSettings, device: torch.device) -> Batches:
    source = open_source(str(folder))
    transform = PretrainTransform((settings.image_size, settings.image_size), scale=SCALE)

    def batches() -> Iterator[Tensor]:
        sizes: dict[str, Any] = {"global_batch": settings.batch, "micro_batch": settings.batch, "workers": workers}
        loaded = training_batches(source, transform, seed=0, samples_seen=0, rank=0, world=1, **sizes)
        with closing(loaded):  # type: ignore[type-var]
            for batch in loaded:
                yield normalize(batch.images.to(device), MEAN, STD)

    return batches


def open_torchvision(
    folder: Path, cache: Path, workers: int, settings: LoaderSettings, device: torch.device
) -> Batches:
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(folder), their_transform(settings.image_size))
    return partial(their_batches, dataset, lambda sample: sample[0], workers, settings, device)


def open_datasets(folder: Path, cache: Path, workers: int, settings: LoaderSettings, device: torch.device) -> Batches:
    import datasets

    datasets.disable_progress_bars()
    table = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache))
    transform = their_transform(settings.image_size)

    def transformed(rows: dict[str, Any]) -> dict[str, Any]:
        return {"image": [transform(image.convert("RGB")) for image in rows["image"]]}

    return partial(
        their_batches, table.with_transform(transformed), lambda row: row["image"], workers, settings, device
    )


SYSTEMS: dict[str, Callable[[Path, Path, int, LoaderSettings, torch.device], Batches]] = {
    "ours": open_ours,
    "torchvision": open_torchvision,
    "datasets": open_datasets,
}


def their_transform(size: int) -> Callable[[Any], Tensor]:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=SCALE, ratio=(3 / 4, 4 / 3)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def their_batches(
    dataset: Any, image_of: Callable[[Any], Tensor], workers: int, settings: LoaderSettings, device: torch.device
) -> Iterator[Tensor]:
    loaded: DataLoader[Any] = DataLoader(
        dataset,
        settings.batch,
        sampler=RandomSampler(dataset, num_samples=2**40),  # permutation after permutation
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        collate_fn=lambda samples: torch.stack([image_of(sample) for sample in samples]),
    )
    for batch in loaded:
        yield batch.to(device)


# The measurement.


def measure(
    folder: Path, cache: Path, settings: LoaderSettings, device: torch.device
) -> tuple[list[dict[str, Any]], dict[str, Failed]]:
    turns: dict[str, Callable[[int], float]] = {}
    failed: dict[str, Failed] = {}
    memory: dict[str, float] = {}
    keys = {}
    for workers in settings.workers:
        for system in settings.systems:
            name = f"{system}, {workers} workers"
            opened = opened_or_not(system, folder, cache, workers, settings, device)
            if isinstance(opened, Failed):
                failed[name] = opened
            else:
                turns[name] = partial(turn, name, opened, workers, settings, memory)
                keys[name] = (system, workers)
    seconds, later = take_turns(turns, settings.repeats)
    rows = []
    for name, values in seconds.items():
        system, workers = keys[name]
        seen = times(values)
        speed = 1 / seen.median
        rows.append(
            {
                "system": system,
                "workers": workers,
                "images_per_second": speed,
                "images_per_second_per_worker": speed / max(workers, 1),
                "spread": seen.spread,
                "seconds_per_image": seen.seconds,
                "memory_per_worker_gb": memory.get(name),
            }
        )
    return rows, failed | later


def opened_or_not(
    system: str, folder: Path, cache: Path, workers: int, settings: LoaderSettings, device: torch.device
) -> Batches | Failed:
    """A library may not be there, or not take such a folder: torchvision wants classes."""
    try:
        return SYSTEMS[system](folder, cache, workers, settings, device)
    except ModuleNotFoundError as error:
        return Failed(f"not installed: {error.name}")
    except FileNotFoundError as error:
        return Failed(str(error).splitlines()[0])


def untimed_batches(workers: int) -> int:
    return max(workers, 1)


def turn(
    name: str, batches: Batches, workers: int, settings: LoaderSettings, memory: dict[str, float], repeat: int
) -> float:
    """Seconds per image. Notes the memory of a worker in `memory`."""
    with closing(batches()) as stream:  # type: ignore[type-var]
        consume(islice(stream, untimed_batches(workers)))
        start = time.perf_counter()
        count = consume(islice(stream, settings.images // settings.batch - untimed_batches(workers)))
        seconds = time.perf_counter() - start
        if processes := multiprocessing.active_children():
            memory[name] = max(pss_gb(process.pid) for process in processes)
    return seconds / count


def consume(batches: Iterable[Tensor]) -> int:
    """How many images there were."""
    return sum(len(batch) for batch in batches)


def pss_gb(pid: int | None) -> float:
    """Memory of a process, what it shares with others divided among them; 0 where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^Pss:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 / 1e9 if found else 0.0


COLUMNS = ("system", "workers", "images/s", "per worker", "spread", "GB a worker")


def print_rows(report: dict[str, Any], out: Any) -> None:
    rows: list[list[str]] = [
        [
            row["system"],
            str(row["workers"]),
            f"{row['images_per_second']:.1f}",
            f"{row['images_per_second_per_worker']:.1f}",
            f"{row['spread']:.0%}",
            number(row["memory_per_worker_gb"], ".2f"),
        ]
        for row in report["results"]
    ]
    rows += [[name, f"not measured: {reason}"] for name, reason in report["not_measured"].items()]
    print_table(COLUMNS, rows, out)
