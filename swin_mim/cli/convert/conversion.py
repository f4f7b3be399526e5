"""What `swin-mim convert` does: reads weights of any format, adapts them, writes them, and compares the outputs."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from swin_mim.architecture import as_pair
from swin_mim.cli.convert import libraries as peers
from swin_mim.cli.convert.report import Comparison, Left, Report, Row, Side, place
from swin_mim.errors import UserError
from swin_mim.files import said_of_disk
from swin_mim.hub import pretrained, repository, saved
from swin_mim.hub.about import About
from swin_mim.hub.pretrained import Weights, is_mim_head
from swin_mim.models.saving import Pretrained
from swin_mim.weights.adapt import Method, adapt
from swin_mim.weights.config_json import Description, read_document
from swin_mim.weights.dense_heads import is_dense_head
from swin_mim.weights.formats import KeyMap, left_out, merges_unfolded, third
from swin_mim.weights.heads import is_head
from swin_mim.weights.layouts import Format
from swin_mim.weights.pickled_file import is_pickled, load_pickled
from swin_mim.weights.weights_file import load_tensors, write_safetensors

Target = Literal["timm", "transformers", "microsoft", "torchvision", "swin_mim"]
Size = int | tuple[int, int]
Tensors = dict[str, Tensor]

FILES = {"microsoft": "model", "torchvision": None}
"""Targets that are one file, and the key under which a pickle of theirs has the weights. The others are folders."""
SAFETENSORS = ".safetensors"
TOLERANCE = 1e-4
"""The largest difference of outputs that is rounding, as a part of their scale."""


@dataclass(frozen=True)
class Source:
    weights: Weights
    raw: Tensors
    """Under the names of the source less their prefix, as they are there."""
    side: Side


@dataclass(frozen=True)
class Options:
    """How weights become others: the options of the command, by their names."""

    image_size: Size | None = None
    window_size: Size | None = None
    bias_tables: Method = "bicubic"
    channels: int | Sequence[str] | None = None
    encoder_only: bool = False
    source_image_size: Size | None = None
    source_window_size: Size | None = None
    prefix: str = ""
    microsoft: str | None = None
    compare: bool = True


def convert(source: str, dest: Path, to: Target, options: Options) -> Report:
    """Write `dest`, whole or not at all -> what was done.

    Raises:
        UserError: the source cannot be read, the target cannot hold it, there is something at `dest`, or the outputs
            differ.
    """
    check_dest(dest, to)
    original = read(source, options.source_image_size, options.source_window_size, options.prefix)
    description, tensors, left = chosen_parts(original.weights, to, options.encoder_only)
    sizes = {"image_size": options.image_size, "window_size": options.window_size}
    fields = {field: size for field, size in sizes.items() if size is not None}
    description, tensors, changes = adapt(
        description, tensors, fields, bias_tables=options.bias_tables, channels=options.channels
    )
    with appearing(dest) as path:
        write(path, to, description, tensors, About(base_model=source if repository.is_repo_name(source) else None))
        written = written_at(path, to)
        comparisons: tuple[Comparison, ...] = ()
        if options.compare:
            by_source = compare_source(original, options.microsoft)
            comparisons = by_source, compare_target(to, description, tensors, written, options.microsoft)
    keys = pretrained.keys_of(written, document_of(dest, to), to)
    return Report(
        source=original.side,
        target=side_of(str(dest), to, description, tensors),
        rows=rows(original.weights, keys, tensors),
        left=left,
        added=keys.left,
        changed=(*prefixes(original.weights), *original.weights.notes, *casts(original), *changes),
        comparisons=comparisons,
    )


# The source.


def read(source: str, image_size: Size | None, window_size: Size | None = None, prefix: str = "") -> Source:
    """A file, pickled or not, a folder or a repository.

    Args:
        image_size, window_size: what the weights were made for, if the source does not say it.
        prefix: of the names of the network that is meant, if there are several.
    """
    path = Path(source).expanduser()
    path = path if is_pickled(path) else pretrained.locate(source)
    contents = pretrained.open_contents(path, pickles=True, prefix=prefix)
    raw = contents.load()
    weights = pretrained.interpret(
        replace(contents, load=lambda: raw), str(path), image_size=image_size, window_size=window_size
    )
    # The encoder or classifier in a folder of ours has timm's names; a pickle of ours does not exist.
    ours = contents.folder is not None and pretrained.is_saved_model(contents.folder)
    format = "swin_mim" if ours and weights.keys.format == "timm" else weights.keys.format
    side = side_of(source, format, weights.description, weights.tensors, size_is_guessed=weights.size_is_guessed)
    return Source(weights, raw, side)


# What becomes of it.


def chosen_parts(weights: Weights, to: Target, encoder_only: bool) -> tuple[Description, Tensors, tuple[Left, ...]]:
    """The network that is to be written, its tensors under our names, and what of the source is left."""
    in_file = weights.selection.names
    left = [Left(name, "as no part of the network") for name in weights.selection.left]
    left += [Left(in_file[name], "as the geometry decides it") for name in weights.keys.left]
    if encoder_only:
        heads = (is_mim_head, is_dense_head, lambda name: name.startswith("head."))
        unwanted = {name for name in weights.tensors if any(is_head(name) for is_head in heads)}
        why = "as --encoder-only asks"
    else:
        unwanted = set(left_out(to, weights.tensors))
        if to not in ("swin_mim", "transformers"):
            unwanted |= set(filter(is_dense_head, weights.tensors))
        if weights.description.kind == "Swin":
            unwanted |= {"mask_token"} & weights.tensors.keys()
        why = f"as {to} has no place for it"
    for name, theirs in weights.keys.sources.items():
        left += [Left(in_file[source], why) for source in theirs if name in unwanted]
    tensors = {name: tensor for name, tensor in weights.tensors.items() if name not in unwanted}
    description = weights.description
    if any(map(is_head, unwanted)):  # what is left decodes pixels
        target: Any = "normalized" if description.target == "normalized" else "pixels"
        description = replace(description, target=target, stage_weights=(), teacher_width=0)
    if any(not is_head(name) for name in unwanted) and description.kind != "Swin":
        description = replace(description, kind="Swin", target="pixels", num_classes=0, labels=None, head={})
    return description, tensors, tuple(left)


def prefixes(weights: Weights) -> list[str]:
    return [line for line in weights.selection.lines() if line.startswith("prefix")]


def casts(original: Source) -> Iterator[str]:
    sources = {name for names in original.weights.keys.sources.values() for name in names}
    for dtype in sorted({str(original.raw[name].dtype).removeprefix("torch.") for name in sources} - {"float32"}):
        yield f"{dtype} becomes float32"


# The target.


def check_dest(dest: Path, to: Target) -> None:
    if to in FILES and dest.suffix not in (".pth", ".pt", SAFETENSORS):
        raise UserError(f"{dest}: {to} weights are one file, whose name ends in .pth or {SAFETENSORS}")
    if dest.is_symlink() or dest.is_file() or (dest.is_dir() and (to in FILES or any(dest.iterdir()))):
        raise UserError(f"{dest} exists: name a new {'file' if to in FILES else 'or empty folder'}")


@contextmanager
def appearing(dest: Path) -> Iterator[Path]:
    """A path to write to, which becomes `dest` when the block ends well; else nothing stays but its folder."""
    target = dest.absolute()
    staging = target.with_name(f".{target.name}.converting.{os.getpid()}")
    try:
        with said_of_disk(dest):
            staging.mkdir(parents=True)
            yield staging / target.name
            (staging / target.name).rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write(path: Path, to: Target, description: Description, tensors: Tensors, about: About) -> None:
    """The file, or the folder, of a target."""
    if to == "swin_mim":
        model = peers.build("swin_mim", description, tensors).model
        assert isinstance(model, Pretrained)
        model.save_pretrained(path, about=about)
        return
    if to in FILES:
        state = saved.to_theirs(to, description, tensors)
        if path.suffix == SAFETENSORS:
            write_safetensors(state, path)
        else:
            with path.open("wb") as file:
                torch.save({FILES[to]: state} if FILES[to] else state, file)
                file.flush()
                os.fsync(file.fileno())
        return
    if to == "timm":
        saved.to_theirs(to, description, tensors)  # refuses what timm cannot build
    path.mkdir()
    (saved.write if to == "timm" else saved.write_transformers)(path, description, tensors)


def document_of(path: Path, to: Target) -> dict[str, Any] | None:
    """The config.json of what was written."""
    return None if to in FILES else read_document(path / pretrained.CONFIG)


def written_at(path: Path, to: Target) -> Tensors:
    """The tensors that were written, read again."""
    if path.is_dir():
        return pretrained.load_files(path)
    return load_tensors(path) if path.suffix == SAFETENSORS else load_pickled(path).tensors


# The comparison.


def compare_source(original: Source, microsoft: str | None) -> Comparison:
    """The library that the weights are from and ours, before anything is adapted."""
    format = original.weights.keys.format
    description, tensors = original.weights.description, original.weights.tensors
    if original.side.format in ("swin_mim", "checkpoint"):
        return Comparison("source", "ours", {}, "the source is ours")
    if format == "mmpretrain":
        return Comparison(format, "ours", {}, "its code is not at hand")
    try:
        theirs = their_state(original)
        peer = peers.build(format, description, theirs, microsoft=microsoft)
    except (peers.NotBuilt, UserError) as reason:
        return Comparison(format, "ours", {}, str(reason))
    return compared(format, peer, "ours", peers.build("swin_mim", description, tensors), description)


def their_state(original: Source) -> Tensors:
    """The source's own tensors, with the buffers of the geometry that it was found to have."""
    weights = original.weights
    buffers = saved.to_theirs(weights.keys.format, weights.description, weights.tensors)
    names = [name for theirs in weights.keys.sources.values() for name in theirs]
    # microsoft's old names of V2 are today's here already
    return buffers | {name: original.raw[name].float() for name in names if name in buffers}


