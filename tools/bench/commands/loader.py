"""Images from JPEGs to normalised batches on the device, without training, each system's own way: `tools.bench loader`.

torchvision           as microsoft/SimMIM does it: ImageFolder, RandomResizedCrop, flip, ToTensor, Normalize
datasets              an image folder of the `datasets` library with its Image feature, and the same transforms
ours                  `swin_mim.data`, as a pretraining reads a folder: crops as uint8, normalised on the device
ours-jpeg, ours-raw   the same of what swin-mim prepare makes of the folder; packing it is outside of the clock

A turn has new workers and streams without end. The clock starts when there was a batch of each worker: starting them
does not count, and nothing is ready that was made before.
"""

import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from swin_mim.cli.options import text_stream, write_json
from swin_mim.data.decoding.rgb import decoder_text
from swin_mim.data.loading.loader import LoaderOptions, TrainingLoader
from swin_mim.data.packing.pack import Format
from swin_mim.data.sources.folder import FolderSource
from swin_mim.data.sources.open import open_source
from swin_mim.data.transforms.crops import PretrainTransform, normalize
from swin_mim.errors import UserError
from tools.bench.images import (
    check_disk,
    make_images,
    picture_text,
    pixel_differences,
    prepare,
    prepared_text,
    sizes_text,
    some_of,
)
from tools.bench.report import describe, number, print_machine, print_table
from tools.bench.settings import LoaderSettings, check
from tools.bench.timing import Failed, take_turns, times

SCALE = (0.67, 1.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batches = Callable[[], Iterator[Tensor]]
"""Starts an endless stream of normalised images (B, 3, H, W) on the device."""


def loader(settings: LoaderSettings) -> None:
    """Measure, print the tables and write the JSON."""
    out = text_stream(settings.json)
    device = check(settings)
    minimum = (untimed_batches(max(settings.workers)) + 1) * settings.batch
    if settings.images < minimum:
        raise UserError(
            f"--images {settings.images} must be at least {minimum}, a batch of each worker and one to be timed"
        )
    report = describe(settings, device)
    print_machine(report, out)
    with tempfile.TemporaryDirectory() as made:
        folder = images_of(settings, Path(made))
        report |= {"source": settings.source or made_text(settings)}
        report |= {"decoder": decoder_text()}
        print(f"loader    {report['source']}; {settings.image_size} px, batches of {settings.batch}", file=out)
        print(f"ours      decodes by {report['decoder']}", file=out, flush=True)
        report |= {"prepared": prepared_or_not(folder, Path(made), settings, out)}
        print(file=out, flush=True)
        rows, failed = measure(folder, Path(made), settings, device)
        report |= {"results": rows, "not_measured": {name: reason for name, (reason,) in failed.items()}}
        report |= {"pixels": differences(folder, Path(made), settings)}
    print_rows(report, out)
    print_differences(report["pixels"], out)
    write_json(report, settings.json)


def made_text(settings: LoaderSettings) -> str:
    return f"{settings.images} crops of {picture_text()}, {sizes_text(settings.sizes)}"


def images_of(settings: LoaderSettings, made: Path) -> Path:
    """The folder that all systems read."""
    check_disk(made, settings.images, settings.image_size, made=settings.source is None)
    return Path(settings.source) if settings.source else make_images(made / "images", settings.images, settings.sizes)


def prepared_or_not(folder: Path, made: Path, settings: LoaderSettings, out: TextIO) -> dict[str, Any]:
    """What packing took, where a system reads what is packed and the library is there that it needs."""
    if not any(system in settings.systems for system in PREPARED) or not find_spec("datasets"):
        return {}
    done = prepare(some_of(folder, settings.images, made / "links"), made / "prepared", settings.image_size)
    print(f"prepared  {prepared_text(done, settings.image_size)}", file=out)
    return {kind: {"seconds": each.seconds, "bytes": each.bytes} for kind, each in done.items()}


# The systems: each opens the folder and gives what starts a stream of batches.


def open_ours(folder: Path, cache: Path, workers: int, settings: LoaderSettings, device: torch.device) -> Batches:
    source, transform = open_source(str(folder)), our_transform(settings)

    def batches() -> Iterator[Tensor]:
        size, options = settings.batch, LoaderOptions(workers=workers)
        loader = TrainingLoader(source, transform, seed=0, global_batch=size, micro_batch=size, options=options)
        with closing(loader.batches(0)) as loaded:  # type: ignore[type-var]
            for batch in loaded:
                yield normalize(batch.images.to(device), MEAN, STD)

    return batches


def our_transform(settings: LoaderSettings) -> PretrainTransform:
    return PretrainTransform((settings.image_size, settings.image_size), scale=SCALE)


def open_prepared(
    kind: Format, folder: Path, cache: Path, workers: int, settings: LoaderSettings, device: torch.device
) -> Batches:
    import datasets  # noqa: F401 - what is packed is read by it

    return open_ours(cache / "prepared" / kind, cache, workers, settings, device)


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
    "torchvision": open_torchvision,
    "datasets": open_datasets,
    "ours": open_ours,
    "ours-jpeg": partial(open_prepared, "jpeg"),
    "ours-raw": partial(open_prepared, "raw"),
}
PREPARED: dict[str, Format] = {"ours-jpeg": "jpeg", "ours-raw": "raw"}


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


