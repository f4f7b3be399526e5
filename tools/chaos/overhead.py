"""python -m tools.chaos overhead: what guarding a run costs, on the demo.

    python -m tools.chaos.overhead plain 200 FOLDER     # one measurement: seconds of these steps, as JSON

`plain` is the loop of a tutorial: forward, backward, clip, step, and a loss now and then. `guarded` is `trainer.fit`
with its log, its comparisons, and checkpoints as often as in the demo. Both train one model on the same batches.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from swin_mim.data.loading.loader import Batch
from swin_mim.recipes import pretrain
from swin_mim.training.config.commands import pretrain_config
from swin_mim.training.distributed.prepare import PreparedModel
from swin_mim.training.loop.schedule import TrainingSchedule
from swin_mim.training.loop.trainer import Loader, Saving, fit
from swin_mim.training.run.run import Run
from tools.clone import environment

STEPS, REPEATS = 300, 5
"""A checkpoint is due every 300 steps of the demo."""


def overhead(folder: Path) -> dict[str, Any]:
    """Plain and guarded in turn, in new processes -> medians of seconds, and what the guarded steps take more."""
    seconds: dict[str, list[float]] = {"plain": [], "guarded": []}
    for repeat in range(REPEATS):
        # who begins changes, because machines slow down and recover
        for kind in list(seconds)[:: 1 - 2 * (repeat % 2)]:
            command = [sys.executable, "-m", "tools.chaos.overhead", kind, str(STEPS), str(folder / f"{kind}_{repeat}")]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
            seconds[kind].append(json.loads(done.stdout.splitlines()[-1]))
    pairs = zip(seconds["plain"], seconds["guarded"], strict=True)
    return {
        "steps": STEPS,
        **{f"{kind}_seconds": round(statistics.median(values), 3) for kind, values in seconds.items()},
        **{f"{kind}_spread": [round(min(values), 3), round(max(values), 3)] for kind, values in seconds.items()},
        "overhead": round(statistics.median(guarded / plain - 1 for plain, guarded in pairs), 4),
    }


def plain_loop(
    run: Run,
    trained: PreparedModel[Any],
    task: Callable[[Batch], Tensor],
    loader: Loader,
    schedule: TrainingSchedule,
    checkpoints: Saving,
    *_: Any,
) -> bool:
    batches, optimizer = loader.batches(0), trained.optimizer
    for step in range(schedule.total_steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step, 1.0)
        loss = task(next(batches))
        run.accelerator.backward(loss)
        run.accelerator.clip_grad_norm_(trained.model.parameters(), schedule.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step % schedule.log_every == 0:
            print(step, loss.item())
    checkpoints.state.step = schedule.total_steps
    return True


def main(kind: str, steps: int, folder: Path) -> None:
    taken: list[float] = []

    def timed(*job: Any) -> bool:
        without_evaluations = (*job[:6], (), *job[7:])
        start = time.perf_counter()
        finished = fit(*without_evaluations) if kind == "guarded" else plain_loop(*job)
        taken.append(time.perf_counter() - start)
        return finished

    flags = ["--train.duration", f"{steps} steps", "--run.root", str(folder.parent), "--run.name", folder.name]
    assert pretrain.main(pretrain_config(flags), fit=timed) == 0
    print(json.dumps(round(taken[0], 3)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
