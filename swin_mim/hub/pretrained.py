"""A published model as files, and what is read of one strictly. `saved` writes them.

    model.safetensors        encoder (+ head.fc.*) under timm's names
    mim_head.safetensors     mask_token, decoder.0.*, stage_heads.*, teacher_head.* (SimMIM only)
    dense_head.safetensors   head of a model for a dense task: see weights/dense_heads.py
    config.json              see config_json.py
    README.md                the card
    transformers/            the native copy for transformers, if asked for

Knows no model: dict in, dict out. The models' own methods are in models/saving.py.
"""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swin_mim.architecture import as_pair
from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.hub import repository
from swin_mim.weights import coordinates, formats, network
from swin_mim.weights.config_json import Description, Preprocessing, describe, read_document
from swin_mim.weights.dense_heads import (
    dense_sources,
    is_upernet,
    network_names,
    upernet_settings,
)
from swin_mim.weights.heads import TEACHER, head_outputs, heads_in, is_head, told_by
from swin_mim.weights.library_configs import hints
from swin_mim.weights.pickled_file import is_pickled, load_pickled, microsoft_settings
from swin_mim.weights.prefixes import Selection, select
from swin_mim.weights.weights_file import TensorInfo, check_finite, load_tensors, read_header

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MIM_HEAD = "mim_head.safetensors"
DENSE_HEAD = "dense_head.safetensors"
CARD = "README.md"
PROCESSOR = "preprocessor_config.json"
NATIVE = "transformers"

