"""Files of the other libraries, written by themselves, against our models; and ours in theirs."""

import re

import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import (
    CLASSES,
    MODELS,
    PINNED,
    TASKS,
    UNIFORM,
    a_mask,
    as_read,
    assert_describes,
    assert_same_tensors,
    build,
    flat,
    geometry,
    images,
    load,
    outputs,
    reason,
    shapes_of,
    stretched,
    timm_model,
    torchvision_model,
    transformers_loaded,
    transformers_model,
    written,
)
from safetensors.torch import load_file, save_file
from torch import nn

from swin_mim import SimMIM, SwinConfig
from swin_mim.errors import UserError
from swin_mim.kernels.window_geometry import relative_position_index, shift_mask
from swin_mim.weights import formats
from swin_mim.weights.network import network_of


@pytest.mark.parametrize("config", [UNIFORM, PINNED])
@pytest.mark.parametrize("kind", ["Swin", "SwinClassifier"])
def test_timm(kind, config):
    classes = CLASSES if kind == "SwinClassifier" else 0
    theirs = stretched(timm_model(config, classes))
    ours, keys = as_read(theirs.state_dict(), "timm")
    assert keys.left == ()
    assert_describes(shapes_of(ours), config, classes)
    model, x = load(config, kind, ours), images(config)
    torch.testing.assert_close(outputs(model, kind, x), outputs(theirs, kind, x), atol=1e-5, rtol=0)
    assert_same_tensors(written(model, "timm", kind), theirs.state_dict())


def test_torchvision():
    theirs = stretched(torchvision_model(UNIFORM))
    ours, keys = as_read(theirs.state_dict(), "torchvision")
    assert len(keys.left) == sum(UNIFORM.depths)
    assert_describes(shapes_of(ours), UNIFORM, CLASSES)
    model, x = load(UNIFORM, "SwinClassifier", ours), images(UNIFORM)
    torch.testing.assert_close(outputs(model, "", x), outputs(theirs, "", x), atol=1e-5, rtol=0)
    assert_same_tensors(written(model, "torchvision", "SwinClassifier"), theirs.state_dict())


@pytest.mark.parametrize("kind", TASKS)
def test_transformers(kind, tmp_path):
    theirs = stretched(transformers_model(UNIFORM, kind))
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    ours, keys = as_read(state, "transformers")
    assert keys.left == ()
    classes = CLASSES if kind == "SwinClassifier" else 0
    assert_describes(shapes_of(ours), UNIFORM, classes, kind == "SimMIM")
    model, x, mask = load(UNIFORM, kind, ours), images(UNIFORM), a_mask(UNIFORM, kind)
    expected = outputs(theirs, kind, x, mask)
    torch.testing.assert_close(outputs(model, kind, x, mask), expected, atol=1e-5, rtol=0)

    again = written(model, "transformers", kind)
    buffers = {name: again.pop(name) for name in list(again) if name.endswith("relative_position_index")}
    assert_same_tensors(again, state)
    loaded = transformers_loaded(UNIFORM, kind, again | buffers, tmp_path)
    assert torch.equal(outputs(loaded, kind, x, mask), expected)


# microsoft: its code cannot be installed, so this is its structure, written out.


def microsoft_names(state, kind):
    """Our state under the names of microsoft's code, by other rules than the table's, with their buffers' names."""
    prefix, out = "encoder." if kind == "SimMIM" else "", {}
    for name, tensor in state.items():
        name = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        name = name.replace("head.fc", "head")
        out[name if name.startswith("decoder") else prefix + name] = tensor
    return out


