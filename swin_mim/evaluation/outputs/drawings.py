"""What a masked image model makes of single images, as pictures."""

import logging
import os
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import torch

from swin_mim.architecture import as_pair
from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.evaluation.false_colours import shown_channels
from swin_mim.evaluation.outputs.collect import Outputs, reader_of
from swin_mim.evaluation.outputs.embeddings import data_config
from swin_mim.evaluation.outputs.images import open_images
from swin_mim.evaluation.outputs.start import explained
from swin_mim.evaluation.reconstruction_evaluator import ReconstructionEvaluator
from swin_mim.evaluation.unlabelled import is_image_file
from swin_mim.files import writing
from swin_mim.masking import BlockMasks
from swin_mim.models.simmim import SimMIM
from swin_mim.training.config.pretrain import MaskConfig
from swin_mim.training.config.yaml_file import read_yaml

_log = logging.getLogger(__name__)


class Masking(NamedTuple):
    """What is hidden; None: as the model's run has it, or as usual."""

    seed: int
    ratio: float | None
    unit: int | None
    """Pixels along the side of what is hidden as one."""


def load_simmim(source: str) -> SimMIM:
    """Load a masked image model with its pixel head.

    Raises:
        UserError: there is none, and what there is has another use.
    """
    try:
        return SimMIM.from_pretrained(source, pickles=True)
    except UserError as error:
        raise explained(error, source, "SimMIM") from None


def draw(
    model: str,
    images: Sequence[str],
    folder: Path,
    masking: Masking,
    settings: dict[str, Any],
    picture_channels: Sequence[str] | None,
) -> Iterator[Path]:
    """Write a PNG of four cells for each image, and yield its path: image, masked, prediction, composite.

    An image that cannot be read is named in the log and has none.

    Args:
        model: whatever `SimMIM.from_pretrained` loads.
        images: files.
        settings: how they are read, by names of `DataConfig`.
        picture_channels: to show of images of any channels; None: the visible ones, or the first.

    Raises:
        UserError: there is no pixel head, an image is not there, none can be read, the masks do not fit, or the folder
            is one of the images.
    """
    _check_places(images, folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_simmim(model).to(device)
    size = as_pair(network.encoder.config.image_size)
    outputs = Outputs(network, lambda pixels: [network.encoder(pixels)], {}, network.preprocessing, size)
    masks = _masks(network, model, masking)
    targets, broken = _paths(folder, images), []
    for place, (image, target) in enumerate(zip(images, targets, strict=True)):
        data = data_config(image, network, model, settings)
        source = open_images(data)
        reader = reader_of(outputs, data, source, 1)
        (batch,) = reader.batches(source)
        if batch.broken:
            broken.append(f"{image} cannot be read: {batch.broken[0].reason}")
            if len(images) > 1:  # of one alone an error says it
                _log.warning("%s", broken[-1])
            continue
        names = source.channels
        shown = shown_channels(picture_channels, names, "--picture_channels") if names else None
        one = ReconstructionEvaluator([batch._replace(start=place)], reader, masks, shown, masking.seed)
        with writing(folder):
            one.draw(network, target, 1)
        yield target
    if len(broken) == len(images):
        many = "" if len(images) == 1 else f"none of the {counted(len(images), 'image')} can be read, the first: "
        raise UserError(f"{many}{broken[0]}")


def _check_places(images: Sequence[str], folder: Path) -> None:
    for image in images:
        path = Path(os.path.expanduser(image))
        if not is_image_file(image):
            found = "is a folder or a table" if path.exists() else "does not exist"
            raise UserError(f"{image} {found}: name image files")
        if path.parent.resolve() == folder.resolve():
            raise UserError(f"--out {folder} is the folder of {image}, which a picture could replace: name another")


def _masks(network: SimMIM, model: str, masking: Masking) -> BlockMasks:
    trained = _mask_of_run(Path(model).expanduser())
    unit, ratio = trained["unit"] if masking.unit is None else masking.unit, masking.ratio
    ratio = trained["ratio"] if ratio is None else ratio
    patch, size = network.encoder.config.patch_size, as_pair(network.encoder.config.image_size)
    if unit % patch or any(side % unit for side in size):
        raise UserError(
            f"--unit {unit} must be a multiple of the patch size {patch} and divide the image size "
            f"{size[0]}x{size[1]}: {_fitting(patch, size)} would"
        )
    return BlockMasks.of(network.encoder.config, unit=unit, ratio=ratio)


def _mask_of_run(model: Path) -> dict[str, Any]:
    """The unit and the ratio of the run in whose folder a model is; those of SimMIM where it is in none."""
    usual = {"unit": MaskConfig.unit, "ratio": MaskConfig.ratio}
    for folder in (model, *model.parents[:2]):
        config = folder / "config.yaml"
        if config.is_file() and (mask := read_yaml(config).get("mask")):
            return usual | {key: mask[key] for key in usual if key in mask}
    return usual


def _fitting(patch: int, size: tuple[int, int]) -> str:
    fit = [str(unit) for unit in range(patch, min(size) + 1, patch) if not any(side % unit for side in size)]
    return ", ".join(fit[:-1]) + (" and " if fit[:-1] else "") + fit[-1]


def _paths(folder: Path, images: Sequence[str]) -> list[Path]:
    """A name for each picture: that of the file, with a number where several are called so."""
    found: dict[Path, None] = {}
    for stem in (Path(image).stem for image in images):
        numbered = (folder / f"{stem}_{number}.png" for number in count(2))
        found[next(path for path in chain([folder / f"{stem}.png"], numbered) if path not in found)] = None
    return list(found)
