"""What a card is made of: what the maker of a model tells, joined with what the model itself is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

from torch import Tensor

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.weights.compatibility import unsupported_reason
from swin_mim.weights.config_json import Description, Kind, timm_name


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
    """What nobody can read off the weights. Every field may be left out; the card then says nothing of it."""

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


class Input(TypedDict):
    """What the model takes."""

    image_size: tuple[int, int]
    """(H, W) in pixels."""
    channels: tuple[str, ...] | None
    """Their names, in order; None: not known."""
    mean: tuple[float, ...]
    """One per channel, of pixels over `scale`; `std` likewise."""
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    scale: float
    """What pixels are divided by before mean and std: 255 for 8-bit images, 1 where they are as the files have them."""
    nodata: float | None
    """Value of pixels that are not there."""
    mask_channel: str | None
    """Channel that is 0 where a pixel is not there."""


@dataclass(frozen=True)
class CardFacts:
    """All that a card can say."""

    kind: Kind
    name: str
    """The title."""
    repo: str | None
    """ "user/name"; None: the snippets load a local folder."""
    config: SwinConfig
    parameters: int
    """Of the encoder, and of a classifier's head."""
    input: Input
    timm_name: str
    """timm's registry name, as in config.json."""
    num_classes: int
    labels: tuple[str, ...] | None
    has_transformers_copy: bool
    """Whether the folder `transformers` holds the native copy."""
    license: str | None
    """The Hub's identifier, such as "apache-2.0"; None: not known."""
    base_model: str | None
    """The Hub's name of the model that this one was fine-tuned from."""
    datasets: tuple[str, ...]
    """The Hub's names of the data, if it is there."""
    training: Training | None
    results: tuple[Result, ...]
    pictures: tuple[tuple[str, str], ...]
    """(file name in the repository, caption)"""
    tags: tuple[str, ...] = ()
    caution: str = ""
    """Why timm's network is another one (`expressible.unsupported_reason`)."""


def card_facts(
    description: Description, about: About, *, folder: str, tensors: Mapping[str, Tensor], native: bool
) -> CardFacts:
    """Everything that the card is written from.

    Args:
        folder: name of the model's folder, for a title.
        tensors: the model's, under our names.
        native: whether there is a copy for transformers' own classes.
    """
    config, preprocessing = description.config, description.preprocessing
    counted = [tensor.numel() for name, tensor in tensors.items() if name != "mask_token" and "decoder" not in name]
    return CardFacts(
        kind=description.kind,
        name=about.name or about.repo or folder,
        repo=about.repo,
        config=config,
        parameters=sum(counted),
        input={
            "image_size": as_pair(config.image_size),
            "channels": preprocessing.channels,
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_pct,
            "scale": preprocessing.scale,
            "nodata": preprocessing.nodata,
            "mask_channel": preprocessing.mask_channel,
        },
        timm_name=timm_name(config),
        num_classes=description.num_classes,
        labels=description.labels,
        has_transformers_copy=native,
        license=about.license,
        base_model=about.base_model,
        datasets=about.datasets,
        tags=about.tags,
        training=about.training,
        results=about.results,
        pictures=tuple((picture.name, picture.caption) for picture in about.pictures),
        caution=unsupported_reason("timm", description),
    )
