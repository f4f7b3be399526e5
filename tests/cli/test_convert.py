"""swin-mim convert from every format to every other, judged by the true libraries; and swin-mim push up to the network.

With -s the table of differences is printed.
"""

import contextlib
import importlib
import io
import json
import os
import pickle
import shutil
import sys
import types
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from torchvision.models import swin_transformer as torchvision_swin

from swin_mim import SimMIM, Swin, SwinClassifier, SwinConfig
from swin_mim.hub import saved
from swin_mim.kernels.window_geometry import relative_coordinates
from swin_mim.weights.config_json import Preprocessing, document, timm_arguments, timm_name
from swin_mim.weights.library_configs import transformers_documents
from swin_mim.weights.pickled_file import load_pickled

CONFIG = SwinConfig(64, embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=2)
"""Grids 16, 8, 4, 2: every stage has the same window, so that every library can hold it."""
WINDOW_4 = SwinConfig(64, embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=4)
"""The last stage has a smaller window: not for torchvision and transformers."""
CONFIG_V2, WINDOW_4_V2 = (replace(config, version=2, pretrained_window_sizes=()) for config in (CONFIG, WINDOW_4))
CLASSES = 5
LABELS = ("cat", "dog", "bird", "fish", "frog")
TARGETS = ("swin_mim", "timm", "transformers", "torchvision", "microsoft")
ROUNDING = 1e-5
WITHOUT_DECODER = ("timm", "torchvision")


