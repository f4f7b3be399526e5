"""The MLP of a block."""

import torch.nn.functional as F
from torch import Tensor, nn

from swin_mim.kernels import chunked_mlp
from swin_mim.models.linear import Linear, after_norm, parameters, watched


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
        if norm is None:
            return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))
        unfused = (self.training and self.dropout.p > 0) or watched(norm, self.fc1, self.fc2, self.dropout)
        ours = type(self.fc1) is type(self.fc2) is Linear and type(norm) is nn.LayerNorm
        if ours and not unfused and chunked_mlp.pays(x, self.fc1.weight):
            return chunked_mlp.mlp(x, parameters(norm), self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return self.dropout(self.fc2(self.dropout(F.gelu(after_norm(norm, self.fc1, x)))))
