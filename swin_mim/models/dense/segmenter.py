"""Semantic segmentation: a Swin, a norm on each stage's map, and a head that gives every pixel its classes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_mim.errors import UserError
from swin_mim.models.blocks.window_attention import Backend
from swin_mim.models.dense.convolutions import Norm, check_head, resize
from swin_mim.models.dense.fpn import FPNHead
from swin_mim.models.dense.upernet import AUXILIARY_STAGE, FCNHead, UperNetHead
from swin_mim.models.saving import Pretrained, check_labels
from swin_mim.models.swin import Swin, SwinConfig
from swin_mim.weights.config_json import Description
from swin_mim.weights.dense_heads import DENSE_PARTS

Head = Literal["upernet", "fpn"]

_HEADS = ("decode_head", "auxiliary_head")

CHANNELS: dict[str, int] = {"upernet": 512, "fpn": 256}
"""Channels inside each head, unless somebody says otherwise."""
IGNORED = 255
"""Label of pixels that nobody labelled."""


class SegmenterOutput(NamedTuple):
    logits: Tensor
    """(B, num_classes, H, W), float32, at the size of the images."""
    auxiliary: Tensor | None
    """The same from the auxiliary head: while training with the upernet head only."""


class SwinSegmenter(Pretrained):
    """Classes for every pixel. Has a Swin, is not one.

    The last stage's map goes through the encoder's own final norm, the others each through one of `norms`.

    Args:
        config: architecture of the encoder; at least two stages.
        num_classes: outputs for each pixel.
        head: "upernet" with pyramid pooling and, while training, an auxiliary head; or "fpn", which is light.
        head_channels: inside the head; None: 512 of upernet, 256 of fpn.
        head_norm: "batch": batch normalisation as published, by the statistics of the micro batches of all processes
            together. "group": group normalisation, in which no image depends on the others of its batch: for small
            batches, and the only one with which accumulation is the same as a larger micro batch.
        head_dropout: chance of a channel to be dropped before the classifier, while training.
        attention, activation_checkpointing: as in `Swin`.
    """

    kind = "SwinSegmenter"
    _head = ("decode_head.classifier.weight", "decode_head.classifier.bias")
    _way_out = "it is no segmenter yet: train one; in Python, num_classes=N draws a new head of N classes"

    def __init__(
        self,
        config: SwinConfig,
        num_classes: int,
        *,
        head: Head = "upernet",
        head_channels: int | None = None,
        head_norm: Norm = "batch",
        head_dropout: float = 0.0,
        attention: Backend = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if head not in get_args(Head):
            raise UserError(f"head is {head!r}: expected one of {', '.join(get_args(Head))}")
        if num_classes < 1:
            raise UserError(f"num_classes is {num_classes}: a segmenter has at least 1")
        if config.num_stages < 2:
            raise UserError(f"depths {config.depths} are one stage: a segmenter needs at least 2")
        self.num_classes = num_classes
        self.head: Head = head
        self.head_channels = CHANNELS[head] if head_channels is None else head_channels
        self.head_norm: Norm = head_norm
        check_head(self.head_channels, head_norm)
        self.encoder = Swin(config, attention=attention, activation_checkpointing=activation_checkpointing)
        stages = [config.stage_dim(stage) for stage in range(config.num_stages)]
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in stages[:-1])
        options: dict[str, Any] = {"norm": head_norm, "dropout": head_dropout}
        build = UperNetHead if head == "upernet" else FPNHead
        self.decode_head = build(stages, self.head_channels, num_classes, **options)
        self.auxiliary_stage = min(AUXILIARY_STAGE, len(stages) - 1)
        self.auxiliary_head = (
            FCNHead(stages[self.auxiliary_stage], num_classes, **options) if head == "upernet" else None
        )

    def forward(self, images: Tensor) -> SegmenterOutput:
        """Images, normalised float (B, C, H, W) of any size -> logits for every pixel.

        Sides that the patch does not divide are padded with 0, the mean, at the bottom and right. The head's map is
        resized to the images' size, as in the published code.
        """
        size, maps = images.shape[2:], self.maps(images)
        logits = resize(self.decode_head(maps).float(), size)
        if self.auxiliary_head is None or not self.training:
            return SegmenterOutput(logits, None)
        return SegmenterOutput(logits, resize(self.auxiliary_head(maps[self.auxiliary_stage]).float(), size))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Images, normalised float (B, C, H, W) -> one map (B, D_i, h_i, w_i) per stage, normed: what the head gets."""
        patch = self.encoder.config.patch_size
        if images.ndim == 4 and any(side % patch for side in images.shape[2:]):
            images = F.pad(images, (0, -images.shape[3] % patch, 0, -images.shape[2] % patch))
        stages = self.encoder.stage_outputs(self.encoder.embed(images))
        return [norm(x).permute(0, 3, 1, 2) for norm, x in zip((*self.norms, self.encoder.norm), stages, strict=True)]

    def description(self) -> Description:
        """What config.json says of this model."""
        check_labels(self.labels, self.num_classes)
        head = {"head": self.head, "channels": self.head_channels, "norm": self.head_norm}
        return replace(super().description(), num_classes=self.num_classes, head=head)

    @classmethod
    def _assemble(
        cls, description: Description, tensors: dict[str, Tensor], where: str, *, new_decoder: bool, **options: Any
    ) -> Self:
        if description.kind == cls.kind:
            arguments = cls._arguments(description)
            with torch.device("meta"):
                own, wanted = (cls(description.config, **given) for given in (arguments, arguments | options))
            _check_head(own, tensors, where)
            if (own.head, own.head_channels, own.head_norm) != (wanted.head, wanted.head_channels, wanted.head_norm):
                tensors = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] not in _HEADS}
        return super()._assemble(description, tensors, where, new_decoder=new_decoder, **options)

    @classmethod
    def _arguments(cls, description: Description) -> dict[str, Any]:
        arguments: dict[str, Any] = {"num_classes": description.num_classes}
        if description.kind == cls.kind:
            head = description.head
            arguments |= {"head": head["head"], "head_channels": head["channels"], "head_norm": head["norm"]}
        return arguments

    @classmethod
    def _of_head(cls, name: str) -> bool:
        return name.split(".")[0] in DENSE_PARTS["SwinSegmenter"]

    def _outputs(self, images: Tensor) -> list[Tensor]:
        found = [self(images).logits]
        if self.auxiliary_head is not None:
            found.append(self.auxiliary_head(self.maps(images)[self.auxiliary_stage]))
        return found


