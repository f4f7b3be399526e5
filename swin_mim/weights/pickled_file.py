"""Pickles of `torch.save` -> tensors by name, where the file may be damaged or hostile.

Its instructions are read through before torch sees them. Nothing in a file is ever executed, and the memory that it
takes is bounded by its size. Every refusal is a `UserError`.
"""

import argparse
import itertools
import logging
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from swin_mim.errors import UserError
from swin_mim.weights.weights_file import (
    DTYPES,
    HEADER_LIMIT,
    check_name,
    first_line,
    opened,
    refuse_other_kinds,
    shown,
)

PICKLE_LIMIT = 2 * 10**6
"""Bytes of a pickle without its tensors. That of Swin-L with its optimizer is 0.1 MB."""
TUPLE_LIMIT = 50_000
"""Tuples in a pickle; Swin-L with its optimizer has 4607. Hashing nested ones takes stack and would crash Python."""
CONFIG_LIMIT = 10_000
"""Values of a pickled config. One value may be referred to often, so that a short file can hold a huge config."""
CONFIG_DEPTH = 20
LARGEST_SIZE = 1 << 16
"""Of an image or a window, in a config."""
SPARE_MEMORY = 128 << 20
"""Bytes that opening a file may take besides three times its size."""

NEEDED = {
    "collections.OrderedDict",
    "collections.Counter",  # the milestones of torch's schedules
    "builtins.set",  # in every yacs config
    "yacs.config.CfgNode",
    "argparse.Namespace",  # the arguments of timm's and torchvision's scripts
    "torch.Size",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(f"torch.{kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16")),
    *(f"torch.{kind}Storage" for kind in ("Long", "Int", "Short", "Char", "Byte", "Bool")),
}
"""All that a pickle of weights may ask for. torch's own list is longer: parts of it allocate what they are told to."""

UNFIT = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without data",
    "torch.ComplexFloatStorage": "a tensor of complex numbers",
    "torch.ComplexDoubleStorage": "a tensor of complex numbers",
}
"""What only tensors ask for that no weight is -> its name."""

STATE_KEYS = ("model", "state_dict", "model_state_dict")
"""Keys under which a training checkpoint keeps its weights."""

_DISTRUST = "do not use this file"
_WEIGHTS_ONLY = "save only the weights, torch.save(model.state_dict(), ...)"
_LOG = logging.getLogger(__name__)
_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # opens every file of torch.save before 1.6


class PickledFile(NamedTuple):
    tensors: dict[str, Tensor]
    """On the CPU, contiguous, of the dtypes in the file, without the prefixes of DDP and torch.compile."""
    config: dict[str, Any] | None
    """The training script's settings as plain dicts, where the file has them under `config`."""


def is_pickled(path: Path) -> bool:
    """Whether a file is none of safetensors, as far as its first bytes or its name tell."""
    if not path.is_file():
        return False
    with opened(path) as file:
        head = file.read(9)
    if head[8:] == b"{":  # the length of a safetensors header may begin with any byte
        return False
    return head.startswith((b"PK\x03\x04", b"\x80")) or path.suffix != ".safetensors"


def load_pickled(path: Path) -> PickledFile:
    """Tensors and config of a `torch.save` file (.pth, .pt, .bin, .ckpt; zip or older); nothing in it is executed.

    Reads a plain state dict, or one under "model", "state_dict" or "model_state_dict"; its values that are no tensors
    are left. A yacs config, which microsoft's checkpoints hold, is read without yacs.

    Raises:
        UserError: the file asks for anything but weights and plain values, is damaged, or would take more memory
            than its size.
    """
    with opened(path) as file:
        head = file.read(64)
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= HEADER_LIMIT:
            raise UserError(f"{path} is safetensors, not a pickle: name it {path.stem}.safetensors")
        if head.startswith(b"PK\x03\x04"):
            _check_archive(file, path)
        elif head.startswith(b"\x80"):
            _check_legacy(file, path)
        else:
            refuse_other_kinds(head, path)
            raise UserError(f"{path} is not a file of torch.save: it starts with {shown(head[:16])}")
        file.seek(0)
        content = _unpickle(file, path)
        size = os.fstat(file.fileno()).st_size
    tensors = _unwrapped(_state_dict(content, path))
    for name, tensor in tensors.items():
        _check_plain(tensor, name, path)
    needed = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    if needed > size:
        raise UserError(
            f"the tensors of {path} take {needed} bytes, the file only {size}: some share memory; save clones of them"
        )
    config = dict.get(content, "config")
    return PickledFile(
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
        _plain(config, "config", path, itertools.count(1)) if isinstance(config, dict) else None,
    )


