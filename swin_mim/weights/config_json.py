"""config.json: what a published model says of itself, in a form that timm, transformers and we read.

One file: timm's keys (`architecture`, `model_args`, `pretrained_cfg`; transformers' timm wrapper reads the same ones)
and our own, `swin_mim`, from which everything else follows.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.weights.dense_heads import DENSE_PARTS, read_settings
from swin_mim.weights.heads import Target
from swin_mim.weights.json_values import (
    are_numbers,
    are_texts,
    check_limit,
    is_finite,
    is_int,
    is_number,
    read_object,
    read_size,
    read_stage_numbers,
    read_window_sizes,
    short,
)
from swin_mim.weights.layouts import Kind

_LOG = logging.getLogger(__name__)

Interpolation = Literal["bilinear", "bicubic"]

FORMAT = 1
SIZE_LIMIT = 4 << 20
"""Bytes of a config.json; names of 20,000 classes take a tenth of it."""
TIMM_NAMES: dict[int, dict[tuple[int, tuple[int, ...]], str]] = {
    1: {
        (96, (2, 2, 6, 2)): "swin_tiny_patch4_window7_224",
        (96, (2, 2, 18, 2)): "swin_small_patch4_window7_224",
        (128, (2, 2, 18, 2)): "swin_base_patch4_window7_224",
        (192, (2, 2, 18, 2)): "swin_large_patch4_window7_224",
    },
    2: {
        (96, (2, 2, 6, 2)): "swinv2_tiny_window8_256",
        (96, (2, 2, 18, 2)): "swinv2_small_window8_256",
        (128, (2, 2, 18, 2)): "swinv2_base_window8_256",
        (192, (2, 2, 18, 2)): "swinv2_large_window12_192",
    },
}
"""Entries of timm's registry by version, embed_dim and depths; the first of a version stands for all other sizes. Any
builds any network of its version: `model_args` override it all."""

_RATES = ("drop_rate", "drop_path_rate")
_OF_V2 = ("version", "pretrained_window_sizes", "extra_norm_period")
"""Fields of SwinConfig that the config.json of a V1 does not have."""


@dataclass(frozen=True)
class Preprocessing:
    """How images become the input of a model: values over the scale, less the mean, over the std, by channel."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: tuple[str, ...] | None = ("red", "green", "blue")
    """What the channels are; None where nobody said."""
    interpolation: Interpolation = "bilinear"
    """How images are resized."""
    crop_pct: float = 1.0
    """Side of the centred part of an image that the model sees, in its shorter side's; timm's word."""
    scale: float = 255
    """What the values of an image are divided by first: mean and std of 8-bit images are of values from 0 to 1. 1: they
    are in the units of the files."""
    nodata: float | None = None
    """Value of pixels that are not there, in images of a scale of 1; this and the next as in `ChannelSpec`."""
    mask_channel: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        if self.channels is not None:
            object.__setattr__(self, "channels", tuple(self.channels))
        if self.nodata is not None and math.isnan(self.nodata):  # which is no pixel anyway, and no number of JSON
            object.__setattr__(self, "nodata", None)
        counts = {len(values) for values in (self.mean, self.std, self.channels) if values is not None}
        if len(counts) > 1:
            raise UserError(
                f"preprocessing has {sorted(counts)} entries in mean, std and channels: give one per channel"
            )
        if not all(value > 0 for value in self.std):
            raise UserError(f"preprocessing.std {self.std} must be positive")
        if isinstance(self.scale, bool) or self.scale not in (1, 255):
            raise UserError(f"preprocessing.scale {self.scale!r} must be 255 for 8-bit images, else 1")
        if self.interpolation not in get_args(Interpolation) or not 0 < self.crop_pct <= 1:
            raise UserError(
                f"preprocessing has interpolation {short(self.interpolation)} and crop_pct {self.crop_pct}: expected "
                f"one of {', '.join(get_args(Interpolation))}, and a number above 0 and up to 1"
            )

    @classmethod
    def unknown(cls, channels: int) -> "Preprocessing":
        """Preprocessing of images that nobody described: values as they are."""
        return cls((0.0,) * channels, (1.0,) * channels, None)