def _check_head(model: SwinSegmenter, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise a UserError unless the tensors of the head are those of the model that their config describes."""
    state = {name: value.shape for name, value in model.state_dict().items() if model._of_head(name)}
    found = {name: value.shape for name, value in tensors.items() if model._of_head(name)}
    for name in sorted(state.keys() | found.keys()):
        if state.get(name) != found.get(name):
            there, described = (tuple(each.get(name, ())) or "none" for each in (found, state))
            raise UserError(f"{where}: {name} is {there}, and its config describes {described}: it is damaged")


def segmentation_loss(
    output: SegmenterOutput,
    labels: Tensor,
    class_weights: Tensor | None = None,
    *,
    ignore_index: int = IGNORED,
    auxiliary_weight: float = 0.4,
) -> Tensor:
    """The mean over all pixels of a batch, in fp32; pixels without a label count as 0.

    -weight_k log softmax(logits)_k of the label k, its sum divided by the number of pixels B H W, as mmsegmentation
    does. So it is the mean over the images however a batch is cut into micro batches and shared among processes, which
    a mean over the labelled pixels (transformers') is not; the two are the same where every pixel has a label. Without
    any label it is 0, with gradients of 0.

    Args:
        labels: int64 (B, H, W), from 0 to K - 1, or ignore_index.
        class_weights: (K,); the sum is not divided by them.
        auxiliary_weight: of the auxiliary logits' loss, which is added.

    Raises:
        UserError: labels of another size or type than the logits ask for.
    """
    wanted = output.logits.shape[:1] + output.logits.shape[2:]
    if labels.shape != wanted or labels.dtype != torch.int64:
        dtype = str(labels.dtype).removeprefix("torch.")
        raise UserError(f"labels must be int64 {tuple(wanted)}, not {dtype} {tuple(labels.shape)}")

    def mean(logits: Tensor) -> Tensor:
        # torch's own mean would divide by the weights of the labelled pixels
        return F.cross_entropy(
            logits.float(), labels, class_weights, ignore_index=ignore_index, reduction="none"
        ).mean()

    loss = mean(output.logits)
    return loss if output.auxiliary is None else loss + auxiliary_weight * mean(output.auxiliary)