def stretched(model):
    """Weights of a trained model's size: at initialisation bias tables and norms hardly matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            small = ("bias_table", "mask_token", "logit_scale", "cpb_mlp", "position_bias_mlp")
            if parameter.ndim == 1 or any(part in name for part in small):
                parameter += 0.3 * torch.randn(parameter.shape)
    return model.eval()


@pytest.fixture(scope="module")
def tools():
    patch = pytest.MonkeyPatch()
    names = {
        "convert": "swin_mim.cli.convert.command",
        "conversion": "swin_mim.cli.convert.conversion",
        "libraries": "swin_mim.cli.convert.libraries",
        "push": "swin_mim.cli.push",
    }
    yield types.SimpleNamespace(**{name: importlib.import_module(module) for name, module in names.items()})
    patch.undo()


@pytest.fixture
def run(tools, tmp_path):
    """Convert -> what was printed and the JSON."""

    def convert(*arguments):
        file = tmp_path / f"report_{len(list(tmp_path.iterdir()))}.json"
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            tools.convert.main([*map(str, arguments), "--json", str(file)])
        return printed.getvalue(), json.loads(file.read_text())

    return convert


@pytest.fixture
def refused(tools, capsys):
    """Convert, which has to fail -> the one line that says why."""

    def convert(*arguments, tool="convert"):
        with pytest.raises(SystemExit) as left:
            getattr(tools, tool).main([*map(str, arguments)])
        said = capsys.readouterr()
        assert left.value.code == 2
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert said.err.startswith("error: ")
        return said.err

    return convert


# Outputs, by the libraries' own classes.


def images_and_mask(config):
    generator = torch.Generator().manual_seed(5)
    side = config.image_size
    return (
        torch.randn(2, config.in_channels, side, side, generator=generator),
        torch.rand(2, *config.stage_grid(0), generator=generator) < 0.6,
    )


def outputs(model, config):
    """features (B, h, w, D), pixels and logits, as far as the model has them."""
    images, mask = images_and_mask(config)
    with torch.no_grad():
        return _outputs(model.eval(), images, mask)


def _outputs(model, images, mask):
    if isinstance(model, Swin):
        return {"features": model(images)}
    if isinstance(model, SimMIM):
        return {"features": model.encoder(images), "pixels": model(images, mask).pixels}
    if isinstance(model, SwinClassifier):
        return {"features": model.encoder(images), "logits": model(images)}
    if isinstance(model, timm.models.SwinTransformer | timm.models.SwinTransformerV2):
        logits = {"logits": model(images)} if model.num_classes else {}
        return {"features": model.forward_features(images)} | logits
    if isinstance(model, torchvision.models.SwinTransformer):
        logits = {"logits": model(images)} if isinstance(model.head, torch.nn.Linear) else {}
        return {"features": model.norm(model.features(images))} | logits
    side = int(model.config.image_size / model.config.encoder_stride)
    found = {"features": model.base_model(images).last_hidden_state.unflatten(1, (side, side))}
    if isinstance(model, transformers.SwinForMaskedImageModeling | transformers.Swinv2ForMaskedImageModeling):
        found["pixels"] = model(images, bool_masked_pos=mask.flatten(1)).reconstruction
    if isinstance(model, transformers.SwinForImageClassification | transformers.Swinv2ForImageClassification):
        found["logits"] = model(images).logits
    return found


# Models of each library, and files as it writes them.

TORCHVISION_V2 = {
    "block": torchvision_swin.SwinTransformerBlockV2,
    "downsample_layer": torchvision_swin.PatchMergingV2,
}


def torchvision_model(config, classes):
    sizes = [list(config.depths), list(config.num_heads), [config.window_size] * 2]
    parts = {} if config.version == 1 else TORCHVISION_V2
    model = torchvision.models.SwinTransformer(
        [config.patch_size] * 2, config.embed_dim, *sizes, num_classes=classes or 1, **parts
    )
    if not classes:
        model.head = torch.nn.Identity()
    return model


def transformers_model(config, kind):
    model = {"SimMIM": SimMIM(config), "SwinClassifier": SwinClassifier(config, CLASSES)}[kind]
    document = transformers_documents(model.description())["config.json"]
    theirs = getattr(transformers, document["architectures"][0])
    return theirs(theirs.config_class.from_dict(document))


def timm_folder(config, folder):
    arguments = timm_arguments(config)
    model = timm.create_model(timm_name(config), **arguments, num_classes=CLASSES)
    stretched(model)
    timm.models.save_for_hf(model, folder, model_config={"model_args": arguments}, safe_serialization=True)
    return model


def yacs(values):
    """Settings as microsoft's files pickle them: yacs' CfgNode, a dict with attributes."""
    kind = sys.modules["yacs.config"].CfgNode
    node = kind({key: yacs(value) if isinstance(value, dict) else value for key, value in values.items()})
    node.__dict__ |= {"__immutable__": True, "__deprecated_keys__": set(), "__new_allowed__": False}
    return node


def save_with_yacs(content, path):
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        torch.save(content | {"config": yacs(content["config"])}, path)


def our_tensors(model):
    return {name.removeprefix("encoder."): value.detach() for name, value in model.state_dict().items()}


def microsoft_pretraining(model, path, **simmim):
    """As main_simmim.py saves it."""
    config = model.encoder.config
    settings = {
        "DATA": {"IMG_SIZE": config.image_size},
        "MODEL": {"TYPE": "swin", "SWIN": {"WINDOW_SIZE": config.window_size}, "SIMMIM": simmim},
    }
    if config.version == 2:
        sizes = {"WINDOW_SIZE": config.window_size, "PRETRAINED_WINDOW_SIZES": list(config.pretrained_window_sizes)}
        settings["MODEL"] |= {"TYPE": "swinv2", "SWIN": {"WINDOW_SIZE": 7}, "SWINV2": sizes}
    state = saved.to_theirs("microsoft", model.description(), our_tensors(model))
    save_with_yacs({"model": state, "config": settings, "epoch": 99, "optimizer": {}, "max_accuracy": 0.0}, path)


def mmpretrain_file(model, path):
    """Their names, and their order of the four cells that are merged: channel, row, column."""
    state, config = OrderedDict(), model.encoder.config
    for name, value in our_tensors(model).items():
        if ".downsample." in name and (config.version == 1 or ".reduction." in name):
            value = value.unflatten(-1, (2, 2, -1)).transpose(-3, -1).flatten(-3)  # column, row, channel
        for ours, theirs in {
            "patch_embed.proj": "patch_embed.projection",
            "attn.": "attn.w_msa.",
            "mlp.fc1": "ffn.layers.0.0",
            "mlp.fc2": "ffn.layers.1",
        }.items():
            name = name.replace(ours, theirs)
        for stage in range(1, 4) if config.version == 1 else ():
            name = name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        name = name.replace("layers.", "stages.", name.startswith("layers."))
        name = "norm3" + name.removeprefix("norm") if name.startswith("norm.") else name
        state["neck." + name if name.startswith("decoder") else "backbone." + name] = value
    for name in [name for name in state if name.endswith("logit_scale")]:
        table = relative_coordinates(config.stage_window(int(name.split(".")[2])), (0, 0))[None]
        state[name.replace("logit_scale", "relative_coords_table")] = table
    torch.save({"state_dict": state, "meta": {"epoch": 100}}, path)


def checkpoint_folder(model, folder):
    """As a training run saves it."""
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    save_file({"exp_avg/mask_token": torch.zeros(1, 1, 16)}, folder / "optimizer.safetensors")
    settings = document(model.description())
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Name -> (path, outputs of the model that is in it)."""
    made = sources_of(CONFIG, tmp_path_factory.mktemp("sources"))
    of_v2 = sources_of(CONFIG_V2, tmp_path_factory.mktemp("sources_v2"))
    return made | {f"{name} V2": source for name, source in of_v2.items()}


