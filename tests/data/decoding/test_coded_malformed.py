"""Damaged and hostile files of the decoders of imagecodecs and pydicom: each decodes or is a `BrokenImage`, in bounds.

They are decoded in a process of their own, which a crash would end.
"""

import io
import json
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from test_coded_files import compressed, noise, swapped, tiff
from test_dicom_files import RAMP, dicom
from test_malformed import MIB

from swin_mim.data.decoding.kinds import HEAD, kind_of

FILES = 200
"""Of each kind."""
SECONDS = 2.0
"""Of processor time, for each file."""
MEMORY = 128 * MIB
"""For all of the files of a kind."""
MAGIC = (b"Lerc2 ", b"\xff\x4f\xff\x51", b"\xff\x0a", b"RIFF", b"\xff\xd8", b"\xfd7zXZ")


def whole_files() -> Iterator[tuple[str, bytes]]:
    deep, contig = noise("u2"), {"planarconfig": "contig"}
    yield "LERC without a checksum", tiff(deep[:, :, 0], compression="lerc", compressionargs={"version": 2})
    yield "LERC of floats", tiff(noise("f4"), compression="lerc", tile=(16, 16), **contig)
    for way in ("deflate", "zstd"):
        yield f"LERC in {way}", tiff(deep, **compressed(f"lerc {way}"), **contig)
    yield "TIFF of JPEG 2000", tiff(deep, **compressed(34712), tile=(16, 16), **contig)
    yield "TIFF of JPEG XL", tiff(deep, **compressed(50002), tile=(16, 16), **contig)
    yield "TIFF of WebP", tiff(noise("u1"), compression="webp", photometric="rgb")
    yield "TIFF of lossless WebP", tiff(noise("u1"), **compressed("webp"), photometric="rgb")
    yield "TIFF of LZMA", tiff(deep, compression="lzma", predictor=True, **contig)
    yield "JP2", bytes(imagecodecs.jpeg2k_encode(deep, level=0, codecformat="jp2"))
    Image.fromarray(noise("u1")).save(tiled := io.BytesIO(), "JPEG2000", tile_size=(16, 16), num_resolutions=3)
    yield "JP2 of tiles", tiled.getvalue()
    yield "lossy codestream", bytes(imagecodecs.jpeg2k_encode(RAMP, level=60, codecformat="j2k"))
    yield "JPEG XL", bytes(imagecodecs.jpegxl_encode(deep, lossless=True))
    yield "lossy JPEG XL", bytes(imagecodecs.jpegxl_encode(noise("u1"), distance=2.0))
    yield "JPEG XL in a container", bytes(imagecodecs.jpegxl_encode(noise("u1"), usecontainer=True))
    yield "DICOM", dicom(RAMP, RescaleSlope=2, PixelPaddingValue=0, WindowCenter=[9, 9], WindowWidth=[9, 9])
    yield "deflated DICOM", dicom(RAMP, DeflatedExplicitVRLittleEndian)
    for name, syntax, coded in (
        ("JPEG", JPEGBaseline8Bit, imagecodecs.jpeg8_encode(noise("u1"))),
        ("lossless JPEG", JPEGLosslessSV1, imagecodecs.ljpeg_encode(RAMP, bitspersample=16)),
        ("JPEG-LS", JPEGLSLossless, imagecodecs.jpegls_encode(RAMP)),
        ("JPEG 2000", JPEG2000Lossless, imagecodecs.jpeg2k_encode(RAMP, level=0, codecformat="j2k")),
        ("RLE", RLELossless, runs(RAMP)),
    ):
        pixels = noise("u1") if name == "JPEG" else RAMP
        yield f"DICOM of {name}", dicom(pixels, syntax, [bytes(coded)] * 2, NumberOfFrames=2)


def runs(pixels: np.ndarray) -> bytes:
    """A frame of two planes of bytes."""
    planes = [imagecodecs.packbits_encode((pixels >> shift).astype("u1").tobytes()) for shift in (8, 0)]
    return struct.pack("<16L", 2, 64, 64 + len(planes[0]), *[0] * 13) + b"".join(map(bytes, planes))


