"""Files of class numbers, and the labels they become."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.dense.masks import ClassNumbers, decode_mask

CLASSES = np.array([[0, 1, 2], [3, 255, 0]], dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def palette_png(values: np.ndarray) -> bytes:
    image = Image.frombytes("P", values.shape[::-1], values.tobytes())
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    return saved(image)


def tiff(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    # what programs for maps write: a number that means "nothing here", and is a class number for us
    tifffile.imwrite(file, values, photometric="minisblack", extratags=[(42113, 2, 0, "255", True)])
    return file.getvalue()


def few_bits(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG whose samples have 2 or 4 bits."""
    height, width = values.shape
    rows = np.zeros((height, -(-width * bits // 8) * 8 // bits), np.uint8)
    rows[:, :width] = values
    each = 8 // bits
    packed = sum(rows[:, place::each] << (8 - bits * (place + 1)) for place in range(each)).astype(np.uint8)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(saved(Image.fromarray(CLASSES)), CLASSES, id="grey"),
        pytest.param(palette_png(CLASSES), CLASSES, id="palette"),
        pytest.param(saved(Image.fromarray(CLASSES.astype(np.uint16) * 257)), CLASSES * np.uint16(257), id="16 bit"),
        pytest.param(saved(Image.fromarray(CLASSES > 1)), CLASSES > 1, id="1 bit"),
        pytest.param(few_bits(CLASSES % 4, 2), CLASSES % 4, id="2 bit"),
        pytest.param(few_bits(CLASSES % 16, 4), CLASSES % 16, id="4 bit"),
        pytest.param(tiff(CLASSES), CLASSES, id="TIFF"),
        pytest.param(tiff(np.full((4, 5), 255, np.uint8)), np.full((4, 5), 255), id="TIFF of nothing"),
        pytest.param(npy(CLASSES.astype(np.int64)), CLASSES, id="npy"),
    ],
)
def test_what_is_read_as_a_mask(data: bytes, expected: np.ndarray) -> None:
    found = decode_mask(data)
    assert found.ndim == 2
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(Image.fromarray(np.dstack([CLASSES] * 3))), "has colours, and a mask has one class number a pixel"),
        (saved(Image.fromarray(CLASSES), "JPEG"), "is a JPEG, which changes class numbers"),
        (npy(CLASSES.astype(np.float32)), "holds float32 numbers, and class numbers are whole"),
        (npy(np.zeros((4, 5, 2), np.uint8)), "has 2 channels"),
    ],
)
def test_what_is_no_mask(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        decode_mask(data)
    assert not isinstance(caught.value, BrokenImage)


@pytest.mark.parametrize("data", [b"", saved(Image.fromarray(CLASSES))[:48], tiff(CLASSES)[:40], b"no image at all"])
def test_damaged_files_are_broken(data: bytes) -> None:
    with pytest.raises(BrokenImage):
        decode_mask(data)


def test_numbers_become_labels_and_come_back() -> None:
    numbers = ClassNumbers(count=3, first=1, ignore=255)
    labels = numbers.labels(CLASSES)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[255, 0, 1], [2, 255, 255]]
    assert numbers.numbers(labels).tolist() == [[255, 1, 2], [3, 255, 255]]
    many = ClassNumbers(count=300, first=0, ignore=65535)
    wide = np.array([[0, 299, 255, 65535]], dtype=np.uint16)
    assert many.labels(wide).dtype == np.uint16
    assert many.labels(wide).tolist() == [[0, 299, 255, 65535]]
    assert np.array_equal(many.numbers(many.labels(wide)), wide)


@pytest.mark.parametrize("number", [4, 254, -1, 300, 70000])
def test_a_number_that_is_no_class(number: int) -> None:
    mask = np.array([[0, 1], [number, 255]], dtype=np.int64)
    with pytest.raises(ValueError, match=f"has the class number {number}, and 4 classes have the numbers 0 to 3"):
        ClassNumbers(count=4).labels(mask)
