"""From decoded images to a model's input: normalisation on the device, and back."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from swin_mim.data.decoding.raster import pixel_bytes
from swin_mim.data.transforms.crops import denormalize, normalize
from swin_mim.weights.config_json import Preprocessing


@dataclass(frozen=True)
class Preprocessor:
    """Normalises images of a batch on a device.

    Args:
        preprocessing: mean, std, scale and gaps of the images that the model takes.
        device: the model's.
    """

    preprocessing: Preprocessing
    device: torch.device

    def __call__(self, images: Tensor) -> Tensor:
        """Images of a batch (B, C, H, W), uint8 or float -> normalised float on the device; 0, the mean, in gaps."""
        pixels = self.normalized(images)
        return pixels.masked_fill_(pixels.isnan(), 0) if images.is_floating_point() else pixels

    def normalized(self, images: Tensor) -> Tensor:
        """Normalise as `__call__`, with NaN in gaps."""
        return normalize(images.to(self.device, non_blocking=True), *self._statistics, self.preprocessing.scale)

    def restore(self, pixels: Tensor) -> Tensor:
        """Undo the normalisation: float (B, C, H, W) -> float in the range of the images, clamped where it has one."""
        known = self.preprocessing
        return denormalize(pixels, known.mean, known.std, known.scale)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel in a batch of decoded images."""
        channels = len(self.preprocessing.mean)
        return channels if self.preprocessing.scale == 255 else pixel_bytes(channels)

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and std on the device: copied once, as a copy waits for it."""
        known = self.preprocessing
        mean, std = (torch.tensor(values, device=self.device) for values in (known.mean, known.std))
        return mean, std
