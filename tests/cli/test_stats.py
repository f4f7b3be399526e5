"""The statistics of channels as a command: against numpy, as a table and JSON, and what goes wrong."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from swin_mim.cli import prepare
from swin_mim.cli import stats as channels
from swin_mim.data.decoding.raster import Raster
from swin_mim.data.statistics import Statistics, options_text, rounded, spread_indices
from swin_mim.errors import INTERRUPTED, MISTAKE
from swin_mim.training.config.parsing import load_config
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import check, with_packed_channels

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten of four channels, with gaps of 0 in every other one; one is broken."""
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(10):
        values = RNG.integers(1, 5000, (30, 20, 4)).astype(np.uint16) * np.arange(1, 5).astype(np.uint16)
        values[: number % 2 * 9, :5] = 0
        np.save(folder / f"{number}.npy", values)
    (folder / "7.npy").write_bytes(b"broken")
    return folder


def failure(capsys: pytest.CaptureFixture[str], main: object, *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)  # type: ignore[operator]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return left.value.code, said.err


def test_images_that_a_list_names_do_not_count(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{number}.npy\n" for number in (0, 2, 4, 6, 7, 8)))
    command = [str(scenes), "--in_channels", "4", "--workers", "0", "--json", "-"]
    channels.main([*command, "--exclude", str(tmp_path / "list.txt")])
    found = json.loads(capsys.readouterr().out)
    values = np.concatenate([np.load(scenes / f"{number}.npy").reshape(-1, 4) for number in (1, 3, 5, 9)])
    np.testing.assert_allclose(found["mean"], values.mean(axis=0))
    assert (found["images"], found["broken"]) == (4, [])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_table_and_json_against_numpy(scenes: Path, capsys: pytest.CaptureFixture[str], workers: str) -> None:
    command = [str(scenes), "--in_channels", "4", "--nodata", "0", "--workers", workers, "--json", "-"]
    channels.main(command)
    said = capsys.readouterr()
    found = json.loads(said.out)
    values = [np.load(scenes / f"{number}.npy") for number in range(10) if number != 7]
    valid = np.concatenate([each[(each != 0).all(axis=2)] for each in values]).astype(float)
    np.testing.assert_allclose(found["mean"], valid.mean(axis=0))
    np.testing.assert_allclose(found["std"], valid.std(axis=0))
    np.testing.assert_array_equal(found["min"], valid.min(axis=0))
    np.testing.assert_array_equal(found["max"], valid.max(axis=0))
    assert found["valid_share"] == len(valid) / (9 * 600)
    assert (found["dtypes"], found["looked_at"], found["broken"][0]["name"]) == ({"uint16": 9}, 10, "7.npy")
    lines = said.err.splitlines()
    assert lines[0].startswith("10 of 10 images, uint16; 9")
    assert lines[2].split()[0] == "1"
    assert lines[-1] == options_text(tuple(found["mean"]), tuple(found["std"]))
    assert lines[-1].startswith("--data.mean ")


def test_rgb_is_from_0_to_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = RNG.integers(0, 255, (12, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    channels.main([str(tmp_path), "--json", str(tmp_path / "found.json"), "--workers", "0"])
    found = json.loads((tmp_path / "found.json").read_text())
    np.testing.assert_allclose(found["mean"], pixels.mean(axis=(0, 1)) / 255)
    np.testing.assert_allclose(found["std"], pixels.std(axis=(0, 1)) / 255)
    assert found["channels"] == ["red", "green", "blue"]
    assert "red" in capsys.readouterr().out


def test_a_sample_is_spread(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    channels.main([str(scenes), "--channels", "2", "4", "--images", "3", "--workers", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 of 10 images")
    assert [line.split()[0] for line in lines[2:4]] == ["2", "4"]
    assert list(spread_indices(10, 3)) == [0, 4, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{scenes}", "--in_channels", "13"), "it has 4 channels (1, 2, 3, 4) and model.in_channels is 13"),
        (("{scenes}", "--in_channels", "0"), "--in_channels 0 must be at least 1"),
        (("{scenes}", "--in_channels", "2", "--channels", "1"), "--channels names 1 channel and --in_channels is 2"),
        (("{scenes}", "--nodata", "0"), "--nodata is of images of any channels: name these, as in --channels 1 2 3"),
        (("{scenes}", "--images", "0"), "--images 0 must be at least 1"),
        (("nowhere/at/all",), "does not exist"),
        (("{scenes}", "--in_channels", "4", "--nodata", "0", "--stack", "x"), "data.stack 'x' must be the path"),
        (
            ("{scenes}", "--in_channels", "4", "--workers", "0", "--json", "no/where"),
            "argument --json: no/where: there is no folder",
        ),
    ],
)
def test_mistakes(scenes: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    code, line = failure(capsys, channels.main, *(word.format(scenes=scenes) for word in arguments))
    assert code == MISTAKE
    assert message in line


def test_no_image_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.npy").write_bytes(b"broken")
    code, line = failure(capsys, channels.main, str(tmp_path), "--in_channels", "4", "--workers", "0")
    assert (code, "none of the 1 images" in line) == (MISTAKE, True)


def test_ctrl_c(scenes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Statistics, "of", interrupted)
    code, line = failure(capsys, channels.main, str(scenes), "--in_channels", "4", "--workers", "0")
    assert (code, line.splitlines()[-1]) == (INTERRUPTED, "interrupted")


def test_as_a_command(scenes: Path) -> None:
    command = [sys.executable, "-m", "swin_mim", "stats", str(scenes), "--in_channels", "4", "--workers", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--data.std" in done.stdout


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(-1e6, 1e6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None, database=None)
def test_of_parts_together(sizes: list[int], offset: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [rng.normal(offset, 2, (size, 3, 2)) for size in sizes]
    total = Statistics.of(Raster(images[0]))
    for image in images[1:]:
        total = total.merge(Statistics.of(Raster(image)))
    pixels = np.concatenate(images).reshape(-1, 2)
    np.testing.assert_allclose(total.mean, pixels.mean(axis=0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(total.std, pixels.std(axis=0), rtol=1e-7)
    assert total.min == tuple(pixels.min(axis=0))
    assert (total.images, total.valid, total.share) == (len(sizes), len(pixels), 1.0)
    assert Statistics.from_json(json.loads(json.dumps(total.as_json()))) == total


def test_six_digits_of_any_magnitude() -> None:
    assert rounded((1234567.8, 0.00012345678)) == (1234570.0, 0.000123457)


# packing as a command


def test_prepare_packs_rasters(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(scenes), str(tmp_path / "packed"), "--in_channels", "4", "--nodata", "0", "--size", "16"]
    prepare.main([*command, "--workers", "0"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{tmp_path / 'packed'}: 9 images, 1 broken one left out")
    assert said[1].startswith("channels: 1, 2, 3, 4; images: 9 of uint16; 9")
    assert said[-1] == f"--data.source {tmp_path / 'packed'}"
    prepare.main(["--verify", str(tmp_path / "packed")])
    assert "9 images, every shard whole (1)" in capsys.readouterr().out
    channels.main([str(tmp_path / "packed"), "--in_channels", "4", "--workers", "0", "--json", "-"])
    found = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(
        rounded(tuple(found["mean"])), json.loads((tmp_path / "packed/packed.json").read_text())["mean"], rtol=1e-6
    )


@pytest.mark.parametrize("option", [("--quality", "90"), ("--format", "raw")])
def test_prepare_refuses_what_is_of_rgb(capsys: pytest.CaptureFixture[str], option: tuple[str, str]) -> None:
    code, line = failure(capsys, prepare.main, "a", "b", "--in_channels", "4", *option)
    assert code == MISTAKE
    assert f"{' '.join(option)} is of RGB images" in line


# what would spoil a training


def options_of(text: str) -> PretrainConfig:
    """The config with the options of a line, as the recipe reads it; refused options raise."""
    words = ["--config", "simmim_swin_tiny_192_100ep", "--data.source", "x", *shlex.split(text)]
    config = load_config(PretrainConfig, words, default_config="", prog="test", description="")
    check(config)
    return config


def test_a_constant_channel_is_left_out_of_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        values = RNG.integers(1, 5000, (30, 20, 3)).astype(np.float32)
        values[:, :, 1] = 0.1
        np.save(tmp_path / f"{number}.npy", values)
    channels.main([str(tmp_path), "--channels", "1", "2", "3", "--workers", "0", "--json", "-"])
    said = capsys.readouterr()
    found, lines = json.loads(said.out), said.err.splitlines()
    assert found["std"][1] == 0
    assert lines[-2].startswith("channel 2 has one value in all images that were looked at")
    config = options_of(lines[-1])
    assert (config.data.channels, config.model.in_channels) == (("1", "3"), 2)
    np.testing.assert_allclose(config.data.mean, [found["mean"][0], found["mean"][2]], rtol=1e-5)


def test_a_constant_channel_is_left_out_of_what_packing_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scenes").mkdir()
    values = RNG.integers(1, 5000, (30, 20, 3)).astype(np.uint16)
    values[:, :, 1] = 7
    np.save(tmp_path / "scenes" / "a.npy", values)
    prepare.main([str(tmp_path / "scenes"), str(tmp_path / "packed"), "--channels", "1", "2", "3", "--workers", "0"])
    words = ["--config", "simmim_swin_tiny_192_100ep", *shlex.split(capsys.readouterr().out.splitlines()[-1])]
    options = {"default_config": "", "prog": "test", "description": "", "complete": with_packed_channels}
    config = load_config(PretrainConfig, words, **options)
    check(config)
    assert (config.data.channels, len(config.data.std)) == (("1", "3"), 2)


def test_a_constant_colour_is_left_out_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = RNG.integers(0, 255, (12, 9, 3), dtype=np.uint8)
    pixels[:, :, 2] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    channels.main([str(tmp_path), "--workers", "0"])
    config = options_of(capsys.readouterr().out.splitlines()[-1])
    assert config.data.channels == ("1", "2")
    np.testing.assert_allclose(config.data.mean, pixels.mean(axis=(0, 1))[:2], rtol=1e-5)


def test_nothing_varies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.full((9, 9, 2), 7))
    channels.main([str(tmp_path), "--in_channels", "2", "--workers", "0"])
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("every channel (1, 2) has one value")
    assert "--data.std" not in said


def test_what_looks_like_missing_pixels_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        values = RNG.integers(0, 900, (30, 20, 2)).astype(np.int16)
        values[:3] = -9999
        np.save(tmp_path / f"{number}.npy", values)
    command = [str(tmp_path), "--in_channels", "2", "--workers", "0", "--json", "-"]
    channels.main(command)
    said = capsys.readouterr()
    text = "-9999 is in 4 of 4 images, 10.00% of the pixels, far from all other values: it may mark missing pixels"
    assert f"{text}; if so: --nodata -9999" in said.err
    assert json.loads(said.out)["nodata"] == [{"value": -9999, "images": 4, "share": 0.1, "apart": True}]
    assert min(json.loads(said.out)["min"]) == -9999  # it is not left out unasked
    channels.main([*command, "--nodata", "-9999"])
    again = json.loads(capsys.readouterr().out)
    assert (again["nodata"], again["valid_share"], min(again["min"]) >= 0) == ([], 0.9, True)


def test_an_offset_of_some_images_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(9):
        values = RNG.integers(90, 3000, (30, 20, 2)) + 1000 * (number % 3 == 0)
        np.save(tmp_path / f"{number}.npy", values.astype(np.uint16))
    command = [str(tmp_path), "--in_channels", "2", "--workers", "0", "--json", "-"]
    channels.main(command)
    said = capsys.readouterr()
    assert "suspicion: the darkest channel of 3 images (such as 0.npy) begins at 109" in said.err
    found = json.loads(said.out)["offset"]
    assert (found["shifted"], found["plain"], found["example"]) == (3, 6, "0.npy")
    for number in (0, 3, 6):
        np.save(tmp_path / f"{number}.npy", np.load(tmp_path / f"{number}.npy") - 1000)
    channels.main(command)
    said = capsys.readouterr()
    assert (json.loads(said.out)["offset"], "suspicion" in said.err) == (None, False)


def test_the_limit_of_pixels_and_profiles_are_those_of_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(RNG.integers(0, 255, (12, 9, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", RNG.integers(0, 255, (9, 9, 4)))
    code, line = failure(capsys, channels.main, str(tmp_path), "--workers", "0", "--max_pixels", "100")
    assert (code, "raise data.max_pixels" in line) == (MISTAKE, True)
    command = (str(tmp_path), "--workers", "0", "--in_channels", "4", "--max_pixels", "80")
    code, line = failure(capsys, channels.main, *command)
    assert (code, "none of the 2 images" in line) == (MISTAKE, True)
    code, line = failure(capsys, channels.main, str(tmp_path), "--max_pixels", "0")
    assert (code, "--max_pixels 0 must be at least 1" in line) == (MISTAKE, True)
    channels.main([str(tmp_path), "--workers", "0", "--color_profile", "ignore"])
    assert "1 of 1 images" in capsys.readouterr().out
