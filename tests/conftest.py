"""Shared by all tests: a quiet, offline, deterministic torch."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import hypothesis
import pytest
import torch

from swin_mim import SwinConfig

# A slow machine is no failure; what CI says of one commit must not change from run to run.
hypothesis.settings.register_profile("swin_mim", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("swin_mim")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> SwinConfig:
    """Four stages of which two have shifted windows: 64 px, windows of 4, grids 16, 8, 4, 2."""
    return SwinConfig(64, embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=4)
