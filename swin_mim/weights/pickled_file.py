"""Pickles of `torch.save` -> tensors by name, where the file may be damaged or hostile.

They are read by an unpickler that has nothing to give but dicts and the places of tensors. So nothing in a file is ever
executed, the memory that it takes is bounded by its size, and what is not asked for, such as the state of an optimizer,
is not even read. Every refusal is a `UserError`.
"""

import io
import logging
import math
import os
import pickle
import pickletools
import re
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, Self

import torch
from torch import Tensor

from swin_mim.errors import UserError
from swin_mim.weights.json_values import STAGES
from swin_mim.weights.prefixes import Selection, everything, networks, select_network, the_one
from swin_mim.weights.weights_file import (
    HEADER_LIMIT,
    RANK_LIMIT,
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
LARGEST_SIZE = 1 << 16
"""Size of an image or a window, in a config."""
STATE_KEYS = ("model", "state_dict", "model_state_dict")
"""Keys under which a training checkpoint keeps its weights."""
_SECTIONS = {"swin": "SWIN", "swinv2": "SWINV2"}
"""TYPE of a model in microsoft's settings -> where its own settings are."""
DEPTH = 4
"""Dicts within dicts in which weights are looked for."""

_MAGIC = 0x1950A86A20F9469CFC6C  # opens every file of torch.save before 1.6
_DISTRUST = "do not use this file"
_WEIGHTS_ONLY = "save only the weights, torch.save(model.state_dict(), ...)"
_LOG = logging.getLogger(__name__)


class PickledFile(NamedTuple):
    tensors: dict[str, Tensor]
    """On the CPU, contiguous, of the dtypes in the file, under the names of `selection`."""
    config: dict[str, Any] | None
    """The training script's settings as dicts, where the file has them under `config`. Nobody checked them, and a value
    may be referred to exponentially often: look at single values, never copy or print the whole."""
    selection: Selection
    """Which of its tensors were read, and the prefix of their names."""


def is_pickled(path: Path) -> bool:
    """Whether a file is none of safetensors, as far as its first bytes or its name tell."""
    if not path.is_file():
        return False
    with opened(path) as file:
        head = file.read(9)
    if head[8:] == b"{":  # the length of a safetensors header may begin with any byte
        return False
    return head.startswith((b"PK\x03\x04", b"\x80")) or path.suffix != ".safetensors"


def load_pickled(path: Path, prefix: str = "") -> PickledFile:
    """Tensors and config of a `torch.save` file (.pth, .pt, .bin, .ckpt; zip or older); nothing in it is executed.

    Reads the one state dict in it that holds a Swin, wherever it is; where there is none, a plain one, or one under
    "model", "state_dict" or "model_state_dict". Values that are no tensors are left. A yacs config, which microsoft's
    checkpoints hold, is read without yacs.

    Args:
        prefix: of the network that is wanted, where the file holds several: as `student.backbone.`.

    Raises:
        UserError: the file asks for anything but weights and plain values, is damaged, or would take more memory
            than its size.
    """
    with opened(path) as file:
        head = file.read(64)
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= HEADER_LIMIT:
            raise UserError(f"{path} is safetensors, not a pickle: name it {path.stem}.safetensors")
        if not head.startswith((b"PK\x03\x04", b"\x80")):
            refuse_other_kinds(head, path)
            raise UserError(f"{path} is not a file of torch.save: it starts with {shown(head[:16])}")
        try:
            content, read = (_open_archive if head.startswith(b"PK") else _open_legacy)(file, path)
            if not isinstance(content, dict):
                kind = type(content).__name__.lstrip("_")
                raise UserError(f"{path} holds a {kind}, not a dict of tensors: save model.state_dict()")
            places, selection = _selected(content, prefix, path)
            tensors = _loaded(places, read, os.fstat(file.fileno()).st_size, path)
        except UserError:
            raise
        except Exception as error:  # a damaged or hostile file can make any of them
            raise UserError(f"{path} is damaged: {first_line(error)}; fetch it again") from error
    config = content.get("config")
    return PickledFile(tensors, config if isinstance(config, dict) else None, selection)


def microsoft_settings(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """image_size, window_size, pretrained_window_sizes and target from the config in a checkpoint of microsoft's, where
    it has them."""
    found: dict[str, Any] = {}
    section = _SECTIONS.get(str(_inside(settings, ("MODEL", "TYPE"))), "SWIN")  # it has the others' defaults too
    for key, at in {"image_size": ("DATA", "IMG_SIZE"), "window_size": ("MODEL", section, "WINDOW_SIZE")}.items():
        value = _inside(settings, at)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST_SIZE:
            raise UserError(
                f"{path}: its config has {'.'.join(at)} {shown(value)}, expected a number up to {LARGEST_SIZE}"
            )
        found[key] = value
    sizes = _inside(settings, ("MODEL", section, "PRETRAINED_WINDOW_SIZES"))
    if sizes is not None:
        found["pretrained_window_sizes"] = _window_sizes(sizes, f"MODEL.{section}.PRETRAINED_WINDOW_SIZES", path)
    if _inside(settings, ("MODEL", "SIMMIM", "NORM_TARGET", "ENABLE")) is True:
        found["target"] = "normalized"
    return found


def _window_sizes(sizes: Any, at: str, path: Path) -> tuple[int, ...]:
    whole = isinstance(sizes, list | tuple) and len(sizes) <= STAGES
    if not whole or not all(type(size) is int and 0 <= size <= LARGEST_SIZE for size in sizes):
        raise UserError(f"{path}: its config has {at} {shown(sizes)}, expected a list of numbers up to {LARGEST_SIZE}")
    return tuple(sizes)


def _inside(settings: Any, place: Sequence[str]) -> Any:
    """The value at a place of nested dicts, None if there is none."""
    for key in place:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


class _Object:
    """What a pickle gets in place of an object of any class: nothing is kept, and no attribute can be set."""

    __slots__ = ()

    def __new__(cls, *_: object) -> Self:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class _Dict(dict):
    """In place of OrderedDict and yacs' CfgNode: a pickle fills it item by item; attributes are left."""

    __slots__ = ()

    def __init__(self) -> None:  # from a long list of items many times over, memory would fill
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    items: int

    def nbytes(self) -> int:
        return self.items * self.dtype.itemsize


_Reader = Callable[[_Storage], bytes]


class _Tensor(NamedTuple):
    """Where the values of a tensor are."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    plain: bool
    """Neither negated nor conjugated."""

    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def of(self, values: Tensor) -> Tensor:
        """Its own among the values of its storage, (items,)."""
        reach = self.offset + sum((side - 1) * step for side, step in zip(self.shape, self.stride, strict=True))
        if all(self.shape) and reach >= len(values):
            raise ValueError("a tensor reaches beyond its storage")
        return values.as_strided(self.shape, self.stride, self.offset).contiguous()


class _Rebuilt(_Object):
    """In place of torch's function that makes a tensor."""

    def __new__(cls, storage: object, offset: Any, shape: object, stride: object, *more: object) -> Any:
        if not (isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(stride, tuple)):
            raise pickle.UnpicklingError("a tensor of something else")
        if len(shape) != len(stride) or len(shape) > RANK_LIMIT:
            raise pickle.UnpicklingError("a tensor of too many sizes")
        if not all(type(number) is int and number >= 0 for number in (offset, *shape, *stride)):
            raise pickle.UnpicklingError("a tensor of odd sizes")
        return _Tensor(storage, offset, shape, stride, plain=not any(more[2:]))


class _Parameter(_Object):
    def __new__(cls, data: object, *_: object) -> Any:
        return data


STAND_INS: dict[str, Any] = {
    "collections.OrderedDict": _Dict,
    "collections.Counter": _Object,  # the milestones of torch's schedules
    "builtins.set": _Object,  # in every yacs config
    "yacs.config.CfgNode": _Dict,
    "argparse.Namespace": _Object,  # the arguments of timm's and torchvision's scripts
    "pathlib.PosixPath": _Object,
    "pathlib._local.PosixPath": _Object,
    **{  # the hyperparameters of Lightning
        f"{module}.AttributeDict": _Dict
        for module in (
            "lightning.fabric.utilities.data",
            "lightning_fabric.utilities.data",
            "pytorch_lightning.utilities.parsing",
        )
    },
    "torch.Size": _Object,
    "torch._utils._rebuild_tensor_v2": _Rebuilt,
    "torch._utils._rebuild_parameter": _Parameter,
    **{f"torch.{kind.title()}Storage": getattr(torch, kind) for kind in ("double", "float", "half", "long", "int")},
    "torch.ShortStorage": torch.int16,
    "torch.BoolStorage": torch.bool,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
}
"""All that a pickle of weights may ask for, and what it gets."""

UNFIT = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without data",
    "torch.ComplexFloatStorage": "a tensor of complex numbers",
    "torch.ComplexDoubleStorage": "a tensor of complex numbers",
}
"""What only tensors ask for that no weight is -> its name."""


class _Unpickler(pickle.Unpickler):
    """Gives a pickle nothing but `STAND_INS`: no other code can be called, and none of it copies what it is given.

    Args:
        storages: filled with those that the pickle refers to.
    """

    def __init__(self, stream: IO[bytes], path: Path, storages: dict[str, _Storage]) -> None:
        super().__init__(stream, encoding="utf-8")
        self._path, self._storages = path, storages

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}".replace("__builtin__.", "builtins.", 1)
        if wanted in UNFIT:
            raise UserError(f"{self._path} holds {UNFIT[wanted]}: save it as a dense tensor of real numbers")
        if wanted not in STAND_INS:
            raise UserError(
                f"{self._path} asks to run {shown(wanted, quotes=False)} when it is opened: it was not. Weights need "
                "no such thing; if you trust the author, ask for safetensors or torch.save(model.state_dict(), ...)"
            )
        return STAND_INS[wanted]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, items, *view = pid
        known = kind == "storage" and isinstance(dtype, torch.dtype) and type(items) is int and items >= 0
        if not known or not isinstance(key, str) or any(view):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        storage = _Storage(key, dtype, items)
        if self._storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"the storage {key} has two sizes")
        return storage