@dataclass(frozen=True)
class Description:
    """A model as its config.json has it."""

    kind: Kind
    config: SwinConfig
    target: Target = "pixels"
    num_classes: int = 0
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    head: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the head of a model for a dense task: see `dense_heads.py`."""
    stage_weights: tuple[float, ...] = ()
    """Of a masked image model in which every stage predicts the target, the weights of their losses."""
    teacher_width: int = 0
    """Of one that predicts the features of a teacher too, how many these are."""

    def __post_init__(self) -> None:
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))


def read_document(path: Path) -> dict[str, Any]:
    """A config.json, whole.

    Raises:
        UserError: too large, not JSON, not an object, a key given twice.
    """
    try:
        size = path.stat().st_size
        if size > SIZE_LIMIT:
            raise UserError(f"{path} has {size} bytes: a config.json has at most {SIZE_LIMIT}")
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} holds a {type(document).__name__}: a config.json is an object")
    return document


def document(description: Description) -> dict[str, Any]:
    """The config.json of a model."""
    config, preprocessing = description.config, description.preprocessing
    dense = description.kind in DENSE_PARTS
    classes = 0 if dense else description.num_classes  # timm builds and loads a head of its own for so many
    labels = {"label_names": list(description.labels)} if description.labels else {}
    return {
        "architecture": timm_name(config),
        "num_classes": classes,
        "num_features": config.num_features,
        "global_pool": "avg",
        **({} if dense else labels),
        "model_args": timm_arguments(config),
        "pretrained_cfg": {
            "input_size": [config.in_channels, *as_pair(config.image_size)],
            "fixed_input_size": True,
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_pct,
            "crop_mode": "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": classes,
            "pool_size": list(config.stage_grid(config.num_stages - 1)),
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
            "custom_load": False,
        },
        "swin_mim": {
            "format": FORMAT,
            "model": description.kind,
            "config": _written(config),
            **({"target": description.target} if description.kind == "SimMIM" else {}),
            **({"stage_weights": list(description.stage_weights)} if description.stage_weights else {}),
            **({"teacher_width": description.teacher_width} if description.teacher_width else {}),
            **({"num_classes": description.num_classes, **labels, "head": dict(description.head)} if dense else {}),
            "channels": None if preprocessing.channels is None else list(preprocessing.channels),
            **_of_rasters(preprocessing),
        },
    }


def _written(config: SwinConfig) -> dict[str, Any]:
    """Its fields, without those that V1 does not have."""
    return {key: value for key, value in asdict(config).items() if config.version > 1 or key not in _OF_V2}


def _of_rasters(preprocessing: Preprocessing) -> dict[str, Any]:
    """What RGB images do not have, and their models do not say."""
    said = {"scale": preprocessing.scale, "nodata": preprocessing.nodata, "mask_channel": preprocessing.mask_channel}
    return {} if preprocessing.scale == 255 else said


def describe(document: Mapping[str, Any], where: str) -> Description:
    """The inverse of `document`; every value checked, and what timm reads must say the same as what we read.

    Raises:
        UserError: a key that is missing or of another type, a value that no network has, two parts that differ.
    """
    own = read_object(document, "swin_mim", where)
    if own.get("format") != FORMAT:
        raise UserError(
            f"{where}: swin_mim.format is {short(own.get('format'))}, this version reads {FORMAT}: upgrade swin_mim"
        )
    kind: Any = own.get("model")
    target: Any = own.get("target", "pixels")
    if kind not in get_args(Kind):
        raise UserError(f"{where}: swin_mim.model is {short(kind)}: expected one of {', '.join(get_args(Kind))}")
    if target not in get_args(Target):
        raise UserError(f"{where}: swin_mim.target is {short(target)}: expected one of {', '.join(get_args(Target))}")
    config = _checked_config(read_object(own, "config", f"{where}: swin_mim"), f"{where}: swin_mim.config")
    dense = kind in DENSE_PARTS
    classes = own if dense else document
    num_classes: Any = classes.get("num_classes")
    if not is_int(num_classes) or (dense or kind == "SwinClassifier") != (num_classes > 0):
        raise UserError(f"{where}: num_classes is {short(num_classes)}, which a {kind} cannot have")
    check_limit("num_classes", num_classes, where)
    _same_as_timm(document, config, where)
    return Description(
        kind,
        config,
        target,
        num_classes,
        _labels(classes.get("label_names"), num_classes, where),
        _preprocessing(document, own, config.in_channels, where),
        read_settings(kind, own, where),
        _stage_weights(own.get("stage_weights"), kind, config.num_stages, where),
        _teacher_width(own.get("teacher_width", 0), kind, where),
    )


def timm_name(config: SwinConfig) -> str:
    """The network's name in timm's registry; that of the smallest where it has no name of its own."""
    names = TIMM_NAMES[config.version]
    return names.get((config.embed_dim, config.depths), next(iter(names.values())))


def timm_arguments(config: SwinConfig) -> dict[str, Any]:
    """What timm's create_model is to build, whatever the name."""
    return {
        "img_size": list(as_pair(config.image_size)),
        "patch_size": config.patch_size,
        "in_chans": config.in_channels,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": list(as_pair(config.window_size)),
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        **({"pretrained_window_sizes": window_sides(config)} if config.version > 1 else {}),
    }


def window_sides(config: SwinConfig) -> list[int | list[int]]:
    """Pretrained windows as JSON has them: one number for a square."""
    pairs = map(as_pair, config.pretrained_window_sizes)
    return [height if height == width else [height, width] for height, width in pairs]


def _same_as_timm(document: Mapping[str, Any], config: SwinConfig, where: str) -> None:
    arguments = read_object(document, "model_args", where)
    for key, value in timm_arguments(config).items():
        if arguments.get(key) != value:
            raise UserError(
                f"{where}: model_args.{key} is {short(arguments.get(key))} and swin_mim.config says {value}: "
                "timm would build another network than we do; save the model again"
            )
    name = timm_name(config)
    if document.get("architecture") != name:
        raise UserError(f"{where}: architecture is {short(document.get('architecture'))}, not {name}")


