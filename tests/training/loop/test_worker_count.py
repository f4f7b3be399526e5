"""How many workers a run has where its settings leave that open."""

from pathlib import Path

import pytest
import torch

from swin_mim.data.loading import cores
from swin_mim.training.config.pretrain import DataConfig
from swin_mim.training.loop.worker_count import count_text, room_for_workers, worker_count

CPU, GPU = torch.device("cpu"), torch.device("cuda")
OWN = DataConfig(source="photos")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """16 cores, and no limit of a container."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return monkeypatch


def test_cores_are_shared_by_the_processes_of_a_machine(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("LOCAL_WORLD_SIZE", "4")
    assert room_for_workers(CPU) == 4
    assert room_for_workers(GPU) == 3
    assert room_for_workers(CPU, processes=2) == 8
    machine.setenv("LOCAL_WORLD_SIZE", "32")
    assert room_for_workers(CPU) == 1


def test_a_number_is_that_number(machine: pytest.MonkeyPatch) -> None:
    for workers in (0, 7, 64):
        assert worker_count(DataConfig(source="photos", workers=workers), GPU) == workers


@pytest.mark.parametrize(
    ("number", "processes", "device", "workers", "why"),
    [
        (16, 1, GPU, 15, "16 cores, less one"),
        (16, 1, torch.device("mps"), 15, "16 cores, less one"),
        (16, 4, GPU, 3, "16 cores among 4 processes, less one"),
        (128, 1, GPU, 32, "128 cores, and so many at most"),
        (16, 1, CPU, 4, "16 cores, which the training uses too"),
        (5, 1, CPU, 4, "5 cores, less one"),
        (2, 1, CPU, 1, "2 cores, less one"),
        (2, 1, GPU, 1, "2 cores, less one"),
        (1, 1, GPU, 1, "1 core"),
        (2, 4, GPU, 1, "2 cores among 4 processes"),
    ],
)
def test_auto(
    machine: pytest.MonkeyPatch, number: int, processes: int, device: torch.device, workers: int, why: str
) -> None:
    machine.setattr("os.sched_getaffinity", lambda pid: set(range(number)))
    assert worker_count(OWN, device, processes) == workers
    machine.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert count_text(OWN, device) == f"data.workers auto is {workers}: {why}"


def test_crops_of_a_picture_in_memory_need_none(machine: pytest.MonkeyPatch) -> None:
    assert worker_count(DataConfig(), GPU) == 0
    assert count_text(DataConfig(), GPU) == ""


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "6400000 100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
    ],
)
def test_a_quota_of_the_container_counts(
    machine: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], usable: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.usable_cores() == usable
    assert cores.share_of_cores() == 16, "threads follow the cores that the process is bound to"