def _next_pickle(file: IO[bytes], path: Path, storages: dict[str, _Storage]) -> Any:
    """Read a pickle and leave the file behind it, after a look at what would cost more than its length."""
    start, tuples, protocol = file.tell(), 0, 2
    stream = io.BytesIO(file.read(PICKLE_LIMIT + 1))
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            tuples += opcode.name.startswith("TUPLE")
            if opcode.name == "PROTO":
                protocol = max(protocol, argument or 0)
            elif opcode.name in ("PUT", "LONG_BINPUT") and (argument or 0) > PICKLE_LIMIT:  # makes room for as many
                raise ValueError(f"a reference numbered {argument}")
    except ValueError:
        if stream.tell() > PICKLE_LIMIT:
            raise UserError(f"{path} has a pickle of over {PICKLE_LIMIT} bytes: {_WEIGHTS_ONLY}") from None
        raise
    if tuples > TUPLE_LIMIT:
        raise UserError(f"{path} holds {tuples} tuples, no checkpoint has more than {TUPLE_LIMIT}: {_DISTRUST}")
    file.seek(start + stream.tell())
    stream.seek(0)
    content = _Unpickler(stream, path, storages).load()
    if protocol != 2:
        raise UserError(
            f"{path} is pickled with protocol {protocol}, weights are read from 2: use torch.save's default"
        )
    return content


