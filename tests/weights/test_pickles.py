"""A pickle as a source, where it was asked for: microsoft's files and transformers' old ones, and no hostile one."""

import json
import logging
import os
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from swin_mim import SimMIM, Swin, SwinClassifier, SwinConfig, block_mask
from swin_mim.errors import UserError
from swin_mim.hub import pretrained, saved
from swin_mim.weights.config_json import Preprocessing, timm_arguments
from swin_mim.weights.library_configs import transformers_documents
from swin_mim.weights.pickled_file import LARGEST_SIZE, microsoft_settings

CONFIG = SwinConfig(96, embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=6)
"""Grids 24, 12, 6, 3, as 48, 24, 12, 6 in the official files: tables of 6, 6, 6 and 3."""
UNIFORM = SwinConfig(64, embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=2)
"""One window in all stages, as transformers wants it."""
SETTINGS = {"DATA": {"IMG_SIZE": 96}, "MODEL": {"TYPE": "swin", "SWIN": {"WINDOW_SIZE": 6}}}
PATH = Path("simmim_pretrain.pth")


def randomised(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model.eval()


def state_of(model: Any, format: Any) -> dict[str, torch.Tensor]:
    """Its weights under the names of another library."""
    tensors = {name.removeprefix("encoder."): value.detach() for name, value in model.state_dict().items()}
    return saved.to_theirs(format, model.description(), tensors)


def save_with_yacs(content: dict[str, Any], path: Path, *, zipped: bool = True) -> None:
    """torch.save, the config as yacs' CfgNode: a dict with attributes, which microsoft's scripts pickle."""

    class CfgNode(dict):
        def __init__(self, values: dict[str, Any]) -> None:
            super().__init__({key: CfgNode(v) if isinstance(v, dict) else v for key, v in values.items()})
            self.__dict__ |= {"__immutable__": True, "__deprecated_keys__": set(), "__renamed_keys__": {}}

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = types.ModuleType("yacs.config")
    module.__dict__["CfgNode"] = CfgNode
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        torch.save(content | {"config": CfgNode(content["config"])}, path, _use_new_zipfile_serialization=zipped)


def save_microsoft(
    model: SimMIM | SwinClassifier,
    path: Path,
    settings: dict[str, Any] = SETTINGS,
    *,
    zipped: bool = True,
    rename: tuple[str, str] = ("", ""),
) -> Path:
    """As main_simmim.py saves it."""
    state = {name.replace(*rename): tensor for name, tensor in state_of(model, "microsoft").items()}
    content = {"model": state, "config": settings, "epoch": 99, "max_accuracy": 0.0}
    save_with_yacs(content | {"optimizer": {"state": {}}, "lr_scheduler": {}}, path, zipped=zipped)
    return path


def error_of(function: Callable[..., object], *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def model() -> SimMIM:
    torch.manual_seed(5)
    return randomised(SimMIM(CONFIG))


@pytest.fixture(scope="module")
def file(model: SimMIM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_microsoft(model, tmp_path_factory.mktemp("microsoft") / "simmim_pretrain.pth")


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, {}),
        (SETTINGS, {"image_size": 96, "window_size": 6}),
        ({"DATA": {"IMG_SIZE": 192}}, {"image_size": 192}),
        ({"MODEL": {"SWIN": {"WINDOW_SIZE": 12}}}, {"window_size": 12}),
        ({"DATA": {"IMG_SIZE": LARGEST_SIZE}}, {"image_size": LARGEST_SIZE}),
        ({"DATA": {}, "MODEL": {"SWIN": {}}}, {}),
        ({"DATA": None, "MODEL": {"SWIN": "tiny"}}, {}),
        ({"DATA": {"IMG_SIZE": None}}, {}),
        ({"MODEL": {"SIMMIM": {"NORM_TARGET": {"ENABLE": True}}}}, {"target": "normalized"}),
        ({"MODEL": {"SIMMIM": {"NORM_TARGET": {"ENABLE": False, "PATCH_SIZE": 47}}}}, {}),
        ({"MODEL": {"SIMMIM": {"NORM_TARGET": {"ENABLE": 1}}}}, {}),
        # V2's settings hold the defaults of V1's, and the other way round
        (
            {"MODEL": {"TYPE": "swinv2", "SWIN": {"WINDOW_SIZE": 7}, "SWINV2": {"WINDOW_SIZE": 12}}},
            {"window_size": 12},
        ),
        ({"MODEL": {"TYPE": "swin", "SWIN": {"WINDOW_SIZE": 6}, "SWINV2": {"WINDOW_SIZE": 7}}}, {"window_size": 6}),
        (
            {"MODEL": {"TYPE": "swinv2", "SWINV2": {"PRETRAINED_WINDOW_SIZES": [12, 12, 12, 6]}}},
            {"pretrained_window_sizes": (12, 12, 12, 6)},
        ),
        ({"MODEL": {"TYPE": ["swinv2"], "SWINV2": {"WINDOW_SIZE": 12}}}, {}),
    ],
)
def test_what_a_config_of_microsofts_says(settings: dict[str, Any], found: dict[str, Any]) -> None:
    assert microsoft_settings(settings, PATH) == found


