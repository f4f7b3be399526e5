"""Shared by all tests: a quiet, offline, deterministic torch."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch

from swin_mim import SwinConfig


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> SwinConfig:
    """Four stages of which two have shifted windows: 64 px, windows of 4, grids 16, 8, 4, 2."""
    return SwinConfig(64, embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=4)
