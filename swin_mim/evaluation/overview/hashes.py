"""Two hashes of every image, by which equal and nearly equal ones are found: of what a model sees of it, before it is
normalised.

`pixels` is the beginning of a BLAKE2b of the pixels. `look` is the difference hash: the image as 8 x 9 grey values, a
bit for each of the 64 pairs of neighbours in a row, set where the left one is brighter; what is encoded anew, resized
or slightly brighter changes few of its bits.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from swin_mim.data.loading.loader import Batch
from swin_mim.data.sources.base import Source
from swin_mim.data.transforms.crops import EvaluationTransform
from swin_mim.evaluation.reader import Reader

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


class ImageHash(NamedTuple):
    """Both hashes of an image, as numbers of 64 bits."""

    pixels: int
    look: int


@dataclass(frozen=True)
class HashedTransform:
    """As another transform, and beside its image an `ImageHash`."""

    transform: EvaluationTransform

    @property
    def size(self) -> tuple[int, int]:
        return self.transform.size

    def __call__(self, image: Any) -> tuple[Tensor, ImageHash]:
        values = self.transform(image)
        return values, image_hash(values)


def image_hash(image: Tensor) -> ImageHash:
    """Both hashes of uint8 (3, H, W) RGB or of float32 (C, H, W), NaN where there is no pixel."""
    digest = hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=8).digest()
    if image.dtype == torch.uint8:
        grey = (image.float() * torch.tensor(_GREY).view(3, 1, 1)).sum(dim=0)
    else:
        # each channel by its own range, as their units differ
        flat = image.nan_to_num().flatten(1)
        low, high = flat.min(dim=1).values, flat.max(dim=1).values
        scaled = (flat - low[:, None]) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        grey = scaled.mean(dim=0).view(image.shape[1:])
    small = torch.nn.functional.adaptive_avg_pool2d(grey[None], (8, 9))[0]
    bits = (small[:, :-1] > small[:, 1:]).flatten().numpy()
    return ImageHash(int.from_bytes(digest), int.from_bytes(np.packbits(bits).tobytes()))


def hashes_of(batch: Batch) -> np.ndarray:
    """uint64 (B, 2) of a batch whose transform was a `HashedTransform`: pixels and look; 0 where nothing was read."""
    found = batch.targets or [None] * len(batch.indices)
    return np.array([each or (0, 0) for each in found], dtype=np.uint64).reshape(-1, 2)


def hashes_of_source(source: Source, reader: Reader) -> np.ndarray:
    """uint64 (N, 2) of all images, as `hashes_of`; each is decoded once, by a reader that replaces none."""
    found = np.zeros((len(source), 2), np.uint64)
    with tqdm(total=len(source), desc="hashes", unit=" images", disable=None) as progress:
        for batch in replace(reader, wrap=HashedTransform).batches(source):
            found[batch.start : batch.start + len(batch.indices)] = hashes_of(batch)
            progress.update(len(batch.indices))
    return found
