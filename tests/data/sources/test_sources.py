import io
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from swin_mim.data.decoding.rgb import BrokenImage
from swin_mim.data.loading.loader import LoaderOptions, TrainingLoader
from swin_mim.data.sources.base import Source, Subset
from swin_mim.data.sources.folder import FolderSource
from swin_mim.data.sources.open import open_source
from swin_mim.data.sources.reachable import check_reachable
from swin_mim.data.sources.tables import TableSource
from swin_mim.data.transforms.crops import PretrainTransform
from swin_mim.errors import UserError


def png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (red, 1, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, red: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(red))
    return path


def reds(source: Source) -> list[int]:
    return [source.image(index).getpixel((0, 0))[0] for index in range(len(source))]


def names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", cache)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", _no_network)


def _no_network(*_: object, **__: object) -> None:
    raise OSError("a test asked for the network")


@pytest.fixture
def table() -> datasets.Dataset:
    cells = [{"bytes": png(red), "path": None} for red in range(5)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": cells, "label": list(range(5))}, features=features)


# folders of images


def test_images_at_any_depth_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for red, name in enumerate(["z.png", "b/c/d.PNG", "b/a.Jpeg", "a/x.tiff", "a.webp"]):
        write(tmp_path / name, red)
    for name in ("a/notes.txt", "metadata.jsonl", "b/.hidden.png", ".hidden/x.png"):
        write(tmp_path / name, 99)
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    source = open_source(str(tmp_path))
    assert names(source) == ["a.webp", "a/x.tiff", "b/a.Jpeg", "b/c/d.PNG", "z.png"]
    assert reds(source) == [4, 3, 2, 1, 0]


def test_order_and_fingerprint_do_not_depend_on_the_file_system(tmp_path: Path) -> None:
    files = ["b.png", "a/b.png", "a/a.png", "c.png"]
    for name in files:
        write(tmp_path / "one" / name)
    for name in reversed(files):
        write(tmp_path / "two" / name)
    one, two = open_source(str(tmp_path / "one")), open_source(str(tmp_path / "two"))
    assert names(one) == names(two) == sorted(files)
    assert one.fingerprint == two.fingerprint
    assert len(one.fingerprint) == 64


def test_fingerprint_notices_names_sizes_and_missing_files(tmp_path: Path) -> None:
    files = [write(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    prints = [open_source(str(tmp_path)).fingerprint]
    files[0].write_bytes(files[0].read_bytes() + b"!")
    prints.append(open_source(str(tmp_path)).fingerprint)
    files[1].rename(tmp_path / "d.png")
    prints.append(open_source(str(tmp_path)).fingerprint)
    files[2].unlink()
    prints.append(open_source(str(tmp_path)).fingerprint)
    assert len(set(prints)) == 4


def test_links_are_followed_and_each_file_counts_once(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside" / "o.png", 7).parent
    root = tmp_path / "root"
    write(root / "deep" / "a.png", 1)
    (root / "loop").symlink_to(root)
    (root / "deep" / "up").symlink_to("..")
    (root / "linked").symlink_to(outside)
    (root / "linked_again").symlink_to(outside)
    (root / "same.png").symlink_to(root / "deep" / "a.png")
    (tmp_path / "entry").symlink_to(root)
    for start in (root, tmp_path / "entry"):
        source = open_source(str(start))
        assert sorted(reds(source)) == [1, 7]
        assert len(source) == 2


def test_what_cannot_be_read_is_left_out_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    with caplog.at_level(logging.WARNING):
        assert len(open_source(str(tmp_path))) == 1
    assert "2 entries cannot be read" in caplog.text
    assert "dangling.png" in caplog.text or "gone.png" in caplog.text


def test_pipes_sockets_and_devices_are_left_out_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.png"))
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "no_image")
    assert names(open_source(str(tmp_path))) == ["a.png"]
    assert "3 entries cannot be read, the first: 'pipe.png' is a pipe, a socket or a device" in caplog.text


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that other users reach, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_what_one_has_no_right_to_read(public_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(public_folder / "a.png", 1)
    write(public_folder / "secret.png", 2).chmod(0)
    write(public_folder / "closed" / "b.png", 3)
    (public_folder / "closed").chmod(0)
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)  # root has every right
    try:
        source = open_source(str(public_folder))
        assert names(source) == ["a.png", "secret.png"]
        assert source.image(0).size == (6, 4)
        with pytest.raises(BrokenImage, match="cannot be read: Permission denied"):
            source.image(1)
    finally:
        os.seteuid(user)
        (public_folder / "closed").chmod(0o700)
    assert "1 entry cannot be read" in caplog.text
    assert "closed" in caplog.text


def test_folders_deeper_than_a_path_can_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.png")
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=folder)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    assert names(open_source(str(tmp_path))) == ["a.png"]
    assert "1 entry cannot be read" in caplog.text
    assert "File name too long" in caplog.text


def test_file_names_of_any_bytes(tmp_path: Path) -> None:
    write(tmp_path / os.fsdecode(b"caf\xe9 \xf0\x9f\x8c\x8d.png"), 5)
    source = open_source(str(tmp_path))
    assert reds(source) == [5]
    assert source.name(0) == "caf\\xe9 \N{EARTH GLOBE EUROPE-AFRICA}.png"
    source.name(0).encode()


def test_a_file_name_makes_no_line_of_a_log(tmp_path: Path) -> None:
    write(tmp_path / "a\nerror: b\x1b[2J\u2028.png", 5)
    source = open_source(str(tmp_path))
    assert reds(source) == [5]
    assert source.name(0) == "a\\nerror: b\\x1b[2J\\u2028.png"


def test_broken_and_vanished_files_are_broken_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    gone = write(tmp_path / "b.png")
    source = open_source(str(tmp_path))
    gone.unlink()
    with pytest.raises(BrokenImage, match="not a readable"):
        source.image(0)
    with pytest.raises(BrokenImage, match="No such file"):
        source.image(1)


def test_what_takes_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png"):
        write(tmp_path / name)
    source = open_source(str(tmp_path))
    for name in source.paths:  # type: ignore[attr-defined]
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "a.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "b.png"))
    (tmp_path / "c.png").symlink_to("/dev/zero")
    (tmp_path / "d.png").mkdir()
    (tmp_path / "e.png").symlink_to("e.png")
    for index in range(5):
        with pytest.raises(BrokenImage, match="cannot be read: "):
            source.image(index)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    os.truncate(write(tmp_path / "a.png"), 2**40)
    with pytest.raises(BrokenImage, match="1099511627776 bytes are more than 536870912"):
        open_source(str(tmp_path)).image(0)


def test_files_that_go_while_a_run_reads_them_are_replaced_and_listed(tmp_path: Path) -> None:
    for red in range(40):
        write(tmp_path / f"{red:02}.png", red)
    loader = TrainingLoader(
        open_source(str(tmp_path)),
        PretrainTransform((2, 2)),
        seed=0,
        global_batch=8,
        micro_batch=8,
        options=LoaderOptions(workers=2),
    )
    batches = loader.batches(0)
    assert not next(batches).broken
    gone = {red + k for red in range(0, 40, 10) for k in range(3)}
    for red in range(0, 40, 10):
        (tmp_path / f"{red:02}.png").unlink()
        (tmp_path / f"{red + 1:02}.png").write_bytes(b"")
        (tmp_path / f"{red + 2:02}.png").unlink()
        os.mkfifo(tmp_path / f"{red + 2:02}.png")
    later = list(islice(batches, 20))[-10:]  # two epochs; some of the first were read ahead
    batches.close()  # type: ignore[attr-defined]
    assert all(batch.images.shape == (8, 3, 2, 2) for batch in later)
    assert {int(red) for batch in later for red in batch.images[:, 0, 0, 0]} == set(range(40)) - gone
    assert {int(entry.name[:2]) for batch in later for entry in batch.broken} == gone
    assert {entry.reason for batch in later for entry in batch.broken} == {
        "cannot be read: No such file or directory",
        "the file is empty",
        "cannot be read: it is no regular file",
    }


def test_metadata_of_an_image_folder_is_not_looked_at(tmp_path: Path, table: datasets.Dataset) -> None:
    write(tmp_path / "train" / "a.png", 3)
    table.to_parquet(tmp_path / "train" / "metadata.parquet")
    (tmp_path / "train" / "metadata.jsonl").write_text("{}")
    assert isinstance(open_source(str(tmp_path)), FolderSource)


@pytest.mark.parametrize("setting", [{"split": "test"}, {"config": "big"}, {"column": "image"}])
def test_settings_of_tables_are_refused_for_a_folder_of_images(tmp_path: Path, setting: dict[str, str]) -> None:
    write(tmp_path / "a.png")
    with pytest.raises(UserError, match=next(iter(setting.values()))):
        open_source(str(tmp_path), **setting)


def test_an_empty_folder_names_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match=r"\.jpg \.jpeg .*\.parquet") as error:
        open_source(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    for spec in (str(tmp_path / "missing"), "./missing", "~/missing_folder", "a/b/c", "", "photo.jpg", "a/b.TIF"):
        with pytest.raises(UserError, match="does not exist: give a folder"):
            open_source(spec)
    with pytest.raises(UserError, match="is a file"):
        open_source(str(write(tmp_path / "a.png")))


# tables


@pytest.mark.parametrize("layout", ["parquet", "nested parquet", "arrow", "disk", "disk dict"])
def test_tables_on_disk(tmp_path: Path, table: datasets.Dataset, layout: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "LICENSE").write_text("not a table")
    if layout == "parquet":
        table.to_parquet(folder / "x.parquet")
    elif layout == "nested parquet":
        (folder / "data").mkdir()
        table.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        table.select([0]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    elif layout == "arrow":
        plain = table.data.table
        with pa.OSFile(str(folder / "x.arrow"), "wb") as file, pa.ipc.new_file(file, plain.schema) as writer:
            writer.write_table(plain)
    elif layout == "disk":
        table.save_to_disk(folder)
    else:
        datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(folder)
    source = open_source(str(folder))
    assert isinstance(source, TableSource)
    assert reds(source) == [0, 1, 2, 3, 4]
    assert source.image(0).mode == "RGB"
    assert source.name(3) == "row 3"
    if layout in ("nested parquet", "disk dict"):
        assert len(open_source(str(folder), split="test")) == 1
    with pytest.raises(UserError, match=r"no_such.*train"):
        open_source(str(folder), split="no_such")


def test_a_folder_that_the_library_would_take_for_a_pattern(tmp_path: Path, table: datasets.Dataset) -> None:
    (tmp_path / "data [1]").mkdir()
    table.to_parquet(tmp_path / "data [1]" / "x.parquet")
    with pytest.raises(UserError, match="pattern: rename it"):
        open_source(str(tmp_path / "data [1]"))


def test_fingerprint_of_a_table_follows_its_content_not_its_place(tmp_path: Path, table: datasets.Dataset) -> None:
    other = table.map(lambda row: {"image": {"bytes": png(0)}} if row["label"] == 4 else {}, load_from_cache_file=False)
    prints = []
    for name, content in (("a", table), ("b", table), ("c", other), ("d", table.select([0, 1, 2, 3]))):
        (tmp_path / name).mkdir()
        content.to_parquet(tmp_path / name / "x.parquet")
        prints.append(open_source(str(tmp_path / name)).fingerprint)
    table.save_to_disk(tmp_path / "disk")
    assert prints[0] == prints[1] == open_source(str(tmp_path / "disk")).fingerprint
    assert len(set(prints)) == 3


def test_plain_binary_columns_and_the_choice_of_a_column(tmp_path: Path) -> None:
    columns = {"n": [1, 2], "JPG": [png(8), png(9)], "mask": [png(1), png(2)], "text": ["a", "b"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert reds(open_source(str(tmp_path))) == [8, 9]
    assert reds(open_source(str(tmp_path), column="mask")) == [1, 2]
    with pytest.raises(UserError, match=r"'nope'.*n \(int64\), JPG \(binary\), mask \(binary\), text \(string\)"):
        open_source(str(tmp_path), column="nope")
    with pytest.raises(UserError, match=r"'n'.*holds no images.*n \(int64\)"):
        open_source(str(tmp_path), column="n")


def test_a_column_that_is_not_evident_is_asked_for(tmp_path: Path) -> None:
    cell = {"bytes": png(0), "path": None}
    two = datasets.Features({"left": datasets.Image(), "right": datasets.Image()})
    datasets.Dataset.from_dict({"left": [cell], "right": [cell]}, features=two).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"set data\.column.*left \(Image\), right \(Image\)"):
        open_source(str(tmp_path))
    assert reds(open_source(str(tmp_path), column="right")) == [0]
    named = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    (tmp_path / "named").mkdir()
    rows = {"image": [{"bytes": png(6), "path": None}], "mask": [cell]}
    datasets.Dataset.from_dict(rows, features=named).to_parquet(tmp_path / "named" / "x.parquet")
    assert reds(open_source(str(tmp_path / "named"))) == [6]


def test_paths_of_a_table_are_opened_only_below_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    outside = write(tmp_path / "secret.png", 200)
    inside = write(folder / "blobs" / "1.bin", 100)
    (folder / "link.bin").symlink_to(outside)
    os.mkfifo(folder / "pipe.bin")
    paths = [
        str(inside),
        "blobs/1.bin",
        str(outside),
        "../secret.png",
        str(folder / "link.bin"),
        "http://127.0.0.1/x.png",
        "hf://datasets/user/name/x.png",
        "/etc/hostname",
        "blobs",
        "pipe.bin",
        "nul\0.png",
        "",
        None,
    ]
    struct = pa.StructArray.from_arrays(
        [pa.array([None] * len(paths), pa.binary()), pa.array(paths, pa.string())], names=["bytes", "path"]
    )
    pq.write_table(pa.table({"image": struct}), folder / "x.parquet")
    source = open_source(str(folder))
    assert [source.image(index).getpixel((0, 0))[0] for index in (0, 1)] == [100, 100]
    for index in range(2, len(paths)):
        with pytest.raises(BrokenImage, match=r"not opened|empty"):
            source.image(index)


@pytest.mark.parametrize(
    ("content", "path"),
    [([1, 2], ["a.png", "b.png"]), ([None, None], [["/etc/hostname"], ["a"]]), ([[b"a"], [b"b"]], ["a", "b"])],
)
def test_cells_that_only_look_like_images(tmp_path: Path, content: list[object], path: list[object]) -> None:
    pq.write_table(
        pa.table({"image": [{"bytes": a, "path": b} for a, b in zip(content, path, strict=True)]}),
        tmp_path / "x.parquet",
    )
    with pytest.raises(UserError, match=r"data\.column 'image' of .* holds no bytes of images .*image \(") as error:
        open_source(str(tmp_path))
    assert "\n" not in str(error.value)


def test_empty_cells_are_broken_images(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(1), None, b""]}), tmp_path / "x.parquet")
    source = open_source(str(tmp_path))
    assert source.image(0).size == (6, 4)
    for index in (1, 2):
        with pytest.raises(BrokenImage, match="empty"):
            source.image(index)


def test_a_table_without_rows(table: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table.select([]))
    with pytest.raises(UserError, match="no rows"):
        open_source("user/name")


def test_a_hub_data_set_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'nobody/nothing' cannot be loaded: .*check that") as error:
        open_source("nobody/nothing")
    assert "\n" not in str(error.value)


def test_a_hub_whose_address_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for spec in ("photoz", "nobody/Nothing"):
        with pytest.raises(
            UserError, match=rf"'{spec}': there is no such file or folder here, and no connection to https"
        ):
            open_source(spec)
    (tmp_path / "nobody___nothing").mkdir()
    check_reachable("nobody/Nothing")  # its client finds it there
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    check_reachable("photoz")  # the proxy may know the address


def test_a_damaged_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"cannot be loaded: .*[Pp]arquet") as error:
        open_source(str(tmp_path))
    assert "\n" not in str(error.value)


