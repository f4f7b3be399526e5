"""Saving and loading our own models: round trips, one kind from another, and all that must be refused."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from swin_mim import SimMIM, Swin, SwinClassifier, SwinConfig
from swin_mim.errors import UserError
from swin_mim.hub.about import About, Picture
from swin_mim.hub.saved import replacing, write_transformers
from swin_mim.weights.config_json import Preprocessing
from swin_mim.weights.network import expected_shapes

CONFIG = SwinConfig(64, embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=4)
OTHERS = [
    SwinConfig(32, embed_dim=8, depths=(1,), num_heads=(2,), window_size=8),
    SwinConfig((64, 96), embed_dim=8, depths=(2, 1), num_heads=(1, 2), window_size=(4, 6), qkv_bias=False),
    SwinConfig(
        48, patch_size=2, in_channels=5, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=6, mlp_ratio=2
    ),
    SwinConfig(
        (32, 48), embed_dim=8, depths=(2, 1), num_heads=(1, 2), window_size=(4, 6), version=2,
        pretrained_window_sizes=(8, (6, 0)), extra_norm_period=2,
    ),
]  # fmt: skip
PREPROCESSING = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), ("red", "green", "blue"))
LABELS = ("cat", "dog", "ünïcode | <b>", "", "cat")


def randomised(model):
    """Weights of a trained model's size, all different."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model.eval()


def models(config=CONFIG):
    classifier = randomised(SwinClassifier(config, num_classes=len(LABELS)))
    classifier.labels = LABELS
    return [randomised(Swin(config)), randomised(SimMIM(config, target="normalized")), classifier]


def outputs(model, images=None):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) if images is None else images
    with torch.no_grad():
        return model._outputs(images)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(outputs(a), outputs(b), strict=True))


def error_of(function, *arguments, **keywords):
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def simmim(tmp_path_factory):
    torch.manual_seed(3)
    return randomised(SimMIM(CONFIG)).save_pretrained(tmp_path_factory.mktemp("simmim") / "model")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.manual_seed(4)
    model = randomised(SwinClassifier(CONFIG, num_classes=len(LABELS)))
    model.labels = LABELS
    return model.save_pretrained(tmp_path_factory.mktemp("classifier") / "model")


