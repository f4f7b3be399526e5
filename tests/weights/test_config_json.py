"""How images become a model's input: written down, read back, and understood alike by timm and transformers."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import timm
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from swin_mim import Swin, SwinClassifier, SwinConfig
from swin_mim.architecture import as_pair
from swin_mim.data.transforms.crops import EvaluationTransform, normalize
from swin_mim.errors import UserError
from swin_mim.weights.config_json import Description, Preprocessing, describe, document
from swin_mim.weights.library_configs import hints, transformers_documents

SIZE = 224
"""Cut out of images that are resized to 256: at a share of 0.875 everybody cuts at the same whole pixels."""
GREY_LEVEL = 1.001 / 255
"""Rounding: resized images have 8 bits, and transformers resizes with torch, which rounds now and then otherwise."""
WAYS = [(interpolation, share) for interpolation in ("bilinear", "bicubic") for share in (1.0, 0.875)]


def description(size: int | tuple[int, int] = SIZE, interpolation: Any = "bilinear", share: float = 1.0) -> Description:
    config = SwinConfig(size, embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4)
    seen = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), interpolation=interpolation, crop_pct=share)
    return Description("Swin", config, preprocessing=seen)


def by_us(of: Description, image: Image.Image) -> Tensor:
    """(3, H, W) as the evaluation of a run makes it."""
    seen = of.preprocessing
    transform = EvaluationTransform(as_pair(of.config.image_size), seen.interpolation, seen.crop_pct)
    return normalize(transform(image)[None], seen.mean, seen.std)[0]


def by_timm(of: Description, image: Image.Image) -> Tensor:
    """What timm reads in the config.json, and the transform that it builds of that."""
    written = json.loads(json.dumps(document(of)))
    settings = timm.data.resolve_data_config(pretrained_cfg=written["pretrained_cfg"])
    return timm.data.create_transform(**settings)(image)


def by_transformers(of: Description, image: Image.Image) -> Tensor:
    written = json.loads(json.dumps(transformers_documents(of)["preprocessor_config.json"]))
    processor = getattr(transformers, written["image_processor_type"]).from_dict(written)
    return processor(image, return_tensors="pt")["pixel_values"][0]


def difference(one: Tensor, other: Tensor) -> float:
    """The greatest, of pixels from 0 to 1."""
    assert one.shape == other.shape
    std = torch.tensor(description().preprocessing.std)[:, None, None]
    return ((one - other) * std).abs().max().item()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """512 x 600 pixels: resized to a width of 256 it is 300 high."""
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as image:
        return image.convert("RGB")


@given(st.sampled_from(["bilinear", "bicubic"]), st.floats(0, 1, exclude_min=True), st.booleans())
def test_the_way_images_are_resized_comes_back(interpolation: str, share: float, named: bool) -> None:
    channels = ("a", "b", "c") if named else None
    seen = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), channels, interpolation, share)  # type: ignore[arg-type]
    of = Description("Swin", description().config, preprocessing=seen)
    assert describe(json.loads(json.dumps(document(of))), "config.json") == of


@pytest.mark.parametrize(
    ("nodata", "mask_channel"),
    [(None, None), (-9999.0, None), (0.0, "SCL"), (-3.4028234663852886e38, None), (math.nan, None)],
)
def test_units_and_gaps_come_back(nodata: float | None, mask_channel: str | None) -> None:
    seen = Preprocessing(
        (1.0, 2.0, 3.0), (4.0,) * 3, ("a", "b", "c"), scale=1, nodata=nodata, mask_channel=mask_channel
    )
    of = Description("Swin", description().config, preprocessing=seen)
    written = json.loads(json.dumps(document(of)))
    assert describe(written, "config.json") == of
    written["swin_mim"]["scale"] = 10_000
    with pytest.raises(UserError, match=r"^x\.json: preprocessing\.scale 10000 must be 255 for 8-bit images, else 1"):
        describe(written, "x.json")


FIRST_VERSION = """{
 "architecture": "swin_tiny_patch4_window7_224", "num_classes": 0, "num_features": 32, "global_pool": "avg",
 "model_args": {"img_size": [224, 224], "patch_size": 4, "in_chans": 3, "embed_dim": 16, "depths": [1, 1],
  "num_heads": [1, 2], "window_size": [4, 4], "mlp_ratio": 4.0, "qkv_bias": true},
 "pretrained_cfg": {"input_size": [3, 224, 224], "fixed_input_size": true, "interpolation": "bilinear",
  "crop_pct": 1.0, "crop_mode": "center", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "num_classes": 0,
  "pool_size": [28, 28], "first_conv": "patch_embed.proj", "classifier": "head.fc", "custom_load": false},
 "swin_mim": {"format": 1, "model": "Swin", "config": {"image_size": 224, "patch_size": 4, "in_channels": 3,
  "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "mlp_ratio": 4.0, "qkv_bias": true,
  "drop_rate": 0.0, "drop_path_rate": 0.0}, "channels": ["red", "green", "blue"]}}"""
"""Written when images were resized in one way only, which nobody could choose."""


def test_a_config_of_the_first_version_is_read_and_written_as_it_was() -> None:
    old = json.loads(FIRST_VERSION)
    assert describe(old, "config.json") == description()
    assert json.loads(json.dumps(document(description()))) == old
    old["pretrained_cfg"]["crop_pct"] = 1  # as a tool that rounds numbers leaves it
    assert describe(old, "config.json") == description()
    assert Preprocessing() == Preprocessing(interpolation="bilinear", crop_pct=1.0)


OF_V2 = SwinConfig(
    (64, 96), embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=(4, 8), version=2,
    pretrained_window_sizes=(0, (6, 8)), extra_norm_period=1,
)  # fmt: skip


def test_a_v2_is_written_for_timm_and_comes_back() -> None:
    written = json.loads(json.dumps(document(Description("Swin", OF_V2))))
    assert describe(written, "config.json") == Description("Swin", OF_V2)
    assert written["architecture"] == "swinv2_tiny_window8_256"
    assert written["model_args"]["pretrained_window_sizes"] == [0, [6, 8]]
    arguments = {**written["model_args"], "num_classes": 0}
    theirs = timm.create_model(written["architecture"], **arguments)  # extra norms are not timm's
    assert [stage.blocks[0].attn.pretrained_window_size for stage in theirs.layers] == [(0, 0), (6, 8)]
    for name in ("swinv2_small", "swinv2_base", "swinv2_large"):
        config = SwinConfig.named(name)
        entry = document(Description("Swin", config))["architecture"]
        assert entry.startswith(name)
        assert timm.models.is_model(entry)


SPOILED_V2: list[tuple[dict[str, Any], str]] = [
    ({"version": True}, "version is True: expected 1 or 2"),
    ({"version": "2"}, "version is '2': expected 1 or 2"),
    ({"version": 2.0}, r"version is 2\.0: expected 1 or 2"),
    ({"version": [2]}, r"version is \[2\]: expected 1 or 2"),
    ({"version": 3}, "version 3 is no Swin Transformer: there are 1 and 2"),
    ({"version": 1}, "extra_norm_period is unknown"),
    ({"pretrained_window_sizes": 12}, "pretrained_window_sizes is 12: expected a list of 1 to 16 whole numbers"),
    ({"pretrained_window_sizes": []}, r"pretrained_window_sizes is \[\]: expected a list"),
    ({"pretrained_window_sizes": [4, -4]}, "expected a list of 1 to 16 whole numbers or lists of two"),
    ({"pretrained_window_sizes": [4, True]}, "expected a list of 1 to 16 whole numbers or lists of two"),
    ({"pretrained_window_sizes": [4, [4, 4, 4]]}, "expected a list of 1 to 16 whole numbers or lists of two"),
    ({"pretrained_window_sizes": [4, []]}, "expected a list of 1 to 16 whole numbers or lists of two"),
    ({"pretrained_window_sizes": [4, "8"]}, "expected a list of 1 to 16 whole numbers or lists of two"),
    ({"pretrained_window_sizes": [0] * 17}, "expected a list of 1 to 16"),
    ({"pretrained_window_sizes": [4, 10**30]}, "no network has more than 1024"),
    ({"pretrained_window_sizes": [4, 4, 4]}, r"\(4, 4, 4\) must name the 2 stages of depths"),
    ({"pretrained_window_sizes": [4, 4]}, r"model_args.pretrained_window_sizes is \[0, \[6, 8\]\] and swin_mim.config"),
    ({"extra_norm_period": -1}, "extra_norm_period is -1: expected a whole number of at least 0"),
    ({"extra_norm_period": 1.5}, r"extra_norm_period is 1\.5: expected a whole number"),
    ({"extra_norm_period": 10**30}, "no network has more than 1024"),
]


@pytest.mark.parametrize(("changes", "message"), SPOILED_V2)
def test_a_spoiled_config_of_a_v2_is_one_line(changes: dict[str, Any], message: str) -> None:
    written = json.loads(json.dumps(document(Description("Swin", OF_V2))))
    written["swin_mim"]["config"] |= changes
    with pytest.raises(UserError, match=message) as caught:
        describe(written, "config.json")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config.json: ")


def test_a_config_of_a_v2_lacks_nothing() -> None:
    for key in ("pretrained_window_sizes", "extra_norm_period"):
        written = json.loads(json.dumps(document(Description("Swin", OF_V2))))
        del written["swin_mim"]["config"][key]
        with pytest.raises(UserError, match=f"swin_mim.config.{key} is missing"):
            describe(written, "config.json")


NAMES_OF_V2 = [name for name in timm.list_models("swinv2_*") if not name.startswith("swinv2_cr")]


@pytest.mark.parametrize("name", NAMES_OF_V2)
def test_timms_names_of_v2_say_what_its_own_repositories_say_nowhere_else(name: str) -> None:
    cfg = timm.models.get_pretrained_cfg(name)
    found = hints({"architecture": name, "pretrained_cfg": {"input_size": list(cfg.input_size)}}, "config.json")
    with torch.device("meta"):
        model = timm.create_model(name, depths=(1, 1, 1, 1))
    assert found["image_size"] == cfg.input_size[-1] == model.patch_embed.img_size[0]
    assert (found["window_size"],) * 2 == model.layers[0].blocks[0].window_size
    measures = [stage.blocks[0].attn.pretrained_window_size for stage in model.layers]
    assert [as_pair(size) for size in found.get("pretrained_window_sizes", (0,) * 4)] == measures


def test_arguments_say_more_than_the_name() -> None:
    said = {"img_size": 64, "window_size": 4, "pretrained_window_sizes": [8, 8, 8, 4]}
    found = hints({"architecture": "swinv2_base_window12to16_192to256", "model_args": said}, "config.json")
    assert found == {"image_size": 64, "window_size": 4, "pretrained_window_sizes": (8, 8, 8, 4)}
    for name in ("swinv2_cr_tiny_224", "swinv2_tiny_windows_256", "swinv2_tiny_window8_256" + "0" * 100, 8, None):
        assert hints({"architecture": name}, "config.json") == {}


def test_transformers_says_the_windows_of_a_v2() -> None:
    config = SwinConfig(64, embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4, version=2)
    native = transformers_documents(Description("SimMIM", config))["config.json"]
    assert (native["model_type"], native["architectures"]) == ("swinv2", ["Swinv2ForMaskedImageModeling"])
    native["pretrained_window_sizes"] = [8, 4]
    found = hints(native, "config.json")
    assert found == {"image_size": 64, "window_size": 4, "pretrained_window_sizes": (8, 4)}
    with pytest.raises(UserError, match="pretrained_window_sizes is '8': expected a list"):
        hints(native | {"pretrained_window_sizes": "8"}, "config.json")


@pytest.mark.parametrize(
    ("interpolation", "share"),
    [
        ("nearest", 1.0),
        ("BICUBIC", 1.0),
        ("", 1.0),
        (None, 1.0),
        (3, 1.0),
        (["bicubic"], 1.0),
        ("bicubic", 0.0),
        ("bicubic", -0.875),
        ("bicubic", 1.0001),
        ("bicubic", 87.5),
        ("bicubic", float("nan")),
        ("bicubic", float("inf")),
    ],
)
def test_what_nobody_can_resize_by_is_refused_in_one_line(interpolation: Any, share: float) -> None:
    with pytest.raises(UserError, match="expected one of bilinear, bicubic, and a number above 0") as caught:
        Preprocessing(interpolation=interpolation, crop_pct=share)
    message = str(caught.value)
    assert f"interpolation {interpolation!r} and crop_pct {share}" in message
    assert "\n" not in message


def test_the_file_that_says_so_is_named() -> None:
    for changes in ({"interpolation": "nearest"}, {"crop_pct": 87.5}, {"crop_pct": "0.9"}):
        spoiled = json.loads(json.dumps(document(description())))
        spoiled["pretrained_cfg"] |= changes
        with pytest.raises(UserError, match=r"^trees/config\.json: "):
            describe(spoiled, "trees/config.json")


@pytest.mark.parametrize(("interpolation", "share"), WAYS)
def test_timm_makes_the_same_of_a_photo(photo: Image.Image, interpolation: str, share: float) -> None:
    of = description(SIZE, interpolation, share)
    other = description(SIZE, "bicubic" if interpolation == "bilinear" else "bilinear", share)
    images = [photo.crop((0, 0, 512, 512))] + [photo] * (share == 0.875)
    for image in images:
        assert difference(by_us(of, image), by_timm(of, image)) < GREY_LEVEL
        assert difference(by_us(of, image), by_timm(other, image)) > 10 * GREY_LEVEL, "what the test could not see"


def test_timm_finds_it_in_a_saved_model(photo: Image.Image, tmp_path: Path) -> None:
    model = Swin(description(56).config)
    model.preprocessing = description(56, "bicubic", 0.875).preprocessing
    folder = model.save_pretrained(tmp_path / "model")
    assert Swin.from_pretrained(folder).preprocessing == model.preprocessing
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True)
    settings = timm.data.resolve_model_data_config(theirs)
    assert (settings["interpolation"], settings["crop_pct"], settings["crop_mode"]) == ("bicubic", 0.875, "center")
    square = photo.crop((0, 0, 512, 512))
    image = timm.data.create_transform(**settings)(square)
    assert difference(by_us(model.description(), square), image) < GREY_LEVEL


@pytest.mark.parametrize(("interpolation", "share"), WAYS)
def test_transformers_makes_the_same_of_a_photo(photo: Image.Image, interpolation: str, share: float) -> None:
    of = description(SIZE, interpolation, share)
    other = description(SIZE, "bicubic" if interpolation == "bilinear" else "bilinear", share)
    written = transformers_documents(of)["preprocessor_config.json"]
    assert written["image_processor_type"] == "CLIPImageProcessor"
    wide = photo if share == 0.875 else photo.crop((0, 0, 512, 448))  # cut at whole pixels of 256 x 224
    for image in (photo.crop((0, 0, 512, 512)), wide, wide.rotate(90, expand=True)):
        assert difference(by_us(of, image), by_transformers(of, image)) < GREY_LEVEL
        assert difference(by_us(of, image), by_transformers(other, image)) > 10 * GREY_LEVEL


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_transformers_resizes_to_a_size_that_is_not_square(photo: Image.Image, interpolation: str) -> None:
    of, image = description((96, 128), interpolation), photo.crop((0, 0, 512, 384))
    assert difference(by_us(of, image), by_transformers(of, image)) < GREY_LEVEL


@pytest.mark.parametrize(
    ("size", "share", "told"),
    [
        ((96, 128), 0.875, "in its own shape of 96 x 128, and 0.875 of that: transformers' processor cannot"),
        ((96, 128), 1.0, "in its own shape of 96 x 128: transformers' processor cannot"),
        (96, 0.875, ""),
        (96, 1.0, ""),
    ],
)
def test_what_transformers_cannot_cut_out_is_told(
    size: int | tuple[int, int],
    share: float,
    told: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    transformers_documents(description(size, "bicubic", share))
    assert told in caplog.text
    assert bool(told) == bool(caplog.text)


def test_transformers_leaves_a_grey_photo_grey(photo: Image.Image) -> None:
    config = SwinConfig(96, in_channels=1, embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4)
    of, grey = Description("Swin", config, preprocessing=Preprocessing.unknown(1)), photo.convert("L")
    written = transformers_documents(of)["preprocessor_config.json"]
    image = transformers.CLIPImageProcessor.from_dict(written)(grey, return_tensors="pt")["pixel_values"][0]
    assert image.shape == (1, 96, 96)


@pytest.mark.parametrize(
    ("said", "taken", "told"),
    [
        ({"interpolation": "lanczos"}, "bicubic", "config.json: interpolation 'lanczos' is taken for bicubic"),
        ({"interpolation": "random"}, "bicubic", "config.json: interpolation 'random' is taken for bicubic"),
        ({"interpolation": "nearest"}, "bilinear", "config.json: interpolation 'nearest' is taken for bilinear"),
        ({"interpolation": "bicubic", "crop_pct": 1.2}, "bicubic", "config.json: crop_pct 1.2, an image with a margin"),
    ],
)
def test_ways_to_resize_that_only_timm_has_are_taken_for_the_nearest(
    said: dict[str, Any], taken: str, told: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    found = hints({"pretrained_cfg": said}, "config.json")
    assert (found["interpolation"], found.get("crop_pct", 1.0)) == (taken, 1.0)
    assert told in caplog.text


@pytest.mark.parametrize("said", [{"crop_pct": "0.9"}, {"crop_pct": 0}, {"crop_pct": math.nan}, {"interpolation": [3]}])
def test_what_is_no_way_to_resize_is_an_error_with_the_file(said: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^config\.json: interpolation is .* and crop_pct .*: expected a text, and"):
        hints({"pretrained_cfg": said}, "config.json")


@pytest.mark.parametrize("resample", [[3], {"a": 1}, "bicubic", None, 5])
def test_a_processor_that_resizes_as_we_cannot_is_told(
    resample: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    assert "interpolation" not in hints({}, "config.json", processor={"resample": resample})
    assert ("is neither 2, bilinear, nor 3, bicubic" in caplog.text) == (resample is not None)


def ramp(width: int, height: int) -> Image.Image:
    """Red is the column of each pixel and green its row, so that a resized image tells where its pixels are from."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8))


