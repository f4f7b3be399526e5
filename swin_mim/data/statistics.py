"""What the values of each channel are over a set of images, whatever their number and order of magnitude.

Heavy imports wait: the command line reads packed statistics without them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swin_mim.data.decoding.raster import Raster

_JSON = {"sum_sq_dev": "spread", "min": "least", "max": "greatest"}
"""Names of fields in packed.json, where they are others."""
_DIGITS = 6


@dataclass(frozen=True)
class Statistics:
    """Mean, std and range of each channel over the valid pixels, in the units of the files.

    Those of single images are put together one after the other: in the same order to the same bits, however many
    processes have made them. A sum of squares would lose the digits of values far from 0.
    """

    images: int
    pixels: int
    """Pixels of the images, valid or not."""
    valid: int
    """Pixels that are there."""
    mean: tuple[float, ...]
    sum_sq_dev: tuple[float, ...]
    """Sum of the squared differences from the mean."""
    min: tuple[float, ...]
    max: tuple[float, ...]

    @classmethod
    def of(cls, image: "Raster") -> "Statistics":
        """Measure one image, of which a pixel is valid."""
        import numpy as np

        values, valid = image
        pixels = values.shape[0] * values.shape[1]
        mean, sum_sq_dev, low, high = [], [], [], []
        for channel in range(values.shape[2]):
            there = values[:, :, channel] if valid is None else values[:, :, channel][valid]
            wide = there.astype(np.float64)
            mean.append(float(wide.mean()))
            sum_sq_dev.append(float(np.square(wide - mean[-1]).sum()))
            low.append(there.min().item())
            high.append(there.max().item())
        count = pixels if valid is None else int(valid.sum())
        return cls(1, pixels, count, tuple(mean), tuple(sum_sq_dev), tuple(low), tuple(high))

    def merge(self, other: "Statistics") -> "Statistics":
        """Statistics of both sets together."""
        valid = self.valid + other.valid
        mean, sum_sq_dev = [], []
        for channel, (ours, theirs) in enumerate(zip(self.mean, other.mean, strict=True)):
            apart = theirs - ours
            mean.append(ours + apart * other.valid / valid)
            between = apart * apart * self.valid * other.valid / valid
            sum_sq_dev.append(self.sum_sq_dev[channel] + other.sum_sq_dev[channel] + between)
        return Statistics(
            self.images + other.images,
            self.pixels + other.pixels,
            valid,
            tuple(mean),
            tuple(sum_sq_dev),
            tuple(map(min, self.min, other.min)),
            tuple(map(max, self.max, other.max)),
        )

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviations of the population; 0 exactly where a channel has one value."""
        channels = zip(self.sum_sq_dev, self.min, self.max, strict=True)
        return tuple(math.sqrt(total / self.valid) if low < high else 0.0 for total, low, high in channels)

    @property
    def share(self) -> float:
        """Part of the pixels that is valid."""
        return self.valid / self.pixels

    def divided(self, by: float) -> "Statistics":
        """Statistics of all values divided by a number."""
        mean, low, high = (tuple(value / by for value in each) for each in (self.mean, self.min, self.max))
        sum_sq_dev = tuple(each / by**2 for each in self.sum_sq_dev)
        return Statistics(self.images, self.pixels, self.valid, mean, sum_sq_dev, low, high)

    def as_json(self) -> dict[str, Any]:
        return {
            _JSON.get(name, name): list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Statistics":
        names = {key: name for name, key in _JSON.items()}
        values: dict[str, Any] = {
            names.get(key, key): tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        return cls(**values)


def rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    """Round to six digits, whatever their magnitude."""
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)


def options_text(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """ "--data.mean ... --data.std ..." to copy."""
    return " ".join(
        f"--data.{name} {' '.join(f'{value:.{_DIGITS}g}' for value in values)}"
        for name, values in (("mean", mean), ("std", std))
    )


def spread_indices(count: int, limit: int) -> Sequence[int]:
    """Up to `limit` of `count` indices, evenly spread and the same ones each time."""
    import numpy as np

    return [int(index) for index in np.unique(np.linspace(0, count - 1, min(limit, count)).astype(int))]
