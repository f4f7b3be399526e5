"""A frozen dataclass of sections <-> a YAML file <-> the command line. Strict: an unknown key is an error."""

import argparse
import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
import yaml

from swin_mim.errors import UserError
from swin_mim.training.config.shipped import config_path

Config = TypeVar("Config")

_HELP = """{description}

Settings come from a YAML file; a flag goes before the file. --config FILE.yaml chooses the file, or a
shipped one by its name (default: {default}). --print-config prints the result as YAML and leaves. The defaults below
are those of {file}."""


def load_config(
    cls: type[Config],
    arguments: Sequence[str] | None = None,
    *,
    default_config: str | Path,
    prog: str,
    description: str,
    complete: Callable[[Config], Config] = lambda config: config,
    check: Callable[[Config], None] = lambda config: None,
) -> Config:
    """A YAML file with the command line over it -> `cls`. Answers `--help` and `--print-config` and leaves.

    Args:
        cls: a dataclass whose fields are dataclasses (the sections) of plain values.
        arguments: the command line without the program; None takes that of the process.
        default_config: the YAML file without `--config`, or the name of a shipped one.
        complete: fills in what the images say themselves, before the check.
        check: raises where settings cannot go together.

    Raises:
        UserError: a file that cannot be read, an unknown key or flag (with the nearest one), a wrong type.
    """
    own = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--config", default=str(default_config))
    own.add_argument("--print-config", "--print_config", action="store_true")
    try:
        chosen, flags = own.parse_known_args(sys.argv[1:] if arguments is None else list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    file = config_path(chosen.config)
    defaults = from_mapping(cls, read_yaml(file), file)
    flags = _whole_flags(flags, dict(_leaf_types(cls)))
    text = _HELP.format(description=description, default=default_config, file=file)
    config = _override(cls, defaults, flags, prog=prog, description=text)
    config = complete(config)
    check(config)
    if chosen.print_config:
        if os.environ.get("RANK", "0") == "0":
            print(to_yaml(config), end="")
        sys.exit(0)
    return config


def _override(cls: type[Config], defaults: Config, flags: list[str], *, prog: str, description: str) -> Config:
    style = (tyro.conf.FlagConversionOff,)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(cls, prog=prog, description=description, args=flags, default=defaults, config=style)
    except SystemExit as left:
        if left.code:
            raise UserError(_without_frame(said.getvalue())) from None
        raise


def _without_frame(box: str) -> str:
    """tyro's error as one line: what stands between the title and the next rule, framed in Unicode or ASCII."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = ["" if not line.strip("│╭╮╰╯─- ") else line.strip("│ ") for line in plain.strip().splitlines()[1:]]
    message = takewhile(bool, dropwhile(lambda line: not line, lines))
    return " ".join(message) or " ".join(plain.split())


def _whole_flags(flags: Iterable[str], kinds: Mapping[str, Any]) -> list[str]:
    """Flags as tyro wants them: known ones, `--a.bool` as `--a.bool True`, true and false capitalised."""
    whole: list[str] = []
    boolean = False
    for token in [*flags, "--"]:
        is_flag = token.startswith("--")
        if boolean and is_flag:
            whole.append("True")
        elif boolean and token in ("true", "false"):
            token = token.capitalize()
        name, _, value = token.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if is_flag and name not in kinds and token not in ("--help", "--"):
            raise UserError(f"unknown flag --{token[2:].partition('=')[0]}: {_nearest_flag(name, kinds)}")
        boolean = is_flag and not value and kinds.get(name) is bool
        whole.append(token)
    return whole[:-1]


def _nearest_flag(name: str, known: Iterable[str]) -> str:
    nearest = _nearest(name, known)
    return f"did you mean --{nearest.replace('_', '-')}?" if nearest else "--help lists the flags"


def _nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key whose last part reads most like that of `key`; elsewhere than in its section only if closer."""
    section, _, name = key.rpartition(".")
    scores = {}
    for other in known:
        other_section, _, other_name = other.rpartition(".")
        same = 0.2 if other_section == section else 0.0
        scores[other] = difflib.SequenceMatcher(None, name, other_name).ratio() + same
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] >= 0.8 else None


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping that a YAML file holds; an empty file is an empty one."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot read the config {path}: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {_short(content)}: a config is a mapping of sections such as 'train:'")
    return content


