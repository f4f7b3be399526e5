"""The formats that a model is written in, and the reading of each file for the comparison with ours."""

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swin_mim.cli.export.graph import Graph, Run, described
from swin_mim.errors import UserError
from swin_mim.hub.exports import Format

Size = tuple[int, int]

OPSET = 20
PROTOBUF_BYTES = 2 << 30
"""Max bytes of an ONNX file, which is one protobuf message."""


class _Kind(NamedTuple):
    write: Callable[[Graph, Path, Size | None], None]
    open: Callable[[Path], Run]


def write(graph: Graph, kind: Format, path: Path, fixed: Size | None) -> None:
    """Write a file for any number of images, of any size or of `fixed` alone.

    Raises:
        UserError: the model is larger than such a file can be, or a package is missing.
    """
    with torch.no_grad(), _quiet():
        KINDS[kind].write(graph, path, fixed)


def check_packages(kind: Format) -> None:
    """Raise a UserError where a format needs what is not installed."""
    for name in ("onnx", "onnxruntime", "onnxscript") if kind == "onnx" else ():
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"--to onnx needs {name}, which is not installed: pip install 'swin-mim[onnx]'") from None


def open_onnx(path: Path) -> Run:
    """An ONNX file in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its warnings are of its own optimisations
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = [given.name for given in session.get_inputs()]

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(values) for values in session.run(None, {name: images.numpy()})]

    return run


def _write_onnx(graph: Graph, path: Path, fixed: Size | None) -> None:
    size = sum(4 * each.numel() for each in graph.parameters())
    if size >= PROTOBUF_BYTES:
        raise UserError(
            f"the weights are {size / 1e9:.1f} GB and an ONNX file holds less than {PROTOBUF_BYTES / 1e9:.1f} GB: "
            "export it with --to torch-export"
        )
    program: Any = torch.onnx.export(
        _exported(graph, fixed),
        input_names=["images"],
        output_names=graph.names,
        opset_version=OPSET,
        external_data=False,
        optimize=True,
        verbose=False,
    )
    program.model.metadata_props.update({f"swin_mim.{key}": value for key, value in described(graph).items()})
    _name_sides(program.model, graph, fixed)
    program.save(str(path), external_data=False)


def _name_sides(model: Any, graph: Graph, fixed: Size | None) -> None:
    """Call the free sides of the images by names that a reader of the file understands."""
    import onnx_ir

    channels = graph.encoder.config.in_channels
    sides = list(fixed) if fixed is not None else ["height", "width"]
    shape = ["batch", *sides, channels] if graph.layout == "nhwc" else ["batch", channels, *sides]
    model.graph.inputs[0].shape = onnx_ir.Shape(shape)


def _write_program(graph: Graph, path: Path, fixed: Size | None) -> None:
    program = _exported(graph, fixed)
    with path.open("wb") as file:  # by the name of the file it would have to end in .pt2
        torch.export.save(program, file, extra_files=described(graph))


def _open_program(path: Path) -> Run:
    with _quiet(), path.open("rb") as file:
        return torch.export.load(file).module()


def _write_script(graph: Graph, path: Path, fixed: Size | None) -> None:
    assert fixed is None, "a trace is for any size"
    example = graph.example(2, _example_size(graph))
    traced = torch.jit.trace(graph, (example,), check_trace=False)
    torch.jit.save(torch.jit.freeze(traced.eval()), str(path), _extra_files=described(graph))


def _open_script(path: Path) -> Run:
    with _quiet():
        return torch.jit.load(str(path))


KINDS: dict[Format, _Kind] = {
    "onnx": _Kind(_write_onnx, open_onnx),
    "torch-export": _Kind(_write_program, _open_program),
    "torchscript": _Kind(_write_script, _open_script),
}


def _exported(graph: Graph, fixed: Size | None) -> torch.export.ExportedProgram:
    patch = graph.encoder.config.patch_size
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if fixed is None:
        place = 1 if graph.layout == "nhwc" else 2
        free |= {place: patch * torch.export.Dim("rows", min=2), place + 1: patch * torch.export.Dim("columns", min=2)}
    example = graph.example(2, fixed or _example_size(graph))
    return torch.export.export(graph, (example,), dynamic_shapes={"images": free})


def _example_size(graph: Graph) -> Size:
    """No two numbers of it are alike anywhere in the network, or a graph could be taken to need that they are."""
    config = graph.encoder.config
    side = config.patch_size * 2 ** (config.num_stages - 1) * max(max(config.stage_window(0)), 4)
    return side, side + side // 4


@contextmanager
def _quiet() -> Iterator[None]:
    """What the writers themselves say of their own future is nothing that a user could mend."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning, UserWarning, torch.jit.TracerWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