def microsoft_buffers(config, kind):
    prefix, out = "encoder." if kind == "SimMIM" else "", {}
    for stage, depth in enumerate(config.depths):
        window, grid = config.stage_window(stage), config.stage_grid(stage)
        for j in range(depth):
            block = f"{prefix}layers.{stage}.blocks.{j}."
            out[f"{block}attn.relative_position_index"] = relative_position_index(window, window)
            if j % 2 and grid[0] > window[0]:
                shift = (window[0] // 2, window[1] // 2)
                out[f"{block}attn_mask"] = shift_mask(grid, window, shift, torch.zeros(()))
    return out


@pytest.mark.parametrize("config", [UNIFORM, PINNED])
@pytest.mark.parametrize("kind", MODELS)
def test_microsoft(kind, config):
    model = stretched(build(config, kind))
    parameters = microsoft_names(flat(model), kind)
    buffers = microsoft_buffers(config, kind)
    assert reason(config, "microsoft", kind) == ""
    assert_same_tensors(written(model, "microsoft", kind), parameters | buffers)
    ours, keys = as_read(parameters | buffers, "microsoft")
    assert set(keys.left) == set(buffers)
    assert_same_tensors(ours, flat(model))


OFFICIAL = [("swin_base", 6, 192), ("swin_large", 12, 192)]


@pytest.mark.parametrize(("name", "window", "size"), OFFICIAL)
def test_the_official_simmim_checkpoints_fit_to_the_last_key(name, window, size):
    config = SwinConfig.named(name, image_size=size, window_size=window)
    with torch.device("meta"):
        model = SimMIM(config)
    file = microsoft_names(flat(model), "SimMIM") | {
        key: tensor.to("meta") for key, tensor in microsoft_buffers(config, "SimMIM").items()
    }
    assert len(file) == {"swin_base": 365, "swin_large": 356}[name]  # 24 blocks of 14, 11 or 2 attn_mask, 18
    table = "encoder.layers.3.blocks.0.attn.relative_position_bias_table"
    assert file[table].shape == {"swin_base": (121, 32), "swin_large": (121, 48)}[name]
    keys = formats.key_map(file)
    assert (keys.format, len(keys.sources) + len(keys.left)) == ("microsoft", len(file))
    shapes = formats.our_shapes(shapes_of(file), keys)
    assert shapes == shapes_of(flat(model))
    assert_describes(shapes, config, decoder=True)
    found, _, _ = network_of(shapes)
    assert (found.image_size, found.window_size) == (size, window)


# mmpretrain: its merging is nn.Unfold, with another order of channels.


class UnfoldMerging(nn.Module):
    """Patch merging as mmpretrain does it."""

    def __init__(self, dim):
        super().__init__()
        self.sampler = nn.Unfold(kernel_size=2, stride=2)
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        """(B, h, w, D) -> (B, h/2, w/2, 2D)."""
        height, width = x.shape[1:3]
        x = self.sampler(x.permute(0, 3, 1, 2)).transpose(1, 2)
        return self.reduction(self.norm(x)).unflatten(1, (height // 2, width // 2))


def mmpretrain_file(model, kind, merging, final="norm2"):
    """Our model under mmpretrain's names, with its own patch mergings in place of ours."""
    renames = {
        r"^patch_embed\.proj": "patch_embed.projection",
        r"^layers": "stages",
        r"\.attn\.": ".attn.w_msa.",
        r"mlp\.fc1": "ffn.layers.0.0",
        r"mlp\.fc2": "ffn.layers.1",
        r"^norm": final,
    }
    out = {}
    for name, tensor in flat(model).items():
        if ".downsample." in name:
            continue
        for pattern, replacement in renames.items():
            name = re.sub(pattern, replacement, name)
        name = name if name.startswith("head") else f"neck.{name}" if name.startswith("decoder") else f"backbone.{name}"
        out[name] = tensor
    for stage, module in enumerate(merging):
        out |= {f"backbone.stages.{stage}.downsample.{name}": value for name, value in module.state_dict().items()}
    for name in [name for name in out if name.endswith("bias_table")]:
        out[name.replace("bias_table", "index")] = torch.zeros(16, 16, dtype=torch.long)
    out["backbone.stages.0.blocks.1.attn.attn_mask"] = torch.zeros(16, 16, 16)
    return out


@pytest.mark.parametrize("final", ["norm2", "norm"])
@pytest.mark.parametrize("kind", MODELS)
def test_mmpretrain(kind, final):
    reference = stretched(build(UNIFORM, kind))
    encoder = reference if kind == "Swin" else reference.encoder
    merging = [stretched(UnfoldMerging(dim)) for dim in (16, 32)]
    file = mmpretrain_file(reference, kind, merging, final)
    for stage, module in enumerate(merging):
        encoder.layers[stage + 1].downsample = module
    ours, keys = as_read(file, "mmpretrain")
    assert len(keys.left) == sum(UNIFORM.depths) + 1
    model, x, mask = load(UNIFORM, kind, ours), images(UNIFORM), a_mask(UNIFORM, kind)
    torch.testing.assert_close(outputs(model, kind, x, mask), outputs(reference, kind, x, mask), atol=1e-5, rtol=0)


def test_mmpretrain_is_only_read():
    with pytest.raises(UserError, match="read, not written: choose timm"):
        written(build(UNIFORM, "Swin"), "mmpretrain", "Swin")
    assert "read, not written" in reason(UNIFORM, "mmpretrain")


# Our own files.


@pytest.mark.parametrize("kind", MODELS)
def test_a_training_checkpoint_is_read_and_written(kind):
    model = stretched(build(UNIFORM, kind))
    ours, _ = as_read(model.state_dict(), "timm" if kind == "Swin" else "checkpoint")
    assert_same_tensors(ours, flat(model))
    assert_same_tensors(written(model, "checkpoint", kind), model.state_dict())


@pytest.mark.parametrize(("kind", "format"), [("SimMIM", "swin_mim"), ("Swin", "timm"), ("SwinClassifier", "timm")])
def test_a_published_model_is_read_and_written(kind, format):
    model = stretched(build(PINNED, kind))
    ours, _ = as_read(flat(model), format)
    assert_same_tensors(ours, flat(model))
    assert_same_tensors(written(model, "swin_mim", kind), flat(model))


@pytest.mark.parametrize("format", ["swin_mim", "timm", "checkpoint", "microsoft", "torchvision", "transformers"])
@pytest.mark.parametrize("kind", MODELS)
def test_every_format_comes_back_bit_for_bit(kind, format):
    model = stretched(build(UNIFORM, kind)).half()
    state = flat(model)
    file = written(model, format, kind)
    back = formats.to_ours(file, formats.key_map(file, None if format == "checkpoint" else format))
    dropped = formats.left_out(format, state)
    assert set(dropped) == ({"mask_token", "decoder.0.weight", "decoder.0.bias"} & set(state) - set(back))
    assert_same_tensors(back, {name: tensor for name, tensor in state.items() if name not in dropped})


@pytest.mark.parametrize("format", ["timm", "microsoft", "torchvision", "transformers"])
def test_what_is_written_shares_no_memory(format, tmp_path):
    save_file(written(build(UNIFORM, "SimMIM"), format, "SimMIM"), tmp_path / "model.safetensors")


def test_an_encoder_is_taken_out_of_a_simmim():
    model = build(UNIFORM, "SimMIM")
    file = formats.to_theirs(flat(model), "microsoft", **geometry(UNIFORM), kind="Swin")
    assert_same_tensors(formats.to_ours(file, formats.key_map(file)), flat(model.encoder))


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 11), st.integers(1, 4)), min_size=1, max_size=4),
    st.sampled_from(["swin_mim", "timm", "checkpoint", "microsoft", "torchvision", "transformers"]),
    st.sampled_from(["SimMIM", "SwinClassifier"]),
    st.booleans(),
)
def test_any_depths_and_heads_survive_the_way_there_and_back(stages, format, kind, qkv_bias):
    depths, heads = zip(*stages, strict=True)
    heads = [2**count for count in heads]
    config = SwinConfig(2 ** (len(depths) + 3), 4, 3, 16, depths, heads, 2, 1.5, qkv_bias)
    with torch.device("meta"):
        state = flat(build(config, kind))
    file = formats.to_theirs(state, format, **geometry(config), kind=kind)
    keys = formats.key_map(file)
    shapes = formats.our_shapes(shapes_of(file), keys)
    dropped = formats.left_out(format, state)
    assert shapes == {name: shape for name, shape in shapes_of(state).items() if name not in dropped}
    classes = CLASSES if kind == "SwinClassifier" else 0
    assert_describes(shapes, config, classes, kind == "SimMIM" and not dropped)
    assert formats.key_map(file).format == keys.format


