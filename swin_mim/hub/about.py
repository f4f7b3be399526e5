"""What the card of a model says: what its maker tells, joined with what the model itself is."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from swin_mim.hub.card import CardFacts, Result, Training
from swin_mim.hub.config_json import Description, timm_name
from swin_mim.models.swin_config import as_pair

__all__ = ["About", "Picture", "Result", "Training", "card_facts"]


class Picture(NamedTuple):
    """An image file for the card."""

    file: Path
    name: str
    """What it is called beside the card."""
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
        architecture=asdict(config),
        parameters=sum(counted),
        input={
            "image_size": as_pair(config.image_size),
            "channels": preprocessing.channels or tuple(f"channel {i}" for i in range(config.in_channels)),
            "mean": preprocessing.mean,
            "std": preprocessing.std,
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
    )
