"""JPEG 2000, JPEG XL, and TIFFs of pictures: against what imagecodecs, tifffile and Pillow wrote."""

import io

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from swin_mim.data.decoding.coded_headers import jpeg_header, jpegxl_header, lerc_header, webp_header
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.multichannel import decode_raster
from swin_mim.data.decoding.raster import ChannelSpec, Raster

RNG = np.random.default_rng(0)
LERC = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
TIFFS = (
    *((way, kind) for way in ("lerc", "lerc deflate", "lerc zstd") for kind in LERC),
    *((way, kind) for way in (33003, 33004, 33005, 34712) for kind in ("u1", "i2", "u2")),
    *((way, kind) for way in (50002, 52546) for kind in ("u1", "u2", "f4")),
    *(("lzma", kind) for kind in ("u1", "i2", "f2", "f8")),
    ("webp", "u1"),
)


def noise(kind: str, height: int = 50, width: int = 40, channels: int = 3) -> np.ndarray:
    return (RNG.random((height, width, channels)) * 100).astype(kind)


def tiff(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **({"photometric": "minisblack", "metadata": None} | options))
    return buffer.getvalue()


def read(data: bytes, count: int, *channels: str, **options: object) -> Raster:
    return decode_raster([(None, data)], ChannelSpec(count, channels or None, **options))


def same(image: Raster, values: np.ndarray) -> None:
    assert image.values.dtype == values.dtype
    assert image.valid is None
    np.testing.assert_array_equal(image.values, values)


def compressed(way: str | int) -> dict[str, object]:
    """Options with which tifffile writes what is the same afterwards."""
    if isinstance(way, str) and way.startswith("lerc "):
        return {"compression": "lerc", "compressionargs": {"compression": way.split()[1]}}
    lossless = {"lossless": True} if way in ("webp", 50002, 52546) else {"level": 0} if isinstance(way, int) else {}
    return {"compression": way, "compressionargs": lossless}


@pytest.mark.parametrize(("way", "kind"), TIFFS)
def test_tiffs_of_other_compressions(way: str | int, kind: str) -> None:
    values, options = noise(kind), compressed(way)
    contig = {"planarconfig": "contig", "photometric": "rgb" if way == "webp" else "minisblack"}
    for layout in ({}, {"rowsperstrip": 16}, {"tile": (32, 16)}, {"bigtiff": True}):
        same(read(tiff(values, **contig, **options, **layout), 3), values)
    same(read(tiff(values, **contig, **options), 2, "3", "1"), values[:, :, [2, 0]])
    if way != "webp":
        planes = np.ascontiguousarray(np.moveaxis(values, -1, 0))
        for layout in ({}, {"tile": (16, 16)}):
            same(read(tiff(planes, planarconfig="separate", **options, **layout), 3), values)
            same(read(tiff(planes, **options, **layout), 3), values)  # a page for each channel


def test_lzma_with_a_predictor_and_the_other_byte_order() -> None:
    values = noise("u2")
    for more in ({"predictor": True}, {"byteorder": ">"}, {"predictor": True, "byteorder": ">"}):
        same(read(tiff(values, compression="lzma", planarconfig="contig", **more), 3), values)


def swapped(blob: bytes, width: int, height: int, kind: str, compression: int) -> bytes:
    """A big-endian TIFF whose one strip this is."""
    empty = tiff(np.zeros((height, width), kind), byteorder=">", compression="zlib", rowsperstrip=height)
    with tifffile.TiffFile(io.BytesIO(empty)) as file:
        tags = {
            name: file.pages[0].tags[name].valueoffset for name in ("Compression", "StripOffsets", "StripByteCounts")
        }
    data = bytearray(empty)
    data[tags["Compression"] : tags["Compression"] + 2] = compression.to_bytes(2, "big")
    data[tags["StripOffsets"] : tags["StripOffsets"] + 4] = len(data).to_bytes(4, "big")
    data[tags["StripByteCounts"] : tags["StripByteCounts"] + 4] = len(blob).to_bytes(4, "big")
    return bytes(data) + blob


def test_pictures_in_big_endian_tiffs_are_read_alike() -> None:
    values = noise("u2", channels=1)
    same(read(swapped(imagecodecs.lerc_encode(values[:, :, 0]), 40, 50, "u2", 34887), 1), values)
    same(read(swapped(imagecodecs.jpeg2k_encode(values[:, :, 0], level=0), 40, 50, "u2", 34712), 1), values)
    floats = noise("f8", channels=1)
    same(read(swapped(imagecodecs.lerc_encode(floats[:, :, 0]), 40, 50, "f8", 34887), 1), floats)


