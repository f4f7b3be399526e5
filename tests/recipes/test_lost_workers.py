"""A data worker dies in the middle of a run."""

import os
import signal
from pathlib import Path

LONG = ("--train.duration", "60 steps", "--data.workers", "2")  # more batches than two workers prepare ahead
LONG += ("--save.every", "30 steps", "--log.evaluate_every", "30 steps")


def workers_of(pid: int) -> list[int]:
    """The processes that a process has forked."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    command, *others = [Path(f"/proc/{each}/cmdline").read_bytes() for each in [pid, *children]]
    return [int(child) for child, other in zip(children, others, strict=True) if other == command]


def test_a_killed_worker_changes_nothing(recipe) -> None:
    recipe.run("whole_long", *LONG)
    process = recipe.start_from_nothing("lost_worker", *LONG)
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("step "):
            workers = workers_of(process.pid)
            assert len(workers) == 2
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            break
    output += process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert "a data worker died of signal 9 (Killed, as when memory runs out): starting all workers anew" in output
    assert "lower data.workers, which is 2" in output
    assert recipe.metrics("lost_worker") == recipe.metrics("whole_long")
    assert "died of signal 9" in (recipe.path("lost_worker") / "train.log").read_text()
