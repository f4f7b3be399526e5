"""UperNet's heads (arXiv 1807.10221) for a pyramid of maps. Module names are those of transformers' UperNet."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from swin_mim.kernels.graph_windows import is_exporting
from swin_mim.models.dense.convolutions import ConvNorm, Norm, initialise_head, resize

POOLS = (1, 2, 3, 6)
"""Cells along the sides of the maps of pyramid pooling."""
AUXILIARY_STAGE = 2
"""Stage that the auxiliary head reads, of three and more; of two the last."""
AUXILIARY_CHANNELS = 256


class Pool(nn.AdaptiveAvgPool2d):
    """Means over side x side parts of a map, which share rows and columns where the parts do not fit."""

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D, side, side)."""
        if not is_exporting():
            return super().forward(x)
        down, right = (self._shares(length, x) for length in x.shape[2:])  # ONNX has no such pooling of any size
        return down @ x @ right.T

    def _shares(self, length: int, like: Tensor) -> Tensor:
        """(side, length): how much of each row or column is in the mean of each part."""
        part = torch.arange(self.side, device=like.device)[:, None]
        place = torch.arange(length, device=like.device)
        start, end = part * length // self.side, ((part + 1) * length + self.side - 1) // self.side
        inside = ((place >= start) & (place < end)).to(like.dtype)
        return inside / inside.sum(1, keepdim=True)


class UperNetHead(nn.Module):
    """Pyramid pooling on the last map, a top-down path through the others, and all of them fused at the first's size.

    Args:
        stages: channels of the maps, from the finest on; at least two.
        channels: inside the head.
        num_classes: outputs.
        norm: kind of the norms.
        dropout: chance of a channel to be dropped before the classifier, while training.
    """

    def __init__(
        self, stages: Sequence[int], channels: int, num_classes: int, *, norm: Norm = "batch", dropout: float = 0.0
    ) -> None:
        super().__init__()
        last = stages[-1]
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.psp_modules = nn.ModuleList(nn.Sequential(Pool(side), ConvNorm(last, channels, 1, norm)) for side in POOLS)
        self.bottleneck = ConvNorm(last + len(POOLS) * channels, channels, 3, norm)
        self.lateral_convs = nn.ModuleList(ConvNorm(dim, channels, 1, norm) for dim in stages[:-1])
        self.fpn_convs = nn.ModuleList(ConvNorm(channels, channels, 3, norm) for _ in stages[:-1])
        self.fpn_bottleneck = ConvNorm(len(stages) * channels, channels, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        initialise_head(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One (B, D_i, h_i, w_i) of each stage -> logits (B, num_classes, h_0, w_0)."""
        path = [self._pooled(maps[-1])]
        for lateral, x in zip(reversed(self.lateral_convs), reversed(maps[:-1]), strict=True):
            path.append(lateral(x) + resize(path[-1], x.shape[2:]))
        top, *others = path
        size = maps[0].shape[2:]
        fused = [conv(x) for conv, x in zip(self.fpn_convs, reversed(others), strict=True)]
        x = self.fpn_bottleneck(torch.cat([resize(x, size) for x in (*fused, top)], dim=1))
        return self.classifier(self.dropout(x))

    def _pooled(self, x: Tensor) -> Tensor:
        """The last map with its means over 1, 2 x 2, 3 x 3 and 6 x 6 parts beside it."""
        return self.bottleneck(torch.cat([x, *(resize(pool(x), x.shape[2:]) for pool in self.psp_modules)], dim=1))


class FCNHead(nn.Module):
    """One convolution and a classifier on one map: the auxiliary head.

    Args:
        into: channels of the map.
        num_classes: outputs.
        norm, dropout: as in `UperNetHead`.
    """

    def __init__(self, into: int, num_classes: int, *, norm: Norm = "batch", dropout: float = 0.0) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNorm(into, AUXILIARY_CHANNELS, 3, norm))
        self.classifier = nn.Conv2d(AUXILIARY_CHANNELS, num_classes, 1)
        self.dropout = nn.Dropout2d(dropout)
        initialise_head(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, into, h, w) -> logits (B, num_classes, h, w)."""
        return self.classifier(self.dropout(self.convs(x)))
