"""Settings as flags: `--section.key VALUE`, several words for several values, and their `--help`."""

import argparse
import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

from swin_mim.errors import UserError
from swin_mim.training.config.fields import RENAMED, kinds, nearest, texts
from swin_mim.training.config.values import in_words, is_list, number, placeholder


def flag(key: str) -> str:
    """The flag of a setting: "optim.base_lr" -> "--optim.base-lr"."""
    return f"--{key.replace('_', '-')}"


def flag_words(arguments: Iterable[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """What follows each flag, by the setting's key: a word, a list of words where it takes several, True of none.

    Of a flag that is given twice the last one counts.

    Args:
        known: types of all settings, by key.

    Raises:
        UserError: an unknown flag (with the nearest one), a word that is of no flag, too many or too few of them.
    """
    words: dict[str, list[str]] = {}
    key = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, given, value = argument.removeprefix("--").partition("=")
            key = name.replace("-", "_")
            if RENAMED.get(key, key) not in known:
                near = nearest(key, known)
                way_out = f"did you mean {flag(near)}?" if near else "--help lists the flags"
                raise UserError(f"unknown flag --{name}: {way_out}")
            words[key] = [value] if given else []
        elif not key or (argument.startswith("-") and type(number(argument, float)) is not float):
            raise UserError(f"unexpected {argument}: a setting is given as --section.key VALUE")
        else:
            words[key].append(argument)
    return {key: _value(key, found, known[RENAMED.get(key, key)]) for key, found in words.items()}


def _value(key: str, words: list[str], kind: Any) -> Any:
    if not words and bool in (kind, *get_args(kind)):
        return "true"
    if not is_list(kind) and len(words) != 1:
        several = f"takes one value and has {len(words)}: did you mean {flag(key)} {' '.join(words)!r}?"
        raise UserError(f"{flag(key)} {several if words else f'has no value: expected {in_words(kind)}'}")
    return words[0] if len(words) == 1 else words


def parser(prog: str, description: str, default_config: Any) -> argparse.ArgumentParser:
    """The options of a command that are no settings: --config, --print-config and --help."""
    made = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [--config FILE] [--section.key VALUE ...]",
        description=f"{description}\nSettings come from a YAML file, with flags over it.",
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=8),
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = made.add_argument
    add("-h", "--help", action="store_true", help="show this and leave")
    add(
        "--config",
        metavar="FILE",
        help=f"YAML file of the settings, or the name of a shipped one (default: {default_config})",
    )
    add("--print-config", "--print_config", action="store_true", help="print the settings as YAML and leave")
    return made


def help_text(options: argparse.ArgumentParser, cls: Any, values: Mapping[str, Any], file: Path) -> str:
    """Help of the options and of each setting of `cls`, with its value in a file, or else its default."""
    options.epilog = f"The defaults are those of {file}.\nSeveral values are several words, nothing is the word None."
    sections = {name: kind for name, kind in kinds(cls).items() if dataclasses.is_dataclass(kind)}
    _add_settings(options, cls, "", values)
    for name, section in sections.items():
        group = options.add_argument_group(f"{name} options", inspect.getdoc(section))
        _add_settings(group, section, f"{name}.", values)
    return options.format_help()


def _add_settings(group: Any, section: Any, prefix: str, values: Mapping[str, Any]) -> None:
    kind, text = kinds(section), texts(section)
    for field in dataclasses.fields(section):
        key = prefix + field.name
        if not dataclasses.is_dataclass(kind[field.name]):
            value = values.get(key, field.default)
            default = "none" if value is dataclasses.MISSING else _shown(value)
            about = f"{text[field.name]} (default: {default})".replace("%", "%%")
            group.add_argument(flag(key), metavar=placeholder(kind[field.name]), help=about)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return (" ".join(map(str, value)) or "nothing") if isinstance(value, tuple) else str(value)
