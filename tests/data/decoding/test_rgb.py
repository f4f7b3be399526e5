import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from swin_mim.data.decoding import rgb
from swin_mim.data.decoding.rgb import BrokenImage, decode_image, to_rgb

WHITE, TEAL = (255, 255, 255), (0, 128, 128)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, color: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand: bit depths that Pillow does not write, sizes that are lies."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def row(mode: str, *values: object) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)  # type: ignore[arg-type]
    return image


def palette(*colors: tuple[int, int, int]) -> Image.Image:
    image = row("P", *range(len(colors)))
    image.putpalette([value for color in colors for value in color])
    return image


LOSSLESS = {
    "1": (row("1", 0, 255), "PNG", {}, [(0, 0, 0), WHITE]),
    "L": (row("L", 0, 77, 255), "PNG", {}, [(0, 0, 0), (77, 77, 77), WHITE]),
    "L bmp": (row("L", 0, 77), "BMP", {}, [(0, 0, 0), (77, 77, 77)]),
    "P": (palette((9, 8, 7), (1, 2, 3)), "PNG", {}, [(9, 8, 7), (1, 2, 3)]),
    "P gif": (palette((9, 8, 7), (1, 2, 3)), "GIF", {}, [(9, 8, 7), (1, 2, 3)]),
    "P transparent": (palette((9, 8, 7), (1, 2, 3)), "PNG", {"transparency": 1}, [(9, 8, 7), TEAL]),
    "P transparent gif": (palette((9, 8, 7), (1, 2, 3)), "GIF", {"transparency": 1}, [(9, 8, 7), TEAL]),
    "P half transparent": (
        palette((9, 8, 7), (200, 0, 0)),
        "PNG",
        {"transparency": b"\xff\x80"},
        [(9, 8, 7), (100, 64, 64)],
    ),
    "RGB": (row("RGB", (1, 2, 3), (4, 5, 6)), "PNG", {}, [(1, 2, 3), (4, 5, 6)]),
    "RGB bmp": (row("RGB", (1, 2, 3), (4, 5, 6)), "BMP", {}, [(1, 2, 3), (4, 5, 6)]),
    "RGB keyed": (row("RGB", (1, 2, 3), (4, 5, 6)), "PNG", {"transparency": (4, 5, 6)}, [(1, 2, 3), TEAL]),
    "LA": (row("LA", (9, 255), (9, 0)), "PNG", {}, [(9, 9, 9), TEAL]),
    "PA": (row("PA", (0, 255), (0, 0)), "TIFF", {}, [(0, 0, 0), TEAL]),
    "RGBA": (row("RGBA", (1, 2, 3, 255), (1, 2, 3, 0)), "PNG", {}, [(1, 2, 3), TEAL]),
    "RGBA webp": (row("RGBA", (1, 2, 3, 255), (1, 2, 3, 0)), "WEBP", {"lossless": True}, [(1, 2, 3), TEAL]),
    "CMYK": (row("CMYK", (0, 0, 0, 0), (255, 0, 255, 0)), "TIFF", {}, [WHITE, (0, 255, 0)]),
    "YCbCr": (row("YCbCr", (0, 128, 128), (255, 128, 128)), "TIFF", {}, [(0, 0, 0), WHITE]),
    "I;16": (row("I;16", 0, 257, 32896, 65535), "PNG", {}, [(0, 0, 0), (1, 1, 1), (128, 128, 128), WHITE]),
    "I;16B": (row("I;16B", 0, 257, 65535), "TIFF", {}, [(0, 0, 0), (1, 1, 1), WHITE]),
    "I": (row("I", 0, 2570, 65535), "TIFF", {}, [(0, 0, 0), (10, 10, 10), WHITE]),
    "I wide": (row("I", -1000, 0, 254000), "TIFF", {}, [(0, 0, 0), (1, 1, 1), WHITE]),
    "F": (row("F", -1.0, 0.0, 1.0), "TIFF", {}, [(0, 0, 0), (128, 128, 128), WHITE]),
    "F constant": (row("F", 3.5, 3.5), "TIFF", {}, [(0, 0, 0), (0, 0, 0)]),
    "F infinite": (
        row("F", float("-inf"), 0.0, 2.0, 4.0, float("inf"), float("nan")),
        "TIFF",
        {},
        [(0, 0, 0), (0, 0, 0), (128, 128, 128), WHITE, WHITE, (0, 0, 0)],
    ),
}


