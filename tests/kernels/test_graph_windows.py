"""Windows as index arithmetic: the same as the reference, whatever the grid, without a branch on its size."""

import pytest
import torch
from torch import Tensor

from swin_mim.kernels import graph_windows
from swin_mim.kernels.window_geometry import window_geometry
from swin_mim.models.blocks.v1 import by_fours
from swin_mim.models.blocks.window_attention import window_attention
from swin_mim.models.dense.upernet import Pool

GRIDS = [(8, 8), (4, 4), (6, 9), (5, 4), (3, 3), (1, 1), (3, 9), (9, 2), (13, 5), (1, 12)]
"""Of windows of 4 x 4 and 3 x 5: divided by them, not divided, as large, smaller on one side and on both."""


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("window", [(4, 4), (3, 5)])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("version", "filled"), [(1, True), (1, False), (2, True)])
def test_attention_is_that_of_the_reference(
    grid: tuple[int, int], window: tuple[int, int], shifted: bool, version: int, filled: bool
) -> None:
    heads, channels = 2, 3
    qkv = torch.randn(2, *grid, 3, heads, channels, dtype=torch.float64)
    table = torch.randn((2 * window[0] - 1) * (2 * window[1] - 1), heads, dtype=torch.float64)
    fill = torch.randn(3, heads, channels, dtype=torch.float64) if filled else None
    scale = torch.rand(heads, 1, dtype=torch.float64) * 10 if version == 2 else None
    chosen, shift = window_geometry(grid, window, shifted)
    known: dict[str, Tensor | None] = {"fill": fill, "scale": scale}
    wanted = window_attention(qkv, table, window=chosen, table_window=window, shift=shift, backend="reference", **known)
    found = graph_windows.window_attention(qkv, table, window=window, shifted=shifted, **known)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)  # the reference takes its softmax in fp32


@pytest.mark.parametrize("grid", GRIDS)
def test_merging_is_that_of_the_model(grid: tuple[int, int]) -> None:
    x = torch.randn(2, *grid, 3)
    assert torch.equal(graph_windows.by_fours(x), by_fours(x))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_pooling_is_torchs(grid: tuple[int, int], side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, pool = torch.randn(2, 3, *grid, dtype=torch.float64), Pool(side)
    wanted = pool(x)
    monkeypatch.setattr("swin_mim.models.dense.upernet.is_exporting", lambda: True)
    torch.testing.assert_close(pool(x), wanted)


def test_a_grid_is_cut_up_once_in_a_graph() -> None:
    qkv, table = torch.randn(1, 6, 5, 3, 1, 2), torch.randn(49, 1)
    alone = graph_windows.window_attention(qkv, table, window=(4, 4), shifted=True)
    with graph_windows.shared_windows():
        first = graph_windows._windows((6, 5), (4, 4), True, qkv)
        assert graph_windows._windows((6, 5), (4, 4), True, qkv) is first
        assert graph_windows._windows((6, 5), (4, 4), False, qkv) is not first
        assert torch.equal(graph_windows.window_attention(qkv, table, window=(4, 4), shifted=True), alone)
    assert graph_windows._windows((6, 5), (4, 4), True, qkv) is not first
