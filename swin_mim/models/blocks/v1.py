"""What Swin V1 is made of (arXiv 2103.14030): blocks that normalise before attention and MLP, and the halving between
stages. The legend of dimension letters is in `swin.py`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_mim.architecture import SwinConfig
from swin_mim.kernels import graph_windows
from swin_mim.models.blocks.drop_path import DropPath
from swin_mim.models.blocks.linear import Linear, after_norm
from swin_mim.models.blocks.mlp import Mlp
from swin_mim.models.blocks.window_attention import Backend, grid_attention


class PatchMerging(nn.Module):
    """Halve the grid: four neighbouring tokens become one of twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, ceil(h/2), ceil(w/2), 2D)."""
        return after_norm(self.norm, self.reduction, by_fours(x))


def by_fours(x: Tensor) -> Tensor:
    """(B, h, w, D) -> (B, ceil(h/2), ceil(w/2), 4D), odd grids padded with zeros at the bottom and right."""
    if graph_windows.is_exporting():
        return graph_windows.by_fours(x)
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2)) if x.shape[1] % 2 or x.shape[2] % 2 else x
    x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, h/2, 2, w/2, 2, D)
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # down before right as the official weights


def of_cells(x: Tensor, cells: Tensor | None) -> Tensor:
    """(B, h, w, D), cells int64 (B, n) -> (B, n, D), these cells of each image; None: all as they are."""
    if cells is None:
        return x
    first = torch.arange(len(x), device=x.device)[:, None] * (x.shape[1] * x.shape[2])
    return x.flatten(0, 2).index_select(0, (first + cells).flatten()).view(*cells.shape, x.shape[-1])


class Block(nn.Module):
    """Pre-norm Transformer block with window attention."""

    def __init__(self, config: SwinConfig, stage: int, place: int, *, drop_path: float, attention: Backend) -> None:
        super().__init__()
        dim = config.stage_dim(stage)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(config, stage, shifted=place % 2 == 1, backend=attention)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), config.drop_rate)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, cells: Tensor | None = None) -> Tensor:
        """(B, h, w, D) -> (B, h, w, D), or of each image only these cells, int64 (B, n) -> (B, n, D)."""
        x = of_cells(x, cells) + self.drop_path(self.attn(x, self.norm1, cells))
        return x + self.drop_path(self.mlp(x, self.norm2))


class WindowAttention(nn.Module):
    """Multi-head attention in windows with a learned relative position bias."""

    def __init__(self, config: SwinConfig, stage: int, *, shifted: bool, backend: Backend) -> None:
        super().__init__()
        dim = config.stage_dim(stage)
        self.num_heads = config.num_heads[stage]
        self.window = config.stage_window(stage)
        self.shifted = shifted
        self.backend: Backend = backend
        self.qkv = Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.proj = Linear(dim, dim)
        self.dropout = nn.Dropout(config.drop_rate)
        entries = (2 * self.window[0] - 1) * (2 * self.window[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(entries, self.num_heads))

    def forward(self, x: Tensor, norm: nn.LayerNorm, cells: Tensor | None = None) -> Tensor:
        """(B, h, w, D) -> (B, h, w, D), of norm(x); or only these cells, as of a block."""
        x = grid_attention(
            self._heads(after_norm(norm, self.qkv, x)),
            self.relative_position_bias_table,
            window=self.window,
            shifted=self.shifted,
            fill=None if self.qkv.bias is None else self._heads(self.qkv.bias),
            backend=self.backend,
        )
        return self.dropout(self.proj(of_cells(x.flatten(3), cells)))

    def initialise(self) -> None:
        """Draw what it has besides linear layers."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def _heads(self, x: Tensor) -> Tensor:
        """(..., 3D) -> (..., 3, heads, d)."""
        return x.unflatten(-1, (3, self.num_heads, -1))
