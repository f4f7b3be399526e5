"""Weight files: what torch and safetensors write comes back bit for bit; what is damaged or hostile is one line."""

import argparse
import hashlib
import io
import json
import os
import pickle
import resource
import stat
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import types
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from swin_mim.errors import UserError
from swin_mim.weights.pickled_file import PICKLE_LIMIT, TUPLE_LIMIT, load_pickled, microsoft_settings
from swin_mim.weights.weights_file import (
    DTYPES,
    HEADER_LIMIT,
    TensorInfo,
    check_finite,
    load_tensors,
    read_header,
    write_safetensors,
)

WEIGHTS = {
    "patch_embed.proj.weight": torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)),
    "layers.0.blocks.0.attn.qkv.weight": torch.randn(12, 4, generator=torch.Generator().manual_seed(1)),
    "norm.weight": torch.ones(7),
    "index": torch.arange(6).reshape(2, 3),
}


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 500 + len(str(path))
    return message


def refused(read: Callable[[Path], object], path: Path) -> UserError | None:
    """The refusal, if it is one. No other error passes."""
    try:
        read(path)
    except UserError as error:
        return error
    return None


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and a[k].contiguous().flatten().view(torch.uint8).equal(b[k].contiguous().flatten().view(torch.uint8))
        for k in a
    )


# safetensors: what is right


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(WEIGHTS, path, metadata={"format": "pt"})
    return path


