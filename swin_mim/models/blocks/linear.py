"""The linear layer of all models: torch's own module, with the product that the device is fastest with."""

from torch import Tensor, nn

from swin_mim.kernels.product import Norm, linear


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


def after_norm(norm: nn.LayerNorm, layer: nn.Module, x: Tensor) -> Tensor:
    """layer(norm(x)), in one go if nothing sees what lies between, so that it need not be kept.

    Modules with hooks are called one after the other, and so are those that somebody put in the place of ours.
    """
    if type(layer) is not Linear or type(norm) is not nn.LayerNorm or watched(norm, layer):
        return layer(norm(x))
    return linear(x, layer.weight, layer.bias, parameters(norm))


def parameters(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps)


def watched(*modules: nn.Module) -> bool:
    """Whether something is called when one of these is: `replay`, DeepSpeed's gathering of weights."""
    return any(
        hooks
        for module in modules
        for hooks in (
            *(module._forward_hooks, module._forward_pre_hooks),
            *(module._backward_hooks, module._backward_pre_hooks),
        )
    )
