"""python -m tools.chaos on whole runs of the pretraining recipe: signals, numbers that are not finite."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm

from swin_mim.errors import DATA_ERROR, STOPPED, UserError
from swin_mim.training.checkpoints import store
from swin_mim.training.config.shipped import recipes_folder
from swin_mim.training.run.jsonl import whole_lines
from tools import forked
from tools.clone import environment

RECIPE = "swin_mim.recipes.pretrain"
STEPS, BATCH = 30, 16
CONFIG: dict[str, Any] = {
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
    "train": {
        "duration": f"{STEPS} steps",
        "global_batch": BATCH,
        "micro_batch": BATCH // 2,
        "precision": "fp32",
        "threads": 1,
    },
    "log": {"every": "1 step", "evaluate_every": "10 steps", "pictures_every": "0 steps", "trackers": []},
    "save": {"every": "5 steps"},
}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
TIMING = {
    *("images_per_second", "data_wait", "save_wait", "memory_gb"),
    *("read_seconds", "decode_seconds", "transform_seconds", "collate_seconds"),
}
TOLERANCE = 1e-6
"""Between runs of one process and of two, whose sums have another order: of losses, absolute."""


class Runs:
    """Runs of one small config in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        draw = np.random.default_rng(0)
        (folder / "images").mkdir()
        for number in range(44):
            smooth = draw.integers(0, 255, (4, 5, 3), dtype=np.uint8)
            Image.fromarray(smooth).resize((50, 40)).save(folder / "images" / f"{number:02d}.png")
        config = CONFIG | {"run": {"name": "chaos"}, "data": {**CONFIG["data"], "source": str(folder / "images")}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    def run(
        self,
        name: str,
        *flags: str,
        processes: int = 1,
        faults: Sequence[dict[str, Any]] = (),
        expect: int = 0,
        strategy: str = "DDP",
    ) -> str:
        """Start a run, or go on with it; what it said."""
        faulty = ["tools.chaos.faults", json.dumps(list(faults))] if faults else []
        where = ["--config", str(self.folder / "config.yaml"), "--run.root", str(self.folder), "--run.name", name]
        ends = forked.run(
            ["-m", *faulty, RECIPE, *where, *flags, "--train.fsdp", str(strategy == "FSDP2").lower()],
            self.folder,
            environment=ENVIRONMENT,
            processes=processes,
            variables=self._deepspeed(strategy),
            timeout=300,
        )
        said = "".join(end.said for end in ends)
        if {end.code for end in ends} != {expect}:
            raise UserError(f"{name} ended with {[end.code for end in ends]}, not with {expect}: {said[-2000:]}")
        if processes > 1 and strategy not in said:
            raise UserError(f"{name} was not run with {strategy}: {said[-2000:]}")
        return said

    def _deepspeed(self, strategy: str) -> dict[str, str]:
        if not strategy.startswith("DeepSpeed"):
            return {}
        shipped = recipes_folder() / "launch" / f"zero{strategy[-1]}.json"
        settings = json.loads(shipped.read_text())
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # else so small a model stays whole
        file = self.folder / shipped.name
        file.write_text(json.dumps(settings))
        # accelerate leaves DeepSpeed out if it is told to use the CPU, and finds that by itself where there is no GPU
        device = {"ACCELERATE_USE_CPU": "false", "CUDA_VISIBLE_DEVICES": ""}
        return device | {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}

    def metrics(self, name: str) -> list[dict[str, Any]]:
        rows = whole_lines(self.folder / name / "metrics.jsonl")
        return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]

    def final(self, name: str) -> dict[str, torch.Tensor]:
        """Weights and moments at the end; of DeepSpeed the weights."""
        path = store.path_of(self.folder / name / "checkpoints", STEPS)
        return {key: value for file in sorted(path.glob("*.safetensors")) for key, value in load_file(file).items()}

    def same(self, one: str, other: str) -> bool:
        a, b = self.final(one), self.final(other)
        equal = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        return equal and self.metrics(one) == self.metrics(other)

    def distance(self, one: str, other: str) -> float:
        """The largest difference between two curves of the loss."""
        pairs = zip(self.metrics(one), self.metrics(other), strict=True)
        return max(abs(a["loss"] - b["loss"]) for a, b in pairs if "loss" in a)