@pytest.mark.parametrize("case", LOSSLESS)
def test_every_mode_becomes_rgb(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rgb, "BACKGROUND", TEAL)
    image, kind, options, expected = LOSSLESS[case]
    assert pixels(decode_image(encode(image, kind, **options))) == expected


def test_modes_that_no_format_stores() -> None:
    assert pixels(to_rgb(row("HSV", (0, 255, 255)))) == [(255, 0, 0)]
    black_and_white = np.asarray(to_rgb(row("LAB", (0, 128, 128), (255, 128, 128))))[0].astype(int)
    assert np.abs(black_and_white - [[0], [255]]).max() <= 1  # the colour engine rounds


def test_cmyk_jpeg() -> None:
    data = encode(Image.new("CMYK", (8, 8), (255, 0, 255, 0)), "JPEG", quality=95)
    assert np.abs(np.asarray(decode_image(data)).astype(int) - (0, 255, 0)).max() <= 2


def test_sixteen_bits_per_colour_keep_the_high_byte() -> None:
    values = np.array([[5 * 257, 100 * 257, 65535]], dtype=">u2")
    assert pixels(decode_image(png(1, 1, 16, 2, b"\0" + values.tobytes()))) == [(5, 100, 255)]
    with_alpha = np.array([[5 * 257, 0]], dtype=">u2")  # grey, alpha
    assert pixels(decode_image(png(1, 1, 16, 4, b"\0" + with_alpha.tobytes()))) == [WHITE]


@settings(deadline=None)
@given(value=st.integers(0, 65535))
def test_sixteen_bit_grey_is_scaled_not_clipped(value: int) -> None:
    assert to_rgb(row("I;16", value)).getpixel((0, 0)) == (round(value / 257),) * 3


def test_a_float_image_without_a_finite_pixel_is_broken() -> None:
    with pytest.raises(BrokenImage, match="finite"):
        decode_image(encode(row("F", float("nan"), float("inf")), "TIFF"))


def test_first_frame_only() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0))]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert set(pixels(decode_image(data))) == {(255, 0, 0)}, kind


def test_multi_picture_jpeg_is_a_jpeg() -> None:
    data = encode(Image.new("RGB", (8, 8), (0, 0, 0)), "MPO", save_all=True, append_images=[NOISE])
    assert set(pixels(decode_image(data))) == {(0, 0, 0)}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = np.kron(np.arange(6).reshape(2, 3), np.ones((16, 16))).astype(np.uint8) * 40  # (32, 48) in six blocks
    # how EXIF defines the tag: where row 0 and column 0 of the stored pixels lie in the upright picture
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored)).convert("RGB")
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    decoded = np.asarray(decode_image(encode(image, kind, exif=exif, **options)))
    assert decoded.shape == (32, 48, 3)
    assert np.abs(decoded[..., 0].astype(int) - upright).max() <= 2


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_malformed_exif_leaves_the_picture_as_it_is(exif: bytes) -> None:
    assert decode_image(encode(NOISE, "PNG", exif=exif)).tobytes() == NOISE.tobytes()
    assert decode_image(encode(NOISE, "JPEG", exif=exif)).size == NOISE.size


def test_an_orientation_that_is_no_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 42
    assert decode_image(encode(NOISE, "PNG", exif=exif)).tobytes() == NOISE.tobytes()