@pytest.mark.parametrize("kind", ["f4", "u2"])
def test_masks_of_lerc_mark_what_is_not_there(kind: str) -> None:
    values = noise(kind, channels=1)
    there = RNG.random((50, 40)) > 0.4
    blob = imagecodecs.lerc_encode(values[:, :, 0], masks=there)
    image = read(swapped(blob, 40, 50, kind, 34887), 1)
    np.testing.assert_array_equal(image.valid, there)
    np.testing.assert_array_equal(image.values[there], values[there])


def test_a_mask_of_lerc_is_the_alpha_of_colours() -> None:
    values, there = noise("u1"), RNG.random((50, 40)) > 0.4
    whole = np.concatenate([values, there[:, :, None] * np.uint8(255)], axis=2)
    data = tiff(whole, photometric="rgb", extrasamples=["unassalpha"], compression="lerc")
    same(read(data, 4), whole)
    blob = imagecodecs.lerc_encode(values, masks=there)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = {name: file.pages[0].tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts")}
    changed = bytearray(data)
    changed[tags["StripOffsets"] : tags["StripOffsets"] + 4] = len(data).to_bytes(4, "little")
    changed[tags["StripByteCounts"] : tags["StripByteCounts"] + 4] = len(blob).to_bytes(4, "little")
    image = read(bytes(changed) + blob, 4)
    np.testing.assert_array_equal(image.values[there], whole[there])
    np.testing.assert_array_equal(image.values[:, :, 3], whole[:, :, 3])
    assert image.valid is None


@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2"])
def test_jpeg_2000_of_any_components(kind: str, codec: str) -> None:
    for channels in (1, 2, 3, 4, 13):
        values = noise(kind, channels=channels)
        same(read(imagecodecs.jpeg2k_encode(values, level=0, codecformat=codec), channels), values)


def test_jpeg_2000_of_12_bits_and_as_pillow_writes_it() -> None:
    deep = (noise("u2", channels=1) * 40).astype("u2")
    data = imagecodecs.jpeg2k_encode(deep[:, :, 0], level=0, bitspersample=12)
    same(read(data, 1), deep)
    for mode, channels in (("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)):
        pixels = noise("u1", channels=channels)
        Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels, mode=None).convert(mode).save(
            buffer := io.BytesIO(), "JPEG2000", tile_size=(32, 32)
        )
        same(read(buffer.getvalue(), channels), pixels)


def test_bands_of_sentinel_2_are_a_stack() -> None:
    fine, coarse = (noise("u2", side, side, 1) * 100 for side in (60, 30))
    files = [
        (name, bytes(imagecodecs.jpeg2k_encode(band[:, :, 0], level=0, codecformat="jp2")))
        for name, band in (("B02", fine), ("B03", fine + 1), ("B11", coarse))
    ]
    image = decode_raster(files, ChannelSpec(3, ("B11", "B02", "B03")))
    np.testing.assert_array_equal(image.values[:, :, 1], fine[:, :, 0])
    np.testing.assert_array_equal(image.values[:, :, 0], coarse[:, :, 0].repeat(2, 0).repeat(2, 1))
    assert image.values.dtype == np.uint16


@pytest.mark.parametrize("kind", ["u1", "u2", "f2", "f4"])
def test_jpeg_xl_of_any_channels(kind: str) -> None:
    for channels in (1, 2, 3):
        values = noise(kind, channels=channels) / (100 if kind[0] == "f" else 1)
        # the encoder does not keep subnormal numbers, which are those of 16 bits below 6e-5
        values = np.where(np.abs(values) < 1e-4, 0, values).astype(kind)
        for options in ({}, {"usecontainer": True}, {"effort": 3}):
            same(read(imagecodecs.jpegxl_encode(values, lossless=True, **options), channels), values)
    smooth = np.add.outer(np.arange(50), np.arange(40)).astype(kind)[:, :, None] / (200 if kind[0] == "f" else 1)
    lossy = imagecodecs.jpegxl_encode(smooth.astype(kind), distance=1.0)
    np.testing.assert_array_equal(read(lossy, 1).values[:, :, 0], imagecodecs.jpegxl_decode(lossy))


def test_headers_are_what_the_files_hold() -> None:
    deep = noise("u2", 21, 33, 1)[:, :, 0]
    for data in (imagecodecs.jpegls_encode(deep), imagecodecs.ljpeg_encode(deep, bitspersample=16)):
        assert jpeg_header(data)[:4] == (33, 21, 1, np.uint16)
    colours = noise("u1", 21, 33)
    assert jpeg_header(imagecodecs.jpeg8_encode(colours)) == (33, 21, 3, np.uint8, 8)
    for options in ({}, {"lossless": True}):
        assert webp_header(imagecodecs.webp_encode(colours, **options)) == (33, 21, 3, np.uint8, 8)
        alpha = np.concatenate([colours, colours[:, :, :1]], axis=2)
        assert webp_header(imagecodecs.webp_encode(alpha, **options)) == (33, 21, 4, np.uint8, 8)
    for version in (2, 3, 4, 5, 6):
        blob = imagecodecs.lerc_encode(deep, version=version)
        assert lerc_header(blob) == ((33, 21, 1, np.uint16, 16), 21 * 33, len(blob))
    for height, width in ((8, 8), (64, 64), (120, 100), (300, 400), (1080, 1920), (2100, 3)):
        header = jpegxl_header(imagecodecs.jpegxl_encode(np.zeros((height, width, 3), np.uint8), effort=1))
        assert header[:4] == (width, height, 3, np.uint8)


def test_jpeg_xl_of_several_frames_is_refused() -> None:
    frames = np.zeros((3, 20, 30, 3), np.uint8)
    with pytest.raises(BrokenImage, match="its JPEG XL is an animation"):
        read(imagecodecs.jpegxl_encode(frames), 3)


def test_what_is_not_read_is_named() -> None:
    values = noise("u1", channels=1)[:, :, 0]
    with pytest.raises(BrokenImage, match=r"compressed by PNG \(method 34933\): none, LZW, .* and WebP are read"):
        read(tiff(values, compression="png"), 1)
    with pytest.raises(BrokenImage, match=r"compressed by CCITTFAX4 \(method 4\)"):
        read(swapped(b"", 40, 50, "u1", 4), 1)


@pytest.mark.parametrize("way", [34887, 34712, 50001, 50002])
def test_a_picture_that_is_larger_than_its_tile_is_refused_before_it_is_decoded(way: int) -> None:
    large = np.zeros((3000, 2000), np.uint8)
    encoded = {
        34887: lambda: imagecodecs.lerc_encode(large),
        34712: lambda: imagecodecs.jpeg2k_encode(large, level=0),
        50001: lambda: imagecodecs.webp_encode(large[:, :, None].repeat(3, axis=2)),
        50002: lambda: imagecodecs.jpegxl_encode(large, effort=1),
    }[way]()
    with pytest.raises(BrokenImage, match=r"2000 x 3000 (x|pixels)"):
        read(swapped(bytes(encoded), 40, 50, "u1", way), 1)


def test_a_picture_of_other_numbers_than_its_page_is_refused() -> None:
    deep = noise("u2", channels=1)[:, :, 0]
    for way, blob in ((34712, imagecodecs.jpeg2k_encode(deep, level=0)), (34887, imagecodecs.lerc_encode(deep))):
        with pytest.raises(BrokenImage, match=r"uint16.* uint8"):
            read(swapped(bytes(blob), 40, 50, "u1", way), 1)


def test_the_limit_of_pixels_is_the_one_that_was_chosen() -> None:
    values = noise("u2", channels=1)
    files = {
        "JPEG 2000": imagecodecs.jpeg2k_encode(values[:, :, 0], level=0),
        "JPEG XL": imagecodecs.jpegxl_encode(values, lossless=True),
        "LERC": tiff(values[:, :, 0], compression="lerc"),
        "TIFF": tiff(values[:, :, 0]),
        "PNG": imagecodecs.png_encode(values[:, :, 0]),
        "npy": npy(values),
    }
    for data in files.values():
        same(read(data, 1, max_pixels=2000), values)
        with pytest.raises(BrokenImage, match=r"40 x 50 .*more than 1999: raise data\.max_pixels"):
            read(data, 1, max_pixels=1999)
        with pytest.raises(BrokenImage, match="more than 1999"):
            decode_raster([("a", data)], ChannelSpec(1, max_pixels=1999))


def npy(array: np.ndarray) -> bytes:
    np.save(buffer := io.BytesIO(), array)
    return buffer.getvalue()
