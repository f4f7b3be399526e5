"""What the doctor says of images, settings and machine, and when it says that a run cannot start."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import datasets
import imagecodecs
import numpy as np
import pyarrow
import pyarrow.parquet
import pydicom
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from swin_mim.cli.doctor import command as doctor
from swin_mim.cli.doctor import page as doctor_page
from swin_mim.cli.doctor import speed as doctor_speed
from swin_mim.cli.doctor import suggestions as doctor_suggestions
from swin_mim.cli.doctor.images import look as doctor_look
from swin_mim.cli.doctor.images import source as doctor_images
from swin_mim.data.blue_marble.tiles import open_blue_marble
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.packing.pack import PackOptions, pack
from swin_mim.data.sources.open import open_source
from swin_mim.errors import UserError
from swin_mim.training.config.commands import pretrain_settings
from swin_mim.training.config.parsing import from_mapping, load_config
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import check

CONFIG = """
run: {name: tiny}
data: {workers: 0, heldout: 4}
model: {name: swin_nano, image_size: 32, embed_dim: 8, depths: [1, 1], num_heads: [1, 2], window_size: 4}
mask: {unit: 8}
optim: {warmup: 1 step}
train: {duration: 200 steps, global_batch: 4, micro_batch: 4, threads: 1}
log: {trackers: []}
"""


class Said(NamedTuple):
    code: int
    page: str
    errors: str
    report: dict[str, Any]

    def fact(self, name: str) -> str:
        """What the page says of something, as one line."""
        lines = self.page.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith(f"  {name} "))
        rest = lines[start + 1 :]
        end = next((number for number, line in enumerate(rest) if not line.startswith(" " * 14)), len(rest))
        return " ".join(line[14:] for line in lines[start : start + 1 + end])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(doctor_speed, "SECONDS", 0.1)
    monkeypatch.setattr(doctor_speed, "STEP_SECONDS", 0.5)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr("swin_mim.training.distributed.processes.has_amx", lambda: False)  # it is a note of its own
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Runs the tool in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tiny.yaml").write_text(CONFIG)

    def run(source: str | Path, *flags: str) -> Said:
        code = doctor.main([str(source), "--config", "tiny.yaml", "--json", "report.json", *flags])
        said = capsys.readouterr()
        return Said(code, said.out, said.err, json.loads(Path("report.json").read_text()))

    return run


def picture(number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Width and height; every number another one."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def photos(folder: Path, number: int, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        picture(i, **options).save(folder / f"{i:03}.jpg")
    return folder


def scenes(folder: Path, number: int, channels: int = 13, kind: str = "u2", gap: int = 0) -> Path:
    """TIFF files of so many channels, in which a fifth of the pixels is `gap`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        values = np.random.default_rng(i).integers(100, 4000, (40, 48, channels)).astype(kind)
        values[:8] = gap
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(folder / f"{i:03}.tif", values, **options)
    return folder


def test_a_good_folder(tmp_path: Path, ask: Callable[..., Said]) -> None:
    for name in ("cats", "dogs"):
        photos(tmp_path / "photos" / name, 20)
        for path in (tmp_path / "photos" / name).iterdir():
            path.write_bytes(path.read_bytes() + name.encode())  # no two files are equal
    said = ask("photos", "--data.workers", "1")
    assert said.code == 0
    assert said.fact("number") == "40, all looked at"
    assert said.fact("formats") == "40 JPEG"
    assert said.fact("pixels") == "40 RGB 8 bit"
    assert said.fact("sizes") == "all 48 x 40 (width x height)"
    assert [said.fact(name) for name in ("broken", "near-empty", "duplicates")] == ["none"] * 3
    assert said.fact("folders").startswith("cats (20), dogs (20); pretraining takes no notice")
    assert "fits: nothing is padded" in said.fact("size")
    assert said.fact("masks") == "10 of 16 units of an image are hidden"
    assert said.fact("near it") == "sizes without any padding: 16 x 16 below, 64 x 64 above"
    assert "images/s with 1 worker on 2 cores" in said.fact("loader")
    assert "images/s on CPU (fp32, 1 thread)" in said.fact("model")
    assert said.fact("an epoch").startswith("36 images (4 more are held out) in 9.0 steps of 4:")
    assert said.fact("the run").startswith("200 steps: ")
    command = " ".join(said.page[said.page.index("swin-mim pretrain") :].replace("\\\n", " ").split())
    assert command == "swin-mim pretrain --config tiny.yaml --data.source photos --data.workers 1"
    assert said.errors.splitlines()[:4] == [
        "looking at 40 of 40 images",
        "filling holes",
        "measuring the loader",
        "measuring training steps",
    ]
    assert max(map(len, said.page.splitlines())) <= 125