def sources_of(config, folder):
    torch.manual_seed(0)
    simmim, classifier = stretched(SimMIM(config)), stretched(SwinClassifier(config, CLASSES))
    classifier.labels = LABELS
    made = {name: folder / name for name in ("swin_mim", "swin_mim_classes", "checkpoint", "timm")}
    simmim.save_pretrained(made["swin_mim"])
    classifier.save_pretrained(made["swin_mim_classes"])
    checkpoint_folder(simmim, made["checkpoint"])
    models = {"swin_mim": simmim, "swin_mim_classes": classifier, "checkpoint": simmim}
    models["timm"] = timm_folder(config, made["timm"])

    made["microsoft_simmim"], models["microsoft_simmim"] = folder / "simmim.pth", simmim
    microsoft_pretraining(simmim, made["microsoft_simmim"])
    made["microsoft_swin"], models["microsoft_swin"] = folder / "swin.pth", classifier
    state = saved.to_theirs("microsoft", classifier.description(), our_tensors(classifier))
    torch.save({"model": state}, made["microsoft_swin"])

    made["torchvision"], models["torchvision"] = folder / "tv.pth", stretched(torchvision_model(config, CLASSES))
    torch.save(models["torchvision"].state_dict(), made["torchvision"])
    for name, kind in {"transformers_mim": "SimMIM", "transformers_classes": "SwinClassifier"}.items():
        made[name], models[name] = folder / name, stretched(transformers_model(config, kind))
        models[name].save_pretrained(made[name])
    made["mmpretrain"], models["mmpretrain"] = folder / "mmpretrain.pth", simmim
    mmpretrain_file(simmim, made["mmpretrain"])
    return {name: (made[name], outputs(model, config)) for name, model in models.items()}


SOURCES = {
    "swin_mim": "SimMIM",
    "swin_mim_classes": "SwinClassifier",
    "checkpoint": "SimMIM",
    "microsoft_simmim": "SimMIM",
    "microsoft_swin": "SwinClassifier",
    "timm": "SwinClassifier",
    "torchvision": "SwinClassifier",
    "transformers_mim": "SimMIM",
    "transformers_classes": "SwinClassifier",
    "mmpretrain": "SimMIM",
}
SOURCES |= {f"{name} V2": kind for name, kind in SOURCES.items()}


def config_of(source):
    return CONFIG_V2 if source.endswith(" V2") else CONFIG


