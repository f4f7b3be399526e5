"""Folders of runs as trainings leave them, made of a few lines each, with names that would like to be HTML."""

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from swin_mim.training.config.shipped import recipes_folder

NASTY = "</script><script>alert(1)</script>"
"""The name of a class, of an image and of a run that a page has to show as it is."""


def pretraining(folder: Path, *, steps: int = 400, seed: int = 0, pictures: int = 5, **changed: Any) -> Path:
    """A finished pretraining with the demo's settings, and `changed` ones as section__key."""
    folder.mkdir(parents=True)
    settings = _demo(folder.name, changed)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    lines(folder / "metrics.jsonl", _metrics(steps, np.random.default_rng(seed)))
    status = {"status": "finished", "step": steps, "total_steps": steps, "time": "2026-01-31T12:00:00+0100"}
    (folder / "run_status.json").write_text(json.dumps(status))
    start = {"time": "2026-01-31T11:00:00+0100", "step": 0, "device": "4 threads of a processor", "images": "1000"}
    lines(folder / "starts.jsonl", [start | {"versions": {"swin_mim": "0.2.0", "torch": "2.11.0"}}])
    broken = [{"name": f"broken/{NASTY}.jpg", "reason": "it is cut off"}]
    lines(folder / "broken_images.jsonl", broken)
    images = [[64, f"a/{NASTY}.png"], [65, "a/b.png"]]
    step = {"step": 3, "positions": [64, 96], "seed": 0}
    lines(folder / "skipped_steps.jsonl", [step | {"loss": "nan", "grad_norm": "nan"}, step | {"images": images}])
    with gzip.open(folder / "images.gz", "wt") as file:
        file.write("".join(f"{1000 + 10 * number} {'ab'[number % 2]}/{number}.jpg\n" for number in range(100)))
    for number in range(pictures):
        sheet(folder / "samples" / f"step_{number * steps // max(1, pictures - 1):07d}.png", number)
    return folder


def finetuning(folder: Path, names: Sequence[str] = ("cat", "dog", NASTY)) -> Path:
    """A finished fine-tuning with an evaluation."""
    folder.mkdir(parents=True)
    settings = {"run": {"name": folder.name}, "data": {"source": "photos"}, "augment": {"mixup": 0.0}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    rows = [{"step": 10 * k, "loss": 2 / k, "heldout_loss": 2.2 / k, "accuracy": 1 - 0.5 / k} for k in range(1, 30)]
    lines(folder / "metrics.jsonl", rows)
    counts = np.random.default_rng(0).integers(0, 9, (len(names), len(names))) + 20 * np.eye(len(names), dtype=int)
    counts[-1] = np.arange(len(names)) ** 2
    classes = [{"name": name, "images": int(counts[k].sum()), "accuracy": 0.5} for k, name in enumerate(names)]
    report = {"step": 290, "metrics": {"accuracy": 0.9, "heldout_loss": None}, "evaluated": int(counts.sum())}
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "metrics.json").write_text(
        json.dumps(report | {"unreadable": 1, "classes": classes, "confusions": counts.tolist()})
    )
    picture = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="
    worst = {"image": f"{NASTY}.jpg", "label": names[-1], "predicted": names[0], "probability": 0.97, "loss": 3.1}
    (folder / "evaluation" / "worst.json").write_text(
        json.dumps({"step": 290, "images": [worst | {"picture": picture}, worst | {"picture": None}]})
    )
    Image.new("RGB", (300, 200), "navy").save(folder / "evaluation" / "overlays.png")
    info = PngInfo()
    info.add_text("rows", "0 100 104 204")
    Image.new("RGB", (300, 208), "teal").save(folder / "evaluation" / "detections.png", pnginfo=info)
    return folder


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sheet(path: Path, number: int, *, size: tuple[int, int] = (640, 320), blocks: int = 2) -> None:
    """A picture of two blocks, of one colour that tells which it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    info.add_text("blocks", str(blocks))
    Image.new("RGB", size, (40 * number % 256, 90, 120)).save(path, pnginfo=info)


def _demo(name: str, changed: dict[str, Any]) -> dict[str, Any]:
    settings = yaml.safe_load((recipes_folder() / "configs" / "demo.yaml").read_text())
    settings["run"]["name"] = name
    for key, value in changed.items():
        section, _, setting = key.partition("__")
        settings.setdefault(section, {})[setting] = value
    return settings


def _metrics(steps: int, draw: np.random.Generator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"step": 0, "mean_fill_error": 0.8, "interpolation_error": 0.55}]
    rows.append({"step": 0} | {f"random_{kind}_stage{k}": 0.3 for kind in ("linear", "knn") for k in (1, 2)})
    for step in range(10, steps + 1, 10):
        loss = 0.4 + 0.6 * math.exp(-step / 60) + 0.02 * draw.normal()
        rate = 1e-3 * math.cos(0.5 * math.pi * step / steps) + 1e-6
        speed = {"images_per_second": 140 + 5 * draw.normal(), "data_wait": 0.02, "memory_gb": 1.2}
        rows.append({"step": step, "samples_seen": 32 * step, "loss": loss, "lr": rate, "grad_norm": 1 + loss} | speed)
        rows[-1] |= {"skipped": 1, "broken": 1}
        if step % 100 == 0:
            rows.append({"step": step, "heldout_loss": loss + 0.03})
            rows.append(
                {"step": step} | {f"{kind}_stage{k}": 0.3 + 0.1 * k for kind in ("linear", "knn") for k in (1, 2)}
            )
    return rows
