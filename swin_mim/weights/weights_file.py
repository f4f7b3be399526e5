"""safetensors files on disk <-> tensors by name, where the file may be damaged or hostile.

The header is checked whole before anything is allocated, and the memory that a file takes is bounded by its size.
Every refusal is a `UserError`.
"""

import json
import math
import os
import re
import reprlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from swin_mim.errors import UserError

HEADER_LIMIT = 16 * 10**6
"""Bytes of a safetensors header. That of Swin-L is 40 kB."""
NAME_LIMIT = 256
RANK_LIMIT = 8

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
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
        if tensor.dtype not in DTYPES.values():
            raise UserError(f"{path}: {name} is {tensor.dtype}, which is none of {', '.join(DTYPES)}: convert it first")
    staged = path.with_name(path.name + ".partial")
    try:
        with staged.open("wb") as file:  # save_file makes files that only their owner may read
            mode = os.fstat(file.fileno()).st_mode & 0o777
        save_file(_of_their_own(tensors), staged, metadata={"format": "pt"})
        staged.chmod(mode)
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        staged.replace(path)
    except (OSError, SafetensorError) as error:
        staged.unlink(missing_ok=True)
        raise UserError(f"{path} could not be written: {first_line(error)}") from error


def _of_their_own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dense CPU tensors that share no memory, which safetensors would refuse."""
    dense, seen = {}, set()
    for name, tensor in tensors.items():
        dense[name] = tensor.detach().cpu().contiguous()
        if dense[name].untyped_storage().data_ptr() in seen:
            dense[name] = dense[name].clone()
        seen.add(dense[name].untyped_storage().data_ptr())
    return dense


def _read_header(file: BinaryIO, path: Path) -> dict[str, TensorInfo]:
    """Leaves the file at the first byte of the data."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(64)
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or length > HEADER_LIMIT or 8 + length > size:
        refuse_other_kinds(head, path)
        if len(head) < 8:
            raise UserError(f"{path} has {len(head)} bytes, a safetensors file at least 8: {_FETCH_AGAIN}")
        limit, whose = min((HEADER_LIMIT, "the most that is read"), (size - 8, "all that follows in the file"))
        raise UserError(f"{path} declares a header of {length} bytes and {limit} are {whose}: {_FETCH_AGAIN}")
    file.seek(8)
    entries = _parse_header(file.read(length), path)
    _check_metadata(entries.pop("__metadata__", {}), path)
    spans = []
    for name, entry in entries.items():
        check_name(name, path)
        spans.append((*_offsets(entry, name, path), name))
    spans.sort()
    header = {name: _tensor_info(entries[name], end - begin, name, path) for begin, end, name in spans}
    _check_tiling(spans, size - 8 - length, path)
    return header


def _parse_header(text: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in pairs)
        if len(counts) < len(pairs):
            raise UserError(
                f"the header of {path} names {shown(max(counts, key=counts.__getitem__))} twice: {_WRITE_AGAIN}"
            )
        return dict(pairs)

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"the header of {path} is not JSON ({first_line(error)}): {_FETCH_AGAIN}") from error
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise UserError(f"the header of {path} is not a JSON object: {_WRITE_AGAIN}")
    return header


def _check_metadata(metadata: object, path: Path) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"__metadata__ in the header of {path} does not map text to text: {_WRITE_AGAIN}")


def check_name(name: object, path: Path) -> None:
    """UserError unless a tensor's name is short and harmless."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or ".." in name:
        raise UserError(
            f"{path} names a tensor {shown(name)}: a name has letters, digits, '_', '-' and single '.' only; rename it"
        )
    if len(name) > NAME_LIMIT:
        raise UserError(f"{path} names a tensor with {len(name)} characters, at most {NAME_LIMIT} are read: rename it")


def _offsets(entry: object, name: str, path: Path) -> tuple[int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{name} in {path} must have dtype, shape and data_offsets and nothing else: {_WRITE_AGAIN}")
    offsets = entry["data_offsets"]
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UserError(f"{name} in {path} has data_offsets {shown(offsets)}, not [begin, end]: {_WRITE_AGAIN}")
    return offsets[0], offsets[1]


def _tensor_info(entry: dict[str, Any], nbytes: int, name: str, path: Path) -> TensorInfo:
    shape, dtype = entry["shape"], entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{name} in {path} has dtype {shown(dtype)}, which is none of {', '.join(DTYPES)}: convert it")
    if not _are_sizes(shape) or len(shape) > RANK_LIMIT:
        raise UserError(f"{name} in {path} has shape {shown(shape)}, not a list of up to 8 sizes: {_WRITE_AGAIN}")
    itemsize = DTYPES[dtype].itemsize
    # With a side of 0 the others would be free to overflow.
    if math.prod(shape) * itemsize != nbytes or math.prod(side or 1 for side in shape) * itemsize >= 2**63:
        raise UserError(f"{name} in {path} is {dtype} {shown(shape)}, which {nbytes} bytes cannot hold: {_FETCH_AGAIN}")
    return TensorInfo(tuple(shape), DTYPES[dtype])


def _are_sizes(values: object) -> bool:
    """Whether JSON gave a list of integers >= 0; true and 1.0 are none."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_tiling(spans: list[tuple[int, int, str]], size: int, path: Path) -> None:
    """Each tensor begins where the one before ends, and the last ends with the file."""
    position = 0
    for begin, end, name in spans:
        if begin != position:
            raise UserError(
                f"{name} in {path} begins at byte {begin}, the data before ends at {position}: {_FETCH_AGAIN}"
            )
        position = end
    if position != size:
        raise UserError(f"{path} holds {size} bytes of data and its header declares {position}: {_FETCH_AGAIN}")


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
        return text if len(text) <= 80 else text[:77] + "..."
    return reprlib.repr(value) if type(value) in (bool, int, float, list, dict) else f"a {type(value).__name__}"


def first_line(error: BaseException) -> str:
    """Of an error's message, or its type."""
    line = str(error).strip().split("\n")[0]
    return shown(line, quotes=False) if line else type(error).__name__
