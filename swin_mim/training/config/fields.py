"""What settings a config class has: the fields of a dataclass whose fields are dataclasses, the sections."""

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any, get_type_hints

RENAMED = {"data.crop_share": "data.crop_pct"}
"""Old key of a setting -> its key. The old one goes on working, in files, as a flag and from Python."""


def kinds(cls: Any) -> dict[str, Any]:
    """The type of every field; class variables are none."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def leaf_kinds(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("section.key", type) of every setting, in the order of the fields."""
    for name, kind in kinds(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from leaf_kinds(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("section.key", value) of every setting, in the order of the fields."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key whose last part reads most like that of `key`; elsewhere than in its section only if closer."""
    section, _, name = key.rpartition(".")
    scores = {}
    for other in known:
        other_section, _, other_name = other.rpartition(".")
        same = 0.2 if other_section == section else 0.0
        scores[other] = difflib.SequenceMatcher(None, name, other_name).ratio() + same
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] >= 0.8 else None


def texts(section: type) -> dict[str, str]:
    """The text under each field in the source, of the class itself or of the nearest one that it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if dataclasses.is_dataclass(cls) and (module := inspect.getmodule(cls)):
            found |= _texts_of_module(module).get(cls.__name__, {})
    return found


@cache
def _texts_of_module(module: ModuleType) -> dict[str, dict[str, str]]:
    classes = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)]
    return {
        node.name: {
            field.target.id: " ".join(ast.literal_eval(text.value).split())
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
        }
        for node in classes
    }
