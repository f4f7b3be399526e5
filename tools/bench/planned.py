"""Memory that a pretraining takes on this CPU beside what the planner's model says: `python -m tools.bench.planned`.

The real recipe runs for a few steps in processes of its own. Measured is the high-water mark of a process's memory up
to the first checkpoint, less what it had before there was a model. What libraries take is measured the same way, of a
run with next to no model, and given to the model of memory as `fixed`.

Memory that is freed has to go back to the system to be seen: glibc keeps tensors of up to 32 MB in its heap, whose
holes are no part of the model and take another 10 to 20 %. `--heap` leaves it as it is in a run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from swin_mim.errors import UserError
from swin_mim.kernels.chunked_mlp import CACHE, again
from swin_mim.kernels.product import onednn_is_faster
from swin_mim.models.cost import CPU_MKL, CPU_ONEDNN, Storage, parts_of
from swin_mim.training.config.commands import pretrain_config
from swin_mim.training.planning.memory import ZERO_BUCKET, Network, Strategy, Training, memory_of
from tools.bench.memory import resident_peak_gb
from tools.clone import environment
from tools.forked import free_port

STEPS = 3
"""Of a run: the optimizer has its moments after the first."""
SAMPLES = 4
"""Images there are: they are read again and again."""


class Case(NamedTuple):
    """A run to measure."""

    model: str
    image_size: int
    micro_batch: int
    accumulation: int = 1
    checkpointing: bool = False
    strategy: Strategy = "one process"
    processes: int = 1
    overrides: tuple[str, ...] = ()
    """Words of the recipe's command line."""
    teacher: str = ""
    """A named size: a Swin with new weights, for images of the same size."""

    @property
    def text(self) -> str:
        again = ", checkpointing" if self.checkpointing else ""
        again += f", {' '.join(self.overrides)}" if self.overrides else ""
        again += f", teacher {self.teacher}" if self.teacher else ""
        more = f" x {self.accumulation}" if self.accumulation > 1 else ""
        several = f" in {self.processes} processes" if self.processes > 1 else ""
        return f"{self.model} {self.image_size} px, {self.micro_batch}{more} images{again}, {self.strategy}{several}"

    def arguments(self, folder: Path) -> list[str]:
        """The recipe's command line; images are made in the folder."""
        batch = self.micro_batch * self.accumulation * self.processes
        settings: dict[str, Any] = {
            "data.source": _pictures(folder, self.image_size),
            "data.workers": 0,
            "data.heldout": 0,
            "model.name": self.model,
            "model.image_size": self.image_size,
            "optim.warmup": "1 step",
            "run.root": folder / "runs",
            "train.duration": f"{STEPS} steps",
            "train.global_batch": batch,
            "train.micro_batch": self.micro_batch,
            "train.precision": "fp32",
            "train.activation_checkpointing": str(self.checkpointing).lower(),
            "train.fsdp": str(self.strategy == "FSDP2").lower(),
            "log.every": "1 step",
            "log.evaluate_every": "0 steps",
            "log.pictures_every": "0 steps",
            "save.every": f"{STEPS} steps",
        }
        base = ["--config", "simmim_swin_tiny_192_100ep", "--log.trackers"]
        if self.teacher:
            settings["teacher.model"] = _teacher(folder, self.teacher, self.image_size)
        return [*base, *(word for key, value in settings.items() for word in (f"--{key}", str(value))), *self.overrides]


NOTHING = Case(
    "swin_nano", 64, 1, overrides=("--model.embed_dim", "8", "--model.depths", "1", "1", "--model.num_heads", "1", "1")
)
"""Next to no model; of the strategy in question."""

CASES = (
    Case("swin_nano", 192, 8),
    Case("swin_nano", 192, 32),
    Case("swin_tiny", 192, 8),
    Case("swin_tiny", 192, 16),
    Case("swin_tiny", 192, 16, checkpointing=True),
    Case("swin_tiny", 192, 4, accumulation=2),
    Case("swin_small", 192, 8),
    Case("swin_small", 192, 8, checkpointing=True),
    Case("swin_tiny", 192, 8, overrides=("--model.target", "hog")),
    Case("swin_tiny", 192, 8, overrides=("--model.supervise", "stages")),
    Case("swin_tiny", 192, 8, teacher="swin_tiny"),
    Case("swin_nano", 192, 32, teacher="swin_tiny"),
    Case("swin_tiny", 192, 8, strategy="DDP", processes=2),
    Case("swin_tiny", 192, 8, checkpointing=True, strategy="DDP", processes=2),
    Case("swin_tiny", 192, 8, strategy="FSDP2", processes=2),
    Case("swin_tiny", 192, 8, strategy="ZeRO-1", processes=2),
)