def copy_of(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edited(folder, tmp_path, change):
    """A copy of a model whose config.json `change` has edited."""
    copy = copy_of(folder, tmp_path)
    document = json.loads((copy / "config.json").read_text())
    change(document)
    (copy / "config.json").write_text(json.dumps(document))
    return copy


@pytest.mark.parametrize("index", range(3))
def test_a_saved_model_comes_back_bit_for_bit(index, tmp_path):
    model = models()[index]
    model.preprocessing = PREPROCESSING
    folder = model.save_pretrained(tmp_path / "new" / "model")
    loaded = type(model).from_pretrained(str(folder))
    assert same(model, loaded)
    assert loaded.description() == model.description()
    assert (loaded.preprocessing, loaded.labels) == (PREPROCESSING, model.labels)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("config", OTHERS)
def test_any_geometry_comes_back(config, tmp_path):
    plain = Preprocessing() if config.in_channels == 3 else Preprocessing.unknown(config.in_channels)
    for model in models(config):
        model.preprocessing = plain
        folder = model.save_pretrained(tmp_path / model.kind)
        assert type(model).from_pretrained(folder).description() == model.description()


@pytest.mark.parametrize("config", [CONFIG, *OTHERS])
def test_expected_shapes_are_those_of_the_models(config):
    """The check before loading is written out; here it meets the models themselves."""
    for model in models(config):
        shapes = {model._our_name(key): tuple(value.shape) for key, value in model.state_dict().items()}
        classes = len(LABELS) if model.kind == "SwinClassifier" else 0
        assert dict(expected_shapes(config, model.kind, classes)) == shapes


def test_files_are_those_of_the_layout(simmim, classifier):
    assert {path.name for path in simmim.iterdir()} == {
        "README.md", "config.json", "mim_head.safetensors", "model.safetensors",
    }  # fmt: skip
    assert {path.name for path in classifier.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert set(load_file(simmim / "mim_head.safetensors")) == {"mask_token", "decoder.0.weight", "decoder.0.bias"}
    assert set(load_file(simmim / "model.safetensors")) == set(Swin(CONFIG).state_dict())
    assert set(load_file(classifier / "model.safetensors")) == {
        *Swin(CONFIG).state_dict(),
        "head.fc.weight",
        "head.fc.bias",
    }


def test_a_pretrained_model_becomes_an_encoder_or_a_classifier(simmim, caplog):
    whole = SimMIM.from_pretrained(simmim)
    with caplog.at_level(logging.INFO, "swin_mim"):
        encoder = Swin.from_pretrained(simmim)
        assert "has no use for decoder.0.bias, decoder.0.weight, mask_token" in caplog.text
        assert same(encoder, whole.encoder)
        caplog.clear()
        new = SwinClassifier.from_pretrained(simmim, num_classes=7)
    assert same(new.encoder, whole.encoder)
    said = [record.getMessage() for record in caplog.records]  # that its decoder goes with it needs no second line
    assert said == [f"{simmim}: head.fc.weight, head.fc.bias new, drawn at random: train before use"]
    assert new.head["fc"].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (new.head["fc"].bias == 0).all()
    complaint = error_of(SwinClassifier.from_pretrained, simmim)
    assert "has no head.fc.weight, head.fc.bias: it is no classifier yet" in complaint
    assert "num_classes=N draws a new head" in complaint


def test_a_classifier_keeps_its_head_or_gets_the_new_one_that_was_asked_for(classifier, caplog):
    loaded = SwinClassifier.from_pretrained(classifier)
    assert loaded.labels == LABELS
    assert same(loaded, SwinClassifier.from_pretrained(classifier, num_classes=len(LABELS)))
    assert not caplog.records
    other = SwinClassifier.from_pretrained(classifier, num_classes=3)
    assert other.head["fc"].out_features == 3
    assert other.labels is None
    assert "drawn at random" in caplog.text
    assert "has no mask_token" in error_of(SimMIM.from_pretrained, classifier)
    caplog.clear()
    continued = SimMIM.from_pretrained(classifier, new_decoder=True, target="normalized")
    assert same(continued.encoder, loaded.encoder)
    assert continued.target == "normalized"
    assert "mask_token, decoder.0.weight, decoder.0.bias new" in caplog.text


def test_a_model_knows_whether_its_weights_are_of_a_simmim(simmim, classifier, tmp_path):
    assert SimMIM.from_pretrained(simmim).from_simmim
    assert Swin.from_pretrained(simmim).from_simmim
    tuned = SwinClassifier.from_pretrained(simmim, num_classes=3)
    assert tuned.from_simmim
    assert SimMIM.from_pretrained(simmim, new_decoder=True, image_size=96).from_simmim
    for cls in (Swin, SwinClassifier):
        assert not cls.from_pretrained(classifier).from_simmim
        assert not cls.from_pretrained(tuned.save_pretrained(tmp_path / "tuned")).from_simmim
    assert not SimMIM.from_pretrained(classifier, new_decoder=True).from_simmim
    assert not Swin.from_pretrained(Swin(CONFIG).save_pretrained(tmp_path / "encoder")).from_simmim
    assert SimMIM.from_pretrained(simmim).from_simmim
    assert not any(model.from_simmim for model in models()), "new ones, whatever was loaded before"


def test_another_geometry_on_demand(simmim, caplog):
    with caplog.at_level(logging.INFO, "swin_mim"):
        model = SwinClassifier.from_pretrained(
            simmim, num_classes=2, image_size=96, window_size=6, channels=["green", "nir", "red", "blue"]
        )
    assert model.encoder.config == replace(CONFIG, image_size=96, window_size=6, in_channels=4)
    assert model(torch.randn(1, 4, 96, 96)).shape == (1, 2)
    assert model.preprocessing.channels == ("green", "nir", "red", "blue")
    assert model.preprocessing.mean[0] == 0.456
    assert model.preprocessing.mean[1] == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    assert "stage 0" in caplog.text
    assert "nir" in caplog.text
    before, after = load_file(simmim / "model.safetensors"), model.encoder.state_dict()
    for key, value in before.items():
        if "bias_table" not in key and key != "patch_embed.proj.weight":
            assert torch.equal(after[key], value), key


def test_the_network_that_is_wanted(simmim):
    wanted = replace(CONFIG, image_size=(64, 128), drop_path_rate=0.2)
    model = SimMIM.from_pretrained(simmim, config=wanted)
    assert model.encoder.config == wanted
    message = error_of(Swin.from_pretrained, simmim, config=replace(CONFIG, embed_dim=32))
    assert "has embed_dim 16 and the model wanted 32" in message


def test_a_run_a_checkpoint_and_a_single_file_load(simmim, tmp_path):
    model = SimMIM.from_pretrained(simmim)
    run = tmp_path / "run"
    shutil.copytree(simmim, run / "export")
    assert same(SimMIM.from_pretrained(run), model)
    checkpoint = run / "checkpoints" / "step_0000000010"
    checkpoint.mkdir(parents=True)
    save_file(model.state_dict(), checkpoint / "model.safetensors")
    shutil.copy(simmim / "config.json", checkpoint)
    assert same(SimMIM.from_pretrained(checkpoint), model)
    assert same(Swin.from_pretrained(checkpoint / "model.safetensors", image_size=64), model.encoder)
    shutil.rmtree(run / "export")
    assert f"has no export yet: continue it, or name a checkpoint such as {checkpoint}" in error_of(
        SimMIM.from_pretrained, run
    )


def test_half_precision_files_are_read_as_float32(simmim, tmp_path):
    copy = copy_of(simmim, tmp_path)
    state = {key: value.bfloat16() for key, value in load_file(copy / "model.safetensors").items()}
    save_file(state, copy / "model.safetensors")
    model = Swin.from_pretrained(copy)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.norm.weight, state["norm.weight"].float())


def test_saving_replaces_only_what_is_ours(simmim, tmp_path):
    model = SimMIM.from_pretrained(simmim)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert "holds thesis.tex, which is no part" in error_of(model.save_pretrained, tmp_path / "mine")
    assert "is a file" in error_of(model.save_pretrained, tmp_path / "mine" / "thesis.tex")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    folder = model.save_pretrained(tmp_path / "model")
    model.encoder.save_pretrained(folder)
    assert not (folder / "mim_head.safetensors").exists()
    for name in ("trainer.json", "notes.txt", ".git/config", "transformers/notes.txt", "mine.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
        assert f"holds {name}, which is no part" in error_of(model.save_pretrained, folder)
        (folder / name).unlink()


def test_a_save_that_fails_leaves_what_was_there(simmim, tmp_path):
    folder = copy_of(simmim, tmp_path)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    model = SimMIM.from_pretrained(folder)
    with torch.no_grad():
        model.encoder.norm.weight[3] = float("nan")
    assert "norm.weight" in error_of(model.save_pretrained, folder)
    missing = Picture(tmp_path / "no.png", "card_no.png", "no")
    with torch.no_grad():
        model.encoder.norm.weight[3] = 1.0
    assert "No such file" in error_of(model.save_pretrained, folder, about=About(pictures=(missing,)))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_folder_that_cannot_get_its_name_keeps_the_old_one(simmim, tmp_path, monkeypatch):
    folder = copy_of(simmim, tmp_path)
    rename = Path.rename

    def fails(path, target):
        if ".staging." in path.name:
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(UserError, match="could not be written: no"), replacing(folder) as staging:
        (staging / "x").touch()
    assert (folder / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_what_a_model_cannot_say_of_itself_is_refused(tmp_path):
    model = SwinClassifier(CONFIG, 3)
    model.labels = ("a", "b")
    assert "labels has 2 names and the head 3" in error_of(model.save_pretrained, tmp_path / "a")
    model = Swin(OTHERS[2])
    assert "preprocessing.mean has 3 values and the model 5" in error_of(model.save_pretrained, tmp_path / "b")
    assert "at least 1" in error_of(SwinClassifier, CONFIG, 0)
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_nothing(tmp_path):
    assert "does not exist" in error_of(Swin.from_pretrained, tmp_path / "a" / "b")
    (tmp_path / "empty").mkdir()
    assert "holds no model.safetensors" in error_of(Swin.from_pretrained, tmp_path / "empty")
    torch.save({}, tmp_path / "x.pth")
    assert "swin-mim convert" in error_of(Swin.from_pretrained, tmp_path / "x.pth")


def test_lists_are_as_good_as_tuples(tmp_path):
    model = SwinClassifier(replace(CONFIG, image_size=[64, 128]), 2)
    model.labels = ["cat", "dog"]
    model.preprocessing = Preprocessing([0.5] * 3, [0.5] * 3, ["r", "g", "b"])
    loaded = SwinClassifier.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert loaded.labels == ("cat", "dog")
    assert loaded.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, ("r", "g", "b"))
    assert loaded.encoder.config.image_size == (64, 128)


def test_arguments_that_mean_nothing_are_refused(simmim):
    load = Swin.from_pretrained
    assert "bias_tables is 'geometrc'" in error_of(load, simmim, window_size=2, bias_tables="geometrc")
    assert "channels is 'nir'" in error_of(load, simmim, channels="nir")
    assert "attention is 'flash'" in error_of(Swin(CONFIG, attention="flash"), torch.randn(1, 3, 64, 64))
    assert "must be positive" in error_of(Preprocessing, std=(0.5, 0.0, 0.5))
    assert "give one per channel" in error_of(Preprocessing, channels=("a", "b"))
    assert "target is 'pixel'" in error_of(SimMIM, CONFIG, target="pixel")
    assert "image_size is 64.0" in error_of(Swin.from_pretrained, simmim, image_size=64.0)
    picture = Picture(Path("photo.jpg"), "photo.jpg", "")
    assert "named photo.jpg" in error_of(SimMIM(CONFIG).save_pretrained, "x", about=About(pictures=(picture,)))
    images = torch.randn(1, 3, 64, 64)
    for mask in (torch.zeros(1, 8, 8, dtype=torch.bool), torch.zeros(1, 16, 16)):
        assert "mask must be bool (1, 16, 16), not" in error_of(SimMIM(CONFIG), images, mask)


def test_what_is_dropped_or_not_told_is_a_warning(simmim, tmp_path, caplog):
    SimMIM.from_pretrained(simmim, channels=["red", "grene", "blue"])
    assert "green dropped" in caplog.text
    caplog.clear()
    assert same(SimMIM.from_pretrained(simmim / "model.safetensors"), SimMIM.from_pretrained(simmim))
    assert not caplog.text
    Swin.from_pretrained(shutil.copy(simmim / "model.safetensors", tmp_path / "bare.safetensors"))
    assert "does not tell its image size" in caplog.text


def transformers_folder(folder, model, **settings):
    description = model.description()
    folder.mkdir()
    write_transformers(folder, description, model._tensors())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


UNIFORM = replace(CONFIG, window_size=2)


def test_settings_of_others_that_change_the_function_are_refused(tmp_path):
    model = randomised(Swin(UNIFORM))
    folder = transformers_folder(tmp_path / "plain", model)
    assert same(Swin.from_pretrained(folder), model)
    for key, value in {"hidden_act": "relu", "layer_norm_eps": 1e-3, "use_absolute_embeddings": True}.items():
        folder = transformers_folder(tmp_path / key, model, **{key: value})
        assert f"{key} is {value!r}, and swin_mim has" in error_of(Swin.from_pretrained, folder)
    timm = tmp_path / "timm"
    timm.mkdir()
    save_file(model.state_dict(), timm / "model.safetensors")
    arguments = {"img_size": 64, "window_size": 2}
    for extra in ({}, {"act_layer": "relu"}):
        document = {"architecture": "swin", "num_classes": 0, "model_args": arguments | extra}
        (timm / "config.json").write_text(json.dumps(document))
        if extra:
            assert "model_args has act_layer" in error_of(Swin.from_pretrained, timm)
        else:
            assert Swin.from_pretrained(timm).config == UNIFORM


def test_normalisation_and_labels_of_transformers_are_kept_and_checked(tmp_path):
    model = randomised(SwinClassifier(UNIFORM, 3))
    model.labels, model.preprocessing = ("a", "b", "c"), PREPROCESSING
    loaded = SwinClassifier.from_pretrained(transformers_folder(tmp_path / "good", model))
    assert (loaded.labels, loaded.preprocessing) == (model.labels, PREPROCESSING)
    folder = transformers_folder(tmp_path / "labels", model, id2label={"0": "a"})
    assert "there is 1 name of a class and 3 outputs of the head" in error_of(SwinClassifier.from_pretrained, folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [1, 2, 3]}')
    assert "mean has 1 value and std 3, for 3 channels" in error_of(SwinClassifier.from_pretrained, folder)


def test_a_mask_token_without_a_decoder_is_kept_for_who_wants_it(simmim, tmp_path):
    state = load_file(simmim / "model.safetensors") | {"mask_token": torch.randn(1, 1, 16)}
    save_file(state, tmp_path / "encoder.safetensors")
    encoder = Swin.from_pretrained(tmp_path / "encoder.safetensors", image_size=64)
    model = SimMIM.from_pretrained(tmp_path / "encoder.safetensors", image_size=64, new_decoder=True)
    assert torch.equal(model.mask_token, state["mask_token"])
    assert same(model.encoder, encoder)


HUGE = 10**30
SPOILED = [
    (lambda d: d["swin_mim"]["config"].update(depths=[2, 2, 10**9, 1]), "no network has more"),
    (lambda d: d["swin_mim"]["config"].update(depths=[1000, 2, 1, 1]), "model_args.depths"),
    (lambda d: (d["swin_mim"]["config"].update(depths=[900, 2, 1, 1]), d["model_args"].update(depths=[900, 2, 1, 1])),
     "are 904 blocks, more than the 96"),
    (lambda d: d["swin_mim"]["config"].update(embed_dim=HUGE), "no network has more"),
    (lambda d: d["swin_mim"]["config"].update(embed_dim="16"), "expected a positive whole number"),
    (lambda d: d["swin_mim"]["config"].update(embed_dim=True), "expected a positive whole number"),
    (lambda d: d["swin_mim"]["config"].update(embed_dim=16.0), "expected a positive whole number"),
    (lambda d: d["swin_mim"]["config"].update(embed_dim=-16), "expected a positive whole number"),
    (lambda d: d["swin_mim"]["config"].update(image_size=HUGE), "no network has more"),
    (lambda d: d["swin_mim"]["config"].update(image_size=[64, 64, 64]), "a list of two"),
    (lambda d: d["swin_mim"]["config"].update(image_size=[[64], 64]), "a list of two"),
    (lambda d: d["swin_mim"]["config"].update(image_size=63), "63"),
    (lambda d: d["swin_mim"]["config"].update(window_size=0), "expected a positive whole number"),
    (lambda d: d["swin_mim"]["config"].update(patch_size=10**6), "no network has more"),
    (lambda d: d["swin_mim"]["config"].update(depths="2211"), "expected a list"),
    (lambda d: d["swin_mim"]["config"].update(depths=[1] * 40), "expected a list of 1 to 16"),
    (lambda d: d["swin_mim"]["config"].update(num_heads=[1, 2, 4, 0]), "expected a list"),
    (lambda d: d["swin_mim"]["config"].update(num_heads=[3, 2, 4, 8]), "heads do not divide"),
    (lambda d: d["swin_mim"]["config"].update(num_heads=[1, 2]), "must name the same stages"),
    (lambda d: d["swin_mim"]["config"].update(mlp_ratio=1e9), "no network has more"),
    (lambda d: d["swin_mim"]["config"].update(mlp_ratio=10**400), "expected a number"),
    (lambda d: d["swin_mim"].update(model="x" * 100_000), "expected one of"),
    (lambda d: d["swin_mim"]["config"].update({"x" * 100_000: 1}), "is unknown"),
    (lambda d: d["pretrained_cfg"].update(mean=[10**400] * 3), "expected 3 numbers"),
    (lambda d: d["swin_mim"]["config"].update(mlp_ratio=float("nan")), "expected a number"),
    (lambda d: d["swin_mim"]["config"].update(drop_path_rate=float("inf")), "expected a number"),
    (lambda d: d["swin_mim"]["config"].update(drop_path_rate=1), "less than 1"),
    (lambda d: d["swin_mim"]["config"].update(qkv_bias=1), "expected true or false"),
    (lambda d: d["swin_mim"]["config"].pop("qkv_bias"), "qkv_bias is missing"),
    (lambda d: d["swin_mim"]["config"].update(attn_drop=0), "attn_drop is unknown"),
    (lambda d: d["swin_mim"].update(config=[]), "expected an object"),
    (lambda d: d["swin_mim"].update(format=2), "upgrade swin_mim"),
    (lambda d: d["swin_mim"].update(model="ViT"), "expected one of"),
    (lambda d: d["swin_mim"].update(model=["SimMIM"]), "expected one of"),
    (lambda d: d["swin_mim"].update(target="tokens"), "expected one of"),
    (lambda d: d["swin_mim"].update(model="Swin"), "too many for the Swin"),
    (lambda d: d["swin_mim"].update(channels=["red"]), "expected 3 names"),
    (lambda d: d["swin_mim"].update(channels=3), "expected 3 names"),
    (lambda d: d.update(swin_mim=None), "expected an object"),
    (lambda d: d.update(num_classes=5), "num_classes is 5"),
    (lambda d: d.update(num_classes="0"), "num_classes is '0'"),
    (lambda d: d.update(architecture="resnet50"), "architecture is 'resnet50'"),
    (lambda d: d["model_args"].update(window_size=[8, 8]), "model_args.window_size is [8, 8] and swin_mim.config says"),
    (lambda d: d.pop("model_args"), "model_args is None"),
    (lambda d: d["pretrained_cfg"].update(mean=[0.5]), "expected 3 numbers"),
    (lambda d: d["pretrained_cfg"].update(std=[0.5, "0.5", 1]), "expected 3 numbers"),
    (lambda d: d.pop("pretrained_cfg"), "pretrained_cfg is None"),
    (lambda d: d["pretrained_cfg"].update(interpolation="lanczos"), "expected one of bilinear, bicubic"),
    (lambda d: d["pretrained_cfg"].update(interpolation="x" * 100_000), "expected one of bilinear, bicubic"),
    (lambda d: d["pretrained_cfg"].update(interpolation=3), "expected a text and a number"),
    (lambda d: d["pretrained_cfg"].update(interpolation=["bicubic"]), "expected a text and a number"),
    (lambda d: d["pretrained_cfg"].update(crop_pct=0), "a number above 0 and up to 1"),
    (lambda d: d["pretrained_cfg"].update(crop_pct=-0.9), "a number above 0 and up to 1"),
    (lambda d: d["pretrained_cfg"].update(crop_pct=87.5), "a number above 0 and up to 1"),
    (lambda d: d["pretrained_cfg"].update(crop_pct=float("nan")), "expected a text and a number"),
    (lambda d: d["pretrained_cfg"].update(crop_pct="0.9"), "expected a text and a number"),
    (lambda d: d["pretrained_cfg"].update(crop_pct=True), "expected a text and a number"),
    (lambda d: d["pretrained_cfg"].update(crop_pct=10**400), "expected a text and a number"),
    (lambda d: d["pretrained_cfg"].pop("crop_pct"), "crop_pct None"),
    (lambda d: d["pretrained_cfg"].pop("interpolation"), "interpolation None"),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(SPOILED)))
def test_a_spoiled_config_is_refused(index, simmim, tmp_path):
    change, text = SPOILED[index]
    message = error_of(SimMIM.from_pretrained, edited(simmim, tmp_path, change))
    assert text in message
    assert len(message) < 500
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"swin_mim": 1, "swin_mim": 2}', "[" * 100_000, "\x00", "1" * 10_000]
)
def test_a_config_that_is_none_is_refused(text, simmim, tmp_path):
    copy = copy_of(simmim, tmp_path)
    (copy / "config.json").write_text(text)
    assert "config.json" in error_of(SimMIM.from_pretrained, copy)


