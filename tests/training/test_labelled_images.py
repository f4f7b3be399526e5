"""Which images a run trains on, and which it is judged by."""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from swin_mim.data.decoding.raster import ChannelSpec, Raster
from swin_mim.data.labels import Labelled
from swin_mim.data.packing.pack import PackOptions, pack
from swin_mim.data.sources.base import Source
from swin_mim.errors import UserError
from swin_mim.training.config.finetune import LabelledDataConfig
from swin_mim.training.config.pretrain import DataConfig, PretrainConfig, ProbeConfig, RunConfig
from swin_mim.training.labelled_images import named_by, to_evaluate, to_probe, to_probe_in, to_train_and_evaluate

COUNTS = {"ant": 30, "bee": 20, "cow": 6}


def png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 1, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def folder_of(root: Path, counts: Mapping[str, int]) -> str:
    """One folder for each class."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number:03}.png").write_bytes(png(number))
    return str(root)


def table_of(labels: Sequence[Any], kind: Any, red: int = 0) -> datasets.Dataset:
    features = datasets.Features({"picture": datasets.Image(), "kind": kind, "other": datasets.Value("string")})
    cells = [{"bytes": png(red + number), "path": None} for number in range(len(labels))]
    columns = {"picture": cells, "kind": list(labels), "other": ["x", "y"] * (len(labels) // 2)}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return folder_of(tmp_path / "images", COUNTS)


@pytest.fixture
def splits(tmp_path: Path) -> str:
    """A data set of three splits, of 20, 8 and 6 images; "test" lacks a class."""
    kind = datasets.ClassLabel(names=["ant", "bee", "cow"])
    tables = {
        "train": table_of([0, 1, 2, 0] * 5, kind),
        "validation": table_of([2, 1] * 4, kind, 100),
        "test": table_of([0, 1] * 3, kind, 200),
    }
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "splits")
    return str(tmp_path / "splits")


def names(labelled: Labelled) -> list[str]:
    return [labelled.images.name(index) for index in range(len(labelled))]


def reds(labelled: Labelled) -> list[int]:
    return [labelled.images.image(index).getpixel((0, 0))[0] for index in range(len(labelled))]


def counts(labelled: Labelled) -> dict[str, int]:
    return dict(zip(labelled.names, labelled.counts().tolist(), strict=True))


def assert_labels_fit(labelled: Labelled) -> None:
    """The class of each image is the folder that it is in."""
    assert [labelled.names[target] for target in labelled.targets] == [name.split("/")[0] for name in names(labelled)]


def error_of(data: LabelledDataConfig) -> str:
    with pytest.raises(UserError) as caught:
        to_train_and_evaluate(data)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- a part of the source held out ----------------------------------------------------------------------------


def test_without_validation_a_tenth_is_held_out(folder: str) -> None:
    training, judged = to_train_and_evaluate(LabelledDataConfig(source=folder))
    assert counts(judged) == {"ant": 3, "bee": 2, "cow": 0}
    assert counts(training) == {"ant": 27, "bee": 18, "cow": 6}
    assert not set(names(training)) & set(names(judged))
    assert_labels_fit(training)
    assert_labels_fit(judged)


def test_what_is_held_out_is_the_same_in_every_run(folder: str) -> None:
    """Whatever else the settings say, so that results can be compared."""
    first = to_train_and_evaluate(LabelledDataConfig(source=folder))
    others = [{}, {"subset_seed": 7}, {"labels_per_class": 4, "subset_seed": 3}, {"balance": "sampling", "workers": 0}]
    for settings in others:
        training, judged = to_train_and_evaluate(LabelledDataConfig(source=folder, **settings))
        assert names(judged) == names(first[1])
        assert judged.fingerprint == first[1].fingerprint
        assert set(names(training)) <= set(names(first[0]))


@pytest.mark.parametrize(("heldout", "expected"), [(3, 3), (5, 6), (100, 6)])
def test_another_number_is_held_out_up_to_a_tenth(folder: str, heldout: int, expected: int) -> None:
    training, judged = to_train_and_evaluate(LabelledDataConfig(source=folder, heldout=heldout))
    assert abs(len(judged) - expected) <= 1
    assert len(training) + len(judged) == 56


def test_a_source_of_few_images_cannot_be_parted(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "few", {"ant": 4, "bee": 4})
    assert error_of(LabelledDataConfig(source=source)) == (
        f"data.source {source!r} has too few images to hold some out: name others with data.validation"
    )


# ---- other images to evaluate on ------------------------------------------------------------------------------


def test_a_validation_folder_has_the_class_numbers_of_the_source(folder: str, tmp_path: Path) -> None:
    """Also where it lacks a class, by which the numbers of its own would be others."""
    validation = folder_of(tmp_path / "val", {"bee": 4, "cow": 3})
    training, judged = to_train_and_evaluate(LabelledDataConfig(source=folder, validation=validation))
    assert counts(training) == COUNTS
    assert judged.names == training.names == ("ant", "bee", "cow")
    assert counts(judged) == {"ant": 0, "bee": 4, "cow": 3}
    assert_labels_fit(judged)


def test_a_validation_folder_with_an_unknown_class_is_refused(folder: str, tmp_path: Path) -> None:
    validation = folder_of(tmp_path / "val", {"ant": 1, "bat": 2, "dog": 2})
    message = error_of(LabelledDataConfig(source=folder, validation=validation))
    assert message == (
        "the images to evaluate on have classes that the model does not know: bat, dog; it knows ant, bee, cow"
    )


def test_a_validation_folder_that_is_not_there_is_named_by_its_own_key(folder: str, tmp_path: Path) -> None:
    message = error_of(LabelledDataConfig(source=folder, validation=str(tmp_path / "none")))
    assert message.startswith("data.validation")


@pytest.mark.parametrize(("split", "expected"), [("validation", [100, 8, [0, 4, 4]]), ("test", [200, 6, [3, 3, 0]])])
def test_a_split_of_the_data_set_to_evaluate_on(splits: str, split: str, expected: list[Any]) -> None:
    training, judged = to_train_and_evaluate(LabelledDataConfig(source=splits, validation_split=split))
    first, count, classes = expected
    assert training.names == judged.names == ("ant", "bee", "cow")
    assert (training.counts().tolist(), judged.counts().tolist()) == ([10, 5, 5], classes)
    assert (reds(training), reds(judged)) == (list(range(20)), list(range(first, first + count)))


def test_a_split_of_another_data_set_to_evaluate_on(splits: str, tmp_path: Path) -> None:
    """Its classes may have other numbers there, and its images are in the column of the same name."""
    kind = datasets.ClassLabel(names=["cow", "bee", "ant"])
    other = {"train": table_of([0, 2], kind, 50), "extra": table_of([0, 2, 1, 0], kind, 60)}
    datasets.DatasetDict(other).save_to_disk(tmp_path / "other")
    data = LabelledDataConfig(source=splits, split="validation", validation=str(tmp_path / "other"))
    training, judged = to_train_and_evaluate(data)
    assert (reds(training)[0], reds(judged), judged.targets.tolist()) == (100, [50, 51], [2, 0])
    data = LabelledDataConfig(source=splits, validation=str(tmp_path / "other"), validation_split="extra")
    _, judged = to_train_and_evaluate(data)
    assert (reds(judged), judged.targets.tolist()) == ([60, 61, 62, 63], [2, 0, 1, 2])


def test_columns_are_those_of_the_settings(splits: str) -> None:
    data = LabelledDataConfig(source=splits, column="picture", label_column=("other",), validation_split="test")
    for labelled in to_train_and_evaluate(data):
        assert labelled.names == ("x", "y")
        assert labelled.targets.tolist() == [0, 1] * (len(labelled) // 2)
    for settings in ({"column": "none"}, {"label_column": ("none",)}, {"config": "none"}):
        with pytest.raises(UserError, match="none"):
            to_train_and_evaluate(LabelledDataConfig(source=splits, validation_split="test", **settings))


def test_images_of_several_labels(tmp_path: Path) -> None:
    kind = datasets.Sequence(datasets.ClassLabel(names=["ant", "bee", "cow"]))
    table_of([[0], [1, 2], [], [0, 1, 2]] * 10, kind).save_to_disk(tmp_path / "table")
    data = LabelledDataConfig(source=str(tmp_path / "table"), label_column=("kind",), multi_label=True)
    training, judged = to_train_and_evaluate(data)
    assert training.multi_label
    assert judged.multi_label
    assert (len(training), len(judged)) == (36, 4)
    for labelled in (training, judged):
        for red, labels in zip(reds(labelled), labelled.targets.tolist(), strict=True):
            assert labels == [[True, False, False], [False, True, True], [False] * 3, [True] * 3][red % 4]


# ---- few labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validated", [True, False])
def test_labels_per_class_are_of_the_training_images_alone(folder: str, tmp_path: Path, validated: bool) -> None:
    validation = folder_of(tmp_path / "val", {"ant": 9, "bee": 9}) if validated else None
    chosen = {}
    for count in (0, 1, 4):
        data = LabelledDataConfig(source=folder, validation=validation, labels_per_class=count)
        training, judged = to_train_and_evaluate(data)
        chosen[count] = set(names(training))
        assert len(judged) == (18 if validated else 5)
        assert counts(training) == dict.fromkeys(COUNTS, count) or count == 0
        assert_labels_fit(training)
        assert validated or not chosen[count] & set(names(judged))
    assert chosen[1] < chosen[4] < chosen[0]


def test_the_subset_seed_chooses_others(folder: str) -> None:
    settings: dict[str, Any] = {"source": folder, "labels_per_class": 4}
    first, again, other = (
        names(to_train_and_evaluate(LabelledDataConfig(**settings, subset_seed=seed))[0]) for seed in (1, 1, 2)
    )
    assert first == again != other


# ---- blue_marble ----------------------------------------------------------------------------------------------


class Tiles(Source):
    """Stands for the tiles of a split."""

    def __init__(self, split: str, count: int) -> None:
        self._split, self._count, self.fingerprint = split, count, split

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return f"{self._split} {index}"

    def image(self, index: int) -> Image.Image:
        raise AssertionError("nobody asked for a tile")


@pytest.fixture
def _tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_tiles(split: str, label: str) -> tuple[Tiles, tuple[str, ...], np.ndarray]:
        count = {"train": 40, "validation": 12, "test": 8}[split]
        return Tiles(f"{label} {split}", count), ("north", "south"), np.arange(count) % 2

    monkeypatch.setattr("swin_mim.data.labels.open_tiles_with_labels", open_tiles)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize(
    ("settings", "judged_by"),
    [({}, "validation"), ({"validation_split": "validation"}, "validation"), ({"validation_split": "test"}, "test")],
)
def test_tiles_are_judged_by_those_of_another_split(settings: dict[str, str], judged_by: str) -> None:
    """Those of "train" overlap each other: none of them is held out."""
    data = LabelledDataConfig(source="blue_marble", label_column=("coast",), **settings)
    training, judged = to_train_and_evaluate(data)
    assert names(training) == [f"coast train {index}" for index in range(40)]
    assert names(judged) == names(to_evaluate(data)) == [f"coast {judged_by} {index}" for index in range(len(judged))]
    assert training.names == judged.names == ("north", "south")
    training, judged = to_probe(data, 6, seed=0)
    assert training.counts().tolist() == [3, 3]
    assert {name.rpartition(" ")[0] for name in names(judged)} == {f"coast {judged_by}"}


# ---- probes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "each"), [(3, 1), (5, 1), (6, 2), (14, 4), (15, 5)])
def test_a_probe_learns_from_at_most_so_many_images_and_as_many_of_each_class(
    folder: str, images: int, each: int
) -> None:
    training, judged = to_probe(LabelledDataConfig(source=folder), images, seed=0)
    assert counts(training) == dict.fromkeys(COUNTS, each)
    assert len(training) <= images
    assert names(judged) == names(to_train_and_evaluate(LabelledDataConfig(source=folder))[1])
    assert not set(names(training)) & set(names(judged))
    assert_labels_fit(training)


def test_a_small_class_gives_a_probe_all_that_it_has(
    folder: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    assert counts(to_probe(LabelledDataConfig(source=folder), 60, seed=0)[0]) == {"ant": 20, "bee": 18, "cow": 6}
    assert "bee 18, cow 6" in caplog.text
    assert counts(to_probe(LabelledDataConfig(source=folder), 10**6, seed=0)[0]) == {"ant": 27, "bee": 18, "cow": 6}


def test_the_seed_of_a_probe_chooses_others(folder: str) -> None:
    first, again, other = (names(to_probe(LabelledDataConfig(source=folder), 9, seed)[0]) for seed in (1, 1, 2))
    assert first == again != other


def test_a_pretraining_is_probed_on_its_own_images_unless_others_are_named(splits: str) -> None:
    own = DataConfig(source=splits, config="en", column="picture", split="test", heldout=9)
    found = named_by(PretrainConfig(RunConfig("x"), data=own), None)
    assert found == LabelledDataConfig(source=splits, config="en", column="picture", split="train")
    probe = ProbeConfig(source="photos", split="all", label_column="kind", validation="val", validation_split="test")
    found = named_by(PretrainConfig(RunConfig("x"), data=own, probe=probe), None)
    others = LabelledDataConfig(
        source="photos", split="all", label_column=("kind",), validation="val", validation_split="test"
    )
    assert found == others
    rasters = replace(own, nodata=0.0, mask_channel="there", stack="{image}_{channel}.tif")
    found = named_by(PretrainConfig(RunConfig("x"), data=rasters, probe=probe), ("red", "nir"))
    assert found == replace(others, channels=("red", "nir"), nodata=0.0, mask_channel="there", stack=None)
    found = named_by(PretrainConfig(RunConfig("x"), data=rasters), ("red", "nir"))
    assert (found.stack, found.nodata) == ("{image}_{channel}.tif", 0.0)
    chosen = replace(rasters, channels=("2", "1"))
    probe = replace(probe, stack="{image}/{channel}.tif")
    found = named_by(PretrainConfig(RunConfig("x"), data=chosen, probe=probe), ("b", "a"))
    assert (found.channels, found.stack) == (("2", "1"), "{image}/{channel}.tif")


def test_a_probe_of_packed_images_and_of_files_beside_each_other(tmp_path: Path) -> None:
    """What marks the gaps of the files, packed images do not need any more, and cannot take."""
    for kind in ("low", "high"):
        (tmp_path / "files" / kind).mkdir(parents=True)
        for number in range(12):
            values = np.full((16, 16, 2), number + 1, dtype=np.uint16)
            values[:4] = 0
            np.save(tmp_path / "files" / kind / f"{number}.npy", values)
    pack(
        str(tmp_path / "files"),
        tmp_path / "packed",
        bands=ChannelSpec(2, nodata=0),
        options=PackOptions(size=16, workers=0),
    )
    files, packed = (DataConfig(source=str(tmp_path / name)) for name in ("files", "packed"))
    for own, other in ((replace(files, nodata=0.0), packed), (packed, files), (packed, packed)):
        config = PretrainConfig(RunConfig("x"), data=own, probe=ProbeConfig(source=other.source))
        training, _ = to_probe_in(config, ("1", "2"), seed=0)
        image = training.images.image(0)
        assert isinstance(image, Raster)
        assert image.valid is not None
        assert image.valid.mean() == 0.75


def test_a_mistake_in_what_is_probed_names_its_own_key(tmp_path: Path) -> None:
    config = PretrainConfig(RunConfig("x"), probe=ProbeConfig(source=str(tmp_path / "nothing")))
    with pytest.raises(UserError, match=r"^probe\.source .*nothing' does not exist"):
        to_probe_in(config, None, seed=0)


# ---- only to evaluate -----------------------------------------------------------------------------------------


def test_all_images_are_evaluated_where_nothing_is_trained(folder: str, splits: str, tmp_path: Path) -> None:
    validation = folder_of(tmp_path / "val", {"ant": 2, "bee": 3})
    cases: list[tuple[dict[str, Any], int, int]] = [
        ({"source": folder}, 56, 0),
        ({"source": folder, "labels_per_class": 2}, 56, 0),
        ({"source": folder, "validation": validation}, 5, 0),
        ({"source": splits}, 20, 0),
        ({"source": splits, "split": "test"}, 6, 200),
        ({"source": splits, "split": "test", "validation_split": "validation"}, 8, 100),
        ({"source": folder, "validation": splits}, 20, 0),
        ({"source": folder, "validation": splits, "validation_split": "test"}, 6, 200),
    ]
    for settings, count, first in cases:
        labelled = to_evaluate(LabelledDataConfig(**settings))
        assert (len(labelled), reds(labelled)[0]) == (count, first), settings
    assert isinstance(labelled.targets, np.ndarray)


def test_images_that_a_list_names_are_neither_trained_on_nor_held_out(folder: str, tmp_path: Path) -> None:
    """They leave data.source, whatever is made of it; other sources to evaluate on stay whole."""
    out = [f"{name}/{number:03}.png" for name in COUNTS for number in range(0, COUNTS[name], 3)]
    (tmp_path / "list.txt").write_text("\n".join(out))
    data = LabelledDataConfig(source=folder, exclude=str(tmp_path / "list.txt"), heldout=5)
    training, heldout = to_train_and_evaluate(data)
    there = [part.images.path(index) for part in (training, heldout) for index in range(len(part))]
    assert len(there) == len(set(there)) == sum(COUNTS.values()) - len(out)
    assert not set(there) & set(out)
    labels = [part.names[target] for part in (training, heldout) for target in part.targets]
    assert labels == [str(path).split("/")[0] for path in there]
    assert len(to_evaluate(data)) == len(there)
    assert len(to_evaluate(replace(data, validation=folder))) == sum(COUNTS.values())
    pretraining = PretrainConfig(RunConfig("r"), DataConfig(source=folder, exclude=data.exclude))
    assert named_by(pretraining, None).exclude == data.exclude
    assert named_by(replace(pretraining, probe=ProbeConfig(source="elsewhere")), None).exclude is None


def test_what_is_left_out_need_not_fit(folder: str, tmp_path: Path) -> None:
    """A file beside the class folders, the only one of its folder, one of other channels: as if deleted."""
    first = sorted(COUNTS)[0]
    Image.new("RGB", (8, 8)).save(Path(folder) / "loose.png")
    (Path(folder) / "0_alone").mkdir()
    Image.new("L", (8, 8)).save(Path(folder) / "0_alone" / "a.png")
    (tmp_path / "list.txt").write_text("loose.png\n0_alone/a.png\n")
    data = LabelledDataConfig(source=folder, exclude=str(tmp_path / "list.txt"), heldout=5)
    for channels in (None, ("1", "2", "3")):
        training, heldout = to_train_and_evaluate(replace(data, channels=channels))
        assert len(training) + len(heldout) == sum(COUNTS.values())
        assert training.names[0] == first
