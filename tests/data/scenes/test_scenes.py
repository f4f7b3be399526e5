"""Windows of scenes: the pixels that the whole image has there, whatever the file is; others are not read."""

import io
import struct
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.decoding.rgb import decode_image
from swin_mim.data.scenes.find import SceneFiles
from swin_mim.data.scenes.open import open_scene, read_in_parts, refusals
from swin_mim.data.scenes.scene import MAX_CHUNK, Chunks, Scene, Window
from swin_mim.data.scenes.windows import open_windows

H, W = 150, 230
WINDOWS = (Window(0, 0, 10, 10), Window(33, 47, 140, 201), Window(100, 200, H, W), Window(0, 0, H, W))
RNG = np.random.default_rng(0)
SMOOTH = np.asarray(
    Image.fromarray(RNG.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((W, H), Image.Resampling.BICUBIC)
)


def files(path: Path) -> SceneFiles:
    return SceneFiles(path.name, path.stem, ((None, path),), path.stat().st_size)


def opened(path: Path, **options: Any) -> Scene:
    return open_scene(files(path), **{"max_pixels": 10**6} | options)


def check_windows(scene: Scene, expected: np.ndarray) -> None:
    expected = expected.reshape(*expected.shape[:2], -1)
    assert scene.size == expected.shape[:2]
    assert len(scene.channels) == expected.shape[2]
    for window in WINDOWS:
        found = scene.read(window)
        assert found.dtype == expected.dtype.newbyteorder("=") == scene.dtype
        assert np.array_equal(found, expected[window.top : window.bottom, window.left : window.right])
    scene.close()


TIFFS = {
    "tiles": {"tile": (32, 48), "compression": "zstd"},
    "tiles with differences": {"tile": (64, 64), "compression": "zlib", "predictor": True},
    "strips": {"rowsperstrip": 7, "compression": "lzw"},
    "one strip": {"rowsperstrip": H, "compression": "zlib"},
    "as it lies": {},
    "tiles as they lie": {"tile": (32, 32)},
    "strips as they lie": {"rowsperstrip": 16},
    "BigTIFF": {"bigtiff": True, "tile": (32, 32), "compression": "zlib"},
    "big-endian": {"byteorder": ">", "rowsperstrip": 20, "compression": "zlib"},
    "big-endian BigTIFF as it lies": {"byteorder": ">", "bigtiff": True},
    "LERC": {"tile": (32, 32), "compression": "lerc"},
    "JPEG 2000": {"tile": (64, 64), "compression": "jpeg2000", "compressionargs": {"level": 0}},
}


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", TIFFS)
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff(kind: str, planar: str, channels: int, tmp_path: Path) -> None:
    picture = SMOOTH[:, :, :channels].astype(np.uint16) * 200
    written = np.moveaxis(picture, 2, 0) if planar == "separate" else picture
    how = TIFFS[kind] | ({"planarconfig": planar} if channels > 1 else {})
    data = written if channels > 1 else picture[:, :, 0]
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", metadata=None, **how)
    check_windows(opened(tmp_path / "a.tif"), picture)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64, np.bool_])
def test_tiff_of_any_numbers(dtype: type, tmp_path: Path) -> None:
    picture = SMOOTH[:, :, 0] > 100 if dtype is np.bool_ else SMOOTH[:, :, 0].astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="minisblack", compression="zlib", rowsperstrip=9)
    check_windows(opened(tmp_path / "a.tif"), picture.astype(np.uint8) if dtype is np.bool_ else picture)