@pytest.mark.parametrize("value", [0, -192, True, 192.0, "192", [192, 192], LARGEST_SIZE + 1, 10**30])
def test_sizes_that_no_network_has_are_refused(value: Any) -> None:
    for key, settings in (
        ("DATA.IMG_SIZE", {"DATA": {"IMG_SIZE": value}}),
        ("MODEL.SWIN.WINDOW_SIZE", {"MODEL": {"SWIN": {"WINDOW_SIZE": value}}}),
    ):
        message = error_of(microsoft_settings, settings, PATH)
        assert message == f"{PATH}: its config has {key} {value!r}, expected a number up to {LARGEST_SIZE}"


@pytest.mark.parametrize("value", [12, "12", [12.0], [True], [-1], [LARGEST_SIZE + 1], [[12]], [0] * 17])
def test_pretrained_windows_that_no_network_has_are_refused(value: Any) -> None:
    settings = {"MODEL": {"TYPE": "swinv2", "SWINV2": {"PRETRAINED_WINDOW_SIZES": value}}}
    message = error_of(microsoft_settings, settings, PATH)
    assert message.startswith(f"{PATH}: its config has MODEL.SWINV2.PRETRAINED_WINDOW_SIZES ")


def test_a_classifier_starts_from_a_file_of_microsofts(
    model: SimMIM, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = SwinClassifier.from_pretrained(file, num_classes=3, pickles=True)
    assert loaded.encoder.config == CONFIG
    assert loaded.from_simmim
    assert loaded.labels is None
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(loaded.encoder(images), model.encoder(images))
        assert loaded(images).shape == (1, 3)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"{file}: head.fc.weight, head.fc.bias new, drawn at random: train before use"]


# Swin V2: as microsoft's configs of SimMIM have it, of fewer channels.

PRETRAINED_V2 = SwinConfig(192, embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=12, version=2)
MEASURES = (12, 12, 12, 6)
TUNED_V2 = replace(PRETRAINED_V2, image_size=224, window_size=14, pretrained_window_sizes=MEASURES)


def settings_of_v2(config: SwinConfig, **more: Any) -> dict[str, Any]:
    """With the defaults that their config.py has for both versions."""
    sizes = {"WINDOW_SIZE": config.window_size, "PRETRAINED_WINDOW_SIZES": list(config.pretrained_window_sizes)}
    of_model = {"TYPE": "swinv2", "SWIN": {"WINDOW_SIZE": 7}, "SWINV2": sizes | more}
    simmim = {"NORM_TARGET": {"ENABLE": True, "PATCH_SIZE": 47}}
    return {"DATA": {"IMG_SIZE": config.image_size}, "MODEL": of_model | {"SIMMIM": simmim}}


@pytest.fixture(scope="module")
def model_v2() -> SimMIM:
    torch.manual_seed(6)
    return randomised(SimMIM(PRETRAINED_V2, target="normalized"))


