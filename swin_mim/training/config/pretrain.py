"""Settings of a pretraining run: plain values in sections. The defaults are SimMIM's at 100 epochs.

The text under a setting is its `--help`.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from swin_mim.training.config.durations import LearningRateSchedule


@dataclass(frozen=True)
class RunConfig:
    """Place and randomness of the run."""

    name: str
    """Folder of the run inside run.root. A run of the same name is continued. Without a config that names it, it is
    named after data.source."""
    root: str = "runs"
    """Folder that holds all runs."""
    seed: int = 0
    """Seed of the order of the images, of crops, masks and new weights."""


@dataclass(frozen=True)
class ImagesConfig:
    """Source of the images, and how they are read."""

    source: str = "blue_marble"
    """Folder of images (any depth, no labels), data set on the Hugging Face Hub, or blue_marble."""
    config: str | None = None
    """Configuration of a Hub data set with several."""
    split: str = "train"
    """Split of a Hub data set."""
    column: str | None = None
    """Column of the images; None takes the only image column. Of streamed tars the suffix; '*' takes every image."""
    channels: tuple[str, ...] | None = None
    """Channels to read, by name or by number from 1, in the model's order; images then keep the values of their files.
    None reads every image as RGB, or all channels where model.in_channels is not 3."""
    stack: str | None = None
    """Pattern of the file names where each channel of an image is a file, such as {image}_{channel}.tif."""
    nodata: float | None = None
    """Value of missing pixels, in images other than RGB; None takes what the files say. NaN always means missing."""
    mask_channel: str | None = None
    """Channel that is 0 where a pixel is missing, by name or number, in images other than RGB."""
    max_pixels: int = 67_108_864
    """Max pixels of an image, width x height; larger ones count as broken. Decoding takes up to 30 bytes of memory a
    pixel, in every worker."""
    color_profile: Literal["convert", "ignore"] = "convert"
    """Treatment of RGB images with an ICC profile: converted to sRGB, or read as if they were sRGB."""
    exclude: str | None = None
    """Text file of names of images to leave out of data.source, one a line, as swin-mim embed writes them."""
    workers: int | Literal["auto"] = "auto"
    """Processes that decode images, per training process; 0 decodes in the training process. auto is this process's
    share of the cores less one: up to 32 beside a GPU, up to 4 on a CPU, fewer where /dev/shm does not hold their
    batches, and 0 for blue_marble. The images of a run are the same with any number."""
    max_broken: float = 0.01
    """Max fraction of undecodable images; above it the run stops."""


@dataclass(frozen=True)
class DataConfig(ImagesConfig):
    """Images and their preprocessing."""

    streaming: bool = False
    """Read the source shard by shard through a cache, for sources larger than the disk: parquet or tar files of a Hub
    data set, of a folder, or at URLs such as https://host/train-{000..127}.tar or s3://bucket/*.parquet."""
    shards_at_once: int = 4
    """Number of shards whose images are mixed, with data.streaming; as many are prefetched."""
    cache: str | None = None
    """Folder for the shards of data.streaming, which runs may share; None is ~/.cache/swin_mim/shards."""
    cache_gb: float = 20.0
    """Max size of that folder, in units of 10^9 bytes."""
    heldout: int = 256
    """Images held out of training for evaluation; at most a tenth of the source."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel: for RGB of values from 0 to 1, else in the units of the files. ImageNet's."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, in the same units. ImageNet's."""
    crop_scale: tuple[float, float] = (0.67, 1.0)
    """Min and max area of a random crop, as a fraction of the image's."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Min and max aspect ratio (width / height) of a random crop, relative to that of model.image_size."""
    flips: Literal["none", "horizontal", "both", "dihedral"] = "horizontal"
    """Random flips: left to right, also top to bottom, or also with quarter turns (dihedral; square images only), for
    pictures without up and down."""


