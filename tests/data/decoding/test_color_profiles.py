"""Images with ICC profiles, against the pixels that they were made from, and damaged profiles."""

import io
import random
import struct
import time
from collections.abc import Callable

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from swin_mim.data.decoding import color_profiles, rgb
from swin_mim.data.decoding.color_profiles import profile_name
from swin_mim.data.decoding.openers import open_file
from swin_mim.data.decoding.options import USUAL, DecodeOptions
from swin_mim.data.decoding.rgb import EncodedJpeg, decode_image, open_image

IGNORE = DecodeOptions(color_profile="ignore")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def text(words: str) -> bytes:
    name = words.encode() + b"\0"
    return (b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78)).ljust(
        4 * ((90 + len(name)) // 4 + 1), b"\0"
    )


def icc(name: str, space: bytes, *tags: tuple[bytes, bytes]) -> bytes:
    """A profile of version 2, by hand."""
    tags = ((b"desc", text(name)), (b"wtpt", b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)), *tags)
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, content in tags:
        table += tag + struct.pack(">II", start + len(data), len(content))
        data += content
    head = struct.pack(">I4sI4s4s4s", start + len(data), b"none", 0x02200000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249) + bytes(48)
    return head + table + data


def rgb_icc(name: str, gamma: float, *primaries: tuple[float, float, float]) -> bytes:
    tags = [
        (letter + b"XYZ", b"XYZ \0\0\0\0" + fixed(*place))
        for letter, place in zip((b"r", b"g", b"b"), primaries, strict=True)
    ]
    return icc(name, b"RGB ", *tags, *((letter + b"TRC", curve(gamma)) for letter in (b"r", b"g", b"b")))


ADOBE = rgb_icc("Adobe-like", 2.199, (0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
P3 = rgb_icc("P3-like", 2.2, (0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))
DARK = icc("Grey of 3.0", b"GRAY", (b"kTRC", curve(3.0)))
Y, X = np.mgrid[0:48, 0:64]
PHOTO = Image.fromarray(np.stack([40 + X * 3, 40 + Y * 4, 220 - X * 2], axis=-1).astype(np.uint8))


def stored(profile: bytes) -> Image.Image:
    """The photo as a file with that profile keeps it."""
    return ImageCms.profileToProfile(
        PHOTO, SRGB, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB"
    )


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, kind, **options)
    return buffer.getvalue()


def off(image: object, other: object = PHOTO) -> float:
    """Mean difference of the values."""
    return float(np.abs(np.asarray(image).astype(int) - np.asarray(other).astype(int)).mean())


BEST = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}
BEST["HEIF"] = {"quality": 100, "chroma": 444}


@pytest.mark.parametrize("profile", [ADOBE, P3], ids=["Adobe", "P3"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_colours_of_a_wide_profile_become_srgb(kind: str, profile: bytes) -> None:
    data = encode(stored(profile), kind, icc_profile=profile, **BEST.get(kind, {}))
    decoded = decode_image(data)
    assert off(decoded) < 1.5
    assert "icc_profile" not in decoded.info
    assert off(open_image(data).decode(1).image, decoded) == 0
    ignored = decode_image(data, IGNORE)
    assert off(ignored) > 5
    assert off(ignored, stored(profile)) < 1.5
    assert "icc_profile" not in ignored.info
    assert profile_name(open_file(data, USUAL)[1]) in ("Adobe-like", "P3-like")


@pytest.mark.parametrize("fast", [True, False])
def test_a_jpeg_is_converted_at_any_size_and_by_any_decoder(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(rgb, "simplejpeg", None)
    data = encode(stored(ADOBE), "JPEG", icc_profile=ADOBE, **BEST["JPEG"])
    opened = open_image(data)
    assert isinstance(opened, EncodedJpeg)
    assert off(opened.decode(1).image) < 1
    assert off(open_image(data).decode(4).image, PHOTO.reduce(4)) < 2
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(stored(ADOBE), "JPEG", icc_profile=ADOBE, exif=exif, **BEST["JPEG"])
    assert off(open_image(turned).decode(1).image, PHOTO.transpose(Image.Transpose.ROTATE_270)) < 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_profile_of_srgb_and_one_of_other_pixels_change_no_bit(kind: str) -> None:
    plain = decode_image(encode(PHOTO, kind, **BEST.get(kind, {}))).tobytes()
    for profile in (SRGB.tobytes(), DARK, b"", b"no profile" * 40, ADOBE[:300]):
        data = encode(PHOTO, kind, icc_profile=profile, **BEST.get(kind, {}))
        assert decode_image(data).tobytes() == plain
        assert profile_name(open_file(data, USUAL)[1]) is None


def expected_grey(value: int) -> float:
    linear = (value / 255) ** 3
    return 255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.new("L", (8, 8), 180), "PNG"),
        (Image.new("L", (8, 8), 180), "JPEG"),
        (Image.new("LA", (8, 8), (180, 255)), "PNG"),
        (Image.fromarray(np.full((8, 8), 180 * 257, np.uint16)), "PNG"),
    ],
    ids=["L", "L of JPEG", "LA", "16 bit"],
)
def test_grey_has_a_curve(image: Image.Image, kind: str) -> None:
    data = encode(image, kind, icc_profile=DARK)
    for decoded in (decode_image(data), open_image(data).decode(1).image):
        assert off(decoded, np.full((8, 8, 3), round(expected_grey(180)))) <= 1
    assert off(decode_image(data, IGNORE), np.full((8, 8, 3), 180)) <= 1


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_images_are_converted_before_they_lie_on_white(mode: str) -> None:
    image = stored(ADOBE)
    if mode == "RGBA":
        image.putalpha(128)
        expected = (np.asarray(PHOTO).astype(float) + 255) / 2
    else:
        image = Image.new("P", (4, 4), 0)
        image.putpalette([200, 40, 40, 0, 0, 0])
        one = ImageCms.profileToProfile(
            Image.new("RGB", (1, 1), (200, 40, 40)), ImageCms.ImageCmsProfile(io.BytesIO(ADOBE)), SRGB, outputMode="RGB"
        )
        expected = np.broadcast_to(np.asarray(one), (4, 4, 3))
    options = {"transparency": 1} if mode == "P" else {}
    assert off(decode_image(encode(image, "PNG", icc_profile=ADOBE, **options)), expected) < 1.5


