"""A light head for a pyramid of maps, after semantic FPN (arXiv 1901.02446)."""

from collections.abc import Sequence

from torch import Tensor, nn

from swin_mim.models.dense.convolutions import ConvNorm, Norm, initialise_head, resize


class FPNHead(nn.Module):
    """A top-down path through the maps; each is then brought to the first's size, convolved at every size between.

    As published, but for the convolutions between path and branches, which are left out.

    Args:
        stages: channels of the maps, from the finest on; at least two.
        channels: of the path; the branches have half as many.
        num_classes: outputs.
        norm: kind of the norms.
        dropout: chance of a channel to be dropped before the classifier, while training.
    """

    def __init__(
        self, stages: Sequence[int], channels: int, num_classes: int, *, norm: Norm = "batch", dropout: float = 0.0
    ) -> None:
        super().__init__()
        width = channels // 2
        self.lateral_convs = nn.ModuleList(nn.Conv2d(dim, channels, 1) for dim in stages)
        self.scale_heads = nn.ModuleList(
            nn.Sequential(*(ConvNorm(width if step else channels, width, 3, norm) for step in range(max(1, stage))))
            for stage in range(len(stages))
        )
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.dropout = nn.Dropout2d(dropout)
        initialise_head(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One (B, D_i, h_i, w_i) of each stage -> logits (B, num_classes, h_0, w_0)."""
        path = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for stage in range(len(path) - 1, 0, -1):
            path[stage - 1] = path[stage - 1] + resize(path[stage], path[stage - 1].shape[2:])
        total = self.scale_heads[0](path[0])
        for stage in range(1, len(path)):
            total = total + self._branch(stage, path)
        return self.classifier(self.dropout(total))

    def _branch(self, stage: int, path: Sequence[Tensor]) -> Tensor:
        x = path[stage]
        for step, conv in enumerate(self.scale_heads[stage].children()):
            x = resize(conv(x), path[stage - step - 1].shape[2:])
        return x
