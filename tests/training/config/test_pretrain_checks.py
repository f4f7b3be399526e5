import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from swin_mim.errors import UserError
from swin_mim.training.config.common_checks import accumulation, immutable_differences
from swin_mim.training.config.fields import leaves
from swin_mim.training.config.parsing import from_mapping, load_config
from swin_mim.training.config.pretrain import MUTABLE, ModelConfig, PretrainConfig, RunConfig, TrainConfig
from swin_mim.training.config.pretrain_checks import check, stage_weights, swin_config, with_packed_channels
from swin_mim.training.config.yaml_file import to_yaml

CONFIGS = Path(__file__).parents[3] / "recipes" / "configs"
BASE = Path(__file__).with_name("base.yaml")


def load(*arguments: str) -> PretrainConfig:
    return load_config(PretrainConfig, arguments, default_config=BASE, prog="pretrain.py", description="Pretrain.")


def error_of(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        check(load(*arguments))
    message = str(caught.value)
    assert "\n" not in message
    return message


def with_setting(config: PretrainConfig, key: str, value: Any) -> PretrainConfig:
    section, _, name = key.partition(".")
    changed = dataclasses.replace(getattr(config, section), **{name: value})
    return dataclasses.replace(config, **{section: changed})


DEFAULTS = PretrainConfig(RunConfig("x"))

HOG = ("--model.target", "hog")
STAGES = ("--model.supervise", "stages")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [*HOG, "--mask.unit", "12", "--model.image_size", "96"],
            "mask.unit 12 is not a multiple of 8, the side of the squares of model.target hog: use 8",
        ),
        (
            [*HOG, "--model.patch_size", "6", "--mask.unit", "24"],
            "model.target hog has squares of 8 pixels, which patch_size 6 neither divides nor is a multiple of",
        ),
        (
            ["--model.stage_weights", "1", "1", "1", "1"],
            "model.stage_weights is of every stage, and model.supervise is",
        ),
        ([*STAGES, "--model.stage_weights", "1"], "model.stage_weights has 1 entry and the model 4 stages"),
        ([*STAGES, "--model.stage_weights", "1", "1", "1", "0"], "the last must be positive"),
        (["--teacher.channels", "red"], "teacher.channels ('red',) are of teacher.model, which is not given"),
        (["--teacher.weight", "0"], "teacher.weight 0.0 must be positive: GFM's is 1"),
    ],
)
def test_targets_that_do_not_fit(arguments: list[str], message: str) -> None:
    assert message in error_of(*arguments)


def test_weights_of_the_stages() -> None:
    assert stage_weights(ModelConfig()) == ()
    assert stage_weights(ModelConfig(supervise="stages")) == (0.25,) * 4
    assert stage_weights(ModelConfig(supervise="stages", stage_weights=(1, 2, 3, 4))) == (1, 2, 3, 4)


# ---- the files we ship ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.startswith(("finetune_", "segment_", "detect_"))),
    ids=lambda path: path.stem,
)
def test_shipped_configs_load_pass_and_survive_a_round_trip(path: Path) -> None:
    config = load("--config", str(path))
    check(config)
    assert config.run.name == path.stem
    assert from_mapping(PretrainConfig, yaml.safe_load(to_yaml(config)), "text") == config
    assert path.read_text().startswith("# ")
    assert "# Published: " in path.read_text()
    if path.stem != "demo":
        assert f"--config {path.stem}" in path.read_text()


def test_defaults_are_simmim_swin_base_100() -> None:
    shipped = load("--config", str(CONFIGS / "simmim_swin_base_192_100ep.yaml"))
    assert shipped == dataclasses.replace(
        DEFAULTS, run=shipped.run, data=dataclasses.replace(DEFAULTS.data, source="imagenet/train")
    )


