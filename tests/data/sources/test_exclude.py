"""Images that a list leaves out: of every source the others are left, each with its pixels and its name."""

import io
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.dense.masks import ClassNumbers
from swin_mim.data.dense.pairs import PairSource
from swin_mim.data.packing.pack import PackOptions, pack
from swin_mim.data.sources.base import Source, Subset
from swin_mim.data.sources.multichannel import RasterSource
from swin_mim.data.sources.open import open_source
from swin_mim.data.sources.tables import TableSource
from swin_mim.data.streaming.source import CacheOptions, open_streamed
from swin_mim.errors import UserError
from swin_mim.evaluation.dense.mask_files import mask_stems

COUNT = 30
OUT = [0, 3, 4, 17, 29]
KEPT = [number for number in range(COUNT) if number not in OUT]

Open = Callable[..., Source]


def png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (red, 1, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def red(source: Source, index: int) -> int:
    image = source.image(index)
    return int((np.asarray(image) if isinstance(image, Image.Image) else image.values)[0, 0, 0])


def folder_of(root: Path, numbers: list[int]) -> str:
    for number in numbers:
        path = root / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return str(root)


def in_a_folder(root: Path) -> Open:
    spec = folder_of(root / "folder", list(range(COUNT)))
    return lambda **options: open_source(spec, **options)


def as_rasters(root: Path) -> Open:
    spec = folder_of(root / "folder", list(range(COUNT)))
    return lambda **options: open_source(spec, bands=ChannelSpec(2, ("1", "2")), **options)


def as_stacks(root: Path) -> Open:
    (root / "stacks").mkdir()
    for number in range(COUNT):
        for channel in "xy":
            np.save(root / "stacks" / f"{number:02}_{channel}.npy", np.full((4, 6), number, np.uint8))
    bands = ChannelSpec(2, ("x", "y"))
    return lambda **options: open_source(str(root / "stacks"), bands=bands, stack="{image}_{channel}.npy", **options)


def in_a_table(root: Path) -> Open:
    features = datasets.Features({"image": datasets.Image()})
    cells = [{"bytes": png(number), "path": f"/far/{number:02}.png"} for number in range(COUNT)]
    # as a table of other rows, so that the place in its files is not that in the table
    table = datasets.Dataset.from_dict({"image": [*cells[::-1], *cells]}, features=features)
    table.select(range(2 * COUNT - 1, COUNT - 1, -1)).select(range(COUNT - 1, -1, -1)).save_to_disk(root / "table")
    return lambda **options: open_source(str(root / "table"), **options)


def packed(root: Path) -> Open:
    spec = folder_of(root / "folder", list(range(COUNT)))
    pack(spec, root / "packed", options=PackOptions(format="raw"))
    return lambda **options: open_source(str(root / "packed"), **options)


def in_tars(root: Path) -> Open:
    (root / "tars").mkdir()
    for shard in range(3):
        with tarfile.open(root / "tars" / f"{shard}.tar", "w") as tar:
            for number in range(10 * shard, 10 * shard + 10):
                info = tarfile.TarInfo(f"{number:02}.png")
                info.size = len(png(number))
                tar.addfile(info, io.BytesIO(png(number)))
    cache = CacheOptions(str(root / "cache"), 0.01)
    return lambda **options: open_streamed(str(root / "tars"), cache=cache, shards_at_once=2, **options)


SOURCES = [in_a_folder, as_rasters, as_stacks, in_a_table, packed, in_tars]


def write_list(path: Path, names: list[str]) -> str:
    path.write_text("".join(f"{name}\n" for name in names))
    return str(path)


def numbered(source: Source) -> list[int]:
    """What each image shows; the shards of a stream are brought first."""
    files: Any = getattr(source, "source", source)
    if hasattr(files, "ensure"):
        files.ensure(range(len(source)))
    return [red(source, index) for index in range(len(source))]


@pytest.mark.parametrize("make", SOURCES)
def test_the_others_are_left(tmp_path: Path, make: Callable[[Path], Open]) -> None:
    """Whatever the source: named by path or by place, and what is left has its own pixels, names and fingerprint."""
    open_it = make(tmp_path)
    whole = open_it()
    order = numbered(whole)
    called = [whole.path(index) or whole.name(index) for index in range(COUNT)]
    by_name = [whole.name(index) for index in range(COUNT)]
    for names in (called, by_name):
        chosen = [names[order.index(number)] for number in OUT]
        left = open_it(exclude=write_list(tmp_path / "list.txt", chosen))
        assert numbered(left) == [number for number in order if number in KEPT]
        assert [left.path(index) or left.name(index) for index in range(len(left))] == [
            name for name, number in zip(called, order, strict=True) if number in KEPT
        ]
        assert left.fingerprint != whole.fingerprint
    # the order of the list, and names that come twice, mean nothing
    again = open_it(exclude=write_list(tmp_path / "list.txt", [*chosen[::-1], chosen[0], ""]))
    assert again.fingerprint == left.fingerprint
    other = open_it(exclude=write_list(tmp_path / "list.txt", chosen[1:]))
    assert other.fingerprint != left.fingerprint
    training, heldout = left.split(2, seed=0)
    assert sorted(numbered(training) + numbered(heldout)) == KEPT
    assert {training.order(7).index(position) for position in range(len(training))} == set(range(len(training)))


def test_a_file_that_is_left_out_might_as_well_not_be_there(tmp_path: Path) -> None:
    """A run whose images were left out goes on once their files are deleted."""
    folder = folder_of(tmp_path / "all", list(range(COUNT)))
    fewer = open_source(folder_of(tmp_path / "fewer", KEPT))
    names = [f"{'ab'[number % 2]}/{number:02}.png" for number in OUT]
    left = open_source(folder, exclude=write_list(tmp_path / "list.txt", names))
    assert left.fingerprint == fewer.fingerprint
    assert list(left.inventory()) == list(fewer.inventory())


def test_an_inventory_names_what_is_left(tmp_path: Path) -> None:
    whole = in_a_table(tmp_path)
    left = whole(exclude=write_list(tmp_path / "list.txt", ["row 4", "00.png"]))
    assert [name for name, _ in left.inventory()] == [f"row {row}" for row in range(1, COUNT) if row != 4]


def test_an_image_of_other_channels_can_be_left_out(tmp_path: Path) -> None:
    """The first image is looked at for its channels, unless it is left out."""
    for name, channels in (("a", 1), ("b", 6), ("c", 6)):
        np.save(tmp_path / f"{name}.npy", np.zeros((20, 24, channels), np.uint8))
    bands = ChannelSpec(6)
    with pytest.raises(UserError, match=r"a\.npy"):
        open_source(str(tmp_path), bands=bands)
    left = open_source(str(tmp_path), bands=bands, exclude=write_list(tmp_path / "list.txt", ["a.npy"]))
    assert [left.name(index) for index in range(2)] == ["b.npy", "c.npy"]


def test_names_that_are_not_there_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(tmp_path / "folder", list(range(COUNT)))
    caplog.set_level(logging.INFO)
    file = write_list(tmp_path / "list.txt", ["a/00.png", "c/gone.png", "b/00.png"])
    assert len(open_source(folder, exclude=file)) == COUNT - 1
    assert f"data.exclude {file!r}: not in the data are 2 of its 3 names, the first 'c/gone.png'" in caplog.text
    assert f"data.exclude {file!r} leaves out 1 of 30 images" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"c/gone.png\n", r"not in the data is its name, the first 'c/gone.png': write names .* such as 'a/00.png'"),
        (b"x\ny\n", r"not in the data are 2 of its 2 names, the first 'x'"),
        (b"\n \n".replace(b" ", b""), r"names no image: leave it out"),
        (b"\xff\xfea", r"is no UTF-8 text"),
        (None, r"cannot be read: No such file"),
        ("".join(f"{'ab'[n % 2]}/{n:02}.png\r\n" for n in range(COUNT)).encode(), r"names all of the 30 images"),
    ],
)
def test_a_list_that_cannot_be_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    folder = folder_of(tmp_path / "folder", list(range(COUNT)))
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_source(folder, exclude=str(tmp_path / "list.txt"))


