"""The probe of an encoder as a command: its table, its JSON, and what it says of mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swin_mim import SimMIM, SwinConfig

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import probe  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder in mim/, and photos/ of two classes that differ in where they are bright, not in colour."""
    root = tmp_path_factory.mktemp("probe")
    rng = np.random.default_rng(0)
    for name, rows in (("stripes", slice(None, None, 2)), ("halves", slice(0, 8))):
        for number in range(40):
            picture = rng.integers(0, 200, (16, 16, 3), dtype=np.uint8)
            picture[rows] += 55
            path = root / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    torch.manual_seed(5)  # the random weights beside it are those of --seed 0
    SimMIM(SwinConfig(16, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)).save_pretrained(root / "mim")
    return root


def test_table_and_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe.main([
        *(str(folder / "mim"), "--source", str(folder / "photos"), "--images", "60", "--workers", "0"),
        *("--json", str(tmp_path / "probe.json")),
    ])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "probe.json").read_text())
    assert report["classes"] == ["halves", "stripes"]
    assert (report["learnt_from"], report["tested_on"]) == (60, 8)
    assert len(report["stages"]) == len(report["random_weights"]) == 2
    # where it is bright can be seen by any encoder; the colours do not tell
    assert max(stage["linear"] for stage in report["stages"]) > report["colours"]["linear"]
    assert report["stages"] != report["random_weights"]
    assert [line.split("  ")[0] for line in lines[3:]] == ["colours alone", "stage 1", "stage 2"]
    for line, own, other in zip(lines[4:], report["stages"], report["random_weights"], strict=True):
        numbers = [f"{100 * scores[kind]:.1f}" for kind in ("linear", "knn") for scores in (own, other)]
        assert [word for word in line.split()[2:] if not word.startswith("(")] == numbers


def test_the_same_command_says_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(folder / "mim"), "--source", str(folder / "photos"), "--images", "20", "--workers", "0"]
    said = []
    for seed in ("1", "1", "2"):
        probe.main([*command, "--seed", seed, "--json", "-"])
        said.append(capsys.readouterr())
    assert said[0] == said[1] != said[2]
    assert len(json.loads(said[0].out)["stages"]) == 2  # and the table is not in it
    assert "stage 2" in said[0].err


@pytest.mark.parametrize(("flags", "text"), [
    (["--images", "0"], "--images 0 must be at least 1"),
    (["--workers", "-1"], "--workers -1 must be at least 0"),
    (["--json", "no/such/folder.json"], "argument --json: no/such/folder.json: there is no folder"),
    (["--label-column", "kind"], "belongs to tables"),
])  # fmt: skip
def test_a_users_mistake_is_one_line(
    flags: list[str], text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        probe.main([str(folder / "mim"), "--source", str(folder / "photos"), "--workers", "0", *flags])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.strip().count("\n") == 0


def test_the_help_says_how_to_read_it() -> None:
    done = subprocess.run([sys.executable, str(TOOLS / "probe.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "under-rates masked image models" in done.stdout
