"""What the compilers made, kept from call to call: OUT/cache-0.zip and so on.

Few files, none large, because some machines hand no others back. An archive is replaced whole, so that a process that
is killed leaves the one before.
"""

import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

ARCHIVES, LARGEST = 4, 14 << 20
"""How many archives there are at most, and of how many bytes."""
FOLDERS = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
SETTLED = 3.0
"""Seconds without a change after which a file of a running compiler is whole."""


def variables(cache: Path) -> dict[str, str]:
    """Variables by which Triton and inductor use a folder."""
    # such a header of a CPU's compiler finds no room in an archive: each call would wait for it before anything else
    return {variable: str(cache / folder) for variable, folder in FOLDERS.items()} | {
        "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"
    }


def clear(cache: Path) -> None:
    """Remove what the compilers left there, such as half a file of one that was killed."""
    for folder in FOLDERS.values():
        shutil.rmtree(cache / folder, ignore_errors=True)


def archives(out: Path) -> list[Path]:
    return [file for number in range(ARCHIVES) if (file := out / f"cache-{number}.zip").is_file()]


def unpack(out: Path, cache: Path) -> None:
    """Put what the archives of a folder hold where the compilers look, unless it is there."""
    for archive in archives(out):
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                if not (cache / name).exists():
                    packed.extract(name, cache)


def pack(out: Path, cache: Path, *, settled: float = 0) -> bool:
    """Add what is new in the cache to the archives in `out`; False when not all of it found room."""
    names = {name for archive in archives(out) for name in packed_names(archive)}
    new = [file for file in made(cache, settled) if str(file.relative_to(cache)) not in names]
    for number in range(ARCHIVES):
        new = add(out / f"cache-{number}.zip", new, cache)
    return not new


def packed_names(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as packed:
        return packed.namelist()


def made(cache: Path, settled: float) -> Iterator[Path]:
    """The files that are whole, by name: locks and what is being written are not."""
    for folder in FOLDERS.values():
        for place, folders, files in os.walk(cache / folder):
            folders[:] = sorted(name for name in folders if not name.startswith("tmp") and name != "locks")
            for name in sorted(files):
                file = Path(place, name)
                if not name.startswith(".") and not name.endswith((".lock", ".tmp")) and age(file) >= settled:
                    yield file


def age(file: Path) -> float:
    """Seconds since the last change; -1 if it has just been removed."""
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except FileNotFoundError:
        return -1


def add(archive: Path, files: list[Path], cache: Path) -> list[Path]:
    """Those files that found no room."""
    size = archive.stat().st_size if archive.exists() else 0
    if not files or size >= LARGEST:
        return files
    temporary = archive.with_suffix(".zip.tmp")
    temporary.unlink(missing_ok=True)
    if size:
        shutil.copyfile(archive, temporary)
    left = []
    with zipfile.ZipFile(temporary, "a", zipfile.ZIP_DEFLATED) as packed:
        for file in files:
            if packed.start_dir + file.stat().st_size > LARGEST:
                left.append(file)
            else:
                packed.write(file, file.relative_to(cache))
    os.replace(temporary, archive)
    return left