def test_a_config_of_endless_length_is_not_read(simmim, tmp_path):
    copy = copy_of(simmim, tmp_path)
    with (copy / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "a config.json has at most" in error_of(SimMIM.from_pretrained, copy)


def spoil_weights(folder, change, name="model.safetensors"):
    state = load_file(folder / name)
    change(state)
    save_file(state, folder / name)


WRONG = [
    (lambda s: s.pop("layers.1.blocks.1.mlp.fc1.weight"), "layers.1.blocks.1.mlp.fc1.weight"),
    (lambda s: s.update(extra=torch.ones(3)), "extra"),
    (lambda s: s.update({"norm.weight": torch.ones(127)}), "norm.weight"),
    (lambda s: s.update({"norm.weight": torch.ones(128, 1)}), "norm.weight"),
    (lambda s: s.update({"norm.weight": torch.ones(128, dtype=torch.int32)}), "norm.weight is int32"),
    (lambda s: s.update({"norm.weight": torch.full((128,), float("nan"))}), "norm.weight"),
    (lambda s: s.update({"norm.weight": torch.full((128,), float("inf"))}), "norm.weight"),
    (lambda s: s.update({"layers.0.blocks.0.attn.relative_position_bias_table": torch.ones(169, 1)}), "(169, 1)"),
    (lambda s: s.clear(), "no Swin"),
    (lambda s: s.update(mask_token=torch.ones(1, 1, 16)), "mask_token is in both"),
    (lambda s: s.update({"../../evil": torch.ones(1)}), "evil"),
    (lambda s: s.update(absolute_pos_embed=torch.ones(1, 256, 16)), "absolute_pos_embed"),
    (lambda s: s.update({"layers.0.blocks.0.attn.logit_scale": torch.ones(1, 1, 1)}), "logit_scale"),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(WRONG)))
def test_spoiled_weights_are_refused_and_named(index, simmim, tmp_path):
    change, text = WRONG[index]
    copy = copy_of(simmim, tmp_path)
    spoil_weights(copy, change)
    message = error_of(SimMIM.from_pretrained, copy)
    assert text in message
    assert len(message) < 600


def test_a_file_cut_off_anywhere_is_refused(simmim, tmp_path):
    copy = copy_of(simmim, tmp_path)
    whole = (copy / "model.safetensors").read_bytes()
    for i in range(120):
        (copy / "model.safetensors").write_bytes(whole[: len(whole) * i // 120])
        assert "model.safetensors" in error_of(SimMIM.from_pretrained, copy)


def test_a_model_without_its_mim_head_is_not_a_simmim(simmim, tmp_path):
    copy = copy_of(simmim, tmp_path)
    (copy / "mim_head.safetensors").unlink()
    assert "missing for the SimMIM" in error_of(SimMIM.from_pretrained, copy)
