"""The linear layer of all models: torch's own module, with the product that the device is fastest with."""

from torch import Tensor, nn

from swin_mim.kernels.product import Norm, linear


class Linear(nn.Linear):
    def forward(self, x: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """(..., in) -> (..., out), of norm(x) if there is a norm."""
        return linear(x, self.weight, self.bias, None if norm is None else parameters(norm))


def parameters(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps)