@pytest.mark.parametrize(
    ("stem", "encoder", "rates", "epochs"),
    [
        ("simmim_swin_base_192_100ep", (128, (2, 2, 18, 2), (4, 8, 16, 32), 6), (2e-4, 1e-6), 100),
        ("simmim_swin_base_192_800ep", (128, (2, 2, 18, 2), (4, 8, 16, 32), 6), (1e-4, 5e-7), 800),
        ("simmim_swin_large_192_800ep", (192, (2, 2, 18, 2), (6, 12, 24, 48), 12), (1e-4, 5e-7), 800),
        ("simmim_swin_tiny_192_100ep", (96, (2, 2, 6, 2), (3, 6, 12, 24), 6), (2e-4, 1e-6), 100),
        ("simmim_swinv2_small_192_800ep", (96, (2, 2, 18, 2), (3, 6, 12, 24), 12), (1e-4, 5e-7), 800),
        ("simmim_swinv2_base_192_800ep", (128, (2, 2, 18, 2), (4, 8, 16, 32), 12), (1e-4, 5e-7), 800),
        ("simmim_swinv2_large_192_800ep", (192, (2, 2, 18, 2), (6, 12, 24, 48), 12), (1e-4, 5e-7), 800),
    ],
)
def test_recipes_hold_the_published_values(stem: str, encoder: tuple, rates: tuple, epochs: int) -> None:
    config = load("--config", str(CONFIGS / f"{stem}.yaml"))
    swin = swin_config(config.model)
    assert (swin.embed_dim, swin.depths, swin.num_heads, swin.window_size) == encoder
    second = (2, 0.1, "normalized") if "swinv2" in stem else (1, 0.0, "pixels")
    assert (swin.version, swin.drop_path_rate, config.model.target) == second
    assert (swin.image_size, swin.patch_size) == (192, 4)
    assert (config.mask.unit, config.mask.ratio, config.train.global_batch) == (32, 0.6, 2048)
    optim = config.optim
    assert (optim.base_lr, optim.warmup_lr, optim.warmup) == (*rates, "10 epochs")
    assert (optim.betas, optim.weight_decay, optim.clip_norm, optim.eps) == ((0.9, 0.999), 0.05, 5.0, 1e-8)
    assert config.train.duration == f"{epochs} epochs"
    if epochs == 800:
        assert (optim.schedule, optim.milestones, optim.gamma) == ("multistep", ("700 epochs",), 0.1)
    else:
        assert (optim.schedule, optim.min_lr) == ("cosine", 1e-5)


# ---- packed images --------------------------------------------------------------------------------------------


