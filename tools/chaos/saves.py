"""python -m tools.chaos on checkpoints: saves that are cut off, disks that are full, files that change."""

import logging
import os
import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from swin_mim.training.checkpoints import store
from swin_mim.training.checkpoints.manager import Checkpoints
from swin_mim.training.checkpoints.model_state import optimizer_tensors
from swin_mim.training.checkpoints.state import RunState, newest_checkpoint
from swin_mim.training.loop.optim import adamw

BYTE_POINTS = 500
"""Places in the files of a save at which it is killed, and again at which the disk is full."""
FLIPS, CUTS = 1500, 500
CALLS = ((os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (os, "rename"), (os, "replace"))
"""System calls of a save, besides the writes, before each of which it is killed."""
METHODS = ("rename", "replace", "write_text", "mkdir", "open")

State = dict[str, Tensor]


class Run:
    """A model, its optimizer and their checkpoints; `train` moves them by a step that depends on its number alone."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(24, 16), nn.LayerNorm(16), nn.Linear(16, 8))
        optimizer = adamw(self.model)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        wrapped = accelerator.prepare_optimizer(optimizer, device_placement=False)
        self.checkpoints = Checkpoints(folder, accelerator, self.model, self.model, wrapped, keep=2)
        self._optimizer = optimizer

    def train(self, step: int) -> None:
        images = torch.randn(4, 24, generator=torch.Generator().manual_seed(step))
        self.model(images).square().mean().backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def save(self, step: int) -> None:
        self.checkpoints.save(RunState(step=step, samples_seen=4 * step))
        self.checkpoints.writer.wait()

    def state(self) -> State:
        moments = optimizer_tensors(self._optimizer, self.model)
        return {name: value.clone() for name, value in (self.model.state_dict() | moments).items()}


class Bench:
    """Steps 1 and 2 of a run are on the disk; what it is at steps 1 to 3 is known."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        logging.getLogger("swin_mim").setLevel(logging.CRITICAL)  # a fault at every point is no news
        self.folder, self.start = folder, folder / "start"
        self.accelerator = Accelerator(cpu=True)
        run = Run(self.start, self.accelerator)
        self.states: dict[int, State] = {}
        for step in (1, 2, 3):
            run.train(step)
            self.states[step] = run.state()
            if step < 3:
                run.save(step)

    def copy(self) -> Path:
        """The run of steps 1 and 2, to be broken."""
        place = self.folder / "broken"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.start, place)
        return place

    def found(self, place: Path) -> str:
        """What a run that is started again in a folder finds: "step 2", "unloadable", or "silently wrong"."""
        run = Run(place, self.accelerator)
        try:
            newest = newest_checkpoint(place)
            if newest is None:
                return "unloadable"
            state = run.checkpoints.restore(newest)
        except Exception:
            return "unloadable"
        expected = self.states[state.step]
        found = run.state()
        same = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
        return f"step {state.step}" if same and store.step_of(newest) == state.step else "silently wrong"

    def save_in_a_child(self, place: Path, prepare: Callable[[], None]) -> int:
        """Step 3 and its checkpoint, in a process with a fault -> how that ended: 0, or minus the signal."""
        child = os.fork()
        if not child:
            run = Run(place, self.accelerator)
            run.checkpoints.restore(store.path_of(place, 2))
            run.train(3)
            prepare()
            run.save(3)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def saves(folder: Path) -> dict[str, Any]:
    """Kill points and write errors over a save."""
    bench = Bench(folder)
    largest = max(file.stat().st_size for file in bench.start.rglob("*") if file.is_file())
    places = sorted({round(largest * i / BYTE_POINTS) for i in range(BYTE_POINTS)})
    found: Counter[str] = Counter()
    killed = full = calls = 0
    for size in places:
        for ignored in (False, True):
            place = bench.copy()
            code = bench.save_in_a_child(place, partial(limit, size, ignored))
            assert code == (0 if ignored else -signal.SIGXFSZ), code
            killed, full = killed + (not ignored), full + ignored
            found[bench.found(place)] += 1
    code = -signal.SIGKILL
    while code:
        place = bench.copy()
        code = bench.save_in_a_child(place, partial(kill_at, calls + 1))
        calls += code != 0
        last = bench.found(place)
        found[last] += 1
    assert last == "step 3", f"the save that nothing cut off left {last}"
    return {
        "kill_points_by_byte": killed,
        "kill_points_by_call": calls,
        "disk_full_points": full,
        "continued_from_the_old_one": found["step 2"],
        "continued_from_the_new_one": found["step 3"],
        "unloadable": found["unloadable"] + found["step 1"],
        "silently_wrong": found["silently wrong"],
    }


def limit(size: int, ignored: bool) -> None:
    """No file of this process grows beyond `size`: the process dies of it, or the write fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN if ignored else signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def kill_at(moment: int) -> None:
    """SIGKILL before the call of that number, of all that touch the disk."""
    left = [moment]

    def ticking(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapped

    for module, name in (*CALLS, *((Path, name) for name in METHODS)):
        setattr(module, name, ticking(getattr(module, name)))


def damage(folder: Path) -> dict[str, Any]:
    """Bit flips and truncations in the newest checkpoint."""
    bench = Bench(folder)
    draw = random.Random(0)
    files = sorted(file.name for file in store.path_of(bench.start, 2).iterdir())
    found: Counter[str] = Counter()
    for number in range(FLIPS + CUTS):
        place = bench.copy()
        file = store.path_of(place, 2) / files[number % len(files)]
        data = bytearray(file.read_bytes())
        if number < FLIPS:
            bit = draw.randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
        else:
            del data[draw.randrange(len(data)) :]
        file.write_bytes(data)
        found[bench.found(place)] += 1
    return {
        "bit_flips": FLIPS,
        "truncations": CUTS,
        "detected": found["step 1"],
        "unloadable": found["unloadable"],
        "silently_wrong": found["silently wrong"] + found["step 2"],
    }
