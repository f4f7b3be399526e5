import io
import logging
import os
import socket
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from swin_mim.data import labels
from swin_mim.data.labels import (
    Labelled,
    check_classes,
    class_weights,
    labels_per_class,
    open_labelled,
    split_labelled,
    with_classes,
)
from swin_mim.data.sources.base import Source
from swin_mim.errors import UserError

ANIMALS = ClassLabel(names=["zebra", "ant", "bee"])
seeds = st.integers(0, 2**64 - 1)
sizes = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any)
"""Images of each class."""


def write(path: Path, red: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (red, 1, 2)).save(path)
    return path


def class_folders(root: Path, *paths: str) -> str:
    for path in paths:
        write(root / path)
    return str(root)


def table(folder: Path, values: list[object], kind: object) -> str:
    """A parquet file with a row for each value of its column `label`, red as the number of the row."""
    cells = []
    for red in range(len(values)):
        buffer = io.BytesIO()
        Image.new("RGB", (6, 4), (red, 1, 2)).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"image": cells, "label": values}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


def reds(source: Source) -> list[int]:
    return [source.image(index).getpixel((0, 0))[0] for index in range(len(source))]


class Numbers(Source):
    """A source whose images are not asked for."""

    def __init__(self, n: int, fingerprint: str = "numbers") -> None:
        self.n, self.fingerprint = n, fingerprint

    def __len__(self) -> int:
        return self.n

    def name(self, index: int) -> str:
        return str(range(self.n)[index])

    def image(self, index: int) -> Image.Image:
        raise NotImplementedError


def of_sizes(counts: list[int]) -> Labelled:
    """Classes c0, c1, ... with so many images, in a mixed order."""
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    return Labelled(Numbers(len(targets)), tuple(f"c{number}" for number in range(len(counts))), targets)


def several(*rows: list[int]) -> Labelled:
    """Images with any number of the classes c0, c1, ..."""
    return Labelled(Numbers(len(rows)), tuple(f"c{number}" for number in range(len(rows[0]))), np.array(rows, bool))


def taken(part: Labelled) -> list[int]:
    """The images of a part of `of_sizes`."""
    assert len(part.images) == len(part) == len(part.targets)
    return [int(part.images.name(index)) for index in range(len(part))]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", cache)
    monkeypatch.setattr(socket, "getaddrinfo", _no_network)


def _no_network(*_: object, **__: object) -> None:
    raise OSError("a test asked for the network")


# class folders


def test_the_first_folder_on_a_path_is_the_class(tmp_path: Path) -> None:
    for red, path in enumerate(["dog/b.png", "cat/deep/er/a.webp", "cat/z.bmp", "dog/a/cat/x.tiff", "cat/.no.png"]):
        write(tmp_path / path, red)
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    labelled = open_labelled(str(tmp_path))
    assert labelled.names == ("cat", "dog")
    assert labelled.targets.dtype == np.int64
    assert labelled.targets.tolist() == [0, 0, 1, 1]
    assert reds(labelled.images) == [1, 2, 3, 0]
    assert labelled.counts().tolist() == [2, 2]
    assert not labelled.multi_label


def test_classes_of_folders_are_numbered_by_name(tmp_path: Path) -> None:
    names = ["b", "a c", "B", "10", "9", "ä"]
    labelled = open_labelled(class_folders(tmp_path, *(f"{name}/x.png" for name in names)))
    assert labelled.names == tuple(sorted(names))
    for index, target in enumerate(labelled.targets):
        assert labelled.images.name(index) == f"{labelled.names[target]}/x.png"


def test_classes_of_any_bytes(tmp_path: Path) -> None:
    labelled = open_labelled(class_folders(tmp_path, os.fsdecode(b"caf\xe9/a.png"), "bar/a.png"))
    assert labelled.names == ("bar", "caf\\xe9")
    assert reds(labelled.images) == [0, 0]
    " ".join(labelled.names).encode()


def test_images_outside_of_class_folders_are_refused(tmp_path: Path) -> None:
    spec = class_folders(tmp_path, "cat/a.png", "dog/a.png", "loose.png")
    with pytest.raises(UserError, match=r"outside of class folders, such as loose\.png: .*one folder for each class"):
        open_labelled(spec)


