"""tools.bench busy: trainings by the way their threads wait, beside busy processes."""

import json
from pathlib import Path

import pytest

from tools.bench.commands import busy
from tools.bench.settings import BusySettings


@pytest.mark.slow
def test_every_way_is_measured_beside_every_number_of_processes(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(busy, "WAYS", {"own": {}, "passive": {"OMP_WAIT_POLICY": "passive"}})
    file = tmp_path / "busy.json"
    busy.busy(BusySettings(busy=(0, 1), seconds=0.1, repeats=2, threads=1, device="cpu", json=str(file)))
    rates = json.loads(file.read_text())["rates"]
    assert {way: sorted(counts) for way, counts in rates.items()} == {"own": ["0", "1"], "passive": ["0", "1"]}
    assert all(len(each) == 2 and min(each) > 0 for counts in rates.values() for each in counts.values())
    assert "passive" in capsys.readouterr().out
