"""An object detector on top of a Swin: torchvision's Faster R-CNN or Mask R-CNN on its pyramid.

Anchors, proposals, heads and losses are torchvision's, with its defaults. Ours are the backbone, a norm after each of
its stages as in the published detectors, the numbering (classes count from 0, torchvision's background is inside), and
anchors of other sizes where these are asked for.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from swin_mim.errors import UserError
from swin_mim.models.blocks.window_attention import Backend
from swin_mim.models.saving import Pretrained, check_labels
from swin_mim.models.swin import Swin, SwinConfig
from swin_mim.weights.config_json import Description
from swin_mim.weights.dense_heads import is_dense_head

_LOG = logging.getLogger(__name__)

ANCHOR = 8
"""Side of the square anchors of a map, in its cells, where nobody asked for other ones."""
RATIOS = (0.5, 1.0, 2.0)
"""Height to width of anchors."""
SMALLEST = 4
"""Min side of the smallest anchor in pixels: torchvision rounds halves of sides, and smaller ones may have no area."""

Target = dict[str, Tensor]
"""Objects of one image: boxes float32 (N, 4), left, top, right, bottom in pixels; labels int64 (N,), classes from 0;
masks uint8 (N, H, W), of a detector with masks."""
Detections = dict[str, Tensor]
"""What was found in one image, best first: boxes and labels as in `Target`; scores float (N,) from 0 to 1; masks float
(N, H, W) from 0 to 1, of a detector with masks."""


class SwinDetector(Pretrained):
    """Swin, a norm after each stage, a feature pyramid, and the two stages of Faster R-CNN or Mask R-CNN.

    Args:
        config: architecture of the encoder.
        num_classes: kinds of objects, without a background.
        masks: find the shape of each object too (Mask R-CNN).
        head_channels: of the feature pyramid and the heads; 256 is torchvision's.
        smallest_anchor: side in pixels of the square anchors of the first map; each further map has them twice as
            large. None: 8 tokens, 32 pixels with a patch of 4 as torchvision.
        attention, activation_checkpointing: as in `Swin`.
    """

    kind = "SwinDetector"
    _way_out = "it is no detector yet: train one; in Python, num_classes=N draws new heads for N classes"

    def __init__(
        self,
        config: SwinConfig,
        num_classes: int,
        *,
        masks: bool = True,
        head_channels: int = 256,
        smallest_anchor: int | None = None,
        attention: Backend = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"num_classes is {num_classes}: a detector has at least 1")
        self.num_classes, self.masks, self.head_channels = num_classes, masks, head_channels
        self.smallest_anchor = usual_anchor(config) if smallest_anchor is None else smallest_anchor
        if self.smallest_anchor < SMALLEST:
            raise UserError(
                f"smallest_anchor is {self.smallest_anchor}: an anchor has a side of {SMALLEST} pixels or more"
            )
        self.encoder = Swin(config, attention=attention, activation_checkpointing=activation_checkpointing)
        dims = [config.stage_dim(stage) for stage in range(config.num_stages)]
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims[:-1])  # the last stage has the encoder's own
        self.fpn = FeaturePyramidNetwork(dims, head_channels, LastLevelMaxPool())
        theirs = _rcnn(config, num_classes, head_channels, self.anchors(), masks=masks)
        self.rpn, self.roi_heads = theirs.rpn, theirs.roi_heads
        self._batching = GeneralizedRCNNTransform(1, 1, [], [], size_divisible=config.stride)

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Any:
        """Normalised images and, in training mode, the objects of each -> losses; in evaluation mode -> detections.

        Which anchors and proposals are compared with the objects is drawn from torch's generator of the device.

        Args:
            images: float (B, C, H, W), or a list of (C, H, W) of any sizes, which are padded with 0.
            targets: of each image; there may be none in it.
            sizes: (H, W) for which boxes and masks of each image are given, in evaluation mode; None: its own.

        Returns:
            {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg" and with masks "loss_mask"}, or
            for each image `Detections`.

        Raises:
            UserError: targets that do not fit the images, or none in training mode.
        """
        batch = self._batching.batch_images(list(images), size_divisible=self.encoder.config.stride)
        shapes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        theirs = self._with_background(targets, len(shapes)) if self.training else None
        maps, listed = self.maps(batch), ImageList(batch, shapes)
        with self._products_in_half():
            proposals, losses = self.rpn(listed, maps, theirs)
            found, further = self.roi_heads(maps, proposals, shapes, theirs)
        if self.training:
            return {**further, **losses}
        return [_ours(each) for each in self._batching.postprocess(found, shapes, list(sizes or shapes))]

    def anchors(self) -> tuple[int, ...]:
        """Sides in pixels of the square anchors of each map, the last of which is "pool"."""
        return tuple(self.smallest_anchor * 2**level for level in range(self.encoder.config.num_stages + 1))

    def maps(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Images, normalised float (B, C, H, W) -> "0", "1", ... of each stage, and "pool": (B, channels, h, w).

        In float32 also under autocast: anchors are of the dtype of the maps, and positions need its digits.
        """
        stages = self.encoder.stage_outputs(self.encoder.embed(images))
        normed = (norm(x).permute(0, 3, 1, 2) for norm, x in zip((*self.norms, self.encoder.norm), stages, strict=True))
        named = OrderedDict((str(number), each) for number, each in enumerate(normed))
        return OrderedDict((name, each.float()) for name, each in self.fpn(named).items())

    def _products_in_half(self) -> AbstractContextManager[Any]:
        """Autocast for weights in bf16 or fp16, as DeepSpeed holds them: the maps are float32 (see `maps`)."""
        weight = self.fpn.inner_blocks[0][0].weight
        if weight.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(weight.device.type, weight.dtype)

    def _with_background(self, targets: Sequence[Target] | None, images: int) -> list[Target]:
        if targets is None or len(targets) != images:
            given = "none" if targets is None else len(targets)
            raise UserError(f"targets are of {given} of the {images} images: training needs those of each")
        for number, target in enumerate(targets):
            _check_target(target, number, self.num_classes, masks=self.masks)
        return [{**target, "labels": target["labels"] + 1} for target in targets]

    def description(self) -> Description:
        """What config.json says of this model."""
        check_labels(self.labels, self.num_classes)
        head = {"masks": self.masks, "channels": self.head_channels}
        if self.smallest_anchor != usual_anchor(self.encoder.config):
            head["smallest_anchor"] = self.smallest_anchor
        return replace(super().description(), num_classes=self.num_classes, head=head)

    def _outputs(self, images: Tensor) -> list[Tensor]:
        maps = self.maps(images)
        shapes, deltas = self.rpn.head(list(maps.values()))
        return [*maps.values(), *shapes, *deltas, *(value for found in self(images) for value in found.values())]

    @classmethod
    def _of_head(cls, name: str) -> bool:
        return is_dense_head(name)

    @classmethod
    def _arguments(cls, description: Description) -> dict[str, Any]:
        arguments: dict[str, Any] = {"num_classes": description.num_classes}
        if description.kind == cls.kind:
            head = description.head
            arguments |= {"masks": head["masks"], "head_channels": head["channels"]}
            arguments["smallest_anchor"] = head.get("smallest_anchor")
        return arguments

    @classmethod
    def _assemble(
        cls, description: Description, tensors: dict[str, Tensor], where: str, *, new_decoder: bool, **options: Any
    ) -> Self:
        if description.kind != cls.kind and "num_classes" not in options:
            raise UserError(f"{where} has no heads of a detector: {cls._way_out}")
        built = super()._assemble(description, tensors, where, new_decoder=new_decoder, **options)
        learned = description.head.get("smallest_anchor", usual_anchor(description.config))
        if description.kind == cls.kind and built.smallest_anchor != learned:
            told = f"{where} proposes objects by anchors of {learned} pixels and more, now of {built.smallest_anchor}"
            _LOG.warning("%s: that has to learn", told)
        return built


def usual_anchor(config: SwinConfig) -> int:
    """Side of the smallest anchor where nobody asked for another, in pixels."""
    return ANCHOR * config.patch_size


def _rcnn(config: SwinConfig, num_classes: int, channels: int, sides: Sequence[int], *, masks: bool) -> FasterRCNN:
    """torchvision's detector for the maps of a network, with anchors of these sides; only its two stages are used."""
    strides = [config.patch_size * 2**stage for stage in range(config.num_stages)]
    anchors = AnchorGenerator(tuple((side,) for side in sides), (RATIOS,) * len(sides))
    parts: dict[str, Any] = {
        "box_roi_pool": _pool(strides, 7),
        "box_head": TwoMLPHead(channels * 7**2, 4 * channels),
        "box_predictor": FastRCNNPredictor(4 * channels, num_classes + 1),
    }
    if masks:
        parts["mask_roi_pool"] = _pool(strides, 14)
        parts["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, 1)
        parts["mask_predictor"] = MaskRCNNPredictor(channels, channels, num_classes + 1)
    backbone = nn.Module()
    backbone.out_channels = channels  # type: ignore[assignment]
    build = MaskRCNN if masks else FasterRCNN
    return build(backbone, rpn_anchor_generator=anchors, **parts)


def _pool(strides: Sequence[int], size: int) -> MultiScaleRoIAlign:
    """What cuts `size` x `size` cells out of the maps of these strides.

    torchvision would guess the strides from the first batch that it sees, wrongly if its images are small and padded,
    and keep them.
    """
    pool = MultiScaleRoIAlign([str(stage) for stage in range(len(strides))], output_size=size, sampling_ratio=2)
    first, last = (int(math.log2(stride)) for stride in (strides[0], strides[-1]))
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(first, last, pool.canonical_scale, pool.canonical_level)
    return pool


def _check_target(target: Target, number: int, num_classes: int, *, masks: bool) -> None:
    boxes, labels = target["boxes"], target["labels"]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(labels) != len(boxes):
        raise UserError(
            f"targets[{number}] has boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}: expected (N, 4), (N,)"
        )
    if masks and ("masks" not in target or len(target["masks"]) != len(boxes)):
        raise UserError(f"targets[{number}] has no mask for each of its boxes: give them, or build it with masks=False")
    if len(boxes) == 0:
        return
    wrong = (boxes[:, 2:] <= boxes[:, :2]).any() | (labels < 0).any() | (labels >= num_classes).any()
    if wrong:
        raise UserError(
            f"targets[{number}] has a box without area, or a label outside of 0 to {num_classes - 1}: "
            "boxes are left, top, right, bottom"
        )


def _ours(found: dict[str, Tensor]) -> Detections:
    """Classes from 0, masks without their empty axis."""
    ours = {**found, "labels": found["labels"] - 1}
    return ours | ({"masks": found["masks"][:, 0]} if "masks" in found else {})
