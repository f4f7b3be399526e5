"""Rasters that are damaged, hostile or huge: each decodes or is a `BrokenImage`, in bounds of time and memory."""

import io
import json
import random
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator

import imagecodecs
import numpy as np
import pytest
import tifffile
from test_malformed import BROKEN, EITHER, IMAGE, LONG, MIB, SHORT, UNDEFINED, Entry, bomb, ihdr, png, tiff

SECONDS = 2.0
"""Of processor time, for each file."""
MEMORY = 256 * MIB
"""For all of the files below."""

MAKERS: list[tuple[str, Callable[[], dict[str, bytes | list[bytes]]]]] = []

NOISE = np.random.default_rng(0).integers(0, 60000, (24, 20, 3), dtype=np.uint16)
PLANES = np.ascontiguousarray(np.moveaxis(NOISE, -1, 0))


def files(outcome: str) -> Callable[[Callable[[], dict[str, bytes | list[bytes]]]], None]:
    return lambda make: MAKERS.append((outcome, make))


def written(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **({"photometric": "minisblack", "metadata": None} | options))
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    np.save(buffer := io.BytesIO(), array)
    return buffer.getvalue()


def npz(compressed: bool = True, **arrays: np.ndarray) -> bytes:
    (np.savez_compressed if compressed else np.savez)(buffer := io.BytesIO(), **arrays)
    return buffer.getvalue()


def whole_files() -> Iterator[tuple[str, bytes]]:
    contig = {"planarconfig": "contig"}
    yield "TIFF", written(NOISE, **contig)
    yield "TIFF of planes", written(PLANES, planarconfig="separate")
    yield "TIFF of pages", written(PLANES)
    yield "TIFF in tiles", written(NOISE, compression="deflate", tile=(16, 16), **contig)
    yield "LZW TIFF", written(NOISE, compression="lzw", predictor=True, **contig)
    yield "zstd BigTIFF", written(NOISE.astype("f4"), compression="zstd", predictor=3, bigtiff=True, **contig)
    yield "PackBits TIFF", written(NOISE.astype("u1"), compression="packbits", **contig)
    yield "JPEG TIFF", written(NOISE.astype("u1"), compression="jpeg", photometric="rgb")
    yield "big-endian TIFF", written(NOISE.astype("f2"), byteorder=">", **contig)
    yield "npy", npy(NOISE)
    yield "npz", npz(compressed=False, a=NOISE)
    yield "packed npz", npz(a=NOISE[..., 0], b=NOISE[..., 1], c=NOISE[..., 2])
    yield "PNG of 16 bit", imagecodecs.png_encode(NOISE)


@files(IMAGE)
def _() -> dict[str, bytes]:
    return dict(whole_files())


@files(EITHER)
def _() -> dict[str, list[bytes]]:
    damaged = {}
    for label, whole in whole_files():
        draw = random.Random(whole)
        steps = range(0, len(whole), 1 + len(whole) // 40)
        flips = [(draw.randrange(len(whole)), 1 << draw.randrange(8)) for _ in steps]
        # where the parts of a file are told
        flips += [(draw.randrange(min(len(whole), 300)), 1 << draw.randrange(8)) for _ in range(60)]
        damaged |= {
            f"{label} cut off": [whole[:at] for at in steps[1:]],
            f"{label} with a bit flipped": [
                whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :] for at, bit in flips
            ],
            f"{label} with a hole": [whole[:at] + bytes(len(whole[at : at + 64])) + whole[at + 64 :] for at in steps],
            f"{label} with a part too many": [whole[:at] + b"\xff" * 32 + whole[at:] for at in steps],
            f"{label} without a part": [whole[:at] + whole[at + 9 :] for at in steps],
        }
    return damaged


