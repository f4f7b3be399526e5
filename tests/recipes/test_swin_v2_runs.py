"""Runs of a Swin V2: however one is cut up or interrupted it is the same, and what it leaves is used as a V1's is."""

import json

import pytest
import timm
import torch
import transformers
import yaml
from run_recipe import ENVIRONMENT
from safetensors.torch import load_file

from swin_mim import SimMIM, Swin, SwinClassifier, SwinConfig, block_mask
from tools import forked

CONFIG = SwinConfig(32, embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=4, version=2)
HALF = ("--train.micro_batch", "8")
FSDP = ("--train.fsdp", "true")


@pytest.fixture(scope="module")
def second(tmp_path_factory, recipe):
    """Pretrains a tiny V2 with its papers' target, from weights of a trained one's size: new blocks do nothing."""
    torch.manual_seed(0)
    model = SimMIM(CONFIG, target="normalized")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "logit_scale" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("second")
    network = {
        "name": "swinv2_nano",
        "target": "normalized",
        "pretrained": str(model.save_pretrained(folder / "start")),
    }
    settings = yaml.safe_load(recipe.config.read_text())
    settings["model"] |= network
    return type(recipe)("pretrain.py", folder, settings | {"hub": {"transformers": True}})


@pytest.fixture(scope="module")
def whole(second):
    second.run("whole")
    return "whole"


def interrupted_fsdp(recipe, name):
    recipe.launch(name, *HALF, *FSDP, "--train.stop_after", "4 steps")
    assert "resumed at step 4" in recipe.launch(name, *HALF, *FSDP)


WAYS = {
    "accumulation": lambda recipe, name: recipe.run(name, *HALF),
    "processes_2": lambda recipe, name: recipe.launch(name, *HALF),
    "fsdp_interrupted": interrupted_fsdp,
    "zero_2_accumulation": lambda recipe, name: recipe.launch(name, "--train.micro_batch", "4", zero=2),
}
SLOW = ("fsdp_interrupted", "zero_2_accumulation")


@pytest.mark.parametrize("way", [pytest.param(way, marks=[pytest.mark.slow] * (way in SLOW)) for way in WAYS])
def test_losses_are_those_of_one_process(way, second, whole):
    WAYS[way](second, way)
    expected, found = second.metrics(whole), second.metrics(way)
    assert len(expected) == 13  # 10 steps, 2 evaluations, the errors of filling
    assert second.losses(whole)[-1] < second.losses(whole)[0] - 0.05
    for a, b in zip(expected, found, strict=True):
        assert b == pytest.approx(a, abs=1e-5, rel=1e-4)
    before = load_file(second.folder / "start" / "model.safetensors")
    one, other = (SimMIM.from_pretrained(second.path(name)).encoder.state_dict() for name in (whole, way))
    for name, value in one.items():
        assert not torch.equal(value, before[name]), f"{name} has learnt nothing"
        torch.testing.assert_close(other[name], value, atol=2e-4, rtol=0, msg=name)


def test_continued_equals_uninterrupted(second, whole):
    """To the last bit, from within an epoch."""
    second.run("stopped", "--train.stop_after", "4 steps")
    assert "resumed at step 4" in second.run("stopped")
    second.assert_same_run(whole, "stopped")


def test_a_run_loads_in_three_libraries_as_it_is(second, whole):
    export = second.path(whole) / "export"
    ours = SimMIM.from_pretrained(second.path(whole))
    assert (ours.encoder.config, ours.target) == (CONFIG, "normalized")
    theirs = timm.create_model(f"local-dir:{export}", pretrained=True, num_classes=0, global_pool="").eval()
    native = transformers.Swinv2ForMaskedImageModeling.from_pretrained(export / "transformers").eval()
    images, mask = torch.randn(2, 3, 32, 32), block_mask(2, (8, 8), 2, 0.6, seed=0)
    with torch.no_grad():
        features = ours.encoder(images)
        assert torch.equal(Swin.from_pretrained(export)(images), features)
        torch.testing.assert_close(theirs.forward_features(images), features, atol=1e-5, rtol=0)
        pixels = native(images, bool_masked_pos=mask.flatten(1)).reconstruction
        torch.testing.assert_close(pixels, ours(images, mask).pixels, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_it_is_fine_tuned_with_another_window_and_probed(second, whole, finetune, labelled, tmp_path):
    """Weights as they are, positions in the measure of the pretraining; average of the weights and layer decay."""
    source = str(second.path(whole))
    settings = yaml.safe_load(finetune.config.read_text())
    settings["model"] = {"pretrained": source, "image_size": 48, "window_size": 6, "drop_path_rate": 0.1}
    settings["optim"]["layer_decay"] = 0.5
    recipe = type(finetune)("finetune.py", tmp_path, settings)
    recipe.run("fine", "--train.stop_after", "5 steps")
    assert "resumed at step 5" in recipe.run("fine")
    losses = recipe.losses("fine")
    assert losses[-1] < losses[0]
    model = SwinClassifier.from_pretrained(recipe.path("fine"))
    assert model.encoder.config.pretrained_window_sizes == (4, 4)
    last = load_file(recipe.path("fine") / "checkpoints" / "step_0000000010" / "average.safetensors")
    assert not {name for name in model.state_dict() if name not in last}
    before, after = SimMIM.from_pretrained(source).encoder.state_dict(), model.encoder.state_dict()
    moved = [(after[f"layers.{i}.blocks.1.mlp.fc1.weight"] - before[f"layers.{i}.blocks.1.mlp.fc1.weight"]).abs().mean()
             for i in range(2)]  # fmt: skip
    assert 0 < moved[0] < moved[1] / 2  # two blocks lie between them

    command = ["-m", "swin_mim", "probe", source, "--source", str(labelled / "train"), "--workers", "0", "--json", "-"]
    (end,) = forked.run(command, tmp_path, environment=ENVIRONMENT)
    assert end.code == 0, end.said
    report = json.loads(end.said[end.said.index("{") : end.said.rindex("}") + 1])
    assert max(stage["linear"] for stage in report["stages"]) > 1 / 3
