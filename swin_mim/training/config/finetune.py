"""Settings of a fine-tuning run. The defaults are SimMIM's for a Swin-B that was pretrained for 100 epochs.

The text under a setting is its `--help`.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from swin_mim.training.config import pretrain
from swin_mim.training.config.pretrain import HubConfig, ImagesConfig, OptimConfig, RunConfig, SaveConfig, TrainConfig


@dataclass(frozen=True)
class LabelledDataConfig(ImagesConfig):
    """Images with labels, and their preprocessing."""

    source: str = "blue_marble"
    """Folder with one folder per class or with a table of file names and labels, such a table (.csv, .tsv, .jsonl,
    .parquet, .arrow), data set on the Hugging Face Hub, or blue_marble."""
    labels: str | None = None
    """Table of file names and labels that belongs to the folder data.source: names are relative to it. None takes the
    one that lies at its top, unless there are class folders."""
    label_column: tuple[str, ...] | None = None
    """Column of the labels; None takes the only column of classes. Of a table of file names also several columns of 0
    and 1, one for each class. blue_marble has coast, climate and terrain."""
    multi_label: bool = False
    """Any number of labels per image, in a column of lists or of texts such as "a|b": sigmoid and binary
    cross-entropy."""
    validation: str | None = None
    """Source of labelled images of the same classes to evaluate on; None takes data.heldout of data.source."""
    validation_split: str | None = None
    """Split of a Hub data set to evaluate on, of data.validation or else of data.source."""
    heldout: int = 0
    """Images held out of training for evaluation, in the proportions of the classes, the same in every run; 0 takes a
    tenth. Only without data.validation and data.validation_split."""
    labels_per_class: int = 0
    """Number of images of each class to train on; 0 takes all. A larger number includes the images of a smaller."""
    subset_seed: int = 0
    """Seed of the choice of these images."""
    balance: Literal["none", "sampling", "weights"] = "none"
    """Remedy for imbalanced classes: sample all equally often, or weigh the loss by inverse frequency."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel: for RGB of values from 0 to 1, else in the units of the files. None takes that of
    model.pretrained, for new weights and RGB ImageNet's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, as data.mean."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Min and max area of a random crop, as a fraction of the image's."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Min and max aspect ratio (width / height) of a random crop, relative to that of model.image_size."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Filter for resizing images."""
    crop_pct: float = 0.875
    """Side of the centre crop for evaluation, as a fraction of the image's shorter side."""


@dataclass(frozen=True)
class ClassifierConfig:
    """Encoder and its first weights. None means as in model.pretrained."""

    pretrained: str | None = None
    """Weights to start from: a run, an export, a checkpoint, a weight file that swin-mim convert reads (.safetensors
    or .pth), or a repository "user/name" on the Hub. None starts from new weights."""
    name: str | None = None
    """Named size, such as swin_base; required without model.pretrained."""
    image_size: tuple[int, ...] | None = None
    """Size in pixels, one number or height and width; required without model.pretrained."""
    window_size: tuple[int, ...] | None = None
    """Size of an attention window in tokens, to which bias tables are resized; required without model.pretrained."""
    bias_tables: Literal["bicubic", "geometric"] = "bicubic"
    """Resizing of bias tables: as in Swin's own code (bicubic), or in SimMIM's (geometric)."""
    patch_size: int | None = None
    """Side of a token in pixels; 4 for new weights."""
    embed_dim: int | None = None
    """Channels of the first stage; those of the named size for new weights."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage; those of the named size for new weights."""
    num_heads: tuple[int, ...] | None = None
    """Attention heads of each stage; those of the named size for new weights."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block, decreasing linearly to 0 at the first. Drawn per micro batch."""
    freeze: int = 0
    """Number of stages to freeze, counted from the input; with all of them only the head learns."""


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images besides the crop, as timm implements it."""

    flips: Literal["none", "horizontal", "both", "dihedral"] = "horizontal"
    """Random flips: left to right, also top to bottom, or also with quarter turns (dihedral; square images only), for
    pictures without up and down."""
    auto: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment: magnitude m, its std mstd, number of operations n, probability p, inc1 for operations that increase
    with the magnitude; None for none."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation."""
    random_erasing: float = 0.25
    """Probability that a random rectangle of an image becomes noise."""
    mixup: float = 0.8
    """Alpha of Mixup: two images are blended, with their labels; 0 is off."""
    cutmix: float = 1.0
    """Alpha of CutMix: a rectangle of one image is put into another; 0 is off."""
    mix_probability: float = 1.0
    """Fraction of the pairs of images that are mixed."""
    mix_switch: float = 0.5
    """Fraction of them that CutMix mixes, where both are on."""
    label_smoothing: float = 0.1
    """Fraction of the target that is spread over all classes."""


@dataclass(frozen=True)
class FinetuneOptimConfig(OptimConfig):
    """AdamW and its learning rate. Rates are given for 512 images and scaled by train.global_batch / 512."""

    base_lr: float = 1.25e-3
    """Learning rate after the warm-up, per 512 images, of the head."""
    warmup_lr: float = 2.5e-7
    """Learning rate of the first step, per 512 images."""
    min_lr: float = 2.5e-7
    """Learning rate at the end of cosine and poly, per 512 images."""
    warmup: str = "20 epochs"
    """Duration of the linear warm-up from warmup_lr to base_lr."""
    layer_decay: float = 0.9
    """Factor of base_lr from each block to the one below it; 1 gives all blocks the same."""


@dataclass(frozen=True)
class FinetuneTrainConfig(TrainConfig):
    """Length, batch and precision. Durations are "100 epochs", "500 steps" or "2e6 images"."""

    ema: float = 0.0
    """Decay of a running average of the weights, which is then evaluated and published; 0 keeps none."""


@dataclass(frozen=True)
class FinetuneLogConfig:
    """Metrics of a run. A duration of 0 means never."""

    every: str = "50 steps"
    """Interval between two lines of metrics."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers of accelerate, besides metrics.jsonl: tensorboard, wandb, mlflow, ..."""
    evaluate_every: str = "1 epoch"
    """Interval between two evaluations."""
    report: bool = True
    """Write report.html of the run's folder at every evaluation and at the end: a page of all that the run shows."""


@dataclass(frozen=True)
class FinetuneSaveConfig(SaveConfig):
    """Checkpoints. The best one is kept besides the newest, and a new best one is saved at once."""

    best_by: Literal["auto", "accuracy", "balanced_accuracy", "mean_average_precision", "loss"] = "auto"
    """Metric of the best checkpoint; auto is accuracy, or mean_average_precision with data.multi_label."""
    export: Literal["best", "last"] = "best"
    """Weights to publish: those that were best on the evaluation images, or the last ones."""


MUTABLE = pretrain.MUTABLE | {
    "data.labels",
    "data.validation",
    "data.validation_split",
    "save.export",
    "evaluate",
    "predictions",
}
"""Settings that may change when a run is resumed; every other one decides what the run computes."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tune a Swin Transformer as a classifier."""

    run: RunConfig
    data: LabelledDataConfig = field(default_factory=LabelledDataConfig)
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    log: FinetuneLogConfig = field(default_factory=FinetuneLogConfig)
    save: FinetuneSaveConfig = field(default_factory=FinetuneSaveConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    evaluate: bool = False
    """Measure the run's best checkpoint, or model.pretrained, on the evaluation images; train nothing."""
    predictions: str | None = None
    """File for the predictions of every evaluation image at the end: .csv or .parquet."""

    mutable: ClassVar[frozenset[str]] = MUTABLE
