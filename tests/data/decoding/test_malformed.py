"""Image files that are damaged, hostile, huge, or no images at all: each decodes or is a `BrokenImage`, in bounds."""

import gzip
import io
import json
import pickle
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_rgb import FORMATS, NOISE, encode, png

from swin_mim.data.decoding.decode_limits import MAX_MEMORY, MAX_PIXELS

SECONDS = 2.0
"""Of processor time, for each decoding; the slowest file takes 0.8 on a machine that is not busy."""
MIB = 2**20
MEMORY = 256 * MIB
"""For each of the files below, which are small pictures or none."""

IMAGE, BROKEN, EITHER = "an image", "broken", "an image, or broken"
MAKERS: list[tuple[str, Callable[[], dict[str, bytes | list[bytes]]]]] = []
"""What must become of files, and what makes them, by kind."""


def files(outcome: str) -> Callable[[Callable[[], dict[str, bytes | list[bytes]]]], None]:
    return lambda make: MAKERS.append((outcome, make))


# damage of any format


@files(EITHER)  # the last bytes of a file may be dispensable
def _() -> dict[str, list[bytes]]:
    damaged = {}
    for label, whole in whole_files():
        draw = random.Random(whole)
        steps = range(0, len(whole), 1 + len(whole) // 80)
        flips = [(draw.randrange(len(whole)), 1 << draw.randrange(8)) for _ in steps]
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


@files(IMAGE)
def _() -> dict[str, bytes]:
    return {f"{label} with other data behind it": whole + bytes(range(256)) * 9 for label, whole in whole_files()}


@files(BROKEN)
def _() -> dict[str, bytes]:
    return {f"{label} behind other data": b"\n" + whole for label, whole in whole_files()}


def whole_files() -> Iterator[tuple[str, bytes]]:
    for name, options in FORMATS:
        yield " ".join([name, *map(str, options)]), encode(NOISE, name, **options)


# what is no image, under the name of one


@files(BROKEN)
def _() -> dict[str, bytes]:
    with zipfile.ZipFile(zipped := io.BytesIO(), "w") as archive:
        archive.writestr("a.png", encode(NOISE, "PNG"))
    modes = {"BLP": "P", "XBM": "1"}
    others = ("PPM", "ICO", "TGA", "PCX", "SGI", "DDS", "PDF", "EPS", "ICNS", *modes)
    small = NOISE.resize((16, 16))
    return {
        "zip archive": zipped.getvalue(),
        **{f"{name}, which is not asked for": encode(small.convert(modes.get(name, "RGB")), name) for name in others},
    }


@files(BROKEN)
def _() -> dict[str, bytes]:
    return {
        "nothing": b"",
        "one byte": b"\xff",
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "text": "Häuser\n".encode() * 40,
        "text of two bytes": "Häuser\n".encode("utf-16"),
        "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "json": b'{"image": null}',
        "gzip": gzip.compress(encode(NOISE, "PNG")),
        "pickle": pickle.dumps(NOISE.tobytes()),
        "wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
        "mp4": b"\0\0\0\x20ftypisom" + bytes(200),
        "program": b"\x7fELF\2\1\1" + bytes(200),
        "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
        "zeros": bytes(4000),
        "ones": b"\xff" * 4000,
        "noise": random.Random(3).randbytes(4000),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n",
        "photoshop": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(40),
        "JPEG signature": b"\xff\xd8\xff",
        "JPEG of two marks": b"\xff\xd8\xff\xd9",
        "PNG signature": b"\x89PNG\r\n\x1a\n",
        "GIF signature": b"GIF89a",
        "WEBP signature": b"RIFF\x1a\0\0\0WEBPVP8L",
        "BMP signature": b"BM",
        "TIFF signature": b"II*\0",
    }


# PNG

ROW = b"\0" + bytes(3)  # of a picture of one pixel


def chunks(*parts: tuple[bytes, bytes], count: int = 1) -> bytes:
    framed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"".join(framed) * count


def dotted_png(*parts: tuple[bytes, bytes], before: bytes = b"", after: bytes = b"", header: bytes = b"") -> bytes:
    """A picture of one pixel, with chunks of any kind."""
    first = (b"IHDR", header or struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    parts = parts or ((b"IDAT", zlib.compress(ROW)),)
    return b"\x89PNG\r\n\x1a\n" + chunks(first) + before + chunks(*parts) + after + chunks((b"IEND", b""))


def ihdr(width: int, height: int, *rest: int) -> bytes:
    return struct.pack(">IIBBBBB", width, height, *rest)


def bomb(megabytes: int) -> bytes:
    squeeze = zlib.compressobj(1)
    return b"".join(squeeze.compress(bytes(2**20)) for _ in range(megabytes)) + squeeze.flush()


def with_crc(data: bytes, change: int) -> bytes:
    at = data.index(b"IDAT") - 5
    return data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]


@files(BROKEN)
def _() -> dict[str, bytes]:
    return {
        "PNG of more pixels than a model needs": png(8193, 8193, 8, 2, b""),
        "PNG of the most pixels": png(2**31 - 1, 2**31 - 1, 8, 6, b""),
        "PNG of no pixels": png(0, 0, 8, 2, b""),
        "PNG of no height": png(9, 0, 8, 2, b""),
        "PNG ribbon": png(2**20, 1, 8, 0, bytes(2**20 + 1)),
        "PNG without pixels": dotted_png((b"tEXt", b"a\0b")),
        "PNG with too few rows": png(9, 9, 8, 2, ROW),
        "PNG with a text of 100 MB": dotted_png(before=chunks((b"zTXt", b"a\0\0" + bomb(100)))),
        "PNG with a unicode text of 100 MB": dotted_png(before=chunks((b"iTXt", b"a\0\1\0\0\0" + bomb(100)))),
        "PNG with 90 texts of a MB": dotted_png(
            before=chunks((b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 1))), count=90)
        ),
        "PNG with a colour profile of 100 MB": dotted_png(before=chunks((b"iCCP", b"a\0\0" + bomb(100)))),
        "PNG with a million texts": dotted_png(before=chunks((b"tEXt", b"a\0b"), count=10**6)),
        "PNG with a million empty chunks": dotted_png(before=chunks((b"prVt", b""), count=10**6)),
        "PNG of a million empty parts": dotted_png(before=chunks((b"IDAT", b""), count=10**6)),
        "PNG with a wrong checksum": with_crc(dotted_png(), 1),
        "PNG with a chunk beyond the end": dotted_png()[:33] + b"\x7f\xff\xff\xffIDAT" + bytes(90),
        "PNG with rubbish for pixels": dotted_png((b"IDAT", random.Random(4).randbytes(300))),
        "PNG with two headers": dotted_png(before=chunks((b"IHDR", ihdr(9999, 9999, 8, 2, 0, 0, 0)))),
        "PNG of an unknown colour type": dotted_png(header=ihdr(1, 1, 8, 7, 0, 0, 0)),
        "PNG of three bits": dotted_png(header=ihdr(1, 1, 3, 0, 0, 0, 0)),
        "PNG with an unknown filter": png(3, 3, 8, 0, b"\x09abc" * 3),
        "PNG with a short header": dotted_png(header=b"\0\0\0\1"),
        "PNG with a chunk of no name": dotted_png(before=b"\0\0\0\0\0\0\0\0\0\0\0\0"),
    }