@pytest.mark.parametrize("splits", [("train", "val"), ("Test", "Training", "Validation"), ("test",)])
def test_folders_of_splits_are_no_classes(tmp_path: Path, splits: tuple[str, ...]) -> None:
    spec = class_folders(tmp_path, *(f"{split}/{name}/a.png" for split in splits for name in ("cat", "dog")))
    with pytest.raises(UserError, match=rf"holds {', '.join(splits)}: .*--data\.source {spec}/{splits[0]} "):
        open_labelled(spec)
    assert open_labelled(f"{spec}/{splits[0]}").names == ("cat", "dog")


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    assert open_labelled(class_folders(tmp_path, "test/a.png", "car/a.png")).names == ("car", "test")


def test_one_class_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images of one class only, 'cat'"):
        check_classes(open_labelled(class_folders(tmp_path / "folder", "cat/a.png", "cat/b/c.png")), "folder")
    with pytest.raises(UserError, match="images of one class only, 'cat'"):
        check_classes(open_labelled(table(tmp_path / "table", ["cat", "cat"], Value("string"))), "table")


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"label_column": "label"}, r"data\.label_column 'label' belongs to tables"),
        ({"multi_label": True}, r"data\.multi_label belongs to tables"),
        ({"split": "test"}, "'test'"),
        ({"column": "image"}, "'image'"),
    ],
)
def test_settings_of_tables_are_refused_for_class_folders(
    tmp_path: Path, setting: dict[str, object], text: str
) -> None:
    spec = class_folders(tmp_path, "cat/a.png", "dog/a.png")
    with pytest.raises(UserError, match=text) as error:
        open_labelled(spec, **setting)  # type: ignore[arg-type]
    assert spec in str(error.value)


# tables


@pytest.mark.parametrize(
    ("values", "kind", "names", "targets"),
    [
        ([2, 0, 0], ANIMALS, ("zebra", "ant", "bee"), [2, 0, 0]),
        (["b", "a", "c", "a"], Value("string"), ("a", "b", "c"), [1, 0, 2, 0]),
        ([10, 9, 10, 200], Value("int64"), ("9", "10", "200"), [1, 0, 1, 2]),
        ([3, 0, 3], Value("uint8"), ("0", "3"), [1, 0, 1]),
        ([True, False], Value("bool"), ("False", "True"), [1, 0]),
    ],
)
def test_labels_of_a_table(
    tmp_path: Path, values: list[object], kind: object, names: tuple[str, ...], targets: list[int]
) -> None:
    labelled = open_labelled(table(tmp_path, values, kind))
    assert labelled.names == names
    assert labelled.targets.dtype == np.int64
    assert labelled.targets.tolist() == targets
    assert reds(labelled.images) == list(range(len(values)))
    assert labelled.counts().tolist() == [targets.count(number) for number in range(len(names))]


@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        ([[2], [], [0, 2], [2, 2]], List(ANIMALS), ("zebra", "ant", "bee")),
        ([["b"], [], ["a", "b"], ["b", "b"]], List(Value("string")), ("a", "b")),
        ([[10], [], [9, 10], [10, 10]], List(Value("int32")), ("9", "10")),
    ],
)
def test_lists_of_labels(tmp_path: Path, values: list[object], kind: object, names: tuple[str, ...]) -> None:
    labelled = open_labelled(table(tmp_path, values, kind), multi_label=True)
    assert labelled.names == names
    assert labelled.multi_label
    assert labelled.targets.dtype == np.bool_
    first, last = labelled.targets[:, 0].tolist(), labelled.targets[:, -1].tolist()
    assert first == [False, False, True, False]
    assert last == [True, False, True, True]
    assert labelled.counts().tolist() == [1, 0, 3] if len(names) == 3 else [1, 3]


def test_images_that_have_one_label_or_none_are_worth_learning(tmp_path: Path) -> None:
    labelled = open_labelled(table(tmp_path, [["cat"], []], List(Value("string"))), multi_label=True)
    assert labelled.names == ("cat",)
    assert labelled.targets.tolist() == [[True], [False]]
    check_classes(labelled, "lists")


