"""Which files of a folder are images, and what is said of the others."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_sources import _own_cache, names, png, reds, write  # noqa: F401 - the first is for every test here too

from swin_mim.data.decoding.options import DecodeOptions
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.sources.folder import FolderSource
from swin_mim.data.sources.listing import counts_text
from swin_mim.data.sources.open import open_source
from swin_mim.errors import UserError


def opened(folder: Path, rgb: bool = True) -> FolderSource:
    source = open_source(str(folder)) if rgb else open_source(str(folder), bands=ChannelSpec(3)).source
    assert isinstance(source, FolderSource)
    return source


def picture(path: Path, kind: str, red: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (red, 1, 2)).save(path, kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jfif", "JPEG"),
        ("a.JPE", "JPEG"),
        ("a", "PNG"),
        ("IMG.0001", "TIFF"),
        ("a.avif", "AVIF"),
        ("a.jp2", "JPEG2000"),
        ("a.image", "WEBP"),
        ("a.apng", "PNG"),
        ("a b.c d", "GIF"),
    ],
)
def test_an_image_is_what_begins_as_one(tmp_path: Path, name: str, kind: str) -> None:
    picture(tmp_path / "deep" / name, kind)
    source = opened(tmp_path)
    assert source.paths == [f"deep/{name}"]
    assert source.image(0).size == (8, 8)
    assert source.left_out == {}


@pytest.mark.parametrize(
    "name", ["a.txt", "a.nef", "a.DNG", "a.crdownload", "a.png~", "a.thm", "a.tif.ovr", "Thumbs.db", "DICOMDIR", ".a"]
)
def test_a_preview_a_part_and_a_text_are_none_whatever_they_begin_with(tmp_path: Path, name: str) -> None:
    write(tmp_path / "z.png")
    (tmp_path / name).write_bytes(png(1))
    assert opened(tmp_path).paths == ["z.png"]


def test_what_is_left_out_is_said_once_by_suffix_and_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a" / "z.png")
    for number in range(3):
        (tmp_path / "a" / f"{number}.TXT").write_text("BM is no bitmap")
    for name in ("README", "a/x.xyz", ".hidden", "Thumbs.db", "desktop.ini", "a/.DS_Store", "labels.csv", "._z.png"):
        (tmp_path / name).write_text("text")
    (tmp_path / "a" / "empty").touch()
    for _ in range(3):
        source = opened(tmp_path)
    assert source.left_out == {".txt": 3, "without a suffix": 2, ".xyz": 1}
    assert [record.getMessage() for record in caplog.records] == [
        f"data.source {str(tmp_path)!r}: 6 files are no images and are left out: 3 .txt, 2 without a suffix, 1 .xyz"
    ]
    assert counts_text({f".{number}": 2 for number in range(8)}).endswith("2 .4, 6 others")


def test_one_file_and_none_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "z.png")
    opened(tmp_path)
    assert not caplog.records
    (tmp_path / "a.md").write_text("text")
    opened(tmp_path)
    assert "1 file is no image and is left out: 1 .md" in caplog.text


def test_arrays_are_images_of_channels_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 3), np.uint8))
    np.save(tmp_path / "b.npy", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "b.npy").rename(tmp_path / "b")
    write(tmp_path / "z.png")
    assert opened(tmp_path).left_out == {".npy": 1, "without a suffix": 1}
    assert opened(tmp_path, rgb=False).paths == ["a.npy", "b", "z.png"]


def test_a_second_name_of_an_image_is_no_other_file(tmp_path: Path) -> None:
    write(tmp_path / "z.png", 4)
    (tmp_path / "a").symlink_to(tmp_path / "z.png")
    (tmp_path / "b.txt").symlink_to(tmp_path / "z.png")
    source = opened(tmp_path)
    assert (source.paths, source.left_out) == (["z.png"], {})


def test_a_pipe_of_unknown_suffix_is_not_opened(tmp_path: Path) -> None:
    write(tmp_path / "z.png")
    os.mkfifo(tmp_path / "pipe")
    assert opened(tmp_path).paths == ["z.png"]


def test_folders_without_images_are_known(tmp_path: Path) -> None:
    write(tmp_path / "a" / "z.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "c" / "d").mkdir(parents=True)
    (tmp_path / "c" / "d" / "x.txt").write_text("text")
    (tmp_path / "c" / "x.xyz").write_text("text")
    assert opened(tmp_path).without_images == {"b": {}, "c": {".txt": 1, ".xyz": 1}}


def test_order_and_fingerprint_of_plain_names_are_those_of_the_names_and_sizes(tmp_path: Path) -> None:
    """A run of an earlier version goes on."""
    for name in ("b.jpg", "a/b.PNG", "c.tiff"):
        write(tmp_path / name)
    before = opened(tmp_path)
    (tmp_path / "notes.txt").write_text("text")
    assert opened(tmp_path).fingerprint == before.fingerprint
    assert before.paths == ["a/b.PNG", "b.jpg", "c.tiff"]


def test_how_files_are_decoded_reaches_folders_and_tables(tmp_path: Path) -> None:
    write(tmp_path / "folder" / "z.png")
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"image": [png(1)]}), tmp_path / "table" / "x.parquet")
    for spec in ("folder", "table"):
        source = open_source(str(tmp_path / spec), decoding=DecodeOptions(max_pixels=10))
        with pytest.raises(ValueError, match="10"):
            source.image(0)


@pytest.mark.parametrize(
    ("module", "extra", "kind", "name", "head"),
    [
        ("pillow_heif", "heif", "HEIC", "a.HEIC", b""),
        ("pydicom", "dicom", "DICOM", "a", bytes(128) + b"DICM"),
        ("imagecodecs", "raster", "JPEG XL", "a", b"\xff\x0a"),
    ],
)
def test_a_kind_whose_package_is_missing_is_said_before_anything_is_read(
    tmp_path: Path, module: str, extra: str, kind: str, name: str, head: bytes
) -> None:
    (tmp_path / "deep").mkdir()
    for prefix in ("", "b"):
        (tmp_path / "deep" / f"{prefix}{name}").write_bytes(head)
    write(tmp_path / "z.png")
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from swin_mim.data.sources.open import open_source\n"
        "try: open_source(sys.argv[1])\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert f"holds 2 {kind} files" in done.stdout
    assert f"deep/{name}, which cannot be read yet: pip install 'swin-mim[{extra}]'" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_a_folder_of_tars_names_the_option_that_reads_them(tmp_path: Path) -> None:
    for name in ("a-000.tar", "a-001.tar"):
        (tmp_path / name).write_bytes(bytes(1024))
    with pytest.raises(UserError, match=r"holds no images, but 2 tar files such as a-000\.tar: .*--data\.streaming"):
        open_source(str(tmp_path))


def test_a_folder_of_other_things_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(UserError, match=r"of its files, 2 \.txt, none is one: give a folder of images"):
        open_source(str(tmp_path))


def test_files_without_suffix_beside_a_table_of_images_belong_to_the_table(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(png(1))
    pq.write_table(pa.table({"image": [png(7)]}), tmp_path / "x.parquet")
    assert reds(open_source(str(tmp_path))) == [7]


def test_files_of_known_suffix_are_not_opened(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
        (tmp_path / f"{number}.json").write_bytes(b"")
    (tmp_path / "unknown").write_bytes(b"")
    code = (
        "import sys; from pathlib import Path; from swin_mim.data.sources.listing import list_images\n"
        "opened = []; sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "list_images(Path(sys.argv[1]), rgb=True)\n"
        "print([path for path in opened if path.startswith(sys.argv[1])])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[str(tmp_path / 'unknown')]}\n"