# What does not fit.


def a_file():
    return dict.fromkeys(written(build(UNIFORM, "SimMIM"), "microsoft", "SimMIM"), (1,))


def test_missing_and_unknown_keys_are_named():
    names = set(a_file()) - {"encoder.norm.bias", "encoder.layers.1.blocks.0.mlp.fc1.weight"} | {"encoder.extra"}
    with pytest.raises(UserError) as caught:
        formats.key_map(names)
    assert "2 missing keys (encoder.layers.1.blocks.0.mlp.fc1.weight, encoder.norm.bias)" in str(caught.value)
    assert "1 unknown key (encoder.extra)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_many_keys_the_first_five_are_named():
    names = [name for name in a_file() if ".norm1." not in name]
    with pytest.raises(UserError, match=r"14 missing keys \((\S+, ){5}\.\.\.\)"):
        formats.key_map(names)


@pytest.mark.parametrize("name", ["encoder.layers.1.blocks.0.attn.qkv.bias", "decoder.0.bias"])
def test_an_optional_part_is_there_as_a_whole(name):
    with pytest.raises(UserError, match=f"1 missing key \\({re.escape(name)}\\)"):
        formats.key_map(set(a_file()) - {name})


def test_a_block_in_the_middle_cannot_be_missing():
    names = [name for name in a_file() if not name.startswith("encoder.layers.2.blocks.1.")]
    with pytest.raises(
        UserError, match=r"missing keys \(encoder.layers.2.blocks.1.* unknown keys \(encoder.layers.2.b"
    ):
        formats.key_map(names)