def test_every_dtype_and_shape_comes_back_as_safetensors_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    raw = torch.randint(0, 2, (48,), dtype=torch.uint8)
    tensors = {f"{name}.flat": raw.clone().view(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(3.5), "none": torch.empty(0, 4), "deep": torch.ones(1, 2, 1, 2, 1)}
    save_file(tensors, path)
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    header = read_header(path)
    assert {name: info.shape for name, info in header.items()} == shapes
    assert equal(load_tensors(path, header), load_file(path))
    assert equal(load_tensors(path), tensors)


def test_the_header_is_in_the_order_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    entries = {"second": entry("F32", [1], 4, 8), "first": entry("F32", [1], 0, 4)}
    path.write_bytes(packed(entries, struct.pack("<2f", 1, 2)))
    assert list(read_header(path)) == ["first", "second"]
    assert equal(load_tensors(path), load_file(path))


def test_the_tensors_survive_a_truncation_of_their_file(good: Path) -> None:
    tensors = load_tensors(good)
    assert str(good) not in Path("/proc/self/maps").read_text()
    os.truncate(good, 10)
    assert equal(tensors, WEIGHTS)


def test_a_file_that_changed_since_its_header_was_read_is_refused(good: Path) -> None:
    header = read_header(good)
    save_file(WEIGHTS | {"norm.weight": torch.ones(8)}, good)
    assert "changed while it was being read" in refusal(lambda path: load_tensors(path, header), good)


def test_a_header_of_the_length_that_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    text = json.dumps({"a": entry("F32", [1], 0, 4)}).encode().ljust(0x280)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0\0\x80?")
    assert path.read_bytes().startswith(b"\x80\x02")
    assert load_tensors(path)["a"].tolist() == [1.0]


# safetensors: what is wrong


def entry(dtype: str, shape: object, begin: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def packed(header: object, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


GOOD = entry("F32", [2], 0, 8)
HALVES = {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 4, 8)}
INVALID = "is no valid safetensors file"
"""What the library itself refuses."""
CRAFTED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has 0 bytes"),
    "seven bytes": (b"\0" * 7, "has 7 bytes"),
    "no header": (packed(b""), INVALID),
    "length beyond the file": (packed({"a": GOOD}, length=1000), "header of 1000 bytes"),
    "length of 2**63": (packed({"a": GOOD}, length=2**63), f"header of {2**63} bytes"),
    "length over the limit": (packed(b"{}".ljust(HEADER_LIMIT + 1)), f"{HEADER_LIMIT} are the most"),
    "not UTF-8": (packed(b'{"a\xff":{}}'), INVALID),
    "not JSON": (packed(b'{"a":'), INVALID),
    "deep JSON": (packed(b'{"a":' + b"[" * 100_000), INVALID),
    "a huge number": (packed(b'{"a":' + b"9" * 10_000 + b"}"), INVALID),
    "a list": (packed([]), INVALID),
    "white space first": (packed(b"  {}"), INVALID),
    "a name twice": (
        packed(b'{"a":' + json.dumps(GOOD).encode() + b',"a":' + json.dumps(GOOD).encode() + b"}"),
        "twice",
    ),
    "a field twice": (packed(b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}'), INVALID),
    "many names": (packed(b'{"a":1,' + b'"b":1,' * 300_000 + b'"a":1}'), INVALID),
    "metadata a list": (packed({"__metadata__": [], "a": GOOD}), INVALID),
    "metadata of numbers": (packed({"__metadata__": {"format": 1}, "a": GOOD}), INVALID),
    "an empty name": (packed({"": GOOD}), "names a tensor ''"),
    "a path as a name": (packed({"../a": GOOD}), "'../a'"),
    "dots in a name": (packed({"a..b": GOOD}), "'a..b'"),
    "a slash in a name": (packed({"a/b": GOOD}), "'a/b'"),
    "a line break in a name": (packed({"a\nb": GOOD}), "'a\\nb'"),
    "a line break after a name": (packed({"a\n": GOOD}), "'a\\n'"),
    "an escape in a name": (packed({"\x1b[2J": GOOD}), "x1b[2J"),
    "a letter that only looks like a": (packed({"\u0430": GOOD}), "u0430"),
    "half a surrogate": (packed(b'{"\\ud800":1}'), INVALID),
    "a long name": (packed({"a" * 257: GOOD}), "257 characters"),
    "an entry of a number": (packed({"a": 1}), INVALID),
    "an entry without shape": (packed({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), INVALID),
    "an entry with more": (packed({"a": GOOD | {"more": 1}}), "more than dtype"),
    "an unknown dtype": (packed({"a": entry("F4", [2], 0, 8)}), INVALID),
    "a dtype of a number": (packed({"a": GOOD | {"dtype": 32}}), INVALID),
    "a dtype of a list": (packed({"a": GOOD | {"dtype": []}}), INVALID),
    "a negative side": (packed({"a": entry("F32", [-2], 0, 8)}), INVALID),
    "two negative sides": (packed({"a": entry("F32", [-1, -2], 0, 8)}), INVALID),
    "a side of 2.0": (packed({"a": entry("F32", [2.0], 0, 8)}), INVALID),
    "a side of true": (packed({"a": entry("F64", [True], 0, 8)}), INVALID),
    "a side of text": (packed({"a": entry("F32", ["2"], 0, 8)}), INVALID),
    "a shape of a number": (packed({"a": entry("F32", 2, 0, 8)}), INVALID),
    "a shape of null": (packed({"a": entry("F32", None, 0, 8)}), INVALID),
    "nine sides": (packed({"a": entry("F32", [2] + [1] * 8, 0, 8)}), "up to 8 sizes"),
    "a million sides": (packed({"a": entry("F32", [2] + [1] * 10**6, 0, 8)}), "up to 8 sizes"),
    "sides that overflow": (packed({"a": entry("F32", [2**32, 2**32], 0, 8)}), INVALID),
    "sides that overflow to fit": (packed({"a": entry("F32", [2**63 + 1, 2], 0, 8)}), INVALID),
    "sides that overflow around 0": (
        packed({"a": entry("F32", [0, 2**63], 0, 0)}, b""),
        "shape [0, 9223372036854775808]",
    ),
    "a shape that does not fit": (packed({"a": entry("F32", [3], 0, 8)}), INVALID),
    "one offset": (packed({"a": GOOD | {"data_offsets": [0]}}), INVALID),
    "three offsets": (packed({"a": GOOD | {"data_offsets": [0, 8, 8]}}), INVALID),
    "offsets of text": (packed({"a": GOOD | {"data_offsets": "08"}}), INVALID),
    "offsets of true": (packed({"a": entry("U8", [1], False, True)}, b"\0"), INVALID),
    "a negative offset": (packed({"a": entry("F32", [2], -8, 0)}), INVALID),
    "offsets in the wrong order": (packed({"a": entry("F32", [2], 8, 0)}), INVALID),
    "a gap": (packed(HALVES | {"b": entry("U8", [3], 5, 8)}), INVALID),
    "a gap at the start": (packed({"a": entry("F32", [1], 4, 8)}), INVALID),
    "an overlap": (packed(HALVES | {"b": entry("U8", [5], 3, 8)}), INVALID),
    "the same bytes twice": (packed({"a": GOOD, "b": GOOD}), INVALID),
    "bytes left over": (packed({"a": GOOD}, b"\0" * 9), INVALID),
    "bytes missing": (packed({"a": GOOD}, b"\0" * 7), INVALID),
    "no tensors, but data": (packed({}), INVALID),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "run `git lfs pull`"),
    "a web page": (b"<!DOCTYPE html><html>Not found</html>", "web page"),
    "a pickle of today": (b"PK\x03\x04" + b"\0" * 60, "swin-mim convert"),
    "a pickle of old": (pickle.dumps({"a": 1}, protocol=2), "swin-mim convert"),
}


@pytest.mark.parametrize("kind", CRAFTED)
def test_a_crafted_file_is_refused_and_told_apart(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    content, reason = CRAFTED[kind]
    path.write_bytes(content)
    assert reason in refusal(read_header, path)
    refusal(load_tensors, path)


def test_more_than_25_headers_are_crafted() -> None:
    assert len(CRAFTED) > 60


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (read_header, load_tensors, load_pickled):
        assert "is not a file" in refusal(read, tmp_path)
        assert "is not a file" in refusal(read, tmp_path / "pipe")
        assert "is not there" in refusal(read, tmp_path / "absent")


def test_a_file_cut_off_anywhere_is_refused(good: Path) -> None:
    whole = good.read_bytes()
    places = range(len(whole))
    assert len(places) > 500
    for place in places:
        good.write_bytes(whole[:place])
        refusal(load_tensors, good)


def test_a_flipped_bit_in_the_header_is_refused_or_changes_one_name(good: Path) -> None:
    whole, truth = good.read_bytes(), read_header(good)
    bits = range(8 * (8 + int.from_bytes(whole[:8], "little")))
    renamed = unchanged = 0
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        good.write_bytes(flipped)
        if refused(read_header, good):
            continue
        header = read_header(good)
        assert list(header.values()) == list(truth.values())
        renamed += header.keys() != truth.keys()
        unchanged += header.keys() == truth.keys()
        assert len(header.keys() - truth.keys()) <= 1
    assert len(bits) > 2000
    assert renamed + unchanged < len(bits) / 2
    assert renamed > 100
    assert 0 < unchanged < 200  # in __metadata__


@given(st.binary(max_size=200), st.dictionaries(st.text(max_size=5), st.recursive(st.integers(), st.lists), max_size=3))
def test_no_bytes_give_another_error(data: bytes, header: dict[str, Any]) -> None:
    path = Path(f"/dev/shm/weights-{os.getpid()}.safetensors")
    try:
        for content in (data, packed(data), packed(header, data), packed({"a": header}), START + data):
            path.write_bytes(content)
            for read in (load_tensors, load_pickled):
                message = str(refused(read, path))
                assert "\n" not in message
    finally:
        path.unlink()


def resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("size", [2**40, 2**31])
def test_a_header_that_declares_more_than_the_file_holds_allocates_nothing(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed({"a": entry("F32", [size], 0, 4 * size)}))
    before = resident_peak()
    tracemalloc.start()
    try:
        assert INVALID in refusal(load_tensors, path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert resident_peak() - before < 2**24


# values, and writing


def test_values_that_are_not_finite_are_named_and_counted() -> None:
    nan = {"a": torch.tensor([1, float("nan"), float("inf")]), "b": torch.ones(2), "i": torch.arange(3)}
    check_finite({"b": nan["b"], "i": nan["i"]}, "x")
    with pytest.raises(UserError, match=r"^x holds values that are NaN or infinite in a \(2 of 3\): "):
        check_finite(nan, "x")
    many = {f"n{number}": torch.full((2,), -float("inf"), dtype=torch.bfloat16) for number in range(5)}
    with pytest.raises(UserError, match=r"n0 \(2 of 2\), n1 \(2 of 2\), n2 \(2 of 2\) and 2 more tensors"):
        check_finite(many, "x")


def test_what_is_written_is_read_by_us_and_by_safetensors(tmp_path: Path) -> None:
    path, base = tmp_path / "out.safetensors", torch.randn(4, 6)
    tensors = {"turned": base.t(), "part": base[1:, ::2], "tied": base, "again": base, "p": torch.nn.Parameter(base)}
    write_safetensors(tensors, path)
    assert equal(load_tensors(path), {name: tensor.detach() for name, tensor in tensors.items()})
    assert equal(load_file(path), load_tensors(path))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert os.listdir(tmp_path) == [path.name]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_the_same_tensors_are_written_as_the_same_bytes(tmp_path: Path) -> None:
    write_safetensors(WEIGHTS, tmp_path / "a")
    write_safetensors(dict(reversed(WEIGHTS.items())), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": torch.tensor(float("nan"))}, "NaN"),
        ({"a/b": torch.ones(1)}, "'a/b'"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, "complex64"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tensors: dict[str, Tensor], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"before")
    assert reason in refusal(lambda path: write_safetensors(tensors, path), path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    assert "could not be written" in refusal(lambda path: write_safetensors(WEIGHTS, path), tmp_path / "no" / "x")


def test_what_could_not_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert "could not be written" in refusal(lambda path: write_safetensors(WEIGHTS, path), tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"]


# pickles: what is right


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[object], Path]:
    def write(content: object) -> Path:
        torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=request.param)
        return tmp_path / "weights.pth"

    return write


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        lambda state: {"state_dict": state, "best": 0.5, "arch": "swin"},
        lambda state: {"model_state_dict": OrderedDict(state), "milestones": Counter([3, 4])},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: state | {"epoch": 3, "names": ["a"]},
    ],
    ids=["plain", "model", "state_dict", "model_state_dict", "module.", "with settings"],
)
def test_the_layouts_of_checkpoints_are_read(
    wrap: Callable[[dict[str, Tensor]], object], save: Callable[[object], Path]
) -> None:
    file = load_pickled(save(wrap(WEIGHTS)))
    assert equal(file.tensors, WEIGHTS)
    assert file.config is None


def test_module_is_only_stripped_where_all_names_have_it(save: Callable[[object], Path]) -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert load_pickled(save(state)).tensors.keys() == state.keys()


def test_the_state_dict_of_a_module_is_read_as_plain_dense_tensors(save: Callable[[object], Path]) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to(torch.bfloat16)
    state = module.state_dict() | {"parameter": torch.nn.Parameter(torch.randn(6, 2).t())}
    tensors = load_pickled(save(state)).tensors
    assert equal(tensors, {name: tensor.detach() for name, tensor in state.items()})
    assert all(type(tensor) is Tensor and tensor.is_contiguous() for tensor in tensors.values())
    assert not any(tensor.requires_grad for tensor in tensors.values())


@pytest.fixture
def cfg_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """A class that pickles to the bytes of yacs' own: a dict with attributes, one of them a set."""

    class CfgNode(dict):
        def __init__(self, values: dict[str, Any]) -> None:
            super().__init__({key: CfgNode(v) if isinstance(v, dict) else v for key, v in values.items()})
            self.__dict__ |= {"__immutable__": True, "__deprecated_keys__": set()}
            self.__dict__ |= {"__renamed_keys__": {}, "__new_allowed__": False}

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = types.ModuleType("yacs.config")
    module.__dict__["CfgNode"] = CfgNode
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        yield CfgNode


def test_a_yacs_config_is_read_as_plain_dicts_without_yacs(cfg_node: type, save: Callable[[object], Path]) -> None:
    config = {
        "MODEL": {"TYPE": "swin", "SWIN": {"DEPTHS": [2, 2, 18, 2], "DROP": 0.1}},
        "AUG": (1, None, True),
        "T": "",
    }
    path = save({"model": WEIGHTS, "config": cfg_node(config), "lr_scheduler": {}, "max_accuracy": 0.0, "epoch": 99})
    sys.modules["yacs.config"].__dict__.clear()  # nothing of it may be looked up
    safe = set(torch.serialization.get_safe_globals())
    file = load_pickled(path)
    assert file.config == config
    assert isinstance(file.config, dict)
    assert isinstance(file.config["MODEL"]["SWIN"], dict)
    assert equal(file.tensors, WEIGHTS)
    assert set(torch.serialization.get_safe_globals()) == safe


# pickles: what is hostile


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def payloads(canary: Path) -> dict[str, object]:
    """Objects that would make a file named canary."""
    touch, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Calls(os.system, touch),
        "os.mkdir": Calls(os.mkdir, str(canary)),
        "os.popen": Calls(os.popen, touch),
        "subprocess.Popen": Calls(subprocess.Popen, ["touch", str(canary)]),
        "subprocess.run": Calls(subprocess.run, ["touch", str(canary)]),
        "exec": Calls(exec, code),
        "eval": Calls(eval, code),
        "open": Calls(open, str(canary), "w"),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "nested reduce": Calls(Calls(getattr, os, "system").call[0], Calls(__import__, "os"), touch),
        "reduce in a list in a tuple": [({"a": [Calls(os.system, touch)]},)],
        "map": Calls(list, Calls(map, os.system, [touch])),
        "io.open": Calls(io.open_code, str(canary)),
        "torch.load": Calls(torch.load, str(canary)),
        "torch.hub.load": Calls(torch.hub.load, str(canary), "x"),
        "torch's own bytes": Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.system, touch))),
        "pickle.loads": Calls(pickle.loads, pickle.dumps(Calls(os.system, touch))),
        "numpy": np.arange(3),
        "a numpy number": np.float64(1),
        "numpy.save": Calls(np.save, str(canary), 1),
        "a thread": Calls(threading.Thread, None, os.system, None, (touch,)),
        "a module": torch.nn.Linear(1, 1),
        "a key": {Calls(os.system, touch): 1},
        "memory": Calls(bytearray, 2**30),
        "a tensor of any size": Calls(torch.FloatTensor, 2**28),
    }


