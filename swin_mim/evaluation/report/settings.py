"""The settings of a run beside those of the nearest shipped recipe, and of several runs beside each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from swin_mim.errors import UserError
from swin_mim.evaluation.report.numbers_text import setting
from swin_mim.training.config.dense.detect import DetectConfig
from swin_mim.training.config.dense.segment import SegmentConfig
from swin_mim.training.config.fields import leaves
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.config.parsing import from_mapping
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.shipped import recipes_folder
from swin_mim.training.config.yaml_file import read_yaml

DEFAULTS = "the defaults"
_CLASSES = (PretrainConfig, FinetuneConfig, SegmentConfig, DetectConfig)
_OWN = ("run.name", "run.root")
"""What every run has of its own."""

Values = dict[str, str]
"""Settings as text, by "section.key"."""


@dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    values: Values
    beside: str
    """Name of the shipped config that differs least, or `DEFAULTS`; empty if these are no settings of this version."""
    there: Values
    """Its settings."""

    @property
    def differences(self) -> list[tuple[str, str, str]]:
        """(key, here, there) of what differs from it, but for the name of the run."""
        return [
            (key, value, self.there.get(key, "–"))
            for key, value in self.values.items()
            if self.beside and key not in _OWN and value != self.there.get(key)
        ]


def read_settings(mapping: Mapping[str, Any]) -> Settings:
    """config.yaml of a run -> its settings; of another version those that it has, with nothing to compare them with."""
    for cls in _CLASSES:
        try:
            values = _texts(from_mapping(cls, mapping, "config.yaml"))
        except UserError:
            continue
        own = {key: values[key] for key in _OWN}
        known = {name: shipped | own for name, shipped in _shipped(cls).items()}
        nearest = min(known, key=lambda name: sum(values[key] != known[name][key] for key in values))
        return Settings(values, nearest, known[nearest])
    return Settings(dict(_flat(mapping)), "", {})


def compared(runs: Sequence[Settings]) -> list[tuple[str, list[str]]]:
    """(key, its value in each run) of what is not the same in all of them; "–" where a run has no such setting."""
    keys = list(dict.fromkeys(key for run in runs for key in run.values))
    rows = [(key, [run.values.get(key, "–") for run in runs]) for key in keys if key not in _OWN]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


@cache
def _shipped(cls: Any) -> dict[str, Values]:
    """The shipped configs of a kind by name, and the plain defaults."""
    found = {DEFAULTS: _texts(from_mapping(cls, {"run": {"name": "defaults"}}, "defaults"))}
    for file in sorted((recipes_folder() / "configs").glob("*.yaml")):
        try:
            found[file.stem] = _texts(from_mapping(cls, read_yaml(file), file))
        except UserError:  # of another kind
            continue
    return found


def _texts(config: Any) -> Values:
    return {key: setting(value) for key, value in leaves(config)}


def _flat(mapping: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", setting(value)
