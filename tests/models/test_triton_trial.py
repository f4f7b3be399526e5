"""The trial of the kernel, on Triton's interpreter: with the kernel as it is, a wrong one, one that fails."""

import re

import pytest
import torch

from swin_mim.kernels import triton_attention
from swin_mim.models import triton_trial
from swin_mim.models.window_attention import window_attention

CPU = torch.device("cpu")


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_right_kernel_is_right_whatever_the_mode(mode, monkeypatch):
    monkeypatch.setattr(triton_trial, "WINDOWS", ((3, 4),))
    with mode():
        assert triton_trial.failure_reason(CPU, window_attention) == ""


@pytest.mark.slow
def test_wide_windows_are_tried_too(monkeypatch):
    monkeypatch.setattr(triton_trial, "TOLERANCES", {torch.float32: 1e-4})
    monkeypatch.setattr(triton_trial, "WINDOWS", ((9, 8),))
    assert triton_trial.failure_reason(CPU, window_attention) == ""
    assert any(window[0] * window[1] > 64 for window in triton_trial.WINDOWS)


def test_what_is_wrong_is_said(monkeypatch):
    monkeypatch.setattr(triton_trial, "WINDOWS", ((3, 4),))
    right = triton_attention.window_attention
    monkeypatch.setattr(triton_attention, "window_attention", lambda *args: right(*args) + 0.01)
    said = r"with windows of 3 x 4 tokens in torch.float32 its output is off by \d.\de-03 of the largest value"
    assert re.fullmatch(said, triton_trial.failure_reason(CPU, window_attention))
    monkeypatch.setattr(triton_attention, "window_attention", lambda *args: 1 / 0)
    assert "it fails: ZeroDivisionError: division by zero" in triton_trial.failure_reason(CPU, window_attention)
