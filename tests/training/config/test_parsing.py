import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from swin_mim.errors import UserError
from swin_mim.training.config.fields import leaves
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.config.parsing import from_mapping, from_settings, load_config
from swin_mim.training.config.pretrain import PretrainConfig, RunConfig
from swin_mim.training.config.yaml_file import to_yaml

BASE = Path(__file__).with_name("base.yaml")
NAME = "run: {name: a}\n"
SECTIONS = ["run", "data", "model", "teacher", "mask", "optim", "train", "log", "save", "probe", "hub"]
DEFAULTS = PretrainConfig(RunConfig("x"))


def load(*arguments: str) -> PretrainConfig:
    return load_config(PretrainConfig, arguments, default_config=BASE, prog="pretrain.py", description="Pretrain.")


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def error_of(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        load(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- YAML -----------------------------------------------------------------------------------------------------


def test_lenient_where_yaml_is_odd(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "run: {name: é}\ndata:\nmodel: {image_size: 192, window_size: [6, 12], depths: [2, 2]}\n"
        "optim: {base_lr: 2e-4, gamma: 1, milestones: 5 epochs, betas: [0, 5e-1]}\nmask:  # nothing\n",
    )
    config = load("--config", path)
    assert config.run.name == "é"
    assert config.model.image_size == (192,)
    assert config.model.window_size == (6, 12)
    assert config.model.depths == (2, 2)
    assert config.optim.base_lr == 0.0002
    assert config.optim.milestones == ("5 epochs",)
    assert config.optim.betas == (0.0, 0.5)
    assert type(config.optim.gamma) is float
    assert config.data == DEFAULTS.data
    assert config.mask == DEFAULTS.mask


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NAME + "optim: {base_rl: 1}", "unknown key optim.base_rl in FILE: did you mean optim.base_lr?"),
        ("base_lr: 1", "unknown key base_lr in FILE: did you mean optim.base_lr?"),
        ("optm: {base_lr: 1}", "unknown key optm in FILE: did you mean optim?"),
        (NAME + "train: {base_lr: 1}", "unknown key train.base_lr in FILE: did you mean optim.base_lr?"),
        (NAME + "log: {evry: 1}", "unknown key log.evry in FILE: did you mean log.every?"),
        (NAME + "mask: {epochs: 1}", "unknown key mask.epochs in FILE: the keys there are mask.unit, mask.ratio"),
        ("zzzz: 1", f"unknown key zzzz in FILE: the keys there are {', '.join(SECTIONS)}"),
        (
            NAME + "save: {xyz: 1}",
            "unknown key save.xyz in FILE: the keys there are save.every, save.keep, save.keep_every",
        ),
        ("1: 2", f"unknown key 1 in FILE: the keys there are {', '.join(SECTIONS)}"),
        (NAME + "optim: {base_lr: fast}", "optim.base_lr in FILE is 'fast': expected a number"),
        (NAME + "optim: {base_lr: true}", "optim.base_lr in FILE is True: expected a number"),
        (NAME + "optim: {betas: 0.9}", "optim.betas in FILE is 0.9: expected a list of 2 items, each a number"),
        (
            NAME + "optim: {betas: [1, 2, 3]}",
            "optim.betas in FILE is [1, 2, 3]: expected a list of 2 items, each a number",
        ),
        (NAME + "optim: {base_lr: }", "optim.base_lr in FILE is None: expected a number"),
        (NAME + "mask: {unit: 32.0}", "mask.unit in FILE is 32.0: expected a whole number"),
        (NAME + "mask: {unit: '32'}", "mask.unit in FILE is '32': expected a whole number"),
        (NAME + "mask: {unit: true}", "mask.unit in FILE is True: expected a whole number"),
        (NAME + "train: {compile: 1}", "train.compile in FILE is 1: expected true or false or auto"),
        (NAME + "train: {duration: 100}", "train.duration in FILE is 100: expected text"),
        (NAME + "train: {precision: fp8}", "train.precision in FILE is 'fp8': expected one of auto, fp32, bf16, fp16"),
        (
            NAME + "model: {depths: [2, x]}",
            "model.depths in FILE is [2, 'x']: expected a list of any number of items, each a whole number or null",
        ),
        (NAME + "model: {embed_dim: x}", "model.embed_dim in FILE is 'x': expected a whole number or null"),
        (NAME + "model: swin_base", "model in FILE is 'swin_base': expected a section with keys of its own"),
        ("run: {root: here}", "run.name is missing in FILE: it has no default"),
        ("", "run.name is missing in FILE: it has no default"),
        ("- a", "FILE holds ['a']: a config is a mapping of sections such as 'train:'"),
        (
            "run:\n  name: a\n name: b",
            "FILE, line 3: not valid YAML: expected <block end>, but found '<block mapping start>'",
        ),
        ("run: {name: a}\noptim: [", None),
        ("run: {name: a}\nmask:\n  unit: 8\n  unit: 16", "FILE, line 4: not valid YAML: the key 'unit' is given twice"),
        ("run: {name: a}\nrun: {name: b}", "FILE, line 2: not valid YAML: the key 'run' is given twice"),
        ("run: {name: a}\nx: !!python/name:os.system", None),
        ("run: \x00", None),
    ],
)
def test_bad_yaml_is_one_line_that_names_the_place(tmp_path: Path, text: str, message: str | None) -> None:
    path = written(tmp_path, text)
    said = error_of("--config", path)
    assert path in said, said
    if message is not None:
        assert said == message.replace("FILE", path)


