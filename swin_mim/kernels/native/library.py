"""The C++ of this folder, compiled at first use for the processor at hand and kept in the user's cache.

The library's name is a hash of the source, the flags and the processor, and not of the compiler: as long as these are
the same, a machine goes on with what it compiled once, and its results stay the same to the bit.
"""

import ctypes
import logging
import os
import platform
import shlex
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from swin_mim.files import lock, replacing, sha256

SOURCES = tuple(Path(__file__).with_name(name) for name in ("attention.cpp", "gelu.cpp", "vectors.h"))
COMPILERS = ("c++", "g++", "clang++")
MINUTES = 5
"""After which a compiler has hung."""

_LOG = logging.getLogger(__name__)
_PROCESSOR = {"vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part", "Features"}
"""What /proc/cpuinfo calls that on which the compiled code depends, on processors of x86 and ARM."""


class Unavailable(Exception):
    """There is no library. The message is the reason, without a full stop."""


@cache
def library() -> ctypes.CDLL:
    """Load the library, and compile it where it has not been yet: some seconds, once for a user and a processor.

    Raises:
        Unavailable: it cannot be compiled here, or not loaded.
    """
    if os.name != "posix":
        raise Unavailable(f"it is not written for {platform.system()}")
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "swin_mim" / "native"
        path = folder / f"{_key()}.so"
        if not path.exists():
            _LOG.info("compiling the kernels for this processor, once: %s", path)
            folder.mkdir(parents=True, exist_ok=True)
            _compile_alone(path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError) as error:  # the latter without a home folder
        raise Unavailable(str(error)) from error


@cache
def parallel_for() -> int:
    """The address of torch's loop over its CPU threads, `torch_parallel_for` of its stable C interface.

    Raises:
        Unavailable: this torch has none.
    """
    suffix = "dylib" if platform.system() == "Darwin" else "so"
    try:
        loop = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}")).torch_parallel_for
    except (OSError, AttributeError) as error:
        raise Unavailable(f"this torch has no torch_parallel_for ({error})") from error
    return ctypes.cast(loop, ctypes.c_void_p).value or 0


def _key() -> str:
    parts = [source.read_bytes() for source in SOURCES]
    return sha256([*parts, " ".join(_flags()).encode(), _processor().encode()])[:20]


def _flags() -> list[str]:
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    # not -ffast-math, which would hide NaN
    return ["-std=c++17", "-O3", native, "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-w"]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.system()} {platform.machine()} {platform.processor()}"
    first, *_ = info.read_text().split("\n\n")
    return "\n".join(line for line in first.splitlines() if line.split(":")[0].strip() in _PROCESSOR)


def _compile_alone(path: Path) -> None:
    """Compile where no other process does or has done so meanwhile."""
    held = None
    with suppress(OSError):  # without locks each process compiles for itself, and what the last one made stays
        held = lock(path.with_suffix(".lock"), cancelled=lambda: False)
    try:
        if not path.exists():
            _compile(path)
    finally:
        if held is not None:
            held.release()


def _compile(path: Path) -> None:
    compiler = shlex.split(os.environ.get("CXX", "")) or [name for name in COMPILERS if shutil.which(name)][:1]
    if not compiler:
        raise Unavailable(f"there is no C++ compiler ({', '.join(COMPILERS)}, or what CXX names)")
    with replacing(path) as temporary:
        command = [
            *compiler,
            *_flags(),
            *(str(source) for source in SOURCES if source.suffix == ".cpp"),
            "-o",
            str(temporary),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60 * MINUTES)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{compiler[0]} takes more than {MINUTES} minutes") from None
        if done.returncode:
            says = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or [""]
            raise Unavailable(f"{compiler[0]} fails: {says[0].strip()}")
