"""Formats besides JPEG, PNG and their like, read as RGB; limits of pixels; and files of them that are damaged."""

import io
import pickle
import random
import struct
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from swin_mim.data.decoding.av1_headers import coded_pixels
from swin_mim.data.decoding.decode_limits import MAX_BYTES, BrokenImage, check_length, check_raster
from swin_mim.data.decoding.options import DecodeOptions
from swin_mim.data.decoding.rgb import decode_image, open_image
from swin_mim.errors import UserError

Y, X = np.mgrid[0:48, 0:64]
PHOTO = Image.fromarray(np.stack([X * 4, Y * 5, 255 - X * 2], axis=-1).astype(np.uint8))
DEEP = (X * 400 + Y * 300).astype(np.uint16)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(image).save(buffer, **{"quality": 100, "chroma": 444, **options})
    else:
        image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpegxl(pixels: object, **options: object) -> bytes:
    return bytes(imagecodecs.jpegxl_encode(np.asarray(pixels), **options))


GREY, CLEAR = PHOTO.convert("L"), PHOTO.copy()
CLEAR.putalpha(0)
WHITE = Image.new("RGB", PHOTO.size, "white")
FILES = {
    "AVIF": (encode(PHOTO, "AVIF", quality=100, subsampling="4:4:4"), PHOTO),
    "AVIF grey": (encode(GREY, "AVIF", quality=100), GREY.convert("RGB")),
    "AVIF transparent": (encode(CLEAR, "AVIF"), WHITE),
    "AVIF of several": (encode(PHOTO, "AVIF", quality=100, save_all=True, append_images=[WHITE]), PHOTO),
    "HEIC": (encode(PHOTO, "HEIF"), PHOTO),
    "HEIC grey": (encode(GREY, "HEIF"), GREY.convert("RGB")),
    "HEIC transparent": (encode(CLEAR, "HEIF"), WHITE),
    "JPEG 2000": (encode(PHOTO, "JPEG2000"), PHOTO),
    "JPEG 2000 codestream": (encode(PHOTO, "JPEG2000", no_jp2=True), PHOTO),
    "JPEG 2000 of tiles": (encode(PHOTO, "JPEG2000", tile_size=(16, 16)), PHOTO),
    "JPEG 2000 grey": (encode(GREY, "JPEG2000"), GREY.convert("RGB")),
    "JPEG 2000 transparent": (encode(CLEAR, "JPEG2000"), WHITE),
    "JPEG 2000 16 bit": (
        encode(Image.fromarray(DEEP), "JPEG2000"),
        Image.fromarray((DEEP / 257).round().astype(np.uint8)),
    ),
    "JPEG XL": (jpegxl(PHOTO), PHOTO),
    "JPEG XL container": (jpegxl(PHOTO, usecontainer=True), PHOTO),
    "JPEG XL lossy": (jpegxl(PHOTO, lossless=False, distance=0.3), PHOTO),
    "JPEG XL grey": (jpegxl(GREY), GREY.convert("RGB")),
    "JPEG XL transparent": (jpegxl(CLEAR), WHITE),
    "JPEG XL 16 bit": (jpegxl(DEEP), Image.fromarray((DEEP / 257).round().astype(np.uint8))),
    "JPEG XL 16 bit in colour": (jpegxl(np.stack([DEEP] * 3, -1)), Image.fromarray((DEEP >> 8).astype(np.uint8))),
    "JPEG XL of floats": (jpegxl((np.asarray(PHOTO) / 255).astype(np.float32)), PHOTO),
}


@pytest.mark.parametrize("name", FILES)
def test_it_is_read_by_its_content(name: str) -> None:
    data, expected = FILES[name]
    decoded = decode_image(data)
    assert decoded.mode == "RGB"
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(expected.convert("RGB"))).mean() < 2
    opened = open_image(data).decode(8)
    assert opened.size == PHOTO.size
    assert np.asarray(opened.image).tobytes() == decoded.tobytes()


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 5, 6, 7, 8])
def test_it_stands_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    as_jpeg = decode_image(encode(PHOTO, "JPEG", exif=exif, quality=95))
    decoded = decode_image(encode(PHOTO, kind, exif=exif.tobytes()))
    assert decoded.size == as_jpeg.size
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(as_jpeg)).mean() < 5


def test_heic_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    with pytest.raises(UserError, match=r"pillow_heif.*pip install 'swin-mim\[heif\]'"):
        decode_image(FILES["HEIC"][0])


def test_jpeg2000_of_more_components_than_rgb_names_the_setting() -> None:
    data = imagecodecs.jpeg2k_encode(np.zeros((16, 16, 5), np.uint8), level=0)
    with pytest.raises(BrokenImage, match=r"5 channels: name those .* data\.channels"):
        decode_image(bytes(data))


