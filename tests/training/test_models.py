"""The classifiers of a fine-tuning run, on a network small enough to save a dozen times."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swin_mim import SimMIM, Swin, SwinClassifier, SwinConfig
from swin_mim.errors import UserError
from swin_mim.files import replace_json
from swin_mim.models.saving import Preprocessing
from swin_mim.training import finished, models
from swin_mim.training.checkpoints import store
from swin_mim.training.config.finetune import ClassifierConfig, LabelledDataConfig
from swin_mim.weights import config_json
from swin_mim.weights.adapt import resize_bias_table
from swin_mim.weights.safetensors_writer import write_tensors

CONFIG = SwinConfig(32, embed_dim=16, depths=(2, 1), num_heads=(1, 2), window_size=4)
TINY = ClassifierConfig(
    None, "swin_nano", image_size=(32,), window_size=(4,), embed_dim=16, depths=(2, 1), num_heads=(1, 2)
)
PREPROCESSING = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), ("red", "green", "blue"))
NAMES = ("cat", "dog", "fox")
DATA = LabelledDataConfig()
TABLE = "attn.relative_position_bias_table"


def randomised(model: Any) -> Any:
    """Weights of a trained model's size, all different."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    model.preprocessing = PREPROCESSING
    return model.eval()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def is_new(head: nn.Module) -> bool:
    """Whether it was just drawn: a truncated normal of deviation 0.02 and no bias."""
    state = weights(head)
    deviation = float(state["fc.weight"].std())
    return not state["fc.bias"].any() and 0.01 < deviation < 0.03 and float(state["fc.weight"].abs().max()) < 0.2


def error_of(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def _said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    caplog.set_level(logging.INFO, "swin_mim")


@pytest.fixture(scope="module")
def simmim(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimMIM]:
    torch.manual_seed(3)
    model = randomised(SimMIM(CONFIG))
    return model.save_pretrained(tmp_path_factory.mktemp("simmim") / "model"), model


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SwinClassifier]:
    torch.manual_seed(4)
    model = randomised(SwinClassifier(CONFIG, num_classes=3))
    model.labels = NAMES
    return model.save_pretrained(tmp_path_factory.mktemp("classifier") / "model"), model


def committed(folder: Path, model: SwinClassifier, *, average: dict[str, Tensor] | None = None, step: int = 5) -> Path:
    """A checkpoint as the engine writes it."""
    staging = store.stage(folder / "checkpoints", step)
    write_tensors(model.state_dict(), staging / "model.safetensors")
    if average is not None:
        write_tensors(average, staging / "average.safetensors")
    replace_json(staging / "config.json", config_json.document(model.description()))
    return store.commit(staging, step)


# ---- new weights ----------------------------------------------------------------------------------------------


def test_new_weights_are_those_of_a_new_classifier() -> None:
    torch.manual_seed(7)
    built = models.build_classifier(replace(TINY, drop_path_rate=0.3), DATA, NAMES)
    config = replace(CONFIG, drop_path_rate=0.3)
    torch.manual_seed(7)
    assert_same(weights(built), weights(SwinClassifier(config, 3)))
    assert built.encoder.config == config
    assert built.labels == NAMES
    assert all(module.training for module in built.modules())
    assert all(parameter.requires_grad for parameter in built.parameters())
    assert not built.from_simmim
    assert built.preprocessing == Preprocessing(interpolation="bicubic", crop_pct=0.875)


def test_options_reach_the_encoder(simmim: tuple[Path, SimMIM], tmp_path: Path) -> None:
    options: dict[str, Any] = {"attention": "reference", "activation_checkpointing": True}
    path = committed(tmp_path, randomised(SwinClassifier(CONFIG, 3)))
    built = [
        models.build_classifier(TINY, DATA, NAMES, **options),
        models.build_classifier(ClassifierConfig(str(simmim[0])), DATA, NAMES, **options),
        models.build_classifier(TINY, DATA, NAMES, checkpoint=path, **options),
        finished.load_published(SwinClassifier, path, **options),
        finished.open_finished(SwinClassifier, ClassifierConfig(str(path)), **options),
    ]
    for model in built:
        assert model.encoder.activation_checkpointing
        assert {block.attn.backend for block in model.encoder.blocks()} == {"reference"}


