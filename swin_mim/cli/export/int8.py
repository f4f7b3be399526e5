"""An ONNX file whose weights are 8-bit integers, and what that costs on images."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swin_mim.cli.export.formats import open_onnx
from swin_mim.cli.export.graph import Graph
from swin_mim.counts import counted
from swin_mim.data.loading.loader import Batch
from swin_mim.data.sources.base import Source
from swin_mim.evaluation.outputs.collect import Outputs, reader_of
from swin_mim.evaluation.outputs.embeddings import data_config
from swin_mim.evaluation.outputs.images import labels_of, open_images
from swin_mim.evaluation.outputs.parts import none_read
from swin_mim.evaluation.reader import read_of
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training.config.pretrain import DataConfig

BATCH = 8
_LAYERS = ["MatMul", "Gemm"]
"""Products with weights. Convolutions of heads stay in fp32: onnxruntime is slower with them in int8 on a CPU."""


class Images(NamedTuple):
    """Images that the loss of accuracy is measured on."""

    source: Source
    data: DataConfig
    labels: Sequence[str | None] | None
    name: str


def open_labelled_images(
    graph: Graph, model: str, spec: str, given: dict[str, Any], label_column: str | None
) -> Images:
    """Open the images and their labels, if there are any.

    Raises:
        UserError: they cannot be opened, or have other channels than the model takes.
    """
    data = data_config(spec, graph.model, model, given)
    source = open_images(data)
    return Images(source, data, labels_of(data, source, label_column), spec)


def quantize(float_file: Path, path: Path) -> None:
    """Write an ONNX file in which products with weights are of 8-bit integers, the scale of the other factor being
    found for each batch as it comes (dynamic quantisation), that of the weights for each output channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="swin_mim_") as folder:
        folded = Path(folder) / "folded.onnx"  # in which what depends on weights alone is numbers
        quant_pre_process(str(float_file), str(folded), skip_symbolic_shape=True)
        quantize_dynamic(
            str(folded), str(path), op_types_to_quantize=_LAYERS, per_channel=True, weight_type=QuantType.QInt8
        )


@dataclass
class Loss:
    """What the 8-bit file does otherwise than the file in fp32, over images."""

    images: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of the images that could not be read."""
    agreed: float = 0.0
    """Sum over the images: 1 for the same class, or the share of the pixels with the same."""
    labelled: int = 0
    right: list[int] = field(default_factory=lambda: [0, 0])
    """Images whose label is the class, in fp32 and in 8 bits."""
    cosines: dict[str, list[float]] = field(default_factory=dict)
    """Of each image's features with those in fp32, by name of the tensor."""


def measure(graph: Graph, files: tuple[Path, Path], images: Images, size: tuple[int, int]) -> Loss:
    """Run the file in fp32 and the one of 8 bits on every image, at this size.

    Raises:
        UserError: not one image can be read.
    """
    exact, small = map(open_onnx, files)
    classes = {name: number for number, name in enumerate(graph.model.labels or ())}
    loss = Loss(cosines={} if graph.output == "logits" else {name: [] for name in graph.names})
    for pixels, labels in _batches(graph, images, loss, size):
        pairs = list(zip(graph.names, exact(pixels), small(pixels), strict=True))
        loss.images += len(pixels)
        if graph.output == "logits":
            _, ours, theirs = pairs[0]
            _count(loss, ours.argmax(1), theirs.argmax(1), [classes.get(label or "") for label in labels])
        for name, values in loss.cosines.items():
            ours, theirs = next((a, b) for known, a, b in pairs if known == name)
            values.extend(torch.cosine_similarity(ours.flatten(1), theirs.flatten(1)).tolist())
    if not loss.images:
        raise none_read(len(loss.broken), images.name, loss.broken[0])
    return loss


def loss_text(loss: Loss, graph: Graph) -> list[str]:
    """Say what was measured, a line each."""
    number = counted(loss.images, "image") + (f" ({len(loss.broken)} cannot be read)" if loss.broken else "")
    if graph.output == "logits":
        what = "the same class for" if graph.model.kind == "SwinClassifier" else "the same class of pixels:"
        lines = [f"int8: {what} {loss.agreed / loss.images:.2%} of {number}"]
        if loss.labelled:
            exact, small = (f"{count / loss.labelled:.2%}" for count in loss.right)
            lines.append(f"int8: accuracy {small}, fp32 {exact}, of {counted(loss.labelled, 'image')} with a label")
        return lines
    return [
        f"int8: cosine of {name} with fp32 {sum(values) / len(values):.5f} mean, {min(values):.5f} min, of {number}"
        for name, values in loss.cosines.items()
    ]


def _count(loss: Loss, exact: Tensor, small: Tensor, labels: Sequence[int | None]) -> None:
    """Add a batch; exact, small: classes (B,), or of pixels (B, H, W)."""
    loss.agreed += (
        float((exact == small).float().flatten(1).mean(1).sum()) if exact.ndim > 1 else int((exact == small).sum())
    )
    if exact.ndim > 1:
        return
    for place, label in enumerate(labels):
        if label is not None:
            loss.labelled += 1
            loss.right[0] += int(exact[place]) == label
            loss.right[1] += int(small[place]) == label


def _batches(
    graph: Graph, images: Images, loss: Loss, size: tuple[int, int]
) -> Iterator[tuple[Tensor, list[str | None]]]:
    """Images as the graph takes them, with their labels; those that cannot be read are counted and left out."""
    outputs = Outputs(graph, graph, {}, graph.model.preprocessing, size)
    reader = reader_of(outputs, images.data, images.source, BATCH)
    for batch in reader.batches(images.source, range(0, len(images.source), BATCH)):
        read = read_of(batch)
        loss.broken += [(each.name, each.reason) for each in batch.broken]
        if read.any():
            yield _pixels(graph, reader.preprocess, batch)[read], _labels(images, batch, read)


def _pixels(graph: Graph, preprocess: Preprocessor, batch: Batch) -> Tensor:
    if graph.layout is None:
        return preprocess(batch.images)
    return batch.images.permute(0, 2, 3, 1).contiguous() if graph.layout == "nhwc" else batch.images


def _labels(images: Images, batch: Batch, read: Tensor) -> list[str | None]:
    rows = range(batch.start, batch.start + len(read))
    kept = [row for row, there in zip(rows, read.tolist(), strict=True) if there]
    return [None if images.labels is None else images.labels[row] for row in kept]
