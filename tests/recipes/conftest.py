"""Runs of the real recipe, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_recipe
import torch
import yaml
from PIL import Image
from run_recipe import RECIPES
from safetensors.torch import load_file

from tools import forked

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
TIMING = {
    *("images_per_second", "data_wait", "save_wait", "memory_gb"),
    *("read_seconds", "decode_seconds", "transform_seconds", "collate_seconds"),
}


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
    """Starts a recipe with small settings of its own."""

    def __init__(self, script: str, folder: Path, settings: dict[str, Any]) -> None:
        self.script = RECIPES / script
        self.folder = folder
        self.config = folder / "tiny.yaml"
        self.config.write_text(yaml.safe_dump(settings))

    def arguments(self, name: str, flags: tuple[str, ...]) -> list[str]:
        return ["--config", str(self.config), "--run.root", str(self.folder / "runs"), "--run.name", name, *flags]

    def run(self, name: str, *flags: str, expect: int = 0) -> str:
        """Run to the end; the output."""
        code, output = run_recipe.run(self.script, self.arguments(name, flags), self.folder)
        assert code == expect, output
        return output

    def start(self, name: str, *flags: str, variables: dict[str, str] | None = None) -> forked.Started:
        """Start a run and leave it running."""
        return run_recipe.start(self.script, self.arguments(name, flags), self.folder, variables)

    def start_from_nothing(
        self, name: str, *flags: str, variables: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start as from a terminal, in seconds more."""
        return self._start([sys.executable, str(self.script), *self.arguments(name, flags)], variables or {})

    def launch(self, name: str, *flags: str, zero: int = 0, processes: int = 2) -> str:
        """Run as several processes, with DeepSpeed if `zero` is its stage; the output of the first."""
        variables = self.deepspeed(zero) if zero else {}
        ends = forked.run(
            [str(self.script), *self.arguments(name, flags)],
            self.folder,
            environment=run_recipe.ENVIRONMENT,
            processes=processes,
            variables=variables,
        )
        assert [end.code for end in ends] == [0] * processes, ends
        output = ends[0].said
        strategy = f"DeepSpeed ZeRO-{zero}" if zero else "FSDP2" if "--train.fsdp" in flags else "DDP"
        assert processes == 1 or "--evaluate" in flags or f"; cpu, {strategy}, " in output
        return output

    def launch_machines(self, name: str, *flags: str) -> str:
        """Run by torchrun as one process on each of two machines, which are this one; the output of the first."""
        port = str(forked.free_port())
        address = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
        command = [sys.executable, "-m", "torch.distributed.run", *address]
        arguments = [str(self.script), *self.arguments(name, flags)]
        machines = [self._start([*command, "--node-rank", str(rank), *arguments], {}) for rank in range(2)]
        outputs = [machine.communicate(timeout=240)[0] for machine in machines]
        assert [machine.returncode for machine in machines] == [0, 0], outputs
        return outputs[0]

    def deepspeed(self, stage: int) -> dict[str, str]:
        settings = json.loads((RECIPES / "launch" / f"zero{stage}.json").read_text())
        if stage == 3:  # all that a tiny model has would stay whole
            settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        file = self.folder / f"zero{stage}.json"
        file.write_text(json.dumps(settings))
        # accelerate leaves DeepSpeed out if it is told to use the CPU, and finds that by itself where there is no GPU
        device = {"ACCELERATE_USE_CPU": "false", "CUDA_VISIBLE_DEVICES": ""}
        return device | {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}

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

    def assert_same_run(self, one: str, other: str) -> None:
        """Metrics, weights, moments and averages at the end of ten steps, to the last bit."""
        assert self.metrics(one) == self.metrics(other)
        a, b = (self._final_tensors(name) for name in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key

    def _final_tensors(self, name: str) -> dict[str, torch.Tensor]:
        files = sorted((self.path(name) / "checkpoints" / "step_0000000010").glob("*.safetensors"))
        assert len(files) >= 2, "weights and moments"
        return {f"{file.name}: {key}": value for file in files for key, value in load_file(file).items()}

    def losses(self, name: str) -> list[float]:
        return [row["loss"] for row in self.metrics(name) if "loss" in row]


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Recipe:
    """Pretrains the tiny model."""
    settings = TINY | {"data": {**TINY["data"], "source": str(images)}}
    return Recipe("pretrain.py", tmp_path_factory.mktemp("recipe"), settings)


@pytest.fixture(scope="session")
def whole_run(recipe: Recipe) -> str:
    """Ten steps at one go, by one process: what every other way of running must equal."""
    recipe.run("whole")
    return "whole"


TINY_FINETUNE = {
    "run": {"name": "tiny"},
    "data": {"workers": 0, "crop_scale": [0.5, 1.0]},
    "model": {**TINY["model"], "drop_path_rate": 0.0},
    "optim": {"base_lr": 0.1, "warmup": "2 steps"},
    "train": {**TINY["train"], "ema": 0.8},
    "log": {"every": "1 step", "evaluate_every": "5 steps", "trackers": []},
    "save": {"every": "5 steps"},
}


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of colours: 15, 13 and 12 pictures to train on, 23 to evaluate on, which no 2 or 3 divide."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(1)
    for split, counts in (("train", (15, 13, 12)), ("val", (9, 8, 6))):
        for number, (name, count) in enumerate(zip(("blue", "green", "red"), counts, strict=True)):
            for i in range(count):
                picture = rng.integers(0, 140, (4, 5, 3), dtype=np.uint8)
                picture[..., 2 - number] += 110
                path = folder / split / name / f"{i:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).resize((50, 40)).save(path)
    return folder


@pytest.fixture(scope="session")
def finetune(tmp_path_factory: pytest.TempPathFactory, labelled: Path) -> Recipe:
    """Fine-tunes the tiny model, from new weights, with everything that is random: RandAugment, erasing, Mixup, EMA."""
    folders = {"source": str(labelled / "train"), "validation": str(labelled / "val")}
    settings = TINY_FINETUNE | {"data": {**TINY_FINETUNE["data"], **folders}}
    return Recipe("finetune.py", tmp_path_factory.mktemp("finetune"), settings)


@pytest.fixture(scope="session")
def whole_finetune(finetune: Recipe) -> str:
    """Ten steps at one go, by one process."""
    finetune.run("whole")
    return "whole"
