"""Sources of rasters: folders, tables, stacks of files, anything with `content`, and what goes wrong at the start."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import ChannelSpec, Raster
from swin_mim.data.sources import folder
from swin_mim.data.sources.base import FileSource, Subset
from swin_mim.data.sources.multichannel import RasterSource, check_bands
from swin_mim.data.sources.open import open_source
from swin_mim.data.timing import Stopwatch, decoding
from swin_mim.errors import UserError

RNG = np.random.default_rng(0)


def npy(array: np.ndarray) -> bytes:
    np.save(buffer := io.BytesIO(), array)
    return buffer.getvalue()


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Twelve of four channels in folders, one of them broken."""
    for number in range(12):
        path = tmp_path / "scenes" / f"part{number % 2}" / f"{number:02d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(npy(np.full((8, 9, 4), number, np.int16)) if number != 4 else b"broken")
    (tmp_path / "scenes" / "readme.txt").write_text("no image")
    return tmp_path / "scenes"


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """Three images of the channels B02, B8A and SCL, in folders and with a coarser SCL."""
    for image in ("a/x_1", "a/x_2", "b/y"):
        for channel, side in (("B02", 8), ("B8A", 8), ("SCL", 4)):
            path = tmp_path / "stack" / f"{image}_{channel}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(npy(RNG.integers(1, 99, (side, side), dtype=np.uint16)))
    return tmp_path / "stack"


def test_a_folder(scenes: Path) -> None:
    source = open_source(str(scenes), bands=ChannelSpec(4, nodata=9))
    assert isinstance(source, RasterSource)
    assert (len(source), source.name(6)) == (12, "part1/01.npy")
    image = source.image(6)
    assert isinstance(image, Raster)
    assert (image.values.dtype, image.values.shape, image.valid) == (np.int16, (8, 9, 4), None)
    assert np.all(image.values == 1)
    with pytest.raises(BrokenImage, match="not a readable"):
        source.image(2)
    with pytest.raises(BrokenImage, match="no pixel of it is valid"):
        source.image(10)
    plain = open_source(str(scenes), bands=ChannelSpec(2, ("1", "4")))
    assert (plain.fingerprint, list(plain.inventory())) == (source.fingerprint, list(source.inventory()))


def test_its_parts(scenes: Path) -> None:
    training, heldout = open_source(str(scenes), bands=ChannelSpec(4)).split(1, 0)
    assert (len(training), len(heldout)) == (11, 1)
    for part in (training, heldout, Subset(training, [1, 0])):
        image = part.open(0)
        assert isinstance(image, Raster)
        assert np.array_equal(image.values, part.image(0).values)


def test_a_table(tmp_path: Path) -> None:
    contents = [npy(np.full((16, 15, 7), number, np.float32)) for number in range(3)]
    datasets.Dataset.from_dict({"image": contents}).to_parquet(tmp_path / "part.parquet")
    source = open_source(str(tmp_path), bands=ChannelSpec(7))
    assert [source.image(number).values[0, 0, 0] for number in range(3)] == [0, 1, 2]


def test_a_stack(stack: Path) -> None:
    source = open_source(str(stack), bands=ChannelSpec(2, mask="SCL"), stack="{image}_{channel}.npy")
    assert [source.name(index) for index in range(len(source))] == ["a/x_1", "a/x_2", "b/y"]
    image = source.image(1)
    expected = [np.load(stack / f"a/x_2_{name}.npy") for name in ("B02", "B8A")]
    np.testing.assert_array_equal(image.values, np.stack(expected, axis=-1))
    sizes = sum(path.stat().st_size for path in (stack / "b").iterdir())
    assert list(source.inventory())[2] == ("b/y", sizes)
    one = open_source(str(stack), bands=ChannelSpec(1, ("B8A",)), stack="{image}_{channel}.npy")
    np.testing.assert_array_equal(one.image(1).values[:, :, 0], expected[1])
    assert one.fingerprint != source.fingerprint
    # a coarse band is enlarged
    both = open_source(str(stack), bands=ChannelSpec(2, ("SCL", "B02")), stack="{image}_{channel}.npy").image(0)
    coarse = np.load(stack / "a/x_1_SCL.npy")
    np.testing.assert_array_equal(both.values[:, :, 0], coarse.repeat(2, 0).repeat(2, 1))


def test_names_of_channels_may_hold_what_parts_them(tmp_path: Path) -> None:
    for name in ("a_B_02", "a_B_03", "b_B_02", "b_B_03"):
        (tmp_path / f"{name}.npy").write_bytes(npy(np.full((4, 4), len(name), np.uint8)))
    source = open_source(str(tmp_path), bands=ChannelSpec(2, ("B_02", "B_03")), stack="{image}_{channel}.npy")
    assert [source.name(0), source.name(1)] == ["a", "b"]


