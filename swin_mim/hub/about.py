"""What the maker of a model tells of it: all that nobody can read off the weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True)
class Result:
    """One measured number."""

    dataset: str
    metric: str
    """Its name: "masked L1, held-out images"."""
    type: str
    """Its identifier: "l1", "accuracy"."""
    value: float
    split: str | None = None


@dataclass(frozen=True)
class Training:
    """How the weights came to be: measured, never assumed."""

    data: str
    """One or two sentences in plain words: "1862 tiles of ..."."""
    steps: int
    images: int
    """Images seen, each time counted."""
    facts: dict[str, str]
    """More rows of the table: batch, learning rate, duration, hardware, precision, versions."""
    config_yaml: str
    """The exact recipe."""
    command: str


class Picture(NamedTuple):
    """An image file for the card."""

    file: Path
    name: str
    """What it is called beside the card: loss.png, reconstructions.png or card_<words>.png."""
    caption: str


@dataclass(frozen=True)
class About:
    """Every field may be left out; the card then says nothing of it."""

    name: str | None = None
    """Title of the card; without it the repository's or the folder's name."""
    repo: str | None = None
    """ "user/name" on the Hub, for the card's examples."""
    license: str | None = None
    """An identifier of the Hub, such as "apache-2.0" or "cc-by-4.0"."""
    base_model: str | None = None
    """Name on the Hub of the model whose weights this one started from."""
    datasets: tuple[str, ...] = ()
    """Names on the Hub of the data it was trained on."""
    tags: tuple[str, ...] = ()
    """More tags for the Hub; "simmim" for a classifier that was pretrained so."""
    training: Training | None = None
    results: tuple[Result, ...] = ()
    pictures: tuple[Picture, ...] = ()