@pytest.mark.parametrize("settings", [settings_of_v2(PRETRAINED_V2), {}], ids=["settings", "bare"])
@pytest.mark.parametrize("rename", [("", ""), ("cpb_mlp", "rpe_mlp")], ids=["cpb", "rpe"])
def test_a_pretraining_of_v2_is_read_whole(
    model_v2: SimMIM, settings: dict[str, Any], rename: tuple[str, str], tmp_path: Path
) -> None:
    """Its buffers tell the windows where no settings do."""
    path = save_microsoft(model_v2, tmp_path / "swinv2_base_1k_500k.pth", settings, rename=rename)
    loaded = SimMIM.from_pretrained(path, pickles=True, target="normalized")
    assert loaded.encoder.config == PRETRAINED_V2
    contents = pretrained.open_contents(path, pickles=True)
    weights = pretrained.interpret(contents, str(path))
    left = {name.rpartition(".")[2] for name in weights.keys.left}
    assert left == {"attn_mask", "relative_coords_table", "relative_position_index"}
    assert (weights.selection.left, weights.notes) == ((), ())
    assert len(weights.keys.sources) + len(weights.keys.left) == len(contents.header)
    images, mask = torch.randn(1, 3, 192, 192), block_mask(1, (48, 48), 8, 0.5, seed=0)
    with torch.no_grad():
        assert torch.equal(loaded(images, mask).pixels, model_v2(images, mask).pixels)