def damaged(whole: bytes, draw: random.Random) -> bytes:
    data, way, at = bytearray(whole), draw.randrange(6), draw.randrange(len(whole))
    magic = [data.find(start) + len(start) for start in MAGIC if start in data]
    if way == 0:
        return whole[:at]
    if way == 1:
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif way == 2:
        data[at : at + draw.randrange(1, 64)] = draw.randbytes(draw.randrange(64))
    elif way == 3:
        del data[at : at + draw.randrange(1, 40)]
    else:  # where the parts of a file, or of a picture in it, are told
        start, length = (magic[0], 90) if way == 4 and magic else (0, 400)
        for _ in range(draw.randrange(1, 4)):
            data[min(len(data) - 1, start + draw.randrange(length))] = draw.choice((0, 1, 127, 128, 255, at % 256))
    return bytes(data)


CHILD = """
import json, sys, time
from pathlib import Path
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.decoding.kinds import HEAD, kind_of
from swin_mim.data.decoding.multichannel import channel_names, decode_raster
from swin_mim.data.decoding.rgb import decode_image

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

def channels(data):
    return decode_raster([(None, data)], ChannelSpec(len(channel_names([(None, data)]))))

def outcome_of(decode, data):
    try:
        decode(data)
        return "an image", ""
    except BrokenImage as error:
        return "broken", str(error)
    except BaseException as error:
        return type(error).__name__, str(error)

lengths, at, content = json.loads(sys.argv[2]), 0, Path(sys.argv[1]).read_bytes()
for length in lengths:
    data = content[at : at + length]
    at += length
    for decode in (channels, decode_image) if kind_of(data[:HEAD]) == "DICOM" else (channels,):
        before, start = peak(), time.process_time()
        outcome, reason = outcome_of(decode, data)
        seconds = time.process_time() - start
        memory = peak() - before
        print(json.dumps({"outcome": outcome, "reason": reason, "seconds": seconds, "memory": memory}), flush=True)
"""


def decoded(files: list[bytes], folder: Path) -> list[dict[str, object]]:
    """What became of them as channels, and of DICOM then as RGB too, one after the other in one process."""
    (folder / "all").write_bytes(b"".join(files))
    command = [sys.executable, "-c", CHILD, str(folder / "all"), json.dumps([len(data) for data in files])]
    child = subprocess.run(command, capture_output=True, text=True, timeout=200, errors="replace")
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    assert child.returncode == 0, f"{child.returncode} after {len(lines)} decodings: {child.stderr[-2000:]}"
    return lines


def check(lines: list[dict[str, object]]) -> None:
    assert not [line for line in lines if line["outcome"] not in ("an image", "broken")]
    reasons = [str(line["reason"]) for line in lines if line["outcome"] == "broken"]
    assert not [reason for reason in reasons if not reason or "\n" in reason or " at 0x" in reason or len(reason) > 600]
    assert not [line for line in lines if float(str(line["seconds"])) > SECONDS]


