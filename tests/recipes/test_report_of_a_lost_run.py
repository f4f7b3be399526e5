"""The page of a run that is killed says so, and what continues it."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swin_mim.evaluation.report import findings
from swin_mim.evaluation.report.run_files import RunFiles


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def standing(folder: Path) -> str:
    return findings.standing(RunFiles.read(folder))


def said_of_its_end(folder: Path) -> list[str]:
    return [text for text in findings.troubles(RunFiles.read(folder)) if text.startswith("Killed")]


@pytest.mark.slow
def test_a_run_that_is_killed_is_not_running(recipe):
    folder, flags = recipe.path("killed"), ("--train.duration", "100000 steps")
    first = recipe.start("killed", *flags)
    try:
        until(lambda: (folder / "checkpoints" / "step_0000000005").exists())
        assert " · running · step " in standing(folder)
        assert said_of_its_end(folder) == []
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)
    run = RunFiles.read(folder)
    assert f" · killed or lost · step {run.step:,} of 100,000 · " in standing(folder)
    checkpoint, (said,) = run.checkpoint, said_of_its_end(folder)
    assert checkpoint is not None
    assert said.startswith(f"Killed or lost at step {run.step:,}: no process has it. The same command continues it ")
    assert said.endswith(f" from step {checkpoint:,}, its newest checkpoint.")
    second = recipe.start("killed", *flags)
    try:
        until(lambda: " · running · " in standing(folder))
    finally:
        second.send_signal(signal.SIGTERM)
        said, _ = second.communicate(timeout=60)
    assert f"resumed at step {checkpoint} in " in said
    assert " · stopped · step " in standing(folder)
