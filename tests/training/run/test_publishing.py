"""What a run tells of itself: only what was measured, of the weights that are published, and nothing of its machine."""

import importlib.metadata
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

import swin_mim
from swin_mim import SimMIM, SwinClassifier, SwinConfig
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.labels import Labelled
from swin_mim.data.sources.base import Source
from swin_mim.errors import UserError
from swin_mim.evaluation.classification import Outcome
from swin_mim.evaluation.classification_evaluator import ClassificationEvaluator, last_report
from swin_mim.hub.about import About, Result
from swin_mim.training.checkpoints.state import RunState
from swin_mim.training.config.finetune import ClassifierConfig, FinetuneConfig, LabelledDataConfig
from swin_mim.training.config.parsing import from_mapping
from swin_mim.training.config.pretrain import HubConfig, PretrainConfig, RunConfig
from swin_mim.training.run import labelled_export
from swin_mim.training.run.export import CLASSIFICATION, classes_learned
from swin_mim.training.run.labelled_export import about_labelled
from swin_mim.training.run.publishing import Origin, RunFacts, about_run, check

SWIN = SwinConfig(64, embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4)
NAMES = ("birch", "oak", "pine")
STATE = RunState(step=60, samples_seen=960)
NOWHERE = Origin(data_on_hub=False, base_on_hub=False, base_is_simmim=False)


