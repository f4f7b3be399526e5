"""Files of the other libraries, written by themselves, against our models; and ours in theirs."""

import re
from dataclasses import replace

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
    PINNED_V2,
    TASKS,
    UNIFORM,
    UNIFORM_V2,
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
from swin_mim.architecture import as_pair
from swin_mim.errors import UserError
from swin_mim.kernels.window_geometry import relative_coordinates, relative_position_index, shift_mask
from swin_mim.weights import formats
from swin_mim.weights.coordinates import windows_of
from swin_mim.weights.network import network_of

ALL = pytest.mark.parametrize("config", [UNIFORM, PINNED, UNIFORM_V2, PINNED_V2])
BOTH = pytest.mark.parametrize("config", [UNIFORM, UNIFORM_V2])


@ALL
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


@BOTH
def test_torchvision(config):
    theirs = stretched(torchvision_model(config))
    biases = [name for name in theirs.state_dict() if config.version == 2 and name.endswith("qkv.bias")]
    ours, keys = as_read(theirs.state_dict(), "torchvision")
    assert len(keys.left) == sum(config.depths) * config.version  # and relative_coords_table
    assert_describes(shapes_of(ours), config, CLASSES)
    model, x = load(config, "SwinClassifier", ours), images(config)
    torch.testing.assert_close(outputs(model, "", x), outputs(theirs, "", x), atol=1e-5, rtol=0)
    assert list(formats.key_biases(theirs.state_dict(), keys)) == sorted(biases)
    for name in biases:  # theirs puts zeros there as it runs
        theirs.state_dict()[name].chunk(3)[1].zero_()
    assert formats.key_biases(theirs.state_dict(), keys) == ()
    assert_same_tensors(written(model, "torchvision", "SwinClassifier"), theirs.state_dict())


def test_biases_of_queries_keys_and_values_are_three_equal_parts():
    file = shapes_of(written(build(UNIFORM_V2, "SwinClassifier"), "torchvision", "SwinClassifier"))
    with pytest.raises(UserError, match=r"features.1.0.attn.qkv.bias is \(47,\): it must hold as many values for que"):
        formats.our_shapes(file | {"features.1.0.attn.qkv.bias": (47,)}, formats.key_map(file))


@pytest.mark.parametrize("config", [UNIFORM, UNIFORM_V2, PINNED_V2])
@pytest.mark.parametrize("kind", TASKS)
def test_transformers(kind, config, tmp_path):
    theirs = stretched(transformers_model(config, kind))
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    ours, keys = as_read(state, "transformers")
    assert keys.left == ()
    classes = CLASSES if kind == "SwinClassifier" else 0
    assert_describes(shapes_of(ours), config, classes, kind == "SimMIM")
    model, x, mask = load(config, kind, ours), images(config), a_mask(config, kind)
    expected = outputs(theirs, kind, x, mask)
    torch.testing.assert_close(outputs(model, kind, x, mask), expected, atol=1e-5, rtol=0)

    again = written(model, "transformers", kind)
    buffers = {name: again.pop(name) for name in list(again) if name.endswith("relative_position_index")}
    assert_same_tensors(again, state)
    assert bool(buffers) == (config.version == 1)
    loaded = transformers_loaded(config, kind, again | buffers, tmp_path)
    # bits hang on where a file's tensors lie in memory
    torch.testing.assert_close(outputs(loaded, kind, x, mask), expected, atol=1e-6, rtol=0)


