"""A Swin is found in a file wherever a training script kept it, and nothing is taken for it that is none."""

import logging
import re
import time

import pytest
import torch
from safetensors.torch import save_file

from swin_mim import SimMIM, Swin, SwinClassifier
from swin_mim.errors import UserError
from swin_mim.weights import formats
from swin_mim.weights.pickled_file import load_pickled
from swin_mim.weights.prefixes import Selection, networks, select
from tests.libraries import UNIFORM, build, flat, stretched, timm_model, torchvision_model, written
from tests.weights.test_formats import UnfoldMerging, mmpretrain_file


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def without_head(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("head")}


def mmpretrain(kind):
    return mmpretrain_file(build(UNIFORM, kind), kind, [UnfoldMerging(dim) for dim in (16, 32)])


FAMILIES = {
    "timm": lambda: timm_model(UNIFORM, 3).state_dict(),
    "timm without a head": lambda: timm_model(UNIFORM).state_dict(),
    "microsoft": lambda: written(build(UNIFORM, "SwinClassifier"), "microsoft", "SwinClassifier"),
    "microsoft SimMIM": lambda: written(build(UNIFORM, "SimMIM"), "microsoft", "SimMIM"),
    "torchvision": lambda: torchvision_model(UNIFORM).state_dict(),
    "transformers SimMIM": lambda: written(build(UNIFORM, "SimMIM"), "transformers", "SimMIM"),
    "transformers encoder": lambda: written(build(UNIFORM, "Swin"), "transformers", "Swin"),
    "mmpretrain": lambda: mmpretrain("SwinClassifier"),
    "mmpretrain SimMIM": lambda: mmpretrain("SimMIM"),
    "ours": lambda: flat(build(UNIFORM, "SimMIM")),
    "our checkpoint": lambda: build(UNIFORM, "SimMIM").state_dict(),
}
"""Files as those who wrote them have them, "swin.", "encoder." and "backbone." of their own included."""
PREFIXES = ["model.", "net.", "backbone.", "encoder.", "student.backbone.", "a.b.c.", "module.encoder_q.", "_orig_mod."]


