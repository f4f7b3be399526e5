"""The recipe as a user meets it."""

import json
import random

import numpy as np
import pytest
import run_recipe
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from swin_mim import SimMIM, SwinConfig

CONFIG = SwinConfig(32, embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=4)


def mixed_folder(folder):
    """320 pictures in nested folders: seven formats and modes, many sizes, three broken ones."""
    rng = np.random.default_rng(1)
    modes = ["RGB", "L", "P", "RGBA", "CMYK", "1", "I;16"]
    suffixes = {"RGB": "jpg", "L": "JPEG", "P": "gif", "RGBA": "png", "CMYK": "tif", "1": "bmp", "I;16": "png"}
    for i in range(320):
        mode = modes[i % len(modes)]
        size = tuple(int(n) for n in rng.integers(10, 90, 2))
        image = Image.fromarray(rng.integers(0, 255, (3, 3, 3), dtype=np.uint8)).resize(size)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        path = folder / f"class {i % 3}" / f"{'deep/' * (i % 2)}{i:03d}.{suffixes[mode]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("not a picture")
    cut = sorted(folder.rglob("*.jpg"))[5]
    cut.write_bytes(cut.read_bytes()[:-200])
    (folder / "notes.txt").write_text("not looked at")
    return {"empty.jpg", "text.png", cut.relative_to(folder).as_posix()}


def test_a_run_that_learns_nothing_says_so_once_it_should(recipe, images):
    settings = ("--train.duration", "40 steps", "--log.evaluate_every", "5 steps")
    output = recipe.run("idle", "--data.source", str(images), "--optim.base_lr", "1e-9", *settings)
    said = [line for line in output.splitlines() if "held-out loss" in line and "/40" in line]
    assert len(said) == 8
    assert "above that of the mean of the visible pixels" in said[0]  # new weights answer at random
    assert "nothing is learned" not in said[0]  # step 5: a warm-up of 2 steps and a tenth of the run
    assert all("nothing is learned" in line for line in said[1:])


def test_a_folder_of_mixed_and_broken_images_trains(recipe, tmp_path):
    broken = mixed_folder(tmp_path / "images")
    output = recipe.run(
        "mixed",
        *("--data.source", str(tmp_path / "images"), "--data.workers", "2", "--train.duration", "45 steps"),
        *("--log.pictures_every", "20 steps", "--log.trackers", "tensorboard"),
    )
    folder = recipe.path("mixed")
    listed = [json.loads(line) for line in (folder / "broken_images.jsonl").read_text().splitlines()]
    assert {entry["name"] for entry in listed} == broken
    assert all(entry["reason"] for entry in listed)
    assert "finished" in output
    for picture in ["samples/step_0000020.png", "samples/step_0000045.png", "plots/loss.png"]:
        Image.open(folder / picture).verify()
    assert list(folder.glob("tensorboard/**/events.out.tfevents.*"))
    assert {"config.yaml", "metrics.jsonl", "train.log", "run_status.json"} <= {p.name for p in folder.iterdir()}
    row = recipe.metrics("mixed")[-2]
    assert row["broken"] > 0
    assert json.loads((folder / "run_status.json").read_text())["status"] == "finished"


def test_too_many_broken_images_stop_the_run(recipe, tmp_path):
    mixed_folder(tmp_path / "images")
    for path in random.Random(0).sample(sorted(tmp_path.rglob("*.bmp")), 20):
        path.write_bytes(b"")
    flags = ["--data.source", str(tmp_path / "images"), "--train.duration", "80 steps"]
    output = recipe.run("rotten", *flags, expect=65)
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "more than data.max_broken 1.00%" in last
    assert "broken_images.jsonl" in last
    assert json.loads((recipe.path("rotten") / "run_status.json").read_text())["status"] == "failed"


def test_the_checkpoint_is_a_plain_model(recipe, whole_run):
    checkpoint = recipe.path(whole_run) / "checkpoints" / "step_0000000010"
    assert sorted(p.name for p in checkpoint.iterdir()) == [
        "MANIFEST.json", "config.json", "model.safetensors", "optimizer.safetensors", "trainer.json",
    ]  # fmt: skip
    SimMIM(CONFIG).load_state_dict(load_file(checkpoint / "model.safetensors"))
    loaded = SimMIM.from_pretrained(checkpoint)
    assert loaded.encoder.config == CONFIG
    kept = sorted(p.name for p in checkpoint.parent.iterdir())
    assert kept == ["step_0000000005", "step_0000000010"]


