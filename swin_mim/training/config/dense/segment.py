"""Settings of a semantic segmentation. The defaults are UperNet's on ADE20K, for a Swin of any size.

The text under a setting is its `--help`.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from swin_mim.training.config import pretrain
from swin_mim.training.config.finetune import (
    ClassifierConfig,
    FinetuneLogConfig,
    FinetuneOptimConfig,
    FinetuneTrainConfig,
)
from swin_mim.training.config.pretrain import HubConfig, ImagesConfig, RunConfig, SaveConfig


@dataclass(frozen=True)
class MaskedDataConfig(ImagesConfig):
    """Images with masks of class numbers, and their preprocessing."""

    source: str = "blue_marble"
    """Folder of images, folder that holds images/ and masks/, data set on the Hugging Face Hub, or blue_marble."""
    masks: str | None = None
    """Folder of masks with the names of the images: PNG, TIFF or .npy of class numbers. Or a JSON file of COCO's, of
    panoptic segmentation or of instances, which names its classes. None takes the folder beside the images."""
    panoptic_folder: str | None = None
    """Folder of the PNGs of data.masks of panoptic segmentation; None takes the one of the file's name beside it."""
    uncovered: Literal["auto", "background", "ignore"] = "auto"
    """Pixels that no annotation of such a file covers: a class named background before all others, or without a label.
    auto is background of instances, and ignore of panoptic segmentation."""
    mask_column: str | None = None
    """Column of the masks of a Hub data set; None takes the only image column besides data.column."""
    class_names: str | None = None
    """File with the name of a class in each line; None names them by their numbers."""
    num_classes: int | None = None
    """Number of classes; None takes that of data.class_names, or reads all masks once to find it."""
    first_class: int = 0
    """Class number of the first class; pixels of smaller numbers have no label."""
    ignore_index: int = 255
    """Class number of pixels without a label."""
    validation: str | None = None
    """Source of images with masks of the same classes to evaluate on; None takes data.heldout of data.source."""
    validation_masks: str | None = None
    """Masks of data.validation, as data.masks."""
    validation_panoptic_folder: str | None = None
    """Folder of the PNGs of data.validation_masks, as data.panoptic_folder."""
    validation_split: str | None = None
    """Split of a Hub data set to evaluate on, of data.validation or else of data.source."""
    heldout: int = 0
    """Images held out of training for evaluation, the same in every run; 0 takes a tenth. Only without data.validation
    and data.validation_split."""
    images: int = 0
    """Number of images to train on; 0 takes all. A larger number includes the images of a smaller."""
    subset_seed: int = 0
    """Seed of the choice of these images."""
    balance: Literal["none", "weights"] = "none"
    """Remedy for imbalanced classes: weigh the loss by the inverse of a class's share of the pixels."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel: for RGB of values from 0 to 1, else in the units of the files. None takes that of
    model.pretrained, for new weights and RGB ImageNet's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, as data.mean."""
    resize: int | None = None
    """Shorter side to which images are resized, in pixels, before a random scale and for evaluation; None leaves them
    as they are."""
    window: Literal["whole", "slide"] = "whole"
    """Evaluation of images whole, or by windows of model.image_size that overlap by a third, for larger ones."""


@dataclass(frozen=True)
class SegmenterConfig(ClassifierConfig):
    """Encoder, head and first weights. None means as in model.pretrained; image_size is that of a random crop."""

    head: Literal["upernet", "fpn"] = "upernet"
    """Head: UperNet with an auxiliary head while training, or a light FPN."""
    head_channels: int | None = None
    """Channels inside the head; None takes 512 of upernet and 256 of fpn."""
    head_norm: Literal["batch", "group"] = "batch"
    """Norms of the head: batch normalisation over all processes, as published, or group normalisation, with which small
    batches learn and accumulation changes nothing."""
    head_dropout: float = 0.1
    """Chance of a channel of the head to be dropped."""
    auxiliary_weight: float = 0.4
    """Weight of the loss of the auxiliary head."""


@dataclass(frozen=True)
class JointAugmentConfig:
    """Augmentation of training images together with their masks."""

    scale: tuple[float, float] = (0.5, 2.0)
    """Min and max factor by which the sides of an image are scaled before the crop; smaller ones are padded."""
    max_share: float = 0.75
    """Max part of the labelled pixels of a crop that one class has; up to ten crops are drawn. 1 takes any crop."""
    flips: Literal["none", "horizontal", "both", "dihedral"] = "horizontal"
    """Random flips: left to right, also top to bottom, or also with quarter turns (dihedral; square images only), for
    pictures without up and down."""
    photometric: bool = False
    """Random changes of brightness, contrast, saturation and hue, each in half of the images."""


@dataclass(frozen=True)
class SegmentLogConfig(FinetuneLogConfig):
    """Metrics and pictures of a run. A duration of 0 means never."""

    pictures: int = 4
    """Number of evaluation images in the picture of image, mask and prediction."""
    picture_channels: tuple[str, ...] | None = None
    """Channels to show as red, green and blue, or one as grey, by name or number; None takes the visible ones if their
    names say so, else the first."""


@dataclass(frozen=True)
class SegmentSaveConfig(SaveConfig):
    """Checkpoints. The best one is kept besides the newest, and a new best one is saved at once."""

    best_by: Literal["mean_iou", "pixel_accuracy", "loss"] = "mean_iou"
    """Metric of the best checkpoint."""
    export: Literal["best", "last"] = "best"
    """Weights to publish: those that were best on the evaluation images, or the last ones."""


MUTABLE = pretrain.MUTABLE | {
    "data.masks",
    "data.panoptic_folder",
    "data.mask_column",
    "data.class_names",
    "data.validation",
    "data.validation_masks",
    "data.validation_panoptic_folder",
    "data.validation_split",
    "save.export",
    "evaluate",
    "predictions",
}
"""Settings that may change when a run is resumed; every other one decides what the run computes."""


@dataclass(frozen=True)
class SegmentConfig:
    """Train a Swin Transformer to give every pixel a class."""

    run: RunConfig
    data: MaskedDataConfig = field(default_factory=MaskedDataConfig)
    model: SegmenterConfig = field(default_factory=SegmenterConfig)
    augment: JointAugmentConfig = field(default_factory=JointAugmentConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    log: SegmentLogConfig = field(default_factory=SegmentLogConfig)
    save: SegmentSaveConfig = field(default_factory=SegmentSaveConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    evaluate: bool = False
    """Measure the run's best checkpoint, or model.pretrained, on the evaluation images; train nothing."""
    predictions: str | None = None
    """Folder for a mask of what is predicted of every evaluation image at the end."""

    mutable: ClassVar[frozenset[str]] = MUTABLE