def measured_gb(case: Case, *, heap: bool = False) -> float:
    """Peak memory of the process of a run that takes most, less what it had before the model, in GB.

    Args:
        heap: count what glibc's heap holds of freed memory too.

    Raises:
        UserError: the run failed.
    """
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        module = [sys.executable, "-m", "tools.bench.planned", "--child", root]
        command, variables = [*module, *case.arguments(folder)], _variables(case, folder, heap=heap)
        running = [
            subprocess.Popen(
                command,
                env=environment(**(variables | own)),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for own in _ranks(case)
        ]
        outputs = [process.communicate()[0] for process in running]
        for process, output in zip(running, outputs, strict=True):
            if process.returncode:
                raise UserError(f"{case.text} failed: {output.strip().splitlines()[-1]}")
        return max(json.loads(file.read_text()) for file in folder.glob("peak_*.json"))


def planned_gb(case: Case, fixed: float) -> float:
    """What the model of memory says, in GB.

    Args:
        fixed: what libraries take, in GB.
    """
    with tempfile.TemporaryDirectory() as folder:
        network = Network.of(pretrain_config(case.arguments(Path(folder))))
    options: dict[str, Any] = {"half": False, "storage": _storage(network, case.micro_batch), "fixed": fixed * 1e9}
    training = Training(case.strategy, case.processes, case.checkpointing, case.accumulation > 1, **options)
    planned = memory_of(network, training, case.micro_batch).total
    if case.strategy == "ZeRO-1":
        # a GPU gives DeepSpeed's buffers whole, a system the pages that are written: gradients, which move there
        planned -= 2 * 4 * ZERO_BUCKET
    return planned / 1e9


def _storage(network: Network, micro_batch: int) -> Storage:
    """What layers keep on this CPU."""
    if onednn_is_faster():
        return replace(CPU_ONEDNN, again=again())
    blocks = [part for part in parts_of(network.swin) if part.channels <= CPU_MKL.again]
    cold = any(4 * micro_batch * part.tokens * part.hidden > CACHE for part in blocks)
    return CPU_MKL if cold else replace(CPU_MKL, again=0)


def rows(cases: Sequence[Case], *, heap: bool = False) -> Iterator[tuple[Case, float, float]]:
    """(case, measured, planned), in GB. `heap` as in `measured_gb`."""
    fixed: dict[tuple[Strategy, int], float] = {}
    for case in cases:
        way = case.strategy, case.processes
        if way not in fixed:
            nothing = NOTHING._replace(strategy=case.strategy, processes=case.processes)
            fixed[way] = max(measured_gb(nothing, heap=heap) - planned_gb(nothing, 0.0), 0.0)
        yield case, measured_gb(case, heap=heap), planned_gb(case, fixed[way])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each case as it is measured."""
    options = parse(arguments)
    if options.child:
        return _run(Path(options.child), options.recipe)
    print("case | measured GB | planned GB | planned / measured")
    for case, measured, planned in rows([case for case in CASES if options.only in case.text], heap=options.heap):
        print(f"{case.text} | {measured:.3f} | {planned:.3f} | {planned / measured:.2f}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.planned", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this text, such as swin_nano or DDP")
    parser.add_argument("--heap", action="store_true", help="count the holes of glibc's heap too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options, recipe = parser.parse_known_args(arguments)
    options.recipe = recipe
    if options.recipe and not options.child:
        parser.error(f"unknown: {' '.join(options.recipe)}")
    return options


def _run(folder: Path, arguments: Sequence[str]) -> None:
    """Be a process of the run, and leave its peak in the folder."""
    from swin_mim.recipes import pretrain
    from swin_mim.training.loop.trainer import Publishing, Trainer

    lessons, save, before = pretrain.lessons_of, Trainer.save, []

    def noted(*args: Any, **options: Any) -> Any:
        Path("/proc/self/clear_refs").write_text("5")
        before.append(resident_peak_gb())
        return lessons(*args, **options)

    def saved(trainer: Trainer, publisher: Publishing | None) -> None:
        file = folder / f"peak_{os.environ.get('RANK', '0')}.json"
        file.write_text(json.dumps(resident_peak_gb() - before[0]))
        save(trainer, publisher)

    pretrain.lessons_of, Trainer.save = noted, saved  # type: ignore[method-assign,assignment]
    pretrain.main(pretrain_config(arguments))


def _variables(case: Case, folder: Path, *, heap: bool) -> dict[str, str]:
    variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if not heap:
        variables["MALLOC_MMAP_THRESHOLD_"] = "65536"  # setting it, glibc raises it no more
    if case.strategy == "ZeRO-1":  # accelerate leaves DeepSpeed out if it is told to use the CPU
        file = Path(__file__).parents[2] / "recipes" / "launch" / "zero1.json"
        variables |= {"ACCELERATE_USE_CPU": "false", "ACCELERATE_USE_DEEPSPEED": "true"}
        variables |= {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    return variables


def _ranks(case: Case) -> list[dict[str, str]]:
    if case.processes == 1:
        return [{}]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(case.processes)}
    shared |= {"LOCAL_WORLD_SIZE": str(case.processes)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(case.processes)]


def _teacher(folder: Path, name: str, side: int) -> Path:
    from swin_mim import Swin, SwinConfig

    where = folder / "teacher"
    if not where.exists():
        Swin(SwinConfig.named(name, image_size=side, window_size=6)).save_pretrained(where)
    return where


def _pictures(folder: Path, side: int) -> Path:
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for number in range(SAMPLES):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((side, side)).save(pictures / f"{number}.png")
    return pictures


if __name__ == "__main__":
    main()
