"""Values of a config.json that anybody may have written: their kinds and bounds, with messages that name the place."""

import math
from collections.abc import Mapping
from typing import Any

from swin_mim.errors import UserError

_LARGEST = {
    "teacher_width": 1 << 16,
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
STAGES = 16


def read_object(mapping: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    section = mapping.get(key)
    if not isinstance(section, dict):
        raise UserError(f"{where}: {key} is {short(section)}: expected an object")
    return section


def read_size(value: Any, key: str, where: str) -> int | tuple[int, int]:
    sides = value if isinstance(value, list) else [value]
    if len(sides) not in (1, 2) or not all(is_int(side) and side > 0 for side in sides):
        raise UserError(f"{where}.{key} is {short(value)}: expected a positive whole number or a list of two")
    check_limit(key, max(sides), where)
    return value if is_int(value) else tuple(value)


def read_window_sizes(value: Any, where: str) -> tuple[int | tuple[int, int], ...]:
    """Of each stage one number or two; 0 where it is the stage's own."""
    key, sizes = "pretrained_window_sizes", value if isinstance(value, list) else []
    pairs = [size if isinstance(size, list) else [size] for size in sizes]
    whole = all(len(pair) in (1, 2) and all(is_int(side) and side >= 0 for side in pair) for pair in pairs)
    if not 1 <= len(pairs) <= STAGES or not whole:
        raise UserError(
            f"{where}.{key} is {short(value)}: expected a list of 1 to {STAGES} whole numbers or lists of two"
        )
    check_limit(key, max(map(max, pairs)), where)
    return tuple(tuple(size) if isinstance(size, list) else size for size in sizes)


def read_stage_numbers(value: Any, key: str, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= STAGES or not all(is_int(n) and n > 0 for n in value):
        raise UserError(f"{where}.{key} is {short(value)}: expected a list of 1 to {STAGES} positive whole numbers")
    check_limit(key, max(value), where)
    return tuple(value)


def check_limit(key: str, value: float, where: str) -> None:
    if value > _LARGEST[key]:
        raise UserError(f"{where}.{key} is {short(value)}: no network has more than {_LARGEST[key]}")


def are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(is_number, values))


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float holds; NaN, for which no comparison holds, is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e30 < value < 1e30


def is_finite(value: Any) -> bool:
    """As `is_number`, but however large: what marks a gap may be the least number of fp32."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(text, str) for text in values)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
