"""Writes a published model: its files as `pretrained` reads them, the copies for others, whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from swin_mim.architecture import as_pair
from swin_mim.errors import UserError
from swin_mim.hub import repository
from swin_mim.hub.pretrained import CONFIG, DENSE_HEAD, MIM_HEAD, NATIVE, WEIGHTS, is_mim_head, is_saved_model
from swin_mim.weights import formats
from swin_mim.weights.compatibility import unsupported_reason
from swin_mim.weights.config_json import Description, document
from swin_mim.weights.dense_heads import BACKBONE, is_dense_head, to_upernet
from swin_mim.weights.library_configs import transformers_documents
from swin_mim.weights.weights_file import write_safetensors


def write(folder: Path, description: Description, tensors: Mapping[str, Tensor], *, transformers: bool = False) -> None:
    """All files of a published model but the card, into an existing folder.

    Args:
        tensors: under our names.
        transformers: write the native copy too.

    Raises:
        UserError: a native copy is wanted of a network that transformers cannot build; a weight is not finite.
    """
    heads = {
        MIM_HEAD: {name: tensor for name, tensor in tensors.items() if is_mim_head(name)},
        DENSE_HEAD: {name: tensor for name, tensor in tensors.items() if is_dense_head(name)},
    }
    others = set().union(*heads.values())
    write_safetensors({name: tensor for name, tensor in tensors.items() if name not in others}, folder / WEIGHTS)
    for file, head in heads.items():
        if head:
            write_safetensors(head, folder / file)
    write_document(folder / CONFIG, document(description))
    if transformers:
        (folder / NATIVE).mkdir()
        write_transformers(folder / NATIVE, description, tensors)


def write_transformers(folder: Path, description: Description, tensors: Mapping[str, Tensor]) -> None:
    """model.safetensors, config.json and preprocessor_config.json as transformers' own classes read them."""
    write_safetensors(to_theirs("transformers", description, tensors), folder / WEIGHTS)
    for name, content in transformers_documents(description).items():
        write_document(folder / name, content)


def to_theirs(format: formats.Format, description: Description, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names of another library.

    Raises:
        UserError: that library cannot build this network.
    """
    reason = unsupported_reason(format, description)
    if reason:
        raise UserError(reason)
    config = description.config
    stages = range(config.num_stages)
    windows, grids = [config.stage_window(stage) for stage in stages], [config.stage_grid(stage) for stage in stages]
    pretrained = [as_pair(size) for size in config.pretrained_window_sizes]
    network = {name: tensor for name, tensor in tensors.items() if not is_dense_head(name)}
    theirs = formats.to_theirs(
        network, format, windows=windows, grids=grids, kind=description.kind, pretrained=pretrained
    )
    if len(network) == len(tensors):
        return theirs
    if format == "transformers":
        return {f"{BACKBONE}{name}": tensor for name, tensor in theirs.items()} | to_upernet(tensors)
    return theirs | {name: tensors[name].contiguous() for name in tensors if name not in network}


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A staging folder that becomes `folder` when the block ends well; before, nobody sees a thing.

    Raises:
        UserError: there is something else than a published model of ours, or it cannot be written.
    """
    check_replaceable(folder)
    target = folder.resolve()
    if target == Path.cwd():
        raise UserError(f"{folder} is the working directory, which cannot be replaced: name a folder inside it")
    staging, old = (target.with_name(f".{target.name}.{role}.{os.getpid()}") for role in ("staging", "old"))
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        _swap(staging, target, old)
    except OSError as error:
        raise UserError(f"{folder} could not be written: {error.strerror or error}") from error
    finally:
        for leftover in (staging, old):
            shutil.rmtree(leftover, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Raise a UserError unless a folder is new, empty, or a published model of ours and nothing else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a new or empty folder")
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    other = sorted(name for name in names if not repository.is_published(name))
    if other or (names and not is_saved_model(folder)):
        raise UserError(
            f"{folder} holds {other[0] if other else names[0]}, which is no part of a model saved before: "
            "name a new or empty folder"
        )


def _swap(staging: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise


def write_document(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