def _checked_config(config: Mapping[str, Any], where: str) -> SwinConfig:
    """Types and bounds; what the values mean together is SwinConfig's to judge."""
    version = config.get("version", 1)
    if not is_int(version):
        raise UserError(f"{where}.version is {short(version)}: expected 1 or 2")
    wanted = {field.name for field in fields(SwinConfig) if version != 1 or field.name not in _OF_V2}
    for key in sorted(wanted ^ config.keys()):
        raise UserError(f"{where}.{key[:60]} is {'missing' if key in wanted else 'unknown'}")
    checked = dict(config)
    if version != 1:
        checked["pretrained_window_sizes"] = read_window_sizes(config["pretrained_window_sizes"], where)
        if not is_int(config["extra_norm_period"]) or config["extra_norm_period"] < 0:
            period = short(config["extra_norm_period"])
            raise UserError(f"{where}.extra_norm_period is {period}: expected a whole number of at least 0")
        check_limit("extra_norm_period", config["extra_norm_period"], where)
    for key in ("patch_size", "in_channels", "embed_dim"):
        if not is_int(config[key]) or config[key] < 1:
            raise UserError(f"{where}.{key} is {short(config[key])}: expected a positive whole number")
        check_limit(key, config[key], where)
    for key in ("image_size", "window_size"):
        checked[key] = read_size(config[key], key, where)
    for key in ("depths", "num_heads"):
        checked[key] = read_stage_numbers(config[key], key, where)
    for key in ("mlp_ratio", *_RATES):
        value = config[key]
        if not is_number(value) or value < 0:
            raise UserError(f"{where}.{key} is {short(value)}: expected a number of at least 0")
        checked[key] = float(value)
    check_limit("mlp_ratio", config["mlp_ratio"], where)
    if not isinstance(config["qkv_bias"], bool):
        raise UserError(f"{where}.qkv_bias is {short(config['qkv_bias'])}: expected true or false")
    try:
        return SwinConfig(**checked)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _labels(value: Any, num_classes: int, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not are_texts(value) or len(value) != num_classes:
        raise UserError(
            f"{where}: label_names is {short(value)}: expected {counted(num_classes, 'text')}, as num_classes says"
        )
    return tuple(value)


def _teacher_width(value: Any, kind: Kind, where: str) -> int:
    if not is_int(value) or value < 0 or (value and kind != "SimMIM"):
        raise UserError(f"{where}: swin_mim.teacher_width is {short(value)}: expected a number of features of a SimMIM")
    check_limit("teacher_width", value, where)
    return int(value)


def _stage_weights(value: Any, kind: Kind, stages: int, where: str) -> tuple[float, ...]:
    if value is None:
        return ()
    if kind != "SimMIM" or not are_numbers(value) or len(value) != stages or min(value) < 0 or value[-1] <= 0:
        raise UserError(
            f"{where}: swin_mim.stage_weights is {short(value)}: expected {counted(stages, 'number')} of at least 0, "
            "the last above it, of a SimMIM"
        )
    return tuple(map(float, value))


def _preprocessing(document: Mapping[str, Any], own: Mapping[str, Any], in_channels: int, where: str) -> Preprocessing:
    cfg = read_object(document, "pretrained_cfg", where)
    for key in ("mean", "std"):
        values: Any = cfg.get(key)
        if not are_numbers(values) or len(values) != in_channels:
            raise UserError(
                f"{where}: pretrained_cfg.{key} is {short(values)}: expected {counted(in_channels, 'number')}"
            )
    channels = own.get("channels")
    if channels is not None:
        if not are_texts(channels) or len(channels) != in_channels:
            raise UserError(f"{where}: swin_mim.channels is {short(channels)}: expected {counted(in_channels, 'name')}")
        channels = tuple(channels)
    scale: Any = own.get("scale", 255)
    nodata: Any = own.get("nodata")
    crop_pct: Any = cfg.get("crop_pct")
    interpolation, mask_channel = cfg.get("interpolation"), own.get("mask_channel")
    if not (nodata is None or is_finite(nodata)) or not (mask_channel is None or isinstance(mask_channel, str)):
        raise UserError(
            f"{where}: swin_mim has nodata {short(nodata)} and mask_channel {short(mask_channel)}: expected a number "
            "and a text, or null"
        )
    if not is_number(scale):
        raise UserError(f"{where}: swin_mim.scale is {short(scale)}: expected a number")
    if not isinstance(interpolation, str) or not is_number(crop_pct):
        raise UserError(
            f"{where}: pretrained_cfg has interpolation {short(interpolation)} and crop_pct {short(crop_pct)}: "
            "expected a text and a number"
        )
    try:
        mean, std = (tuple(map(float, cfg[key])) for key in ("mean", "std"))
        taken: Any = interpolation
        return Preprocessing(mean, std, channels, taken, float(crop_pct), scale, nodata, mask_channel)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return result