@files(EITHER)
def _() -> dict[str, bytes]:
    return {
        "PNG of an unknown interlacing": dotted_png(header=ihdr(1, 1, 8, 2, 0, 0, 9)),
        "PNG with 100 MB of rows too many": dotted_png((b"IDAT", bomb(100))),
        "PNG with a million chunks behind its pixels": dotted_png(after=chunks((b"tEXt", b"a\0b"), count=10**6)),
        "PNG without a palette": png(2, 1, 8, 3, b"\0\0\1"),
        "PNG with an empty palette": png(2, 1, 8, 3, b"\0\0\1", (b"PLTE", b"")),
        "PNG with a huge palette": png(2, 1, 8, 3, b"\0\0\1", (b"PLTE", bytes(3000))),
        "PNG with transparency for no colour": png(2, 1, 8, 3, b"\0\0\1", (b"PLTE", bytes(6)), (b"tRNS", bytes(999))),
        "PNG of four billion frames": dotted_png(before=chunks((b"acTL", b"\xff" * 8))),
        "PNG with a frame outside": dotted_png(
            before=chunks(
                (b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", struct.pack(">IIIIIHHBB", 0, 9, 9, 9, 9, 1, 1, 0, 0))
            )
        ),
        "PNG with EXIF that counts on and on": dotted_png(
            before=chunks((b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(60)))
        ),
        "PNG with EXIF in a text": dotted_png(before=chunks((b"tEXt", b"Raw profile type exif\0\n\n\n" + b"zz" * 50))),
        "PNG without an end": dotted_png()[:-12],
    }


# TIFF

Entry = tuple[int, int, int, bytes | int]  # tag, type, count, values or where they are
SHORT, LONG, RATIONAL, UNDEFINED = 3, 4, 5, 7


def tiff(*entries: Entry, pixels: bytes = b"", then: int = 0, big: bool = False, tags: int | None = None) -> bytes:
    """The directory at 8 (16), then values that are too long for it, then the pixels."""
    start, width, inline = (16, 20, 8) if big else (8, 12, 4)
    tail = start + (8 if big else 2) + width * len(entries) + inline
    directory, values = b"", b""
    for tag, number, count, content in sorted(entries, key=lambda entry: entry[0]):
        if isinstance(content, bytes) and len(content) > inline:
            place, values = tail + len(values), values + content + bytes(len(content) % 2)
        else:
            place = content if isinstance(content, int) else int.from_bytes(content.ljust(inline, b"\0"), "little")
        directory += struct.pack("<HHQQ" if big else "<HHLL", tag, number, count, place)
    amount = struct.pack("<Q" if big else "<H", len(entries) if tags is None else tags)
    head = b"II\x2b\0\x08\0\0\0\x10\0\0\0\0\0\0\0" if big else b"II*\0\x08\0\0\0"
    return head + amount + directory + struct.pack("<Q" if big else "<L", then) + values + pixels


def grey(*others: Entry, width: int = 4, height: int = 4, **options: object) -> bytes:
    """A grey TIFF of bytes; the pixels are any, such as the header's."""
    usual: dict[int, Entry] = {
        256: (256, LONG, 1, width),
        257: (257, LONG, 1, height),
        258: (258, SHORT, 1, 8),
        259: (259, SHORT, 1, 1),
        262: (262, SHORT, 1, 1),
        273: (273, LONG, 1, 0),
        277: (277, SHORT, 1, 1),
        278: (278, LONG, 1, height),
        279: (279, LONG, 1, min(width * height, 2**32 - 1)),
    }
    return tiff(*(usual | {entry[0]: entry for entry in others}).values(), **options)  # type: ignore[arg-type]


def longs(values: Iterable[int]) -> bytes:
    return np.fromiter(values, dtype="<u4").tobytes()


@files(IMAGE)
def _() -> dict[str, bytes]:
    return {
        "TIFF by hand": grey(),
        "BigTIFF by hand": grey(big=True),
        "TIFF that names itself as its next page": grey(then=8),
    }


@files(BROKEN)
def _() -> dict[str, bytes]:
    return {
        "TIFF of more pixels than a model needs": grey(width=8193, height=8193),
        "TIFF of the most pixels": grey(width=2**32 - 1, height=2**32 - 1),
        "TIFF of JPEG that goes over its pixels 90 times": grey(
            (259, SHORT, 1, 7),
            (273, LONG, 1, 122),
            (279, LONG, 1, 2**20),
            width=8192,
            height=8192,
            pixels=scans(90, 8192).ljust(2**20, b"\0"),
        ),
        "TIFF of no pixels": grey(width=0, height=0),
        "TIFF with its directory beyond the end": b"II*\0\xff\xff\xff\xff" + bytes(100),
        "TIFF with its directory in its header": b"II*\0\0\0\0\0" + bytes(100),
        "TIFF without tags": tiff(),
        "TIFF of 65535 tags": tiff(tags=65535, pixels=bytes(12 * 65535)),
        "BigTIFF of the most tags": tiff(tags=2**64 - 1, big=True, pixels=bytes(20 * 10**5)),
        "TIFF with two million resolutions": grey((282, RATIONAL, 2 * 10**6, struct.pack("<LL", 72, 1) * 2 * 10**6)),
        "TIFF with a million strips": grey((273, LONG, 10**6, longs(range(10**6))), (278, LONG, 1, 1), height=29_999),
        "TIFF whose tags are all the same megabytes": tiff(
            *((number, UNDEFINED, 2**22, 2000) for number in range(40000, 40100)), pixels=bytes(2**22)
        ),
        "TIFF with EXIF of a million numbers": grey(
            (34665, LONG, 1, 134),
            pixels=tiff((40000, RATIONAL, 10**6, 152), pixels=struct.pack("<LL", 1, 3) * 10**6)[8:],
        ),
        "TIFF with its pixels beyond the end": grey((273, LONG, 1, 2**32 - 1)),
        "TIFF of 65535 channels": grey((277, SHORT, 1, 65535)),
        "TIFF of 64 bits": grey((258, SHORT, 1, 64)),
        "TIFF of an unknown compression": grey((259, SHORT, 1, 4711)),
        "TIFF of rubbish in LZW": grey((259, SHORT, 1, 5)),
        "TIFF of rubbish in deflate": grey((259, SHORT, 1, 8)),
        "TIFF of rubbish in JPEG": grey((259, SHORT, 1, 7)),
        "TIFF of rubbish in old JPEG": grey((259, SHORT, 1, 6)),
        "TIFF of tiles without a size": tiff(
            (256, LONG, 1, 4), (257, LONG, 1, 4), (258, SHORT, 1, 8), (324, LONG, 1, 8)
        ),
        "TIFF of text for its width": grey((256, 2, 4, b"wide")),
        "TIFF of half a pixel": grey((256, RATIONAL, 1, struct.pack("<LL", 1, 2))),
    }


@files(EITHER)
def _() -> dict[str, bytes]:
    return {
        "TIFF with a tag of 4 GB": grey((40000, UNDEFINED, 2**32 - 1, 8)),
        "TIFF of strips without rows": grey((278, LONG, 1, 0)),
        "TIFF of no bytes": grey((279, LONG, 1, 0)),
        "TIFF of 4 GB in a strip": grey((259, SHORT, 1, 32773), (279, LONG, 1, 2**32 - 1)),
        "TIFF of rubbish in packbits": grey((259, SHORT, 1, 32773)),
        "TIFF of rubbish in fax": grey((259, SHORT, 1, 4), (258, SHORT, 1, 1)),
        "TIFF whose EXIF is itself": grey((34665, LONG, 1, 8)),
        "TIFF whose EXIF is beyond the end": grey((34665, LONG, 1, 2**31)),
        "TIFF of an unknown orientation": grey((274, SHORT, 1, 255)),
        "TIFF of 30000 strips": grey(
            (273, LONG, 30_000, longs([0] * 30_000)), (278, LONG, 1, 1), width=99, height=30_000
        ),
        "TIFF of tiles of a pixel": tiff(
            (256, LONG, 1, 250),
            (257, LONG, 1, 250),
            (258, SHORT, 1, 8),
            (262, SHORT, 1, 1),
            (322, LONG, 1, 1),
            (323, LONG, 1, 1),
            (324, LONG, 62_500, longs(range(62_500))),
        ),
    }


@files(IMAGE)
def _() -> dict[str, bytes]:
    return {
        "TIFF of 500 pages": encode(NOISE, "TIFF", save_all=True, append_images=[NOISE.resize((2, 2))] * 499),
        "TIFF of strips of JPEG": encode(NOISE.resize((900, 900)), "TIFF", compression="jpeg", strip_size=8 * 2700),
        "BMP of a quarter of a million runs": bmp_of_runs(500, (b"\1\7" * 500 + b"\0\0") * 500),
    }


# JPEG


def segments(*parts: tuple[int, bytes], count: int = 1) -> bytes:
    return b"".join(b"\xff" + bytes([mark]) + struct.pack(">H", len(data) + 2) + data for mark, data in parts) * count


JPEG = encode(NOISE, "JPEG", quality=90)
START = JPEG.index(b"\xff\xc0")  # of the frame: precision, height, width, components
EXIF = b"Exif\0\0II*\0\x08\0\0\0"


def inserted(data: bytes) -> bytes:
    return JPEG[:2] + data + JPEG[2:]


def frame(height: int, width: int, precision: int = 8, components: int = 3) -> bytes:
    head = struct.pack(">BHHB", precision, height, width, components)
    return JPEG[: START + 4] + head + JPEG[START + 10 :]


def scans(count: int, side: int) -> bytes:
    """A progressive JPEG that refines its last coefficients again and again."""
    data = encode(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + b"\xff\xd9"


@files(BROKEN)
def _() -> dict[str, bytes]:
    return {
        "JPEG of more pixels than a model needs": frame(8193, 8193),
        "JPEG of the most pixels": frame(65535, 65535),
        "JPEG of no width": frame(9, 0),
        "JPEG of no height": frame(0, 9),
        "JPEG of 12 bits": frame(23, 31, precision=12),
        "JPEG of no components": frame(23, 31, components=0),
        "JPEG of 255 components": frame(23, 31, components=255),
        "JPEG without quantisation": JPEG.replace(b"\xff\xdb", b"\xff\xe9"),
        "JPEG with a table too long": inserted(segments((0xC4, b"\0" + b"\xff" * 16 + bytes(300)))),
        "JPEG that goes over its pixels a thousand times": scans(1000, 4096),
        "JPEG of two thousand scans": scans(2000, 16),
        "JPEG with a million comments": inserted(segments((0xFE, b""), count=10**6)),
        "JPEG with 200 parts of EXIF": inserted(segments((0xE1, EXIF + bytes(60_000)), count=200)),
        "JPEG with 40 MB before its pixels": inserted(segments((0xE5, bytes(60_000)), count=700)),
        "JPEG of lossless kind": JPEG.replace(b"\xff\xc0", b"\xff\xc3"),
        "JPEG without a frame": JPEG[:START] + JPEG[START + 19 :],
        "JPEG of zeros after its header": JPEG[: JPEG.index(b"\xff\xda") + 14] + bytes(20),
    }


@files(EITHER)
def _() -> dict[str, bytes]:
    return {
        "JPEG without tables": JPEG.replace(b"\xff\xc4", b"\xff\xe9"),
        "JPEG of more pixels than it has": frame(2300, 3100),
        "JPEG with a segment of no length": inserted(b"\xff\xe5\0\0"),
        "JPEG with a segment beyond the end": inserted(b"\xff\xe5\xff\xff"),
        "JPEG with a hundred fill bytes": inserted(b"\xff" * 100),
        "JPEG of arithmetic kind": JPEG.replace(b"\xff\xc0", b"\xff\xc9"),
        "JPEG with an orientation of many values": inserted(
            segments((0xE1, EXIF + b"\1\0\x12\1\3\0\xff\xff\0\0\0\0\0\0"))
        ),
        "JPEG with an orientation that is a fraction": inserted(
            segments((0xE1, EXIF + b"\1\0\x12\1\5\0\1\0\0\0\x1a\0\0\0" + bytes(12)))
        ),
        "JPEG with EXIF that counts on and on": inserted(segments((0xE1, EXIF + b"\xff\xff" + b"\x12\1\4\0" * 9000))),
        "JPEG with EXIF of 5000 long tags": inserted(
            segments((0xE1, EXIF + b"\x88\x13" + b"".join(struct.pack("<HHLL", i, 7, 60_000, 8) for i in range(5000))))
        ),
        "JPEG with a resolution of 8000 fractions": inserted(
            segments((0xE1, EXIF + b"\2\0" + struct.pack("<HHLLHHLL", 282, 5, 8000, 8, 296, 3, 1, 2) + bytes(65_000)))
        ),
        "JPEG with half a colour profile": inserted(segments((0xE2, b"ICC_PROFILE\0\7\xff" + bytes(100)))),
        "JPEG with photoshop blocks of nothing": inserted(
            segments((0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5400), count=200)
        ),
        "JPEG with pictures that it has not": inserted(
            segments(
                (0xE2, b"MPF\0II*\0\x08\0\0\0\2\0" + struct.pack("<HHLLHHLL", 45057, 4, 1, 2**31, 45058, 7, 48, 60))
            )
        ),
        "JPEG without an end": JPEG[:-2],
    }


# GIF, BMP, WebP

GIF = encode(NOISE.quantize(16), "GIF")
SCREEN = GIF[:13] + GIF[13 : 13 + 48]  # header, palette of 16
PICTURE = GIF[GIF.index(b",", 61) :]


def screen(width: int, height: int) -> bytes:
    return GIF[:6] + struct.pack("<HH", width, height) + GIF[10:]


@files(IMAGE)
def _() -> dict[str, bytes]:
    return {
        "GIF by hand": SCREEN + PICTURE,
        "GIF of a hundred thousand frames": SCREEN + PICTURE[:-1] + b",\0\0\0\0\1\0\1\0\0\2\2L\1\0" * 10**5 + b";",
        "GIF with comments": SCREEN + b"!\xfe\x05hello\0" * 100 + PICTURE,
    }


@files(BROKEN)
def _() -> dict[str, bytes]:
    return {
        "GIF of more pixels than a model needs": screen(65535, 65535),
        "GIF with a frame of the most pixels": SCREEN + PICTURE[:5] + b"\xff" * 4 + PICTURE[9:],
        "GIF with a million comments": SCREEN + b"!\xfe\1a\0" * 10**6 + PICTURE,
        "GIF with a comment of 20 MB": SCREEN + b"!\xfe" + (b"\xff" + bytes(255)) * 80_000 + b"\0" + PICTURE,
        "GIF without a frame": SCREEN + b";",
        "GIF with an extension without an end": SCREEN + b"!\xfe\xff",
        "GIF of codes too short": SCREEN + PICTURE[:10] + b"\0\4abcd\0;",
        "GIF of codes too long": SCREEN + PICTURE[:10] + b"\x0d\4abcd\0;",
        "GIF of rubbish": SCREEN + PICTURE[:10] + b"\4\xff" + b"\xff" * 255 + b"\0;",
        "GIF of empty blocks": SCREEN + PICTURE[:10] + b"\4" + bytes(5000),
    }


@files(EITHER)
def _() -> dict[str, bytes]:
    return {
        "GIF of no size": screen(0, 0),
        "GIF with a frame of no size": SCREEN + PICTURE[:5] + bytes(4) + PICTURE[9:],
        "GIF without colours": GIF[:10] + b"\0" + GIF[11:13] + PICTURE,
    }


BMP = encode(NOISE, "BMP")


def bmp_of_runs(side: int, runs: bytes) -> bytes:
    start = 14 + 40 + 1024
    info = struct.pack("<LllHHLLllLL", 40, side, side, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<LLL", start + len(runs), 0, start) + info + bytes(1024) + runs


def bmp(at: int, layout: str, *values: int) -> bytes:
    part = struct.pack("<" + layout, *values)
    return BMP[:at] + part + BMP[at + len(part) :]


@files(BROKEN)
def _() -> dict[str, bytes]:
    return {
        "BMP of more pixels than a model needs": bmp(18, "ll", 8193, 8193),
        "BMP of the most pixels": bmp(18, "ll", 2**31 - 1, 2**31 - 1),
        "BMP of negative width": bmp(18, "l", -31),
        "BMP of no size": bmp(18, "ll", 0, 0),
        "BMP of 64 Mpx in short rows": bmp_of_runs(8192, b"\1\7\0\0" * 8192),
        "BMP of five million runs": bmp_of_runs(700, b"\xff\7" * 5 * 10**6),
        "BMP of three bits": bmp(28, "H", 3),
        "BMP of unknown compression": bmp(30, "L", 99),
        "BMP with a header of unknown length": bmp(14, "L", 41),
        "BMP with its pixels beyond the end": bmp(10, "L", 2**32 - 1),
        "BMP of more pixels than it has": bmp(18, "ll", 3100, 2300),
    }


@files(EITHER)
def _() -> dict[str, bytes]:
    return {
        "BMP of four billion colours": bmp(46, "L", 2**32 - 1),
        "BMP of runs": bmp(28, "HL", 8, 1),
        "BMP of runs that end at once": bmp(28, "HL", 8, 1)[:54] + bytes(1024) + b"\0\1" + bytes(100),
        "BMP from top to bottom": bmp(22, "l", -23),
        "BMP of the lowest height": bmp(22, "l", -(2**31)),
    }


WEBP = encode(NOISE, "WEBP", lossless=True)


def riff(*parts: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(name + struct.pack("<L", len(data)) + data + bytes(len(data) % 2) for name, data in parts)
    return b"RIFF" + struct.pack("<L", len(body)) + body


def canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    return b"VP8X", struct.pack("<L", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


VP8L = (b"VP8L", WEBP[20 : 20 + int.from_bytes(WEBP[16:20], "little")])
MOVING = canvas(31, 23, 2), (b"ANIM", bytes(6))


def moved(x: int, y: int) -> tuple[bytes, bytes]:
    place = x.to_bytes(3, "little") + y.to_bytes(3, "little") + (30).to_bytes(3, "little") + (22).to_bytes(3, "little")
    return b"ANMF", place + bytes(4) + VP8L[0] + struct.pack("<L", len(VP8L[1])) + VP8L[1] + bytes(len(VP8L[1]) % 2)


@files(IMAGE)
def _() -> dict[str, bytes]:
    return {
        "WEBP by hand": riff(canvas(31, 23), VP8L),
        "WEBP of ten thousand frames": riff(*MOVING, *[moved(0, 0)] * 10_000),
    }


@files(BROKEN)
def _() -> dict[str, bytes]:
    return {
        "WEBP of more pixels than a model needs": riff(canvas(8193, 8193, 2), (b"ANIM", bytes(6)), moved(0, 0)),
        "WEBP of the most pixels": riff(canvas(2**24, 2**24), VP8L),
        "WEBP of another size than its canvas": riff(canvas(9, 9), VP8L),
        "WEBP without frames": riff(*MOVING),
        "WEBP with a frame outside": riff(*MOVING, moved(900, 900)),
        "WEBP of rubbish": riff((b"VP8L", b"\x2f" + random.Random(5).randbytes(200))),
        "WEBP of lossy rubbish": riff((b"VP8 ", b"\0\0\0\x9d\1\x2a\x40\0\x40\0" + random.Random(6).randbytes(200))),
        "WEBP of no chunks": riff(),
        "WEBP with a chunk beyond the end": WEBP[:16] + b"\xff\xff\xff\x7f" + WEBP[20:],
    }


# shapes and sizes that are no fault


@files(IMAGE)
def _() -> dict[str, bytes]:
    return {
        "a pixel": encode(NOISE.resize((1, 1)), "PNG"),
        "a pixel of JPEG": encode(NOISE.resize((1, 1)), "JPEG"),
        "the longest line": encode(Image.new("L", (30_000, 1)), "PNG"),
        "the highest line": encode(Image.new("L", (1, 30_000)), "TIFF"),
        "the longest line of JPEG": encode(Image.new("RGB", (30_000, 2)), "JPEG"),
        "text of half a MB": dotted_png(before=chunks((b"tEXt", b"a\0" + b"b" * 2**19))),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What became of every file, in one process that decodes them one after the other."""
    folder = tmp_path_factory.mktemp("files")
    made = [(outcome, name, data) for outcome, make in MAKERS for name, data in make().items()]
    entries = []
    for outcome, name, data in made:
        for number, content in enumerate([data] if isinstance(data, bytes) else data):
            (folder / str(len(entries))).write_bytes(content)
            entries.append({"kind": name, "number": number, "expected": outcome, "bytes": len(content)})
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(len(entries))], capture_output=True, text=True, timeout=600
    )
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    assert child.returncode == 0, f"{child.returncode} after {entries[len(lines)]}: {child.stderr}"
    return [entry | line for entry, line in zip(entries, lines, strict=True)]


CHILD = """
import json, sys, time
from pathlib import Path
from swin_mim.data.decoding.rgb import BrokenImage, decode_image, open_image

def peak():  # not getrusage, which begins with the memory of the process that started this one
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

def decoded(data, factor):
    try:
        if factor is None:
            return "an image" if decode_image(data).mode == "RGB" else "an image of another mode", ""
        return "an image" if open_image(data).decode(factor).size else "nothing", ""
    except BrokenImage as error:
        return "broken", str(error)
    except BaseException as error:
        return type(error).__name__, str(error)

def timed(*arguments):
    start = time.process_time()
    found = decoded(*arguments)
    return *found, time.process_time() - start

for number in range(int(sys.argv[2])):
    data = (Path(sys.argv[1]) / str(number)).read_bytes()
    before = peak()
    outcome, reason, seconds = timed(data, None)
    for factor in (1, 8) if data.startswith(b"\\xff\\xd8") else ():
        again, _, more = timed(data, factor)
        seconds = max(seconds, more)
        if again != outcome:
            outcome += f", made smaller by {factor} {again}"
    print(json.dumps({"outcome": outcome, "reason": reason, "seconds": seconds, "memory": peak() - before}), flush=True)
"""


@pytest.mark.slow
def test_every_file_is_an_image_or_broken_as_it_should(results: list[dict[str, object]]) -> None:
    assert len({entry["kind"] for entry in results}) > 200
    wrong = [entry for entry in results if entry["outcome"] not in (IMAGE, BROKEN)]
    wrong += [entry for entry in results if entry["expected"] not in (EITHER, entry["outcome"])]
    assert not [f"{entry['kind']}: {entry['outcome']} {entry['reason']}" for entry in wrong]


@pytest.mark.slow
def test_every_refusal_is_a_line_for_a_reader(results: list[dict[str, object]]) -> None:
    reasons = [str(entry["reason"]) for entry in results if entry["outcome"] == BROKEN]
    assert len(reasons) > 1000
    assert not [reason for reason in reasons if not reason or "\n" in reason or " at 0x" in reason or len(reason) > 300]


@pytest.mark.slow
def test_no_file_takes_long(results: list[dict[str, object]]) -> None:
    assert not [entry for entry in results if float(str(entry["seconds"])) > SECONDS]


@pytest.mark.slow
def test_no_file_takes_much_memory(results: list[dict[str, object]]) -> None:
    assert sum(int(str(entry["memory"])) for entry in results) < MEMORY  # each adds what it takes beyond all before it


LARGE = 4096
"""Pixels along the side of a quarter of the largest picture."""


@pytest.mark.parametrize(
    ("mode", "name", "options", "side"),
    [
        ("RGBA", "WEBP", {"lossless": True, "method": 0}, LARGE),
        ("CMYK", "JPEG", {"progressive": True, "subsampling": 0}, LARGE // 2),
        ("RGBA", "PNG", {"compress_level": 1}, LARGE // 2),
        ("F", "TIFF", {"compression": "packbits"}, LARGE // 2),
        ("I;16", "TIFF", {}, LARGE // 2),
        ("RGBA", "JPEG2000", {}, LARGE // 2),
        ("RGBA", "AVIF", {"speed": 10}, LARGE // 2),
    ],
)
def test_memory_that_a_large_picture_takes(
    mode: str, name: str, options: dict[str, object], side: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    color = (9, 99, 200, 128)[: len(mode)] if len(mode) == 4 and mode != "I;16" else 9
    Image.new(mode, (side, side), color).save(tmp_path / "0", name, exif=exif, **options)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), "1"], capture_output=True, text=True, check=True
    )
    result = json.loads(child.stdout)
    assert result["outcome"] == IMAGE, result["reason"]
    allowed = MAX_MEMORY * side**2 // MAX_PIXELS
    # two thirds of it are enough for all but JPEG 2000
    assert allowed // 6 < result["memory"] < (allowed if name == "JPEG2000" else allowed * 2 // 3)
