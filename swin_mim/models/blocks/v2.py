"""What Swin V2 is made of (arXiv 2111.09883): blocks that normalise what they add, cosine attention with a position
bias that is a function of coordinates, and the halving between stages. The legend of dimension letters is in `swin.py`.
"""

import math
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor, nn

from swin_mim.architecture import POSITION_HIDDEN, SwinConfig, as_pair
from swin_mim.kernels.graph_windows import is_exporting
from swin_mim.kernels.product import linear
from swin_mim.kernels.window_geometry import Pair, relative_coordinates
from swin_mim.models.blocks.drop_path import DropPath
from swin_mim.models.blocks.linear import Linear, watched
from swin_mim.models.blocks.mlp import Mlp
from swin_mim.models.blocks.v1 import by_fours, of_cells
from swin_mim.models.blocks.window_attention import Backend, grid_attention

LARGEST_SCALE = 100.0
"""Of the cosines, however the scale grows: a temperature of 0.01."""
LARGEST_BIAS = 16.0


class PatchMerging(nn.Module):
    """Halve the grid: four neighbouring tokens become one of twice the channels, which is normalised."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, ceil(h/2), ceil(w/2), 2D)."""
        return self.norm(self.reduction(by_fours(x)))


class ResidualNorm(nn.LayerNorm):
    """The norm of what a block adds: new ones give zeros, so that a new block is the identity."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class Block(nn.Module):
    """Transformer block with window attention that normalises what attention and MLP give."""

    def __init__(self, config: SwinConfig, stage: int, place: int, *, drop_path: float, attention: Backend) -> None:
        super().__init__()
        dim, period = config.stage_dim(stage), config.extra_norm_period
        self.attn = WindowAttention(config, stage, shifted=place % 2 == 1, backend=attention)
        self.norm1 = ResidualNorm(dim)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), config.drop_rate)
        self.norm2 = ResidualNorm(dim)
        self.norm3 = nn.LayerNorm(dim) if period and (place + 1) % period == 0 else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, cells: Tensor | None = None) -> Tensor:
        """(B, h, w, D) -> (B, h, w, D), or of each image only these cells, int64 (B, n) -> (B, n, D)."""
        x = of_cells(x, cells) + self.drop_path(self.norm1(self.attn(x, cells)))
        return self.norm3(x + self.drop_path(self.norm2(self.mlp(x))))


class WindowAttention(nn.Module):
    """Multi-head cosine attention in windows. Its position bias is a network's output for each relative position."""

    def __init__(self, config: SwinConfig, stage: int, *, shifted: bool, backend: Backend) -> None:
        super().__init__()
        dim = config.stage_dim(stage)
        self.num_heads = config.num_heads[stage]
        self.window = config.stage_window(stage)
        self.pretrained_window = as_pair(config.pretrained_window_sizes[stage])
        self.shifted = shifted
        self.backend: Backend = backend
        self.logit_scale = nn.Parameter(torch.empty(self.num_heads, 1, 1))
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, POSITION_HIDDEN), nn.ReLU(inplace=True), nn.Linear(POSITION_HIDDEN, self.num_heads, bias=False)
        )
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.empty(dim)) if config.qkv_bias else None
        self.v_bias = nn.Parameter(torch.empty(dim)) if config.qkv_bias else None
        self.proj = Linear(dim, dim)
        self.dropout = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor, cells: Tensor | None = None) -> Tensor:
        """(B, h, w, D) -> (B, h, w, D), or only these cells, as of a block."""
        bias = self._bias()
        return self.dropout(self.proj(of_cells(self.attend(self._qkv(x, bias), bias), cells)))

    def attend(self, qkv: Tensor, bias: Tensor | None) -> Tensor:
        """(B, h, w, 3D) -> (B, h, w, D), what lies between the two projections; bias (3D,) is that of the first."""
        x = grid_attention(
            self._heads(qkv),
            self.bias_table(),
            window=self.window,
            shifted=self.shifted,
            fill=None if bias is None else self._heads(bias),
            scale=self._scale(),
            backend=self.backend,
        )
        return x.flatten(3)

    def bias_table(self) -> Tensor:
        """fp32 ((2 window_h - 1)(2 window_w - 1), heads), from 0 to 16, as the rows of a table of V1."""
        weight = self.logit_scale
        coordinates = _coordinates(self.window, self.pretrained_window, weight.device).to(weight.dtype)
        device = weight.device.type
        autocast = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with autocast:  # a bias of half precision would be off by 0.03
            return LARGEST_BIAS * torch.sigmoid(self.cpb_mlp(coordinates).to(_exact(weight)))

    def initialise(self) -> None:
        """Draw what it has besides linear layers."""
        nn.init.constant_(self.logit_scale, math.log(10))
        for bias in (self.q_bias, self.v_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def _qkv(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(B, h, w, D) -> (B, h, w, 3D)."""
        if type(self.qkv) is not Linear or watched(self.qkv):
            x = self.qkv(x)
            return x if bias is None else x + bias.to(x.dtype)
        return linear(x, self.qkv.weight, bias)

    def _bias(self) -> Tensor | None:
        """(3D,), of which the middle, that of the keys, is 0."""
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def _scale(self) -> Tensor:
        """fp32 (heads, 1): what cosines are multiplied with."""
        logarithm = self.logit_scale[:, 0].to(_exact(self.logit_scale)).clamp(max=math.log(LARGEST_SCALE))
        return logarithm.exp()

    def _heads(self, x: Tensor) -> Tensor:
        """(..., 3D) -> (..., 3, heads, d)."""
        return x.unflatten(-1, (3, self.num_heads, -1))


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _coordinates(window: Pair, measure: Pair, device: torch.device) -> Tensor:
    """((2 window_h - 1)(2 window_w - 1), 2)."""
    if is_exporting():  # what a graph is made with may be no numbers, and is not to be kept
        return relative_coordinates(window, measure).flatten(0, 1).to(device)
    return _coordinates_on(window, measure, device)


# as torch.compiler.assume_constant_result would do, if it did not import all of dynamo for it
_coordinates._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _coordinates_on(window: Pair, measure: Pair, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # who comes next may be a training
        return relative_coordinates(window, measure).flatten(0, 1).to(device)
