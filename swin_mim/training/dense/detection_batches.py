"""A batch of images with objects as a detector takes it."""

from collections.abc import Sequence

from torch import Tensor

from swin_mim.data.dense.box_transforms import unpacked
from swin_mim.models.dense.detector import Target


def images_and_targets(pixels: Tensor, targets: Sequence[dict[str, Tensor]]) -> tuple[list[Tensor], list[Target]]:
    """Of each image what is no padding of the batch, and its objects on the device of the images.

    Args:
        pixels: normalised float (B, C, H, W).
        targets: as `DetectionTransform` gives them.
    """
    images: list[Tensor] = []
    there: list[Target] = []
    for image, target in zip(pixels, targets, strict=True):
        height, width = target["size"].tolist()
        images.append(image[:, :height, :width])
        moved = {key: value.to(pixels.device, non_blocking=True) for key, value in target.items() if key != "size"}
        if "packed" in moved:
            moved["masks"] = unpacked(moved.pop("packed"), width)
        there.append(moved)
    return images, there