@dataclass(frozen=True)
class ModelConfig:
    """Encoder."""

    name: str = "swin_base"
    """Named size: swin_nano, swin_tiny, swin_small, swin_base or swin_large; of V2 swinv2_nano to swinv2_large,
    swinv2_huge and swinv2_giant."""
    image_size: tuple[int, ...] = (192,)
    """Size in pixels, one number or height and width; a multiple of mask.unit."""
    patch_size: int = 4
    """Side of a token in pixels."""
    in_channels: int = 3
    """Channels of an image; 3 without data.channels means RGB."""
    window_size: tuple[int, ...] = (6,)
    """Size of an attention window in tokens, one number or height and width."""
    embed_dim: int | None = None
    """Channels of the first stage; None takes the named size's."""
    depths: tuple[int, ...] | None = None
    """Blocks of each stage; None takes the named size's."""
    num_heads: tuple[int, ...] | None = None
    """Attention heads of each stage; None takes the named size's."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, decreasing linearly to 0 at the first. Drawn per micro batch."""
    target: Literal["pixels", "normalized", "hog"] = "pixels"
    """Prediction target: pixels, pixels normalised over the window of 47 around each, or histograms of oriented
    gradients of squares of 8 pixels, beside which the decoder learns pixels, for pictures, without the encoder."""
    supervise: Literal["last", "stages"] = "last"
    """Stages whose output predicts the target: the last, or each with a head of its own at its own stride."""
    stage_weights: tuple[float, ...] | None = None
    """Weights of the losses of the stages, with model.supervise stages; None takes their mean."""
    pretrained: str | None = None
    """Weights to start from: a run, an export, a checkpoint, a weight file that swin-mim convert reads (.safetensors
    or .pth), or a repository "user/name" on the Hub. Bias tables are resized to this model's windows; a missing decoder
    is initialised."""


@dataclass(frozen=True)
class TeacherConfig:
    """A frozen network whose features are predicted besides the pixels."""

    model: str | None = None
    """Its weights: a Swin as in model.pretrained, or timm: and a name that timm has pretrained weights of. It sees
    whole images; the stage before the last is to predict the mean of its features there, by their cosine."""
    weight: float = 1.0
    """Weight of the loss of the features, 1 less the cosine."""
    channels: tuple[str, ...] | None = None
    """Channels that the teacher sees, in its order, by name or number; None takes those that it names."""


@dataclass(frozen=True)
class MaskConfig:
    """Masks."""

    unit: int = 32
    """Side of a unit, the square that is masked as one, in pixels; a multiple of model.patch_size."""
    ratio: float = 0.6
    """Fraction of the units that is masked, rounded up to whole units."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning rate. Rates are given for 512 images and scaled by train.global_batch / 512."""

    base_lr: float = 2e-4
    """Learning rate after the warm-up, per 512 images."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step, per 512 images."""
    min_lr: float = 1e-5
    """Learning rate at the end of cosine and poly, per 512 images."""
    warmup: str = "10 epochs"
    """Duration of the linear warm-up from warmup_lr to base_lr."""
    schedule: LearningRateSchedule = "cosine"
    """Shape of the learning rate after the warm-up."""
    milestones: tuple[str, ...] = ()
    """Durations from the start after which multistep multiplies the learning rate by gamma."""
    gamma: float = 0.1
    """Factor of each milestone."""
    power: float = 1.0
    """Exponent of poly, which falls by the part of the run that is left; 1 is a straight line."""
    weight_decay: float = 0.05
    """Weight decay of matrices and convolutions; biases, norms, bias tables and the mask token have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moving averages."""
    eps: float = 1e-8
    """Constant in AdamW's denominator."""
    clip_norm: float = 5.0
    """Max norm of all gradients together; larger ones are scaled down to it."""


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and precision. Durations are "100 epochs", "500 steps" or "2e6 images"."""

    duration: str = "100 epochs"
    """Length of the whole run. A longer one extends a run that has ended, with a warm restart of the schedule."""
    extended: tuple[str, ...] = ()
    """Lengths that the run had before it was extended, each of which ended it; the run fills them in by itself."""
    global_batch: int = 2048
    """Images per step, over all processes and accumulation."""
    micro_batch: int = 128
    """Images per forward pass on one process; gradients are accumulated up to global_batch."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of forward and backward; auto is bf16 where the device has it, else fp32."""
    attention: Literal["auto", "reference", "sdpa", "chunked", "native", "triton"] = "auto"
    """Implementation of the window attention; auto is the fused kernel on CUDA, if it works there, and on a CPU native,
    which is compiled at first use, or chunked where that fails. The first line of a run names it."""
    fsdp: bool = False
    """Shard weights, gradients and moments over the processes with FSDP2, which saves memory, most together with
    train.activation_checkpointing. Checkpoints are the same with and without."""
    threads: int = 0
    """CPU threads per process; 0 divides the cores among the processes of this machine."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the model with torch.compile in the first step, for training alone; auto does so on a GPU on which
    train.attention auto takes the fused kernel."""
    activation_checkpointing: bool = False
    """Recompute the blocks in the backward pass: less memory, a third more arithmetic."""
    stop_after: str = "0 steps"
    """Stop with a checkpoint and exit code 0 after this much of the run; 0 runs to the end."""


