"""Which network has these tensors: found from shapes alone, and refused where they are of none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import (
    UNIFORM,
    UNIFORM_V2,
    build,
    flat,
    shapes_of,
)

from swin_mim import SwinConfig
from swin_mim.errors import UserError
from swin_mim.weights.network import _mlp_ratio, _smallest_image, check_windows, network_of


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("patch_embed.proj.weight", (16, 3, 4, 2), "patches of 4x2 pixels: they must be square"),
        ("layers.1.blocks.1.norm1.weight", (16,), r"norm1.weight has shape \(16,\), but the rest .* \(32,\)"),
        ("layers.0.blocks.1.attn.relative_position_bias_table", (25, 1), r"shape \(25, 1\), but the rest .* \(49, 1\)"),
        ("layers.2.blocks.0.mlp.fc2.weight", (64, 100), r"the rest of the file describes \(64, 128\)"),
        ("layers.1.downsample.reduction.weight", (64, 32), r"the rest of the file describes \(32, 64\)"),
        ("decoder.0.bias", (767,), r"decoder.0.bias has shape \(767,\), but the rest .* \(768,\)"),
        ("decoder.0.weight", (256, 64, 1, 1), "decoder.0.weight"),
        ("mask_token", (1, 1, 32), "mask_token"),
        ("norm.bias", (1, 64), "norm.bias has shape"),
    ],
)
def test_shapes_that_contradict_each_other_are_named(name, shape, message):
    shapes = shapes_of(flat(build(UNIFORM, "SimMIM")))
    assert name in shapes
    with pytest.raises(UserError, match=message):
        network_of(shapes | {name: shape})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "layers.1.blocks.1.attn.logit_scale",
            (4, 1, 1),
            r"logit_scale has shape \(4, 1, 1\), but the rest .*\(2, 1, 1\)",
        ),
        ("layers.0.blocks.0.attn.logit_scale", (3, 1, 1), "stage 0 has 16 channels, which 3 heads do not divide"),
        ("layers.0.blocks.0.attn.cpb_mlp.0.weight", (256, 2), r"the rest of the file describes \(512, 2\)"),
        ("layers.0.blocks.0.attn.cpb_mlp.2.weight", (2, 512), r"the rest of the file describes \(1, 512\)"),
        ("layers.0.blocks.0.attn.q_bias", (8,), r"q_bias has shape \(8,\)"),
        ("layers.1.downsample.norm.weight", (64,), r"the rest of the file describes \(32,\)"),
        ("layers.2.blocks.1.norm3.weight", (64,), "norm3.bias, .* are missing"),
    ],
)
def test_shapes_of_a_v2_that_contradict_each_other_are_named(name, shape, message):
    shapes = shapes_of(flat(build(UNIFORM_V2, "SimMIM"))) | {name: shape}
    with pytest.raises(UserError, match=message):
        network_of(shapes, image_size=64, window_size=4)


def test_the_weights_of_a_v2_fit_any_window_so_that_it_has_to_be_said():
    shapes = shapes_of(flat(build(UNIFORM_V2, "Swin")))
    for known, field in (({}, "window_size"), ({"image_size": 64}, "window_size"), ({"window_size": 4}, "image_size")):
        with pytest.raises(
            UserError, match=f"^{field} is not told by the weights of a Swin V2, .*--source-window-size"
        ):
            network_of(shapes, **known)
    assert network_of(shapes, image_size=64, window_size=4)[0] == UNIFORM_V2
    assert network_of(shapes, windows=[(4, 4)] * 3)[0] == UNIFORM_V2
    with pytest.raises(UserError, match="image_size is not told"):
        network_of(shapes, windows=[(4, 6)] * 3)
    found, _, _ = network_of(shapes, windows=[(4, 6), (4, 6), (4, 4)], image_size=64, window_size=(4, 6))
    assert found.window_size == (4, 6)


def test_windows_that_its_sizes_do_not_give_are_refused():
    check_windows([(4, 4)] * 3, UNIFORM_V2)
    check_windows(None, UNIFORM_V2)
    with pytest.raises(
        UserError, match=r"stage 1 is for windows of 3x3, and image_size 64 with window_size 4 has \(4, 4"
    ):
        check_windows([(4, 4), (3, 3), (4, 4)], UNIFORM_V2)


def test_heads_must_divide_the_channels():
    shapes = shapes_of(flat(build(UNIFORM, "Swin")))
    tables = {f"layers.1.blocks.{j}.attn.relative_position_bias_table": (49, 3) for j in range(2)}
    with pytest.raises(UserError, match="stage 1 has 32 channels, which 3 heads do not divide"):
        network_of(shapes | tables)


def test_hidden_channels_of_all_stages_come_from_one_ratio():
    shapes = shapes_of(flat(build(UNIFORM, "Swin")))
    for j in range(2):
        block = f"layers.1.blocks.{j}.mlp."
        shapes |= {f"{block}fc1.weight": (96, 32), f"{block}fc1.bias": (96,), f"{block}fc2.weight": (32, 96)}
    with pytest.raises(UserError, match="no one mlp_ratio gives all of them"):
        network_of(shapes)


@given(st.sampled_from([16, 24, 49]), st.integers(1, 4), st.floats(0.5, 5))
def test_the_mlp_ratio_found_gives_the_same_channels(embed_dim, stages, ratio):
    dims = [embed_dim * 2**stage for stage in range(stages)]
    found = _mlp_ratio([(int(dim * ratio), dim) for dim in dims])
    assert [int(dim * found) for dim in dims] == [int(dim * ratio) for dim in dims]


@given(st.integers(1, 60), st.integers(1, 14), st.integers(1, 5), st.sampled_from([2, 4]))
def test_the_image_size_found_gives_the_same_windows(grid, window, stages, patch):
    def windows(size, largest):
        return tuple(min(largest, -(-size // patch // 2**stage)) for stage in range(stages))

    known = windows(grid * patch, window)
    assert windows(_smallest_image(known, patch), max(known)) == known


@pytest.mark.parametrize("windows", [(7, 3, 7), (7, 7, None), (12, 4, 3)])
def test_windows_of_no_square_image_give_no_image_size(windows):
    assert _smallest_image(windows, 4) is None


def test_a_size_that_the_tables_do_not_tell_has_to_be_said():
    config = SwinConfig((32, 64), embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=(2, 4))
    shapes = shapes_of(flat(build(config, "Swin")))
    with pytest.raises(UserError, match=r"window_size is not told by the bias tables, which have \[21, 21\] rows"):
        network_of(shapes)
    found, _, _ = network_of(shapes, image_size=(32, 64), window_size=(2, 4))
    assert found == config
