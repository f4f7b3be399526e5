"""The MLP of a block."""

import torch.nn.functional as F
from torch import Tensor, nn

from swin_mim.kernels import chunked_mlp
from swin_mim.models.blocks.linear import Linear, after_norm, parameters, watched


class Mlp(nn.Module):
    """Two linear layers with GELU (exact) between them.

    Args:
        dim, hidden: channels outside and inside.
        dropout: rate after either layer.
    """

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """(B, h, w, D) -> (B, h, w, D), of norm(x) if there is a norm."""
        watching = watched(self.fc1, self.fc2, self.dropout) or (norm is not None and watched(norm))
        ours = type(self.fc1) is type(self.fc2) is Linear and (norm is None or type(norm) is nn.LayerNorm)
        drops = self.training and self.dropout.p > 0
        if ours and not drops and not watching and chunked_mlp.pays(x, self.fc1.weight):
            before = None if norm is None else parameters(norm)
            return chunked_mlp.mlp(x, before, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        hidden = self.fc1(x) if norm is None else after_norm(norm, self.fc1, x)
        return self.dropout(self.fc2(self.dropout(F.gelu(hidden))))
