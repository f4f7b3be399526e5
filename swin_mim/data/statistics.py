"""What the values of each channel are over a set of images, whatever their number and order of magnitude."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swin_mim.data.decoding.raster import Raster

_DIGITS = 6


@dataclass(frozen=True)
class Statistics:
    """Of each channel, over the valid pixels, in the units of the files.

    Those of single images are put together one after the other: in the same order to the same bits, however many
    processes have made them. A sum of squares would lose the digits of values far from 0.
    """

    images: int
    pixels: int
    """Of the images, valid or not."""
    valid: int
    """Of these, those that are there."""
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    """Sum of the squared differences from the mean."""
    least: tuple[float, ...]
    greatest: tuple[float, ...]

    @classmethod
    def of(cls, image: "Raster") -> "Statistics":
        """Of one image, of which a pixel is valid."""
        import numpy as np  # the command line, which reads what is packed, does not wait for it

        values, valid = image
        pixels = values.shape[0] * values.shape[1]
        mean, spread, least, greatest = [], [], [], []
        for channel in range(values.shape[2]):
            there = values[:, :, channel] if valid is None else values[:, :, channel][valid]
            wide = there.astype(np.float64)
            mean.append(float(wide.mean()))
            spread.append(float(np.square(wide - mean[-1]).sum()))
            least.append(there.min().item())
            greatest.append(there.max().item())
        count = pixels if valid is None else int(valid.sum())
        return cls(1, pixels, count, tuple(mean), tuple(spread), tuple(least), tuple(greatest))

    def and_of(self, other: "Statistics") -> "Statistics":
        """Of both sets together."""
        valid = self.valid + other.valid
        mean, spread = [], []
        for channel, (ours, theirs) in enumerate(zip(self.mean, other.mean, strict=True)):
            apart = theirs - ours
            mean.append(ours + apart * other.valid / valid)
            between = apart * apart * self.valid * other.valid / valid
            spread.append(self.spread[channel] + other.spread[channel] + between)
        return Statistics(
            self.images + other.images,
            self.pixels + other.pixels,
            valid,
            tuple(mean),
            tuple(spread),
            tuple(map(min, self.least, other.least)),
            tuple(map(max, self.greatest, other.greatest)),
        )

    @property
    def std(self) -> tuple[float, ...]:
        """Deviations of the population."""
        return tuple(math.sqrt(spread / self.valid) for spread in self.spread)

    @property
    def share(self) -> float:
        """Of the pixels that are valid."""
        return self.valid / self.pixels

    def divided(self, by: float) -> "Statistics":
        """With all values divided."""
        mean, least, greatest = (tuple(v / by for v in each) for each in (self.mean, self.least, self.greatest))
        spread = tuple(each / by**2 for each in self.spread)
        return Statistics(self.images, self.pixels, self.valid, mean, spread, least, greatest)

    def as_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Statistics":
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        return cls(**values)


def rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    """To six digits, whatever their magnitude."""
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)


def options_text(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """ "--data.mean ... --data.std ..." to copy."""
    return " ".join(
        f"--data.{name} {' '.join(f'{value:.{_DIGITS}g}' for value in values)}"
        for name, values in (("mean", mean), ("std", std))
    )
