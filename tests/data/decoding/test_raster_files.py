"""Files of any channels against what wrote them: tifffile, numpy, Pillow and imagecodecs."""

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from test_rgb import png as raw_png

from swin_mim.data.decoding import decode_limits, multichannel
from swin_mim.data.decoding.channel_reader import channels_last
from swin_mim.data.decoding.decode_limits import MAX_MEMORY, MAX_RASTER_BYTES, BrokenImage
from swin_mim.data.decoding.multichannel import channel_names, choose, decode_raster
from swin_mim.data.decoding.raster import LARGEST, ChannelSpec, Raster
from swin_mim.errors import UserError

RNG = np.random.default_rng(0)
KINDS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
CONTIG = {"photometric": "minisblack", "planarconfig": "contig"}
LAYOUTS: list[dict[str, object]] = [
    {},
    {"byteorder": ">"},
    {"bigtiff": True},
    {"rowsperstrip": 5},
    {"tile": (16, 32)},
    {"compression": "lzw", "tile": (16, 16)},
    {"compression": "deflate", "predictor": True},
    {"compression": "zstd", "byteorder": ">"},
    {"compression": "packbits"},
]


def tiff(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **({"photometric": "minisblack"} | options))
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    np.save(buffer := io.BytesIO(), array)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    np.savez_compressed(buffer := io.BytesIO(), **arrays)
    return buffer.getvalue()


def png(image: Image.Image, **options: object) -> bytes:
    image.save(buffer := io.BytesIO(), "PNG", **options)
    return buffer.getvalue()


def noise(kind: str, height: int = 23, width: int = 40, channels: int = 5) -> np.ndarray:
    return (RNG.random((height, width, channels)) * 100).astype(kind)


def first(array: np.ndarray) -> np.ndarray:
    """(H, W, C) -> (C, H, W)"""
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def read(data: bytes, count: int, *channels: str, **options: object) -> Raster:
    return decode_raster([(None, data)], ChannelSpec(count, channels or None, **options))


def same(image: Raster, values: np.ndarray) -> None:
    assert image.values.dtype == values.dtype
    assert image.values.dtype.isnative
    assert image.values.flags.writeable
    assert image.values.flags.c_contiguous
    np.testing.assert_array_equal(image.values, values)


@pytest.mark.parametrize("kind", KINDS)
def test_tiff_of_all_types_and_layouts(kind: str) -> None:
    values = noise(kind)
    for layout in LAYOUTS:
        if kind in ("i8", "u8") and "predictor" in layout:
            continue  # tifffile writes none
        same(read(tiff(values, **CONTIG, **layout), 5), values)
        same(read(tiff(first(values), planarconfig="separate", **layout), 5), values)
        same(read(tiff(first(values), **layout), 5), values)  # a page for each channel
        same(read(tiff(first(values), **layout), 3, "4", "2", "5"), values[:, :, [3, 1, 4]])


def test_other_tiffs() -> None:
    values = noise("u2")
    same(read(tiff(values[:, :, 0]), 1), values[:, :, :1])
    same(read(tiff(values[:, :, :3], photometric="rgb", extrasamples=None), 3), values[:, :, :3])
    same(read(tiff(first(values), imagej=True), 5), values)
    bits = values > 50
    same(read(tiff(first(bits)), 5), bits.astype(np.uint8))
    same(read(tiff(first(bits), planarconfig="separate", compression="deflate"), 5), bits.astype(np.uint8))
    with pytest.raises(BrokenImage, match="5 samples of 1 bit in each pixel"):
        read(tiff(bits, **CONTIG), 5)
    colours = noise("u1", 16, 16, 3)
    jpeg = read(tiff(colours, photometric="rgb", compression="jpeg"), 3)
    assert jpeg.values.shape == colours.shape


def test_an_array_that_tifffile_wrote_as_pages_of_rows() -> None:
    values = noise("u2", 30, 20, 13)
    same(read(tiff(values), 13), values)
    same(read(tiff(values), 2, "13", "1"), values[:, :, [12, 0]])
    # with its axes told it is what it says: 30 pages
    with pytest.raises(BrokenImage, match="it has 30 channels"):
        read(tiff(values, metadata=None), 13)