def test_a_folder_for_each_image_or_each_channel(tmp_path: Path) -> None:
    for image in ("x/a", "x/b"):
        for channel in ("1", "2"):
            for path in (tmp_path / "images" / image / f"{channel}.npy", tmp_path / "channels" / channel / image):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_suffix(".npy").write_bytes(npy(np.full((4, 4), int(channel), np.uint8)))
    for kind, pattern in (("images", "{image}/{channel}.npy"), ("channels", "{channel}/{image}.npy")):
        source = open_source(str(tmp_path / kind), bands=ChannelSpec(2), stack=pattern)
        assert [source.name(0), source.name(1)] == ["x/a", "x/b"]
        assert source.image(1).values[0, 0].tolist() == [1, 2]


def test_a_missing_file_of_a_stack_breaks_its_image(stack: Path) -> None:
    (stack / "a/x_1_B8A.npy").unlink()
    source = open_source(str(stack), bands=ChannelSpec(3), stack="{image}_{channel}.npy")
    with pytest.raises(BrokenImage, match=r"its channel B8A is missing: there is no file a/x_1_B8A.npy"):
        source.image(0)
    assert source.image(1).values.shape == (8, 8, 3)


class Streamed(FileSource):
    """Anything that has the bytes of its images."""

    fingerprint = "f"

    def __len__(self) -> int:
        return 2

    def name(self, index: int) -> str:
        return f"row {index}"

    def inventory(self) -> Iterator[tuple[str, int]]:
        yield from [("row 0", 1), ("row 1", 1)]

    def content(self, index: int) -> bytes:
        return npy(np.full((3, 4, 5), index))


def test_any_source_with_content() -> None:
    source = RasterSource(Streamed(), ChannelSpec(3))
    check_bands(source, "streamed")
    assert source.image(1).values.shape == (4, 5, 3)


@pytest.mark.parametrize(("nodata", "told"), [(0, False), (-9999, False), (np.nan, False), (65535, True), (0.5, True)])
def test_a_value_that_no_pixel_can_have_is_told(
    scenes: Path, caplog: pytest.LogCaptureFixture, nodata: float, told: bool
) -> None:
    open_source(str(scenes), bands=ChannelSpec(4, nodata=nodata))
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "left out" not in text] == [
        f"data.nodata {nodata} is no int16, which the pixels of part0/00.npy are: it marks no gap there"
    ] * told


def test_reading_is_told_from_decoding(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = folder.read_file

    def slow(*arguments: Any) -> bytes:
        time.sleep(0.05)
        return read(*arguments)

    monkeypatch.setattr(folder, "read_file", slow)
    source = open_source(str(scenes), bands=ChannelSpec(4))
    watch = Stopwatch()
    with decoding():
        source.image(0)
    times = watch.passed()
    assert times.read > 0.045 > times.decode


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (
            ChannelSpec(13),
            r"part0/00.npy: it has 4 channels \(1, 2, 3, 4\) and model.in_channels is 13: set model.in_chan",
        ),
        (ChannelSpec(2), r"name 2 of them in data.channels, or set model.in_channels 4"),
        (ChannelSpec(1, ("B02",)), "part0/00.npy: it has no channel 'B02': its channels are 1, 2, 3, 4"),
        (ChannelSpec(4, mask="SCL"), "it has no channel 'SCL'"),
        (ChannelSpec(3, ("1", "2")), "data.channels names 2 channels and model.in_channels is 3"),
        (ChannelSpec(2, ("1", "2"), mask="2"), "data.mask_channel '2' is one of data.channels"),
    ],
)
def test_a_wrong_choice_is_known_at_once(scenes: Path, bands: ChannelSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(str(scenes), bands=bands)


@pytest.mark.parametrize(
    ("bands", "pattern", "message"),
    [
        (
            ChannelSpec(2),
            "{image}-{channel}.npy",
            r"matches none of the 9 image files in .*, such as a/x_1_B02.npy, a/",
        ),
        (ChannelSpec(1, ("B03",)), "{image}_{channel}.npy", r"no file of channel 'B03' .*: there are B02, B8A, SCL"),
        (ChannelSpec(2), "{image}_{channel}.npy", r"a/x_1: it has 3 channels \(B02, B8A, SCL\)"),
        (ChannelSpec(2), "{image}.npy", "must be the path of a file below data.source"),
        (ChannelSpec(2), "{image}{channel}.npy", "must be the path of a file below data.source"),
        (None, "{image}_{channel}.npy", "name these in data.channels"),
    ],
)
def test_wrong_stacks(stack: Path, bands: ChannelSpec | None, pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(str(stack), bands=bands, stack=pattern)


def test_without_bands_nothing_changes(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no .jpg"):
        open_source(str(scenes))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (9, 7)).save(tmp_path / "photos" / "a.png")
    assert open_source(str(tmp_path / "photos")).image(0).size == (9, 7)
    eight = open_source(str(tmp_path / "photos"), bands=ChannelSpec(3)).image(0)
    assert (eight.values.dtype, eight.values.shape) == (np.uint8, (7, 9, 3))


def test_broken_images_at_the_start_are_a_matter_of_the_loader(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.npy").write_bytes(b"broken")
    assert len(open_source(str(tmp_path), bands=ChannelSpec(4))) == 9