def raw_payloads(canary: Path) -> dict[str, bytes]:
    """Pickles written by hand."""
    touch = f"touch {canary}".encode()
    text = b"X" + struct.pack("<I", len(touch)) + touch
    return {
        "posix.system": b"\x80\x02cposix\nsystem\n" + text + b"\x85R.",
        "nt.system": b"\x80\x02cnt\nsystem\n" + text + b"\x85R.",
        "a Python 2 name": b"\x80\x02c__builtin__\neval\n" + text + b"\x85R.",
        "INST": b"\x80\x02(" + text + b"iposix\nsystem\n.",
        "OBJ": b"\x80\x02(cposix\nsystem\n" + text + b"o.",
        "NEWOBJ": b"\x80\x02cposix\nsystem\n" + text + b"\x85\x81.",
        "BUILD": b"\x80\x02ccollections\nOrderedDict\n)Rcposix\nsystem\nb.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + text + b"\x85R.",
        "STACK_GLOBAL that claims protocol 2": b"\x80\x02\x8c\x05posix\x8c\x06system\x93" + text + b"\x85R.",
        "STACK_GLOBAL behind innocent texts": b"\x80\x02\x8c\x05posix\x8c\x06system"
        b"\x8c\x0bcollections0\x8c\x0bOrderedDict0\x93" + text + b"\x85R.",
        "an attribute of what is allowed": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent id of text": b"\x80\x02" + text + b"Q.",
        "a persistent id of a module": b"\x80\x02(X\x06\0\0\0modulecposix\nsystem\n" + text + text + b"tQ.",
        "a persistent id in letters": b"\x80\x02P" + touch + b"\n.",
        "a shadowed method": b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsK\x01sb.",
        "nothing at all": b"\x80\x02.",
        "the end at once": b".",
        "a mark without a start": b"\x80\x02t.",
        "an unknown instruction": b"\x80\x02\xff.",
        "text as bytes of 2 GB": b"\x80\x02X\xff\xff\xff\x7fabc.",
    }


MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
START = MAGIC + pickle.dumps(1001, protocol=2) + pickle.dumps({"little_endian": True}, protocol=2)


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def hostile_files(folder: Path, canary: Path) -> list[Path]:
    """Every payload in every place where a file can hold it."""
    contents: dict[str, bytes] = {}
    for name, payload in payloads(canary).items():
        places = {"alone": payload, "in config": {"model": WEIGHTS, "config": payload}, "as a weight": {"a": payload}}
        places["in the optimizer"] = {"state_dict": WEIGHTS, "optimizer": [payload]}
        for place, content in places.items():
            for kind in (True, False):
                buffer = io.BytesIO()
                torch.save(content, buffer, _use_new_zipfile_serialization=kind)
                contents[f"{name}, {place}, {kind}"] = buffer.getvalue()
        for protocol in (0, 1, 2, 3, 4, 5):
            contents[f"{name}, pickled {protocol}"] = pickle.dumps({"a": payload}, protocol=protocol)
    for name, raw in raw_payloads(canary).items():
        contents[f"{name}, raw"] = raw
        contents[f"{name}, legacy"] = START + raw + pickle.dumps([], protocol=2)
        contents[f"{name}, as the system"] = MAGIC + pickle.dumps(1001, protocol=2) + raw + pickle.dumps({}, protocol=2)
        contents[f"{name}, as the keys"] = START + pickle.dumps({}, protocol=2) + raw
        contents[f"{name}, zip"] = zipped({"archive/data.pkl": raw, "archive/version": b"3\n"})
    paths = []
    for number, content in enumerate(contents.values()):
        paths.append(folder / f"{number}.pth")
        paths[-1].write_bytes(content)
    return paths


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    folder = tmp_path_factory.mktemp("hostile")
    return hostile_files(folder, folder / "canary"), folder / "canary"