def test_a_palette_is_rgb_as_pillow_reads_it() -> None:
    image = Image.fromarray(noise("u1", channels=3)).quantize(16)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    same(read(buffer.getvalue(), 3), np.asarray(image.convert("RGB")))
    same(read(png(image), 3), np.asarray(image.convert("RGB")))


def test_overviews_are_left_out_and_internal_masks_count() -> None:
    values = noise("u2", 32, 32, 2)
    mask = np.zeros((32, 32), bool)
    mask[5:20, 7:] = True
    with tifffile.TiffWriter(buffer := io.BytesIO()) as writer:
        writer.write(values, metadata=None, **CONTIG)
        writer.write(values[::2, ::2], metadata=None, subfiletype=1, **CONTIG)
        writer.write(mask, metadata=None, subfiletype=4, photometric="minisblack")
        writer.write(mask[::2, ::2], metadata=None, subfiletype=5, photometric="minisblack")
    image = read(buffer.getvalue(), 2)
    same(image, values)
    assert image.valid is not None
    np.testing.assert_array_equal(image.valid, mask > 0)


def gdal(array: np.ndarray, names: Sequence[str] = (), nodata: str | None = None) -> bytes:
    """A TIFF with the tags that GDAL writes."""
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{number}" role="description">{name}</Item>'
        for number, name in enumerate(names)
    )
    text = f'<GDALMetadata>\n  <Item name="x">y</Item>{items}</GDALMetadata>'
    tags = [(42112, "s", 0, text, True)] + ([] if nodata is None else [(42113, "s", 0, nodata, True)])
    return tiff(array, extratags=tags, metadata=None, **CONTIG)


def test_channels_by_names_and_numbers() -> None:
    values = noise("i2")
    data = gdal(values, ["B02", "B03 &amp; more", "", "1", "B8A"])
    assert channel_names([(None, data)]) == ("B02", "B03 & more", "3", "1", "B8A")
    same(read(data, 2, "B8A", "B03 & more"), values[:, :, [4, 1]])
    same(read(data, 3, "1", "3", "2"), values[:, :, [3, 2, 1]])  # a name before a number
    with pytest.raises(BrokenImage, match="it has no channel 'B04': its channels are B02, B03 & more, 3, 1, B8A"):
        read(data, 1, "B04")
    with pytest.raises(BrokenImage, match="it has no channel '6'"):
        read(data, 1, "6")
    message = r"it has 5 channels \(B02, .*\) and model.in_channels is 3: name 3 of them in data.channels, or set"
    with pytest.raises(BrokenImage, match=message):
        read(data, 3)
    with pytest.raises(BrokenImage, match=r"and model.in_channels is 9: set model.in_channels 5"):
        read(data, 9)
    with pytest.raises(BrokenImage, match="2 channels that are called 'a'"):
        read(gdal(values, ["a", "a"]), 1, "a")


@pytest.mark.parametrize(
    ("kind", "own", "given", "gap"),
    [
        ("i2", "-9999", None, -9999),
        ("i2", "-9999", 7.0, 7),
        ("u2", None, 0.0, 0),
        ("u1", None, 255, 255),
        ("u1", "-9999", None, None),
        ("u1", None, 0.5, None),
        ("f4", "-3.40282346638529e+38", None, np.finfo("f4").min),
        ("f4", "nan", None, np.nan),
        ("f4", None, 0.1, np.float32(0.1)),
        ("f8", None, None, np.inf),
        ("f2", None, float("nan"), -np.inf),
        ("u8", str(2**64 - 1), None, 2**64 - 1),
        ("i4", "inf", None, None),
    ],
)
def test_gaps(kind: str, own: str | None, given: float | None, gap: float | None) -> None:
    values = noise(kind) + np.array(10).astype(kind)
    expected = np.ones(values.shape[:2], bool)
    if gap is not None:
        values[3, 4:7, 1], values[9, 9, 4] = gap, gap
        expected[3, 4:7] = expected[9, 9] = False
    data = gdal(values, nodata=own)
    image = read(data, 5, nodata=given)
    same(image, values)
    assert (image.valid is None) == (gap is None)
    if image.valid is not None:
        np.testing.assert_array_equal(image.valid, expected)
    # a channel that is not chosen says nothing
    assert read(data, 2, "1", "3", nodata=given).valid is None


