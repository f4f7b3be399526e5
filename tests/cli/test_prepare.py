"""Packing as a command: what it prints, its exit codes, and a real pretraining with the options it gives."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from swin_mim.cli import prepare
from swin_mim.data.sources.folder import FolderSource
from swin_mim.errors import CANNOT_WRITE, INTERRUPTED, MISTAKE
from tools import forked

TINY = {
    "run": {"name": "tiny"},
    "data": {"workers": 0, "heldout": 2},
    "model": {
        "name": "swin_nano",
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "image_size": 32,
        "window_size": 4,
    },
    "mask": {"unit": 8},
    "optim": {"warmup": "1 step"},
    "train": {"duration": "2 steps", "global_batch": 8, "micro_batch": 8, "precision": "fp32", "threads": 1},
    "log": {"every": "1 step", "evaluate_every": "2 steps", "pictures_every": "0 steps", "trackers": []},
    "save": {"every": "2 steps"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(24):
        small = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize((60, 48)).save(folder / f"{number:02d}.jpg")
    return folder


@pytest.fixture(scope="module")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    prepare.main([str(photos), str(folder), "--size", "40", "--workers", "0"])
    return folder


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit code, the line)."""
    with pytest.raises(SystemExit) as left:
        prepare.main(arguments)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return left.value.code, said.err


