import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from swin_mim import SwinConfig
from swin_mim.architecture import NAMED
from swin_mim.errors import UserError
from swin_mim.training.config.common_checks import immutable_differences
from swin_mim.training.config.fields import leaves
from swin_mim.training.config.finetune import (
    MUTABLE,
    AugmentConfig,
    ClassifierConfig,
    FinetuneConfig,
    FinetuneSaveConfig,
)
from swin_mim.training.config.finetune_checks import best_by, check, check_architecture, mixes, new_encoder, sizes
from swin_mim.training.config.parsing import from_mapping, load_config
from swin_mim.training.config.pretrain import PretrainConfig, RunConfig
from swin_mim.training.config.yaml_file import to_yaml

CONFIGS = Path(__file__).parents[3] / "recipes" / "configs"
RECIPES = sorted(CONFIGS.glob("finetune_*.yaml"))
BASE = CONFIGS / "finetune_swin_tiny_192.yaml"
SECTIONS = ["run", "data", "model", "augment", "optim", "train", "log", "save", "hub"]


def load(*arguments: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, arguments, default_config=BASE, prog="finetune.py", description="Fine-tune.")


def error_of(config: FinetuneConfig) -> str:
    with pytest.raises(UserError) as caught:
        check(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def with_settings(config: FinetuneConfig, changes: dict[str, Any]) -> FinetuneConfig:
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        changed = dataclasses.replace(getattr(config, section), **{name: value}) if section else value
        config = dataclasses.replace(config, **{section or name: changed})
    return config


DEFAULTS = FinetuneConfig(RunConfig("x"), model=ClassifierConfig(pretrained="runs/a"))
NEW = ClassifierConfig(name="swin_tiny", image_size=(64,), window_size=(4,))

# ---- the files we ship ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_configs_load_pass_and_survive_a_round_trip(path: Path) -> None:
    config = load("--config", str(path))
    check(with_settings(config, {"model.pretrained": "runs/a"}))
    if config.model.name:
        check(config)
    assert config.run.name == path.stem
    assert from_mapping(FinetuneConfig, yaml.safe_load(to_yaml(config)), "text") == config
    assert path.read_text().startswith("# ")
    if path.stem != "finetune_demo":
        assert "# Published: " in path.read_text()
        assert f"--config {path.stem}" in path.read_text()


@pytest.mark.parametrize(
    ("stem", "name", "image", "window", "layer_decay", "drop_path"),
    [
        ("finetune_swin_base_192", "swin_base", 192, 6, 0.9, 0.1),
        ("finetune_swin_base_224", "swin_base", 224, 7, 0.9, 0.1),
        ("finetune_swin_base_224_800ep", "swin_base", 224, 7, 0.8, 0.1),
        ("finetune_swin_large_224_800ep", "swin_large", 224, 14, 0.7, 0.2),
        ("finetune_swin_tiny_192", "swin_tiny", 192, 6, 0.9, 0.1),
        ("finetune_swinv2_base_224_800ep", "swinv2_base", 224, 14, 0.75, 0.1),
    ],
)
def test_recipes_hold_the_published_values(
    stem: str, name: str, image: int, window: int, layer_decay: float, drop_path: float
) -> None:
    config = load("--config", str(CONFIGS / f"{stem}.yaml"))
    assert new_encoder(config.model) == SwinConfig.named(
        name, image_size=image, window_size=window, drop_path_rate=drop_path
    )
    optim, augment, data = config.optim, config.augment, config.data
    assert (optim.base_lr, optim.warmup_lr, optim.min_lr, optim.warmup) == (1.25e-3, 2.5e-7, 2.5e-7, "20 epochs")
    assert (optim.layer_decay, optim.weight_decay, optim.clip_norm, optim.schedule) == (layer_decay, 0.05, 5, "cosine")
    assert (config.train.global_batch, config.train.duration, config.train.ema) == (2048, "100 epochs", 0)
    assert augment == AugmentConfig("horizontal", "rand-m9-mstd0.5-inc1", 0.0, 0.25, 0.8, 1.0, 1.0, 0.5, 0.1)
    assert (data.crop_scale, data.interpolation, data.crop_pct) == ((0.08, 1), "bicubic", 0.875)
    tables = ClassifierConfig().bias_tables if name.startswith("swinv2") else "geometric"  # V2 has no tables
    assert (config.model.bias_tables, config.model.freeze) == (tables, 0)


def test_defaults_are_those_of_swin_base_after_100_epochs() -> None:
    shipped = load("--config", str(CONFIGS / "finetune_swin_base_192.yaml"))
    changes = {"data.source": "imagenet/train", "data.validation": "imagenet/val"}
    changes |= {"run": shipped.run, "model": shipped.model, "save.every": shipped.save.every}
    assert shipped == with_settings(DEFAULTS, changes)
    own = {"name", "image_size", "window_size", "bias_tables"}
    assert shipped.model == ClassifierConfig(**{key: getattr(shipped.model, key) for key in own})


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@settings(max_examples=30)
@given(TEXT, st.none() | TEXT, st.none() | st.lists(st.floats(0, 1)), st.floats(0, 1), st.booleans(), st.none() | TEXT)
def test_any_config_survives_yaml(
    source: str, label: str | None, mean: list[float] | None, smoothing: float, evaluate: bool, table: str | None
) -> None:
    changes = {"data.source": source, "data.labels": label, "data.multi_label": evaluate, "evaluate": evaluate}
    changes |= {"data.label_column": None if label is None else (label, "kind")}
    changes |= {"data.mean": mean if mean is None else tuple(mean), "augment.label_smoothing": smoothing}
    config = with_settings(DEFAULTS, changes | {"augment.auto": None, "predictions": table})
    assert from_mapping(FinetuneConfig, yaml.safe_load(to_yaml(config)), "text") == config


def test_one_label_column_is_a_text_in_yaml_as_it_always_was() -> None:
    for value, expected in (("kind", ("kind",)), (["a", "b"], ("a", "b")), (None, None)):
        assert from_mapping(FinetuneConfig, {"run": {"name": "x"}, "data": {"label_column": value}}, "text") == (
            with_settings(FinetuneConfig(RunConfig("x")), {"data.label_column": expected})
        )


# ---- the command line -----------------------------------------------------------------------------------------


def test_flags_go_before_the_file() -> None:
    config = load(
        *("--evaluate", "--predictions", "a.csv", "--data.multi-label", "--augment.auto", "None"),
        *("--model.image-size", "96", "192", "--optim.layer-decay=0.5", "--data.mean", "0", "0.5", "1"),
    )
    assert (config.evaluate, config.predictions, config.data.multi_label, config.augment.auto) == (
        True,
        "a.csv",
        True,
        None,
    )
    assert (config.model.image_size, config.optim.layer_decay, config.data.mean) == ((96, 192), 0.5, (0, 0.5, 1))
    assert config.optim.base_lr == load().optim.base_lr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim.layer-deacy", "1"], "unknown flag --optim.layer-deacy: did you mean --optim.layer-decay?"),
        (["--pretrained=x"], "unknown flag --pretrained: did you mean --model.pretrained?"),
        (["--train.mixup", "0"], "unknown flag --train.mixup: did you mean --augment.mixup?"),
        (["--evalaute"], "unknown flag --evalaute: did you mean --evaluate?"),
        (["--prediction", "a.csv"], "unknown flag --prediction: did you mean --predictions?"),
        (["--qqq"], "unknown flag --qqq: --help lists the flags"),
    ],
)
def test_unknown_flags_get_a_hint(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(*flags)
    assert str(caught.value) == message


def test_an_unknown_key_of_a_file_gets_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("run: {name: a}\nmodel: {freezing: 1}\n")
    with pytest.raises(UserError) as caught:
        load("--config", str(path))
    assert str(caught.value) == f"unknown key model.freezing in {path}: did you mean model.freeze?"


def test_help_shows_each_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        load("--help")
    assert not left.value.code
    shown = capsys.readouterr().out
    for key, _ in leaves(DEFAULTS):
        assert f"--{key.replace('_', '-')} " in shown
    for section in SECTIONS:
        assert f"{section} options" in shown


def test_configuration_loads_no_torch() -> None:
    heavy = {"torch", "accelerate", "datasets", "numpy", "PIL", "timm"}
    code = (
        "import sys; from pathlib import Path; from swin_mim.training.config.parsing import load_config\n"
        "from swin_mim.training.config.finetune_checks import *; from swin_mim.training.config.finetune import *\n"
        f"config = load_config(FinetuneConfig, [], default_config=Path({str(BASE)!r}), prog='', description='')\n"
        f"check(config); print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---- what goes together ---------------------------------------------------------------------------------------

SIDES = "must be one number, or height and width"
CROP = "must be min and max, above 0"
SHARE = "must be at least 0 and at most 1"
OFF = "must not be negative: use 0 to switch it off"
KEPT_OUT = "is kept out of data.source, but other images to evaluate on are named, or are blue_marble's own: use 0"
ONE_LABEL = "needs one label for each image, and data.multi_label is on: use"
EVEN = "must be even: Mixup and CutMix mix neighbouring images; or switch both off (augment.mixup 0, cutmix 0)"
MILESTONES = "must be given with optim.schedule multistep and only then: the schedule is"
NAMES = f"is no named size: the names are {', '.join(NAMED)}"
ODD_RATE, ODD_SIZE = dataclasses.replace(NEW, drop_path_rate=1.0), dataclasses.replace(NEW, image_size=(66,))
ODD_BATCH = {"train.micro_batch": 3, "train.global_batch": 6}


FOR_RGB = "is for RGB images, and these are read as data.channels says"
RASTERS: dict[str, Any] = {"data.channels": ("nir", "red"), "data.source": "x", "model.pretrained": "somewhere"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run.name": "a/b"}, "run.name 'a/b' must name one folder, without / and \\: the folder above it is run.root"),
        ({"run.seed": -1}, "run.seed -1 must not be negative: use 0"),
        ({"data.workers": -1}, "data.workers -1 must not be negative: use 0 to decode without workers"),
        ({"data.max_broken": -0.1}, "data.max_broken -0.1 must be at least 0 and at most 1: use 0.01"),
        ({"data.max_broken": 1.1}, "data.max_broken 1.1 must be at least 0 and at most 1: use 0.01"),
        ({"data.crop_scale": (0.0, 1.0)}, f"data.crop_scale (0.0, 1.0) {CROP} and up to 1"),
        ({"data.crop_scale": (0.9, 0.5)}, f"data.crop_scale (0.9, 0.5) {CROP} and up to 1"),
        ({"data.crop_scale": (0.9, 1.5)}, f"data.crop_scale (0.9, 1.5) {CROP} and up to 1"),
        ({"data.crop_ratio": (0.0, 1.0)}, f"data.crop_ratio (0.0, 1.0) {CROP}"),
        ({"data.crop_ratio": (2.0, 1.0)}, f"data.crop_ratio (2.0, 1.0) {CROP}"),
        ({"data.mean": (0.5,)}, "data.mean (0.5,) must have 3 entries, for red, green and blue"),
        ({"data.mean": ()}, "data.mean () must have 3 entries, for red, green and blue"),
        ({"data.std": (0.5,) * 4}, "data.std (0.5, 0.5, 0.5, 0.5) must have 3 entries, for red, green and blue"),
        ({"data.std": (1.0, 0.0, 1.0)}, "data.std (1.0, 0.0, 1.0) must be positive"),
        ({"data.heldout": -1}, "data.heldout -1 must not be negative: use 0 for a tenth"),
        ({"data.heldout": 5}, f"data.heldout 5 {KEPT_OUT}"),
        ({"data.heldout": 5, "data.validation": "val"}, f"data.heldout 5 {KEPT_OUT}"),
        (
            {"augment.flips": "dihedral", "model.image_size": (64, 32)},
            "augment.flips 'dihedral' turns images by quarters, and model.image_size is not square: use both",
        ),
        (
            {"augment.auto": "rand-x9"},
            (
                "augment.auto 'rand-x9' is no RandAugment: write rand and parts such as -m9 -n2 -p0.5 -mstd0.5 -mmax10 "
                "-inc1, as in rand-m9-mstd0.5-inc1, or null for none"
            ),
        ),
        ({"data.heldout": 5, "data.validation_split": "test"}, f"data.heldout 5 {KEPT_OUT}"),
        ({"data.labels_per_class": -1}, "data.labels_per_class -1 must not be negative: use 0 for all"),
        ({"data.subset_seed": -1}, "data.subset_seed -1 must not be negative: use 0"),
        ({"data.labels_per_class": 3, "data.multi_label": True}, f"data.labels_per_class 3 {ONE_LABEL} 0"),
        ({"data.balance": "sampling", "data.multi_label": True}, f"data.balance 'sampling' {ONE_LABEL} none"),
        ({"data.balance": "weights", "data.multi_label": True}, f"data.balance 'weights' {ONE_LABEL} none"),
        ({"data.crop_pct": 0.0}, "data.crop_pct 0.0 must be above 0 and up to 1: use 0.875"),
        ({"data.crop_pct": 1.1}, "data.crop_pct 1.1 must be above 0 and up to 1: use 0.875"),
        ({"model.image_size": ()}, f"model.image_size () {SIDES}"),
        ({"model.image_size": (1, 2, 3)}, f"model.image_size (1, 2, 3) {SIDES}"),
        ({"model.image_size": (64, 0)}, "model.image_size (64, 0) must be positive"),
        ({"model.window_size": (1, 2, 3)}, f"model.window_size (1, 2, 3) {SIDES}"),
        ({"model.window_size": (-1,)}, "model.window_size (-1,) must be positive"),
        ({"model.name": "swin_bass"}, f"model.name 'swin_bass' {NAMES}"),
        ({"model.freeze": -1}, "model.freeze -1 must not be negative: use 0 to train all"),
        ({"model": dataclasses.replace(NEW, freeze=1)}, "model.freeze 1 needs model.pretrained: new weights learn"),
        ({"augment.color_jitter": -0.1}, f"augment.color_jitter -0.1 {OFF}"),
        ({"augment.mixup": -0.1}, f"augment.mixup -0.1 {OFF}"),
        ({"augment.cutmix": -0.1}, f"augment.cutmix -0.1 {OFF}"),
        ({"augment.random_erasing": -0.1}, f"augment.random_erasing -0.1 {SHARE}"),
        ({"augment.random_erasing": 1.1}, f"augment.random_erasing 1.1 {SHARE}"),
        ({"augment.mix_probability": -0.1}, f"augment.mix_probability -0.1 {SHARE}"),
        ({"augment.mix_probability": 1.1}, f"augment.mix_probability 1.1 {SHARE}"),
        ({"augment.mix_switch": -0.1}, f"augment.mix_switch -0.1 {SHARE}"),
        ({"augment.mix_switch": 1.1}, f"augment.mix_switch 1.1 {SHARE}"),
        ({"augment.label_smoothing": -0.1}, "augment.label_smoothing -0.1 must be at least 0 and less than 1"),
        ({"augment.label_smoothing": 1.0}, "augment.label_smoothing 1.0 must be at least 0 and less than 1"),
        (ODD_BATCH, f"train.micro_batch 3 {EVEN}"),
        (ODD_BATCH | {"augment.mixup": 0.0}, f"train.micro_batch 3 {EVEN}"),
        (ODD_BATCH | {"augment.cutmix": 0.0}, f"train.micro_batch 3 {EVEN}"),
        ({"optim.layer_decay": 0.0}, "optim.layer_decay 0.0 must be above 0 and up to 1: use 1 for none"),
        ({"optim.layer_decay": 1.1}, "optim.layer_decay 1.1 must be above 0 and up to 1: use 1 for none"),
        ({"train.ema": -0.1}, "train.ema -0.1 must be at least 0 and less than 1: use 0 for none"),
        ({"train.ema": 1.0}, "train.ema 1.0 must be at least 0 and less than 1: use 0 for none"),
        ({"predictions": "a.txt"}, "predictions 'a.txt' must end in .csv or .parquet"),
        ({"predictions": "csv"}, "predictions 'csv' must end in .csv or .parquet"),
        ({"predictions": ""}, "predictions '' must end in .csv or .parquet"),
        (
            {"save.best_by": "accuracy", "data.multi_label": True},
            "save.best_by 'accuracy' is not measured where images have several labels: use auto",
        ),
        (
            {"save.best_by": "balanced_accuracy", "data.multi_label": True},
            "save.best_by 'balanced_accuracy' is not measured where images have several labels: use auto",
        ),
        (
            {"save.best_by": "mean_average_precision"},
            "save.best_by 'mean_average_precision' is not measured where images have one label: use auto",
        ),
        ({"hub.repo": "name"}, "hub.repo 'name' must be user/name, a repository of the Hugging Face Hub"),
        ({"hub.every": -1}, "hub.every -1 must not be negative: use 0 to push at the end only"),
        ({"hub.every": 1}, "hub.every 1 pushes nowhere: name a repository with hub.repo"),
        ({"optim.base_lr": 0.0}, "optim.base_lr 0.0 must be positive"),
        ({"optim.gamma": 0.0}, "optim.gamma 0.0 must be positive"),
        ({"optim.eps": 0.0}, "optim.eps 0.0 must be positive"),
        ({"optim.clip_norm": 0.0}, "optim.clip_norm 0.0 must be positive"),
        ({"optim.warmup_lr": -1.0}, "optim.warmup_lr -1.0 must not be negative: use 0"),
        ({"optim.min_lr": -1.0}, "optim.min_lr -1.0 must not be negative: use 0"),
        ({"optim.weight_decay": -1.0}, "optim.weight_decay -1.0 must not be negative: use 0"),
        ({"optim.betas": (0.9, 1.0)}, "optim.betas (0.9, 1.0) must be at least 0 and less than 1"),
        ({"optim.milestones": ("1 step",)}, f"optim.milestones ('1 step',) {MILESTONES} cosine"),
        ({"optim.schedule": "multistep"}, f"optim.milestones () {MILESTONES} multistep"),
        ({"train.global_batch": 0}, "train.global_batch 0 must be positive: the smallest is 1"),
        ({"train.micro_batch": 0}, "train.micro_batch 0 must be positive: the smallest is 1"),
        ({"train.threads": -1}, "train.threads -1 must not be negative: use 0 to share out the cores"),
        ({"save.keep": 1}, "save.keep 1 must be at least 2: the last one may be being written"),
        ({"train.duration": "0 steps"}, 'train.duration "0 steps" must be positive: the smallest is "1 step"'),
        ({"save.every": "0 steps"}, 'save.every "0 steps" must be positive: the smallest is "1 step"'),
        (
            {"train.micro_batch": 48, "train.global_batch": 64},
            (
                "train.global_batch 64 is not a multiple of train.micro_batch 48: "
                "use train.global_batch 48 or train.micro_batch 32"
            ),
        ),
        ({"data.mean": (1.0,)}, "data.mean (1.0,) must have 3 entries, for red, green and blue"),
        (RASTERS | {"data.mean": (1.0,)}, "data.mean (1.0,) must have 2 entries, for data.channels"),
        (
            RASTERS,
            f"augment.auto 'rand-m9-mstd0.5-inc1' {FOR_RGB}: use None, in YAML null",
        ),
        (
            RASTERS | {"augment.auto": None},
            f"augment.random_erasing 0.25 {FOR_RGB}: use 0",
        ),
        (
            RASTERS | {"model.pretrained": None},
            "data.mean None is needed for data.channels, as swin-mim stats measures it",
        ),
        ({"data.channels": ()}, "data.channels () names no channel: leave it out, or name some"),
        ({"data.stack": "a"}, "data.stack 'a' is for images that are not read as RGB: set data.channels"),
        (RASTERS | {"data.source": "blue_marble"}, "data.source 'blue_marble' is RGB: leave data.channels out"),
        ({"model": ODD_RATE}, "model.drop_path_rate 1.0 must be at least 0 and less than 1: use 0.1"),
        ({"model": ODD_SIZE}, "model: image_size 66 is not a multiple of patch_size 4: use 64"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_go_together_is_refused_with_a_way_out(changes: dict[str, Any], message: str) -> None:
    assert error_of(with_settings(DEFAULTS, changes)) == message


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"run.seed": 0, "data.workers": 0, "data.max_broken": 0.0, "data.heldout": 0, "data.subset_seed": 0},
        {"data.max_broken": 1.0, "data.crop_scale": (1.0, 1.0), "data.crop_ratio": (1.0, 1.0), "data.crop_pct": 1.0},
        {"data.crop_scale": (1e-9, 1e-9), "data.crop_ratio": (1e-9, 1e-9), "data.crop_pct": 1e-9},
        {"data.mean": (-1.0, 0.0, 2.0), "data.std": (1e-9, 1.0, 2.0)},
        {"data.mean": (0.0, 0.0, 0.0)},
        {"data.source": "trees", "data.heldout": 5, "data.labels_per_class": 3, "data.balance": "sampling"},
        {"data.validation": "val", "data.validation_split": "test", "data.balance": "weights"},
        {"data.multi_label": True, "save.best_by": "mean_average_precision"},
        {"data.source": "trees", "data.multi_label": True, "save.best_by": "loss", "data.heldout": 5},
        {"data.multi_label": True},
        {"save.best_by": "loss", "save.export": "last"},
        {"save.best_by": "accuracy"},
        {"save.best_by": "balanced_accuracy"},
        {"model.image_size": (1,), "model.window_size": (1, 2), "model.freeze": 1},
        {"model.name": "swin_nano", "model.freeze": 4},
        {"model": NEW},
        {"model": dataclasses.replace(NEW, drop_path_rate=0.0, window_size=(4, 8), image_size=(64, 32))},
        {"model": ClassifierConfig(), "evaluate": True},
        {"augment.color_jitter": 0.0, "augment.mixup": 0.0, "augment.cutmix": 0.0, "augment.random_erasing": 0.0},
        {"augment.mix_probability": 0.0, "augment.mix_switch": 0.0, "augment.label_smoothing": 0.0},
        {"augment.mix_probability": 1.0, "augment.mix_switch": 1.0, "augment.random_erasing": 1.0},
        {"augment.label_smoothing": 0.999, "augment.color_jitter": 3.0, "augment.mixup": 9.0},
        ODD_BATCH | {"augment.mixup": 0.0, "augment.cutmix": 0.0},
        ODD_BATCH | {"augment.mix_probability": 0.0},
        {"train.micro_batch": 2, "train.global_batch": 2},
        {"optim.layer_decay": 1.0, "train.ema": 0.0},
        {"optim.layer_decay": 1e-9, "train.ema": 0.99999},
        {"predictions": "a.csv"},
        {"predictions": "~/some where/b.x.parquet"},
        {"hub.repo": "a-b/c.d_e", "hub.every": 1},
        {"optim.warmup_lr": 0.0, "optim.min_lr": 0.0, "optim.weight_decay": 0.0, "optim.betas": (0.0, 0.0)},
        {"optim.schedule": "multistep", "optim.milestones": ("1 step",)},
        {"save.keep": 2, "train.threads": 0, "train.duration": "1 step", "save.every": "1 step"},
        {"optim.warmup": "0 steps", "log.every": "0 steps", "log.evaluate_every": "0 steps"},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_what_may_go_together(changes: dict[str, Any]) -> None:
    check(with_settings(DEFAULTS, changes))


NUMBERS = [key for key, value in leaves(DEFAULTS) if isinstance(value, float)]


@pytest.mark.parametrize(
    "key", [*NUMBERS, "data.crop_scale", "data.crop_ratio", "optim.betas", "data.mean", "data.std"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(key: str, value: float) -> None:
    several = {"data.crop_scale": 2, "data.crop_ratio": 2, "optim.betas": 2, "data.mean": 3, "data.std": 3}
    given = (1.0,) * (several[key] - 1) + (value,) if key in several else value
    assert error_of(with_settings(DEFAULTS, {key: given})) == f"{key} {given} must be finite"


@pytest.mark.parametrize(
    "key",
    [
        "optim.milestones",
        "optim.warmup",
        "train.duration",
        "train.stop_after",
        "log.every",
        "log.evaluate_every",
        "save.every",
    ],
)
def test_every_duration_is_read(key: str) -> None:
    changes: dict[str, Any] = {"optim.schedule": "multistep", "optim.milestones": ("1 step",)}
    check(with_settings(DEFAULTS, changes))
    changes[key] = ("soon",) if key == "optim.milestones" else "soon"
    message = error_of(with_settings(DEFAULTS, changes))
    assert message.startswith(key)
    assert ": 'soon' is not a duration" in message


@pytest.mark.parametrize("missing", ["name", "image_size", "window_size"])
def test_new_weights_need_to_be_told_what_they_are(missing: str) -> None:
    model = dataclasses.replace(NEW, **{missing: None})
    expected = (
        f"model.{missing} is needed where there is no model.pretrained: give --model.pretrained, or from new weights "
        "--model.name, --model.image-size and --model.window-size"
    )
    assert error_of(with_settings(DEFAULTS, {"model": model})) == expected
    check(with_settings(DEFAULTS, {"model": dataclasses.replace(model, pretrained="runs/a")}))
    check(with_settings(DEFAULTS, {"model": model, "evaluate": True}))


# ---- what follows from the settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "one", "several"),
    [
        ("auto", "accuracy", "mean_average_precision"),
        ("accuracy", "accuracy", "accuracy"),
        ("balanced_accuracy", "balanced_accuracy", "balanced_accuracy"),
        ("mean_average_precision", "mean_average_precision", "mean_average_precision"),
        ("loss", "heldout_loss", "heldout_loss"),
    ],
)
def test_what_makes_a_checkpoint_the_best_one(given: Any, one: str, several: str) -> None:
    save = FinetuneSaveConfig(best_by=given)
    assert best_by(save, multi_label=False) == one
    assert best_by(save, multi_label=True) == several


def test_a_new_encoder_is_the_named_size_and_what_overrides_it() -> None:
    model = ClassifierConfig(
        name="swin_tiny", image_size=(96, 192), window_size=(6,), depths=(2, 2, 2, 2), patch_size=2
    )
    assert new_encoder(model) == SwinConfig(
        (96, 192), 2, 3, 96, (2, 2, 2, 2), (3, 6, 12, 24), window_size=6, drop_path_rate=0.1
    )
    assert new_encoder(NEW).patch_size == 4
    with pytest.raises(UserError, match=r"^model: depths \(2, 2\) and num_heads \(3, 6, 12, 24\) must name"):
        new_encoder(dataclasses.replace(NEW, depths=(2, 2)))


def test_sizes_are_those_that_are_given() -> None:
    assert sizes(ClassifierConfig()) == {}
    assert sizes(ClassifierConfig(image_size=(192,))) == {"image_size": 192}
    assert sizes(ClassifierConfig(image_size=(96, 192), window_size=(6, 6))) == {
        "image_size": (96, 192),
        "window_size": 6,
    }


FOUND = SwinConfig.named("swin_tiny", image_size=64, window_size=4)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"name": "swin_tiny"},
        {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "patch_size": 4},
        {"name": "swin_small", "depths": (2, 2, 6, 2)},
        {"image_size": (192,), "window_size": (6,), "drop_path_rate": 0.5},
    ],
)
def test_the_architecture_may_be_named_beside_weights_that_have_it(given: dict[str, Any]) -> None:
    check_architecture(ClassifierConfig(pretrained="runs/a", **given), FOUND)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "swin_base"}, "model.name swin_base, embed_dim is 128 and that of model.pretrained runs/a is 96"),
        (
            {"name": "swin_small"},
            "model.name swin_small, depths is (2, 2, 18, 2) and that of model.pretrained runs/a is (2, 2, 6, 2)",
        ),
        ({"patch_size": 2}, "model.patch_size is 2 and that of model.pretrained runs/a is 4"),
        ({"embed_dim": 48}, "model.embed_dim is 48 and that of model.pretrained runs/a is 96"),
        ({"depths": (2, 2)}, "model.depths is (2, 2) and that of model.pretrained runs/a is (2, 2, 6, 2)"),
        ({"num_heads": (1, 2)}, "model.num_heads is (1, 2) and that of model.pretrained runs/a is (3, 6, 12, 24)"),
        (
            {"name": "swin_tiny", "num_heads": (3, 3, 3, 3)},
            "model.num_heads is (3, 3, 3, 3) and that of model.pretrained runs/a is (3, 6, 12, 24)",
        ),
    ],
)
def test_weights_of_another_architecture_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_architecture(ClassifierConfig(pretrained="runs/a", **given), FOUND)
    assert str(caught.value) == f"{said}: leave it out, the architecture comes with the weights"