def test_the_json_has_it_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    photos(tmp_path / "photos", 30)
    assert doctor.main(["photos", "--config", "tiny.yaml", "--images", "10", "--json", "-"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert "IMAGES\n  number      30; 10 of them looked at" in said.err
    assert (report["can_start"], report["reasons"]) == (True, [])
    assert (report["images"]["total"], report["images"]["looked_at"]) == (30, 10)
    assert report["images"]["median"] == [48, 40]
    assert [stage["grid"] for stage in report["geometry"]["stages"]] == [[8, 8], [4, 4]]
    assert [stage["windows"] for stage in report["geometry"]["stages"]] == [4, 1]
    assert set(report["loading"]["milliseconds"]) == {"read", "decode", "transform", "collate"}
    assert report["loading"]["images_per_second"] > 0
    assert report["steps"]["images_per_second"] > 0
    assert report["steps"]["micro_batch"] == report["steps"]["fitting_batch"] == 4
    assert report["duration"]["steps"] == 200
    assert report["duration"]["run_seconds"] == pytest.approx(800 / report["duration"]["images_per_second"])
    assert report["command"][:2] == ["swin-mim", "pretrain"]


def test_a_twentieth_is_broken(tmp_path: Path, ask: Callable[..., Said]) -> None:
    folder = photos(tmp_path / "photos", 40)
    for number in (3, 33):
        path = folder / f"{number:03}.jpg"
        path.write_bytes(path.read_bytes()[:-100])
    said = ask("photos", "--data.max_broken", "0.01", "--train.duration", "300 steps")
    assert said.code == 2
    assert said.fact("broken").startswith("2 (5.0%), more than data.max_broken (1.0%); the first: 003.jpg: OSError")
    reason = "2 of 40 images cannot be read, more than data.max_broken 1.00%: a run stops after 1000 images"
    assert reason in said.errors
    assert f"  error: {reason}" in said.page
    assert "--data.max_broken 0.06: to replace the broken images" in said.page
    assert said.page.count("--data.max_broken") == 2  # in the command once, with the new value
    assert ask("photos").code == 0  # 800 images are too few to be stopped for it
    assert ask("photos", "--data.max_broken", "0.05", "--train.duration", "300 steps").code == 0


def test_all_kinds_of_pixels(tmp_path: Path, ask: Callable[..., Said]) -> None:
    folder = photos(tmp_path / "photos", 10)
    values = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)
    Image.fromarray(values).save(folder / "a.png")
    Image.fromarray(values.astype(np.float32)).save(folder / "b.tif")
    picture(50).convert("CMYK").save(folder / "c.jpg")
    picture(51).convert("L").save(folder / "d.webp", lossless=True)
    picture(52).convert("RGBA").save(folder / "e.png")
    picture(53).convert("P").save(folder / "f.gif")
    picture(54).convert("1").save(folder / "g.bmp")
    picture(55, (600, 400)).save(folder / "h.jpg")
    (folder / "notes.txt").write_text("x")
    (folder / "stack.npy").write_bytes(b"x")
    said = ask("photos")
    assert said.code == 0
    assert said.report["images"]["formats"] == {"JPEG": 12, "PNG": 2, "TIFF": 1, "WEBP": 1, "GIF": 1, "BMP": 1}
    assert said.report["images"]["pixels"] == {
        "RGB 8 bit": 12,  # a grey WebP is one
        "grey 16 bit": 1,
        "grey floating point": 1,
        "CMYK 8 bit": 1,
        "RGB with transparency 8 bit": 1,
        "palette 8 bit": 1,
        "black and white 1 bit": 1,
    }
    assert "16 bit are divided by 257" in said.fact("pixels")
    assert "wider values are stretched" in said.fact("pixels")
    assert said.fact("sizes").startswith("smallest 30 x 20, median 48 x 40, largest 600 x 400 (width x height)")
    assert "2 (11.1%) smaller than the training size" in said.fact("sizes")
    assert said.fact("other files") == "1 .txt, 1 .npy; they are not read"


def test_duplicates_and_near_empty_images(tmp_path: Path, ask: Callable[..., Said]) -> None:
    folder = photos(tmp_path / "photos", 10)
    (folder / "copy.jpg").write_bytes((folder / "003.jpg").read_bytes())
    noise = np.random.default_rng(0).integers(0, 9, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(200 + noise).save(folder / "empty.png")
    said = ask("photos")
    assert said.fact("duplicates") == "1 (8.3%) byte for byte equal to another one: 003.jpg = copy.jpg"
    assert said.fact("near-empty") == "1 (8.3%): almost one colour, nothing to learn from: empty.png"


def values_of(said: Said) -> dict[str, list[str]]:
    """The words of each option that is suggested."""
    return {each["key"]: each["value"].split() for each in said.report["suggestions"]}


def test_many_channels_and_the_options_to_start_with(tmp_path: Path, ask: Callable[..., Said]) -> None:
    scenes(tmp_path / "satellite", 30)
    said = ask("satellite", "--data.nodata", "0")
    assert said.code == 0
    assert said.fact("formats") == "30 TIFF"
    assert said.fact("pixels") == "30 13 channels of uint16"
    assert said.fact("channels").startswith("13 are read: 1, 2, 3")
    assert said.fact("gaps").startswith("20.00% of the pixels are not there")
    values = values_of(said)
    assert values["model.in_channels"] == ["13"]
    assert [len(values[key]) for key in ("data.mean", "data.std")] == [13, 13]
    found = said.report["images"]["channels"]
    assert found["mean"] == pytest.approx([float(value) for value in values["data.mean"]], rel=1e-5)
    assert min(found["min"]) >= 100
    assert (found["counts"], found["dtypes"]) == ({"13": 30}, {"uint16": 30})
    assert "images/s" in said.fact("loader")
    # the command that it ends with needs nothing more
    flags = said.report["command"][said.report["command"].index("--data.source") + 2 :]
    again = ask("satellite", *flags)
    assert again.code == 0
    assert not {"model.in_channels", "data.mean", "data.std"} & set(values_of(again))


def test_channels_that_are_chosen(tmp_path: Path, ask: Callable[..., Said]) -> None:
    scenes(tmp_path / "satellite", 12, gap=7)
    said = ask("satellite", "--data.channels", "8", "4", "3", "--data.nodata", "7")
    assert said.code == 0
    assert said.report["images"]["channels"]["names"] == ["8", "4", "3"]
    assert set(values_of(said)) >= {"data.mean", "data.std"}
    assert "--data.channels 8 4 3" in " ".join(said.report["command"])
    said = ask("satellite", "--data.channels", "8", "4", "99")
    assert (said.code, "it has no channel '99'" in said.errors) == (2, True)
    said = ask("satellite", "--model.in_channels", "4")
    assert (said.code, "it has 13 channels" in said.errors) == (2, True)


def test_numpy_files_and_mixed_channels(tmp_path: Path, ask: Callable[..., Said]) -> None:
    (tmp_path / "arrays").mkdir()
    for number in range(20):
        channels = 5 if number == 13 else 6
        np.save(tmp_path / "arrays" / f"{number}.npy", np.random.default_rng(number).normal(0, 1, (40, 48, channels)))
    said = ask("arrays", "--data.max_broken", "0.1")
    assert said.code == 0
    assert said.fact("formats") == "19 npy"
    assert "not all images have as many: of 20, 19 have 6 channels, 1 have 5 channels" in said.fact("channels")
    assert "it has 5 channels" in said.fact("broken")
    assert values_of(said)["model.in_channels"] == ["6"]
    assert said.fact("gaps").startswith("none: all pixels are there")


def test_three_channels_that_are_no_rgb(tmp_path: Path, ask: Callable[..., Said]) -> None:
    (tmp_path / "arrays").mkdir()
    for number in range(6):
        values = np.random.default_rng(number).normal(500, 9, (40, 48))
        np.savez(tmp_path / "arrays" / f"{number}.npz", a=values, dem=values + 1, c=values * 2)
    values = values_of(said := ask("arrays"))
    assert said.code == 0
    assert (values["model.in_channels"], values["data.channels"]) == (["3"], ["a", "dem", "c"])


def test_a_stack_of_files(tmp_path: Path, ask: Callable[..., Said]) -> None:
    (tmp_path / "bands").mkdir()
    for number in range(6):
        for band in ("B02", "B08", "SCL"):
            values = np.random.default_rng(number).integers(1, 99, (40, 48), dtype=np.uint16)
            tifffile.imwrite(tmp_path / "bands" / f"{number}_{band}.tif", values)
    flags = ("--data.stack", "{image}_{channel}.tif", "--data.mask_channel", "SCL")
    said = ask("bands", *flags)
    assert said.code == 0
    assert said.fact("formats") == "6 of 3 files"
    assert (values_of(said)["model.in_channels"], values_of(said)["data.channels"]) == (["2"], ["B02", "B08"])
    said = ask("bands", "--data.stack", "{image}-{channel}.tif")
    assert (said.code, "matches none of the 18 image files" in said.errors) == (2, True)


def test_a_constant_channel_is_met(tmp_path: Path, ask: Callable[..., Said]) -> None:
    (tmp_path / "arrays").mkdir()
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 99, (40, 48, 4))
        values[:, :, 2] = 7
        np.save(tmp_path / "arrays" / f"{number}.npy", values)
    said = ask("arrays")
    assert said.code == 2
    assert "channel 3 has one value in all images that were looked at: leave it out" in said.errors
    assert "data.channels 1 2 4" in said.errors


def test_16_bit_in_colour_can_be_kept(tmp_path: Path, ask: Callable[..., Said]) -> None:
    (tmp_path / "scans").mkdir()
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 2**16, (40, 48, 3), dtype=np.uint16)
        (tmp_path / "scans" / f"{number}.png").write_bytes(imagecodecs.png_encode(values))
    said = ask("scans")
    assert said.fact("pixels").startswith("6 RGB 16 bit")
    assert "with --data.channels (1 for grey, 1 2 3 for RGB) a model sees all 16" in said.fact("pixels")
    said = ask("scans", "--data.channels", "1", "2", "3")
    assert said.fact("pixels") == "6 3 channels of uint16"
    assert said.code == 0
    assert float(values_of(said)["data.mean"][0]) > 20_000