def _open_archive(file: BinaryIO, path: Path) -> tuple[Any, _Reader]:
    """The content of a zip file of torch.save, and a reader of its storages."""
    size = file.seek(-22, os.SEEK_END) + 22
    end, archive = file.read(), zipfile.ZipFile(file)
    entries = archive.infolist()
    if not end.startswith(b"PK\x05\x06") or archive.comment or min(entry.header_offset for entry in entries):
        raise UserError(f"{path} is damaged: its zip directory is not at its end; fetch it again")
    if any(name.endswith("/constants.pkl") or name.split("/")[1:2] == ["code"] for name in archive.namelist()):
        raise UserError(f"{path} is a TorchScript program, which would run: export torch.save(model.state_dict(), ...)")
    pickles = [entry for entry in entries if entry.filename.lower().endswith(".pkl")]
    if len(pickles) != 1 or not re.fullmatch("[^/]+/data.pkl", pickles[0].filename):
        raise UserError(f"{path} is a zip file but not of torch.save: it must hold one data.pkl")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path} holds {shown(entry.filename)} compressed, torch.save stores: {_DISTRUST}")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > size:
        raise UserError(f"{path} has {size} bytes and declares {unpacked} inside: {_DISTRUST}")
    folder = pickles[0].filename.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise UserError(f"{path} was written on a big-endian machine: save it as safetensors there")
    with archive.open(pickles[0]) as stream:
        content = _next_pickle(stream, path, {})
    return content, lambda storage: archive.read(f"{folder}data/{storage.key}")