def test_buffers_in_old_files_of_transformers_are_no_strangers():
    state = transformers_model(UNIFORM_V2, "SimMIM").state_dict()
    block = "swinv2.encoder.layers.1.blocks.0.attention.self."
    buffers = {f"{block}relative_coords_table": torch.zeros(1, 7, 7, 2), f"{block}relative_position_index": 0}
    keys = formats.key_map(state | buffers)
    assert set(keys.left) == set(buffers)
    assert keys.coordinates == ()  # not of all stages


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
            if config.version == 2:
                table = relative_coordinates(window, as_pair(config.pretrained_window_sizes[stage]))
                out[f"{block}attn.relative_coords_table"] = table[None]
            if j % 2 and grid[0] > window[0]:
                shift = (window[0] // 2, window[1] // 2)
                out[f"{block}attn_mask"] = shift_mask(grid, window, shift, torch.zeros(()))
    return out


@pytest.mark.parametrize(
    "config", [UNIFORM, PINNED, UNIFORM_V2, replace(PINNED_V2, pretrained_window_sizes=(8, 8, 8, 4))]
)
@pytest.mark.parametrize("kind", MODELS)
def test_microsoft(kind, config):
    model = stretched(build(config, kind))
    parameters = microsoft_names(flat(model), kind)
    buffers = microsoft_buffers(config, kind)
    assert reason(config, "microsoft", kind) == ""
    file = written(model, "microsoft", kind)
    for name in [name for name in buffers if name.endswith("relative_coords_table")]:  # logarithms differ in a last bit
        torch.testing.assert_close(file[name], buffers[name], atol=3e-7, rtol=0)
        buffers[name] = file[name]
    assert_same_tensors(file, parameters | buffers)
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


@pytest.mark.parametrize("network", ["cpb_mlp", "rpe_mlp"])  # the code before its publication had the second name
@pytest.mark.parametrize("name", ["swinv2_small", "swinv2_base", "swinv2_large"])
def test_the_simmim_v2_checkpoints_of_the_modelhub_fit_to_the_last_key(name, network):
    """192 px with windows of 12, and fine-tuned at 224 px with 14; as its configs have it."""
    for kind, size, window, pretrained in (("SimMIM", 192, 12, ()), ("SwinClassifier", 224, 14, (12, 12, 12, 6))):
        config = SwinConfig.named(name, image_size=size, window_size=window, pretrained_window_sizes=pretrained)
        with torch.device("meta"):
            model = build(config, kind)
        names = microsoft_names(flat(model), kind) | microsoft_buffers(config, kind)
        file = {key.replace("cpb_mlp", network): tensor.to("meta") for key, tensor in names.items()}
        # 24 blocks of 17 tensors and 2 buffers, and 2 attn_mask, as the grids of stages 2 and 3 are one window
        assert len(file) == 24 * 19 + 2 + {"SimMIM": 18, "SwinClassifier": 17}[kind]
        keys = formats.key_map(file)
        assert (keys.format, len(keys.sources) + len(keys.left)) == ("microsoft", len(file))
        assert {name.rsplit(".", 1)[-1] for name in keys.left} == {
            "attn_mask",
            "relative_coords_table",
            "relative_position_index",
        }
        shapes = formats.our_shapes(shapes_of(file), keys)
        assert shapes == shapes_of(flat(model))
        windows = windows_of(shapes_of(file), keys.coordinates)
        found, found_kind, _ = network_of(shapes, windows=windows)
        assert (found.image_size, found.window_size, found_kind) == (size, window, kind)


# mmpretrain: its merging is nn.Unfold, with another order of channels.


class UnfoldMerging(nn.Module):
    """Patch merging as mmpretrain does it, in V2 with the norm after it (use_post_norm)."""

    def __init__(self, dim, version=1):
        super().__init__()
        self.sampler = nn.Unfold(kernel_size=2, stride=2)
        self.norm = nn.LayerNorm(4 * dim if version == 1 else 2 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.order = (self.norm, self.reduction) if version == 1 else (self.reduction, self.norm)

    def forward(self, x):
        """(B, h, w, D) -> (B, h/2, w/2, 2D)."""
        height, width = x.shape[1:3]
        x = self.sampler(x.permute(0, 3, 1, 2)).transpose(1, 2)
        for part in self.order:
            x = part(x)
        return x.unflatten(1, (height // 2, width // 2))


def mmpretrain_file(model, kind, merging, final="norm2", version=1):
    """Our model under mmpretrain's names, with its own patch mergings in place of ours; in V2 a stage begins so."""
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
        place = f"backbone.stages.{stage + version - 1}.downsample"
        out |= {f"{place}.{name}": value for name, value in module.state_dict().items()}
    for name in [name for name in out if name.endswith("logit_scale")]:
        out[name.replace("logit_scale", "relative_coords_table")] = torch.zeros(1, 7, 7, 2)
    for name in [name for name in out if name.endswith("bias_table")]:
        out[name.replace("bias_table", "index")] = torch.zeros(16, 16, dtype=torch.long)
    out["backbone.stages.0.blocks.1.attn.attn_mask"] = torch.zeros(16, 16, 16)
    return out


EXTRA_NORMS = replace(UNIFORM_V2, extra_norm_period=2)


@pytest.mark.parametrize("config", [UNIFORM, UNIFORM_V2, EXTRA_NORMS], ids=["v1", "v2", "huge"])
@pytest.mark.parametrize("final", ["norm2", "norm"])
@pytest.mark.parametrize("kind", MODELS)
def test_mmpretrain(kind, final, config):
    reference = stretched(build(config, kind))
    encoder = reference if kind == "Swin" else reference.encoder
    merging = [stretched(UnfoldMerging(dim, config.version)) for dim in (16, 32)]
    file = mmpretrain_file(reference, kind, merging, final, config.version)
    for stage, module in enumerate(merging):
        encoder.layers[stage + 1].downsample = module
    ours, keys = as_read(file, "mmpretrain")
    assert len(keys.left) == sum(UNIFORM.depths) + 1
    assert_describes(shapes_of(ours), config, CLASSES if kind == "SwinClassifier" else 0, kind == "SimMIM")
    model, x, mask = load(config, kind, ours), images(config), a_mask(config, kind)
    torch.testing.assert_close(outputs(model, kind, x, mask), outputs(reference, kind, x, mask), atol=1e-5, rtol=0)


def test_mmpretrain_is_only_read():
    with pytest.raises(UserError, match="read, not written: choose timm"):
        written(build(UNIFORM, "Swin"), "mmpretrain", "Swin")
    assert "read, not written" in reason(UNIFORM, "mmpretrain")


# Our own files.


@pytest.mark.parametrize("config", [UNIFORM, EXTRA_NORMS], ids=["v1", "v2"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_training_checkpoint_is_read_and_written(kind, config):
    model = stretched(build(config, kind))
    plain = "timm" if config.version == 1 else "swin_mim"  # timm has no extra norms
    ours, _ = as_read(model.state_dict(), plain if kind == "Swin" else "checkpoint")
    assert_same_tensors(ours, flat(model))
    assert_same_tensors(written(model, "checkpoint", kind), model.state_dict())


@pytest.mark.parametrize(("kind", "format"), [("SimMIM", "swin_mim"), ("Swin", "timm"), ("SwinClassifier", "timm")])
@pytest.mark.parametrize("config", [PINNED, PINNED_V2])
def test_a_published_model_is_read_and_written(kind, format, config):
    model = stretched(build(config, kind))
    ours, _ = as_read(flat(model), format)
    assert_same_tensors(ours, flat(model))
    assert_same_tensors(written(model, "swin_mim", kind), flat(model))


@pytest.mark.parametrize("format", ["swin_mim", "timm", "checkpoint", "microsoft", "torchvision", "transformers"])
@pytest.mark.parametrize("kind", MODELS)
@BOTH
def test_every_format_comes_back_bit_for_bit(kind, format, config):
    model = stretched(build(config, kind)).half()
    state = flat(model)
    file = written(model, format, kind)
    back = formats.to_ours(file, formats.key_map(file, None if format == "checkpoint" else format))
    dropped = formats.left_out(format, state)
    assert set(dropped) == ({"mask_token", "decoder.0.weight", "decoder.0.bias"} & set(state) - set(back))
    assert_same_tensors(back, {name: tensor for name, tensor in state.items() if name not in dropped})


@pytest.mark.parametrize("format", ["timm", "microsoft", "torchvision", "transformers"])
@BOTH
def test_what_is_written_shares_no_memory(format, config, tmp_path):
    save_file(written(build(config, "SimMIM"), format, "SimMIM"), tmp_path / "model.safetensors")


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
    st.sampled_from([1, 2]),
)
def test_any_depths_and_heads_survive_the_way_there_and_back(stages, format, kind, qkv_bias, version):
    depths, heads = zip(*stages, strict=True)
    heads = [2**count for count in heads]
    config = SwinConfig(2 ** (len(depths) + 3), 4, 3, 16, depths, heads, 2, 1.5, qkv_bias, version=version)
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
    "swinv2_cr_tiny_224": "timm's swinv2_cr, whose position bias is another network",
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
            (transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=1)), "a Vision Transformer"),
            (transformers.SwinModel(transformers.SwinConfig(**small, use_absolute_embeddings=True)), "absolute posit"),
            (transformers.SwinModel(transformers.SwinConfig(**small)), r"write the file with model\.save_pretrained"),
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