def test_packed_rasters_need_nothing(tmp_path: Path, ask: Callable[..., Said]) -> None:
    scenes(tmp_path / "satellite", 12, channels=5)
    pack(
        str(tmp_path / "satellite"),
        tmp_path / "packed",
        bands=ChannelSpec(5, nodata=0),
        options=PackOptions(size=36, workers=0),
    )
    said = ask("packed")
    assert said.code == 0
    assert said.fact("pixels") == "12 5 channels of uint16"
    assert not {"model.in_channels", "data.mean", "data.std"} & set(values_of(said))


@pytest.mark.parametrize(("flags", "reason", "near"), [
    (["--model.image_size", "36"], "model.image_size 36 is not a multiple of mask.unit 8: use 32 (windows of 4 fit",
     "32 x 32 below, 64 x 64 above"),
    (["--mask.unit", "6"], "mask.unit 6 is not a multiple of model.patch_size 4", ""),
    (["--model.num_heads", "3", "3"], "stage 0 has 8 channels, which 3 heads do not divide", ""),
    (["--train.micro_batch", "3"], "train.global_batch 4 is not a multiple of train.micro_batch 3", "64 x 64 above"),
    (["--optim.warmup", "300 steps"], "optim.warmup '300 steps' does not end before the run", "64 x 64 above"),
    (["--log.trackers", "mlflow_of_nobody"], "log.trackers names mlflow_of_nobody, not installed", "64 x 64 above"),
    (["--train.precision", "fp16"], "train.precision fp16 needs a GPU", "64 x 64 above"),
])  # fmt: skip
def test_settings_that_cannot_work(
    flags: list[str], reason: str, near: str, tmp_path: Path, ask: Callable[..., Said]
) -> None:
    photos(tmp_path / "photos", 6)
    said = ask("photos", *flags)
    assert said.code == 2
    (found,) = said.report["reasons"]
    assert reason in found
    assert said.report["images"]["looked_at"] == 6  # this is known all the same
    assert near in (said.fact("near it") if near else "")


@pytest.mark.parametrize(("source", "reason"), [
    ("./nowhere", "data.source './nowhere' does not exist"),
    ("empty", "data.source 'empty' holds no"),
    ("tiny.yaml", "data.source 'tiny.yaml' is a file"),
])  # fmt: skip
def test_no_images(source: str, reason: str, tmp_path: Path, ask: Callable[..., Said]) -> None:
    (tmp_path / "empty").mkdir()
    said = ask(source)
    assert said.code == 2
    assert reason in said.report["reasons"][0]
    assert said.errors == f"error: {said.report['reasons'][0]}\n"
    assert "fits: nothing is padded" in said.page
    assert said.report["images"] is None
    assert said.report["duration"] is None


def test_a_table(tmp_path: Path, ask: Callable[..., Said]) -> None:
    contents = []
    for number in range(12):
        picture(number % 11).save(tmp_path / "a.png")
        contents.append((tmp_path / "a.png").read_bytes())
    (tmp_path / "table").mkdir()
    column = pyarrow.array([{"bytes": content, "path": None} for content in [*contents, b"no picture"]])
    pyarrow.parquet.write_table(pyarrow.table({"image": column}), tmp_path / "table" / "train.parquet")
    said = ask("table")
    assert said.code == 0
    assert said.fact("formats") == "12 PNG"
    assert said.fact("duplicates").endswith("row 0 = row 11")
    assert "row 12: not a readable" in said.fact("broken")
    assert ask("table", "--data.column", "picture").code == 2


