"""The short version of python -m tools.chaos: fewer points, the same faults."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.clone import environment

SHORT = """
import sys
from tools.chaos import __main__ as chaos, saves
saves.BYTE_POINTS, saves.FLIPS, saves.CUTS = 40, 150, 50
chaos.main(sys.argv[1:])
"""


def run(*arguments: str, folder: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """A process in a folder outside the clone."""
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def figures(tmp_path: Path, *parts: str) -> dict[str, dict[str, float]]:
    """In a process of its own: it forks, and sets up an accelerator."""
    file = tmp_path / "chaos.json"
    done = run("-c", SHORT, *parts, "--json", str(file), folder=tmp_path, timeout=900)  # of strategies, 270 s
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(file.read_text()))


@pytest.mark.slow
def test_no_save_is_lost_and_no_damage_goes_unseen(tmp_path: Path) -> None:
    found = figures(tmp_path, "saves", "damage")
    saves, damage = found["saves"], found["damage"]
    assert saves["kill_points_by_byte"] == saves["disk_full_points"] == 40
    assert saves["kill_points_by_call"] > 20
    assert saves["unloadable"] == saves["silently_wrong"] == 0
    assert saves["continued_from_the_old_one"] > 60
    assert saves["continued_from_the_new_one"] > 2
    assert damage["detected"] == damage["bit_flips"] + damage["truncations"] == 200
    assert damage["unloadable"] == damage["silently_wrong"] == 0


@pytest.mark.slow
def test_a_nan_in_one_process_of_two_is_left_out_and_found_again(tmp_path: Path) -> None:
    found = figures(tmp_path, "numbers")["numbers"]
    assert found["faults"] == 4
    assert found["returns_before_giving_up"] == 2
    assert found["non_finite_weights"] == found["wrong_step"] == found["wrong_module"] == 0


@pytest.mark.slow
def test_every_strategy_continues_and_leaves_a_nan_out(tmp_path: Path) -> None:
    found = figures(tmp_path, "strategies")["strategies"]
    assert (found["strategies"], found["nans"], found["steps_left_out"]) == (5, 10, 10)
    assert found["different"] == found["nans_applied"] == 0


@pytest.mark.slow
def test_it_counts_what_is_lost(tmp_path: Path) -> None:
    """With checkpoints that are not verified, damage is silent: the figures say so, and the tool fails."""
    careless = "from swin_mim.training.checkpoints import store\nstore.verify = lambda path: ''\n" + SHORT
    done = run("-c", careless, "damage", folder=tmp_path, timeout=300)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: not as promised: damage.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["savs"], "no such part: savs"), (["saves", "--json", "no/such/x.json"], "x.json: there is no folder")],
)
def test_a_mistake_is_said_before_any_part_runs(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run("-m", "tools.chaos", *arguments, folder=tmp_path, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