class Memory(NamedTuple):
    """Memory of the largest worker, in GB: what it shares with other processes is divided among them."""

    all: float
    files: float
    """The part that is files in memory, such as libraries and packed images: the system takes it back at need."""


def measure(
    folder: Path, cache: Path, settings: LoaderSettings, device: torch.device
) -> tuple[list[dict[str, Any]], dict[str, Failed]]:
    turns: dict[str, Callable[[int], float]] = {}
    failed: dict[str, Failed] = {}
    memory: dict[str, Memory] = {}
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
    rows = [row_of(*keys[name], values, memory.get(name)) for name, values in seconds.items()]
    return [row | ratios(row, rows, settings.systems[0]) for row in rows], failed | later


def row_of(system: str, workers: int, seconds: list[float], memory: Memory | None) -> dict[str, Any]:
    seen = times(seconds)
    return {
        "system": system,
        "workers": workers,
        "images_per_second": 1 / seen.median,
        "images_per_second_per_worker": 1 / seen.median / max(workers, 1),
        "spread": seen.spread,
        "seconds_per_image": seen.seconds,
        "memory_per_worker_gb": memory and memory.all,
        "memory_of_files_gb": memory and memory.files,
    }


def ratios(row: Mapping[str, Any], rows: list[dict[str, Any]], first: str) -> dict[str, float | None]:
    """To the first system with as many workers, and to the same system with one worker; None: not measured."""
    rates = {(each["system"], each["workers"]): each["images_per_second"] for each in rows}
    rate, system, workers = row["images_per_second"], row["system"], row["workers"]
    of_first, of_one = rates.get((first, workers)), rates.get((system, 1))
    return {"of_first": of_first and rate / of_first, "of_one_worker": of_one and rate / of_one}


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
    name: str, batches: Batches, workers: int, settings: LoaderSettings, memory: dict[str, Memory], repeat: int
) -> float:
    """Seconds per image. Notes the memory of a worker in `memory`."""
    with closing(batches()) as stream:  # type: ignore[type-var]
        consume(islice(stream, untimed_batches(workers)))
        start = time.perf_counter()
        count = consume(islice(stream, settings.images // settings.batch - untimed_batches(workers)))
        seconds = time.perf_counter() - start
        if processes := multiprocessing.active_children():
            memory[name] = max(memory_of(process.pid) for process in processes)
    return seconds / count


def consume(batches: Iterable[Tensor]) -> int:
    """How many images there were."""
    return sum(len(batch) for batch in batches)


def memory_of(pid: int | None) -> Memory:
    """Proportional set size; 0 where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return Memory(0.0, 0.0)
    found = dict(re.findall(r"^(Pss|Pss_File):\s*(\d+) kB", text, re.MULTILINE))
    return Memory(*(int(found.get(key, 0)) * 1024 / 1e9 for key in ("Pss", "Pss_File")))


def differences(folder: Path, cache: Path, settings: LoaderSettings) -> dict[str, dict[str, Any]]:
    """How far the pixels of each of our systems are off."""
    whole = open_source(str(folder))
    assert isinstance(whole, FolderSource)
    folders = {"ours": folder} | {system: cache / "prepared" / kind for system, kind in PREPARED.items()}
    return {
        system: pixel_differences(open_source(str(place)), whole, our_transform(settings))
        for system, place in folders.items()
        if system in settings.systems and place.is_dir()
    }


# The report.


def print_rows(report: dict[str, Any], out: TextIO) -> None:
    rows: list[list[str]] = [
        [
            row["system"],
            str(row["workers"]),
            f"{row['images_per_second']:.1f}",
            f"{row['spread']:.0%}",
            number(row["of_first"], ".2f"),
            number(row["of_one_worker"], ".2f"),
            number(row["memory_per_worker_gb"], ".3f"),
            number(row["memory_of_files_gb"], ".3f"),
        ]
        for row in report["results"]
    ]
    rows += [[name, f"not measured: {reason}"] for name, reason in report["not_measured"].items()]
    first = report["settings"]["systems"][0]
    header = ("system", "workers", "images/s", "spread", f"of {first}", "of 1 worker", "GB a worker", "of it files")
    print_table(header, rows, out)


def print_differences(pixels: Mapping[str, Mapping[str, Any]], out: TextIO) -> None:
    if not pixels:
        return
    print("\nGrey levels of 255 that crops are off those of whole images, which Pillow decodes and cuts:\n", file=out)
    rows = [[name, f"{e['mean']:.2f}", str(e["max"]), str(e["images"])] for name, e in pixels.items()]
    print_table(("system", "mean", "max", "images"), rows, out)
