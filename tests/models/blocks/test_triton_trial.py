"""The trial of the kernel, on Triton's interpreter: with the kernel as it is, a wrong one, one that fails."""

import math
import re

import pytest
import torch

from swin_mim.kernels import triton_attention
from swin_mim.kernels.window_plan import WHOLE
from swin_mim.models.blocks import triton_trial
from swin_mim.models.blocks.window_attention import window_attention

CPU = torch.device("cpu")


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_right_kernel_is_right_whatever_the_mode(mode, monkeypatch):
    monkeypatch.setattr(triton_trial, "ONE_TILE", (3, 4))
    with mode():
        assert triton_trial.failure_reason(CPU, window_attention, torch.float32) == ""


@pytest.mark.slow
def test_wide_windows_are_tried_too(monkeypatch):
    monkeypatch.setattr(triton_trial, "WIDE", (9, 8))
    assert triton_trial.failure_reason(CPU, window_attention, torch.float32, wide=True) == ""


def test_the_windows_tried_take_the_kernels_that_they_stand_for():
    assert math.prod(triton_trial.ONE_TILE) <= WHOLE < math.prod(triton_trial.WIDE)


@pytest.mark.parametrize(("wide", "tried"), [(False, (6, 6)), (True, (12, 12))])
def test_only_what_the_run_needs_is_tried(wide, tried, monkeypatch):
    seen = []
    monkeypatch.setattr(triton_trial, "_difference", lambda device, attention, *case: seen.append(case) or "")
    assert triton_trial.failure_reason(CPU, window_attention, torch.bfloat16, wide=wide) == ""
    assert seen == [(tried, torch.bfloat16)]


def test_what_is_wrong_is_said(monkeypatch):
    monkeypatch.setattr(triton_trial, "ONE_TILE", (3, 4))
    right = triton_attention.window_attention
    monkeypatch.setattr(triton_attention, "window_attention", lambda *args: right(*args) + 0.01)
    said = r"with windows of 3 x 4 tokens in torch.float32 its output is off by \d.\de-03 of the largest value"
    assert re.fullmatch(said, triton_trial.failure_reason(CPU, window_attention, torch.float32))
    monkeypatch.setattr(triton_attention, "window_attention", lambda *args: 1 / 0)
    assert "it fails: ZeroDivisionError: division by zero" in triton_trial.failure_reason(
        CPU, window_attention, torch.float32
    )