def test_tiff_of_jpegs_is_rgb(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", SMOOTH, photometric="rgb", tile=(64, 64), compression="jpeg")
    scene = opened(tmp_path / "a.tif")
    assert (scene.photometric, scene.picture) == ("rgb", True)
    check_windows(scene, tifffile.imread(tmp_path / "a.tif"))


def test_tiff_of_a_palette_is_rgb(tmp_path: Path) -> None:
    table = RNG.integers(0, 2**16, (3, 256)).astype(np.uint16)
    how: dict[str, Any] = {"photometric": "palette", "colormap": table, "compression": "zlib", "rowsperstrip": 30}
    tifffile.imwrite(tmp_path / "a.tif", SMOOTH[:, :, 0], **how)
    check_windows(opened(tmp_path / "a.tif"), (table >> 8).astype(np.uint8).T[SMOOTH[:, :, 0]])


def test_pages_are_channels_and_overviews_and_masks_are_not(tmp_path: Path) -> None:
    there = np.zeros((H, W), bool)
    there[40:, 100:] = True
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in range(3):
            writer.write(SMOOTH[:, :, page], photometric="minisblack", compression="zlib", tile=(32, 32), metadata=None)
        writer.write(SMOOTH[::2, ::2, 0], photometric="minisblack", subfiletype=1, metadata=None)
        writer.write(there, photometric="mask", subfiletype=4, compression="zlib", rowsperstrip=11, metadata=None)
    scene = opened(tmp_path / "a.tif")
    assert scene.mask is not None
    for window in WINDOWS:
        assert np.array_equal(scene.mask(window), there[window.top : window.bottom, window.left : window.right])
    check_windows(scene, SMOOTH)


def test_what_a_sparse_file_leaves_out_is_nodata(tmp_path: Path) -> None:
    tiles = (None if number % 2 else np.full((64, 64), 5, np.int16) for number in range(12))
    how: dict[str, Any] = {"shape": (H, W), "dtype": np.int16, "tile": (64, 64), "compression": "zlib"}
    nodata = [(42113, 2, 0, "-9999", True)]
    tifffile.imwrite(tmp_path / "a.tif", tiles, photometric="minisblack", extratags=nodata, metadata=None, **how)
    scene = opened(tmp_path / "a.tif")
    assert np.unique(scene.read(Window(0, 0, H, W))).tolist() == [-9999, 5]
    assert scene.nodata == -9999
    scene.close()


def jpeg2000(path: Path, picture: np.ndarray, **options: Any) -> None:
    Image.fromarray(picture).save(path, "JPEG2000", irreversible=False, **options)


@pytest.mark.parametrize("tile", [(64, 64), (100, 48), None])
@pytest.mark.parametrize("suffix", ["jp2", "j2k"])
@pytest.mark.parametrize("kind", ["rgb", "grey", "16 bit"])
def test_jpeg2000_is_decoded_tile_by_tile(kind: str, suffix: str, tile: tuple[int, int] | None, tmp_path: Path) -> None:
    picture = {"rgb": SMOOTH, "grey": SMOOTH[:, :, 0], "16 bit": SMOOTH[:, :, 0].astype(np.uint16) * 200}[kind]
    jpeg2000(tmp_path / f"a.{suffix}", picture, **({} if tile is None else {"tile_size": tile}))
    scene = opened(tmp_path / f"a.{suffix}")
    assert scene.chunk == ((H, W) if tile is None else tile[::-1])
    assert scene.picture == (kind != "16 bit")
    # Pillow writes tiles of 16 bit wrong
    check_windows(scene, imagecodecs.jpeg2k_decode((tmp_path / f"a.{suffix}").read_bytes()))


def test_jpeg2000_reads_only_the_tiles_that_it_needs(tmp_path: Path) -> None:
    jpeg2000(tmp_path / "a.jp2", SMOOTH, tile_size=(64, 64))
    data = bytearray((tmp_path / "a.jp2").read_bytes())
    last = data.rindex(b"\xff\x93")  # the pixels of the last tile
    data[last + 2 : -2] = bytes(len(data) - last - 4)
    (tmp_path / "a.jp2").write_bytes(data)
    scene = opened(tmp_path / "a.jp2")
    assert np.array_equal(scene.read(Window(0, 0, 128, 192)), SMOOTH[:128, :192])
    scene.close()


def test_jpeg2000_with_a_georeference(tmp_path: Path) -> None:
    """GeoTIFF's tags in a box, as GDAL writes it."""
    buffer = io.BytesIO()
    tags = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 5e5, 4.6e6, 0.0), True)]
    tifffile.imwrite(buffer, np.zeros((1, 1), np.uint8), extratags=tags, metadata=None)
    content = bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03") + buffer.getvalue()
    jpeg2000(tmp_path / "a.jp2", SMOOTH, tile_size=(64, 64))
    data = (tmp_path / "a.jp2").read_bytes()
    at = data.index(b"jp2c") - 4
    box = struct.pack(">L4s", len(content) + 8, b"uuid") + content
    (tmp_path / "a.jp2").write_bytes(data[:at] + box + data[at:])
    scene = opened(tmp_path / "a.jp2")
    assert scene.georeference.shifted(10, 20)[1][3] == (0, 0, 0, 5e5 + 200, 4.6e6 - 100, 0)
    assert not scene.picture
    check_windows(scene, SMOOTH)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, ">f4"])
def test_npy(dtype: Any, first: bool, tmp_path: Path) -> None:
    picture = SMOOTH.astype(dtype)
    np.save(tmp_path / "a.npy", np.moveaxis(picture, 2, 0) if first else picture)
    check_windows(opened(tmp_path / "a.npy"), picture.astype(picture.dtype.newbyteorder("=")))


def test_windows_of_one_bit_are_black_and_white(tmp_path: Path) -> None:
    white = SMOOTH[:, :, 0] > 120
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, white, photometric="minisblack", metadata=None)
    seen = np.asarray(decode_image(path.read_bytes()))
    found = open_windows(path, None, 1000)
    assert found is not None
    for window in WINDOWS:
        assert np.array_equal(found.read(window).values, seen[window.top : window.bottom, window.left : window.right])
    found.close()
    one = open_windows(path, ChannelSpec(1), 1000)
    assert one is not None
    assert set(np.unique(one.read(WINDOWS[-1]).values).tolist()) == {0, 1}
    one.close()


