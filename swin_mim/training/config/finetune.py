"""Every setting of a fine-tuning run. The defaults are SimMIM's for a Swin-B that was pretrained for 100 epochs.

The text under a setting is what `--help` says of it.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from swin_mim.training.config import pretrain
from swin_mim.training.config.pretrain import HubConfig, ImagesConfig, OptimConfig, RunConfig, SaveConfig, TrainConfig


@dataclass(frozen=True)
class LabelledDataConfig(ImagesConfig):
    """Images with labels, and what a model sees of them."""

    source: str = "blue_marble"
    """A folder with one folder for each class, a data set on the Hugging Face Hub, or blue_marble."""
    label_column: str | None = None
    """Column of the labels; without it the only one of classes. Of blue_marble: coast (or climate, terrain)."""
    multi_label: bool = False
    """An image has any number of labels, in a column of lists: sigmoid and binary cross-entropy."""
    validation: str | None = None
    """Another source of labelled images to evaluate on, of the same classes; without it, `heldout` of the source."""
    validation_split: str | None = None
    """Split of a Hub data set to evaluate on, of data.validation or else of data.source."""
    heldout: int = 0
    """Images kept out of training to evaluate on, as many of each class as it has a share, the same in every run; 0
    takes a tenth. Only without data.validation and data.validation_split."""
    labels_per_class: int = 0
    """Train on this many images of each class; 0 takes all. A larger number has the images of a smaller one."""
    subset_seed: int = 0
    """Decides which ones."""
    balance: Literal["none", "sampling", "weights"] = "none"
    """Against skewed classes: draw each class as often, or weigh its loss by the inverse of its share."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel: of RGB of values from 0 to 1, else in the units of the files. None takes that of
    model.pretrained; ImageNet's for new weights, of RGB."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest part of the image's area that a random crop takes."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Least and greatest width / height of a random crop, relative to those of model.image_size."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """How images are resized."""
    crop_pct: float = 0.875
    """Side of the centred crop that is evaluated, as a part of the image's shorter side."""


@dataclass(frozen=True)
class ClassifierConfig:
    """The encoder and where its weights come from. What is None is as in model.pretrained."""

    pretrained: str | None = None
    """Weights to start from: a run, an export, a checkpoint, a weight file that swin-mim convert reads (.safetensors
    or .pth), or a repository "user/name" on the Hub. None starts from new weights."""
    name: str | None = None
    """Named size, such as swin_base; needed from new weights."""
    image_size: tuple[int, ...] | None = None
    """Pixels, one number or height and width; needed from new weights."""
    window_size: tuple[int, ...] | None = None
    """Tokens along the side of an attention window; needed from new weights. Bias tables are resized to it."""
    bias_tables: Literal["bicubic", "geometric"] = "bicubic"
    """How bias tables are resized: as in Swin's own code, or in SimMIM's."""
    patch_size: int | None = None
    """Pixels along the side of a token; from new weights 4."""
    embed_dim: int | None = None
    """Channels of the first stage; from new weights the named size's."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage; from new weights the named size's."""
    num_heads: tuple[int, ...] | None = None
    """Attention heads of each stage; from new weights the named size's."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block; earlier blocks have linearly less. Drawn for each micro batch."""
    freeze: int = 0
    """Stages whose weights stay as they are, counted from the input; with all of them only the head learns."""


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to a training image besides the crop. timm's implementations."""

    flips: Literal["none", "horizontal", "both", "dihedral"] = "horizontal"
    """Mirror images at random: left to right, also top to bottom, or also by quarter turns (square images only), for
    pictures without up and down."""
    auto: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment: magnitude m, its deviation mstd, operations n, probability p, inc1 for operations that increase
    with the magnitude; null for none."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation."""
    random_erasing: float = 0.25
    """Part of the images of which a random rectangle becomes noise."""
    mixup: float = 0.8
    """Alpha of Mixup: two images are blended, with their labels; 0 is off."""
    cutmix: float = 1.0
    """Alpha of CutMix: a rectangle of one image is put into another; 0 is off."""
    mix_probability: float = 1.0
    """Part of the pairs of images that are mixed."""
    mix_switch: float = 0.5
    """Part of them that CutMix mixes, where both are on."""
    label_smoothing: float = 0.1
    """Part of the target that is spread over all classes."""


@dataclass(frozen=True)
class FinetuneOptimConfig(OptimConfig):
    """AdamW and its learning rate. Rates are given for 512 images and scaled by train.global_batch / 512."""

    base_lr: float = 1.25e-3
    """Learning rate after the warm-up, per 512 images, of the head."""
    warmup_lr: float = 2.5e-7
    """Learning rate of the first step, per 512 images."""
    min_lr: float = 2.5e-7
    """Learning rate at the end of the cosine, per 512 images."""
    warmup: str = "20 epochs"
    """Duration of the straight line from warmup_lr to base_lr."""
    layer_decay: float = 0.9
    """Factor of base_lr from each block to the one below it; 1 gives all blocks the same."""


@dataclass(frozen=True)
class FinetuneTrainConfig(TrainConfig):
    """Length, batch and arithmetic. Durations are "100 epochs", "500 steps" or "2e6 images"."""

    ema: float = 0.0
    """Decay of a running average of the weights, which is then what is evaluated and published; 0 keeps none."""


@dataclass(frozen=True)
class FinetuneLogConfig:
    """What a run says of itself. A duration of 0 means never."""

    every: str = "50 steps"
    """Between two lines of metrics."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers of accelerate, besides metrics.jsonl: tensorboard, wandb, mlflow, ..."""
    evaluate_every: str = "1 epoch"
    """Between two evaluations."""


@dataclass(frozen=True)
class FinetuneSaveConfig(SaveConfig):
    """Checkpoints. Besides the newest ones the best one is kept, and a new best one is saved at once."""

    best_by: Literal["auto", "accuracy", "balanced_accuracy", "mean_average_precision", "loss"] = "auto"
    """What makes a checkpoint the best one; auto is the accuracy, of several labels the mean average precision."""
    export: Literal["best", "last"] = "best"
    """What is published: the weights that were best on the evaluation images, or the last ones."""


MUTABLE = pretrain.MUTABLE | {
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
    """Train nothing: measure the run's best checkpoint, or model.pretrained, on the evaluation images."""
    predictions: str | None = None
    """File for what is predicted of every evaluation image at the end: .csv or .parquet."""

    mutable: ClassVar[frozenset[str]] = MUTABLE