def test_unreadable_files(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert error_of("--config", str(missing)) == f"cannot read the config {missing}: No such file or directory"
    assert error_of("--config", str(tmp_path)) == f"cannot read the config {tmp_path}: Is a directory"
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xff")
    assert error_of("--config", str(binary)) == f"cannot read the config {binary}: it is not UTF-8 text"


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=40)
@given(TEXT, TEXT, st.none() | TEXT, NUMBERS, st.lists(TEXT), st.none() | st.lists(st.integers()), st.booleans())
def test_any_config_survives_yaml(
    name: str, source: str, column: str | None, rate: float, names: list, depths: list | None, compiled: bool
) -> None:
    changes = {"data.source": source, "data.column": column, "optim.base_lr": rate, "log.trackers": names}
    changes |= {"model.depths": depths, "train.compile": compiled, "model.num_heads": depths}
    config = from_settings(PretrainConfig, {"run": {"name": name}}, changes)
    assert from_mapping(PretrainConfig, yaml.safe_load(to_yaml(config)), "text") == config


# ---- the command line -----------------------------------------------------------------------------------------


def test_flags_go_before_the_file_and_the_file_before_the_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "run: {name: a, seed: 5}\noptim: {base_lr: 1.0e-3, eps: 1.0e-7}\n")
    config = load("--config", path, "--optim.base-lr", "3e-3", "--run.seed=6", "--model.image_size", "96", "192")
    assert (config.run.name, config.run.seed) == ("a", 6)
    assert (config.optim.base_lr, config.optim.eps, config.optim.min_lr) == (3e-3, 1e-7, 1e-5)
    assert config.model.image_size == (96, 192)
    assert load(f"--config={path}", "--optim.base_lr=3e-3") == load("--config", path, "--optim.base-lr", "3e-3")


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--train.compile"], True),
        (["--train.compile", "--train.duration", "1 step"], True),
        (["--train.compile", "True"], True),
        (["--train.compile", "false"], False),
        (["--train.compile=False"], False),
        (["--train.compile", "auto"], "auto"),
        (["--train.compile", "true", "--train.compile", "False"], False),
    ],
)
def test_booleans(flags: list[str], value: bool | str) -> None:
    assert load(*flags).train.compile == value