@pytest.mark.parametrize(
    ("mixup", "cutmix", "probability", "expected"),
    [(0.8, 1.0, 1.0, True), (0.8, 0, 0.1, True), (0, 1.0, 0.1, True), (0, 0, 1.0, False), (0.8, 1.0, 0, False)],
)
def test_mixes_says_whether_images_are_ever_mixed(
    mixup: float, cutmix: float, probability: float, expected: bool
) -> None:
    assert mixes(AugmentConfig(mixup=mixup, cutmix=cutmix, mix_probability=probability)) is expected


# ---- resuming -------------------------------------------------------------------------------------------------


def test_each_setting_is_immutable_or_mutable() -> None:
    other = {str: "other", int: 12345, float: 0.12345, bool: True, tuple: ("other",), type(None): "other"}
    keys = [key for key, _ in leaves(DEFAULTS)]
    assert len(keys) == len(set(keys)) == 92
    assert {*keys, *(key for key, _ in leaves(PretrainConfig(RunConfig("x"))))} >= MUTABLE
    for key, value in leaves(DEFAULTS):
        changed = not value if isinstance(value, bool) else other[type(value)]
        lines = immutable_differences(DEFAULTS, with_settings(DEFAULTS, {key: changed}))
        assert lines == ([] if key in MUTABLE else [f"{key}: {value} -> {changed}"]), key


def test_what_decides_the_result_is_immutable() -> None:
    """A second list, kept by hand: a new setting has to be put in one of the two on purpose."""
    immutable = {key for key, _ in leaves(DEFAULTS)} - MUTABLE
    assert {key.partition(".")[0] for key in immutable} == {"run", "data", "model", "augment", "optim", "train", "save"}
    assert {key for key in immutable if key.startswith(("run.", "data.", "train.", "save."))} == {
        "run.name",
        "run.seed",
        "data.label_column",
        "data.multi_label",
        "data.heldout",
        "data.labels_per_class",
        "data.subset_seed",
        "data.channels",
        "data.nodata",
        "data.mask_channel",
        "data.max_pixels",
        "data.color_profile",
        "data.balance",
        "data.mean",
        "data.std",
        "data.crop_scale",
        "data.crop_ratio",
        "data.interpolation",
        "data.crop_pct",
        "train.duration",
        "train.extended",
        "train.global_batch",
        "train.precision",
        "train.ema",
        "save.best_by",
    }
    for section in ("model", "augment", "optim"):
        names = {f"{section}.{field.name}" for field in dataclasses.fields(getattr(DEFAULTS, section))}
        assert names <= immutable
