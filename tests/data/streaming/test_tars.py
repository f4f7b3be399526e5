"""Tars as users make them: what is an image in them, what is left out, and what is refused in one line."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_streaming import PICTURES, SIZES, TARS, opened, parquet, samples_of, tar, write

from swin_mim.data.decoding.options import DecodeOptions
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.decoding.rgb import BrokenImage
from swin_mim.data.streaming import tar_index
from swin_mim.data.streaming.source import StreamedSource
from swin_mim.data.streaming.storage import find_files
from swin_mim.errors import UserError
from swin_mim.files import sha256

A, B, C = PICTURES[:3]
JUNK = b"\0\5\26\7" + bytes(200)
"""What macOS puts beside a file."""


def contents(source: Any) -> list[bytes]:
    return [source.content(index) for index in range(len(source))]


def of(tmp_path: Path, *tars: bytes, **settings: Any) -> StreamedSource:
    folder = tmp_path / "shards"
    shutil.rmtree(folder, ignore_errors=True)
    write(folder, {f"{number}.tar": content for number, content in enumerate(tars)})
    return opened(str(folder), tmp_path / "cache", **settings)


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


# which members are images


def test_members_that_macos_adds_are_not_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hidden = (
        "._a.jpg",
        "t/._a.jpg",
        "./t/._a.jpg",
        "t/.DS_Store",
        "__MACOSX/t/._a.jpg",
        "__MACOSX/a.jpg",
        "x/.git/a.jpg",
    )
    for name in hidden:
        source = of(tmp_path, tar([(name, JUNK), ("./t/a.jpg", A), ("t/a.json", b"{}"), ("v1.0/b.png", B)]))
        assert contents(source) == [A, B], name
    assert not caplog.records
    assert contents(of(tmp_path, tar([("../.x/a.jpg", A), ("../y/a.jpg", B), ("/z/./a.jpg", C)]))) == [B, C]


@pytest.mark.parametrize("order", ["jpg first", "cls first", "shuffled"])
def test_members_of_a_sample_need_not_be_side_by_side(
    tmp_path: Path, order: str, caplog: pytest.LogCaptureFixture
) -> None:
    images = [(f"s{number}.jpg", image) for number, image in enumerate(PICTURES[:20])]
    labels = [(f"s{number}.cls", b"1") for number in range(20)]
    members = {
        "jpg first": images + labels,
        "cls first": labels + images,
        "shuffled": sorted(images + labels, key=lambda member: sha256([member[0].encode()])),
    }[order]
    source = of(tmp_path, tar([*members, ("README.txt", b"hi"), ("Thumbs.db", b"x"), ("lone.cls", b"2")]))
    assert contents(source) == [content for name, content in members if name.endswith("jpg")]
    text = "3 files of its tars belong to no image and are left out: 1 .txt, 1 .db, 1 .cls"
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [text]
    caplog.clear()
    assert len(opened(str(tmp_path / "shards"), tmp_path / "cache")) == 20  # known from the first time
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [text]


def test_a_single_file_that_is_left_out_is_told_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    of(tmp_path, tar([("README", b"hi"), ("a.jpg", A)]))
    assert "1 file of its tars belongs to no image and is left out: 1 no suffix" in caplog.text


def test_suffixes_of_images_and_images_without_one(tmp_path: Path) -> None:
    names = ("a.JPG", "b.jfif", "c.jpe", "d.tif", "e.webp", "f.avif", "g.jp2")
    assert len(of(tmp_path, tar([(name, A) for name in names]))) == len(names)
    unnamed = [("1.img", A), ("1.json", b"{}"), ("2.bin", B), ("3", C), ("3.txt", b"no image"), ("4.data.raw", A)]
    assert contents(of(tmp_path, tar([*unnamed, ("5.txt", b"hi"), ("6", b"hi")]))) == [A, B, C, A]
    named = tar([("1.bin", A), ("1.jpg", B), ("2.jpg", C), ("2.bin", A)])
    assert contents(of(tmp_path, named)) == [B, C], "what is named as an image comes first"
    two = refused(lambda: of(tmp_path, tar([("1.a", A), ("1.b", B)])))
    assert two.startswith("shard 0.tar: sample '1' has several images, a, b: set data.column to one of them, or to '*'")


def test_a_column_chooses_among_images(tmp_path: Path) -> None:
    members = [("b/1.seg.png", B), ("b/1.jpg", A), ("b/2.cls", b"0"), ("README", b""), ("b/3.JPG", C)]
    assert contents(of(tmp_path, tar(members), column="jpg")) == [A, C]
    assert contents(of(tmp_path, tar(members), column="seg.png")) == [B]
    text = refused(lambda: of(tmp_path, tar(members)))
    assert text.startswith("shard 0.tar: sample 'b/1' has several images, seg.png, jpg: set data.column to one of them")
    apart = [("1.jpg", A), ("2.jpg", B), ("1.seg.png", C), ("2.seg.png", C)]
    assert "sample '1' has several images, jpg, seg.png" in refused(lambda: of(tmp_path, tar(apart)))
    mixed = [("1.jpg", A), ("1.seg.png", C), ("2.png", B), ("2.seg.png", C)]
    assert contents(of(tmp_path, tar(mixed), column="jpg;png")) == [A, B]
    nothing = refused(lambda: of(tmp_path, tar(members), column="webp"))
    assert "has no image with data.column 'webp' in its tars, but 2 .jpg, 1 .png, 1 .cls" in nothing


def test_samples_of_many_images_are_taken_one_by_one(tmp_path: Path) -> None:
    """As those with dots in their names, of which WebDataset makes one sample."""
    members = [("22.05.png", A), ("22.06.png", B), ("22.json", b"{}"), ("23.05.png", C)]
    assert "sample '22' has several images, 05.png, 06.png" in refused(lambda: of(tmp_path, tar(members)))
    assert contents(of(tmp_path, tar(members), column="*")) == [A, B, C]


def test_of_two_members_of_one_name_the_later_is_taken(tmp_path: Path) -> None:
    assert contents(of(tmp_path, tar([("1.jpg", A), ("2.jpg", B), ("1.jpg", C)]))) == [C, B]


def test_arrays_are_images_where_channels_are_read(tmp_path: Path) -> None:
    tile = np.random.default_rng(0).integers(0, 9000, (8, 9, 3), dtype=np.uint16)
    np.save(npy := io.BytesIO(), tile)
    np.savez(npz := io.BytesIO(), x=tile[..., 0], y=tile[..., 1], z=tile[..., 2])
    shard = tar([("1.npy", npy.getvalue()), ("1.json", b"{}"), ("2.npz", npz.getvalue()), ("3.txt", b"hi")])
    source = of(tmp_path, shard, bands=ChannelSpec(3))
    assert len(source) == 2
    assert np.array_equal(source.image(0).values, tile)
    assert "has no image in its tars, but" in refused(lambda: of(tmp_path, shard))


def test_how_images_are_decoded_goes_with_them(tmp_path: Path) -> None:
    source = of(tmp_path, TARS["train-01.tar"], decoding=DecodeOptions(max_pixels=100))
    for part in (source, *source.split(1, seed=0)):
        with pytest.raises(BrokenImage, match="more than 100"):
            part.image(0)


# formats of archives


def dirs_and_links(archive: tarfile.TarFile, **extra: Any) -> None:
    """Add a folder, a file with a long name of other letters, a hard link to one, a symbolic link and a pipe."""
    folder = tarfile.TarInfo("über")
    folder.type = tarfile.DIRTYPE
    archive.addfile(folder)
    for name, content in ((LONG, A), ("über/x.json", b"{}"), ("über/.cache.png", C), ("über/b.png", B)):
        info = tarfile.TarInfo(name)
        info.size, info.uname = len(content), "grün"
        for key, value in extra.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(content))
    for name, kind, target in (
        ("über/c.png", tarfile.LNKTYPE, "über/.cache.png"),
        ("über/d.png", tarfile.SYMTYPE, "b.png"),
        ("über/e.png", tarfile.FIFOTYPE, ""),
        ("über/f.png", tarfile.LNKTYPE, "elsewhere.png"),
    ):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        archive.addfile(info)


LONG = "über/" + "ä" * 40 + "/" + "o" * 20 + ".png"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_formats_of_tars(tmp_path: Path, form: int, encoding: str) -> None:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w", format=form, encoding=encoding) as archive:
        dirs_and_links(archive)
    assert contents(of(tmp_path, file.getvalue())) == [A, B, C]


def test_tars_of_macos(tmp_path: Path) -> None:
    """Its tar writes pax headers with extended attributes, and a companion for each file."""
    headers = {"LIBARCHIVE.creationtime": "1700000000", "LIBARCHIVE.xattr.com.apple.quarantine": "MDA4MQ" * 900}
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (
            ("./._train", JUNK),
            ("./train/._1.jpg", JUNK),
            ("./train/1.jpg", A),
            ("./train/1.cls", b"1"),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), headers
            archive.addfile(info, io.BytesIO(content))
    assert contents(of(tmp_path, file.getvalue())) == [A]


@pytest.mark.skipif(shutil.which("tar") is None, reason="this machine has no tar")
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("v7", []),
        ("ustar", ["-b", "1"]),
        ("oldgnu", ["-S"]),
        ("gnu", ["-S"]),
        ("gnu", ["--label=mine"]),
        ("pax", []),
        *(("pax", ["-S", f"--sparse-version={version}"]) for version in ("0.0", "0.1", "1.0")),
    ],
)
def test_tars_of_the_command(tmp_path: Path, form: str, options: list[str]) -> None:
    if "GNU" not in subprocess.run(["tar", "--version"], capture_output=True, text=True).stdout:
        pytest.skip("only GNU's tar has these options")
    photos = tmp_path / "photos"
    write(photos / "a.b", {"1.jpg": A, "1.cls": b"1", "2.bmp": bytes(1), "._2.bmp": JUNK})
    Image.new("RGB", (300, 300)).save(photos / "a.b" / "2.bmp")
    with (photos / "a.b" / "2.bmp").open("r+b") as file:  # rows of black become a hole
        file.truncate(200_000)
        file.truncate(270_054)
    os.link(photos / "a.b" / "1.jpg", photos / "a.b" / "3.jpg")
    os.symlink("1.jpg", photos / "a.b" / "4.jpg")
    shards = tmp_path / "shards"
    shards.mkdir()
    command = ["tar", f"--format={form}", "--sort=name", *options, "-cf", str(shards / "x.tar"), "-C", str(photos), "."]
    subprocess.run(command, check=True)
    source = opened(str(shards), tmp_path / "cache")
    assert sorted(contents(source)) == sorted([A, (photos / "a.b" / "2.bmp").read_bytes(), A])
    assert source.image(1).size == (300, 300)


def sparse(declared: int, parts: list[tuple[int, int]], stored: bytes) -> bytes:
    """A tar of GNU's old sparse format with a map of one's own making."""
    info = tarfile.TarInfo("1.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, len(stored)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    for number, part in enumerate(parts):
        header[386 + 24 * number : 410 + 24 * number] = b"".join(b"%011o\0" % value for value in part)
    header[483:495] = b"%011o\0" % declared
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + stored + bytes(-len(stored) % 512) + bytes(1024)


def test_holes_take_no_more_memory_than_an_image_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index, "MAX_BYTES", 10_000)
    whole = sparse(3000, [(0, 1000), (2000, 1000)], b"a" * 1000 + b"b" * 1000)
    assert contents(of(tmp_path, whole)) == [b"a" * 1000 + bytes(1000) + b"b" * 1000]
    assert len(contents(of(tmp_path, sparse(2**32, [(0, 1000)], bytes(1000))))[0]) == 10_001
    for parts in ([(2000, 500), (0, 500)], [(0, 900), (0, 100)], [(2**32, 1000)], [(0, 1000), (2999, 100)]):
        assert len(contents(of(tmp_path, sparse(3000, parts, bytes(1000))))[0]) == 3000, parts


# what is refused


@pytest.mark.parametrize(
    ("suffix", "pack", "command"),
    [
        (".tar.gz", gzip.compress, "gunzip"),
        (".tgz", gzip.compress, "gunzip"),
        (".tar.xz", lzma.compress, "unxz"),
        (".tar.bz2", bz2.compress, "bunzip2"),
        (".tar.zst", lambda content: b"\x28\xb5\x2f\xfd" + content, "zstd -d"),
    ],
)
def test_compressed_tars(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes], command: str) -> None:
    content = pack(TARS["train-00.tar"])
    folder = write(tmp_path / "shards", {f"0{suffix}": content, f"1{suffix}": content})
    expected = f"has 2 {suffix}, of which no image can be read by itself: unpack them: {command} {folder}/*{suffix}"
    assert refused(lambda: opened(folder, tmp_path / "cache")).endswith(expected)
    assert f"unpack them: {command} " in refused(lambda: opened(f"{folder}/0{suffix}", tmp_path / "cache"))
    text = refused(lambda: of(tmp_path, content))
    assert text == f"shard 0.tar cannot be read: it is compressed: unpack it, as {command} does"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\3\4" + bytes(600), "it is a zip file: unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "it is a page of a web server"),
    ],
)
@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_other_files_with_the_name_of_a_shard(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    folder = write(tmp_path / "shards", {f"x{suffix}": content})
    assert message in refused(lambda: opened(folder, tmp_path / "cache"))


@pytest.mark.parametrize(
    ("names", "found", "command"),
    [
        (("d.tar.part000", "d.tar.part001"), "2 .tar.part*", "*.tar.part* > NAME.tar"),
        (("d.tar.gz.aa", "d.tar.gz.ab"), "2 .tar.gz.*", "*.tar.gz.* > NAME.tar"),
        (("d.tar.split.00", "d.tar.split.01"), "2 .tar.split.*", "*.tar.split.* > NAME.tar"),
    ],
)
def test_pieces_of_archives(tmp_path: Path, names: tuple[str, ...], found: str, command: str) -> None:
    folder = write(tmp_path / "shards", dict.fromkeys(names, b"x"))
    text = refused(lambda: opened(folder, tmp_path / "cache"))
    assert text.endswith(f"has {found}, which are pieces of archives: join those of each: cat {folder}/{command}")


def test_files_beside_tars_that_are_no_pieces(tmp_path: Path) -> None:
    for name in ("d.tar.md5", "d.tar.bak", "d.tar.asc", "d.tar.idx"):
        assert "pieces" not in refused(
            lambda name=name: opened(write(tmp_path / name, {name: b"x"}), tmp_path / "cache")
        )


def test_a_folder_that_cannot_be_listed_as_a_whole_can_be_by_a_pattern(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards", {"train-0.tar": TARS["train-00.tar"], "test.json": b"{}"})
    assert f"name its shards by a pattern, as {folder}/*.tar" in refused(lambda: opened(folder, tmp_path / "cache"))
    assert len(opened(f"{folder}/*.tar", tmp_path / "cache")) == SIZES[0]


def test_folders_that_hold_no_shards(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", {"a.jpg": A, "b.jpg": B, "c.txt": b""})
    text = refused(lambda: opened(photos, tmp_path / "cache"))
    assert text.endswith(
        "has 2 .jpg, 1 .txt, and what is streamed is .parquet or .tar: give a folder of images, not streamed"
    )
    assert "has no files: what is streamed must be" in refused(
        lambda: opened(write(tmp_path / "empty", {}), tmp_path / "cache")
    )
    tables = write(tmp_path / "tables", {"data-00000.arrow": b"x", "state.json": b"{}"})
    assert "not streamed, a data set is read as a whole" in refused(lambda: opened(tables, tmp_path / "cache"))


def test_tars_that_were_joined_by_cat(tmp_path: Path) -> None:
    joined = TARS["train-00.tar"] + TARS["train-01.tar"]
    text = refused(lambda: of(tmp_path, joined))
    assert "shard 0.tar: another tar begins behind its end" in text
    assert "tar --sort=name -cf" in text
    assert len(of(tmp_path, TARS["train-00.tar"] + b"what an old program left there" * 100)) == SIZES[0]


def header_of(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type = kind
    buffer = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    buffer[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    buffer[148:156] = b" " * 8
    buffer[148:156] = b"%06o\0 " % sum(buffer)
    return bytes(buffer)


def test_headers_that_lie_end_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No long name of gigabytes is taken into memory, and no size leads back to where the reading was."""
    first, began = tar([("1.png", A)])[: 512 + -(-len(A) // 512) * 512], time.monotonic()
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        assert "shard 0.tar cannot be read" in refused(
            lambda kind=kind: of(tmp_path, header_of(kind, 2**21) + bytes(2**22))
        )
    for size in (-512, -1024, -(2**40), 2**60):
        assert "shard 0.tar cannot be read" in refused(
            lambda size=size: of(tmp_path, first + header_of(tarfile.REGTYPE, size) + bytes(2048))
        )
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("2.png")
        info.pax_headers = {"size": "-2048"}
        archive.addfile(info)
    assert "shard 0.tar cannot be read" in refused(lambda: of(tmp_path, file.getvalue()))
    monkeypatch.setattr(tar_index, "MAX_MEMBERS", 5)
    assert "it has more than 5 members: pack them into several tars" in refused(
        lambda: of(tmp_path, TARS["train-00.tar"])
    )
    assert time.monotonic() - began < 20


def test_damaged_tars_are_one_line_or_right(tmp_path: Path) -> None:
    """Bytes of headers changed at random: either all is read that is there, or the shard is named."""
    rng, whole = np.random.default_rng(0), TARS["train-04.tar"] + b""
    formats = [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
    made = [whole]
    for form in formats:
        with tarfile.open(fileobj=(file := io.BytesIO()), mode="w", format=form, encoding="utf-8") as archive:
            dirs_and_links(archive)
        made.append(file.getvalue())
    made.append(sparse(3000, [(0, 1000), (2000, 1000)], b"a" * 1000 + b"b" * 1000))
    outcomes = {"read": 0, "refused": 0}
    began = time.monotonic()
    for number in range(200):
        content = bytearray(made[number % len(made)])
        used = len(bytes(content).rstrip(b"\0"))
        for _ in range(int(rng.integers(1, 4))):
            content[int(rng.integers(used))] = int(rng.integers(256))
        if number % 3 == 0:  # so that more than the sum of a header is looked at
            for start in range(0, len(content) - 512, 512):
                if content[start + 257 : start + 262] == b"ustar":
                    content[start + 148 : start + 156] = b" " * 8
                    content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
        try:
            index = tar_index.index_tar(file := io.BytesIO(bytes(content)), None)
            for image in index.images:
                assert len(tar_index.read_member(file, image)) <= tar_index.MAX_BYTES + 1
            outcomes["read"] += 1
        except (tarfile.TarError, tar_index.Unusable, ValueError):
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10, outcomes
    assert time.monotonic() - began < 30


# counts that were kept


def test_ordinary_tars_stay_what_they_were(tmp_path: Path) -> None:
    """The fingerprint, which a resume compares, the order and the rows are those of version 0.1."""
    members = [(f"a/{n}.{kind}", b"%s %d" % (kind.encode(), n)) for n in range(9) for kind in ("cls", "jpg")]
    source = of(tmp_path, tar(members[:8]), tar(members[8:]))
    shards = tmp_path / "shards"
    os.rename(shards / "0.tar", shards / "x.tar")
    os.rename(shards / "1.tar", shards / "y.tar")
    source = opened(str(shards), tmp_path / "cache")
    assert source.fingerprint == "2007f28dee224235c7d0cebdad908c5bf62edfdcea05418d235a63831a53dde9"
    order = source.order(3)
    assert [order.index(position) for position in range(18)] == [8, 5, 4, 0, 3, 6, 7, 2, 1, 8, 0, 1, 3, 6, 7, 4, 2, 5]
    assert contents(source) == [b"jpg %d" % number for number in range(9)]


def test_counts_of_samples_by_an_earlier_version_are_not_taken(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "shards", {"x.tar": tar([("1.jpg", A), ("README.txt", b"")]), "y.tar": tar([("1.jpg", A)])}
    )
    cache = tmp_path / "cache"
    cache.mkdir()
    lines = []
    for name in ("x.tar", "y.tar"):
        (file,) = find_files(f"{folder}/{name}")
        parts = ((file.url, file.version), file.size, ".tar", None)
        key = sha256([json.dumps(parts).encode()])[:40]
        lines.append(json.dumps({"key": key, "rows": 2, "name": name}) + "\n")
        (cache / f"{key}.images").write_bytes(b"of two rows")
    (cache / "rows.jsonl").write_text("".join(lines))
    source = opened(folder, cache)
    assert (source.sizes, contents(source)) == ([1, 1], [A, A])


def test_a_table_of_sizes_that_counts_samples_without_images_is_told(tmp_path: Path) -> None:
    shards = {"x.tar": tar([*samples_of([A, B]), ("README.txt", b"")]), "sizes.json": b'{"x.tar": 3}'}
    folder = write(tmp_path / "shards", shards)
    text = refused(lambda: opened(f"{folder}/*.tar", tmp_path / "cache").content(0))
    assert text.startswith("shard x.tar has 2 rows, and 3 were counted, or stand in the sizes.json")
    assert "where samples without an image are none" in text


# other places, and parquet


def test_hidden_shards_of_a_bucket_are_none(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, content in (("0.tar", TARS["train-00.tar"]), ("._0.tar", JUNK)):
        memory.pipe_file(f"/macos/{name}", content)
    assert len(opened("memory://macos/*.tar", tmp_path / "cache")) == SIZES[0]


def test_what_remote_tars_have_besides_is_kept_with_their_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/odd/0.tar", tar([*samples_of([A, B]), ("README.txt", b"")]))
    for _ in range(2):
        caplog.clear()
        assert len(opened("memory://odd/*.tar", tmp_path / "cache")) == 2
        assert "1 file of its tars belongs to no image and is left out: 1 .txt" in caplog.text


def test_columns_of_parquet_files_that_hold_no_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards", {})
    cells = [[{"bytes": A, "path": None}], [{"bytes": B, "path": None}] * 2]
    for column, values, message in (
        ("images", cells, "lists of images are not read, give each image a row of its own"),
        ("image", ["aGVsbG8="] * 2, "holds no bytes of images, but string: store these, one image a row"),
    ):
        pq.write_table(pa.table({column: values}), Path(folder) / "a.parquet")
        assert message in refused(lambda: opened(folder, tmp_path / "cache").content(0))


def test_parquet_files_that_name_their_images_are_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    for none in (None, b""):
        write(folder, {"a.parquet": parquet([none] * 9)})
        text = refused(lambda: opened(str(folder), tmp_path / "cache").content(0))
        assert (
            "shard a.parquet: its column 'image' has the bytes of no image, at most names of files: embed these" in text
        )