@pytest.mark.parametrize("settings", [settings_of_v2(TUNED_V2), {}], ids=["settings", "bare"])
def test_a_fine_tuned_v2_keeps_what_measures_its_positions(settings: dict[str, Any], tmp_path: Path) -> None:
    model = randomised(SwinClassifier(TUNED_V2, 5))
    path = save_microsoft(model, tmp_path / "finetune_swinv2_base_1k_500k.pth", settings)
    loaded = SwinClassifier.from_pretrained(path, pickles=True)
    assert loaded.encoder.config == TUNED_V2
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize(("size", "window"), [(224, 14), (256, 16)])
def test_a_v2_is_fine_tuned_at_other_sizes_as_timm_has_it(
    model_v2: SimMIM, size: int, window: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_microsoft(model_v2, tmp_path / "swinv2.pth", settings_of_v2(PRETRAINED_V2))
    with caplog.at_level(logging.INFO, "swin_mim"):
        loaded = SwinClassifier.from_pretrained(path, image_size=size, window_size=window, num_classes=5, pickles=True)
    assert loaded.encoder.config == replace(
        PRETRAINED_V2, image_size=size, window_size=window, pretrained_window_sizes=MEASURES
    )
    assert f"stage 0: windows of 12x12 become {window}x{window}, positions measured by 12x12" in caplog.text
    arguments = timm_arguments(loaded.encoder.config)
    assert arguments["pretrained_window_sizes"] == list(MEASURES)
    theirs = timm.models.SwinTransformerV2(**arguments, num_classes=0, global_pool="").eval()
    theirs.load_state_dict(model_v2.encoder.state_dict())
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encoder(images), theirs(images), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swinv2_small", "swinv2_base", "swinv2_large"])
def test_files_of_the_modelhubs_sizes_load_at_the_sizes_of_fine_tuning(name: str, tmp_path: Path) -> None:
    config = SwinConfig.named(name, image_size=192, window_size=12)
    tuned = replace(config, image_size=224, window_size=14, pretrained_window_sizes=MEASURES)
    files = {
        "pretrained.pth": (SimMIM(config), config),
        "tuned.pth": (SwinClassifier(tuned, 1000), tuned),
    }
    for file, (model, of) in files.items():
        path = save_microsoft(model, tmp_path / file, settings_of_v2(of))
        for size, window in ((224, 14), (256, 16)):
            loaded = Swin.from_pretrained(path, image_size=size, window_size=window, pickles=True)
            assert loaded.config == replace(
                config, image_size=size, window_size=window, pretrained_window_sizes=MEASURES
            )
            weights = model.encoder.state_dict()
            assert all(torch.equal(tensor, weights[key]) for key, tensor in loaded.state_dict().items())
        path.unlink()


def test_settings_that_contradict_the_buffers_of_a_v2_are_one_line(model_v2: SimMIM, tmp_path: Path) -> None:
    for settings, text in (
        (settings_of_v2(PRETRAINED_V2, PRETRAINED_WINDOW_SIZES=[8, 8, 8, 4]),
         "pretrained_window_sizes is (8, 8, 8, 4), and the file's relative_coords_table is of ((12, 12), "),
        (settings_of_v2(PRETRAINED_V2, WINDOW_SIZE=8), "is for windows of 12x12, and image_size 192 with "),
        (settings_of_v2(PRETRAINED_V2) | {"DATA": {"IMG_SIZE": 224}}, "relative_coords_table of stage 3 is for"),
    ):  # fmt: skip
        path = save_microsoft(model_v2, tmp_path / "weights.pth", settings)
        message = error_of(SimMIM.from_pretrained, path, pickles=True)
        assert text in message
        assert str(path) in message


def test_buffers_beside_a_config_of_ours_must_fit_it(model_v2: SimMIM, tmp_path: Path) -> None:
    """microsoft's names in a folder that says itself what it is."""
    folder = model_v2.save_pretrained(tmp_path / "model")
    (folder / "mim_head.safetensors").unlink()
    state = state_of(model_v2, "microsoft")
    save_file(state, folder / "model.safetensors")
    assert SimMIM.from_pretrained(folder).encoder.config == PRETRAINED_V2
    name = "encoder.layers.0.blocks.0.attn.relative_coords_table"
    blocks = {name.replace("blocks.0", f"blocks.{block}"): state[name][:, 1:-1, 1:-1].contiguous() for block in (0, 1)}
    save_file(state | blocks, folder / "model.safetensors")
    assert "stage 0 is for windows of 11x11" in error_of(SimMIM.from_pretrained, folder)
    other = {key: table / 1.1 for key, table in state.items() if key.endswith("coords_table") and ".0.blocks" in key}
    save_file(state | other, folder / "model.safetensors")
    error_of(SimMIM.from_pretrained, folder)


def test_damaged_buffers_of_a_v2_are_one_line(model_v2: SimMIM, tmp_path: Path) -> None:
    state = state_of(model_v2, "microsoft")
    name = "encoder.layers.1.blocks.1.attn.relative_coords_table"
    for spoiled, text in (
        (state[name] + 1, "holds no coordinates of a window of 12x12: the file is damaged"),
        (state[name][:, :-1], "(1, 22, 23, 2): it must be (1, 2h-1, 2w-1, 2) for a window of h x w"),
        (state[name][:, 1:-1, 1:-1], "the blocks of stage 1 have relative_coords_table of different shapes"),
        (state[name].long(), "holds no coordinates"),
    ):
        torch.save({"model": state | {name: spoiled.contiguous()}}, tmp_path / "weights.pth")
        assert text in error_of(SimMIM.from_pretrained, tmp_path / "weights.pth", pickles=True)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pretraining_goes_on_from_a_file_of_microsofts(model: SimMIM, zipped: bool, tmp_path: Path) -> None:
    settings = SETTINGS | {"MODEL": SETTINGS["MODEL"] | {"SIMMIM": {"NORM_TARGET": {"ENABLE": True}}}}
    path = save_microsoft(model, tmp_path / "ckpt_epoch_99.pth", settings, zipped=zipped)
    loaded = SimMIM.from_pretrained(str(path), pickles=True)
    assert (loaded.encoder.config, loaded.target, loaded.from_simmim) == (CONFIG, "normalized", True)
    images, mask = torch.randn(1, 3, 96, 96), block_mask(1, (24, 24), 8, 0.5, seed=0)
    with torch.no_grad():
        assert torch.equal(loaded(images, mask).pixels, model(images, mask).pixels)


def test_another_geometry_is_made_of_it(file: Path) -> None:
    loaded = SwinClassifier.from_pretrained(file, num_classes=2, image_size=128, window_size=8, pickles=True)
    assert loaded.encoder.config == replace(CONFIG, image_size=128, window_size=8)


def test_without_a_config_the_image_size_is_guessed_and_that_is_said(
    model: SimMIM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"model": state_of(model, "microsoft")}, tmp_path / "bare.pth")
    with caplog.at_level(logging.WARNING, "swin_mim"):
        loaded = SimMIM.from_pretrained(tmp_path / "bare.pth", pickles=True)
    assert "bare.pth does not tell its image size" in caplog.text
    assert [loaded.encoder.config.stage_window(stage) for stage in range(4)] == [(6, 6)] * 3 + [(3, 3)]