def test_optional_and_empty_values() -> None:
    config = load("--log.trackers", "--model.depths", "2", "2", "--data.column", "None", "--data.config", "en")
    assert config.log.trackers == ()
    assert config.model.depths == (2, 2)
    assert config.data.column is None
    assert config.data.config == "en"
    config = load("--data.nodata", "-9.96921e+36", "--data.config=", "--data.channels", "1", "nir", "--run.seed", "-1")
    assert (config.data.nodata, config.data.config, config.run.seed) == (-9.96921e36, "", -1)
    assert config.data.channels == ("1", "nir")
    assert load("--data.channels", "1", "--data.channels", "None").data.channels is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim.base-rl", "3"], "unknown flag --optim.base-rl: did you mean --optim.base-lr?"),
        (["--optim.base_rl=3"], "unknown flag --optim.base_rl: did you mean --optim.base-lr?"),
        (["--duration", "1 epoch"], "unknown flag --duration: did you mean --train.duration?"),
        (["--save.evry", "1 epoch"], "unknown flag --save.evry: did you mean --save.every?"),
        (["--train.base-lr=1"], "unknown flag --train.base-lr: did you mean --optim.base-lr?"),
        (["--qqq"], "unknown flag --qqq: --help lists the flags"),
        (["--conf", "x"], None),
        (["--config"], "argument --config: expected one argument"),
        (["--optim.base-lr", "x"], "--optim.base-lr is 'x': expected a number"),
        (["--optim.base-lr"], "--optim.base-lr has no value: expected a number"),
        (["optim.base_lr=3"], "unexpected optim.base_lr=3: a setting is given as --section.key VALUE"),
        (
            ["--model.depths", "2", "x"],
            "--model.depths is ['2', 'x']: expected a list of any number of items, each a whole number or null",
        ),
        (["--optim.betas", "0.9"], "--optim.betas is '0.9': expected a list of 2 items, each a number"),
        (["--train.precision", "fp8"], "--train.precision is 'fp8': expected one of auto, fp32, bf16, fp16"),
        (["--train.compile", "1"], "--train.compile is '1': expected true or false or auto"),
        (["--run.seed", "1.0"], "--run.seed is '1.0': expected a whole number"),
        (
            ["--train.duration", "10", "epochs"],
            "--train.duration takes one value and has 2: did you mean --train.duration '10 epochs'?",
        ),
        (["-x"], "unexpected -x: a setting is given as --section.key VALUE"),
        (["--run.name", "-x"], "unexpected -x: a setting is given as --section.key VALUE"),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], message: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(*flags)
    assert message is None or said == message
    assert "-x" in said or flags[0].lstrip("-").split("=")[0] in said
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", ["40", "200"])
def test_bad_flags_are_one_line_on_any_terminal(encoding: str, columns: str) -> None:
    code = (
        "from pathlib import Path; from swin_mim.training.config.parsing import load_config\n"
        "from swin_mim.training.config.pretrain import PretrainConfig\n"
        f"try: load_config(PretrainConfig, ['--train.precision', 'fp8'], default_config=Path({str(BASE)!r}), "
        "prog='', description='')\nexcept ValueError as error: print(error)"
    )
    env = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": columns, "FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stderr == ""
    assert done.stdout == "--train.precision is 'fp8': expected one of auto, fp32, bf16, fp16\n"


def test_print_config_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--optim.base-lr", "3e-5", "--model.image-size", "96", "192", "--train.compile", "--data.column", "a: #b"]
    with pytest.raises(SystemExit) as left:
        load("--print-config", *flags)
    assert not left.value.code
    assert load("--config", written(tmp_path, capsys.readouterr().out)) == load(*flags)


def test_only_the_first_process_prints_the_config(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        load("--print-config")
    assert capsys.readouterr().out == ""


def test_help_shows_each_section_and_the_values_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "run: {name: a}\nmask: {unit: 48}\n")
    with pytest.raises(SystemExit) as left:
        load("--config", path, "--help")
    assert not left.value.code
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    assert f"--config FILE YAML file of the settings, or the name of a shipped one (default: {BASE})" in words
    assert f"those of {path}" in words
    assert "--print-config" in words
    assert "masked as one, in pixels; a multiple of model.patch_size. (default: 48)" in words
    for key, _ in leaves(DEFAULTS):
        assert f"--{key.replace('_', '-')} " in shown
    for section in SECTIONS:
        assert f"{section} options" in shown


def test_help_of_a_file_without_what_it_must_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("--config", written(tmp_path, ""), "--help")
    assert "Folder of the run inside run.root." in capsys.readouterr().out
    assert load("--config", written(tmp_path, ""), "--run.name", "a").run.name == "a"


# ---- names of shipped configs ---------------------------------------------------------------------------------


def test_a_shipped_config_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("--config", "simmim_swin_base_192_800ep").run.name == "simmim_swin_base_192_800ep"
    arguments: dict[str, Any] = {"prog": "", "description": ""}
    assert load_config(PretrainConfig, [], default_config="demo", **arguments).run.name == "demo"


# ---- old names ------------------------------------------------------------------------------------------------


def finetuning(*arguments: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, arguments, default_config="finetune_demo", prog="", description="")


