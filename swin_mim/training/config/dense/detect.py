"""Settings of an object detection. The defaults are Mask R-CNN's with a Swin on COCO, for one's own images.

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
class BoxedDataConfig(ImagesConfig):
    """Images with boxes and perhaps shapes of objects, and their preprocessing."""

    source: str = "blue_marble"
    """JSON file of COCO's instances, data set on the Hugging Face Hub or on disk with a column of boxes, or
    blue_marble."""
    image_folder: str | None = None
    """Folder that the names of images in a JSON file are relative to; None takes the folder of the file."""
    objects_column: str | None = None
    """Column of the boxes and classes of a data set; None takes the only one with boxes."""
    bad_boxes: Literal["refuse", "leave_out"] = "refuse"
    """What to do about a box that is empty or outside of its image: stop, or leave it out and say how many there
    are."""
    validation: str | None = None
    """Source of images with objects of the same classes to evaluate on; None takes data.heldout of data.source."""
    validation_folder: str | None = None
    """Folder of the images of data.validation, as data.image_folder."""
    validation_split: str | None = None
    """Split of a data set to evaluate on, of data.validation or else of data.source."""
    heldout: int = 0
    """Images held out of training for evaluation, the same in every run; 0 takes a tenth. Only without data.validation
    and data.validation_split."""
    images: int = 0
    """Number of images to train on; 0 takes all. A larger number includes the images of a smaller."""
    subset_seed: int = 0
    """Seed of the choice of these images."""
    empty: bool = False
    """Train on images without any object too."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel: for RGB of values from 0 to 1, else in the units of the files. None takes that of
    model.pretrained, for new weights ImageNet's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, as data.mean."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter for resizing images."""


@dataclass(frozen=True)
class DetectorConfig(ClassifierConfig):
    """Encoder, heads and first weights. None means as in model.pretrained; image_size is what images are made to fit
    into, one number, or the shorter and the longer side whatever their orientation."""

    masks: bool | Literal["auto"] = "auto"
    """Find shapes too (Mask R-CNN) or boxes alone (Faster R-CNN); auto finds shapes if all objects have one."""
    head_channels: int | None = None
    """Channels of the feature pyramid and the heads; None takes 256."""
    smallest_anchor: int | None = None
    """Side of the smallest anchors in pixels of model.image_size, about that of your smallest objects; further ones are
    2, 4, 8, ... times as large. None takes 8 tokens, 32 pixels with a patch of 4, as torchvision."""


@dataclass(frozen=True)
class BoxAugmentConfig:
    """Augmentation of training images together with their objects."""

    scale: tuple[float, float] = (0.1, 2.0)
    """Min and max factor of an image's size, which is 1 where it fits into model.image_size; what is larger is cropped
    at random, what is smaller is padded (large-scale jitter)."""
    flips: Literal["none", "horizontal"] = "horizontal"
    """Random flips, left to right."""
    copy_paste: float = 0.0
    """Probability that objects of another training image are pasted into an image: any number of them, at the place and
    size that its own jitter gives them. Every object needs a shape."""


@dataclass(frozen=True)
class DetectSaveConfig(SaveConfig):
    """Checkpoints. The best one is kept besides the newest, and a new best one is saved at once."""

    best_by: Literal["auto", "AP", "AP50", "mask_AP"] = "auto"
    """Metric of the best checkpoint: average precision of boxes, of boxes at an overlap of 0.5, or of shapes. auto is
    AP."""
    export: Literal["best", "last"] = "best"
    """Weights to publish: those that were best on the evaluation images, or the last ones."""


MUTABLE = pretrain.MUTABLE | {
    "data.image_folder",
    "data.validation",
    "data.validation_folder",
    "data.validation_split",
    "save.export",
    "evaluate",
    "predictions",
}
"""Settings that may change when a run is resumed; every other one decides what the run computes."""


@dataclass(frozen=True)
class DetectConfig:
    """Train a Swin Transformer to find objects in images."""

    run: RunConfig
    data: BoxedDataConfig = field(default_factory=BoxedDataConfig)
    model: DetectorConfig = field(default_factory=DetectorConfig)
    augment: BoxAugmentConfig = field(default_factory=BoxAugmentConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    log: FinetuneLogConfig = field(default_factory=FinetuneLogConfig)
    save: DetectSaveConfig = field(default_factory=DetectSaveConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    evaluate: bool = False
    """Measure the run's best checkpoint, or model.pretrained, on the evaluation images; train nothing."""
    predictions: str | None = None
    """File for all that is found in the evaluation images at the end: .json, as COCO's results."""

    mutable: ClassVar[frozenset[str]] = MUTABLE