def test_no_valid_pixel() -> None:
    with pytest.raises(BrokenImage, match=r"^no pixel of it is valid$"):
        read(npy(np.full((5, 5), np.nan)), 1)
    with pytest.raises(BrokenImage, match=r"^no pixel of it is valid$"):
        read(npy(np.zeros((5, 5), np.uint8)), 1, nodata=0)


def test_a_mask_channel() -> None:
    values = noise("u2")
    values[:, :, 3] = 1
    values[4, 5:9, 3] = 0
    image = read(npy(values), 4, mask="4")
    same(image, values[:, :, [0, 1, 2, 4]])
    assert image.valid is not None
    assert list(np.argwhere(~image.valid)[:, 1]) == [5, 6, 7, 8]
    assert read(npy(values), 2, "1", "2", mask="5").valid is not None  # noise has zeros too
    with pytest.raises(BrokenImage, match="no channel 'clouds'"):
        read(npy(values), 4, mask="clouds")


@given(
    arrays.arrays(
        st.sampled_from([np.dtype(order + kind) for kind in (*KINDS, "b1") for order in "<>"]),
        arrays.array_shapes(min_dims=2, max_dims=3, max_side=7),
    ),
    st.booleans(),
)
@settings(max_examples=150, deadline=None, database=None)
def test_npy_of_any_array(array: np.ndarray, backwards: bool) -> None:
    if array.dtype.kind == "f":  # what is not finite, or hardly fits into float32, is a gap
        array = np.where(np.abs(np.nan_to_num(array.astype("f8"))) < LARGEST, np.nan_to_num(array), 1).astype(
            array.dtype
        )
    array = np.asfortranarray(array) if backwards else array
    expected = array[:, :, None] if array.ndim == 2 else array
    if array.ndim == 3 and array.shape[0] <= array.shape[2]:
        expected = np.moveaxis(array, 0, -1)
    kind = np.dtype("u1") if array.dtype.kind == "b" else array.dtype.newbyteorder("=")
    same(read(npy(array), expected.shape[2]), expected.astype(kind))
    np.testing.assert_array_equal(channels_last(array), expected)


def test_npz() -> None:
    values = noise("i4")
    same(read(npz(image=values), 5), values)
    same(read(npz(image=values[:, :, 0]), 1), values[:, :, :1])
    named = npz(red=values[:, :, 0], nir=values[:, :, 1], swir=values[:, :, 2])
    assert channel_names([(None, named)]) == ("red", "nir", "swir")
    same(read(named, 3), values[:, :, :3])
    same(read(named, 2, "swir", "red"), values[:, :, [2, 0]])
    mask = np.arange(23 * 40).reshape(23, 40) % 3
    for data in (npz(image=values, valid=mask), npz(**{str(c): values[:, :, c] for c in range(5)}, valid=mask > 0)):
        image = read(data, 5, mask="valid")
        same(image, values)
        assert image.valid is not None
        np.testing.assert_array_equal(image.valid, mask > 0)
    with pytest.raises(BrokenImage, match=r"its arrays are image \(23, 40, 5\), valid \(23, 40\)"):
        read(npz(image=values, valid=mask), 5)
    mixed = read(npz(a=values[:, :, 0], b=values[:, :, 1].astype("f4")), 2)
    assert mixed.values.dtype == np.float64


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bit(channels: int) -> None:
    values = RNG.integers(0, 2**16, (23, 40, channels), dtype=np.uint16)
    data = imagecodecs.png_encode(values.squeeze())
    assert data[24] == 16
    same(read(data, channels), values)
    # EXIF turns it, as it does the others that Pillow opens
    exif = Image.Exif()
    exif[0x0112] = 6
    at = data.index(b"IDAT") - 4
    block = b"eXIf" + exif.tobytes()[6:]
    chunk = (len(block) - 4).to_bytes(4, "big") + block + imagecodecs_crc(block)
    same(read(data[:at] + chunk + data[at:], channels), np.rot90(values, -1))


def imagecodecs_crc(block: bytes) -> bytes:
    import zlib

    return zlib.crc32(block).to_bytes(4, "big")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "1", "F"])
