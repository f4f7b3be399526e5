"""The precision that a device gets, and what it is told of a faster one."""

import logging
from pathlib import Path

import pytest

from swin_mim.errors import UserError
from swin_mim.training.distributed import processes
from swin_mim.training.distributed.processes import faster_precision, has_amx, resolve_precision


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A CPU without AMX; what of it a test changes is another one."""
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    values = {"uses_gpu": False, "has_amx": False, "bf16_gain": 1.0, "_has_bf16": True, "_gpu_name": "Tesla T4"}
    for name, value in values.items():
        monkeypatch.setattr(processes, name, lambda value=value: value)
    return monkeypatch


def test_auto_is_bf16_where_a_gpu_has_it(device: pytest.MonkeyPatch) -> None:
    assert (resolve_precision("auto"), faster_precision("auto")) == ("fp32", "")
    device.setattr(processes, "uses_gpu", lambda: True)
    assert (resolve_precision("auto"), faster_precision("auto")) == ("bf16", "")


def test_a_gpu_without_bf16_is_told_of_fp16(device: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    device.setattr(processes, "uses_gpu", lambda: True)
    device.setattr(processes, "_has_bf16", lambda: False)
    device.setattr("torch.cuda.get_device_capability", lambda: (6, 1))
    assert faster_precision("auto") == "", "a P40 is slow at fp16"
    device.setattr("torch.cuda.get_device_capability", lambda: (7, 5))
    assert resolve_precision("auto") == "fp32"
    assert "fp32 on Tesla T4, which has no bf16: its half precision is --train.precision fp16" in faster_precision(
        "auto"
    )
    assert faster_precision("fp32") == ""
    assert not caplog.messages
    assert resolve_precision("bf16") == "bf16"
    assert "train.precision bf16 is emulated on Tesla T4, which is slow" in caplog.text


def test_a_cpu_with_amx_is_told_of_bf16(device: pytest.MonkeyPatch) -> None:
    device.setattr(processes, "has_amx", lambda: True)
    assert resolve_precision("auto") == "fp32"
    said = faster_precision("auto")
    assert "\n" not in said
    assert "--train.precision bf16 is expected to be about twice as fast" in said
    assert faster_precision("bf16") == ""


def test_amx_is_a_flag_of_the_processor(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert not has_amx(cpuinfo)
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_tile_not\n")
    assert not has_amx(cpuinfo)
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile amx_int8\n")
    assert has_amx(cpuinfo)


def test_fp16_needs_a_gpu_and_slow_bf16_is_met(device: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"train\.precision fp16 needs a GPU"):
        resolve_precision("fp16")
    device.setattr(processes, "bf16_gain", lambda: 0.125)
    assert resolve_precision("bf16") == "bf16"
    assert "its products take 8.0 times as long as fp32" in caplog.text
