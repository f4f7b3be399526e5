"""Processes that are forked with everything imported: their output, their end, their environment."""

import signal
from pathlib import Path

import pytest

from tools import forked

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
SCRIPT = """
import sys, time
from huggingface_hub import constants
print(sys.argv[1:], constants.ENDPOINT, constants.HF_HUB_OFFLINE, flush=True)
if sys.argv[1] == "stay":
    time.sleep(600)
sys.exit("no more")
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "script.py").write_text(SCRIPT)
    return str(tmp_path / "script.py")


def test_one_is_watched_and_stopped(script: str, tmp_path: Path) -> None:
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    process = forked.start([script, "stay"], tmp_path, environment=ENVIRONMENT, variables=hub)
    assert process.stdout.readline() == "['stay'] http://127.0.0.1:9 False\n"
    assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == ("", None)
    assert process.returncode == -signal.SIGTERM
    process.send_signal(signal.SIGTERM)  # to nobody


def test_one_that_takes_too_long_is_killed(script: str, tmp_path: Path) -> None:
    process = forked.start([script, "stay"], tmp_path, environment=ENVIRONMENT)
    with pytest.raises(TimeoutError, match=r"took more than 0.5 s: "):
        process.communicate(timeout=0.5)
    assert process.returncode == -signal.SIGKILL


def test_the_environment_of_one_is_not_that_of_the_next(script: str, tmp_path: Path) -> None:
    (end,) = forked.run([script, "go"], tmp_path, environment=ENVIRONMENT, variables={"HF_ENDPOINT": "http://here"})
    assert (end.code, end.said.splitlines()) == (1, ["['go'] http://here True", "no more"])
    (end,) = forked.run([script, "go"], tmp_path, environment=ENVIRONMENT)
    assert end.said.startswith("['go'] https://huggingface.co True\n")