def test_a_hostile_block_number_costs_nothing():
    with pytest.raises(UserError, match="unknown key"):
        formats.key_map([*a_file(), f"encoder.layers.2.blocks.{10**30}.norm1.weight"])


def test_another_format_than_the_given_one_is_refused():
    with pytest.raises(UserError, match=r"no Swin of torchvision is in this file: .* unknown keys \(decoder.0.bias, "):
        formats.key_map(a_file(), "torchvision")


OTHERS = {
    "swinv2_tiny_window8_256": "Swin V2",
    "vit_tiny_patch16_224": "a Vision Transformer",
    "resnet18": r"no Swin of timm, .* unknown keys \(bn1.bias",
    "convnext_atto": "no Swin",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_of_timm_are_told(name):
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    with pytest.raises(UserError, match=OTHERS[name]):
        formats.key_map(state)


def test_other_networks_of_transformers_and_torchvision_are_told():
    import torchvision

    small = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "image_size": 32, "window_size": 4}
    with torch.device("meta"):
        states = [
            (transformers.Swinv2Model(transformers.Swinv2Config(**small)), "Swin V2"),
            (transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=1)), "a Vision Transformer"),
            (transformers.SwinModel(transformers.SwinConfig(**small, use_absolute_embeddings=True)), "absolute posit"),
            (transformers.SwinModel(transformers.SwinConfig(**small)), r"write the file with model\.save_pretrained"),
            (torchvision.models.swin_v2_t(), "Swin V2"),
            (torchvision.models.convnext_tiny(), "no Swin"),
            (torchvision.models.efficientnet_b0(), "no Swin"),
        ]
    for model, message in states:
        with pytest.raises(UserError, match=message):
            formats.key_map(model.state_dict())


def test_an_empty_file_is_told():
    with pytest.raises(UserError, match="it is empty"):
        formats.key_map([])


def test_query_key_and_value_have_one_shape():
    file = shapes_of(written(build(UNIFORM, "SimMIM"), "transformers", "SimMIM"))
    prefix = "swin.encoder.layers.0.blocks.0.attention.self."
    with pytest.raises(UserError, match=r"self.key.weight is \(8, 16\) and .*self.query.weight \(16, 16\)"):
        formats.our_shapes(file | {f"{prefix}key.weight": (8, 16)}, formats.key_map(file))
    for shape in ((16,), (16, 0)):
        with pytest.raises(UserError, match="must have 2 dimensions, none of them 0"):
            formats.our_shapes(
                file | {f"{prefix}{part}.weight": shape for part in ("query", "key", "value")}, formats.key_map(file)
            )
