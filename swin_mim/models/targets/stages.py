"""A head for each stage, which predicts the target at the stage's own stride (LocalMIM, arXiv 2303.05251)."""

from collections.abc import Sequence

from torch import Tensor, nn

from swin_mim.architecture import SwinConfig
from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.models.blocks.linear import Linear
from swin_mim.weights.heads import BINS, Target, head_outputs, hog_cell


class StageHead(nn.Module):
    """1x1 convolution from the cells of a stage to squares of several planes; before it a norm, where there was none.

    The outputs of V1's stages are sums over its blocks, of any size, and only the last stage has a norm of its own.

    Args:
        dim: channels of the stage.
        planes: maps that are predicted.
        side: of the square of each map that a cell stands for.
        normed: whether the features come with a norm applied.
    """

    def __init__(self, dim: int, planes: int, side: int, *, normed: bool) -> None:
        super().__init__()
        self.norm = nn.Identity() if normed else nn.LayerNorm(dim)
        self.proj = Linear(dim, planes * side**2)
        self.side = side

    def forward(self, features: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, planes, h side, w side); or of some cells alone (n, D) -> (n, planes, side, side)."""
        if features.ndim == 2:
            return self._squares(features)
        return self._squares(features).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def _squares(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., planes, side, side)."""
        return self.proj(self.norm(features)).unflatten(-1, (-1, self.side, self.side))


def stage_heads(config: SwinConfig, target: Target, every_stage: bool) -> nn.ModuleDict:
    """The heads of a masked image model besides its decoder, by stage, as in `head_outputs`."""
    heads = {}
    for stage in head_outputs(config, target, every_stage):
        stride = config.patch_size * 2**stage
        planes, side = config.in_channels, stride
        if target == "hog":
            planes, side = BINS * planes, stride // hog_cell(stride)
        heads[str(stage)] = StageHead(config.stage_dim(stage), planes, side, normed=stage == config.num_stages - 1)
    return nn.ModuleDict(heads)


def check_stage_weights(weights: Sequence[float], stages: int) -> None:
    """Raise a UserError unless they are weights of the losses of so many stages; none at all is right too."""
    if weights and len(weights) != stages:
        raise UserError(
            f"stage_weights has {counted(len(weights), 'entry', 'entries')} and the model {counted(stages, 'stage')}: "
            "give one for each"
        )
    if weights and (min(weights) < 0 or weights[-1] <= 0):
        raise UserError(
            f"stage_weights {', '.join(map(str, weights))}: none may be negative, and the last must be positive"
        )