def microsoft_settings(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """image_size, window_size and target from the config in a checkpoint of microsoft's, where it has them."""
    found: dict[str, Any] = {}
    for key, at in {"image_size": ("DATA", "IMG_SIZE"), "window_size": ("MODEL", "SWIN", "WINDOW_SIZE")}.items():
        value = _inside(settings, at)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST_SIZE:
            raise UserError(f"{path}: its config has {'.'.join(at)} {value!r}, expected a number up to {LARGEST_SIZE}")
        found[key] = value
    if _inside(settings, ("MODEL", "SIMMIM", "NORM_TARGET", "ENABLE")) is True:
        found["target"] = "normalized"
    return found


def _inside(settings: Any, place: Sequence[str]) -> Any:
    """The value at a place of nested dicts, None if there is none."""
    for key in place:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def _unpickle(file: BinaryIO, path: Path) -> dict[Any, Any]:
    # An open file, as torch.load maps a path that ends in .safetensors; a dict subclass of our own would not be filled.
    try:
        with (
            _bounded_memory(os.fstat(file.fileno()).st_size),
            torch.serialization.safe_globals([(OrderedDict, "yacs.config.CfgNode"), argparse.Namespace]),
        ):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # a hostile pickle can make any of them
        raise UserError(f"{path} is damaged: {first_line(error)}; fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of tensors: save model.state_dict()")
    return content


@contextmanager
def _bounded_memory(size: int) -> Iterator[None]:
    """A MemoryError for whoever takes much more than a file of that size needs.

    torch writes what it refuses into its message, and a short pickle can refer to itself so often that this fills the
    memory.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # not on this system
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + 3 * size + SPARE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _check_archive(file: BinaryIO, path: Path) -> None:
    """Refuse a zip file that torch.save did not write, that unpacks to more than its size, or whose pickle is unfit."""
    size = os.fstat(file.fileno()).st_size
    _check_end_of_archive(file, size, path)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_entries(entries, size, path)
            pickles = [entry for entry in entries if entry.filename.count("/") == 1 and entry.filename.endswith(".pkl")]
            if len(pickles) != 1 or not pickles[0].filename.endswith("/data.pkl"):
                raise UserError(f"{path} is a zip file but not of torch.save: it must hold one data.pkl")
            with archive.open(pickles[0]) as content:
                _scan(content, path)
    except UserError:
        raise
    except Exception as error:  # zipfile raises six kinds on damaged files
        raise UserError(f"{path} is damaged: {first_line(error)}; fetch it again") from error


def _check_end_of_archive(file: BinaryIO, size: int, path: Path) -> None:
    """The directory must be where both zipfile and torch look for it, or they might see different files.

    Ends as torch.save writes them: directory, perhaps record (56 bytes) and locator (20) of zip64, end (22 bytes).
    """
    file.seek(max(size - 98, 0))
    tail = file.read().rjust(98, b"\0")
    length, offset, comment = struct.unpack("<LLH", tail[-10:])
    end = size - 22
    if tail[56:60] == b"PK\x06\x07":
        end = size - 98
        (record,) = struct.unpack("<Q", tail[64:72])
        large = struct.unpack("<QQ", tail[40:56])
        agree = length in (large[0], 2**32 - 1) and offset in (large[1], 2**32 - 1)
        if record != end or tail[:4] != b"PK\x06\x06" or not agree:
            raise UserError(f"{path} is damaged: its zip64 directory is not where it says; fetch it again")
        length, offset = large
    if tail[-22:-18] != b"PK\x05\x06" or comment or offset + length != end:
        raise UserError(f"{path} is damaged: its zip directory is not at its end; fetch it again")


def _check_entries(entries: list[zipfile.ZipInfo], size: int, path: Path) -> None:
    names = [entry.orig_filename for entry in entries]
    for name in names:
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise UserError(f"{path} holds a file named {shown(name)}, which points outside of it: {_DISTRUST}")
    if any(name.endswith("/constants.pkl") or name.split("/")[1:2] == ["code"] for name in names):
        raise UserError(f"{path} is a TorchScript program, which would run: export torch.save(model.state_dict(), ...)")
    if len({name.split("/")[0] for name in names}) != 1 or len({name.lower() for name in names}) != len(names):
        raise UserError(f"{path} is a zip file but not of torch.save: its files must lie in one folder, each once")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size:
            raise UserError(f"{path} holds {shown(entry.filename)} compressed, torch.save stores: {_DISTRUST}")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > size:
        raise UserError(f"{path} has {size} bytes and declares {unpacked} inside: {_DISTRUST}")


def _check_legacy(file: BinaryIO, path: Path) -> None:
    """Scan the five pickles before the data: magic number, version, system, object, keys of the storages."""
    file.seek(0)
    _scan(file, path)
    if file.tell() != len(_MAGIC):
        raise UserError(f"{path} is a pickle but not of torch.save: load it where it was made, save model.state_dict()")
    for _ in range(4):
        _scan(file, path)


def _scan(file: IO[bytes], path: Path) -> None:
    """Read through the next pickle without following it, and refuse the first thing it asks for that is not needed."""
    start, tuples, protocol, texts = file.tell(), 0, 2, ["", ""]
    try:
        for opcode, argument, position in pickletools.genops(file):
            if (position or 0) - start > PICKLE_LIMIT:
                raise UserError(f"{path} has a pickle of over {PICKLE_LIMIT} bytes: {_WEIGHTS_ONLY}")
            tuples += opcode.name.startswith("TUPLE")
            if opcode.name == "PROTO":
                protocol = max(protocol, argument or 0)
            elif opcode.name in ("GLOBAL", "INST"):
                _check_global(str(argument).replace(" ", ".", 1), path)
            elif opcode.name == "STACK_GLOBAL":  # takes its two names from the stack: nearly always the last two texts
                _check_global(".".join(texts), path)
            elif opcode.name in ("EXT1", "EXT2", "EXT4"):
                _check_global(f"copyreg's extension {argument}", path)
            elif isinstance(argument, str):
                texts = [texts[1], argument]
    except UserError:
        raise
    except Exception as error:  # ValueError most of the time, but genops decodes what it is given
        raise UserError(f"{path} is damaged: {first_line(error)}; fetch it again") from error
    if tuples > TUPLE_LIMIT:
        raise UserError(f"{path} holds {tuples} tuples, no checkpoint has more than {TUPLE_LIMIT}: {_DISTRUST}")
    if protocol != 2:
        raise UserError(
            f"{path} is pickled with protocol {protocol}, weights are read from 2: use torch.save's default"
        )


def _check_global(name: str, path: Path) -> None:
    name = name.replace("__builtin__.", "builtins.", 1)
    if name in UNFIT:
        raise UserError(f"{path} holds {UNFIT[name]}: save it as a dense tensor of real numbers")
    if name not in NEEDED:
        raise UserError(
            f"{path} asks to run {shown(name, quotes=False)} when it is opened: it was not. Weights need no such "
            "thing; if you trust the author, ask for safetensors or torch.save(model.state_dict(), ...)"
        )


def _state_dict(content: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors by name, wherever the checkpoint keeps them. Methods are dict's own: a pickle may shadow them."""
    nested = [key for key in STATE_KEYS if isinstance(dict.get(content, key), dict)]
    if len(nested) > 1:
        raise UserError(f"{path} has weights under {' and '.join(nested)}: save the one that you mean by itself")
    state = content[nested[0]] if nested else content
    others = [key for key, value in dict.items(content) if value is not state and _holds_tensors(value)]
    if others:
        _LOG.warning("%s holds more weights, under %s, which are left", path, ", ".join(map(shown, others)))
    tensors = {name: value for name, value in dict.items(state) if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(shown(key) for key in list(dict.keys(state))[:5])
        raise UserError(f"{path} holds no tensors by name, only {keys or 'an empty dict'}: save model.state_dict()")
    for name in tensors:
        check_name(name, path)
    return tensors


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in dict.values(value))


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of DistributedDataParallel and torch.compile."""
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _check_plain(tensor: Tensor, name: str, path: Path) -> None:
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not dense or tensor.dtype not in DTYPES.values() or tensor.is_neg():
        raise UserError(f"{name} in {path} is no plain dense tensor ({tensor.dtype}, {tensor.layout}): save it as one")


def _plain(value: Any, where: str, path: Path, count: Iterator[int], depth: int = 0) -> Any:
    """A copy of a pickled config in plain values, counted, as one value may be referred to exponentially often."""
    if next(count) > CONFIG_LIMIT or depth > CONFIG_DEPTH:
        raise UserError(f"the config in {path} has over {CONFIG_LIMIT} values or {CONFIG_DEPTH} levels: {_DISTRUST}")
    value = vars(value) if isinstance(value, argparse.Namespace) else value
    if isinstance(value, dict):
        odd = [key for key in dict.keys(value) if not isinstance(key, str)]
        if odd:
            raise UserError(f"{shown(where)} in {path} has the key {shown(odd[0])}, keys must be text: {_WEIGHTS_ONLY}")
        return {key: _plain(item, f"{where}.{key}", path, count, depth + 1) for key, item in dict.items(value)}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, where, path, count, depth + 1) for item in value)
    if value is None or isinstance(value, str | int | float):
        return value
    kind = type(value).__name__
    raise UserError(f"{shown(where)} in {path} is a {kind}, not text, a number, a list or a dict: {_WEIGHTS_ONLY}")
