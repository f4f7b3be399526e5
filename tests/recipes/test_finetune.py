"""The fine-tuning recipe as a user meets it."""

import csv
import json
import shutil

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from test_publish import canaries, run

from swin_mim import SwinClassifier

NAMES = ("blue", "green", "red")
QUICK = ("--train.duration", "4 steps", "--log.evaluate_every", "2 steps", "--save.every", "2 steps")


def pretrained_flags(recipe, whole_run):
    """What starts from the tiny pretraining; its network comes with it."""
    nothing = {"name": "None", "embed_dim": "None", "depths": "None", "num_heads": "None"}
    flags = [word for key, value in nothing.items() for word in (f"--model.{key}", value)]
    return ["--model.pretrained", str(recipe.path(whole_run)), *flags]


def report(recipe, name):
    return json.loads((recipe.path(name) / "evaluation" / "metrics.json").read_text())


def test_a_run_leaves_its_best_model_and_what_it_measured(finetune, whole_finetune):
    folder = finetune.path(whole_finetune)
    rows = [row for row in finetune.metrics(whole_finetune) if "accuracy" in row]
    best = max(rows, key=lambda row: (row["accuracy"], row["step"]))
    assert report(finetune, whole_finetune)["step"] == best["step"]
    assert report(finetune, whole_finetune)["metrics"]["accuracy"] == best["accuracy"]
    model = SwinClassifier.from_pretrained(folder)
    assert model.labels == NAMES
    assert (model.preprocessing.interpolation, model.preprocessing.crop_pct) == ("bicubic", 0.875)
    published = load_file(folder / "checkpoints" / f"step_{best['step']:010d}" / "average.safetensors")
    assert all(torch.equal(value, published[key]) for key, value in model.state_dict().items())
    (accuracy, *_) = ModelCard.load(folder / "export" / "README.md").data.eval_results
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", pytest.approx(best["accuracy"], abs=1e-6))
    assert canaries(folder / "export", str(finetune.folder)) == []
    for picture in ("evaluation/confusion.png", "plots/loss.png", "export/card_confusion.png"):
        Image.open(folder / picture).verify()


def test_the_best_checkpoint_outlives_newer_ones(finetune):
    """A rate that destroys what was learnt: the best step is an early one, and two later ones are kept besides."""
    flags = ["--train.duration", "12 steps", "--log.evaluate_every", "2 steps", "--save.every", "2 steps"]
    flags += ["--save.best_by", "loss", "--optim.schedule", "multistep", "--optim.milestones", "4 steps"]
    finetune.run("spoilt", *flags, "--optim.gamma", "1000", "--train.ema", "0")
    rows = [row for row in finetune.metrics("spoilt") if "heldout_loss" in row]
    best = min(rows, key=lambda row: row["heldout_loss"])["step"]
    assert best <= 6
    kept = sorted(path.name for path in (finetune.path("spoilt") / "checkpoints").iterdir())
    assert kept == [f"step_{step:010d}" for step in (best, 10, 12)]
    assert report(finetune, "spoilt")["step"] == best
    assert "the best of all evaluations" in (finetune.path("spoilt") / "export" / "README.md").read_text()
    finetune.run("spoilt", "--save.export", "last", *flags, "--optim.gamma", "1000", "--train.ema", "0")
    assert report(finetune, "spoilt")["step"] == 12
    shutil.rmtree(finetune.path("spoilt") / "checkpoints" / kept[0])  # as if the disk had been full
    output = finetune.run("spoilt", *flags, "--optim.gamma", "1000", "--train.ema", "0")
    assert "the checkpoint of the best step could not be written: the last one is published" in output
    assert "published: the weights after step 12" in output