def opened(to, path, kind, config=CONFIG):
    """What was written, by the library's own way to open it, with nothing missing or left over."""
    classes = CLASSES if kind == "SwinClassifier" else 0
    if to == "swin_mim":
        return {"SimMIM": SimMIM, "Swin": Swin, "SwinClassifier": SwinClassifier}[kind].from_pretrained(path)
    if to == "timm":
        return timm.create_model(f"local-dir:{path}", pretrained=True, **({} if classes else {"global_pool": ""}))
    if to == "transformers":
        names = json.loads((path / "config.json").read_text())["architectures"]
        model, report = getattr(transformers, names[0]).from_pretrained(path, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        return model
    content = torch.load(path, weights_only=True)
    if to == "torchvision":
        model = torchvision_model(config, classes)
        model.load_state_dict(content)
        return model
    # microsoft's code is not here: test_formats.py and --microsoft have it
    assert content.keys() == {"model"}
    state = path.with_suffix(".safetensors")
    save_file(content["model"], state)
    return {"SimMIM": SimMIM, "Swin": Swin, "SwinClassifier": SwinClassifier}[kind].from_pretrained(state)


TABLE = {}


@pytest.fixture(scope="module", autouse=True)
def _table():
    yield
    print("\n\n" + f"{'source':<22}" + "".join(f"{to:>14}" for to in TARGETS))
    for source in SOURCES:
        print(f"{source:<22}" + "".join(f"{TABLE.get((source, to), float('nan')):>14.1e}" for to in TARGETS))


V2 = [source for source in SOURCES if source.endswith(" V2")]
CELLS = [
    # of V2, every source once and every target twice: what differs between versions is in the names and the modules
    pytest.param(
        source, to, marks=[pytest.mark.slow] * (source in V2 and (V2.index(source) - place) % len(TARGETS) > 0)
    )
    for source in SOURCES
    for place, to in enumerate(TARGETS)
]


@pytest.mark.parametrize(("source", "to"), CELLS)
def test_every_source_becomes_every_target(run, sources, tmp_path, source, to):
    path, expected = sources[source]
    dest = tmp_path / ("model.pth" if to in ("torchvision", "microsoft") else "model")
    text, report = run(path, dest, "--to", to)
    kind = SOURCES[source]
    if kind == "SimMIM" and to in WITHOUT_DECODER:
        kind = "Swin"
    config = config_of(source)
    found = outputs(opened(to, dest, kind, config), config)
    names = {"SimMIM": {"features", "pixels"}, "Swin": {"features"}, "SwinClassifier": {"features", "logits"}}
    assert found.keys() == names[kind]
    TABLE[source, to] = max((found[name] - expected[name]).abs().max().item() for name in found)
    assert TABLE[source, to] <= ROUNDING
    assert report["target"]["kind"] == kind

    original = load(path)
    mapped = {name for row in report["rows"] for name in row["source"]}
    assert mapped | {left["name"] for left in report["left"]} == set(original)  # nothing is lost without a word
    written = load(dest)
    assert {name for row in report["rows"] for name in row["target"]} | set(report["added"]) == set(written)
    assert all(
        name in text for row in report["rows"] for name in (row["ours"], *row["source"]) if len(row["source"]) == 1
    )
    assert text.rstrip().splitlines()[-1].strip().startswith("ours and")
    for row in report["rows"]:
        if not {"permuted"} & set(row["notes"]):
            one, other = (
                values(state, row["ours"], names)
                for state, names in ((original, row["source"]), (written, row["target"]))
            )
            assert torch.equal(one, other)


def values(state, ours, names):
    """Of one of our tensors in a file; torchvision has a V2's biases of queries and values in one, keys between."""
    value = torch.cat([state[name] for name in names])
    third = {".q_bias": 0, ".v_bias": 2}.get(ours[-7:])
    return value if third is None or not names[0].endswith("qkv.bias") else value.chunk(3)[third]


def load(path):
    """All tensors of a file or folder under their names."""
    if path.is_dir():
        files = [file for file in path.glob("*.safetensors") if file.name != "optimizer.safetensors"]
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    return load_file(path) if path.suffix == ".safetensors" else load_pickled(path).tensors


THERE_AND_BACK = {
    "microsoft_simmim": "microsoft",
    "microsoft_swin": "microsoft",
    "timm": "timm",
    "torchvision": "torchvision",
    "transformers_mim": "transformers",
    "transformers_classes": "transformers",
}
THERE_AND_BACK |= {f"{source} V2": to for source, to in THERE_AND_BACK.items()}


@pytest.mark.parametrize("source", THERE_AND_BACK)
def test_there_and_back_is_the_same_file_bit_for_bit(run, sources, tmp_path, source):
    path, to = sources[source][0], THERE_AND_BACK[source]
    for extension in (".pth", ".safetensors") if to in ("microsoft", "torchvision") else ("",):
        back = tmp_path / f"back{extension}"
        run(path, tmp_path / f"ours{extension}", "--to", "swin_mim", "--no-compare")
        run(tmp_path / f"ours{extension}", back, "--to", to, "--no-compare")
        original, returned = load(path), load(back)
        if to == "transformers":  # version 5 does not write what it does not read
            added = {name.rpartition(".")[2] for name in returned.keys() - original.keys()}
            assert added == (set() if source.endswith(" V2") else {"relative_position_index"})
        else:
            assert returned.keys() == original.keys()
        for name, tensor in original.items():
            assert returned[name].dtype == tensor.dtype
            if source == "torchvision V2" and name.endswith("qkv.bias"):
                tensor = tensor.clone()
                tensor.chunk(3)[1].zero_()  # the bias of the keys, of which it takes no notice
            assert torch.equal(returned[name], tensor), name


@pytest.mark.parametrize("to", ["swin_mim", "timm", "microsoft"])
@pytest.mark.parametrize("write", [microsoft_pretraining, mmpretrain_file])
@pytest.mark.parametrize("config", [WINDOW_4, WINDOW_4_V2], ids=["v1", "v2"])
def test_stages_may_have_windows_of_their_own(run, tmp_path, write, to, config):
    model = stretched(SimMIM(config))
    write(model, tmp_path / "model.pth")
    dest = tmp_path / ("dest.pth" if to == "microsoft" else "dest")
    run(tmp_path / "model.pth", dest, "--to", to)
    found = outputs(opened(to, dest, "Swin" if to == "timm" else "SimMIM", config), config)
    expected = outputs(model, config)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("to", ["torchvision", "transformers"])
def test_a_library_with_one_window_refuses_the_others_and_takes_them_resized(run, refused, tmp_path, to):
    microsoft_pretraining(stretched(SimMIM(WINDOW_4)), tmp_path / "model.pth")
    dest = tmp_path / ("dest.pth" if to == "torchvision" else "dest")
    said = refused(tmp_path / "model.pth", dest, "--to", to)
    assert "one window" in said
    assert "window_size 2" in said
    assert sorted(os.listdir(tmp_path)) == ["model.pth"]
    text, report = run(tmp_path / "model.pth", dest, "--to", to, "--window-size", "2")
    assert report["target"]["windows"] == [[2, 2]] * 4
    assert "stage 0: bias tables resized from 4x4 to 2x2 windows (bicubic)" in text
    assert outputs(opened(to, dest, "Swin" if to == "torchvision" else "SimMIM"), CONFIG)


def test_a_bias_of_keys_is_left_and_the_report_says_so(run, sources, tmp_path):
    """torchvision's V2 has a place for it, and puts zeros there as it runs."""
    text, _ = run(sources["torchvision V2"][0], tmp_path / "dest", "--to", "timm", "--no-compare")
    assert "left, as a Swin V2 has no bias on keys: the middle third of 6 keys (features.1.0.attn.qkv.bias, " in text
    assert "12 cut out" in text


def test_a_v2_that_no_buffer_and_no_config_describes_has_to_be_described(run, refused, sources, tmp_path):
    """Its weights fit any window."""
    path, expected = sources["timm V2"]
    save_file(load(path), tmp_path / "bare.safetensors")
    convert = (tmp_path / "bare.safetensors", tmp_path / "dest", "--to", "swin_mim")
    assert "window_size is not told by the weights of a Swin V2, which fit any: put its" in refused(*convert)
    assert "image_size is not told" in refused(*convert, "--source-window-size", "2")
    run(*convert, "--source-window-size", "2", "--source-image-size", "64")
    loaded = SwinClassifier.from_pretrained(tmp_path / "dest")
    assert loaded.encoder.config == CONFIG_V2
    torch.testing.assert_close(outputs(loaded, CONFIG_V2)["logits"], expected["logits"], atol=ROUNDING, rtol=0)
    said = refused(path, tmp_path / "other", "--to", "swin_mim", "--source-window-size", "4")
    assert "is for windows of 2, as it says itself, not of 4" in said


def test_another_window_keeps_the_weights_of_a_v2_and_what_measures_its_positions(run, refused, sources, tmp_path):
    path, _ = sources["microsoft_simmim V2"]
    convert = (path, tmp_path / "dest", "--to", "timm", "--image-size", "128", "--window-size", "4")
    text, report = run(*convert)
    assert "stage 0: windows of 2x2 become 4x4, positions measured by 2x2 as in pretraining" in text
    assert not [row for row in report["rows"] if row["notes"]]
    config = json.loads((tmp_path / "dest" / "config.json").read_text())["swin_mim"]["config"]
    assert (config["window_size"], config["pretrained_window_sizes"]) == (4, [2, 2, 2, 2])
    sizes = ("--image-size", "128", "--window-size", "4")
    _, report = run(path, tmp_path / "tv.pth", "--to", "torchvision", *sizes)
    table = torch.load(tmp_path / "tv.pth", weights_only=True)["features.1.0.attn.relative_coords_table"]
    assert torch.equal(table.squeeze(), relative_coordinates((4, 4), (2, 2)))
    compared = report["comparisons"][-1]
    assert (compared["one"], compared["other"], compared["why_not"]) == ("ours", "torchvision", "")
    said = refused(path, tmp_path / "other", "--to", "swin_mim", "--bias-tables", "geometric")
    assert "a Swin V2 has no bias tables: leave it out" in said


# What a source says of itself.


def test_the_config_in_a_checkpoint_of_microsoft_says_size_and_target(run, tmp_path):
    model = stretched(SimMIM(SwinConfig(128, embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4)))
    microsoft_pretraining(model, tmp_path / "model.pth", NORM_TARGET={"ENABLE": True, "PATCH_SIZE": 47})
    text, report = run(tmp_path / "model.pth", tmp_path / "dest", "--to", "swin_mim")
    loaded = SimMIM.from_pretrained(tmp_path / "dest")
    assert loaded.encoder.config == model.encoder.config
    assert loaded.target == "normalized"
    assert not report["source"]["size_is_guessed"]
    assert "smallest" not in text


def test_a_size_that_nobody_said_is_the_smallest_and_the_report_says_so(run, refused, sources, tmp_path):
    path, expected = sources["torchvision"]
    text, report = run(path, tmp_path / "a", "--to", "swin_mim")
    assert report["source"]["size_is_guessed"]
    assert "64x64 px is the smallest that its bias tables allow: --source-image-size says another" in text
    text, report = run(path, tmp_path / "b", "--to", "swin_mim", "--source-image-size", "128", "96")
    assert SwinClassifier.from_pretrained(tmp_path / "b").encoder.config.image_size == (128, 96)
    assert not report["source"]["size_is_guessed"]
    assert torch.allclose(
        outputs(SwinClassifier.from_pretrained(tmp_path / "b"), CONFIG)["logits"], expected["logits"], atol=ROUNDING
    )
    for known in (sources["swin_mim"][0], sources["timm"][0], sources["microsoft_simmim"][0]):
        said = refused(known, tmp_path / "c", "--to", "swin_mim", "--source-image-size", "128")
        assert "as it says itself, not of 128" in said


def test_a_plain_safetensors_file_and_an_old_pickle_of_transformers_are_read(run, sources, tmp_path):
    save_file(load(sources["torchvision"][0]), tmp_path / "plain.safetensors")
    run(tmp_path / "plain.safetensors", tmp_path / "dest", "--to", "timm")
    found = outputs(opened("timm", tmp_path / "dest", "SwinClassifier"), CONFIG)
    assert (found["logits"] - sources["torchvision"][1]["logits"]).abs().max() <= ROUNDING

    old = tmp_path / "old"
    old.mkdir()
    torch.save(load(sources["transformers_mim"][0]), old / "pytorch_model.bin")
    shutil.copy(sources["transformers_mim"][0] / "config.json", old)
    _, report = run(old / "pytorch_model.bin", tmp_path / "new", "--to", "swin_mim")
    assert not report["source"]["size_is_guessed"]
    assert SimMIM.from_pretrained(tmp_path / "new").encoder.config == CONFIG


def test_labels_and_normalisation_survive(run, tmp_path):
    model = SwinClassifier(CONFIG, CLASSES)
    model.labels, model.preprocessing = LABELS, Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    model.save_pretrained(tmp_path / "ours")
    for to in ("transformers", "timm"):
        run(tmp_path / "ours", tmp_path / to, "--to", to)
        run(tmp_path / to, tmp_path / f"back_{to}", "--to", "swin_mim")
        back = SwinClassifier.from_pretrained(tmp_path / f"back_{to}")
        assert back.labels == LABELS
        assert back.preprocessing == model.preprocessing


def test_half_precision_becomes_float32_and_the_report_says_so(run, sources, tmp_path):
    half = {
        name: value.half() if value.is_floating_point() else value for name, value in load(sources["timm"][0]).items()
    }
    torch.save(half, tmp_path / "half.pth")
    text, _ = run(tmp_path / "half.pth", tmp_path / "dest", "--to", "timm")
    assert "float16 becomes float32" in text
    assert all(torch.equal(value, half[name].float()) for name, value in load(tmp_path / "dest").items())


@pytest.mark.parametrize("source", ["timm", "torchvision", "microsoft_simmim", "transformers_mim", "mmpretrain"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_prefix_of_all_keys_is_taken_off_and_the_report_says_so(run, sources, tmp_path, source, suffix):
    path, _ = sources[source]
    state = {f"student.{name}": value for name, value in load(path).items()} | {"center": torch.ones(2)}
    dest, source_file = tmp_path / "dest", tmp_path / f"weights{suffix}"
    save_file(state, source_file) if suffix == ".safetensors" else torch.save({"state_dict": state}, source_file)
    text, report = run(source_file, dest, "--to", "swin_mim", "--source-image-size", str(CONFIG.image_size))
    assert f"changed  prefix student. taken off {len(state) - 1} keys" in text
    assert "left, as no part of the network\n  center\n" in text
    named = {name for row in report["rows"] for name in row["source"]} | {left["name"] for left in report["left"]}
    assert named == set(state)
    run(path, tmp_path / "plain", "--to", "swin_mim", "--source-image-size", str(CONFIG.image_size), "--no-compare")
    written = load(tmp_path / "plain")
    assert all(torch.equal(value, written[name]) for name, value in load(dest).items())


def test_of_student_and_teacher_the_named_one_is_converted(run, refused, sources, tmp_path):
    student = load(sources["timm"][0])
    teacher = {name: value + 1 if value.is_floating_point() else value for name, value in student.items()}
    content = {"student": {f"module.backbone.{name}": value for name, value in student.items()}}
    torch.save(
        content | {"teacher": {f"backbone.{name}": value for name, value in teacher.items()}}, tmp_path / "d.pth"
    )
    convert = (tmp_path / "d.pth", tmp_path / "dest", "--to", "swin_mim")
    said = refused(*convert)
    assert "2 networks, under student.module.backbone., teacher.backbone.: take the one that you mean" in said
    assert "no Swin under the prefix ema" in refused(*convert, "--prefix", "ema")
    run(*convert, "--no-compare", "--prefix", "teacher.backbone.")
    assert torch.equal(load(tmp_path / "dest")["norm.weight"], teacher["norm.weight"])


# Changes that are asked for.


def test_another_image_size_and_window_is_what_timm_makes_of_it(run, tmp_path):
    model = stretched(Swin(SwinConfig.named("swin_tiny", image_size=192, window_size=6)))
    state = saved.to_theirs("microsoft", model.description(), our_tensors(model))
    torch.save({"model": state}, tmp_path / "swin_tiny.pth")
    text, report = run(
        *(tmp_path / "swin_tiny.pth", tmp_path / "dest", "--to", "timm", "--image-size", "224", "--window-size", "7"),
    )
    assert report["target"]["image_size"] == [224, 224]
    assert "stage 3: bias tables resized from 6x6 to 7x7 windows (bicubic)" in text
    written = load(tmp_path / "dest")
    for name, value in model.state_dict().items():
        if "bias_table" in name:
            value = timm.layers.resize_rel_pos_bias_table_simple(value, (7, 7), (13 * 13, value.shape[1]))
        assert torch.equal(written[name], value), name
    run(tmp_path / "swin_tiny.pth", tmp_path / "geometric", "--to", "timm", "--window-size", "12", "--no-compare",
        "--bias-tables", "geometric")  # fmt: skip
    assert load(tmp_path / "geometric")["layers.0.blocks.0.attn.relative_position_bias_table"].shape == (23 * 23, 3)


def test_channels_by_name_and_by_number(run, refused, sources, tmp_path):
    path = sources["microsoft_simmim"][0]
    names = ("red", "green", "blue", "nir")
    text, report = run(path, tmp_path / "named", "--to", "swin_mim", "--channels", *names)
    model = SimMIM.from_pretrained(tmp_path / "named")
    assert model.preprocessing.channels == names
    assert report["target"]["channels"] == list(names)
    assert "red, green, blue kept, nir is the mean of the 3" in text
    images, mask = images_and_mask(CONFIG)
    grey = images.mean(1, keepdim=True)
    with torch.no_grad():
        pixels = model(grey.expand(-1, 4, -1, -1), mask).pixels[:, :3]
        expected = SimMIM.from_pretrained(sources["swin_mim"][0])(grey.expand(-1, 3, -1, -1), mask).pixels
    torch.testing.assert_close(pixels, expected, atol=ROUNDING, rtol=0)
    run(path, tmp_path / "counted", "--to", "swin_mim", "--channels", "1")
    assert SimMIM.from_pretrained(tmp_path / "counted").encoder.config.in_channels == 1
    said = refused(path, tmp_path / "tv.pth", "--to", "torchvision", "--channels", *names)
    assert "3 channels" in said


@pytest.mark.parametrize("source", ["microsoft_simmim", "torchvision"])
def test_encoder_only_leaves_the_rest(run, sources, tmp_path, source):
    path, expected = sources[source]
    _, report = run(path, tmp_path / "dest", "--to", "swin_mim", "--encoder-only")
    assert "--encoder-only" in {left["why"].split()[1] for left in report["left"]}
    assert report["source"]["kind"] != report["target"]["kind"] == "Swin"
    found = outputs(Swin.from_pretrained(tmp_path / "dest"), CONFIG)
    torch.testing.assert_close(found["features"], expected["features"], atol=ROUNDING, rtol=0)


# What is compared.


def test_the_report_shows_both_comparisons(run, sources, tmp_path):
    _, report = run(sources["torchvision"][0], tmp_path / "dest", "--to", "transformers")
    first, second = report["comparisons"]
    assert (first["one"], first["other"], second["one"], second["other"]) == (
        "torchvision",
        "ours",
        "ours",
        "transformers",
    )
    for comparison in (first, second):
        assert comparison["differences"].keys() == {"features", "logits"}
        assert all(apart <= ROUNDING < scale for apart, scale in comparison["differences"].values())


def test_what_cannot_be_compared_is_said(run, sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    text, _ = run(sources["microsoft_swin"][0], tmp_path / "dest", "--to", "timm")
    assert "microsoft and ours: not compared, name a checkout" in text
    assert "ours and timm: not compared, not installed" in text
    text, report = run(sources["mmpretrain"][0], tmp_path / "quick", "--to", "swin_mim", "--no-compare")
    assert report["comparisons"] == []
    assert "outputs  not compared" in text


def test_outputs_that_differ_leave_nothing_behind(tools, refused, sources, tmp_path, monkeypatch):
    peers = tools.libraries

    def another_network(description, weights):
        peer = peers.build_timm(description, weights)
        peer.model.norm.bias.data += 0.01
        return peer

    monkeypatch.setitem(peers.BUILDERS, "timm", another_network)
    said = refused(sources["torchvision"][0], tmp_path / "dest", "--to", "timm")
    assert "features of ours and timm differ by" in said
    assert os.listdir(tmp_path) == []

    def without_a_tensor(description, weights):
        return peers.build_timm(description, {name: weights[name] for name in list(weights)[1:]})

    monkeypatch.setitem(peers.BUILDERS, "timm", without_a_tensor)
    assert "does not take" in refused(sources["torchvision"][0], tmp_path / "dest", "--to", "timm")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("to", TARGETS)
def test_an_interruption_leaves_nothing_behind(tools, sources, tmp_path, monkeypatch, capsys, to):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tools.conversion, "compare_target", interrupted)
    dest = tmp_path / ("model.pth" if to in ("torchvision", "microsoft") else "model")
    with pytest.raises(SystemExit) as left:
        tools.convert.main([str(sources["timm"][0]), str(dest), "--to", to])
    assert left.value.code == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "interrupted: nothing was written"
    assert os.listdir(tmp_path) == []


# What is refused.


class Code:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_with_code_runs_nothing(refused, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "model.pth"
    with path.open("wb") as file:
        torch.save({"model": {}, "config": Code(f"touch {canary}")}, file)
    said = refused(path, tmp_path / "dest", "--to", "swin_mim")
    assert "system" in said
    path.write_bytes(pickle.dumps(Code(f"touch {canary}"), protocol=2))
    refused(path, tmp_path / "dest", "--to", "swin_mim")
    assert not canary.exists()
    assert not (tmp_path / "dest").exists()


def test_what_is_no_swin_is_told(refused, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet.pth")
    said = refused(tmp_path / "resnet.pth", tmp_path / "dest", "--to", "swin_mim")
    assert "resnet.pth" in said
    assert "Swin" in said
    (tmp_path / "text.pth").write_text("not weights")
    assert "text.pth" in refused(tmp_path / "text.pth", tmp_path / "dest", "--to", "swin_mim")
    assert "nowhere" in refused(tmp_path / "nowhere", tmp_path / "dest", "--to", "swin_mim")


def test_a_config_of_microsoft_with_nonsense_is_told(refused, tmp_path):
    model = SimMIM(CONFIG)
    state = saved.to_theirs("microsoft", model.description(), our_tensors(model))
    for size, words in {"huge": "'huge'", 10**9: "1000000000", True: "True", 32: "image_size 32"}.items():
        save_with_yacs({"model": state, "config": {"DATA": {"IMG_SIZE": size}}}, tmp_path / "model.pth")
        assert words in refused(tmp_path / "model.pth", tmp_path / "dest", "--to", "swin_mim")


def test_nothing_is_overwritten(refused, sources, tmp_path):
    path = sources["timm"][0]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "file.pth").write_text("mine")
    for dest, to in (("folder", "swin_mim"), ("folder", "timm"), ("file.pth", "microsoft"), ("file.pth", "timm")):
        assert f"{dest} exists" in refused(path, tmp_path / dest, "--to", to)
    said = refused(path, tmp_path / "new", "--to", "timm", "--json", tmp_path / "file.pth")
    assert "--json" in said
    assert (tmp_path / "file.pth").read_text() == (tmp_path / "folder" / "mine").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file.pth", "folder"]


def test_an_empty_folder_is_filled(run, sources, tmp_path):
    (tmp_path / "folder").mkdir()
    run(sources["timm"][0], tmp_path / "folder", "--to", "transformers", "--no-compare")
    names = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(os.listdir(tmp_path / "folder")) == names


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["dest", "--to", "torchvision"], [".pth", ".safetensors"]),
        (["dest", "--to", "mmpretrain"], ["mmpretrain", "timm"]),
        (["dest"], ["--to"]),
        (["dest", "--to", "timm", "--image-size", "0"], ["--image-size", "0"]),
        (["dest", "--to", "timm", "--image-size", "1", "2", "3"], ["(1, 2, 3)"]),
        (["dest", "--to", "timm", "--image-size", "66"], ["66", "patch_size 4"]),
        (["dest", "--to", "timm", "--bias-tables", "linear"], ["linear", "bicubic"]),
        (["dest", "--to", "timm", "--channels", "red", "red"], ["red"]),
        (["dest", "--to", "timm", "--microsoft", "nowhere"], ["nowhere", "models/simmim.py"]),
        (["dest", "--to", "timm", "--fast"], ["--fast"]),
    ],
)
def test_bad_input_is_one_line(refused, sources, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    said = refused(sources["swin_mim"][0], *options)
    assert all(word in said for word in words), said
    assert os.listdir(tmp_path) == []


# swin-mim push, as far as it goes without a Hub.


def test_push_refuses_what_is_not_whole(refused, sources, tmp_path):
    assert "nowhere" in refused(tmp_path / "nowhere", "user/name", tool="push")
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(tmp_path / "empty", "user/name", tool="push")
    broken = Path(shutil.copytree(sources["swin_mim"][0], tmp_path / "broken"))
    (broken / "mim_head.safetensors").unlink()
    said = refused(broken, "user/name", tool="push")
    assert "broken" in said
    assert "mask_token" in said
    assert "--to swin_mim" in refused(sources["checkpoint"][0], "user/name", tool="push")
    assert "user/name" in refused(sources["swin_mim"][0], "no name", tool="push")
