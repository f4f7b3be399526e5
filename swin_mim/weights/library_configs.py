"""What config files of timm and transformers say of their weights, and those that transformers' own classes need."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.errors import UserError
from swin_mim.weights.config_json import Description, window_sides
from swin_mim.weights.dense_heads import is_upernet
from swin_mim.weights.json_values import are_numbers, are_texts, is_number, read_size, read_window_sizes, short

_LOG = logging.getLogger(__name__)

TRANSFORMERS_NAMES = {1: ("swin", "Swin"), 2: ("swinv2", "Swinv2")}
"""Version -> model_type, and what the names of the classes begin with."""
_ONE_FUNCTION = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "use_absolute_embeddings": False}
"""What transformers lets one choose, and we do not."""
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""transformers' numbers, which are PIL's, and our words."""
_TIMM_ARGUMENTS = {
    *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depths", "num_heads"),
    *("window_size", "mlp_ratio", "qkv_bias", "drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    *("strict_img_size", "weight_init", "pretrained_window_sizes"),
}
"""Arguments of timm's Swin that its tensors tell, or that decide nothing about its outputs."""
_TIMM_V2 = re.compile(r"swinv2_[a-z]+_window(?:(\d{1,3})to)?(\d{1,3})_(?:(\d{1,4})to)?(\d{1,4})(?:\..*)?")
"""Names in timm's registry: windows of the pretraining and now, images of the pretraining and now."""


def hints(document: Mapping[str, Any], where: str, *, processor: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the files of timm or transformers say that their weights do not: image size, labels, normalisation.

    Args:
        document: config.json.
        processor: transformers' preprocessor_config.json.

    Returns:
        image_size, window_size, pretrained_window_sizes, labels, mean, std, scale, interpolation and crop_pct, each
        only where it is given.
    """
    if is_upernet(document):
        document = {**document["backbone_config"], "id2label": document.get("id2label")}
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
        found |= _resized_by(processor, where)
    found = {key: value for key, value in found.items() if value is not None}
    for key in found.keys() & {"image_size", "window_size"}:
        height, width = as_pair(read_size(found[key], key, where))
        found[key] = height if height == width else (height, width)
    if "pretrained_window_sizes" in found:
        found["pretrained_window_sizes"] = read_window_sizes(found["pretrained_window_sizes"], where)
    for key in found.keys() & {"mean", "std"}:
        if not are_numbers(found[key]):
            raise UserError(f"{where}: {key} is {short(found[key])}: expected a list of numbers")
    _take_nearest(found, where)
    if not are_texts(found.get("labels", [])):
        raise UserError(f"{where}: the names of the classes are {short(found['labels'])}: expected texts")
    return found


def transformers_documents(description: Description) -> dict[str, dict[str, Any]]:
    """File name -> content, of the native copy for transformers: config.json and preprocessor_config.json."""
    native = {"architectures": [transformers_class(description)], **_network(description.config)}
    resizing = _resizing
    if description.kind == "SwinSegmenter":
        native, resizing = _upernet(description), _whole
    if description.num_classes:
        labels = description.labels or tuple(f"LABEL_{i}" for i in range(description.num_classes))
        native["id2label"] = {str(i): label for i, label in enumerate(labels)}
        if len(set(labels)) == len(labels):
            native["label2id"] = {label: i for i, label in enumerate(labels)}
    preprocessing = description.preprocessing
    processor = {
        **resizing(*as_pair(description.config.image_size), preprocessing.crop_pct),
        "do_convert_rgb": description.config.in_channels == 3,
        "do_resize": True,
        "resample": next(key for key, value in _RESAMPLE.items() if value == preprocessing.interpolation),
        "do_rescale": preprocessing.scale != 1,
        "rescale_factor": 1 / preprocessing.scale,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    return {"config.json": native, "preprocessor_config.json": processor}


def _network(config: SwinConfig) -> dict[str, Any]:
    """transformers' settings of a Swin."""
    height, width = as_pair(config.image_size)
    return {
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
        **({"pretrained_window_sizes": window_sides(config)} if config.version > 1 else {}),
    }


def _upernet(description: Description) -> dict[str, Any]:
    """transformers' settings of an UperNet."""
    config = description.config
    stages = [f"stage{stage + 1}" for stage in range(config.num_stages)]
    return {
        "architectures": [transformers_class(description)],
        "model_type": "upernet",
        "backbone_config": {**_network(config), "out_features": stages},
        "hidden_size": description.head["channels"],
        "pool_scales": [1, 2, 3, 6],
        "use_auxiliary_head": True,
        "auxiliary_loss_weight": 0.4,
        "auxiliary_in_channels": config.stage_dim(2),
        "auxiliary_channels": 256,
        "auxiliary_num_convs": 1,
        "auxiliary_concat_input": False,
        "loss_ignore_index": 255,
    }


def transformers_class(description: Description) -> str:
    """The name of transformers' own class for a model."""
    _, name = TRANSFORMERS_NAMES[description.config.version]
    if description.kind == "SwinSegmenter":
        return "UperNetForSemanticSegmentation"
    classes = {"Swin": "Model", "SimMIM": "ForMaskedImageModeling", "SwinClassifier": "ForImageClassification"}
    return f"{name}{classes.get(description.kind, 'Model')}"


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
            raise UserError(f"{where}: {key} is {short(document[key])}, and swin_mim has {ours!r} only")
    arguments = document.get("model_args")
    for key in arguments if isinstance(arguments, dict) else ():
        if key not in _TIMM_ARGUMENTS:
            raise UserError(f"{where}: model_args has {key[:60]}, which swin_mim does not know")


def _rescaled_by(processor: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The scale of transformers' processor, unless it is the usual one."""
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
    if factor not in (1, 1 / 255):
        raise UserError(
            f"{where}: rescale_factor is {short(factor)}: expected 1/255, for mean and std of values from 0 to 1, or 1"
        )
    return {"scale": 1.0} if factor == 1 else {}


def _take_nearest(found: dict[str, Any], where: str) -> None:
    """Of ways to resize that timm has and we do not, what comes nearest, in place and with a warning.

    Raises:
        UserError: they are no text and no number above 0.
    """
    interpolation, crop_pct = found.get("interpolation", "bicubic"), found.get("crop_pct", 1)
    if not isinstance(interpolation, str) or not is_number(crop_pct) or not crop_pct > 0:
        raise UserError(
            f"{where}: interpolation is {short(interpolation)} and crop_pct {short(crop_pct)}: expected a text, and a "
            "number above 0"
        )
    if interpolation not in _RESAMPLE.values():
        found["interpolation"] = "bilinear" if interpolation == "nearest" else "bicubic"
        _LOG.warning("%s: interpolation %s is taken for %s", where, short(interpolation), found["interpolation"])
    if crop_pct > 1:
        found["crop_pct"] = 1.0
        _LOG.warning("%s: crop_pct %s, an image with a margin around it, is taken for 1", where, short(crop_pct))


def _resized_by(processor: Mapping[str, Any], where: str) -> dict[str, Any]:
    """interpolation and crop_pct of transformers' processor, as far as it says them in a way that we know."""
    found: dict[str, Any] = {}
    resample = processor.get("resample")
    if isinstance(resample, int) and resample in _RESAMPLE:
        found["interpolation"] = _RESAMPLE[resample]
    elif resample is not None:
        _LOG.warning("%s: resample %s is neither 2, bilinear, nor 3, bicubic: it is left out", where, short(resample))
    size, crop = processor.get("size"), processor.get("crop_size")
    if processor.get("do_center_crop") is True and isinstance(size, dict) and isinstance(crop, dict):
        edge, side = size.get("shortest_edge"), crop.get("height")
        if isinstance(edge, int) and isinstance(side, int) and 0 < side <= edge:
            found["crop_pct"] = side / edge
    return found


def _whole(height: int, width: int, crop_pct: float) -> dict[str, Any]:
    """How transformers gets from an image to a segmenter's size, and from the logits back to the image's."""
    return {"image_processor_type": "SegformerImageProcessor", "size": {"height": height, "width": width}}


def _resizing(height: int, width: int, crop_pct: float) -> dict[str, Any]:
    """How transformers gets from an image to the model's size. It can cut out the middle for square models only."""
    if height != width:
        _LOG.warning(
            "the model sees the middle of an image, in its own shape of %d x %d%s: transformers' processor cannot cut "
            "that out where sides differ, and will press the whole image into it",
            *(height, width, "" if crop_pct == 1 else f", and {crop_pct:.3g} of that"),
        )
        return {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": round(height / crop_pct)},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
    }
