"""Runs of the real recipe, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import run_recipe
import yaml
from PIL import Image
from run_recipe import RECIPE

TINY = {
    "run": {"name": "tiny"},
    "data": {"workers": 0, "heldout": 4},
    "model": {
        "name": "swin_nano",
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [1, 2],
        "image_size": 32,
        "window_size": 4,
    },
    "mask": {"unit": 8},
    "optim": {"base_lr": 0.1, "warmup": "2 steps"},
    "train": {"duration": "10 steps", "global_batch": 16, "micro_batch": 16, "precision": "fp32", "threads": 1},
    "log": {"every": "1 step", "evaluate_every": "5 steps", "pictures_every": "0 steps", "trackers": []},
    "save": {"every": "5 steps"},
}
TIMING = {"images_per_second", "data_wait", "memory_gb"}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """44 pictures: 40 to train on, so that an epoch of 2.5 steps ends inside a step."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(44):
        smooth = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(smooth).resize((50, 40)).save(folder / f"{i:02d}.png")
    return folder


class Recipe:
    """Starts recipes/pretrain.py on the tiny model."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder = folder
        self.config = folder / "tiny.yaml"
        settings = TINY | {"data": {**TINY["data"], "source": str(images)}}
        self.config.write_text(yaml.safe_dump(settings))

    def arguments(self, name: str, flags: tuple[str, ...]) -> list[str]:
        return ["--config", str(self.config), "--run.root", str(self.folder / "runs"), "--run.name", name, *flags]

    def run(self, name: str, *flags: str, expect: int = 0) -> str:
        """Run to the end; the output."""
        code, output = run_recipe.run(self.arguments(name, flags), self.folder)
        assert code == expect, output
        return output

    def start(self, name: str, *flags: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start from nothing, as from a terminal."""
        return self._start([sys.executable, str(RECIPE), *self.arguments(name, flags)], environment or {})

    def launch(self, name: str, *flags: str, zero: int = 0) -> str:
        """Run as two processes of torchrun, with DeepSpeed if `zero` is its stage; the output."""
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", str(RECIPE)]
        stage = str(RECIPE.parent / "launch" / f"zero{zero}.json")
        deepspeed = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": stage}
        process = self._start([*command, *self.arguments(name, flags)], deepspeed if zero else {})
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        return output

    def _start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env=os.environ | run_recipe.ENVIRONMENT | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
        )

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name

    def metrics(self, name: str) -> list[dict[str, float]]:
        """Everything in metrics.jsonl that is not a matter of time or memory."""
        lines = (self.path(name) / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]

    def losses(self, name: str) -> list[float]:
        return [row["loss"] for row in self.metrics(name) if "loss" in row]


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Recipe:
    return Recipe(tmp_path_factory.mktemp("recipe"), images)


@pytest.fixture(scope="session")
def whole_run(recipe: Recipe) -> str:
    """Ten steps at one go, by one process: what every other way of running must equal."""
    recipe.run("whole")
    return "whole"