def test_a_run_leaves_an_export(recipe, whole_run):
    """Loaded by its run's folder: the weights of the last checkpoint, and a card of what was measured."""
    folder = recipe.path(whole_run)
    exported, last = SimMIM.from_pretrained(folder), SimMIM.from_pretrained(folder / "checkpoints/step_0000000010")
    assert all(torch.equal(a, b) for a, b in zip(exported.parameters(), last.parameters(), strict=True))
    card = ModelCard.load(folder / "export" / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(recipe.metrics(whole_run)[-1]["heldout_loss"], abs=1e-6)
    assert str(recipe.folder) not in card.content
    assert {path.name for path in (folder / "export").iterdir()} == {
        "README.md", "config.json", "loss.png", "mim_head.safetensors", "model.safetensors",
    }  # fmt: skip


def test_a_run_from_pretrained_weights(recipe, whole_run):
    """Starts where the other run ended; continued, it goes on from its own checkpoint."""
    source = str(recipe.path(whole_run) / "export")
    flags = ["--model.pretrained", source, "--optim.base_lr", "1e-9", "--optim.warmup_lr", "1e-9"]
    output = recipe.run("continued", *flags, "--train.stop_after", "5 steps")
    assert f"from {source}" in output
    before = next(row["heldout_loss"] for row in reversed(recipe.metrics(whole_run)) if "heldout_loss" in row)
    losses = [row["heldout_loss"] for row in recipe.metrics("continued") if "heldout_loss" in row]
    assert losses == [pytest.approx(before, abs=1e-5)]
    assert "resumed at step 5" in recipe.run("continued", *flags)
    output = recipe.run("unfit", "--model.pretrained", source, "--model.embed_dim", "32", expect=2)
    assert "has embed_dim 16 and the model wanted 32" in output


def test_other_arithmetic(recipe, whole_run):
    """Compiled, recomputed and SDPA runs are the same run; bf16 and a normalised target are near and not equal."""
    for name, flags, tolerance in [
        ("recomputed", ["--train.activation_checkpointing"], 0),
        ("sdpa", ["--train.attention", "sdpa"], 1e-4),
        ("bf16", ["--train.precision", "bf16"], 3e-2),
    ]:
        recipe.run(name, *flags)
        assert recipe.losses(name) == pytest.approx(recipe.losses(whole_run), abs=tolerance, rel=0), name
    assert recipe.losses("bf16") != recipe.losses(whole_run)


@pytest.mark.slow
def test_compiled(recipe, whole_run):
    recipe.run("compiled", "--train.compile")
    assert recipe.losses("compiled") == pytest.approx(recipe.losses(whole_run), abs=1e-4, rel=0)


COUNTED = """
import functools, sys
import torch._dynamo.testing
from swin_mim.training.config.commands import pretrain_config
from swin_mim.training.run import run

counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
run.compile_model = functools.partial(run.compile_model, backend=counter)
from swin_mim.recipes.pretrain import main
code = main(pretrain_config())
print(f"graphs: {counter.frame_count}")
sys.exit(code)
"""


@pytest.mark.slow
def test_a_whole_run_compiles_each_graph_once(recipe, labelled, tmp_path):
    """Evaluations, pictures and probes see batches of many sizes, and compile nothing."""
    script = tmp_path / "counted.py"
    script.write_text(COUNTED)
    flags = [
        "--train.compile",
        "--log.pictures_every",
        "5 steps",
        "--model.drop_path_rate",
        "0.2",
        "--data.heldout",
        "7",
    ]
    flags += ["--probe.every", "5 steps", "--probe.source", str(labelled / "train"), "--probe.images", "30"]
    code, output = run_recipe.run(script, recipe.arguments("counted", tuple(flags)), recipe.folder)
    assert code == 0, output
    assert ", compiled in the first step; " in output
    # two stages with blocks that are shifted or not, embedding, merging, final norm, masked cells
    assert "graphs: 8\n" in output


def test_normalized_target(recipe):
    output = recipe.run("normalized", "--model.target", "normalized", "--log.pictures_every", "10 steps")
    errors = recipe.metrics("normalized")[0]
    assert errors["mean_fill_error"] > errors["interpolation_error"] > 0
    assert "finished" in output


@pytest.mark.slow
def test_zero_in_bf16(recipe, whole_run):
    recipe.launch("zero_bf16", "--train.micro_batch", "8", "--train.precision", "bf16", zero=1)
    assert recipe.losses("zero_bf16") == pytest.approx(recipe.losses(whole_run), abs=6e-2, rel=0)


@pytest.mark.parametrize(("flags", "text"), [
    (["--model.image_size", "200", "--model.window_size", "6", "--mask.unit", "32"],
     "model.image_size 200 is not a multiple of mask.unit 32: use 192 (windows of 6 "),
    (["--optim.base_rl", "1"], "did you mean"),
    (["--data.source", "/nowhere/at/all"], "does not exist"),
    (["--train.global_batch", "17"], "train.global_batch 16"),
    (["--train.precision", "fp16"], "fp16 needs a GPU"),
    (["--log.trackers", "aim"], "pip install aim"),
    (["--optim.warmup", "10 steps"], "the warm-up must be shorter"),
    (["--hub.repo", "no repository"], "must be user/name"),
    (["--hub.every", "2"], "name a repository with hub.repo"),
    (["--model.pretrained", "/nowhere/at/all"], "does not exist"),
])  # fmt: skip
def test_a_users_mistake_is_one_line_and_exit_code_2(flags, text, recipe):
    output = recipe.run("mistake", *flags, expect=2).strip()
    assert text in output
    assert output.count("\n") == 0, output


def test_probes_while_it_learns(recipe, labelled, whole_run):
    """At step 0 of an encoder with random weights, then of the one that learns; a resumed run does not begin again."""
    flags = ["--probe.every", "5 steps", "--probe.source", str(labelled / "train"), "--probe.images", "30"]
    flags += ["--probe.validation", str(labelled / "val")]
    recipe.run("probed", *flags, "--train.stop_after", "5 steps")
    output = recipe.run("probed", *flags)
    assert "linear probe " in output
    probed = {row["step"]: row for row in recipe.metrics("probed") if any("stage" in key for key in row)}
    assert list(probed) == [0, 5, 10]
    scores = {f"{kind}_stage{i}" for kind in ("linear", "linear_balanced", "knn", "knn_balanced") for i in (1, 2)}
    assert set(probed[0]) == {"step"} | {f"random_{name}" for name in scores}
    assert set(probed[5]) == set(probed[10]) == {"step"} | scores
    assert all(0 <= value <= 1 for row in probed.values() for key, value in row.items() if key != "step")
    assert probed[10]["linear_stage1"] > 0.6  # three classes that colours tell
    assert recipe.losses("probed") == recipe.losses(whole_run)


def test_early_probes_come_at_twice_as_many_steps_each_time(recipe, labelled, whole_run):
    """And at the end, in a run that is stopped between them too; with every probe the same as in their place."""
    flags = ["--probe.first", "2 steps", "--probe.source", str(labelled / "train"), "--probe.images", "30"]
    recipe.run("probed_early", *flags, "--train.stop_after", "5 steps")
    recipe.run("probed_early", *flags)
    probed = [row["step"] for row in recipe.metrics("probed_early") if any("stage" in key for key in row)]
    assert probed == [0, 2, 4, 8, 10]
    assert recipe.losses("probed_early") == recipe.losses(whole_run)


def test_the_first_step_is_a_line_where_there_is_no_progress_bar(recipe):
    """Also after a resume; metrics.jsonl has no more rows for it."""
    flags = ["--log.every", "4 steps", "--log.evaluate_every", "0 steps"]
    output = recipe.run("first_step", *flags, "--train.stop_after", "5 steps")
    lines = [line.removeprefix("step").split() for line in output.splitlines() if line.startswith("step ")]
    assert [line[0] for line in lines] == ["1/10", "4/10"]
    assert "next line after step 4" in output
    output = recipe.run("first_step", *flags)
    assert "step      6/10  loss " in output
    assert "next line after step 8" in output
    assert [row["step"] for row in recipe.metrics("first_step") if "loss" in row] == [4, 8, 10]
