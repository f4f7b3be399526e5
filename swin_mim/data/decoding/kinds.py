"""Kinds of image files, by their names and by their first bytes."""

import struct
from collections.abc import Callable
from typing import NamedTuple

HEAD = 132
"""Bytes at the start of a file that tell its kind."""


class Kind(NamedTuple):
    """A kind of image file."""

    name: str
    suffixes: tuple[str, ...]
    begins: Callable[[bytes], bool]
    """Whether a file of such first bytes is one."""
    rgb: bool = True
    """Whether it can be read as RGB. Images of any channels are read of every kind."""


def _starts(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(signatures)


def _is_bmp(head: bytes) -> bool:
    # texts begin with "BM" too; a bitmap says the length of its second header, of which there are few
    return head.startswith(b"BM") and len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in _BMP_HEADERS


def _brands(head: bytes) -> set[bytes]:
    """What a file of boxes (ISO 14496-12) says that it is compatible with."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}


def _is_avif(head: bytes) -> bool:
    return bool(_brands(head) & {b"avif", b"avis"})


def _is_heic(head: bytes) -> bool:
    return bool(_brands(head) & _HEIC_BRANDS) and not _is_avif(head)


def _is_tiff(head: bytes) -> bool:
    return head.startswith(_TIFF) and not _is_dicom(head)  # whose preamble may be that of a TIFF


def _is_dicom(head: bytes) -> bool:
    if head[128:132] == b"DICM":
        return True
    # some are written without the preamble: two elements of the first groups follow one another then
    if len(head) < 20 or head[:4] not in _FIRST_ELEMENTS:
        return False
    length = struct.unpack_from("<H", head, 6)[0] if head[4:6] in _FIRST_KINDS else struct.unpack_from("<I", head, 4)[0]
    return head[8 + length : 10 + length] in (b"\2\0", b"\x08\0")


_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_FIRST_ELEMENTS = (b"\2\0\0\0", *(bytes((8, 0, element, 0)) for element in (0x00, 0x01, 0x05, 0x08, 0x12, 0x16, 0x18)))
_FIRST_KINDS = (b"UL", b"CS", b"UI", b"DA")
_JPEG2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_JPEGXL = (b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")  # Pillow reads the last two as well

KINDS = (
    Kind("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"), _starts(b"\xff\xd8\xff")),
    Kind("PNG", (".png",), _starts(b"\x89PNG\r\n\x1a\n")),
    Kind("WebP", (".webp",), lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP"),
    Kind("GIF", (".gif",), _starts(b"GIF87a", b"GIF89a")),
    Kind("BMP", (".bmp", ".dib"), _is_bmp),
    Kind("TIFF", (".tif", ".tiff", ".gtiff", ".btf"), _is_tiff),
    Kind("AVIF", (".avif", ".avifs"), _is_avif),
    Kind("HEIC", (".heic", ".heif", ".hif"), _is_heic),
    Kind("JPEG 2000", (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), _starts(*_JPEG2000)),
    Kind("JPEG XL", (".jxl",), _starts(*_JPEGXL)),
    Kind("DICOM", (".dcm", ".dicom"), _is_dicom),
    Kind("NPY", (".npy",), _starts(b"\x93NUMPY"), rgb=False),
    # a zip file may be anything: only its name says that it holds arrays
    Kind("NPZ", (".npz",), lambda head: False, rgb=False),
)

IMAGE_SUFFIXES = tuple(suffix for kind in KINDS if kind.rgb for suffix in kind.suffixes)
"""Suffixes of files that are read as RGB, in lower case."""
RASTER_SUFFIXES = tuple(suffix for kind in KINDS for suffix in kind.suffixes)
"""Suffixes of files that are read as images of any channels, in lower case."""


def kind_of(head: bytes) -> str | None:
    """Name of the kind of an image file.

    Args:
        head: its first `HEAD` bytes, fewer of a shorter file.

    Returns:
        Name as in `KINDS`; None: it does not begin as an image.
    """
    return next((kind.name for kind in KINDS if kind.begins(head)), None)