def test_from_a_pretraining(finetune, recipe, whole_run):
    """The encoder's weights and the mean of its images come with it; windows are resized, a card says so."""
    flags = [*pretrained_flags(recipe, whole_run), "--model.image_size", "48", "--model.window_size", "6"]
    output = finetune.run("pretrained", *flags, *QUICK, "--optim.base_lr", "1e-9", "--train.ema", "0")
    assert f"from {recipe.path(whole_run)}" in output
    assert "48x48 px" in output
    model = SwinClassifier.from_pretrained(finetune.path("pretrained"))
    source = load_file(recipe.path(whole_run) / "export" / "model.safetensors")
    ours = model.encoder.state_dict()
    assert torch.allclose(
        ours["layers.0.blocks.0.mlp.fc1.weight"], source["layers.0.blocks.0.mlp.fc1.weight"], atol=1e-6
    )
    assert ours["layers.0.blocks.0.attn.relative_position_bias_table"].shape == (11 * 11, 1)
    assert "pretrained with [SimMIM]" in (finetune.path("pretrained") / "export" / "README.md").read_text()
    assert "resumed at step 4" in finetune.run(
        "pretrained", *flags, *QUICK, "--optim.base_lr", "1e-9", "--train.ema", "0"
    )


def test_frozen_stages_stay_as_they_are(finetune, recipe, whole_run):
    flags = [*pretrained_flags(recipe, whole_run), "--model.image_size", "32", "--model.window_size", "4"]
    finetune.run("frozen", *flags, *QUICK, "--model.freeze", "1", "--model.drop_path_rate", "0.2", "--train.ema", "0")
    source = load_file(recipe.path(whole_run) / "export" / "model.safetensors")
    for name, value in SwinClassifier.from_pretrained(finetune.path("frozen")).encoder.state_dict().items():
        assert torch.equal(value, source[name]) == name.startswith(("patch_embed", "layers.0")), name


@pytest.mark.parametrize("balance", ["sampling", "weights"])
def test_skewed_classes_few_labels_and_other_options(balance, finetune):
    output = finetune.run(
        f"few_{balance}", *QUICK, "--data.labels_per_class", "4", "--data.balance", balance,
        "--augment.flips", "dihedral", "--augment.color_jitter", "0.4", "--model.drop_path_rate", "0.1",
        "--optim.layer_decay", "0.8",
        "--predictions", str(finetune.folder / "few.parquet"),
    )  # fmt: skip
    assert "12 images and 23 to evaluate on" in output
    table = pq.read_table(finetune.folder / "few.parquet")
    assert table.num_rows == 23
    assert set(table["label"].to_pylist()) == set(NAMES)
    right = [a == b for a, b in zip(table["label"].to_pylist(), table["predicted"].to_pylist(), strict=True)]
    assert sum(right) / 23 == pytest.approx(report(finetune, f"few_{balance}")["metrics"]["accuracy"])