def test_what_pillow_reads_has_its_own_channels_and_stands_upright(mode: str, orientation: int) -> None:
    from PIL import ImageOps

    image = Image.fromarray(noise("u1", channels=4), "RGBA").convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    kind = {"CMYK": "JPEG"}.get(mode, "PNG")
    if mode == "F":
        return  # only TIFF has floats, which are not turned
    image.save(buffer := io.BytesIO(), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    expected = expected.reshape(*expected.shape[:2], -1)
    expected = expected.astype(np.uint8) if expected.dtype == bool else expected
    same(read(buffer.getvalue(), expected.shape[2]), expected)


def test_transparency_is_a_channel() -> None:
    grey = Image.fromarray(noise("u1", channels=1)[:, :, 0])
    colour = Image.fromarray(noise("u1", channels=3))
    same(
        read(png(grey, transparency=7), 2), np.asarray(Image.open(io.BytesIO(png(grey, transparency=7))).convert("LA"))
    )
    data = png(colour.quantize(9), transparency=2)
    same(read(data, 4), np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")))


def test_a_transparent_grey_of_16_bit_is_a_channel_too() -> None:
    rows = np.array([[5, 258], [258, 7]], ">u2")
    data = raw_png(2, 2, 16, 0, b"".join(b"\0" + row.tobytes() for row in rows), (b"tRNS", b"\1\2"))
    same(read(data, 2), np.stack([rows, np.where(rows == 258, 0, 65535)], axis=2).astype(np.uint16))


def test_a_tiff_is_not_turned() -> None:
    values = noise("u2")
    same(read(tiff(values, extratags=[(274, "H", 1, 6, True)], **CONTIG), 5), values)


# stacks of files


def test_a_stack_of_sizes_that_divide() -> None:
    fine, coarse = noise("u2", 24, 36, 1), noise("u2", 12, 18, 1)
    clouds = np.ones((4, 6), np.uint8)
    clouds[1, 2] = 0
    files = [("B02", tiff(fine[..., 0])), ("B11", npy(coarse)), ("SCL", tiff(clouds)), ("X", b"not needed")]
    image = decode_raster(files, ChannelSpec(2, ("B11", "B02"), mask="SCL"))
    same(image, np.concatenate([coarse.repeat(2, 0).repeat(2, 1), fine], axis=2))
    assert image.valid is not None
    np.testing.assert_array_equal(image.valid, clouds.repeat(6, 0).repeat(6, 1) > 0)
    assert channel_names(files) == ("B02", "B11", "SCL", "X")


def test_each_file_of_a_stack_marks_its_own_gaps() -> None:
    a, b = noise("i2", channels=1) + 1, noise("f4", channels=1)
    a[1, 1], b[2, 2] = -5, np.finfo("f4").min
    files = [("a", gdal(a[..., 0], nodata="-5")), ("b", gdal(b[..., 0], nodata="-3.40282346638529e+38"))]
    image = decode_raster(files, ChannelSpec(2))
    assert image.values.dtype == np.float32
    assert image.valid is not None
    assert np.argwhere(~image.valid).tolist() == [[1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(10, 10), (4, 5)], "channel 1 has 5 x 4 pixels, which do not divide the 10 x 10 of others"),
        ([(10, 10), (5, 10)], "channel 1 has 10 x 5 pixels, which do not divide"),
        ([(10, 10), (10, 10, 3)], "channel 1: its file has 3 channels: those of a stack have one each"),
    ],
)
def test_stacks_that_do_not_fit(sizes: list[tuple[int, ...]], message: str) -> None:
    files = [(str(number), npy(np.ones(size, np.uint8))) for number, size in enumerate(sizes)]
    with pytest.raises(BrokenImage, match=message):
        decode_raster(files, ChannelSpec(2))


def test_a_stack_that_is_too_large_is_met_at_its_first_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_limits, "MAX_RASTER_BYTES", 7999)
    files = [("a", npy(np.ones((20, 20), "u2"))), *((str(number), b"not opened") for number in range(9))]
    with pytest.raises(BrokenImage, match=r"channel a: 20 x 20 pixels of 10 channels of 16 bit are 8000 bytes, more"):
        decode_raster(files, ChannelSpec(10))