def test_the_canary_would_show_a_payload_that_runs(tmp_path: Path) -> None:
    for number, name in enumerate(["os.system", "os.mkdir", "exec", "eval", "reduce in a list in a tuple"]):
        canary = tmp_path / str(number)
        pickle.loads(pickle.dumps(payloads(canary)[name]))
        assert canary.exists()


def test_nothing_in_a_hostile_pickle_runs(hostile: tuple[list[Path], Path]) -> None:
    paths, canary = hostile
    before = resident_peak()
    assert len(paths) > 400
    asked = sum("asks to run" in refusal(load_pickled, path) for path in paths)
    assert asked > 300
    assert not canary.exists()
    assert resident_peak() - before < 2**28


AUDIT = """
import os, sys, warnings
from pathlib import Path
from swin_mim.errors import UserError
from swin_mim.weights.pickled_file import load_pickled
good, *hostile = (Path(line) for line in sys.stdin.read().split("\\n"))
warnings.simplefilter("error")
seen, refused = [], 0
load_pickled(good)
b"a".decode("cp437")  # zipfile imports its codec when it first meets a name
DANGEROUS = ("os.", "subprocess.", "socket.", "exec", "compile", "import", "ctypes.", "pickle.find_class", "shutil.")
sys.addaudithook(lambda event, told: seen.append((event, str(told)[:200])) if event.startswith(DANGEROUS) else None)
for path in hostile:
    try:
        load_pickled(path)
    except UserError:
        refused += 1
print(refused, seen)
os.system("true")
print(len(seen))  # the hook does see
"""


