"""One pushed repository, loaded by every client from a Hub on loopback, each in a process of its own."""

import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub
from PIL import Image
from safetensors.torch import load_file, save_file

from swin_mim import SimMIM, SwinClassifier, SwinConfig, block_mask
from swin_mim.errors import UserError
from swin_mim.hub import repository
from swin_mim.weights.config_json import Preprocessing
from tools import forked

CONFIG = SwinConfig(64, embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=2)
LABELS = ("ice", "desert", "forest")
PREPROCESSING = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
OPENING = """
import sys, torch
from safetensors.torch import load_file, save_file
repo, inputs, output = sys.argv[1:]
inputs = load_file(inputs)
images, mask = inputs["images"], inputs["mask"]
torch.set_grad_enabled(False)
"""
PUSH = """
from swin_mim import {cls}
from swin_mim.hub.about import About
model = {cls}.from_pretrained({folder!r})
print(model.push_to_hub({repo!r}, about=About(license="apache-2.0"), transformers=True))
"""
PRETRAINED = {
    "swin_mim": """
        from swin_mim import SimMIM, Swin
        loss, pixels = SimMIM.from_pretrained(repo)(images, mask)
        out = {"loss": loss, "pixels": pixels, "features": Swin.from_pretrained(repo)(images)}
    """,
    "timm": """
        import timm
        model = timm.create_model("hf-hub:" + repo, pretrained=True).eval()
        pyramid = timm.create_model("hf-hub:" + repo, pretrained=True, features_only=True).eval()(images)
        out = {"features": model.forward_features(images), "pooled": model(images), "last_map": pyramid[-1]}
        assert list(model.pretrained_cfg["mean"]) == [0.1, 0.2, 0.3], model.pretrained_cfg
    """,
    "transformers": """
        from PIL import Image
        from transformers import AutoImageProcessor, AutoModel, pipeline
        result = AutoModel.from_pretrained(repo).eval()(pixel_values=images)
        out = {"features": result.last_hidden_state, "pooled": result.pooler_output}
        grey = Image.new("RGB", (80, 70), (51, 51, 51))
        out["grey"] = AutoImageProcessor.from_pretrained(repo)(grey, return_tensors="pt")["pixel_values"]
        assert len(pipeline("image-feature-extraction", model=repo)(grey)[0]) == 2
    """,
    "transformers, native": """
        from PIL import Image
        from transformers import AutoImageProcessor, AutoModelForMaskedImageModeling, SwinModel
        model, report = AutoModelForMaskedImageModeling.from_pretrained(
            repo, subfolder="transformers", output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"], report
        result = model.eval()(images, bool_masked_pos=mask.flatten(1))
        features = SwinModel.from_pretrained(repo, subfolder="transformers").eval()(images).last_hidden_state
        out = {"loss": result.loss, "pixels": result.reconstruction, "features": features}
        grey = Image.new("RGB", (80, 70), (51, 51, 51))
        processor = AutoImageProcessor.from_pretrained(repo, subfolder="transformers")
        out["grey"] = processor(grey, return_tensors="pt")["pixel_values"]
    """,
}
FINE_TUNED = {
    "swin_mim": """
        from swin_mim import SwinClassifier
        model = SwinClassifier.from_pretrained(repo)
        assert model.labels == ("ice", "desert", "forest")
        out = {"logits": model(images)}
    """,
    "timm": """
        import timm
        model = timm.create_model("hf-hub:" + repo, pretrained=True).eval()
        assert list(model.pretrained_cfg["label_names"]) == ["ice", "desert", "forest"]
        out = {"logits": model(images)}
        other = timm.create_model("hf-hub:" + repo, pretrained=True, num_classes=7).eval()
        assert other(images).shape == (2, 7)
    """,
    "transformers": """
        from PIL import Image
        from transformers import AutoModelForImageClassification, pipeline
        model = AutoModelForImageClassification.from_pretrained(repo).eval()
        assert model.config.id2label == {0: "ice", 1: "desert", 2: "forest"}, model.config.id2label
        out = {"logits": model(images).logits}
        answers = pipeline("image-classification", model=repo)(Image.new("RGB", (80, 70)))
        assert {answer["label"] for answer in answers} == {"ice", "desert", "forest"}
    """,
    "transformers, native": """
        from transformers import SwinForImageClassification
        model = SwinForImageClassification.from_pretrained(repo, subfolder="transformers").eval()
        assert model.config.id2label == {0: "ice", 1: "desert", 2: "forest"}, model.config.id2label
        out = {"logits": model(images).logits}
    """,
}
CLOSING = "\nsave_file({key: value.contiguous() for key, value in out.items()}, output)\n"


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model.eval()