def test_a_broken_file_of_a_stack_is_named() -> None:
    whole = tiff(noise("u2")[:, :, 0], compression="zlib", rowsperstrip=8)
    damaged = whole[:-40] + bytes(40)
    for broken in (b"", b"broken", damaged):
        with pytest.raises(BrokenImage, match=r"^channel B03: "):
            decode_raster([("B02", whole), ("B03", broken)], ChannelSpec(2))


# what is not there


@pytest.mark.parametrize("name", ["tifffile", "imagecodecs"])
def test_without_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = noise("u2", channels=3)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"read by {name}, which is not installed: pip install 'swin-mim\[raster\]'"):
        read(tiff_of(values), 3)
    same(read(npy(values), 3), values)
    grey = Image.fromarray(values[:, :, 0].copy())
    same(read(png(grey), 1), values[:, :, :1])  # 16 bit in grey, which Pillow reads
    eight = Image.fromarray(values.astype(np.uint8))
    same(read(png(eight), 3), values.astype(np.uint8))


def tiff_of(values: np.ndarray) -> bytes:
    # by Pillow, as tifffile may be away
    Image.fromarray(values.astype(np.uint8)).save(buffer := io.BytesIO(), "TIFF")
    return buffer.getvalue()


def test_the_packages_are_loaded_when_they_are_needed() -> None:
    code = (
        "import sys, io, numpy as np; from swin_mim.data.decoding.multichannel import decode_raster, ChannelSpec;"
        "f = io.BytesIO();"
        "np.save(f, np.ones((4, 4))); decode_raster([(None, f.getvalue())], ChannelSpec(1));"
        "print(sorted({'tifffile', 'imagecodecs'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


LARGE = 128 * 2**20
"""Bytes of the pixels of a picture that is a quarter of the largest."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npy", "npz", "pages", "planes", "deflate", "PNG", "stack"])
def test_memory_that_a_large_raster_takes(kind: str, tmp_path: Path) -> None:
    values = np.zeros((4096, 4096, 4), np.uint16)
    values[:9] = 1
    makers = {
        "npy": npy,
        "npz": lambda array: npz(a=array),
        "pages": lambda array: tiff(first(array)),
        "planes": lambda array: tiff(first(array), planarconfig="separate", compression="zlib"),
        "deflate": lambda array: tiff(array, compression="zlib", predictor=True, tile=(256, 256), **CONTIG),
        "PNG": imagecodecs.png_encode,
        "stack": lambda array: npy(array[:, :, 0]),
    }
    assert values.nbytes == LARGE
    (tmp_path / "file").write_bytes(makers[kind](values))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "file"), "4" if kind == "stack" else "1"]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert LARGE // 2 < taken < MAX_MEMORY * LARGE // MAX_RASTER_BYTES


MEMORY = """
import sys
from pathlib import Path
import imagecodecs, tifffile
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.decoding.multichannel import decode_raster

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

data, count = Path(sys.argv[1]).read_bytes(), int(sys.argv[2])
before = peak()
files = [(str(number), data) for number in range(count)] if count > 1 else [(None, data)]
image = decode_raster(files, ChannelSpec(4, nodata=0))
print(peak() - before)
"""


def test_numbers_that_are_not_read() -> None:
    for array in (np.ones((4, 4), "c8"), np.ones((4, 4), np.longdouble)):
        with pytest.raises(BrokenImage, match="no integer or float of up to 64 bit"):
            read(npy(array), 1)
    assert multichannel.listed([str(n) for n in range(30)]).endswith("19, ...")


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_numbers_are_gaps(kind: str, sign: int) -> None:
    """What GDAL and others write where there is nothing, if nobody says anything else."""
    values = noise(kind)
    values[2, 3, 1] = sign * np.finfo(kind).max
    values[4, 5, 0] = sign * np.float64(np.finfo("f4").max)
    image = read(npy(values), 5)
    assert (~image.valid).sum() == 2
    assert not image.valid[2, 3]
    assert not image.valid[4, 5]


@pytest.mark.parametrize(
    "bands", [ChannelSpec(2, ("nir", "2")), ChannelSpec(1, ("nir",), mask="2"), ChannelSpec(2, ("1", "01"))]
)
def test_one_channel_is_not_chosen_twice_by_name_and_number(bands: ChannelSpec) -> None:
    with pytest.raises(BrokenImage, match="name a channel twice: its channels are red, nir"):
        choose(["red", "nir"], bands)
