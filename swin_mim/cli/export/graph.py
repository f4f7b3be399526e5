"""What a file computes: a model of ours with one of its outputs, and what is done to images before it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from swin_mim.architecture import as_pair
from swin_mim.data.transforms.crops import normalize
from swin_mim.errors import UserError
from swin_mim.hub import pretrained
from swin_mim.hub.exports import Output
from swin_mim.kernels.graph_windows import shared_windows
from swin_mim.models.classifier import SwinClassifier
from swin_mim.models.dense.segmenter import SwinSegmenter
from swin_mim.models.saving import Pretrained
from swin_mim.models.swin import Swin

Layout = Literal["nchw", "nhwc"]

_OF_LOGITS: dict[str, type[Pretrained]] = {"SwinClassifier": SwinClassifier, "SwinSegmenter": SwinSegmenter}


class Graph(nn.Module):
    """Images -> the tensors of one output.

    Args:
        model: in evaluation mode, on the CPU.
        output: "features": the last grid after the final norm (B, h, w, D); "embedding": its mean (B, D); "pyramid":
            a map (B, D_i, h_i, w_i) of each stage; "logits": (B, K) of a classifier, (B, K, H, W) of a segmenter.
        layout: of images that are normalised here: uint8, or of a model of other channels than RGB float in the units
            of their files with NaN where there is no pixel. None: images come normalised, float (B, C, H, W).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Pretrained, output: Output, layout: Layout | None = None) -> None:
        super().__init__()
        self.model, self.output, self.layout = model, output, layout
        self.register_buffer("mean", torch.tensor(model.preprocessing.mean))
        self.register_buffer("std", torch.tensor(model.preprocessing.std))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images as `layout` says -> the output's tensors, in the order of `names`."""
        with shared_windows():
            return self._outputs(self.normalized(images))

    def normalized(self, images: Tensor) -> Tensor:
        """Images as `layout` says -> the model's input."""
        if self.layout is None:
            return images
        pixels = images.permute(0, 3, 1, 2) if self.layout == "nhwc" else images
        pixels = normalize(pixels, self.mean, self.std, self.scale)
        return pixels if self.scale == 255 else torch.where(pixels.isnan(), 0.0, pixels)

    def example(self, batch: int, size: tuple[int, int], seed: int = 0) -> Tensor:
        """Random images of the kind that it takes."""
        config, draw = self.encoder.config, torch.Generator().manual_seed(seed)
        shape = (batch, config.in_channels, *size)
        if self.layout is None:
            return torch.randn(shape, generator=draw)
        if self.scale == 255:
            pixels = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
        else:
            pixels = torch.randn(shape, generator=draw) * self.std[:, None, None] + self.mean[:, None, None]
            pixels[..., 0, 0] = float("nan")
        return pixels.permute(0, 2, 3, 1).contiguous() if self.layout == "nhwc" else pixels

    @property
    def encoder(self) -> Swin:
        found = getattr(self.model, "encoder", self.model)
        assert isinstance(found, Swin)
        return found

    @property
    def scale(self) -> float:
        return self.model.preprocessing.scale

    @property
    def size(self) -> tuple[int, int]:
        """The image size that the model was made for."""
        return as_pair(self.encoder.config.image_size)

    @property
    def names(self) -> list[str]:
        """Of the tensors that it gives."""
        stages = range(1, self.encoder.config.num_stages + 1)
        return [f"stage_{stage}" for stage in stages] if self.output == "pyramid" else [self.output]

    def _outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.output == "logits":
            found = self.model(images)
            return (found if isinstance(found, Tensor) else found.logits,)
        if self.output == "pyramid":
            return tuple(self.encoder.pyramid(images))
        grid = self.encoder(images)
        return (grid if self.output == "features" else grid.mean(dim=(1, 2)),)


def load_graph(source: str, output: Output | None, layout: Layout | None) -> Graph:
    """Load a model, with the output that is wanted, or without a wish the one that it is for.

    Raises:
        UserError: it has no such output, or cannot be read.
    """
    path = pretrained.locate(source, pickles=True)
    kind = pretrained.read(path, pickles=True).description.kind
    if kind == "SwinDetector" and output in (None, "logits"):
        raise UserError(
            f"{source} is a SwinDetector, whose boxes are not exported: how many there are differs from image to "
            "image. --output pyramid exports its encoder, and swin-mim predict writes what it finds"
        )
    chosen: Output = output or ("logits" if kind in _OF_LOGITS else "features")
    if chosen == "logits" and kind not in _OF_LOGITS:
        raise UserError(
            f"{source} is a {kind}, which has no logits: --output features, embedding or pyramid, or fine-tune it "
            "with swin-mim finetune or segment"
        )
    wanted = _OF_LOGITS[kind] if chosen == "logits" else Swin
    return Graph(wanted.from_pretrained(path, pickles=True), chosen, layout).eval()


def described(graph: Graph) -> dict[str, str]:
    """What a reader of the file has to know, as texts: in the file itself."""
    taken, (height, width) = graph.model.preprocessing, graph.size
    values: Mapping[str, object] = {
        "output": graph.output,
        "images": _INPUT[graph.layout][graph.scale != 255],
        "side_multiple": graph.encoder.config.patch_size,
        "image_size": f"{height} {width}",
        "crop_pct": taken.crop_pct,
        "interpolation": taken.interpolation,
        "mean": _listed(taken.mean),
        "std": _listed(taken.std),
        "scale": f"{taken.scale:g}",
        "nodata": "" if taken.nodata is None else repr(taken.nodata),
        "mask_channel": taken.mask_channel or "",
        "channels": ",".join(taken.channels or ()),
        "labels": "\n".join(graph.model.labels or ()),
    }
    return {key: str(value) for key, value in values.items() if value != ""}


_INPUT: dict[Layout | None, tuple[str, str]] = {
    None: ("normalised float32 NCHW",) * 2,
    "nchw": ("uint8 NCHW", "float32 NCHW in the units of the files"),
    "nhwc": ("uint8 NHWC", "float32 NHWC in the units of the files"),
}

Run = Callable[[Tensor], Sequence[Tensor]]
"""Images of a batch -> the tensors of the output."""


def _listed(values: Sequence[float]) -> str:
    return " ".join(map(repr, values))