@pytest.fixture(autouse=True)
def _quick_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plot has tests of its own."""

    def draw(folder: Path) -> Path:
        path = folder / "plots" / "loss.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
        return path

    monkeypatch.setattr(labelled_export, "plot_curves", draw)


def tuning(source: str = "blue_marble", pretrained: str | None = None, **data: Any) -> FinetuneConfig:
    """The settings of a fine-tuning on `source`."""
    return FinetuneConfig(
        RunConfig("trees"), data=LabelledDataConfig(source, **data), model=ClassifierConfig(pretrained)
    )


def with_(config: Any, section: str, **values: Any) -> Any:
    return replace(config, **{section: replace(getattr(config, section), **values)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Publisher of a run that has measured its loss and its accuracy."""
    folder = tmp_path / "runs" / "trees"
    folder.mkdir(parents=True)
    rows = [
        {"step": 20, "loss": 1.0, "images_per_second": 16.0},
        {"step": 20, "heldout_loss": 0.9, "accuracy": 0.5},
        {"step": 60, "loss": 0.5, "images_per_second": 64.0},
        {"step": 60, "heldout_loss": 0.8, "accuracy": 0.75},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def outcome(*, several: bool = False) -> Outcome:
    """Six images of three classes, five of them right."""
    top = np.array([[0, 1, 2], [0, 1, 2], [1, 0, 2], [0, 1, 2], [2, 1, 0], [2, 1, 0]])
    targets = np.array([0, 0, 1, 1, 2, 2])
    return Outcome(
        images=np.arange(6),
        targets=np.eye(3, dtype=bool)[targets] if several else targets,
        loss=np.full(6, 0.25),
        top=top,
        probabilities=np.eye(3)[top[:, 0]] * 0.6 + 0.2 if several else np.tile([0.7, 0.2, 0.1], (6, 1)),
        missing=1,
        classes=3,
    )


class NoImages(Source):
    """Images that were evaluated, and can no longer be read."""

    def __len__(self) -> int:
        return 6

    def name(self, index: int) -> str:
        return f"{index}.jpg"

    def image(self, index: int) -> Any:
        raise BrokenImage("it is gone")


def judged(folder: Path, step: int | None, *, several: bool = False) -> dict[str, Any]:
    """The report of an evaluation, which a run leaves in its folder."""
    measured = outcome(several=several)
    no_reader: Any = None
    ClassificationEvaluator(Labelled(NoImages(), NAMES, measured.targets), no_reader).write(
        folder / "evaluation", measured, step=step
    )
    return last_report(folder / "evaluation")


def told(folder: Path, config: FinetuneConfig, **changes: Any) -> About:
    arguments: dict[str, Any] = {"report": {}, "step": 60}
    run = RunFacts(folder, changes.pop("origin", NOWHERE), "1 x NVIDIA H100", "bf16")
    learned = classes_learned(config, run.origin, 12, 3)
    return about_labelled(CLASSIFICATION, run, config, STATE, learned, **(arguments | changes))


def told_of_pretraining(folder: Path, config: PretrainConfig) -> About:
    run = RunFacts(folder, NOWHERE, "1 x NVIDIA H100", "bf16")
    return about_run(run, config, STATE, images=90, heldout=10)


# What was measured.


def test_the_report_of_the_published_weights_is_told(folder: Path) -> None:
    about = told(folder, tuning(), report=judged(folder, 60))
    assert about.results == (
        Result("Blue Marble", "accuracy on 6 images", "accuracy", 0.833333, "held out"),
        Result("Blue Marble", "balanced accuracy on 6 images", "balanced_accuracy", 0.833333, "held out"),
    )
    assert [picture.name for picture in about.pictures] == ["card_confusion.png", "loss.png"]
    assert about.pictures[0].file == folder / "evaluation" / "confusion.png"
    assert about.training is not None
    assert about.training.data.endswith("; evaluated on 6 others.")
    assert (about.training.steps, about.training.images) == (60, 960)
    assert "Published" not in about.training.facts


@pytest.mark.parametrize("step", [20, 40, None])
def test_the_report_of_other_weights_is_not(folder: Path, step: int | None) -> None:
    report = judged(folder, step)
    about = told(folder, tuning(), report=report)
    assert about == told(folder, tuning(), report={}), "as if nothing had been measured"
    assert about.results == ()
    assert [picture.name for picture in about.pictures] == ["loss.png"]
    assert about.training is not None
    assert "evaluated" not in about.training.data


def test_the_best_weights_are_published_with_their_own_report(folder: Path) -> None:
    about = told(folder, tuning(), report=judged(folder, 40), step=40)
    assert about.results[0].value == 0.833333
    assert about.training is not None
    assert about.training.steps == 60
    assert about.training.facts["Published"].startswith("the weights after step 40, the best of all evaluations")


def test_several_labels_have_their_own_metric_and_no_confusions(folder: Path) -> None:
    about = told(folder, tuning(multi_label=True), report=judged(folder, 60, several=True))
    assert [result.type for result in about.results] == ["accuracy", "mean_average_precision"]
    assert about.results[1].metric == "mean average precision on 6 images"
    assert [picture.name for picture in about.pictures] == ["loss.png"]


def test_the_split_is_named(folder: Path) -> None:
    report = judged(folder, 60)
    about = told(folder, tuning("user/trees", validation_split="test"), report=report)
    assert {(result.dataset, result.split) for result in about.results} == {("user/trees", "test")}


# What it was trained on, and how.


@pytest.mark.parametrize(
    ("source", "on_hub", "few", "text"),
    [
        ("blue_marble", False, 0, "12 labelled satellite tiles of land, cut from NASA's Blue Marble (public domain), "),
        ("blue_marble", False, 4, "(public domain), 4 of each class, in 3 classes."),
        ("user/trees", True, 0, "12 labelled images of the data set user/trees, in 3 classes."),
        ("photos/trees", False, 4, '12 labelled images of a folder "photos/trees", 4 of each class, in 3 classes.'),
        ("/data/secret/trees", False, 0, '12 labelled images of a folder "trees", in 3 classes.'),
    ],
)
def test_the_data_in_one_sentence(folder: Path, source: str, on_hub: bool, few: int, text: str) -> None:
    origin = replace(NOWHERE, data_on_hub=on_hub)
    about = told(folder, tuning(source, labels_per_class=few), origin=origin)
    assert about.training is not None
    assert text in about.training.data
    assert about.datasets == ((source,) if on_hub else ())


def test_where_the_weights_come_from(folder: Path) -> None:
    new = told(folder, tuning())
    assert new.training is not None
    assert new.training.facts["Method"] == "training from new weights"
    assert "Started from" not in new.training.facts
    assert (new.base_model, new.tags) == (None, ())
    hub = told(folder, tuning(pretrained="user/base"), origin=Origin(False, True, True))
    assert hub.training is not None
    assert hub.training.facts["Method"] == "fine-tuning"
    assert hub.training.facts["Started from"] == "user/base"
    assert (hub.base_model, hub.tags) == ("user/base", ("simmim",))
    local = told(folder, tuning(pretrained="/secret/runs/base"), origin=Origin(False, False, True))
    assert local.training is not None
    assert local.training.facts["Started from"] == "base"
    assert (local.base_model, local.tags) == (None, ("simmim",))
    assert told(folder, tuning(pretrained="user/base"), origin=Origin(False, True, False)).tags == ()


def test_how_it_was_trained(folder: Path) -> None:
    config = with_(with_(tuning(), "train", ema=0.999, global_batch=16), "optim", layer_decay=0.75, base_lr=8e-3)
    training = told(folder, with_(config, "model", drop_path_rate=0.2)).training
    assert training is not None
    assert (
        training.facts.items()
        >= {
            "Layer-wise decay of the learning rate": "0.75",
            "Stochastic depth": "0.2",
            "Weights": "a running average with decay 0.999",
            "Global batch": "16",
            "Peak learning rate": "0.00025 (AdamW, cosine)",
            "Precision": "bf16",
            "Hardware": "1 x NVIDIA H100",
            "Time of the training steps": "0:30",
        }.items()
    )
    assert training.command.startswith("accelerate launch -m swin_mim.recipes.finetune ")
    assert re.match(r"swin_mim \S+, torch \d", training.facts["Software"])
    plain = told(folder, tuning()).training
    assert plain is not None
    assert "Weights" not in plain.facts
    assert not any("comparison" in key or "Mask" in key for key in plain.facts)


def test_a_checkout_that_nobody_installed_has_a_version_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = told(folder, tuning()).training
    assert training is not None
    assert training.facts["Software"].startswith(f"swin_mim {swin_mim.__version__}, torch ")

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert swin_mim.__version__ == "0+unknown"


def test_a_pretraining_tells_of_masks_and_of_holes_filled_with_nothing_learned(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 0, "mean_fill_error": 0.5, "interpolation_error": 0.4}\n')
    about = told_of_pretraining(folder, PretrainConfig(RunConfig("trees")))
    assert about.training is not None
    facts = about.training.facts
    assert facts["Mask"] == "60% of squares of 32 pixels"
    assert facts["For comparison: holes filled with the mean of the visible pixels"] == "0.5000"
    assert facts["For comparison: holes interpolated"] == "0.4000"
    assert [result.value for result in about.results] == [0.8]
    assert not any("accuracy" in result.type for result in about.results)


def test_what_is_told_names_no_folder_of_the_machine(folder: Path) -> None:
    """Before the card looks for such names itself."""
    config = with_(tuning("/secret/trees", "/secret/runs/base"), "run", root="/secret/runs")
    about = told(folder, replace(config, predictions="/secret/p.csv"), report=judged(folder, 60))
    assert "secret" not in repr(replace(about, pictures=()))
    assert {result.dataset for result in about.results} == {"trees"}


# Where data and weights are from, written down at the start.


@pytest.mark.parametrize(
    ("source", "pretrained", "expected"),
    [
        ("blue_marble", None, (False, False)),
        ("user/trees", None, (True, False)),
        ("user/trees", "user/base", (True, True)),
        ("photos", "user/base", (False, True)),
        ("photos", "runs/base", (False, False)),
        ("photos", "base", (False, False)),
        ("photos", "no folder either", (False, False)),
    ],
)
def test_an_origin_is_what_is_there(
    source: str, pretrained: str | None, expected: tuple[bool, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for there in ("run", "photos", "runs/base", "base"):
        Path(there).mkdir(parents=True)
    for simmim in (True, False):
        for config in (tuning(source, pretrained), with_(PretrainConfig(RunConfig("x")), "data", source=source)):
            base = config.model.pretrained is not None and expected[1]
            found = Origin.of(tmp_path / "run", config, base_is_simmim=simmim, resumed=False)
            assert found == Origin(expected[0], base, simmim)


def test_an_origin_is_written_once_and_outlives_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a resumed run a folder that is gone looks like a name of the Hub, and the weights are a classifier's."""
    monkeypatch.chdir(tmp_path)
    for there in ("run", "user/photos", "runs/base"):
        Path(there).mkdir(parents=True)
    config = tuning("user/photos", "runs/base")
    first = Origin.of(tmp_path / "run", config, base_is_simmim=True, resumed=False)
    assert first == Origin(data_on_hub=False, base_on_hub=False, base_is_simmim=True)
    path = tmp_path / "run" / "origin.json"
    written = path.read_bytes()
    assert json.loads(written) == asdict(first)
    for gone in ("user", "runs"):
        shutil.rmtree(gone)
    assert Origin.of(tmp_path / "run", config, base_is_simmim=False, resumed=True) == first
    assert path.read_bytes() == written
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["origin.json"]
    anew = Origin.of(tmp_path / "run", config, base_is_simmim=False, resumed=False)
    assert anew == Origin(True, True, False), "a run that never saved anything starts with its new settings"


# The card.


@pytest.fixture
def exported(folder: Path, tmp_path: Path) -> Path:
    """A classifier of a run on a folder, from a folder, which are gone when it ends -> its export."""
    photos, base = tmp_path / "my photos", tmp_path / "base"
    photos.mkdir()
    SimMIM(SWIN).save_pretrained(base)
    classifier = SwinClassifier.from_pretrained(base, num_classes=3)
    classifier.labels = NAMES
    config = with_(tuning(str(photos), str(base)), "run", root=str(folder.parent))
    hub = HubConfig(repo="user/private-name", license="cc-by-4.0")
    config = replace(config, predictions=str(tmp_path / "predicted.csv"), hub=hub)
    Origin.of(folder, config, base_is_simmim=classifier.from_simmim, resumed=False)
    shutil.rmtree(photos)
    shutil.rmtree(base)
    origin = Origin.of(folder, config, base_is_simmim=False, resumed=True)
    about = told(folder, config, origin=origin, report=judged(folder, 60))
    return classifier.save_pretrained(folder / "export", about=about)


def test_the_card_of_a_fine_tuning_has_its_accuracy_and_its_confusions(exported: Path, folder: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "README.md", "card_confusion.png", "config.json", "loss.png", "model.safetensors",
    }  # fmt: skip
    assert (exported / "card_confusion.png").read_bytes() == (folder / "evaluation" / "confusion.png").read_bytes()
    assert (exported / "loss.png").read_bytes() == (folder / "plots" / "loss.png").read_bytes()
    for picture in exported.glob("*.png"):
        with Image.open(picture) as image:
            image.load()
    card = ModelCard((exported / "README.md").read_text())
    data = card.data
    assert isinstance(data, ModelCardData)
    assert data.eval_results is not None
    results = {(r.metric_type, r.metric_value, r.dataset_name, r.dataset_split) for r in data.eval_results}
    assert results == {
        ("accuracy", 0.833333, "my photos", "held out"),
        ("balanced_accuracy", 0.833333, "my photos", "held out"),
    }
    assert {result.task_type for result in data.eval_results} == {"image-classification"}
    assert (data.pipeline_tag, data.license, data.base_model, data.datasets) == (
        "image-classification", "cc-by-4.0", None, None,
    )  # fmt: skip
    assert "simmim" in (data.tags or [])
    assert "](card_confusion.png)" in card.text
    assert "| my photos, held out | accuracy on 6 images | 0.8333 |" in card.text.splitlines()
    assert '12 labelled images of a folder "my photos", in 3 classes; evaluated on 6 others.' in card.text
    assert "Its encoder was pretrained with [SimMIM]" in card.text
    assert "| Classes | 3: birch, oak, pine |" in card.text


def test_no_path_of_the_machine_is_in_the_card(exported: Path, tmp_path: Path) -> None:
    text = (exported / "README.md").read_text()
    assert str(tmp_path) not in text
    for part in tmp_path.parts[1:]:
        assert f"/{part}" not in text
        assert f"{part}/" not in text
    (recipe,) = re.findall(r"```yaml\n(.*?)\n```", text, re.DOTALL)
    config = from_mapping(FinetuneConfig, yaml.safe_load(recipe), "card")
    assert (config.data.source, config.model.pretrained, config.run.root) == ("my photos", "base", "runs")
    assert (config.predictions, config.hub.repo) == ("predicted.csv", None)


def test_a_card_without_a_report_promises_nothing(folder: Path, tmp_path: Path) -> None:
    classifier = SwinClassifier(SWIN, 3)
    classifier.labels = NAMES
    judged(folder, 20)
    saved = classifier.save_pretrained(tmp_path / "saved", about=told(folder, tuning()))
    assert not (saved / "card_confusion.png").exists()
    text = (saved / "README.md").read_text()
    assert "## Results" not in text
    assert "confusion" not in text
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    assert data.eval_results is None
    assert "simmim" not in (data.tags or [])


@pytest.mark.parametrize(
    ("hub", "text"),
    [
        (HubConfig(license="my own!"), "no identifier of the Hub"),
        (HubConfig(repo="a/b/c"), "repo 'a/b/c' is no name of the Hub"),
        (HubConfig(transformers=True), "hub.transformers: transformers has one window"),
    ],
)
def test_what_the_end_of_a_fine_tuning_would_refuse_is_refused_at_its_start(
    hub: HubConfig, text: str, folder: Path
) -> None:
    classifier = SwinClassifier(replace(SWIN, window_size=12), 3)
    check(folder, tuning(), classifier.description())
    with pytest.raises(UserError, match=text) as caught:
        check(folder, replace(tuning(), hub=hub), classifier.description())
    assert "\n" not in str(caught.value)
    (folder / "export").mkdir()
    (folder / "export" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"thesis\.tex, which is no part"):
        check(folder, tuning(), classifier.description())


def test_folders_with_spaces_in_their_names_stay_on_the_machine(folder: Path, tmp_path: Path) -> None:
    secret = "/home/jane doherty/secret project"
    config = with_(tuning(f"{secret}/my trees", f"{secret}/base"), "run", root=f"{secret}/runs")
    about = told(folder, config, report=judged(folder, 60))
    assert not {"doherty", "secret"} & set(re.findall(r"\w+", repr(replace(about, pictures=()))))
    assert {result.dataset for result in about.results} == {"my trees"}
    assert about.training is not None
    assert about.training.facts["Started from"] == "base"
    classifier = SwinClassifier(SWIN, 3)
    text = (classifier.save_pretrained(tmp_path / "saved", about=about) / "README.md").read_text()
    assert "doherty" not in text
    assert "secret" not in text
    pretraining = with_(
        with_(PretrainConfig(RunConfig("x")), "data", source=f"{secret}/my trees"), "run", root=f"{secret}/runs"
    )
    pretraining = with_(pretraining, "model", pretrained=f"{secret}/base")
    about = told_of_pretraining(folder, pretraining)
    assert not {"doherty", "secret"} & set(re.findall(r"\w+", repr(replace(about, pictures=()))))


@pytest.mark.parametrize("name", ["train", "é", "a b"])
def test_no_signature_and_no_password_of_an_address_gets_into_a_card(folder: Path, name: str) -> None:
    source = f"https://me:PASSWORD@host/{name}-{{0..1}}.tar?X-Signature=SECRET"
    config = with_(PretrainConfig(RunConfig("x")), "data", source=source, streaming=True)
    about = told_of_pretraining(folder, config)
    text = repr(replace(about, pictures=()))
    assert "SECRET" not in text
    assert "PASSWORD" not in text
    assert "host/" in text


def test_an_accuracy_is_of_the_images_it_was_measured_on(folder: Path) -> None:
    config = tuning("user/photos", validation="/data/atlas")
    about = told(folder, config, report=judged(folder, 60))
    assert {(result.dataset, result.split) for result in about.results} == {("atlas", "validation")}