def compare_target(
    to: Target, description: Description, tensors: Tensors, written: Tensors, microsoft: str | None
) -> Comparison:
    """Ours and the library that the weights are for, with what was written."""
    try:
        peer = peers.build(to, description, written, microsoft=microsoft)
    except peers.Different as difference:
        raise UserError(f"{to} does not take what was written for it: {difference}") from None
    except peers.NotBuilt as reason:
        return Comparison("ours", to, {}, str(reason))
    return compared("ours", peers.build("swin_mim", description, tensors), to, peer, description)


def compared(one: str, first: peers.Peer, other: str, second: peers.Peer, description: Description) -> Comparison:
    """Differences of all outputs that both have.

    Raises:
        UserError: one is more than rounding.
    """
    config = description.config
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, config.in_channels, *as_pair(config.image_size), generator=generator)
    mask = torch.rand(1, *config.stage_grid(0), generator=generator) < 0.5
    with torch.no_grad():
        ours, theirs = first.outputs(images, mask), second.outputs(images, mask)
    differences = {}
    for name in (name for name in ours if name in theirs):
        apart, scale = (ours[name] - theirs[name]).abs().max().item(), ours[name].abs().max().item()
        if not apart <= TOLERANCE * scale:
            raise UserError(f"{name} of {one} and {other} differ by {apart:.2e} of {scale:.2e}: nothing was written")
        differences[name] = (apart, scale)
    assert differences
    return Comparison(one, other, differences)


