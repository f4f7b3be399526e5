"""python -m tools.chaos overhead: what guarding a run costs, on the demo.

    python tools/chaos_overhead.py plain 200 FOLDER     # one measurement: seconds of these steps, as JSON

`plain` is the loop of a tutorial: forward, backward, clip, step, and a loss now and then. `guarded` is `engine.fit`
with its log, its comparisons, and checkpoints as often as in the demo. Both train one model on the same batches.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STEPS, REPEATS = 300, 5
"""A checkpoint is due every 300 steps of the demo."""


def overhead(folder: Path) -> dict[str, Any]:
    """Plain and guarded in turn, in new processes -> medians of seconds, and what the guarded steps take more."""
    seconds: dict[str, list[float]] = {"plain": [], "guarded": []}
    for repeat in range(REPEATS):
        # who begins changes, because machines slow down and recover
        for kind in list(seconds)[:: 1 - 2 * (repeat % 2)]:
            command = [sys.executable, "-m", "tools.chaos.overhead", kind, str(STEPS), str(folder / f"{kind}_{repeat}")]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds[kind].append(json.loads(done.stdout.splitlines()[-1]))
    pairs = zip(seconds["plain"], seconds["guarded"], strict=True)
    return {
        "steps": STEPS,
        **{f"{kind}_seconds": round(statistics.median(values), 3) for kind, values in seconds.items()},
        **{f"{kind}_spread": [round(min(values), 3), round(max(values), 3)] for kind, values in seconds.items()},
        "overhead": round(statistics.median(guarded / plain - 1 for plain, guarded in pairs), 4),
    }


def plain_loop(accelerator: Any, model: Any, optimizer: Any, **job: Any) -> bool:
    plan, state = job["plan"], job["state"]
    batches, steps = job["batches"](0), plan.total_steps
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = job["learning_rate"](step, 1.0)
        loss = job["loss_of"](next(batches))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), plan.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step % plan.log_every == 0:
            print(step, loss.item())
    state.step = steps
    return True


def main(kind: str, steps: int, folder: Path) -> None:
    from swin_mim.recipes import pretrain
    from swin_mim.training.config.parsing import load_config
    from swin_mim.training.config.pretrain import PretrainConfig
    from swin_mim.training.config.pretrain_checks import check
    from swin_mim.training.loop import trainer as engine

    taken: list[float] = []

    def timed(*arguments: Any, **job: Any) -> bool:
        loop = engine.fit if kind == "guarded" else plain_loop
        start = time.perf_counter()
        finished = loop(*arguments, **job | {"evaluations": []})
        taken.append(time.perf_counter() - start)
        return finished

    flags = ["--train.duration", f"{steps} steps", "--run.root", str(folder.parent), "--run.name", folder.name]
    config = load_config(PretrainConfig, flags, default_config=pretrain.DEMO, prog="", description="", check=check)
    assert pretrain.main(config, fit=timed) == 0
    print(json.dumps(round(taken[0], 3)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
