"""The same held-out images under the same masks: what every evaluation of a run looks at."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from swin_mim.data.loading.loader import Batch
from swin_mim.evaluation.false_colours import FalseColours
from swin_mim.evaluation.reconstruction import reconstruct, save_reconstruction
from swin_mim.evaluation.validation import baseline_errors, evaluate
from swin_mim.models.simmim import SimMIM, local_statistics


@dataclass(frozen=True)
class ReconstructionEvaluator:
    """This process's share of the held-out images, decoded, and how a model sees them.

    Args:
        batches: decoded images.
        prepare: images of a batch (B, C, H, W) -> normalised float on the model's device.
        restore: its inverse.
        draw_mask: of a batch -> bool (B, H/p, W/p), a function of the positions and valid pixels alone.
        reduce: the sum of a tensor over all processes.
        shown: the channels that pictures show; None: the images are RGB.
    """

    batches: list[Batch]
    prepare: Callable[[Tensor], Tensor]
    restore: Callable[[Tensor], Tensor]
    draw_mask: Callable[[Batch], Tensor]
    reduce: Callable[[Tensor], Tensor]
    shown: tuple[int, ...] | None = None

    def loss(self, model: SimMIM) -> dict[str, float]:
        """The mean loss over the images of all processes."""
        return {
            "heldout_loss": evaluate(
                model, self.batches, prepare=self.prepare, draw_mask=self.draw_mask, reduce=self.reduce
            )
        }

    def inpainting_baselines(self, model: SimMIM) -> dict[str, float]:
        """What the loss would be for holes filled with nothing learned, in the units of the model's target."""
        normalized = model.target == "normalized"
        errors = baseline_errors(
            self.batches,
            prepare=self.prepare,
            draw_mask=self.draw_mask,
            patch=model.encoder.config.patch_size,
            reduce=self.reduce,
            deviation=(lambda images, **valid: local_statistics(images, **valid)[1]) if normalized else None,
        )
        return {f"{name}_error": error for name, error in errors.items()}

    def picture(self, model: SimMIM, path: Path, count: int) -> None:
        """Reconstructions of the first `count` images of this process, as a PNG."""
        batch = self.batches[0].first(count)
        images, mask = batch.images, self.draw_mask(batch)
        valid = batch.valid_on(mask.device)

        def restore(pixels: Tensor) -> Tensor:
            return self.restore(model.to_images(pixels.float(), self.prepare(images), **valid))

        prediction = reconstruct(model, images, mask, prepare=self.prepare, restore=restore, **valid)
        if self.shown is not None:
            colours = FalseColours.of(images, batch.valid, self.shown)
            images, prediction = colours(images, batch.valid), colours(prediction.cpu(), batch.valid)
        save_reconstruction(path, images, mask, prediction, patch=model.encoder.config.patch_size)
