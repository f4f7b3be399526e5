"""Settings of a config class: a YAML file, with flags or values from Python over it. Strict: unknown keys are errors.

A config class is a dataclass whose fields are dataclasses, the sections, of plain values.
"""

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from swin_mim.errors import UserError
from swin_mim.training.config.defaults import Defaults
from swin_mim.training.config.fields import RENAMED, kinds, leaf_kinds, nearest
from swin_mim.training.config.flags import flag, flag_words, help_text, parser
from swin_mim.training.config.shipped import config_path
from swin_mim.training.config.values import convert, in_words, short
from swin_mim.training.config.yaml_file import read_yaml, to_yaml

Config = TypeVar("Config")
_LOG = logging.getLogger(__name__)


def load_config(
    cls: type[Config],
    arguments: Sequence[str] | None = None,
    *,
    default_config: str | Path | Defaults,
    prog: str,
    description: str,
    complete: Callable[[Config], Config] = lambda config: config,
    check: Callable[[Config], None] = lambda config: None,
) -> Config:
    """A YAML file with the command line over it -> `cls`. Answers `--help` and `--print-config` and leaves.

    Args:
        arguments: the command line without the program; None takes that of the process.
        default_config: the YAML file without `--config`, or the name of a shipped one; `Defaults` choose one by the
            settings, and a name for a run that has none.
        complete: fills in what the images say themselves, before the check.
        check: raises where settings cannot go together.

    Raises:
        UserError: a file that cannot be read, an unknown key or flag (with the nearest one), a wrong type.
    """
    options, known = parser(prog, description, default_config), dict(leaf_kinds(cls))
    try:
        chosen, flags = options.parse_known_args(sys.argv[1:] if arguments is None else list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    given = {} if chosen.help else _converted(flag_words(flags, known).items(), known, flag, words=True)
    mapping, over = _chosen(chosen.config, default_config, given)
    file = config_path(mapping)
    values = _from_mapping(cls, read_yaml(file), f" in {file}", warn=True) | over
    if chosen.help:
        _leave(help_text(options, cls, values, file))
    config = complete(_build(cls, _completed(values | given, default_config), f" in {file}"))
    check(config)
    if chosen.print_config:
        _leave(to_yaml(config))
    if chosen.config is None and isinstance(default_config, Defaults) and os.environ.get("RANK", "0") == "0":
        for line in default_config.remarks(mapping, given):
            _LOG.warning("%s", line)
    return config


def _chosen(config: Any, default: Any, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(the config, settings over it): the given one, or else the default one."""
    if config is not None:
        return config, {}
    return default.of(given) if isinstance(default, Defaults) else (default, {})


def _completed(values: dict[str, Any], default: Any) -> dict[str, Any]:
    return default.completed(values) if isinstance(default, Defaults) else values


def _leave(text: str) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        print(text, end="")
    sys.exit(0)


def from_settings(
    cls: type[Config],
    config: str | Path | Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    *,
    default_config: str | Path | Mapping[str, Any] | Defaults | None = None,
    complete: Callable[[Config], Config] = lambda config: config,
    check: Callable[[Config], None] = lambda config: None,
) -> Config:
    """A config with settings such as {"train.duration": "10 epochs"} over it -> `cls`: for callers from Python.

    Args:
        config: a YAML file, the name of a shipped one, or what such a file would hold; None takes `default_config`.
        settings: by "section.key".
        default_config: None stands for the defaults of `cls`; `Defaults` as for `load_config`.
        complete, check: as for `load_config`.

    Raises:
        UserError: as `load_config`.
    """
    given = _converted(settings.items(), dict(leaf_kinds(cls)), str)
    (mapping, over), where = _chosen(config, default_config, given), ""
    if isinstance(mapping, str | Path):
        file = config_path(mapping)
        mapping, where = read_yaml(file), f" in {file}"
    values = _from_mapping(cls, mapping, where, warn=True) | over | given
    made = complete(_build(cls, _completed(values, default_config), where))
    check(made)
    return made


def from_mapping(cls: type[Config], mapping: Mapping[Any, Any] | None, where: str | Path) -> Config:
    """A nested mapping, as YAML or JSON has it -> `cls`; keys that are missing take the dataclass's defaults.

    Args:
        where: the file, for messages.

    Raises:
        UserError: an unknown key (with the nearest one), a value of another type, a key that has no default.
    """
    return _build(cls, _from_mapping(cls, mapping, f" in {where}", warn=False), f" in {where}")


def _from_mapping(cls: Any, mapping: Any, where: str, *, warn: bool) -> dict[str, Any]:
    known = dict(leaf_kinds(cls))
    return _converted(_flat(cls, mapping, where), known, lambda key: f"{key}{where}", warn=warn)


def _flat(cls: Any, mapping: Any, where: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("section.key", value) of all that a nested mapping gives."""
    if mapping is not None and not isinstance(mapping, Mapping):
        raise UserError(f"{prefix[:-1]}{where} is {short(mapping)}: expected a section with keys of its own")
    fields = kinds(cls)
    for name, value in (mapping or {}).items():
        if dataclasses.is_dataclass(fields.get(name)):
            yield from _flat(fields[name], value, where, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _converted(
    settings: Iterable[tuple[str, Any]],
    known: Mapping[str, Any],
    called: Callable[[str], str],
    *,
    words: bool = False,
    warn: bool = True,
) -> dict[str, Any]:
    """Values of the settings' types, by key.

    Args:
        known: types of all settings.
        called: a key -> what messages call it.
        words: values are words of a command line.
        warn: of keys that have another name now.
    """
    values: dict[str, Any] = {}
    for given, value in settings:
        key = RENAMED.get(given, given)
        if key not in known:
            raise UserError(f"unknown key {called(given)}: {_way_out(given, list(known))}")
        if key in values:
            raise UserError(f"{called(given)} is the old name of {called(key)}, which is given too: leave it out")
        if given != key and warn and os.environ.get("RANK", "0") == "0":
            _LOG.warning("%s is an old name: write %s", called(given), key)
        fits, values[key] = convert(value, known[key], words=words)
        if not fits:
            raise UserError(f"{called(given)} is {short(value)}: expected {in_words(known[key])}")
    return values


def _way_out(key: str, known: Sequence[str]) -> str:
    sections = list(dict.fromkeys(name.partition(".")[0] for name in known))
    section = key if key in sections else key.rpartition(".")[0]
    near = None if section == key else nearest(key, [*known, *sections])
    beside = [name for name in known if name.rpartition(".")[0] == section] if section else sections
    return f"did you mean {near}?" if near else f"the keys there are {', '.join(beside or sections)}"


def _build(cls: Any, values: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    parts = {}
    for field, kind in zip(dataclasses.fields(cls), kinds(cls).values(), strict=True):
        key = prefix + field.name
        if dataclasses.is_dataclass(kind):
            parts[field.name] = _build(kind, values, where, f"{key}.")
        elif key in values:
            parts[field.name] = values[key]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{key} is missing{where}: it has no default")
    return cls(**parts)