# ---- pretrained weights ---------------------------------------------------------------------------------------


def test_a_masked_image_model_gives_its_encoder_and_gets_a_head(simmim: tuple[Path, SimMIM]) -> None:
    folder, source = simmim
    built = models.build_classifier(ClassifierConfig(str(folder), drop_path_rate=0.2), DATA, NAMES)
    assert_same(weights(built.encoder), weights(source.encoder))
    assert is_new(built.head)
    assert built.head["fc"].out_features == 3
    assert built.from_simmim
    assert built.labels == NAMES
    assert built.encoder.config == replace(CONFIG, drop_path_rate=0.2)
    assert [block.drop_path.rate for block in built.encoder.blocks()] == pytest.approx([0, 0.1, 0.2])
    assert all(module.training for module in built.modules())
    assert all(parameter.requires_grad for parameter in built.parameters())


@pytest.mark.parametrize(
    ("sides", "method", "windows"),
    [
        ({"window_size": (2,)}, "bicubic", [2, 2]),
        ({"window_size": (2,)}, "geometric", [2, 2]),
        ({"image_size": (48,), "window_size": (8,)}, "bicubic", [8, 6]),
        ({"image_size": (48,), "window_size": (8,)}, "geometric", [8, 6]),
        ({"image_size": (24,)}, "bicubic", [4, 3]),
    ],
)
def test_bias_tables_are_resized_and_nothing_else_changes(
    simmim: tuple[Path, SimMIM], sides: dict[str, Any], method: Any, windows: list[int]
) -> None:
    folder, source = simmim
    built = models.build_classifier(ClassifierConfig(str(folder), bias_tables=method, **sides), DATA, NAMES)
    expected = weights(source.encoder)
    for name, value in expected.items():
        if name.endswith(TABLE):
            stage = int(name.split(".")[1])
            before, after = CONFIG.stage_window(stage), (windows[stage],) * 2
            expected[name] = resize_bias_table(value, before, after, method)
    assert_same(weights(built.encoder), expected)
    assert [built.encoder.config.stage_window(stage)[0] for stage in range(2)] == windows


def test_the_two_ways_to_resize_are_not_the_same(simmim: tuple[Path, SimMIM]) -> None:
    ways: tuple[Any, Any] = ("bicubic", "geometric")
    built = [
        models.build_classifier(ClassifierConfig(str(simmim[0]), window_size=(2,), bias_tables=way), DATA, NAMES)
        for way in ways
    ]
    first, second = (model.encoder.get_parameter(f"layers.0.blocks.0.{TABLE}") for model in built)
    assert not torch.equal(first, second)


@pytest.mark.usefixtures("_said")
def test_a_classifier_of_the_same_classes_keeps_its_head(
    classifier: tuple[Path, SwinClassifier], caplog: pytest.LogCaptureFixture
) -> None:
    folder, source = classifier
    built = models.build_classifier(ClassifierConfig(str(folder)), DATA, list(NAMES))
    assert_same(weights(built), weights(source))
    assert built.labels == NAMES
    assert not built.from_simmim
    assert "head" not in caplog.text


