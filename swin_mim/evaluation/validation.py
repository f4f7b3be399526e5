"""The masked L1 on held-out images under fixed masks, and what it would be with nothing learned."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from swin_mim.data.loading.loader import Batch
from swin_mim.errors import UserError
from swin_mim.evaluation.hole_filling import laplace_inpaint, mean_fill
from swin_mim.masking import pixel_mask
from swin_mim.models.compilation import uncompiled
from swin_mim.models.targets.hog import Hog, masked_share
from swin_mim.models.targets.pixels import masked_l1
from swin_mim.weights.heads import BINS

_NO_IMAGE = "there is no held-out image to evaluate on: data.heldout 0 or a source of under 10 images"


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    prepare: Callable[[Tensor], Tensor],
    draw_mask: Callable[[Batch], Tensor],
    reduce: Callable[[Tensor], Tensor],
) -> float:
    """The mean loss over all held-out images of all processes; every process gets the same number.

    Each image counts the same, however the images are cut into batches and dealt to processes; a process may have no
    batch at all. The model comes back in the mode it was in.

    Args:
        model: called as model(images, mask), or with `valid=` too where the batch has such pixels; its result's first
            field is the loss of the batch. The bare model: one wrapped for distributed training may wait for the
            forward of a process that has no batch left.
        batches: this process's share of the held-out images.
        prepare: images of a batch (B, C, H, W) -> normalised float on the model's device.
        draw_mask: of a batch -> bool (B, H/p, W/p) on that device, a function of the images' positions and of their
            valid pixels alone, so that every evaluation of a run sees the same masks.
        reduce: the sum of a tensor over all processes. It gets float64 (2,) on the CPU and moves it where its
            backend needs it; every process calls it exactly once.

    Raises:
        UserError: no process has an image.
    """
    return evaluate_parts(model, batches, prepare=prepare, draw_mask=draw_mask, reduce=reduce)["loss"]


def evaluate_parts(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    prepare: Callable[[Tensor], Tensor],
    draw_mask: Callable[[Batch], Tensor],
    reduce: Callable[[Tensor], Tensor],
    names: Sequence[str] = (),
    taught: Sequence[Tensor] = (),
) -> dict[str, float]:
    """The mean over all held-out images of several parts of a loss; the other arguments are those of `evaluate`.

    Args:
        taught: what a teacher says of the images of each batch, the model's argument of this name; none: no teacher.
        names: of the parts that the model's result has in its third field; none: "loss", its first field, alone.
            `reduce` gets float64 (parts + 1,).

    Raises:
        UserError: no process has an image.
    """
    names = tuple(names) or ("loss",)
    losses: list[list[Tensor]] = [[] for _ in names]
    counts = []
    with evaluation_mode(model):
        for place, batch in enumerate(batches):
            images = prepare(batch.images)
            said = {"taught": taught[place]} if taught else {}
            out = model(images, draw_mask(batch), **batch.valid_on(images.device), **said)
            parts = [out[0]] if names == ("loss",) else [out[2][name] for name in names]
            for found, part in zip(losses, parts, strict=True):
                found.append(part.detach())
            counts.append(len(batch.images))
    return dict(zip(names, _mean_over_images(losses, counts, reduce), strict=True))


def baseline_errors(
    batches: Iterable[Batch],
    *,
    prepare: Callable[[Tensor], Tensor],
    draw_mask: Callable[[Batch], Tensor],
    patch: int,
    reduce: Callable[[Tensor], Tensor],
    std: Callable[..., Tensor] | None = None,
) -> dict[str, float]:
    """The masked L1 of two fillings with nothing learned, in the units of the loss: a model should get below both.

    Args:
        batches, prepare, draw_mask, reduce: as in `evaluate`; `reduce` gets float64 (3,).
        patch: pixels along the side of one token.
        std: for a normalised target: prepared images, and `valid=` as in `evaluate` -> local standard deviation,
            both (B, C, H, W).

    Returns:
        "mean_fill", the mean of the visible pixels, and "interpolation", Laplace inpainting between them.

    Raises:
        UserError: no process has an image.
    """
    errors: list[list[Tensor]] = [[], []]
    counts = []
    for batch in batches:
        images, mask = prepare(batch.images), draw_mask(batch)
        valid = batch.valid_on(images.device)
        unit = torch.ones_like(images) if std is None else std(images, **valid)
        unknown = pixel_mask(mask, patch)
        if valid:
            unknown = unknown | ~valid["valid"]
        for found, fill in zip(errors, (mean_fill, laplace_inpaint), strict=True):
            filled = fill(images, unknown)
            found.append(masked_l1(filled / unit, images / unit, mask, **valid))
        counts.append(len(batch.images))
    return dict(zip(("mean_fill", "interpolation"), _mean_over_images(errors, counts, reduce), strict=True))


def constant_hog_errors(
    batches: Iterable[Batch],
    *,
    prepare: Callable[[Tensor], Tensor],
    draw_mask: Callable[[Batch], Tensor],
    reduce: Callable[[Tensor], Tensor],
    hog: Hog,
    channels: int,
) -> dict[int, float]:
    """For each size of squares the loss of the best histogram that is the same for all of them and all images.

    Args:
        batches, prepare, draw_mask, reduce: as in `evaluate`; `reduce` gets float64 (sizes, 18 channels + 2).
        channels: of an image.

    Raises:
        UserError: no process has an image.
    """
    width = BINS * channels
    sums = torch.zeros(len(hog.cells), 2 * width + 2, dtype=torch.float64)
    for batch in batches:
        images, mask = prepare(batch.images), draw_mask(batch)
        valid = batch.valid_on(images.device).get("valid")
        with uncompiled(hog):
            histograms = hog(images, valid)
        for row, cell in zip(sums, hog.cells, strict=True):
            flat = histograms[cell].flatten(2).cpu().double()  # (B, width, squares); MPS has no float64
            share = masked_share(mask, valid, histograms[cell].shape[2]).flatten(1).cpu().double()
            share = share / share.sum(1, keepdim=True).clamp(min=1e-6)
            first, second = ((flat**power * share[:, None]).sum((0, 2)) for power in (1, 2))
            row += torch.cat([first, second, torch.stack([share.sum(), share.new_tensor(len(images))])])
    total = reduce(sums)
    first, second, (squares, count) = total[:, :width], total[:, width:-2], total[:, -2:].T
    if not count.all():
        raise UserError(_NO_IMAGE)
    errors = (second - first**2 / squares.clamp(min=1e-12)[:, None]).mean(1) / count
    return dict(zip(hog.cells, errors.tolist(), strict=True))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout, no gradients and nothing compiled inside; afterwards, also after an error, all is as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # not inference_mode: what a module caches in it could never be trained with
        with uncompiled(model), torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _mean_over_images(values: list[list[Tensor]], counts: list[int], reduce: Callable[[Tensor], Tensor]) -> list[float]:
    """Means of several quantities, each given per batch, with the batches' image counts as weights.

    The values stay on their device until the end: one wait for the device, not one per batch.
    """
    weights = torch.tensor(counts, dtype=torch.float64)
    sums = [(torch.stack(each).cpu().double() * weights).sum() if each else weights.sum() for each in values]
    *totals, images = reduce(torch.stack([*sums, weights.sum()])).tolist()
    if not images:
        raise UserError(_NO_IMAGE)
    return [total / images for total in totals]
