"""Which files of a folder are images: those with an image's suffix, and those of unknown suffix that begin as one."""

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from swin_mim.data.decoding.kinds import HEAD, IMAGE_SUFFIXES, KINDS, RASTER_SUFFIXES, kind_of
from swin_mim.data.sources.folder import FolderSource, no_regular_file, printable, walk, warn_unreadable
from swin_mim.data.tiling.manifest import MANIFEST as TILES
from swin_mim.errors import UserError

TABLE_FILES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow")
"""Suffixes of tables that can name files."""
WITHOUT_SUFFIX = "without a suffix"

_TEXTS = ".txt .md .rst .log .csv .tsv .json .jsonl .ndjson .geojson .xml .html .htm .yaml .yml .toml .ini .cfg .conf"
_OFFICE = ".pdf .doc .docx .xls .xlsx .ods .odt .ppt .pptx .rtf .tex .url .lnk"
_CODE = ".py .ipynb .sh .bat .m .r .js .css .lock"
_DATA = ".parquet .arrow .feather .db .sqlite .h5 .hdf5 .nc .mat .pkl .pickle .pt .pth .ckpt .safetensors .onnx"
_ARCHIVES = ".tar .gz .tgz .bz2 .xz .zst .zip .7z .rar .tfrecord .mdb .idx .rec"
_MEDIA = ".mp4 .mov .avi .mkv .webm .m4v .mp3 .wav .flac .m4a"
_MAPS = ".tfw .jgw .pgw .wld .prj .shp .shx .dbf .cpg .qpj .kml .gpkg .ovr .aux"
# begin as images and hold a preview, or a part
_PREVIEWS = ".dng .nef .nrw .cr2 .cr3 .arw .srf .sr2 .orf .pef .rw2 .raf .srw .3fr .erf .kdc .dcr .iiq .thm"
_PARTS = ".part .partial .crdownload .download .tmp .bak .aria2"
_NO_IMAGES = frozenset(" ".join((_TEXTS, _OFFICE, _CODE, _DATA, _ARCHIVES, _MEDIA, _MAPS, _PREVIEWS, _PARTS)).split())
_UNMENTIONED = ("thumbs.db", "ehthumbs.db", "desktop.ini", "dicomdir")
_EXTRAS = {"HEIC": ("pillow_heif", "heif"), "DICOM": ("pydicom", "dicom"), "JPEG XL": ("imagecodecs", "raster")}
_SHOWN = 5

_log = logging.getLogger(__name__)


class Listing(NamedTuple):
    """The regular files below a folder; lists are sorted by path."""

    named: list[tuple[str, int]]
    """(relative path, size) of those whose suffix is an image's."""
    recognised: list[tuple[str, int]]
    """Those of no suffix or an unknown one that begin as an image."""
    others: list[str]
    """Paths of those that are no images; without the ones that nobody has put there, as Thumbs.db."""
    folders: list[str]
    """Names of the folders at the top."""

    def source(self, root: Path) -> FolderSource:
        """The images as a source, which knows what is left out."""
        files = sorted(self.named + self.recognised) if self.recognised else self.named
        source = FolderSource(root, files)
        source.left_out = self.left_out()
        filled = {path.split(os.sep, 1)[0] for path, _ in files}
        bare = [name for name in self.folders if name not in filled]
        inside: dict[str, list[str]] = {name: [] for name in bare}
        for path in self.others if bare else ():
            if (top := path.split(os.sep, 1)[0]) in inside:
                inside[top].append(path)
        source.without_images = {name: _by_suffix(paths) for name, paths in inside.items()}
        return source

    def left_out(self) -> dict[str, int]:
        """Number of the other files by suffix, the most frequent first; tables at the top, which may be of labels, are
        not among them, nor is what says how tiles were cut."""
        return _by_suffix(
            path for path in self.others if os.sep in path or not (path == TILES or path.lower().endswith(TABLE_FILES))
        )


