"""An image classifier on top of a Swin."""

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from swin_mim.errors import UserError
from swin_mim.models.blocks.window_attention import Backend
from swin_mim.models.saving import Pretrained, check_labels
from swin_mim.models.swin import Swin, SwinConfig, initialise
from swin_mim.weights.config_json import Description


class SwinClassifier(Pretrained):
    """Swin, mean over the last grid, one linear layer. The head's key is timm's `head.fc`.

    Args:
        config: architecture of the encoder.
        num_classes: outputs of the head.
        attention, activation_checkpointing: as in `Swin`.
    """

    kind = "SwinClassifier"
    _head = ("head.fc.weight", "head.fc.bias")
    _way_out = "it is no classifier yet: fine-tune it; in Python, num_classes=N draws a new head of N classes"

    def __init__(
        self,
        config: SwinConfig,
        num_classes: int,
        *,
        attention: Backend = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"num_classes is {num_classes}: a classifier has at least 1")
        self.encoder = Swin(config, attention=attention, activation_checkpointing=activation_checkpointing)
        self.head = nn.ModuleDict({"fc": nn.Linear(config.num_features, num_classes)})
        initialise(self.head)

    def forward(self, images: Tensor) -> Tensor:
        """Images, normalised float (B, C, H, W) -> logits (B, num_classes)."""
        return self.head["fc"](self.encoder(images).mean(dim=(1, 2)))

    def description(self) -> Description:
        """What config.json says of this model."""
        num_classes = self.get_parameter("head.fc.bias").numel()
        check_labels(self.labels, num_classes)
        return replace(super().description(), num_classes=num_classes)

    @classmethod
    def _arguments(cls, description: Description) -> dict[str, Any]:
        return {"num_classes": description.num_classes}


def classification_loss(
    logits: Tensor, targets: Tensor, class_weights: Tensor | None = None, *, multi_label: bool = False
) -> Tensor:
    """The mean over the images of a batch, in fp32.

    One label each: cross-entropy, -sum_k weight_k target_k log softmax(logits)_k. Any number of labels: the binary
    cross-entropy of every class, its mean over the classes.

    Args:
        logits, targets: (B, K); targets are from 0 to 1.
        class_weights: (K,), of the terms of the cross-entropy.
    """
    logits, targets = logits.float(), targets.float()
    if multi_label:
        assert class_weights is None, "classes are weighed where an image has one of them"
        return F.binary_cross_entropy_with_logits(logits, targets)
    # torch divides by the number of images here, not by the sum of the weights: the same however a batch is cut up
    return F.cross_entropy(logits, targets, weight=class_weights)