def start(code: str, environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error::FutureWarning", "-c", code, *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture
def publish(hub: LoopbackHub, client_environment: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """Push a model from another process -> the repository's name."""

    def push(model: SimMIM | SwinClassifier, *, xet: Path | None = None) -> str:
        repo = f"{hub.user}/{model.kind.lower()}"
        folder = model.save_pretrained(tmp_path / model.kind)
        code = PUSH.format(cls=model.kind, folder=str(folder), repo=repo)
        output = finished(start(code, client_environment, tmp_path))
        assert hub.token not in output
        assert f"/{repo}/commit/" in output
        return repo

    return push


def by_every_client(
    codes: dict[str, str], repo: str, environment: dict[str, str], tmp_path: Path, inputs: dict[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """Client -> what it computed. All start at once, each with an empty cache."""
    save_file(inputs, tmp_path / "inputs.safetensors")
    processes = {}
    for name, code in codes.items():
        output = tmp_path / f"{name}.safetensors"
        home = environment | {"HF_HOME": str(tmp_path / f"home of {name}")}
        code = OPENING + textwrap.dedent(code) + CLOSING
        processes[name] = start(code, home, tmp_path, repo, str(tmp_path / "inputs.safetensors"), str(output))
    for process in processes.values():
        finished(process)
    return {name: load_file(tmp_path / f"{name}.safetensors") for name in codes}


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The greatest, as a part of the greatest value where that is above 1."""
    assert a.shape == b.shape, f"{tuple(a.shape)} and {tuple(b.shape)}"
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


@pytest.mark.slow
def test_a_pretrained_repository_is_one_commit_that_four_clients_load(hub, client_environment, publish, tmp_path):
    model = randomised(SimMIM(CONFIG))
    model.preprocessing = PREPROCESSING
    repo = publish(model)
    assert hub.repo(repo).private
    (_, first), (_, files) = hub.commits(repo)
    assert set(files) - set(first) == {
        "README.md", "config.json", "mim_head.safetensors", "model.safetensors", "transformers/config.json",
        "transformers/model.safetensors", "transformers/preprocessor_config.json",
    }  # fmt: skip
    inputs = {"images": torch.randn(2, 3, 64, 64), "mask": block_mask(2, (16, 16), 4, 0.6, seed=0)}
    results = by_every_client(PRETRAINED, repo, client_environment, tmp_path, inputs)
    with torch.no_grad():
        loss, pixels = model(inputs["images"], inputs["mask"])
        features = model.encoder(inputs["images"])  # (B, h, w, D)
        last = model.encoder.pyramid(inputs["images"])[-1].permute(0, 2, 3, 1)
    rows = features.flatten(1, 2)  # as transformers' own classes have it
    expected = {
        "swin_mim": {"loss": loss, "pixels": pixels, "features": features},
        "timm": {"features": features, "pooled": rows.mean(1), "last_map": last},
        "transformers": {"features": features, "pooled": rows.mean(1)},
        "transformers, native": {"loss": loss, "pixels": pixels, "features": rows},
    }  # fmt: skip
    for client, values in expected.items():
        for name, value in values.items():
            assert difference(results[client][name], value) < 1e-5, (client, name)
    assert all(torch.equal(results["swin_mim"][name], value) for name, value in expected["swin_mim"].items())
    grey = torch.tensor([(0.2 - m) / s for m, s in zip(PREPROCESSING.mean, PREPROCESSING.std, strict=True)])
    for client in ("transformers", "transformers, native"):
        assert difference(results[client]["grey"], grey.view(1, 3, 1, 1).expand(1, 3, 64, 64)) < 1e-5, client


@pytest.mark.slow
def test_a_fine_tuned_repository_is_loaded_by_four_clients(client_environment, publish, tmp_path):
    model = randomised(SwinClassifier(CONFIG, num_classes=len(LABELS)))
    model.labels = LABELS
    repo = publish(model)
    inputs = {"images": torch.randn(2, 3, 64, 64), "mask": torch.zeros(1)}
    results = by_every_client(FINE_TUNED, repo, client_environment, tmp_path, inputs)
    with torch.no_grad():
        logits = model(inputs["images"])
    assert torch.equal(results["swin_mim"]["logits"], logits)
    assert {client: difference(result["logits"], logits) < 1e-5 for client, result in results.items()} == dict.fromkeys(
        FINE_TUNED, True
    )


@pytest.mark.slow
def test_what_the_card_says_runs(hub, client_environment, publish, tmp_path):
    """Every snippet of a published card, in a process that knows nothing but the card."""
    repo = publish(randomised(SimMIM(CONFIG)))
    card = ModelCard(hub.commits(repo)[-1][1]["README.md"].decode())
    assert card.data.license == "apache-2.0"
    snippets = [part.partition("\n```")[0] for part in card.content.split("```python\n")[1:]]
    assert len(snippets) >= 3
    assert all(repo in snippet for snippet in snippets)
    pixels = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    processes = [start(snippet, client_environment, tmp_path) for snippet in snippets]
    for process in processes:
        finished(process)


@pytest.mark.slow
def test_a_push_that_fails_keeps_the_model_and_says_how_to_go_on(hub, client_environment, tmp_path):
    folder = randomised(SimMIM(CONFIG)).save_pretrained(tmp_path / "model")
    repo = f"{hub.user}/unlucky"
    hub.fail_after(2)
    code = PUSH.format(cls="SimMIM", folder=str(folder), repo=repo)
    process = start(code, client_environment | {"TMPDIR": str(tmp_path)}, tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert len(hub.commits(repo)) <= 1
    command = output.split("swin-mim push ")[1].split()
    kept = Path(command[0])
    assert (kept / "transformers" / "model.safetensors").is_file()
    again = ["-m", "swin_mim", "push", *command[:2]]
    machine = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    (end,) = forked.run(again, tmp_path, environment=machine, variables=client_environment, timeout=300)
    assert end.code == 0, end.said
    assert set(hub.commits(repo)[-1][1]) >= {"model.safetensors", "transformers/model.safetensors", "README.md"}
    assert hub.token not in output + end.said
    assert json.loads((kept / "config.json").read_text())["swin_mim"]["model"] == "SimMIM"


@pytest.mark.parametrize(("error", "left"), [(KeyboardInterrupt(), 0), (UserError("the Hub says no"), 1)])
def test_a_push_that_is_interrupted_leaves_nothing_and_one_that_fails_what_its_message_names(
    error: BaseException, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push(*arguments: object, **options: object) -> str:
        raise error

    monkeypatch.setattr(repository, "push", push)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(type(error)):
        SimMIM(CONFIG).push_to_hub("user/model")
    assert len(list(tmp_path.rglob("model.safetensors"))) == left
    assert len(list(tmp_path.glob("swin_mim_*"))) == left