def _open_legacy(file: BinaryIO, path: Path) -> tuple[Any, _Reader]:
    """The content of a file of torch.save before 1.6, and a reader of its storages.

    Five pickles: magic number, version, system, content, keys of the storages; then each storage behind its length.
    """
    file.seek(0)
    if _next_pickle(file, path, {}) != _MAGIC:
        raise UserError(f"{path} is a pickle but not of torch.save: load it where it was made, save model.state_dict()")
    storages: dict[str, _Storage] = {}
    _, _, content, keys = (_next_pickle(file, path, storages) for _ in range(4))
    places, position = {}, file.tell()
    for storage in (storages[key] for key in keys):
        places[storage] = position
        position += 8 + storage.nbytes()
    if position > os.fstat(file.fileno()).st_size:
        raise ValueError("it was cut off")

    def read(storage: _Storage) -> bytes:
        file.seek(places[storage])
        length = int.from_bytes(file.read(8), "little")
        return file.read(storage.nbytes()) if length == storage.items else b""

    return content, read


def _loaded(places: Mapping[str, _Tensor], read: _Reader, size: int, path: Path) -> dict[str, Tensor]:
    """The values of tensors: all together at most `size` bytes."""
    values: dict[_Storage, Tensor] = {}
    for name, tensor in places.items():
        if not tensor.plain:
            raise UserError(f"{name} in {path} is no plain dense tensor, but negated or conjugated: save a clone of it")
        storage = tensor.storage
        if storage not in values:
            data = bytearray(read(storage))
            if len(data) != storage.nbytes():
                raise ValueError(f"the storage {storage.key} has another size than it says")
            empty = torch.empty(0, dtype=storage.dtype)
            values[storage] = torch.frombuffer(data, dtype=storage.dtype) if data else empty
    needed = sum(tensor.nbytes() for tensor in places.values())
    if needed > size:
        raise UserError(
            f"the tensors of {path} take {needed} bytes, the file only {size}: some share memory; save clones of them"
        )
    return {name: tensor.of(values[tensor.storage]) for name, tensor in places.items()}


def _selected(content: dict[Any, Any], prefix: str, path: Path) -> tuple[dict[str, _Tensor], Selection]:
    """The tensors of the network by name, wherever the checkpoint keeps them; of another one's, all."""
    states = dict(_state_dicts(content))
    found = [(key, *names) for key, state in states.items() for names in networks(state).items()]
    if found or prefix:
        keys = {key for key, _, _ in found}
        for name in [*filter(None, keys), *(name for key in keys for name in states[key])]:
            check_name(name.removesuffix("."), path)
        # a key such as `model` is named only where it tells one network from another, or was asked for
        with_key = len(keys) > 1 or f"{prefix}.".startswith(tuple(filter(None, keys)))
        by_name = {f"{key if with_key else ''}{in_file}": (key, in_file, before) for key, in_file, before in found}
        try:
            key, in_file, before = by_name[the_one(by_name, prefix, str(path))]
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        selection = select_network(states[key], in_file, before)
        if len(keys) > 1:
            selection = selection._replace(prefix=f"{key}{selection.prefix}")
    else:
        key = _usual_place(content, states, path)
        selection = everything(states[key])
    others = [other for other in states if other != key and other]
    if others:
        _LOG.warning(
            "%s holds more weights, under %s, which are left", path, ", ".join(shown(other[:-1]) for other in others)
        )
    return {name: states[key][file] for name, file in selection.names.items()}, selection


def _state_dicts(content: Mapping[Any, Any]) -> Iterator[tuple[str, dict[str, _Tensor]]]:
    """All dicts with tensors by name, "" or "student." -> dict. Each is seen once, so that references cost nothing."""
    todo, seen = deque([("", content)]), {id(content)}
    while todo:
        key, state = todo.popleft()
        tensors = {name: value for name, value in state.items() if isinstance(value, _Tensor) and isinstance(name, str)}
        if tensors:
            yield key, tensors
        for name, value in state.items():
            if isinstance(value, dict) and isinstance(name, str) and id(value) not in seen and key.count(".") < DEPTH:
                seen.add(id(value))
                todo.append((f"{key}{name}.", value))


def _usual_place(content: Mapping[Any, Any], states: Mapping[str, dict[str, _Tensor]], path: Path) -> str:
    """Where a checkpoint of another network keeps its weights."""
    nested = [key for key in STATE_KEYS if isinstance(content.get(key), dict)]
    if len(nested) > 1:
        raise UserError(f"{path} has weights under {' and '.join(nested)}: save the one that you mean by itself")
    state = content[nested[0]] if nested else content
    for name, value in state.items():
        if isinstance(value, _Tensor):
            check_name(name, path)
    place = f"{nested[0]}." if nested else ""
    if place not in states:
        keys = ", ".join(shown(key) for key in list(state)[:5])
        raise UserError(f"{path} holds no tensors by name, only {keys or 'an empty dict'}: save model.state_dict()")
    return place