def test_channels_of_shards_are_those_of_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as tar:
        for number, mode in enumerate(("L", "RGB", "RGB")):
            content = io.BytesIO()
            Image.new(mode, (6, 4)).save(content, "PNG")
            info = tarfile.TarInfo(f"{number:02}.png")
            info.size = content.tell()
            content.seek(0)
            tar.addfile(info, content)
    cache = CacheOptions(str(tmp_path / "cache"), 0.01)
    options = {"cache": cache, "bands": ChannelSpec(1, ("3",)), "shards_at_once": 1}
    with pytest.raises(UserError, match="no channel '3'"):
        open_streamed(str(tmp_path / "tars"), **options)
    name = open_streamed(str(tmp_path / "tars"), **(options | {"bands": None})).name(0)
    out = write_list(tmp_path / "list.txt", [name])
    assert len(open_streamed(str(tmp_path / "tars"), exclude=out, **options)) == 2


def test_paths_of_rows_are_told_without_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a part of a table with masks too: its cells hold all bytes."""
    source = in_a_table(tmp_path)()
    kept = np.delete(np.arange(COUNT), [0, 4])
    part = Subset(RasterSource(source.without(kept), ChannelSpec(3)), np.arange(9, 2, -1))
    pairs = PairSource(part, None, ClassNumbers(2))
    expected = [pairs.path(index) for index in range(len(pairs))]
    assert expected == [f"{kept[number]:02}.png" for number in range(9, 2, -1)]
    monkeypatch.setattr(TableSource, "_cell", None)
    assert list(pairs.each_path()) == expected
    assert pairs.find(expected) == {name: [index] for index, name in enumerate(expected)}
    assert mask_stems(pairs) == [name.removesuffix(".png") for name in expected]
