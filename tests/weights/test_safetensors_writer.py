import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from swin_mim.weights.safetensors_writer import copied, write_tensors

TYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
]


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    of_types = {f"{dtype}": (torch.randn(3, 5) * 50).to(dtype) for dtype in TYPES}
    return of_types | {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "turned": torch.randn(4, 6).T,
        "every second": torch.arange(10)[::2],
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "ümlaut/and.dots": torch.full((7,), torch.nan),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    expected, path = tensors(), tmp_path / "t.safetensors"
    digest = write_tensors(expected, path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    found = load_file(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value.detach(), rtol=0, atol=0, equal_nan=True)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_order_of_the_dict_does_not_matter(tmp_path: Path) -> None:
    forwards = tensors()
    backwards = dict(reversed(forwards.items()))
    assert write_tensors(forwards, tmp_path / "a") == write_tensors(backwards, tmp_path / "b")


def test_no_tensors_are_a_file_too(tmp_path: Path) -> None:
    write_tensors({}, tmp_path / "none.safetensors")
    assert load_file(tmp_path / "none.safetensors") == {}


def test_a_file_larger_than_a_chunk(tmp_path: Path) -> None:
    expected = {"large": torch.arange(6 * 2**20), "small": torch.ones(3)}
    digest = write_tensors(expected, tmp_path / "t")
    assert digest == hashlib.sha256((tmp_path / "t").read_bytes()).hexdigest()
    assert torch.equal(load_file(tmp_path / "t")["large"], expected["large"])


def test_copies_stay_as_they_are() -> None:
    weight = torch.zeros(3)
    copies = {"a": copied(weight), "parameter": copied(torch.nn.Parameter(weight))}
    weight += 1
    assert all(torch.equal(copy, torch.zeros(3)) and not copy.requires_grad for copy in copies.values())


LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from swin_mim.weights.safetensors_writer import write_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    write_tensors({"a": torch.zeros(10_000)}, Path(sys.argv[1]))
except OSError as error:
    sys.exit(error.errno)
"""


def test_a_disk_that_takes_no_more_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "t")], check=False)
    assert done.returncode == errno.EFBIG
    assert os.path.getsize(tmp_path / "t") == 5000


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_what_has_no_name_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_tensors({"a": torch.zeros(2, dtype=dtype)}, tmp_path / "t")