def test_python_reports_no_dangerous_act_while_hostile_pickles_are_read(
    hostile: tuple[list[Path], Path], tmp_path: Path
) -> None:
    torch.save(WEIGHTS, tmp_path / "good.pth")
    paths = "\n".join(str(path) for path in [tmp_path / "good.pth", *hostile[0]])
    done = subprocess.run([sys.executable, "-c", AUDIT], input=paths, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"{len(hostile[0])} []\n1", done.stderr
    assert not hostile[1].exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Calls(os.system, "true"), "posix.system"),
        (Calls(eval, "1"), "builtins.eval"),
        ({"model": WEIGHTS, "args": types.SimpleNamespace(lr=1)}, "types.SimpleNamespace"),
        (np.float64(1), "numpy"),
    ],
)
def test_the_refusal_names_what_the_file_asks_for(content: object, name: str, save: Callable[[object], Path]) -> None:
    message = refusal(load_pickled, save(content))
    assert f"asks to run {name}" in message
    assert "it was not" in message


def test_the_arguments_of_a_training_script_are_no_obstacle(save: Callable[[object], Path]) -> None:
    """timm's and torchvision's scripts save them beside the weights, and so does torch.compile its prefix."""
    arguments = argparse.Namespace(lr=1e-3, betas=(0.9, 0.999), name="swin", nested=argparse.Namespace(a=None))
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()}
    read = load_pickled(save({"model": compiled, "args": arguments, "epoch": 3}))
    assert read.config is None
    assert read.tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in read.tensors.items())
    message = refusal(load_pickled, save({"model": WEIGHTS, "args": argparse.Namespace(run=Calls(os.system, "true"))}))
    assert "asks to run posix.system" in message


class AttributeDict(dict):
    """Pickles as the class in which Lightning keeps hyperparameters."""