@pytest.mark.parametrize(
    ("values", "kind", "multi_label"),
    [
        ([0, -1, 2, -1], ANIMALS, False),
        ([0, None, 2, None], ANIMALS, False),
        (["a", None, "b", None], Value("string"), False),
        ([1, None, 2, None], Value("int64"), False),
        ([["a"], None, ["b", None]], List(Value("string")), True),
    ],
)
def test_rows_without_a_label_are_refused(
    tmp_path: Path, values: list[object], kind: object, multi_label: bool
) -> None:
    spec = table(tmp_path, values, kind)
    with pytest.raises(UserError, match=r"'label' .*has 2 rows without a label: choose another data\.split"):
        open_labelled(spec, multi_label=multi_label)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1.0, 2.5], Value("float32")),
        ([None, None], Value("float64")),
        ([[1.0], []], List(Value("float32"))),
        ([b"a", b"b"], Value("binary")),
    ],
)
def test_values_that_are_no_labels(tmp_path: Path, values: list[object], kind: object) -> None:
    with pytest.raises(UserError, match=r"'label' .*holds no classes, texts or whole numbers: its columns are image"):
        open_labelled(table(tmp_path, values, kind))


def test_a_number_may_be_negative(tmp_path: Path) -> None:
    labelled = open_labelled(table(tmp_path, [-1, 0, -1, 1], Value("int64")))
    assert labelled.names == ("-1", "0", "1")
    assert labelled.targets.tolist() == [0, 1, 0, 2]


def test_lists_that_are_all_empty_hold_no_label(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no label in any row"):
        open_labelled(table(tmp_path, [[], []], List(Value("string"))), multi_label=True)


def test_classes_without_images_are_nothing_to_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images of one class only, 'ant'"):
        check_classes(open_labelled(table(tmp_path, [1, 1], ANIMALS)), "table")


def test_lists_and_single_labels_are_told_apart(tmp_path: Path) -> None:
    lists = table(tmp_path / "lists", [["a"], ["b"]], List(Value("string")))
    single = table(tmp_path / "single", ["a", "b"], Value("string"))
    with pytest.raises(UserError, match=r"holds lists, and data\.multi_label is off"):
        open_labelled(lists)
    with pytest.raises(UserError, match=r"holds single labels, and data\.multi_label is on"):
        open_labelled(single, multi_label=True)


def save(folder: Path, **columns: tuple[list[object], object]) -> str:
    """A table with the given columns beside its images."""
    spec = table(folder, [0, 0], Value("int64"))
    images = datasets.load_dataset(spec, split="train").remove_columns("label")
    for name, (values, kind) in columns.items():
        images = images.add_column(name, values).cast_column(name, kind)
    images.to_parquet(folder / "train.parquet")
    return spec


def test_the_label_column_is_found_by_its_type_or_its_name(tmp_path: Path) -> None:
    text, number, classes = (["a", "b"], Value("string")), ([5, 6], Value("int64")), ([1, 2], ANIMALS)
    named = save(tmp_path / "named", Category=text, number=number)
    assert open_labelled(named).names == ("a", "b")
    assert open_labelled(named, label_column="number").names == ("5", "6")
    typed = save(tmp_path / "typed", target=number, kind=classes)
    assert open_labelled(typed).names == ("zebra", "ant", "bee")
    assert open_labelled(typed, label_column="target").names == ("5", "6")
    lists = save(tmp_path / "lists", target=number, tags=([[1], [2]], List(ANIMALS)))
    assert open_labelled(lists, multi_label=True).names == ("zebra", "ant", "bee")
    of_two_types = save(tmp_path / "two", fine=classes, coarse=([0, 1], ANIMALS), label=text)
    assert open_labelled(of_two_types).names == ("a", "b")


def test_a_label_column_that_is_not_evident_is_asked_for(tmp_path: Path) -> None:
    text = (["a", "b"], Value("string"))
    nothing, named = save(tmp_path / "nothing", caption=text), save(tmp_path / "named", label=text, target=text)
    typed = save(tmp_path / "typed", fine=([1, 2], ANIMALS), coarse=([0, 1], ANIMALS))
    for spec, columns in (
        (nothing, r"caption \(string\)"),
        (named, r"label \(string\), target \(string\)"),
        (typed, r"fine \(ClassLabel\), coarse \(ClassLabel\)"),
    ):
        with pytest.raises(UserError, match=rf"no evident .*set data\.label_column, .*image \(Image\), {columns}"):
            open_labelled(spec)
    with pytest.raises(UserError, match=r"data\.label_column 'labels' is not in .*image \(Image\), caption \(string\)"):
        open_labelled(nothing, label_column="labels")


def test_splits_and_columns_of_images_are_those_of_open_source(tmp_path: Path) -> None:
    cells = [{"bytes": write(tmp_path / f"{red}.png", red).read_bytes(), "path": None} for red in (5, 6, 7)]
    features = datasets.Features({"left": datasets.Image(), "right": datasets.Image(), "label": Value("string")})
    rows = {"left": cells[:2], "right": cells[1:], "label": ["a", "b"]}
    for split, content in (("train", rows), ("test", {name: each[::-1] for name, each in rows.items()})):
        (tmp_path / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(content, features=features).to_parquet(tmp_path / "data" / f"{split}.parquet")
    opened = {split: open_labelled(str(tmp_path / "data"), split=split, column="right") for split in ("train", "test")}
    assert reds(opened["train"].images) == [6, 7]
    assert reds(opened["test"].images) == [7, 6]
    assert opened["test"].targets.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"set data\.column"):
        open_labelled(str(tmp_path / "data"))


def test_every_complaint_is_one_line_that_names_the_source(tmp_path: Path) -> None:
    specs = [
        class_folders(tmp_path / "loose", "a.png"),
        class_folders(tmp_path / "splits", "train/a.png"),
        table(tmp_path / "lists", [["a"], ["b"]], List(Value("string"))),
        table(tmp_path / "missing", ["a", None], Value("string")),
        table(tmp_path / "floats", [0.5, 1.5], Value("float64")),
        save(tmp_path / "nothing", caption=(["a", "b"], Value("string"))),
    ]
    for spec in specs:
        with pytest.raises(UserError, match=r"data\.") as error:
            open_labelled(spec)
        assert spec in str(error.value)
        assert "\n" not in str(error.value)


# blue_marble


def test_tiles_of_blue_marble_have_a_label_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def opened(split: str, label: str) -> tuple[Numbers, tuple[str, ...], np.ndarray]:
        asked.append((split, label))
        return Numbers(3), ("a", "b"), np.array([0, 1, 1])

    monkeypatch.setattr(labels, "open_tiles_with_labels", opened)
    labelled = open_labelled("blue_marble")
    assert (labelled.names, labelled.targets.tolist(), len(labelled.images)) == (("a", "b"), [0, 1, 1], 3)
    open_labelled("blue_marble", split="test", label_column="climate")
    assert asked == [("train", "coast"), ("test", "climate")]


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"multi_label": True}, r"data\.multi_label, .*belong to tables: blue_marble"),
        ({"config": "big"}, r"data\.config .*belong to tables: blue_marble"),
        ({"column": "image"}, r"data\.column belong to tables: blue_marble"),
        ({"split": "heldout"}, "train, validation and test, not 'heldout'"),
        ({"label_column": "label"}, "'label': its tiles have climate, terrain, coast"),
    ],
)
def test_settings_that_blue_marble_does_not_have(setting: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text) as error:
        open_labelled("blue_marble", **setting)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