@pytest.mark.usefixtures("_said")
@pytest.mark.parametrize(
    "names", [("cat", "dog", "owl"), ("dog", "cat", "fox"), ("cat", "dog"), ("cat", "dog", "fox", "owl")]
)
def test_a_classifier_of_other_classes_gets_a_new_head(
    classifier: tuple[Path, SwinClassifier], names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    folder, source = classifier
    built = models.build_classifier(ClassifierConfig(str(folder)), DATA, names)
    assert_same(weights(built.encoder), weights(source.encoder))
    assert built.head["fc"].out_features == len(names)
    assert is_new(built.head)
    assert built.labels == names
    assert f"the head is new: {folder} was not made for these classes" in caplog.text


def test_a_head_whose_classes_nobody_named_is_new(tmp_path: Path) -> None:
    source = randomised(SwinClassifier(CONFIG, 3))
    folder = source.save_pretrained(tmp_path / "model")
    assert is_new(models.build_classifier(ClassifierConfig(str(folder)), DATA, NAMES).head)


def test_the_checkpoint_of_another_run_is_a_pretrained_model(tmp_path: Path) -> None:
    source = randomised(SwinClassifier(CONFIG, 3))
    source.labels = NAMES
    path = committed(tmp_path, source)
    built = models.build_classifier(ClassifierConfig(str(path), window_size=(2,)), DATA, NAMES)
    assert_same(weights(built.head), weights(source.head))
    assert built.encoder.config.window_size == 2
    assert torch.equal(built.encoder.norm.weight, source.encoder.norm.weight)


def test_a_pickle_is_opened(tmp_path: Path) -> None:
    source = randomised(Swin(CONFIG))
    torch.save(source.state_dict(), tmp_path / "encoder.pth")
    model = ClassifierConfig(str(tmp_path / "encoder.pth"), image_size=(32,), window_size=(4,))
    built = models.build_classifier(model, DATA, NAMES)
    assert_same(weights(built.encoder), weights(source))


def test_weights_of_another_architecture_are_refused(
    simmim: tuple[Path, SimMIM], classifier: tuple[Path, SwinClassifier]
) -> None:
    model = ClassifierConfig(str(simmim[0]), depths=(2, 2))
    said = "model.depths is (2, 2) and that of model.pretrained"
    assert error_of(models.build_classifier, model, DATA, NAMES).startswith(said)
    assert error_of(finished.open_finished, SwinClassifier, replace(model, pretrained=str(classifier[0]))).startswith(
        said
    )
    models.build_classifier(replace(model, depths=(2, 1)), DATA, NAMES)


# ---- how images become its input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"mean": (0.0, 0.5, 1.0)}, {"mean": (0.0, 0.5, 1.0)}),
        ({"std": (1.0, 2.0, 3.0)}, {"std": (1.0, 2.0, 3.0)}),
        ({"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
        ({"interpolation": "bilinear", "crop_pct": 1.0}, {"interpolation": "bilinear", "crop_pct": 1.0}),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_preprocessing_is_that_of_the_pretrained_model_unless_it_is_set(
    simmim: tuple[Path, SimMIM], tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any], resumed: bool
) -> None:
    data = replace(DATA, **changes)
    model = models.build_classifier(ClassifierConfig(str(simmim[0])), data, NAMES)
    if resumed:
        model = models.build_classifier(ClassifierConfig(), data, NAMES, checkpoint=committed(tmp_path, model))
    common = replace(PREPROCESSING, interpolation="bicubic", crop_pct=0.875)
    assert model.preprocessing == replace(common, **expected)


# ---- frozen stages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [0, 1, 2])
@pytest.mark.parametrize("start", ["pretrained", "checkpoint"])
def test_frozen_stages_do_not_learn(simmim: tuple[Path, SimMIM], tmp_path: Path, stages: int, start: str) -> None:
    model = ClassifierConfig(str(simmim[0]), freeze=stages, drop_path_rate=0.5)
    path = committed(tmp_path, randomised(SwinClassifier(CONFIG, 3))) if start == "checkpoint" else None
    built = models.build_classifier(model, DATA, NAMES, checkpoint=path)
    encoder = built.encoder
    kept = [encoder.patch_embed, encoder.dropout, *encoder.layers[:stages]] if stages else []
    kept += [encoder.norm] if stages == 2 else []
    frozen = {id(module) for part in kept for module in part.modules()}
    for module in built.modules():
        assert module.training == (id(module) not in frozen)
    parameters = {id(parameter) for part in kept for parameter in part.parameters()}
    for name, parameter in built.named_parameters():
        assert parameter.requires_grad == (id(parameter) not in parameters), name
    assert built.head["fc"].weight.requires_grad


def test_more_stages_than_there_are_cannot_be_frozen(simmim: tuple[Path, SimMIM]) -> None:
    message = error_of(models.build_classifier, ClassifierConfig(str(simmim[0]), freeze=3), DATA, NAMES)
    assert message == "model.freeze 3 is more than the 2 stages of the encoder"


# ---- checkpoints of the run -----------------------------------------------------------------------------------


def test_a_checkpoint_of_the_run_goes_before_what_the_settings_say_of_the_start(tmp_path: Path) -> None:
    source = randomised(SwinClassifier(CONFIG, 3))
    source.labels = NAMES
    model = ClassifierConfig("runs/that is gone", image_size=(64,), window_size=(8,), drop_path_rate=0.25)
    built = models.build_classifier(model, DATA, NAMES, checkpoint=committed(tmp_path, source))
    assert_same(weights(built), weights(source))
    assert built.encoder.config == replace(CONFIG, drop_path_rate=0.25)
    assert built.training
    assert built.labels == NAMES


def test_a_checkpoint_publishes_its_average_if_it_has_one(tmp_path: Path) -> None:
    source = randomised(SwinClassifier(CONFIG, 3))
    source.labels = NAMES
    average = {name: value + 1 for name, value in weights(source).items()}
    plain, averaged = committed(tmp_path / "a", source), committed(tmp_path / "b", source, average=average)
    assert_same(weights(finished.load_published(SwinClassifier, plain)), weights(source))
    found = finished.load_published(SwinClassifier, averaged)
    assert_same(weights(found), average)
    assert (found.labels, found.preprocessing, found.encoder.config) == (NAMES, PREPROCESSING, CONFIG)
    assert not found.training


@pytest.mark.parametrize("name", ["model.safetensors", "average.safetensors", "config.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flip", "missing"])
def test_a_damaged_checkpoint_is_not_published(tmp_path: Path, name: str, damage: str) -> None:
    source = SwinClassifier(CONFIG, 3)
    path = committed(tmp_path, source, average=weights(source))
    if damage == "missing":
        (path / name).unlink()
    else:
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (path / name).write_bytes(bytes(data))
    message = error_of(finished.load_published, SwinClassifier, path)
    assert str(path) in message
    assert name in message


def test_a_checkpoint_that_is_gone_is_one_line(tmp_path: Path) -> None:
    path = committed(tmp_path, SwinClassifier(CONFIG, 3))
    shutil.rmtree(path)
    assert str(path) in error_of(finished.load_published, SwinClassifier, path)


# ---- finished classifiers -------------------------------------------------------------------------------------


def test_a_finished_classifier_is_measured_as_it_is(classifier: tuple[Path, SwinClassifier]) -> None:
    folder, source = classifier
    found = finished.open_finished(SwinClassifier, ClassifierConfig(str(folder)))
    assert_same(weights(found), weights(source))
    assert (found.labels, found.preprocessing, found.encoder.config) == (NAMES, PREPROCESSING, CONFIG)
    assert not found.training
    assert all(module.rate == 0 for module in found.modules() if hasattr(module, "rate"))


def test_a_finished_classifier_is_measured_at_another_size(classifier: tuple[Path, SwinClassifier]) -> None:
    folder, source = classifier
    found = finished.open_finished(SwinClassifier, ClassifierConfig(str(folder), image_size=(32, 64), window_size=(2,)))
    assert (found.encoder.config.image_size, found.encoder.config.window_size) == ((32, 64), 2)
    assert_same(weights(found.head), weights(source.head))


def test_without_a_classifier_there_is_nothing_to_measure(simmim: tuple[Path, SimMIM], tmp_path: Path) -> None:
    message = error_of(finished.open_finished, SwinClassifier, ClassifierConfig(name="swin_nano"))
    assert message == "nothing to evaluate: the run has no checkpoint, and model.pretrained names no classifier"
    message = error_of(finished.open_finished, SwinClassifier, ClassifierConfig(str(simmim[0])))
    assert str(simmim[0]) in message
    assert "head.fc.weight" in message
    assert str(tmp_path / "none") in error_of(
        finished.open_finished, SwinClassifier, ClassifierConfig(str(tmp_path / "none"))
    )


@pytest.mark.usefixtures("_said")
def test_the_classes_are_the_models_or_in_their_number_those_of_the_images(caplog: pytest.LogCaptureFixture) -> None:
    model = SwinClassifier(CONFIG, 3)
    assert models.class_names(model, ["a", "b", "c"]) == ["a", "b", "c"]
    assert "the model does not name its classes" in caplog.text
    caplog.clear()
    model.labels = NAMES
    assert models.class_names(model, ["a", "b"]) == NAMES
    assert caplog.text == ""


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "d"], []])
def test_another_number_of_classes_without_names_is_refused(names: list[str]) -> None:
    message = error_of(models.class_names, SwinClassifier(CONFIG, 3), names)
    assert message == f"the model has 3 classes without names, and the images {len(names)}: they do not match"
