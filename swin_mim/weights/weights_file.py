"""safetensors files on disk <-> tensors by name, where the file may be damaged or hostile.

The library checks the header before anything is allocated, so that the memory that a file takes is bounded by its size;
what it lets pass and no weights have is refused here: odd names, names given twice, dtypes that torch cannot load.
Every refusal is a `UserError`.
"""

import json
import math
import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from swin_mim.errors import UserError
from swin_mim.files import replacing
from swin_mim.weights.safetensors_writer import DTYPE_NAMES, write_tensors

HEADER_LIMIT = 16 * 10**6
"""Bytes of a safetensors header. That of Swin-L is 40 kB."""
NAME_LIMIT = 256
RANK_LIMIT = 8

DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
"""safetensors' name of a dtype -> torch's."""


class TensorInfo(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, shapes and dtypes of a safetensors file, in the order of its data; reads no data.

    Raises:
        UserError: not such a file, damaged, truncated, ambiguous, or of a dtype outside `DTYPES`.
    """
    with opened(path) as file:
        return _read_header(file, path)


def load_tensors(path: Path, header: Mapping[str, TensorInfo] | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name, on the CPU, in memory of their own: the file may change afterwards.

    Args:
        header: what `read_header` returned and the caller checked: the file must not have changed since.

    Raises:
        UserError: as `read_header`, or the file changed.
    """
    with opened(path) as file:
        found = _read_header(file, path)
        if header is not None and found != dict(header):
            raise UserError(f"{path} changed while it was being read: load it again when nothing writes to it")
        return {name: _read_tensor(file, path, name, info) for name, info in found.items()}


def check_finite(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """UserError if a tensor holds NaN or infinity: names the first three and counts their values."""
    counts = {name: int((~tensor.isfinite()).sum()) for name, tensor in tensors.items() if tensor.is_floating_point()}
    broken = [f"{name} ({count} of {tensors[name].numel()})" for name, count in counts.items() if count]
    if broken:
        more = f" and {len(broken) - 3} more tensors" if len(broken) > 3 else ""
        raise UserError(
            f"{where} holds values that are NaN or infinite in {', '.join(broken[:3])}{more}: "
            "the training that wrote it diverged; take an earlier checkpoint"
        )


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as one safetensors file that is whole or absent, and wait until it is on the disk.

    Raises:
        UserError: a value is NaN or infinite, a name or dtype could not be read again, or the disk is full.
    """
    check_finite(tensors, path)
    for name, tensor in tensors.items():
        check_name(name, path)
        if tensor.dtype not in DTYPE_NAMES:
            raise UserError(f"{path}: {name} is {tensor.dtype}, which is none of {', '.join(DTYPES)}: convert it first")
    try:
        with replacing(path, durable=True) as staged:
            write_tensors({name: tensor.cpu() for name, tensor in tensors.items()}, staged)
    except OSError as error:
        raise UserError(f"{path} could not be written: {first_line(error)}") from error


def _read_header(file: BinaryIO, path: Path) -> dict[str, TensorInfo]:
    """Leaves the file at the first byte of the data."""
    from safetensors import SafetensorError, safe_open  # here: a model that loads nothing needs no safetensors

    size = os.fstat(file.fileno()).st_size
    head = file.read(64)
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or length > HEADER_LIMIT or 8 + length > size:
        refuse_other_kinds(head, path)
        if len(head) < 8:
            raise UserError(f"{path} has {len(head)} bytes, a safetensors file at least 8: {_FETCH_AGAIN}")
        limit, whose = min((HEADER_LIMIT, "the most that is read"), (size - 8, "all that follows in the file"))
        raise UserError(f"{path} declares a header of {length} bytes and {limit} are {whose}: {_FETCH_AGAIN}")
    try:
        with safe_open(path, framework="np") as checked:  # JSON, types, and data that fit the sizes without a gap
            found = {name: checked.get_slice(name) for name in checked.keys()}  # noqa: SIM118
            header = {
                name: _tensor_info(part.get_shape(), part.get_dtype(), name, path) for name, part in found.items()
            }
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no valid safetensors file ({first_line(error)}): {_FETCH_AGAIN}") from error
    file.seek(8)
    entries = [entry for entry in json.loads(file.read(length), object_pairs_hook=list) if entry[0] != "__metadata__"]
    if sorted(name for name, _ in entries) != sorted(header):
        raise UserError(f"{path} names a tensor twice in its header: {_WRITE_AGAIN}")
    if any(len(fields) != 3 for _, fields in entries):
        raise UserError(f"{path} has a header with more than dtype, shape and data_offsets: {_WRITE_AGAIN}")
    ends = {name: dict(fields)["data_offsets"] for name, fields in entries}
    return {name: header[name] for name in sorted(header, key=ends.__getitem__)}


def _tensor_info(shape: list[int], dtype: str, name: str, path: Path) -> TensorInfo:
    check_name(name, path)
    if dtype not in DTYPES:
        raise UserError(f"{name} in {path} has dtype {shown(dtype)}, which is none of {', '.join(DTYPES)}: convert it")
    # With a side of 0 the others would be free to overflow.
    if len(shape) > RANK_LIMIT or math.prod(side or 1 for side in shape) * DTYPES[dtype].itemsize >= 2**63:
        raise UserError(
            f"{name} in {path} has shape {shown(shape)}, up to 8 sizes of a tensor are read: {_WRITE_AGAIN}"
        )
    return TensorInfo(tuple(shape), DTYPES[dtype])


def check_name(name: object, path: Path) -> None:
    """UserError unless a tensor's name is short and harmless."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or ".." in name:
        raise UserError(
            f"{path} names a tensor {shown(name)}: a name has letters, digits, '_', '-' and single '.' only; rename it"
        )
    if len(name) > NAME_LIMIT:
        raise UserError(f"{path} names a tensor with {len(name)} characters, at most {NAME_LIMIT} are read: rename it")


def _read_tensor(file: BinaryIO, path: Path, name: str, info: TensorInfo) -> Tensor:
    """The next tensor. Plain reads and no map: of a mapped file, a later truncation would kill the process."""
    tensor = torch.empty(info.shape, dtype=info.dtype)
    if tensor.numel():
        memory = memoryview(tensor.flatten().view(torch.uint8).numpy().data)
        if file.readinto(memory) != len(memory):  # type: ignore[attr-defined]
            raise UserError(f"{path} was cut off within {name} while it was being read: load it again")
    return tensor


_FETCH_AGAIN = "the file is damaged or was cut off; fetch it again"
_WRITE_AGAIN = "write the file again with the safetensors library"


def opened(path: Path) -> BinaryIO:
    """Open a weights file; UserError if there is none."""
    if not path.is_file():
        raise UserError(f"{path} is {'not a file' if path.exists() else 'not there'}: give the path of a weights file")
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}") from error


def refuse_other_kinds(head: bytes, path: Path) -> None:
    """UserError if the first bytes tell what the file is instead of weights in its format."""
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder")
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise UserError(
            f"{path} is a pickle, not safetensors: run `swin-mim convert {path} DEST --to swin_mim`, which "
            "reads it without running it"
        )
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise UserError(f"{path} is a web page, not weights: check the address that you fetched it from")


def shown(value: object, *, quotes: bool = True) -> str:
    """A value out of a file, short, harmless on a terminal, and however deep it is."""
    if isinstance(value, str | bytes):
        text = ascii(value[:100]) if quotes else ascii(value[:100])[1:-1]
    else:
        text = reprlib.repr(value) if type(value) in (bool, int, float, list, dict) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the error's type."""
    line = str(error).strip().split("\n")[0]
    return shown(line, quotes=False) if line else type(error).__name__