def test_packed_images_say_their_channels_where_the_settings_say_nothing(tmp_path: Path) -> None:
    names, mean, std = ["red", "nir", "swir"], [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    manifest = {"source": {}, "settings": {}, "made_with": {}, "shards": [], "mean": mean, "std": std}
    (tmp_path / "packed.json").write_text(json.dumps(manifest | {"fingerprint": "f", "rasters": {"channels": names}}))
    whole = with_packed_channels(load("--data.source", str(tmp_path)))
    assert (whole.data.channels, whole.data.mean, whole.data.std) == (tuple(names), tuple(mean), tuple(std))
    assert whole.model.in_channels == 3
    some = with_packed_channels(load("--data.source", str(tmp_path), "--data.channels", "swir", "1"))
    assert (some.data.channels, some.data.mean, some.model.in_channels) == (("swir", "1"), (3.0, 1.0), 2)
    own = with_packed_channels(load("--data.source", str(tmp_path), "--data.mean", "7", "8", "9"))
    assert (own.data.mean, own.data.std) == ((7.0, 8.0, 9.0), tuple(std))
    wrong = load("--data.source", str(tmp_path), "--data.channels", "blue")
    assert with_packed_channels(wrong) == wrong
    assert with_packed_channels(load()) == load()


def test_configuration_loads_no_torch() -> None:
    heavy = {"torch", "accelerate", "datasets", "numpy", "PIL", "timm"}
    code = (
        "import sys; from pathlib import Path; from swin_mim.training.config.pretrain_checks import *\n"
        "from swin_mim.training.config.parsing import *; from swin_mim.training.config.pretrain import *\n"
        f"config = load_config(PretrainConfig, [], default_config=Path({str(BASE)!r}), prog='', description='')\n"
        f"check(config); print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---- what goes together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--model.image-size 200 --mask.unit 32",
            (
                "model.image_size 200 is not a multiple of mask.unit 32: "
                "use 192 (windows of 6 fit every stage) or 224 (windows of 6 need padding)"
            ),
        ),
        (
            "--model.image-size 201 --mask.unit 32 --model.window-size 7",
            (
                "model.image_size 201 is not a multiple of mask.unit 32: "
                "use 192 (windows of 7 need padding) or 224 (windows of 7 fit every stage)"
            ),
        ),
        (
            "--model.image-size 192 200 --mask.unit 32 --model.window-size 6 12",
            (
                "model.image_size 200 is not a multiple of mask.unit 32: "
                "use 192 (windows of 6x12 fit every stage) or 224 (windows of 6x12 need padding)"
            ),
        ),
        (
            "--model.image-size 20 --mask.unit 32",
            "model.image_size 20 is not a multiple of mask.unit 32: use 32 (windows of 6 need padding)",
        ),
        (
            "--model.image-size 0 --mask.unit 16",
            "model.image_size 0 is not a multiple of mask.unit 16: use 16 (windows of 6 fit every stage)",
        ),
        (
            "--mask.unit 30 --model.image-size 192",
            "mask.unit 30 is not a multiple of model.patch_size 4: use 32",
        ),
        ("--mask.unit 14 --model.image-size 192", "mask.unit 14 is not a multiple of model.patch_size 4: use 12"),
        ("--mask.unit 30 --model.image-size 190", "mask.unit 30 is not a multiple of model.patch_size 4: use 28"),
        ("--mask.unit 0", "mask.unit 0 must be positive: SimMIM's is 32"),
        ("--model.image-size 1 2 3", "model.image_size (1, 2, 3) has 3 entries: give one number, or height and width"),
        ("--model.window-size", "model.window_size () has 0 entries: give one number, or height and width"),
        ("--model.window-size 0", "model: window_size 0 must be positive"),
        (
            "--model.name swin_bass",
            (
                "model: no Swin is named 'swin_bass': did you mean 'swin_base'? "
                "the names are swin_nano, swin_tiny, swin_small, swin_base, swin_large, swinv2_nano, "
                "swinv2_tiny, swinv2_small, swinv2_base, swinv2_large, swinv2_huge, swinv2_giant"
            ),
        ),
        ("--data.shards-at-once 0", "data.shards_at_once 0 must be positive: the smallest is 1"),
        ("--data.cache-gb 0", "data.cache_gb 0.0 must be positive: use 20"),
        (
            "--data.streaming --data.source blue_marble",
            "data.streaming True reads shards, and data.source is blue_marble: name parquet or tar files",
        ),
        (
            "--data.streaming --data.source a/b --probe.every 1epoch",
            (
                "probe.every '1epoch' would read all of data.source for its labels, which data.streaming is to avoid: "
                "name labelled images with probe.source"
            ),
        ),
        (
            "--data.streaming --data.source x --data.channels a b c --data.stack {image}_{channel}.tif",
            "data.stack '{image}_{channel}.tif' is a folder's: a shard has an image as one file",
        ),
        ("--model.in-channels 0", "model.in_channels 0 must be positive: 3 for RGB"),
        (
            "--model.in-channels 4 --data.source x",
            (
                "data.mean (0.485, 0.456, 0.406) has 3 entries and model.in_channels is 4: give one for each, "
                "as swin-mim stats measures them"
            ),
        ),
        (
            "--data.channels a b",
            "data.channels ('a', 'b') has 2 entries and model.in_channels is 3: name as many",
        ),
        ("--data.channels a b a", "data.channels ('a', 'b', 'a') names a channel twice"),
        (
            "--data.channels a b c --data.mask-channel b",
            "data.mask_channel 'b' is one of data.channels: leave it out there",
        ),
        (
            "--data.nodata 0",
            "data.nodata 0.0 is for images that are not read as RGB: set model.in_channels, or data.channels",
        ),
        (
            "--data.channels a b c --data.stack {image}.tif",
            "data.stack '{image}.tif' must have {image} and {channel} once each, such as {image}_{channel}.tif",
        ),
        (
            "--data.channels a b c --data.source blue_marble",
            "data.source 'blue_marble' is RGB: name a folder or a data set of yours",
        ),
        ("--data.mean 0.5", "data.mean (0.5,) has 1 entry and model.in_channels is 3: give one for each"),
        ("--data.std 1 1", "data.std (1.0, 1.0) has 2 entries and model.in_channels is 3: give one for each"),
        ("--data.std 1 0 1", "data.std (1.0, 0.0, 1.0) must be positive"),
        ("--mask.ratio 0", "mask.ratio 0.0 must be more than 0 and less than 1: SimMIM's is 0.6"),
        ("--mask.ratio 1", "mask.ratio 1.0 must be more than 0 and less than 1: SimMIM's is 0.6"),
        (
            "--mask.ratio 0.98",
            "mask.ratio 0.98 masks all 36 units of 16 pixels of an image: use a smaller mask.ratio or mask.unit",
        ),
        (
            "--train.micro-batch 48",
            (
                "train.global_batch 64 is not a multiple of train.micro_batch 48: "
                "use train.global_batch 48 or train.micro_batch 32"
            ),
        ),
        ("--train.micro-batch 0", "train.micro_batch 0 must be positive: the smallest is 1"),
        ("--data.workers -1", "data.workers -1 must not be negative: use 0 to decode without workers"),
        ("--save.keep 1", "save.keep 1 must be at least 2: the last one may be being written"),
        ("--data.crop-scale 0.9 0.5", "data.crop_scale (0.9, 0.5) must be min and max, above 0 and up to 1"),
        ("--optim.base-lr nan", "optim.base_lr nan must be finite"),
        ("--optim.betas 0.9 inf", "optim.betas (0.9, inf) must be finite"),
        ("--optim.betas 0.9 1", "optim.betas (0.9, 1.0) must be at least 0 and less than 1"),
        (
            "--optim.schedule multistep",
            "optim.milestones () must be given with optim.schedule multistep and only then: the schedule is multistep",
        ),
        ("--train.duration 0steps", 'train.duration "0steps" must be positive: the smallest is "1 step"'),
        ("--save.every 0steps", 'save.every "0steps" must be positive: the smallest is "1 step"'),
        (
            "--optim.warmup 10",
            (
                "optim.warmup: '10' is not a duration: write a number and a unit, "
                '"100 epochs", "0.5 epochs", "500 steps" or "2e6 images"'
            ),
        ),
    ],
)
def test_what_cannot_go_together_is_refused_with_a_way_out(flags: str, message: str) -> None:
    assert error_of(*flags.split()) == message