WHOLE = dict(whole_files())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """What became of all damaged files by their kinds, of which the first one is whole."""
    files = []
    for name, whole in WHOLE.items():
        draw = random.Random(name)
        files += [whole, *(damaged(whole, draw) for _ in range(FILES))]
    lines = iter(decoded(files, tmp_path_factory.mktemp("files")))
    found: dict[str, list[dict[str, object]]] = {}
    for number, data in enumerate(files):
        decodings = 2 if kind_of(data[:HEAD]) == "DICOM" else 1
        found.setdefault(list(WHOLE)[number // (FILES + 1)], []).extend(next(lines) for _ in range(decodings))
    assert not [*lines]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_damaged_files_decode_or_are_broken(name: str, results: dict[str, list[dict[str, object]]]) -> None:
    lines = results[name]
    assert lines[0]["outcome"] == "an image", lines[0]["reason"]
    check(lines)
    assert sum(line["outcome"] == "broken" for line in lines) > FILES / 10
    large = [line for line in lines if int(str(line["memory"])) > MIB]
    assert sum(int(str(line["memory"])) for line in lines) < MEMORY, large


def codestream(width: int, height: int, tile: tuple[int, int], *, coding: bytes = b"", components: int = 1) -> bytes:
    """A JPEG 2000 of nothing but its header; `coding` is what its COD says from the progression on."""
    size = struct.pack(">HLLLLLLLLH", 0, width, height, 0, 0, *tile, 0, 0, components) + b"\x07\x01\x01" * components
    style = b"\0" + (coding or b"\0\0\1\0\5\4\4\0\1")
    quantum = b"\xff\x5c" + struct.pack(">HB16s", 19, 0x20, bytes(16))
    parts = [
        b"\xff\x51" + struct.pack(">H", len(size) + 2) + size,
        b"\xff\x52" + struct.pack(">H", len(style) + 2) + style,
    ]
    start = b"\xff\x90\0\x0a\0\0\0\0\0\0\0\1\xff\x93"
    return b"\xff\x4f" + b"".join(parts) + quantum + start + bytes(64) + b"\xff\xd9"


def precincts(sides: int, layers: bytes) -> bytes:
    """A codestream whose precincts have such sides: the exponents of 2 of height and width."""
    whole = codestream(8000, 8000, (8000, 8000), coding=b"\0" + layers + b"\0\5\4\4\0\1" + bytes([sides]) * 6)
    return whole.replace(b"\xff\x52\0\x12\0", b"\xff\x52\0\x12\1")


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """What is refused before it takes time or memory."""
    yield "JPEG 2000 of the most pixels", codestream(2**32 - 1, 2**32 - 1, (2**32 - 1, 2**32 - 1))
    yield "JPEG 2000 of many tiles", codestream(8000, 8000, (32, 32))
    yield "JPEG 2000 of many components", codestream(64, 64, (64, 64), components=16384)
    yield "JPEG 2000 of the most layers", precincts(0x77, b"\xff\xff")
    yield "JPEG 2000 of blocks of 4 pixels", codestream(8000, 8000, (8000, 8000), coding=b"\0\0\1\0\5\0\0\0\1")
    yield "JPEG 2000 of precincts of 2 pixels", precincts(0x11, b"\0\1")
    yield "JPEG 2000 of the most levels", codestream(64, 64, (64, 64), coding=b"\0\0\1\0\xff\4\4\0\1")
    yield (
        "JPEG 2000 that ends far behind its file",
        codestream(64, 64, (64, 64)).replace(b"\xff\x90\0\x0a\0\0\0\0\0\0", b"\xff\x90\0\x0a\0\0\xff\xff\xff\xf0"),
    )
    yield "JPEG-LS without its end", dicom(RAMP, JPEGLSLossless, [bytes(imagecodecs.jpegls_encode(RAMP))[:-9]])
    large = imagecodecs.jpegxl_encode(np.zeros((2000, 2000), np.uint8), effort=1)
    yield "JPEG XL of a large tile", swapped(bytes(large), 40, 50, "u1", 50002)
    yield "animated JPEG XL", bytes(imagecodecs.jpegxl_encode(np.zeros((50, 64, 64, 3), np.uint8)))
    whole = dicom(RAMP)
    nested = b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 5000
    yield "DICOM of sequences in sequences", whole[: whole.index(b"\x28\0\x02\0US")] + nested
    yield (
        "DICOM of 500,000 elements",
        whole[: whole.index(b"\x28\0\x02\0US")] + b"\x09\0\x01\0UN\0\0\0\0\0\0" * 1_000_000,
    )


def test_hostile_files_are_refused_before_they_take_anything(tmp_path: Path) -> None:
    hostile = dict(hostile_files())
    bands = imagecodecs.lerc_encode(np.zeros((1000, 1000), np.uint8)) * 1000  # each of a few bytes; one is read
    *lines, several = decoded([*hostile.values(), swapped(bytes(bands), 1000, 1000, "u1", 34887)], tmp_path)
    check(lines)
    assert several["outcome"] == "an image"
    assert int(str(several["memory"])) < 32 * MIB
    assert len(lines) >= len(hostile)
    for line in lines:
        assert line["outcome"] == "broken", line
        assert int(str(line["memory"])) < 64 * MIB, line