def lut_of_inks() -> bytes:
    """A profile of four inks whose table says that colours are brighter than without one: half of each ink counts."""
    grid, steps = 3, np.linspace(0, 1, 3)
    inks = np.stack(np.meshgrid(*[steps] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    lightness = 100 * np.clip(1 - 0.5 * inks[:, 3] - inks[:, :3].mean(axis=1) * 0.3, 0, 1)
    lab = np.stack([lightness / 100 * 65280, np.full(len(inks), 32768), np.full(len(inks), 32768)], axis=-1)
    line = struct.pack(">2H", 0, 65535)
    table = b"mft2\0\0\0\0" + bytes([4, 3, grid, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + struct.pack(">2H", 2, 2)
    table += line * 4 + lab.round().astype(">u2").tobytes() + line * 3
    table += bytes(-len(table) % 4)
    whole = icc("Some inks", b"CMYK", (b"A2B0", table), (b"A2B1", table))
    return whole[:12] + b"prtr" + whole[16:20] + b"Lab " + whole[24:]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_go_through_their_profile(kind: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 0, 0, 128))
    data = encode(image, kind, icc_profile=lut_of_inks())
    plain = np.asarray(decode_image(data, IGNORE))[8, 8]
    assert plain.tolist() == [127, 127, 127]
    shown = np.asarray(decode_image(data))[8, 8].astype(int)
    assert shown.min() > 160
    assert np.ptp(shown) <= 3
    assert np.abs(np.asarray(open_image(data).decode(1).image)[8, 8] - shown).max() == 0


def test_jpeg2000_keeps_its_profile_in_a_box() -> None:
    data = encode(stored(ADOBE), "JPEG2000")
    at = data.index(b"colr") - 4
    length = int.from_bytes(data[at : at + 4], "big")
    box = struct.pack(">I", 11 + len(ADOBE)) + b"colr\x02\0\0" + ADOBE
    head = data.index(b"jp2h") - 4
    grown = int.from_bytes(data[head : head + 4], "big") + len(box) - length
    with_profile = data[:head] + struct.pack(">I", grown) + data[head + 4 : at] + box + data[at + length :]
    assert off(decode_image(with_profile)) < 1
    assert off(decode_image(with_profile, IGNORE)) > 5


def test_a_profile_of_megabytes_is_left_alone_and_few_are_kept() -> None:
    large = ADOBE[:-4] + bytes(color_profiles.MAX_PROFILE)
    data = encode(PHOTO, "TIFF", icc_profile=large)
    assert decode_image(data).tobytes() == PHOTO.tobytes()
    for number in range(20):
        decode_image(
            encode(
                PHOTO,
                "PNG",
                icc_profile=rgb_icc(str(number), 1.5 + number / 10, (0.6, 0.3, 0), (0.2, 0.6, 0.1), (0.1, 0.1, 0.7)),
            )
        )
    assert color_profiles._profile.cache_info().currsize <= 8


@pytest.mark.parametrize(
    ("make", "files"), [(lambda: ADOBE, 300), (lambda: DARK, 300), (lut_of_inks, 50)], ids=["RGB", "grey", "inks"]
)
def test_a_damaged_profile_never_breaks_an_image(make: Callable[[], bytes], files: int) -> None:
    whole = make()
    mode = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}[whole[16:20]]
    image, draw, start = Image.new(mode, (4, 4)), random.Random(0), time.process_time()
    for number in range(files):
        damaged = bytearray(whole)
        if number % 3 == 0:
            damaged = damaged[: draw.randrange(128, len(damaged))]
        elif number % 3 == 1:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        else:
            at = draw.randrange(0, min(len(damaged) - 4, 300), 4)
            damaged[at : at + 4] = draw.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\0\0\xff\xff"])
        assert decode_image(encode(image, "TIFF", icc_profile=bytes(damaged))).mode == "RGB"
    assert time.process_time() - start < 30