def test_an_old_name_works_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert finetuning("--data.crop-share", "0.5").data.crop_pct == 0.5
    assert finetuning("--data.crop_share=0.5") == finetuning("--data.crop-pct", "0.5")
    path = written(tmp_path, "run: {name: a}\ndata: {crop_share: 0.25}\n")
    assert finetuning("--config", path).data.crop_pct == 0.25
    assert finetuning("--config", path, "--data.crop-pct", "0.5").data.crop_pct == 0.5
    assert from_settings(FinetuneConfig, None, {"run.name": "a", "data.crop_share": 0.5}).data.crop_pct == 0.5
    assert {message for _, level, message in caplog.record_tuples if level == logging.WARNING} == {
        "--data.crop-share is an old name: write data.crop_pct",
        f"data.crop_share in {path} is an old name: write data.crop_pct",
        "data.crop_share is an old name: write data.crop_pct",
    }


def test_a_run_of_before_is_read_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    saved = {"run": {"name": "a"}, "data": {"crop_share": 0.25}}
    assert from_mapping(FinetuneConfig, saved, "config.yaml").data.crop_pct == 0.25
    assert caplog.record_tuples == []


def test_an_old_name_is_not_given_beside_the_new_one(tmp_path: Path) -> None:
    path = written(tmp_path, "run: {name: a}\ndata: {crop_pct: 0.5, crop_share: 0.25}\n")
    with pytest.raises(UserError) as caught:
        finetuning("--config", path)
    assert str(caught.value) == (
        f"data.crop_share in {path} is the old name of data.crop_pct in {path}, which is given too: leave it out"
    )
    with pytest.raises(UserError, match=r"^unknown key data\.crop_share in x: did you mean data\.crop_scale\?$"):
        from_mapping(PretrainConfig, {"data": {"crop_share": 1.0}}, "x")


# ---- from Python ----------------------------------------------------------------------------------------------


def test_settings_from_python() -> None:
    settings = {"train.duration": "10 epochs", "data.source": Path("photos"), "model.image_size": 96}
    config = from_settings(PretrainConfig, "simmim_swin_tiny_192_100ep", settings | {"data.mean": [0, 0, 0.5]})
    flags = ["--train.duration", "10 epochs", "--data.source", "photos", "--model.image-size", "96"]
    assert config == load("--config", "simmim_swin_tiny_192_100ep", *flags, "--data.mean", "0", "0", "0.5")
    assert from_settings(PretrainConfig, BASE, {}) == load()
    assert from_settings(PretrainConfig, None, {}, default_config=str(BASE)) == load()
    assert from_settings(PretrainConfig, None, {"run.name": "x"}) == DEFAULTS
    assert from_settings(PretrainConfig, {"run": {"name": "x"}}, {}, default_config=BASE) == DEFAULTS


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (None, {}, "run.name is missing: it has no default"),
        (None, {"optim.base_rl": 1}, "unknown key optim.base_rl: did you mean optim.base_lr?"),
        (None, {"optim.base-lr": 1}, "unknown key optim.base-lr: did you mean optim.base_lr?"),
        (None, {"mask": {"unit": 1}}, "unknown key mask: the keys there are mask.unit, mask.ratio"),
        (None, {"optim.base_lr": "x"}, "optim.base_lr is 'x': expected a number"),
        (None, {"optim.base_lr": True}, "optim.base_lr is True: expected a number"),
        (None, {"train.duration": 10}, "train.duration is 10: expected text"),
        (None, {"run.seed": "1"}, "run.seed is '1': expected a whole number"),
        ({"run": "a"}, {}, "run is 'a': expected a section with keys of its own"),
        ({"rum": {}}, {}, "unknown key rum: did you mean run?"),
        (BASE, {"data.column": 1}, "data.column is 1: expected text or null"),
        ("dmo", {}, "there is no config file dmo and no shipped config of this name: did you mean demo?"),
    ],
)
def test_bad_settings_from_python_are_one_line(config: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_settings(PretrainConfig, config, settings)
    assert str(caught.value) == message


def test_settings_from_python_are_completed_and_checked() -> None:
    def complete(config: FinetuneConfig) -> FinetuneConfig:
        return from_settings(FinetuneConfig, None, dict(leaves(config)) | {"run.seed": 7})

    def check(config: FinetuneConfig) -> None:
        raise UserError(f"seed {config.run.seed}")

    assert from_settings(FinetuneConfig, "finetune_demo", {}, complete=complete).run.seed == 7
    with pytest.raises(UserError, match=r"^seed 7$"):
        from_settings(FinetuneConfig, "finetune_demo", {}, complete=complete, check=check)