def test_a_pretraining_with_the_options_that_it_prints(
    photos: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.main([str(photos), str(packed), "--size", "40", "--workers", "0"])  # complete already: it says it again
    summary, head, options = capsys.readouterr().out.splitlines()
    assert summary.startswith(f"{packed}: 24 images, 0.")
    assert head == "to train on them:"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (end,) = forked.run(
        ["-m", "swin_mim", "pretrain", "--config", "tiny.yaml", *options.split()],
        tmp_path,
        environment={"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        variables={"HF_HOME": str(tmp_path / "cache")},
    )
    assert end.code == 0, end.said
    config = yaml.safe_load((tmp_path / "runs/tiny/config.yaml").read_text())
    manifest = json.loads((packed / "packed.json").read_text())
    np.testing.assert_allclose(config["data"]["mean"], manifest["mean"], atol=1e-4)
    np.testing.assert_allclose(config["data"]["std"], manifest["std"], atol=1e-4)
    assert "22 images and 2 held out" in end.said
    assert list((tmp_path / "cache").rglob("*.arrow")) == []


def test_verify(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.main(["--verify", str(packed)])
    assert capsys.readouterr().out == f"{packed}: 24 images, every shard whole (1)\n"
    code, line = failure(capsys, "--verify", str(tmp_path / "none"))
    assert (code, line) == (
        MISTAKE,
        f"error: {tmp_path / 'none'} does not exist: there are no packed images to verify\n",
    )


def test_broken_images_are_counted(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    (source / "bad.jpg").write_bytes(b"")
    (source / "good.jpg").write_bytes((photos / "00.jpg").read_bytes())
    prepare.main([str(source), str(tmp_path / "packed"), "--format", "raw", "--workers", "1"])
    out = capsys.readouterr().out
    assert f"1 image, 1 broken one left out (see {tmp_path / 'packed' / 'broken_images.jsonl'})" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "two arguments are needed: SOURCE and DEST"),
        (("photos",), "two arguments are needed: SOURCE and DEST"),
        (("photos", "--verify", "packed"), "leave out photos"),
        (("a", "b", "--size", "-1"), "--size -1 must be at least 0"),
        (("a", "b", "--quality", "101"), "--quality 101 must be at most 100"),
        (("a", "b", "--shard-mib", "0"), "--shard-mib 0 must be at least 1"),
        (("/nowhere", "b"), "data.source '/nowhere' does not exist"),
        (("a", "b", "--max_pixels", "0"), "--max_pixels 0 must be at least 1"),
        (("a", "b", "--overlap", "8"), "--overlap 8 is of --tile PX: leave it out"),
        (("a", "b", "--tile", "0"), "--tile 0 must be at least 1"),
        (("a", "b", "--tile", "64", "--overlap", "64"), "--overlap 64 must be less than --tile 64"),
        (("a", "b", "--tile", "64", "--min-valid", "1.5"), "--min-valid 1.5 must be from 0 to 1"),
        (("a", "b", "--tile", "64", "--size", "256"), "--size 256 is of packing, and --tile cuts scenes into files"),
        (("--verify", "b", "--tile", "64"), "--verify b is of packing"),
        (("a", "b", "--tile", "64", "--format", "raw"), "tiles are lossless, or --format jpeg"),
        (("a", "b", "--tile", "64", "--quality", "90"), "--quality 90 is of --format jpeg"),
        (("a", "b", "--tile", "64", "--channels", "1"), "of files of one channel each, with --stack: tiles keep them"),
        (("a", "b", "--tile", "64", "--stack", "{image}_{channel}.tif"), "--stack is of images of any channels"),
        (("/nowhere", "b", "--tile", "64"), "data.source '/nowhere' does not exist"),
        (("a", "b", "--channels", "1", "--color_profile", "ignore"), "--color_profile ignore is of RGB images"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    code, line = failure(capsys, *arguments)
    assert code == MISTAKE
    assert message in line


def test_other_arguments_are_one_line(photos: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = failure(capsys, str(photos), str(packed), "--size", "41")
    assert code == MISTAKE
    assert "was packed with size 40, not 41" in line


def test_ctrl_c_is_one_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderSource, "image", interrupted)
    code, line = failure(capsys, str(photos), str(tmp_path), "--workers", "0")
    assert (code, line) == (INTERRUPTED, "interrupted: the same command goes on behind the last whole shard\n")


def test_a_disk_that_takes_nothing(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, line = failure(capsys, str(photos), str(tmp_path / "file"))
    assert code == CANNOT_WRITE
    assert "cannot write" in line


def test_help_says_when_256_pixels_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        prepare.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for part in ("67 to 100 %", "up to an image size of about 190", "--size 288", "--size 320 at 224"):
        assert part in said


def test_scenes_larger_than_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes, tiles = tmp_path / "scenes", tmp_path / "tiles"
    scenes.mkdir()
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 2**16, (128, 192), dtype=np.uint16)
    picture[:64, :64] = 0
    tifffile.imwrite(scenes / "deep.tif", picture, tile=(32, 32), compression="zstd", photometric="minisblack")
    Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(scenes / "small.png")
    (scenes / "torn.tif").write_bytes(b"II*\0")
    command = [str(scenes), str(tiles), "--tile", "64", "--workers", "0"]
    prepare.main(command)
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        f"{tiles}: 6 tiles of 64 x 64 pixels (1 .png, 5 .tif) of 2 scenes",
        "1 scene is not larger than a tile and stays as large",
        "1 tile left out of a single value",
    ]
    assert said[3].startswith(f"1 broken scene left out (see {tiles / 'tiles.json'}), the first: torn.tif: ")
    assert said[4:] == ["to look at them:", f"swin-mim doctor {tiles}"]
    code, line = failure(capsys, *command, "--overlap", "8")
    assert code == MISTAKE
    assert line.startswith(f"error: {tiles} was cut with overlap 0, not 8: give the same arguments to go on, or name ")


def test_tiles_are_interrupted_in_one_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    code, line = failure(capsys, str(photos), str(tmp_path / "tiles"), "--tile", "32", "--workers", "0")
    assert (code, line) == (INTERRUPTED, "interrupted: the same command goes on behind the last whole tile\n")


def test_a_packing_may_raise_the_limit_of_pixels(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = failure(capsys, str(photos), str(tmp_path / "less"), "--max_pixels", "2000", "--workers", "0")
    assert code == MISTAKE
    assert "60 x 48 are 2880 pixels, more than 2000" in line
    prepare.main([str(photos), str(tmp_path / "packed"), "--max_pixels", "2880", "--workers", "0"])
    assert json.loads((tmp_path / "packed" / "packed.json").read_text())["settings"]["max_pixels"] == 2880