def test_hub_rows_may_name_files_that_the_client_has_put_into_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = write(datasets.config.HF_CACHE_HOME / "hub" / "datasets--user--name" / "snapshots" / "1" / "a.png", 50)
    foreign = write(datasets.config.HF_CACHE_HOME / "hub" / "datasets--other--name" / "a.png", 60)
    asked = []

    def load_dataset(*args: object, **kwargs: object) -> datasets.Dataset:
        asked.append((args, kwargs))
        rows = [{"bytes": None, "path": str(path)} for path in (mine, foreign)]
        return datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = open_source("user/name", config="small", split="validation")
    assert asked == [(("user/name", "small"), {"split": "validation"})]
    assert source.image(0).getpixel((0, 0))[0] == 50
    with pytest.raises(BrokenImage, match="outside the data set"):
        source.image(1)


def test_a_folder_of_images_needs_no_datasets_library(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    code = (
        "import sys; sys.modules['datasets'] = None; sys.modules['pyarrow'] = None; "
        "from swin_mim.data.sources.open import open_source; print(open_source(sys.argv[1]).image(0).size)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "(6, 4)\n"


# parts of a source


class Numbers(Source):
    """A source whose images are not asked for."""

    def __init__(self, n: int) -> None:
        self.n, self.fingerprint = n, f"{n}"

    def __len__(self) -> int:
        return self.n

    def name(self, index: int) -> str:
        return str(range(self.n)[index])

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (1, 1), (index, 0, 0))


@settings(deadline=None)
@given(n=st.integers(0, 300), count=st.integers(0, 50), seed=st.integers(0, 2**64 - 1))
def test_held_out_and_training_part_a_source(n: int, count: int, seed: int) -> None:
    training, heldout = Numbers(n).split(count, seed)
    assert len(heldout) == min(count, n // 10)
    both = names(training) + names(heldout)
    assert sorted(map(int, both)) == list(range(n))


def test_the_held_out_part_depends_on_the_seed_alone() -> None:
    first, again, other = (Numbers(200).split(20, seed)[1] for seed in (1, 1, 2))
    assert names(first) == names(again) != names(other)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert set(names(Numbers(200).split(10, 1)[1])) < set(names(first))


def test_subset_keeps_its_order() -> None:
    subset = Subset(Numbers(9), np.array([4, 2, 8]))
    assert names(subset) == ["4", "2", "8"]
    assert reds(subset) == [4, 2, 8]
    assert subset.fingerprint != Subset(Numbers(9), [4, 8, 2]).fingerprint
    assert subset.fingerprint != Subset(Numbers(10), [4, 2, 8]).fingerprint


def test_images_beside_tables_are_not_guessed_about(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "logo.png")
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"holds 1 image and the table train\.parquet, which has images too"):
        open_source(str(tmp_path))
    (tmp_path / "train.parquet").rename(tmp_path / "metadata.parquet")
    assert len(open_source(str(tmp_path))) == 1