@files(BROKEN)
def _() -> dict[str, list[bytes]]:
    # the pixels, which end the file, are not all there
    whole = [(label, data) for label, data in whole_files() if "TIFF" in label and "pages" not in label]
    return {f"{label} with half of its pixels": [data[: -len(data) // 4]] for label, data in whole}


# TIFF


def picture(width: int, height: int, *more: Entry, pixels: bytes = b"", **options: object) -> bytes:
    """A TIFF of 16 bit in grey, in one strip behind the directory; `more` takes the place of what it has."""
    given = {entry[0] for entry in more}
    entries: list[Entry] = [
        (256, LONG, 1, struct.pack("<L", width)),
        (257, LONG, 1, struct.pack("<L", height)),
        (258, SHORT, 1, struct.pack("<H", 16)),
        (259, SHORT, 1, struct.pack("<H", 1)),
        (262, SHORT, 1, struct.pack("<H", 1)),
        (273, LONG, 1, struct.pack("<L", 8)),
        (277, SHORT, 1, struct.pack("<H", 1)),
        (278, LONG, 1, struct.pack("<L", height)),
        (279, LONG, 1, struct.pack("<L", len(pixels))),
    ]
    return tiff(*(entry for entry in entries if entry[0] not in given), *more, pixels=pixels, **options)


def strip(data: bytes, compression: int, side: int) -> bytes:
    """A picture whose one strip is this."""
    method = (259, SHORT, 1, struct.pack("<H", compression))
    start = len(picture(side, side, method))
    return picture(side, side, method, (273, LONG, 1, struct.pack("<L", start)), pixels=data)


def longs(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}L", *values)


def chain(pages: int, back: bool) -> bytes:
    """Pages of one tag."""
    starts = [8 + 18 * number for number in range(pages)]
    behind = [*starts[1:], 8 if back else 0]
    return b"II*\0\x08\0\0\0" + b"".join(struct.pack("<HHHLLL", 1, 256, LONG, 1, 9, then) for then in behind)


@files(BROKEN)
def _() -> dict[str, bytes]:
    frame = (
        b"\xff\xd8\xff\xc0\0\x0b\x08\xff\xdc\xff\xdc\1\1\x11\0\xff\xda\0\x08\1\1\0\0\x3f\0" + bytes(99) + b"\xff\xd9"
    )
    tiles: list[Entry] = [
        (322, LONG, 1, longs(29_000)),
        (323, LONG, 1, longs(29_000)),
        (324, LONG, 1, longs(8)),
        (325, LONG, 1, longs(8)),
    ]
    whole = written(NOISE)
    return {
        "TIFF of more pixels than a model needs": picture(8193, 8193),
        "TIFF of the most pixels": picture(2**32 - 1, 2**32 - 1),
        "TIFF of no pixels": picture(0, 0),
        "TIFF of the most channels": picture(30_000, 1, (277, SHORT, 1, struct.pack("<H", 65535))),
        "TIFF of more bytes than a model needs": picture(8000, 8000, (277, SHORT, 1, struct.pack("<H", 9))),
        "TIFF without strips": picture(9, 9),
        "TIFF of one huge tile": picture(1, 1, *tiles, (278, LONG, 1, longs(1))),
        "TIFF of a page that leads to itself": chain(1, back=True),
        "TIFF of pages in a circle": chain(3, back=True),
        "TIFF of 100,000 pages": chain(100_000, back=False),
        "TIFF of strips that are the same bytes": picture(
            1,
            20_000,
            (259, SHORT, 1, struct.pack("<H", 8)),
            (278, LONG, 1, longs(1)),
            (273, LONG, 20_000, longs(8) * 20_000),
            (279, LONG, 20_000, longs(100_000) * 20_000),
        ),
        "TIFF of fewer strips than it needs": picture(9, 9, (278, LONG, 1, longs(1)), pixels=bytes(162)),
        "TIFF with a JPEG of 65,500 pixels a side": strip(frame, 7, 16),
        "TIFF of another compression": strip(zlib.compress(bytes(512)), 34712, 16),
        "TIFF of complex numbers": written(NOISE[..., 0].astype("c8")),
        "TIFF of pages that differ": two_pages(),
        "TIFF with odd samples": picture(9, 9, (258, SHORT, 1, struct.pack("<H", 65)), pixels=bytes(400)),
        "TIFF with a text for nodata": written(NOISE, extratags=[(42113, "s", 0, "none", True)], planarconfig="contig"),
        "TIFF of a depth": picture(9, 9, (32997, LONG, 1, longs(2)), pixels=bytes(400)),
        "TIFF with many planes of Stk": picture(
            9,
            9,
            (33628, LONG, 60_000, longs(*([1] * 60_000))),
            (33629, LONG, 60_000, longs(*([1] * 60_000))),
            pixels=bytes(162),
        ),
        "TIFF signature": whole[:4],
        "TIFF head": whole[:8],
    }


def two_pages() -> bytes:
    with tifffile.TiffWriter(buffer := io.BytesIO()) as writer:
        writer.write(NOISE[..., 0], photometric="minisblack", metadata=None)
        writer.write(NOISE[:9, :9, 0], photometric="minisblack", metadata=None)
    return buffer.getvalue()


@files(EITHER)
def _() -> dict[str, bytes]:
    items = "<Item name='' sample='0' role='description'>x</Item>" * 400_000
    said = [(42112, "s", 0, items, True)]
    return {
        "TIFF of a strip of 100 MB of zeros, deflated": strip(bomb(100), 8, 16),
        "TIFF of a strip of 100 MB of zeros, by PackBits": strip(b"\x81\0" * 800_000, 32773, 16),
        "TIFF of a strip of 100 MB of zeros, by LZW": strip(imagecodecs.lzw_encode(bytes(100 * MIB)), 5, 16),
        "TIFF of a strip of 100 MB of zeros, by zstd": strip(imagecodecs.zstd_encode(bytes(100 * MIB)), 50000, 16),
        "TIFF with 20 MB about its bands": written(NOISE[..., 0], extratags=said),
        "TIFF of EXIF that counts on and on": picture(9, 9, (34665, LONG, 1, longs(8)), pixels=bytes(162)),
        "TIFF with metadata of ImageJ": picture(
            9, 9, (50838, LONG, 2, longs(9, 9)), (50839, UNDEFINED, 64, b"IJIJ" + b"\xff" * 60), pixels=bytes(162)
        ),
    }


# numpy's files


def header(text: str, version: bytes = b"\1\0", behind: bytes = b"") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode() + behind


def described(shape: object, kind: str = "<u2", behind: bytes = b"", order: bool = False) -> bytes:
    return header(f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}}}\n", behind=behind)


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def understated() -> bytes:
    """An archive of a member that unpacks to 100 MB and says that it has as many bytes as a small picture."""
    data = bytearray(archive({"a.npy": npy(NOISE) + bytes(100 * MIB)}))
    size = struct.pack("<L", len(npy(NOISE)))
    data[22:26] = size
    at = data.rindex(b"PK\1\2")
    data[at + 24 : at + 28] = size
    return bytes(data)


@files(BROKEN)
def _() -> dict[str, bytes]:
    return {
        "npy of more pixels than a model needs": described((8193, 8193)),
        "npy of the most pixels": described((2**40, 2**40, 3)),
        "npy of a negative size": described((-1, -9, 3)),
        "npy of no pixels": described((0, 9, 3)),
        "npy of one axis": described((9,), behind=bytes(18)),
        "npy of four axes": described((1, 3, 9, 9), behind=bytes(486)),
        "npy of too many channels": described((2000, 2000, 2000)),
        "npy with too few bytes": described((9, 9, 3), behind=bytes(400)),
        "npy with too many bytes": described((9, 9, 3), behind=bytes(500)),
        "npy of objects": npy_objects(),
        "npy of texts": npy(np.full((9, 9), "text")),
        "npy of complex numbers": npy(np.ones((9, 9), "c8")),
        "npy of times": npy(np.zeros((9, 9), "M8[s]")),
        "npy of fields": npy(np.zeros((9, 9), [("a", "u1"), ("b", "f4")])),
        "npy of a later version": header("{}", b"\3\0"),
        "npy of brackets": header("(" * 9000),
        "npy of a program": header("__import__('os').abort()"),
        "npy of a long header": b"\x93NUMPY\2\0" + struct.pack("<L", 2**31 - 1) + bytes(9000),
        "npy signature": b"\x93NUMPY",
        "npz of nothing": archive({}),
        "npz of a text": archive({"a.txt": b"text"}),
        "npz of an image": archive({"a.npy": imagecodecs.png_encode(NOISE)}),
        "npz of different sizes": npz(a=NOISE[..., 0], b=NOISE[:9, :9, 0]),
        "npz of pictures": npz(a=NOISE, b=NOISE),
        "npz of 30,000 arrays": archive({f"{number}.npy": b"" for number in range(30_000)}, zipfile.ZIP_STORED),
        "npz of 2,000 arrays": archive({f"{number}.npy": b"" for number in range(2000)}, zipfile.ZIP_STORED),
        "npz by another method": archive({"a.npy": npy(NOISE)}, zipfile.ZIP_LZMA),
        "npz of 100 MB behind an array": archive({"a.npy": npy(NOISE) + bytes(100 * MIB)}),
        "npz of 100 MB for an array that is small": archive({"a.npy": npy(NOISE[:1, :1]) + bytes(100 * MIB)}),
        "npz that understates what it holds": understated(),
        "npz signature": b"PK\3\4",
    }


def npy_objects() -> bytes:
    np.save(buffer := io.BytesIO(), np.full((9, 9), None), allow_pickle=True)
    return buffer.getvalue()


@files(BROKEN)
def _() -> dict[str, bytes]:
    return {
        "PNG of 16 bit and the most pixels": png(2**31 - 1, 2**31 - 1, 16, 6, b""),
        "PNG of 16 bit with too few rows": png(9, 9, 16, 2, bytes(55)),
        "PNG of 16 bit without rows": png(9, 9, 16, 2, b""),
        "PNG of 16 bit and two headers": png(9, 9, 16, 2, bytes(495), (b"IHDR", ihdr(9999, 9999, 16, 2, 0, 0, 0))),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What became of every file, in one process that decodes them one after the other."""
    folder = tmp_path_factory.mktemp("files")
    with warnings.catch_warnings(action="ignore"):  # of duplicate names in archives
        made = [(outcome, name, data) for outcome, make in MAKERS for name, data in make().items()]
    entries = []
    for outcome, name, data in made:
        for number, content in enumerate([data] if isinstance(data, bytes) else data):
            (folder / str(len(entries))).write_bytes(content)
            entries.append({"kind": name, "number": number, "expected": outcome, "bytes": len(content)})
    command = [sys.executable, "-c", CHILD, str(folder), str(len(entries))]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, errors="replace")
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    assert child.returncode == 0, f"{child.returncode} after {entries[len(lines)]}: {child.stderr}"
    return [entry | line for entry, line in zip(entries, lines, strict=True)]


CHILD = """
import json, sys, time
from pathlib import Path
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.decoding.multichannel import channel_names, decode_raster

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

for number in range(int(sys.argv[2])):
    data = (Path(sys.argv[1]) / str(number)).read_bytes()
    before, start = peak(), time.process_time()
    try:
        names = channel_names([(None, data)])
        image = decode_raster([(None, data)], ChannelSpec(len(names)))
        shape = image.values.shape[2] == len(names) and image.values.flags.writeable
        outcome, reason = "an image" if shape else f"{image.values.shape} of {names}", ""
    except BrokenImage as error:
        outcome, reason = "broken", str(error)
    except BaseException as error:
        outcome, reason = type(error).__name__, str(error)
    seconds = time.process_time() - start
    print(json.dumps({"outcome": outcome, "reason": reason, "seconds": seconds, "memory": peak() - before}), flush=True)
"""


@pytest.mark.slow
def test_every_file_is_an_image_or_broken_as_it_should(results: list[dict[str, object]]) -> None:
    assert len({entry["kind"] for entry in results}) > 120
    wrong = [entry for entry in results if entry["outcome"] not in (IMAGE, BROKEN)]
    wrong += [entry for entry in results if entry["expected"] not in (EITHER, entry["outcome"])]
    assert not [f"{entry['kind']}: {entry['outcome']} {entry['reason']}" for entry in wrong]


@pytest.mark.slow
def test_every_refusal_is_a_line_for_a_reader(results: list[dict[str, object]]) -> None:
    reasons = [str(entry["reason"]) for entry in results if entry["outcome"] == BROKEN]
    assert len(reasons) > 500
    assert not [reason for reason in reasons if not reason or "\n" in reason or " at 0x" in reason or len(reason) > 500]


@pytest.mark.slow
def test_no_file_takes_long(results: list[dict[str, object]]) -> None:
    assert not [entry for entry in results if float(str(entry["seconds"])) > SECONDS]


@pytest.mark.slow
def test_no_file_takes_much_memory(results: list[dict[str, object]]) -> None:
    large = [entry for entry in results if int(str(entry["memory"])) > 16 * MIB]
    assert sum(int(str(entry["memory"])) for entry in results) < MEMORY, large