LIMITED = {
    **{name: FILES[name][0] for name in ("AVIF", "HEIC", "JPEG 2000", "JPEG XL")},
    **{kind: encode(PHOTO, kind) for kind in ("JPEG", "PNG", "BMP", "TIFF")},
    "TIFF of tiles": encode(PHOTO, "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", LIMITED)
def test_the_limit_is_the_one_that_was_chosen_and_never_pillows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of 3072: Pillow refuses twice as many
    assert decode_image(LIMITED[name], DecodeOptions(max_pixels=3072)).size == PHOTO.size
    assert open_image(LIMITED[name], DecodeOptions(max_pixels=3072)).decode(1).size == PHOTO.size
    for read in (decode_image, open_image):
        with pytest.raises(BrokenImage) as error:
            read(LIMITED[name], DecodeOptions(max_pixels=3071))
        assert str(error.value) == (
            "64 x 48 are 3072 pixels, more than 3071: raise data.max_pixels, "
            "or cut it into tiles: swin-mim prepare SOURCE TILES --tile 512"
        )
    assert Image.MAX_IMAGE_PIXELS == 100


def test_pillows_words_on_bombs_reach_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = encode(PHOTO, "GIF")
    wide = wide[:6] + struct.pack("<HH", 8, 8) + wide[10:]  # its first frame is larger
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        BrokenImage, match=r"it has more pixels than are read of a file of its kind: save it as PNG or TIFF$"
    ):
        decode_image(wide)


def test_more_pixels_than_pillow_allows_are_decoded_where_they_are_allowed() -> None:
    side = 13_500  # 182 Mpx
    data = encode(Image.new("1", (side, side)), "PNG")
    with pytest.raises(BrokenImage, match="182250000 pixels, more than 67108864: raise"):
        decode_image(data)
    with pytest.raises(BrokenImage, match=r"30001 x 1 pixels are more than 30000 a side: cut it into tiles"):
        decode_image(encode(Image.new("1", (30_001, 1)), "PNG"), DecodeOptions(max_pixels=2**40))


def test_other_limits_follow() -> None:
    check_length(MAX_BYTES + 1, 2**27)
    with pytest.raises(BrokenImage, match="more than"):
        check_length(MAX_BYTES + 1, 2**20)  # a lower limit of pixels refuses no file for its length
    check_raster((8192, 8192), 16, 1, 2**27)
    with pytest.raises(BrokenImage, match=r"are 1024 bytes, more than 1016: raise data\.max_pixels, or cut it"):
        check_raster((8, 8), 8, 2, 127)


def test_an_avif_of_small_sizes_is_not_composed_of_large_pictures() -> None:
    large = encode(Image.new("RGB", (4096, 2048)), "AVIF", quality=30, speed=10)
    assert coded_pixels(large) == 4096 * 2048
    assert coded_pixels(FILES["AVIF"][0]) == 64 * 48
    assert coded_pixels(FILES["AVIF transparent"][0]) == 2 * 64 * 48
    size = b"ispe\0\0\0\0" + struct.pack(">II", 4096, 2048)
    assert size in large
    with pytest.raises(BrokenImage, match="coded as 8388608 pixels, which are too many for 4096"):
        decode_image(large.replace(size, size[:8] + struct.pack(">II", 64, 64)))


DAMAGED = ("AVIF", "AVIF transparent", "HEIC", "JPEG 2000", "JPEG 2000 codestream", "JPEG XL", "JPEG XL container")
SIZES = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\0\0\x40\0", b"\0\1\0\0", b"\0\0\x75\x30")


def damaged(name: str) -> list[bytes]:
    """240 files: cut off, bits flipped, sizes in the header replaced, rubbish in the middle."""
    whole, draw, files = FILES[name][0], random.Random(name), []
    for number in range(240):
        data = bytearray(whole)
        at = draw.randrange(len(data))
        if number % 4 == 0:
            data = data[:at]
        elif number % 4 == 1:
            for _ in range(draw.randrange(1, 4)):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif number % 4 == 2:
            at = draw.randrange(min(len(data) - 4, 400))
            data[at : at + 4] = draw.choice(SIZES)
        else:
            data[at : at + 64] = draw.randbytes(64)
        files.append(bytes(data))
    return files


CHILD = """
import pickle, sys, time
from pathlib import Path
from swin_mim.data.decoding.rgb import BrokenImage, decode_image

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024

files = pickle.loads(Path(sys.argv[1]).read_bytes())
decode_image(files[0])  # what decoders need once
before, slowest, decoded = peak(), 0, 0
for number, data in enumerate(files):
    print(number, file=sys.stderr)
    start = time.process_time()
    try:
        decoded += decode_image(data).mode == "RGB"
    except BrokenImage as error:
        assert str(error) and "\\n" not in str(error) and " at 0x" not in str(error), str(error)
    slowest = max(slowest, time.process_time() - start)
print(decoded, slowest, peak() - before)
"""


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_decode_or_are_broken_in_bounds(name: str, tmp_path: Path) -> None:
    (tmp_path / "files").write_bytes(pickle.dumps([FILES[name][0], *damaged(name)]))
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "files")], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr[-2000:]
    decoded, slowest, memory = (float(part) for part in child.stdout.split())
    assert 1 <= decoded < 240
    assert slowest < 2
    assert memory < 256
