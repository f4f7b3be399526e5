"""Packed images: what they hold, that nothing but source and settings decides their bytes, and what goes wrong."""

import contextlib
import errno
import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image, ImageCms

from swin_mim import files
from swin_mim.data.decoding.options import DecodeOptions
from swin_mim.data.decoding.raster import ChannelSpec, Raster
from swin_mim.data.decoding.rgb import decode_image
from swin_mim.data.labels import open_labelled
from swin_mim.data.packing import pack as packing
from swin_mim.data.packing import writer
from swin_mim.data.packing.pack import PackOptions, pack, shrunk
from swin_mim.data.packing.rasters import smaller_raster
from swin_mim.data.sources.folder import FolderSource
from swin_mim.data.sources.open import open_source
from swin_mim.data.sources.packed import BROKEN, MANIFEST, packed_rasters, read_packed, verify
from swin_mim.errors import CANNOT_WRITE, MISTAKE, UserError

COUNT = 14
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", folder)
    return folder


@pytest.fixture(autouse=True)
def sync(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Leaves the disk alone, which may be slow; what was to be written through to it."""
    paths: list[Path] = []
    monkeypatch.setattr(files, "flush", paths.append)
    return paths


def noise(width: int, height: int, *channels: int, dtype: type = np.uint8) -> np.ndarray:
    """Smooth enough for JPEG, and with a different range in each image."""
    top = int(RNG.integers(60, np.iinfo(dtype).max))
    small = RNG.integers(0, top, (4, 5, *channels), dtype=dtype)
    return np.repeat(np.repeat(small, -(-height // 4), 0), -(-width // 5), 1)[:height, :width]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind of file, in two class folders."""
    root = tmp_path_factory.mktemp("photos")
    (root / "a").mkdir()
    (root / "b" / "c").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise(200, 150, 3)).save(root / "a" / "large.jpg", quality=95)
    Image.fromarray(noise(40, 30, 3)).save(root / "a" / "small.png")
    Image.fromarray(noise(90, 120, dtype=np.uint16)).save(root / "b" / "c" / "sixteen.png")
    Image.fromarray(noise(100, 100, 4), "CMYK").save(root / "b" / "cmyk.jpg")
    Image.fromarray(noise(120, 64, 3)).save(root / "b" / "turned.jpg", exif=turned)
    Image.fromarray(noise(300, 10)).save(root / "b" / "wide.tif")
    return root


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of which three fill a shard of 1 MiB without compression; three of them are broken."""
    root = tmp_path_factory.mktemp("many")
    for number in range(COUNT):
        path = root / f"{number:02d}.png"
        if number in (0, 6, COUNT - 1):
            path.write_bytes(b"no image")
        else:
            Image.fromarray(noise(400, 300, 3)).save(path)
    return root


def pack_many(source: Path, folder: Path, **options: Any) -> Any:
    how: dict[str, Any] = {"size": 0, "format": "raw", "shard_mib": 1, "workers": 0}
    return pack(str(source), folder, options=PackOptions(**how | options))


@pytest.fixture(scope="module")
def whole(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every other way of packing `many` must equal."""
    folder = tmp_path_factory.mktemp("whole")
    pack_many(many, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupt_at(monkeypatch: pytest.MonkeyPatch, index: int, error: BaseException | None = None) -> None:
    """The image of this index does not come."""
    image = FolderSource.image

    def raising(self: FolderSource, at: int) -> Image.Image:
        if at == index:
            raise error or KeyboardInterrupt
        return image(self, at)

    monkeypatch.setattr(FolderSource, "image", raising)


# what is in it


def test_raw_holds_the_very_pixels_with_names_and_in_order(photos: Path, tmp_path: Path) -> None:
    packed = pack(str(photos), tmp_path, options=PackOptions(size=64, format="raw", workers=0))
    before, after = open_source(str(photos)), open_source(str(tmp_path))
    names = ["a/large.jpg", "a/small.png", "b/c/sixteen.png", "b/cmyk.jpg", "b/turned.jpg", "b/wide.tif"]
    assert [after.path(index) for index in range(len(after))] == names
    sizes = [after.image(index).size for index in range(len(after))]
    assert sizes == [(85, 64), (40, 30), (64, 85), (64, 64), (64, 120), (300, 10)]  # the turned one stands upright
    for index in range(len(after)):
        expected = np.asarray(shrunk(before.image(index), 64))
        assert np.array_equal(np.asarray(after.image(index)), expected), names[index]
    assert packed.fingerprint == after.fingerprint
    assert (packed.images, packed.broken, packed.read) == (6, 0, 6)


def test_jpeg_is_close(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise(5, 4, 3)).resize((100, 80), Image.Resampling.BICUBIC).save(tmp_path / "photos" / "a.png")
    pack(str(tmp_path / "photos"), tmp_path / "packed", options=PackOptions(size=64, workers=0))
    expected = np.asarray(shrunk(open_source(str(tmp_path / "photos")).image(0), 64)).astype(float)
    seen = open_source(str(tmp_path / "packed")).image(0)
    assert np.abs(np.asarray(seen) - expected).mean() < 2


def test_small_images_and_size_0_stay_as_they_are() -> None:
    image = Image.fromarray(noise(41, 30, 3))
    assert shrunk(image, 30) is image
    assert shrunk(image, 0) is image
    assert shrunk(image, 29).size == (40, 29)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    grey = np.asarray(shrunk(Image.fromarray(stripes), 16))[:, 2:-2]
    assert np.abs(grey.astype(int) - 127).max() < 12


def test_statistics_are_those_of_numpy(many: Path, whole: Path) -> None:
    packed, source = read_packed(whole), open_source(str(whole))
    pixels = np.concatenate([np.asarray(source.image(i)).reshape(-1, 3) for i in range(len(source))]) / 255
    assert packed.pixels == len(pixels)
    np.testing.assert_allclose(packed.mean, pixels.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(packed.std, pixels.std(axis=0), atol=1e-6)


def test_class_folders_become_classes(photos: Path, tmp_path: Path) -> None:
    pack(str(photos), tmp_path, options=PackOptions(size=64, workers=0))
    before, after = open_labelled(str(photos)), open_labelled(str(tmp_path))
    assert after.names == before.names == ("a", "b")
    assert after.targets.tolist() == before.targets.tolist() == [0, 0, 1, 1, 1, 1]


def test_a_folder_without_classes_has_no_labels(whole: Path) -> None:
    with pytest.raises(UserError, match="no evident column of labels"):
        open_labelled(str(whole))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Six rows as parquet, the third broken; pictures under another name, classes, texts, masks."""

    def png(red: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (6, 4), (red, 1, 2)).save(buffer, "PNG")
        return buffer.getvalue()

    cells = [{"bytes": b"no" if red == 2 else png(red), "path": f"/home/ada/{red}.png"} for red in range(6)]
    kinds = {
        "text": datasets.Value("string"),
        "picture": datasets.Image(),
        "kind": datasets.ClassLabel(names=["cat", "dog"]),
        "boxes": datasets.List(datasets.Value("int32")),
        "raw": datasets.Value("binary"),
    }
    columns = {
        "text": [f"text {red}" for red in range(6)],
        "picture": cells,
        "kind": [0, 1, 0, 1, 1, 0],
        "boxes": [[red] * red for red in range(6)],
        "raw": [b"x"] * 6,
    }
    folder = tmp_path / "table"
    folder.mkdir()
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(folder / "train.parquet")
    return folder


def test_a_table_keeps_its_columns(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    packed = pack(str(table), folder, column="picture", options=PackOptions(format="raw", workers=0))
    rows = datasets.load_dataset(str(folder), split="train")
    assert list(rows.features) == ["image", "text", "kind", "boxes"]
    assert rows.features["kind"] == datasets.ClassLabel(names=["cat", "dog"])
    assert [row["image"].getpixel((0, 0))[0] for row in rows] == [0, 1, 3, 4, 5]
    assert rows["text"][:] == [f"text {red}" for red in (0, 1, 3, 4, 5)]
    assert rows["boxes"][:] == [[red] * red for red in (0, 1, 3, 4, 5)]
    labelled = open_labelled(str(folder))
    assert (labelled.names, labelled.targets.tolist()) == (("cat", "dog"), [0, 1, 1, 1, 0])
    assert packed.broken == 1
    assert json.loads((folder / BROKEN).read_text())["name"] == "row 2"
    assert [labelled.images.path(index) for index in range(2)] == ["0.png", "1.png"]  # no folder of this machine


def test_it_is_an_ordinary_data_set(whole: Path, tmp_path: Path) -> None:
    rows = datasets.load_dataset(str(whole))["train"]
    ours = open_source(str(whole))
    assert len(rows) == COUNT - 3
    assert np.array_equal(np.asarray(rows[5]["image"].convert("RGB")), np.asarray(ours.image(5)))
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    assert undecoded[0]["image"]["path"] == "01.png"
    (tmp_path / "other").mkdir()
    rows.to_parquet(tmp_path / "other" / "train.parquet")  # as push_to_hub does
    assert open_source(str(tmp_path / "other")).fingerprint == ours.fingerprint


def test_it_is_read_where_it_lies(whole: Path, cache: Path) -> None:
    assert len(open_source(str(whole))) == COUNT - 3
    assert list(cache.rglob("*.arrow")) == []


def test_packed_images_are_packed_again(whole: Path, tmp_path: Path) -> None:
    assert pack(str(whole), tmp_path, options=PackOptions(size=32, workers=0)).images == COUNT - 3
    assert open_source(str(tmp_path)).path(0) == "01.png"


def test_broken_images_are_listed_and_left_out(whole: Path) -> None:
    packed = verify(whole)
    assert (packed.images, packed.broken, packed.read) == (COUNT - 3, 3, COUNT)
    assert len(packed.shards) == 4
    listed = [json.loads(line) for line in (whole / BROKEN).read_text().splitlines()]
    assert [entry["name"] for entry in listed] == ["00.png", "06.png", "13.png"]
    assert all("not a readable" in entry["reason"] for entry in listed)
    names = [open_source(str(whole)).path(index) for index in range(COUNT - 3)]
    assert names == [f"{number:02d}.png" for number in range(COUNT) if number not in (0, 6, 13)]


# nothing but the source and the settings decides the bytes


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_byte(many: Path, whole: Path, tmp_path: Path, workers: int) -> None:
    pack_many(many, tmp_path, workers=workers)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("index", [1, 7, 12])
def test_an_interruption_changes_no_byte(
    many: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(packing, "_TASK", 1)
        interrupt_at(patched, index)
        with pytest.raises(KeyboardInterrupt):
            pack_many(many, tmp_path)
    assert not (tmp_path / writer.STAGING).exists()
    interrupted = read_packed(tmp_path)
    assert (interrupted.read if interrupted else 0) <= index
    assert pack_many(many, tmp_path).complete
    assert contents(tmp_path) == contents(whole)


def test_ctrl_c_with_workers(many: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts with "&"
    commit = packing._Job._commit

    def commit_and_interrupt(self: Any, read: int) -> None:
        commit(self, read)
        if len(self._packed.shards) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(packing._Job, "_commit", commit_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            pack_many(many, tmp_path, workers=2)
    signal.signal(signal.SIGINT, before)
    assert len(read_packed(tmp_path).shards) == 2
    pack_many(many, tmp_path, workers=1)
    assert contents(tmp_path) == contents(whole)


def test_a_kill_in_the_middle_of_a_commit(
    many: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk but not in the manifest is made anew."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000.arrow").write_bytes(b"half")
    (tmp_path / writer.STAGING).write_bytes(b"half")
    with monkeypatch.context() as patched:
        patched.setattr(packing, "_TASK", 1)
        interrupt_at(patched, 8)
        with pytest.raises(KeyboardInterrupt):
            pack_many(many, tmp_path)
    count = len(read_packed(tmp_path).shards)
    (tmp_path / "data" / f"train-{count:05d}.arrow").write_bytes(b"half")
    with (tmp_path / BROKEN).open("a") as file:
        file.write('{"name": "of the commit that was killed", "reason": ""}\n')
    pack_many(many, tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_what_is_complete_is_left_as_it_is(many: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(whole)
    interrupt_at(monkeypatch, 1)
    assert pack_many(many, whole) == read_packed(whole)
    assert contents(whole) == before


def test_each_file_and_its_folder_are_written_through(many: Path, tmp_path: Path, sync: list[Path]) -> None:
    shards = len(pack_many(many, tmp_path).shards)
    # with each of them the list of broken images and the manifest, and that once more at the end
    assert len(sync) == 2 * (3 * shards + 1)


# what goes wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 32}, "size 0, not 32"),
        ({"format": "jpeg", "quality": 90}, "format raw, not jpeg, quality None, not 90"),
        ({"shard_mib": 2}, "shard_mib 1, not 2"),
    ],
)
def test_other_arguments_are_refused(many: Path, whole: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        pack_many(many, whole, **options)
    assert refused.value.code == MISTAKE


def test_how_images_are_decoded_cannot_change_within_a_packing(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(packing, "_TASK", 1)
        interrupt_at(patched, 8)
        with pytest.raises(KeyboardInterrupt):
            pack_many(many, tmp_path)
    with pytest.raises(UserError, match="color_profile convert, not ignore"):
        pack_many(many, tmp_path, decoding=DecodeOptions(color_profile="ignore"))
    with pytest.raises(UserError, match=r"max_pixels \d+, not 1000000"):
        pack_many(many, tmp_path, decoding=DecodeOptions(max_pixels=10**6))
    pack_many(many, tmp_path)


@pytest.mark.parametrize("complete", [True, False])
def test_packings_older_than_the_choice_of_profiles(
    complete: bool, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ignored profiles: what is complete stays valid, and what goes on goes on so."""
    ignoring = DecodeOptions(color_profile="ignore")
    with monkeypatch.context() as patched:
        if not complete:
            patched.setattr(packing, "_TASK", 1)
            interrupt_at(patched, 8)
        with contextlib.suppress(KeyboardInterrupt):
            pack_many(many, tmp_path, decoding=ignoring)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    del manifest["settings"]["color_profile"], manifest["settings"]["max_pixels"]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    if complete:
        assert pack_many(many, tmp_path).complete
    else:
        with pytest.raises(UserError, match="color_profile ignore, not convert"):
            pack_many(many, tmp_path)
    assert pack_many(many, tmp_path, decoding=ignoring).complete


def test_profiles_are_converted_while_packing(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"xXYZ").replace(b"gXYZ", b"rXYZ").replace(b"xXYZ", b"gXYZ")  # red is green
    Image.new("RGB", (40, 30), (200, 100, 50)).save(tmp_path / "photos" / "a.png", icc_profile=swapped)
    colours = []
    for choice in ("convert", "ignore"):
        options = PackOptions(size=0, format="raw", workers=0, decoding=DecodeOptions(color_profile=choice))
        pack(str(tmp_path / "photos"), tmp_path / choice, options=options)
        colours.append(open_source(str(tmp_path / choice)).image(0).getpixel((0, 0)))
    assert colours == [(100, 200, 50), (200, 100, 50)]


def test_a_changed_source_is_refused(photos: Path, whole: Path) -> None:
    with pytest.raises(UserError, match=r"packed from other images .* holds now, 14 then and 6 now"):
        pack_many(photos, whole)


def test_another_encoder_does_not_go_on(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(packing, "_TASK", 1)
        interrupt_at(patched, 8)
        with pytest.raises(KeyboardInterrupt):
            pack_many(many, tmp_path)
    monkeypatch.setattr(Image, "__version__", "1.0")
    with pytest.raises(UserError, match=r"begun with pillow \d+.*, not 1.0"):
        pack_many(many, tmp_path)


def test_a_folder_with_something_else_is_refused(many: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds thesis.tex and no packed.json"):
        pack_many(many, tmp_path)


def test_one_inside_the_other_is_refused(many: Path) -> None:
    for folder in (many, many / "packed", many.parent):
        with pytest.raises(UserError, match="inside each other"):
            pack_many(many, folder)


def test_two_at_a_time_are_refused(many: Path, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="being packed by another process"):
            pack_many(many, tmp_path)
    finally:
        os.close(descriptor)


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"bad")
    for _ in range(2):
        with pytest.raises(UserError, match=r"none of the 1 images .* the first: a\.png: not a readable"):
            pack(str(tmp_path / "bad"), tmp_path / "packed", options=PackOptions(workers=0))


@pytest.mark.parametrize("place", ["write", "sync"])
def test_a_full_disk_leaves_the_whole_shards(
    many: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*arguments: Any) -> Any:
        if (tmp_path / MANIFEST).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    where, name = (writer._HashingFile, "write") if place == "write" else (files, "flush")
    original = getattr(where, name)
    with monkeypatch.context() as patched:
        patched.setattr(where, name, full)
        with pytest.raises(UserError, match="No space left on device: make room, the same command goes on") as error:
            pack_many(many, tmp_path)
    assert error.value.code == CANNOT_WRITE
    assert read_packed(tmp_path).shards
    assert not (tmp_path / writer.STAGING).exists()
    pack_many(many, tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_a_folder_that_cannot_be_made(many: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file: .*: name another folder"):
        pack_many(many, tmp_path / "file")


@pytest.fixture
def own(many: Path, tmp_path: Path) -> Path:
    """As `whole`, to be damaged."""
    pack_many(many, tmp_path / "own")
    return tmp_path / "own"


def test_a_damaged_shard_is_found(own: Path) -> None:
    path = own / "data" / "train-00001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"1 of 4 shards of .* damaged \(data/train-00001.arrow\)"):
        verify(own)


@pytest.mark.parametrize("size", [None, 100])
def test_a_lost_or_shortened_shard_is_found_by_all(many: Path, own: Path, size: int | None) -> None:
    path = own / "data" / "train-00002.arrow"
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)
    for attempt in (verify, lambda folder: open_source(str(folder)), lambda folder: pack_many(many, folder)):
        with pytest.raises(UserError, match=r"train-00002.arrow"):
            attempt(own)


def test_what_is_not_finished_is_no_source(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_TASK", 1)
    interrupt_at(monkeypatch, 8)
    with pytest.raises(KeyboardInterrupt):
        pack_many(many, tmp_path)
    with pytest.raises(UserError, match=r"its packing was interrupted: the same swin-mim prepare command"):
        open_source(str(tmp_path))
    with pytest.raises(UserError, match="2 shards are whole, but the packing was interrupted after 8 of 14 images"):
        verify(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"shards": [{"file": "x"}]}'])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / MANIFEST} cannot be read")):
        verify(tmp_path)


def test_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no packed.json: there are no packed images"):
        verify(tmp_path)


@pytest.mark.parametrize("options", [{"config": "x"}, {"split": "test"}, {"column": "label"}])
def test_options_that_it_does_not_have(whole: Path, options: dict[str, str]) -> None:
    with pytest.raises(UserError, match=next(iter(options.values()))):
        open_source(str(whole), **options)


def test_raw_is_read_like_any_other_image(whole: Path) -> None:
    content, _ = open_source(str(whole))._cell(0)
    assert content.startswith(b"BM")
    assert decode_image(content).size == (400, 300)


def test_workers_end_with_a_process_that_was_killed(many: Path, tmp_path: Path) -> None:
    """One waits for somebody to take its images, which are more than a pipe holds."""
    code = (
        "import sys, time; from pathlib import Path; from swin_mim.data.packing import pack as packing\n"
        "packing._Job._add = lambda *_: print('ready', flush=True) or time.sleep(100)\n"
        "packing.pack(sys.argv[1], Path(sys.argv[2]), options=packing.PackOptions(size=0, format='raw', workers=2))"
    )
    command = [sys.executable, "-c", code, str(many), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.kill()
        process.communicate(timeout=30)  # until the last of them has let go of the pipe


# rasters


def scene(number: int) -> np.ndarray:
    """(60, 80, 5), its values far from 0, and gaps in some."""
    values = RNG.integers(20000, 20100 + number, (60, 80, 5)).astype(np.uint16)
    if number % 2:
        values[: 10 + number, 20:50] = 0
    return values


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen of five channels, of which some pixels are 0, which marks gaps; two of them broken."""
    root = tmp_path_factory.mktemp("scenes")
    for number in range(COUNT):
        np.save(root / f"{number:02d}.npy", scene(number))
    (root / "06.npy").write_bytes(b"broken")
    np.save(root / "09.npy", np.zeros((60, 80, 5), np.uint16))
    return root


def pack_scenes(source: Path, folder: Path, **options: Any) -> Any:
    asked: dict[str, Any] = {"bands": ChannelSpec(5, nodata=0)} | options
    how = {name: asked.pop(name, usual) for name, usual in (("size", 32), ("shard_mib", 1), ("workers", 0))}
    return pack(str(source), folder, **asked, options=PackOptions(**how))


@pytest.fixture(scope="module")
def packed_scenes(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed_scenes")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(packing, "_TASK", 1)
        pack_scenes(scenes, folder, size=0)
    return folder


def test_packed_rasters_are_the_very_ones(scenes: Path, packed_scenes: Path) -> None:
    before = open_source(str(scenes), bands=ChannelSpec(5, nodata=0))
    after = open_source(str(packed_scenes), bands=ChannelSpec(5))
    kept = [index for index in range(COUNT) if index not in (6, 9)]
    assert len(after) == len(kept)
    for number, index in enumerate(kept):
        expected, seen = before.image(index), after.image(number)
        assert seen.values.dtype == np.uint16
        there = np.ones((60, 80), bool) if expected.valid is None else expected.valid
        assert (seen.valid is None) == (expected.valid is None)
        np.testing.assert_array_equal(seen.values[there], expected.values[there])
        assert seen.valid is None or np.array_equal(seen.valid, there)
    listed = [json.loads(line)["reason"] for line in (packed_scenes / BROKEN).read_text().splitlines()]
    assert listed[1] == "no pixel of it is valid"
    one = open_source(str(packed_scenes), bands=ChannelSpec(2, ("4", "1"))).image(1)
    np.testing.assert_array_equal(one.values, after.image(1).values[:, :, [3, 0]])
    assert one.valid is not None


def test_statistics_of_rasters_are_those_of_numpy(scenes: Path, packed_scenes: Path) -> None:
    source = open_source(str(scenes), bands=ChannelSpec(5, nodata=0))
    images = [source.image(index) for index in range(COUNT) if index not in (6, 9)]
    pixels = np.concatenate([i.values.reshape(-1, 5) if i.valid is None else i.values[i.valid] for i in images])
    said = packed_rasters(packed_scenes)
    assert said is not None
    assert said.channels == ("1", "2", "3", "4", "5")
    np.testing.assert_allclose(said.mean, pixels.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(said.std, pixels.std(axis=0), rtol=1e-5)
    manifest = read_packed(packed_scenes)
    assert manifest.rasters["dtypes"] == {"uint16": 12}
    assert manifest.rasters["statistics"]["valid"] == len(pixels)
    assert manifest.rasters["statistics"]["greatest"] == pixels.max(axis=0).tolist()
    assert manifest.pixels == 12 * 60 * 80
    assert verify(packed_scenes).fingerprint == open_source(str(packed_scenes), bands=ChannelSpec(5)).fingerprint


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("index", [None, 8])
def test_neither_workers_nor_an_interruption_change_a_byte_of_rasters(
    scenes: Path,
    packed_scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    index: int | None,
) -> None:
    if index is not None:
        content = FolderSource.content

        def raising(self: FolderSource, at: int) -> bytes:
            if at == index:
                raise KeyboardInterrupt
            return content(self, at)

        with monkeypatch.context() as patched:
            patched.setattr(packing, "_TASK", 1)
            patched.setattr(FolderSource, "content", raising)
            patched.setattr(packing._Job, "_add", small_shards(packing._Job._add))
            with pytest.raises(KeyboardInterrupt):
                pack_scenes(scenes, tmp_path, size=0)
        assert read_packed(tmp_path).read in range(1, 9)
    with monkeypatch.context() as patched:
        if index is not None:
            patched.setattr(packing._Job, "_add", small_shards(packing._Job._add))
        pack_scenes(scenes, tmp_path, size=0, workers=workers)
    if index is None:
        assert contents(tmp_path) == contents(packed_scenes)
    else:
        ours, theirs = read_packed(tmp_path), read_packed(packed_scenes)
        assert (ours.mean, ours.std, ours.rasters) == (theirs.mean, theirs.std, theirs.rasters)
        assert ours.fingerprint == theirs.fingerprint


def small_shards(add: Any) -> Any:
    def adding(self: Any, index: int, row: Any) -> None:
        add(self, index, row)
        if self._shard is not None and self._shard.content > 2**16:
            self._commit(index + 1)

    return adding


def test_other_settings_of_rasters_are_refused(scenes: Path, packed_scenes: Path) -> None:
    with pytest.raises(UserError, match=r"was packed with nodata 0, not 7"):
        pack_scenes(scenes, packed_scenes, size=0, bands=ChannelSpec(5, nodata=7))
    with pytest.raises(UserError, match=r"data.nodata 7 cannot be used on .*, which was packed with nodata 0"):
        open_source(str(packed_scenes), bands=ChannelSpec(5, nodata=7))
    assert len(open_source(str(packed_scenes), bands=ChannelSpec(5, nodata=0))) == 12
    with pytest.raises(UserError, match=r"packed images of 5 channels \(1, 2, 3, 4, 5\): name those to be"):
        open_source(str(packed_scenes))
    with pytest.raises(UserError, match=r"model.in_channels is 4"):
        open_source(str(packed_scenes), bands=ChannelSpec(4))


def test_rasters_with_classes_and_packed_again(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "source" / "ab"[number % 2] / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, scene(number))
    pack_scenes(tmp_path / "source", tmp_path / "packed")
    rows = datasets.load_dataset(str(tmp_path / "packed"), split="train")
    assert rows.features["label"].names == ["a", "b"]
    assert np.load(io.BytesIO(rows[0]["image"]["bytes"])).shape[2] in (5, 6)
    assert rows[0]["image"]["path"] == "a/0.npy"
    pack_scenes(tmp_path / "packed", tmp_path / "again", size=16, bands=ChannelSpec(2, ("2", "3")))
    assert packed_rasters(tmp_path / "again").channels == ("2", "3")
    assert open_source(str(tmp_path / "again"), bands=ChannelSpec(2)).image(3).values.shape[0] == 16


def test_a_stack_is_packed(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for image in "xyz":
        for channel in ("B02", "B03"):
            np.save(tmp_path / "source" / f"{image}_{channel}.npy", noise(50, 40, dtype=np.uint16))
    bands, stack = ChannelSpec(2, nodata=float("nan")), "{image}_{channel}.npy"
    pack_scenes(tmp_path / "source", tmp_path / "packed", bands=bands, stack=stack)
    assert pack_scenes(tmp_path / "source", tmp_path / "packed", bands=bands, stack=stack).images == 3
    source = open_source(str(tmp_path / "packed"), bands=bands, stack=stack)  # as it was packed: nothing to add
    assert (source.image(0).values.shape, source.channels) == ((32, 40, 2), ("B02", "B03"))


def test_packed_rasters_of_few_rows_keep_their_axes(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "source" / "a.npy", np.arange(13 * 9 * 30).reshape(13, 9, 30))  # 9 rows of 13 channels
    pack_scenes(tmp_path / "source", tmp_path / "packed", size=0, bands=ChannelSpec(13))
    image = open_source(str(tmp_path / "packed"), bands=ChannelSpec(13)).image(0)
    np.testing.assert_array_equal(np.moveaxis(image.values, -1, 0), np.arange(13 * 9 * 30).reshape(13, 9, 30))


def test_gaps_are_not_mixed_into_what_is_made_smaller() -> None:
    values = np.full((64, 48, 2), 1000, np.int16)
    valid = np.ones((64, 48), bool)
    values[10:40, :20], valid[10:40, :20] = -32768, False
    small = smaller_raster(Raster(values, valid), 12)
    assert small.values.shape == (16, 12, 2)
    assert small.valid is not None
    assert np.all(small.values[small.valid] == 1000)
    assert np.all(small.values[~small.valid] == 0)
    assert abs((~small.valid).mean() - (~valid).mean()) < 0.03
    floats = np.where(valid[..., None], np.float32(1e6), np.nan).repeat(2, axis=2)[:, :, :2]
    assert np.all(smaller_raster(Raster(floats, valid), 12).values[small.valid] == 1e6)


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"])
def test_made_smaller_are_means_of_what_was_there(kind: str) -> None:
    high = min(np.iinfo(kind).max, 2**62) if kind[0] != "f" else 6e4
    low = np.iinfo(kind).min // 2 if kind[0] == "i" else 0
    values = RNG.uniform(low, high, (40, 60, 3)).astype(kind)
    small = smaller_raster(Raster(values), 20).values
    assert (small.dtype, small.shape) == (values.dtype, (20, 30, 3))
    assert small.min() >= values.min()
    assert small.max() <= values.max()
    if kind not in ("i8", "u8"):  # of which a mean has no more than 53 bits
        full = np.full((40, 60, 1), values.max())
        np.testing.assert_allclose(smaller_raster(Raster(full), 20).values, values.max(), rtol=1e-15)
