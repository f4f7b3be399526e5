"""What a masked image model makes of the same held-out images under the same masks, at every evaluation of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from swin_mim.data.loading.loader import Batch, owned
from swin_mim.evaluation.false_colours import FalseColours, shown_channels
from swin_mim.evaluation.reader import Reader
from swin_mim.evaluation.reconstruction import reconstruct, save_reconstruction
from swin_mim.evaluation.validation import baseline_errors, constant_hog_errors, evaluate_parts
from swin_mim.masking import BlockMasks
from swin_mim.models.compilation import uncompiled
from swin_mim.models.simmim import SimMIM
from swin_mim.models.targets.normalized import local_statistics
from swin_mim.training.images import Images
from swin_mim.training.run.jsonl import disk_may_fail
from swin_mim.training.teaching import NO_LESSONS, Lessons
from swin_mim.weights.heads import hog_cell

EVALUATION_SEED = 0
"""Seed of the masks on held-out images, and of the choice of images to probe on: the same in every run, so that losses
and scores can be compared."""


@dataclass(frozen=True)
class ReconstructionEvaluator:
    """Measures masked image models on the held-out images of this process, which are decoded once.

    Args:
        batches: decoded images.
        reader: how they reach a model.
        masks: where they are masked.
        shown: the channels that pictures show; None: the images are RGB.
        seed: of the masks.
        lessons: what a teacher says of images; it is asked once.
    """

    batches: list[Batch]
    reader: Reader
    masks: BlockMasks
    shown: tuple[int, ...] | None = None
    seed: int = EVALUATION_SEED
    lessons: Lessons = NO_LESSONS

    @classmethod
    def open(
        cls,
        images: Images,
        reader: Reader,
        masks: BlockMasks,
        picture_channels: Sequence[str] | None,
        lessons: Lessons = NO_LESSONS,
    ) -> "ReconstructionEvaluator":
        """Decode the held-out images; `picture_channels` are the names of those to show, None: the first three."""
        shown = shown_channels(picture_channels, images.channels) if images.channels else None
        return cls([owned(batch) for batch in reader.batches(images.heldout)], reader, masks, shown, lessons=lessons)

    def loss(self, model: SimMIM) -> dict[str, float]:
        """Measure the mean loss over the images of all processes, which call it together.

        "heldout_loss" is that of the decoder's pixels, whatever else is predicted; "heldout_hog_loss" and
        "heldout_stage1_loss" are those of other heads, "heldout_teacher_loss" is 1 less the cosine with the teacher's
        features.
        """
        names = model.part_names
        if self.lessons.teacher is not None:
            names = (*(names or ("loss",)), "teacher_loss")
        losses = evaluate_parts(
            model,
            self.batches,
            prepare=self.reader.preprocess,
            draw_mask=self._mask,
            reduce=self.reader.reduce,
            names=names,
            taught=self._taught,
        )
        return {f"heldout_{name}": loss for name, loss in losses.items()}

    def baselines(self, model: SimMIM) -> dict[str, float]:
        """Measure what the losses would be with nothing learned.

        For masked pixels that are inpainted, in the units of the model's target; and if the best answer that is the
        same for all images is given to a teacher's features ("constant_teacher_loss") and for histograms
        ("constant_hog_loss", "constant_stage1_hog_loss").
        """
        normalized = model.target == "normalized"
        errors = baseline_errors(
            self.batches,
            prepare=self.reader.preprocess,
            draw_mask=self._mask,
            patch=model.encoder.config.patch_size,
            reduce=self.reader.reduce,
            std=(lambda images, **valid: local_statistics(images, **valid)[1]) if normalized else None,
        )
        named = {f"{name}_error": error for name, error in errors.items()}
        return named | self._constant_histograms(model) | self._constant_answer()

    def picture(self, model: SimMIM, path: Path, count: int) -> dict[str, float]:
        """Write the reconstructions of the first `count` images of the main process as a PNG; no metrics."""
        if self.reader.options.rank == 0:
            with disk_may_fail("the picture of held-out images"):
                self.draw(model, path, count)
        return {}

    def draw(self, model: SimMIM, path: Path, count: int) -> None:
        """Write the reconstructions of the first `count` images of the first batch as a PNG."""
        preprocess, batch = self.reader.preprocess, self.batches[0].first(count)
        images, mask, valid = batch.images, self._mask(batch), batch.valid_on(preprocess.device)

        def restore(pixels: Tensor) -> Tensor:
            return preprocess.restore(model.to_images(pixels.float(), preprocess(images), **valid))

        prediction = reconstruct(model, images, mask, prepare=preprocess, restore=restore, **valid)
        if self.shown is not None:
            colours = FalseColours.of(images, batch.valid, self.shown)
            images, prediction = colours(images, batch.valid), colours(prediction.cpu(), batch.valid)
        save_reconstruction(path, images, mask, prediction, patch=model.encoder.config.patch_size)

    @cached_property
    def _taught(self) -> list[Tensor]:
        """Features of the teacher for the images of each batch; none without one."""
        teacher = self.lessons.teacher
        if teacher is None:
            return []
        with uncompiled(teacher):
            prepared = ((self.reader.preprocess(batch.images), batch) for batch in self.batches)
            return [self.lessons(images, **batch.valid_on(images.device))["taught"] for images, batch in prepared]

    def _constant_histograms(self, model: SimMIM) -> dict[str, float]:
        """The loss of each head of histograms, if its answer is the mean one everywhere."""
        if model.hog is None:
            return {}
        config = model.encoder.config
        errors = constant_hog_errors(
            self.batches,
            prepare=self.reader.preprocess,
            draw_mask=self._mask,
            reduce=self.reader.reduce,
            hog=model.hog,
            channels=config.in_channels,
        )
        names = [name for name in model.part_names if name.endswith("hog_loss")]
        return {
            f"constant_{name}": errors[hog_cell(config.patch_size * 2 ** int(stage))]
            for name, stage in zip(names, model.stage_heads, strict=True)
        }

    def _constant_answer(self) -> dict[str, float]:
        """1 less the mean cosine with one direction for all images: the best is that of the mean of the directions."""
        width = self.lessons.width
        if not width:
            return {}
        directions = [F.normalize(taught, dim=1).cpu().double() for taught in self._taught]
        sums = torch.cat([*directions, torch.zeros(1, width, dtype=torch.float64)]).sum(0)
        count = torch.tensor([sum(map(len, directions))], dtype=torch.float64)
        total = self.reader.reduce(torch.cat([sums, count]))
        return {"constant_teacher_loss": 1 - float((total[:-1] / total[-1]).norm())}

    def _mask(self, batch: Batch) -> Tensor:
        device = self.reader.preprocess.device
        return self.masks.draw(
            len(batch.images), seed=self.seed, start=batch.start, device=device, **batch.valid_on(device)
        )
