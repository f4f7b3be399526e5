"""An image classifier on top of a Swin."""

from torch import Tensor, nn

from swin_mim.models.swin import Swin, SwinConfig, initialise
from swin_mim.models.window_attention import Backend


class SwinClassifier(nn.Module):
    """Swin, mean over the last grid, one linear layer. The head's key is timm's `head.fc`.

    Args:
        config: architecture of the encoder.
        num_classes: outputs of the head.
        attention, activation_checkpointing: as in `Swin`.
    """

    def __init__(
        self,
        config: SwinConfig,
        num_classes: int,
        *,
        attention: Backend = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = Swin(config, attention=attention, activation_checkpointing=activation_checkpointing)
        self.head = nn.ModuleDict({"fc": nn.Linear(config.num_features, num_classes)})
        initialise(self.head)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, num_classes)."""
        return self.head["fc"](self.encoder(images).mean(dim=(1, 2)))