@pytest.mark.parametrize("name", ["a/b", "a\\b", "", " ", ".", "..", "/tmp/x"])
def test_a_run_has_one_folder(name: str) -> None:
    assert error_of(f"--run.name={name}").startswith(f"run.name {name!r} must name one folder")


@pytest.mark.parametrize("key", ["optim.milestones", "train.stop_after", "log.every", "log.pictures_every"])
def test_every_duration_is_read(key: str) -> None:
    bad: Any = ("soon",) if key == "optim.milestones" else "soon"
    config = with_setting(with_setting(DEFAULTS, "optim.schedule", "multistep"), "optim.milestones", ("1 step",))
    check(config)
    with pytest.raises(UserError, match=rf"^{key}.*: 'soon' is not a duration"):
        check(with_setting(config, key, bad))


@pytest.mark.parametrize(
    "flags",
    [
        "--model.window-size 50",
        "--model.image-size 96 192 --model.window-size 6 12",
        "--model.image-size 224 --mask.unit 32",
        "--optim.warmup 0steps --log.every 0steps --log.evaluate-every 0steps --log.pictures-every 0steps",
        "--data.workers 0 --data.heldout 0 --log.pictures 0",
        "--model.depths 2 2 --model.num-heads 2 4 --model.embed-dim 16",
        "--mask.unit 4",
    ],
)
def test_what_may_go_together(flags: str) -> None:
    check(load(*flags.split()))


@given(st.integers(1, 700), st.integers(1, 60))
def test_proposed_image_sizes_are_legal(side: int, tokens: int) -> None:
    config = with_setting(with_setting(DEFAULTS, "model.image_size", (side,)), "mask.unit", 4 * tokens)
    config = with_setting(config, "mask.ratio", 1e-9)
    try:
        check(config)
    except UserError as error:
        words = str(error).replace("(", "").split()
        if "masks" in words:  # one unit covers the image
            return
        sizes = [int(words[words.index(before) + 1]) for before in ("use", "or") if before in words]
        assert sizes
        for size in sizes:
            assert size % (4 * tokens) == 0
            assert abs(size - side) < 4 * tokens
            assert swin_config(dataclasses.replace(config.model, image_size=(size,))).image_size == size


def test_swin_config_takes_the_named_size_and_the_overrides() -> None:
    swin = swin_config(ModelConfig("swin_tiny", image_size=(96, 192), window_size=(6, 12), depths=(2, 2, 2, 2)))
    assert (swin.image_size, swin.window_size, swin.depths) == ((96, 192), (6, 12), (2, 2, 2, 2))
    assert (swin.embed_dim, swin.num_heads) == (96, (3, 6, 12, 24))
    assert swin_config(ModelConfig(image_size=(192, 192))).image_size == 192


