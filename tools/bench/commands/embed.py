"""Features of a folder of JPEGs, each system from the files to an array: `tools.bench embed`.

loop    a plain loop: a DataLoader over `EvaluationTransform` of the images that Pillow opens, normalised and embedded
timm    the loop of timm's inference.py: create_dataset, create_loader, and its Swin with the same weights
ours    swin-mim embed: rows in parts, joined to a parquet file
page    the same with the hashes of --page

A turn embeds the whole folder, from the start of its workers to the last row. All have the same number of workers and
threads. Features are compared to those of the loop.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from swin_mim.cli.options import text_stream, write_json
from swin_mim.data.sources.open import open_source
from swin_mim.data.transforms.crops import EvaluationTransform, normalize
from swin_mim.evaluation.outputs.embeddings import embedding_job
from swin_mim.evaluation.outputs.job import run
from swin_mim.evaluation.outputs.start import connect
from swin_mim.evaluation.overview.rows import read_rows
from swin_mim.models.simmim import SimMIM
from swin_mim.models.swin import Swin
from tools.bench.images import make_images, picture_text, sizes_text
from tools.bench.peers import random_weights
from tools.bench.report import describe, print_machine, print_table
from tools.bench.settings import EmbedSettings, check, check_model
from tools.bench.timing import autocast, take_turns, times


class Task(NamedTuple):
    """What all systems do."""

    images: Path
    export: Path
    """The model, as everybody loads it."""
    workers: int
    batch: int
    precision: str
    device: torch.device


Embed = Callable[[Task, Accelerator, Path], np.ndarray]
"""Features float32 (N, D) of the images of a folder, in the order of their paths; in an empty folder of its own."""


def embed(settings: EmbedSettings) -> None:
    """Measure, print the tables and write the JSON."""
    out = text_stream(settings.json)
    device = check(settings)
    config = check_model(settings)
    accelerator = connect(settings.threads or 0, settings.batch[0])
    report = describe(settings, device)
    print_machine(report, out)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(settings.source) if settings.source else Path(made, "images")
        if not settings.source:
            make_images(folder, settings.images, settings.sizes)
        model = SimMIM(config)
        model.load_state_dict(random_weights(config))
        model.encoder.save_pretrained(Path(made, "model"))
        count = len(open_source(str(folder)))
        source = settings.source or f"{count} crops of {picture_text()}, {sizes_text(settings.sizes)}"
        report |= {"source": source, "images": count}
        print(f"embed     {source}; {settings.model}, {settings.image_size} px, {settings.precision}\n", file=out)
        rows = []
        for workers in settings.workers:
            for batch in settings.batch:
                task = Task(folder, Path(made, "model"), workers, batch, settings.precision, device)
                rows += measure(task, accelerator, settings, Path(made))
    report |= {"results": rows}
    print_rows(rows, out)
    write_json(report, settings.json)


def measure(task: Task, accelerator: Accelerator, settings: EmbedSettings, made: Path) -> list[dict[str, Any]]:
    """All systems at one number of workers, in turns."""
    found: dict[str, np.ndarray] = {}

    def turn(system: str, repeat: int) -> float:
        with tempfile.TemporaryDirectory(dir=made) as place:
            start = time.perf_counter()
            found[system] = SYSTEMS[system](task, accelerator, Path(place))
            return (time.perf_counter() - start) / len(found[system])

    turns = {system: partial(turn, system) for system in settings.systems}
    for system in settings.systems:  # what is made at first use, such as kernels, is no part of the clock
        turn(system, 0)
    seconds, _ = take_turns(turns, settings.repeats)
    first = settings.systems[0]
    rows = []
    for system, values in seconds.items():
        seen = times(values)
        row = {"system": system, "workers": task.workers, "batch": task.batch, "images_per_second": 1 / seen.median}
        row |= {"spread": seen.spread, "seconds_per_image": seen.seconds}
        row |= {"of_first": times(seconds[first]).median / seen.median}
        rows.append(row | {"difference": float(np.abs(found[system] - found[first]).max())})
    return rows


# The systems.


class PlainImages(Dataset[Tensor]):
    """What anybody would write."""

    def __init__(self, folder: Path, transform: EvaluationTransform) -> None:
        self.paths, self._transform = sorted(folder.rglob("*.jpg")), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self._transform(image.convert("RGB"))


def embed_in_a_loop(task: Task, accelerator: Accelerator, place: Path) -> np.ndarray:
    model = Swin.from_pretrained(task.export).to(task.device).eval()
    known, side = model.preprocessing, model.config.image_size
    height, width = (side, side) if isinstance(side, int) else side
    images = PlainImages(task.images, EvaluationTransform((height, width), known.interpolation, known.crop_pct))
    loaded = DataLoader(images, task.batch, **workers_of(task))
    found = []
    with torch.no_grad(), autocast(task.device, task.precision):
        for batch in loaded:
            pixels = normalize(batch.to(task.device, non_blocking=True), known.mean, known.std, known.scale)
            found.append(model(pixels).mean(dim=(1, 2)).float().cpu())
    return torch.cat(found).numpy()


def workers_of(task: Task) -> dict[str, Any]:
    context = "fork" if task.workers else None
    pinned = task.device.type == "cuda"
    return {"num_workers": task.workers, "multiprocessing_context": context, "pin_memory": pinned}


def embed_as_timm(task: Task, accelerator: Accelerator, place: Path) -> np.ndarray:
    import timm
    from timm.data import create_dataset, create_loader

    model = timm.create_model(f"local-dir:{task.export}", pretrained=True, num_classes=0).to(task.device).eval()
    known = Swin.from_pretrained(task.export).preprocessing
    loader = create_loader(
        create_dataset("", root=str(task.images)),
        input_size=timm.data.resolve_model_data_config(model)["input_size"],
        batch_size=task.batch,
        interpolation=known.interpolation,
        mean=known.mean,
        std=known.std,
        crop_pct=known.crop_pct,
        num_workers=task.workers,
        persistent_workers=False,
        device=task.device,
        use_prefetcher=True,
    )
    found = []
    with torch.inference_mode(), autocast(task.device, task.precision):
        for images, _ in loader:
            found.append(model(images).float().cpu())
    return torch.cat(found).numpy()


def embed_by_ours(task: Task, accelerator: Accelerator, place: Path, *, hashes: bool = False) -> np.ndarray:
    model = Swin.from_pretrained(task.export)
    out = place / "features.parquet"
    job = embedding_job(
        model,
        (str(task.export), str(task.images), out),
        {"workers": task.workers},
        label_column=None,
        batch=task.batch,
        precision=task.precision,
        stage="last",
        maps=None,
        hashes=hashes,
    )
    run(job, accelerator)
    return read_rows(out).features


SYSTEMS: dict[str, Embed] = {
    "loop": embed_in_a_loop,
    "timm": embed_as_timm,
    "ours": embed_by_ours,
    "page": partial(embed_by_ours, hashes=True),
}


def print_rows(rows: list[dict[str, Any]], out: TextIO) -> None:
    table = [
        [
            row["system"],
            str(row["workers"]),
            str(row["batch"]),
            f"{row['images_per_second']:.1f}",
            f"{row['spread']:.0%}",
            f"{row['of_first']:.3f}",
            f"{row['difference']:.2g}",
        ]
        for row in rows
    ]
    first = rows[0]["system"]
    header = ("system", "workers", "batch", "images/s", "spread", f"of {first}", f"off from {first}")
    print_table(header, table, out)
