"""config.json: what a published model says of itself, in a form that timm, transformers and we read.

One file: timm's keys (`architecture`, `model_args`, `pretrained_cfg`; transformers' timm wrapper reads the same ones)
and our own, `swin_mim`, from which everything else follows.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.weights.layouts import Kind

_LOG = logging.getLogger(__name__)

Target = Literal["pixels", "normalized"]
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
TRANSFORMERS_NAMES = {1: ("swin", "Swin"), 2: ("swinv2", "Swinv2")}
"""Version -> model_type, and what the names of the classes begin with."""

_LARGEST = {
    "image_size": 1 << 16,
    "patch_size": 1 << 10,
    "in_channels": 1 << 12,
    "embed_dim": 1 << 14,
    "depths": 1 << 10,
    "num_heads": 1 << 12,
    "window_size": 1 << 10,
    "pretrained_window_sizes": 1 << 10,
    "extra_norm_period": 1 << 10,
    "mlp_ratio": 64,
    "num_classes": 1 << 20,
}
_ONE_FUNCTION = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "use_absolute_embeddings": False}
"""What transformers lets one choose, and we do not."""
_TIMM_ARGUMENTS = {
    *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depths", "num_heads"),
    *("window_size", "mlp_ratio", "qkv_bias", "drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    *("strict_img_size", "weight_init", "pretrained_window_sizes"),
}
"""Arguments of timm's Swin that its tensors tell, or that decide nothing about its outputs."""
_RATES = ("drop_rate", "drop_path_rate")
_OF_V2 = ("version", "pretrained_window_sizes", "extra_norm_period")
"""Fields of SwinConfig that the config.json of a V1 does not have."""
_STAGES = 16
_TIMM_V2 = re.compile(r"swinv2_[a-z]+_window(?:(\d{1,3})to)?(\d{1,3})_(?:(\d{1,4})to)?(\d{1,4})(?:\..*)?")
"""Names in timm's registry: windows of the pretraining and now, images of the pretraining and now."""


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
                f"preprocessing has interpolation {_short(self.interpolation)} and crop_pct {self.crop_pct}: expected "
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
    return {
        "architecture": timm_name(config),
        "num_classes": description.num_classes,
        "num_features": config.num_features,
        "global_pool": "avg",
        **({"label_names": list(description.labels)} if description.labels else {}),
        "model_args": timm_arguments(config),
        "pretrained_cfg": {
            "input_size": [config.in_channels, *as_pair(config.image_size)],
            "fixed_input_size": True,
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_pct,
            "crop_mode": "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": description.num_classes,
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
    own = _section(document, "swin_mim", where)
    if own.get("format") != FORMAT:
        raise UserError(
            f"{where}: swin_mim.format is {_short(own.get('format'))}, this version reads {FORMAT}: upgrade swin_mim"
        )
    kind: Any = own.get("model")
    target: Any = own.get("target", "pixels")
    if kind not in get_args(Kind):
        raise UserError(f"{where}: swin_mim.model is {_short(kind)}: expected one of {', '.join(get_args(Kind))}")
    if target not in get_args(Target):
        raise UserError(f"{where}: swin_mim.target is {_short(target)}: expected one of {', '.join(get_args(Target))}")
    config = _checked_config(_section(own, "config", f"{where}: swin_mim"), f"{where}: swin_mim.config")
    num_classes: Any = document.get("num_classes")
    if not _is_int(num_classes) or (kind == "SwinClassifier") != (num_classes > 0):
        raise UserError(f"{where}: num_classes is {_short(num_classes)}, which a {kind} cannot have")
    _limit("num_classes", num_classes, where)
    _same_as_timm(document, config, where)
    return Description(
        kind,
        config,
        target,
        num_classes,
        _labels(document.get("label_names"), num_classes, where),
        _preprocessing(document, own, config.in_channels, where),
    )


def hints(document: Mapping[str, Any], where: str, *, processor: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the files of timm or transformers say that their weights do not: image size, labels, normalisation.

    Args:
        document: config.json.
        processor: transformers' preprocessor_config.json.

    Returns:
        image_size, window_size, pretrained_window_sizes, labels, mean, std, scale, interpolation and crop_pct, each
        only where it is given.
    """
    _check_function(document, where)
    if document.get("model_type") in [name for name, _ in TRANSFORMERS_NAMES.values()]:
        names = document.get("id2label")
        if isinstance(names, dict):
            names = [names.get(str(i)) for i in range(len(names))]
        sizes = ("image_size", "window_size", "pretrained_window_sizes")
        found = {"labels": names} | {key: document.get(key) for key in sizes}
    else:
        arguments, cfg = (document.get(key) or {} for key in ("model_args", "pretrained_cfg"))
        if not isinstance(arguments, dict) or not isinstance(cfg, dict):
            raise UserError(f"{where}: model_args and pretrained_cfg must be objects")
        size = cfg.get("input_size")
        named = _said_by_name(document.get("architecture"))
        found = {
            "image_size": arguments.get("img_size", size[1:] if isinstance(size, list) else named.get("image_size")),
            "window_size": arguments.get("window_size", named.get("window_size")),
            "pretrained_window_sizes": arguments.get("pretrained_window_sizes", named.get("pretrained_window_sizes")),
            "labels": document.get("label_names"),
            "mean": cfg.get("mean"),
            "std": cfg.get("std"),
            "interpolation": cfg.get("interpolation"),
            "crop_pct": cfg.get("crop_pct"),
        }
    if processor is not None:
        found |= _rescaled_by(processor, where)
        if processor.get("do_normalize", True):
            found |= {"mean": processor.get("image_mean"), "std": processor.get("image_std")}
        else:
            found |= {"mean": [0.0] * 3, "std": [1.0] * 3}
        found |= _resized_by(processor)
    found = {key: value for key, value in found.items() if value is not None}
    for key in found.keys() & {"image_size", "window_size"}:
        height, width = as_pair(_size(found[key], key, where))
        found[key] = height if height == width else (height, width)
    if "pretrained_window_sizes" in found:
        found["pretrained_window_sizes"] = _window_sizes(found["pretrained_window_sizes"], where)
    for key in found.keys() & {"mean", "std"}:
        if not _are_numbers(found[key]):
            raise UserError(f"{where}: {key} is {_short(found[key])}: expected a list of numbers")
    if not _are_texts(found.get("labels", [])):
        raise UserError(f"{where}: the names of the classes are {_short(found['labels'])}: expected texts")
    return found


def _said_by_name(architecture: Any) -> dict[str, Any]:
    """What the name of a Swin V2 in timm's registry says: timm's own repositories say it nowhere else."""
    match = _TIMM_V2.fullmatch(architecture) if isinstance(architecture, str) else None
    if match is None:
        return {}
    before, window, size_before, size = (number and int(number) for number in match.groups())
    found = {"image_size": size, "window_size": window}
    if before and size_before:
        grids = [size_before // 4 // 2**stage for stage in range(4)]
        found["pretrained_window_sizes"] = [min(before, grid) for grid in grids]
    return found


def _check_function(document: Mapping[str, Any], where: str) -> None:
    """Refuse settings of timm and transformers with which the same weights compute something else."""
    for key, ours in _ONE_FUNCTION.items():
        if document.get(key, ours) != ours:
            raise UserError(f"{where}: {key} is {_short(document[key])}, and swin_mim has {ours!r} only")
    arguments = document.get("model_args")
    for key in arguments if isinstance(arguments, dict) else ():
        if key not in _TIMM_ARGUMENTS:
            raise UserError(f"{where}: model_args has {key[:60]}, which swin_mim does not know")


def transformers_documents(description: Description) -> dict[str, dict[str, Any]]:
    """File name -> content, of the native copy for transformers: config.json and preprocessor_config.json."""
    config, preprocessing = description.config, description.preprocessing
    height, width = as_pair(config.image_size)
    native: dict[str, Any] = {
        "architectures": [transformers_class(description)],
        "model_type": TRANSFORMERS_NAMES[config.version][0],
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_channels": config.in_channels,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.stage_window(0)[0],  # it builds tables of this size even for smaller grids
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.drop_rate,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": config.drop_path_rate,
        "use_absolute_embeddings": False,
        "layer_norm_eps": 1e-5,
        "encoder_stride": config.stride,
        **({"pretrained_window_sizes": _sides(config)} if config.version > 1 else {}),
    }
    if description.num_classes:
        labels = description.labels or tuple(f"LABEL_{i}" for i in range(description.num_classes))
        native["id2label"] = {str(i): label for i, label in enumerate(labels)}
        if len(set(labels)) == len(labels):
            native["label2id"] = {label: i for i, label in enumerate(labels)}
    processor = {
        **_resizing(height, width, preprocessing.crop_pct),
        "do_resize": True,
        "resample": {"bilinear": 2, "bicubic": 3}[preprocessing.interpolation],  # as PIL numbers them
        "do_rescale": preprocessing.scale != 1,
        "rescale_factor": 1 / preprocessing.scale,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    return {"config.json": native, "preprocessor_config.json": processor}


def transformers_class(description: Description) -> str:
    """The name of transformers' own class for a model."""
    _, name = TRANSFORMERS_NAMES[description.config.version]
    classes = {"Swin": "Model", "SimMIM": "ForMaskedImageModeling", "SwinClassifier": "ForImageClassification"}
    return f"{name}{classes[description.kind]}"


def _rescaled_by(processor: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The scale of transformers' processor, unless it is the usual one."""
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
    if factor not in (1, 1 / 255):
        raise UserError(
            f"{where}: rescale_factor is {_short(factor)}: expected 1/255, for mean and std of values from 0 to 1, or 1"
        )
    return {"scale": 1.0} if factor == 1 else {}


def _resized_by(processor: Mapping[str, Any]) -> dict[str, Any]:
    """interpolation and crop_pct of transformers' processor, as far as it says them in a way that we know."""
    found: dict[str, Any] = {}
    resample = {2: "bilinear", 3: "bicubic"}.get(processor.get("resample"))  # type: ignore[arg-type]
    if resample:
        found["interpolation"] = resample
    size, crop = processor.get("size"), processor.get("crop_size")
    if processor.get("do_center_crop") is True and isinstance(size, dict) and isinstance(crop, dict):
        edge, side = size.get("shortest_edge"), crop.get("height")
        if isinstance(edge, int) and isinstance(side, int) and 0 < side <= edge:
            found["crop_pct"] = side / edge
    return found


def _resizing(height: int, width: int, crop_pct: float) -> dict[str, Any]:
    """How transformers gets from an image to the model's size. It can cut out a part of square images only."""
    if crop_pct != 1 and height != width:
        _LOG.warning(
            "the model sees the middle %.3g of an image of %d x %d: transformers' processor cannot do that where sides "
            "differ, and will show it the whole",
            *(crop_pct, height, width),
        )
    if crop_pct == 1 or height != width:
        return {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": round(height / crop_pct)},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
    }


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
        **({"pretrained_window_sizes": _sides(config)} if config.version > 1 else {}),
    }


def _sides(config: SwinConfig) -> list[int | list[int]]:
    """Pretrained windows as JSON has them: one number for a square."""
    pairs = map(as_pair, config.pretrained_window_sizes)
    return [height if height == width else [height, width] for height, width in pairs]


def _same_as_timm(document: Mapping[str, Any], config: SwinConfig, where: str) -> None:
    arguments = _section(document, "model_args", where)
    for key, value in timm_arguments(config).items():
        if arguments.get(key) != value:
            raise UserError(
                f"{where}: model_args.{key} is {_short(arguments.get(key))} and swin_mim.config says {value}: "
                "timm would build another network than we do; save the model again"
            )
    name = timm_name(config)
    if document.get("architecture") != name:
        raise UserError(f"{where}: architecture is {_short(document.get('architecture'))}, not {name}")


def _checked_config(config: Mapping[str, Any], where: str) -> SwinConfig:
    """Types and bounds; what the values mean together is SwinConfig's to judge."""
    version = config.get("version", 1)
    if not _is_int(version):
        raise UserError(f"{where}.version is {_short(version)}: expected 1 or 2")
    wanted = {field.name for field in fields(SwinConfig) if version != 1 or field.name not in _OF_V2}
    for key in sorted(wanted ^ config.keys()):
        raise UserError(f"{where}.{key[:60]} is {'missing' if key in wanted else 'unknown'}")
    checked = dict(config)
    if version != 1:
        checked["pretrained_window_sizes"] = _window_sizes(config["pretrained_window_sizes"], where)
        if not _is_int(config["extra_norm_period"]) or config["extra_norm_period"] < 0:
            period = _short(config["extra_norm_period"])
            raise UserError(f"{where}.extra_norm_period is {period}: expected a whole number of at least 0")
        _limit("extra_norm_period", config["extra_norm_period"], where)
    for key in ("patch_size", "in_channels", "embed_dim"):
        if not _is_int(config[key]) or config[key] < 1:
            raise UserError(f"{where}.{key} is {_short(config[key])}: expected a positive whole number")
        _limit(key, config[key], where)
    for key in ("image_size", "window_size"):
        checked[key] = _size(config[key], key, where)
    for key in ("depths", "num_heads"):
        checked[key] = _stage_numbers(config[key], key, where)
    for key in ("mlp_ratio", *_RATES):
        value = config[key]
        if not _is_number(value) or value < 0:
            raise UserError(f"{where}.{key} is {_short(value)}: expected a number of at least 0")
        checked[key] = float(value)
    _limit("mlp_ratio", config["mlp_ratio"], where)
    if not isinstance(config["qkv_bias"], bool):
        raise UserError(f"{where}.qkv_bias is {_short(config['qkv_bias'])}: expected true or false")
    try:
        return SwinConfig(**checked)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _stage_numbers(value: Any, key: str, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= _STAGES or not all(_is_int(n) and n > 0 for n in value):
        raise UserError(f"{where}.{key} is {_short(value)}: expected a list of 1 to {_STAGES} positive whole numbers")
    _limit(key, max(value), where)
    return tuple(value)


def _window_sizes(value: Any, where: str) -> tuple[int | tuple[int, int], ...]:
    """Of each stage one number or two; 0 where it is the stage's own."""
    key, sizes = "pretrained_window_sizes", value if isinstance(value, list) else []
    pairs = [size if isinstance(size, list) else [size] for size in sizes]
    whole = all(len(pair) in (1, 2) and all(_is_int(side) and side >= 0 for side in pair) for pair in pairs)
    if not 1 <= len(pairs) <= _STAGES or not whole:
        raise UserError(
            f"{where}.{key} is {_short(value)}: expected a list of 1 to {_STAGES} whole numbers or lists of two"
        )
    _limit(key, max(map(max, pairs)), where)
    return tuple(tuple(size) if isinstance(size, list) else size for size in sizes)


def _size(value: Any, key: str, where: str) -> int | tuple[int, int]:
    sides = value if isinstance(value, list) else [value]
    if len(sides) not in (1, 2) or not all(_is_int(side) and side > 0 for side in sides):
        raise UserError(f"{where}.{key} is {_short(value)}: expected a positive whole number or a list of two")
    _limit(key, max(sides), where)
    return value if _is_int(value) else tuple(value)


def _limit(key: str, value: float, where: str) -> None:
    if value > _LARGEST[key]:
        raise UserError(f"{where}.{key} is {_short(value)}: no network has more than {_LARGEST[key]}")


def _labels(value: Any, num_classes: int, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not _are_texts(value) or len(value) != num_classes:
        raise UserError(
            f"{where}: label_names is {_short(value)}: expected {counted(num_classes, 'text')}, as num_classes says"
        )
    return tuple(value)


def _preprocessing(document: Mapping[str, Any], own: Mapping[str, Any], in_channels: int, where: str) -> Preprocessing:
    cfg = _section(document, "pretrained_cfg", where)
    for key in ("mean", "std"):
        values: Any = cfg.get(key)
        if not _are_numbers(values) or len(values) != in_channels:
            raise UserError(
                f"{where}: pretrained_cfg.{key} is {_short(values)}: expected {counted(in_channels, 'number')}"
            )
    channels = own.get("channels")
    if channels is not None:
        if not _are_texts(channels) or len(channels) != in_channels:
            raise UserError(
                f"{where}: swin_mim.channels is {_short(channels)}: expected {counted(in_channels, 'name')}"
            )
        channels = tuple(channels)
    scale: Any = own.get("scale", 255)
    nodata: Any = own.get("nodata")
    crop_pct: Any = cfg.get("crop_pct")
    interpolation, mask_channel = cfg.get("interpolation"), own.get("mask_channel")
    if not (nodata is None or _is_number(nodata)) or not (mask_channel is None or isinstance(mask_channel, str)):
        raise UserError(
            f"{where}: swin_mim has nodata {_short(nodata)} and mask_channel {_short(mask_channel)}: expected a number "
            "and a text, or null"
        )
    if not _is_number(scale):
        raise UserError(f"{where}: swin_mim.scale is {_short(scale)}: expected a number")
    if not isinstance(interpolation, str) or not _is_number(crop_pct):
        raise UserError(
            f"{where}: pretrained_cfg has interpolation {_short(interpolation)} and crop_pct {_short(crop_pct)}: "
            "expected a text and a number"
        )
    try:
        mean, std = (tuple(map(float, cfg[key])) for key in ("mean", "std"))
        taken: Any = interpolation
        return Preprocessing(mean, std, channels, taken, float(crop_pct), scale, nodata, mask_channel)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _section(mapping: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    section = mapping.get(key)
    if not isinstance(section, dict):
        raise UserError(f"{where}: {key} is {_short(section)}: expected an object")
    return section


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return result


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float holds; NaN, for which no comparison holds, is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e30 < value < 1e30


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(text, str) for text in values)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