@dataclass(frozen=True)
class LogConfig:
    """Metrics and pictures of a run. A duration of 0 means never."""

    every: str = "50 steps"
    """Interval between two lines of metrics."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers of accelerate, besides metrics.jsonl: tensorboard, wandb, mlflow, ..."""
    evaluate_every: str = "1 epoch"
    """Interval between two evaluations on the held-out images, always under the same masks."""
    pictures_every: str = "10 epochs"
    """Interval between two pictures of reconstructions."""
    pictures: int = 8
    """Number of held-out images in such a picture."""
    picture_channels: tuple[str, ...] | None = None
    """Channels to show as red, green and blue, or one as grey, by name or number; None takes the visible ones if their
    names say so, else the first."""
    report: bool = True
    """Write report.html of the run's folder at every evaluation and at the end: a page of all that the run shows."""


@dataclass(frozen=True)
class SaveConfig:
    """Checkpoints."""

    every: str = "1 epoch"
    """Interval between two checkpoints; the last step has one too."""
    keep: int = 2
    """Number of newest checkpoints to keep; at least 2, as the last one may still be written."""
    keep_every: int = 0
    """Keep every n-th checkpoint besides the newest ones, as long as this and save.every stay the same; 0 keeps
    none."""


@dataclass(frozen=True)
class HubConfig:
    """Publishing on the Hugging Face Hub. Every finished run has the same files in export/ of its folder."""

    repo: str | None = None
    """Repository "user/name" to push to at the end; write access is checked before the first step."""
    private: bool = True
    """Make a new repository private."""
    every: int = 0
    """Push after every n-th checkpoint too; 0 pushes at the end only."""
    transformers: bool = False
    """Add a copy for the Swin classes of transformers, in a subfolder."""
    license: str | None = None
    """License of the weights for the card, such as apache-2.0 or cc-by-4.0."""


@dataclass(frozen=True)
class ProbeConfig:
    """Probes of the encoder on labelled images during training: k-NN and a linear probe of every stage, beside those of
    an encoder with random weights. The k-NN of the last stage under-rates masked image modelling."""

    every: str = "0 steps"
    """Interval between two probes; 0 means never."""
    first: str = "0 steps"
    """First of the early probes, at this step, at twice as many, four times and so on, besides those of probe.every;
    0 means none."""
    source: str | None = None
    """Folder with one folder per class, or data set; None takes data.source. Channels and missing pixels of images
    other than RGB are as in data."""
    stack: str | None = None
    """Pattern of the file names of probe.source, as data.stack."""
    split: str = "train"
    """Split of a Hub data set to learn from."""
    label_column: str | None = None
    """Column of the labels; None takes the only column of classes."""
    validation: str | None = None
    """Source to test the probes on; None takes a tenth of the images."""
    validation_split: str | None = None
    """Split of a Hub data set to test the probes on."""
    images: int = 2000
    """Max number of images to learn from, the same number of each class."""


MUTABLE = frozenset(
    {
        "run.root",
        # Whether the images are still the same is told by their fingerprint, which every checkpoint holds.
        "data.source",
        "data.config",
        "data.split",
        "data.column",
        "data.stack",
        "data.exclude",
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
        "log.report",
        "save.every",
        "save.keep",
        "save.keep_every",
        "probe.every",
        "probe.first",
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
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    mutable: ClassVar[frozenset[str]] = MUTABLE