def test_accumulation() -> None:
    train = TrainConfig(global_batch=2048, micro_batch=128)
    assert [accumulation(train, world) for world in (1, 2, 8, 16)] == [16, 8, 2, 1]
    with pytest.raises(UserError) as caught:
        accumulation(train, 3)
    assert str(caught.value) == (
        "train.global_batch 2048 is not a multiple of train.micro_batch 128 x 3 processes = 384: "
        "use train.global_batch 1920"
    )
    with pytest.raises(UserError) as caught:
        accumulation(train, 32)
    assert str(caught.value) == (
        "train.global_batch 2048 is not a multiple of train.micro_batch 128 x 32 processes = 4096: "
        "use train.global_batch 4096 or train.micro_batch 64"
    )


@given(st.integers(1, 5000), st.integers(1, 300), st.integers(1, 64))
def test_proposed_batches_are_legal(global_batch: int, micro_batch: int, world: int) -> None:
    train = TrainConfig(global_batch=global_batch, micro_batch=micro_batch)
    try:
        assert accumulation(train, world) * micro_batch * world == global_batch
    except UserError as error:
        proposals = dict(part.split()[-2:] for part in str(error).partition(": use ")[2].split(" or "))
        for key, value in proposals.items():
            accumulation(dataclasses.replace(train, **{key.removeprefix("train."): int(value)}), world)
        assert "train.global_batch" in proposals
        assert ("train.micro_batch" in proposals) == (global_batch % world == 0)


# ---- resuming -------------------------------------------------------------------------------------------------


def test_each_setting_is_immutable_or_mutable() -> None:
    other = {
        str: "other",
        int: 12345,
        float: 0.12345,
        bool: True,
        tuple: ("other",),
        type(None): "other",
    }
    keys = [key for key, _ in leaves(DEFAULTS)]
    assert len(keys) == len(set(keys)) == 91
    assert set(keys) >= MUTABLE
    for key, value in leaves(DEFAULTS):
        lines = immutable_differences(DEFAULTS, with_setting(DEFAULTS, key, other[type(value)]))
        assert lines == ([] if key in MUTABLE else [f"{key}: {value} -> {other[type(value)]}"])


def test_what_decides_the_result_is_immutable() -> None:
    """A second list, kept by hand: a new setting has to be put in one of the two on purpose."""
    immutable = {key for key, _ in leaves(DEFAULTS)} - MUTABLE
    assert {key.partition(".")[0] for key in immutable} == {"run", "data", "model", "teacher", "mask", "optim", "train"}
    assert {key for key in immutable if key.startswith(("run.", "data.", "train."))} == {
        "run.name",
        "run.seed",
        "data.streaming",
        "data.shards_at_once",
        "data.heldout",
        "data.channels",
        "data.nodata",
        "data.mask_channel",
        "data.max_pixels",
        "data.color_profile",
        "data.mean",
        "data.std",
        "data.crop_scale",
        "data.crop_ratio",
        "data.flips",
        "train.duration",
        "train.extended",
        "train.global_batch",
        "train.precision",
    }
    for section in ("model", "mask", "optim"):
        names = {f"{section}.{field.name}" for field in dataclasses.fields(getattr(DEFAULTS, section))}
        assert names <= immutable


def test_immutable_differences_read_like_a_diff() -> None:
    changed = load("--optim.base-lr", "0.0004", "--train.micro-batch", "8", "--model.image-size", "48")
    assert immutable_differences(load(), changed) == [
        "model.image_size: (96,) -> (48,)",
        "optim.base_lr: 0.008 -> 0.0004",
    ]
    assert immutable_differences(changed, changed) == []


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"source": "blue_marble"}, "probe.source 'blue_marble' is RGB, and data.channels"),
        ({"source": "x", "validation": "blue_marble"}, "probe.validation 'blue_marble' is RGB, and data.channels"),
        ({"stack": "{image}_{channel}.tif"}, "probe.stack '{image}_{channel}.tif' is for a probe.source of files"),
    ],
)
def test_what_cannot_be_probed_on(probe: dict[str, str], message: str) -> None:
    rasters = "--model.in_channels 1 --data.mean 1 --data.std 1 --data.source x --probe.every 9epochs"
    assert message in error_of(*rasters.split(), *(word for key in probe for word in (f"--probe.{key}", probe[key])))


def test_a_list_of_images_is_of_one_split() -> None:
    flags = ["--data.source", "x", "--data.exclude", "list.txt", "--probe.every", "9epochs", "--probe.split", "test"]
    assert "data.exclude 'list.txt' names images of data.split 'train', and probe.split is 'test'" in error_of(*flags)
    check(load(*flags, "--data.split", "test"))
    check(load(*flags, "--probe.source", "others"))
