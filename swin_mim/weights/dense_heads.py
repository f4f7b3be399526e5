"""Heads for dense tasks in files: which tensors they are, what config.json says of them, their names in transformers.

In our files their names are those of the model, and they have a file of their own, as timm loads the other one.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from swin_mim.errors import UserError
from swin_mim.weights.json_values import is_int, short
from swin_mim.weights.layouts import Kind

DENSE_PARTS: dict[Kind, tuple[str, ...]] = {
    "SwinSegmenter": ("norms", "decode_head", "auxiliary_head"),
    "SwinDetector": ("norms", "fpn", "rpn", "roi_heads"),
}
"""Modules that a model for a dense task has besides the encoder."""
_SETTINGS: dict[Kind, dict[str, tuple[str, ...] | type]] = {
    "SwinSegmenter": {"head": ("upernet", "fpn"), "channels": int, "norm": ("batch", "group")},
    "SwinDetector": {"masks": bool, "channels": int},
}
"""What config.json says of them, and the values that are possible."""
_OPTIONAL: dict[Kind, dict[str, tuple[str, ...] | type]] = {"SwinDetector": {"smallest_anchor": int}}
"""What it says only where it is another value than the usual one."""
_LARGEST = 1 << 14
"""Of their whole numbers."""
_ALL = frozenset(part for parts in DENSE_PARTS.values() for part in parts)

BACKBONE = "backbone."
"""What the names of the encoder in transformers' UperNet begin with."""
_UPERNET_NORM = re.compile(r"backbone\.hidden_states_norms\.stage(\d{1,2})\.(weight|bias)")
_UNUSED = f"{BACKBONE}swin.layernorm."
"""Norm that transformers 5 builds and does not call."""
_COUNTER = "num_batches_tracked"
"""Buffer of torch's batch norms that decides nothing as their momentum is set."""


def is_dense_head(name: str) -> bool:
    """Whether one of our tensors belongs to the head of a model for a dense task."""
    return name.split(".")[0] in _ALL


def read_settings(kind: Kind, own: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of a head, from `swin_mim.head` of a config.json; {} for models without one.

    Raises:
        UserError: one is missing, unknown, or has a value that no head has.
    """
    known, found = _SETTINGS.get(kind, {}), own.get("head", {})
    possible = known | _OPTIONAL.get(kind, {})
    if not isinstance(found, dict) or not known.keys() <= found.keys() <= possible.keys():
        raise UserError(f"{where}: swin_mim.head is {short(found)}: a {kind} has {', '.join(known) or 'none'}")
    for key, value in found.items():
        allowed = possible[key]
        fits = value in allowed if isinstance(allowed, tuple) else type(value) is allowed
        if not fits or (is_int(value) and not 1 <= value <= _LARGEST):
            raise UserError(f"{where}: swin_mim.head.{key} is {short(value)}, which no {kind} has")
    return dict(found)


def dense_sources(names: Collection[str], document: Mapping[str, Any] | None) -> dict[str, str]:
    """Our name -> name in a source, of the tensors of its head for a dense task.

    Args:
        names: of all its tensors.
        document: its config.json, ours or transformers'.
    """
    own = (document or {}).get("swin_mim")
    if isinstance(own, dict):
        parts = next((parts for kind, parts in DENSE_PARTS.items() if kind == own.get("model")), ())
        return {name: name for name in names if name.split(".")[0] in parts}
    return _upernet_sources(names) if is_upernet(document) else {}


def is_upernet(document: Mapping[str, Any] | None) -> bool:
    """Whether a config.json is of transformers' UperNet with a Swin V1 inside."""
    document = document or {}
    backbone = document.get("backbone_config")
    return (
        document.get("model_type") == "upernet" and isinstance(backbone, dict) and backbone.get("model_type") == "swin"
    )


def network_names(names: Collection[str], document: Mapping[str, Any] | None) -> dict[str, str]:
    """Name without what its head put before it -> name in a source, of all its tensors but the head's."""
    others = set(names) - set(dense_sources(names, document).values())
    if not is_upernet(document):
        return {name: name for name in names if name in others}
    used = [name for name in names if name in others and not name.endswith(_COUNTER) and not name.startswith(_UNUSED)]
    return {name.removeprefix(BACKBONE): name for name in used}


def _upernet_sources(names: Collection[str]) -> dict[str, str]:
    """Of a file of transformers' UperNet; the last stage's norm is the encoder's own."""
    norms = {name: match for name in names if (match := _UPERNET_NORM.fullmatch(name))}
    last = max((int(match[1]) for match in norms.values()), default=0)
    found = {f"norms.{int(match[1]) - 1}.{match[2]}": name for name, match in norms.items() if int(match[1]) < last}
    heads = [name for name in names if name.split(".")[0] in ("decode_head", "auxiliary_head")]
    return found | {name: name for name in heads if not name.endswith(_COUNTER)}


def to_upernet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an UperNet head, of all of ours -> under transformers' names, with its counters."""
    out = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "norms":
            stage, _, parameter = rest.partition(".")
            out[f"{BACKBONE}hidden_states_norms.stage{int(stage) + 1}.{parameter}"] = tensor.contiguous()
        elif part in ("decode_head", "auxiliary_head"):
            out[name] = tensor.contiguous()
            if name.endswith(".running_mean"):
                out[name.replace("running_mean", _COUNTER)] = torch.zeros((), dtype=torch.int64)
    return out


def upernet_settings(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], int]:
    """Settings and classes of the head of transformers' UperNet, from the shapes of our names of its tensors.

    Raises:
        UserError: it has no classifier.
    """
    shape = shapes.get("decode_head.classifier.weight", ())
    if len(shape) != 4:
        raise UserError("decode_head.classifier.weight is missing or no convolution: it is not a whole UperNet")
    return {"head": "upernet", "channels": shape[1], "norm": "batch"}, shape[0]