def test_labels_from_a_column_and_several_of_them(finetune, labelled, tmp_path):
    """A parquet file with a held-out tenth; an image has any number of labels."""
    files = sorted((labelled / "train").rglob("*.png"))
    rows = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "tags": [[file.parent.name, "small"][: 1 + i % 2] for i, file in enumerate(files)],
    }
    tags = datasets.Sequence(datasets.Value("string"))
    features = datasets.Features({"image": datasets.Image(), "tags": tags})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    flags = [
        "--data.source",
        str(tmp_path),
        "--data.validation",
        "None",
        "--data.multi_label",
        "--data.label_column",
        "tags",
    ]
    output = finetune.run("tags", *QUICK, *flags, "--predictions", str(tmp_path / "tags.csv"))
    assert "4 classes" in output
    assert "36 images and 4 to evaluate on" in output
    assert {"mean_average_precision", "heldout_loss"} <= report(finetune, "tags")["metrics"].keys()
    with (tmp_path / "tags.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4
    assert {"labels", "predicted", "probability of small"} <= table[0].keys()
    assert not (finetune.path("tags") / "evaluation" / "confusion.png").exists()


def test_evaluating_alone(finetune, whole_finetune, labelled, tmp_path):
    """A published model in another run's place, on a folder with fewer classes in it; nothing is trained or changed."""
    (tmp_path / "some").mkdir()
    for name in ("red", "blue"):
        (tmp_path / "some" / name).symlink_to(labelled / "val" / name)
    export = finetune.path(whole_finetune) / "export"
    flags = ["--evaluate", "--model.pretrained", str(export), "--data.source", str(tmp_path / "some")]
    flags += [
        "--data.validation",
        "None",
        "--model.name",
        "None",
        "--model.embed_dim",
        "None",
        "--model.depths",
        "None",
    ]
    flags += ["--model.num_heads", "None", "--model.image_size", "None", "--model.window_size", "None"]
    output = finetune.run("judged", *flags, "--predictions", str(tmp_path / "out.csv"))
    found = report(finetune, "judged")
    assert found["evaluated"] == 15
    assert found["step"] is None
    assert [entry["images"] for entry in found["classes"]] == [9, 0, 6]
    assert f"{found['metrics']['accuracy']:.4f}" in output
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 16
    assert {path.name for path in finetune.path("judged").iterdir()} <= {"evaluation", "train.log", "tensorboard"}


KEYS = ("name", "embed_dim", "depths", "num_heads", "image_size", "window_size")
ANY_MODEL = [word for key in KEYS for word in (f"--model.{key}", "None")]


@pytest.fixture
def evaluate(finetune, whole_finetune):
    """Evaluates the tiny classifier on other images, in a folder of some name -> output."""

    def run(name, source, *flags, expect=0):
        model = ["--model.pretrained", str(finetune.path(whole_finetune) / "export"), *ANY_MODEL]
        where = ["--data.source", str(source), "--data.validation", "None"]
        return finetune.run(name, "--evaluate", *model, *where, *flags, expect=expect)

    return run


def test_one_class_alone_is_evaluated(finetune, evaluate, labelled, tmp_path):
    (tmp_path / "red").symlink_to(labelled / "val" / "red")
    output = evaluate("one_class", tmp_path)
    found = report(finetune, "one_class")
    assert [entry["images"] for entry in found["classes"]] == [0, 0, 6]
    assert found["metrics"]["accuracy"] == found["classes"][2]["accuracy"]
    assert f"accuracy {found['metrics']['accuracy']:.4f}" in output
    assert "6 images" in output


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_images_without_labels_are_predicted_and_not_measured(finetune, evaluate, labelled, tmp_path):
    """A flat folder, one file, folders that are no classes, and the same images with labels: the same predictions."""
    flat, years = tmp_path / "flat", tmp_path / "years" / "2024"
    shutil.copytree(labelled / "val" / "red", flat)
    shutil.copytree(flat, years)
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "red").symlink_to(flat)
    predicted = {}
    for name, source in (("flat", flat), ("years", years.parent), ("file", flat / "02.png"), ("classes", years)):
        source = tmp_path / "classes" if name == "classes" else source
        output = evaluate(f"predicted_{name}", source, "--predictions", str(tmp_path / f"{name}.csv"))
        assert ("no labels, so predictions only" in output) == ("accuracy" not in output) == (name != "classes")
        assert (finetune.path(f"predicted_{name}") / "evaluation").exists() == (name == "classes")
        predicted[name] = rows(tmp_path / f"{name}.csv")
        assert ({"label", "correct"} <= predicted[name][0].keys()) == (name == "classes")
    probabilities = {name: [row["probability_1"] for row in table] for name, table in predicted.items()}
    assert probabilities["flat"] == probabilities["years"] == probabilities["classes"]
    assert [row["image"] for row in predicted["file"]] == ["02.png"]
    assert probabilities["file"] == probabilities["flat"][2:3]


def test_without_a_file_for_predictions_there_have_to_be_labels(evaluate, labelled):
    output = evaluate("unlabelled", labelled / "val" / "red", expect=2)
    assert "or --predictions FILE.csv for predictions without labels" in output
    assert output.strip().count("\n") == 0


def test_an_evaluation_replaces_none_of_another_model_or_of_other_images(finetune, evaluate, whole_finetune, labelled):
    folder = finetune.path("models")
    evaluate("models", labelled / "val")
    first = (folder / "evaluation" / "metrics.json").read_bytes()
    checkpoint = sorted((finetune.path(whole_finetune) / "checkpoints").iterdir())[0]
    output = evaluate("models", labelled / "val", "--model.pretrained", str(checkpoint))
    assert f"see {folder / 'evaluation_whole'}" in output
    evaluate("models", labelled / "train")
    evaluate("models", labelled / "val")
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/metrics.json")}
    assert {name: found["evaluated"] for name, found in results.items()} == {
        "evaluation": 23,
        "evaluation_whole": 23,
        "evaluation_whole_2": 40,
    }
    assert results["evaluation_whole"]["model"].endswith(checkpoint.name)
    assert (folder / "evaluation" / "metrics.json").read_bytes() == first