def strategies(folder: Path) -> dict[str, Any]:
    """However two processes spread the weights: stopped and continued, a NaN in one of them before
    the stop and one behind it; FSDP2 on one and three."""
    runs = Runs(folder)
    figures: dict[str, Any] = {"strategies": 0, "different": 0, "nans": 0, "nans_applied": 0, "steps_left_out": 0}
    module, step, spoilt = "encoder.layers.0.blocks.1.attn", 13, {"activation": 8, "gradient": 17}
    nans = [
        {"kind": kind, "module": module, "position": (at - 1) * BATCH + BATCH // 2, "rank": 1}
        for kind, at in spoilt.items()
    ]
    stop = {"kind": "signal", "step": step, "rank": 1}
    for strategy in ("DDP", "FSDP2", "DeepSpeed ZeRO-1", "DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3"):
        name = strategy.replace(" ", "_")
        runs.run(f"{name}_whole", processes=2, strategy=strategy, faults=nans)
        runs.run(name, processes=2, strategy=strategy, faults=[*nans, stop], expect=STOPPED)
        runs.run(name, processes=2, strategy=strategy, faults=nans)
        figures["strategies"] += 1
        figures["different"] += not runs.same(f"{name}_whole", name)
        finite = all(value.isfinite().all() for value in runs.final(name).values())
        left_out = {entry["step"] for entry in whole_lines(folder / name / "skipped_steps.jsonl")}
        figures["nans"] += len(nans)
        figures["nans_applied"] += len(nans) if not finite else len(set(spoilt.values()) - left_out)
        figures["steps_left_out"] += len(left_out)
    batch = ("--train.global_batch", "12", "--train.micro_batch", "4")
    runs.run("whole", *batch)
    for processes in (1, 3):
        name = f"fsdp_2_{processes}"
        halves = (*batch, "--train.micro_batch", "6", "--train.stop_after", f"{step} steps")
        runs.run(name, *halves, processes=2, strategy="FSDP2")
        runs.run(name, *batch, processes=processes, strategy="FSDP2")
        figures[name] = runs.distance("whole", name)
        figures["different"] += figures[name] > TOLERANCE
    return figures


def stops(folder: Path) -> dict[str, Any]:
    """A signal in the middle of every step, one after the other in one process and in two."""
    runs = Runs(folder)
    figures: dict[str, Any] = {"stops": 0, "different": 0}
    for processes in (1, 2):
        whole = f"whole_{processes}"
        runs.run(whole, processes=processes)
        for step in tqdm(range(STEPS), desc=f"stops, {processes} processes", disable=not sys.stderr.isatty()):
            name = f"stopped_{processes}_{step}"
            # of two processes one is told, in turn
            fault = {"kind": "signal", "step": step, "rank": step % processes}
            last = step == STEPS - 1  # nothing is left to stop
            runs.run(name, processes=processes, faults=[fault], expect=0 if last else STOPPED)
            status = json.loads((folder / name / "run_status.json").read_text())
            figures["stops"] += 1
            figures["different"] += status["step"] != step + 1
            runs.run(name, processes=processes)
            figures["different"] += not runs.same(whole, name)
    runs.run("elastic", faults=[{"kind": "signal", "step": 9}], expect=STOPPED)
    runs.run("elastic", processes=2, faults=[{"kind": "signal", "step": 19, "rank": 1}], expect=STOPPED)
    runs.run("elastic")
    figures["one_two_one_processes"] = runs.distance("whole_1", "elastic")
    figures["different"] += figures["one_two_one_processes"] > TOLERANCE
    return figures


def numbers(folder: Path) -> dict[str, Any]:
    """A NaN in one process of two, in the middle of a run."""
    runs = Runs(folder)
    figures = {"faults": 0, "non_finite_weights": 0, "wrong_step": 0, "wrong_module": 0}
    block = "encoder.layers.0.blocks.1"
    step, position = 13, 12 * BATCH + BATCH // 2  # the micro batch of the second process
    for kind, module, named in (
        ("input", "", "output not finite first in encoder.patch_embed"),
        ("activation", f"{block}.attn", f"output not finite first in {block}.attn"),
        ("activation", f"{block}.mlp", f"output not finite first in {block}.mlp"),
        ("gradient", f"{block}.attn", f"gradient not finite first in {block}.attn"),
    ):
        fault = {"kind": kind, "module": module, "position": position, "rank": 1}
        name = f"{kind}_{module.rpartition('.')[2]}"
        runs.run(name, processes=2, faults=[fault])
        figures["faults"] += 1
        figures["non_finite_weights"] += not all(value.isfinite().all() for value in runs.final(name).values())
        skipped = whole_lines(folder / name / "skipped_steps.jsonl")
        figures["wrong_step"] += {entry["step"] for entry in skipped} != {step}
        figures["wrong_module"] += named not in replayed(folder / name, step, fault)
    # from step 13 on every micro batch of one process is bad: back to step 10 twice, and then it gives up
    fault = {"kind": "activation", "module": f"{block}.attn", "position": position, "onwards": True, "rank": 1}
    said = runs.run("hopeless", processes=2, faults=[fault], expect=DATA_ERROR)
    figures["returns_before_giving_up"] = said.count("back to step 10")
    return figures


def replayed(run: Path, step: int, fault: dict[str, Any]) -> str:
    """What swin-mim replay says of a step, under the same fault."""
    command = ["-m", "tools.chaos.faults", json.dumps([fault]), "swin_mim", "replay", str(run), str(step)]
    done = subprocess.run(
        [sys.executable, *command],
        env=environment(**ENVIRONMENT),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout + done.stderr