# parts of labelled images


@settings(deadline=None)
@given(counts=sizes, count=st.integers(0, 60), seed=seeds)
def test_held_out_and_training_part_the_images(counts: list[int], count: int, seed: int) -> None:
    labelled = of_sizes(counts)
    training, heldout = split_labelled(labelled, count, seed)
    assert sorted(taken(training) + taken(heldout)) == list(range(len(labelled)))
    for part in (training, heldout):
        assert part.names == labelled.names
        assert taken(part) == sorted(taken(part))
        assert part.targets.tolist() == labelled.targets[taken(part)].tolist()


@settings(deadline=None)
@given(counts=sizes, count=st.integers(0, 60), seed=seeds)
def test_each_class_is_held_out_by_its_share(counts: list[int], count: int, seed: int) -> None:
    training, heldout = split_labelled(of_sizes(counts), count, seed)
    wanted = min(count or sum(counts), sum(counts) // 10)
    for size, kept, held in zip(counts, training.counts(), heldout.counts(), strict=True):
        assert kept >= min(size, 1)
        assert abs(held - wanted * size / sum(counts)) <= 1


@settings(deadline=None)
@given(counts=sizes, count=st.integers(0, 60) | st.just(10**9), seed=seeds)
def test_a_tenth_is_the_most_that_is_held_out(counts: list[int], count: int, seed: int) -> None:
    heldout = split_labelled(of_sizes(counts), count, seed)[1]
    wanted = min(count or sum(counts), sum(counts) // 10)
    assert len(heldout) <= wanted
    assert len(heldout) == wanted or 1 in counts  # a class keeps its only image


def test_as_many_are_held_out_as_asked_for() -> None:
    for tenth in (1, 4, 10):
        heldout = split_labelled(of_sizes([100, 300, 0, 600]), 10 * tenth, seed=0)[1]
        assert heldout.counts().tolist() == [tenth, 3 * tenth, 0, 6 * tenth]
    assert len(split_labelled(of_sizes([5] * 100), 0, seed=0)[1]) == 50
    assert split_labelled(of_sizes([15] * 10), 0, seed=0)[1].counts().tolist() == [2] * 5 + [1] * 5


def test_a_class_keeps_its_only_image() -> None:
    training = split_labelled(of_sizes([1] * 30 + [10]), 0, seed=0)[0]
    assert training.counts()[:30].tolist() == [1] * 30


def test_what_is_held_out_depends_on_the_seed_and_the_class_alone() -> None:
    small, large = of_sizes([100, 100, 50]), of_sizes([100, 100, 500])
    held = [taken(split_labelled(small, 0, seed)[1]) for seed in (1, 1, 2)]
    assert held[0] == held[1] != held[2]
    ranks = []
    for labelled in (small, large):
        out = split_labelled(labelled, 0, seed=1)[1]
        for number in (0, 1):
            members = np.flatnonzero(labelled.targets == number).tolist()
            ranks.append([members.index(index) for index in taken(out) if labelled.targets[index] == number])
    assert ranks[0] == ranks[2]
    assert ranks[1] == ranks[3]
    assert ranks[0] != ranks[1]


def test_images_with_several_labels_are_held_out_together() -> None:
    labelled = several(*([1, 0, 1] for _ in range(25)), *([0, 1, 1] for _ in range(75)))
    training, heldout = split_labelled(labelled, 0, seed=0)
    assert (len(training), len(heldout)) == (90, 10)
    assert training.multi_label
    assert sorted(taken(training) + taken(heldout)) == list(range(100))


@settings(deadline=None)
@given(counts=sizes, few=st.integers(1, 30), more=st.integers(0, 30), seed=seeds)
def test_more_labels_contain_fewer_ones(counts: list[int], few: int, more: int, seed: int) -> None:
    labelled = of_sizes(counts)
    small, large = labels_per_class(labelled, few, seed), labels_per_class(labelled, few + more, seed)
    assert set(taken(small)) <= set(taken(large))
    for part, each in ((small, few), (large, few + more)):
        assert part.names == labelled.names
        assert part.counts().tolist() == [min(size, each) for size in counts]
        assert taken(part) == sorted(set(taken(part)))
        assert part.targets.tolist() == labelled.targets[taken(part)].tolist()


def test_chosen_labels_depend_on_the_seed_and_the_class_alone() -> None:
    small, large = of_sizes([30, 30]), of_sizes([30, 300])
    chosen = [taken(labels_per_class(small, 5, seed)) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    ranks = []
    for labelled in (small, large):
        members = np.flatnonzero(labelled.targets == 0).tolist()
        ranks.append([members.index(index) for index in taken(labels_per_class(labelled, 5, 1)) if index in members])
    assert ranks[0] == ranks[1]
    others = [[index for index in each if small.targets[index] == 1] for each in chosen]
    assert [np.flatnonzero(small.targets == 1).tolist().index(index) for index in others[0]] != ranks[0]


def test_a_class_with_too_few_labels_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        labels_per_class(of_sizes([3, 9]), 3, seed=0)
        assert not caplog.text
        labels_per_class(of_sizes([3, 9, 0]), 4, seed=0)
    assert "4 labels per class" in caplog.text
    assert "c0 3, c2 0" in caplog.text
    assert "c1" not in caplog.text


def test_labels_of_images_with_several_are_not_counted_out() -> None:
    with pytest.raises(AssertionError, match="several classes"):
        labels_per_class(several([1, 1], [0, 1]), 1, seed=0)


# weights and numbers of classes


@settings(deadline=None)
@given(counts=sizes)
def test_weights_are_inverse_to_the_counts_and_one_on_average(counts: list[int]) -> None:
    labelled = of_sizes(counts)
    weights, present = class_weights(labelled), np.array(counts) > 0
    assert (weights.dtype, weights.shape) == (np.float32, (len(counts),))
    assert weights[labelled.targets].mean(dtype=np.float64) == pytest.approx(1, abs=1e-5)
    products = (weights * counts)[present]
    assert products == pytest.approx(np.full(len(products), products[0]), rel=1e-5)
    assert np.isfinite(weights).all()


def test_a_class_without_images_does_not_change_the_weights_of_others() -> None:
    assert class_weights(of_sizes([10, 90])).tolist() == pytest.approx([5.0, 5 / 9])
    weights = class_weights(of_sizes([10, 0, 90]))
    assert weights.tolist() == pytest.approx([5.0, 0.0, 5 / 9])


def test_classes_get_the_numbers_of_a_model() -> None:
    labelled = of_sizes([2, 0, 3])
    renumbered = with_classes(labelled, ["c2", "x", "c0"])
    assert renumbered.names == ("c2", "x", "c0")
    assert renumbered.targets.dtype == np.int64
    assert renumbered.targets.tolist() == [{0: 2, 2: 0}[number] for number in labelled.targets.tolist()]
    assert renumbered.images is labelled.images
    assert with_classes(labelled, labelled.names).targets.tolist() == labelled.targets.tolist()


def test_several_labels_get_the_numbers_of_a_model() -> None:
    renumbered = with_classes(several([1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]), ["c2", "x", "c0"])
    assert renumbered.targets.dtype == np.bool_
    assert renumbered.targets.astype(int).tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("labelled", [of_sizes([1, 0, 1]), several([1, 0, 0], [0, 0, 1])])
def test_classes_that_a_model_does_not_know_are_named(labelled: Labelled) -> None:
    with pytest.raises(UserError, match="that the model does not know: c2; it knows c1, c0") as error:
        with_classes(labelled, ["c1", "c0"])
    assert "\n" not in str(error.value)
    assert with_classes(labelled, ["c2", "c0"]).counts().tolist() == [1, 1]


def test_a_message_names_ten_classes_and_counts_the_others() -> None:
    with pytest.raises(UserError, match=r"know: c0, .*, c9 and 2 more; it knows k0, .*, k9 and 90 more$"):
        with_classes(of_sizes([1] * 12), [f"k{number}" for number in range(100)])


# fingerprints


def test_fingerprint_notices_images_names_and_labels() -> None:
    images, names, targets = Numbers(3), ("a", "b"), np.array([0, 1, 1])
    same = [Labelled(images, names, targets).fingerprint, Labelled(Numbers(3), names, targets.copy()).fingerprint]
    others = [
        Labelled(Numbers(3, "others"), names, targets),
        Labelled(images, ("a", "c"), targets),
        Labelled(images, ("a", "b", "c"), targets),
        Labelled(images, names, np.array([1, 0, 1])),
        Labelled(images, names, targets).take(np.array([0, 2, 1])),
        Labelled(images, names, targets).take(np.array([0, 1])),
        Labelled(images, names, np.array([[1, 0], [0, 1], [0, 1]], bool)),
        Labelled(images, names, np.array([[1, 0], [0, 1], [1, 1]], bool)),
    ]
    assert same[0] == same[1]
    assert len(same[0]) == 64
    assert len({same[0]} | {other.fingerprint for other in others}) == 9


def test_fingerprint_notices_an_image_that_moves_to_another_class(tmp_path: Path) -> None:
    spec = class_folders(tmp_path, "cat/a.png", "cat/b.png", "dog/c.png")
    before = open_labelled(spec).fingerprint
    assert open_labelled(spec).fingerprint == before
    (tmp_path / "cat" / "b.png").rename(tmp_path / "dog" / "b.png")
    assert open_labelled(spec).fingerprint != before


def test_a_part_keeps_the_order_it_is_asked_for() -> None:
    part = Labelled(Numbers(4), ("a", "b", "c"), np.array([0, 1, 2, 2])).take(np.array([2, 0, 1]))
    assert taken(part) == [2, 0, 1]
    assert part.targets.tolist() == [2, 0, 1]
    assert part.names == ("a", "b", "c")
