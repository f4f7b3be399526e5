"""Write a model as a file for other runtimes: ONNX, torch.export, TorchScript. What was written is compared first.

    swin-mim export runs/mine_fine --to onnx --out classifier.onnx
    swin-mim export runs/mine_fine --to onnx --preprocess nhwc --out classifier.onnx
    swin-mim export runs/mine --to torch-export --output pyramid --out pyramid.pt2
    swin-mim export runs/mine_fine --to onnx --int8 photos --out classifier.onnx

MODEL is whatever from_pretrained loads: a run, an export, a checkpoint, a file of weights, a repository on the Hub.

A file takes any number of images. With --size it takes images of that size alone, else of any size whose sides are
multiples of the patch (of 4, as a rule) and at least two patches long. Without --preprocess images come normalised,
float32 (B, C, H, W); with it they come as they are decoded, uint8, and the file normalises them. It does not resize.

The file is run on random images, one and five, at two sizes, and compared with the model. It is not written if they
differ by more than a thousandth of the largest value.

Without --out the file goes into the model's own folder, of which the card then lists it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swin_mim.cli.options import add_source_options, given_source_settings, told_once
from swin_mim.errors import Parser, UserError, one_line_errors
from swin_mim.hub.exports import INT8, OUTPUTS, SUFFIXES

if TYPE_CHECKING:
    from swin_mim.cli.export.graph import Graph


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="swin-mim export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run, an export, a checkpoint, a weight file, or user/name on the Hub")
    add("--to", required=True, choices=tuple(SUFFIXES), help="onnx needs pip install 'swin-mim[onnx]'")
    add("--out", type=Path, metavar="FILE", help=f"ends in {', '.join(SUFFIXES.values())}, as --to says")
    text = (
        "features: the last grid after the final norm; embedding: its mean; pyramid: a map of each stage; logits: of a "
        "classifier or segmenter (default: logits of these, features of other models)"
    )
    add("--output", choices=OUTPUTS, help=text)
    text = "normalise in the file: images are uint8 (B, C, H, W) or (B, H, W, C), of other channels than RGB float32"
    add("--preprocess", choices=("nchw", "nhwc"), help=text)
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="for images of this size alone (default: of any size)")
    add("--overwrite", action="store_true", help="replace what is there")
    text = "write NAME_int8.onnx too, with 8-bit weights, and measure on these images what that costs"
    add("--int8", metavar="IMAGES", help=text)
    add("--label-column", help="of a table of --int8; without it the one that is evident")
    add_source_options(parser)
    options = parser.parse_args(arguments)
    _check(options, parser)
    return options


def _check(options: argparse.Namespace, parser: Parser) -> None:
    suffix = SUFFIXES[options.to]
    if options.out is not None and options.out.suffix.lower() != suffix:
        parser.error(f"--out {options.out} must end in {suffix}, with --to {options.to}")
    if options.to == "torchscript" and options.size:
        parser.error(f"--size {' '.join(map(str, options.size))}: a TorchScript file takes any size, leave it out")
    if options.int8 and options.to != "onnx":
        parser.error(f"--int8 is of ONNX files: --to onnx, not {options.to}")
    given = [name for name, value in given_source_settings(options).items() if value is not None]
    given += ["label_column"] if options.label_column else []
    if given and not options.int8:
        parser.error(f"--{given[0].replace('_', '-')} says how the images of --int8 are read, and there are none")


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors("interrupted: nothing was written"):
        export(parse(arguments))


def export(options: argparse.Namespace) -> None:
    """Write the file or files, and say what was found."""
    from swin_mim.cli.export.formats import check_packages
    from swin_mim.cli.export.graph import load_graph

    check_packages(options.to)
    graph = load_graph(options.model, options.output, options.preprocess)
    fixed = _fixed(options, graph)
    files = _files(options, graph)
    _write(options, graph, fixed, files)
    _list_in_card(graph, fixed, files)


def _fixed(options: argparse.Namespace, graph: "Graph") -> tuple[int, int] | None:
    if options.size is None:
        return None
    patch = graph.encoder.config.patch_size
    for side in options.size:
        if side < patch or side % patch:
            raise UserError(f"--size {side} is not a multiple of the patch, which is {patch} pixels")
    return options.size[0], options.size[1]


def _files(options: argparse.Namespace, graph: "Graph") -> list[Path]:
    """The file, and with --int8 that of 8 bits.

    Raises:
        UserError: one is there already, cannot be there, or has no place.
    """
    from swin_mim.hub import pretrained, repository

    out = options.out
    if out is None:
        folder = pretrained.locate(options.model, pickles=True)
        if repository.is_repo_name(options.model) or not _is_published(folder):
            raise UserError(f"{options.model} is not a folder that the file could go into: say where with --out FILE")
        out = folder / f"{graph.output}{SUFFIXES[options.to]}"
    files = [out, *([out.with_name(f"{out.stem}{INT8}{out.suffix}")] if options.int8 else [])]
    for path in files:
        if not path.parent.is_dir():
            raise UserError(f"--out {path}: there is no folder {path.parent}")
        if path.is_dir() or (path.exists() and not options.overwrite):
            raise UserError(f"{path} is there already: --overwrite replaces it, --out names another file")
        if _is_published(path.parent) and path.stem.removesuffix(INT8) != graph.output:
            raise UserError(
                f"{path.name} would lie in a published model, where files are named after their output: "
                f"{graph.output}{path.suffix}, or leave --out out"
            )
    return files


def _is_published(folder: Path) -> bool:
    """Whether a folder is a published model, which a checkpoint is not: it has no card."""
    from swin_mim.hub import pretrained

    return folder.is_dir() and pretrained.is_saved_model(folder) and (folder / pretrained.CARD).is_file()


def _write(options: argparse.Namespace, graph: "Graph", fixed: tuple[int, int] | None, files: list[Path]) -> None:
    from contextlib import ExitStack

    from swin_mim.cli.export import check, formats, int8
    from swin_mim.files import replacing, said_of_disk

    images = None
    if options.int8:
        settings = given_source_settings(options)
        with told_once():
            images = int8.open_labelled_images(graph, options.model, options.int8, settings, options.label_column)
    with said_of_disk(files[0]), ExitStack() as stack:
        staged = [stack.enter_context(replacing(path)) for path in files]
        for path in staged:
            path.touch()  # a place that takes no files is said now, not after minutes of tracing; a kill leaves nothing
            path.unlink()
        formats.write(graph, options.to, staged[0], fixed)
        run = formats.KINDS[options.to].open(staged[0])
        found = check.differences(graph, run, check.sizes_to_check(graph, fixed))
        print("greatest difference from the model, in its largest value:")
        print("\n".join(f"  {each.line()}" for each in found))
        if images is not None:
            int8.quantize(staged[0], staged[1])
            loss = int8.measure(graph, (staged[0], staged[1]), images, fixed or graph.size)
            print("\n".join(int8.loss_text(loss, graph)))
    for path in files:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {_takes(graph, fixed)}")


def _takes(graph: "Graph", fixed: tuple[int, int] | None) -> str:
    """What images the file takes."""
    from swin_mim.cli.export.graph import described

    patch = graph.encoder.config.patch_size
    sizes = f"sides that are multiples of {patch}, from {2 * patch} on" if fixed is None else f"{fixed[0]} x {fixed[1]}"
    return f"any number of images, {sizes}, {described(graph)['images']}"


def _list_in_card(graph: "Graph", fixed: tuple[int, int] | None, files: list[Path]) -> None:
    """Name the files in the card of the published model that they lie in, if they lie in one."""
    from swin_mim.files import said_of_disk
    from swin_mim.hub import exports, pretrained

    folder = files[0].parent
    if _is_published(folder):
        card = folder / pretrained.CARD
        with said_of_disk(card):
            exports.list_in_card(card, {path.name: _takes(graph, fixed) for path in files})
        print(f"{card} lists {' and '.join(path.name for path in files)}")
