"""Images of any channels as pictures: three of the channels as red, green and blue, or one as grey."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swin_mim.errors import UserError

COMMON = (("red", "green", "blue"), ("b04", "b03", "b02"), ("b4", "b3", "b2"), ("r", "g", "b"))
"""What the visible channels are called: by words, and as Sentinel-2 and Landsat number them."""
NOTHING = 255
"""Value of pixels that are not there."""

_PART = 0.02  # of the pixels that become quite dark, and quite bright


def shown_channels(
    chosen: Sequence[str] | None, names: Sequence[str], setting: str = "log.picture_channels"
) -> tuple[int, ...]:
    """Which of the channels a picture shows: three, or one.

    Args:
        chosen: their names, or numbers from 1. None: the visible ones by their names, else the first three, or the
            first where there are two.
        names: of the channels.
        setting: that chose them, for the message.

    Raises:
        UserError: no such channel, or neither one nor three.
    """
    known = {name.lower(): index for index, name in reversed(list(enumerate(names)))}
    if chosen is None:
        visible = next((triple for triple in COMMON if all(name in known for name in triple)), None)
        return tuple(known[name] for name in visible) if visible else tuple(range(3 if len(names) >= 3 else 1))
    numbered = {str(index + 1): index for index in range(len(names))} | known
    unknown = [name for name in chosen if name.lower() not in numbered]
    if unknown or len(chosen) not in (1, 3):
        raise UserError(
            f"{setting} {' '.join(chosen) or '(none)'} must be one or three of the channels: {', '.join(names)}"
        )
    return tuple(numbered[name.lower()] for name in chosen)


@dataclass(frozen=True)
class FalseColours:
    """Values to colours, the same for all images of a picture: the darkest 2 % of each channel are 0, the brightest 2 %
    are full."""

    channels: tuple[int, ...]
    low: Tensor
    """(n, 1, 1), of the channels in order."""
    high: Tensor

    @classmethod
    def of(cls, images: Tensor, valid: Tensor | None, channels: tuple[int, ...]) -> "FalseColours":
        """For images (B, C, H, W) with valid pixels, bool (B, H, W) or None."""
        values = images[:, list(channels)].float().transpose(0, 1).flatten(1)  # (n, B H W)
        if valid is not None:
            values = values[:, valid.flatten()]
        # sorted, as torch.quantile takes 16 million values at most
        ordered, last = values.sort(dim=1).values, values.shape[1] - 1
        low, high = ordered[:, round(last * _PART)], ordered[:, round(last * (1 - _PART))]
        return cls(channels, low.view(-1, 1, 1), high.view(-1, 1, 1))

    def __call__(self, images: Tensor, valid: Tensor | None) -> Tensor:
        """(B, C, H, W) -> uint8 (B, 3, H, W); white where there is no pixel."""
        values = images[:, list(self.channels)].float()
        values = (values - self.low) / (self.high - self.low).clamp(min=torch.finfo(torch.float32).tiny)
        pixels = values.mul(255).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
        return pixels if valid is None else pixels.where(valid[:, None], NOTHING)
