"""What a segmenter makes of images with masks, and what is written about it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.dense.joint import WholePair, unpack
from swin_mim.data.dense.pairs import Pairs
from swin_mim.data.loading.loader import Batch, LoaderOptions, heldout_batches
from swin_mim.evaluation.classification_evaluator import REPORT
from swin_mim.evaluation.confusion import save_confusion
from swin_mim.evaluation.dense.mask_files import mask_stems, place_of, write_mask
from swin_mim.evaluation.dense.overlays import Shown, save_overlays
from swin_mim.evaluation.dense.segmentation import Inference, Outcome, evaluate, report
from swin_mim.evaluation.false_colours import FalseColours, shown_channels
from swin_mim.evaluation.validation import evaluation_mode
from swin_mim.files import replace_json
from swin_mim.models.dense.segmenter import SwinSegmenter
from swin_mim.models.preprocessing import Preprocessor

OVERLAYS, CONFUSION = "overlays.png", "confusion.png"


@dataclass(frozen=True)
class SegmentationEvaluator:
    """Evaluates segmenters of the same classes on the same images.

    Args:
        pairs: the images with their labels.
        infer: how an image becomes logits.
        preprocess: images -> the model's input.
        size: (H, W) that images usually have, in pixels.
        reduce, watch, options: as in `Reader`.
        shown: images in the picture.
        channels: that are shown as colours, by name or number; None: the usual ones.
    """

    pairs: Pairs
    infer: Inference
    preprocess: Preprocessor
    size: tuple[int, int]
    reduce: Callable[[Tensor], Tensor]
    watch: Callable[[Iterator[Batch]], Iterable[Batch]]
    options: LoaderOptions
    shown: int = 4
    channels: Sequence[str] | None = None

    def outcome(self, model: SwinSegmenter, predictions: Path | None = None) -> Outcome:
        """Collect what the model makes of every image; all processes call it together and get the same.

        Args:
            predictions: a folder; each process writes the masks of the images that it was dealt.
        """
        options = replace(self.options, pixel_bytes=self.preprocess.pixel_bytes + 4)
        batches = heldout_batches(self.pairs.images, WholePair(self.size), 1, options)
        keep = None
        if predictions is not None:
            folder, stems = predictions.expanduser(), mask_stems(self.pairs.images)

            def keep(index: int, classes: np.ndarray) -> None:
                place = place_of(self.pairs.images, index)
                write_mask(folder, stems[index], classes, self.pairs.numbers, place)

        wanted: dict[str, Any] = {"infer": self.infer, "preprocess": self.preprocess, "reduce": self.reduce}
        return evaluate(model, self.watch(batches), self.pairs, **wanted, keep=keep)

    def write(
        self,
        folder: Path,
        outcome: Outcome,
        model: SwinSegmenter | None,
        *,
        step: int | None,
        about: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write metrics.json, confusion.png and overlays.png.

        Args:
            model: what the picture shows; None: no picture.
            step: after which the weights were these; None: nobody knows.
            about: what else to write, such as which model it was.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self.shown and model is not None and (rows := self._rows(model)):
            save_overlays(folder / OVERLAYS, rows, self.pairs.names)
        save_confusion(folder / CONFUSION, outcome.confusions, self.pairs.names)
        replace_json(folder / REPORT, {"step": step, **about, **report(outcome, self.pairs.names)})

    def _rows(self, model: SwinSegmenter) -> list[Shown]:
        """The images of the picture, spread over all of them."""
        packed = []
        for index in np.linspace(0, len(self.pairs) - 1, min(self.shown, len(self.pairs))).round().astype(int):
            try:
                packed.append(WholePair(self.size)(self.pairs.images.image(int(index)))[None])
            except BrokenImage:  # told by the evaluation
                continue
        count = len(self.preprocess.preprocessing.mean)
        parts = [unpack(each, count) for each in packed]
        colours = self._colours([images for images, _ in parts])
        rows = []
        with evaluation_mode(model):
            for (images, labels), picture in zip(parts, colours, strict=True):
                found = self.infer(model, self.preprocess(images)).argmax(dim=1)[0].cpu().numpy()
                truth = labels[0].numpy()
                rows.append(Shown(picture, truth if (truth < len(self.pairs.names)).any() else None, found))
        return rows

    def _colours(self, images: Sequence[Tensor]) -> list[np.ndarray]:
        """uint8 (H, W, 3) of each of some (1, C, H, W)."""
        known = self.preprocess.preprocessing
        if known.scale == 1 and images:
            names = known.channels or tuple(str(number + 1) for number in range(len(known.mean)))
            chosen = shown_channels(self.channels, names)
            flat = torch.cat([each.flatten(2) for each in images], dim=2)[..., None]  # (1, C, all pixels, 1)
            colours = FalseColours.of(flat, ~flat[:, 0].isnan(), chosen)
            images = [colours(each, ~each[:, 0].isnan()) for each in images]
        return [each[0].permute(1, 2, 0).numpy() for each in images]