def test_paths_and_hyperparameters_of_lightning_are_no_obstacle(
    save: Callable[[object], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("lightning_fabric.utilities.data")
    AttributeDict.__module__, module.__dict__["AttributeDict"] = module.__name__, AttributeDict
    for name in ("lightning_fabric", "lightning_fabric.utilities", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    beside = {"dir": Path("/tmp"), "hyper_parameters": AttributeDict(lr=1e-3, data=Path("/tmp"))}
    assert equal(load_pickled(save({"state_dict": WEIGHTS} | beside)).tensors, WEIGHTS)


# pickles: bombs, tricks and damage


def legacy_tensor(storage: int, size: int, stride: int = 1, stored: bytes = b"") -> bytes:
    """A legacy file with one tensor "w" of `size` elements on a storage that is said to have `storage`."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)

    return (
        START
        + b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(("
        + b"X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0kX\x03\0\0\0cpu"
        + (number(storage) + b"NtQK\0" + number(size) + b"\x85" + number(stride) + b"\x85")
        + b"\x89ccollections\nOrderedDict\n)RtRs."
        + (pickle.dumps(["k"], protocol=2) + struct.pack("<Q", storage % 2**64) + stored)
    )


def laughs(depth: int) -> object:
    """A config of 3 ** depth values that is pickled in a few bytes each."""
    config: object = "ha"
    for _ in range(depth):
        config = [config, config, config]
    return {"a": config}


def own_config() -> dict[str, Any]:
    content: dict[str, Any] = {"model": WEIGHTS}
    content["config"] = content
    return content


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def stored_less() -> bytes:
    """The archive of a tensor whose data was replaced by less of it."""
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.ones(1000)}))) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    return zipped({name: b"\0" * 16 if name.endswith("data/0") else data for name, data in entries.items()})


WEIGHT = pickle.dumps({}, protocol=2)
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a zip bomb": (
        lambda: zipped({"a/data.pkl": WEIGHT, "a/data/0": b"\0" * 10**7}, zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "one file under many names": (lambda: shared_entries(1000), "declares"),
    "a tensor expanded by stride 0": (lambda: saved({"w": torch.zeros(1).expand(2**40)}), f"take {2**42} bytes"),
    "many tensors on one storage": (
        lambda: saved(dict.fromkeys(map(str, range(99)), torch.ones(10**4))),
        "take 3960000",
    ),
    "a storage of 4 TB": (lambda: legacy_tensor(2**40, 1), "damaged"),
    "a storage of 8 GB": (lambda: legacy_tensor(2**31, 1), "damaged"),
    "a storage of less than nothing": (lambda: legacy_tensor(-5, 1), "damaged"),
    "a tensor beyond its storage": (lambda: legacy_tensor(1, 2**31, 1, b"\0" * 4), "weights.pth"),
    "a tensor of less than nothing": (lambda: legacy_tensor(1, -1, 1, b"\0" * 4), "damaged"),
    "a storage that is larger than its file": (stored_less, "damaged"),
    "tuples in tuples": (lambda: START + b"\x80\x02})" + b"\x85" * 10**5 + b"K\x01s." + WEIGHT, f"than {TUPLE_LIMIT}"),
    "as many as may be": (lambda: START + b"\x80\x02})" + b"\x85" * (TUPLE_LIMIT - 1) + b"K\x01s.", "damaged"),
    "a long pickle": (lambda: START + b"\x80\x02" + b"N" * (PICKLE_LIMIT + 10) + b"." + WEIGHT, f"over {PICKLE_LIMIT}"),
    "a long pickle in a zip": (lambda: zipped({"a/data.pkl": b"N" * (PICKLE_LIMIT + 10)}), f"over {PICKLE_LIMIT}"),
    "a dict filled again and again": (
        lambda: zipped({"a/data.pkl": b"\x80\x02]q\1(" + b"K\1K\2\x86" * 9 + b"eccollections\nOrderedDict\nh\1\x85R."}),
        "damaged",
    ),
    "a memo of 2**31": (lambda: zipped({"a/data.pkl": b"\x80\x02}r\xff\xff\xff\x7f."}), "damaged"),
}


def endless() -> list[object]:
    values: list[object] = []
    values.append(values)
    return values


def shared_entries(count: int) -> bytes:
    """A zip file whose directory lists the same megabyte again and again."""
    whole = zipped({"a/data.pkl": WEIGHT, "a/data/0": b"\0" * 10**6})
    directory = whole.index(b"PK\x01\x02")
    second = whole.index(b"PK\x01\x02", directory + 4)
    end = whole.index(b"PK\x05\x06")
    again = b"".join(whole[second:end].replace(b"a/data/0", f"a/{n:06d}".encode()) for n in range(count))
    records = whole[directory:end] + again
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count + 2, count + 2, len(records), directory, 0)
    return whole[:directory] + records + tail


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_soon_and_in_bounded_memory(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    make, reason = BOMBS[kind]
    path.write_bytes(make())
    before, start = resident_peak(), time.perf_counter()
    assert reason in refusal(load_pickled, path)
    assert time.perf_counter() - start < 10
    assert resident_peak() - before < 2**28


@pytest.mark.parametrize(
    "content",
    [
        {"model": WEIGHTS, "config": {"DATA": {"IMG_SIZE": laughs(40)}}},
        {"model": WEIGHTS, "config": {"DATA": {"IMG_SIZE": endless()}}},
        {"model": WEIGHTS, "config": {1: 2, "DATA": {"IMG_SIZE": argparse.Namespace(a=1)}}},
    ],
    ids=["3**40 values", "a list that holds itself", "an object"],
)
def test_a_config_is_no_bomb_as_nobody_copies_it(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(saved(content))
    before, start = resident_peak(), time.perf_counter()
    file = load_pickled(path)
    assert equal(file.tensors, WEIGHTS)
    assert file.config is not None
    assert "its config has DATA.IMG_SIZE" in refusal(lambda path: microsoft_settings(file.config or {}, path), path)
    assert time.perf_counter() - start < 10
    assert resident_peak() - before < 2**24


def test_a_checkpoint_that_is_its_own_config_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(saved(own_config()))
    file = load_pickled(path)
    assert equal(file.tensors, WEIGHTS)
    assert microsoft_settings(file.config or {}, path) == {}


def test_a_pickle_that_would_fill_an_error_message_takes_bounded_memory(tmp_path: Path) -> None:
    """Lists that hold each other twice, thirty deep, where torch writes what it refuses into its message."""
    levels = b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 30))
    path = tmp_path / "weights.pth"
    path.write_bytes(zipped({"a/data.pkl": b"\x80\x02](]q\0" + levels + b"eh\x1d)R.", "a/version": b"3"}))
    before = resident_peak()
    assert "is damaged" in refusal(load_pickled, path)
    assert resident_peak() - before < 2**29


def renamed_entries(change: Callable[[str], str]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved(WEIGHTS))) as archive:
        return zipped({change(name): archive.read(name) for name in archive.namelist()})


def two_pickles(other: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved(WEIGHTS))) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    return zipped(entries | {other: raw_payloads(Path("x"))["posix.system"]})


def twice() -> bytes:
    """Two files of the same name, one behind the other's back."""
    content = two_pickles("archive/data.pk_")
    return content.replace(b"archive/data.pk_", b"archive/data.pkl")


def inflated() -> bytes:
    """Says that an entry is compressed and gives it one size."""
    whole = bytearray(zipped({"a/data.pkl": WEIGHT, "a/data/0": b"\0" * 16}))
    method = whole.rindex(b"PK\x01\x02") + 10
    whole[method : method + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
    return bytes(whole)


TRICKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a name with ..": (lambda: renamed_entries(lambda name: name.replace("data/0", "../0")), "damaged"),
    "an absolute name": (lambda: renamed_entries(lambda name: "/" + name), "one data.pkl"),
    "a name with a backslash": (
        lambda: renamed_entries(lambda name: name.replace("data/0", "data\\0")),
        "damaged",
    ),
    "two folders": (lambda: renamed_entries(lambda name: name.replace("archive/data/", "other/data/")), "damaged"),
    "the pickle twice": (twice, "one data.pkl"),
    "the pickle in capitals too": (lambda: two_pickles("archive/DATA.PKL"), "one data.pkl"),
    "another pickle": (lambda: two_pickles("archive/extra.pkl"), "one data.pkl"),
    "TorchScript": (lambda: two_pickles("archive/constants.pkl"), "TorchScript"),
    "TorchScript's code": (lambda: two_pickles("archive/code/__torch__.py"), "TorchScript"),
    "any zip file": (lambda: zipped({"a/readme.txt": b"hello"}), "one data.pkl"),
    "an empty zip file": (lambda: zipped({}), "not a file of torch.save"),
    "something before the zip": (lambda: saved(WEIGHTS)[:64] + saved(WEIGHTS), "damaged"),
    "something after the zip": (lambda: saved(WEIGHTS) + b"\0", "damaged"),
    "something before a small zip": (lambda: b"PK\x03\x04" + zipped({"a/data.pkl": WEIGHT}), "zip directory"),
    "a compressed entry of one size": (inflated, "compressed"),
    "zeros": (lambda: b"\0" * 64, "not a file of torch.save"),
    "five plain pickles": (lambda: pickle.dumps({"a": 1}, protocol=2) * 5, "a pickle but not of torch.save"),
    "one zip after another": (lambda: saved(WEIGHTS) + saved({"other": torch.ones(1)}), "damaged"),
    "a tar file": (lambda: b"pickle".ljust(1024, b"\0"), "not a file of torch.save"),
    "an LFS pointer": (lambda: CRAFTED["an LFS pointer"][0], "git lfs pull"),
    "a safetensors file": (lambda: packed({"a": GOOD}), "is safetensors"),
    "protocol 4": (lambda: zipped({"a/data.pkl": pickle.dumps({"a": 1}, protocol=4)}), "protocol 4"),
    "a sparse tensor": (lambda: saved({"w": torch.eye(3).to_sparse()}), "a sparse tensor"),
    "a complex tensor": (lambda: saved({"w": torch.ones(3) + 1j}), "complex numbers"),
    "a tensor without data": (lambda: saved({"w": torch.empty(3, device="meta")}), "without data"),
    "a quantised tensor": (
        lambda: zipped({"a/data.pkl": b"\x80\x02ctorch._utils\n_rebuild_qtensor\n."}),
        "a quantised tensor",
    ),
    "a negated view": (lambda: saved({"w": torch.ones(3)._neg_view()}), "no plain dense tensor"),
    "a list": (lambda: saved([torch.ones(1)]), "holds a list"),
    "no tensors": (lambda: saved({"epoch": 3}), "only 'epoch'"),
    "an empty dict": (lambda: saved({}), "an empty dict"),
    "dicts in dicts": (lambda: saved({"model": {"encoder": WEIGHTS}}), "only 'encoder'"),
    "two models": (lambda: saved({"model": WEIGHTS, "state_dict": WEIGHTS}), "under model and state_dict"),
    "a number as a name": (lambda: saved({1: torch.ones(1)}), "names a tensor 1"),
    "an escape in a name": (lambda: saved({"\x1b[2J": torch.ones(1)}), "x1b[2J"),
}


@pytest.mark.parametrize("kind", TRICKS)
def test_a_file_of_another_kind_is_refused_and_told_apart(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    make, reason = TRICKS[kind]
    path.write_bytes(make())
    assert reason in refusal(load_pickled, path)


def test_a_pickle_under_the_name_of_safetensors_is_still_read_as_a_pickle(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "w.safetensors")
    assert equal(load_pickled(tmp_path / "w.safetensors").tensors, WEIGHTS)


def test_a_pickled_file_cut_off_anywhere_is_refused(save: Callable[[object], Path]) -> None:
    path = save({"model": WEIGHTS, "config": {"a": 1}})
    whole = path.read_bytes()
    places = range(0, len(whole), max(1, len(whole) // 150))
    assert len(places) >= 150
    for place in places:
        path.write_bytes(whole[:place])
        refusal(load_pickled, path)


def test_a_flipped_bit_in_a_pickled_file_gives_no_other_error(save: Callable[[object], Path]) -> None:
    path = save({"model": WEIGHTS, "config": {"a": 1}})
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refusals = 0
    for bit in generator.choice(8 * len(whole), size=600, replace=False):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << int(bit % 8)
        path.write_bytes(flipped)
        refusals += refused(load_pickled, path) is not None
    assert 100 < refusals < 600


def test_reading_leaves_the_file_as_it_was(good: Path, save: Callable[[object], Path]) -> None:
    for path, read in ((good, load_tensors), (save(WEIGHTS), load_pickled)):
        digest = hashlib.sha256(path.read_bytes()).digest()
        read(path)
        assert hashlib.sha256(path.read_bytes()).digest() == digest


def test_a_header_gives_shapes_and_dtypes(good: Path) -> None:
    assert read_header(good) == {n: TensorInfo(tuple(t.shape), t.dtype) for n, t in WEIGHTS.items()}