def test_nothing_can_be_read(tmp_path: Path, ask: Callable[..., Said]) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(b"no picture")
    said = ask("photos")
    assert said.code == 2
    assert "none of the 3 images of data.source 'photos' that were tried can be read, the first: 0.jpg" in said.page


def test_padding_is_counted(tmp_path: Path, ask: Callable[..., Said]) -> None:
    photos(tmp_path / "photos", 6)
    said = ask(
        "photos", "--model.image_size", "40", "56", "--model.depths", "1", "1", "1", "--model.num_heads", "1", "1", "1"
    )
    first, second, third = said.report["geometry"]["stages"]
    assert (first["grid"], first["padded"], first["shift"]) == ([10, 14], [12, 16], [2, 2])
    assert first["padding"] == pytest.approx(1 - 140 / 192)
    assert (second["grid"], second["padded"], second["halving_pads"]) == ([5, 7], [8, 8], True)
    assert (third["grid"], third["window"], third["windows"]) == ([3, 4], [3, 4], 1)
    assert "works, with padding" in said.fact("size")
    assert "odd: +1 to halve" in said.page


def test_a_sample_is_spread_evenly_and_always_the_same(tmp_path: Path) -> None:
    source = open_source(str(photos(tmp_path / "photos", 21)))
    looks = [doctor_images.look_at_all(source, most, (32, 32), workers=1) for most in (5, 5, 100)]
    assert [images.looked_at for images in looks] == [5, 5, 21]
    assert looks[0] == looks[1]
    assert looks[0].other_files == {}


def test_a_small_data_set_gets_a_smaller_batch(tmp_path: Path, ask: Callable[..., Said]) -> None:
    photos(tmp_path / "photos", 100)
    flags = ("--train.global_batch", "64", "--train.micro_batch", "32", "--data.heldout", "0")
    said = ask("photos", *flags)
    values = {each["key"]: each["value"] for each in said.report["suggestions"]}
    assert (values["train.global_batch"], values["train.micro_batch"]) == ("16", "16")
    assert (
        "an epoch of these 100 has 1.56 updates with them, and 6.25 with 16" in said.report["suggestions"][0]["reason"]
    )
    assert "--train.global_batch 64" not in said.page


def test_a_run_that_is_there_is_met(tmp_path: Path, ask: Callable[..., Said]) -> None:
    photos(tmp_path / "photos", 6)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    assert "runs/tiny exists: the command continues that run" in ask("photos").fact("note")


def test_a_busy_machine_is_met(tmp_path: Path, ask: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path / "photos", 6)
    monkeypatch.setattr("os.getloadavg", lambda: (1.5, 0.0, 0.0))
    assert ask("photos").fact("note").startswith("others are busy here (a load of 1.5 on 2 cores)")