@pytest.mark.parametrize("share", [1.0, 0.95, 0.9, 0.875, 0.5])
@pytest.mark.parametrize("size", [64, 100, (64, 96), (96, 64)])
@pytest.mark.parametrize("pixels", [(255, 255), (250, 131), (97, 201)])
def test_timm_looks_at_the_same_place_wherever_whole_pixels_are(
    pixels: tuple[int, int], size: int | tuple[int, int], share: float
) -> None:
    """It rounds the resized image and the corner of the crop to whole pixels, which moves the crop by about one."""
    of, image = description(size, "bilinear", share), ramp(*pixels)
    sides = as_pair(size)
    pixel = min(pixels[0] / sides[1], pixels[1] / sides[0]) * share  # of the model's, in the image's
    assert difference(by_us(of, image), by_timm(of, image)) < 1.25 * max(pixel, 1) / 255 + GREY_LEVEL
    wider = description(size, "bilinear", share - 0.15)
    assert difference(by_us(wider, image), by_timm(of, image)) > 2 * max(pixel, 1) / 255 + GREY_LEVEL


@pytest.mark.parametrize(("interpolation", "share"), WAYS)
def test_what_other_libraries_say_of_resizing_is_kept(interpolation: str, share: float) -> None:
    """timm's pretrained_cfg and transformers' processor of their own models, without a word of ours."""
    of = description(SIZE, interpolation, share)
    theirs = {key: value for key, value in document(of).items() if key != "swin_mim"}
    found = hints(theirs, "config.json")
    assert (found["interpolation"], found["crop_pct"]) == (interpolation, share)
    native = transformers_documents(of)
    found = hints(native["config.json"], "config.json", processor=native["preprocessor_config.json"])
    assert (found["interpolation"], found.get("crop_pct", 1.0)) == (interpolation, share)


def test_a_timm_classifier_is_evaluated_as_timm_does_it(tmp_path: Path) -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", embed_dim=16, depths=(1, 1), num_heads=(1, 2), num_classes=3
    )
    timm.models.save_for_hf(model, tmp_path, model_config={"num_classes": 3}, safe_serialization=True)
    seen = SwinClassifier.from_pretrained(tmp_path).preprocessing
    assert (seen.interpolation, seen.crop_pct) == ("bicubic", 0.9)