class _StrictLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys and says nothing; here they are an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen and isinstance(key_node, yaml.ScalarNode):
                problem = f"the key {key_node.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node))
        return super().construct_mapping(node, deep)


def from_mapping(cls: type[Config], mapping: Mapping[Any, Any], where: str | Path) -> Config:
    """A nested mapping, as YAML or JSON has it -> `cls`; keys that are missing take the dataclass's defaults.

    Lists become tuples, one value a tuple of one, a text such as "2e-4" a float where a float is wanted.

    Args:
        where: the file, for messages.

    Raises:
        UserError: an unknown key (with the nearest one), a value of another type, a key that has no default.
    """
    return _section(cls, mapping, "", where, [key for key, _ in _leaf_types(cls)])


def _section(cls: Any, mapping: Any, prefix: str, where: str | Path, known: Sequence[str]) -> Any:
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, Mapping):
        raise UserError(f"{prefix[:-1]} in {where} is {_short(mapping)}: expected a section with keys of its own")
    kinds = _kinds(cls)
    for key in mapping:
        if key not in kinds:
            raise UserError(f"unknown key {prefix}{key} in {where}: {_nearest_key(f'{prefix}{key}', known)}")
    values = {}
    for field in dataclasses.fields(cls):
        key, kind = prefix + field.name, kinds[field.name]
        if dataclasses.is_dataclass(kind):
            values[field.name] = _section(kind, mapping.get(field.name), f"{key}.", where, known)
        elif field.name in mapping:
            values[field.name] = _value(mapping[field.name], kind, key, where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{key} is missing in {where}: it has no default")
    return cls(**values)


def _nearest_key(key: str, known: Sequence[str]) -> str:
    sections = list(dict.fromkeys(name.partition(".")[0] for name in known))
    nearest = _nearest(key, [*known, *sections])
    section = key.rpartition(".")[0]
    beside = [name for name in known if name.rpartition(".")[0] == section] if section else sections
    return f"did you mean {nearest}?" if nearest else f"the keys there are {', '.join(beside or sections)}"


def _value(value: Any, kind: Any, key: str, where: str | Path) -> Any:
    fits, result = _convert(value, kind)
    if not fits:
        raise UserError(f"{key} in {where} is {_short(value)}: expected {_words(kind)}")
    return result


def _convert(value: Any, kind: Any) -> tuple[bool, Any]:
    """(whether the value is of the kind, the value as that kind)."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return max((_convert(value, option) for option in options), key=lambda tried: tried[0])
    if origin is Literal:
        return value in options, value
    if origin is tuple:
        items = list(value) if isinstance(value, list | tuple) else [value]
        kinds = [options[0]] * len(items) if options[-1] is Ellipsis else list(options)
        # channels may be called by numbers, which are no texts in YAML
        if set(kinds) == {str}:
            items = [str(item) if type(item) is int else item for item in items]
        parts = [_convert(item, part) for item, part in zip(items, kinds, strict=False)]
        return len(items) == len(kinds) and all(fits for fits, _ in parts), tuple(part for _, part in parts)
    if kind is float:
        return _as_float(value)
    return type(value) is kind, value


def _as_float(value: Any) -> tuple[bool, Any]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False, value
    try:
        # PyYAML follows YAML 1.1, where 2e-4 lacks the dot of a number and is a text.
        return True, float(value)
    except ValueError:
        return False, value


def _words(kind: Any) -> str:
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(option) for option in options)
    if origin is Literal:
        return "one of " + ", ".join(map(str, options))
    if origin is tuple:
        length = "any number of items" if options[-1] is Ellipsis else f"{len(options)} items"
        return f"a list of {length}, each {_words(options[0])}"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return names[kind]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kinds(cls: Any) -> dict[str, Any]:
    """The type of every field; class variables are none."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _leaf_types(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, kind in _kinds(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from _leaf_types(kind, f"{prefix}{name}.")
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


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        # Two settings may share one tuple; an anchor and an alias in its place help nobody.
        return True


_Dumper.add_representer(
    tuple, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def to_yaml(config: Any) -> str:
    """Every setting as YAML; `from_mapping` of it gives an equal config."""
    return yaml.dump(dataclasses.asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=110)
