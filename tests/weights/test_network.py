"""Which network has these tensors: found from shapes alone, and refused where they are of none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import (
    UNIFORM,
    build,
    flat,
    shapes_of,
)

from swin_mim import SwinConfig
from swin_mim.errors import UserError
from swin_mim.weights.network import _mlp_ratio, _smallest_image, network_of


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