def test_a_config_that_contradicts_the_weights_is_one_line(model: SimMIM, tmp_path: Path) -> None:
    for settings, text in (
        (SETTINGS | {"DATA": {"IMG_SIZE": "large"}}, "DATA.IMG_SIZE 'large'"),
        (SETTINGS | {"DATA": {"IMG_SIZE": 32}}, "relative_position_bias_table"),
        (SETTINGS | {"MODEL": {"SWIN": {"WINDOW_SIZE": 7}}}, "relative_position_bias_table"),
    ):
        path = save_microsoft(model, tmp_path / "weights.pth", settings)
        message = error_of(SimMIM.from_pretrained, path, pickles=True)
        assert text in message
        assert message.count(str(path)) == 1


@pytest.mark.parametrize("suffix", [".pth", ".PT", ".bin", ".ckpt"])
def test_it_is_refused_where_nobody_asked_for_it(file: Path, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(file.read_bytes())
    for load in (SimMIM.from_pretrained, Swin.from_pretrained, pretrained.locate):
        message = error_of(load, path)
        assert message.startswith(f"{path} is a pickle")
        assert message.endswith(f"swin-mim convert {path} FOLDER --to swin_mim")
    assert pretrained.locate(path, pickles=True) == path


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("place", ["model", "config", "optimizer"])
@pytest.mark.parametrize("name", ["weights.pth", "pytorch_model.bin", "model.safetensors"])
def test_a_hostile_one_is_refused_all_the_same(model: SimMIM, place: str, name: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / name
    content: dict[str, Any] = {"model": state_of(model, "microsoft")}
    torch.save(content | {place: Calls(os.mkdir, str(canary))}, path)
    for cls, options in ((SimMIM, {}), (SwinClassifier, {"num_classes": 3})):
        message = error_of(cls.from_pretrained, path, pickles=True, **options)
        assert "asks to run posix.mkdir when it is opened: it was not" in message
    assert not canary.exists()
    Calls(os.mkdir, str(canary)).call[0](str(canary))
    assert canary.exists(), "it would have been seen"


def test_a_pickle_is_no_name_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained.repository, "fetch", lambda *arguments, **keywords: pytest.fail("asked the Hub"))
    for source in ("user/weights.pth", "nowhere/pytorch_model.bin", tmp_path / "weights.pth"):
        assert "does not exist" in error_of(pretrained.locate, source, pickles=True)


@pytest.fixture
def old_transformers(tmp_path: Path) -> tuple[Path, SwinClassifier]:
    """pytorch_model.bin and what stands beside it."""
    model = randomised(SwinClassifier(UNIFORM, 3))
    model.labels, model.preprocessing = ("ice", "desert", "forest"), Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    for name, content in transformers_documents(model.description()).items():
        (tmp_path / name).write_text(json.dumps(content))
    torch.save(state_of(model, "transformers"), tmp_path / "pytorch_model.bin")
    return tmp_path / "pytorch_model.bin", model


def test_an_old_file_of_transformers_has_its_config_beside_it(
    old_transformers: tuple[Path, SwinClassifier],
) -> None:
    path, model = old_transformers
    loaded = SwinClassifier.from_pretrained(path, pickles=True)
    assert loaded.description() == model.description()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert not loaded.from_simmim


def test_what_stands_beside_another_file_is_not_its_config(old_transformers: tuple[Path, SwinClassifier]) -> None:
    path, model = old_transformers
    loaded = SwinClassifier.from_pretrained(path.rename(path.with_name("mine.bin")), pickles=True, image_size=64)
    assert (loaded.labels, loaded.preprocessing) == (None, Preprocessing())
    assert torch.equal(loaded.head["fc"].weight, model.head["fc"].weight)


def test_the_config_beside_it_is_checked(old_transformers: tuple[Path, SwinClassifier]) -> None:
    path, _ = old_transformers
    document = json.loads((path.parent / "config.json").read_text())
    for change, text in (
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"id2label": {"0": "a"}}, "is 1 name of a class"),
    ):
        (path.parent / "config.json").write_text(json.dumps(document | change))
        assert text in error_of(SwinClassifier.from_pretrained, path, pickles=True)


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors", "weights.pyth", "weights"])
def test_no_other_name_makes_a_pickle_welcome(file: Path, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(file.read_bytes())
    message = error_of(SimMIM.from_pretrained, path)
    assert message.startswith(str(path))
    assert "swin-mim convert" in message
    assert SimMIM.from_pretrained(path, pickles=True).encoder.config == CONFIG
