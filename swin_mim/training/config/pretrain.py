"""Every setting of a pretraining run: plain values in sections. The defaults are SimMIM's at 100 epochs.

The text under a setting is what `--help` says of it.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from swin_mim.training.config.durations import LearningRateSchedule


@dataclass(frozen=True)
class RunConfig:
    """The run: its place and its randomness."""

    name: str
    """Folder of the run inside the root. A run of the same name is continued."""
    root: str = "runs"
    """Folder that holds all runs."""
    seed: int = 0
    """Decides the order of the images, crops, masks and the first weights."""


@dataclass(frozen=True)
class ImagesConfig:
    """Where images come from and how they are read."""

    source: str = "blue_marble"
    """A folder of images (any depth, no labels), a data set on the Hugging Face Hub, or blue_marble."""
    config: str | None = None
    """Configuration of a Hub data set that has several."""
    split: str = "train"
    """Split of a Hub data set."""
    column: str | None = None
    """Column of the images; without it the only image column."""
    channels: tuple[str, ...] | None = None
    """Channels to read, by name or by number from 1, in the order in which the model takes them: images keep the values
    of their files then. None reads every image as RGB; a pretraining with another model.in_channels, all channels."""
    stack: str | None = None
    """How the files of one image are called, if each holds a channel, such as {image}_{channel}.tif."""
    nodata: float | None = None
    """Value of pixels that are not there, in images other than RGB; None takes what the files say. NaN always is."""
    mask_channel: str | None = None
    """Channel that is 0 where a pixel is not there, by name or number, in images other than RGB."""
    workers: int = 4
    """Processes that decode images, for each training process; 0 decodes in the training process."""
    max_broken: float = 0.01
    """Part of the images that may be undecodable before the run stops."""


@dataclass(frozen=True)
class DataConfig(ImagesConfig):
    """The images and what a model sees of them."""

    streaming: bool = False
    """Read the source shard by shard through a cache, as when it is larger than the disk: parquet or tar files of a Hub
    data set, of a folder, or at addresses such as https://host/train-{000..127}.tar or s3://bucket/*.parquet."""
    shards_at_once: int = 4
    """With data.streaming: shards whose images are mixed; the next as many are brought meanwhile."""
    cache: str | None = None
    """With data.streaming: folder for the shards, which all runs may share; None is ~/.cache/swin_mim/shards."""
    cache_gb: float = 20.0
    """With data.streaming: most of 10^9 bytes in that folder."""
    heldout: int = 256
    """Images kept out of training to evaluate on; never more than a tenth of the source."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel: of RGB of values from 0 to 1, else in the units of the files. ImageNet's."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, in the same units. ImageNet's."""
    crop_scale: tuple[float, float] = (0.67, 1.0)
    """Least and greatest part of the image's area that a random crop takes."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Least and greatest width / height of a random crop, relative to those of model.image_size."""
    flips: Literal["none", "horizontal", "both", "dihedral"] = "horizontal"
    """Mirror images at random: left to right, also top to bottom, or also by quarter turns (square images only), for
    pictures without up and down."""


@dataclass(frozen=True)
class ModelConfig:
    """The encoder."""

    name: str = "swin_base"
    """Named size: swin_nano, swin_tiny, swin_small, swin_base or swin_large."""
    image_size: tuple[int, ...] = (192,)
    """Pixels, one number or height and width; a multiple of mask.unit."""
    patch_size: int = 4
    """Pixels along the side of a token."""
    in_channels: int = 3
    """Channels of an image; 3 without data.channels is RGB."""
    window_size: tuple[int, ...] = (6,)
    """Tokens along the side of an attention window, one number or height and width."""
    embed_dim: int | None = None
    """Channels of the first stage; None takes the named size's."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage; None takes the named size's."""
    num_heads: tuple[int, ...] | None = None
    """Attention heads of each stage; None takes the named size's."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block; earlier blocks have linearly less. Drawn for each micro batch."""
    target: Literal["pixels", "normalized"] = "pixels"
    """What is predicted: the pixels, or pixels normalised by the window of 47 around each."""
    pretrained: str | None = None
    """Weights to start from: a folder, a .safetensors file or a repository "user/name" on the Hub. Bias tables are
    resized to this model's windows; a decoder that is not there is drawn anew."""