@pytest.fixture(scope="module")
def files():
    torch.manual_seed(0)
    return {family: make() for family, make in FAMILIES.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_taken_off_the_names_of_a_library(files, family):
    state = files[family]
    assert select(state) == Selection(dict(zip(state, state, strict=True)))
    assert select(state).lines() == []


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_of_all_keys_is_taken_off_and_said(files, family, prefix):
    state = files[family]
    found = select(under(prefix, state))
    assert found == Selection({name: prefix + name for name in state}, prefix)
    assert found.lines() == [f"prefix {prefix} taken off {len(state)} keys"]
    assert formats.key_map(found.names).format == formats.key_map(state).format


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_what_stands_beside_a_network_is_left_and_named(files, prefix):
    spare = ("fc.weight", "queue", "optimizer.0.exp_avg", "n_averaged")
    for state in (under("encoder.", files["timm without a head"]), files["microsoft SimMIM"], files["mmpretrain"]):
        found = select([*under(prefix, state), *spare])
        assert set(found.names.values()) == set(under(prefix, state))
        assert found.left == spare
        assert found.lines()[-1].startswith("left, as no part of the network: 4 keys (fc.weight, queue, ")


HEADS = ["head.fc.0.weight", "head.weight", "head.mlp.0.weight", "head_dist.weight", "head_dense.last_layer.weight_g"]


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_nobody_knows_is_left(files, head):
    state = dict.fromkeys([*files["timm without a head"], head])
    for prefix in ("", "model."):
        found = select(under(prefix, state))
        assert set(found.names) == set(files["timm without a head"])
        assert found.left == (prefix + head,)


@pytest.mark.parametrize(
    "name", ["layers.0.blocks.0.adapter.weight", "conv_stem.weight", "norm.scale", "layers_up.0.weight"]
)
def test_what_stands_within_an_encoder_and_is_unknown_is_refused(files, name):
    for prefix in ("", "model.", "module."):
        found = select(under(prefix, dict.fromkeys([*files["timm"], name])))
        with pytest.raises(UserError, match=f"1 unknown key \\({re.escape(name)}\\)"):
            formats.key_map(found.names)


def test_a_prefix_of_some_keys_only_is_refused(files):
    names = [name if number % 2 else f"model.{name}" for number, name in enumerate(files["timm"])]
    with pytest.raises(UserError, match="unknown keys"):
        formats.key_map(select(names).names)


def test_wrappers_are_taken_off_wherever_they_are(files):
    state = files["microsoft SimMIM"]
    wrapped = {
        f"_fsdp_wrapped_module.{name.replace('.blocks.0.', '.blocks.0._checkpoint_wrapped_module._orig_mod.')}"
        for name in state
    }
    found = select(wrapped)
    assert set(found.names) == set(state)
    assert (set(found.names.values()), found.left) == (wrapped, ())
    whole = select([*under("module._orig_mod.", files["timm"]), "n_averaged"])
    assert (whole.prefix, whole.left) == ("module._orig_mod.", ("n_averaged",))


@pytest.mark.parametrize(
    "two", [("model.", "model_ema."), ("student.", "teacher.backbone."), ("module.encoder_q.", "k."), ("", "ema.")]
)
def test_of_two_networks_both_are_named_and_one_can_be_chosen(files, two):
    state = files["timm"]
    names = [*under(two[0], state), *under(two[1], state)]
    with pytest.raises(UserError) as caught:
        select(names, where="my file.pth")
    message = str(caught.value)
    assert message.startswith(f"holds 2 networks, under {two[0] or 'no prefix'}, {two[1]}: ")
    assert "swin-mim convert 'my file.pth' FOLDER --to swin_mim --prefix " in message
    for prefix, other in (two, two[::-1]):
        if prefix:
            for wanted in (prefix, prefix.rstrip("."), prefix.removeprefix("module.")):
                assert select(names, wanted) == Selection(
                    {name: prefix + name for name in state}, prefix, tuple(other + name for name in state)
                )


def test_a_prefix_that_leads_nowhere_is_refused_with_those_that_do(files):
    with pytest.raises(UserError, match=r"no Swin under the prefix teacher: found under student\.$"):
        select(under("student.", files["timm"]), "teacher")
    with pytest.raises(UserError, match="no Swin under the prefix teacher: none is in it"):
        select(["a", "b"], "teacher")


def test_another_network_beside_a_swin_is_no_candidate(files):
    vit = ["vit.cls_token", "vit.patch_embed.proj.weight", "vit.blocks.0.norm1.weight"]
    assert list(networks([*under("swin.", files["timm"]), *vit])) == ["swin."]
    with pytest.raises(UserError, match="Vision Transformer"):
        formats.key_map(select(under("model.", dict.fromkeys(vit))).names)


@pytest.mark.parametrize(
    "make", [lambda i: f"n{i}.patch_embed.proj.weight", lambda i: f"n{i}.layers.0.blocks.0.norm1.weight"]
)
def test_a_hundred_thousand_names_cost_little(make):
    names = [make(i) for i in range(50_000)] + [f"n{i}.layers.0.blocks.0.norm1.weight" for i in range(50_000)]
    start = time.perf_counter()
    with pytest.raises(UserError):
        formats.key_map(select(set(names)).names)
    assert time.perf_counter() - start < 10


# Backbones of detectors and segmenters, which have an output norm for each stage.


def with_output_norms(state, norm, place):
    """The final norm as that of the last stage, with others before it."""
    out = {re.sub(rf"^{re.escape(norm)}\.", f"{place.format(2)}.", name): tensor for name, tensor in state.items()}
    return out | {f"{place.format(i)}.{part}": torch.ones(16 << i) for i in range(2) for part in ("weight", "bias")}


def test_backbones_of_segmenters_are_read(tmp_path):
    model = stretched(build(UNIFORM, "Swin"))
    microsoft = with_output_norms(written(model, "microsoft", "Swin"), "norm", "norm{}")
    theirs = written(model, "transformers", "Swin")
    stages = {f"hidden_states_norms.stage{i + 1}": f"s{i}" for i in range(3)}
    transformers = with_output_norms(theirs, "layernorm", "s{}")
    for name, short in stages.items():
        transformers = {
            key.replace(f"{short}.", f"{name}.") if key.startswith(short) else key: value
            for key, value in transformers.items()
        }
    for state in (microsoft, transformers):
        for prefix in ("backbone.", ""):
            file = under(prefix, state) | {"decode_head.conv_seg.weight": torch.ones(2, 2)}
            save_file(file, tmp_path / "w.safetensors")
            loaded = Swin.from_pretrained(tmp_path / "w.safetensors", image_size=64)
            assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_backbone_of_mmpretrain_without_its_prefix_is_read():
    file = mmpretrain("Swin")
    bare = {name.removeprefix("backbone."): tensor for name, tensor in file.items()}
    assert formats.key_map(select(bare).names).format == "mmpretrain"
    assert select(under("backbone.", bare)).prefix == ""


def test_features_only_of_timm_is_told():
    import timm

    with torch.device("meta"):
        state = timm.create_model("swin_tiny_patch4_window7_224", features_only=True).state_dict()
    with pytest.raises(UserError, match="features_only model, which has no final norm"):
        formats.key_map(select(under("model.", state)).names)


# Files.


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    return stretched(timm_model(UNIFORM))


def changed(state):
    return {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


CHECKPOINTS = {
    "Lightning": lambda state: {
        "state_dict": under("model.", state),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
    },
    "a dict in a dict": lambda state: {"model": {"state_dict": under("module.", state)}, "epoch": 3},
    "DeepSpeed": lambda state: {"module": state, "optimizer": {"state": {}}},
    "a teacher alone": lambda state: {
        "teacher": under("module.backbone.", state),
        "dino_loss": {"center": torch.ones(1)},
    },
    "half precision": lambda state: under("net.", {name: tensor.half() for name, tensor in state.items()}),
    "an average": lambda state: under("module.", state) | {"n_averaged": torch.tensor(7)},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_training_scripts_are_read(encoder, kind, tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save(CHECKPOINTS[kind](encoder.state_dict()), path)
    loaded = Swin.from_pretrained(path, pickles=True, image_size=64)
    x = torch.randn(1, 3, 64, 64)
    tolerance = 0.05 if kind == "half precision" else 1e-5
    torch.testing.assert_close(loaded(x), encoder.forward_features(x), atol=tolerance, rtol=0)


@pytest.mark.parametrize("other", ["teacher", "model_ema", "state_dict_ema"])
def test_of_two_dicts_both_are_named_and_one_can_be_chosen(encoder, other, tmp_path):
    state, path = encoder.state_dict(), tmp_path / "checkpoint.pth"
    first = {"teacher": "student", "model_ema": "model", "state_dict_ema": "state_dict"}[other]
    torch.save({first: under("module.backbone.", state), other: under("backbone.", changed(state)), "epoch": 1}, path)
    for load in (load_pickled, lambda path: Swin.from_pretrained(path, pickles=True)):
        with pytest.raises(UserError) as caught:
            load(path)
        assert f"{path}: holds 2 networks, under {first}.module.backbone., {other}.backbone.: " in str(caught.value)
        assert f"swin-mim convert {path} FOLDER --to swin_mim --prefix {first}.module.backbone." in str(caught.value)
    for wanted in (first + ".", f"{first}.module.backbone.", f"{first}.backbone", f"{other}.backbone.", other + "."):
        tensors, _, selection = load_pickled(path, wanted)
        expected = state if wanted.startswith(first + ".") else changed(state)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
        assert selection.prefix in (f"{first}.module.backbone.", f"{other}.backbone.")


def test_a_key_may_be_given_where_it_is_the_only_one(encoder, tmp_path):
    torch.save({"model": under("net.", encoder.state_dict())}, tmp_path / "w.pth")
    for wanted in ("model", "model.net.", "net", ""):
        assert len(load_pickled(tmp_path / "w.pth", wanted).tensors) == len(encoder.state_dict())
    with pytest.raises(UserError, match="no Swin under the prefix other: found under net"):
        load_pickled(tmp_path / "w.pth", "other")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_was_taken_off_and_left_is_logged(encoder, suffix, tmp_path, caplog):
    state = under("model.", encoder.state_dict()) | {"projector.0.weight": torch.ones(2, 2)}
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    with caplog.at_level(logging.INFO, "swin_mim"):
        SwinClassifier.from_pretrained(path, num_classes=2, image_size=64, pickles=True)
    said = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert (logging.INFO, f"{path}: prefix model. taken off {len(state) - 1} keys") in said
    left = f"{path}: left, as no part of the network: 1 key (projector.0.weight)"
    assert (logging.WARNING, left) in said


def test_what_we_saved_stays_whole(tmp_path):
    """In a model of ours nothing is looked for and nothing left: what does not belong there is damage."""
    model = stretched(build(UNIFORM, "SimMIM"))
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    state = dict(flat(model.encoder))
    for broken, message in (
        (under("model.", state), "unknown key"),
        (state | {"head.fc.0.weight": torch.ones(2, 2)}, r"unknown key \(head.fc.0.weight\)"),
    ):
        save_file(broken, path)
        with pytest.raises(UserError, match=message):
            SimMIM.from_pretrained(tmp_path / "model")


def test_a_simmim_under_a_prefix_keeps_its_decoder_and_mask_token(tmp_path):
    model = stretched(build(UNIFORM, "SimMIM"))
    for name, state in (
        ("ours", model.state_dict()),
        ("microsoft", written(model, "microsoft", "SimMIM")),
        ("transformers", written(model, "transformers", "SimMIM")),
    ):
        torch.save({"state_dict": under("model.", state)}, tmp_path / f"{name}.ckpt")
        loaded = SimMIM.from_pretrained(tmp_path / f"{name}.ckpt", pickles=True, image_size=64)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items()), name


def test_one_key_is_counted_in_the_singular() -> None:
    assert Selection({"a": "model.a"}, "model.").lines() == ["prefix model. taken off 1 key"]