_CONVERT = (
    "is a pickle, which can run anything when it is opened: convert it, which opens it safely, with "
    "swin-mim convert {} FOLDER --to swin_mim"
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """What a source holds, under our names, and what it is."""

    description: Description
    tensors: dict[str, Tensor]
    """float32 on the CPU: encoder, head.fc.*, mask_token, decoder.0.*, stage_heads.*, as far as the source has them."""
    keys: formats.KeyMap
    """Where each came from."""
    selection: Selection
    """Which of the source's tensors these are, and what was taken off their names."""
    size_is_guessed: bool = False
    """The image size is the smallest that the bias tables allow: nothing says it."""
    notes: tuple[str, ...] = ()
    """What of the values was not taken, a line each."""


@dataclass(frozen=True)
class Contents:
    """The network in a source, under its own names less their prefix, before anybody knows which one it is."""

    header: Mapping[str, TensorInfo]
    load: Callable[[], dict[str, Tensor]]
    folder: Path | None
    """Holds their config.json, ours or another library's, if there is one."""
    known: Mapping[str, Any]
    """What is known of foreign weights besides: see `config_json.hints`."""
    selection: Selection


def locate(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    pickles: bool = False,
) -> Path:
    """The local folder or file of a source: itself, the export of a run folder, or a snapshot of a Hub repository.

    Args:
        pickles: a local pickle will do.

    Raises:
        UserError: there is no such file, folder or repository; the file is a pickle.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in repository.PICKLES and not pickles:
        raise UserError(f"{path} {_CONVERT.format(path)}")
    if path.is_file() or (path / WEIGHTS).is_file():
        return path
    if (path / "export" / WEIGHTS).is_file():
        return path / "export"
    if path.is_dir():
        raise UserError(_without_weights(path))
    named = not path.is_absolute() and path.suffix.lower() not in (*repository.PICKLES, ".safetensors")
    if not named or not repository.is_repo_name(str(source)):
        raise UserError(f"{source} does not exist, and is not the name of a Hub repository (user/name) either")
    try:
        return repository.fetch(
            str(source),
            [WEIGHTS],
            optional=[CONFIG, MIM_HEAD, DENSE_HEAD, PROCESSOR],
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    except UserError as error:
        raise UserError(f"there is no file or folder {source}, and as a repository: {error}") from None


def _without_weights(folder: Path) -> str:
    """What to load in place of a folder that cannot be."""
    checkpoints = sorted((folder / "checkpoints").glob("step_*"))
    if checkpoints:
        return f"{folder} is a run that has no export yet: continue it, or name a checkpoint such as {checkpoints[-1]}"
    pickled = sorted(path for path in folder.iterdir() if path.suffix.lower() in repository.PICKLES)
    if pickled:
        return f"{folder} holds no {WEIGHTS}, but {pickled[0].name}, which {_CONVERT.format(pickled[0])}"
    return f"{folder} holds no {WEIGHTS}: name a folder that does, such as a run's export or a checkpoint"


def read(path: Path, *, pickles: bool = False) -> Weights:
    """A folder (ours, a checkpoint's, timm's, transformers') or one weight file, of any format we know.

    Names, shapes and config are checked before a weight is read. A pickle, for which the caller asked `locate`, is
    opened as `pickled_file` does it: nothing in it is executed.

    Raises:
        UserError: one line that names the file and the key.
    """
    return interpret(open_contents(path, pickles=pickles), str(path))


def open_contents(path: Path, *, pickles: bool = False, prefix: str = "") -> Contents:
    """What `read` reads, unread as far as the file allows that.

    Args:
        prefix: of the names of the network that is wanted, where there are several: as `student.backbone.`.

    Raises:
        UserError: as `read`.
    """
    if pickles and is_pickled(path):
        tensors, settings, selection = load_pickled(path, prefix)
        header = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        known = microsoft_settings(settings or {}, path)
        return Contents(header, lambda: tensors, beside_pickle(path), known, selection)
    if path.is_file() and path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        path = path.parent  # what stands beside it belongs to it
    headers = _headers(path)
    infos = {name: info for part in headers.values() for name, info in part.items()}
    folder = path if path.is_dir() else None
    # What we saved is whole, and what does not belong there is damage. Of an UperNet the head belongs to it too.
    whole = folder is not None and (is_saved_model(folder) or is_upernet(_document(folder, CONFIG))) and not prefix
    try:
        selection = Selection(dict(zip(infos, infos, strict=True))) if whole else select(infos, prefix, str(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None

    def load() -> dict[str, Tensor]:
        tensors = load_files(path, headers)
        return {name: tensors[file] for name, file in selection.names.items()}

    return Contents({name: infos[file] for name, file in selection.names.items()}, load, folder, {}, selection)


def beside_pickle(path: Path) -> Path | None:
    """The folder whose config.json belongs to a pickle: transformers' old file has one beside it."""
    return path.parent if path.name == "pytorch_model.bin" else None


def load_files(path: Path, headers: Mapping[Path, Mapping[str, TensorInfo]] | None = None) -> dict[str, Tensor]:
    """All tensors of a file or folder, under the names that they have there."""
    headers = headers or _headers(path)
    return {name: tensor for file, part in headers.items() for name, tensor in load_tensors(file, part).items()}


def _headers(path: Path) -> dict[Path, dict[str, TensorInfo]]:
    heads = [head for head in (path / MIM_HEAD, path / DENSE_HEAD) if head.is_file()]
    headers = {file: read_header(file) for file in ([path] if path.is_file() else [path / WEIGHTS, *heads])}
    for one, other in combinations(headers, 2):
        for name in sorted(headers[one].keys() & headers[other].keys()):
            raise UserError(f"{path}: {name} is in both {one.name} and {other.name}")
    return headers


def interpret(
    contents: Contents,
    where: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    window_size: int | tuple[int, int] | None = None,
) -> Weights:
    """Tensors of any format we know: names and shapes first, then the values.

    Args:
        where: file or folder, for messages.
        image_size, window_size: what foreign weights were made for, where nothing says it.
    """
    given = {"image_size": image_size, "window_size": window_size}
    header, folder = contents.header, contents.folder
    try:
        config, processor = (_document(folder, name) for name in (CONFIG, PROCESSOR))
        keys, dense = keys_of(header, config), dense_sources(header, config)
        theirs = {name: info.shape for name, info in header.items()}
        network_keys = replace(keys, sources={name: keys.sources[name] for name in keys.sources if name not in dense})
        shapes, windows = formats.our_shapes(theirs, network_keys), coordinates.windows_of(theirs, keys.coordinates)
        said = dict(contents.known)
        if config is not None and "swin_mim" in config:
            description = describe(config, CONFIG)
            said |= {key: getattr(description.config, key) for key in (*given, "pretrained_window_sizes")}
            parts = description.config, description.kind, description.num_classes
            every_stage = bool(description.stage_weights)
            sim_mim = description.kind == "SimMIM"
            said_of_heads = description.config, description.target, every_stage, description.teacher_width
            heads = head_outputs(*said_of_heads) if sim_mim else {}
            network.check_shapes(shapes, *parts, by=CONFIG, heads=heads)
        else:
            said = hints(config or {}, CONFIG, processor=processor) | said
            known = {key: size for key, size in given.items() if size is not None} | said
            description = guess(shapes, known if windows is None else known | {"windows": windows})
            if dense:
                description = _with_upernet(description, {name: theirs[dense[name]] for name in dense}, known)
        _check_said(said, given)
        network.check_windows(windows, description.config)
        raw = contents.load()
        description = _measured(description, raw, keys, said)
        tensors = {name: _as_float32(tensor, name) for name, tensor in formats.to_ours(raw, keys).items()}
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from None
    check_finite(tensors, where)
    guessed = image_size is None and "image_size" not in said
    unused = formats.key_biases(raw, keys)
    notes = f"left, as a Swin V2 has no bias on keys: the middle third of {formats.first_names(unused, '')}"
    return Weights(
        *(description, tensors, keys, contents.selection), size_is_guessed=guessed, notes=(notes,) if unused else ()
    )


def keys_of(
    names: Collection[str], document: Mapping[str, Any] | None, format: formats.Format | None = None
) -> formats.KeyMap:
    """`formats.key_map` of the tensors of a source, those of a head for a dense task among them.

    Args:
        document: the config.json beside them.

    Raises:
        UserError: as `formats.key_map`.
    """
    whole, dense = network_names(names, document), dense_sources(names, document)
    keys = formats.key_map(whole, format)
    sources = {name: tuple(whole[each] for each in theirs) for name, theirs in keys.sources.items()}
    return replace(
        keys,
        sources=sources | {name: (theirs,) for name, theirs in dense.items()},
        left=(*(whole[name] for name in keys.left), *sorted(set(names) - {*whole.values(), *dense.values()})),
        coordinates=tuple(tuple(whole[name] for name in stage) for stage in keys.coordinates),
    )


def _with_upernet(description: Description, shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> Description:
    """The same with the head of transformers' UperNet.

    Args:
        shapes: of the tensors of its head, under our names.
    """
    head, classes = upernet_settings(shapes)
    labels = hints.get("labels")
    if labels and len(labels) != classes:
        raise UserError(f"id2label has {counted(len(labels), 'name')} and the classifier {classes} outputs")
    return replace(
        description,
        kind="SwinSegmenter",
        num_classes=classes,
        labels=tuple(labels) if labels else None,
        head=head,
    )


def _check_said(said: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise a UserError where a source says another size of itself than was said of it."""
    for key, size in given.items():
        if size is not None and as_pair(said.get(key, size)) != as_pair(size):
            what = {"image_size": "images", "window_size": "windows"}[key]
            raise UserError(f"is for {what} of {said[key]}, as it says itself, not of {size}")


def _measured(
    description: Description, raw: Mapping[str, Tensor], keys: formats.KeyMap, said: Mapping[str, Any]
) -> Description:
    """With the windows that measure positions, where the buffers of a Swin V2 tell them.

    Raises:
        UserError: they tell others than what stands beside them says.
    """
    config = description.config
    if not keys.coordinates:
        return description
    windows = [config.stage_window(stage) for stage in range(config.num_stages)]
    found = coordinates.measures_of(raw, keys.coordinates, windows)
    now = tuple(
        tuple(measure if measure and side > 1 else side for measure, side in zip(as_pair(size), window, strict=True))
        for size, window in zip(config.pretrained_window_sizes, windows, strict=True)
    )
    if found == now:
        return description
    if "pretrained_window_sizes" in said:
        raise UserError(
            f"pretrained_window_sizes is {config.pretrained_window_sizes}, and the file's relative_coords_table is of "
            f"{found}: one of them is another model's"
        )
    sizes = tuple(height if height == width else (height, width) for height, width in found)
    return replace(description, config=replace(config, pretrained_window_sizes=sizes))


def guess(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> Description:
    """What foreign weights are, from their shapes (under our names) and from what stands beside them."""
    keys = ("image_size", "window_size", "windows", "pretrained_window_sizes")
    sizes = {key: hints[key] for key in keys if key in hints}
    config, kind, classes = network.network_of(shapes, **sizes)
    plain = Preprocessing() if config.in_channels == 3 else Preprocessing.unknown(config.in_channels)
    mean, std = (tuple(hints.get(key, getattr(plain, key))) for key in ("mean", "std"))
    if not len(mean) == len(std) == config.in_channels:
        channels = counted(config.in_channels, "channel")
        raise UserError(f"mean has {counted(len(mean), 'value')} and std {len(std)}, for {channels}")
    labels = hints.get("labels") if classes else None
    if labels and len(labels) != classes:
        names = counted(len(labels), "name of a class", "names of classes")
        verb = "is" if len(labels) == 1 else "are"
        raise UserError(f"there {verb} {names} and {counted(classes, 'output')} of the head")
    heads = heads_in(shapes)
    target, every_stage = told_by(heads, config)
    return Description(
        kind,
        config,
        target=hints.get("target", target),
        num_classes=classes,
        labels=tuple(labels) if labels else None,
        preprocessing=Preprocessing(
            mean,
            std,
            plain.channels,
            hints.get("interpolation", plain.interpolation),
            hints.get("crop_pct", plain.crop_pct),
            hints.get("scale", plain.scale),
        ),
        stage_weights=(1 / config.num_stages,) * config.num_stages if every_stage else (),
        teacher_width=heads.get(TEACHER, 0),
    )


def is_mim_head(name: str) -> bool:
    """Whether a tensor is only there for masked image modelling."""
    return name == "mask_token" or name.startswith("decoder.") or is_head(name)


def _document(folder: Path | None, name: str) -> dict[str, Any] | None:
    return read_document(folder / name) if folder is not None and (folder / name).is_file() else None


def is_saved_model(folder: Path) -> bool:
    """Whether a folder holds a model that we saved."""
    return (folder / CONFIG).is_file() and "swin_mim" in read_document(folder / CONFIG)


def _as_float32(tensor: Tensor, name: str) -> Tensor:
    if not tensor.is_floating_point():
        raise UserError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}: weights are floating-point numbers")
    return tensor.to(torch.float32)