def test_pictures_are_read_whole_and_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.rot90(SMOOTH).copy()).save(tmp_path / "a.png", exif=turned)
    assert not read_in_parts(files(tmp_path / "a.png"))
    check_windows(opened(tmp_path / "a.png"), SMOOTH)


def test_colours_keep_their_profile_and_gaps_their_meaning(tmp_path: Path) -> None:
    alpha = np.dstack([SMOOTH, np.full((H, W), 9, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "a.png", icc_profile=b"profile")
    scene = opened(tmp_path / "a.png")
    assert (scene.profile, scene.alpha, scene.picture) == (b"profile", True, True)
    check_windows(scene, alpha)
    Image.fromarray(SMOOTH).convert("CMYK").save(tmp_path / "a.jpg")
    scene = opened(tmp_path / "a.jpg")
    assert (scene.photometric, scene.alpha, scene.picture) == ("separated", False, False)
    scene = opened(tmp_path / "a.png", nodata=0)
    assert (scene.nodata, scene.picture) == (0, False)  # only a TIFF says it


def test_a_file_that_is_read_whole_says_what_it_takes(tmp_path: Path) -> None:
    Image.new("L", (1100, 1000)).save(tmp_path / "a.png")
    with pytest.raises(BrokenImage, match=r"more than 1000000 pixels, .*--max_pixels 1100000 reads it, with .* GiB"):
        opened(tmp_path / "a.png")
    assert opened(tmp_path / "a.png", max_pixels=1_100_000).size == (1000, 1100)


def test_a_panorama_is_longer_than_an_image_may_be(tmp_path: Path) -> None:
    Image.new("L", (40_000, 20)).save(tmp_path / "a.jpg")
    with closing(opened(tmp_path / "a.jpg", max_pixels=2**29)) as scene:
        assert scene.size == (20, 40_000)
    Image.new("L", (30_001, 20)).save(tmp_path / "a.jp2")
    with closing(opened(tmp_path / "a.jp2")) as scene:
        assert scene.size == (20, 30_001)


def test_chunks_are_decoded_once_for_windows_side_by_side() -> None:
    decoded: list[int] = []

    def decode(index: int) -> np.ndarray:
        decoded.append(index)
        return np.full((10, 10, 1), index, np.uint8)

    chunks = Chunks((30, 40), (10, 10), 1, np.dtype(np.uint8), decode)
    chunks.read(Window(5, 5, 15, 15))
    chunks.read(Window(10, 10, 20, 30))
    assert decoded == [0, 1, 4, 5, 6]
    chunks.drop()
    chunks.read(Window(0, 0, 1, 1))
    assert decoded[-1] == 0


def test_a_strip_that_is_too_much_at_once_is_refused_before_it_is_read() -> None:
    side = int(MAX_CHUNK**0.5) + 1
    with pytest.raises(BrokenImage, match="more than 1073741824, and are read whole: write it in smaller ones"):
        Chunks((side, side), (side, side), 1, np.dtype(np.uint8), lambda index: None)


@pytest.mark.parametrize("kind", ["tiff", "jp2", "npy", "png", "empty", "text", "page rows"])
def test_damaged_scenes(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if kind == "tiff":
        tifffile.imwrite(path, SMOOTH, photometric="rgb", tile=(32, 32), compression="zlib")
    elif kind == "jp2":
        jpeg2000(path, SMOOTH, tile_size=(64, 64))
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, SMOOTH)
    elif kind == "png":
        Image.fromarray(SMOOTH).save(path, "PNG")
    elif kind == "page rows":
        tifffile.imwrite(path, np.zeros((60, 50, 7), np.uint16))
    else:
        path.write_bytes(b"" if kind == "empty" else b"no scene")
    content = path.read_bytes()
    path.write_bytes(content if kind == "page rows" else content[: len(content) // 2])
    with pytest.raises(BrokenImage), refusals(), closing(opened(path)) as scene:
        scene.read(Window(0, 0, H, W))


@pytest.mark.parametrize("kind", ["tiff", "jp2"])
def test_mutated_scenes_are_refused_or_read(kind: str, tmp_path: Path) -> None:
    small = np.ascontiguousarray(SMOOTH[:60, :70])
    path = tmp_path / "a"
    if kind == "tiff":
        tifffile.imwrite(path, small, photometric="rgb", tile=(32, 32), compression="zlib")
    else:
        jpeg2000(path, small, tile_size=(32, 32))
    content, rng = path.read_bytes(), np.random.default_rng(1)
    for _ in range(200):
        data = bytearray(content)
        for place in rng.integers(0, min(len(data), 600), 3):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        with suppress(BrokenImage), refusals(), closing(opened(path)) as scene:
            scene.read(Window(0, 0, min(60, scene.size[0]), min(70, scene.size[1])))