@dataclass(frozen=True)
class MaskConfig:
    """The masks."""

    unit: int = 32
    """Pixels along the side of a square that is masked as one; a multiple of model.patch_size."""
    ratio: float = 0.6
    """Part of the squares that is masked, rounded up to whole squares."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning rate. Rates are given for 512 images and scaled by train.global_batch / 512."""

    base_lr: float = 2e-4
    """Learning rate after the warm-up, per 512 images."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step, per 512 images."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine, per 512 images."""
    warmup: str = "10 epochs"
    """Duration of the straight line from warmup_lr to base_lr."""
    schedule: LearningRateSchedule = "cosine"
    """Shape after the warm-up."""
    milestones: tuple[str, ...] = ()
    """Durations from the start after which multistep multiplies the rate by gamma."""
    gamma: float = 0.1
    """Factor of each milestone."""
    weight_decay: float = 0.05
    """Decay of the matrices and convolutions; biases, norms, bias tables and the mask token have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's two moving averages."""
    eps: float = 1e-8
    """Added to AdamW's denominator."""
    clip_norm: float = 5.0
    """Largest norm of all gradients together; longer ones are scaled down to it."""


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and arithmetic. Durations are "100 epochs", "500 steps" or "2e6 images"."""

    duration: str = "100 epochs"
    """Length of the whole run."""
    global_batch: int = 2048
    """Images of one step, over all processes and accumulation."""
    micro_batch: int = 128
    """Images of one forward pass on one process; what is missing to global_batch is accumulated."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of forward and backward; auto is bf16 on devices that have it, else fp32."""
    attention: Literal["auto", "reference", "sdpa", "chunked", "triton"] = "auto"
    """Implementation of the window attention; auto is the fused kernel on CUDA, if it works there, and chunked on a
    CPU. The first line of a run says which it is."""
    fsdp: bool = False
    """Share weights, gradients and moments out among the processes with FSDP2, which saves memory, most together with
    train.activation_checkpointing. Checkpoints are the same with and without."""
    threads: int = 0
    """CPU threads of each process; 0 shares the cores out among the processes of this machine."""
    compile: bool = False
    """Compile the model with torch.compile."""
    activation_checkpointing: bool = False
    """Compute the blocks again in the backward pass: less memory, a third more arithmetic."""
    stop_after: str = "0 steps"
    """Leave with a checkpoint after this much of the whole run, as if interrupted; 0 goes to the end."""


@dataclass(frozen=True)
class LogConfig:
    """What a run says of itself. A duration of 0 means never."""

    every: str = "50 steps"
    """Between two lines of metrics."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers of accelerate, besides metrics.jsonl: tensorboard, wandb, mlflow, ..."""
    evaluate_every: str = "1 epoch"
    """Between two evaluations on the held-out images, with the same masks each time."""
    pictures_every: str = "10 epochs"
    """Between two pictures of reconstructions."""
    pictures: int = 8
    """Held-out images in such a picture."""
    picture_channels: tuple[str, ...] | None = None
    """Three channels to show as red, green and blue, or one as grey, by name or number; None takes the visible ones if
    they are called so, else the first."""


@dataclass(frozen=True)
class SaveConfig:
    """Checkpoints."""

    every: str = "1 epoch"
    """Between two checkpoints; the last step has one too."""
    keep: int = 2
    """Newest checkpoints that are kept; at least 2, as the last one may be being written."""
    keep_every: int = 0
    """Keep one of so many checkpoints besides the newest, as long as this and save.every stay as they are; 0 keeps
    none."""


@dataclass(frozen=True)
class HubConfig:
    """Publishing on the Hugging Face Hub. Every run that ends well leaves the same files in export/ of its folder."""

    repo: str | None = None
    """Repository "user/name" to push to at the end; that it can be written is checked before the first step."""
    private: bool = True
    """Make a new repository private."""
    every: int = 0
    """Push after every so many checkpoints too; 0 pushes at the end only."""
    transformers: bool = False
    """Add a copy for transformers' own Swin classes, in a subfolder."""
    license: str | None = None
    """License of the weights for the card, such as apache-2.0 or cc-by-4.0."""


@dataclass(frozen=True)
class ProbeConfig:
    """Labelled images on which the encoder is probed while it learns: k-NN and a linear probe of every stage, beside
    those of an encoder with random weights. The k-NN of the last stage under-rates masked image modelling."""

    every: str = "0 steps"
    """Between two probes; 0 means never."""
    source: str | None = None
    """A folder with one folder for each class, or a data set; None takes data.source. Of images that are not RGB the
    channels and gaps are those of data."""
    stack: str | None = None
    """As data.stack, of probe.source."""
    split: str = "train"
    """Split of a Hub data set that the probes learn from."""
    label_column: str | None = None
    """Column of the labels; without it the only one of classes."""
    validation: str | None = None
    """Another source to test the probes on; without it, a tenth of the images."""
    validation_split: str | None = None
    """Split of a Hub data set to test the probes on."""
    images: int = 2000
    """Images to learn from, at most; the same number of each class."""


MUTABLE = frozenset(
    {
        "run.root",
        # Whether the images are still the same is told by their fingerprint, which every checkpoint holds.
        "data.source",
        "data.config",
        "data.split",
        "data.column",
        "data.stack",
        "data.workers",
        "data.max_broken",
        "data.cache",
        "data.cache_gb",
        "train.micro_batch",
        "train.attention",
        "train.compile",
        "train.fsdp",
        "train.threads",
        "train.activation_checkpointing",
        "train.stop_after",
        "log.every",
        "log.trackers",
        "log.evaluate_every",
        "log.pictures_every",
        "log.pictures",
        "log.picture_channels",
        "save.every",
        "save.keep",
        "save.keep_every",
        "probe.every",
        "probe.source",
        "probe.stack",
        "probe.split",
        "probe.label_column",
        "probe.validation",
        "probe.validation_split",
        "probe.images",
        "hub.repo",
        "hub.private",
        "hub.every",
        "hub.transformers",
        "hub.license",
    }
)
"""Settings that may change when a run is resumed; every other one decides what the run computes."""


@dataclass(frozen=True)
class PretrainConfig:
    """Pretrain a Swin Transformer on images without labels."""

    run: RunConfig
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    mutable: ClassVar[frozenset[str]] = MUTABLE
