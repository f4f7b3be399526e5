"""Labels of image files that a table of their names gives, beside them or elsewhere."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.labels import Labelled, NoLabels, open_labelled
from swin_mim.data.sources.columns import MAX_BYTES, read_columns
from swin_mim.data.sources.open import open_source
from swin_mim.errors import UserError
from swin_mim.training.config.finetune import LabelledDataConfig
from swin_mim.training.labelled_images import to_train_and_evaluate

TEN = [f"images/{number}.png" for number in range(10)]


def images(root: Path, paths: list[str]) -> str:
    """Image files, each red as the number of its place in the list."""
    for red, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (red, 1, 2)).save(root / path, "PNG")
    return str(root)


def csv(path: Path, *rows: str, header: str = "file_name,label") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def found(labelled: Labelled) -> dict[int, Any]:
    """Label of each image, by its redness."""
    reds = [labelled.images.image(index).getpixel((0, 0))[0] for index in range(len(labelled))]
    if labelled.multi_label:
        labels = ["".join(n for n, has in zip(labelled.names, row, strict=True) if has) for row in labelled.targets]
    else:
        labels = [labelled.names[target] for target in labelled.targets]
    return dict(zip(reds, labels, strict=True))


AB = {red: "ab"[red % 2] for red in range(10)}
ROWS = [f"{path},{AB[red]}" for red, path in enumerate(TEN)]


# where the table lies


@pytest.mark.parametrize("name", ["metadata.csv", "labels.csv", "train.csv", "anything.CSV"])
def test_a_table_at_the_top_of_a_folder_or_named_itself(tmp_path: Path, name: str) -> None:
    root, table = images(tmp_path, TEN), csv(tmp_path / name, *ROWS)
    for spec in (root, table, f"{root}/"):
        assert found(open_labelled(spec)) == AB
    assert len(open_source(root)) == len(open_source(table)) == 10


def test_every_kind_of_table(tmp_path: Path) -> None:
    root = images(tmp_path / "root", TEN)
    rows = [{"file_name": path, "label": AB[red]} for red, path in enumerate(TEN)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.tsv").write_text("file_name\tlabel\n" + "\n".join(ROWS).replace(",", "\t"))
    columns = pa.Table.from_pylist(rows)
    pq.write_table(columns, tmp_path / "a.parquet")
    for name, kind in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / name), "wb") as file, kind(file, columns.schema) as writer:
            writer.write_table(columns)
    for path in sorted(tmp_path.glob("*.*")):
        assert found(open_labelled(root, labels=str(path))) == AB, path
        path.rename(Path(root) / path.name)
        assert found(open_labelled(f"{root}/{path.name}")) == AB
        assert found(open_labelled(root)) == AB
        (Path(root) / path.name).unlink()


@pytest.mark.parametrize("source", ["", "images"])
@pytest.mark.parametrize("form", ["images/{}", "../images/{}", "{}"])
def test_a_table_elsewhere_has_names_relative_to_the_source_or_to_itself(
    tmp_path: Path, form: str, source: str
) -> None:
    images(tmp_path / "data", TEN)
    folder = tmp_path / "data" / ("apart" if form.startswith("..") else "")
    rows = [f"{form.format(Path(path).name)},{AB[red]}" for red, path in enumerate(TEN)]
    table = csv(folder / "t.csv", *rows)
    assert found(open_labelled(str(tmp_path / "data" / source), labels=table)) == AB


def test_a_table_apart_that_leads_outside_names_the_folder_of_both(tmp_path: Path) -> None:
    root = images(tmp_path / "data", TEN)
    (tmp_path / "data" / "apart").mkdir()
    paths = [f"../{path}" for path in TEN]
    pq.write_table(pa.table({"image": paths, "label": list(AB.values())}), f"{root}/apart/train.parquet")
    for opener in (open_labelled, open_source):
        for spec in (f"{root}/apart", f"{root}/apart/train.parquet"):
            with pytest.raises(UserError, match=rf"--data\.source {root}, .*--data\.labels .*save_to_disk") as error:
                opener(spec)
            assert "\n" not in str(error.value)
    assert found(open_labelled(root, labels=f"{root}/apart/train.parquet")) == AB


def test_a_table_of_paths_beside_its_images_is_the_folder_of_images(tmp_path: Path) -> None:
    root = images(tmp_path, TEN)
    pq.write_table(pa.table({"image": TEN, "label": list(AB.values())}), tmp_path / "train.parquet")
    assert len(open_source(root)) == 10
    assert found(open_labelled(root)) == AB


def test_only_files_below_the_source_are_ever_meant(tmp_path: Path) -> None:
    root = images(tmp_path / "root", TEN)
    images(tmp_path, ["secret.png"])
    for name in ("../secret.png", str(tmp_path / "secret.png"), "/etc/hostname", "http://127.0.0.1/x.png", "nul\0.png"):
        labelled = open_labelled(root, labels=csv(tmp_path / "t.csv", *ROWS, f"{name},a"))
        assert found(labelled) == AB
    table = csv(tmp_path / "t.csv", *(f"{root}/{row}" for row in ROWS))
    assert found(open_labelled(root, labels=table)) == AB  # whole paths, below the source
    table = csv(tmp_path / "t.csv", *(f"/elsewhere/{row}" for row in ROWS))
    with pytest.raises(UserError, match=r"10 of 10 rows .* a row says '/elsewhere/images/0\.png', and a file is 'im"):
        open_labelled(root, labels=table)


# how files are named


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace("/", "\\"),
        lambda text: text.replace(",", " , "),
        lambda text: text.replace(".png", ".PNG"),
        lambda text: text.replace("images", "./images"),
        lambda text: text.replace(".png", ""),
        lambda text: text.replace("images/", ""),
        lambda text: text.replace("images/", "").replace(".png", ""),
        lambda text: text.replace("file_name", "id"),
        lambda text: text.replace("file_name", "Foto"),
        lambda text: text.replace("file_name", "Image Index"),
        lambda text: text.replace(",", ";"),
        lambda text: "\n\n" + text + "\n , \n",
        lambda text: "\n".join(f"{row and number - 1},{row}" for number, row in enumerate(text.splitlines())),
    ],
)
def test_names_as_people_write_them(tmp_path: Path, change: Any) -> None:
    root = images(tmp_path, TEN)
    text = change("\n".join(["file_name,label", *ROWS]) + "\n")
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert found(open_labelled(root)) == AB
    (tmp_path / "t.csv").write_bytes(text.removeprefix("\ufeff").encode("utf-16"))
    assert found(open_labelled(root)) == AB


def test_quoted_cells(tmp_path: Path) -> None:
    root = images(tmp_path, ["a, b.png", 'c"d.png'])
    csv(tmp_path / "t.csv", '"a, b.png","x, y"', '"c""d.png",z')
    assert found(open_labelled(root)) == {0: "x, y", 1: "z"}


def test_whole_numbers_name_files_and_order_classes(tmp_path: Path) -> None:
    root = images(tmp_path, [f"{number}.png" for number in range(12)])
    csv(tmp_path / "t.csv", *(f"{number},{number}" for number in range(12)), header="image_id,label")
    assert open_labelled(root).names == tuple(map(str, range(12)))
    pq.write_table(pa.table({"image_id": list(range(12)), "label": [0.0] * 6 + [1.0] * 6}), tmp_path / "t.parquet")
    assert open_labelled(f"{root}/t.parquet").names == ("0", "1")
    csv(tmp_path / "t.csv", *(f"{number},00{number % 2}" for number in range(12)), header="image_id,label")
    assert open_labelled(f"{root}/t.csv").names == ("000", "001")


def test_the_same_name_in_two_folders_means_none_of_them(tmp_path: Path) -> None:
    root = images(tmp_path, ["a/x.png", "b/x.png", "b/y.png"])
    csv(tmp_path / "t.csv", "b/x.png,p", "y,q", "x,r", header="file,label")
    assert found(open_labelled(f"{root}/t.csv")) == {1: "p", 2: "q"}


def test_names_in_another_unicode_form(tmp_path: Path) -> None:
    root = images(tmp_path, ["cafe\u0301.png", "b.png"])
    csv(tmp_path / "t.csv", "caf\u00e9.png,p", "b.png,q")
    assert found(open_labelled(root)) == {0: "p", 1: "q"}


def test_the_column_of_names_can_be_named(tmp_path: Path) -> None:
    root = images(tmp_path, ["1.png", "2.png"])
    csv(tmp_path / "t.csv", "1,2,x", "2,1,y", header="id,other,label")
    assert found(open_labelled(root)) == {0: "x", 1: "y"}
    assert found(open_labelled(root, column="other")) == {0: "y", 1: "x"}
    with pytest.raises(UserError, match=r"data\.column 'nope' is not in the table .*: it has id, other, label"):
        open_labelled(root, column="nope")


# what does not fit


def test_what_has_no_counterpart_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = images(tmp_path, [*TEN, "more/x.png"])
    csv(tmp_path / "t.csv", *ROWS, "gone.png,a", "gone2.png,a", ",a")
    for _ in range(2):
        assert found(open_labelled(f"{root}/t.csv")) == AB
    text = (
        f"the table {root + '/t.csv'!r}: 3 of 13 rows name no file below {root!r}, the first: 'gone.png'; "
        "1 of 11 image files has no row and is left out, the first: more/x.png"
    )
    assert [record.getMessage() for record in caplog.records] == [text]


def test_a_table_of_a_whole_data_set_serves_a_part_of_it(tmp_path: Path) -> None:
    root = images(tmp_path, TEN[:3])
    csv(tmp_path / "t.csv", *ROWS)
    assert found(open_labelled(root)) == {red: AB[red] for red in range(3)}


@pytest.mark.parametrize("rows", [["x1,a", "x2,b"], [*(f"x{n},a" for n in range(9)), "images/0.png,b"]])
def test_a_table_that_does_not_fit_shows_a_row_and_a_file(tmp_path: Path, rows: list[str]) -> None:
    root = images(tmp_path, TEN)
    csv(tmp_path / "t.csv", *rows)
    with pytest.raises(UserError, match=r"of the table .* a row says 'x\d', and a file is 'images/\d.*data\.labels"):
        open_labelled(root)


def test_a_label_that_is_no_number_is_a_missing_one(tmp_path: Path) -> None:
    root = images(tmp_path, TEN[:3])
    table = {"file_name": TEN[:3], "label": [1.0, float("nan"), 2.0]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="without a label"):
        open_labelled(root)


def test_rows_of_one_file(tmp_path: Path) -> None:
    root = images(tmp_path, TEN)
    csv(tmp_path / "t.csv", *ROWS, ROWS[0])
    assert found(open_labelled(root)) == AB
    csv(tmp_path / "t.csv", *ROWS, "images/0.png,b")
    with pytest.raises(UserError, match=r"says two things of 'images/0\.png', 'a' and 'b': leave one of the rows"):
        open_labelled(root)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "has no rows"),
        (b"file_name,label\n", "has no rows"),
        (b"file_name,label\na,b,c\n", "has 3 cells in line 2 and 2 in its first line"),
        (b"label,label\na,b\n", "has a column 'label' twice"),
        (b"file_name,label\n\xff\xfea,b\n", "is no UTF-8 text"),
        (b'file_name,label\n"a' + b"x" * 200_000 + b'",b\n', "cannot be read: field larger than field limit"),
        (b",".join([b"a"] * 20_000) + b"\n1\n", "20,000 columns"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path: Path, content: bytes, text: str) -> None:
    root = images(tmp_path, TEN)
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=text) as error:
        open_labelled(root)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("line", ["[1]", "{", '"a"', "1" * 5000, "[" * 100_000])
def test_damaged_json(tmp_path: Path, line: str) -> None:
    root = images(tmp_path, TEN)
    (tmp_path / "t.jsonl").write_text('{"file_name": "images/0.png", "label": "a"}\n' + line)
    with pytest.raises(UserError, match="t\\.jsonl"):
        open_labelled(root)


def test_a_table_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match=r"has 250,000,001 bytes, more than 250,000,000: .*save_to_disk"):
        read_columns(tmp_path / "t.csv")


def test_few_bytes_that_stand_for_many_rows(tmp_path: Path) -> None:
    rows = pa.table({"label": ["x" * 50_000] * 1024})
    with pq.ParquetWriter(tmp_path / "t.parquet", rows.schema) as writer:
        for _ in range(11):
            writer.write_table(rows)
    assert (tmp_path / "t.parquet").stat().st_size < 1_000_000
    with pytest.raises(UserError, match=r"t\.parquet.* values of more than 500,000,000 bytes"):
        read_columns(tmp_path / "t.parquet")


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_table_that_is_not_there(tmp_path: Path, name: str) -> None:
    root = images(tmp_path, TEN)
    with pytest.raises(UserError, match="does not exist"):
        open_labelled(root, labels=str(tmp_path / name))
    with pytest.raises(UserError, match="does not exist"):
        open_labelled(str(tmp_path / name))


# which labels


@pytest.mark.parametrize(("mark", "values"), [("|", "q|p"), (";", "q; p"), (",", '"q,p"')])
def test_texts_of_several_labels_are_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mark: str, values: str
) -> None:
    root = images(tmp_path, ["a.png", "b.png", "c.png"])
    csv(tmp_path / "t.csv", f"a.png,{values}", "b.png,p", "c.png,")
    labelled = open_labelled(root, multi_label=True)
    assert found(labelled) == {0: "pq", 1: "p", 2: ""}
    assert f"texts are split at {mark!r}; 1 of 3 images has no label" in caplog.text


def test_lists_of_labels(tmp_path: Path) -> None:
    root = images(tmp_path, ["a.png", "b.png"])
    rows = [{"file_name": "a.png", "tags": ["q", "p"]}, {"file_name": "b.png", "tags": []}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        assert found(open_labelled(f"{root}/{name}", multi_label=True)) == {0: "pq", 1: ""}
        with pytest.raises(UserError, match=r"holds lists, and data\.multi_label is off"):
            open_labelled(f"{root}/{name}")


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("1.0", "0.0"), ("True", "False"), ("1", "-1")])
def test_columns_of_yes_and_no(tmp_path: Path, yes: str, no: str) -> None:
    root = images(tmp_path, ["a.png", "b.png"])
    csv(tmp_path / "t.csv", f"a.png,{yes},{no},7", f"b.png,{yes},{yes},8", header="image_id,p,q,age")
    assert found(open_labelled(root, multi_label=True, label_column=("p", "q"))) == {0: "p", 1: "pq"}
    with pytest.raises(UserError, match=r"not one is 1 in 1 row: .*set data\.multi_label"):
        open_labelled(root, label_column=("p", "q"))
    with pytest.raises(UserError, match=r"'age' holds others than 0 and 1"):
        open_labelled(root, multi_label=True, label_column=("p", "age"))


def test_all_columns_of_yes_and_no_are_the_labels_if_nothing_else_is_there(tmp_path: Path) -> None:
    root = images(tmp_path, ["a.png", "b.png"])
    csv(tmp_path / "t.csv", "a.png,1,0", "b.png,0,1", header="image,p,q")
    assert found(open_labelled(root, multi_label=True)) == {0: "p", 1: "q"}
    assert found(open_labelled(root, label_column=("p", "q"))) == {0: "p", 1: "q"}
    with pytest.raises(
        NoLabels, match=r"no evident column of labels: set data\.label_column, its columns are image, p"
    ):
        open_labelled(root)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (["a", ""], "has 1 row without a label: filter them out"),
        (["0.25", "1.5"], "decimal numbers such as 0.25"),
    ],
)
def test_values_that_are_no_labels(tmp_path: Path, labels: list[str], text: str) -> None:
    root = images(tmp_path, ["a.png", "b.png"])
    csv(tmp_path / "t.csv", f"a.png,{labels[0]}", f"b.png,{labels[1]}")
    with pytest.raises(UserError, match=text):
        open_labelled(root)


def test_the_only_other_column_holds_the_labels(tmp_path: Path) -> None:
    root = images(tmp_path, TEN)
    csv(tmp_path / "t.csv", *ROWS, header="file_name,Finding Labels")
    assert found(open_labelled(root)) == AB
    with pytest.raises(UserError, match=r"data\.label_column 'nope' is not in the table .*Finding Labels"):
        open_labelled(root, label_column="nope")


# splits


def test_a_column_of_splits(tmp_path: Path) -> None:
    root = images(tmp_path, TEN)
    rows = [f"{row},{'Train' if red < 6 else 'val'}" for red, row in enumerate(ROWS)]
    csv(tmp_path / "t.csv", *rows, header="file_name,label,split")
    training, evaluated = to_train_and_evaluate(LabelledDataConfig(source=root, validation_split="val"))
    assert (set(found(training)), set(found(evaluated))) == (set(range(6)), set(range(6, 10)))
    with pytest.raises(UserError, match=r"no split 'nope' in its column 'split': Train, val"):
        open_labelled(root, split="nope")
    csv(tmp_path / "t.csv", *ROWS)
    with pytest.raises(UserError, match=r"has no column split or .*data\.split 'val'"):
        open_labelled(root, split="val")


def test_what_is_evaluated_on_is_not_trained_on_where_folds_have_numbers(tmp_path: Path) -> None:
    root = images(tmp_path, TEN)
    csv(tmp_path / "t.csv", *(f"{row},{red % 5}" for red, row in enumerate(ROWS)), header="file_name,label,fold")
    training, evaluated = to_train_and_evaluate(LabelledDataConfig(source=root, validation_split="3"))
    assert set(found(evaluated)) == {3, 8}
    assert set(found(training)) == set(range(10)) - {3, 8}
    assert len(open_labelled(root)) == 10


def test_a_table_for_each_split(tmp_path: Path) -> None:
    """As competitions have it: train.csv and test.csv beside folders of these names."""
    root = images(tmp_path, [f"{'train' if red < 6 else 'test'}/{red}.png" for red in range(10)])
    csv(tmp_path / "train.csv", *(f"{red},{AB[red]}" for red in range(6)), header="id,label")
    csv(tmp_path / "test.csv", *(f"{red},{AB[red]}" for red in range(6, 10)), header="id,label")
    training, evaluated = to_train_and_evaluate(LabelledDataConfig(source=root, validation_split="test"))
    assert (set(found(training)), set(found(evaluated))) == (set(range(6)), set(range(6, 10)))
    data = LabelledDataConfig(source=f"{root}/train.csv", validation=f"{root}/test.csv")
    assert [set(found(part)) for part in to_train_and_evaluate(data)] == [set(range(6)), set(range(6, 10))]
    csv(tmp_path / "all.csv", *(f"{red},{AB[red]}" for red in range(10)), header="id,label")
    data = LabelledDataConfig(source=f"{root}/train", labels=f"{root}/all.csv", validation=f"{root}/test")
    assert [set(found(part)) for part in to_train_and_evaluate(data)] == [set(range(6)), set(range(6, 10))]


# tables and class folders


def test_class_folders_are_the_classes_unless_the_table_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = images(tmp_path, ["cat/a.png", "dog/b.png"])
    csv(tmp_path / "t.csv", "cat/a.png,p", "dog/b.png,q")
    with caplog.at_level(logging.WARNING):
        assert open_labelled(root).names == ("cat", "dog")
    assert "the folders at its top are the classes; for the labels of t.csv name it as data.labels" in caplog.text
    for options in ({"label_column": "label"}, {"labels": f"{root}/t.csv"}, {"column": "file_name"}):
        assert open_labelled(root, **options).names == ("p", "q")  # type: ignore[arg-type]


def test_several_tables_are_not_guessed_about(tmp_path: Path) -> None:
    root = images(tmp_path, TEN)
    for name in ("a.csv", "b.csv"):
        csv(tmp_path / name, *ROWS)
    with pytest.raises(UserError, match=r"several tables, a\.csv, b\.csv: name that of the labels with data\.labels"):
        open_labelled(root)
    csv(tmp_path / "metadata.csv", *ROWS)
    assert found(open_labelled(root)) == AB


def test_a_class_of_which_nothing_can_be_read_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = images(tmp_path, ["a/x.png", "b/x.png"])
    (tmp_path / "empty").mkdir()
    assert open_labelled(root).names == ("a", "b")
    assert "empty folders are no classes: empty" in caplog.text
    for number in range(12):
        (tmp_path / "c" / f"{number}.xcf").parent.mkdir(exist_ok=True)
        (tmp_path / "c" / f"{number}.xcf").write_text("gimp xcf")
    with pytest.raises(UserError, match=r"class 'c' has 12 files, and none is an image that can be read: 12 \.xcf\."):
        open_labelled(root)
    assert len(open_source(root)) == 2


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    root = images(tmp_path / "images", TEN)
    table = csv(tmp_path / "t.csv", *ROWS)
    with pytest.raises(UserError, match=r"is a table of files, and data\.labels .* another"):
        open_labelled(table, labels=table)
    with pytest.raises(UserError, match=r"data\.config 'big' belongs to data sets"):
        open_labelled(root, labels=table, config="big")
    cells = [{"bytes": Path(root, TEN[0]).read_bytes(), "path": None}] * 2
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"image": cells, "label": ["a", "b"]}
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "table" / "x.parquet")
    with pytest.raises(UserError, match=r"data\.labels .* goes with image files, and .* is a table of images"):
        open_labelled(str(tmp_path / "table"), labels=table)
    with pytest.raises(UserError, match="holds images itself"):
        open_labelled(root, labels=str(tmp_path / "table" / "x.parquet"))


def test_images_of_channels_and_stacks_have_labels_of_tables(tmp_path: Path) -> None:
    root = images(tmp_path, [f"{scene}_{channel}.png" for scene in "pqr" for channel in ("red", "nir")])
    csv(tmp_path / "t.csv", "p,x", "q,y", "r,x", header="scene,label")
    labelled = open_labelled(root, bands=ChannelSpec(2, ("red", "nir")), stack="{image}_{channel}.png")
    assert [labelled.names[target] for target in labelled.targets] == ["x", "y", "x"]
    csv(tmp_path / "t.csv", "p_red,x", "q_red,y", header="scene,label")
    labelled = open_labelled(root, bands=ChannelSpec(3))
    assert labelled.images.image(1).values.shape == (4, 6, 3)


def test_the_order_of_the_rows_means_nothing(tmp_path: Path) -> None:
    root = images(tmp_path, TEN)
    prints = []
    for rows in (ROWS, ROWS[::-1]):
        csv(tmp_path / "t.csv", *rows)
        prints.append((open_labelled(root).fingerprint, open_source(f"{root}/t.csv").fingerprint))
    assert prints[0] == prints[1]
