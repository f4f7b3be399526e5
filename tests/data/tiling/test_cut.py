"""Cutting scenes into tiles: which tiles there are, what is in them, and what an interruption leaves."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from swin_mim.data.decoding.multichannel import channel_names, decode_raster
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.sources.folder import FolderSource
from swin_mim.data.sources.open import open_source
from swin_mim.data.tiling import blocks
from swin_mim.data.tiling.cut import cut
from swin_mim.data.tiling.manifest import MANIFEST, Tiles
from swin_mim.data.tiling.options import TileOptions
from swin_mim.errors import CANNOT_WRITE, MISTAKE, UserError

H, W = 150, 230
RNG = np.random.default_rng(0)
SMOOTH = np.asarray(
    Image.fromarray(RNG.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((W, H), Image.Resampling.BICUBIC)
)
DEEP = SMOOTH.astype(np.uint16) * 200 + 1
SCALE, TIEPOINTS, KEYS, ASCII, METADATA, NODATA = 33550, 33922, 34735, 34737, 42112, 42113
KEY_VALUES = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32632)
GEO = [
    (SCALE, 12, 3, (10.0, 10.0, 0.0), True),
    (TIEPOINTS, 12, 6, (0.0, 0.0, 0.0, 5e5, 4.6e6, 0.0), True),
    (KEYS, 3, 16, KEY_VALUES, True),
    (ASCII, 2, 0, "WGS 84 / UTM zone 32N|", True),
]
BANDS = (
    '<GDALMetadata><Item name="DESCRIPTION" sample="0" role="description">B02</Item>'
    '<Item name="DESCRIPTION" sample="2" role="description">B04</Item></GDALMetadata>'
)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    (tmp_path / "scenes").mkdir()
    return tmp_path / "scenes"


def write_tiff(path: Path, picture: np.ndarray, *tags: Any, **options: Any) -> None:
    how: dict[str, Any] = {"tile": (32, 32), "compression": "zlib", "photometric": "minisblack"} | options
    tifffile.imwrite(path, picture, metadata=None, extratags=tags, planarconfig="contig", **how)


def cut_scenes(scenes: Path, folder: Path, **options: Any) -> Tiles:
    stacked = {name: options.pop(name) for name in ("bands", "stack") if name in options}
    how: dict[str, Any] = {"tile": 64, "overlap": 8, "workers": 0} | options
    return cut(str(scenes), folder, **stacked, options=TileOptions(**how))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tiles_of(folder: Path) -> list[str]:
    return sorted(name for name in contents(folder) if name != MANIFEST)


def place(name: str) -> tuple[int, int]:
    top, left = name.rsplit(".", 1)[0].rsplit("_", 2)[1:]
    return int(top), int(left)


def test_georeferenced_tiles_keep_all_that_the_scene_says(scenes: Path, tmp_path: Path) -> None:
    picture = DEEP.copy()
    picture[:5] = 0
    write_tiff(scenes / "a.tif", picture, *GEO, (METADATA, 2, 0, BANDS, True), (NODATA, 2, 0, "0", True))
    assert cut_scenes(scenes, tmp_path / "tiles").tiles == 3 * 4
    for name in tiles_of(tmp_path / "tiles"):
        (top, left), content = place(name), (tmp_path / "tiles" / name).read_bytes()
        image = decode_raster([(None, content)], ChannelSpec(3))
        expected = picture[top : top + 64, left : left + 64]
        valid = np.ones((64, 64), bool) if image.valid is None else image.valid
        assert np.array_equal(valid, expected[:, :, 0] != 0)
        assert np.array_equal(image.values[valid], expected[valid])
        assert image.values.dtype == np.uint16
        assert channel_names([(None, content)]) == ("B02", "2", "B04")
        with tifffile.TiffFile(tmp_path / "tiles" / name) as file:
            tags = file.pages[0].tags
            assert tags[TIEPOINTS].value == (0, 0, 0, 5e5 + 10 * left, 4.6e6 - 10 * top, 0)
            assert tags[SCALE].value == (10, 10, 0)
            assert tags[KEYS].value == KEY_VALUES
            assert tags[ASCII].value == "WGS 84 / UTM zone 32N|"
            assert tags[NODATA].value == "0"


def test_rgb_is_png_and_with_a_georeference_tiff_and_all_are_read_as_rgb(scenes: Path, tmp_path: Path) -> None:
    (scenes / "city").mkdir()
    Image.fromarray(SMOOTH).save(scenes / "city" / "a.png", icc_profile=b"profile")
    write_tiff(scenes / "city" / "b.tif", SMOOTH, *GEO, photometric="rgb")
    Image.fromarray(SMOOTH[:, :, 0]).save(scenes / "grey.png")
    tiles = cut_scenes(scenes, tmp_path / "tiles")
    assert tiles.suffixes() == {".png": 24, ".tif": 12}
    source = open_source(str(tmp_path / "tiles"))
    assert isinstance(source, FolderSource)
    assert (len(source), source.left_out) == (36, {})
    for index in range(len(source)):
        name = source.name(index)
        top, left = place(name)
        expected = SMOOTH[top : top + 64, left : left + 64]
        expected = expected if name.startswith("city/") else np.repeat(expected[:, :, :1], 3, axis=2)
        with Image.open(tmp_path / "tiles" / name) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), expected)
            assert image.info.get("icc_profile") == (b"profile" if "/a_" in name else None)


@pytest.mark.parametrize("format", ["lossless", "jpeg"])
def test_black_and_white_stays_so(format: str, scenes: Path, tmp_path: Path) -> None:
    """Tiles of 1-bit files are seen as their scenes are, also where white is 0."""
    white = SMOOTH[:, :, 0] > 120
    Image.fromarray(white).save(scenes / "a.png")
    for name, photometric in (("b", "minisblack"), ("c", "miniswhite")):
        tifffile.imwrite(scenes / f"{name}.tif", white, photometric=photometric, metadata=None)
    cut_scenes(scenes, tmp_path / "tiles", **{"format": "jpeg", "quality": 95} if format == "jpeg" else {})
    source = open_source(str(tmp_path / "tiles"))
    for index in range(len(source)):
        name = source.name(index)
        top, left = place(name)
        expected = np.asarray(open_source(str(scenes)).image("abc".index(name[0])))[top : top + 64, left : left + 64]
        seen = np.asarray(source.image(index)).astype(int)
        assert {0, 255} == set(np.unique(expected).tolist())
        assert np.abs(seen - expected).mean() < (20 if format == "jpeg" else 1e-9), name


def test_nodata_is_not_looked_for_in_what_says_where_pixels_are(scenes: Path, tmp_path: Path) -> None:
    opaque = np.full((H, W, 1), 255, np.uint8)
    Image.fromarray(np.dstack([SMOOTH.clip(1, 254), opaque])).save(scenes / "a.png")
    write_tiff(scenes / "b.tif", np.dstack([SMOOTH.clip(1, 254), opaque]))
    of_alpha = cut_scenes(scenes / "a.png", tmp_path / "alpha", nodata=255)
    of_mask = cut_scenes(scenes / "b.tif", tmp_path / "mask", nodata=255, mask_channel="4")
    for tiles in (of_alpha, of_mask):
        assert [(scene.tiles, scene.missing) for scene in tiles.scenes.values()] == [(12, 0)]


def test_jpeg_where_nothing_else_is_said(scenes: Path, tmp_path: Path) -> None:
    Image.fromarray(SMOOTH).save(scenes / "a.png")
    write_tiff(scenes / "b.tif", SMOOTH, *GEO, photometric="rgb")
    write_tiff(scenes / "c.tif", DEEP)
    tiles = cut_scenes(scenes, tmp_path / "tiles", format="jpeg", quality=90)
    assert tiles.suffixes() == {".jpg": 12, ".tif": 24}
    with tifffile.TiffFile(tmp_path / "tiles" / "b_00000_00000.tif") as file:
        assert file.pages[0].compression == 7
        assert file.pages[0].tags[SCALE].value == (10, 10, 0)
    with Image.open(tmp_path / "tiles" / "a_00056_00056.jpg") as image:
        assert np.abs(np.asarray(image).astype(int) - SMOOTH[56:120, 56:120]).mean() < 3
    assert np.array_equal(tifffile.imread(tmp_path / "tiles" / "c_00056_00056.tif"), DEEP[56:120, 56:120])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), [(0, 0)]),
        ((64, 120), [(0, 0), (0, 56)]),
        ((64, 121), [(0, 0), (0, 56), (0, 57)]),
        ((200, 40), [(0, 0), (56, 0), (112, 0), (136, 0)]),  # a strip: tiles are as wide as it is
        ((30, 20), [(0, 0)]),
    ],
)
def test_sizes(size: tuple[int, int], expected: list[tuple[int, int]], scenes: Path, tmp_path: Path) -> None:
    picture = RNG.integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(picture).save(scenes / "a.png")
    tiles = cut_scenes(scenes, tmp_path / "tiles")
    found = []
    for name in tiles_of(tmp_path / "tiles"):
        with Image.open(tmp_path / "tiles" / name) as image:
            found.append((*place(name), image.size))
    assert found == [(*start, (min(64, size[1]), min(64, size[0]))) for start in expected]
    assert tiles.scenes["a.png"].whole == (max(size) <= 64)


def test_what_is_not_larger_than_a_tile_stays_byte_for_byte(scenes: Path, tmp_path: Path) -> None:
    Image.fromarray(SMOOTH[:40, :50]).save(scenes / "a.JPEG", quality=50)
    np.save(scenes / "b.npy", SMOOTH[:40, :50])
    cut_scenes(scenes, tmp_path / "tiles")
    assert tiles_of(tmp_path / "tiles") == ["a_00000_00000.JPEG", "b_00000_00000.png"]
    assert (tmp_path / "tiles" / "a_00000_00000.JPEG").read_bytes() == (scenes / "a.JPEG").read_bytes()


def test_empty_tiles_are_left_out(scenes: Path, tmp_path: Path) -> None:
    picture = np.zeros((64, 256), np.int16) - 9999
    picture[:, 64:] = 7  # a single value
    picture[:, 128:192] = RNG.integers(0, 9, (64, 64))
    picture[:, 192:] = RNG.integers(0, 9, (64, 64))
    picture[:40, 192:] = -9999
    write_tiff(scenes / "a.tif", picture)
    whole = cut_scenes(scenes, tmp_path / "plain", overlap=0)  # nobody said what -9999 is
    assert (whole.tiles, whole.scenes["a.tif"].constant) == (2, 2)
    tiles = cut_scenes(scenes, tmp_path / "tiles", overlap=0, nodata=-9999)
    counts = tiles.scenes["a.tif"]
    assert (counts.tiles, counts.missing, counts.constant) == (1, 2, 1)
    assert tiles_of(tmp_path / "tiles") == ["a_00000_00128.tif"]
    with tifffile.TiffFile(tmp_path / "tiles" / "a_00000_00128.tif") as file:
        assert file.pages[0].tags[NODATA].value == "-9999"  # as whoever reads it has to know
    assert cut_scenes(scenes, tmp_path / "more", overlap=0, nodata=-9999, min_valid=0.3).tiles == 2


def test_masks_and_transparency(scenes: Path, tmp_path: Path) -> None:
    there = np.zeros((H, W), bool)
    there[:, 100:] = True
    with tifffile.TiffWriter(scenes / "a.tif") as writer:
        writer.write(SMOOTH, photometric="rgb", compression="zlib", metadata=None)
        writer.write(there, photometric="mask", subfiletype=4, compression="zlib", metadata=None)
    Image.fromarray(np.dstack([SMOOTH, there * np.uint8(255)])).save(scenes / "b.png")
    tiles = cut_scenes(scenes, tmp_path / "tiles", min_valid=0.1)
    assert tiles.broken == {}
    assert [(scene.tiles, scene.missing) for scene in tiles.scenes.values()] == [(9, 3), (9, 3)]
    at = slice(0, 64), slice(56, 120)
    image = decode_raster([(None, (tmp_path / "tiles" / "a_00000_00056.tif").read_bytes())], ChannelSpec(3))
    assert image.valid is not None
    assert np.array_equal(image.valid, there[at])
    assert np.array_equal(image.values, SMOOTH[at])
    with Image.open(tmp_path / "tiles" / "b_00000_00056.png") as picture:
        assert picture.mode == "RGBA"


def test_a_channel_as_mask(scenes: Path, tmp_path: Path) -> None:
    clear = np.zeros((H, W), np.uint16)
    clear[:, 120:] = 4
    write_tiff(scenes / "a.tif", np.dstack([DEEP, clear]))
    counts = cut_scenes(scenes, tmp_path / "tiles", mask_channel="4").scenes["a.tif"]
    assert (counts.tiles, counts.missing) == (6, 6)


def test_a_stack_becomes_tiles_of_all_channels(scenes: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiff(scenes / f"{name}_B02.tif", DEEP[:, :, 0], *GEO)
        write_tiff(scenes / f"{name}_B11.tif", DEEP[::2, ::2, 1], (NODATA, 2, 0, "0", True))
    (scenes / "b_B11.tif").unlink()
    stack = {"bands": ChannelSpec(2, ("B11", "B02")), "stack": "{image}_{channel}.tif"}
    tiles = cut_scenes(scenes, tmp_path / "tiles", **stack)
    assert tiles.broken == {"b": "a channel of it is missing: there is no file b_B11.tif"}
    expected = np.dstack([DEEP[::2, ::2, 1].repeat(2, 0).repeat(2, 1), DEEP[:, :, 0]])
    names = tiles_of(tmp_path / "tiles")
    assert len(names) == 12
    for name in names:
        (top, left), content = place(name), (tmp_path / "tiles" / name).read_bytes()
        image = decode_raster([(None, content)], ChannelSpec(2, ("B11", "B02")))
        assert np.array_equal(image.values, expected[top : top + 64, left : left + 64])
    with tifffile.TiffFile(tmp_path / "tiles" / "a_00086_00166.tif") as file:
        assert file.pages[0].tags[TIEPOINTS].value == (0, 0, 0, 5e5 + 1660, 4.6e6 - 860, 0)


def test_broken_scenes_are_listed_and_leave_no_tile(scenes: Path, tmp_path: Path) -> None:
    write_tiff(scenes / "good.tif", DEEP)
    write_tiff(scenes / "torn.tif", RNG.integers(0, 2**16, (300, 230), dtype=np.uint16))
    content = (scenes / "torn.tif").read_bytes()
    start = tifffile.TiffFile(scenes / "torn.tif")
    last = start.pages[0].dataoffsets[-1]
    start.close()
    (scenes / "torn.tif").write_bytes(content[:last] + b"\xff" * (len(content) - last))  # the last tile alone
    (scenes / "text.tif").write_text("no scene")
    tiles = cut_scenes(scenes, tmp_path / "tiles")
    assert sorted(tiles.broken) == ["text.tif", "torn.tif"]
    assert {name.split("_")[0] for name in tiles_of(tmp_path / "tiles")} == {"good"}


def test_workers_and_one_scene_alone_change_no_byte(scenes: Path, tmp_path: Path) -> None:
    write_tiff(scenes / "a.tif", RNG.integers(0, 2**16, (700, 130), dtype=np.uint16), *GEO)
    cut_scenes(scenes, tmp_path / "here")
    cut_scenes(scenes, tmp_path / "there", workers=2)
    cut_scenes(scenes / "a.tif", tmp_path / "alone")
    assert tiles_of(tmp_path / "here") == tiles_of(tmp_path / "alone")
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_an_interruption_is_gone_on_with(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_tiff(scenes / f"{name}.tif", RNG.integers(0, 2**16, (300, 130), dtype=np.uint16))
    cut_scenes(scenes, tmp_path / "whole")
    made: list[bytes] = []
    make = blocks.tile_content

    def counting(*arguments: Any) -> bytes:
        if len(made) == 20:
            raise KeyboardInterrupt
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(blocks, "tile_content", counting)
    with pytest.raises(KeyboardInterrupt):
        cut_scenes(scenes, tmp_path / "tiles")
    assert len(tiles_of(tmp_path / "tiles")) == 20
    assert not json.loads((tmp_path / "tiles" / MANIFEST).read_text())["complete"]
    monkeypatch.setattr(blocks, "tile_content", make)
    times = {name: (tmp_path / "tiles" / name).stat().st_mtime_ns for name in tiles_of(tmp_path / "tiles")}
    cut_scenes(scenes, tmp_path / "tiles")
    assert contents(tmp_path / "tiles") == contents(tmp_path / "whole")
    assert all((tmp_path / "tiles" / name).stat().st_mtime_ns == time for name, time in times.items())


def test_a_full_disk_leaves_whole_tiles(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiff(scenes / "a.tif", DEEP)
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "00112" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"No space left on device: make room, the same command goes on") as refused:
        cut_scenes(scenes, tmp_path / "tiles")
    assert refused.value.code == CANNOT_WRITE
    monkeypatch.undo()
    cut_scenes(scenes, tmp_path / "tiles")
    cut_scenes(scenes, tmp_path / "whole")
    assert contents(tmp_path / "tiles") == contents(tmp_path / "whole")


def test_mistakes(scenes: Path, tmp_path: Path) -> None:
    write_tiff(scenes / "a.tif", DEEP)
    cut_scenes(scenes, tmp_path / "tiles")
    cut_scenes(scenes, tmp_path / "tiles")  # complete already
    with pytest.raises(UserError, match="was cut with tile 64, not 32, overlap 8, not 0: give the same") as refused:
        cut_scenes(scenes, tmp_path / "tiles", tile=32, overlap=0)
    assert refused.value.code == MISTAKE
    write_tiff(scenes / "b.tif", DEEP)
    with pytest.raises(UserError, match=r"was cut from other scenes than .* holds now, 1 then and 2 now"):
        cut_scenes(scenes, tmp_path / "tiles")
    with pytest.raises(UserError, match="overlap 64 must be at least 0 and less than the tile's 64 pixels"):
        cut_scenes(scenes, tmp_path / "more", overlap=64)
    with pytest.raises(UserError, match="lie inside each other"):
        cut_scenes(scenes, scenes / "tiles")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.txt").write_text("")
    with pytest.raises(UserError, match=f"holds x.txt and no {MANIFEST}: name an empty or a new folder"):
        cut_scenes(scenes, tmp_path / "full")


def test_no_tile_at_all_is_an_error(scenes: Path, tmp_path: Path) -> None:
    (scenes / "a.tif").write_text("no scene")
    with pytest.raises(UserError, match=r"no scene of .* can be read, the first of 1: a.tif: "):
        cut_scenes(scenes, tmp_path / "tiles")
    write_tiff(scenes / "a.tif", np.zeros((100, 100), np.uint8))
    with pytest.raises(UserError, match=r"no tile of .* has enough .* 0 tiles .* and 4 tiles are of a single value"):
        cut_scenes(scenes, tmp_path / "others")
