"""What a library cannot build: refused in one line, exactly where its network is another than ours."""

import math
import re

import pytest
from huggingface_hub.errors import StrictDataclassError
from libraries import (
    CLASSES,
    UNIFORM,
    build,
    images,
    outputs,
    reason,
    stretched,
    timm_model,
    torchvision_model,
    transformers_loaded,
    written,
)

from swin_mim import SwinConfig

GEOMETRIES = [
    {},
    {"image_size": 48, "window_size": 4},  # last grid 3, smaller than the window
    {"image_size": 80, "window_size": 5},
    {"image_size": 80, "window_size": 3},  # padded windows
    {"image_size": 72, "window_size": 4},  # odd grids
    {"image_size": (64, 128), "window_size": 4},
    {"image_size": (64, 96), "window_size": 4},  # shifted in one direction only
    {"image_size": (48, 96), "window_size": (4, 6)},  # padded by just the shift
    {"image_size": (48, 96), "window_size": (3, 6)},
    {"depths": (1, 1, 1), "image_size": 80, "window_size": 3},
    {"depths": (1, 1, 1), "image_size": (64, 96), "window_size": 4},
    {"depths": (1,), "num_heads": (1,)},
    {"qkv_bias": False},
    {"in_channels": 2},
]
V2 = {"version": 2}
GEOMETRIES += [{**changes, **V2} for changes in GEOMETRIES]
GEOMETRIES += [
    {**V2, "pretrained_window_sizes": (8, 8, 8)},
    {**V2, "pretrained_window_sizes": (4, 4, 4)},  # each its own
    {**V2, "pretrained_window_sizes": (0, 0, 6)},
    {**V2, "pretrained_window_sizes": ((6, 8), 4, 4)},
    {**V2, "pretrained_window_sizes": ((6, 0), 4, 4)},
    {**V2, "pretrained_window_sizes": (1, 4, 4)},
    {**V2, "pretrained_window_sizes": (1, 1, 1), "window_size": 1},
    {**V2, "window_size": 1},
    {**V2, "image_size": 36, "window_size": 4},  # grids 9, 5, 3; rounded down 9, 4, 2
    {**V2, "image_size": 36, "window_size": 2},
    {**V2, "image_size": 36, "window_size": 4, "depths": (1, 1, 1)},
    {**V2, "extra_norm_period": 2},
]


def config_of(changes):
    fields = ("image_size", "embed_dim", "depths", "num_heads", "window_size", "qkv_bias", "in_channels")
    return SwinConfig(**({field: getattr(UNIFORM, field) for field in fields} | changes))


def difference(ours, theirs, x):
    return (outputs(ours, "SwinClassifier", x) - outputs(theirs, "SwinClassifier", x)).abs().max().item()


def in_their_library(format, config, state, folder):
    if format == "transformers":
        return transformers_loaded(config, "SwinClassifier", state, folder)
    model = {"timm": timm_model, "torchvision": torchvision_model}[format](config, CLASSES)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("format", ["timm", "torchvision", "transformers"])
@pytest.mark.parametrize("changes", GEOMETRIES, ids=str)
def test_a_network_is_refused_just_where_theirs_is_another(format, changes, tmp_path):
    config = config_of(changes)
    model = stretched(build(config, "SwinClassifier"))
    state, x = written(model, format, "SwinClassifier"), images(config)
    refused = reason(config, format)
    assert "\n" not in refused
    if not refused:
        assert difference(model, in_their_library(format, config, state, tmp_path), x) < 1e-5
        return
    try:
        theirs = in_their_library(format, config, state, tmp_path)
        gap = difference(model, theirs, x)
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError, StrictDataclassError):
        gap = math.inf  # it cannot be built, or not loaded, or not run
    assert not gap <= 1e-4, refused  # NaN too


@pytest.mark.parametrize(
    ("format", "changes", "kind", "message"),
    [
        ("microsoft", {"image_size": 80, "window_size": 3}, "Swin", "microsoft does not pad: windows of 3x3"),
        ("microsoft", {"image_size": 72}, "Swin", "halves even grids only, stage 1 has 9x9|does not pad"),
        ("microsoft", {"in_channels": 4}, "SimMIM", "microsoft's decoder has 3 channels, this model 4"),
        ("microsoft", {"in_channels": 4}, "SwinClassifier", "^$"),
        ("microsoft", {"image_size": (64, 128)}, "SimMIM", "square images only, not a grid of 16x32"),
        ("microsoft", {"image_size": (64, 128)}, "Swin", "shifts no window where one side .* at stage 2"),
        ("microsoft", {"image_size": (48, 96), "window_size": (3, 6)}, "Swin", "square windows only, stage 0 has 3x6"),
        ("transformers", {"image_size": (64, 128)}, "SimMIM", "square images only"),
        ("transformers", {"image_size": 48}, "SimMIM", "has 4x4, 4x4, 3x3: resize it to window_size 3"),
        ("transformers", {"in_channels": 4}, "SimMIM", "^$"),
        ("torchvision", {"depths": (1,), "num_heads": (1,)}, "Swin", "at least two blocks"),
        ("torchvision", {}, "SimMIM", "^$"),
        ("swin_mim", {"image_size": (36, 100), "window_size": (3, 5)}, "SimMIM", "^$"),
        ("swin_mim", {**V2, "extra_norm_period": 2}, "SimMIM", "^$"),
        ("timm", {**V2, "extra_norm_period": 2}, "SimMIM", r"timm has no extra norms \(extra_norm_period 2\)"),
        ("microsoft", V2, "SimMIM", "^$"),
        ("microsoft", {**V2, "pretrained_window_sizes": ((6, 8), 8, 8)}, "Swin", "^$"),
        ("microsoft", {**V2, "pretrained_window_sizes": (8, (1, 1), 8)}, "Swin", "divides by 0 .* stage 1 with 1x1"),
        ("microsoft", {**V2, "window_size": 1}, "Swin", "divides by 0 where a window measures 1"),
        ("torchvision", {**V2, "pretrained_window_sizes": (8, 8, 8)}, "Swin", "^$"),
        ("torchvision", {**V2, "pretrained_window_sizes": (4, 4, 4)}, "Swin", "^$"),
        ("transformers", {**V2, "image_size": 48}, "SimMIM", "^$"),  # a smaller window in the last stage
        ("transformers", {**V2, "image_size": 36}, "Swin", "takes the grid of stage 1 for 4x4, which is 5x5: .* of 16"),
    ],
)
def test_what_a_library_cannot_hold_is_said(format, changes, kind, message):
    assert re.search(message, reason(config_of(changes), format, kind).replace("\n", "NEWLINE"))