def list_images(root: Path, *, rgb: bool) -> Listing:
    """List a folder; files are opened only where the suffix says nothing.

    Links are followed; every real file and folder counts once, hidden ones not at all.

    Args:
        rgb: as which images are read: as RGB, or of any channels, which arrays have too.

    Raises:
        UserError: some images are of a kind that needs a package which is not installed.
    """
    suffixes = IMAGE_SUFFIXES if rgb else RASTER_SUFFIXES
    named: list[tuple[str, int]] = []
    unnamed: list[tuple[str, str, int]] = []
    unreadable: list[str] = []
    seen: set[str] = set()
    folders: list[str] = []
    for path, real, status in walk(root, unreadable):
        if stat.S_ISDIR(status.st_mode):
            if os.sep not in path:
                folders.append(path)
        elif not path.lower().endswith(suffixes):
            if stat.S_ISREG(status.st_mode) and os.path.basename(path).lower() not in _UNMENTIONED:
                unnamed.append((path, real, status.st_size))
        elif real not in seen:
            seen.add(real)
            if stat.S_ISREG(status.st_mode):
                named.append((path, status.st_size))
            else:
                unreadable.append(no_regular_file(path))
    recognised: list[tuple[str, int]] = []
    others: list[str] = []
    kinds = {kind.name for kind in KINDS if kind.rgb or not rgb}
    found: dict[str, list[str]] = {}  # paths by kind
    for path, real, size in sorted(unnamed):
        if real in seen:
            continue
        seen.add(real)
        if (kind := _kind(path, real, unreadable)) in kinds:
            recognised.append((path, size))
            found.setdefault(str(kind), []).append(path)
        else:
            others.append(path)
    warn_unreadable(root, unreadable)
    _check_extras(root, named, found)
    return Listing(sorted(named), recognised, others, folders)


def warn_left_out(source: FolderSource, spec: str) -> None:
    """Say once what of a folder is left out."""
    if count := sum(source.left_out.values()):
        are = "1 file is no image and is" if count == 1 else f"{count:,} files are no images and are"
        warn_once(f"data.source {spec!r}: {are} left out: {counts_text(source.left_out)}")


def counts_text(counts: Mapping[str, int]) -> str:
    """ "12 .txt, 6 without a suffix"."""
    shown = list(counts.items())[:_SHOWN]
    rest = sum(counts.values()) - sum(count for _, count in shown)
    others = [f"{rest:,} other{'' if rest == 1 else 's'}"] if rest else []
    return ", ".join([*(f"{count:,} {suffix}" for suffix, count in shown), *others])


@cache
def warn_once(text: str) -> None:
    """Warn of what holds for a folder; the same text is not said again in this process."""
    # a folder is opened again for a probe, and by every evaluation of a comparison
    _log.warning("%s", text)


def _by_suffix(paths: Iterable[str]) -> dict[str, int]:
    suffixes = (os.path.splitext(path)[1].lower() for path in paths)
    return dict(Counter(printable(suffix)[:16] or WITHOUT_SUFFIX for suffix in suffixes).most_common())


def _kind(path: str, real: str, unreadable: list[str]) -> str | None:
    """Kind of an image, by its first bytes; None: it is none, or its suffix says so."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _NO_IMAGES or suffix.endswith("~"):
        return None
    try:
        with open(os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
            return kind_of(file.read(HEAD))
    except OSError as error:
        unreadable.append(str(error))
        return None


def _check_extras(root: Path, named: list[tuple[str, int]], found: Mapping[str, list[str]]) -> None:
    """Raise a UserError for images of a kind that needs a package which is not installed."""
    for kind in KINDS:
        module, extra = _EXTRAS.get(kind.name, ("", ""))
        if not module or find_spec(module) is not None:
            continue
        paths = [path for path, _ in named if path.lower().endswith(kind.suffixes)] + found.get(kind.name, [])
        if paths:
            count = "a" if len(paths) == 1 else f"{len(paths):,}"
            files = "file" if len(paths) == 1 else "files"
            raise UserError(
                f"data.source {str(root)!r} holds {count} {kind.name} {files}, such as {printable(min(paths))}, which "
                f"cannot be read yet: pip install 'swin-mim[{extra}]', or move them to another folder"
            )