def test_a_run_is_evaluated_on_other_images_beside_its_own(finetune, whole_finetune, labelled, tmp_path):
    """All of a source that it did not learn from, and not the tenth that a training would hold out of it."""
    before = report(finetune, whole_finetune)
    for name in ("red", "blue"):
        (tmp_path / name).symlink_to(labelled / "val" / name)
    flags = ["--evaluate", "--data.validation", "None", "--data.source"]
    output = finetune.run(whole_finetune, *flags, str(tmp_path))
    assert "as it is now is not what the run learned from: all of it is evaluated" in output
    other = finetune.path(whole_finetune) / "evaluation_whole" / "metrics.json"
    assert json.loads(other.read_text())["evaluated"] == 15
    assert "the run learned from these images" in finetune.run(whole_finetune, *flags, str(labelled / "train"))
    finetune.run(whole_finetune, "--evaluate")
    assert report(finetune, whole_finetune) == before


def test_a_run_is_evaluated_without_the_images_that_were_excluded(finetune, labelled, tmp_path):
    """With another list nothing tells what it learned from; with a copy of its list that is what was held out."""
    lists = [tmp_path / name for name in ("list.txt", "same.txt")]
    for path in lists:
        path.write_text("blue/00.png\nred/03.png\n")
    flags = ["--data.validation", "None", "--data.source", str(labelled / "train")]
    finetune.run("excluding", *flags, "--data.exclude", str(lists[0]), *QUICK)
    before = report(finetune, "excluding")["evaluated"]
    output = finetune.run("excluding", *flags, *QUICK, "--evaluate", expect=2).strip()
    assert "data.exclude is None and that of the run" in output
    assert output.count("\n") == 0
    assert f"{before} images" in finetune.run(
        "excluding", *flags, *QUICK, "--evaluate", "--data.exclude", str(lists[1])
    )
    lists[0].write_text("blue/00.png\n")
    output = finetune.run("excluding", *flags, *QUICK, "--evaluate", "--data.exclude", str(lists[0]))
    assert "also images that the run may have learned from" in output


@pytest.mark.slow
def test_a_run_is_pushed_between_and_at_its_end(finetune, hub, client_environment):
    repo = f"{hub.user}/classes"
    output = run(finetune, client_environment, "pushed", *QUICK, "--hub.repo", repo, "--hub.every", "1")
    assert "published: " in output
    *_, (_, final) = hub.commits(repo)
    folder = finetune.path("pushed")
    assert {name: final[name] for name in final if name != ".gitattributes"} == {
        path.name: path.read_bytes() for path in (folder / "export").iterdir()
    }
    assert canaries(folder, hub.token) == []


@pytest.mark.parametrize(("flags", "text"), [
    (["--model.pretrained", "/nowhere/at/all"], "does not exist"),
    (["--model.name", "None"], "model.name is needed where there is no model.pretrained"),
    (["--data.source", "/nowhere/at/all"], "does not exist"),
    (["--augment.auto", "rand-m9-oops"], "augment.auto 'rand-m9-oops' is no RandAugment"),
    (["--train.micro_batch", "1"], "train.micro_batch 1 must be even"),
    (["--predictions", "labels.xlsx"], "must end in .csv or .parquet"),
    (["--model.freeze", "1"], "needs model.pretrained"),
    (["--data.label_column", "kind"], "belongs to tables"),
    (["--optim.layer_deacy", "0.9"], "did you mean --optim.layer-decay?"),
    (["--evaluate"], "nothing to evaluate"),
])  # fmt: skip
def test_a_users_mistake_is_one_line_and_exit_code_2(flags, text, finetune):
    output = finetune.run("mistake", *flags, expect=2).strip()
    assert text in output
    assert output.count("\n") == 0, output


def test_a_run_of_another_recipe_is_not_continued(finetune, recipe, whole_run):
    flags = ["--run.root", str(recipe.folder / "runs")]
    output = finetune.run(whole_run, *flags, expect=2).strip()
    assert "holds a run of another kind" in output
    assert output.count("\n") == 0