# The report.


def rows(original: Weights, keys: KeyMap, tensors: Tensors) -> tuple[Row, ...]:
    """Every tensor that the target gets."""
    return tuple(
        Row(in_file(theirs, original), name, keys.sources[name], tuple(notes(name, original, keys, tensors)))
        for name, theirs in sorted(original.keys.sources.items(), key=lambda pair: place(pair[0]))
        if name in tensors
    )


def in_file(theirs: Sequence[str], original: Weights) -> tuple[str, ...]:
    """Names of the source as they are there, prefix included."""
    return tuple(original.selection.names[name] for name in theirs)


def notes(name: str, original: Weights, keys: KeyMap, tensors: Tensors) -> Iterator[str]:
    theirs, written = original.keys.sources[name], keys.sources[name]
    if len(theirs) != len(written):
        yield "merged" if len(theirs) > 1 else "split"
    if (third(name, theirs) is None) != (third(name, written) is None):
        yield "put beside others" if third(name, theirs) is None else "cut out"
    if merges_unfolded(name, original.keys):
        yield "permuted"
    if not torch.equal(tensors[name], original.tensors[name]):
        yield "adapted"


def side_of(
    where: str, format: Format, description: Description, tensors: Tensors, *, size_is_guessed: bool = False
) -> Side:
    config = description.config
    return Side(
        where,
        format,
        description.kind,
        as_pair(config.image_size),
        tuple(config.stage_window(stage) for stage in range(config.num_stages)),
        sum(tensor.numel() for tensor in tensors.values()),
        description.num_classes,
        description.preprocessing.channels or config.in_channels,
        description.target if description.kind == "SimMIM" else None,
        size_is_guessed,
    )
