"""Shared by all tests: a quiet, offline, deterministic torch."""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
if not os.environ["CUDA_VISIBLE_DEVICES"]:
    # Read when triton is imported, which torch does behind the scenes. A test may start a process without it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import pytest
import torch
from loopback_hub import LoopbackHub
from triton_interpreter import prepare_the_language_once

from swin_mim import SwinConfig

if os.environ.get("TRITON_INTERPRET") == "1":
    prepare_the_language_once()

# Tests side by side (pytest -n) share the cores: more threads than these wait for each other all the time.
torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))

# A slow machine is no failure; what CI says of one commit must not change from run to run.
hypothesis.settings.register_profile("swin_mim", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("swin_mim")


LONGEST = (
    *("recipes", "test_notebook.py", "test_docs.py", "hub", "tools", "cli", "kernels", "models"),
    *("test_api.py", "data", "weights"),
)
"""Folders and files whose tests take longest, most of them by starting processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest: the last file of a process is then a short one, and no other process waits for it."""
    here = Path(__file__).parent
    rooms = {room: place for place, room in enumerate(LONGEST)}
    items.sort(key=lambda item: rooms.get(item.path.relative_to(here).parts[0], len(rooms)))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads would wait for each other at every one of many small operations."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> SwinConfig:
    """Four stages of which two have shifted windows: 64 px, windows of 4, grids 16, 8, 4, 2."""
    return SwinConfig(64, embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=4)


_numbers = count()


@pytest.fixture(scope="session")
def hub_server() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        yield server


@pytest.fixture
def hub(hub_server: LoopbackHub) -> LoopbackHub:
    """The one server, with a user who has nothing yet, no requests on record and no faults to come."""
    hub_server.user = f"ada{next(_numbers)}"
    hub_server.requests.clear()
    hub_server.fail_after(0)
    hub_server.down, hub_server.before_commit, hub_server.xet = False, None, None
    return hub_server


@pytest.fixture
def client_environment(hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    """Variables of a process of its own, whose client talks to `hub` and keeps its cache in `tmp_path`."""
    return hub.environment(tmp_path / "hf_home")
