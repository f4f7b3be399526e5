"""Types of settings: whether a value of YAML, Python or the command line is one, and how a type is called."""

import os
import types
from typing import Any, Literal, Union, get_args, get_origin

_TRUTH = {"true": True, "True": True, "false": False, "False": False}


def convert(value: Any, kind: Any, *, words: bool = False) -> tuple[bool, Any]:
    """(whether the value is of the kind, the value as that kind).

    Lists become tuples, one value a tuple of one, a text such as "2e-4" a float where a float is wanted.

    Args:
        words: the value is one word of a command line, or a list of several.
    """
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        # None stands last in a type, and comes first here: of a command line, the word None is not a text.
        return max((convert(value, option, words=words) for option in reversed(options)), key=lambda tried: tried[0])
    if origin is Literal:
        return value in options, value
    if origin is tuple:
        items = list(value) if isinstance(value, list | tuple) else [value]
        kinds = [options[0]] * len(items) if options[-1] is Ellipsis else list(options)
        # Channels may be called by numbers, which are no texts in YAML.
        if set(kinds) == {str}:
            items = [str(item) if type(item) is int else item for item in items]
        parts = [convert(item, part, words=words) for item, part in zip(items, kinds, strict=False)]
        return len(items) == len(kinds) and all(fits for fits, _ in parts), tuple(part for _, part in parts)
    if words and isinstance(value, str):
        value = _spoken(value, kind)
    if kind is float and not isinstance(value, bool) and isinstance(value, int | float | str):
        # PyYAML follows YAML 1.1, where 2e-4 lacks the dot of a number and is a text.
        value = number(value, float)
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    return type(value) is kind, value


def _spoken(word: str, kind: type) -> Any:
    """A word of the command line as YAML would give it."""
    if kind is bool:
        return _TRUTH.get(word, word)
    if kind is int:
        return number(word, int)
    return None if kind is type(None) and word == "None" else word


def number(value: Any, kind: type[int] | type[float]) -> Any:
    """The value as a number of that kind, or as it is where it is none."""
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return value


def is_list(kind: Any) -> bool:
    """Whether a setting takes several values."""
    return tuple in (get_origin(kind), *map(get_origin, get_args(kind)))


def in_words(kind: Any) -> str:
    """What is expected, for messages: "a whole number or null"."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(option) for option in options)
    if origin is Literal:
        return ("one of " if len(options) > 1 else "") + ", ".join(map(str, options))
    if origin is tuple:
        length = "any number of items" if options[-1] is Ellipsis else f"{len(options)} items"
        return f"a list of {length}, each {in_words(options[0])}"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return names[kind]


def placeholder(kind: Any) -> str:
    """What stands for the value of a flag in `--help`: "INT [INT ...] | None"."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " | ".join(placeholder(option) for option in options)
    if origin is Literal:
        return f"{{{','.join(map(str, options))}}}"
    if origin is tuple:
        one = placeholder(options[0])
        return f"[{one} ...]" if options[-1] is Ellipsis else " ".join([one] * len(options))
    return {str: "TEXT", bool: "{true,false}", type(None): "None"}.get(kind, kind.__name__.upper())


def short(value: Any) -> str:
    """A value for a message, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