@pytest.mark.parametrize(("flags", "text"), [
    (["--images", "0"], "--images 0 must be at least 1"),
    (["--data.source", "photos"], "say once which images to look at, not ./nowhere and photos: SOURCE in front of the"),
    (["--model.windw_size", "7"], "did you mean --model.window-size?"),
    (["--config", "nowhere.yaml"], "no config file nowhere.yaml"),
    (["--json", "no/such/folder.json"], "argument --json: no/such/folder.json: there is no folder"),
])  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_line(
    flags: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    with pytest.raises(SystemExit) as caught:
        doctor.main(["./nowhere", "--config", "tiny.yaml", *flags])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.strip().count("\n") == 0


def test_images_can_be_named_as_for_a_pretraining(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    own, flags = ["--config", str(tmp_path / "tiny.yaml"), "--images", "5"], ["--train.micro_batch", "2"]
    wanted = doctor.parse(["photos", *own, *flags])
    assert wanted.source == "photos"
    for words in (
        [*own, *flags, "--data.source", "photos"],
        ["--data.source=photos", *flags, *own],
        [*own, "photos", *flags],
        ["--data.source", "photos", *flags, *own],
    ):
        assert doctor.parse(words) == wanted
    for words, text in (
        ([*own, *flags, "photos"], "say which images to look at: SOURCE in front of the options of the pretraining"),
        (own, "say which images to look at: "),
        (["--data.source", "a", "--data.source", "b"], "say once which images to look at, not a and b: "),
        (["--data.source", "my", "photos"], "did you mean --data.source 'my photos'"),
    ):
        with pytest.raises(UserError, match=re.escape(text)):
            doctor.parse(words)


def test_the_help_says_what_comes_first() -> None:
    done = subprocess.run([sys.executable, "-m", "swin_mim", "doctor", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "SOURCE comes first" in done.stdout


# What a machine decides, with figures that no machine had to deliver.


def loading(workers: int, rate: float, alone: float, room: int) -> doctor_speed.Loading:
    return doctor_speed.Loading(workers, rate, alone, {"read": 1.0, "decode": 8.0}, room, "decode")


def steps(rate: float, device: str = "NVIDIA H100") -> doctor_speed.Steps:
    return doctor_speed.Steps(device, "bf16", 1, 28_000_000, 128, 128, rate, 30.0, 80.0, 128)


PLAN = SimpleNamespace(total_steps=1000, global_batch=2048)


def test_the_loader_limits_a_gpu() -> None:
    load, step = loading(8, 900.0, 120.0, 15), steps(3600.0)
    took = doctor_speed.duration_of(PLAN, 100_000, load, step)
    assert took.loader_limits
    assert (took.factor, took.images_per_second, took.workers) == (4.0, 900.0, 15)
    assert took.run_seconds == pytest.approx(1000 * 2048 / 900)
    assert "a worker delivers about 120 images/s" in doctor_suggestions.why_other_workers(load, took)
    assert doctor_page._limit(load, took).startswith("the loader: the model would take 4.0 times")


def test_the_model_limits_a_gpu() -> None:
    load, step = loading(8, 900.0, 120.0, 15), steps(300.0)
    took = doctor_speed.duration_of(PLAN, 100_000, load, step)
    assert (took.loader_limits, took.images_per_second, took.workers) == (False, 300.0, 4)
    assert doctor_suggestions.why_other_workers(load, took) == ""
    assert (
        doctor_page._limit(load, took) == "the model: the loader delivers 3.0 times what it takes; 4 workers are enough"
    )


def test_workers_share_the_cores_with_training_on_a_cpu() -> None:
    load, step = loading(4, 190.0, 100.0, 2), steps(100.0, "CPU")
    took = doctor_speed.duration_of(PLAN, 100_000, load, step)
    assert took.images_per_second == pytest.approx(1 / (1 / 100 + 1 / 200))
    assert "this machine has cores for 2 workers" in doctor_suggestions.why_other_workers(load, took)
    without = loading(0, 100.0, 100.0, 2)
    took = doctor_speed.duration_of(PLAN, 100_000, without, step)
    assert took.images_per_second == pytest.approx(50.0)
    assert "cores for them are free" in doctor_suggestions.why_other_workers(without, took)
    idle = loading(0, 5000.0, 5000.0, 2)
    assert doctor_suggestions.why_other_workers(idle, doctor_speed.duration_of(PLAN, 100_000, idle, step)) == ""


@pytest.mark.parametrize(("most", "measured"), [(1000, 128), (100, 64), (1, 1), (0, 0)])
def test_a_micro_batch_that_does_not_fit_a_gpu(most: int, measured: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(batch: int, number: int) -> float:
        if batch > most:
            raise torch.OutOfMemoryError
        return 0.01 * batch * number

    for name, value in (("mem_get_info", (0, 80e9)), ("empty_cache", None), ("reset_peak_memory_stats", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(doctor_speed, "peak_memory_gb", lambda device: 20.0)
    settings = {"run": {"name": "x"}, "train": {"global_batch": 2048, "micro_batch": 128}}
    found = doctor_speed._on_gpu(SimpleNamespace(steps=step), from_mapping(PretrainConfig, settings, "a test"))
    assert (found[0], found[4]) == (measured, measured)
    assert found[1] == pytest.approx(100.0 if measured else 0.0)
    assert found[2:4] == (20.0 * 128 / measured if measured else 80.0, 80.0)


def test_a_larger_micro_batch_is_one_that_divides_and_fits() -> None:
    settings = {"run": {"name": "x"}, "train": {"global_batch": 2048, "micro_batch": 128}}
    config = from_mapping(PretrainConfig, settings, "a test")
    larger = doctor_speed.larger_batches
    assert larger(config, 1, each=0.1, free=140.0) == [1024, 512, 256]  # 1190 fit, and no more than 1024 are tried
    assert larger(config, 1, each=0.2, free=140.0) == [512, 256]
    assert larger(config, 8, each=0.1, free=140.0) == [256]
    assert larger(config, 16, each=0.1, free=140.0) == []
    assert larger(config, 1, each=0.5, free=140.0) == []
    assert larger(config, 3, each=0.1, free=140.0) == []


def test_a_larger_micro_batch_is_measured_and_proposed_if_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(batch: int, number: int) -> float:
        if batch > 512:
            raise torch.OutOfMemoryError  # against what was expected
        return 0.01 * (batch + 64) * number

    for name, value in (("memory_allocated", 2e9), ("empty_cache", None), ("reset_peak_memory_stats", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(doctor_speed, "peak_memory_gb", lambda device: 50.0)
    settings = {"run": {"name": "x"}, "train": {"global_batch": 2048, "micro_batch": 128}}
    config = from_mapping(PretrainConfig, settings, "a test")
    more = doctor_speed._larger_on_gpu(SimpleNamespace(steps=step), config, 12.8, 141.0)
    assert more == doctor_speed.Larger(512, pytest.approx(512 / 5.76), 50.0)
    slow, fast = (replace(steps(rate), larger=more) for rate in (80.0, 88.0))
    (proposal,) = doctor_suggestions.batches(config, 10**6, slow)
    assert (proposal.key, proposal.value) == ("train.micro_batch", "512")
    assert proposal.reason == "the GPU holds it, and is 11% faster with it, with the same result"
    assert list(doctor_suggestions.batches(config, 10**6, fast)) == []
    report = SimpleNamespace(loading=None, steps=slow, duration=None)
    assert list(doctor_page._speed(report))[-1].endswith(
        "89 images/s with a micro batch of 512, which takes 50.0 of 80.0 GB"
    )


def test_a_batch_that_does_not_fit_is_a_reason(
    tmp_path: Path, ask: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "photos", 50)
    monkeypatch.setattr(doctor_speed, "_on_cpu", lambda trainer, config: (2, 50.0, 60.0, 16.0, 2))
    said = ask("photos")
    assert said.code == 2
    assert "train.micro_batch 4 needs about 60.0 GB and 16.0 GB are there: use train.micro_batch 2" in said.errors
    # a slow loader may add workers to it
    assert "--train.micro_batch 2" in said.page[said.page.index("swin-mim pretrain") :]


def test_the_attention_is_tried_for_the_windows_and_the_precision_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU would try its kernel for others, and compile that for nothing."""
    asked = []
    monkeypatch.setattr("swin_mim.models.blocks.window_attention.resolve_backend", lambda *what: asked.append(what))
    settings = {
        "train.precision": "bf16",
        "model.window_size": [12],
        "model.name": "swin_tiny",
        "model.image_size": [192],
    }
    doctor._fits_this_machine(pretrain_settings("simmim_swin_tiny_192_100ep", settings))
    assert {each[4] for each in asked} == {torch.bfloat16}
    assert [each[2:4] for each in asked] == [(144, 32)] * 3 + [(36, 32)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.52, "0.5 s"),
        (42.4, "42 s"),
        (600, "10 min"),
        (5400, "1.5 h"),
        (86400 * 2, "2.0 days"),
        (86400 * 30, "30 days"),
    ],
)
def test_times_as_people_say_them(seconds: float, text: str) -> None:
    assert doctor_page.time_text(seconds) == text


def test_a_streamed_source_is_not_looked_at(tmp_path: Path, ask: Callable[..., Said]) -> None:
    photos(tmp_path / "photos", 2)
    said = ask("photos", "--data.streaming")
    assert said.code == 2
    assert said.report["reasons"][0].startswith("data.streaming: this tool looks at images of all parts of a source")


# what spoils images without making them unreadable


def runs_as_printed(said: Said) -> PretrainConfig:
    """The config of the command on the page, as the recipe reads and checks it; refused options raise."""
    text = said.page[said.page.rindex("\n  swin-mim pretrain") :].replace("\\\n", " ")
    words = shlex.split(text)
    assert words == said.report["command"]
    config = load_config(PretrainConfig, words[2:], default_config="", prog="test", description="")
    check(config)
    return config


def deep(folder: Path, values: Callable[[int], np.ndarray], number: int = 8) -> Path:
    """PNG files of uint16."""
    folder.mkdir()
    for i in range(number):
        (folder / f"{i}.png").write_bytes(imagecodecs.png_encode(values(i).astype(np.uint16)))
    return folder


def twelve_bits(number: int) -> np.ndarray:
    """(40, 48), smooth, of little contrast: as scanners and cameras give it."""
    return 60 + np.asarray(picture(number).convert("L")).astype(np.uint16) // 4


@pytest.mark.parametrize(("times", "offset", "text"), [
    (1, 0, "of 65535: as RGB "),  # 12 bits in 16
    (16, 0, "of 65535, in steps of 16: as RGB "),  # moved up
    (1, 30_000, "values go from 300"),
])  # fmt: skip
def test_few_bits_of_16_are_read_as_channels(
    times: int, offset: int, text: str, tmp_path: Path, ask: Callable[..., Said]
) -> None:
    deep(tmp_path / "scans", lambda i: twelve_bits(i) * times + offset)
    said = ask("scans")
    assert (said.code, said.fact("near-empty"), said.fact("pixels")) == (0, "none", "8 1 channel of uint16")
    reason = said.report["suggestions"][0]["reason"]
    assert text in reason
    assert reason.endswith(" grey levels would be left")
    config = runs_as_printed(said)
    assert (config.data.channels, config.model.in_channels) == (("1",), 1)
    every = np.stack([twelve_bits(i) * times + offset for i in range(8)]).astype(float)
    np.testing.assert_allclose([*config.data.mean, *config.data.std], [every.mean(), every.std()], rtol=1e-5)


def test_16_bits_that_are_used_stay_rgb(tmp_path: Path, ask: Callable[..., Said]) -> None:
    deep(tmp_path / "scans", lambda i: np.asarray(picture(i).convert("L")).astype(np.uint16) * 256)
    said = ask("scans")
    assert said.fact("pixels").startswith("8 grey 16 bit")
    assert "in steps of 256" in said.fact("pixels")
    assert "model.in_channels" not in values_of(said)


def test_dark_pictures_of_16_bits_among_photos_are_not_empty(tmp_path: Path, ask: Callable[..., Said]) -> None:
    folder = photos(tmp_path / "photos", 10)
    Image.fromarray(twelve_bits(0) * 16).save(folder / "scan.png")
    Image.fromarray(np.full((40, 48), 4000, np.uint16)).save(folder / "empty.png")
    said = ask("photos")
    assert said.fact("near-empty") == "1 (8.3%): almost one colour, nothing to learn from: empty.png"
    assert said.code == 0


def test_pages_are_mentioned(tmp_path: Path, ask: Callable[..., Said]) -> None:
    for name, kind, times in (("deep", np.uint16, 16), ("plain", np.uint8, 1)):
        (tmp_path / name).mkdir()
        for i in range(4):
            pages = np.stack([twelve_bits(i + page) for page in range(3)]).astype(kind) * times
            tifffile.imwrite(tmp_path / name / f"{i}.tif", pages.astype(kind), photometric="minisblack")
    said = ask("plain")
    text = "4 (100.0%): TIFF of 3 pages; as RGB only the first is read; with --data.channels each is a channel"
    assert said.fact("frames").startswith(text)
    said = ask("deep")
    assert said.fact("frames") == "4 (100.0%): TIFF of 3 pages; each is a channel"
    assert runs_as_printed(said).data.channels == ("1", "2", "3")


def test_frames_are_mentioned(tmp_path: Path, ask: Callable[..., Said]) -> None:
    folder = photos(tmp_path / "photos", 4)
    more = {"save_all": True, "append_images": [picture(90)]}
    for suffix in ("gif", "webp", "avif", "png"):
        picture(80).save(folder / f"a.{suffix}", **more)
    said = ask("photos")
    kinds = {"GIF", "WebP", "AVIF", "PNG"}
    assert said.report["images"]["frames"] == {f"{kind} of several frames": 1 for kind in kinds}
    assert "the first one is read" in said.fact("frames")


def test_untagged_nodata_is_suggested(tmp_path: Path, ask: Callable[..., Said]) -> None:
    scenes(tmp_path / "satellite", 12, channels=4, kind="i2", gap=-9999)
    said = ask("satellite")
    text = "-9999 is in 12 of 12 images, 20.00% of the pixels, far from all other values: it may mark missing pixels"
    assert said.fact("suspicion") == f"{text}; this table is with it, the command at the end without"
    assert said.fact("gaps") == "none that files or options mark"
    config = runs_as_printed(said)
    assert config.data.nodata == -9999
    assert (min(config.data.mean) > 1900, max(config.data.std) < 1300) == (True, True)
    again = ask("satellite", *said.report["command"][said.report["command"].index("--data.source") + 2 :])
    assert (again.fact("gaps"), again.report["images"]["channels"]["nodata"]) == (
        "20.00% of the pixels are not there",
        [],
    )
    assert "suspicion" not in again.page


def test_frames_of_0_are_a_suspicion_only(tmp_path: Path, ask: Callable[..., Said]) -> None:
    scenes(tmp_path / "satellite", 12, channels=4)
    said = ask("satellite")
    assert said.fact("suspicion").startswith("0 is in 12 of 12 images, 20.00% of the pixels")
    assert said.fact("suspicion").endswith("look again with --data.nodata 0; these figures are with it")
    config = runs_as_printed(said)
    assert (config.data.nodata, max(config.data.mean) < 1700) == (None, True)


def test_an_offset_of_some_images_is_a_suspicion(tmp_path: Path, ask: Callable[..., Said]) -> None:
    (tmp_path / "arrays").mkdir()
    for number in range(8):
        values = np.random.default_rng(number).integers(90, 3000, (40, 48, 4)) + 1000 * (number % 2)
        np.save(tmp_path / "arrays" / f"{number}.npy", values.astype(np.uint16))
    said = ask("arrays")
    assert said.fact("suspicion").startswith("the darkest channel of 4 images (such as 1.npy) begins at 109")
    assert said.fact("suspicion").endswith("before training, subtract 1000 from them, negative values to 0")
    assert (said.report["images"]["offset"]["shifted"], said.report["images"]["offset"]["plain"]) == (4, 4)
    (tmp_path / "colours").mkdir()  # of many grey levels, which are read as RGB
    for number in range(8):
        values = np.random.default_rng(number).integers(90, 60_000, (40, 48, 3)) + 1000 * (number % 2)
        tifffile.imwrite(tmp_path / "colours" / f"{number}.tif", values.astype(np.uint16), photometric="rgb")
    said = ask("colours")
    assert said.report["images"]["channels"] is None
    assert said.report["images"]["offset"]["shifted"] == 4


def test_constant_channels_are_left_out_of_the_command(tmp_path: Path, ask: Callable[..., Said]) -> None:
    (tmp_path / "arrays").mkdir()
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 900, (40, 48, 4)).astype(np.int16)
        values[:, :, 2] = 7
        values[:5] = -9999
        np.save(tmp_path / "arrays" / f"{number}.npy", values)
    for flags in ((), ("--data.channels", "1", "2", "3", "4"), ("--data.channels", "4", "3")):
        said = ask("arrays", *flags, *(("--model.in_channels", str(len(flags) - 1)) if flags else ()))
        assert (said.code, len(said.report["reasons"])) == (2, 1)
        config = runs_as_printed(said)
        assert config.data.channels == (("4",) if len(flags) == 3 else ("1", "2", "4"))
        assert (config.data.nodata, min(config.data.std) > 200) == (-9999, True)
        assert len(config.data.mean) == config.model.in_channels == len(config.data.channels)
        assert said.report["steps"] is not None  # measured with what would be run
    said = ask("arrays", "--data.channels", "3", "--model.in_channels", "1")
    assert said.report["reasons"][0].startswith("every channel (3) has one value")
    assert (len(said.report["reasons"]), "--data.std" in said.page) == (1, False)


def test_edges_of_one_colour(tmp_path: Path, ask: Callable[..., Said]) -> None:
    folder = photos(tmp_path / "photos", 8)
    for number in range(2):
        framed = Image.new("RGB", (64, 64))
        framed.paste(picture(number + 60, (64, 32)), (0, 16))
        framed.save(folder / f"framed{number}.jpg")
    assert ask("photos").fact("edges").startswith("2 (20.0%) are black at two edges at least")
    assert doctor_look.edge_colour(Image.new("RGB", (9, 9), "white")) == "white"
    source = open_blue_marble()[0]
    tiles = [source.image(index) for index in range(0, len(source), 100)]
    assert {doctor_look.edge_colour(image) for image in [*tiles, *map(picture, range(100))]} == {""}


def test_colour_profiles_are_counted(tmp_path: Path, ask: Callable[..., Said]) -> None:
    folder = photos(tmp_path / "photos", 4)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture(70).save(folder / "srgb.jpg", icc_profile=srgb)
    Image.merge("LAB", picture(71).split()).save(folder / "lab.tif", icc_profile=profile)
    said = ask("photos")
    assert list(said.report["images"]["profiles"].values()) == [1]
    assert said.fact("colours").endswith("converted to sRGB; --data.color_profile ignore leaves them")
    assert ask("photos", "--data.color_profile", "ignore").report["images"]["profiles"] == {}


def test_images_that_are_too_large(tmp_path: Path, ask: Callable[..., Said]) -> None:
    folder = photos(tmp_path / "photos", 9)
    picture(99, (600, 400)).save(folder / "large.jpg")
    said = ask("photos", "--data.max_pixels", "10000")
    text = "1 (10.0%), counted as broken: set --data.max_pixels 240000, or cut it: swin-mim prepare photos TILES --tile"
    assert said.fact("too large").startswith(text)
    reason = (
        "1 of 10 images cannot be read, more than data.max_broken 1.00%: a run stops after 1000 images; it is too "
        "large: set --data.max_pixels 240000, or cut it: swin-mim prepare photos TILES --tile 512"
    )
    assert "stops after" not in said.errors  # 800 images are too few to be stopped for it
    assert "--data.max_pixels 240000" in " ".join(said.report["command"])
    assert "--data.max_broken" not in said.page
    assert "--data.max_pixels 240000: to read the images that are too large, with up to 0.0 GiB" in said.page
    assert reason in ask("photos", "--data.max_pixels", "10000", "--train.duration", "300 steps").errors
    assert "too large" not in ask("photos", "--data.max_pixels", "240000").page
    scenes(tmp_path / "satellite", 4)
    said = ask("satellite", "--model.in_channels", "13", "--data.max_pixels", "1000")
    assert said.fact("too large").startswith("4 (100.0%), counted as broken: set --data.max_pixels")
    assert "--data.max_pixels" in said.report["command"]


def test_the_command_reads_what_is_too_large_and_replaces_what_stays_broken(
    tmp_path: Path, ask: Callable[..., Said]
) -> None:
    folder = photos(tmp_path / "photos", 17)
    picture(98, (600, 400)).save(folder / "large.jpg")
    Image.new("L", (30_001, 1)).save(folder / "long.png")
    (folder / "odd.jpg").write_bytes(b"\xff\xd8\xff")
    said = ask("photos", "--data.max_pixels", "40000", "--train.duration", "300 steps")
    assert said.code == 2
    assert (
        "; 2 of them are too large: set --data.max_pixels 240000, or cut them: swin-mim prepare photos TILES --tile "
        "512; repair or remove the others, or raise data.max_broken"
    ) in said.errors
    assert "--data.max_pixels 240000 --data.max_broken 0.12" in " ".join(said.report["command"])
    assert said.page.count("--data.max_pixels 40000") == 0
    (folder / "large.jpg").unlink()
    (folder / "odd.jpg").unlink()
    said = ask("photos", "--train.duration", "300 steps")  # no number of pixels allows such a side
    assert "; it is too large: cut it: swin-mim prepare photos TILES --tile 512" in said.errors
    assert "--data.max_broken 0.07" in " ".join(said.report["command"])


def test_folders_without_images_and_classes(tmp_path: Path, ask: Callable[..., Said]) -> None:
    for name in ("cats", "dogs"):
        photos(tmp_path / "photos" / name, 4)
    (tmp_path / "photos" / "birds").mkdir()
    (tmp_path / "photos" / "birds" / "a.pdf").write_text("x")
    said = ask("photos")
    assert "fine-tuning takes them as 2 classes" in said.fact("folders")
    assert "error in birds: none of its files is an image: 1 .pdf; as a class it has no image" in said.fact("folders")
    assert said.fact("other files") == "1 .pdf; they are not read"
    assert "left out" not in said.errors  # the page says it


def test_a_fill_value_that_would_eat_all_contrast_makes_channels_of_floats(
    tmp_path: Path, ask: Callable[..., Said]
) -> None:
    (tmp_path / "heights").mkdir()
    for number in range(6):
        values = np.asarray(picture(number).convert("L")).astype(np.float32) / 100
        values[:9, :9] = -999
        tifffile.imwrite(tmp_path / "heights" / f"{number}.tif", values)
    said = ask("heights")
    assert "values go from -999 to " in said.report["suggestions"][0]["reason"]
    config = runs_as_printed(said)
    assert (config.data.channels, config.data.nodata, config.data.mean[0] > 0) == (("1",), -999, True)


def test_pages_that_differ_and_dicom_files(tmp_path: Path, ask: Callable[..., Said]) -> None:
    for name in ("slides", "scans", "coarse"):
        (tmp_path / name).mkdir()
    for number in range(4):
        with tifffile.TiffWriter(tmp_path / "slides" / f"{number}.tif") as file:
            file.write(np.asarray(picture(number).convert("L")), metadata=None)
            file.write(np.asarray(picture(number, (12, 10 + number))), photometric="rgb", metadata=None)
        with tifffile.TiffWriter(tmp_path / "coarse" / f"{number}.tif") as file:
            file.write(np.asarray(picture(number).convert("L")), metadata=None)
            file.write(np.asarray(picture(number, (12, 10)).convert("L")), metadata=None)
        write_dicom(tmp_path / "scans" / f"{number}", twelve_bits(number))
    assert ask("coarse").fact("frames") == "4 (100.0%): TIFF of pages that differ; the first is read, as RGB only"
    text = "TIFF of 1 page beside 1 smaller picture; the page is read, and what is smaller is left out"
    said = ask("slides", "--data.channels", "1", "--model.in_channels", "1")
    assert said.fact("frames") == ask("slides").fact("frames") == f"4 (100.0%): {text}"
    assert "smaller pictures in TIFF" not in said.errors  # the page says it
    said = ask("scans")
    assert said.fact("formats") == "4 DICOM"
    assert "with --data.channels 1 it sees them as they are" in said.fact("pixels")
    assert said.fact("frames") == "4 (100.0%): DICOM of 2 frames; the first one is read"
    assert said.fact("near-empty") == "none"


def write_dicom(path: Path, frame: np.ndarray) -> None:
    """Two frames of 12 bits, without a window."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7.3", "1.2.3"
    file = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.Rows, file.Columns, file.NumberOfFrames, file.SamplesPerPixel = *frame.shape, 2, 1
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PhotometricInterpretation = "MONOCHROME2"
    file.PixelData = np.stack([frame, frame]).astype(np.uint16).tobytes()
    file.save_as(path, enforce_file_format=True)


def test_images_that_a_list_names_are_not_looked_at(ask: Callable[..., Said], tmp_path: Path) -> None:
    """Of any kind: one that would be named as the reason why a run cannot start, too."""
    folder = photos(tmp_path / "photos", 12)
    (folder / "broken.jpg").write_bytes(b"broken")
    assert ask("photos").report["images"]["total"] == 13
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    (tmp_path / "list.txt").write_text("\n".join([names[0], "broken.jpg"]))
    said = ask("photos", "--data.exclude", "list.txt")
    assert said.report["images"]["total"] == 11
    assert said.report["images"]["broken"] == 0
    assert "--data.exclude list.txt" in said.page
    assert ask("photos", "--data.exclude", "gone.txt").code != 0


def test_rows_that_are_left_are_decoded_as_the_settings_say(ask: Callable[..., Said], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (50, 50, 50, 50, 80)]
    table = datasets.Dataset.from_dict({"image": [Image.fromarray(picture) for picture in pictures]})
    table.save_to_disk(tmp_path / "table")
    (tmp_path / "list.txt").write_text("row 1\n")
    for flags in ((), ("--data.exclude", "list.txt")):
        said = ask("table", "--data.max_pixels", "4000", *flags)
        assert said.report["images"]["broken"] == 1
        assert said.report["images"]["total"] == 5 - bool(flags)


def test_what_to_expect_is_foretold(ask: Callable[..., Said], tmp_path: Path) -> None:
    """In the units and crops of the run, and with the images that have labels."""
    photos(tmp_path / "photos", 12)
    said = ask("photos", "--labelled", "4", "--model.image_size", "64", "--mask.unit", "16", "--model.window_size", "4")
    told = said.report["forecast"]
    assert [each["unit"] for each in told["filled"]] == [16, 32]
    assert told["labelled"] == 4
    assert 0 < told["entropy"] <= 8
    assert "WHAT TO EXPECT" in said.page
    assert "images to pretrain on for each of the 4 with labels" in said.fact("labels")
    with pytest.raises(SystemExit):
        ask("photos", "--labelled", "0")


def test_holes_are_filled_in_images_of_any_channels(ask: Callable[..., Said], tmp_path: Path) -> None:
    """Normalised as the run would, by the means and stds that were measured; pixels that are missing do not count."""
    (tmp_path / "tiles").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        values = rng.normal(1000, 50, (5, 5, 4)).repeat(10, 0).repeat(10, 1).astype(np.float32)
        values[:10, :10] = np.nan
        np.save(tmp_path / "tiles" / f"{number}.npy", values)
    channels = ("--data.channels", "1", "2", "3", "4", "--model.in_channels", "4")
    said = ask("tiles", *channels)
    (first, *_) = said.report["forecast"]["filled"]
    assert 0.4 < first["mean_fill"] < 1.2, "in stds of the images"
    assert said.report["forecast"]["entropy"] <= 8