@pytest.mark.parametrize(("width", "height"), [(8193, 8193), (30_001, 1), (1, 30_001), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_from_the_header(width: int, height: int) -> None:
    with pytest.raises(BrokenImage, match="pixels"):  # the rows are missing: decoding would say "truncated"
        decode_image(png(width, height, 8, 2, b""))


def test_the_pixel_cap_allows_what_is_below_it() -> None:
    assert decode_image(encode(Image.new("1", (30_000, 1)), "PNG")).size == (30_000, 1)


def test_pillows_global_limit_is_neither_used_nor_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # a warning, an error in these tests, at 713 pixels
    assert decode_image(encode(NOISE, "PNG")).size == NOISE.size
    assert Image.MAX_IMAGE_PIXELS == 600


@pytest.mark.parametrize("mode", ["P", "PA", "LA", "RGBA", "I;16", "I", "F"])
@pytest.mark.parametrize("limit", [9 * NOISE.width - 1, 100], ids=["warning", "error"])
def test_strips_are_cut_out_beyond_pillows_limit(mode: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = NOISE.convert("L").convert(mode) if mode in ("P", "I;16", "I", "F") else NOISE.convert("LA").convert(mode)
    if mode == "P":
        image.info["transparency"] = 7
    monkeypatch.setattr(rgb, "_STRIP", 300)  # of nine rows
    expected = to_rgb(image.copy())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert to_rgb(image).tobytes() == expected.tobytes()
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16", "F"])
def test_what_is_cut_out_is_what_pillow_crops(mode: str) -> None:
    image = NOISE.convert("L").convert(mode)
    image.info["transparency"] = 3
    part, expected = rgb.cut_out(image, (5, 2, 30, 23)), image.crop((5, 2, 30, 23))
    assert part == expected  # its mode, size, pixels, palette and info
    assert part.info is not image.info


def test_no_warning_leaks_and_none_is_muted_for_good() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode_image(encode(NOISE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"))
        with pytest.raises(BrokenImage):
            decode_image(png(9000, 9500, 8, 2, b""))
        assert not caught
        warnings.warn("still heard", stacklevel=1)
        assert len(caught) == 1


FORMATS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
]


@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_a_truncated_file_is_broken(kind: str, options: dict[str, object]) -> None:
    data = encode(NOISE, kind, **options)
    whole = decode_image(data).tobytes()
    for size in [*range(0, len(data), 7), *range(len(data) - 40, len(data))]:
        try:
            assert decode_image(data[:size]).tobytes() == whole, f"{size} bytes decode to another picture"
            assert size > len(data) - 32, f"{size} bytes of {len(data)} pass for a whole file"
        except BrokenImage:
            pass


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_photo_is_broken(share: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "JPEG", quality=95)  # several of Pillow's read blocks
    assert len(data) > 130_000
    with pytest.raises(BrokenImage, match=r"[Tt]runcated"):
        decode_image(data[: int(share * len(data))])


@settings(deadline=None)
@given(position=st.integers(0, 10**9), byte=st.integers(0, 255), kind=st.sampled_from(FORMATS))
def test_a_damaged_file_decodes_or_is_broken_and_nothing_else(
    position: int, byte: int, kind: tuple[str, dict[str, object]]
) -> None:
    data = bytearray(encode(NOISE, kind[0], **kind[1]))
    data[position % min(len(data), 200)] = byte
    reason = ""
    try:
        assert decode_image(bytes(data)).mode == "RGB"
    except BrokenImage as error:
        reason = str(error)
    assert "\n" not in reason
    assert " at 0x" not in reason


def test_what_is_no_image_is_broken() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"  # Pillow would start Ghostscript
    for data in (b"", b"<!doctype html><html></html>", b"PK\3\4" + bytes(40), b"P6 1 1 255 abc", eps, bytes(1000)):
        with pytest.raises(BrokenImage, match=r"empty|not a readable"):
            decode_image(data)


def tiff(shape: tuple[int, ...], dtype: type[np.generic] = np.uint8, **layout: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.full(shape, 100, dtype=dtype), **layout)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "channels", "shown"),
    [
        (tiff((13, 16, 16), np.uint16, photometric="minisblack", planarconfig="separate", compression="zlib"), 13, 1),
        (tiff((2, 16, 16), np.uint16, photometric="minisblack", planarconfig="separate", compression="zlib"), 2, 1),
        (tiff((16, 16, 2), photometric="minisblack", planarconfig="contig", extrasamples=(0,)), 2, 1),
        (tiff((16, 16, 5), photometric="rgb", extrasamples=(0, 0)), 5, 3),
    ],
)
def test_a_tiff_of_many_channels_is_not_read_as_its_first_ones(data: bytes, channels: int, shown: int) -> None:
    with pytest.raises(
        BrokenImage, match=rf"it has {channels} channels, of which RGB would show {shown}: name those .* data\.channels"
    ):
        decode_image(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(tiff((16, 16, 4), photometric="rgb", extrasamples=(0,)), id="a filler beside RGB"),
        pytest.param(tiff((16, 16, 5), photometric="separated", extrasamples=(0,)), id="one beside CMYK"),
        pytest.param(tiff((13, 16, 16), photometric="minisblack"), id="13 pages: the first is the image"),
    ],
)
def test_a_tiff_of_one_channel_more_or_of_pages_is_rgb(data: bytes) -> None:
    assert decode_image(data).size == (16, 16)
